"""A store on a noted disk, what was done to it, and what a power loss after any step of that may leave.

Every operation can be killed in the middle or have a flush that fails. Torch-free.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import msgspec

from registry.store import files
from registry.store.archive import export_version, read_archive
from registry.store.errors import CommitUncertainError, StoreWriteError
from registry.store.store import Store
from tests.faults.crash.disk import Disk, Killed
from tests.faults.visible import OUT, STORE, Fact, Facts, contents, difference, look
from tests.support.stored_sets import INFO, new_manifest

_ANY = -1  # a number that is not known beforehand


@dataclass(frozen=True)
class Expected:
    """What a power loss may leave.

    Attributes:
        allowed: the states of which one must be found.
        given: name and highest number of versions that were acknowledged, and may not be given to others.
    """

    allowed: frozenset[Facts]
    given: frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Done:
    """One operation of a story: its steps, how it ended, and what the store held before and after."""

    what: str
    start: int
    end: int
    outcome: str
    before: Facts
    after: Facts
    promised: Fact | None
    forgets: str | None

    def applied(self, facts: Facts) -> Facts:
        """Return what the operation makes of a state that may be another than it was done on."""
        return (facts - (self.before - self.after)) | (self.after - self.before)

    def kept(self, facts: Facts) -> bool:
        """Return whether a state holds what the operation is for; one that found it done already vouches for it."""
        return self.promised is None or any(_fits(self.promised, fact) for fact in facts)


class Story:
    """A store on a noted disk, and what was done to it so far.

    Attributes:
        settled: steps of the beginning that no power loss can undo.
        done: the operations, in order.
    """

    def __init__(self, folder: Path, dice: random.Random) -> None:
        folder.mkdir()
        self.disk, self.dice = Disk(folder), dice
        self.done: list[Done] = []
        self.settled = 0
        self._serials = count(dice.randrange(1000, 9000))
        with self.disk.installed():
            for place in (folder / OUT, (folder / STORE).parent):
                files.make_folder(place)
        self.settle()

    @property
    def facts(self) -> Facts:
        """What the store holds now."""
        return self.done[-1].after if self.done else frozenset()

    def settle(self) -> None:
        """Have all that was done so far on the disk."""
        self.settled = len(self.disk.steps)

    def create(self, **fault: int) -> str:
        """Make the store."""
        return self._do("create", lambda: Store.create(self._root, INFO), ("store",), **fault)

    def save(self, name: str, **fault: int) -> str:
        """Save into a name; its bytes are of no other save."""
        serial = next(self._serials)
        manifest = new_manifest(name, parameters=serial)
        promised = ("version", name, _ANY, serial)
        return self._do(f"save {name}", lambda: self._store.commit(manifest, contents(serial)), promised, **fault)

    def alias(self, name: str, alias: str, number: int, **fault: int) -> str:
        """Set or move an alias."""
        what, promised = f"alias {name}@{alias} {number}", ("alias", name, alias, number)
        return self._do(what, lambda: self._store.set_alias(name, alias, number), promised, **fault)

    def remove(self, reference: str, **fault: int) -> str:
        """Remove a version, an alias or all of a name."""
        whole = None if set(reference) & set(":@") else reference
        return self._do(f"remove {reference}", lambda: self._store.remove(reference), forgets=whole, **fault)

    def collect(self, **fault: int) -> str:
        """Collect all garbage."""
        return self._do("gc", lambda: self._store.collect_garbage(older_than=0.0), **fault)

    def export(self, name: str, number: int, file: str, **fault: int) -> str:
        """Export a version to a new file or over an old one."""
        serial = next(fact[3] for fact in self.facts if fact[:3] == ("version", name, number))
        path = self.disk.folder / OUT / file

        def act() -> None:
            export_version(self._store, f"{name}:{number}", path, overwrite=path.exists())

        return self._do(f"export {name}:{number} {file}", act, ("export", file, serial), **fault)

    def take_in(self, file: str, name: str, **fault: int) -> str:
        """Import a file under a name."""
        serial = next(fact[2] for fact in self.facts if fact[:2] == ("export", file))

        def act() -> None:
            manifest, parts = read_archive(self.disk.folder / OUT / file)  # import_set, less the tensors' checks
            self._store.commit(msgspec.structs.replace(manifest, name=name), parts)

        return self._do(f"import {file} as {name}", act, ("version", name, _ANY, serial), **fault)

    def problems(self) -> list[str]:
        """Return what was wrong while the power was still on."""
        found = []
        for done in self.done:
            if done.outcome == "failed" and done.before != done.after:
                found.append(f"{done.what}: said that nothing was changed, but {difference(done.before, done.after)}")
            if done.outcome == "acknowledged" and not done.kept(done.after):
                found.append(f"{done.what}: acknowledged, but not there: {done.promised}")
        past = self.disk.unknown_changes()
        return found + ([f"changed past registry.store.files: {past[:5]}"] if past else [])

    def place(self, length: int) -> str:
        """Return where in the story the power went."""
        step = type(self.disk.steps[length - 1]).__name__.lower() if length else "nothing"
        during = [done.what for done in self.done if done.start < length <= done.end]
        return f"after step {length} ({step}) of {during[0] if during else 'nothing'}"

    def expected_after(self, length: int) -> Expected:
        """Return what must be found when the power goes after so many steps."""
        allowed: set[Facts] = {frozenset()}
        given: dict[str, int] = {}
        for done in self.done:
            if done.start >= length:
                break
            changed = {done.applied(facts) for facts in allowed}
            certain = done.outcome == "acknowledged" and done.end <= length
            allowed = changed if certain else allowed | changed
            if certain:
                allowed = {facts for facts in allowed if done.kept(facts)}
                for fact in done.after - done.before:
                    if fact[0] == "version":
                        given[str(fact[1])] = max(given.get(str(fact[1]), 0), int(fact[2]))
            if done.forgets:
                given.pop(done.forgets, None)
        return Expected(frozenset(allowed), frozenset(given.items()))

    @property
    def _root(self) -> Path:
        return self.disk.folder / STORE

    @property
    def _store(self) -> Store:
        return Store.open(self._root)  # anew each time, as another process would

    def _do(
        self,
        what: str,
        act: Callable[[], object],
        promised: Fact | None = None,
        *,
        forgets: str | None = None,
        **fault: int,
    ) -> str:
        before, start = self.facts, len(self.disk.steps)
        self.disk.arm(**fault)
        try:
            act()
            outcome = "acknowledged"
        except CommitUncertainError:
            outcome = "uncertain"
        except StoreWriteError:
            outcome = "failed"
        except Killed:
            outcome = "killed"
        self.disk.arm()
        after = look(self.disk.folder)
        self.done.append(Done(what, start, len(self.disk.steps), outcome, before, after, promised, forgets))
        return outcome


def _fits(promised: Fact, fact: Fact) -> bool:
    return len(promised) == len(fact) and all(a in (_ANY, b) for a, b in zip(promised, fact, strict=True))
