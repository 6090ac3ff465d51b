"""Damaged and malicious stores: everything is refused with one of our errors, and nothing is followed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from registry.adapters.adapter_set import AdapterSet
from registry.store.errors import IntegrityError, ManifestError, StoreError
from registry.store.store import Store
from registry.store.tensors import load_set, save_set
from tests.support.stored_sets import ADAPTER, CONTENTS, HEAD, INFO, new_manifest, relist, reseal, tree, write_sealed

FILES = ("manifest.json", "adapter.safetensors", "head.safetensors")


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


def refuse(store: Store, told: str = "cannot (read|load) ") -> StoreError:
    """Load the set, expect damage to be told, and return the error."""
    with pytest.raises((ManifestError, IntegrityError), match=told) as caught:
        load_set(store, "mrpc", 1, INFO)
    assert 4 == caught.value.exit_code
    assert "restore the file from a backup or remove this version" in str(caught.value)
    return caught.value


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_bit_is_refused(store: Store, version: Path, file: str) -> None:
    """One changed bit anywhere in any of the three files is noticed, and the file named."""
    path = version / file
    whole = path.read_bytes()
    for number, position in enumerate(range(0, len(whole), max(1, len(whole) // 60))):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << number % 8
        path.write_bytes(damaged)
        assert file in str(refuse(store))
    path.write_bytes(whole)
    load_set(store, "mrpc", 1, INFO)


@pytest.mark.parametrize("file", FILES)
def test_other_lengths_are_refused(store: Store, version: Path, file: str) -> None:
    """A file that was cut short, or made longer, is noticed."""
    path = version / file
    whole = path.read_bytes()
    for cut in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refuse(store)
    for more in (b"\n", b" ", b"\0" * 512, whole):
        path.write_bytes(whole + more)
        refuse(store)


@pytest.mark.parametrize("file", FILES)
def test_missing_file_is_refused(store: Store, version: Path, file: str) -> None:
    """A version that lost a file is damaged, not unknown."""
    (version / file).unlink()
    refuse(store, f"{file}: file: expected .*, found no")


def test_swapped_files_are_refused(store: Store, version: Path) -> None:
    """The head's file in the adapter's place, and the other way round, are noticed."""
    adapter, head = version / "adapter.safetensors", version / "head.safetensors"
    contents = adapter.read_bytes(), head.read_bytes()
    head.write_bytes(contents[0])
    adapter.write_bytes(contents[1])
    refuse(store, "size: expected")


def test_files_of_another_version_are_refused(store: Store, version: Path) -> None:
    """A file of equal size from another version is noticed by its digest."""
    other = AdapterSet(32, 2, ADAPTER, HEAD, seed=2)
    save_set(store, other, new_manifest(parameters=other.stored_count))
    (version / "head.safetensors").write_bytes((store.folder("mrpc", 2) / "head.safetensors").read_bytes())
    refuse(store, "SHA-256: expected '[0-9a-f]{64}', found [0-9a-f]{64};")


def test_folder_under_another_name_is_refused(store: Store) -> None:
    """A set does not answer to a name that it was not saved under."""
    (store.root / "mrpc").rename(store.root / "imdb")
    with pytest.raises(ManifestError, match="name: expected imdb, found mrpc"):
        store.manifest("imdb", 1)


def without(key: str) -> Callable[[dict[str, Any]], None]:
    """Return an edit that drops a key."""
    return lambda plain: plain.pop(key)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda plain: plain.update(extra=1), "unknown field `extra`"),
        (without("created"), "missing required field `created`"),
        (without("digest"), "64 hex digits"),
        (lambda plain: plain.update(format=4), "format: expected a format from 1 to 3 .a newer program"),
        (lambda plain: plain.update(format="1"), "Expected `int`, got `str`"),
        (lambda plain: plain.update(name="imdb"), "name: expected mrpc, found imdb"),
        (lambda plain: plain.update(name="../imdb"), "name '../imdb'"),
        (lambda plain: plain["adapter"].update(reduction_factor=5), "a divisor of the hidden size 32"),
        (lambda plain: plain["adapter"].update(layers=[7]), "indices below 2"),
        (lambda plain: plain["adapter"].update(placement="os.system"), "Invalid enum value 'os.system'"),
        (lambda plain: plain.update(parameters=1), "parameters: expected"),
        (lambda plain: plain["files"].reverse(), "files: expected adapter.safetensors and head.safetensors"),
        (lambda plain: plain["files"].pop(), "files: expected adapter.safetensors and head.safetensors"),
        (lambda plain: plain["files"].append(plain["files"][0]), "files: expected"),
        (lambda plain: plain["files"][0].update(path="../../../../etc/passwd"), "files: expected"),
        (lambda plain: plain["files"][0].update(bytes=2**40), "size: expected 1099511627776 bytes"),
        (lambda plain: plain["files"][0].update(bytes=-1), "size: expected -1 bytes"),
        (lambda plain: plain["files"][0].update(sha256="\x1b[2J"), r"SHA-256: expected '\\x1b\[2J'"),
    ],
)
def test_edited_manifest_is_refused(
    store: Store, version: Path, edit: Callable[[dict[str, Any]], None], told: str
) -> None:
    """A manifest that says what it must not is refused even when its digest was made right again."""
    reseal(version / "manifest.json", edit)
    refuse(store, told)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace('"pair"', '"pair": null, "pair"'), "every key once, found 'pair'"),
        (lambda text: text.replace('"scores": {}', '"scores": {"f1": NaN}'), "finite numbers, found 'NaN'"),
        (lambda text: text.replace('"scores": {}', '"scores": {"f1": 1e999}'), "finite numbers, found '1e999'"),
        (lambda text: text.replace('"scores": {}', f'"scores": {"[" * 100_000}'), "shallow nesting"),
        (lambda text: text.replace('"max_length": 128', f'"max_length": {"9" * 5000}'), "valid JSON"),
        (lambda text: text + " " * 2**20, "size: expected at most 1048576 bytes"),
        (lambda text: "", "valid JSON"),
        (lambda text: "null", "Expected `object`, got `null`"),
    ],
)
def test_hostile_json_is_refused(store: Store, version: Path, change: Callable[[str], str], told: str) -> None:
    """JSON that is double, endless, too deep or too long is refused, never a crash."""
    path = version / "manifest.json"
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    refuse(store, told)


def test_rewritten_manifest_with_right_digest_is_read(store: Store, version: Path) -> None:
    """The digest covers the bytes as they are, so another writer of the format may lay them out its own way."""
    path = version / "manifest.json"
    write_sealed(path, json.dumps(json.loads(path.read_text()), separators=(",", ":")))
    load_set(store, "mrpc", 1, INFO)


def header(text: str | bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file with this header."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + data


def with_tensors(**changes: torch.Tensor | None) -> Callable[[bytes], bytes]:
    """Return an edit of a tensor file; None drops a tensor."""

    def change(data: bytes) -> bytes:
        tensors = {**load(data), **changes}
        return save({key: tensor for key, tensor in tensors.items() if tensor is not None})

    return change


BIAS = "out.bias"
MANY = ",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(5000))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_tensors(**{BIAS: torch.tensor([0.0, float("nan")])}), "values of 'out.bias': expected finite numbers"),
        (with_tensors(**{BIAS: torch.tensor([0.0, float("inf")])}), "values of 'out.bias': expected finite numbers"),
        (with_tensors(**{BIAS: torch.zeros(3)}), r"shape of 'out.bias': expected \(2,\), found \(3,\)"),
        (with_tensors(**{BIAS: torch.zeros(1, 2)}), r"shape of 'out.bias': expected \(2,\), found \(1, 2\)"),
        (with_tensors(**{BIAS: torch.zeros(2, dtype=torch.float64)}), "dtypes: expected F32, .* found 'F32', 'F64'"),
        (with_tensors(**{BIAS: torch.zeros(2, dtype=torch.int32)}), "dtypes: expected F32, .* found 'F32', 'I32'"),
        (lambda data: header(b'{"a":{"\xe4\xb8":1}}'), "header"),
        (with_tensors(**{BIAS: None}), "tensor names: .* missing out.bias; unexpected none"),
        (with_tensors(**{BIAS: None, "\x1b": torch.zeros(2)}), r"missing out.bias; unexpected '\\x1b'"),
        (with_tensors(extra=torch.zeros(2)), "missing none; unexpected 'extra'"),
        (with_tensors(**{f"e{n}": torch.zeros(1) for n in range(9)}), "unexpected 'e0', .*'e4' and 4 more"),
        (lambda data: b"", "header"),
        (lambda data: b"\x01\x02", "header"),
        (lambda data: struct.pack("<Q", 2**63) + data, "header: expected at most 1048576 bytes"),
        (lambda data: header("{" + MANY + "}"), "header: expected at most 4096 tensors, found 5000 tensors"),
        (lambda data: header('{"__metadata__":{"a":"b"}}'), "header"),
        (lambda data: header("[" * 100_000), "header"),
        (lambda data: header(b"\xff\xfe"), "header"),
        (lambda data: header('{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'), "content"),
        (lambda data: header('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"1234"), "content"),
        (lambda data: header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', b"1234"), "content"),
        (lambda data: header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"12345"), "content"),
        (lambda data: header(f'{{"a":{{"dtype":"F32","shape":[{2**62},{2**62}],"data_offsets":[0,4]}}}}'), "content"),
    ],
)
def test_hostile_tensors_are_refused(store: Store, version: Path, change: Callable[[bytes], bytes], told: str) -> None:
    """A tensor file that is not exactly what its configuration asks for is refused, with all digests right."""
    relist(version / "manifest.json", "head.safetensors", change((version / "head.safetensors").read_bytes()))
    refuse(store, f"head.safetensors: .*({told})")


def test_failed_load_leaves_the_store_alone(store: Store, version: Path) -> None:
    """Refusing a damaged version changes no file, and the next version loads."""
    (version / "head.safetensors").write_bytes(b"broken")
    before = tree(store.root)
    refuse(store)
    assert before == tree(store.root)
    assert 2 == store.commit(new_manifest(), CONTENTS)
