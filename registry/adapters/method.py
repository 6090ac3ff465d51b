"""What all methods have in common: the trained part of a set below its head, which does nothing where not said else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from registry.adapters.formulas import join_alone, multiply_alone, prefix_alone
from registry.adapters.interface import PLAIN, Adapters, Change, Map, Parts, Place, Prefix, Seam
from registry.config import MethodConfig, Target
from registry.validation import require

Config = TypeVar("Config", bound=MethodConfig)


class Sizes(NamedTuple):
    """The widths that a method has to know: H, and what leaves and enters the feed-forward part's two products."""

    hidden: int
    inner: tuple[int, int] | None

    def of(self, target: Target) -> tuple[int, int]:
        """Return the elements that enter and leave one product.

        Raises:
            ConfigError: a product of the feed-forward part, of a backbone whose inner width nobody told.
        """
        if not target.startswith("ffn"):
            return self.hidden, self.hidden
        require(self.inner is not None, "targets", "none in the feed-forward part, whose width is not known", target)
        leaving, entering = self.inner or (0, 0)
        return (self.hidden, leaving) if target == "ffn_in" else (entering, self.hidden)


def chosen_layers(wanted: tuple[int, ...] | None, layers: int) -> tuple[int, ...]:
    """Return the indices of the layers that a configuration means.

    Raises:
        ConfigError: one that is not below L.
    """
    chosen = wanted if wanted is not None else tuple(range(layers))
    require(chosen[-1] < layers, "layers", f"indices below {layers}", chosen)
    return chosen


class MethodAdapter(nn.Module):
    """The adapter of one set; without a configuration it is the plain backbone."""

    def __init__(self, config: MethodConfig | None = None) -> None:
        super().__init__()
        self.config = config

    def change(self, layer: int, parts: Parts) -> Change | None:
        """Return what this set changes of frozen products, None where nothing."""
        return None

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return this set's own (P, H) keys and (P, H) values of a layer."""
        return None

    def seam(self, layer: int, place: Place) -> Seam:
        """Return what this set does after one sub-layer."""
        return PLAIN

    def product(self, layer: int, parts: Parts, x: Tensor, frozen: Map) -> Tensor:
        """Return the (N, out) results of frozen products of (N, in) states, with this set's change."""
        return multiply_alone(self.change(layer, parts), x, frozen)

    def prefix(self, layer: int, rows: int) -> Prefix | None:
        """Return this set's keys and values in front of those of each row."""
        return prefix_alone(self.keys_and_values(layer), rows)

    def join(self, layer: int, place: Place, sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the (N, H) states after one add-and-norm step of this set."""
        return join_alone(self.seam(layer, place), sub, residual, norm)

    def on_rows(self) -> Adapters:
        """Return itself, as every state is treated alike."""
        return self

    def take_members(self, adapters: Sequence[MethodAdapter]) -> None:
        """Take the adapters of other sets, where the method joins those of several."""

    def start_norms(self, layer: int, attention: nn.Module, ffn: nn.Module) -> None:
        """Give this layer's own norms, where the set has them, the backbone's weights as their start."""
