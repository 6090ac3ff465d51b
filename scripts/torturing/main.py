"""The long form of the store's fault experiments: each in a process of its own, the results in one report.

An experiment that is run again replaces only its own entry, so the report can be made in pieces; every entry says at
which commit it was run. Start it with ``scripts/torture``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from report import render_report

from registry.provenance import code_version, hardware, library_versions
from tests.faults import defects
from tests.faults.crash import inject, power_loss
from tests.faults.crowd import crowd
from tests.faults.crowd.threads import try_threads
from tests.faults.damage import damage, foreign, fuzzing, mismatches, names, planted
from tests.faults.damage.atheris_run import run_target
from tests.faults.network.remote import try_remote, try_sync
from tests.faults.states import listed
from tests.faults.states.frozen import try_frozen
from tests.faults.states.machine import try_machine
from tests.faults.verdict import Verdict

ROOT = Path(__file__).parents[2]
LONG_FUZZED = ("manifest", "header", "archive")  # ten minutes each, the others two
PEERS = {"ours": ".venv", "peft": ".venv-peers", "adapters": ".venv-peers", "adapters-safetensors": ".venv-peers"}


class Experiment(NamedTuple):
    """One row of the report.

    Attributes:
        needed: how many cases the long form has to judge.
        run: what is done, given a folder and sizes.
        long, quick: the sizes of the full form and of a small one.
    """

    name: str
    needed: int
    run: Callable[..., Verdict]
    long: dict[str, Any] = {}
    quick: dict[str, Any] = {}


def _rounds(folder: Path, *, number: int, **sizes: Any) -> Verdict:
    """Let a crowd of writers loose ``number`` times and add up what it did."""
    total = Verdict(f"{number} rounds of 64 processes that save 8 times into one name lose nothing")
    for turn in range(number):
        for locks in ("working", "no-op", "failing"):
            place = folder / f"{turn}-{locks}"
            place.mkdir()
            verdict = crowd.try_writers(place, locks=locks, **sizes)
            total.tried += verdict.tried
            total.bad += verdict.bad
            total.count(f"saves with {locks} locks", verdict.tried)
    return total


def _fuzz(_: Path, *, target: str, seconds: int) -> Verdict:
    """Fuzz one parser; bad is whatever is not refused by an error of ours, in a second and 256 MiB."""
    found = run_target(target, seconds)
    bad = [json.dumps(each) for each in found["uncaught"]]
    figures = ("executions", "seconds", "slowest_seconds", "memory_growth_mib")
    details = {key.replace("_", " "): found[key] for key in figures if key in found}
    return Verdict(f"hostile bytes for the parser of one {target} are refused", found["executions"], bad, details)


def _fuzzer(target: str) -> Experiment:
    seconds = 600 if target in LONG_FUZZED else 120
    sizes = ({"seconds": seconds}, {"seconds": 10})
    return Experiment(f"fuzz {target}", 10_000, partial(_fuzz, target=target), *sizes)


EXPERIMENTS = (
    Experiment("kill -9", 3_000, inject.try_kills, {"points": 3_300}, {"points": 60}),
    Experiment("power loss", 50_000, power_loss.try_power_loss, {"states": 50_000}, {"states": 300}),
    Experiment("failing calls", 10_000, inject.try_failing_calls, {"every": 1}, {"every": 300}),
    Experiment("full disk", 300, inject.try_full_disk, {"size": 100_000}, {"size": 10_000}),
    Experiment("file size limit", 500, inject.try_size_limits, {"step": 50}, {"step": 1_000}),
    Experiment("writers", 3 * 10 * 512, _rounds, {"number": 10}, {"number": 1, "processes": 8, "saves": 4}),
    Experiment("alias movers", 3_000, crowd.try_movers, {"turns": 160}, {"turns": 4}),
    Experiment("readers", 100_000, crowd.try_readers, {"reads": 100_000}, {"reads": 500}),
    Experiment("gc under writers", 1_000, crowd.try_collectors, {"saves": 160}, {"saves": 4}),
    Experiment("damage", 100_000, damage.try_damage, {"cases": 110_000}, {"cases": 300}),
    Experiment("hostile names", 100_000, names.try_names, {"cases": 120_000}, {"cases": 1_000}),
    Experiment("foreign", 10_000, foreign.try_foreign, {"cases": 10_500}, {"cases": 60}),
    Experiment("mismatches", 20, mismatches.try_mismatches),
    Experiment("planted links", 100, planted.try_planted),
    Experiment("store machine", 50_000, try_machine, {"runs": 500, "steps": 100}, {"runs": 5, "steps": 30}),
    Experiment("frozen backbone", 50_000, try_frozen, {"runs": 500, "steps": 100}, {"runs": 3, "steps": 30}),
    Experiment("threads", 10_000, try_threads, {"threads": 8, "requests": 1_250}, {"threads": 4, "requests": 25}),
    Experiment("list", 10_000, listed.try_list, {"sets": 10_000, "limit": 0.6}, {"sets": 500}),
    Experiment(
        "remote",
        1_650,
        try_remote,
        {"writers": 32, "saves": 50, "faults": 40, "kills": 16},
        {"writers": 3, "saves": 3, "faults": 12, "kills": 1},
    ),
    Experiment("remote sync", 10_000, try_sync, {"sets": 10_000}, {"sets": 20}),
    Experiment("seeded defects", 12, defects.try_defects),
    *map(_fuzzer, fuzzing.TARGETS),
)


def run_one(name: str, is_quick: bool, out: Path) -> None:
    """Run one experiment in this process and write its entry."""
    experiment = next(each for each in EXPERIMENTS if each.name == name)
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        verdict = experiment.run(Path(folder), **(experiment.quick if is_quick else experiment.long))
    broken = int(verdict.details.get("bad", len(verdict.bad)))
    entry = {
        **asdict(verdict),
        "broken": broken,
        "needed": 1 if is_quick else experiment.needed,
        "form": "quick" if is_quick else "long",
        "seconds": round(time.perf_counter() - started, 1),
        "code": code_version(),
    }
    out.write_text(json.dumps(entry))


def run_apart(command: list[str], out: Path) -> dict[str, Any]:
    """Run a command that writes JSON to ``out`` and return it, or what went wrong."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if out.exists():
        return dict(json.loads(out.read_text()))
    return {"error": f"exit code {done.returncode}: {done.stderr.strip()[-400:]}"}


