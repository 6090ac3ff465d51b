"""A crowd of readers while everything in the store changes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from registry.store.errors import AdapterNotFoundError, StoreError, StoreWriteError, VersionInUseError
from registry.store.reader import StoreReader
from registry.store.store import Store
from tests.faults.crowd.together import FORK, NAME, PAUSE, Found, check_versions, save, save_or_fail_whole, together
from tests.faults.visible import serial_of
from tests.support.stored_sets import INFO

READERS = 3
BAD_LINES = 20  # after which a reader gives up

Save = tuple[int, int]  # version, serial


def read(root: Path, *, reads: int, seed: int) -> Found:
    store = Store.create(root, INFO)
    store.set_alias(NAME, "best", save(store, NAME, 1))
    crowd = _Changes(store, seed, readers=READERS)
    readers = [lambda number=number: _reader(crowd, number, -(-reads // READERS)) for number in range(READERS)]
    changes = [lambda: crowd.saves(NAME, 2), lambda: crowd.saves(NAME, 1_000_003), crowd.flips, crowd.moves]
    *found, first, second, flips, moves, removed, collected = together(
        [*readers, *changes, crowd.removals, crowd.collections]
    )
    committed = {(NAME, *save) for save in ((1, 1), *first, *second)} | {("flip", *save) for save in flips}
    seen = {tuple(read) for part in found for read in part["seen"]}
    lost = {number for part in found for number in part["missing"]} - set(removed)
    bad = [line for part in found for line in part["bad"]]
    bad += [f"read {read}, which was never committed" for read in sorted(seen - committed)]
    bad += [f"{NAME}:{number} was not found, though nobody removed it" for number in sorted(lost)]
    kept = {number: serial for name, number, serial in committed if name == NAME and number not in removed}
    bad += check_versions(store, kept)
    verified = sum(part["verified"] for part in found)
    missed = sum(part["missed"] for part in found)
    details = {"versions": len(committed), "moves": moves, "removed": len(removed), "collected": collected}
    return verified, bad, {**details, "told that it was removed": missed}


def _reader(crowd: _Changes, number: int, reads: int) -> dict[str, Any]:
    """Resolve and verify until ``reads`` versions were read; a version may have been removed, nothing else."""
    dice = random.Random(f"{crowd.seed}/reader {number}")
    found: dict[str, Any] = {"seen": set(), "missing": set(), "bad": [], "verified": 0, "missed": 0}
    references = (NAME, f"{NAME}@best", f"{NAME}:1", "flip", "flip:1")
    try:
        while found["verified"] < reads and len(found["bad"]) < BAD_LINES:
            view = StoreReader.open(crowd.store.root)
            reference = dice.choices(references, (4, 4, 1, 3, 3))[0]
            if reference == f"{NAME}:1":
                reference = f"{NAME}:{dice.choice(view.versions(NAME))}"
            try:
                name, version = view.resolve(reference)
                manifest, parts = view.read_version(name, version)
                found["seen"].add((name, version, serial_of(manifest.parameters, parts)))
                found["verified"] += 1
            except AdapterNotFoundError as err:
                found["missed"] += 1
                name, _, version = err.reference.partition(":")
                if name != "flip" and not version:
                    found["bad"].append(f"{reference}: {err}")
                elif name != "flip":
                    found["missing"].add(int(version))
            except (StoreError, ValueError, OSError) as err:
                found["bad"].append(f"{reference}: {type(err).__name__}: {err}")
    finally:
        crowd.one_reader_less()
    return found


class _Changes:
    """What goes on in a store while it is read; each method is a process that stops when the last reader did."""

    def __init__(self, store: Store, seed: int, readers: int) -> None:
        self.store, self.seed = store, seed
        self._readers = FORK.Value("i", readers)

    def one_reader_less(self) -> None:
        """Say that a reader has finished."""
        with self._readers.get_lock():
            self._readers.value -= 1

    def _going_on(self) -> bool:
        time.sleep(2 * PAUSE)
        return self._readers.value > 0

    def saves(self, name: str, serial: int) -> list[Save]:
        """Save, again and again."""
        done = []
        while self._going_on():
            serial += 1
            if version := save_or_fail_whole(self.store, name, serial):
                done.append((version, serial))
        return done

    def flips(self) -> list[Save]:
        """Remove all of a name and save it anew, so that its numbers are given again."""
        done, serial = [], 2_000_003
        while self._going_on():
            serial += 1
            version = save_or_fail_whole(self.store, "flip", serial)
            if version:
                done.append((version, serial))
                if serial % 3:
                    _made(lambda: self.store.remove("flip"))
        return done

    def moves(self) -> int:
        """Move an alias between the newest versions."""
        dice, done = random.Random(f"{self.seed}/mover"), 0
        while self._going_on():
            version = dice.choice(self.store.versions(NAME)[-2:])
            done += _made(lambda version=version: self.store.set_alias(NAME, "best", version))
        return done

    def removals(self) -> list[int]:
        """Remove all but the newest versions."""
        done = []
        while self._going_on():
            for version in self.store.versions(NAME)[:-6]:
                if _made(lambda version=version: self.store.remove(f"{NAME}:{version}")):
                    done.append(version)
        return done

    def collections(self) -> int:
        """Collect garbage, with the usual patience and with none."""
        done = 0
        while self._going_on():
            done += len(self.store.collect_garbage())
            done += len(self.store.collect_garbage(older_than=0.0))
        return done


def _made(change: Callable[[], object]) -> bool:
    """Return whether a change was made; it may meet others, but nothing else may stop it."""
    try:
        change()
    except (AdapterNotFoundError, StoreWriteError, VersionInUseError):
        return False
    return True
