"""What can be done to a store, and what a plain-dictionary model says must come of it; for ``machine.py``. No torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from registry.errors import RegistryError
from registry.store.archive import export_version, read_archive
from registry.store.errors import (
    AdapterNotFoundError,
    ArchiveNotFoundError,
    IntegrityError,
    ManifestError,
    StoreWriteError,
    VersionInUseError,
)
from registry.store.manifest import ADAPTER_FILE, HEAD_FILE
from registry.store.reader import MANIFEST_FILE, StoreReader
from registry.store.store import Store
from tests.support.stored_sets import new_manifest

NAMES = ("imdb", "mrpc", "sst-2.v1")
ALIASES = ("best", "live")
KINDS = ("save", "save", "alias", "remove version", "remove alias", "remove name", "export", "import", "gc")
VERSIONS_LIMIT = 8  # of a name, lest long runs spend their time on reading
DAMAGED = {"damaged": b""}  # what a damaged version shows

Contents = dict[str, bytes]
Shown = dict[str, Any]


@dataclass(frozen=True)
class Damage:
    """A file of a version that was damaged, what it held before, and what the error must say beside its path."""

    path: Path
    held: bytes
    told: str = ""

    @property
    def error(self) -> type[RegistryError]:
        """Return what reading the version must raise."""
        return ManifestError if self.path.name == MANIFEST_FILE else IntegrityError


@dataclass
class Model:
    """What a store must hold.

    Attributes:
        versions: contents by number by name; a name without any is not visible.
        aliases: number by alias by name.
        last: the highest number given since the name came into being.
        damage: versions that are damaged at present.
        archives: exported files: the name inside, and the contents.
        leftovers: entries of ``tmp/``, and whether their writer is dead.
    """

    versions: dict[str, dict[int, Contents]] = field(default_factory=dict)
    aliases: dict[str, dict[str, int]] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    damage: dict[tuple[str, int], Damage] = field(default_factory=dict)
    archives: dict[str, tuple[str, Contents]] = field(default_factory=dict)
    leftovers: dict[str, bool] = field(default_factory=dict)

    def add(self, name: str, contents: Contents) -> int:
        """Add the next version of a name and return its number."""
        number = self.last[name] = self.last.get(name, 0) + 1
        self.versions.setdefault(name, {})[number] = contents
        return number

    def drop(self, name: str, version: int | None = None) -> None:
        """Remove a version, or all of a name."""
        gone = self.versions[name].keys() if version is None else {version}
        self.damage = {key: kept for key, kept in self.damage.items() if key[0] != name or key[1] not in gone}
        if version is not None:
            del self.versions[name][version]
            return
        del self.versions[name], self.last[name]
        self.aliases.pop(name, None)

    def shown(self) -> Shown:
        """Return what a reader must see of each name that has a version, and of the exported files."""
        names = {
            name: (
                {version: DAMAGED if (name, version) in self.damage else held[version] for version in held},
                dict(self.aliases.get(name, {})),
            )
            for name, held in self.versions.items()
            if held
        }
        return {"names": names, "archives": self.archives}

    def some_version(self, pick: int) -> tuple[str, int]:
        """Return one of the versions that are there."""
        held = [(name, version) for name, versions in sorted(self.versions.items()) for version in sorted(versions)]
        return held[pick % len(held)]


@dataclass(frozen=True)
class Change:
    """Something to do to a store; the model afterwards, and what it must return, or the error it must raise."""

    act: Callable[[], Any]
    after: Model
    returns: Any = None
    refused: type[RegistryError] | None = None


def draw(kind: str, store: Store, folder: Path, model: Model, name: str, pick: int) -> Change:
    """Return the change that a few drawn values mean in the present state.

    Args:
        kind: one of ``KINDS``.
        store: what to change.
        folder: where exported files are.
        model: the present state, which stays as it is.
        name: what to change or to add.
        pick: decides all else.
    """
    after = copy.deepcopy(model)
    held = sorted(model.versions.get(name, {}))
    # Mostly a version that is there, the newest one above all, sometimes one that was or never will be.
    version = held[-1 - pick // 5 % len(held)] if held and pick % 5 else 1 + pick
    path = folder / f"{pick % 3}.adapter"
    if kind in ("save", "import") and len(held) > VERSIONS_LIMIT:
        kind = "remove name"
    if kind == "save":
        contents = some_contents(pick % 7)
        return Change(lambda: store.commit(new_manifest(name), contents), after, after.add(name, contents))
    if kind == "alias":
        return _alias(store, after, name, ALIASES[pick % 2], version)
    if kind == "export":
        return _export(store, after, name, version, path, overwrite=pick % 2 == 0)
    if kind == "import":
        return _import(store, after, None if pick % 2 else name, path)
    if kind == "gc":
        return _collect(store, after, older_than=0.0 if pick % 4 > 1 else None, dry_run=pick % 4 == 3)
    return _remove(kind, store, after, name, ALIASES[pick % 2], version)


def some_contents(number: int) -> Contents:
    """Return the bytes of two tensor files, different for each number."""
    return {ADAPTER_FILE: b"adapter %d " % number * (1 + number), HEAD_FILE: b"head %d" % number}


def _alias(store: Store, after: Model, name: str, alias: str, version: int) -> Change:
    refused = None if version in after.versions.get(name, {}) else AdapterNotFoundError
    if refused is None:
        after.aliases.setdefault(name, {})[alias] = version
    return Change(lambda: store.set_alias(name, alias, version), after, refused=refused)


def _remove(kind: str, store: Store, after: Model, name: str, alias: str, version: int) -> Change:
    held, aliases = after.versions.get(name, {}), after.aliases.get(name, {})
    refused: type[RegistryError] | None = AdapterNotFoundError
    if kind == "remove name":
        if held:
            after.drop(name)
            refused = None
        return Change(lambda: store.remove(name), after, refused=refused)
    if kind == "remove alias":
        if aliases.pop(alias, None):
            refused = None
        return Change(lambda: store.remove(f"{name}@{alias}"), after, refused=refused)
    if version in aliases.values():
        refused = VersionInUseError
    elif version in held:
        after.drop(name, version)
        refused = None
    return Change(lambda: store.remove(f"{name}:{version}"), after, refused=refused)


def _export(store: Store, after: Model, name: str, version: int, path: Path, *, overwrite: bool) -> Change:
    def act() -> Path:
        return export_version(StoreReader.open(store.root), f"{name}:{version}", path, overwrite=overwrite)

    contents = after.versions.get(name, {}).get(version)
    if contents is None:
        return Change(act, after, refused=AdapterNotFoundError)
    if (name, version) in after.damage:
        return Change(act, after, refused=after.damage[name, version].error)
    if path.name in after.archives and not overwrite:
        return Change(act, after, refused=StoreWriteError)
    after.archives[path.name] = (name, contents)
    return Change(act, after, path)


def _import(store: Store, after: Model, name: str | None, path: Path) -> Change:
    """Import as the store does, but for the look into the tensors, which needs torch (``frozen.py`` has it)."""

    def act() -> int:
        manifest, contents = read_archive(path)
        return store.commit(msgspec.structs.replace(manifest, name=name or manifest.name), contents)

    if path.name not in after.archives:
        return Change(act, after, refused=ArchiveNotFoundError)
    own, contents = after.archives[path.name]
    return Change(act, after, after.add(name or own, contents))


def _collect(store: Store, after: Model, *, older_than: float | None, dry_run: bool) -> Change:
    """Collect what is older than an hour, which nothing is, or what is of any age."""
    limit = {} if older_than is None else {"older_than": older_than}
    taken = sorted(entry for entry, dead in after.leftovers.items() if dead and older_than is not None)
    if not dry_run:
        after.leftovers = {entry: dead for entry, dead in after.leftovers.items() if entry not in taken}
    return Change(lambda: store.collect_garbage(dry_run=dry_run, **limit), after, taken)
