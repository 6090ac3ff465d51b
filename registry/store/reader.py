"""The reading half of a store, without its tensors: names, versions, aliases, manifests, the bytes of a version.

Nothing here creates or changes a file, so it works on a read-only disk. Knows bytes and digests, nothing of torch:
what is in the tensor files is tensors.py's to say.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

from registry.errors import InvalidNameError, RegistryError
from registry.schema import FileEntry, Manifest, Reference
from registry.store import files
from registry.store.errors import AdapterNotFoundError, IntegrityError, ManifestError, NotAStoreError
from registry.store.manifest import (
    MANIFEST_LIMIT,
    TENSOR_FILES,
    StoreInfo,
    check_named_manifest,
    read_alias,
    read_limited,
    read_store_info,
    read_tensor_file,
)
from registry.validation import check_name, require

STORE_FILE = "store.json"
MANIFEST_FILE = "manifest.json"
STAGING = "tmp"
_TICK = 50_000_000  # nanoseconds; more than any file system's clock takes to tick, but FAT's
_MOST_KNOWN = 4_096
VERSION_FOLDER = re.compile(r"(?!000000)[0-9]{6}", re.ASCII)

View = TypeVar("View", bound="StoreReader")


class StoredVersion(NamedTuple):
    """A version of a store; ``stamp`` tells it from another that took its place."""

    name: str
    version: int
    stamp: tuple[int, int]


class Overview(NamedTuple):
    """A name of a store with all that a list shows of it: rising versions, aliases, the newest manifest's bytes."""

    name: str
    versions: list[int]
    aliases: dict[str, bytes]
    path: PurePath
    manifest: bytes


