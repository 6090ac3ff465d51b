"""Self-attention over packed rows: no padding, no mask, every row attends to itself alone.

On CUDA in half precision one variable-length flash kernel does the whole batch; elsewhere rows of equal length
are neighbours in the batch, and each such group is one call of SDPA. Both give the same answer up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from registry.batching import Batch


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
        return _attend_varlen(qkv, batch, heads)
    return _attend_by_length(qkv, batch, heads, dropout)


def _has_varlen_kernel(qkv: Tensor) -> bool:
    half = qkv.dtype in (torch.bfloat16, torch.float16)
    return qkv.is_cuda and half and torch.cuda.get_device_capability(qkv.device) >= (8, 0)


def _attend_varlen(qkv: Tensor, batch: Batch, heads: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # takes two seconds to import, which a CPU need not spend

    tokens, width = qkv.shape
    query, key, value = qkv.view(tokens, 3, heads, width // (3 * heads)).unbind(1)  # (N, heads, D) each
    starts, longest = batch.row_starts, batch.longest
    mixed: Tensor = varlen_attn(query, key, value, starts, starts, longest, longest)  # type: ignore[assignment]
    return mixed.reshape(tokens, width // 3)


def _attend_by_length(qkv: Tensor, batch: Batch, heads: int, dropout: float) -> Tensor:
    dtype = qkv.dtype
    if qkv.device.type == "cpu" and dtype == torch.bfloat16 and qkv.requires_grad:
        qkv = qkv.float()  # the CPU's bfloat16 attention is four times slower backwards than float32
    # Autocast would undo that cast; the matrix products it is meant for are outside.
    with torch.autocast(qkv.device.type, enabled=False):
        parts = []
        # One split has one cheap backward; slicing would fill a whole (N, 3H) gradient for every group.
        runs = torch.split(qkv, [group.rows * group.length for group in batch.groups])
        for group, tokens in zip(batch.groups, runs, strict=True):
            query, key, value = tokens.view(group.rows, group.length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)  # (rows, heads, length, D)
            parts.append(mixed.transpose(1, 2).reshape(group.rows * group.length, -1))
    return torch.cat(parts).to(dtype)
