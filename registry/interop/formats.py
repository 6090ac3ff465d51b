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
from registry.interop.checkpoint import checkpoint_files, checkpoint_obstacle
from registry.model.backbone import Backbone
from registry.schema import ExportFormat, Manifest, Reference
from registry.store import files
from registry.store.errors import StoreWriteError, UnheldError
from registry.store.registry import Registry
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
    name, version = registry.store.resolve(reference)
    manifest, adapter_set = load_set(registry.store, name, version, registry.backbone.info)
    stored = StoredSet(manifest, adapter_set, registry.backbone)
    obstacle = FOLDER_FORMATS[format].obstacle(stored)
    if obstacle:
        others = [other for other, each in FOLDER_FORMATS.items() if other != format and not each.obstacle(stored)]
        raise UnheldError(f"{name}:{version}", format, obstacle, ["archive", *others])
    write_files(path, FOLDER_FORMATS[format].contents(stored), f"export '{name}:{version}'", overwrite=overwrite)
    return path


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
