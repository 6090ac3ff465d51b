"""A store on object storage keeps the promises of one on a disk: the same sentences, asked of both."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from registry.config import AdapterConfig
from registry.errors import BackboneMismatchError, ConfigError
from registry.model.backbone import Backbone
from registry.remote.cache import Cache
from registry.remote.objects import open_objects
from registry.schema import SetInfo
from registry.store import files
from registry.store.audit import find_strangers
from registry.store.errors import (
    AdapterNotFoundError,
    IntegrityError,
    ManifestError,
    MemberInUseError,
    NotAStoreError,
    StoreAccessError,
    VersionInUseError,
)
from registry.store.listing import list_sets
from registry.store.manifest import ADAPTER_FILE, HEAD_FILE
from registry.store.members import choose_members
from registry.store.reader import Resolver
from registry.store.registry import Registry
from registry.store.store import Store, create_store, open_store
from tests.faults.visible import contents, serial_of
from tests.support.object_server import FaultyNetwork
from tests.support.served_sets import save_kind
from tests.support.stored_sets import CONTENTS, HEAD, INFO, commit, new_manifest, run_python
from tests.support.toy_task import randomise

Make = Callable[[], Store]


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, address: str) -> str | Path:
    """Where a store may be: a folder, or an address."""
    return tmp_path / "store" if request.param == "folder" else address


@pytest.fixture
def store(place: str | Path) -> Store:
    """An empty store of either kind."""
    return create_store(place, INFO)


def test_a_version_is_given_back_exactly(store: Store) -> None:
    """What was saved is read again byte for byte, under rising numbers, by whoever opens the store."""
    assert 3 == commit(store, times=3)
    again = open_store(store.address)
    assert (["mrpc"], [1, 2, 3]) == (again.names(), again.versions("mrpc"))
    assert CONTENTS == again.read_version("mrpc", 2)[1]
    assert [("mrpc", [1, 2, 3], {})] == [(each.name, each.versions, each.aliases) for each in list_sets(again)]


def test_an_alias_moves_and_leaves(store: Store) -> None:
    """An alias points where it was set last; removed, it is as if it had never been."""
    commit(store, times=2)
    for version in (1, 2, 1):
        store.set_alias("mrpc", "best", version)
        assert ("mrpc", version) == store.resolve("mrpc@best")
    assert [{"best": 1}] == [each.aliases for each in list_sets(store)]
    store.remove("mrpc@best")
    assert {} == store.aliases("mrpc")
    with pytest.raises(AdapterNotFoundError, match="cannot find adapter set 'mrpc@best'"):
        store.resolve("mrpc@best")


def test_a_removed_number_is_not_given_again(store: Store) -> None:
    """A version that is removed is gone for everybody, and the next one has a number that nobody had."""
    commit(store, times=2)
    store.remove("mrpc:2")
    assert [1] == open_store(store.address).versions("mrpc")
    with pytest.raises(AdapterNotFoundError, match="'mrpc:2'"):
        store.read_version("mrpc", 2)
    assert 3 == commit(store)


def test_a_version_in_use_stays(store: Store) -> None:
    """A version that an alias points to cannot be removed."""
    commit(store)
    store.set_alias("mrpc", "best", 1)
    with pytest.raises(VersionInUseError, match="found best"):
        store.remove("mrpc:1")
    assert [1] == store.versions("mrpc")


def test_a_name_leaves_whole(store: Store) -> None:
    """Removing a bare name takes its aliases and versions, and nothing of other names."""
    commit(store, times=2)
    commit(store, "other")
    store.set_alias("mrpc", "best", 1)
    store.remove("mrpc")
    assert ["other"] == store.names() == [each.name for each in list_sets(store)]
    with pytest.raises(AdapterNotFoundError, match="it has other"):
        store.versions("mrpc")
    assert [] == list(find_strangers(store))


def test_a_store_is_of_one_backbone(store: Store) -> None:
    """Making a store again opens it; for another backbone it is refused."""
    commit(store)
    assert ["mrpc"] == create_store(store.address, INFO).names()
    with pytest.raises(BackboneMismatchError, match="made for backbone"):
        create_store(store.address, msgspec.structs.replace(INFO, source="other", fingerprint="c" * 64))


def test_no_store_is_told(place: str | Path) -> None:
    """Where no store is, a line says so and names the command that makes one."""
    with pytest.raises(NotAStoreError, match="make one with 'adapter-registry init"):
        open_store(place)


def test_writers_lose_nothing(store: Store) -> None:
    """Whoever saves into one name at the same time gets a number of his own, and each finds his own bytes there."""
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda each: store.commit(new_manifest(parameters=each), contents(each)), range(1, 17)))
    assert 16 == len(set(numbers))
    for serial, number in enumerate(numbers, start=1):
        manifest, parts = store.read_version("mrpc", number)
        assert serial == serial_of(manifest.parameters, parts)


@pytest.mark.parametrize("file", [ADAPTER_FILE, HEAD_FILE, "manifest.json"])
def test_a_changed_object_is_refused(address: str, file: str) -> None:
    """An object whose bytes are not those that were put is refused, and named; it is no part of a list either."""
    store = create_store(address, INFO)
    commit(store)
    key = f"names/mrpc/versions/000001/{file}"
    objects = open_objects(address)
    data, tag = objects.get(key, 10_000)
    objects.put(key, data[:-2] + b"??", tag)
    with pytest.raises((IntegrityError, ManifestError), match=f"{address}/{key}"):
        open_store(address).read_version("mrpc", 1)


def test_strangers_are_told(address: str) -> None:
    """An object that no command has put there is told by its key."""
    store = create_store(address, INFO)
    open_objects(address).put("names/mrpc/thesis.txt", b"mine")
    assert ["names/mrpc/thesis.txt"] == [key for key, _ in find_strangers(store)]


def test_garbage_is_what_a_dead_writer_left(address: str) -> None:
    """A number that was taken and never committed is collected; its writer, if only slow, takes another one."""
    store = create_store(address, INFO)
    objects = open_objects(address)
    objects.put("names/mrpc/versions/000001/head.safetensors", b"half")
    assert [] == store.names()
    assert [] == store.collect_garbage()
    assert ["names/mrpc/versions/000001"] == store.collect_garbage(older_than=0, dry_run=True)
    assert ["names/mrpc/versions/000001"] == store.collect_garbage(older_than=0)
    assert [] == store.collect_garbage(older_than=0)
    assert 2 == commit(store)


def test_second_load_asks_for_no_file(address: str, network: FaultyNetwork) -> None:
    """What was read once is taken from the cache, and one that was damaged there is fetched again."""
    store = create_store(address, INFO)
    commit(store)
    store.read_version("mrpc", 1)
    network.passed.clear()
    assert CONTENTS == open_store(address).read_version("mrpc", 1)[1]
    assert not [path for _, path, _ in network.passed if "safetensors" in path]
    cache = store._cache  # type: ignore[attr-defined]
    for path in cache.folder.glob("sha256/*/*"):
        path.write_bytes(b"damaged")
    assert CONTENTS == open_store(address).read_version("mrpc", 1)[1]
    assert 2 == len([path for _, path, _ in network.passed if "safetensors" in path])


def test_second_list_asks_for_no_manifest(address: str, network: FaultyNetwork) -> None:
    """A list fetches the manifests whose tags it does not know, and no other."""
    store = create_store(address, INFO)
    for name in ("a1", "b1"):
        commit(store, name)
    assert 2 == len(list(list_sets(store)))
    commit(store, "c1")
    network.passed.clear()
    assert ["a1", "b1", "c1"] == [each.name for each in list_sets(open_store(address))]
    assert ["c1"] == [path.split("/")[4] for _, path, _ in network.passed if path.endswith("manifest.json")]


def test_a_registry_works_over_it(address: str, tiny_backbone: Backbone, tmp_path: Path) -> None:
    """Saving, loading, resolving, exporting, importing and verifying are the same in Python at an address."""
    registry = Registry.create(address, tiny_backbone)
    save_kind(registry, "films", 0, seed=0)
    on_disk = Registry.create(tmp_path / "store", tiny_backbone)
    save_kind(on_disk, "films", 0, seed=0)
    expected, loaded = on_disk.load("films").state_dict(), Registry(address, tiny_backbone).load("films").state_dict()
    assert expected.keys() == loaded.keys()
    assert all(tensor.equal(loaded[key]) for key, tensor in expected.items())
    path = registry.export_set("films", tmp_path / "films.adapter")
    assert "copied:1" == str(registry.import_set(path, "copied"))
    assert [] == registry.verify()
    resolver = Resolver(registry.store)
    assert resolver.find("films") == resolver.recall("films")


@pytest.mark.parametrize("wrong", ["foo://x/y", "s3://", "s3://key:s3cr3t@bucket/x", "s3://bucket/x?sig=s3cr3t"])
def test_wrong_addresses_are_refused(wrong: str) -> None:
    """An address of no known kind, or with a key in it, is refused in one line that does not repeat the key."""
    with pytest.raises(ConfigError, match="cannot use store: expected") as caught:
        open_store(wrong)
    assert "s3cr3t" not in str(caught.value)


def test_a_wrong_bucket_is_told(address: str) -> None:
    """A bucket that is not there is told in one line."""
    with pytest.raises(StoreAccessError, match="expected a bucket of this name; found status 404 NoSuchBucket"):
        open_store(f"s3://{uuid.uuid4().hex}/x")


def test_fsspec_reads_and_never_writes(tmp_path: Path) -> None:
    """An address of fsspec is read and verified as any other; a change is refused, as it cannot be conditional."""
    home = tmp_path / "copy"
    folder = home / "names/mrpc/versions/000001"
    folder.mkdir(parents=True)
    source = Store.create(tmp_path / "store", INFO)
    commit(source)
    (home / "store.json").write_bytes((source.root / "store.json").read_bytes())
    for path in source.folder("mrpc", 1).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    store = open_store(f"fsspec+file://{home}")
    assert CONTENTS == store.read_version("mrpc", 1)[1]
    with pytest.raises(StoreAccessError, match="fsspec, which can only be read"):
        commit(store)


def test_the_cache_stays_within_its_bound(tmp_path: Path) -> None:
    """What was used least recently leaves the cache first, and never is there more than the bound."""
    cache = Cache(tmp_path, limit=25)
    data = [bytes([each]) * 10 for each in range(3)]
    digests = [files.sha256(each) for each in data]
    for number, (digest, each) in enumerate(zip(digests, data, strict=True)):
        cache.put(digest, each)
        for path in tmp_path.glob(f"sha256/*/{digest}"):
            os.utime(path, (number, number))
    assert [None, data[1], data[2]] == [cache.get(digest) for digest in digests]


def test_nothing_imports_the_extra_unasked() -> None:
    """Commands on a folder import neither obstore nor the room; without the extra an address tells how to get it."""
    script = """
