"""Self-attention over packed rows: no padding, no mask, every row attends to itself alone.

On CUDA in half precision one variable-length flash kernel does the whole batch; elsewhere rows of equal length
are neighbours in the batch, and each such group is one call of SDPA. Both give the same answer up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from registry.model.batching import Batch


def attend(qkv: Tensor, batch: Batch, heads: int, dropout: float = 0.0) -> Tensor:
    """Return what each token gathers from the tokens of its own row, heads joined.

    Args:
        qkv: (N, 3H), the projected queries, keys and values side by side.
        batch: says where rows begin and which have equal length.
        heads: attention heads; each is H / heads wide.
        dropout: share of attention weights dropped; only an encoder in fine-tuning has any.

    Returns:
        (N, H), in the dtype of ``qkv``.
    """
    if _has_varlen_kernel(qkv) and dropout == 0.0:
        query, key, value = qkv.view(len(qkv), 3, heads, -1).unbind(1)  # (N, heads, D) each
        starts, longest = batch.row_starts, batch.longest
        return _attend_varlen(query, key, value, starts, starts, longest, longest)
    dtype, slow = qkv.dtype, _is_slow_backwards(qkv)
    # Autocast would undo the cast to float32; the matrix products it is meant for are outside.
    with torch.autocast(qkv.device.type, enabled=False):
        parts = []
        # One split has one cheap backward; slicing would fill a whole (N, 3H) gradient for every group.
        runs = torch.split(qkv, [group.rows * group.length for group in batch.groups])
        for group, tokens in zip(batch.groups, runs, strict=True):
            by_head = tokens.view(group.rows, group.length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            if slow:
                by_head = by_head.to(torch.float32, memory_format=torch.contiguous_format)  # one copy for both
            query, key, value = by_head  # (rows, heads, length, D) each
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
            joined = mixed.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format)
            parts.append(joined.reshape(group.rows * group.length, -1))
    return torch.cat(parts)


def attend_from_first(query: Tensor, key_value: Tensor, batch: Batch, heads: int) -> Tensor:
    """Return what each row's first token gathers from the tokens of its row, heads joined.

    Args:
        query: (B, H), the projected queries of the first tokens.
        key_value: (N, 2H), the projected keys and values of all tokens side by side.
        batch: says where rows begin and which have equal length.
        heads: attention heads; each is H / heads wide.

    Returns:
        (B, H), in the dtype of ``query``.
    """
    if _has_varlen_kernel(key_value):
        key, value = key_value.view(len(key_value), 2, heads, -1).unbind(1)  # (N, heads, D) each
        rows = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
        first = query.view(len(query), heads, -1)
        return _attend_varlen(first, key, value, rows, batch.row_starts, 1, batch.longest)
    dtype = query.dtype
    if _is_slow_backwards(key_value):
        query, key_value = query.float(), key_value.float()
    with torch.autocast(key_value.device.type, enabled=False):
        parts = []
        firsts = torch.split(query, [group.rows for group in batch.groups])
        runs = torch.split(key_value, [group.rows * group.length for group in batch.groups])
        for group, asking, tokens in zip(batch.groups, firsts, runs, strict=True):
            key, value = tokens.view(group.rows, group.length, 2, heads, -1).permute(2, 0, 3, 1, 4)
            first = asking.view(group.rows, heads, 1, -1)
            mixed = F.scaled_dot_product_attention(first, key, value)  # (rows, heads, 1, D)
            parts.append(mixed.reshape(group.rows, -1))
    return torch.cat(parts).to(dtype)


def _has_varlen_kernel(states: Tensor) -> bool:
    half = states.dtype in (torch.bfloat16, torch.float16)
    return states.is_cuda and half and torch.cuda.get_device_capability(states.device) >= (8, 0)


def _is_slow_backwards(states: Tensor) -> bool:
    """Return whether the CPU's bfloat16 attention would go backwards, which takes it four times as long as float32."""
    return states.device.type == "cpu" and states.dtype == torch.bfloat16 and states.requires_grad


def _attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, query_starts: Tensor, key_starts: Tensor, queries: int, keys: int
) -> Tensor:
    """Return what one kernel gives for (N, heads, D) tensors; ``queries`` and ``keys`` are the most of a row."""
    from torch.nn.attention.varlen import varlen_attn  # takes two seconds to import, which a CPU need not spend

    mixed: Tensor = varlen_attn(query, key, value, query_starts, key_starts, queries, keys)  # type: ignore[assignment]
    return mixed.reshape(len(query), -1)
