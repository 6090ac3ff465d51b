"""The writing half of a store: the one-rename commit, aliases, removal, and what dead writers left behind.

A version is staged in ``tmp/`` and becomes visible by one rename, and leaves by one, so readers see all of it or
nothing and no lock is needed. Knows bytes and digests, nothing of torch.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType

from registry.errors import ConfigError
from registry.schema import BackboneInfo, Manifest, Reference
from registry.store import files
from registry.store.errors import MemberInUseError, NotAStoreError, VersionInUseError
from registry.store.manifest import TENSOR_FILES, StoreInfo, check_backbone, format_alias, seal, seal_store_info
from registry.store.members import find_fused
from registry.store.reader import MANIFEST_FILE, STAGING, STORE_FILE, StoreReader, parse_again
from registry.validation import check_name, require

_LAST_VERSION = 999_999
_RETIRED = ".removed"  # versions/000007.removed: the number is not given again
_NUMBER = re.compile(rf"([0-9]{{6}})(?:{re.escape(_RETIRED)})?", re.ASCII)


class Store(StoreReader):
    """A store that can be changed: every change is one step for whoever reads at the same time."""

    @classmethod
    def create(cls, root: Path, backbone: BackboneInfo) -> Store:
        """Make a store for ``backbone`` in a new or empty folder, or open the one that is there for it.

        Raises:
            BackboneMismatchError: the store that is there belongs to another backbone or tokenizer.
            NotAStoreError: the path is taken by something that is no store.
            StoreWriteError: the folder or its ``store.json`` cannot be written.
        """
        with files.writing(root, "make a store"):
            if files.kind(root / STORE_FILE) is None:
                _make_root(root)
                info = StoreInfo(backbone=backbone)
                files.replace(root / STORE_FILE, seal_store_info(info), by=cls(root, info)._staging())
            files.confirm(root, STORE_FILE)  # also where its maker was killed before that
        store = cls.open(root)
        check_backbone(f"store {root}", store.info.backbone, backbone)
        return store

    def commit(self, manifest: Manifest, contents: Mapping[str, bytes]) -> int:
        """Store the files of a new version, all or nothing, and return its number.

        Args:
            manifest: its ``files`` and ``digest`` are filled in here.
            contents: bytes of ``adapter.safetensors`` and ``head.safetensors``.

        Raises:
            ConfigError: something that could not be read back, such as a score that is not a finite number.
            StoreWriteError: nothing was changed.
            CommitUncertainError: the version is there, but the disk did not confirm it.
        """
        sealed = seal(manifest, contents)
        needed = len(sealed) + sum(map(len, contents.values()))
        attempted = f"save '{manifest.name}' ({needed:,} bytes)"
        with files.writing(self.root, attempted), self._staged(sealed, contents) as stage:
            return self._publish(stage, manifest.name)

    def commit_as(self, manifest: Manifest, number: int, sealed: bytes, contents: Mapping[str, bytes]) -> bool:
        """Store a version of another store under the number it has there; False where that is taken here.

        Args:
            manifest: of the version, checked.
            number: it has.
            sealed: the exact bytes of the manifest.
            contents: of its tensor files, checked.

        Raises:
            StoreWriteError, CommitUncertainError: as for ``commit``.
        """
        with files.writing(self.root, f"save '{manifest.name}:{number}'"), self._staged(sealed, contents) as stage:
            return self._publish(stage, manifest.name, number) == number

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version, in one step.

        Raises:
            AdapterNotFoundError: no such version.
            StoreWriteError: the alias is as it was.
            CommitUncertainError: the alias is moved, but the disk did not confirm it.
        """
        check_name(alias, "alias")
        self.resolve(f"{name}:{version}")
        folder = self._inside(name, "aliases")
        with files.writing(self.root, f"set alias '{name}@{alias}'"):
            files.fsync_folder(folder.with_name("versions"))  # an alias must not outlive what it points to
            files.make_folder(folder)
            files.fsync_folder(folder.parent)
            files.replace(folder / alias, format_alias(name, alias, version), by=self._staging())
        files.confirm(folder, f"{name}@{alias}")

    def remove(self, reference: Reference | str) -> None:
        """Remove one version, only the alias of ``name@alias``, or all of a bare name.

        What is removed leaves by one rename, so nobody sees half of it. The number of a removed version is not given
        again; a name that is removed as a whole starts anew.

        Raises:
            AdapterNotFoundError: no such name, version or alias.
            VersionInUseError: an alias points to this version.
            MemberInUseError: a fused set needs it.
            StoreWriteError: nothing was changed.
            CommitUncertainError: it is gone, but the disk did not confirm it.
        """
        reference = parse_again(reference)
        name = reference.name
        if reference.alias is not None:
            self._remove_alias(name, reference.alias)
        elif reference.version is None:
            self.versions(name)
            self._check_unneeded(reference)
            self._discard(self._inside(name), reference)
        else:
            name, version = self.resolve(reference)
            pointing = [alias for alias, target in self.aliases(name).items() if target == version]
            if pointing:
                raise VersionInUseError(str(reference), pointing, self.root)
            self._check_unneeded(reference)
            folder = self.folder(name, version)
            with files.writing(self.root, f"remove '{reference}'"):
                aliases = self._inside(name, "aliases")
                if files.kind(aliases) == "folder":
                    files.fsync_folder(aliases)  # that no alias points here any more must outlive the version
                self._retire(folder)
            self._discard(folder, reference)

    def collect_garbage(self, *, older_than: float = 3600.0, dry_run: bool = False) -> list[str]:
        """Remove what writers that died left in ``tmp/``, and return the names of it; nothing visible is touched.

        An entry is moved aside before it is taken apart, so a writer that was only slow can never publish a part.

        Args:
            older_than: seconds without a change after which a writer counts as dead.
            dry_run: only say what would be removed.

        Raises:
            StoreWriteError: ``tmp/`` cannot be read or written.
        """
        require(older_than >= 0, "older_than", "seconds from 0", older_than)
        staging = self._inside(STAGING)
        with files.writing(self.root, "collect garbage"):
            now = time.time()
            stale = [entry for entry in files.entries(staging) if now - _last_change(staging / entry) >= older_than]
            return stale if dry_run else [entry for entry in stale if self._sweep(staging / entry)]

    @contextmanager
    def _staged(self, sealed: bytes, contents: Mapping[str, bytes]) -> Iterator[Path]:
        """Give the folder of a version that is whole, and that nobody can see yet."""
        stage = self._staging()
        try:
            files.make_folder(stage)
            for file in TENSOR_FILES:
                files.write_new(stage / file, contents[file])
            files.write_new(stage / MANIFEST_FILE, sealed)
            files.fsync_folder(stage)
            yield stage
        finally:
            files.discard(stage)

    def _check_unneeded(self, reference: Reference) -> None:
        fused = list(find_fused(self, reference))
        if fused:
            raise MemberInUseError(str(reference), fused, self.root)

    def _sweep(self, leftover: Path) -> bool:
        trash = self._staging()
        try:
            files.rename(leftover, trash)
        except FileNotFoundError:
            return False  # its writer was alive after all
        files.fsync_folder(trash.parent)  # a removal that was never confirmed must not come back without its files
        files.discard(trash)
        return True

    def _staging(self) -> Path:
        """Return a path of its own in ``tmp/``, where nothing is visible yet or any more."""
        staging = self._inside(STAGING)
        files.make_folder(staging)
        return staging / uuid.uuid4().hex

    def _remove_alias(self, name: str, alias: str) -> None:
        path = self._inside(check_name(name), "aliases") / check_name(alias, "alias")
        with files.reading(path):
            found = files.kind(path)
        if found is None:
            self._read_alias(name, alias)  # says which aliases there are
        with files.writing(self.root, f"remove alias '{name}@{alias}'"):
            files.remove_file(path)
        files.confirm(path.parent, f"{name}@{alias}")

    def _publish(self, stage: Path, name: str, wanted: int | None = None) -> int:
        """Rename the finished stage onto the next free version number: the commit; 0 where one ``wanted`` is taken."""
        versions = self._inside(name, "versions")
        while True:
            try:
                if files.kind(versions.parent) is None:
                    files.fsync_folder(self.root)  # store.json first: without it a folder with names is no store
                for folder in (versions.parent, versions):  # on the disk before anything is committed into them
                    files.make_folder(folder)
                    files.fsync_folder(folder.parent)
                number = _rename_onto_free(stage, versions) if wanted is None else _rename_onto(stage, versions, wanted)
                if not number:
                    return 0
            except FileNotFoundError:
                if files.kind(stage) is None:
                    raise
                continue  # all of the name was removed just now
            files.confirm(versions, f"{name}:{number}")
            return number

    def _retire(self, folder: Path) -> None:
        """Leave a mark that keeps the newest number of a name from being given again after its removal."""
        if int(folder.name) == _highest(folder.parent):
            with suppress(FileExistsError):  # left by a removal that was cut short
                files.write_new(folder.with_name(folder.name + _RETIRED), b"")
            files.fsync_folder(folder.parent)

    def _discard(self, folder: Path, reference: Reference) -> None:
        with files.writing(self.root, f"remove '{reference}'"):
            trash = self._staging()
            try:
                files.rename_folder(folder, trash)
            except FileNotFoundError:
                self.resolve(reference)  # somebody else removed it just now
                raise
        files.confirm(folder.parent, str(reference))
        files.discard(trash)


