"""One store made equal to another: the versions and aliases that it lacks, under the same numbers, digest by digest.

Any two stores will do. What the target has already is compared by its manifest's digest and not sent again, so a sync
that broke off goes on where it was, and a second one moves nothing. Nothing of the target is changed or removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from registry.errors import ConfigError
from registry.remote.object_reader import CONNECTIONS
from registry.remote.object_store import ObjectStore
from registry.store.errors import AdapterNotFoundError, IntegrityError
from registry.store.manifest import check_backbone, check_named_manifest
from registry.store.reader import MANIFEST_FILE, StoreReader
from registry.store.store import Store


@dataclass
class Synced:
    """What a sync found and did; ``copied`` and ``aliases`` are references, ``bytes`` those of files that were sent."""

    versions: int = 0
    copied: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    bytes: int = 0


def sync_stores(source: StoreReader, target: Store, *, dry_run: bool = False) -> Synced:
    """Copy what the target lacks, verified at both ends, and return what was copied.

    Args:
        source: is read alone.
        target: for the same backbone.
        dry_run: only find out what would be copied.

    Raises:
        BackboneMismatchError: the stores belong to different backbones.
        ConfigError: a version of the target has the number of another one of the source.
        ManifestError, IntegrityError: a set is damaged, at whichever end; what was copied before is whole.
    """
    check_backbone(f"store {target.root}", target.info.backbone, source.info.backbone)
    there = dict(_digests(target))
    found = Synced()
    lacking: dict[str, list[tuple[int, str]]] = {}
    for (name, version), digest in sorted(_digests(source)):
        found.versions += 1
        own = there.get((name, version))
        if own is None:
            lacking.setdefault(name, []).append((version, digest))
        elif own != digest:
            raise _other(target, name, version, digest, own)

    def copy(name: str) -> list[tuple[str, int]]:
        return [(f"{name}:{each}", _copy(source, target, name, each, dry_run)) for each, _ in lacking[name]]

    with ThreadPoolExecutor(CONNECTIONS) as pool:  # the versions of one name one after the other, as they rise
        for sent in pool.map(copy, sorted(lacking)):
            found.copied += [reference for reference, _ in sent]
            found.bytes += sum(size for _, size in sent)
    found.aliases = list(_sync_aliases(source, target, dry_run))
    return found


def _sync_aliases(source: StoreReader, target: Store, dry_run: bool) -> Iterator[str]:
    """Set the aliases that the target lacks; one that it has stays where it points."""
    own = _aliases(target)
    for (name, alias), version in sorted(_aliases(source).items()):
        if (name, alias) not in own:
            if not dry_run:
                target.set_alias(name, alias, version)
            yield f"{name}@{alias}"


def _aliases(store: StoreReader) -> dict[tuple[str, str], int]:
    if isinstance(store, ObjectStore):
        return store.all_aliases()
    return {(name, alias): version for name in store.names() for alias, version in store.aliases(name).items()}


def _digests(store: StoreReader) -> Iterable[tuple[tuple[str, int], str]]:
    """Return the digest of every manifest of a store, checked."""
    if isinstance(store, ObjectStore):
        read: Iterable[tuple[str, int, bytes]] = store.all_manifests()
    else:
        read = (
            (name, each, store.manifest_bytes(name, each)) for name in store.names() for each in store.versions(name)
        )
    for name, version, data in read:
        path = store.folder(name, version) / MANIFEST_FILE
        yield (name, version), check_named_manifest(path, data, name).digest


def _copy(source: StoreReader, target: Store, name: str, version: int, dry_run: bool) -> int:
    """Store one version under its own number, read it back, and return the bytes of its files.

    Raises:
        ConfigError: the number is taken by another set.
        IntegrityError: what the target gives back is not what was sent.
    """
    if dry_run:
        return sum(entry.bytes for entry in source.manifest(name, version).files)
    manifest, contents = source.read_version(name, version)
    sealed = source.manifest_bytes(name, version)
    if not target.commit_as(manifest, version, sealed, contents):
        found = _found_digest(target, name, version)
        if found != manifest.digest:
            raise _other(target, name, version, manifest.digest, found)
    if target.verify_bytes(name, version).digest != manifest.digest:
        raise IntegrityError(target.folder(name, version), "digest", manifest.digest, "another one")
    return len(sealed) + sum(map(len, contents.values()))


def _found_digest(store: Store, name: str, version: int) -> str:
    with suppress(AdapterNotFoundError):
        return store.manifest(name, version).digest
    return "a number that was given and removed, or taken by a writer that was cut off"


def _other(target: Store, name: str, version: int, expected: str, found: str) -> ConfigError:
    hint = f"export one of them and import it there under another --name; {target.root} keeps its own"
    return ConfigError(f"'{name}:{version}' of both stores", f"one set ({expected[:12]})", found[:80], hint)
