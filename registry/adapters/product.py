"""A frozen product with one set's change, as a formula over plain tensors; LoRA, (IA)3 and BitFit are cases of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from registry.adapters.interface import Change, Map, Prefix
from registry.adapters.seam import apply_squeeze


def multiply_alone(change: Change | None, x: Tensor, frozen: Map) -> Tensor:
    """Return (N, out) results of a frozen product of (N, in) states where all rows belong to one set.

    ``scale_out * frozen(scale_in * x) + bias + up(down(x))``, in the dtype of the product, its change in that of the
    set's tensors.
    """
    if change is None:
        return frozen(x)
    y = frozen(x if change.scale_in is None else (x * change.scale_in).to(x.dtype))
    if change.scale_out is not None:
        y = (y * change.scale_out).to(y.dtype)
    if change.bias is not None:
        y = (y + change.bias).to(y.dtype)
    return y if change.squeeze is None else y + apply_squeeze(x, change.squeeze)


def prefix_alone(own: tuple[Tensor, Tensor] | None, rows: int) -> Prefix | None:
    """Return the same (P, H) keys and values in front of each of the rows."""
    if own is None:
        return None
    keys, values = own
    return Prefix(keys.repeat(rows, 1), values.repeat(rows, 1), (len(keys),) * rows)


def side_by_side(tensors: Sequence[Tensor | None], sizes: Sequence[int], filling: float) -> Tensor | None:
    """Return (sum of sizes,) vectors of parts, ``filling`` for those that have none; None where none has one."""
    known = next((tensor for tensor in tensors if tensor is not None), None)
    if known is None:
        return None
    if len(tensors) == 1:
        return known
    pairs = zip(tensors, sizes, strict=True)
    return torch.cat([known.new_full((size,), filling) if tensor is None else tensor for tensor, size in pairs])


def blocks(tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor:
    """Return (sum of sizes, sum of r) with the (size, r) matrices of the parts on its diagonal, zeros elsewhere."""
    total, first, padded = sum(sizes), 0, []
    for tensor, size in zip(tensors, sizes, strict=True):
        if tensor is not None:
            padded.append(F.pad(tensor, (0, 0, first, total - first - size)))
        first += size
    return padded[0] if len(padded) == 1 else torch.cat(padded, dim=1)
