"""A state machine over a store: whatever is done to it in whatever order, it holds what plain dictionaries say.

Hypothesis draws the steps. Every change may also be cut short by a crash, or meet a disk that fails at one call or from
one call on. After each step a newly opened view must show exactly the model. No torch.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from registry.errors import BackboneMismatchError, InvalidNameError, RegistryError
from registry.store.archive import read_archive
from registry.store.errors import ArchiveError, CommitUncertainError, IntegrityError, ManifestError, StoreWriteError
from registry.store.manifest import ADAPTER_FILE, HEAD_FILE
from registry.store.reader import MANIFEST_FILE, STORE_FILE, StoreReader
from registry.store.store import Store
from tests.faults.crash.failing import CRASH, DISK_ERROR, CountedNames, Crash, before_rename, failing_calls
from tests.faults.states.changes import (
    DAMAGED,
    KINDS,
    NAMES,
    Change,
    Contents,
    Damage,
    Model,
    Shown,
    draw,
    some_contents,
)
from tests.faults.states.stateful import agree, damage_file, refused, run_machine, says, scratch
from tests.faults.verdict import Verdict
from tests.support.stored_sets import INFO, new_manifest

OTHERS = tuple(kind for kind in KINDS if kind != "gc")
FILES = (MANIFEST_FILE, ADAPTER_FILE, HEAD_FILE)
HOSTILE = (
    "../mrpc",
    "mrpc/..",
    "..",
    "tmp",
    "store.json",
    "MRPC",
    "con",
    "a..b",
    "mrpc/versions",
    "",
    "mrpc\n",
)
# Paths inside a store; a link at any of them is refused by whoever comes to it.
LEVELS = (
    STORE_FILE, "tmp", "NAME", "NAME/versions", "NAME/aliases", "NAME/aliases/ALIAS", "NAME/versions/NUMBER",
    *(f"NAME/versions/NUMBER/{file}" for file in FILES),
)  # fmt: skip
CALLS_LIMIT = 60  # far more than any change makes
OTHER_INFO = msgspec.structs.replace(INFO, fingerprint="c" * 64)

picks = st.integers(0, 40)
places = st.integers(0, 10_000)
bits = st.integers(0, 7)


def try_machine(folder: Path, *, runs: int = 50, steps: int = 30, seed: int = 0, most_bad: int = 20) -> Verdict:
    """Do ``steps`` random things to each of ``runs`` stores, and compare each with its model after every step."""
    verdict = Verdict("a store holds what plain dictionaries say, whatever is done to it")
    with scratch(folder) as place:
        run_machine(lambda: StoreMachine(place, verdict), verdict, runs=runs, steps=steps, seed=seed, most_bad=most_bad)
    return verdict


class StoreMachine(RuleBasedStateMachine):
    """One store and its model.

    Args:
        folder: where the store of this run lives; it is removed afterwards.
        verdict: gets a case for each step that was judged.
    """

    def __init__(self, folder: Path, verdict: Verdict) -> None:
        super().__init__()
        self.verdict = verdict
        self.names = CountedNames()
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.store = Store.create(self.folder / "store", INFO)
        self.staging = self.store.root / "tmp"
        self.model = Model()
        for name in NAMES[:2]:
            self.change("save", name, 0)
            self.change("alias", name, 1)
        self.change("export", NAMES[0], 1)

    def teardown(self) -> None:
        """Remove the store."""
        self.names.stop()
        shutil.rmtree(self.folder)

    @rule(name=st.sampled_from(NAMES), pick=picks)
    def save(self, name: str, pick: int) -> None:
        """Save something, often what is there already."""
        self.change("save", name, pick)

    @rule(kind=st.sampled_from(KINDS), name=st.sampled_from(NAMES), pick=picks)
    def change(self, kind: str, name: str, pick: int) -> None:
        """Do one thing, and get what it promises or the refusal it deserves."""
        self.verdict.count(kind)
        change = draw(kind, self.store, self.folder, self.model, name, pick)
        if change.refused is not None:
            refused(change.refused, change.act)
            return
        agree(change.returns, change.act(), "returned")
        self.model = change.after

    @rule(kind=st.sampled_from(KINDS), name=st.sampled_from(NAMES), pick=picks)
    def crash(self, kind: str, name: str, pick: int) -> None:
        """Do one thing that crashes at its first call, its second, ... until it is done: all or nothing each time."""
        self._sweep(kind, name, pick, CRASH, for_good=True)

    @rule(kind=st.sampled_from(KINDS), name=st.sampled_from(NAMES), pick=picks, for_good=st.booleans())
    def fail(self, kind: str, name: str, pick: int, for_good: bool) -> None:
        """Do one thing whose disk fails at its first call, at its second, ... until it is done; the error is true."""
        self._sweep(kind, name, pick, DISK_ERROR, for_good=for_good)

    @rule(kind=st.sampled_from(OTHERS), name=st.sampled_from(NAMES), pick=picks)
    def meanwhile(self, kind: str, name: str, pick: int) -> None:
        """Save while somebody else does something just before the rename that makes the new version visible."""
        self.verdict.count("meanwhile")
        contents, saved = some_contents(pick % 7), self.model.last.get(name, 0)

        def act() -> None:
            nonlocal saved
            self.change(kind, name, pick)
            saved = self.model.last.get(name, 0)

        with before_rename(act):
            number = self.store.commit(new_manifest(name), contents)
        agree(saved + 1, number, "the number of the later one")
        self.model.add(name, contents)

    @rule(name=st.sampled_from(NAMES), at=st.integers(1, 5))
    def collect_under_a_writer(self, name: str, at: int) -> None:
        """Collect garbage of any age, and crash in the middle of it, while a writer is about to rename its stage."""
        self.verdict.count("gc under a writer")
        change = draw("save", self.store, self.folder, self.model, name, at)

        def act() -> None:
            with failing_calls(at, CRASH), suppress(Crash):
                Store.open(self.store.root).collect_garbage(older_than=0.0)

        raised = None
        with before_rename(act):
            try:
                change.act()
            except RegistryError as err:
                raised = err
        self._settle(change, raised)

    @precondition(lambda self: any(self.model.versions.values()))
    @rule(pick=picks, file=st.sampled_from(FILES), how=st.integers(0, 4), place=places)
    def damage_a_version(self, pick: int, file: str, how: int, place: int) -> None:
        """Damage a file of a version; it stays so for some steps."""
        name, version = self.model.some_version(pick)
        if (name, version) in self.model.damage:
            return
        self.verdict.count("damage")
        path = self.store.folder(name, version) / file
        too_large = how == 2 and file == MANIFEST_FILE
        self.model.damage[name, version] = Damage(path, path.read_bytes(), "at most" if too_large else "")
        damage_file(path, how, place)

    @precondition(lambda self: self.model.damage)
    @rule()
    def restore(self) -> None:
        """Put back what the damaged file held."""
        for damage in self.model.damage.values():
            damage.path.write_bytes(damage.held)
        self.model.damage = {}

    @rule(pick=picks, place=places, bit=bits)
    def flip(self, pick: int, place: int, bit: int) -> None:
        """Flip one bit after the other of any file: it is refused, by its name, until it is put back."""
        path, act = self._some_file(pick)
        held = path.read_bytes()
        for each in range(place, place + 12 * 389, 389):
            self.verdict.count("damage")
            changed = bytearray(held)
            changed[each % len(held)] ^= 1 << bit
            path.write_bytes(changed)
            try:
                refused((ManifestError, IntegrityError, ArchiveError), act, naming=path)
            finally:
                path.write_bytes(held)

    @rule(pick=picks, level=st.sampled_from(LEVELS))
    def plant_a_link(self, pick: int, level: str) -> None:
        """Put a link where a file or folder of the store was, to that very thing: it is refused, not followed."""
        pointing = [
            (name, alias, number)
            for name, aliases in sorted(self.model.aliases.items())
            for alias, number in sorted(aliases.items())
            if (name, number) not in self.model.damage
        ]
        if not pointing:
            return
        self.verdict.count("links")
        name, alias, number = pointing[pick % len(pointing)]
        root, view = self.store.root, StoreReader(self.store.root, INFO)
        path = root / level.replace("NAME", name).replace("ALIAS", alias).replace("NUMBER", f"{number:06d}")
        act: Callable[[], object] = {
            "tmp": lambda: self.store.commit(new_manifest(name), some_contents(0)),
            STORE_FILE: lambda: Store.open(root),
            "NAME/aliases": lambda: view.resolve(f"{name}@{alias}"),
            "NAME/aliases/ALIAS": lambda: view.resolve(f"{name}@{alias}"),
        }.get(level, lambda: view.read_version(name, number))
        elsewhere = self.folder / "elsewhere"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
        try:
            refused((IntegrityError, ManifestError), act, naming=path)
        finally:
            path.unlink()
            elsewhere.rename(path)

    @rule(text=st.sampled_from(HOSTILE), door=st.integers(0, 5))
    def use_a_hostile_name(self, text: str, door: int) -> None:
        """Use a name that leads out of the store, or is taken, where a name or an alias is wanted."""
        self.verdict.count("hostile names")
        before = sorted(os.listdir(self.folder))
        doors: list[Callable[[], object]] = [
            lambda: self.store.commit(new_manifest(text), some_contents(0)),
            lambda: self.store.set_alias(NAMES[0], text, self.model.last.get(NAMES[0], 1)),
            lambda: self.store.set_alias(text, "best", 1),
            lambda: self.store.remove(text),
            lambda: self.store.versions(text),
            lambda: self.store.folder(text, 1),
        ]
        refused(InvalidNameError, doors[door])
        agree(before, sorted(os.listdir(self.folder)), "what is beside the store")

    @rule(in_use=st.booleans(), is_folder=st.booleans())
    def plant_staging(self, in_use: bool, is_folder: bool) -> None:
        """Leave what a dead writer would leave in tmp/, or what one that is still writing has there."""
        path = self.staging / self.names.uuid4().hex
        if is_folder:
            path.mkdir()
            (path / ADAPTER_FILE).write_bytes(b"half of an ada")
        else:
            path.write_bytes(b"1")
        if in_use:
            os.utime(path, (2**32, 2**32))  # always younger than any limit
        self.model.leftovers[path.name] = not in_use
        agree([], self.store.collect_garbage(), "collected, though less than an hour old")

    @rule()
    def reopen(self) -> None:
        """Go on with another object for the same store; for another backbone it does not open."""
        refused(BackboneMismatchError, lambda: Store.create(self.store.root, OTHER_INFO))
        self.store = Store.create(self.store.root, INFO)

    @invariant()
    def shows_the_model(self) -> None:
        """What a newly opened view shows, and what the long-lived one does, is the model and nothing else."""
        self.verdict.tried += 1
        agree(self.model.shown(), self._shown(), "the store shows")
        agree(sorted(self.model.shown()["names"]), self.store.names(), "names")
        agree(sorted(self.model.leftovers), sorted(os.listdir(self.staging)), "what is in tmp/")
        agree([], list(map(str, self._strays())), "files that nobody put there")

    def _sweep(self, kind: str, name: str, pick: int, error: BaseException, *, for_good: bool) -> None:
        for at in range(1, CALLS_LIMIT):
            change = draw(kind, self.store, self.folder, self.model, name, pick)
            raised: BaseException | None = None
            with failing_calls(at, error, for_good=for_good) as calls:
                try:
                    change.act()
                except (RegistryError, Crash) as err:
                    raised = err
            self._settle(change, raised)
            if calls.left > 0:
                break
            self.verdict.count("crashes" if isinstance(raised, Crash) else "failed calls")

    def _settle(self, change: Change, raised: BaseException | None) -> None:
        """Take over what a change that may have been cut short has done, if it is one of what it may have done."""
        before, after, found = self.model.shown(), change.after.shown(), self._shown()
        if raised is None:
            agree(None, change.refused, "done without a word, though it should be refused with")
        if raised is None or isinstance(raised, CommitUncertainError):
            agree(after, found, f"after {raised or 'success'}")
        elif isinstance(raised, RegistryError):
            agree(True, isinstance(raised, (change.refused or StoreWriteError, StoreWriteError)), f"kind of {raised!r}")
            agree(before, found, f"after {raised!r}")
        elif found != after:
            agree(before, found, "after a crash, neither the new state nor the old")
        there = os.listdir(self.staging)
        in_use = {entry for entry, dead in self.model.leftovers.items() if not dead}
        agree(set(), in_use - set(there), "taken from a living writer")
        leftovers = {entry: self.model.leftovers.get(entry, True) for entry in there}
        self.model = change.after if found == after else self.model
        self.model.leftovers = leftovers
        for path in self.folder.glob(".*.tmp"):  # beside an exported file
            path.unlink()

    def _shown(self) -> Shown:
        """Return what a newly opened view shows, in the form of the model."""
        view = StoreReader.open(self.store.root)
        names: dict[str, Any] = {}
        for name in view.names():
            names[name] = ({each: self._read(view, name, each) for each in view.versions(name)}, view.aliases(name))
            agree(max(names[name][0]), view.resolve(name)[1], f"the newest of '{name}'")
        archives = {path.name: read_archive(path) for path in self.folder.glob("*.adapter")}
        return {"names": names, "archives": {file: (one.name, held) for file, (one, held) in archives.items()}}

    def _read(self, view: StoreReader, name: str, version: int) -> Contents:
        try:
            manifest, contents = view.read_version(name, version)
        except (ManifestError, IntegrityError) as err:
            damage = self.model.damage.get((name, version))
            if damage is not None and isinstance(err, damage.error) and says(err, damage.path, damage.told):
                return DAMAGED
            raise
        agree(name, manifest.name, "the manifest's name")
        return contents

    def _strays(self) -> Iterator[Path]:
        """Yield the files outside tmp/ that are none of a version, an alias, or the mark of a removed number."""
        root = self.store.root
        known = {root / STORE_FILE}
        for name, held in self.model.versions.items():
            versions = root / name / "versions"
            known |= {versions / f"{version:06d}" / file for version in held for file in FILES}
            known |= {versions / f"{number:06d}.removed" for number in range(1, self.model.last[name] + 1)}
            known |= {root / name / "aliases" / alias for alias in self.model.aliases.get(name, {})}
        for folder, folders, names in os.walk(root):
            if folder == str(root):
                folders.remove("tmp")
            yield from {Path(folder, name) for name in names} - known

    def _some_file(self, pick: int) -> tuple[Path, Callable[[], object]]:
        """Return a file of the store, or an exported one, and what reads it."""
        root, archives = self.store.root, sorted(self.model.archives)
        name, version = self.model.some_version(pick) if any(self.model.versions.values()) else ("", 0)
        aliases = sorted(self.model.aliases.get(name, {}))
        if pick % 4 == 0 and version and (name, version) not in self.model.damage:
            path = root / name / "versions" / f"{version:06d}" / FILES[pick // 4 % 3]
            return path, lambda: self.store.read_version(name, version)
        if pick % 4 == 1 and archives:
            path = self.folder / archives[pick % len(archives)]
            return path, lambda: read_archive(path)
        if pick % 4 == 2 and aliases:
            return root / name / "aliases" / aliases[0], lambda: self.store.resolve(f"{name}@{aliases[0]}")
        return root / STORE_FILE, lambda: Store.open(root)
