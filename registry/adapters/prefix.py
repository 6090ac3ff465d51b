"""Prefix tuning: learned keys and values in front of every row.

Source: Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", in its flat form; what a
reparametrised one learned is these keys and values too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from registry.adapters.method import MethodAdapter, Sizes, chosen_layers
from registry.config import PrefixConfig

_DEVIATION = 0.02  # of fresh keys and values, as BERT's own weights have


class PrefixAdapter(MethodAdapter):
    """The keys and values of one set, (P, H) each a layer, in float32."""

    config: PrefixConfig

    def __init__(self, sizes: Sizes, layers: int, config: PrefixConfig, generator: torch.Generator) -> None:
        super().__init__(config)
        self.keys, self.values = nn.ParameterDict(), nn.ParameterDict()
        for layer in chosen_layers(config.layers, layers):
            for part in (self.keys, self.values):
                fresh = torch.empty(config.length, sizes.hidden)
                if not fresh.is_meta:
                    fresh.normal_(std=_DEVIATION, generator=generator)
                part[str(layer)] = nn.Parameter(fresh)

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return the (P, H) keys and (P, H) values of a layer."""
        key = str(layer)
        return (self.keys[key], self.values[key]) if key in self.keys else None
