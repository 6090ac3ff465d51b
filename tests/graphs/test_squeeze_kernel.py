"""The Triton kernel for several sets gives each state what the plain formula gives it; here in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from registry.adapters.formulas import apply_squeeze
from registry.adapters.interface import BottleneckWeights, Squeeze

pytest.importorskip("triton")  # which not every machine has

from registry.graphs.set_tables import TABLED_ACTIVATIONS, addresses_of, is_aligned, tiles_of
from registry.graphs.squeeze_kernel import squeeze_tiles

COUNTS = (1, 70, 130, 5)
SPARE = 3  # states of no set
RANKS = ((24, 16, 3, 48), (24, 16, 8, 48))  # the second are read 16 bytes at a time


def new_squeezes(
    wide: int, out: int, activation: str, ranks: Sequence[int], device: str, dtype: torch.dtype
) -> list[Squeeze]:
    """Return random squeezes of several ranks."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return (torch.randn(sizes, generator=generator) * 0.2).to(device, dtype)

    weights = [BottleneckWeights(draw(rank, wide), draw(rank), draw(out, rank), draw(out)) for rank in ranks]
    return [Squeeze(each, activation) for each in weights]


def by_the_kernel(hidden: Tensor, squeezes: Sequence[Squeeze], counts: Sequence[int], tile: int = 16) -> Tensor:
    """Return what the kernel adds to states that are sorted by set."""
    weights = [one.weights for one in squeezes]
    sets = torch.tensor([addresses_of(each) for each in weights], device=hidden.device)
    tiles = torch.from_numpy(tiles_of(counts, tile, len(hidden) // tile + len(counts) + 2)).to(hidden.device)
    ranks = [len(each.down_bias) for each in weights]
    aligned = all(is_aligned(hidden.dtype, hidden.shape[1], rank) for rank in ranks)
    out = len(weights[0].up_bias)
    return squeeze_tiles(hidden, sets, tiles, tile, out, max(ranks), squeezes[0].activation, aligned)


def largest_difference(
    activation: str, ranks: Sequence[int], wide: int, out: int, device: str, dtype: torch.dtype, tile: int = 16
) -> float:
    """Return the largest difference between the kernel and the formula in float32, relative to the largest number."""
    squeezes = new_squeezes(wide, out, activation, ranks, device, dtype)
    hidden = torch.randn(sum(COUNTS) + SPARE, wide, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    found = by_the_kernel(hidden, squeezes, COUNTS, tile).cpu().float()[: sum(COUNTS)]
    exact = [one._replace(weights=BottleneckWeights(*(each.cpu().float() for each in one.weights))) for one in squeezes]
    states = torch.split(hidden.cpu().float()[: sum(COUNTS)], COUNTS)
    expected = torch.cat([apply_squeeze(own, one) for own, one in zip(states, exact, strict=True)])
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles here")
@pytest.mark.parametrize("activation", TABLED_ACTIVATIONS)
@pytest.mark.parametrize("ranks", RANKS)
def test_the_kernel_equals_the_formula_in_the_interpreter(activation: str, ranks: Sequence[int]) -> None:
    """Of every activation, of sets of several ranks and sizes, square and not, with empty tiles: within 1e-5."""
    for wide, out, tile in ((32, 96, 16), (48, 48, 64)):
        assert largest_difference(activation, ranks, wide, out, "cpu", torch.float32, tile) <= 1e-5


def test_tiles_cover_each_state_once() -> None:
    """Every state is in one tile of its set, no tile has states of two sets, and what is left over is empty."""
    tiles = tiles_of(COUNTS, 16, 20).tolist()
    covered = [(owner, state) for owner, first, end in tiles for state in range(first, min(first + 16, end))]
    assert covered == [(owner, state) for state, owner in enumerate(n for n, c in enumerate(COUNTS) for _ in range(c))]


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from registry.graphs.set_tables import TABLED_ACTIVATIONS
from registry.graphs.squeeze_kernel import _squeeze_tiles as kernel
sizes = {"WIDE": 768, "OUT": 768, "RANK": 64, "TILE": 64, "CHUNK": 64, "PRECISION": "tf32", "IS_ALIGNED": True}
for capability in (80, 90):
    for dtype, activation in (("bf16", "gelu"), ("fp16", "relu")):
        constants = {**sizes, "ACTIVATION": TABLED_ACTIVATIONS.index(activation)}
        kinds = {"hidden": f"*{dtype}", "added": f"*{dtype}", "sets": "*i64", "tiles": "*i32", "stride_hidden": "i32"}
        signature = {**kinds, **dict.fromkeys(constants, "constexpr")}
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        made = triton.compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", capability, 32))
        print(len(made.asm["cubin"]))
"""


def test_the_kernel_compiles_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """Triton makes machine code of it for Ampere and Hopper, in bfloat16 and float16, without a GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [True] * 4 == [int(line) > 0 for line in done.stdout.split()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("activation", TABLED_ACTIVATIONS)
@pytest.mark.parametrize("ranks", RANKS)
def test_the_kernel_on_cuda_is_near_the_formula(activation: str, ranks: Sequence[int]) -> None:
    """In bfloat16 on CUDA each state gets what float32 gives on the CPU, up to rounding."""
    for wide, out, tile in ((32, 96, 16), (768, 768, 64), (384, 1_152, 32)):
        assert largest_difference(activation, ranks, wide, out, "cuda", torch.bfloat16, tile) <= 3e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("activation", TABLED_ACTIVATIONS)
def test_the_kernel_hides_no_nan(activation: str) -> None:
    """What is no number gives no number, as with torch's activations, and stays in its row."""
    hidden = torch.randn(20, 32, generator=torch.Generator().manual_seed(1)).cuda()  # the interpreter keeps NaN anyway
    hidden[3] = torch.nan
    squeezes = new_squeezes(32, 96, activation, (16,), "cuda", torch.float32)
    found = by_the_kernel(hidden, squeezes, (20,)).isnan()
    assert bool(found[3].all())
    assert [3] == found.any(1).nonzero().flatten().tolist()
