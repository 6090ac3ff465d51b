"""What is in a store at a glance: one line for each name, quick enough for ten thousand of them.

Reads of each newest manifest what a list shows, after checking its digest, and leaves the strict reading of all its
fields to those who use the set. One damaged set is told of and does not hide the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from registry.schema import FileEntry
from registry.store import files
from registry.store.errors import ManifestError, StoreError
from registry.store.manifest import MANIFEST_LIMIT, check_alias, check_digest, read_alias, read_limited
from registry.store.reader import MANIFEST_FILE, VERSION_FOLDER, Overview, StoreReader, is_name
from registry.validation import NOT_JSON


class _Shaped(msgspec.Struct, gc=False):
    placement: str | None = None
    method: str = "bottleneck"


class _Labelled(msgspec.Struct, gc=False):
    label_names: tuple[str, ...]


class _Source(msgspec.Struct, gc=False):
    source: str
    sample: bool
    train_rows: int


class Summary(msgspec.Struct, gc=False):
    """The fields of a manifest that a list shows, under the manifest's own names."""

    name: str
    created: str
    adapter: _Shaped | None
    head: _Labelled
    parameters: int
    files: tuple[FileEntry, ...]
    digest: str
    task: str | None = None
    main_metric: str | None = None
    scores: dict[str, float] = {}
    data: _Source | None = None
    split: str | None = None

    @property
    def placement(self) -> str:
        """Return where its bottlenecks are, or the name of another method."""
        return (self.adapter.placement or self.adapter.method) if self.adapter else "head only"

    @property
    def bytes(self) -> int:
        """Return the size of its tensor files."""
        return sum(entry.bytes for entry in self.files)


class ListedSet(NamedTuple):
    """One name: its rising versions, where its aliases point, and its newest manifest or what is wrong with it."""

    name: str
    versions: list[int]
    aliases: dict[str, int]
    summary: Summary | None
    error: StoreError | None


_DECODER = msgspec.json.Decoder(Summary)


def list_sets(view: StoreReader) -> Iterator[ListedSet]:
    """Yield every name of a store, sorted; what is no adapter set is passed over, as ``StoreReader.names`` does.

    Raises:
        StoreReadError: the store's folder cannot be read.
    """
    found = view.overview()
    if found is not None:
        yield from map(_listed, found)
        return
    root = str(view.root)
    with files.reading(view.root):
        names = files.entries(root, "folder")
    for name in names:
        if not is_name(name):
            continue
        home = f"{root}/{name}"
        numbers: list[int] = []
        try:
            with files.reading(home):
                inside = files.entries(home, "folder")
                if "versions" in inside:
                    entries = files.entries(f"{home}/versions", "folder")
                    numbers = [int(entry) for entry in entries if VERSION_FOLDER.fullmatch(entry)]
                if not numbers:
                    continue
            aliases = _read_aliases(home, name) if "aliases" in inside else {}
            yield ListedSet(name, numbers, aliases, _read_summary(home, name, numbers[-1]), None)
        except FileNotFoundError:
            continue  # removed while we looked
        except StoreError as err:
            yield ListedSet(name, numbers, {}, None, err)


def _read_aliases(home: str, name: str) -> dict[str, int]:
    with files.reading(home):
        found = files.entries(f"{home}/aliases", "file")
    return {alias: read_alias(f"{home}/aliases/{alias}", name, alias) for alias in found if is_name(alias)}


def _read_summary(home: str, name: str, version: int) -> Summary:
    path = f"{home}/versions/{version:06d}/{MANIFEST_FILE}"
    return _summary(path, read_limited(path, MANIFEST_LIMIT), name)


def _listed(found: Overview) -> ListedSet:
    try:
        aliases = {alias: check_alias(found.path, data, found.name, alias) for alias, data in found.aliases.items()}
        summary = _summary(str(found.path), found.manifest, found.name)
    except StoreError as err:
        return ListedSet(found.name, found.versions, {}, None, err)
    return ListedSet(found.name, found.versions, aliases, summary, None)


def _summary(path: str, data: bytes, name: str) -> Summary:
    try:
        summary = _DECODER.decode(data)
    except NOT_JSON as err:
        raise ManifestError(path, "content", "the fields of its format", str(err)) from err
    check_digest(path, data, summary.digest)
    if summary.name != name:
        raise ManifestError(path, "name", name, repr(summary.name)[:200])
    return summary
