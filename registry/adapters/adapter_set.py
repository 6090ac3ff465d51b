"""Everything that trains: bottlenecks, a task's own layer norms, and its head.

An ``AdapterSet`` owns its tensors by containment: *trainable* is ``parameters()``, *saved* is ``state_dict()``.
It knows nothing of the encoder but H and L; the encoder calls ``join`` at the two add-and-norm seams of a layer,
whose formulas are in bottlenecks.py.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from registry.adapters.bottleneck import PLACES, Bottleneck, join_alone
from registry.adapters.head import Head
from registry.adapters.interface import PLAIN, Adapters, Dropout, Kind, NormWeights, Place, Seam
from registry.config import AdapterConfig, HeadConfig
from registry.errors import ShapeMismatchError
from registry.schema import SetInfo
from registry.validation import require


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


class Adapter(nn.Module):
    """The bottlenecks and layer norms of one set; without a config it is the plain backbone."""

    def __init__(self, hidden_size: int, layers: int, config: AdapterConfig | None, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.bottlenecks = nn.ModuleDict()
        self.layer_norms = nn.ModuleDict()
        if config is None:
            return
        chosen = config.layers if config.layers is not None else tuple(range(layers))
        require(chosen[-1] < layers, "layers", f"indices below {layers}", chosen)
        for layer in chosen:
            for place in PLACES[config.placement]:
                self.bottlenecks[f"{layer}_{place}"] = Bottleneck(hidden_size, config, generator)
            if config.layer_norms:
                for place in ("attention", "ffn"):
                    self.layer_norms[f"{layer}_{place}"] = TaskNorm(hidden_size)

    def seam(self, layer: int, place: Place) -> Seam:
        """Return what this set does after one sub-layer."""
        key = f"{layer}_{place}"
        norm = cast(TaskNorm, self.layer_norms[key]).weights if key in self.layer_norms else None
        if self.config is None or (norm is None and key not in self.bottlenecks):
            return PLAIN
        if key not in self.bottlenecks:
            return Seam(PLAIN.kind._replace(has_norm=True), norm=norm)
        kind = Kind(self.config.placement, self.config.activation, self.config.scale, norm is not None)
        bottleneck = cast(Bottleneck, self.bottlenecks[key])
        return Seam(kind, bottleneck.weights, norm, bottleneck.dropout)

    def join(self, layer: int, place: Place, sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the (N, H) states after one add-and-norm step, with this set's bottleneck where it has one."""
        return join_alone(self.seam(layer, place), sub, residual, norm)

    def on_rows(self) -> Adapters:
        """Return itself, as every state is treated alike."""
        return self

    def start_norms(self, layer: int, attention: nn.Module, ffn: nn.Module) -> None:
        """Give this layer's own norms, where the set has them, the backbone's weights as their start."""
        for place, norm in (("attention", attention), ("ffn", ffn)):
            key = f"{layer}_{place}"
            if key in self.layer_norms:
                self.layer_norms[key].load_state_dict(norm.state_dict())


class AdapterSet(nn.Module):
    """Everything trained for one task: the adapter (bottlenecks, layer norms) and the head.

    Args:
        hidden_size: H of the backbone it is for.
        layers: L of that backbone.
        adapter: None makes a head without bottlenecks.
        head: pooling, classes and form of the classifier.
        seed: decides the initial weights, the same on every device.

    Attributes:
        info: what its training knows of it, which a store keeps; None for a set that was not trained.

    Raises:
        ConfigError: the reduction factor does not divide H, or a layer index is not below L.
    """

    def __init__(
        self, hidden_size: int, layers: int, adapter: AdapterConfig | None, head: HeadConfig, *, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator(device="cpu").manual_seed(seed)
        self.hidden_size, self.layers = hidden_size, layers
        self.info: SetInfo | None = None
        self.adapter = Adapter(hidden_size, layers, adapter, generator)
        self.head = Head(hidden_size, head, generator)

    @property
    def adapter_config(self) -> AdapterConfig | None:
        """Return the configuration of the bottlenecks, None where there are none."""
        return self.adapter.config

    @property
    def head_config(self) -> HeadConfig:
        """Return the configuration of the head."""
        return self.head.config

    @property
    def trainable_count(self) -> int:
        """Return the number of trainable elements."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def stored_count(self) -> int:
        """Return the number of stored elements: trainable ones and a frozen head's."""
        return sum(tensor.numel() for tensor in self.state_dict().values())

    @property
    def lowest_layer(self) -> int:
        """Return the first layer that differs from the backbone's; L where only a head is there."""
        config = self.adapter_config
        if config is None:
            return self.layers
        return 0 if config.layers is None else config.layers[0]

    def draw_dropout_from(self, generator: torch.Generator | None) -> None:
        """Let every dropout of this set draw from ``generator``; None is torch's global one."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.generator = generator

    def check_fits(self, hidden_size: int, layers: int) -> None:
        """Raise ShapeMismatchError unless this set is for a backbone of that H and L."""
        if (self.hidden_size, self.layers) != (hidden_size, layers):
            raise ShapeMismatchError("hidden states (H, L)", (self.hidden_size, self.layers), (hidden_size, layers))
