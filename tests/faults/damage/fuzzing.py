"""Hostile bytes for every parser of the store: only errors of ours come out, and what is read can be written again.

The digests would stop all but one of 2**256 inputs at the door, so each target makes them right before it reads.
With atheris installed, ``python -m tests.faults.damage.fuzzing manifest --seconds 600`` runs a target for as long as
wanted.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from safetensors.torch import save

from registry.adapters.adapter_set import AdapterSet
from registry.config import AdapterConfig
from registry.errors import RegistryError
from registry.schema import Manifest
from registry.store.archive import MEMBERS, export_version, pack, unpack
from registry.store.listing import list_sets
from registry.store.manifest import ADAPTER_FILE, HEAD_FILE, StoreInfo, format_alias
from registry.store.store import Store
from registry.store.tensors import import_set, load_set, save_set
from registry.validation import from_json, to_json
from tests.support.stored_sets import ADAPTER, HEAD, INFO, new_manifest

NO_DIGEST = b"0" * 64
MANIFEST_FILE = MEMBERS[0]


class World:
    """A store with the set ``mrpc:1``, aliased ``best``, of which one file at a time is replaced."""

    def __init__(self, folder: Path, adapter: AdapterConfig | None) -> None:
        self.store = Store.create(folder / "store", INFO)
        adapter_set = AdapterSet(INFO.hidden_size, INFO.layers, adapter, HEAD)
        save_set(self.store, adapter_set, new_manifest(parameters=adapter_set.stored_count, adapter=adapter))
        self.store.set_alias("mrpc", "best", 1)
        self.archive = export_version(self.store, "mrpc:1", folder / "mrpc.adapter")
        self.archived = self.archive.read_bytes()
        self.members = unpack(self.archive, self.archived)
        self.version = self.store.folder("mrpc", 1)
        self.alias = self.store.root / "mrpc" / "aliases" / "best"
        self.store_file = self.store.root / "store.json"
        self.store_info = self.store_file.read_bytes()

    def put(self, contents: Mapping[str, bytes]) -> None:
        """Write the files of the version."""
        for file in MEMBERS:
            _replace(self.version / file, contents[file])

    def with_head(self, data: bytes) -> dict[str, bytes]:
        """Return the version's files with another head, of which the manifest tells the true size and digest."""
        plain = json.loads(self.members[MANIFEST_FILE])
        entry = next(entry for entry in plain["files"] if entry["path"] == HEAD_FILE)
        entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        plain["digest"] = NO_DIGEST.decode()
        return {**self.members, HEAD_FILE: data, MANIFEST_FILE: seal(json.dumps(plain).encode())}


def _replace(path: Path, data: bytes) -> None:
    path.unlink()  # quicker than cutting it to nothing
    path.write_bytes(data)


@functools.cache
def the_world(adapter: AdapterConfig | None = ADAPTER) -> World:
    """Return the one world of this process with such bottlenecks, in memory where there is such a folder."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return World(folder, adapter)


def seal(text: bytes) -> bytes:
    """Return JSON whose digest, 64 zeros in ``text``, is right."""
    return text.replace(NO_DIGEST, hashlib.sha256(text).hexdigest().encode())


def one_manifest(data: bytes) -> None:
    """Read ``data`` as a manifest, as it is and with a right digest, through every door that reads manifests."""
    world = the_world()
    for text in dict.fromkeys((data, seal(data))):
        _replace(world.version / MANIFEST_FILE, text)
        try:
            for listed in list_sets(world.store):
                str(listed.error or listed.summary)
            manifest = world.store.manifest("mrpc", 1)
            _check_same(Manifest, manifest)
            load_set(world.store, "mrpc", 1, INFO)
        except RegistryError as err:
            str(err).encode()
            continue
        finally:
            _replace(world.version / MANIFEST_FILE, world.members[MANIFEST_FILE])
    try:
        again = unpack(world.archive, pack({**world.members, MANIFEST_FILE: data}))
        assert again[MANIFEST_FILE] == data
    except RegistryError:
        pass


def one_header(data: bytes) -> None:
    """Read ``data`` as a tensor file, and as the header of one."""
    world = the_world(None)  # a set so small that it loads quickly
    buffer = world.members[HEAD_FILE][-4096:]
    for file in (data, struct.pack("<Q", len(data)) + data + buffer[:264], struct.pack("<Q", len(data)) + data):
        world.put(world.with_head(file))
        try:
            _, loaded = load_set(world.store, "mrpc", 1, INFO)
        except RegistryError as err:
            str(err).encode()
            continue
        world.put(world.with_head(save(dict(loaded.head.state_dict()))))
        again = load_set(world.store, "mrpc", 1, INFO)[1]
        assert all(left.equal(right) for left, right in zip(loaded.parameters(), again.parameters(), strict=True))


def one_archive(data: bytes) -> None:
    """Read ``data`` as an archive, and as the head's file of a sound one."""
    world = the_world(None)  # a set so small that it loads quickly
    for file in (data, pack(world.with_head(data))):
        _replace(world.archive, file)
        try:
            contents = unpack(world.archive, file)
            assert pack(contents) == file
            reference = import_set(world.store, world.archive, "imported")
        except RegistryError as err:
            str(err).encode()
            continue
        world.store.verify_bytes("imported", reference.version or 0)
        world.store.remove("imported")


