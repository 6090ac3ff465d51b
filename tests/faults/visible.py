"""What can be seen in a store and beside it, as facts that can be compared.

Contents are bytes that tell which save they are from, so that a byte of another save is noticed. Torch-free.
"""

from __future__ import annotations

import random
from pathlib import Path

from registry.store.archive import read_archive
from registry.store.audit import find_strangers
from registry.store.errors import NotAStoreError
from registry.store.manifest import ADAPTER_FILE, HEAD_FILE
from registry.store.store import Store

STORE = "home/store"  # the store's place in a folder
OUT = "out"  # the place of what is exported

# ("store",), ("version", name, number, serial), ("alias", name, alias, number), ("export", file, serial)
Fact = tuple["str | int", ...]
Facts = frozenset[Fact]


def contents(serial: int) -> dict[str, bytes]:
    """Return the files of a version: bytes that no other serial has."""
    dice = random.Random(serial)
    return {
        file: f"{file} of {serial}:".encode() + dice.randbytes(dice.randrange(1, 700))
        for file in (ADAPTER_FILE, HEAD_FILE)
    }


def look(folder: Path) -> Facts:
    """Return everything that can be seen in a store and beside it, read through every door and verified."""
    found: set[Fact] = set()
    for path in (folder / OUT).glob("*.adapter"):
        manifest, parts = read_archive(path)
        found.add(("export", path.name, serial_of(manifest.parameters, parts)))
    try:
        store = Store.open(folder / STORE)
    except NotAStoreError:
        return frozenset(found)
    found.add(("store",))
    for name in store.names():
        for number in store.versions(name):
            manifest, parts = store.read_version(name, number)
            found.add(("version", name, number, serial_of(manifest.parameters, parts)))
        for alias, number in store.aliases(name).items():
            if store.resolve(f"{name}@{alias}") != (name, number):
                raise ValueError(f"{name}@{alias} does not resolve to {number}")
            found.add(("alias", name, alias, number))
    strangers = [place for place, _ in find_strangers(store)]
    if strangers:
        raise ValueError(f"entries that belong nowhere: {strangers[:5]}")
    return frozenset(found)


def serial_of(serial: int, parts: dict[str, bytes]) -> int:
    """Return ``serial`` if these are its contents."""
    if parts != contents(serial):
        raise ValueError(f"bytes that were never saved in a version that says {serial}")
    return serial


def difference(expected: Facts, found: Facts) -> str:
    """Return what one state has and another has not, both ways."""
    return f"missing {sorted(expected - found, key=str)}, unexpected {sorted(found - expected, key=str)}"
