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
from registry.interop.checkpoint import checkpoint_files, checkpoint_obstacle
from registry.model.backbone import Backbone
from registry.schema import ExportFormat, Manifest, Reference
from registry.store import files
from registry.store.errors import StoreWriteError, UnheldError
from registry.store.manifest import seal
from registry.store.reader import MANIFEST_FILE
from registry.store.registry import Registry
from registry.store.store import Store
from registry.store.tensors import load_set


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
