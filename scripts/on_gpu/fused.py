"""One Triton kernel for the thin products of several sets over states sorted by set, for answers on a GPU.

A tile of states of one set is read once: down, activation and up happen where the tile is, so no inner states are
written and no weights are gathered or copied. Where each set's tensors lie is told in a table of addresses, so their
ranks may differ. An experiment: on an H200 it was no faster than the grouped products that the package uses
(reports/gpu.md), so it stands here and not there.

Source of the idea: the segmented kernels of Punica and S-LoRA; addresses in a table as in Triton's grouped products.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor

from registry.adapters.formulas import of_states
from registry.adapters.interface import BottleneckWeights, Squeeze
from registry.model.grouped import Indices, sorting_of

LEAST_TILE, MOST_TILE = 16, 64  # states of one program
_CHUNK = 64  # elements of the width read or written at a time
_ALIGNED = 16  # bytes; where all rows begin at such an address, a thread reads that much at once
_CODES = {"identity": 0, "relu": 1, "gelu": 2, "silu": 3, "tanh": 4}


@triton.jit
def _squeeze_tiles(
    hidden, added, sets, tiles, stride_hidden,
    WIDE: tl.constexpr, OUT: tl.constexpr, RANK: tl.constexpr, ACTIVATION: tl.constexpr,
    TILE: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr, IS_ALIGNED: tl.constexpr,
) -> None:  # fmt: skip
    """Write what the states of one tile get: ``up(act(down x + down_bias)) + up_bias``."""
    kind = hidden.dtype.element_ty
    which = tl.program_id(0)
    owner = tl.load(tiles + 3 * which)
    first = tl.load(tiles + 3 * which + 1).to(tl.int64)
    end = tl.load(tiles + 3 * which + 2).to(tl.int64)
    own = sets + 5 * owner  # addresses of down, its bias, up and its bias, and the rank
    down = tl.load(own).to(tl.pointer_type(kind))
    down_bias = tl.load(own + 1).to(tl.pointer_type(kind))
    up = tl.load(own + 2).to(tl.pointer_type(kind))
    up_bias = tl.load(own + 3).to(tl.pointer_type(kind))
    rank = tl.load(own + 4)
    if IS_ALIGNED:  # nothing else tells the compiler, which would read every element alone
        down, down_bias, rank = tl.multiple_of(down, 16), tl.multiple_of(down_bias, 16), tl.multiple_of(rank, 8)
        up, up_bias = tl.multiple_of(up, 16), tl.multiple_of(up_bias, 16)
    rows = first + tl.arange(0, TILE)
    inner = tl.arange(0, RANK)
    is_row, is_inner = rows < end, inner < rank
    total = tl.zeros((TILE, RANK), dtype=tl.float32)
    for start in range(0, WIDE, CHUNK):
        place = start + tl.arange(0, CHUNK)
        is_place = place < WIDE
        x = tl.load(hidden + rows[:, None] * stride_hidden + place[None, :],
                    mask=is_row[:, None] & is_place[None, :], other=0.0)  # fmt: skip
        # (CHUNK, RANK): the matrix is (rank, WIDE)
        weight = tl.load(down + inner[None, :] * WIDE + place[:, None],
                         mask=is_place[:, None] & is_inner[None, :], other=0.0)  # fmt: skip
        total += tl.dot(x, weight, input_precision=PRECISION)
    total += tl.load(down_bias + inner, mask=is_inner, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == 1:
        total = tl.where(total < 0.0, 0.0, total)  # keeps NaN, as torch does and tl.maximum does not
    elif ACTIVATION == 2:
        total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    elif ACTIVATION == 3:
        total = total / (1.0 + tl.exp(-total))
    elif ACTIVATION == 4:
        total = 2.0 / (1.0 + tl.exp(-2.0 * total)) - 1.0
    active = total.to(kind)
    for start in range(0, OUT, CHUNK):
        place = start + tl.arange(0, CHUNK)
        is_place = place < OUT
        # (RANK, CHUNK): the matrix is (OUT, rank)
        weight = tl.load(up + place[None, :] * rank + inner[:, None],
                         mask=is_inner[:, None] & is_place[None, :], other=0.0)  # fmt: skip
        result = tl.dot(active, weight, input_precision=PRECISION)
        result += tl.load(up_bias + place, mask=is_place, other=0.0).to(tl.float32)[None, :]
        tl.store(added + rows[:, None] * OUT + place[None, :], result.to(kind),
                 mask=is_row[:, None] & is_place[None, :])  # fmt: skip


class Fused:
    """Both products of all sets in one launch.

    Args:
        states: for each set the places of its states; together all of them.
        device: where the states are.
    """

    def __init__(self, states: Sequence[Indices], device: torch.device) -> None:
        counts = [len(own) for own in states]
        self._tile = tile_for(counts)
        self._tiles = tiles_of(counts, self._tile).to(device)
        self._gather, self._scatter = sorting_of(states, device)

    def squeeze(self, hidden: Tensor, squeezes: Sequence[Squeeze]) -> Tensor:
        """Return what each state's own set adds to it, (N, out) in the dtype of ``hidden``."""
        ordered = hidden.contiguous() if self._gather is None else hidden.index_select(0, self._gather)
        weights = [_in_rows(of_states(one.weights, hidden)) for one in squeezes]
        added = squeeze_tiles(ordered, weights, self._tiles, self._tile, squeezes[0].activation)
        return added if self._scatter is None else added.index_select(0, self._scatter)


