"""A checkpoint's tensors, taken by name until none is left: nothing is missing, nothing is ignored in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from registry.errors import DamagedBackboneError, shorten
from registry.projection import Projection


class Weights:
    """Hands out a checkpoint's tensors as the stock modules they belong to.

    Args:
        tensors: by name, without the model's prefix.
        source: the folder they come from, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: object) -> None:
        self.source = source
        # Checkpoints from before 2020 call a norm's weight gamma and its bias beta.
        self._left = {
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
            for name, tensor in tensors.items()
        }

    def has(self, module: str) -> bool:
        """Return whether there is a weight of this module that was not taken yet."""
        return f"{module}.weight" in self._left

    def embedding(self, module: str, width: int) -> nn.Embedding:
        """Return an embedding of the given width with as many rows as the checkpoint has."""
        weight = self._take(f"{module}.weight", (None, width))
        # Not by way of the meta device as below: drawing normal numbers there imports torch's compiler, two seconds.
        layer: nn.Embedding = nn.Embedding.from_pretrained(weight, freeze=False)  # type: ignore[no-untyped-call]
        return layer

    def linear(self, modules: Sequence[str], inputs: int, outputs: int) -> Projection:
        """Return one linear layer whose outputs are those of all ``modules`` side by side, each ``outputs`` wide."""
        weights = [self._take(f"{module}.weight", (outputs, inputs)) for module in modules]
        biases = [self._take(f"{module}.bias", (outputs,)) for module in modules]
        layer = Projection(inputs, outputs * len(modules), device="meta")
        layer.weight = nn.Parameter(weights[0] if len(weights) == 1 else torch.cat(weights))
        layer.bias = nn.Parameter(biases[0] if len(biases) == 1 else torch.cat(biases))
        return layer

    def norm(self, module: str, width: int, eps: float) -> nn.LayerNorm:
        """Return a layer norm over the given width."""
        layer = nn.LayerNorm(width, eps=eps, device="meta")
        layer.weight = nn.Parameter(self._take(f"{module}.weight", (width,)))
        layer.bias = nn.Parameter(self._take(f"{module}.bias", (width,)))
        return layer

    def check_all_taken(self) -> None:
        """Raise DamagedBackboneError if the checkpoint has encoder tensors that nothing asked for."""
        if self._left:
            raise DamagedBackboneError(
                self.source, "encoder tensors", "those of its family", f"also {shorten(self._left)}"
            )

    def _take(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        tensor = self._left.pop(name, None)
        if tensor is None:
            raise DamagedBackboneError(self.source, "encoder tensors", f"one named {name}", "none")
        fits = len(tensor.shape) == len(shape) and all(
            wanted in (None, found) for wanted, found in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            raise DamagedBackboneError(self.source, f"shape of {name}", shape, tuple(tensor.shape))
        return tensor
