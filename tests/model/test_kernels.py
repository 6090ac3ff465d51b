"""The Triton kernel for several sets gives each state what the plain formula gives it; here in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from registry.adapters.interface import BottleneckWeights, Squeeze
from registry.adapters.seam import ACTIVATIONS, apply_squeeze

COUNTS, RANKS = (1, 70, 130, 5), (24, 16, 3, 48)


def new_squeezes(wide: int, out: int, activation: str) -> list[Squeeze]:
    """Return random squeezes of several ranks."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator) * 0.2

    weights = [BottleneckWeights(draw(rank, wide), draw(rank), draw(out, rank), draw(out)) for rank in RANKS]
    return [Squeeze(each, activation) for each in weights]


def largest_difference(activation: str, wide: int, out: int, device: str = "cpu", *, in_half: bool = False) -> float:
    """Return the largest difference between the kernel and the formula, for sorted and for scattered states."""
    from registry.model.kernels import Fused  # imports Triton, which not every machine has

    squeezes, dtype = new_squeezes(wide, out, activation), torch.bfloat16 if in_half else torch.float32
    places = numpy.random.default_rng(0).permutation(sum(COUNTS))
    hidden = torch.randn(sum(COUNTS), wide, generator=torch.Generator().manual_seed(1))
    moved = [one._replace(weights=BottleneckWeights(*(t.to(device, dtype) for t in one.weights))) for one in squeezes]
    worst = 0.0
    for order in (numpy.arange(len(places)), places):
        states = numpy.split(order, numpy.cumsum(COUNTS)[:-1])
        expected = torch.empty(len(hidden), out)
        for own, one in zip(states, squeezes, strict=True):
            expected[own] = apply_squeeze(hidden[own], one)
        found = Fused(states, torch.device(device)).squeeze(hidden.to(device, dtype), moved)
        worst = max(worst, float((found.cpu().float() - expected).abs().max() / expected.abs().max()))
    return worst


def test_the_kernel_equals_the_formula_in_the_interpreter() -> None:
    """Of every activation, of sets of several ranks and sizes, square and not, sorted and not: within 1e-5."""
    pytest.importorskip("triton")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, __file__], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = [float(line) for line in done.stdout.split()]
    assert len(figures) == 2 * len(ACTIVATIONS)
    assert max(figures) <= 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_kernel_on_cuda_is_near_the_formula(activation: str) -> None:
    """In bfloat16 on CUDA each state gets what float32 gives on the CPU, up to rounding."""
    pytest.importorskip("triton")
    for wide, out in ((32, 96), (768, 768), (384, 1_152)):
        assert largest_difference(activation, wide, out, "cuda", in_half=True) <= 3e-2


if __name__ == "__main__":  # in a process of its own, as the interpreter is chosen when Triton is imported
    for chosen in ACTIVATIONS:
        print(largest_difference(chosen, 32, 96), largest_difference(chosen, 48, 48))