def one_alias(data: bytes) -> None:
    """Read ``data`` as an alias file, and as the version of one whose check is right."""
    world = the_world()
    number = int.from_bytes(data[:3], "little")
    for text in (data, format_alias("mrpc", "best", number), format_alias("mrpc", "best", number) + data[3:]):
        _replace(world.alias, text)
        try:
            version = world.store.aliases("mrpc")["best"]
            assert text in (format_alias("mrpc", "best", version), f"{version}\n".encode())
            assert ("mrpc", 1) == world.store.resolve("mrpc@best")
        except RegistryError as err:
            str(err).encode()


def one_store_file(data: bytes) -> None:
    """Read ``data`` as a ``store.json``, as it is and with a right digest."""
    world = the_world()
    for text in dict.fromkeys((data, seal(data))):
        _replace(world.store_file, text)
        try:
            _check_same(StoreInfo, Store.open(world.store.root).info)
            Store.create(world.store.root, INFO)
        except RegistryError as err:
            str(err).encode()
        finally:
            _replace(world.store_file, world.store_info)


def _check_same(kind: type, record: Manifest | StoreInfo) -> None:
    try:
        again = from_json(kind, to_json(record))
    except RegistryError as err:
        raise AssertionError(f"what was read cannot be read again: {err}") from err
    assert again == record


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "manifest": one_manifest,
    "header": one_header,
    "archive": one_archive,
    "alias": one_alias,
    "store_file": one_store_file,
}


def make_seeds(target: str) -> list[bytes]:
    """Return small real inputs of a target, from files that the store has written itself."""
    world = the_world()
    manifest = _unsealed(world.members[MANIFEST_FILE])
    full = msgspec.to_builtins(new_manifest(main_metric="f1", scores={"f1": 0.5}, task="mrpc", pair=True, recipe="x"))
    plain = json.loads(manifest)
    rich = json.dumps({**plain, **{key: full[key] for key in ("main_metric", "scores", "task", "pair")}}).encode()
    strange = [rich.replace(b": 0.5", b": " + value) for value in (b"1e999", b"NaN", b"-0.0", b"1" * 400)]
    strange += [rich.replace(b'"mrpc"', value) for value in (b'"\\ud800"', b'"\\u0000"', b'"' + b"x" * 10_000 + b'"')]
    small = the_world(None)
    head, adapter = small.members[HEAD_FILE], world.members[ADAPTER_FILE]
    header = head[8 : 8 + int.from_bytes(head[:8], "little")]
    return {
        "manifest": [manifest, rich, *strange, b"{}", b'{"format":1}', b"[" * 100_000, b'"\\ud800"', b"1e999", b"null"],
        "header": [head, adapter, header, b"{}", b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'],
        "archive": [small.archived, head, pack(dict.fromkeys(MEMBERS, b"")), b"PK\x05\x06" + bytes(18)],
        "alias": [format_alias("mrpc", "best", 1), b"1\n", b"999999\n", b"\x01\0\0"],
        "store_file": [_unsealed(world.store_info), b"{}", b"[" * 100_000, b'{"format":1,"backbone":null}'],
    }[target]


def _unsealed(data: bytes) -> bytes:
    digest = json.loads(data).get("digest", "")
    return data.replace(digest.encode(), NO_DIGEST) if digest else data


if __name__ == "__main__":
    from tests.faults.damage.atheris_run import main

    main()
