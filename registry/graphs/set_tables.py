"""What the kernel of mixed batches is told: where the tensors of each set lie, and which states are whose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch

from registry.adapters.interface import BottleneckWeights

TABLED_ACTIVATIONS = ("identity", "relu", "gelu", "silu", "tanh")  # those that the kernel has
LEAST_TILE, MOST_TILE = 16, 64  # states that it takes at once
ALIGNED = 16  # bytes; where all rows begin at such an address, a thread reads that much at once


def addresses_of(weights: BottleneckWeights) -> tuple[int, int, int, int, int]:
    """Return a set's row in the table: where its four tensors lie, and its rank.

    The tensors are contiguous, begin where torch's allocators begin and have the dtype of the states; they must outlive
    the launch.
    """
    down, down_bias, up, up_bias = (tensor.data_ptr() for tensor in weights)
    return down, down_bias, up, up_bias, len(weights.down_bias)


def is_aligned(dtype: torch.dtype, wide: int, rank: int) -> bool:
    """Return whether all rows of a set's matrices begin where 16 bytes do, as its tensors themselves always do."""
    row = ALIGNED // dtype.itemsize  # elements
    return wide % row == 0 and rank % max(row, 8) == 0


def tiles_of(counts: Sequence[int], tile: int, room: int) -> numpy.typing.NDArray[numpy.int32]:
    """Return (room, 3): of each tile the set, its first state and where the states of the set end; the rest is empty.

    Args:
        counts: states of each set, side by side in that order.
        tile: states of a tile.
        room: tiles, at least as many as the sets can want.
    """
    ends = numpy.cumsum(counts)
    tiles = [
        (owner, first, end)
        for owner, (count, end) in enumerate(zip(counts, ends.tolist(), strict=True))
        for first in range(end - count, end, tile)
    ]
    found = numpy.zeros((room, 3), dtype=numpy.int32)
    found[: len(tiles)] = tiles
    return found
