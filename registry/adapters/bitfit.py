"""BitFit: a change of every bias of the layers, and nothing else.

The embeddings and the pooler lie outside the layers and keep their biases.

Source: Ben Zaken et al. 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language
Models".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from registry.adapters.formulas import side_by_side
from registry.adapters.interface import PLAIN, Change, Parts, Place, Seam
from registry.adapters.method import MethodAdapter, Sizes, chosen_layers
from registry.config import TARGETS, BitFitConfig, Target

_NORMS: tuple[Place, ...] = ("attention", "ffn")


class Biases(nn.Module):
    """Changes of biases, in float32, zero at the start.

    Args:
        sizes: of the backbone.
        layers: indices of those that have them.
        targets: the products whose biases change; all of them when None.
        norms: whether those of the layer norms change too.
    """

    def __init__(self, sizes: Sizes, layers: Sequence[int], targets: Sequence[Target] | None, *, norms: bool) -> None:
        super().__init__()
        self.sizes = sizes
        self.products = nn.ParameterDict()
        self.norms = nn.ParameterDict()
        for layer in layers:
            for target in TARGETS if targets is None else targets:
                self.products[f"{layer}_{target}"] = nn.Parameter(torch.zeros(sizes.of(target)[1]))
            for place in _NORMS if norms else ():
                self.norms[f"{layer}_{place}"] = nn.Parameter(torch.zeros(sizes.hidden))

    def of_products(self, layer: int, parts: Parts) -> Tensor | None:
        """Return (out,) changes of products side by side, None where there is none."""
        keys = [f"{layer}_{part}" for part in parts]
        if not any(key in self.products for key in keys):
            return None
        own = [self.products.get(key, None) for key in keys]
        return side_by_side(own, [self.sizes.of(part)[1] for part in parts], 0.0)

    def seam(self, layer: int, place: Place) -> Seam:
        """Return the change of a layer norm's bias."""
        key = f"{layer}_{place}"
        if key not in self.norms:
            return PLAIN
        return Seam(PLAIN.kind._replace(has_shift=True), shift=self.norms[key])


class BitFitAdapter(MethodAdapter):
    """The biases of one set."""

    def __init__(self, sizes: Sizes, layers: int, config: BitFitConfig, generator: torch.Generator) -> None:
        super().__init__(config)
        self.biases = Biases(sizes, chosen_layers(config.layers, layers), None, norms=True)

    def change(self, layer: int, parts: Parts) -> Change | None:
        """Return the change of the products' biases."""
        bias = self.biases.of_products(layer, parts)
        return None if bias is None else Change(bias=bias)

    def seam(self, layer: int, place: Place) -> Seam:
        """Return the change of the norm's bias."""
        return self.biases.seam(layer, place)
