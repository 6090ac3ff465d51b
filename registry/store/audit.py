"""What lies in a store and is no part of it: links, special files, entries that no command has put there.

Reading passes over such things or refuses them one by one; this tells of them all. Knows the layout, no file's content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from registry.errors import RegistryError
from registry.store import files
from registry.store.errors import StoreError, StoreReadError, StrangerError
from registry.store.manifest import TENSOR_FILES
from registry.store.reader import MANIFEST_FILE, STAGING, StoreReader, is_name
from registry.store.store import is_version_entry

Rule = Callable[[str, "files.EntryKind | None"], bool]


def find_strangers(view: StoreReader) -> Iterator[tuple[str, StoreError]]:
    """Yield every entry that does not belong where it is, as its place in the store and what is wrong with it.

    Hidden files, and files of the user's own beside ``store.json``, are left alone.
    """
    objects = view.strangers()
    if objects is not None:
        for key in objects:
            yield key, StrangerError(view.root / key, "store.json, versions and aliases", "an object")
        return
    yield from _misplaced(view.root, view.root, "names, store.json and tmp", _belongs_in_root)
    for name in _folders(view.root):
        if not is_name(name):
            continue
        home = view.root / name
        yield from _misplaced(view.root, home, "versions and aliases", _belongs_in_name)
        yield from _misplaced(view.root, home / "aliases", "alias files", _belongs_in_aliases)
        yield from _misplaced(view.root, home / "versions", "version folders", is_version_entry)
        for version in _folders(home / "versions"):
            expected = f"{MANIFEST_FILE}, {', '.join(TENSOR_FILES)}"
            yield from _misplaced(view.root, home / "versions" / version, expected, _belongs_in_version)


def _belongs_in_root(entry: str, kind: files.EntryKind | None) -> bool:
    if entry == STAGING or kind == "folder":
        return kind == "folder" and (entry == STAGING or is_name(entry))
    return kind == "file"


def _belongs_in_name(entry: str, kind: files.EntryKind | None) -> bool:
    return kind == "folder" and entry in ("versions", "aliases")


def _belongs_in_aliases(entry: str, kind: files.EntryKind | None) -> bool:
    return kind == "file" and is_name(entry)


def _belongs_in_version(entry: str, kind: files.EntryKind | None) -> bool:
    return kind == "file" and entry in (MANIFEST_FILE, *TENSOR_FILES)


def _misplaced(root: Path, folder: Path, expected: str, belongs: Rule) -> Iterator[tuple[str, StoreError]]:
    try:
        with files.reading(folder):
            if files.kind(folder) != "folder":
                return  # told of one level up
            found = [(entry, files.kind(folder / entry)) for entry in files.entries(folder)]
    except StoreReadError as err:
        yield str(folder.relative_to(root)), err
        return
    for entry, kind in found:
        hidden = entry.startswith(".") and kind in ("file", "folder")
        if kind is not None and not hidden and not belongs(entry, kind):
            place = folder / entry
            yield str(place.relative_to(root)), StrangerError(place, expected, f"a {kind}")


def _folders(folder: Path) -> list[str]:
    try:
        with files.reading(folder):
            return files.entries(folder, "folder") if files.kind(folder) == "folder" else []
    except StoreReadError:
        return []  # told of where its entries are looked at


class Problem(NamedTuple):
    """Something wrong in a store: what it is about, and the error that using it would raise."""

    reference: str
    error: RegistryError
