"""What the encoder asks of the adapters passed to it, and the tensors they answer with.

The seam is the whole add-and-norm step of a sub-layer. Without adapters it is ``norm(sub + residual)``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from registry.config import Placement

Place = Literal["attention", "ffn"]


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
    """The tensors of one bottleneck: ``down`` (M, H), ``down_bias`` (M,), ``up`` (H, M), ``up_bias`` (H,)."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor


class NormWeights(NamedTuple):
    """A task's own layer norm: ``weight`` (H,) and ``bias`` (H,), float32."""

    weight: Tensor
    bias: Tensor


class Kind(NamedTuple):
    """What a set does at a seam but for its numbers; rows of sets of one kind are computed together."""

    placement: Placement | None
    activation: str
    scale: float
    has_norm: bool


class Seam(NamedTuple):
    """What one set does at one seam; without a bottleneck and a norm it is the plain backbone."""

    kind: Kind
    bottleneck: BottleneckWeights | None = None
    norm: NormWeights | None = None
    dropout: Dropout | None = None


PLAIN = Seam(Kind(None, "relu", 1.0, False))


class Adapters(Protocol):
    """What the encoder asks of whatever is passed in as ``adapters``."""

    def join(self, layer: int, place: Place, sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the (N, H) states after the add-and-norm step of one sub-layer."""
        ...

    def on_rows(self) -> Adapters:
        """Return the same for (B, H) states, one of each row, as the last layer may compute no others."""
        ...


class NoAdapters:
    """The plain backbone: add and norm, nothing else."""

    def join(self, layer: int, place: Place, sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return ``norm(sub + residual)``."""
        joined: Tensor = norm(sub + residual)
        return joined

    def on_rows(self) -> Adapters:
        """Return itself, as every state is treated alike."""
        return self


class JoiningAdapter(Adapters, Protocol):
    """An adapter that joins alone or in a mixed batch: in training (adapter_set.py) or resident (pool.py)."""

    def seam(self, layer: int, place: Place) -> Seam:
        """Return what this set does after one sub-layer."""
        ...
