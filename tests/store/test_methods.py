"""Sets of every method on disk: damaged, edited by who knows the format, or of another backbone, all refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as format_tensors
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.config import MethodConfig
from registry.errors import BackboneMismatchError
from registry.store.archive import export_version
from registry.store.errors import IntegrityError, ManifestError
from registry.store.manifest import ADAPTER_FILE
from registry.store.reader import MANIFEST_FILE
from registry.store.store import Store
from registry.store.tensors import import_set, load_set, save_set
from tests.support.stored_sets import HEAD, INFO, new_manifest, relist, reseal
from tests.support.toy_task import METHODS, randomise, store_members

SIZED = msgspec.structs.replace(INFO, inner_sizes=(64, 64))
Edit = Callable[[dict[str, Tensor]], object]


@pytest.fixture(params=sorted(METHODS))
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, MethodConfig]:
    """A store with one random set of one method."""
    config = METHODS[request.param]
    store = Store.create(tmp_path / "store", SIZED)
    one = randomise(AdapterSet(32, 2, config, HEAD, inner_sizes=(64, 64)))
    store_members(store, one, SIZED)
    config = one.adapter_config
    save_set(store, one, new_manifest(adapter=config, parameters=one.stored_count, backbone=SIZED))
    return store, config


def first_name(tensors: dict[str, Tensor]) -> str:
    """Return the name of one tensor."""
    return sorted(tensors)[0]


def rename(tensors: dict[str, Tensor]) -> None:
    """Call one tensor by another name."""
    tensors["other"] = tensors.pop(first_name(tensors))


EDITS: dict[str, tuple[Edit, str]] = {
    "missing": (lambda tensors: tensors.pop(first_name(tensors)), "tensor names"),
    "renamed": (rename, "tensor names"),
    "added": (lambda tensors: tensors.update(other=torch.zeros(1)), "tensor names"),
    "longer": (lambda tensors: tensors.update({first_name(tensors): torch.zeros(33, 33)}), "shape of"),
    "not finite": (
        lambda tensors: tensors[first_name(tensors)].view(-1).__setitem__(0, float("nan")),
        "expected finite numbers",
    ),
    "whole numbers": (
        lambda tensors: tensors.update({first_name(tensors): tensors[first_name(tensors)].int()}),
        "dtypes",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_tensors_are_refused(stored: tuple[Store, MethodConfig], edit: str) -> None:
    """Missing, renamed, added, reshaped and infinite tensors are told, though every digest is right."""
    store, _ = stored
    folder, (change, message) = store.folder("mrpc", 1), EDITS[edit]
    tensors = load_file(folder / ADAPTER_FILE)
    change(tensors)
    relist(folder / MANIFEST_FILE, ADAPTER_FILE, format_tensors(tensors))
    with pytest.raises(IntegrityError, match=message):
        load_set(store, "mrpc", 1, SIZED)


def test_every_flipped_byte_is_refused(stored: tuple[Store, MethodConfig]) -> None:
    """A byte that changed anywhere in the file is noticed; so is a configuration that the tensors are not of."""
    store, config = stored
    path = store.folder("mrpc", 1) / ADAPTER_FILE
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(IntegrityError):
            load_set(store, "mrpc", 1, SIZED)
    path.write_bytes(whole)
    others = {name: other for name, other in METHODS.items() if type(other) is not type(config)}
    for other in others.values():
        plain = msgspec.to_builtins(other)
        reseal(path.with_name(MANIFEST_FILE), lambda manifest, plain=plain: manifest.update(adapter=plain))
        with pytest.raises((IntegrityError, ManifestError)):
            load_set(store, "mrpc", 1, SIZED)


def test_an_older_store_takes_an_exported_set(stored: tuple[Store, MethodConfig], tmp_path: Path) -> None:
    """A store that does not know the feed-forward part's widths takes them from a set of its fingerprint."""
    store, config = stored
    older = Store.create(tmp_path / "older", INFO)
    for name in set(store.names()) - {"mrpc"}:
        import_set(older, export_version(store, name, tmp_path / f"{name}.adapter"))
    assert "mrpc:1" == str(import_set(older, export_version(store, "mrpc:1", tmp_path / "mrpc.adapter")))
    manifest, loaded = load_set(older, "mrpc", 1, SIZED)
    assert config == manifest.adapter == loaded.adapter_config


def test_another_backbone_is_refused(stored: tuple[Store, MethodConfig]) -> None:
    """Of equal shapes or not, a set goes to the backbone that it was made for alone."""
    store, _ = stored
    for change in ({"fingerprint": "c" * 64}, {"tokenizer_digest": "c" * 64}):
        with pytest.raises(BackboneMismatchError):
            load_set(store, "mrpc", 1, msgspec.structs.replace(SIZED, **change))
