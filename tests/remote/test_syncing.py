"""Two stores made equal: exactly, again without a byte, on after a cut, and never over another set."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.errors import ConfigError
from registry.remote.syncing import sync_stores
from registry.store.listing import list_sets
from registry.store.store import Store, create_store, open_store
from tests.support.command_line import succeed
from tests.support.object_server import FaultyNetwork
from tests.support.stored_sets import CONTENTS, INFO, commit, new_manifest, tree


@pytest.fixture
def source(tmp_path: Path) -> Store:
    """A store on disk with three versions of two names, one number missing, and an alias."""
    store = Store.create(tmp_path / "source", INFO)
    commit(store, "mrpc", times=3)
    commit(store, "films")
    store.remove("mrpc:2")
    store.set_alias("mrpc", "best", 1)
    return store


def test_there_and_back_is_equal(source: Store, address: str, network: FaultyNetwork, tmp_path: Path) -> None:
    """A store that goes to object storage and back is the same, file by file; a second sync sends no byte."""
    target = create_store(address, INFO)
    first = sync_stores(source, target)
    assert (3, ["films:1", "mrpc:1", "mrpc:3"], ["mrpc@best"]) == (first.versions, first.copied, first.aliases)
    back = Store.create(tmp_path / "back", INFO)
    sync_stores(open_store(address), back)
    expected = {path: data for path, data in tree(source.root).items() if not path.endswith(".removed")}
    assert {**expected, "store.json": tree(back.root)["store.json"]} == tree(back.root)
    network.passed.clear()
    assert (0, [], []) == ((again := sync_stores(source, target)).bytes, again.copied, again.aliases)
    assert not [path for method, path, _ in network.passed if method == "PUT" or "safetensors" in path]


def test_a_sync_that_was_cut_off_goes_on(source: Store, address: str) -> None:
    """What a broken sync had put is taken for its own, and the rest is copied."""
    target = create_store(address, INFO)
    contents = source.read_version("films", 1)[1]
    target._put_own("names/films/versions/000001/head.safetensors", contents["head.safetensors"])  # type: ignore[attr-defined]
    assert 3 == len(sync_stores(source, target, dry_run=True).copied)
    assert [] == target.names()
    assert 3 == len(sync_stores(source, target).copied)
    assert [each[:3] for each in list_sets(source)] == [each[:3] for each in list_sets(target)]


def test_another_set_of_that_number_is_refused(source: Store, address: str) -> None:
    """A version of the target that is another set is neither replaced nor passed over, and nothing is copied."""
    target = create_store(address, INFO)
    target.commit(new_manifest("mrpc", parameters=99), CONTENTS)
    with pytest.raises(ConfigError, match="'mrpc:1' of both stores: expected one set"):
        sync_stores(source, target)
    assert ["mrpc"] == target.names()


def test_the_command_tells_its_figures(source: Store, address: str) -> None:
    """``sync`` makes the target, copies, and ends with one line; ``list`` and ``show`` then read the address."""
    done = succeed("sync", str(source.root), address)
    assert "3 of 3 versions copied" == done.out.split(": ")[1].split(" (")[0]
    nothing = {"versions": 3, "copied": [], "aliases": [], "bytes": 0}
    assert [nothing] == succeed("sync", source.root, address, "--json").rows
    assert ["films", "mrpc"] == [each["name"] for each in succeed("--store", address, "list", "--json").rows]
    assert 3 == succeed("--store", address, "show", "mrpc", "--json").rows[0]["version"]
