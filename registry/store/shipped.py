"""The trained sets that come with the package, and how a store of them is made anywhere."""

from __future__ import annotations

from pathlib import Path

from registry.schema import Reference
from registry.store.reader import StoreReader
from registry.store.store import create_store

_INSTALLED = Path(__file__).with_name("shipped")
_CHECKOUT = Path(__file__).parents[2] / "adapters_store"


def open_shipped() -> StoreReader:
    """Return the store of the package: part of the wheel, or of the checkout.

    Raises:
        NotAStoreError: neither is there.
    """
    return StoreReader.open(_INSTALLED if _INSTALLED.is_dir() else _CHECKOUT)


def copy_shipped(root: str | Path) -> list[Reference]:
    """Store the newest version of each shipped set in the store at ``root``, made where there is none.

    A set whose tensors are there already under its name is not stored again.

    Returns:
        What there is of them now, by name.

    Raises:
        BackboneMismatchError: the store that is there is for another backbone.
        IntegrityError, ManifestError: a shipped file is damaged.
        StoreWriteError: the folder cannot be written; sets stored before that are whole.
    """
    shipped = open_shipped()
    store = create_store(root, shipped.info.backbone)
    found = []
    for name in shipped.names():
        manifest, contents = shipped.read_version(*shipped.resolve(name))
        own = store.versions(name) if name in store.names() else []
        same = [version for version in own if store.manifest(name, version).files == manifest.files]
        version = same[-1] if same else store.commit(manifest, contents)
        found.append(Reference(name=name, version=version))
    return found
