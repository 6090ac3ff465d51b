"""Adapter sets into versions and back: bit-equal, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from registry.adapters.adapter_set import AdapterSet
from registry.config import PLACEMENTS, AdapterConfig, HeadConfig, MethodConfig
from registry.errors import BackboneMismatchError, ConfigError, ShapeMismatchError
from registry.store.errors import AdapterNotFoundError
from registry.store.store import Store
from registry.store.tensors import load_set, save_set, stored_bytes
from tests.support.stored_sets import ADAPTER, HEAD, INFO, new_manifest, tree
from tests.support.toy_task import METHODS, store_members


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.create(tmp_path / "store", INFO)


def save(store: Store, adapter_set: AdapterSet, **changes: Any) -> int:
    """Save a set with the manifest that fits it, but for ``changes``."""
    store_members(store, adapter_set)
    fields: dict[str, Any] = {
        "adapter": adapter_set.adapter_config,
        "head": adapter_set.head_config,
        "parameters": adapter_set.stored_count,
    }
    return save_set(store, adapter_set, new_manifest(**{**fields, **changes}))


SETS = [
    *((AdapterConfig(placement=placement, reduction_factor=4, init="normal"), HEAD) for placement in PLACEMENTS),
    (AdapterConfig(reduction_factor=8, layer_norms=True, layers=(1,), init="xavier"), HEAD),
    *((config, HEAD) for config in METHODS.values()),
    (None, HEAD),
    (ADAPTER, HeadConfig(label_names=("a", "b", "c"), form="dense_tanh", problem_type="multi_label")),
    (ADAPTER, HeadConfig(label_names=("score",), problem_type="regression", trained=False)),
]


@pytest.mark.parametrize(("adapter", "head"), SETS)
def test_saved_set_comes_back_bit_equal(store: Store, adapter: MethodConfig | None, head: HeadConfig) -> None:
    """Every kind of set is read back with equal bits, in evaluation mode, as trainable as it was."""
    saved = AdapterSet(32, 2, adapter, head, seed=3, inner_sizes=(64, 64))
    assert 1 == save(store, saved)
    manifest, loaded = load_set(store, "mrpc", 1, msgspec.structs.replace(INFO, inner_sizes=(64, 64)))
    assert (
        (saved.adapter_config, head) == (loaded.adapter_config, loaded.head_config) == (manifest.adapter, manifest.head)
    )
    assert saved.state_dict().keys() == loaded.state_dict().keys()
    for key, tensor in saved.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key
    assert [(key, True) for key, _ in saved.named_parameters()] == [
        (key, parameter.requires_grad) for key, parameter in loaded.named_parameters()
    ]
    assert [(key, False) for key, _ in saved.named_buffers()] == [
        (key, buffer.requires_grad) for key, buffer in loaded.named_buffers()
    ]
    assert not any(module.training for module in loaded.modules())


def test_loaded_set_gives_equal_logits(store: Store) -> None:
    """A head and a bottleneck that were read back compute what they computed before."""
    saved = AdapterSet(32, 2, ADAPTER, HEAD, seed=1).eval()
    save(store, saved)
    loaded = load_set(store, "mrpc", 1, INFO)[1]
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(saved.head(states), loaded.head(states))
    norm = torch.nn.LayerNorm(32)
    ours, theirs = (one.adapter.join(1, "ffn", states, states, norm) for one in (saved, loaded))
    assert torch.equal(ours, theirs)


def test_equal_sets_have_equal_bytes(store: Store) -> None:
    """A set that is saved twice, or made again from its seed, has the same files."""
    adapter_set = AdapterSet(32, 2, ADAPTER, HEAD, seed=1)
    save(store, adapter_set)
    save(store, adapter_set)
    save(store, AdapterSet(32, 2, ADAPTER, HEAD, seed=1))
    first, second, third = (tree(store.root / "mrpc" / "versions" / f"{n:06d}") for n in (1, 2, 3))
    assert first == second == third


def test_tensor_file_is_pinned(store: Store) -> None:
    """A head is stored as a plain safetensors file, byte for byte."""
    adapter_set = AdapterSet(32, 2, None, HEAD)
    with torch.no_grad():
        adapter_set.head.out.weight.fill_(1.0)
    save(store, adapter_set)
    described = (
        b'{"out.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"out.weight":{"dtype":"F32","shape":[2,32],"data_offsets":[8,264]}}'
    )
    described += b" " * (-len(described) % 8)
    expected = len(described).to_bytes(8, "little") + described + bytes(8) + bytes.fromhex("0000803f") * 64
    files = tree(store.folder("mrpc", 1))
    assert expected == files["head.safetensors"]
    assert b"\x08" + bytes(7) + b"{}      " == files["adapter.safetensors"]


def test_set_in_use_can_be_saved(store: Store) -> None:
    """Saving takes a set with gradients, tensors shared or not contiguous, and leaves it as it is."""
    adapter_set = AdapterSet(32, 2, ADAPTER, HEAD, seed=1)
    shared = adapter_set.adapter.bottlenecks["0_ffn"]
    adapter_set.adapter.bottlenecks["1_ffn"] = shared
    shared.up.weight = torch.nn.Parameter(torch.arange(256.0).reshape(8, 32).T)
    adapter_set.head(torch.ones(1, 32)).sum().backward()
    save(store, adapter_set)
    loaded = load_set(store, "mrpc", 1, INFO)[1].state_dict()
    assert torch.equal(shared.up.weight, loaded["adapter.bottlenecks.1_ffn.up.weight"])
    assert (True, False) == (adapter_set.training, shared.up.weight.is_contiguous())


def test_loaded_set_is_independent(store: Store) -> None:
    """Two loads share no memory, so training one does not change the other."""
    save(store, AdapterSet(32, 2, ADAPTER, HEAD))
    first, second = (load_set(store, "mrpc", 1, INFO)[1] for _ in range(2))
    with torch.no_grad():
        first.head.out.weight.zero_()
    assert second.head.out.weight.abs().sum() > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_save_refuses_values_that_are_not_finite(store: Store, value: float) -> None:
    """A set with one number that is not finite is not stored."""
    adapter_set = AdapterSet(32, 2, ADAPTER, HEAD)
    with torch.no_grad():
        adapter_set.head.out.bias[1] = value
    with pytest.raises(ConfigError, match=r"cannot use tensor 'out.bias': expected finite values, found 'NaN or inf"):
        save(store, adapter_set)
    assert [] == store.names()


def test_save_refuses_other_dtypes(store: Store) -> None:
    """Only floats of 16 and 32 bits are stored."""
    with pytest.raises(ConfigError, match=r"expected float32, float16 or bfloat16 values, found torch.float64"):
        save(store, AdapterSet(32, 2, ADAPTER, HEAD).to(torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_stored_as_it_is(store: Store, dtype: torch.dtype) -> None:
    """A set of 16-bit floats takes half the bytes, and comes back in float32 with exactly its values."""
    adapter_set = AdapterSet(32, 2, ADAPTER, HEAD)
    whole = stored_bytes(adapter_set)
    adapter_set.to(dtype)
    assert stored_bytes(adapter_set) < 0.6 * whole
    _, loaded = load_set(store, "mrpc", save(store, adapter_set), INFO)
    found = loaded.state_dict()
    assert {torch.float32} == {tensor.dtype for tensor in found.values()}
    for key, tensor in adapter_set.state_dict().items():
        assert torch.equal(tensor.float(), found[key]), key


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": None},
        {"adapter": AdapterConfig(reduction_factor=4)},
        {"head": HeadConfig(label_names=("yes", "no"))},
        {"parameters": 1},
    ],
)
def test_save_refuses_the_manifest_of_another_set(store: Store, changes: dict[str, Any]) -> None:
    """A manifest must tell of the set it is saved with."""
    with pytest.raises(ConfigError, match="cannot use manifest: expected the configuration of the set it is for"):
        save(store, AdapterSet(32, 2, ADAPTER, HEAD), **changes)
    assert [] == store.names()


def test_save_refuses_what_does_not_fit(store: Store) -> None:
    """A set for another backbone, or for other sizes, does not get into the store."""
    other = msgspec.structs.replace(INFO, fingerprint="c" * 64)
    with pytest.raises(BackboneMismatchError, match=r"cannot use store .*: it was made for backbone aaaaaaaaaaaa"):
        save(store, AdapterSet(32, 2, ADAPTER, HEAD), backbone=other)
    with pytest.raises(ShapeMismatchError, match=r"expected shape \(16, 2\), found \(32, 2\)"):
        save(store, AdapterSet(16, 2, ADAPTER, HEAD))
    assert [] == store.names()


@pytest.mark.parametrize(("field", "part"), [("fingerprint", "backbone"), ("tokenizer_digest", "tokenizer")])
def test_load_refuses_another_backbone_of_equal_shapes(store: Store, field: str, part: str) -> None:
    """Equal shapes do not make a set fit: other weights or another tokenizer are refused."""
    save(store, AdapterSet(32, 2, ADAPTER, HEAD))
    other = msgspec.structs.replace(INFO, **{field: "c" * 64})
    with pytest.raises(BackboneMismatchError, match=f"cannot use 'mrpc:1' of .*: it was made for {part}") as caught:
        load_set(store, "mrpc", 1, other)
    assert part == caught.value.part


def test_load_of_missing_version_names_what_is_there(store: Store) -> None:
    """A version that is not there is told as such, not as damage."""
    save(store, AdapterSet(32, 2, ADAPTER, HEAD))
    with pytest.raises(AdapterNotFoundError, match=r"'mrpc:2' in .*: it has mrpc:1"):
        load_set(store, "mrpc", 2, INFO)
