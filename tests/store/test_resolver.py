"""What references mean is remembered as long as that is so, and not a moment longer."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from registry.store.errors import AdapterNotFoundError, ManifestError
from registry.store.reader import Resolver
from registry.store.store import Store
from tests.support.stored_sets import INFO, commit, new_manifest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with two versions of mrpc, and an alias of the first, of long ago."""
    store = Store.create(tmp_path / "store", INFO)
    commit(store, times=2)
    store.set_alias("mrpc", "best", 1)
    for path in (tmp_path / "store").rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return store


def version(resolver: Resolver, reference: str) -> int:
    """Return which version a reference means."""
    found, manifest = resolver.find(reference)
    assert (found.name, found.version) == (manifest.name, found.version)
    return found.version


def test_what_has_not_changed_is_remembered(store: Store) -> None:
    """The second question reads no file: it is answered though the manifest cannot be read any more."""
    resolver = Resolver(store)
    assert resolver.recall("mrpc") is None
    expected = resolver.find("mrpc")
    assert expected == resolver.recall("mrpc")
    (store.folder("mrpc", 2) / "manifest.json").write_text("{}")
    assert expected == resolver.find("mrpc")
    with pytest.raises(ManifestError):
        Resolver(store).find("mrpc")


def test_every_change_is_seen_at_once(store: Store) -> None:
    """A moved alias, a version more, one removed, and a name removed and made again, however quick they follow."""
    resolver = Resolver(store)
    for turn in range(20):
        assert 1 + turn % 2 == version(resolver, "mrpc@best")
        store.set_alias("mrpc", "best", 2 - turn % 2)
    for turn in range(5):
        assert 2 + turn == version(resolver, "mrpc")
        commit(store)
    store.remove("mrpc:7")
    assert 6 == version(resolver, "mrpc")
    with pytest.raises(AdapterNotFoundError):
        resolver.find("mrpc:7")
    before = resolver.find("mrpc:1")
    store.remove("mrpc")
    for reference in ("mrpc", "mrpc:1", "mrpc@best"):
        with pytest.raises(AdapterNotFoundError):
            resolver.find(reference)
    store.commit(new_manifest(task="another"), {"adapter.safetensors": b"1", "head.safetensors": b"2"})
    found, manifest = resolver.find("mrpc:1")
    assert found != before[0]
    assert "another" == manifest.task


def test_a_stamp_of_this_moment_is_not_trusted(store: Store) -> None:
    """Where a second change may hide behind the first one's time stamp, the disk is asked again."""
    resolver = Resolver(store)
    store.set_alias("mrpc", "best", 2)
    resolver.find("mrpc@best")
    assert resolver.recall("mrpc@best") is None
    time.sleep(0.1)
    resolver.find("mrpc@best")
    assert resolver.recall("mrpc@best") is not None


def test_a_change_that_no_stamp_tells_is_seen_soon(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stamps tell nothing, a change is seen after some seconds; what has not changed is not read again."""
    monkeypatch.setattr(Resolver, "STAMPED_SECONDS", 0.05)
    resolver = Resolver(store)
    for reference in ("mrpc", "mrpc@best", "mrpc:1"):
        resolver.find(reference)
    commit(store)
    store.set_alias("mrpc", "best", 2)
    for path in (store.root / "mrpc").iterdir():
        for each in (path, *path.iterdir()):
            os.utime(each, (1_000_000_000, 1_000_000_000))
    time.sleep(0.06)
    assert resolver.recall("mrpc") is None
    assert resolver.recall("mrpc@best") is None
    assert resolver.recall("mrpc:1") is not None
    assert [3, 2] == [version(resolver, reference) for reference in ("mrpc", "mrpc@best")]
