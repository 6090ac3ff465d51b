"""What an adapter set does at one seam of the encoder, as formulas over plain tensors.

A *seam* is the add-and-norm step after a sub-layer. The formulas are the same for a set alone, for a set in training
and for many sets in one batch (mixed.py); who owns the tensors is not known here.

Sources: Houlsby et al. 2019 (houlsby), Pfeiffer et al. 2021 (pfeiffer), He et al. 2022 (parallel).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from registry.adapters.interface import BottleneckWeights, Kind, Map, NormWeights, Seam, Squeeze


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
    if seam.squeeze is None:
        joined = normalise(sub + residual)
        return joined if seam.shift is None else (joined + seam.shift).to(joined.dtype)
    return join(seam.kind, sub, residual, normalise, partial(apply_squeeze, squeeze=seam.squeeze))
