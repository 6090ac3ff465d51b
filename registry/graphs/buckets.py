"""Rows padded to buckets of tokens and rows, so that few sizes do for all batches, in tensors that stay where they are.

What fills a bucket up are rows of their own, so no other row sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from registry.graphs.staged import Staged
from registry.model.batching import Batch, LengthGroup, TokenRows

# Doubling, then in quarters of that; the largest takes a batch of 16,384 tokens and what must be spare.
_DOUBLING = (512, 1_024, 2_048, 4_096, 8_192)
TOKENS = (32, 64, 128, 256, *(size * part // 4 for size in _DOUBLING for part in range(4, 8)), 16_512)
ROWS = (2, 4, 8, 16, 32, 64, 128, 256)
LONGEST = (32, 64, 128, 256, 512)
# Fewer, where each is captured for one use alone and its tokens are too few to keep a GPU busy in any case.
FEW_TOKENS = (32, 128, 256, 384, 512, 768, 1_024, 1_536, 2_048, 3_072, *(size for size in TOKENS if size >= 4_096))
FEW_LONGEST = (128, 256, 512)


class Bucket(NamedTuple):
    """What a batch is padded to: ``tokens`` in all, in ``rows`` of at most ``longest`` tokens."""

    tokens: int
    rows: int
    longest: int

    def lengths(self, own: Sequence[int]) -> list[int]:
        """Return the tokens of each row: those that are there, then rows that only fill up and share what is left."""
        fillers = self.rows - len(own)
        each, more = divmod(self.tokens - sum(own), fillers)
        return [*own, *[each + 1] * more, *[each] * (fillers - more)]


def bucket_of(lengths: Sequence[int], *, few: bool = False) -> Bucket | None:
    """Return what rows of these lengths are padded to, of many sizes or of few, None where that is beyond the largest.

    At least one row fills up, and each of those has a token and is no longer than the longest of its bucket: the kernel
    of attention has work to do for every place that a row could have.
    """
    count, total = len(lengths), sum(lengths)
    longest = next((size for size in (FEW_LONGEST if few else LONGEST) if size >= max(lengths)), None)
    if longest is None:
        return None
    for tokens in FEW_TOKENS if few else TOKENS:
        spare = tokens - total
        fitting = (size for size in ROWS if count + -(-spare // longest) <= size <= count + spare)
        if spare > 0 and (rows := next(fitting, None)) is not None:
            return Bucket(tokens, rows, longest)
    return None


class PaddedRows:
    """The rows of one batch after another, padded to a bucket, in tensors that stay where they are.

    Args:
        bucket: with room for every batch and at least one row more.
        device: of the tensors.
    """

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self.bucket = bucket
        # Ids, types, positions, where rows begin and how many are real, in one tensor, so that they travel in one copy.
        self._numbers = Staged((3 * bucket.tokens + bucket.rows + 2,), torch.long, device)
        self._lengths: list[int] = []
        self.put(TokenRows([[0]], [[0]]))

    def put(self, rows: TokenRows) -> None:
        """Take these rows in the place of those before, in the order of the current stream."""
        own, tokens = [len(ids) for ids in rows.input_ids], self.bucket.tokens
        self._lengths = self.bucket.lengths(own)
        real, count = sum(own), len(own)
        with self._numbers.writing() as numbers:
            ids, types, positions = numbers[: 3 * tokens].reshape(3, tokens)
            starts = numbers[3 * tokens : -1]
            starts[0], numbers[-1] = 0, count
            numpy.cumsum(self._lengths, out=starts[1:])
            for place, given in ((ids, rows.input_ids), (types, rows.type_ids)):
                place[:real] = numpy.fromiter(chain.from_iterable(given), numpy.int64, real)
                place[real:] = 0
            positions[:real] = numpy.arange(real) - numpy.repeat(starts[:count], own)
            positions[real:] = 0

    @property
    def batch(self) -> Batch:
        """Return the batch that the numbers say, in the order in which the rows came and all of one set.

        Only attention on a CPU asks for the lengths, which are those of now.
        """
        tokens, count, longest = self.bucket
        numbers = self._numbers.tensor
        ids, types, positions = numbers[: 3 * tokens].view(3, tokens)
        starts = numbers[3 * tokens : -1]
        return Batch(
            input_ids=ids,
            type_ids=types,
            positions=positions,
            row_starts=starts.int(),
            lengths=starts.diff(),
            longest=longest,
            groups=tuple(LengthGroup(1, length) for length in self._lengths),
            owners=(0,) * count,
            row_tokens=tuple(self._lengths),
            order=starts[:-1],
        )

    @property
    def is_real(self) -> Tensor:
        """Return (rows,) whether each row is one that was put, and not one that fills up."""
        numbers = self._numbers.tensor
        return torch.arange(self.bucket.rows, device=numbers.device) < numbers[-1]
