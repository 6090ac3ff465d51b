"""The Triton kernel for several sets gives each state what the plain formula gives it; here in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from registry.adapters.formulas import apply_squeeze
from registry.adapters.interface import BottleneckWeights, Squeeze
from registry.model.grouped import Grouping
from tests.support.scripts import load_script

ACTIVATIONS = ("identity", "relu", "gelu", "silu", "tanh")  # those that the kernel has
COUNTS = (1, 70, 130, 5)
RANKS = ((24, 16, 3, 48), (24, 16, 8, 48))  # the second are read 16 bytes at a time


def new_plan(states: Sequence[numpy.ndarray], device: torch.device) -> Grouping:
    """Return the kernel's plan; the script imports Triton, which not every machine has."""
    plan: Grouping = load_script("on_gpu/fused.py").Fused(states, device)
    return plan


def new_squeezes(wide: int, out: int, activation: str, ranks: Sequence[int]) -> list[Squeeze]:
    """Return random squeezes of several ranks."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator) * 0.2

    weights = [BottleneckWeights(draw(rank, wide), draw(rank), draw(out, rank), draw(out)) for rank in ranks]
    return [Squeeze(each, activation) for each in weights]


def largest_difference(
    activation: str, ranks: Sequence[int], wide: int, out: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> float:
    """Return the largest difference between the kernel and the formula, for sorted and for scattered states."""
    squeezes = new_squeezes(wide, out, activation, ranks)
    places = numpy.random.default_rng(0).permutation(sum(COUNTS))
    hidden = torch.randn(sum(COUNTS), wide, generator=torch.Generator().manual_seed(1))
    moved = [one._replace(weights=BottleneckWeights(*(t.to(device, dtype) for t in one.weights))) for one in squeezes]
    worst = 0.0
    for order in (numpy.arange(len(places)), places):
        states = numpy.split(order, numpy.cumsum(COUNTS)[:-1])
        expected = torch.empty(len(hidden), out)
        for own, one in zip(states, squeezes, strict=True):
            expected[own] = apply_squeeze(hidden[own], one)
        found = new_plan(states, torch.device(device)).squeeze(hidden.to(device, dtype), moved)
        worst = max(worst, float((found.cpu().float() - expected).abs().max() / expected.abs().max()))
    return worst


def transposed_difference(device: str = "cpu") -> float:
    """Return the difference where matrices lie column by column."""
    hidden = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    (squeeze,) = new_squeezes(32, 96, "gelu", (8,))
    down, down_bias, up, up_bias = (tensor.to(device) for tensor in squeeze.weights)
    weights = BottleneckWeights(down.t().contiguous().t(), down_bias, up.t().contiguous().t(), up_bias)
    plan = new_plan([numpy.arange(20)], torch.device(device))
    found = plan.squeeze(hidden.to(device), [squeeze._replace(weights=weights)])
    return float((found.cpu() - apply_squeeze(hidden, squeeze)).abs().max())


def rows_of_nan(activation: str, device: str = "cpu") -> int:
    """Return how many of 20 rows have NaN in every element where that is what enters row 3."""
    hidden = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    hidden[3] = torch.nan
    (squeeze,) = new_squeezes(32, 96, activation, (16,))
    moved = squeeze._replace(weights=BottleneckWeights(*(tensor.to(device) for tensor in squeeze.weights)))
    found = new_plan([numpy.arange(20)], torch.device(device)).squeeze(hidden.to(device), [moved]).isnan()
    return int(found[3].all()) + int(found.any(1).sum()) - 1


def test_the_kernel_equals_the_formula_in_the_interpreter() -> None:
    """Of every activation, of sets of several ranks and sizes, square and not, sorted and not: within 1e-5."""
    pytest.importorskip("triton")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, __file__], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = [float(line) for line in done.stdout.split()]
    assert len(figures) == 4 * len(ACTIVATIONS) + 1
    assert max(figures) <= 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("ranks", RANKS)
def test_the_kernel_on_cuda_is_near_the_formula(activation: str, ranks: Sequence[int]) -> None:
    """In bfloat16 on CUDA each state gets what float32 gives on the CPU, up to rounding."""
    pytest.importorskip("triton")
    for wide, out in ((32, 96), (768, 768), (384, 1_152)):
        assert largest_difference(activation, ranks, wide, out, "cuda", torch.bfloat16) <= 3e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_kernel_hides_no_nan(activation: str) -> None:
    """What is no number gives no number, as with torch's activations, and stays in its row."""
    pytest.importorskip("triton")  # the interpreter keeps NaN in any case
    assert rows_of_nan(activation, "cuda") == 1
    assert transposed_difference("cuda") <= 1e-4


if __name__ == "__main__":  # in a process of its own, as the interpreter is chosen when Triton is imported
    for chosen in ACTIVATIONS:
        for each in RANKS:
            print(largest_difference(chosen, each, 32, 96), largest_difference(chosen, each, 48, 48))
    print(transposed_difference())