def run_peer(peer: str, is_quick: bool, out: Path) -> dict[str, Any]:
    """Try a peer, or ourselves, with the same faults, in the environment where it lives."""
    python = ROOT / PEERS[peer] / "bin" / "python"
    if not python.exists():
        return {"error": f"no {PEERS[peer]}"}
    sizes = ["--flips", "20", "--cuts", "10"] if is_quick else ["--points", "all"]
    command = [str(python), str(ROOT / "scripts" / "torturing" / "peers.py"), "--peer", peer, "--out", str(out), *sizes]
    return {**run_apart(command, out), "code": code_version()}


def main() -> None:
    """Run the experiments that are asked for and write the report; exit with 1 where a promise broke."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: a check of this program, no evidence")
    parser.add_argument("--only", default="", help="names with commas; those of peers begin with 'peer '")
    parser.add_argument("--jobs", type=int, default=1, help="experiments side by side")
    parser.add_argument("--out", type=Path, default=ROOT / "reports")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one, options.quick, options.out)
        return
    known = [each.name for each in EXPERIMENTS] + [f"peer {peer}" for peer in PEERS]
    wanted = options.only.split(",") if options.only else known
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        parser.error(f"expected names out of {', '.join(known)}; found {', '.join(unknown)}")
    report = _read_report(options.out)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        running = {name: pool.submit(_run, name, options.quick, Path(folder) / f"{name}.json") for name in wanted}
        for name, future in running.items():
            entry = future.result()
            kind = "peers" if name.startswith("peer ") else "experiments"
            report[kind][name.removeprefix("peer ")] = entry
            print(f"{name}: {_told(entry)}", file=sys.stderr, flush=True)
            _write_report(options.out, report)
    broken = [name for name in wanted if name in report["experiments"] and _is_broken(report["experiments"][name])]
    if broken:
        sys.exit(f"scripts/torture: broken promises or failed runs: {', '.join(broken)}")


def _run(name: str, is_quick: bool, out: Path) -> dict[str, Any]:
    if name.startswith("peer "):
        return run_peer(name.removeprefix("peer "), is_quick, out)
    command = [sys.executable, __file__, "--one", name, "--out", str(out), *(["--quick"] if is_quick else [])]
    return run_apart(command, out)


def _is_broken(entry: dict[str, Any]) -> bool:
    return "error" in entry or entry["broken"] > 0 or entry["tried"] < entry["needed"]


def _told(entry: dict[str, Any]) -> str:
    if "error" in entry:
        return str(entry["error"])
    if "tried" not in entry:
        return f"done in {entry.get('seconds')} s"
    return f"{entry['broken']} broken of {entry['tried']} ({entry['needed']} needed) in {entry['seconds']} s"


def _read_report(folder: Path) -> dict[str, Any]:
    path = folder / "reliability.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"experiments": {}, "peers": {}}
    return {**report, "hardware": msgspec.to_builtins(hardware(1, None)), "versions": library_versions()}


def _write_report(folder: Path, report: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    order = [each.name for each in EXPERIMENTS]
    report["experiments"] = {name: report["experiments"][name] for name in order if name in report["experiments"]}
    (folder / "reliability.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "reliability.md").write_text(render_report(report))


if __name__ == "__main__":
    main()
