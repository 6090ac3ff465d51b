"""Many processes at one store: writers, movers of an alias, removers, garbage collectors, readers.

Each experiment runs in a fresh interpreter without torch that forks its crowd, so a caller's threads do no harm. Bytes
tell which save they are from (visible.py), and every process returns what it committed, removed or read.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.crash.disk import scratch
from tests.faults.crowd import readers, writers
from tests.faults.crowd.together import Broken, Found
from tests.faults.verdict import Verdict
from tests.support.stored_sets import ROOT

LINES = 20  # of a verdict that are kept; all are counted
SECONDS = 300  # after which a crowd that is not through never will be


def try_writers(folder: Path, *, processes: int = 64, saves: int = 8, locks: str = "working") -> Verdict:
    """Let many processes save into one name at once, with locks that work, are a "no-op", or are "failing"."""
    promise = f"{processes} processes that save {saves} times into one name lose nothing, with {locks} locks"
    return _experiment("write", promise, folder, processes=processes, saves=saves, locks=locks)


def try_movers(folder: Path, *, processes: int = 8, turns: int = 16, seed: int = 0) -> Verdict:
    """Let some processes save and as many move one alias, and resolve it all the time."""
    promise = "an alias that many move resolves to a version that is there, always"
    return _experiment("move", promise, folder, processes=processes, turns=turns, seed=seed)


def try_readers(folder: Path, *, reads: int, seed: int = 0) -> Verdict:
    """Verify ``reads`` versions while others save, move aliases, remove versions and names, and collect garbage."""
    promise = "a reader gets the bytes of one save, or is told that the version was removed"
    return _experiment("read", promise, folder, reads=reads, seed=seed)


def try_collectors(
    folder: Path, *, processes: int = 8, saves: int = 16, older_than: float | None = 0.0, seed: int = 0
) -> Verdict:
    """Collect garbage under the hands of living writers; ``older_than`` None is the store's own patience."""
    fate = "only fail whole" if older_than is not None else "never fail"
    patience = "the usual" if older_than is None else f"{older_than} s of"
    promise = f"writers {fate} under a garbage collector with {patience} patience"
    return _experiment("collect", promise, folder, processes=processes, saves=saves, older_than=older_than, seed=seed)


def _experiment(name: str, promise: str, folder: Path, **sizes: Any) -> Verdict:
    with scratch(folder) as place:
        script = "from tests.faults.crowd.crowd import main; main()"
        order = json.dumps({"name": name, "root": str(place / "store"), "sizes": sizes})
        command = [sys.executable, "-c", script, order]
        pipe = subprocess.PIPE
        crowd = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        try:
            output, errors = crowd.communicate(timeout=SECONDS + sizes.get("reads", 0) / 20)
        except subprocess.TimeoutExpired:
            os.killpg(crowd.pid, signal.SIGKILL)  # the forked ones as well
            crowd.communicate()
            return Verdict(promise, 0, ["the crowd did not come to an end"], {"bad": 1})
    if crowd.returncode:
        raise RuntimeError(f"the crowd of '{promise}' broke down:\n{errors[-4000:]}")
    found = json.loads(output)
    verdict = Verdict(promise, found["tried"], found["bad"][:LINES], found["details"])
    verdict.details["bad"] = len(found["bad"])
    return verdict


def main() -> None:
    """Run the experiment that the command line orders and print what it found."""
    order = json.loads(sys.argv[1])
    if "torch" in sys.modules:
        raise RuntimeError("a crowd is forked from a process without torch")
    try:
        tried, bad, details = _EXPERIMENTS[order["name"]](Path(order["root"]), **order["sizes"])
    except Broken as err:
        tried, bad, details = 0, err.args[0], {}
    print(json.dumps({"tried": tried, "bad": bad, "details": details}))


_EXPERIMENTS: dict[str, Callable[..., Found]] = {
    "write": writers.write,
    "move": writers.move,
    "read": readers.read,
    "collect": writers.collect,
}
