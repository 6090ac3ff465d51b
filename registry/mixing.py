"""Several adapter sets in one batch: every row goes through its own set, and comes back in the caller's order.

A mixed batch equals the single-task answers; nothing here depends on how many sets exist beside those in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from registry.adapters import AdapterSet, Place
from registry.batching import Segment


class MixedAdapters:
    """Several sets in one batch: each segment's tokens join through their own set.

    Args:
        sets: the sets that ``Segment.adapter_index`` counts in.
        segments: of the batch, covering all its tokens in order.
    """

    def __init__(self, sets: Sequence[AdapterSet], segments: Sequence[Segment]) -> None:
        self._parts = [(segment.tokens, sets[segment.adapter_index].adapter) for segment in segments]

    def join(self, layer: int, place: Place, sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the (N, H) states after one add-and-norm step, segment by segment."""
        if len(self._parts) == 1:
            return self._parts[0][1].join(layer, place, sub, residual, norm)
        sizes = [tokens.stop - tokens.start for tokens, _ in self._parts]
        joined = [
            adapter.join(layer, place, own_sub, own_residual, norm)
            for (_, adapter), own_sub, own_residual in zip(
                self._parts, torch.split(sub, sizes), torch.split(residual, sizes), strict=True
            )
        ]
        return torch.cat(joined)
