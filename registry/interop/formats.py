"""The formats that sets come in from and go out to: an entry each, beside the archive of one's own.

An entry of ``FOLDER_FORMATS`` says what of a set its format cannot hold, and makes the files of the folder; one of
``READERS`` makes a set of a folder. What is the same for all is here: refusing a set with the formats that can hold it,
the rename that makes a folder visible, and the checks of a set that is to be stored.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch

from registry.adapters.adapter_set import AdapterSet
from registry.config import HeadConfig
from registry.errors import ConfigError, RegistryError
from registry.interop.adapterhub import adapterhub_contents, adapterhub_obstacle, read_adapterhub
from registry.interop.checkpoint import checkpoint_files, checkpoint_obstacle
from registry.interop.folders import ForeignSet, StoredSet, find_format, public_name, sub_folders
from registry.interop.heads import generic_labels, is_held_by_states
from registry.interop.hub import HubClient, opened, pulled
from registry.interop.peft import peft_contents, peft_obstacle, read_peft
from registry.interop.switches import shown, switch_errors
from registry.model.backbone import Backbone
from registry.model.encoder import inner_sizes
from registry.schema import BackboneInfo, ExportFormat, Imported, ImportFormat, Manifest, Reference, SetInfo
from registry.store import files
from registry.store.archive import archive_errors
from registry.store.errors import ForeignSwitchError, StoreWriteError, UnheldError
from registry.store.manifest import seal
from registry.store.reader import MANIFEST_FILE
from registry.store.registry import Registry
from registry.store.store import Store
from registry.store.tensors import check_tensors, import_set, load_set
from registry.validation import check_name


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


def _headless(stored: StoredSet) -> str:
    imported = stored.manifest.imported
    return "it was imported without a head" if imported is not None and not imported.head else ""


FOLDER_FORMATS: Mapping[ExportFormat, Format] = MappingProxyType(
    {
        "adapterhub": Format("AdapterHub's adapters", adapterhub_obstacle, adapterhub_contents),
        "peft": Format("Hugging Face's peft", peft_obstacle, peft_contents),
        "transformers": Format(
            "transformers itself, the set merged into its weights",
            lambda stored: _headless(stored) or checkpoint_obstacle(stored.adapter_set, stored.backbone.encoder.config),
            lambda stored: checkpoint_files(stored.adapter_set, stored.backbone, stored.manifest.max_length),
        ),
    }
)


READERS: Mapping[str, Callable[..., ForeignSet]] = MappingProxyType({"adapterhub": read_adapterhub, "peft": read_peft})


class ImportOutcome(NamedTuple):
    """What became of one of several folders: a stored version, or why there is none."""

    path: Path
    reference: Reference | None
    error: RegistryError | None


def import_each(
    registry: Registry, folder: Path, format: ImportFormat = "auto", **choices: Any
) -> Iterator[ImportOutcome]:
    """Import every saved set in a folder, under its folder's name; a refused one does not hold up the others.

    Args:
        registry: to store them in.
        folder: of the folders.
        format: whose they are.
        choices: as for ``import_from``.
    """
    for path in sub_folders(folder):
        try:
            name = None if path.is_file() else path.name.lower()
            yield ImportOutcome(path, import_from(registry, path, format, name, **choices), None)
        except RegistryError as err:
            yield ImportOutcome(path, None, err)


def import_from(
    registry: Registry,
    path: Path,
    format: ImportFormat = "auto",
    name: str | None = None,
    *,
    labels: Sequence[str] = (),
    allow_pickle: bool = False,
    backbone_unproven: bool = False,
) -> Reference:
    """Store the set in an archive or in a folder of another library; see ``Registry.import_from``."""
    with opened(path) as place:
        return _import(registry, place, format, name, tuple(labels), allow_pickle, backbone_unproven)


def _import(
    registry: Registry,
    path: Path,
    format: ImportFormat,
    name: str | None,
    labels: tuple[str, ...],
    allow_pickle: bool,
    backbone_unproven: bool,
) -> Reference:
    found = find_format(path)
    if format not in ("auto", found):
        raise ForeignSwitchError(path, "--format", format, f"what looks like {found}")
    if found == "archive":
        return registry.import_set(path, name)
    if found == "folders":
        raise ForeignSwitchError(path, "content", "one saved set", "a folder of them, for import_each")
    backbone = registry.backbone
    info = backbone.info if found == "adapterhub" else backbone
    foreign = READERS[found](path, info, labels, pickles=allow_pickle)
    if not is_held_by_states(backbone.info.family, foreign.adapter):
        expected = "no queries and keys, as DeBERTa's positions go through the same products"
        raise ForeignSwitchError(path, "targets", expected, backbone.info.family)
    imported = Imported(
        format=found,
        library=foreign.library,
        backbone=foreign.backbone,
        fit=_claimed_fit(path, foreign.backbone, backbone.info, backbone_unproven),
        head=foreign.head is not None,
        not_kept=foreign.not_kept,
    )
    chosen = name or (foreign.name or Path(os.path.realpath(path)).name).lower()
    made = _build(path, foreign, backbone, labels)
    return registry.save(check_name(chosen), made, SetInfo(max_length=_longest(backbone), imported=imported))


def pull_set(
    target: Registry | Store,
    repository: str,
    name: str | None = None,
    *,
    offline: bool = False,
    client: HubClient | None = None,
    **choices: Any,
) -> Reference:
    """Store the set in a repository of the Hub, and return the reference to the version.

    Args:
        target: a registry; for a set of one's own its store is enough.
        repository: ``hub:ORG/NAME`` or ``hub:ORG/NAME@REVISION``.
        name: of the set; its own, or the repository's, when None.
        offline: only from the cache; ``HF_HUB_OFFLINE`` means the same.
        client: another Hub than the real one.
        choices: as for ``Registry.import_from``.

    Raises:
        HubError, HubNotFoundError, HubUnavailableError: see ``pulled``.
        ForeignSwitchError, ArchiveError, BackboneMismatchError: and whatever ``Registry.import_from`` raises.
    """
    with pulled(repository, offline=offline, client=client) as folder:
        if isinstance(target, Store):
            return import_set(target, folder, name)
        return import_from(target, folder, name=name, **choices)


def _claimed_fit(path: Path, named: str, backbone: BackboneInfo, unproven: bool) -> Literal["named", "claimed"]:
    """Return on whose word a folder fits the store's backbone.

    Raises:
        ForeignSwitchError: its files name another one, and nobody says that it is the same.
    """
    known = {each.rstrip("/").split("/")[-1].lower() for each in (backbone.source, public_name(backbone))}
    if named and named.rstrip("/").split("/")[-1].lower() in known:
        return "named"
    if not unproven:
        expected = f"the store's backbone '{public_name(backbone)}', or --backbone-unproven if it is the same"
        raise ForeignSwitchError(path, "the backbone's name", expected, shown(named))
    return "claimed"


def _build(path: Path, foreign: ForeignSet, backbone: Backbone, labels: tuple[str, ...]) -> AdapterSet:
    """Return the set of a folder, every name and shape of its tensors checked; a missing head is at its start."""
    info = backbone.info
    head = foreign.head or HeadConfig(label_names=labels or generic_labels(2), pooling="cls")
    inner = inner_sizes(backbone.encoder.config)
    with switch_errors(path):
        backbone.check_pooling(head)
        backbone.encoder.check_method(foreign.adapter)
        with torch.device("meta"):
            made = AdapterSet(info.hidden_size, info.layers, foreign.adapter, head, inner_sizes=inner)
    for part, state in ((made.adapter, foreign.state), (made.head, foreign.head_state)):
        if part is made.head and foreign.head is None:
            continue
        with archive_errors():
            check_tensors(path, part.state_dict(), state)
        part.load_state_dict({key: tensor.contiguous() for key, tensor in state.items()}, assign=True)
    if foreign.head is None:
        made.head = AdapterSet(info.hidden_size, info.layers, None, head).head
    return made.eval()


def _longest(backbone: Backbone) -> int:
    """Return how many tokens a row of an imported set may have: as many as the backbone takes, up to 512."""
    return min(512, backbone.encoder.max_length)


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
