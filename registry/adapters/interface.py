"""What the encoder asks of the adapters passed to it, and the tensors they answer with.

At three places a set can act: around a frozen product, in front of a layer's keys and values, and at the *seam*, the
whole add-and-norm step of a sub-layer. Without adapters a product is itself, there is no prefix, and the seam is
``norm(sub + residual)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from registry.config import Placement, Target

Place = Literal["attention", "ffn"]
Parts = tuple[Target, ...]  # products of the same states that are done as one, their results side by side
Where = tuple[int, Place | Parts]  # a layer, and its seam or product
Map = Callable[[Tensor], Tensor]

QUERY_KEY_VALUE: Parts = ("query", "key", "value")
QUERY: Parts = ("query",)
KEY_VALUE: Parts = ("key", "value")
ATTENTION_DENSE: Parts = ("attention_dense",)
FFN_IN: Parts = ("ffn_in",)
FFN_OUT: Parts = ("ffn_out",)


class Dropout(nn.Module):
    """Dropout that draws from a generator of its own, so that sets trained together draw what each would alone."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.generator: torch.Generator | None = None

    @property
    def is_active(self) -> bool:
        """Return whether anything is dropped now."""
        return self.training and self.share > 0

    def draw(self, like: Tensor) -> Tensor:
        """Return a mask of the shape of ``like``: 0 where dropped, else 1 / (1 - share)."""
        kept = torch.empty_like(like).bernoulli_(1 - self.share, generator=self.generator)
        return kept.div_(1 - self.share)

    def forward(self, states: Tensor) -> Tensor:
        """Return the states, in training with a share of them zero and the others larger to make up for it."""
        return states * self.draw(states) if self.is_active else states


class BottleneckWeights(NamedTuple):
    """The tensors of one bottleneck: ``down`` (M, in), ``down_bias`` (M,), ``up`` (out, M), ``up_bias`` (out,)."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor


class NormWeights(NamedTuple):
    """A task's own layer norm: ``weight`` (H,) and ``bias`` (H,), float32."""

    weight: Tensor
    bias: Tensor


class Squeeze(NamedTuple):
    """``up(act(down(x)))``: a bottleneck, or with the activation ``identity`` the low-rank change of a product.

    Attributes:
        weights: its tensors.
        activation: between the two products.
        dropout: in training, of the inner states, or of what enters where ``drops_input``.
        drops_input: see ``dropout``.
    """

    weights: BottleneckWeights
    activation: str
    dropout: Dropout | None = None
    drops_input: bool = False


class Change(NamedTuple):
    """What one set changes of a frozen product: ``scale_out * frozen(scale_in * x) + bias + squeeze(x)``.

    Attributes:
        squeeze: the low-rank part.
        scale_in: (in,) float32, or None.
        scale_out, bias: (out,) float32, or None.
    """

    squeeze: Squeeze | None = None
    scale_in: Tensor | None = None
    scale_out: Tensor | None = None
    bias: Tensor | None = None


class Prefix(NamedTuple):
    """Keys and values in front of those of a batch's rows, in packed order.

    Attributes:
        keys, values: (T, H) for all rows, row after row.
        counts: (B,) how many each row has.
    """

    keys: Tensor
    values: Tensor
    counts: tuple[int, ...]


class Fusion(NamedTuple):
    """Attention over what K frozen bottlenecks would add; formula: ``apply_fusion``.

    Attributes:
        query, key: (H, H) float32.
        query_bias: (H,) float32.
        value: (H, H) float32, V less the identity.
        members: the K bottlenecks.
        scales: (K,) factors on what each of them adds.
    """

    query: Tensor
    query_bias: Tensor
    key: Tensor
    value: Tensor
    members: tuple[Squeeze, ...]
    scales: tuple[float, ...]


class Kind(NamedTuple):
    """What a set does at a seam but for its numbers; rows of sets of one kind are computed together.

    Those of a fused set are computed alone, as it has members of its own.
    """

    placement: Placement | None
    activation: str
    scale: float
    has_norm: bool
    has_shift: bool = False
    is_fused: bool = False


class Seam(NamedTuple):
    """What one set does at one seam; without a bottleneck, a norm and a shift it is the plain backbone.

    Attributes:
        kind: where the bottleneck joins.
        squeeze: the bottleneck.
        norm: in the place of the backbone's.
        shift: (H,) float32 added to what the norm gives, a change of its bias.
        fusion: in the place of one bottleneck.
    """

    kind: Kind
    squeeze: Squeeze | None = None
    norm: NormWeights | None = None
    shift: Tensor | None = None
    fusion: Fusion | None = None


PLAIN = Seam(Kind(None, "relu", 1.0, False))


class Adapters(Protocol):
    """What the encoder asks of whatever is passed in as ``adapters``."""

    def product(self, layer: int, parts: Parts, x: Tensor, frozen: Map) -> Tensor:
        """Return the (N, out) results of frozen products of the (N, in) states ``x``, side by side."""
        ...

    def prefix(self, layer: int, rows: int) -> Prefix | None:
        """Return what stands in front of the keys and values of the batch's rows, None for nothing."""
        ...

    def join(self, layer: int, place: Place, sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the (N, H) states after the add-and-norm step of one sub-layer."""
        ...

    def on_rows(self) -> Adapters:
        """Return the same for (B, H) states, one of each row, as the last layer may compute no others."""
        ...


class NoAdapters:
    """The plain backbone: its products, and add and norm, nothing else."""

    def product(self, layer: int, parts: Parts, x: Tensor, frozen: Map) -> Tensor:
        """Return the frozen product."""
        return frozen(x)

    def prefix(self, layer: int, rows: int) -> None:
        """Return nothing."""
        return

    def join(self, layer: int, place: Place, sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return ``norm(sub + residual)``."""
        joined: Tensor = norm(sub + residual)
        return joined

    def on_rows(self) -> Adapters:
        """Return itself, as every state is treated alike."""
        return self


class SetAdapter(Adapters, Protocol):
    """One set's adapter, alone or in a mixed batch: in training (adapter_set.py) or resident (pool.py)."""

    def change(self, layer: int, parts: Parts) -> Change | None:
        """Return what this set changes of frozen products, None where nothing."""
        ...

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return this set's own (P, H) keys and (P, H) values of a layer."""
        ...

    def seam(self, layer: int, place: Place) -> Seam:
        """Return what this set does after one sub-layer."""
        ...