class StoreReader:
    """What a store holds, read from the disk at every question; nothing is cached, so threads may share one.

    Attributes:
        root: the store's folder.
        info: the content of its ``store.json``.
    """

    def __init__(self, root: Path, info: StoreInfo) -> None:
        self.root = root
        self.info = info

    @classmethod
    def open(cls: type[View], root: Path) -> View:
        """Return the store at ``root``.

        Raises:
            NotAStoreError: no folder, or one without ``store.json``.
            ManifestError: ``store.json`` is damaged.
        """
        with files.reading(root):
            found = files.kind(root, follow=True)
        if found != "folder":
            raise NotAStoreError(root, f"a {found}" if found else "nothing")
        try:
            return cls(root, read_store_info(root / STORE_FILE))
        except FileNotFoundError as err:
            raise NotAStoreError(root, "a folder without it") from err

    @property
    def address(self) -> str:
        """Return what opens this store again, from wherever."""
        return str(self.root.absolute())

    def names(self) -> list[str]:
        """Return the sorted names that have a version; what is no adapter set of ours is passed over."""
        with files.reading(self.root):
            return [name for name in files.entries(self.root, "folder") if is_name(name) and self._numbers(name)]

    def versions(self, name: str) -> list[int]:
        """Return the rising version numbers of ``name``, at least one.

        Raises:
            AdapterNotFoundError: no such name.
        """
        folder = self._inside(check_name(name), "versions")
        with files.reading(folder):
            numbers = self._numbers(name)
        if not numbers:
            raise AdapterNotFoundError(name, self.names(), self.root)
        return numbers

    def aliases(self, name: str) -> dict[str, int]:
        """Return the version that each alias of ``name`` points to, sorted by alias.

        Raises:
            AdapterNotFoundError: no such name.
            ManifestError: an alias file is damaged.
        """
        self.versions(name)
        return {alias: self._read_alias(name, alias) for alias in self.alias_names(name)}

    def alias_names(self, name: str) -> list[str]:
        """Return the sorted aliases of ``name`` without reading where they point."""
        folder = self._inside(check_name(name), "aliases")
        with files.reading(folder):
            return [alias for alias in files.entries(folder, "file") if is_name(alias)]

    def identify(self, reference: str | Reference) -> StoredVersion:
        """Return which stored version a reference means now; its stamp changes when a name is saved anew.

        Raises:
            AdapterNotFoundError: no such name, version or alias.
        """
        name, version = self.resolve(reference)
        return StoredVersion(name, version, files.stamp(self.folder(name, version)))

    def resolve(self, reference: Reference | str) -> tuple[str, int]:
        """Return the name and the version that a reference means; a bare name means its newest version.

        Raises:
            AdapterNotFoundError: no such name, version or alias.
        """
        reference = parse_again(reference)
        name, version = reference.name, reference.version
        if reference.alias is not None:
            version = self._read_alias(name, reference.alias)
        versions = self.versions(name)  # after the alias, which may point to a version of this moment
        version = versions[-1] if version is None else version
        if version not in versions:
            raise AdapterNotFoundError(f"{name}:{version}", [f"{name}:{known}" for known in versions], self.root)
        return name, version

    def folder(self, name: str, version: int) -> Path:
        """Return where a version is, or would be."""
        parse_again(f"{name}:{version}")
        return self._inside(name, "versions", f"{version:06d}")

    def manifest(self, name: str, version: int) -> Manifest:
        """Return what is known of one version, after checking the manifest's own digest.

        Raises:
            AdapterNotFoundError: no such name or version.
            ManifestError: missing, too large, changed, not of this format, or of another name.
        """
        path = self.folder(name, version) / MANIFEST_FILE
        try:
            return check_named_manifest(path, self.manifest_bytes(name, version), name)
        except FileNotFoundError:
            self.resolve(f"{name}:{version}")
        try:
            return check_named_manifest(path, self.manifest_bytes(name, version), name)  # it may have come meanwhile
        except FileNotFoundError as err:
            raise ManifestError(path, "file", "a manifest", "none") from err

    def manifest_bytes(self, name: str, version: int) -> bytes:
        """Return the unchecked bytes of a version's manifest; a missing one is FileNotFoundError."""
        return read_limited(self.folder(name, version) / MANIFEST_FILE, MANIFEST_LIMIT)

    def read_file(self, name: str, version: int, entry: FileEntry) -> bytes:
        """Return the content of one file of a version, after checking its size and digest.

        Raises:
            AdapterNotFoundError: the version was removed since its manifest was read.
            IntegrityError: missing, a link, too large, or changed.
        """
        require(entry.path in TENSOR_FILES, "file", " or ".join(TENSOR_FILES), entry.path)
        path = self.folder(name, version) / entry.path
        try:
            return self._tensor_bytes(path, entry)
        except FileNotFoundError as err:
            self.resolve(f"{name}:{version}")
            raise IntegrityError(path, "file", f"{entry.bytes} bytes", "no file") from err

    def read_version(self, name: str, version: int) -> tuple[Manifest, dict[str, bytes]]:
        """Return the manifest and the tensor files of a version, all of them of one and the same save.

        Raises:
            AdapterNotFoundError: no such name or version.
            ManifestError, IntegrityError: a stored file is damaged.
        """
        while True:
            manifest = self.manifest(name, version)
            try:
                return manifest, {entry.path: self.read_file(name, version, entry) for entry in manifest.files}
            except IntegrityError:
                if self.manifest(name, version).digest == manifest.digest:
                    raise
                # the name was removed and made again between two looks

    def verify_bytes(self, name: str, version: int) -> Manifest:
        """Re-read and re-hash everything of one version and return its manifest."""
        return self.uncached().read_version(name, version)[0]

    def uncached(self: View) -> View:
        """Return the store as it is read from where it is, never from a cache; a disk has none."""
        return self

    def watched(self, reference: Reference) -> list[str]:
        """Return the paths whose stamps change with what a reference means; none where there are no stamps."""
        folder = f"{self.root}/{reference.name}"
        alias = [] if reference.alias is None else [f"{folder}/aliases/{reference.alias}"]
        return [f"{folder}/versions", *alias]

    def overview(self) -> Iterator[Overview] | None:
        """Return all names at once where that is quicker than asking for each; None on a disk."""
        return None

    def strangers(self) -> Iterator[str] | None:
        """Return the objects that are no part of the store; None on a disk, where ``audit`` looks for itself."""
        return None

    def _tensor_bytes(self, path: Path, entry: FileEntry) -> bytes:
        return read_tensor_file(path, entry)

    def _inside(self, *parts: str) -> Path:
        """Return a path of the store, none of whose steps is a link that could lead out of it."""
        path = self.root
        for part in parts:
            path = path / part
            with files.reading(path):
                if files.kind(path) == "symbolic link":
                    raise IntegrityError(path, "kind of file", "a file or folder", "a symbolic link")
        return path

    def _numbers(self, name: str) -> list[int]:
        folder = self.root / name / "versions"
        if files.kind(folder) != "folder":
            return []
        return [int(entry) for entry in files.entries(folder, "folder") if VERSION_FOLDER.fullmatch(entry)]

    def _read_alias(self, name: str, alias: str) -> int:
        path = self._inside(name, "aliases", check_name(alias, "alias"))
        try:
            return read_alias(path, name, alias)
        except FileNotFoundError as err:
            self.versions(name)
            known = [f"{name}@{other}" for other in self.alias_names(name)]
            raise AdapterNotFoundError(f"{name}@{alias}", known, self.root) from err