def open_store(address: str | Path, cache: str | None = None) -> Store:
    """Return the store in a folder, or at an address such as s3://bucket/folder.

    Raises:
        NotAStoreError: there is none.
        StoreAccessError: an address that cannot be asked, or whose extra is not installed.
    """
    if is_address(address):
        opened: Store = _object_storage().open_object_store(str(address), cache)
        return opened
    return Store.open(Path(address))


def create_store(address: str | Path, backbone: BackboneInfo, cache: str | None = None) -> Store:
    """Make a store for a backbone in a folder or at an address, or open the one that is there for it.

    Raises:
        BackboneMismatchError, NotAStoreError, StoreWriteError: see ``Store.create``.
        StoreAccessError: an address that cannot be asked, or whose extra is not installed.
    """
    if is_address(address):
        made: Store = _object_storage().create_object_store(str(address), backbone, cache)
        return made
    return Store.create(Path(address), backbone)


def is_address(place: str | Path) -> bool:
    """Return whether this is the address of a store on object storage, and no folder."""
    return isinstance(place, str) and "://" in place


def _object_storage() -> ModuleType:
    """Return the room to the right, where stores on object storage are."""
    return import_module("registry.remote.object_store")


def is_version_entry(entry: str, kind: files.EntryKind | None) -> bool:
    """Return whether an entry of ``versions/`` is a version, or the mark of one that was removed."""
    match = _NUMBER.fullmatch(entry)
    return match is not None and kind == ("file" if entry.endswith(_RETIRED) else "folder")


