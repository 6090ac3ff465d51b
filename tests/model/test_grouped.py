"""Bottlenecks of several sets at once: whatever is grouped, padded or gathered, each state gets its own set's."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from registry.adapters.formulas import ACTIVATIONS, apply_squeeze
from registry.adapters.interface import BottleneckWeights, Dropout, Squeeze
from registry.model.grouped import AllAtOnce, Grouping, Indices, SetBySet, Tiers, group_sets
from tests.support.stock_models import difference

CPU = torch.device("cpu")
WIDTH, OUT = 32, 48
COUNTS = st.lists(st.one_of(st.just(1), st.integers(1, 40)), min_size=1, max_size=9)
SIZES = st.sampled_from([1, 2, 8, 15, 16, 32])


def new_squeeze(size: int, seed: int, activation: str = "gelu", dtype: torch.dtype = torch.float32) -> Squeeze:
    """Return a random bottleneck whose inner states are ``size`` wide; it gives more elements than it takes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((size, WIDTH), (size,), (OUT, size), (OUT,))
    tensors = (torch.randn(shape, generator=generator) * 0.15 for shape in shapes)
    return Squeeze(BottleneckWeights(*(tensor.to(dtype) for tensor in tensors)), activation)


def scattered(counts: list[int], seed: int) -> list[Indices]:
    """Return the places of each set's states, all over the batch and in no order."""
    places = numpy.random.default_rng(seed).permutation(sum(counts))
    return numpy.split(places, numpy.cumsum(counts)[:-1])


def set_by_set(hidden: Tensor, states: list[Indices], squeezes: list[Squeeze]) -> Tensor:
    """Return what the plain formula gives, one set after the other."""
    added = hidden.new_empty(len(hidden), OUT)
    for own, squeeze in zip(states, squeezes, strict=True):
        places = torch.from_numpy(own)
        added[places] = apply_squeeze(hidden[places], squeeze)
    return added


