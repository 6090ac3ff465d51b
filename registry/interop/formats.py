"""The formats that a stored set is written in: one entry of ``FOLDER_FORMATS`` each, beside the archive of one's own.

An entry says what of a set its format cannot hold, and makes the files of the folder; what is the same for all is here:
reading the set, refusing it with the formats that can hold it, and one rename that makes the folder visible.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from registry.adapters.adapter_set import AdapterSet
from registry.errors import ConfigError
from registry.interop.card import model_card
from registry.interop.checkpoint import checkpoint_files, checkpoint_obstacle
from registry.interop.hub import README, HubClient, HubReference, check_uploadable, pulled, upload
from registry.model.backbone import Backbone
from registry.schema import ExportFormat, Manifest, Reference
from registry.store import files
from registry.store.errors import StoreWriteError, UnheldError
from registry.store.manifest import seal
from registry.store.reader import MANIFEST_FILE
from registry.store.registry import Registry
from registry.store.store import Store
from registry.store.tensors import import_set, load_set
from registry.version import __version__


class StoredSet(NamedTuple):
    """A version of a store as a format sees it: what is known of it, its tensors, and the backbone it is for."""

    manifest: Manifest
    adapter_set: AdapterSet
    backbone: Backbone


class Format(NamedTuple):
    """A folder that another library reads.

    Attributes:
        about: which library, in a few words.
        obstacle: returns what of a set the format cannot hold, an empty text where it holds all of it.
        contents: returns the files of the folder by name; asked only where there is no obstacle.
    """

    about: str
    obstacle: Callable[[StoredSet], str]
    contents: Callable[[StoredSet], Mapping[str, bytes]]


FOLDER_FORMATS: Mapping[ExportFormat, Format] = MappingProxyType(
    {
        "transformers": Format(
            "a plain checkpoint, the set merged into its weights",
            lambda stored: checkpoint_obstacle(stored.adapter_set, stored.backbone.encoder.config),
            lambda stored: checkpoint_files(stored.adapter_set, stored.backbone, stored.manifest.max_length),
        ),
    }
)


def export_to(
    registry: Registry, reference: str | Reference, path: Path, format: ExportFormat, *, overwrite: bool = False
) -> Path:
    """Write a stored set as an archive, or as the folder of another library, and return its path.

    Raises:
        UnheldError: the format cannot hold the set.
        AdapterNotFoundError, ManifestError, IntegrityError: as for ``load_set``.
        StoreWriteError: something is there already, or it cannot be written; nothing was changed.
    """
    if format == "archive":
        return registry.export_set(reference, path, overwrite=overwrite)
    exact, _, contents = folder_files(registry, reference, format)
    write_files(path, contents, f"export '{exact}'", overwrite=overwrite)
    return path


def folder_files(
    source: Registry | Store, reference: str | Reference, format: ExportFormat
) -> tuple[Reference, Manifest, Mapping[str, bytes]]:
    """Return which version a reference means, what is known of it, and its files in a format by name.

    Args:
        source: a registry; for the files of an archive its store is enough.
        reference: of the set.
        format: an archive's three files, or those of another library.

    Raises:
        UnheldError: the format cannot hold the set.
        ConfigError: a format that needs the backbone, which a store alone does not have.
        AdapterNotFoundError, ManifestError, IntegrityError: as for ``load_set``.
    """
    store = source if isinstance(source, Store) else source.store
    name, version = store.resolve(reference)
    exact = Reference(name=name, version=version)
    if format == "archive":
        manifest, own = store.read_version(name, version)
        return exact, manifest, {MANIFEST_FILE: seal(manifest, own), **own}
    if isinstance(source, Store):
        raise ConfigError("store", f"a Registry, as the format {format} needs the backbone", "a store alone")
    manifest, adapter_set = load_set(store, name, version, source.backbone.info)
    stored = StoredSet(manifest, adapter_set, source.backbone)
    obstacle = FOLDER_FORMATS[format].obstacle(stored)
    if obstacle:
        others = [other for other, each in FOLDER_FORMATS.items() if other != format and not each.obstacle(stored)]
        raise UnheldError(str(exact), format, obstacle, ["archive", *others])
    return exact, manifest, FOLDER_FORMATS[format].contents(stored)


def write_files(folder: Path, contents: Mapping[str, bytes], attempted: str, *, overwrite: bool) -> None:
    """Write a folder that is visible whole or not at all.

    Args:
        folder: a new or empty one; with ``overwrite`` also one with files of the same names and no others.
        contents: the files by name.
        attempted: what is told of where it fails.
        overwrite: whether those files may be replaced.

    Raises:
        StoreWriteError: there is something already, or it cannot be written.
    """
    with files.writing(folder, attempted):
        files.make_folders(folder.absolute().parent)
        stage, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.{end}") for end in ("tmp", "old"))
        try:
            files.make_folder(stage)
            for name, data in contents.items():
                files.write_new(stage / name, data)
            files.fsync_folder(stage)
            there = files.entries(folder) if files.kind(folder) == "folder" else []
            if there and not overwrite:
                raise StoreWriteError(folder, attempted, "files are there already (--force replaces them)")
            if set(there) - set(contents):
                other = min(set(there) - set(contents))
                raise StoreWriteError(folder, attempted, f"'{other}' is there, which is no file of this format")
            if there:
                files.rename(folder, old)
            try:
                files.rename_folder(stage, folder)
            except OSError:
                if there:
                    files.rename(old, folder)
                raise
            files.fsync_folder(folder.absolute().parent)
            files.discard(old)
        finally:
            files.discard(stage)


def push_set(
    source: Registry | Store,
    reference: str | Reference,
    repository: str,
    *,
    license: str,
    format: ExportFormat = "archive",
    private: bool = False,
    force: bool = False,
    dry_run: Path | None = None,
    offline: bool = False,
    client: HubClient | None = None,
) -> str:
    """Put a stored set and its model card into a repository of the Hub, in one commit, and return its address.

    Args:
        source: a registry; for the format ``archive`` its store is enough.
        reference: of the set.
        repository: ``hub:ORG/NAME``.
        license: the Hub's short name of one, ``apache-2.0`` say.
        format: the three files of an archive, or what another library reads.
        private: whether only its owners see it.
        force: take a repository that is there already; its files of the kinds that are uploaded become these.
        dry_run: a folder for the files in the place of the Hub, which is not asked then; its path is returned.
        offline: never ask the network; ``HF_HUB_OFFLINE`` means the same.
        client: another Hub than the real one.

    Raises:
        ConfigError: a repository or a license that is none.
        UnheldError: the format cannot hold the set.
        HubError: no token, no right to write there, or the name is taken.
        HubUnavailableError: the Hub cannot be reached.
        StoreWriteError: the folder of a dry run has files already, or cannot be written.
        AdapterNotFoundError, IntegrityError: and whatever reading the set raises.
    """
    target = HubReference.parse(repository)
    exact, manifest, contents = folder_files(source, reference, format)
    contents = {README: model_card(manifest, target.repository, license, format).encode(), **contents}
    check_uploadable(contents)
    if dry_run is not None:
        write_files(dry_run, contents, f"write what '{exact}' would push", overwrite=force)
        return str(dry_run)
    message = f"{exact} as {format}, by adapter-registry {__version__}"
    return upload(repository, contents, message, private=private, force=force, offline=offline, client=client)


def pull_set(
    store: Store,
    reference: str,
    name: str | None = None,
    *,
    offline: bool = False,
    client: HubClient | None = None,
) -> Reference:
    """Store the set in a repository of the Hub as the next version of its name, or ``name``.

    Args:
        store: of the set's backbone.
        reference: ``hub:ORG/NAME`` or ``hub:ORG/NAME@REVISION``.
        name: in the place of its own.
        offline: only from the cache; ``HF_HUB_OFFLINE`` means the same.
        client: another Hub than the real one.

    Raises:
        HubError, HubNotFoundError, HubUnavailableError: see ``pulled``.
        ArchiveError, BackboneMismatchError: and whatever ``import_set`` raises.
    """
    with pulled(reference, offline=offline, client=client) as folder:
        return import_set(store, folder, name)
