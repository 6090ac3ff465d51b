"""One Triton kernel for the thin products of several sets over states sorted by set, for answers on a GPU.

A tile of states of one set is read once: down, activation and up happen where the tile is, so no inner states are
written and no weights are gathered or copied. Where each set's tensors lie, and which states are a tile's, is told in
tables on the device, so a CUDA graph that holds the kernel answers for other sets once they say so.

Source of the idea: the segmented kernels of Punica and S-LoRA; addresses in a table as in Triton's grouped products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from registry.graphs.set_tables import TABLED_ACTIVATIONS

_CHUNK = 64  # elements of the width read or written at a time


@triton.jit  # type: ignore[untyped-decorator]
def _squeeze_tiles(  # type: ignore[no-untyped-def]
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
    if first >= end:
        return  # one of the tiles that a batch leaves empty
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


@torch.library.custom_op("adapter_registry::squeeze_tiles", mutates_args=())
def squeeze_tiles(
    hidden: Tensor, sets: Tensor, tiles: Tensor, tile: int, out: int, rank: int, activation: str, aligned: bool
) -> Tensor:
    """Return what each state's own set adds to it, (N, out) in the dtype of ``hidden``.

    Args:
        hidden: (N, in), sorted by set, its last dimension contiguous; a state of no tile gets anything.
        sets: (K, 5) int64 of ``addresses_of``, on the device of ``hidden``.
        tiles: (P, 3) int32 of ``tiles_of``, on the same device.
        tile: states of one tile.
        out: elements of a result.
        rank: the largest of a set.
        activation: between the two products, one of ``TABLED_ACTIVATIONS``.
        aligned: whether ``is_aligned`` says so of all sets.
    """
    added = torch.empty(len(hidden), out, dtype=hidden.dtype, device=hidden.device)
    padded = max(16, triton.next_power_of_2(rank))
    precision = "ieee" if hidden.dtype == torch.float32 else "tf32"
    code = TABLED_ACTIVATIONS.index(activation)
    _squeeze_tiles[(len(tiles),)](
        hidden, added, sets, tiles, hidden.stride(0), WIDE=hidden.shape[1], OUT=out, RANK=padded, ACTIVATION=code,
        TILE=tile, CHUNK=_CHUNK, PRECISION=precision, IS_ALIGNED=aligned, num_warps=8 if padded >= 128 else 4,
    )  # fmt: skip
    return added