def random_hidden(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return (count, H) states."""
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)


@given(COUNTS, st.data())
@settings(max_examples=80, deadline=None)
def test_plans_equal_set_by_set(counts: list[int], data: st.DataObject) -> None:
    """Any counts, sizes and places give each state what its own set adds, in one product, in tiers or one by one."""
    activation = data.draw(st.sampled_from(sorted(ACTIVATIONS)))
    squeezes = [new_squeeze(data.draw(SIZES), seed, activation) for seed in range(len(counts))]
    hidden, states = random_hidden(sum(counts)), scattered(counts, data.draw(st.integers(0, 9)))
    expected = set_by_set(hidden, states, squeezes)
    assert difference([expected], [SetBySet(states, CPU).squeeze(hidden, squeezes)]) <= 1e-5
    for most_padding in (0, 5, 400):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("registry.model.grouped.MOST_PADDING", most_padding)
            plan = Tiers(states, CPU)
        assert difference([expected], [plan.squeeze(hidden, squeezes)]) <= 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
@given(counts=COUNTS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_all_at_once_equals_set_by_set(
    dtype: torch.dtype, tolerance: float, counts: list[int], data: st.DataObject
) -> None:
    """The grouped products give each state what its own set adds, biases and padded widths included."""
    activation = data.draw(st.sampled_from(sorted(ACTIVATIONS)))
    squeezes = [new_squeeze(data.draw(SIZES), seed, activation, dtype) for seed in range(len(counts))]
    hidden, states = random_hidden(sum(counts), dtype), scattered(counts, data.draw(st.integers(0, 9)))
    added = AllAtOnce(states, CPU).squeeze(hidden, squeezes)
    assert (dtype, (len(hidden), OUT)) == (added.dtype, added.shape)
    expected = set_by_set(hidden, states, squeezes)
    assert difference([expected], [added]) <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("plan", [SetBySet, Tiers, AllAtOnce])
def test_states_in_the_order_of_their_sets_stay_where_they_are(plan: type[SetBySet | Tiers | AllAtOnce]) -> None:
    """Sets that own one run each, as in a batch on CUDA, are computed without going wrong at the seams between runs."""
    counts = [1, 5, 1, 12]
    states = numpy.split(numpy.arange(sum(counts)), numpy.cumsum(counts)[:-1])
    hidden, squeezes = random_hidden(sum(counts)), [new_squeeze(8, seed) for seed in range(4)]
    assert difference([set_by_set(hidden, states, squeezes)], [plan(states, CPU).squeeze(hidden, squeezes)]) <= 1e-5


def test_plan_on_a_cpu_is_set_by_set() -> None:
    """Only on a GPU a product costs so much to begin that batched and grouped ones are worth while."""
    for dtype in (torch.float32, torch.bfloat16):
        weights = new_squeeze(4, 0, dtype=dtype).weights
        plan: Grouping = group_sets(scattered([3, 4], 0), CPU, weights)
        assert isinstance(plan, SetBySet)


def test_small_sets_are_not_padded_to_the_largest() -> None:
    """Beside a set with a thousand states the products of three with one state each cost three states more."""
    counts, size = [1, 1000, 1, 1], 8
    plan, squeezes = Tiers(scattered(counts, 0), CPU), [new_squeeze(size, seed) for seed in range(4)]
    with FlopCounterMode(display=False) as counter:
        plan.squeeze(random_hidden(sum(counts)), squeezes)
    assert 2 * 1003 * (WIDTH + OUT) * size == counter.get_total_flops()


@pytest.mark.parametrize("kind", [SetBySet, Tiers])
def test_states_keep_their_dtype_under_float32_bottlenecks(kind: type[SetBySet | Tiers]) -> None:
    """In training on a bfloat16 backbone bottlenecks compute in float32 and add in bfloat16."""
    squeezes, states = [new_squeeze(size, size) for size in (4, 8, 8)], scattered([3, 2, 9], 0)
    hidden = random_hidden(14, torch.bfloat16)
    added = kind(states, CPU).squeeze(hidden, squeezes)
    assert torch.bfloat16 == added.dtype
    assert difference([set_by_set(hidden, states, squeezes)], [added]) <= 2e-2


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("kind", [SetBySet, Tiers])
def test_dropout_is_drawn_as_each_set_alone_would(kind: type[SetBySet | Tiers], before: bool) -> None:
    """Masks of inner states or of what enters come from each set's own generator, whatever stands beside it."""
    shares, counts = (0.5, 0.0, 0.2, 0.7), [3, 9, 5, 5]
    states, hidden = scattered(counts, 3), random_hidden(sum(counts))

    def dropping(training: bool) -> list[Squeeze]:
        squeezes = []
        for seed, (share, size) in enumerate(zip(shares, (8, 32, 2, 8), strict=True)):
            dropout = Dropout(share).train(training)
            dropout.generator = torch.Generator().manual_seed(seed)
            squeezes.append(new_squeeze(size, seed)._replace(dropout=dropout, drops_input=before))
        return squeezes

    plan, together, alone = kind(states, CPU), dropping(True), dropping(True)
    for _ in range(3):  # the next masks are the next ones of each generator, too
        dropped = plan.squeeze(hidden, together)
        assert difference([set_by_set(hidden, states, alone)], [dropped]) <= 1e-5
    whole = plan.squeeze(hidden, dropping(False))
    assert difference([set_by_set(hidden, states, dropping(False))], [whole]) <= 1e-5
    assert [True, False, True, True] == [difference([whole[own]], [dropped[own]]) > 1e-2 for own in states]


@pytest.mark.parametrize("kind", [SetBySet, Tiers])
def test_a_set_that_overflows_keeps_it_to_itself(kind: type[SetBySet | Tiers]) -> None:
    """Infinite states of one set reach neither another's answer nor its gradients, padded together or not."""
    counts = [6, 4, 1]
    states, squeezes = scattered(counts, 0), [new_squeeze(4, seed) for seed in range(3)]
    for weights in (one.weights for one in squeezes):
        for tensor in weights:
            tensor.requires_grad_(True)
    hidden = random_hidden(sum(counts))
    hidden[torch.from_numpy(states[0])] = torch.inf
    added = kind(states, CPU).squeeze(hidden, squeezes)
    own = torch.from_numpy(numpy.concatenate(states[1:]))
    added[own].sum().backward()
    assert bool(added[own].isfinite().all())
    for weights in (one.weights for one in squeezes[1:]):
        assert all(bool(tensor.grad is not None and tensor.grad.isfinite().all()) for tensor in weights)


@pytest.mark.parametrize("kind", [SetBySet, Tiers])
@given(counts=COUNTS, seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_gradients_equal_set_by_set(kind: type[SetBySet | Tiers], counts: list[int], seed: int) -> None:
    """Each bottleneck, and each state, has the gradient it would have alone."""
    gradients = []
    states = scattered(counts, seed)
    for squeeze in (lambda hidden, squeezes: set_by_set(hidden, states, squeezes), kind(states, CPU).squeeze):
        squeezes = [new_squeeze((4, 16, 1)[number % 3], number) for number in range(len(counts))]
        tensors = [tensor.requires_grad_(True) for one in squeezes for tensor in one.weights]
        hidden = random_hidden(sum(counts)).requires_grad_(True)
        squeeze(hidden, squeezes).square().mean().backward()
        gradients.append([tensor.grad for tensor in (hidden, *tensors) if tensor.grad is not None])
    assert difference(*gradients) <= 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("plan", [Tiers, AllAtOnce])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_plans_on_cuda_in_bfloat16_are_near_the_cpu(plan: type[Tiers] | type[AllAtOnce], is_sorted: bool) -> None:
    """In bfloat16 on CUDA each state gets what float32 gives on the CPU, up to rounding."""
    if plan is AllAtOnce and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("grouped products need a Hopper GPU")
    counts, device = [1, 300, 7, 64, 1], torch.device("cuda")
    runs = numpy.split(numpy.arange(sum(counts)), numpy.cumsum(counts)[:-1])
    states = runs if is_sorted else scattered(counts, 0)
    rounded = [new_squeeze(size, size, dtype=torch.bfloat16) for size in (8, 16, 2, 15, 32)]
    hidden = random_hidden(sum(counts), torch.bfloat16)
    moved = [one._replace(weights=BottleneckWeights(*(t.to(device) for t in one.weights)))
             for one in rounded]  # fmt: skip
    exact = [one._replace(weights=BottleneckWeights(*(t.float() for t in one.weights)))
             for one in rounded]  # fmt: skip
    added = plan(states, device).squeeze(hidden.to(device), moved)
    assert difference([set_by_set(hidden.float(), states, exact)], [added]) <= 4e-2
