"""LoRA: low-rank changes of frozen products.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from registry.adapters.bitfit import Biases
from registry.adapters.formulas import blocks
from registry.adapters.interface import BottleneckWeights, Change, Dropout, Parts, Place, Seam, Squeeze
from registry.adapters.method import MethodAdapter, Sizes, chosen_layers
from registry.config import LoraConfig, Target


class LowRank(nn.Module):
    """A and B of one product, in float32: A Kaiming-uniform, B zero, so that a fresh one changes nothing."""

    def __init__(self, wide: int, out: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.lora_a = nn.Parameter(torch.empty(rank, wide))
        self.lora_b = nn.Parameter(torch.zeros(out, rank))
        if not self.lora_a.is_meta:
            with torch.no_grad():
                nn.init.kaiming_uniform_(self.lora_a, a=5**0.5, generator=generator)


class LoraAdapter(MethodAdapter):
    """The low-rank changes of one set, and its biases where it trains any."""

    config: LoraConfig

    def __init__(self, sizes: Sizes, layers: int, config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__(config)
        self.sizes = sizes
        self.products = nn.ModuleDict()
        self.dropout = Dropout(config.dropout)
        chosen = chosen_layers(config.layers, layers)
        for layer in chosen:
            for target in config.targets:
                self.products[f"{layer}_{target}"] = LowRank(
                    *sizes.of(target), config.rank_at(layer, target), generator
                )
        targets = {"none": (), "lora_only": config.targets, "all": None}[config.bias]
        self.biases = Biases(sizes, chosen, targets, norms=config.bias == "all")

    def change(self, layer: int, parts: Parts) -> Change | None:
        """Return the low-rank change of products side by side: one A over all, B of each in its own rows."""
        bias = self.biases.of_products(layer, parts)
        own = [self._part(layer, part) for part in parts]
        downs: list[Tensor] = [each.lora_a for each in own if each is not None]
        if not downs:
            return None if bias is None else Change(bias=bias)
        down = downs[0] if len(downs) == 1 else torch.cat(downs)
        ups: list[Tensor | None] = [
            None if each is None else each.lora_b * self.config.scale_at(layer, part)
            for part, each in zip(parts, own, strict=True)
        ]
        up = blocks(ups, [self.sizes.of(part)[1] for part in parts])
        weights = BottleneckWeights(
            down, down.new_zeros(len(down)), up, up.new_zeros(len(up)) if bias is None else bias
        )
        return Change(Squeeze(weights, "identity", self.dropout, drops_input=True))

    def seam(self, layer: int, place: Place) -> Seam:
        """Return the change of the norm's bias, where every bias trains."""
        return self.biases.seam(layer, place)

    def _part(self, layer: int, target: Target) -> LowRank | None:
        key = f"{layer}_{target}"
        return cast(LowRank, self.products[key]) if key in self.products else None
