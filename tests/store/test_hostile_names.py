"""Names that lead out of a store, planted links and special files: refused at every door, never followed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.adapters.adapter_set import AdapterSet
from registry.errors import ConfigError
from registry.schema import FileEntry, Reference
from registry.store.errors import IntegrityError, ManifestError, StoreError
from registry.store.store import Store
from registry.store.tensors import load_set, save_set
from tests.support.stored_sets import ADAPTER, HEAD, INFO, commit, new_manifest, tree

FILES = ("manifest.json", "adapter.safetensors", "head.safetensors")
NAMES = [
    "", ".", "..", "../mrpc", "mrpc/..", "a/b", "a\\b", "/etc/passwd", "C:\\x", "c:x", "\\\\host\\share", "~",
    "con", "nul.txt", "com1", "lpt9.x", "tmp", "store.json", "Mrpc", "mrpc ", " mrpc", "mrpc\n", "mrpc\x00", "-a",
    "a..b", "a.", ".a", "a%2f..", "é", "\u0430", "ａ", "a" * 65, "$HOME", "a;b", "\ud800",
]  # fmt: skip


@pytest.fixture
def catalog(tmp_path: Path) -> Store:
    """A store with one small set: mrpc:1, aliased best."""
    catalog = Store.create(tmp_path / "store", INFO)
    adapter_set = AdapterSet(32, 2, ADAPTER, HEAD, seed=1)
    save_set(catalog, adapter_set, new_manifest(parameters=adapter_set.stored_count))
    catalog.set_alias("mrpc", "best", 1)
    return catalog


@pytest.fixture
def version(catalog: Store) -> Path:
    """The folder of that set."""
    return catalog.folder("mrpc", 1)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_that_lead_out_are_refused(catalog: Store, name: str) -> None:
    """No door of the store lets in a name that could lead out of it, on this or another system."""
    before = tree(catalog.root.parent)
    doors: list[Callable[[], object]] = [
        lambda: new_manifest(name),
        lambda: catalog.versions(name),
        lambda: catalog.aliases(name),
        lambda: catalog.alias_names(name),
        lambda: catalog.manifest(name, 1),
        lambda: catalog.folder(name, 1),
        lambda: catalog.read_file(name, 1, FileEntry(path="head.safetensors", bytes=1, sha256="")),
        lambda: catalog.verify_bytes(name, 1),
        lambda: catalog.resolve(name),
        lambda: catalog.resolve(f"{name}:1"),
        lambda: catalog.resolve(f"mrpc@{name}"),
        lambda: catalog.resolve(Reference(name=name)),
        lambda: catalog.resolve(Reference(name="mrpc", alias=name)),
        lambda: catalog.set_alias(name, "best", 1),
        lambda: catalog.set_alias("mrpc", name, 1),
        lambda: catalog.remove(name),
        lambda: catalog.remove(Reference(name=name, version=1)),
        lambda: catalog.remove(f"mrpc@{name}"),
        lambda: load_set(catalog, name, 1, INFO),
    ]
    for door in doors:
        with pytest.raises(ConfigError) as caught:
            door()
        assert caught.value.exit_code == 2
    assert before == tree(catalog.root.parent)


@pytest.mark.parametrize("version", [0, -1, 10**6, 2**63])
def test_versions_that_cannot_be_are_refused(catalog: Store, version: int) -> None:
    """A version is a number from 1 to 999999, whoever asks."""
    with pytest.raises(ConfigError, match="expected a version from 1 to 999999"):
        catalog.manifest("mrpc", version)


def test_only_the_two_tensor_files_can_be_read(catalog: Store) -> None:
    """A file entry put together by hand cannot name another file."""
    with pytest.raises(ConfigError, match=r"expected adapter.safetensors or head.safetensors"):
        catalog.read_file("mrpc", 1, FileEntry(path="../../../store.json", bytes=1, sha256=""))


@pytest.mark.parametrize(
    "planted",
    ["mrpc", "mrpc/versions", "mrpc/versions/000001", *(f"mrpc/versions/000001/{file}" for file in FILES)],
)
def test_planted_links_are_not_followed(catalog: Store, planted: str) -> None:
    """A link at any level of a version is refused, even to the very same content."""
    path = catalog.root / planted
    moved = catalog.root.parent / "moved"
    path.rename(moved)
    path.symlink_to(moved, target_is_directory=moved.is_dir())
    before = tree(catalog.root.parent)
    with pytest.raises((IntegrityError, ManifestError), match="found a symbolic link"):
        load_set(catalog, "mrpc", 1, INFO)
    if moved.is_dir():
        assert "000001" == moved.name or [] == catalog.names()
        with pytest.raises(StoreError, match=r"symbolic link|cannot find adapter set"):
            catalog.remove("mrpc:1")
    assert before == tree(catalog.root.parent)


@pytest.mark.parametrize("planted", ["mrpc", "mrpc/versions", "mrpc/aliases", "tmp"])
def test_nothing_is_written_through_links(catalog: Store, planted: str) -> None:
    """A link in the place of a folder does not let a write out of the store."""
    path = catalog.root / planted
    outside = catalog.root.parent / "outside"
    path.rename(catalog.root.parent / "moved")
    outside.mkdir()
    path.symlink_to(outside, target_is_directory=True)
    with pytest.raises(IntegrityError, match="found a symbolic link"):
        catalog.set_alias("mrpc", "live", 1) if planted == "mrpc/aliases" else commit(catalog)
    assert {} == tree(outside)


def test_links_in_place_of_small_files(catalog: Store) -> None:
    """An alias or a store.json that is a link is refused; setting the alias again replaces the link only."""
    outside = catalog.root.parent / "outside"
    outside.write_text("1\n")
    alias = catalog.root / "mrpc" / "aliases" / "best"
    alias.unlink()
    alias.symlink_to(outside)
    with pytest.raises(StoreError, match="found a symbolic link"):
        catalog.resolve("mrpc@best")
    commit(catalog)
    catalog.set_alias("mrpc", "best", 2)
    assert ("1\n", 2) == (outside.read_text(), catalog.aliases("mrpc")["best"])
    (catalog.root / "store.json").rename(outside)
    (catalog.root / "store.json").symlink_to(outside)
    with pytest.raises(ManifestError, match=r"store\.json: kind of file: expected a regular file"):
        Store.open(catalog.root)


def test_dangling_link_is_not_written_through(catalog: Store) -> None:
    """A link to nowhere on the next version number is stepped over."""
    outside = catalog.root.parent / "outside"
    (catalog.root / "mrpc" / "versions" / "000002").symlink_to(outside)
    assert 3 == commit(catalog)
    assert not outside.exists()


@pytest.mark.parametrize("file", FILES)
def test_special_files_do_not_hang(catalog: Store, version: Path, file: str) -> None:
    """A pipe or a folder in the place of a file is refused at once."""
    (version / file).unlink()
    (version / file).mkdir()
    with pytest.raises((ManifestError, IntegrityError), match="expected a regular file, found a folder"):
        load_set(catalog, "mrpc", 1, INFO)
    if hasattr(os, "mkfifo"):
        (version / file).rmdir()
        os.mkfifo(version / file)
        with pytest.raises((ManifestError, IntegrityError), match="expected a regular file, found a special file"):
            load_set(catalog, "mrpc", 1, INFO)
