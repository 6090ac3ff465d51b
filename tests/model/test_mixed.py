"""A batch of several adapter sets gives each row what its own set alone would give it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.head import loss_of
from registry.adapters.interface import Place, Seam
from registry.config import AdapterConfig, HeadConfig, MethodConfig
from registry.model.backbone import Backbone
from registry.model.batching import Batch, TokenRows
from registry.model.grouped import AllAtOnce, SetBySet, Tiers
from registry.model.inference import AnsweringSet, linear_logits, logits_of, mixed_logits
from registry.model.mixed import MixedAdapters
from registry.serving.pool import ResidentAdapter, ResidentSet
from tests.support.stock_models import difference, our_states, random_rows, unpack
from tests.support.stored_sets import new_manifest
from tests.support.toy_task import METHODS, randomise

TOLERANCE = 1e-5
HEAD = HeadConfig(label_names=("no", "yes"))
CONFIGS = (
    AdapterConfig(placement="after_layer", reduction_factor=4),
    AdapterConfig(placement="houlsby", reduction_factor=2, activation="relu", layers=(0,)),
    AdapterConfig(placement="pfeiffer", reduction_factor=8, activation="silu", layer_norms=True),
    AdapterConfig(placement="parallel", reduction_factor=1, activation="tanh", scale=4.0, layers=(1,)),
    None,
)
KINDS = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {
            "placement": st.sampled_from(["after_layer", "houlsby", "pfeiffer", "parallel"]),
            "activation": st.sampled_from(["relu", "gelu", "silu", "tanh"]),
            "layer_norms": st.booleans(),
            "scale": st.sampled_from([1.0, 4.0]),
        }
    ),
    st.sampled_from(sorted(METHODS)),
)
LAYERS = st.sampled_from([None, None, (0,), (1,)])
LENGTHS = st.lists(st.one_of(st.integers(1, 9), st.sampled_from([1, 64])), min_size=1, max_size=24)


@st.composite
def heads(draw: st.DrawFn) -> HeadConfig:
    """Draw a head of any pooling, form and number of labels."""
    return HeadConfig(
        label_names=tuple("abcde"[: draw(st.integers(1, 5))]),
        problem_type="multi_label",
        pooling=draw(st.sampled_from(["mean", "cls", "pooler"])),
        form=draw(st.sampled_from(["linear", "dense_tanh"])),
    )


@st.composite
def mixes(draw: st.DrawFn) -> tuple[list[tuple[MethodConfig | None, HeadConfig]], list[int], list[int]]:
    """Draw the shapes of 1 to 12 sets, and the lengths and owners of rows; sets often share a kind, and owners skew."""
    palette = draw(st.lists(KINDS, min_size=1, max_size=3))
    shapes = []
    for _ in range(draw(st.integers(1, 12))):
        kind, size = draw(st.sampled_from(palette)), draw(st.sampled_from([1, 2, 8, 32]))
        adapter: MethodConfig | None = None
        if isinstance(kind, str):
            adapter = METHODS[kind]
        elif kind is not None:
            adapter = AdapterConfig(**kind, reduction_factor=size, layers=draw(LAYERS))
        shapes.append((adapter, draw(heads())))
    lengths = draw(LENGTHS)
    owner = st.one_of(st.just(0), st.integers(0, len(shapes) - 1))
    return shapes, lengths, [draw(owner) for _ in lengths]


def answers_alone(backbone: Backbone, sets: list[AdapterSet], rows: TokenRows, owners: list[int]) -> list[Tensor]:
    """Return the logits of each row from a batch of its own."""
    parts = [Batch.pack(rows.take([row])) for row in range(len(rows))]
    return [logits_of(backbone.encoder, sets[owner], part)[0] for owner, part in zip(owners, parts, strict=True)]


def answers_mixed(backbone: Backbone, sets: list[AnsweringSet], rows: TokenRows, owners: list[int]) -> list[Tensor]:
    """Return the logits of each row from one batch of all, in the caller's order."""
    batch = Batch.pack(rows, owners)
    answered = mixed_logits(backbone.encoder, sets, batch)
    assert sorted(set(owners)) == list(answered)
    order = batch.order.tolist()
    found = {order[row]: one for packed, own in answered.values() for row, one in zip(packed, own, strict=True)}
    return [found[row] for row in range(len(rows))]


