"""A batch of several adapter sets gives each row what its own set alone would give it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from registry.adapters import AdapterSet
from registry.backbone import Backbone
from registry.batching import Batch, TokenRows
from registry.evaluation import loss_of
from registry.mixing import MixedAdapters
from registry.schema import AdapterConfig, HeadConfig
from tests.stock import difference, our_states, random_rows, unpack
from tests.toy import randomise

TOLERANCE = 1e-5
HEAD = HeadConfig(label_names=("no", "yes"))
CONFIGS = (
    AdapterConfig(placement="after_layer", reduction_factor=4),
    AdapterConfig(placement="houlsby", reduction_factor=2, activation="relu", layers=(0,)),
    AdapterConfig(placement="pfeiffer", reduction_factor=8, activation="silu", layer_norms=True),
    AdapterConfig(placement="parallel", reduction_factor=1, activation="tanh", scale=4.0, layers=(1,)),
    None,
)


def random_sets(backbone: Backbone) -> list[AdapterSet]:
    """Return a random set of each of ``CONFIGS``."""
    fresh = [backbone.new_adapter_set(config, HEAD, seed=seed) for seed, config in enumerate(CONFIGS)]
    return [randomise(one, seed).eval() for seed, one in enumerate(fresh)]


def alone(backbone: Backbone, sets: list[AdapterSet], rows: TokenRows, chosen: list[int]) -> list[torch.Tensor]:
    """Return the states of each row from a batch of its own, through its own set only."""
    return [our_states(backbone.encoder, rows.take([i]), sets[one].adapter)[0] for i, one in enumerate(chosen)]


@pytest.mark.parametrize(
    "chosen",
    [[0, 1, 2, 3, 4, 0, 1, 2], [3, 3, 0, 0, 1, 4, 4, 2], [1] * 8, [4, 3, 2, 1, 0, 4, 3, 2], [0, 0, 0, 0, 0, 0, 0, 2]],
)
def test_mixed_batch_equals_each_set_alone(tiny_backbone: Backbone, chosen: list[int]) -> None:
    """Sets of another placement, size, activation or number of layers in the batch do not change a row's states."""
    sets, rows = random_sets(tiny_backbone), random_rows(words=100)
    batch = Batch.pack(rows, chosen)
    mixed = unpack(tiny_backbone(batch, MixedAdapters([one.adapter for one in sets], batch)).detach(), batch)
    assert difference(alone(tiny_backbone, sets, rows, chosen), mixed) <= TOLERANCE


def test_sets_change_the_states_of_their_own_rows(tiny_backbone: Backbone) -> None:
    """The sets of these tests are far from each other, so that a row in the wrong hands would show."""
    sets, rows = random_sets(tiny_backbone), random_rows((9,), words=100)
    states = [our_states(tiny_backbone.encoder, rows, one.adapter)[0] for one in sets]
    for first in range(len(states)):
        for second in range(first):
            assert difference([states[first]], [states[second]]) > 0.1


def test_order_of_the_rows_does_not_matter(tiny_backbone: Backbone) -> None:
    """A caller may shuffle a mixed batch and gets the same states for the same rows."""
    sets, rows, chosen = random_sets(tiny_backbone), random_rows(words=100), [0, 1, 2, 3, 4, 0, 1, 2]
    shuffled = [5, 2, 7, 0, 3, 6, 1, 4]

    def states(order: list[int]) -> list[torch.Tensor]:
        batch = Batch.pack(rows.take(order), [chosen[i] for i in order])
        return unpack(tiny_backbone(batch, MixedAdapters([one.adapter for one in sets], batch)).detach(), batch)

    expected = states(list(range(8)))
    assert difference([expected[i] for i in shuffled], states(shuffled)) <= TOLERANCE


def test_gradients_of_a_mixed_batch_equal_those_of_each_set_alone(tiny_backbone: Backbone) -> None:
    """Each set's mean loss in a joint batch has the gradients that it has in a batch of its own."""
    rows, chosen = random_rows(words=100), [0, 1, 0, 2, 1, 2, 0, 1]
    labels = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1])
    joint, separate = random_sets(tiny_backbone)[:3], random_sets(tiny_backbone)[:3]
    batch = Batch.pack(rows, chosen)
    hidden = tiny_backbone(batch, MixedAdapters([one.adapter for one in joint], batch))
    pooled = tiny_backbone.encoder.pool(hidden, batch, "mean")
    losses = [
        loss_of("classification", joint[owner].head(pooled[rows]), labels[batch.order[rows]])
        for owner, rows in batch.rows_of_sets.items()
    ]
    torch.stack(losses).sum().backward()
    for index, one in enumerate(separate):
        own = [row for row, chosen_set in enumerate(chosen) if chosen_set == index]
        part = Batch.pack(rows.take(own))
        logits = one.head(tiny_backbone.encoder.pool(tiny_backbone(part, one.adapter), part, "mean"))
        loss_of("classification", logits, labels[own][part.order]).backward()
        for expected, actual in zip(one.parameters(), joint[index].parameters(), strict=True):
            assert difference([expected.grad], [actual.grad]) <= TOLERANCE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_mixed_batch_on_cuda_is_near_the_cpu(tiny_backbone: Backbone, tiny_folder: Path) -> None:
    """In float32 a mixed batch on CUDA gives the CPU's states up to the rounding of other kernels."""
    sets, rows, chosen = random_sets(tiny_backbone), random_rows(words=100), [0, 1, 2, 3, 4, 0, 1, 2]
    expected = alone(tiny_backbone, sets, rows, chosen)
    on_cuda = Backbone.load(str(tiny_folder), device="cuda", dtype="float32")
    batch = Batch.pack(rows, chosen, on_cuda.device)
    moved = MixedAdapters([one.to("cuda").adapter for one in sets], batch)
    assert difference(expected, unpack(on_cuda(batch, moved).detach(), batch)) <= 1e-4
