"""Crowds of writers: savers with and without locks, movers of one alias, savers under a garbage collector."""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from registry.store.store import Store
from tests.faults.crowd.together import (
    FORK,
    NAME,
    PAUSE,
    Found,
    Task,
    check_versions,
    save,
    save_or_fail_whole,
    together,
)
from tests.support.stored_sets import INFO


def write(root: Path, *, processes: int, saves: int, locks: str) -> Found:
    taken = _replace_locks(locks)
    store = Store.create(root, INFO)

    def writer(number: int) -> Task:
        serials = range(number * saves + 1, (number + 1) * saves + 1)
        return lambda: [(save(store, NAME, serial), serial) for serial in serials]

    committed = [save for part in together(map(writer, range(processes))) for save in part]
    bad = check_versions(store, dict(committed))
    if len(dict(committed)) != processes * saves:
        bad.append(f"expected {processes * saves} numbers, each given once, found {len(dict(committed))}")
    return len(committed), bad, {"versions": len(store.versions(NAME)), "locks taken": taken.value}


def _replace_locks(kind: str) -> Any:
    """Count every lock that is taken from here on; "no-op" ones do nothing and "failing" ones raise."""
    taken = FORK.Value("i", 0)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def lock(*arguments: Any) -> Any:
            with taken.get_lock():
                taken.value += 1
            if kind == "failing":
                raise OSError("no locks available")
            return real(*arguments) if kind == "working" else None

        return lock

    for module, name in ((fcntl, "flock"), (fcntl, "lockf"), (os, "lockf")):
        if hasattr(module, name):
            setattr(module, name, counted(getattr(module, name)))
    return taken


def move(root: Path, *, processes: int, turns: int, seed: int) -> Found:
    store = Store.create(root, INFO)
    store.set_alias(NAME, "best", save(store, NAME, 1))

    def saver(number: int) -> Task:
        return lambda: [save(store, NAME, 2 + number * turns + turn) for turn in range(turns)]

    def mover(number: int) -> list[int]:
        dice, found = random.Random(f"{seed}/{number}"), []
        for _ in range(turns):
            store.set_alias(NAME, "best", dice.choice(store.versions(NAME)))
            for _ in range(3):
                _, version = store.resolve(f"{NAME}@best")
                store.verify_bytes(NAME, version)
                found.append(version)
        return found

    movers = [lambda number=number: mover(number) for number in range(processes)]
    results = together([*map(saver, range(processes)), *movers])
    there = {1, *(version for part in results[:processes] for version in part)}
    resolved = [version for part in results[processes:] for version in part]
    bad = [f"{NAME}@best was at {version}, which was never committed" for version in set(resolved) - there]
    bad += [] if store.aliases(NAME)["best"] in there else ["the alias ends nowhere"]
    return len(resolved), bad, {"versions": len(there), "moves": processes * turns}


def collect(root: Path, *, processes: int, saves: int, older_than: float | None, seed: int) -> Found:
    store = Store.create(root, INFO)
    save(store, NAME, 1)
    writing = FORK.Value("i", processes)

    def writer(number: int) -> Task:
        serials = range(2 + number * saves, 2 + (number + 1) * saves)

        def write() -> list[tuple[int | None, int]]:
            _slow_down("rename", random.Random(f"{seed}/{number}"))
            try:
                return [(save_or_fail_whole(store, NAME, serial), serial) for serial in serials]
            finally:
                with writing.get_lock():
                    writing.value -= 1

        return write

    def collector() -> int:
        _slow_down("unlink", random.Random(seed))
        patience = {} if older_than is None else {"older_than": older_than}
        removed = 0
        while writing.value > 0:
            removed += len(store.collect_garbage(**patience))
            time.sleep(PAUSE)
        return removed

    *parts, first, second = together([*map(writer, range(processes)), collector, collector])
    results = [save for part in parts for save in part]
    committed = {1: 1, **{version: serial for version, serial in results if version}}
    failed = sum(version is None for version, _ in results)
    bad = check_versions(store, committed)
    if older_than is None and failed:
        bad.append(f"{failed} of {len(results)} writers failed")
    return len(results), bad, {"saved": len(results) - failed, "failed whole": failed, "collected": first + second}


def _slow_down(call: str, dice: random.Random) -> None:
    """Have this process wait before each such system call, so that others come in between."""
    real = getattr(os, call)

    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(dice.random() * 2 * PAUSE)
        return real(*arguments, **named)

    setattr(os, call, slow)