class Resolver:
    """What references mean, asked of the disk again only where the store may have changed.

    A name's folder of versions and the file of an alias change their time stamps with whatever is saved, moved or
    removed. A stamp as young as the tick of a file system's clock may hide a second change and is not trusted; and an
    answer is identified again after ``STAMPED_SECONDS``, for disks whose stamps tell less, or after ``SECONDS`` where
    there are none, as on a network.
    """

    SECONDS = 1.0
    STAMPED_SECONDS = 5.0

    def __init__(self, store: StoreReader) -> None:
        self._store = store
        self._known: dict[str, _Known] = {}

    def recall(self, reference: str) -> tuple[StoredVersion, Manifest] | None:
        """Return what ``find`` would, None where that takes reading a manifest."""
        known = self._known.get(reference)
        if known is None or _stamps(known.paths) != known.stamps:
            return None
        return known.found if known.until > time.monotonic() or self._is_still(reference, known) else None

    def _is_still(self, reference: str, known: _Known) -> bool:
        """Return whether a disk says that a reference means what it did; a network is not asked here."""
        try:
            if not known.paths or self._store.identify(reference) != known.found[0]:
                return False
        except RegistryError:
            return False
        self._known[reference] = known._replace(until=self._until(known.paths))
        return True

    def find(self, reference: str) -> tuple[StoredVersion, Manifest]:
        """Return the stored version that a reference means now, and what is known of it.

        Raises:
            AdapterNotFoundError: no such name, version or alias.
            ManifestError: the manifest is damaged.
        """
        if (known := self.recall(reference)) is not None:
            return known
        parsed = parse_again(reference)
        paths = self._store.watched(parsed)
        now, stamps = time.time_ns(), _stamps(paths)
        version = self._store.identify(parsed)
        before = self._known.get(reference)
        is_known = before is not None and before.stamps == stamps and before.found[0] == version
        found = before.found if before and is_known else (version, self._store.manifest(*version[:2]))
        if all(0 < changed < now - _TICK for _, changed in stamps):
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[reference] = _Known(paths, stamps, self._until(paths), found)
        return found

    def _until(self, paths: list[str]) -> float:
        return time.monotonic() + (self.STAMPED_SECONDS if paths else self.SECONDS)


class _Known(NamedTuple):
    """What a reference meant, as long as the stamps of the paths are these."""

    paths: list[str]
    stamps: list[tuple[int, int]]
    until: float
    found: tuple[StoredVersion, Manifest]


def _stamps(paths: Iterable[str]) -> list[tuple[int, int]]:
    return [files.stamp(path) for path in paths]


def parse_again(reference: Reference | str) -> Reference:
    """Return a reference that went through every check, even one that was put together by hand."""
    return Reference.parse(str(reference))


def is_name(text: str) -> bool:
    """Return whether ``text`` may be the name of a set or an alias."""
    try:
        check_name(text)
    except InvalidNameError:
        return False
    return True
