"""Bottlenecks between the layers, and a task's own layer norms: the weights behind the placements of formulas.py."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from registry.adapters.interface import PLAIN, BottleneckWeights, Dropout, Kind, NormWeights, Place, Seam, Squeeze
from registry.adapters.method import MethodAdapter, Sizes, chosen_layers
from registry.config import AdapterConfig
from registry.validation import require

PLACES: Mapping[str, tuple[Place, ...]] = MappingProxyType(
    {"after_layer": ("ffn",), "houlsby": ("attention", "ffn"), "pfeiffer": ("ffn",), "parallel": ("ffn",)}
)


class TaskNorm(nn.Module):
    """A task's own copy of one layer norm's weights, in float32; it starts as the backbone's."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    @property
    def weights(self) -> NormWeights:
        """Return the two tensors."""
        return NormWeights(self.weight, self.bias)


class Bottleneck(nn.Module):
    """Down-projection, activation, up-projection, in float32.

    With ``init="zero"`` a fresh bottleneck adds exactly nothing, so training starts from the backbone.

    Sources: Houlsby et al. 2019, section 2, figure 2; a learned scale: He et al. 2022 (one), Steitz and Roth 2024
    (of each channel).
    """

    def __init__(self, hidden_size: int, size: int, config: AdapterConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, size)
        self.up = nn.Linear(size, hidden_size)
        self.dropout = Dropout(config.dropout)
        channels = {"none": 0, "one": 1, "channel": hidden_size}[config.learned_scale]
        self.scale = nn.Parameter(torch.full((channels,), config.scale)) if channels else None
        self.fixed_scale = config.scale if config.placement != "parallel" and not channels else 1.0
        if not self.down.weight.is_meta:
            self._initialise(config.init, generator)

    @torch.no_grad()
    def _initialise(self, init: str, generator: torch.Generator) -> None:
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        if init == "normal":
            nn.init.normal_(self.down.weight, std=1e-3, generator=generator)
            nn.init.normal_(self.up.weight, std=1e-3, generator=generator)
        elif init == "xavier":
            nn.init.xavier_uniform_(self.down.weight, generator=generator)
            nn.init.xavier_uniform_(self.up.weight, generator=generator)
        else:
            nn.init.kaiming_uniform_(self.down.weight, a=5**0.5, generator=generator)
            nn.init.zeros_(self.up.weight)

    @property
    def weights(self) -> BottleneckWeights:
        """Return the four tensors, what is added scaled in them where a scale is learned or not the placement's own."""
        up: Tensor = self.up.weight
        bias: Tensor = self.up.bias
        if self.scale is not None:
            up, bias = up * self.scale.unsqueeze(1), bias * self.scale
        elif self.fixed_scale != 1.0:
            up, bias = up * self.fixed_scale, bias * self.fixed_scale
        return BottleneckWeights(self.down.weight, self.down.bias, up, bias)


class BottleneckAdapter(MethodAdapter):
    """The bottlenecks of one set, and its own layer norms where it has any."""

    config: AdapterConfig

    def __init__(self, sizes: Sizes, layers: int, config: AdapterConfig, generator: torch.Generator) -> None:
        super().__init__(config)
        self.bottlenecks = nn.ModuleDict()
        self.layer_norms = nn.ModuleDict()
        chosen = chosen_layers(config.layers, layers)
        known = {str(layer) for layer in chosen}
        require(config.widths.keys() <= known, "widths", "of layers that have bottlenecks", sorted(config.widths))
        for layer in chosen:
            for place in config.places or PLACES[config.placement]:
                size = config.widths.get(str(layer)) or _width(sizes.hidden, config.reduction_factor)
                self.bottlenecks[f"{layer}_{place}"] = Bottleneck(sizes.hidden, size, config, generator)
            if config.layer_norms:
                for place in ("attention", "ffn"):
                    self.layer_norms[f"{layer}_{place}"] = TaskNorm(sizes.hidden)

    def seam(self, layer: int, place: Place) -> Seam:
        """Return what this set does after one sub-layer."""
        key = f"{layer}_{place}"
        norm = cast(TaskNorm, self.layer_norms[key]).weights if key in self.layer_norms else None
        if norm is None and key not in self.bottlenecks:
            return PLAIN
        if key not in self.bottlenecks:
            return Seam(PLAIN.kind._replace(has_norm=True), norm=norm)
        config = self.config
        scale = config.scale if config.placement == "parallel" and config.learned_scale == "none" else 1.0
        kind = Kind(config.placement, config.activation, scale, norm is not None)
        bottleneck = cast(Bottleneck, self.bottlenecks[key])
        return Seam(kind, Squeeze(bottleneck.weights, kind.activation, bottleneck.dropout), norm)

    def start_norms(self, layer: int, attention: nn.Module, ffn: nn.Module) -> None:
        """Give this layer's own norms, where the set has them, the backbone's weights as their start."""
        for place, norm in (("attention", attention), ("ffn", ffn)):
            key = f"{layer}_{place}"
            if key in self.layer_norms:
                self.layer_norms[key].load_state_dict(norm.state_dict())


def _width(hidden_size: int, reduction_factor: int) -> int:
    fits = hidden_size % reduction_factor == 0
    require(fits, "reduction_factor", f"a divisor of the hidden size {hidden_size}", reduction_factor)
    return hidden_size // reduction_factor