def _in_rows(weights: BottleneckWeights) -> BottleneckWeights:
    """Return the weights as the kernel reads them; asked of the matrices alone, as it is asked at every seam."""
    if weights.down.is_contiguous() and weights.up.is_contiguous():
        return weights
    return BottleneckWeights(*(tensor.contiguous() for tensor in weights))


def tile_for(counts: Sequence[int]) -> int:
    """Return how many states a tile has: small ones for small sets, so that few are empty and many run at once."""
    return min(MOST_TILE, max(LEAST_TILE, int(triton.next_power_of_2(sum(counts) // len(counts)))))


def tiles_of(counts: Sequence[int], tile: int) -> Tensor:
    """Return (P, 3) int32: of each tile the set, its first state and where the states of the set end."""
    ends = numpy.cumsum(counts)
    tiles = [
        (owner, first, end)
        for owner, (count, end) in enumerate(zip(counts, ends.tolist(), strict=True))
        for first in range(end - count, end, tile)
    ]
    return torch.tensor(tiles, dtype=torch.int32)


def squeeze_tiles(
    hidden: Tensor, weights: Sequence[BottleneckWeights], tiles: Tensor, tile: int, activation: str
) -> Tensor:
    """Return what each state's own set adds to it, (N, out) in the dtype of ``hidden``.

    Args:
        hidden: (N, in), sorted by set, its last dimension contiguous.
        weights: of each set, contiguous, in the dtype of ``hidden`` and on its device; they must outlive the launch.
        tiles: see ``tiles_of``, on the same device.
        tile: states of one tile.
        activation: between the two products.
    """
    table = [(*(tensor.data_ptr() for tensor in one), len(one.down_bias)) for one in weights]
    numbers = numpy.array(table, dtype=numpy.int64)
    sets = torch.from_numpy(numbers)
    if hidden.is_cuda:
        sets = sets.pin_memory().to(hidden.device, non_blocking=True)
    wide, out = weights[0].down.shape[1], len(weights[0].up_bias)
    added = torch.empty(len(hidden), out, dtype=hidden.dtype, device=hidden.device)
    rank = max(16, triton.next_power_of_2(max(own[-1] for own in table)))
    row = _ALIGNED // hidden.element_size()  # elements
    is_aligned = not ((numbers[:, :4] % _ALIGNED).any() or (numbers[:, 4] % max(row, 8)).any() or wide % row)
    precision = "ieee" if hidden.dtype == torch.float32 else "tf32"
    _squeeze_tiles[(len(tiles),)](
        hidden, added, sets, tiles, hidden.stride(0), WIDE=wide, OUT=out, RANK=rank, ACTIVATION=_CODES[activation],
        TILE=tile, CHUNK=_CHUNK, PRECISION=precision, IS_ALIGNED=bool(is_aligned), num_warps=8 if rank >= 128 else 4,
    )  # fmt: skip
    return added
