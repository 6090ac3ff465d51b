"""What the store says about itself: leftovers of dead writers, strangers, and lists of thousands of names."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from registry.errors import ConfigError
from registry.store.audit import find_strangers
from registry.store.errors import IntegrityError, ManifestError
from registry.store.listing import list_sets
from registry.store.store import Store
from tests.support.stored_sets import INFO, commit, reseal, tree


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with two names, one of them aliased."""
    store = Store.create(tmp_path / "store", INFO)
    commit(store, times=2)
    commit(store, "sst2")
    store.set_alias("mrpc", "best", 1)
    return store


def leave(store: Store, name: str, seconds: float) -> Path:
    """Leave a staged version behind, as a writer does that was killed so many seconds ago."""
    stage = store.root / "tmp" / name
    stage.mkdir()
    (stage / "adapter.safetensors").write_bytes(b"half of")
    for path in (stage / "adapter.safetensors", stage):
        os.utime(path, (time.time() - seconds,) * 2)
    return stage


def test_garbage_is_what_dead_writers_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, files and links in ``tmp`` that nobody has written to for an hour go; nothing visible does."""
    before = tree(store.root)
    outside = store.root.parent / "outside"
    outside.write_text("not ours")
    leave(store, "stage", 0)
    (store.root / "tmp" / "alias").write_text("1")
    (store.root / "tmp" / "link").symlink_to(outside)
    assert [] == store.collect_garbage()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    leave(store, "late", 100)
    assert ["alias", "link", "stage"] == store.collect_garbage(dry_run=True)
    assert (store.root / "tmp" / "alias").exists()
    assert ["alias", "link", "stage"] == store.collect_garbage()
    assert ["late"] == [path.name for path in (store.root / "tmp").iterdir()]
    assert ["late"] == store.collect_garbage(older_than=0)
    assert before == tree(store.root)
    assert "not ours" == outside.read_text()


def test_a_writer_in_the_middle_of_a_file_is_alive(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the last write to any file of a stage, not when the stage was begun."""
    stage = leave(store, "stage", 7200)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3000)
    (stage / "head.safetensors").write_bytes(b"new")
    assert [] == store.collect_garbage()


def test_gc_of_a_store_without_garbage(tmp_path: Path) -> None:
    """A store that was never written to since it was copied has no ``tmp``, and no garbage."""
    store = Store.create(tmp_path / "store", INFO)
    (store.root / "tmp").rmdir()
    assert [] == store.collect_garbage()
    with pytest.raises(ConfigError, match="cannot use older_than: expected seconds from 0, found -1"):
        store.collect_garbage(older_than=-1)


def test_gc_does_not_follow_a_planted_tmp(store: Store, tmp_path: Path) -> None:
    """A link in the place of ``tmp`` is refused, and what it leads to is left alone."""
    (store.root / "tmp").rmdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    (store.root / "tmp").symlink_to(tmp_path / "precious")
    with pytest.raises(IntegrityError, match="kind of file: expected a file or folder, found a symbolic link"):
        store.collect_garbage(older_than=0)
    assert "kept" == (tmp_path / "precious" / "file").read_text()


def test_strangers_are_named(store: Store, tmp_path: Path) -> None:
    """Everything that no command has put there is told of with its place; hidden files and a README are not."""
    assert [] == list(find_strangers(store))
    root = store.root
    commit(store, times=1)
    store.remove("mrpc:3")  # leaves the mark of a removed number
    (root / "README.md").write_text("mine")
    (root / ".gitkeep").write_text("")
    (root / "mrpc" / ".DS_Store").write_text("")
    assert [] == list(find_strangers(store))
    (root / "Upper Case").mkdir()
    (root / "linked").symlink_to(tmp_path)
    (root / "mrpc" / "notes.txt").write_text("")
    (root / "mrpc" / "aliases" / "Best").write_text("1\n")
    (root / "mrpc" / "versions" / "7").mkdir()
    (root / "mrpc" / "versions" / "000001" / "model.bin").write_text("")
    os.mkfifo(root / "sst2" / "versions" / "000009")
    expected = [
        "Upper Case",
        "linked",
        "mrpc/aliases/Best",
        "mrpc/notes.txt",
        "mrpc/versions/000001/model.bin",
        "mrpc/versions/7",
        "sst2/versions/000009",
    ]
    found = dict(find_strangers(store))
    assert expected == sorted(found)
    assert "linked: expected only names, store.json and tmp there, found a symbolic link" in str(found["linked"])


def test_list_tells_what_the_store_tells(store: Store) -> None:
    """The quick list has the names, versions, aliases and manifest fields that the careful way has."""
    listed = list(list_sets(store))
    assert store.names() == [each.name for each in listed]
    for each in listed:
        assert (store.versions(each.name), store.aliases(each.name)) == (each.versions, each.aliases)
        manifest = store.manifest(each.name, each.versions[-1])
        assert each.summary is not None
        assert (manifest.digest, manifest.parameters) == (each.summary.digest, each.summary.parameters)
        assert "after_layer" == each.summary.placement
        assert sum(entry.bytes for entry in manifest.files) == each.summary.bytes


def test_damaged_sets_do_not_hide_the_others(store: Store, tmp_path: Path) -> None:
    """A list shows what is whole and says of each damaged set what is wrong with it."""
    path = store.folder("mrpc", 2) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"parameters": 34', b'"parameters": 35'))
    commit(store, "renamed")
    reseal(store.folder("renamed", 1) / "manifest.json", lambda plain: plain.update(name="other"))
    commit(store, "aliased")
    store.set_alias("aliased", "best", 1)
    (store.root / "aliased" / "aliases" / "best").write_bytes(b"2 b0f5dd5d8bcbc2bc\n")
    commit(store, "garbled")
    (store.folder("garbled", 1) / "manifest.json").write_bytes(b'{"\xe4\xb8": 1}')
    (store.root / "linked").symlink_to(store.root / "sst2")
    listed = {each.name: each for each in list_sets(store)}
    assert ["aliased", "garbled", "mrpc", "renamed", "sst2"] == list(listed)
    assert listed["sst2"].error is None
    for name, told in (
        ("mrpc", "manifest.json: digest: expected"),
        ("renamed", "manifest.json: name: expected renamed, found 'other'"),
        ("aliased", "aliases/best: check: expected that of 'aliased@best' at 2"),
        ("garbled", "manifest.json: content: expected the fields"),
    ):
        assert listed[name].summary is None
        assert isinstance(listed[name].error, ManifestError)
        assert told in str(listed[name].error)
