"""Packed batches: no padding, every token in exactly one run, and results back in the caller's order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.model.batching import Batch, TokenRows, shuffled_batches, sorted_batches

LENGTHS_AND_SETS = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 4)), min_size=1, max_size=30)


def numbered_rows(lengths: list[int]) -> TokenRows:
    """Return rows in which no token id occurs twice, with types to match."""
    starts = [sum(lengths[:row]) for row in range(len(lengths))]
    ids = [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)]
    return TokenRows(ids, [[token % 2 for token in row] for row in ids])


def typical_lengths(count: int = 3000) -> list[int]:
    """Return the spread of lengths that sentences have: many short, few long, none above 128."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(count, generator=generator) * 0.5 + 3.2
    return drawn.exp().long().clamp(3, 128).tolist()


@given(LENGTHS_AND_SETS)
@settings(max_examples=60, deadline=None)
def test_pack_and_restore_give_back_every_row(lengths_and_sets: list[tuple[int, int]]) -> None:
    """Whatever lengths and sets the rows have, each row's tokens come back whole and in the caller's place."""
    lengths, sets = map(list, zip(*lengths_and_sets, strict=True))
    rows = numbered_rows(lengths)
    batch = Batch.pack(rows, sets)
    packed = [batch.input_ids[start:end] for start, end in zip(batch.row_starts, batch.row_starts[1:], strict=False)]
    first_tokens = batch.restore(torch.stack([tokens[0] for tokens in packed]))
    assert [ids[0] for ids in rows.input_ids] == first_tokens.tolist()
    for place, row in enumerate(batch.order.tolist()):
        assert rows.input_ids[row] == packed[place].tolist()
    assert torch.equal(batch.input_ids % 2, batch.type_ids)


@given(LENGTHS_AND_SETS)
@settings(max_examples=60, deadline=None)
def test_groups_and_owners_cover_every_token_once(lengths_and_sets: list[tuple[int, int]]) -> None:
    """Length groups follow each other without a gap, rows keep their set, and no token is anybody else's."""
    lengths, sets = map(list, zip(*lengths_and_sets, strict=True))
    batch = Batch.pack(numbered_rows(lengths), sets)
    assert sum(lengths) == len(batch.input_ids) == sum(group.rows * group.length for group in batch.groups)
    assert batch.lengths.tolist() == [group.length for group in batch.groups for _ in range(group.rows)]
    assert tuple(batch.lengths.tolist()) == batch.row_tokens == tuple(sorted(lengths))
    order = batch.order.tolist()
    assert [sets[row] for row in order] == list(batch.owners)
    assert sorted(set(sets)) == list(batch.rows_of_sets)
    assert list(range(len(sets))) == sorted(row for rows in batch.rows_of_sets.values() for row in rows)
    for owner, rows in batch.rows_of_sets.items():
        assert {owner} == {sets[order[row]] for row in rows}
        assert rows == sorted(rows)
    assert [int(ids) for ids in batch.input_ids[batch.first_tokens]] == [sum(lengths[:row]) for row in order]


@given(LENGTHS_AND_SETS)
@settings(max_examples=30, deadline=None)
def test_positions_count_from_zero_in_each_row(lengths_and_sets: list[tuple[int, int]]) -> None:
    """Positions begin anew with each row, and row starts and lengths say the same."""
    lengths = [length for length, _ in lengths_and_sets]
    batch = Batch.pack(numbered_rows(lengths))
    assert [place for length in sorted(lengths) for place in range(length)] == batch.positions.tolist()
    assert batch.lengths.tolist() == batch.row_starts.diff().tolist() == sorted(lengths)
    assert (torch.int32, max(lengths), len(lengths)) == (batch.row_starts.dtype, batch.longest, batch.row_count)


def test_rows_of_one_length_keep_the_callers_order() -> None:
    """Sorting is stable, so equal input gives an equal batch."""
    assert [1, 3, 0, 2] == Batch.pack(numbered_rows([5, 2, 5, 2])).order.tolist()


def test_take_gives_the_rows_asked_for() -> None:
    """Rows are taken by index, in the order asked, as often as asked."""
    rows = numbered_rows([2, 1, 3])
    taken = rows.take([2, 0, 2])
    assert ([3, 4, 5], [0, 1], [3, 4, 5]) == tuple(taken.input_ids)
    assert (3, 3, 0) == (len(taken), len(rows), rows.truncated)


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 8), (8, 8), (1000, 16), (1701, 16)])
def test_shuffled_batches_are_a_permutation(rows: int, batch_size: int) -> None:
    """Each epoch has every row once, in batches of which at most one for each pool is not full."""
    lengths = typical_lengths(rows)
    for epoch in range(3):
        batches = shuffled_batches(lengths, batch_size, seed=1, epoch=epoch)
        assert list(range(rows)) == sorted(row for batch in batches for row in batch)
        assert -(-rows // batch_size) == len(batches)
        assert sorted([batch_size] * (len(batches) - 1)) == sorted(map(len, batches))[1:]


def test_shuffled_batches_follow_seed_and_epoch() -> None:
    """The same seed and epoch give the same batches; another of either gives others."""
    lengths = typical_lengths(200)

    def batches(seed: int, epoch: int = 0) -> list[list[int]]:
        return [batch.tolist() for batch in shuffled_batches(lengths, 16, seed, epoch)]

    assert batches(1) == batches(1)
    assert batches(1) != batches(1, epoch=1)
    assert batches(1) != batches(2)
    assert batches(2**63 - 1) != batches(0)


def test_shuffled_batches_put_similar_lengths_together() -> None:
    """Padding each batch to its longest row would waste less than 5 %, against far more in random batches."""
    lengths = typical_lengths()

    def waste(batches: list[list[int]]) -> float:
        padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
        return padded / sum(lengths) - 1

    assert waste(shuffled_batches(lengths, 16, seed=0, epoch=0)) < 0.05
    assert waste([list(range(first, first + 16)) for first in range(0, 2992, 16)]) > 0.5


def test_shuffled_batches_come_in_random_order_of_length() -> None:
    """Short and long batches alternate, so that no part of an epoch sees one length only."""
    lengths = typical_lengths(800)
    firsts = [lengths[batch[0]] for batch in shuffled_batches(lengths, 16, seed=0, epoch=0)]
    assert sorted(firsts) != firsts
    assert max(firsts[:25]) > min(firsts[25:])


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 120), st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_sorted_batches_keep_both_limits(lengths: list[int], max_tokens: int, max_rows: int) -> None:
    """Every row comes once, in order of length, in batches within the limits; a long row goes alone."""
    batches = sorted_batches(lengths, max_tokens, max_rows)
    order = [row for batch in batches for row in batch]
    assert list(range(len(lengths))) == sorted(order)
    assert sorted(lengths) == [lengths[row] for row in order]
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or sum(lengths[row] for row in batch) <= max_tokens
