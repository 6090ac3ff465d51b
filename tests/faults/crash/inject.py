"""Real faults in real processes: kills and failing calls at every system call of an operation, and a real full disk.

A parent that has imported everything forks a child for each fault. The child waits at a pipe until strace is attached
to it, then works until the K-th call of one name kills it or fails; what it left is judged by a store opened anew.
Everything runs in a process of its own (``python -m tests.faults.crash.inject``), since forking wants one without
threads.
"""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import NamedTuple, NoReturn

from tests.faults.crash import injected
from tests.faults.crash.injected import (
    Bench,
    Operation,
    Outcome,
    Place,
    State,
    alias,
    collect,
    create,
    remove,
    save,
    scratch,
)
from tests.faults.verdict import Verdict
from tests.support.stored_sets import ROOT

ERRORS = ("ENOSPC", "EIO", "EMFILE", "EACCES", "EROFS", "EDQUOT", "EINTR")
PAGE = 4096  # bytes that a tmpfs gives away at once

# Runs a program with mounts that nobody else sees and that end with it.
_OWN_MOUNTS = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
_TOLD_LINES = 20
_CHILD_SECONDS = 60
# Everything else that an operation calls is taken to concern files, so a call that is new on some system is not missed.
_NO_FILES = re.compile(
    r"p?select6?|_newselect|p?poll|restart_syscall|brk|m(un|re)?map2?|mprotect|madvise|futex|getrandom|rt_sig\w+"
    r"|clock_\w+|gettimeofday|getpid|gettid|prctl|sched_\w+|set_robust_list|rseq|exit(_group)?"
)
# Calls that change nothing, and calls that change nothing that anybody sees: the first to be left out of a short run.
_READING = re.compile(r"\w*stat(x|at|at64|64)?|_?ll?seek|p?read\w*|ioctl|fcntl(64)?|faccessat2?|access")
_PASSIVE = re.compile(r"close|fsync|fdatasync|getdents(64)?")
_TRACED = re.compile(r"^\d+ +(\w+)\(", re.MULTILINE)


class Point(NamedTuple):
    """The ``nth`` time that an operation makes a call."""

    past: str
    operation: Operation
    call: str
    nth: int


def try_kills(folder: Path, *, points: int, seed: int = 0) -> Verdict:
    """Kill operations at ``points`` of their system calls: each change is there as a whole or not at all."""
    return _apart("kills", folder, points=points, seed=seed)


def try_failing_calls(folder: Path, *, every: int, seed: int = 0) -> Verdict:
    """Let one system call fail, or all from it on, in every ``every``-th way there is: an error tells the truth."""
    return _apart("failing_calls", folder, every=every, seed=seed)


def try_full_disk(folder: Path, *, size: int, seed: int = 0) -> Verdict:
    """Change a store on a disk with any number of free pages that a set of ``size`` bytes may meet, or of inodes."""
    return _apart("full_disk", folder, size=size, seed=seed)


def try_size_limits(folder: Path, *, step: int, seed: int = 0) -> Verdict:
    """Change a store where no file may outgrow a limit, of every ``step``-th number of bytes."""
    return _apart("size_limits", folder, step=step, seed=seed)


def why_no_tracing() -> str:
    """Return why no fault can be injected here, or nothing."""
    if sys.platform != "linux" or shutil.which("strace") is None:
        return "needs strace, a program of Linux"
    with scratch() as folder:
        (folder / "outside").mkdir()
        try:
            ended = _traced(create(), Place(folder), folder / "log", "fsync", "signal=KILL")
        except RuntimeError as err:
            return str(err)
    return "" if ended.told == "killed" else "strace cannot inject faults here"


def why_no_disk() -> str:
    """Return why no small disk can be mounted here, or nothing."""
    if shutil.which("unshare") is None:
        return "needs unshare, a program of Linux"
    with scratch() as folder:
        probe = [*_OWN_MOUNTS, "mount", "-t", "tmpfs", "none", str(folder)]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


