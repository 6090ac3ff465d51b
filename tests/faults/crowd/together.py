"""Processes that start together on one store, and the saves by which they tell what they did.

Forked from a process without torch (crowd.py sees to that). The bytes of a version tell which save they are from.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from typing import Any

from registry.store.errors import StoreError, StoreWriteError
from registry.store.store import Store
from tests.faults.visible import contents, serial_of
from tests.support.stored_sets import new_manifest

NAME = "mrpc"
PAUSE = 0.002  # seconds between two changes, so that others get their turn on few cores
FORK = multiprocessing.get_context("fork")

Task = Callable[[], Any]
Found = tuple[int, list[str], dict[str, int]]  # what was tried, what was wrong, figures of the rest


class Broken(Exception):
    """Processes that met an error they must not meet, one line for each."""


def together(tasks: Iterable[Task]) -> list[Any]:
    """Run each task in a process of its own, all of them at once, and return what they return."""
    tasks = list(tasks)
    start = FORK.Barrier(len(tasks))
    pipes = [FORK.Pipe(duplex=False) for _ in tasks]

    def run(task: Task, pipe: Any) -> None:
        start.wait()
        try:
            pipe.send((task(), None))
        except Exception as err:  # it is the parent's to tell
            pipe.send((None, f"{type(err).__name__}: {err}"))

    pairs = zip(tasks, pipes, strict=True)
    running = [FORK.Process(target=run, args=(task, into), daemon=True) for task, (_, into) in pairs]
    for process in running:
        process.start()
    for _, into in pipes:
        into.close()  # so that a process that dies is an end of file here
    results = [out.recv() for out, _ in pipes]
    for process in running:
        process.join()
    failures = [failure for _, failure in results if failure]
    if failures:
        raise Broken(failures)
    return [result for result, _ in results]


def save(store: Store, name: str, serial: int) -> int:
    """Save the bytes of ``serial`` and return the number of the version."""
    return store.commit(new_manifest(name, parameters=serial), contents(serial))


def save_or_fail_whole(store: Store, name: str, serial: int) -> int | None:
    """Return the number of a new version, or None where a collector took it from under the writer's hands."""
    try:
        return save(store, name, serial)
    except StoreWriteError as err:
        if "nothing was changed" not in str(err):
            raise
        return None


def check_versions(store: Store, expected: dict[int, int]) -> list[str]:
    """Return what is wrong with the versions that are there, each with the save it must be from."""
    found, bad = {}, []
    for version in store.versions(NAME):
        try:
            manifest, parts = store.read_version(NAME, version)
            found[version] = serial_of(manifest.parameters, parts)
        except (StoreError, ValueError) as err:
            bad.append(f"{NAME}:{version}: {err}")
    wrong = sorted(found.items() ^ expected.items())
    return bad + ([f"{len(wrong)} versions are not what was committed: {wrong[:6]}"] if wrong else [])
