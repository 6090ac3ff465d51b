"""The view of a store without its tensors: names, versions, aliases, manifests, and the one-rename commit.

A version is staged in ``tmp/`` and becomes visible by one rename, so readers see all of it or nothing and no lock
is needed. Knows bytes and digests, nothing of torch: what is in the files is store.py's to say.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from registry import files
from registry.errors import ConfigError, InvalidNameError
from registry.manifests import (
    TENSOR_FILES,
    check_backbone,
    read_alias,
    read_manifest,
    read_store_info,
    read_tensor_file,
    seal,
)
from registry.references import Reference, check_name
from registry.schema import BackboneInfo, FileEntry, Manifest, StoreInfo
from registry.store_errors import AdapterNotFoundError, IntegrityError, ManifestError, NotAStoreError, VersionInUseError
from registry.validation import require, to_json

STORE_FILE = "store.json"
MANIFEST_FILE = "manifest.json"

_LAST_VERSION = 999_999
_STAGING = "tmp"
_VERSION_FOLDER = re.compile(r"(?!000000)[0-9]{6}", re.ASCII)


class Catalog:
    """What a store holds, read from the disk at every question; nothing is cached, so threads may share one.

    Attributes:
        root: the store's folder.
        info: the content of its ``store.json``.
    """

    def __init__(self, root: Path, info: StoreInfo) -> None:
        self.root = root
        self.info = info

    @classmethod
    def create(cls, root: Path, backbone: BackboneInfo) -> Catalog:
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
                files.replace(root / STORE_FILE, to_json(info), by=cls(root, info)._staging())
                files.confirm(root, STORE_FILE)
        catalog = cls.open(root)
        check_backbone(f"store {root}", catalog.info.backbone, backbone)
        return catalog

    @classmethod
    def open(cls, root: Path) -> Catalog:
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

    def names(self) -> list[str]:
        """Return the sorted names that have a version; what is no adapter set of ours is passed over."""
        with files.reading(self.root):
            return [name for name in files.entries(self.root, "folder") if _is_name(name) and self._numbers(name)]

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
            return [alias for alias in files.entries(folder, "file") if _is_name(alias)]

    def resolve(self, reference: Reference | str) -> tuple[str, int]:
        """Return the name and the version that a reference means; a bare name means its newest version.

        Raises:
            AdapterNotFoundError: no such name, version or alias.
        """
        reference = _parse(reference)
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
        _parse(f"{name}:{version}")
        return self._inside(name, "versions", f"{version:06d}")

    def manifest(self, name: str, version: int) -> Manifest:
        """Return what is known of one version, after checking the manifest's own digest.

        Raises:
            AdapterNotFoundError: no such name or version.
            ManifestError: missing, too large, changed, not of this format, or of another name.
        """
        path = self.folder(name, version) / MANIFEST_FILE
        try:
            return read_manifest(path, name)
        except FileNotFoundError as err:
            self.resolve(f"{name}:{version}")
            raise ManifestError(path, "file", "a manifest", "none") from err

    def read_file(self, name: str, version: int, entry: FileEntry) -> bytes:
        """Return the content of one file of a version, after checking its size and digest.

        Raises:
            AdapterNotFoundError: the version was removed since its manifest was read.
            IntegrityError: missing, a link, too large, or changed.
        """
        require(entry.path in TENSOR_FILES, "file", " or ".join(TENSOR_FILES), entry.path)
        path = self.folder(name, version) / entry.path
        try:
            return read_tensor_file(path, entry)
        except FileNotFoundError as err:
            self.resolve(f"{name}:{version}")
            raise IntegrityError(path, "file", f"{entry.bytes} bytes", "no file") from err

    def verify_bytes(self, name: str, version: int) -> Manifest:
        """Re-read and re-hash everything of one version and return its manifest."""
        manifest = self.manifest(name, version)
        for entry in manifest.files:
            self.read_file(name, version, entry)
        return manifest

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
        with files.writing(self.root, f"save '{manifest.name}' ({needed:,} bytes)"):
            stage = self._staging()
            try:
                files.make_folder(stage)
                for file in TENSOR_FILES:
                    files.write_new(stage / file, contents[file])
                files.write_new(stage / MANIFEST_FILE, sealed)
                files.fsync_folder(stage)
                return self._publish(stage, manifest.name)
            finally:
                files.remove_tree(stage)

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
            files.make_folder(folder)
            files.fsync_folder(folder.parent)
            files.replace(folder / alias, f"{version}\n".encode(), by=self._staging())
        files.confirm(folder, f"{name}@{alias}")

    def remove(self, reference: Reference | str) -> None:
        """Remove one version, only the alias of ``name@alias``, or all of a bare name.

        What is removed leaves by one rename, so nobody sees half of it; the last version takes the name along.

        Raises:
            AdapterNotFoundError: no such name, version or alias.
            VersionInUseError: an alias points to this version.
        """
        reference = _parse(reference)
        name = reference.name
        if reference.alias is not None:
            self._remove_alias(name, reference.alias)
        elif reference.version is None:
            self.versions(name)
            self._discard(self._inside(name), name)
        else:
            name, version = self.resolve(reference)
            pointing = [alias for alias, target in self.aliases(name).items() if target == version]
            if pointing:
                raise VersionInUseError(str(reference), pointing, self.root)
            self._discard(self.folder(name, version), str(reference))
            self._prune(name)

    def _inside(self, *parts: str) -> Path:
        """Return a path of the store, none of whose steps is a link that could lead out of it."""
        path = self.root
        for part in parts:
            path = path / part
            with files.reading(path):
                if files.kind(path) == "symbolic link":
                    raise IntegrityError(path, "kind of file", "a file or folder", "a symbolic link")
        return path

    def _staging(self) -> Path:
        """Return a path of its own in ``tmp/``, where nothing is visible yet or any more."""
        staging = self._inside(_STAGING)
        files.make_folder(staging)
        return staging / uuid.uuid4().hex

    def _numbers(self, name: str) -> list[int]:
        folder = self.root / name / "versions"
        if files.kind(folder) != "folder":
            return []
        return [int(entry) for entry in files.entries(folder, "folder") if _VERSION_FOLDER.fullmatch(entry)]

    def _read_alias(self, name: str, alias: str) -> int:
        path = self._inside(name, "aliases", check_name(alias, "alias"))
        try:
            return read_alias(path)
        except FileNotFoundError as err:
            self.versions(name)
            known = [f"{name}@{other}" for other in self.alias_names(name)]
            raise AdapterNotFoundError(f"{name}@{alias}", known, self.root) from err

    def _remove_alias(self, name: str, alias: str) -> None:
        path = self._inside(check_name(name), "aliases") / check_name(alias, "alias")
        if files.kind(path) is None:
            self._read_alias(name, alias)  # says which aliases there are
        with files.writing(self.root, f"remove alias '{name}@{alias}'"):
            files.remove_file(path)
        files.confirm(path.parent, f"{name}@{alias}")

    def _publish(self, stage: Path, name: str) -> int:
        """Rename the finished stage onto the next free version number: the commit."""
        versions = self._inside(name, "versions")
        while True:
            try:
                for folder in (versions.parent, versions):  # on the disk before anything is committed into them
                    files.make_folder(folder)
                    files.fsync_folder(folder.parent)
                number = self._rename_onto_free(stage, versions, max(self._numbers(name), default=0) + 1)
            except FileNotFoundError:
                if files.kind(stage) is None:
                    raise
                continue  # all of the name was removed just now
            files.confirm(versions, f"{name}:{number}")
            return number

    def _rename_onto_free(self, stage: Path, versions: Path, first: int) -> int:
        for number in range(first, _LAST_VERSION + 1):
            with suppress(FileExistsError):
                files.rename_folder(stage, versions / f"{number:06d}")
                return number
        raise ConfigError("version", f"a free number up to {_LAST_VERSION}", _LAST_VERSION + 1)

    def _discard(self, folder: Path, reference: str) -> None:
        with files.writing(self.root, f"remove '{reference}'"):
            trash = self._staging()
            files.rename_folder(folder, trash)
        files.confirm(folder.parent, reference)
        files.remove_tree(trash)

    def _prune(self, name: str) -> None:
        folder = self._inside(name)
        if not self._numbers(name):
            for empty in (folder / "aliases", folder / "versions", folder):
                files.remove_empty_folder(empty)


def _parse(reference: Reference | str) -> Reference:
    """Return a reference that went through every check, even one that was put together by hand."""
    return Reference.parse(str(reference))


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except InvalidNameError:
        return False
    return True


def _make_root(root: Path) -> None:
    """Make the store's folder and those above it; one that holds other files is left alone."""
    found = files.kind(root, follow=True)
    if found not in (None, "folder"):
        raise NotAStoreError(root, f"a {found}")
    files.make_folders(root)
    # Another process may be making the same store, and hidden files (.gitkeep, .checkpoints) are not in the way.
    if any(not (entry.startswith(".") or entry in (_STAGING, STORE_FILE)) for entry in files.entries(root)):
        raise NotAStoreError(root, "a folder with other files in it")
