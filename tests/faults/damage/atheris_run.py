"""The long form of fuzzing: atheris drives one target for a time, in a process of its own, and its findings are kept.

A finding does not stop the run: it is noted once for each place it comes from. Only this file knows atheris.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
SLOW = 1.0  # seconds of CPU for one input
GROWTH = 256.0  # MiB over what the process had when fuzzing began
SHOWN = 20  # findings told in full
LONGEST = 2**16  # bytes of an input


class Findings:
    """What a run has seen so far; written to a file every second, as a fuzzer may die."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start_memory = _memory()
        self.started = self.written = time.perf_counter()
        self.executions = 0
        self.slowest, self.slowest_input = 0.0, b""
        self.peak_growth = 0.0
        self.found: dict[str, dict[str, Any]] = {}

    def note(self, what: str, data: bytes) -> None:
        """Keep a finding, once with its input and then as a count."""
        if what in self.found:
            self.found[what]["times"] += 1
        elif len(self.found) < SHOWN:
            self.found[what] = {"what": what, "times": 1, "input": base64.b64encode(data[:4096]).decode()}

    def count(self, data: bytes, seconds: float) -> None:
        """Count one input, and note what was slow or took too much memory."""
        self.executions += 1
        if seconds > self.slowest:
            self.slowest, self.slowest_input = seconds, data
        if seconds > SLOW:
            self.note(f"an input took over {SLOW} s", data)
        growth = _memory() - self.start_memory
        if growth > self.peak_growth:
            self.peak_growth = growth
            if growth > GROWTH:
                self.note(f"memory grew by over {GROWTH} MiB", data)
        if time.perf_counter() - self.written > 1:
            self.write()

    def write(self) -> None:
        """Write the file anew."""
        self.written = time.perf_counter()
        content = {
            "executions": self.executions,
            "seconds": round(self.written - self.started, 1),
            "uncaught": list(self.found.values()),
            "slowest_seconds": round(self.slowest, 4),
            "slowest_input": base64.b64encode(self.slowest_input[:4096]).decode(),
            "memory_growth_mib": round(self.peak_growth, 1),
        }
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(content))
        beside.replace(self.path)


def run_target(target: str, seconds: int) -> dict[str, Any]:
    """Fuzz a target for some seconds in a child process and return what came of it; ``uncaught`` should be empty."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = [target, "--seconds", str(seconds), "--child", str(folder)]
        command = [sys.executable, "-m", "tests.faults.damage.fuzzing", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        findings = folder / "findings.json"
        result = json.loads(findings.read_text()) if findings.exists() else {"executions": 0, "uncaught": []}
        if ended.returncode:
            told = ended.stderr[-2000:]
            result["uncaught"].append({"what": f"exit code {ended.returncode}", "times": 1, "told": told})
    return {"target": target, **result}


def main() -> None:
    """Run one target from the command line and print one line of JSON."""
    from tests.faults.damage.fuzzing import TARGETS

    parser = argparse.ArgumentParser(description="Fuzz one parser of the store with atheris.")
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child is not None:
        _fuzz(chosen.target, chosen.seconds, chosen.child)
        return
    result = run_target(chosen.target, chosen.seconds)
    print(json.dumps(result))
    sys.exit(1 if result["uncaught"] else 0)


def _fuzz(target: str, seconds: int, folder: Path) -> None:
    import atheris

    from tests.faults.damage.fuzzing import TARGETS, make_seeds

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(make_seeds(target)):
        (corpus / str(number)).write_bytes(seed)
    _instrument(atheris)
    findings = Findings(folder / "findings.json")
    one = TARGETS[target]

    def once(data: bytes) -> None:
        start = time.process_time()  # of this process alone: another one on the machine makes no input slow
        try:
            one(data)
        except Exception as err:
            findings.note(_place(err), data)
        findings.count(data, time.process_time() - start)

    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=20", f"-artifact_prefix={folder}/"]
    # libFuzzer's own limit ends the process; ours, which is lower, notes the input.
    options.append(f"-rss_limit_mb={int(_memory() + 2 * GROWTH)}")
    atheris.Setup([sys.argv[0], *options, str(corpus)], once)
    atheris.Fuzz()


def _instrument(atheris: Any) -> None:
    """Have the package's functions report which of their branches an input takes."""
    modules = [module for name, module in sys.modules.items() if name.startswith("registry.")]
    for module in modules:
        for thing in vars(module).values():
            inner = vars(thing).values() if isinstance(thing, type) else [thing]
            for each in inner:
                function = getattr(each, "__func__", getattr(each, "__wrapped__", each))
                if isinstance(function, types.FunctionType) and function.__module__ == module.__name__:
                    atheris.instrument_func(function)


def _place(err: Exception) -> str:
    ours = [frame for frame in traceback.extract_tb(err.__traceback__) if Path(frame.filename).is_relative_to(ROOT)]
    where = ours[-1] if ours else traceback.extract_tb(err.__traceback__)[-1]
    return f"{type(err).__name__} at {Path(where.filename).name}:{where.lineno}: {str(err)[:80]}"


def _memory() -> float:
    """Return the largest resident set of this process so far, in MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10
