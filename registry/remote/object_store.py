"""A store on object storage: what ``Store`` promises on a disk, by conditional puts.

    store.json
    names/mrpc/versions/000001/{head.safetensors, adapter.safetensors, manifest.json}
    names/mrpc/aliases/best

Every object is put only where there is none, so no request that comes late or twice can change what is there. The head
is put first and takes the number; the manifest is put last and is the commit. What is removed leaves an empty manifest
or alias in its place, in one step; a number is never given again. An answer that is lost is settled by reading back.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from registry.remote.cache import Cache, open_cache
from registry.remote.object_reader import KEY, NAMES, REMOVED, ObjectReader, object_root
from registry.remote.objects import LostAnswerError, NotThereError, Objects, Stored, TakenError, open_objects
from registry.schema import BackboneInfo, Manifest, Reference
from registry.store.errors import (
    MemberInUseError,
    NotAStoreError,
    StoreAccessError,
    StoreWriteError,
    UnsettledError,
    VersionInUseError,
)
from registry.store.manifest import (
    ADAPTER_FILE,
    FILE_LIMIT,
    HEAD_FILE,
    MANIFEST_LIMIT,
    StoreInfo,
    check_backbone,
    check_store_info,
    format_alias,
    seal,
    seal_store_info,
)
from registry.store.members import needs_member
from registry.store.reader import MANIFEST_FILE, STORE_FILE, parse_again
from registry.store.store import Store
from registry.validation import check_name, require

_TRIES = 12  # of a put whose answers are lost
_TURNS = 1_000  # of a change of what others change at the same time


class ObjectStore(ObjectReader, Store):
    """A store whose files are objects; safe to use from any number of threads, processes and machines."""

    def __init__(self, root: Path, info: StoreInfo, objects: Objects, cache: Cache) -> None:
        super().__init__(root, info, objects, cache)
        self._highest: dict[str, int] = {}  # the numbers that are known to be taken; they never become free again
        self._is_proven = False  # that the server keeps to conditions

    def commit(self, manifest: Manifest, contents: Mapping[str, bytes]) -> int:
        """Store the files of a new version, all or nothing, and return its number.

        Raises:
            ConfigError: something that could not be read back.
            StoreAccessError: nothing was changed.
            UnsettledError: the version is there or not; no answer came.
        """
        sealed = seal(manifest, contents)
        while (number := self._take_number(manifest.name, contents[HEAD_FILE])) and not self._fill(
            manifest.name, number, sealed, contents
        ):
            pass
        return number

    def commit_as(self, manifest: Manifest, number: int, sealed: bytes, contents: Mapping[str, bytes]) -> bool:
        """Store a version of another store under the number it has there; False where that is taken here."""
        name = manifest.name
        self._prove()
        key = f"{self._folder_key(name, number)}/{HEAD_FILE}"
        return self._put_own(key, contents[HEAD_FILE]) and self._fill(name, number, sealed, contents)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version, in one step."""
        check_name(alias, "alias")
        self.resolve(f"{name}:{version}")
        nonce = uuid.uuid4().hex[:8].encode()  # so that no two puts have one tag, and a late one changes nothing
        data = format_alias(name, alias, version)[:-1] + b" " + nonce + b"\n"
        self._replace(f"{NAMES}/{name}/aliases/{alias}", data, f"{name}@{alias}")

    def remove(self, reference: Reference | str) -> None:
        """Remove a version, an alias, or all of a bare name: its aliases, then version by version."""
        reference = parse_again(reference)
        name = reference.name
        if reference.alias is not None:
            key = f"{NAMES}/{name}/aliases/{reference.alias}"
            if not self._has(key):
                self._read_alias(name, reference.alias)
            self._replace(key, REMOVED, str(reference))
            return
        version = None if reference.version is None else self.resolve(reference)[1]
        if version is not None:
            pointing = [alias for alias, target in self.aliases(name).items() if target == version]
            if pointing:
                raise VersionInUseError(str(reference), pointing, self.root)
        leaving = self.versions(name) if version is None else [version]
        self._check_unneeded(reference)
        for alias in self.alias_names(name) if version is None else ():
            self._replace(f"{NAMES}/{name}/aliases/{alias}", REMOVED, f"{name}@{alias}")
        for each in leaving:
            folder = self._folder_key(name, each)
            self._replace(f"{folder}/{MANIFEST_FILE}", REMOVED, f"{name}:{each}")
            self._objects.delete([f"{folder}/{HEAD_FILE}", f"{folder}/{ADAPTER_FILE}"])

    def collect_garbage(self, *, older_than: float = 3600.0, dry_run: bool = False) -> list[str]:
        """Remove what writers that died left: numbers that were taken and never committed, files of removed versions.

        An empty manifest takes the place of the one that did not come, so a writer that was only slow cannot commit.
        """
        require(older_than >= 0, "older_than", "seconds from 0", older_than)
        now = datetime.now(timezone.utc).timestamp()
        found: dict[str, dict[str, Stored]] = {}
        for each in self._objects.list(NAMES):
            match = KEY.fullmatch(each.key)
            if match and match["file"]:
                found.setdefault(each.key.rpartition("/")[0], {})[match["file"]] = each
        stale = []
        for folder, own in sorted(found.items()):
            manifest, changed = own.get(MANIFEST_FILE), max(each.changed for each in own.values())
            if (manifest is None or (not manifest.size and len(own) > 1)) and now - changed >= older_than:
                stale.append(folder)
        return stale if dry_run else [folder for folder in stale if self._sweep_number(folder)]

    def _check_unneeded(self, reference: Reference) -> None:
        """As on a disk, but for reading all manifests side by side first."""
        fused = [
            f"{name}:{version}"
            for name, version, data in self.all_manifests()
            if b'"fusion"' in data
            and not (name == reference.name and reference.version is None)
            and needs_member(self, name, version, reference)
        ]
        if fused:
            raise MemberInUseError(str(reference), fused, self.root)

    def _sweep_number(self, folder: str) -> bool:
        if not self._put_own(f"{folder}/{MANIFEST_FILE}", REMOVED):
            return False  # its writer was alive after all
        self._objects.delete([f"{folder}/{HEAD_FILE}", f"{folder}/{ADAPTER_FILE}"])
        return True

    def _folder_key(self, name: str, number: int) -> str:
        parse_again(f"{name}:{number}")
        return f"{NAMES}/{name}/versions/{number:06d}"

    def _take_number(self, name: str, head: bytes) -> int:
        """Return a number that nobody had, taken by putting the head; one whose answer was lost may stay unused."""
        self._prove()
        check_name(name)
        while True:
            known = self._highest.get(name, 0)
            after = f"{self._folder_key(name, known)}/~" if known else ""
            keys = (each.key for each in self._objects.list(f"{NAMES}/{name}/versions", after))
            numbers = [int(match["number"]) for key in keys if (match := KEY.fullmatch(key)) and match["number"]]
            number = max([known, *numbers]) + 1
            key = f"{self._folder_key(name, number)}/{HEAD_FILE}"
            self._highest[name] = number
            for _ in range(_TRIES):
                try:
                    self._objects.put(key, head)
                    return number
                except TakenError:
                    break
                except LostAnswerError as err:
                    lost = err
            else:
                raise StoreWriteError(self.root, f"save '{name}'", f"no answer ({lost})")

    def _fill(self, name: str, number: int, sealed: bytes, contents: Mapping[str, bytes]) -> bool:
        """Put the rest of a version whose number is ours; False where a garbage collector took it from us."""
        folder = self._folder_key(name, number)
        return self._put_own(f"{folder}/{ADAPTER_FILE}", contents[ADAPTER_FILE]) and self._put_own(
            f"{folder}/{MANIFEST_FILE}", sealed
        )

    def _put_own(self, key: str, data: bytes) -> bool:
        """Put an object where there is none, or where this very one is; False where another is.

        Raises:
            UnsettledError: nobody answered.
        """
        for _ in range(_TRIES):
            try:
                self._objects.put(key, data)
                return True
            except TakenError:
                return self._read_back(key) == data  # an answer was lost, and the put was repeated
            except LostAnswerError:
                if self._read_back(key) == data:
                    return True
        raise UnsettledError(key, self.root)

    def _read_back(self, key: str) -> bytes | None:
        try:
            return self._objects.get(key, FILE_LIMIT)[0]
        except NotThereError:
            return None
        except StoreAccessError as err:
            raise UnsettledError(key, self.root) from err

    def _replace(self, key: str, data: bytes, reference: str) -> None:
        """Give an object new content where it is still the one that was looked at, again until it is."""
        self._prove()
        for _ in range(_TURNS):
            try:
                found, tag = self._objects.get(key, MANIFEST_LIMIT)
                if found == data:
                    return
            except NotThereError:
                tag = None
            try:
                self._objects.put(key, data, tag)
                return
            except (TakenError, LostAnswerError):
                continue  # what is there now says which it was
        raise UnsettledError(reference, self.root)

    def _has(self, key: str) -> bool:
        try:
            return self._objects.get(key, MANIFEST_LIMIT)[0] != REMOVED
        except NotThereError:
            return False

    def _prove(self) -> None:
        """Find out once, before the first change, whether the server keeps to the conditions of a put.

        Raises:
            StoreAccessError: it does not.
        """
        if self._is_proven:
            return
        data = self._objects.get(STORE_FILE, MANIFEST_LIMIT)[0]
        for tag in (None, '"00000000000000000000000000000000"'):
            try:
                self._objects.put(STORE_FILE, data, tag)  # what is there already, should it be put after all
            except TakenError:
                continue
            except LostAnswerError:
                return  # asked again at the next change
            expected = "a server with conditional puts (If-None-Match, If-Match)"
            raise StoreAccessError("write", self.address, expected, "one that passes over them", "use another server")
        self._is_proven = True


