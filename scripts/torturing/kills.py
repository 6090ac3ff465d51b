"""Kill a process at a chosen system call of an action, with strace from outside; knows nothing of adapters.

Everything is imported once by the parent, which forks. The child waits at a socket until strace has attached, so the
counting starts with the action, and a kill falls before the chosen call has done anything.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

CHANGING = (
    "open openat creat mkdir mkdirat write writev pwrite64 pwritev ftruncate truncate fallocate copy_file_range "
    "sendfile rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat rmdir"
).split()
FLUSHING = "fsync fdatasync sync_file_range sync syncfs msync".split()
OTHERS = "close getdents64".split()
SECONDS = 60  # after which a child counts as hung

_LINE = re.compile(r"(?:\d+\s+)?(\w+)\((.*)")


class Call(NamedTuple):
    """One system call of an action: the ``place``-th of its ``name``, from 1."""

    name: str
    place: int
    changes: bool
    flushes: bool


def answer_of_child(question: Callable[[], str]) -> str | None:
    """Return what ``question`` says in a child of its own, or None where the child died or hung."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            signal.alarm(SECONDS)
            with os.fdopen(writing, "w") as answer:
                answer.write(question())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    return text if os.waitpid(child, 0)[1] == 0 else None


def calls_of(action: Callable[[], None], folder: Path) -> list[Call]:
    """Return the calls of ``action`` that touch ``folder``, after letting it run to its end."""
    wanted = ",".join(f"?{name}" for name in (*CHANGING, *FLUSHING, *OTHERS))  # ? passes over what this system lacks
    with tempfile.NamedTemporaryFile("r") as log:
        status = _traced(action, ["-o", log.name, "-e", f"trace={wanted}"])
        lines = log.read().splitlines()
    if status != 0:
        raise RuntimeError(f"cannot trace a save: expected it to end well, found wait status {status}")
    counts: Counter[str] = Counter()
    calls = []
    for match in filter(None, map(_LINE.match, lines)):
        name, arguments = match.groups()
        counts[name] += 1
        if str(folder) in arguments:
            opens = name in ("open", "openat")
            changes = name in CHANGING and (not opens or "O_CREAT" in arguments or "O_TRUNC" in arguments)
            calls.append(Call(name, counts[name], changes, name in FLUSHING))
    return calls


def is_killed_at(action: Callable[[], None], call: Call) -> bool:
    """Run ``action`` with a SIGKILL before ``call``; return whether it was killed there, not already done."""
    inject = f"inject={call.name}:signal=KILL:when={call.place}"
    status = _traced(action, ["-o", os.devnull, "-e", f"trace={call.name}", "-e", inject])
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _traced(action: Callable[[], None], options: list[str]) -> int:
    """Run ``action`` in a child under strace and return the child's wait status."""
    ours, childs = socket.socketpair()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ours.close()
            signal.alarm(SECONDS)
            childs.send(b"r")  # from here to the action no call that is counted
            childs.recv(1)
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    childs.close()
    ours.recv(1)
    command = ["strace", "-f", "-y", *options, "-p", str(child)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        said = tracer.stderr.readline() if tracer.stderr else ""
        if "attached" in said:
            ours.send(b"g")
        else:
            os.kill(child, signal.SIGKILL)
        ours.close()
        status = os.waitpid(child, 0)[1]
        tracer.communicate(timeout=SECONDS)
    if "attached" not in said:
        raise RuntimeError(f"cannot attach strace: {said.strip() or 'it says nothing'}; may this user trace processes?")
    return status
