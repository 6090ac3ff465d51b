"""The last layer for first tokens alone gives what the whole layer gives them, at a part of the work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.interface import Adapters
from registry.config import AdapterConfig, HeadConfig
from registry.model.backbone import Backbone
from registry.model.batching import Batch
from registry.model.encoder import NO_ADAPTERS
from registry.model.mixed import MixedAdapters
from registry.serving.pool import ResidentAdapter
from tests.support.stock_models import difference, random_rows
from tests.support.toy_task import randomise

HEAD = HeadConfig(label_names=("no", "yes"))
LENGTHS = (7, 3, 1, 64, 12, 3, 1, 29, 12)
OWNERS = (0, 1, 2, 3, 4, 5, 0, 1, 2)
CONFIGS = (
    AdapterConfig(placement="houlsby", reduction_factor=4, layer_norms=True),
    AdapterConfig(placement="after_layer", reduction_factor=2, activation="relu"),
    AdapterConfig(placement="pfeiffer", reduction_factor=8, layer_norms=True),
    AdapterConfig(placement="parallel", reduction_factor=1, activation="tanh", scale=2.0, layers=(1,)),
    AdapterConfig(placement="houlsby", reduction_factor=16, layers=(0,)),
    None,
)
POOLINGS = [("cls",), ("pooler",), ("cls", "pooler"), ("cls", "mean"), ("mean", "cls", "pooler")]


def random_sets(backbone: Backbone) -> list[AdapterSet]:
    """Return a random set of each of ``CONFIGS``."""
    fresh = [backbone.new_adapter_set(config, HEAD, seed=seed) for seed, config in enumerate(CONFIGS)]
    return [randomise(one, seed) for seed, one in enumerate(fresh)]


def pooled_from_all(backbone: Backbone, batch: Batch, adapters: Adapters, poolings: tuple[str, ...]) -> list[Tensor]:
    """Return what pooling the states of all tokens gives."""
    hidden = backbone.encoder(batch, adapters)
    return [backbone.encoder.pool(hidden, batch, pooling) for pooling in poolings]


def check(backbone: Backbone, batch: Batch, adapters: Adapters, poolings: tuple[str, ...], tolerance: float) -> None:
    """Check that the short way gives what the whole forward gives."""
    with torch.no_grad():
        expected = pooled_from_all(backbone, batch, adapters, poolings)
        actual = backbone.encoder.pooled(batch, adapters, poolings)
    assert set(poolings) == set(actual)
    assert {torch.float32} == {states.dtype for states in actual.values()}
    assert [states.shape for states in expected] == [actual[pooling].shape for pooling in poolings]
    assert difference(expected, [actual[pooling] for pooling in poolings]) <= tolerance


@pytest.mark.parametrize("poolings", POOLINGS)
def test_pooled_states_equal_those_of_the_whole_forward(tiny_backbone: Backbone, poolings: tuple[str, ...]) -> None:
    """Without adapters, with each kind of set, and with all of them in one batch."""
    sets, rows = random_sets(tiny_backbone), random_rows(LENGTHS, words=100)
    batch = Batch.pack(rows, OWNERS)
    check(tiny_backbone, batch, NO_ADAPTERS, poolings, 1e-5)
    check(tiny_backbone, batch, MixedAdapters([one.adapter for one in sets], batch), poolings, 1e-5)
    for one in sets:
        check(tiny_backbone, Batch.pack(rows), one.adapter, poolings, 1e-5)
        check(tiny_backbone, Batch.pack(rows), ResidentAdapter(one.adapter, 2, torch.float32), poolings, 1e-5)


@pytest.mark.parametrize("poolings", POOLINGS[:3])
def test_bfloat16_states_are_near_those_of_the_whole_forward(tiny_folder: Path, poolings: tuple[str, ...]) -> None:
    """In half precision both ways differ by its rounding only."""
    half = Backbone.load(str(tiny_folder), device="cpu", dtype="bfloat16")
    sets, batch = random_sets(half), Batch.pack(random_rows(LENGTHS, words=100), OWNERS)
    check(half, batch, NO_ADAPTERS, poolings, 0.1)
    check(half, batch, MixedAdapters([one.adapter for one in sets], batch), poolings, 0.1)


@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (64,)])
def test_rows_of_one_token_and_batches_of_one_row(tiny_backbone: Backbone, lengths: tuple[int, ...]) -> None:
    """The first token may be the only one, and the row the only one."""
    sets, batch = random_sets(tiny_backbone), Batch.pack(random_rows(lengths, words=100))
    for one in sets:
        check(tiny_backbone, batch, one.adapter, ("cls", "pooler"), 1e-5)


def test_gradients_equal_those_of_the_whole_forward(tiny_backbone: Backbone) -> None:
    """What a set learns from its first tokens does not depend on the way they were computed."""
    batch = Batch.pack(random_rows(LENGTHS, words=100), OWNERS)
    weights = torch.linspace(-1, 1, 32)
    gradients = []
    for short in (True, False):
        sets = random_sets(tiny_backbone)
        adapters = MixedAdapters([one.adapter for one in sets], batch)
        if short:
            states = tiny_backbone.encoder.pooled(batch, adapters, ("cls",))["cls"]
        else:
            (states,) = pooled_from_all(tiny_backbone, batch, adapters, ("cls",))
        (states * weights).mean().backward()
        parameters = [parameter for one in sets for parameter in one.adapter.parameters()]
        gradients.append([parameter.grad for parameter in parameters if parameter.grad is not None])
        assert len(parameters) == len(gradients[-1])
    assert max(float(gradient.abs().max()) for gradient in gradients[0]) > 1e-2
    assert difference(*gradients) <= 1e-5


def test_last_layer_projects_first_tokens_only(tiny_backbone: Backbone) -> None:
    """Where no pooling asks for more, the last feed-forward part sees one state of each row, else all tokens."""
    batch, seen = Batch.pack(random_rows(LENGTHS, words=100)), []
    watch = (
        tiny_backbone.encoder.layers[1]
        .get_submodule("ffn_in")
        .register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    )
    for poolings in (("cls",), ("pooler", "cls"), ("mean",), ("cls", "mean")):
        tiny_backbone.encoder.pooled(batch, NO_ADAPTERS, poolings)
    watch.remove()
    assert [len(LENGTHS), len(LENGTHS), sum(LENGTHS), sum(LENGTHS)] == seen


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("poolings", [("cls",), ("mean",)])
def test_forward_may_begin_at_any_layer(tiny_backbone: Backbone, layer: int, poolings: tuple[str, ...]) -> None:
    """From the states that enter a layer, the last one or even what follows it, the answer is that of the whole."""
    batch = Batch.pack(random_rows(LENGTHS, words=100))
    with torch.no_grad():
        entering = tiny_backbone.encoder.below(layer, batch)
        actual = tiny_backbone.encoder.pooled(batch, NO_ADAPTERS, poolings, entering, layer)
        expected = pooled_from_all(tiny_backbone, batch, NO_ADAPTERS, poolings)
    assert difference(expected, [actual[pooling] for pooling in poolings]) <= 1e-5


def test_an_encoder_in_fine_tuning_drops_in_every_layer(tiny_backbone: Backbone) -> None:
    """A copy that trains takes the whole way, so that its dropout is the same whatever is pooled."""
    encoder, batch = tiny_backbone.unfrozen_copy(), Batch.pack(random_rows(LENGTHS, words=100))
    states = []
    for poolings in (("cls",), ("cls", "mean")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            states.append(encoder.pooled(batch, NO_ADAPTERS, poolings)["cls"])
    assert torch.equal(*states)
