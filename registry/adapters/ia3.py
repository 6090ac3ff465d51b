"""(IA)3: learned scales of keys, values and the feed-forward part's inner states.

Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
section 3.3.
"""

from __future__ import annotations

import torch
from torch import nn

from registry.adapters.formulas import side_by_side
from registry.adapters.interface import Change, Parts
from registry.adapters.method import MethodAdapter, Sizes, chosen_layers
from registry.config import Ia3Config


class Ia3Adapter(MethodAdapter):
    """The scales of one set, in float32, one at the start."""

    config: Ia3Config

    def __init__(self, sizes: Sizes, layers: int, config: Ia3Config, generator: torch.Generator) -> None:
        super().__init__(config)
        self.sizes = sizes
        self.scales = nn.ParameterDict()
        for layer in chosen_layers(config.layers, layers):
            for target in config.targets:
                wide, out = sizes.of(target)
                size = wide if target in config.inputs else out
                self.scales[f"{layer}_{target}"] = nn.Parameter(torch.ones(size))

    def change(self, layer: int, parts: Parts) -> Change | None:
        """Return the scales of products side by side."""
        keys = [f"{layer}_{part}" for part in parts]
        if not any(key in self.scales for key in keys):
            return None
        own = [self.scales.get(key, None) for key in keys]
        if parts[0] in self.config.inputs:
            return Change(scale_in=own[0])
        return Change(scale_out=side_by_side(own, [self.sizes.of(part)[1] for part in parts], 1.0))
