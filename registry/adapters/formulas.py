"""What an adapter set does at the encoder's places, as formulas over plain tensors.

A *seam* is the add-and-norm step after a sub-layer, where bottlenecks and their fusion join; a *product* is a frozen
one with a change, of which LoRA, (IA)3 and BitFit are cases. The formulas are the same for a set alone, for a set in
training and for many sets in one batch (mixed.py); who owns the tensors is not known here.

Sources: Houlsby et al. 2019 (houlsby), Pfeiffer et al. 2021 (pfeiffer, fusion), He et al. 2022 (parallel).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from registry.adapters.interface import (
    BottleneckWeights,
    Change,
    Fusion,
    Kind,
    Map,
    NormWeights,
    Prefix,
    Seam,
    Squeeze,
)


def _identity(states: Tensor) -> Tensor:
    return states


def _quick_gelu(states: Tensor) -> Tensor:
    return states * torch.sigmoid(1.702 * states)


def _relu_squared(states: Tensor) -> Tensor:
    return torch.square(F.relu(states))


# Each of them maps 0 to 0, so bottlenecks of several sizes may be padded with zeros and computed together.
ACTIVATIONS: Mapping[str, Map] = MappingProxyType(
    {
        "relu": F.relu,
        "gelu": F.gelu,
        "silu": F.silu,
        "tanh": torch.tanh,
        "gelu_new": partial(F.gelu, approximate="tanh"),
        "quick_gelu": _quick_gelu,
        "leaky_relu": F.leaky_relu,
        "relu6": F.relu6,
        "relu2": _relu_squared,
        "mish": F.mish,
        "identity": _identity,
    }
)


def apply_squeeze(hidden: Tensor, squeeze: Squeeze) -> Tensor:
    """Return ``up(act(down(hidden)))``, (N, out) in the dtype of ``hidden``.

    Computed in the dtype of the weights; on CUDA in that of ``hidden``, as float32 products are slow there; the
    weights stay float32, and so do their gradients.

    Source: Houlsby et al. 2019, section 2, figure 2.
    """
    weights, dropout = of_states(squeeze.weights, hidden), squeeze.dropout
    states = hidden.to(weights.down.dtype)
    if dropout is not None and squeeze.drops_input:
        states = dropout(states)
    inner = ACTIVATIONS[squeeze.activation](F.linear(states, weights.down, weights.down_bias))  # (N, M)
    if dropout is not None and not squeeze.drops_input:
        inner = dropout(inner)
    return F.linear(inner, weights.up, weights.up_bias).to(hidden.dtype)


def apply_fusion(hidden: Tensor, fusion: Fusion) -> Tensor:
    """Return ``V sum_k a_k u_k`` with ``a = softmax_k((Q h + b) . K u_k)``, (N, H) in the dtype of ``hidden``.

    ``u_k`` is what the k-th member adds for the states h. Dtypes are those of ``apply_squeeze``.

    Source: Pfeiffer et al. 2021, section 3.2.
    """
    dtype = hidden.dtype if hidden.is_cuda else fusion.query.dtype
    query, bias, key, value = (tensor.to(dtype) for tensor in fusion[:4])
    states = hidden.to(dtype)
    pairs = zip(fusion.members, fusion.scales, strict=True)
    added = torch.stack([scale * apply_squeeze(states, member) for member, scale in pairs], dim=1)  # (N, K, H)
    wanted = F.linear(states, query, bias) @ key  # (N, H): the key's product is taken once, not for each member
    shares = (added @ wanted.unsqueeze(2)).float().softmax(dim=1).to(dtype)  # (N, K, 1)
    fused = (shares * added).sum(dim=1)  # (N, H)
    return (fused + F.linear(fused, value)).to(hidden.dtype)


def of_states(weights: BottleneckWeights, hidden: Tensor) -> BottleneckWeights:
    """Return the weights in the dtype that products with these states are computed in."""
    if not hidden.is_cuda or weights.down.dtype == hidden.dtype:
        return weights
    return BottleneckWeights(*(tensor.to(hidden.dtype) for tensor in weights))


def apply_norm(hidden: Tensor, weights: NormWeights, eps: float) -> Tensor:
    """Return the (N, H) states normalised in float32 with a task's own weights, in their own dtype again."""
    return F.layer_norm(hidden.float(), weights.weight.shape, weights.weight, weights.bias, eps).to(hidden.dtype)


def join_after_layer(sub: Tensor, residual: Tensor, norm: Map, bottleneck: Map, scale: float) -> Tensor:
    """Return ``y + b(y)`` with ``y = norm(s + r)``: the adapter follows the finished layer."""
    y = norm(sub + residual)
    return y + bottleneck(y)


def join_houlsby(sub: Tensor, residual: Tensor, norm: Map, bottleneck: Map, scale: float) -> Tensor:
    """Return ``norm(s + b(s) + r)``: the adapter follows the sub-layer's projection."""
    return norm(sub + bottleneck(sub) + residual)


def join_pfeiffer(sub: Tensor, residual: Tensor, norm: Map, bottleneck: Map, scale: float) -> Tensor:
    """Return ``norm(s + r + b(norm(s + r)))``: AdapterHub's ``seq_bn``, the norm is used twice."""
    total = sub + residual
    return norm(total + bottleneck(norm(total)))


def join_parallel(sub: Tensor, residual: Tensor, norm: Map, bottleneck: Map, scale: float) -> Tensor:
    """Return ``norm(s + r + scale * b(r))``: the adapter runs beside the feed-forward part."""
    return norm(sub + residual + scale * bottleneck(residual))


JOINS: Mapping[str, Callable[[Tensor, Tensor, Map, Map, float], Tensor]] = MappingProxyType(
    {
        "after_layer": join_after_layer,
        "houlsby": join_houlsby,
        "pfeiffer": join_pfeiffer,
        "parallel": join_parallel,
    }
)


def join(kind: Kind, sub: Tensor, residual: Tensor, norm: Map, bottleneck: Map) -> Tensor:
    """Return the (N, H) states after one add-and-norm step of sets of one kind.

    Args:
        kind: says where the bottleneck joins, if at all.
        sub: (N, H) what the sub-layer gave.
        residual: (N, H) what the sub-layer was given.
        norm: the layer norm of that seam, a task's own where it has one.
        bottleneck: maps (N, H) states to what is added to them.
    """
    if kind.placement is None:
        return norm(sub + residual)
    return JOINS[kind.placement](sub, residual, norm, bottleneck, kind.scale)


def join_alone(seam: Seam, sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return the (N, H) states after one add-and-norm step where all rows belong to one set."""
    normalise: Map = norm if seam.norm is None else partial(apply_norm, weights=seam.norm, eps=norm.eps)
    if seam.fusion is not None:
        return join(seam.kind, sub, residual, normalise, partial(apply_fusion, fusion=seam.fusion))
    if seam.squeeze is None:
        joined = normalise(sub + residual)
        return joined if seam.shift is None else (joined + seam.shift).to(joined.dtype)
    return join(seam.kind, sub, residual, normalise, partial(apply_squeeze, squeeze=seam.squeeze))


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