def resident(one: AdapterSet) -> ResidentSet:
    """Return the set as a predictor would keep it."""
    return ResidentSet("mrpc:1", new_manifest(), one, torch.float32)


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


PLANS = {plan.__name__: plan for plan in (SetBySet, Tiers, AllAtOnce)}


def plan_with(patch: pytest.MonkeyPatch, plan: str) -> None:
    """Let mixed batches be computed by a plan that another device would take."""
    patch.setattr("registry.model.mixed.group_sets", lambda states, device, weights: PLANS[plan](states, device))


@pytest.mark.parametrize("plan", PLANS)
@given(mix=mixes(), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_any_mix_equals_each_row_alone(
    tiny_backbone: Backbone,
    plan: str,
    mix: tuple[list[tuple[MethodConfig | None, HeadConfig]], list[int], list[int]],
    seed: int,
) -> None:
    """Whatever sets, heads and rows meet in a batch, every row gets its own answer; in training and resident alike."""
    shapes, lengths, owners = mix
    sets = [
        randomise(tiny_backbone.new_adapter_set(adapter, head), seed + number).eval()
        for number, (adapter, head) in enumerate(shapes)
    ]
    rows = random_rows(lengths, seed=seed, words=100)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        plan_with(patch, plan)
        expected = answers_alone(tiny_backbone, sets, rows, owners)
        mixed = answers_mixed(tiny_backbone, list(sets), rows, owners)
        from_pool = answers_mixed(tiny_backbone, [resident(one) for one in sets], rows, owners)
    assert [len(shapes[owner][1].label_names) for owner in owners] == [len(answer) for answer in mixed]
    assert difference(expected, mixed) <= TOLERANCE
    assert difference(expected, from_pool) <= TOLERANCE


def test_one_huge_row_beside_many_short_ones(tiny_backbone: Backbone) -> None:
    """Sets of one kind and different sizes, one of them with nearly all tokens, get the answers they get alone."""
    sizes = (1, 2, 4, 8, 16, 32, 2, 4)
    configs = [AdapterConfig(placement="houlsby", reduction_factor=size, layer_norms=True) for size in sizes]
    sets = [randomise(tiny_backbone.new_adapter_set(config, HEAD), seed) for seed, config in enumerate(configs)]
    rows, owners = random_rows([64] * 12 + [1, 1, 2, 3, 1, 1, 5], words=100), [3] * 12 + [0, 1, 2, 4, 5, 6, 7]
    with torch.no_grad():
        expected = answers_alone(tiny_backbone, sets, rows, owners)
        assert difference(expected, answers_mixed(tiny_backbone, list(sets), rows, owners)) <= TOLERANCE


GRADIENT_SETS = (
    (AdapterConfig(placement="houlsby", reduction_factor=4, layer_norms=True), HEAD),
    (
        AdapterConfig(placement="houlsby", reduction_factor=1, layer_norms=True),
        HeadConfig(label_names=("no", "yes"), pooling="cls", form="dense_tanh"),
    ),
    (AdapterConfig(placement="houlsby", reduction_factor=16, layers=(1,)), HEAD),
    (AdapterConfig(placement="parallel", reduction_factor=2, activation="tanh", scale=2.0), HEAD),
    (AdapterConfig(placement="pfeiffer", reduction_factor=8, activation="silu", layer_norms=True), HEAD),
    (AdapterConfig(placement="pfeiffer", reduction_factor=2, activation="silu", layer_norms=True), HEAD),
    (None, HeadConfig(label_names=("no", "yes"), pooling="pooler")),
    *(
        (msgspec.structs.replace(config, dropout=0.0) if config.name == "lora" else config, HEAD)
        for config in METHODS.values()
    ),
)


@pytest.mark.parametrize("plan", ["SetBySet", "Tiers"])
@pytest.mark.parametrize(
    "chosen",
    [
        [0, 1, 0, 2, 1, 2, 0, 1],
        [6, 5, 4, 3, 2, 1, 0, 0],
        [4, 5, 5, 5, 4, 5, 5, 5],
        [1, 1, 1, 1, 1, 1, 1, 1],
        [7, 8, 9, 10, 11, 12, 13, 14],
        [7, 0, 7, 8, 13, 14, 13, 0],
        [6, 12, 10, 10, 12, 2, 6, 14],
        [15, 0, 15, 16, 3, 16, 15, 15],
    ],
)
def test_gradients_of_a_mixed_batch_equal_those_of_each_set_alone(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch, chosen: list[int], plan: str
) -> None:
    """Each set's mean loss in a joint batch has the gradients that it has in a batch of its own."""
    plan_with(monkeypatch, plan)
    rows, labels = random_rows(words=100), torch.tensor([0, 1, 1, 0, 0, 1, 0, 1])
    joint, separate = (
        [randomise(tiny_backbone.new_adapter_set(*shape), seed) for seed, shape in enumerate(GRADIENT_SETS)]
        for _ in range(2)
    )
    batch = Batch.pack(rows, chosen)
    losses = [
        loss_of("classification", logits, labels[batch.order[packed]])
        for packed, logits in mixed_logits(tiny_backbone.encoder, joint, batch).values()
    ]
    torch.stack(losses).sum().backward()
    for index, one in enumerate(separate):
        own = [row for row, chosen_set in enumerate(chosen) if chosen_set == index]
        if own:
            part = Batch.pack(rows.take(own))
            logits = logits_of(tiny_backbone.encoder, one, part)
            loss_of("classification", logits, labels[own][part.order]).backward()
        for expected, actual in zip(one.parameters(), joint[index].parameters(), strict=True):
            assert (expected.grad is None) == (actual.grad is None) == (not own)
            if own:
                assert float(expected.grad.abs().max()) >= 0
                assert difference([expected.grad], [actual.grad]) <= TOLERANCE


class Watched(ResidentAdapter):
    """A resident adapter that counts how often it is asked what it does."""

    asked = 0

    def seam(self, layer: int, place: Place) -> Seam:
        """Return what this set does after one sub-layer."""
        self.asked += 1
        return super().seam(layer, place)


def test_only_the_sets_of_the_batch_are_asked(tiny_backbone: Backbone) -> None:
    """A batch over 3 of 200 resident sets asks those 3, once at each seam; the others cost nothing."""
    config = AdapterConfig(placement="pfeiffer", reduction_factor=8)
    sets = [resident(tiny_backbone.new_adapter_set(config, HEAD, seed=seed)) for seed in range(200)]
    one = tiny_backbone.new_adapter_set(config, HEAD)
    watched = [Watched(one.adapter, one.layers, torch.float32) for _ in sets]
    for each, adapter in zip(sets, watched, strict=True):
        each.adapter, adapter.asked = adapter, 0
    answers_mixed(tiny_backbone, list(sets), random_rows(words=100), [7, 150, 7, 31, 31, 150, 7, 7])
    assert {7: 4, 31: 4, 150: 4} == {index: adapter.asked for index, adapter in enumerate(watched) if adapter.asked}


def test_heads_of_one_shape_answer_together(tiny_backbone: Backbone) -> None:
    """Linear heads of as many labels give in a few products what each gives its own rows; others are left alone."""
    sets = [randomise(tiny_backbone.new_adapter_set(None, HEAD), seed).eval() for seed in range(3)]
    pooled, counts = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)), [3, 1, 2]
    parts = torch.split(pooled, counts)
    expected = [one.head(part) for one, part in zip(sets, parts, strict=True)]
    together = linear_logits([one.head for one in sets], counts, {"mean": pooled})
    assert together is not None
    assert difference(expected, torch.split(together, counts)) <= 1e-6
    other = tiny_backbone.new_adapter_set(None, msgspec.structs.replace(HEAD, form="dense_tanh")).eval()
    assert linear_logits([sets[0].head, other.head], [3, 3], {"mean": pooled}) is None


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
