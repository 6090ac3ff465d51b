"""What somebody who knows the format could write into a store; each edit has digests that are right."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from registry.adapters.adapter_set import AdapterSet
from registry.config import AdapterConfig, HeadConfig
from registry.validation import from_plain
from tests.support.stored_sets import ADAPTER, HEAD, relist, reseal, write_sealed

Plain = dict[str, Any]
Change = Callable[[Path], None]  # of a store with mrpc:1
Edit = tuple[str, tuple[str, ...], Change]  # what it is, what the error must name, and how it is made

VERSION = Path("mrpc", "versions", "000001")
HEAD_FILE, ADAPTER_FILE = "head.safetensors", "adapter.safetensors"


def _manifest(edit: Callable[[Plain], object], *, fitting: bool = False) -> Change:
    """Return an edit of the manifest; ``fitting`` makes its count of parameters right as well."""

    def both(plain: Plain) -> None:
        edit(plain)
        if fitting:
            adapter = plain["adapter"] and from_plain(AdapterConfig, plain["adapter"])
            plain["parameters"] = AdapterSet(32, 2, adapter, from_plain(HeadConfig, plain["head"])).stored_count

    return lambda store: reseal(store / VERSION / "manifest.json", both)


def _put(*keys: str, **values: object) -> Callable[[Plain], None]:
    """Return an edit that sets fields of the part that ``keys`` lead to."""

    def edit(plain: Plain) -> None:
        for key in keys:
            plain = plain[key]
        plain.update(values)

    return edit


def _drop(*keys: str) -> Callable[[Plain], None]:
    """Return an edit that takes the last key away."""

    def edit(plain: Plain) -> None:
        for key in keys[:-1]:
            plain = plain[key]
        del plain[keys[-1]]

    return edit


def _file(change: Callable[[bytes], bytes], file: str = HEAD_FILE) -> Change:
    """Return an edit of a tensor file."""

    def edit(store: Path) -> None:
        version = store / VERSION
        relist(version / "manifest.json", file, change((version / file).read_bytes()))

    return edit


def _tensors(file: str = HEAD_FILE, **changes: object) -> Change:
    """Return an edit of the tensors in a file: another tensor, or a function of the one there; None drops it."""

    def change(data: bytes) -> bytes:
        tensors = load(data)
        for name, given in changes.items():
            key = name.replace("__", ".")
            tensors[key] = given(tensors[key]) if callable(given) else given  # type: ignore[assignment]
        return save({key: tensor for key, tensor in tensors.items() if tensor is not None})

    return _file(change, file)


def _store(edit: Callable[[Plain], object]) -> Change:
    return lambda store: reseal(store / "store.json", edit)


def _exchange(store: Path) -> None:
    """Write each tensor file in the other's place."""
    version = store / VERSION
    head, adapter = (version / HEAD_FILE).read_bytes(), (version / ADAPTER_FILE).read_bytes()
    relist(version / "manifest.json", HEAD_FILE, adapter)
    relist(version / "manifest.json", ADAPTER_FILE, head)


def _repeat_key(store: Path) -> None:
    """Say a key twice, where a lax reader would take the last."""
    path = store / VERSION / "manifest.json"
    write_sealed(path, path.read_text().replace('"task":', '"task": "sst2",\n  "task":', 1))