def _apart(experiment: str, folder: Path, **sizes: int) -> Verdict:
    """Run an experiment of this file in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, experiment, str(folder), json.dumps(sizes)]
    if experiment == "full_disk":
        command = [*_OWN_MOUNTS, *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return Verdict(experiment, bad=[f"broke off: {done.stderr.strip()[-500:]}"], details={"bad": 1})
    return Verdict(**json.loads(done.stdout))


def _calls(bench: Bench, past: str, operation: Operation) -> Counter[str]:
    """Return how often an undisturbed operation makes each call that may concern files."""
    for traced in (False, False, True):  # the first time is for whatever Python does only once
        with bench.set_up(past) as (place, before):
            outcome = _traced(operation, place, bench.log) if traced else injected.attempt(operation, place)
            wrong = injected.judge(place, operation, before, outcome)[1]
        if outcome.told != "done" or wrong:
            raise RuntimeError(f"{operation.what} went wrong before any fault: {outcome} {wrong}")
    return Counter(name for name in _TRACED.findall(bench.log.read_text()) if not _NO_FILES.fullmatch(name))


def _points(bench: Bench) -> list[Point]:
    """Return every call of every operation."""
    return [
        Point(past, operation, call, nth)
        for past, operation in bench.operations
        for call, times in sorted(_calls(bench, past, operation).items())
        for nth in range(1, times + 1)
    ]


def _kills(bench: Bench, points: int, seed: int) -> Verdict:
    verdict = Verdict("a killed operation is done as a whole or not at all")
    rng, known = Random(seed), _points(bench)
    rng.shuffle(known)
    known.sort(key=lambda point: [bool(kind.fullmatch(point.call)) for kind in (_READING, _PASSIVE)])
    for point in known[:points]:
        with bench.set_up(point.past) as (place, before):
            _kill(bench, point, place, before, verdict, last=True)
    while verdict.tried < points:
        _walk(bench, known, points, rng, verdict)
    return verdict


def _walk(bench: Bench, known: list[Point], points: int, rng: Random, verdict: Verdict) -> None:
    """Kill one operation after the other in the same store."""
    with bench.set_up("held") as (place, state):
        for step in range(10):
            operation = _any_operation(state, rng, f"{verdict.tried}.{step}")
            likely = [point for point in known if point.operation.kind == operation.kind]
            point = rng.choice(likely)._replace(past="a walk", operation=operation)
            last = step == 9 or verdict.tried + 1 >= points
            state, wrong = _kill(bench, point, place, state, verdict, last=last)
            if last or wrong:
                return


def _any_operation(state: State, rng: Random, tag: str) -> Operation:
    """Return an operation that can be done in this state."""
    versions = [key for key in state if ":" in key]
    used = {f"{key.split('@')[0]}:{version}" for key, version in state.items() if "@" in key}
    free = [key for key in versions if key not in used]
    aliases = [key for key in state if "@" in key]
    choices = [save(rng.choice(("mrpc", "imdb", "cola")), tag, rng.choice((0, 1, PAGE, 50_000))), collect()]
    if versions:
        name, version = rng.choice(versions).split(":")
        choices.append(alias(name, rng.choice(("best", "live")), int(version)))
    choices += [remove(rng.choice(kind)) for kind in (free, aliases) if kind]
    if versions and rng.random() < 0.3:
        choices.append(remove(rng.choice(versions).split(":")[0]))
    return rng.choice(choices)


def _kill(
    bench: Bench, point: Point, place: Place, before: State, verdict: Verdict, *, last: bool
) -> tuple[State, list[str]]:
    """Kill an operation at a point and judge what is there."""
    operation = point.operation
    outcome = _traced(operation, place, bench.log, point.call, f"signal=KILL:when={point.nth}")
    state, wrong = injected.judge(place, operation, before, outcome)
    if last and not wrong:
        wrong = injected.go_on(place, operation.name, state)
    if outcome.told == "killed":
        verdict.tried += 1
        verdict.count(f"kills of {operation.kind}")
        verdict.count("kills after which the change was there", int(before != operation.change(before) == state))
        verdict.count("kills after which it was not", int(state == before != operation.change(before)))
    else:
        verdict.count("calls that did not come")
    _note(verdict, f"{operation.what} after {point.past}, killed at {point.call} {point.nth}", wrong)
    return state, wrong


def _failing_calls(bench: Bench, every: int, seed: int) -> Verdict:
    verdict = Verdict("a failing call leaves the old state, or the new one and says so")
    ways = [
        (point, error, lasting)
        for point in _points(bench)
        for error in ERRORS
        for lasting in ("", "+")
        if error + lasting != "EINTR+"  # Python tries again for ever
    ]
    seen: set[tuple[str, str]] = set()
    for number, (point, error, lasting) in enumerate(ways):
        if number % every == seed % every or (point.call, error) not in seen:
            seen.add((point.call, error))
            _fail(bench, point, error, lasting, verdict)
    verdict.details |= {"ways there are": len(ways), "system calls": len({call for call, _ in seen})}
    return verdict


def _fail(bench: Bench, point: Point, error: str, lasting: str, verdict: Verdict) -> None:
    """Let a call fail once, or from then on, and judge what was told and what is there."""
    operation = point.operation
    with bench.set_up(point.past) as (place, before):
        remains = injected.remains(place)
        outcome = _traced(operation, place, bench.log, point.call, f"error={error}:when={point.nth}{lasting}")
        if "(INJECTED)" not in bench.log.read_text():
            verdict.count("calls that did not come")
            return
        verdict.count("left for gc, or beside an export", bool(injected.remains(place) - remains))
        state, wrong = injected.judge(place, operation, before, outcome)
        wrong = wrong or injected.go_on(place, operation.name, state)
    if outcome.told == "done" and point.call in ("fsync", "fdatasync") and error != "EINTR":
        wrong.append("told to be done, but the disk did not confirm it")
    verdict.tried += 1
    verdict.count(f"told: {outcome.told}")
    verdict.count(error)
    _note(verdict, f"{operation.what} after {point.past}, {error} at {point.call} {point.nth}{lasting}", wrong)


def _traced(operation: Operation, place: Place, log: Path, call: str = "", fault: str = "") -> Outcome:
    """Run an operation in a child under strace, which writes its calls to ``log``, and return how it ended."""
    options = ["-e", f"trace={call}", "-e", f"inject={call}:{fault}"] if call else []
    told = mmap.mmap(-1, mmap.PAGESIZE)  # shared with the child: telling takes no system call
    waiting, go = os.pipe()
    asking, ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        _work(operation, place, waiting, ready, told)
    os.close(waiting)
    os.close(ready)
    os.read(asking, 1)
    os.close(asking)
    command = ["strace", "-f", "-p", str(child), "-o", str(log), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        first = strace.stderr.readline() if strace.stderr else ""
        os.close(go)
        _, status = os.waitpid(child, 0)
    if "attached" not in first:
        raise RuntimeError(f"strace cannot attach to a process here: {first.strip()}")
    if os.WIFSIGNALED(status):
        killed = os.WTERMSIG(status) == signal.SIGKILL
        return Outcome("killed") if killed else Outcome("wrong", f"signal {os.WTERMSIG(status)}")
    with told:
        return Outcome(*json.loads(told[:].rstrip(b"\0")))


def _work(operation: Operation, place: Place, waiting: int, ready: int, told: mmap.mmap) -> NoReturn:
    """Be the child: wait for strace, run the operation, tell how it ended."""
    try:
        with suppress(AttributeError):
            ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER: strace may be no ancestor
        signal.alarm(_CHILD_SECONDS)
        os.close(ready)  # the next call but the waiting is the operation's first
        select.select([waiting], [], [])
        answer = json.dumps(injected.attempt(operation, place)).encode()
        told[: len(answer)] = answer
    finally:
        os._exit(0)


def _full_disk(bench: Bench, size: int, seed: int) -> Verdict:
    verdict = Verdict("a full disk leaves the old state and names the needed bytes")
    large = [(past, save("mrpc", f"large {seed}", size)) for past in ("empty", "held")]
    room = [*product(["pages"], range(math.ceil(size / PAGE) + 5)), *product(["inodes"], range(12))]
    disk = bench.folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=200", "none", str(disk)], check=True)
    try:
        for (past, operation), (kind, free) in product([*large, *bench.operations[3:]], room):
            with bench.set_up(past, disk) as (place, before):
                _fill(disk / "ballast", kind, free)
                empty = partial(shutil.rmtree, disk / "ballast")
                _judge_tight(operation, place, before, f"{free} free {kind}", empty, verdict)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return verdict


def _fill(ballast: Path, kind: str, free: int) -> None:
    """Take what is free of a disk but so many pages, or inodes."""
    ballast.mkdir()
    if kind == "pages":
        (ballast / "bytes").write_bytes(bytes((os.statvfs(ballast).f_bfree - free) * PAGE))
    else:
        for number in range(os.statvfs(ballast).f_ffree - free):
            (ballast / str(number)).touch()


def _size_limits(bench: Bench, step: int, seed: int) -> Verdict:
    verdict = Verdict("a limit on the size of files leaves the old state and names the needed bytes")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    loosen = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (hard, hard))
    for past, operation in bench.operations:
        for limit in range(seed % step, (operation.needed or 64) + step, step):
            with bench.set_up(past) as (place, before):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
                _judge_tight(operation, place, before, f"at most {limit} bytes", loosen, verdict)
    return verdict


def _judge_tight(
    operation: Operation, place: Place, before: State, case: str, loosen: Callable[[], None], verdict: Verdict
) -> None:
    """Run an operation where there is too little room, make room, and judge what was told and what is there."""
    remains = injected.remains(place)
    try:
        outcome = injected.attempt(operation, place)
    finally:
        loosen()
    state, wrong = injected.judge(place, operation, before, outcome)
    if outcome.told == "unchanged" and operation.needed and f"({operation.needed:,} bytes)" not in outcome.text:
        wrong.append(f"{operation.needed:,} needed bytes are not in: {outcome.text}")
    wrong += [f"left behind: {path}" for path in injected.remains(place) - remains]
    wrong = wrong or injected.go_on(place, operation.name, state)
    verdict.tried += 1
    verdict.count(f"told: {outcome.told}")
    _note(verdict, f"{operation.what}, {case}", wrong)


def _note(verdict: Verdict, case: str, wrong: list[str]) -> None:
    verdict.count("bad", bool(wrong))
    if wrong and len(verdict.bad) < _TOLD_LINES:
        verdict.bad.append(f"{case}: {'; '.join(wrong)}"[:500])


def main() -> None:
    """Run one experiment, named by the arguments, and print its verdict as JSON."""
    experiment, folder, sizes = sys.argv[1:]
    known = {each.__name__: each for each in (_kills, _failing_calls, _full_disk, _size_limits)}
    with scratch(Path(folder)) as memory:
        print(json.dumps(asdict(known[f"_{experiment}"](Bench(memory), **json.loads(sizes)))))


if __name__ == "__main__":
    main()
