"""What scripts/gpu runs: its parts one after the other, each written down as soon as it is done."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphs
import parity
import profiles
import report
import scores
import speed
import torch
import transformers

HERE = Path(__file__).parents[2]
PARTS = ("tests", "parity", "speed", "graphs", "profile", "scores")


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all without any")
    parser.add_argument("--out", type=Path, default=HERE / "reports", help="where gpu.json, gpu.md and gpu.log go")
    parser.add_argument("--carried", type=Path, default=HERE / ".gpu", help="what on_gpu/carry.py made")
    parser.add_argument("--minutes", type=float, default=8.0, help="scores end when the whole run would take longer")
    parser.add_argument("--graphs", action="store_true", help="scores train through CUDA graphs, seed after seed")
    parser.add_argument("--device", default="cuda", help="cpu tries the parts out, with sizes that mean nothing")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"expected parts among {', '.join(PARTS)}, found {', '.join(unknown)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no CUDA device here; --device cpu tries the parts out")
    run(options, time.monotonic() + 60 * options.minutes)


def run(options: argparse.Namespace, until: float) -> None:
    """Run the parts, and write what is known after each; parts that failed are told and left."""
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "gpu.json"
    measured_on = machine(options.device)
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    # Parts of one page are of one machine and day; a part run again leaves the others as they are.
    found = before if before.get("machine") == measured_on else {"machine": measured_on}
    found.pop("remarks", None)  # said of the figures that were there
    quick = options.device == "cpu"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def note(key: str, value: Any) -> None:
            write(path, found | {key: value})

        works: dict[str, Callable[[], Any]] = {
            "tests": lambda: run_tests(options.out / "gpu.log"),
            "parity": lambda: parity.measure(folder, options.device),
            "speed": lambda: speed.measure(folder, options.device, quick, note),
            "graphs": lambda: graphs.measure(folder, options.device, quick, note),
            "profile": lambda: profiles.measure(folder, options.device, quick),
            "scores": lambda: scores.measure(
                folder, options.carried, options.device, until, quick, options.graphs, note
            ),
        }
        for part in options.parts or PARTS:
            began = time.monotonic()
            try:
                found[part] = works[part]()
                found.setdefault("failed", {}).pop(part, None)
            except Exception as err:
                traceback.print_exc()
                found.setdefault("failed", {})[part] = f"{type(err).__name__}: {err}"
            found.setdefault("seconds", {})[part] = round(time.monotonic() - began, 1)
            print(f"== {part}: {found['seconds'][part]} s", flush=True)
            write(path, found)
            (options.out / "gpu.md").write_text(report.page(found), encoding="utf-8")


def write(path: Path, found: dict[str, Any]) -> None:
    """Write the figures so far."""
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def machine(device: str) -> dict[str, Any]:
    """Return what the figures were measured on."""
    told = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }
    if device != "cuda":
        return {"device": "cpu, a trial", **told}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    name, driver, memory = subprocess.run(query, capture_output=True, text=True).stdout.strip().split(", ")
    return {"device": name, "driver": driver, "memory": memory, "cuda": torch.version.cuda, **told}


def run_tests(log: Path) -> dict[str, Any]:
    """Run all tests marked gpu, and return how many passed, failed and were skipped, and which failed."""
    options = "-m gpu -rsfE -p no:cacheprovider -p no:benchmark -n 4".split()
    command = [sys.executable, "-m", "pytest", *options, str(HERE / "tests")]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=300)
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    print(done.stdout[-3_000:], done.stderr[-1_500:], flush=True)
    counts = {
        word: int(number)
        for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout.splitlines()[-1])
    }
    listed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    return {"counts": counts, "told": listed, "status": done.returncode}


if __name__ == "__main__":
    main()
