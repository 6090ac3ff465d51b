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
def store(tmp_path: Path) -> Store:
    """A store with one small set: mrpc:1, aliased best."""
    store = Store.create(tmp_path / "store", INFO)
    adapter_set = AdapterSet(32, 2, ADAPTER, HEAD, seed=1)
    save_set(store, adapter_set, new_manifest(parameters=adapter_set.stored_count))
    store.set_alias("mrpc", "best", 1)
    return store


@pytest.fixture
def version(store: Store) -> Path:
    """The folder of that set."""
    return store.folder("mrpc", 1)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_that_lead_out_are_refused(store: Store, name: str) -> None:
    """No door of the store lets in a name that could lead out of it, on this or another system."""
    before = tree(store.root.parent)
    doors: list[Callable[[], object]] = [
        lambda: new_manifest(name),
        lambda: store.versions(name),
        lambda: store.aliases(name),
        lambda: store.alias_names(name),
        lambda: store.manifest(name, 1),
        lambda: store.folder(name, 1),
        lambda: store.read_file(name, 1, FileEntry(path="head.safetensors", bytes=1, sha256="")),
        lambda: store.verify_bytes(name, 1),
        lambda: store.resolve(name),
        lambda: store.resolve(f"{name}:1"),
        lambda: store.resolve(f"mrpc@{name}"),
        lambda: store.resolve(Reference(name=name)),
        lambda: store.resolve(Reference(name="mrpc", alias=name)),
        lambda: store.set_alias(name, "best", 1),
        lambda: store.set_alias("mrpc", name, 1),
        lambda: store.remove(name),
        lambda: store.remove(Reference(name=name, version=1)),
        lambda: store.remove(f"mrpc@{name}"),
        lambda: load_set(store, name, 1, INFO),
    ]
    for door in doors:
        with pytest.raises(ConfigError) as caught:
            door()
        assert caught.value.exit_code == 2
    assert before == tree(store.root.parent)


@pytest.mark.parametrize("version", [0, -1, 10**6, 2**63])
def test_versions_that_cannot_be_are_refused(store: Store, version: int) -> None:
    """A version is a number from 1 to 999999, whoever asks."""
    with pytest.raises(ConfigError, match="expected a version from 1 to 999999"):
        store.manifest("mrpc", version)


def test_only_the_two_tensor_files_can_be_read(store: Store) -> None:
    """A file entry put together by hand cannot name another file."""
    with pytest.raises(ConfigError, match=r"expected adapter.safetensors or head.safetensors"):
        store.read_file("mrpc", 1, FileEntry(path="../../../store.json", bytes=1, sha256=""))


@pytest.mark.parametrize(
    "planted",
    ["mrpc", "mrpc/versions", "mrpc/versions/000001", *(f"mrpc/versions/000001/{file}" for file in FILES)],
)
def test_planted_links_are_not_followed(store: Store, planted: str) -> None:
    """A link at any level of a version is refused, even to the very same content."""
    path = store.root / planted
    moved = store.root.parent / "moved"
    path.rename(moved)
    path.symlink_to(moved, target_is_directory=moved.is_dir())
    before = tree(store.root.parent)
    with pytest.raises((IntegrityError, ManifestError), match="found a symbolic link"):
        load_set(store, "mrpc", 1, INFO)
    if moved.is_dir():
        assert "000001" == moved.name or [] == store.names()
        with pytest.raises(StoreError, match=r"symbolic link|cannot find adapter set"):
            store.remove("mrpc:1")
    assert before == tree(store.root.parent)


@pytest.mark.parametrize("planted", ["mrpc", "mrpc/versions", "mrpc/aliases", "tmp"])
def test_nothing_is_written_through_links(store: Store, planted: str) -> None:
    """A link in the place of a folder does not let a write out of the store."""
    path = store.root / planted
    outside = store.root.parent / "outside"
    path.rename(store.root.parent / "moved")
    outside.mkdir()
    path.symlink_to(outside, target_is_directory=True)
    with pytest.raises(IntegrityError, match="found a symbolic link"):
        store.set_alias("mrpc", "live", 1) if planted == "mrpc/aliases" else commit(store)
    assert {} == tree(outside)


def test_links_in_place_of_small_files(store: Store) -> None:
    """An alias or a store.json that is a link is refused; setting the alias again replaces the link only."""
    outside = store.root.parent / "outside"
    outside.write_text("1\n")
    alias = store.root / "mrpc" / "aliases" / "best"
    alias.unlink()
    alias.symlink_to(outside)
    with pytest.raises(StoreError, match="found a symbolic link"):
        store.resolve("mrpc@best")
    commit(store)
    store.set_alias("mrpc", "best", 2)
    assert ("1\n", 2) == (outside.read_text(), store.aliases("mrpc")["best"])
    (store.root / "store.json").rename(outside)
    (store.root / "store.json").symlink_to(outside)
    with pytest.raises(ManifestError, match=r"store\.json: kind of file: expected a regular file"):
        Store.open(store.root)


def test_dangling_link_is_not_written_through(store: Store) -> None:
    """A link to nowhere on the next version number is stepped over."""
    outside = store.root.parent / "outside"
    (store.root / "mrpc" / "versions" / "000002").symlink_to(outside)
    assert 3 == commit(store)
    assert not outside.exists()


@pytest.mark.parametrize("file", FILES)
def test_special_files_do_not_hang(store: Store, version: Path, file: str) -> None:
    """A pipe or a folder in the place of a file is refused at once."""
    (version / file).unlink()
    (version / file).mkdir()
    with pytest.raises((ManifestError, IntegrityError), match="expected a regular file, found a folder"):
        load_set(store, "mrpc", 1, INFO)
    if hasattr(os, "mkfifo"):
        (version / file).rmdir()
        os.mkfifo(version / file)
        with pytest.raises((ManifestError, IntegrityError), match="expected a regular file, found a special file"):
            load_set(store, "mrpc", 1, INFO)