def _rename_onto_free(stage: Path, versions: Path) -> int:
    for number in range(_highest(versions) + 1, _LAST_VERSION + 1):
        with suppress(FileExistsError):
            files.rename_folder(stage, versions / f"{number:06d}")
            return number
    raise ConfigError("version", f"a free number up to {_LAST_VERSION}", _LAST_VERSION + 1)


def _rename_onto(stage: Path, versions: Path, number: int) -> int:
    """Rename the stage onto one number; 0 where it is taken, or was and is retired."""
    if files.kind(versions / f"{number:06d}{_RETIRED}") is None:
        with suppress(FileExistsError):
            files.rename_folder(stage, versions / f"{number:06d}")
            return number
    return 0


def _highest(versions: Path) -> int:
    """Return the highest number that a version has or had, 0 for none."""
    found = (_NUMBER.fullmatch(entry) for entry in files.entries(versions))
    return max((int(match[1]) for match in found if match), default=0)


def _last_change(leftover: Path) -> float:
    """Return when a leftover or a file directly in it was written last, in seconds since 1970."""
    inside = files.entries(leftover) if files.kind(leftover) == "folder" else []
    return max(map(files.last_change, (leftover, *(leftover / entry for entry in inside))))


def _make_root(root: Path) -> None:
    """Make the store's folder and those above it; one that holds other files is left alone."""
    found = files.kind(root, follow=True)
    if found not in (None, "folder"):
        raise NotAStoreError(root, f"a {found}")
    files.make_folders(root)
    # Another process may be making the same store, and hidden files (.gitkeep, .checkpoints) are not in the way.
    if any(not (entry.startswith(".") or entry in (STAGING, STORE_FILE)) for entry in files.entries(root)):
        raise NotAStoreError(root, "a folder with other files in it")