import sys
from registry.store.store import open_store
from registry.store.errors import StoreAccessError
import registry.cli.main, registry.store.registry
print({"obstore", "fsspec", "registry.remote"} & set(sys.modules) - {"fsspec"})
sys.modules["obstore"] = None
try:
    open_store("s3://bucket/sets")
except StoreAccessError as err:
    print(err)
"""
    done = run_python(script)
    told = "expected the package obstore; found none; pip install 'adapter-registry[remote]'"
    assert f"set()\ncannot open store s3://bucket/sets: {told}\n" == done.stdout, done.stderr


def test_a_fused_set_keeps_its_members(address: str, tiny_backbone: Backbone) -> None:
    """A set that a fused one needs is not removed at an address either."""
    registry = Registry.create(address, tiny_backbone)
    for number, name in enumerate(("a1", "b1")):
        fresh = tiny_backbone.new_adapter_set(AdapterConfig(reduction_factor=8), HEAD)
        registry.save(name, randomise(fresh, seed=number), SetInfo(pair=False, max_length=16))
    fusion = choose_members(registry.store, ["a1", "b1"])
    fused = tiny_backbone.new_adapter_set(fusion, HEAD)
    fused.adapter.take_members([each.adapter for each in registry.load_members(fusion)])
    registry.save("both", fused, SetInfo(pair=False, max_length=16))
    with pytest.raises(MemberInUseError, match="found both:1"):
        registry.remove("a1")
    registry.remove("both")
    registry.remove("a1")
    assert ["b1"] == list(registry)


def test_verify_asks_the_server(address: str) -> None:
    """What is verified is what the server has, whatever a cache holds."""
    store = create_store(address, INFO)
    commit(store)
    store.read_version("mrpc", 1)
    open_objects(address).delete([f"names/mrpc/versions/000001/{ADAPTER_FILE}"])
    assert CONTENTS == store.read_version("mrpc", 1)[1]
    with pytest.raises(IntegrityError, match="found no file"):
        store.verify_bytes("mrpc", 1)