def open_object_store(address: str, cache: str | None = None) -> ObjectStore:
    """Return the store at an address.

    Raises:
        ConfigError: no address of a kind we know.
        NotAStoreError: there is no ``store.json`` under it.
        StoreAccessError: it cannot be asked.
    """
    objects, root = open_objects(address), object_root(address)
    try:
        data = objects.get(STORE_FILE, MANIFEST_LIMIT)[0]
    except NotThereError as err:
        raise NotAStoreError(root, "none there") from err
    return ObjectStore(root, check_store_info(root / STORE_FILE, data), objects, open_cache(cache))


def create_object_store(address: str, backbone: BackboneInfo, cache: str | None = None) -> ObjectStore:
    """Make a store for a backbone under an address, or open the one that is there for it.

    Raises:
        BackboneMismatchError: the store that is there belongs to another backbone or tokenizer.
        StoreAccessError: it cannot be asked, or the server knows no conditional puts.
    """
    info = StoreInfo(backbone=backbone)
    objects = open_objects(address)
    store = ObjectStore(object_root(address), info, objects, open_cache(cache))
    store._put_own(STORE_FILE, seal_store_info(info))
    store = open_object_store(address, cache)
    check_backbone(f"store {store.root}", store.info.backbone, backbone)
    store._prove()
    return store
