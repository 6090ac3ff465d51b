"""Rows padded to buckets: nothing is left out, and what fills up reaches no row."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from registry.graphs.buckets import FEW_TOKENS, TOKENS, Bucket, PaddedRows, bucket_of
from registry.model.batching import Batch
from tests.support.stock_models import random_rows


@given(st.lists(st.integers(1, 512), min_size=1, max_size=128), st.booleans())
def test_buckets_hold_the_rows_and_at_least_one_more(lengths: list[int], few: bool) -> None:
    """A bucket has the tokens and rows that are there, and rows that fill it up, none empty and none too long."""
    bucket = bucket_of(lengths, few=few)
    if bucket is None:
        assert sum(lengths) > (FEW_TOKENS if few else TOKENS)[-2] or len(lengths) == 128
        return
    padded = bucket.lengths(lengths)
    assert padded[: len(lengths)] == lengths
    assert (bucket.tokens, bucket.rows) == (sum(padded), len(padded))
    assert len(padded) > len(lengths)
    assert 1 <= min(padded) <= max(padded) <= bucket.longest


def test_large_batches_have_no_bucket() -> None:
    """16,384 tokens have a bucket, more have none, nor have rows beyond 512 tokens."""
    assert bucket_of([128] * 128) == Bucket(16_512, 256, 128)
    assert bucket_of([16]) == Bucket(32, 2, 32)
    assert bucket_of([512] * 33) is None
    assert bucket_of([513]) is None


def test_padded_rows_are_the_batch_and_fillers() -> None:
    """Whatever was put before, the first rows are those of a packed batch, and the others are not real."""
    padded = PaddedRows(Bucket(64, 8, 32), torch.device("cpu"))
    for lengths in ((20, 3, 9), (1,), (5, 5, 5, 5, 5)):
        rows = random_rows(lengths)
        padded.put(rows)
        batch, count, total = padded.batch, len(lengths), sum(lengths)
        packed = Batch.pack(rows, range(count))
        order = packed.order.argsort().tolist()
        starts = packed.row_starts.tolist()
        places = [place for row in order for place in range(starts[row], starts[row + 1])]
        for name in ("input_ids", "type_ids", "positions"):
            found, expected = getattr(batch, name), getattr(packed, name)
            assert torch.equal(expected[places], found[:total])
            assert not bool(found[total:].any())
        assert list(lengths) == batch.lengths.tolist()[:count]
        assert 64 == int(batch.lengths.sum())
        assert [True] * count + [False] * (8 - count) == padded.is_real.tolist()
