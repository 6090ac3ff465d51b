"""States below the lowest adapter: computed once, and a training that starts from them learns the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.config import AdapterConfig, HeadConfig
from registry.model.backbone import Backbone
from registry.model.batching import Batch
from registry.model.inference import LabelledRows
from registry.training.cached_states import CachedStates, packed_order
from registry.training.loop import train_together
from registry.training.state import TrainingJob
from tests.support.stock_models import difference, random_rows
from tests.support.tiny_backbone import save_tiny_checkpoint
from tests.support.toy_task import HEAD, TRAINING, toy_rows

UPPER = AdapterConfig(placement="houlsby", reduction_factor=4, dropout=0.1, layer_norms=True, layers=(1,))
TOLERANCE = 1e-6


@contextmanager
def watched(backbone: Backbone, layer: int) -> Iterator[list[int]]:
    """Give a list that gets the rows of each batch that runs through a layer."""
    rows: list[int] = []
    hook = backbone.encoder.layers[layer].register_forward_hook(
        lambda module, inputs, output: rows.append(inputs[2].row_count)
    )
    yield rows
    hook.remove()


def new_job(
    backbone: Backbone, rows: LabelledRows, seed: int = 0, adapter: AdapterConfig = UPPER, head: HeadConfig = HEAD
) -> TrainingJob:
    """Return a job of 20 steps for a fresh set."""
    config = msgspec.structs.replace(TRAINING, epochs=4, seed=seed)
    return TrainingJob(backbone.new_adapter_set(adapter, head, seed=seed), rows, config)


def weights(jobs: list[TrainingJob]) -> list[Tensor]:
    """Return the trained tensors of all jobs."""
    return [parameter for job in jobs for parameter in job.adapter_set.parameters()]


def train_all(backbone: Backbone, jobs: list[TrainingJob]) -> list[AdapterSet]:
    """Train the jobs in one pass and return their sets."""
    train_together(backbone.encoder, jobs)
    return [job.adapter_set for job in jobs]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_packed_order_follows_the_batch(lengths_and_sets: list[tuple[int, int]]) -> None:
    """Whatever way a batch sorts its rows, what was row after row is where its tokens are."""
    lengths, sets = map(list, zip(*lengths_and_sets, strict=True))
    rows = random_rows(lengths)
    batch = Batch.pack(rows, sets)
    in_order = torch.tensor([token for ids in rows.input_ids for token in ids])
    assert torch.equal(batch.input_ids, in_order[packed_order(batch)])


@pytest.mark.parametrize("layer", [1, 2])
def test_states_are_those_of_each_row_alone(tiny_backbone: Backbone, layer: int) -> None:
    """Rows asked for in any order, and twice, come with the states that enter the layer."""
    rows = random_rows((7, 3, 64, 12, 3, 1), words=100)
    kept, asked = CachedStates(tiny_backbone.encoder, rows, layer), [4, 0, 5, 2, 0, 1]
    with torch.no_grad():
        alone = [tiny_backbone.encoder.below(layer, Batch.pack(rows.take([row]))) for row in asked]
    states = kept.of(asked)
    assert not states.requires_grad
    assert difference([torch.cat(alone)], [states]) <= TOLERANCE


def test_many_rows_are_computed_in_batches(tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """However rows are cut into batches, their states are at their own places."""
    rows = random_rows((7, 3, 40, 12, 3, 1, 9), words=100)
    whole = CachedStates(tiny_backbone.encoder, rows, 1).of(range(7))
    monkeypatch.setattr("registry.training.cached_states.BATCH_ROWS", 2)
    with watched(tiny_backbone, 0) as ran:
        in_parts = CachedStates(tiny_backbone.encoder, rows, 1).of(range(7))
    assert [2, 2, 2, 1] == ran
    assert difference([whole], [in_parts]) <= TOLERANCE


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_training_from_kept_states_learns_the_same(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch, pooling: str
) -> None:
    """With or without them, 20 steps end at the same weights, and layers below run once for each row."""
    rows, head = toy_rows(tiny_backbone), HeadConfig(label_names=("bad", "good"), pooling=pooling, dropout=0.1)
    kept, anew = ([new_job(tiny_backbone, rows, head=head)] for _ in range(2))
    with watched(tiny_backbone, 0) as ran:
        train_all(tiny_backbone, kept)
    assert 40 == sum(ran)
    monkeypatch.setattr(CachedStates, "fits", staticmethod(lambda encoder, parts: False))
    with watched(tiny_backbone, 0) as ran:
        train_all(tiny_backbone, anew)
    assert 4 * 40 == sum(ran)
    start = weights([new_job(tiny_backbone, rows, head=head)])
    assert difference(start, weights(kept)) > 1e-2
    assert difference(weights(anew), weights(kept)) <= TOLERANCE


def test_layers_above_run_in_every_epoch(tiny_backbone: Backbone) -> None:
    """Only what does not change is kept."""
    with watched(tiny_backbone, 1) as ran:
        train_all(tiny_backbone, [new_job(tiny_backbone, toy_rows(tiny_backbone))])
    assert 4 * 40 == sum(ran)


def test_seeds_on_the_same_rows_share_the_states(tiny_backbone: Backbone) -> None:
    """Two sets of one list of rows need its states once; two lists are computed one by one."""
    rows = toy_rows(tiny_backbone)
    for jobs, expected in (
        ([new_job(tiny_backbone, rows, seed) for seed in (0, 1)], 40),
        ([new_job(tiny_backbone, toy_rows(tiny_backbone), seed) for seed in (0, 1)], 80),
    ):
        with watched(tiny_backbone, 0) as ran:
            train_all(tiny_backbone, jobs)
        assert expected == sum(ran)


@pytest.fixture(scope="module")
def three_layers(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A tiny backbone with one layer more."""
    folder = tmp_path_factory.mktemp("three")
    save_tiny_checkpoint(folder, num_hidden_layers=3)
    return Backbone.load(str(folder), device="cpu")


