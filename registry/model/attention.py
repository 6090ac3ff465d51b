"""Self-attention over packed rows: every row attends to itself alone, so nothing is padded and no padding masked.

On CUDA in half precision one variable-length flash kernel does the whole batch; elsewhere rows of equal length
are neighbours in the batch, and each such group is one call of SDPA. Both give the same answer up to rounding.
Scores with a bias by place, and windows, always go by groups; only there SDPA is given a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from registry.adapters.interface import Prefix
from registry.model.batching import Batch

Bias = Callable[[int], Tensor]  # of rows of a length the (heads, length, length) that are added to their scores
_Mix = Callable[[Tensor, Tensor, Tensor], Tensor]  # of queries, keys and values, (rows, heads, length, D) each


def attend(
    qkv: Tensor,
    batch: Batch,
    heads: int,
    dropout: float = 0.0,
    prefix: Prefix | None = None,
    bias: Bias | None = None,
) -> Tensor:
    """Return what each token gathers from the tokens of its own row, heads joined.

    Args:
        qkv: (N, 3H), the projected queries, keys and values side by side.
        batch: says where rows begin and which have equal length.
        heads: attention heads; each is H / heads wide.
        dropout: share of attention weights dropped; only an encoder in fine-tuning has any.
        prefix: keys and values in front of each row's.
        bias: what is added to the scores of a row's tokens, by their places.

    Returns:
        (N, H), in the dtype of ``qkv``.
    """
    if prefix is not None:
        query, key, value = qkv.chunk(3, dim=1)
        return _attend_after(prefix, query, key, value, batch, heads, batch.row_tokens, bias, dropout)
    if bias is None and has_varlen_kernel(qkv) and dropout == 0.0:
        query, key, value = qkv.view(len(qkv), 3, heads, -1).unbind(1)  # (N, heads, D) each
        starts, longest = batch.row_starts, batch.longest
        return _attend_varlen(query, key, value, starts, starts, longest, longest)

    def mix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # With a dimension for the rows, as SDPA has no fast kernel for three.
        added = None if bias is None else bias(query.shape[2])[None].to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=added, dropout_p=dropout)

    return _by_length(qkv, batch, heads, mix)


def attend_from_first(
    query: Tensor,
    key_value: Tensor,
    batch: Batch,
    heads: int,
    prefix: Prefix | None = None,
    bias: Bias | None = None,
) -> Tensor:
    """Return what each row's first token gathers from the tokens of its row, heads joined.

    Args:
        query: (B, H), the projected queries of the first tokens.
        key_value: (N, 2H), the projected keys and values of all tokens side by side.
        batch: says where rows begin and which have equal length.
        heads: attention heads; each is H / heads wide.
        prefix: keys and values in front of each row's.
        bias: what is added to the scores of a row's tokens, by their places.

    Returns:
        (B, H), in the dtype of ``query``.
    """
    if prefix is not None:
        key, value = key_value.chunk(2, dim=1)
        return _attend_after(prefix, query, key, value, batch, heads, (1,) * len(query), bias)
    if bias is None and has_varlen_kernel(key_value):
        key, value = key_value.view(len(key_value), 2, heads, -1).unbind(1)  # (N, heads, D) each
        rows = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
        first = query.view(len(query), heads, -1)
        return _attend_varlen(first, key, value, rows, batch.row_starts, 1, batch.longest)
    dtype = query.dtype
    if is_slow_backwards(key_value):
        query, key_value = query.float(), key_value.float()
    with torch.autocast(key_value.device.type, enabled=False):
        parts = []
        firsts = torch.split(query, [group.rows for group in batch.groups])
        runs = torch.split(key_value, [group.rows * group.length for group in batch.groups])
        for group, asking, tokens in zip(batch.groups, firsts, runs, strict=True):
            key, value = tokens.view(group.rows, group.length, 2, heads, -1).permute(2, 0, 3, 1, 4)
            first = asking.view(group.rows, heads, 1, -1)
            added = None if bias is None else bias(group.length)[None, :, :1].to(first.dtype)
            mixed = F.scaled_dot_product_attention(first, key, value, attn_mask=added)  # (rows, heads, 1, D)
            parts.append(mixed.reshape(group.rows, -1))
    return torch.cat(parts).to(dtype)


def _attend_after(
    prefix: Prefix,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: Batch,
    heads: int,
    asking: Sequence[int],
    bias: Bias | None,
    dropout: float = 0.0,
) -> Tensor:
    """Return what the queries gather from the prefix and the tokens of their row, heads joined.

    Args:
        prefix: of the batch's rows.
        query: (Q, H), of each row as many as ``asking`` says.
        key, value: (N, H), of all tokens.
        batch: says where rows begin.
        heads: attention heads.
        asking: (B,) queries of each row.
        bias: of the scores between tokens; those of a prefix have none, as it has no place.
        dropout: share of attention weights dropped.

    Returns:
        (Q, H), in the dtype of ``query``.
    """
    dtype = query.dtype
    if bias is None and has_varlen_kernel(query) and dropout == 0.0:
        order, starts = _prefix_order(prefix.counts, batch.row_tokens)
        place = torch.from_numpy(order).to(query.device)
        keys, values = (
            torch.cat([own.to(dtype), tokens]).index_select(0, place).view(len(place), heads, -1)
            for own, tokens in ((prefix.keys, key), (prefix.values, value))
        )
        asked = torch.from_numpy(numpy.cumsum([0, *asking], dtype=numpy.int32)).to(query.device)
        longest = max(count + length for count, length in zip(prefix.counts, batch.row_tokens, strict=True))
        key_starts = torch.from_numpy(starts).to(query.device)
        by_head = query.reshape(len(query), heads, -1)
        return _attend_varlen(by_head, keys, values, asked, key_starts, max(asking), longest)
    if is_slow_backwards(query):
        query, key, value = query.float(), key.float(), value.float()
    parts = []
    with torch.autocast(query.device.type, enabled=False):
        for run in equal_rows(prefix.counts, batch.row_tokens, asking):
            queries, own_keys, own_values = run.by_head(query, key, value, heads)
            keys, values = run.after(prefix, own_keys, own_values)
            added = None
            if bias is not None:
                length, asked_of = own_keys.shape[2], queries.shape[2]
                added = F.pad(bias(length)[None, :, :asked_of].to(queries.dtype), (keys.shape[2] - length, 0))
            mixed = F.scaled_dot_product_attention(  # (rows, heads, queries, D)
                queries, keys, values, attn_mask=added, dropout_p=dropout
            )
            parts.append(mixed.transpose(1, 2).reshape(-1, query.shape[1]).to(dtype))
    return torch.cat(parts)


def attend_in_window(qkv: Tensor, batch: Batch, heads: int, reach: int, dropout: float = 0.0) -> Tensor:
    """Return what each token gathers from those of its row at most ``reach`` places away, heads joined.

    Rows longer than a few windows are cut into blocks, each with the keys around it, so that memory grows with the
    tokens and not with their square.

    Args:
        qkv: (N, 3H), the projected queries, keys and values side by side.
        batch: says where rows begin and which have equal length.
        heads: attention heads; each is H / heads wide.
        reach: how many places a token sees on either side.
        dropout: share of attention weights dropped; only an encoder in fine-tuning has any.
    """

    def mix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length = query.shape[2]
        if length > 4 * reach:
            return _attend_in_blocks(query, key, value, reach, dropout)
        seen = window_mask(length, reach, query.device) if length > reach + 1 else None
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout)

    return _by_length(qkv, batch, heads, mix)


def _by_length(qkv: Tensor, batch: Batch, heads: int, mix: _Mix) -> Tensor:
    """Return (N, H) of what ``mix`` gives for the rows of each length, heads joined, in the dtype of ``qkv``."""
    dtype, slow = qkv.dtype, is_slow_backwards(qkv)
    # Autocast would undo the cast to float32; the matrix products it is meant for are outside.
    with torch.autocast(qkv.device.type, enabled=False):
        parts = []
        # One split has one cheap backward; slicing would fill a whole (N, 3H) gradient for every group.
        runs = torch.split(qkv, [group.rows * group.length for group in batch.groups])
        for group, tokens in zip(batch.groups, runs, strict=True):
            by_head = tokens.view(group.rows, group.length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            if slow:
                by_head = by_head.to(torch.float32, memory_format=torch.contiguous_format)  # one copy for both
            mixed = mix(*by_head)
            joined = mixed.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format)
            parts.append(joined.reshape(group.rows * group.length, -1))
    return torch.cat(parts)


def window_mask(length: int, reach: int, device: torch.device) -> Tensor:
    """Return (length, length) booleans, whether two places are at most ``reach`` apart."""
    places = torch.arange(length, device=device)
    return (places[:, None] - places[None, :]).abs() <= reach


def _attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, reach: int, dropout: float) -> Tensor:
    """Return (rows, heads, length, D) of blocks of ``2 * reach`` queries, each with the keys within reach of it."""
    rows, heads, length, size = query.shape
    block = 2 * reach
    count = -(-length // block)
    spare = count * block - length
    queries = F.pad(query, (0, 0, 0, spare)).reshape(rows * heads, count, block, size)
    around = [
        F.pad(states, (0, 0, reach, reach + spare))
        .reshape(rows * heads, -1, size)
        .unfold(1, block + 2 * reach, block)  # (rows * heads, count, D, keys)
        .transpose(2, 3)
        for states in (key, value)
    ]
    place = torch.arange(block + 2 * reach, device=query.device) - reach  # of a key, from where its block begins
    own = torch.arange(block, device=query.device)
    near = (own[:, None] - place[None, :]).abs() <= reach  # (block, keys)
    absolute = torch.arange(count, device=query.device)[:, None] * block + place[None, :]  # (count, keys)
    seen = near & ((absolute >= 0) & (absolute < length))[:, None, :]  # (count, block, keys)
    # A query past the row's end sees itself, so that no row of weights is empty; it is cut off below.
    seen = seen | ((own[:, None] == place[None, :]) & (absolute >= length)[:, None, :])
    mixed = F.scaled_dot_product_attention(queries, around[0], around[1], attn_mask=seen, dropout_p=dropout)
    return mixed.reshape(rows, heads, count * block, size)[:, :, :length]


class Run(NamedTuple):
    """Neighbouring rows of one length and one prefix: how many, and where their queries, tokens and prefixes are."""

    rows: int
    queries: tuple[int, int]
    tokens: tuple[int, int]
    prefix: tuple[int, int]

    def by_head(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> list[Tensor]:
        """Return this run's part of (Q, H) queries and (N, H) keys and values, (rows, heads, length, D) each."""
        return [
            self._split(states, place, heads)
            for states, place in ((query, self.queries), (key, self.tokens), (value, self.tokens))
        ]

    def after(self, prefix: Prefix, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return this run's keys and values with those of the prefix in front of them."""
        heads = keys.shape[1]
        before = [self._split(own, self.prefix, heads).to(keys.dtype) for own in (prefix.keys, prefix.values)]
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)

    def _split(self, states: Tensor, place: tuple[int, int], heads: int) -> Tensor:
        return states[slice(*place)].view(self.rows, -1, heads, states.shape[1] // heads).transpose(1, 2)


def equal_rows(counts: Sequence[int], lengths: Sequence[int], asking: Sequence[int]) -> Iterator[Run]:
    """Yield runs of neighbouring rows with as many prefixes, tokens and queries as each other."""
    query = token = own = 0
    for (count, length, asked), run in groupby(zip(counts, lengths, asking, strict=True)):
        rows = sum(1 for _ in run)
        ends = query + rows * asked, token + rows * length, own + rows * count
        yield Run(rows, (query, ends[0]), (token, ends[1]), (own, ends[2]))
        query, token, own = ends


def _prefix_order(
    counts: Sequence[int], lengths: Sequence[int]
) -> tuple[numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]:
    """Return where prefixes and tokens of each row stand, prefixes being before all tokens, and where rows begin."""
    own, tokens = numpy.asarray(counts), numpy.asarray(lengths)
    first_own, first_token = numpy.cumsum(own) - own, numpy.cumsum(tokens) - tokens + own.sum()
    pieces = [
        numpy.concatenate([numpy.arange(a, a + n), numpy.arange(b, b + m)])
        for a, n, b, m in zip(first_own, own, first_token, tokens, strict=True)
    ]
    return numpy.concatenate(pieces), numpy.cumsum([0, *(own + tokens)]).astype(numpy.int32)


def has_varlen_kernel(states: Tensor) -> bool:
    """Return whether one kernel attends over rows of any lengths where these states are."""
    half = states.dtype in (torch.bfloat16, torch.float16)
    return states.is_cuda and half and torch.cuda.get_device_capability(states.device) >= (8, 0)


def is_slow_backwards(states: Tensor) -> bool:
    """Return whether the CPU's bfloat16 attention would go backwards, which takes it four times as long as float32."""
    return states.device.type == "cpu" and states.dtype == torch.bfloat16 and states.requires_grad


def _attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, query_starts: Tensor, key_starts: Tensor, queries: int, keys: int
) -> Tensor:
    """Return what one kernel gives for (N, heads, D) tensors; ``queries`` and ``keys`` are the most of a row."""
    from torch.nn.attention.varlen import varlen_attn  # takes two seconds to import, which a CPU need not spend

    mixed: Tensor = varlen_attn(query, key, value, query_starts, key_starts, queries, keys)  # type: ignore[assignment]
    return mixed.reshape(len(query), -1)