def _pickled(data: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save(load(data), buffer)
    return buffer.getvalue()


def _of_size(hidden_size: int, layers: int) -> Callable[[bytes], bytes]:
    """Return the head of a set for a backbone of another size."""

    def change(data: bytes) -> bytes:
        other = AdapterSet(hidden_size, layers, ADAPTER, HEAD)
        return save({key: tensor.contiguous() for key, tensor in other.head.state_dict().items()})

    return change


THREE = ["no", "yes", "maybe"]
MANIFESTS: tuple[Edit, ...] = (
    ("a newer format", ("manifest.json", "format", "4"), _manifest(_put(format=4))),
    ("format zero", ("manifest.json", "format", "0"), _manifest(_put(format=0))),
    ("a format that is text", ("manifest.json", "`int`"), _manifest(_put(format="1"))),
    ("an unknown key", ("manifest.json", "extra"), _manifest(_put(extra=1))),
    ("an unknown key of the adapter", ("manifest.json", "colour"), _manifest(_put("adapter", colour=8))),
    ("an unknown key of the head", ("manifest.json", "colour"), _manifest(_put("head", colour=True))),
    ("an unknown key of the backbone", ("manifest.json", "extra"), _manifest(_put("backbone", extra=1))),
    ("no head", ("manifest.json", "head"), _manifest(_drop("head"))),
    ("no backbone", ("manifest.json", "backbone"), _manifest(_drop("backbone"))),
    ("no fingerprint", ("manifest.json", "fingerprint"), _manifest(_drop("backbone", "fingerprint"))),
    ("another name", ("manifest.json", "sst2/x"), _manifest(_put(name="sst2/x"))),
    ("a placement that is none", ("manifest.json", "lora"), _manifest(_put("adapter", placement="lora"))),
    ("another count of parameters", ("parameters", "1"), _manifest(_put(parameters=1))),
    ("a label more", ("parameters",), _manifest(_put("head", label_names=THREE))),
    ("a label more that fits", (HEAD_FILE, "(3,", "(2,"), _manifest(_put("head", label_names=THREE), fitting=True)),
    ("a label fewer", ("manifest.json", "label_names"), _manifest(_put("head", label_names=["no"]))),
    ("a label twice", ("manifest.json", "label_names", "distinct"), _manifest(_put("head", label_names=["no", "no"]))),
    ("one value for classes", (HEAD_FILE, "(1,", "(2,"),
     _manifest(_put("head", label_names=["x"], problem_type="regression"), fitting=True)),
    ("another form of head", (HEAD_FILE, "tensor names"), _manifest(_put("head", form="dense_tanh"), fitting=True)),
    ("another reduction factor", ("parameters",), _manifest(_put("adapter", reduction_factor=8))),
    ("another reduction factor that fits", (ADAPTER_FILE, "shape"),
     _manifest(_put("adapter", reduction_factor=8), fitting=True)),
    ("a reduction factor that divides not", ("reduction_factor", "5"), _manifest(_put("adapter", reduction_factor=5))),
    ("another placement", (ADAPTER_FILE, "tensor names"),
     _manifest(_put("adapter", placement="houlsby"), fitting=True)),
    ("fewer layers", (ADAPTER_FILE, "tensor names"), _manifest(_put("adapter", layers=[0]), fitting=True)),
    ("layers that are not there", ("layers", "7"), _manifest(_put("adapter", layers=[7]))),
    ("layer norms that are not there", (ADAPTER_FILE, "tensor names"),
     _manifest(_put("adapter", layer_norms=True), fitting=True)),
    ("no bottlenecks", (ADAPTER_FILE, "tensor names"), _manifest(_put(adapter=None), fitting=True)),
    ("another fingerprint", ("backbone", "c" * 12), _manifest(_put("backbone", fingerprint="c" * 64))),
    ("another tokenizer digest", ("tokenizer", "c" * 12), _manifest(_put("backbone", tokenizer_digest="c" * 64))),
    ("another hidden size, same fingerprint", ("hidden", "64", "32"), _manifest(_put("backbone", hidden_size=64))),
    ("more layers, same fingerprint", ("layers", "3", "2"), _manifest(_put("backbone", layers=3))),
    ("another family, same fingerprint", ("family", "roberta", "bert"), _manifest(_put("backbone", family="roberta"))),
    ("other parameters, same fingerprint", ("parameters",), _manifest(_put("backbone", parameters=7))),
    ("a file elsewhere", ("manifest.json", "files"),
     _manifest(lambda plain: plain["files"][0].update(path="../../../store.json"))),
    ("a key twice", ("manifest.json", "task"), _repeat_key),
)  # fmt: skip

TENSORS: tuple[Edit, ...] = (
    ("weights of another shape", (HEAD_FILE, "out.weight", "(2, 31)"),
     _tensors(out__weight=lambda old: old[:, :31].clone())),
    ("weights on their side", (HEAD_FILE, "out.weight", "(32, 2)"),
     _tensors(out__weight=lambda old: old.T.contiguous())),
    ("weights with a dimension more", (HEAD_FILE, "out.bias", "(1, 2)"), _tensors(out__bias=lambda old: old[None])),
    ("a head of three labels", (HEAD_FILE, "(3,"),
     _tensors(out__weight=torch.zeros(3, 32), out__bias=torch.zeros(3))),
    ("a head of another hidden size", (HEAD_FILE, "(2, 64)"), _file(_of_size(64, 2))),
    ("a tensor too many", (HEAD_FILE, "unexpected", "extra"), _tensors(extra=torch.zeros(2))),
    ("a tensor too few", (HEAD_FILE, "missing", "out.bias"), _tensors(out__bias=None)),
    ("a value that is no number", (HEAD_FILE, "out.bias", "finite"),
     _tensors(out__bias=lambda old: old * float("nan"))),
    ("a value without end", (HEAD_FILE, "out.bias", "finite"),
     _tensors(out__bias=lambda old: old + float("inf"))),
    ("numbers of 64 bits", (HEAD_FILE, "dtypes", "F64"), _tensors(out__bias=lambda old: old.double())),
    ("whole numbers", (HEAD_FILE, "dtypes", "I64"), _tensors(out__bias=lambda old: old.long())),
    ("the two files exchanged", (ADAPTER_FILE, "tensor names"), _exchange),
    ("no tensors", (HEAD_FILE, "tensor names", "out.bias"), _file(lambda data: save({}))),
    ("an empty file", (HEAD_FILE,), _file(lambda data: b"")),
    ("a pickle", (HEAD_FILE,), _file(_pickled)),
)  # fmt: skip

STORES: tuple[Edit, ...] = (
    ("a store of another backbone", ("store", "backbone", "c" * 12), _store(_put("backbone", fingerprint="c" * 64))),
    ("a store of another tokenizer", ("store", "tokenizer", "c" * 12),
     _store(_put("backbone", tokenizer_digest="c" * 64))),
    ("a store of a newer format", ("store", "store.json", "format"), _store(_put(format=2))),
    ("a store with an unknown key", ("store", "store.json", "extra"), _store(_put(extra=1))),
    ("a store without a backbone", ("store", "store.json", "backbone"), _store(_drop("backbone"))),
    ("a store of another hidden size", ("store", "hidden", "64", "32"), _store(_put("backbone", hidden_size=64))),
)  # fmt: skip
