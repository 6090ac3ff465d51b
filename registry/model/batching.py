"""Rows of tokens packed into batches: no padding, equal lengths side by side, every row with its adapter set.

A batch is sorted once, and its plan serves every layer. On a CPU it is sorted by (length, adapter set), as attention
there takes a *length group*, the neighbouring rows of one length, at a time; on CUDA, where one kernel attends over any
lengths, by (adapter set, length), so that the tokens of a set are neighbours.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import numpy
import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenRows:
    """Tokenised rows, special tokens included.

    Attributes:
        input_ids: token ids of each row.
        type_ids: 0 for the first text's tokens and 1 for the second's, one list per row.
        truncated_rows: which rows were cut to the longest length allowed.
    """

    input_ids: Sequence[Sequence[int]]
    type_ids: Sequence[Sequence[int]]
    truncated_rows: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> Sequence[int]:
        """Return the tokens of each row."""
        return [len(ids) for ids in self.input_ids]

    @property
    def truncated(self) -> int:
        """Return how many rows were cut."""
        return len(self.truncated_rows)

    def take(self, indices: Sequence[int]) -> TokenRows:
        """Return the rows at ``indices``, in that order."""
        return TokenRows([self.input_ids[i] for i in indices], [self.type_ids[i] for i in indices])


class TokensOnDemand:
    """Rows that are tokenised anew whenever they are taken, so that memory holds 4 bytes a row and no tokens.

    Args:
        count: of the rows.
        tokenize: gives the rows at some indices.

    Attributes:
        lengths: the tokens of each row.
        truncated: how many rows were cut.
    """

    CHUNK = 4_096

    def __init__(self, count: int, tokenize: Callable[[Sequence[int]], TokenRows]) -> None:
        self.lengths: array[int] = array("i")
        self.truncated = 0
        self._tokenize = tokenize
        for start in range(0, count, self.CHUNK):
            rows = tokenize(range(start, min(count, start + self.CHUNK)))
            self.lengths.extend(rows.lengths)
            self.truncated += rows.truncated

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, indices: Sequence[int]) -> TokenRows:
        """Return the rows at ``indices``, in that order."""
        return self._tokenize(indices)


@dataclass(frozen=True)
class LengthGroup:
    """Neighbouring rows of one length: ``rows * length`` tokens, after those of the groups before."""

    rows: int
    length: int


@dataclass(frozen=True)
class Batch:
    """Packed tokens of B rows, N tokens in all.

    Attributes:
        input_ids: (N,) token ids.
        type_ids: (N,) token types.
        positions: (N,) place of each token in its row, from 0.
        row_starts: (B + 1,) int32, first token of each row, and N.
        lengths: (B,) tokens of each row.
        longest: tokens of the longest row.
        groups: runs of equal length, for attention.
        owners: the index of each packed row's adapter set.
        row_tokens: what ``lengths`` holds, where Python reads it without waiting for a device.
        order: (B,) the caller's index of each packed row.
    """

    input_ids: Tensor
    type_ids: Tensor
    positions: Tensor
    row_starts: Tensor
    lengths: Tensor
    longest: int
    groups: tuple[LengthGroup, ...]
    owners: tuple[int, ...]
    row_tokens: tuple[int, ...]
    order: Tensor

    @classmethod
    def pack(
        cls, rows: TokenRows, adapter_indices: Sequence[int] | None = None, device: torch.device | str = "cpu"
    ) -> Batch:
        """Return one batch of all ``rows``.

        Args:
            rows: at least one row, none of them empty.
            adapter_indices: for each row the index of its adapter set; None is set 0 for all.
            device: where the tensors go.
        """
        sets = adapter_indices if adapter_indices is not None else [0] * len(rows)
        if torch.device(device).type == "cuda":
            order = sorted(range(len(rows)), key=lambda i: (sets[i], len(rows.input_ids[i])))
        else:
            order = sorted(range(len(rows)), key=lambda i: (len(rows.input_ids[i]), sets[i]))
        lengths = [len(rows.input_ids[i]) for i in order]
        row_lengths = torch.tensor(lengths)
        starts = torch.cat([torch.zeros(1, dtype=torch.long), row_lengths.cumsum(0)])  # (B + 1,)
        total = int(starts[-1])
        firsts = torch.repeat_interleave(starts[:-1], row_lengths, output_size=total)  # (N,)
        return cls(
            input_ids=_flat((rows.input_ids[i] for i in order), total).to(device),
            type_ids=_flat((rows.type_ids[i] for i in order), total).to(device),
            positions=(torch.arange(total) - firsts).to(device),
            row_starts=starts.to(device, torch.int32),
            lengths=row_lengths.to(device),
            longest=max(lengths),
            groups=tuple(_length_groups(lengths)),
            owners=tuple(sets[i] for i in order),
            row_tokens=tuple(lengths),
            order=torch.tensor(order, device=device),
        )

    @property
    def row_count(self) -> int:
        """Return B."""
        return len(self.order)

    @property
    def first_tokens(self) -> Tensor:
        """Return (B,) the place of each row's first token."""
        return self.row_starts[:-1].long()

    @property
    def rows_of_sets(self) -> dict[int, list[int]]:
        """Return the packed rows of each adapter set, sets and rows in rising order."""
        rows: dict[int, list[int]] = {owner: [] for owner in sorted(set(self.owners))}
        for row, owner in enumerate(self.owners):
            rows[owner].append(row)
        return rows

    def restore(self, packed: Tensor) -> Tensor:
        """Return (B, ...) results of packed rows in the caller's order."""
        return packed[torch.argsort(self.order)]


def _flat(rows: Iterable[Sequence[int]], count: int) -> Tensor:
    """Return (count,) numbers of all rows; through numpy, as torch reads a list several times as slowly."""
    return torch.from_numpy(numpy.fromiter(chain.from_iterable(rows), numpy.int64, count))


def _length_groups(lengths: Sequence[int]) -> Iterator[LengthGroup]:
    for length, run in groupby(lengths):
        yield LengthGroup(sum(1 for _ in run), length)


def shuffled_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[numpy.typing.NDArray[numpy.int64]]:
    """Return one epoch's batches of row indices: random, yet with rows of similar length together.

    Rows are shuffled, cut into pools of 50 batches, sorted by length inside each pool and cut into batches,
    which are then shuffled: about 1 % more tokens than full sorting, and every epoch another mix.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    tokens = numpy.asarray(lengths)
    shuffled = torch.randperm(len(tokens), generator=generator).numpy()
    pool = 50 * batch_size
    for start in range(0, len(shuffled), pool):
        rows = shuffled[start : start + pool]
        rows[:] = rows[numpy.argsort(tokens[rows], kind="stable")]
    starts = torch.randperm(-(-len(shuffled) // batch_size), generator=generator).numpy() * batch_size
    return [shuffled[start : start + batch_size] for start in starts]


def sorted_batches(lengths: Sequence[int], max_tokens: int, max_rows: int) -> list[list[int]]:
    """Return batches of row indices in order of length, each within both limits (one row is always allowed)."""
    batches: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not batches or len(batches[-1]) == max_rows or tokens + lengths[index] > max_tokens:
            batches.append([])
            tokens = 0
        batches[-1].append(index)
        tokens += lengths[index]
    return batches