@pytest.mark.parametrize("lowest", [(1, 2), (0, 2), (2, 2)])
def test_sets_with_other_lowest_layers_learn_what_they_learn_alone(
    three_layers: Backbone, lowest: tuple[int, int]
) -> None:
    """States are kept below the lowest of all sets, and a set that begins higher is none the worse."""
    rows = [toy_rows(three_layers, seed=seed) for seed in (0, 1)]

    def jobs() -> list[TrainingJob]:
        adapters = [msgspec.structs.replace(UPPER, layers=tuple(range(layer, 3))) for layer in lowest]
        return [new_job(three_layers, rows[seed], seed, adapters[seed]) for seed in (0, 1)]

    together, alone = jobs(), jobs()
    with watched(three_layers, 0) as first, watched(three_layers, 1) as second:
        train_all(three_layers, together)
    assert (8 * 40 if min(lowest) == 0 else 2 * 40) == sum(first)
    assert (2 * 40 if min(lowest) == 2 else 8 * 40) == sum(second)
    for job in alone:
        train_all(three_layers, [job])
    assert difference(weights(alone), weights(together)) <= TOLERANCE


def test_too_many_states_are_not_kept(tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits is decided by the bytes of all lists of rows; one byte too many and every step begins anew."""
    rows = toy_rows(tiny_backbone)
    exact = sum(len(ids) for ids in rows.tokens.input_ids) * 32 * 4
    for most, expected in ((exact, 40), (exact - 1, 4 * 40)):
        monkeypatch.setattr("registry.training.cached_states.MOST_BYTES", most)
        assert (expected == 40) == CachedStates.fits(tiny_backbone.encoder, [rows.tokens])
        assert not CachedStates.fits(tiny_backbone.encoder, [rows.tokens, rows.tokens])
        with watched(tiny_backbone, 0) as ran:
            train_all(tiny_backbone, [new_job(tiny_backbone, rows)])
        assert expected == sum(ran)


def test_states_of_a_bfloat16_backbone_are_half_as_large(tiny_backbone: Backbone, tiny_folder: Path) -> None:
    """States are kept in the backbone's dtype, so twice as many rows fit."""
    half = Backbone.load(str(tiny_folder), device="cpu", dtype="bfloat16")
    rows = toy_rows(half)
    states = CachedStates(half.encoder, rows.tokens, 1).of([0, 1])
    assert torch.bfloat16 == states.dtype
    exact = CachedStates(tiny_backbone.encoder, rows.tokens, 1).of([0, 1])
    assert difference([exact], [states]) <= 0.1
    train_all(half, [new_job(half, rows)])


def test_full_fine_tuning_keeps_no_states(tiny_backbone: Backbone) -> None:
    """While the encoder itself learns, every step runs all of it, though the set begins above the first layer."""
    encoder, ran = tiny_backbone.unfrozen_copy(), []
    encoder.layers[0].register_forward_hook(lambda module, inputs, output: ran.append(inputs[2].row_count))
    train_together(encoder, [new_job(tiny_backbone, toy_rows(tiny_backbone))])
    assert 4 * 40 == sum(ran)
