"""Everything that trains: a method's weights, and a head.

An ``AdapterSet`` owns its tensors by containment: *trainable* is ``parameters()``, *saved* is ``state_dict()``.
The members of a fused set are in neither.
It knows nothing of the encoder but H, L and the width inside the feed-forward part; the encoder asks it around its
products, in front of its keys and at its seams, whose formulas are in formulas.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import nn

from registry.adapters.bitfit import BitFitAdapter
from registry.adapters.bottleneck import BottleneckAdapter
from registry.adapters.fusion import FusionAdapter
from registry.adapters.head import Head
from registry.adapters.ia3 import Ia3Adapter
from registry.adapters.interface import Dropout
from registry.adapters.lora import LoraAdapter
from registry.adapters.method import MethodAdapter, Sizes
from registry.adapters.prefix import PrefixAdapter
from registry.config import (
    AdapterConfig,
    BitFitConfig,
    FusionConfig,
    HeadConfig,
    Ia3Config,
    LoraConfig,
    MethodConfig,
    PrefixConfig,
)
from registry.errors import ShapeMismatchError
from registry.schema import SetInfo

ADAPTERS: Mapping[type, Callable[..., MethodAdapter]] = MappingProxyType(
    {
        AdapterConfig: BottleneckAdapter,
        LoraConfig: LoraAdapter,
        Ia3Config: Ia3Adapter,
        BitFitConfig: BitFitAdapter,
        PrefixConfig: PrefixAdapter,
        FusionConfig: FusionAdapter,
    }
)


class AdapterSet(nn.Module):
    """Everything trained for one task: the adapter of one method, and the head.

    Args:
        hidden_size: H of the backbone it is for.
        layers: L of that backbone.
        adapter: the method's shape; None makes a head alone.
        head: pooling, classes and form of the classifier.
        seed: decides the initial weights, the same on every device.
        inner_sizes: elements that leave the feed-forward part's first product and enter its second, which methods
            that change them need.

    Attributes:
        info: what its training knows of it, which a store keeps; None for a set that was not trained.

    Raises:
        ConfigError: the reduction factor does not divide H, a layer index is not below L, or a width is not known.
    """

    def __init__(
        self,
        hidden_size: int,
        layers: int,
        adapter: MethodConfig | None,
        head: HeadConfig,
        *,
        seed: int = 0,
        inner_sizes: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        generator = torch.Generator(device="cpu").manual_seed(seed)
        self.hidden_size, self.layers, self.inner_sizes = hidden_size, layers, inner_sizes
        self.info: SetInfo | None = None
        sizes = Sizes(hidden_size, inner_sizes)
        made = None if adapter is None else ADAPTERS[type(adapter)](sizes, layers, adapter, generator)
        self.adapter = made if made is not None else MethodAdapter()
        self.head = Head(hidden_size, head, generator)

    @property
    def adapter_config(self) -> MethodConfig | None:
        """Return the configuration of the method, None for a head alone."""
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


class Trained(Protocol):
    """What a training returns: the set, and whether it alone gives the answers."""

    @property
    def adapter_set(self) -> AdapterSet | None:
        """Return the set, None where the method has none."""
        ...

    @property
    def storable(self) -> bool:
        """Return whether the set alone gives the method's answers."""
        ...
