"""The reading half of a store on object storage: names, versions, aliases, manifests, the bytes of a version.

Knows which key is what. Listings are asked of the server at every question; contents come from the cache, if there.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, cast

from registry.remote.cache import Cache
from registry.remote.objects import NotThereError, ObjectPath, Objects, Stored
from registry.schema import FileEntry, Reference
from registry.store.errors import AdapterNotFoundError
from registry.store.manifest import (
    ADAPTER_FILE,
    ALIAS_LIMIT,
    FILE_LIMIT,
    HEAD_FILE,
    MANIFEST_LIMIT,
    StoreInfo,
    check_alias,
    check_tensor_file,
)
from registry.store.reader import (
    MANIFEST_FILE,
    STORE_FILE,
    Overview,
    StoredVersion,
    StoreReader,
    is_name,
    parse_again,
)
from registry.validation import check_name

NAMES = "names"
CONNECTIONS = 16  # requests at the same time
REMOVED = b""  # the content of a manifest or an alias that was removed
KEY = re.compile(
    rf"{NAMES}/(?P<name>[^/]+)/(?:versions/(?P<number>(?!000000)[0-9]{{6}})/"
    rf"(?P<file>{re.escape(MANIFEST_FILE)}|{re.escape(ADAPTER_FILE)}|{re.escape(HEAD_FILE)})|aliases/(?P<alias>[^/]+))"
)

_View = TypeVar("_View", bound="ObjectReader")


class ObjectReader(StoreReader):
    """What a store on object storage holds.

    Args:
        root, info: as for a store on a disk.
        objects: where its files are.
        cache: of what was read.
    """

    def __init__(self, root: Path, info: StoreInfo, objects: Objects, cache: Cache) -> None:
        super().__init__(root, info)
        self._objects, self._cache = objects, cache

    @property
    def address(self) -> str:
        """Return what opens this store again."""
        return str(self.root)

    def uncached(self: _View) -> _View:
        """Return this store without its cache, so that every byte is asked of the server."""
        view = copy.copy(self)
        view._cache = Cache(self._cache.folder, limit=0)  # holds nothing
        return view

    def versions(self, name: str) -> list[int]:
        """Return the rising version numbers of a name."""
        found = self._versions(check_name(name))
        if not found:
            raise AdapterNotFoundError(name, self.names(), self.root)
        return sorted(found)

    def names(self) -> list[str]:
        """Return the sorted names that have a version."""
        return sorted({name for name, number, _ in self._committed()})

    def alias_names(self, name: str) -> list[str]:
        """Return the sorted aliases of a name."""
        prefix = f"{NAMES}/{check_name(name)}/aliases"
        found = (each.key.rpartition("/")[2] for each in self._objects.list(prefix) if each.size)
        return [alias for alias in found if is_name(alias)]

    def identify(self, reference: str | Reference) -> StoredVersion:
        """Return which stored version a reference means now."""
        name, version = self.resolve(reference)
        return StoredVersion(name, version, (int(self.manifest(name, version).digest[:15], 16), 0))

    def resolve(self, reference: Reference | str) -> tuple[str, int]:
        """Return the name and the version that a reference means."""
        reference = parse_again(reference)
        version = reference.version
        if reference.alias is not None:
            version = self._read_alias(reference.name, reference.alias)
        if version is not None:
            try:
                self.manifest_bytes(reference.name, version)
            except FileNotFoundError as err:
                known = [f"{reference.name}:{each}" for each in self.versions(reference.name)]
                raise AdapterNotFoundError(f"{reference.name}:{version}", known, self.root) from err
            return reference.name, version
        return reference.name, self.versions(reference.name)[-1]

    def manifest_bytes(self, name: str, version: int) -> bytes:
        """Return the unchecked bytes of a version's manifest."""
        data = self._get(self.folder(name, version) / MANIFEST_FILE, MANIFEST_LIMIT)[0]
        if data == REMOVED:
            raise FileNotFoundError(f"{name}:{version}")
        return data

    def watched(self, reference: Reference) -> list[str]:
        """Return nothing: what a reference meant is asked again when it is too old."""
        return []

    def overview(self) -> Iterator[Overview]:
        """Return all names with their newest manifests, which are fetched side by side, or taken from the cache."""
        versions: dict[str, dict[int, Stored]] = {}
        aliases: dict[str, dict[str, Stored]] = {}
        for each in self._objects.list(NAMES):
            match = KEY.fullmatch(each.key)
            if match and each.size and is_name(match["name"]):
                if match["file"] == MANIFEST_FILE:
                    versions.setdefault(match["name"], {})[int(match["number"])] = each
                elif match["alias"] and is_name(match["alias"]):
                    aliases.setdefault(match["name"], {})[match["alias"]] = each
        newest = {name: own[max(own)] for name, own in versions.items()}
        wanted = [*newest.values(), *(each for name in newest for each in aliases.get(name, {}).values())]
        read = self._read_many(wanted)
        for name in sorted(newest):
            if (manifest := read.get(newest[name].key)) is not None:
                own = {alias: read.get(each.key) for alias, each in sorted(aliases.get(name, {}).items())}
                told = {alias: data for alias, data in own.items() if data}
                yield Overview(name, sorted(versions[name]), told, self.root / newest[name].key, manifest)

    def all_manifests(self) -> Iterator[tuple[str, int, bytes]]:
        """Yield the manifest of every version, unchecked."""
        found = list(_manifests(self._objects.list(NAMES)))
        read = self._read_many([each for _, _, each in found])
        for name, number, each in found:
            if each.key in read:
                yield name, number, read[each.key]

    def all_aliases(self) -> dict[tuple[str, str], int]:
        """Return where every alias points.

        Raises:
            ManifestError: one is damaged.
        """
        found = {}
        for each in self._objects.list(NAMES):
            match = KEY.fullmatch(each.key)
            if match and match["alias"] and each.size and is_name(match["name"]) and is_name(match["alias"]):
                found[each.key] = each, match["name"], match["alias"]
        read = self._read_many([each for each, _, _ in found.values()])
        return {
            (name, alias): check_alias(self.root / key, read[key], name, alias)
            for key, (_, name, alias) in found.items()
            if read.get(key)
        }

    def strangers(self) -> Iterator[str]:
        """Yield the keys that are no part of the store."""
        for each in self._objects.list(""):
            match = KEY.fullmatch(each.key)
            good = match is not None and is_name(match["name"]) and is_name(match["alias"] or match["name"])
            if each.key != STORE_FILE and not good:
                yield each.key

    def folder(self, name: str, version: int) -> Path:
        """Return where a version is, for errors and as a key."""
        parse_again(f"{name}:{version}")
        return self.root / NAMES / name / "versions" / f"{version:06d}"

    def _tensor_bytes(self, path: Path, entry: FileEntry) -> bytes:
        data = self._cache.get(entry.sha256)
        if data is None or len(data) != entry.bytes:
            data = self._get(path, FILE_LIMIT)[0]
            check_tensor_file(path, entry, data)
            self._cache.put(entry.sha256, data)
        return data

    def _read_alias(self, name: str, alias: str) -> int:
        path = self.root / NAMES / check_name(name) / "aliases" / check_name(alias, "alias")
        try:
            data = self._get(path, ALIAS_LIMIT)[0]
        except FileNotFoundError:
            data = REMOVED
        if data == REMOVED:
            self.versions(name)
            known = [f"{name}@{other}" for other in self.alias_names(name)]
            raise AdapterNotFoundError(f"{name}@{alias}", known, self.root)
        return check_alias(path, data, name, alias)

    def _versions(self, name: str) -> set[int]:
        found = self._objects.list(f"{NAMES}/{name}/versions")
        return {number for own, number, _ in _manifests(found) if own == name}

    def _committed(self) -> Iterator[tuple[str, int, Stored]]:
        return _manifests(self._objects.list(NAMES))

    def _get(self, path: Path, limit: int) -> tuple[bytes, str]:
        key = "/".join(path.parts[len(self.root.parts) :])
        try:
            return self._objects.get(key, limit)
        except NotThereError as err:
            raise FileNotFoundError(str(path)) from err

    def _read_many(self, wanted: Iterable[Stored]) -> dict[str, bytes]:
        """Return objects by key, from the cache where their tag is known; those that are gone are left out."""
        kept = self._cache.recall(self.address)
        found = {
            each.key: kept[each.key][1] for each in wanted if each.tag and kept.get(each.key, ("",))[0] == each.tag
        }
        missing = [each for each in wanted if each.key not in found]

        def read(each: Stored) -> tuple[bytes, str] | None:
            try:
                return self._objects.get(each.key, MANIFEST_LIMIT)
            except NotThereError:
                return None

        if missing:
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                for each, got in zip(missing, pool.map(read, missing), strict=True):
                    if got is not None:
                        found[each.key], kept[each.key] = got[0], (got[1], got[0])
            self._cache.remember(self.address, kept)
        return found


def _manifests(found: Iterable[Stored]) -> Iterator[tuple[str, int, Stored]]:
    for each in found:
        match = KEY.fullmatch(each.key)
        if match and match["file"] == MANIFEST_FILE and each.size and is_name(match["name"]):
            yield match["name"], int(match["number"]), each


def object_root(address: str) -> Path:
    """Return the root of a store at an address; it joins and is told like a path, and is never opened."""
    return cast(Path, ObjectPath(address.rstrip("/")))
