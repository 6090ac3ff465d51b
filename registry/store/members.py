"""The members of fused sets in a store: which sets they are, whether they are still those, and who needs whom.

A member is named by its version, and held to the SHA-256 of its adapter's file and to its shape; its head has no part
in a fused set. Knows manifests, nothing of torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import msgspec

from registry.config import AdapterConfig, FusedMember, FusionConfig
from registry.errors import ConfigError
from registry.schema import Manifest, Reference
from registry.store.errors import AdapterNotFoundError, MemberError, StoreError
from registry.store.manifest import ADAPTER_FILE
from registry.store.reader import StoreReader


def choose_members(store: StoreReader, references: Sequence[str]) -> FusionConfig:
    """Return the fusion of some stored sets, each by its exact version and digest.

    Raises:
        AdapterNotFoundError, ManifestError: a set that is not there, or is damaged.
        ConfigError: one that is no set of bottlenecks, or sets that cannot be fused; see ``FusionConfig``.
    """
    members = []
    for reference in references:
        name, version = store.resolve(reference)
        manifest = store.manifest(name, version)
        if not isinstance(manifest.adapter, AdapterConfig):
            found = "a head alone" if manifest.adapter is None else manifest.adapter.name
            raise ConfigError(f"member '{reference}'", "a set of bottlenecks", found)
        digest = _digest(manifest)
        members.append(FusedMember(reference=f"{name}:{version}", digest=digest, adapter=manifest.adapter))
    return FusionConfig(members=tuple(members))


def find_member(store: StoreReader, what: str, member: FusedMember) -> tuple[str, int]:
    """Return the name and version of a member, after checking that it is still the one that was fused.

    Raises:
        MemberError: it is not there, or another set is.
        ManifestError: it is damaged.
    """
    try:
        name, version = store.resolve(member.reference)
        manifest = store.manifest(name, version)
    except (AdapterNotFoundError, ConfigError) as err:
        raise MemberError(what, member.reference, member.digest, "none") from err
    check_member(what, member, manifest)
    return name, version


def check_member(what: str, member: FusedMember, manifest: Manifest) -> None:
    """Raise MemberError unless a manifest is that of the set that was fused."""
    if _digest(manifest) != member.digest:
        raise MemberError(what, member.reference, member.digest, _digest(manifest))
    if manifest.adapter != member.adapter:
        raise MemberError(what, member.reference, str(member.adapter), str(manifest.adapter))


def relocate_members(store: StoreReader, what: str, manifest: Manifest) -> Manifest:
    """Return the manifest of a fused set from elsewhere with its members' versions in this store; others as they are.

    Raises:
        MemberError: a name has no version with the member's digest.
    """
    if not isinstance(manifest.adapter, FusionConfig):
        return manifest
    members = []
    for member in manifest.adapter.members:
        name = member.reference.partition(":")[0]
        versions = store.versions(name) if name in store.names() else []
        same = [f"{name}:{each}" for each in versions if _digest(store.manifest(name, each)) == member.digest]
        if not same:
            raise MemberError(what, name, member.digest, f"none of its {len(versions)} versions")
        reference = member.reference if member.reference in same else same[-1]
        members.append(msgspec.structs.replace(member, reference=reference))
    return msgspec.structs.replace(manifest, adapter=FusionConfig(members=tuple(members)))


def find_fused(store: StoreReader, member: Reference) -> Iterator[str]:
    """Yield the fused sets that need a version, or any version of a bare name, but for those of that name itself.

    One that is damaged cannot be used, and is passed over.
    """
    for name in store.names():
        if name == member.name and member.version is None:
            continue
        with suppress(AdapterNotFoundError):  # removed meanwhile
            for version in store.versions(name):
                if needs_member(store, name, version, member):
                    yield f"{name}:{version}"


def needs_member(store: StoreReader, name: str, version: int, member: Reference) -> bool:
    """Return whether a version is a fused set that needs a version, or any version of a bare name."""
    found = _needed(store, name, version)
    return any(each.name == member.name and member.version in (None, each.version) for each in found)


def _needed(store: StoreReader, name: str, version: int) -> list[Reference]:
    """Return the members of a version, none where it is no fused set or cannot be read."""
    with suppress(StoreError, ConfigError, FileNotFoundError):
        if b'"fusion"' in store.manifest_bytes(name, version):
            adapter = store.manifest(name, version).adapter
            members = adapter.members if isinstance(adapter, FusionConfig) else ()
            return [Reference.parse(member.reference) for member in members]
    return []


def _digest(manifest: Manifest) -> str:
    return next(entry.sha256 for entry in manifest.files if entry.path == ADAPTER_FILE)
