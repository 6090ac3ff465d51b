"""Everything that trains: bottlenecks, a task's own layer norms, and its head.

An ``AdapterSet`` owns its tensors by containment: *trainable* is ``parameters()``, *saved* is ``state_dict()``.
It knows nothing of the encoder but H and L; the encoder calls ``join`` at the two add-and-norm seams of a layer.

Sources: Houlsby et al. 2019 (houlsby), Pfeiffer et al. 2021 (pfeiffer), He et al. 2022 (parallel).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from registry.errors import ShapeMismatchError
from registry.schema import AdapterConfig, HeadConfig
from registry.validation import require

Place = Literal["attention", "ffn"]
Norm = Callable[[Tensor], Tensor]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}
)
PLACES: Mapping[str, tuple[Place, ...]] = MappingProxyType(
    {"after_layer": ("ffn",), "houlsby": ("attention", "ffn"), "pfeiffer": ("ffn",), "parallel": ("ffn",)}
)


class Adapters(Protocol):
    """What the encoder asks of whatever is passed in as ``adapters``."""

    def join(self, layer: int, place: Place, sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the (N, H) states after the add-and-norm step of one sub-layer."""
        ...


class NoAdapters:
    """The plain backbone: add and norm, nothing else."""

    def join(self, layer: int, place: Place, sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return ``norm(sub + residual)``."""
        joined: Tensor = norm(sub + residual)
        return joined


class Bottleneck(nn.Module):
    """Down-projection, activation, up-projection, in float32.

    Source: Houlsby et al. 2019, section 2, figure 2.
    """

    def __init__(self, hidden_size: int, config: AdapterConfig, generator: torch.Generator) -> None:
        super().__init__()
        fits = hidden_size % config.reduction_factor == 0
        require(fits, "reduction_factor", f"a divisor of the hidden size {hidden_size}", config.reduction_factor)
        size = hidden_size // config.reduction_factor
        self.down = nn.Linear(hidden_size, size)
        self.up = nn.Linear(size, hidden_size)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)
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

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what the bottleneck adds to each token's state.

        With ``init="zero"`` a fresh bottleneck adds exactly nothing, so training starts from the backbone.

        Args:
            hidden: (N, H), the states of all tokens, in any floating dtype.

        Returns:
            (N, H), in the dtype of ``hidden``.
        """
        inner = self.activation(self.down(hidden.float()))  # (N, M)
        added: Tensor = self.up(self.dropout(inner))  # (N, H)
        return added.to(hidden.dtype)


def join_after_layer(sub: Tensor, residual: Tensor, norm: Norm, bottleneck: Norm, scale: float) -> Tensor:
    """Return ``y + b(y)`` with ``y = norm(s + r)``: the adapter follows the finished layer."""
    y = norm(sub + residual)
    return y + bottleneck(y)


def join_houlsby(sub: Tensor, residual: Tensor, norm: Norm, bottleneck: Norm, scale: float) -> Tensor:
    """Return ``norm(s + b(s) + r)``: the adapter follows the sub-layer's projection."""
    return norm(sub + bottleneck(sub) + residual)


def join_pfeiffer(sub: Tensor, residual: Tensor, norm: Norm, bottleneck: Norm, scale: float) -> Tensor:
    """Return ``norm(s + r + b(norm(s + r)))``: AdapterHub's ``seq_bn``, the norm is used twice."""
    total = sub + residual
    return norm(total + bottleneck(norm(total)))


def join_parallel(sub: Tensor, residual: Tensor, norm: Norm, bottleneck: Norm, scale: float) -> Tensor:
    """Return ``norm(s + r + scale * b(r))``: the adapter runs beside the feed-forward part."""
    return norm(sub + residual + scale * bottleneck(residual))


JOINS: Mapping[str, Callable[[Tensor, Tensor, Norm, Norm, float], Tensor]] = MappingProxyType(
    {
        "after_layer": join_after_layer,
        "houlsby": join_houlsby,
        "pfeiffer": join_pfeiffer,
        "parallel": join_parallel,
    }
)


class TaskNorm(nn.Module):
    """A task's own copy of one layer norm's weights, in float32; it starts as the backbone's."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden: Tensor, eps: float) -> Tensor:
        """Return the normalised (N, H) states in the dtype of ``hidden``; ``eps`` is the backbone's."""
        normed = F.layer_norm(hidden.float(), self.weight.shape, self.weight, self.bias, eps)
        return normed.to(hidden.dtype)


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

    def join(self, layer: int, place: Place, sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the (N, H) states after one add-and-norm step, with this set's bottleneck where it has one."""
        key = f"{layer}_{place}"
        normalise: Norm = partial(self.layer_norms[key], eps=norm.eps) if key in self.layer_norms else norm
        if self.config is None or key not in self.bottlenecks:
            return normalise(sub + residual)
        return JOINS[self.config.placement](sub, residual, normalise, self.bottlenecks[key], self.config.scale)

    def start_norms(self, layer: int, attention: nn.Module, ffn: nn.Module) -> None:
        """Give this layer's own norms, where the set has them, the backbone's weights as their start."""
        for place, norm in (("attention", attention), ("ffn", ffn)):
            key = f"{layer}_{place}"
            if key in self.layer_norms:
                self.layer_norms[key].load_state_dict(norm.state_dict())


class Head(nn.Module):
    """Dropout and a linear layer, or RoBERTa's dense + tanh before it, over one pooled state per row."""

    def __init__(self, hidden_size: int, config: HeadConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        self.dense = nn.Linear(hidden_size, hidden_size) if config.form == "dense_tanh" else None
        self.out = nn.Linear(hidden_size, len(config.label_names))
        linears = [layer for layer in (self.dense, self.out) if layer is not None]
        for linear in linears:
            if not linear.weight.is_meta:
                nn.init.normal_(linear.weight, std=0.02, generator=generator)  # BERT's own initialisation
                nn.init.zeros_(linear.bias)
            if not config.trained:
                _turn_into_buffers(linear)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return (B, C) float32 logits for the (B, H) pooled states."""
        pooled = self.dropout(pooled.float())
        if self.dense is not None:
            pooled = self.dropout(torch.tanh(self.dense(pooled)))
        logits: Tensor = self.out(pooled)
        return logits


def _turn_into_buffers(linear: nn.Linear) -> None:
    """Make a frozen layer's tensors saved but not trainable, so that no list of names is needed for that."""
    for name, parameter in list(linear.named_parameters(recurse=False)):
        delattr(linear, name)
        linear.register_buffer(name, parameter.detach())


class AdapterSet(nn.Module):
    """Everything trained for one task: the adapter (bottlenecks, layer norms) and the head.

    Args:
        hidden_size: H of the backbone it is for.
        layers: L of that backbone.
        adapter: None makes a head without bottlenecks.
        head: pooling, classes and form of the classifier.
        seed: decides the initial weights, the same on every device.

    Raises:
        ConfigError: the reduction factor does not divide H, or a layer index is not below L.
    """

    def __init__(
        self, hidden_size: int, layers: int, adapter: AdapterConfig | None, head: HeadConfig, *, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator(device="cpu").manual_seed(seed)
        self.hidden_size, self.layers = hidden_size, layers
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

    def check_fits(self, hidden_size: int, layers: int) -> None:
        """Raise ShapeMismatchError unless this set is for a backbone of that H and L."""
        if (self.hidden_size, self.layers) != (hidden_size, layers):
            raise ShapeMismatchError("hidden states (H, L)", (self.hidden_size, self.layers), (hidden_size, layers))
