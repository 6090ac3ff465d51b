"""Several sets of one structure in one batch, told by tables: each state goes through the set that its tile names.

The tables are tensors that stay where they are, so a graph that reads them answers for whichever sets they name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from registry.adapters.formulas import join
from registry.adapters.interface import Adapters, Change, Kind, Map, Parts, Place, Seam, Squeeze, Where
from registry.graphs.set_tables import TABLED_ACTIVATIONS, is_aligned
from registry.model.encoder import NO_ADAPTERS


class TabledPlace(NamedTuple):
    """What all sets of a structure do at one place, but for the numbers.

    Attributes:
        slot: in the table of addresses.
        wide, out, rank: of the two products, (wide to rank, rank to out).
        activation: between them.
        kind: of a seam; None for a product.
    """

    slot: int
    wide: int
    out: int
    rank: int
    activation: str
    kind: Kind | None


class Tables(NamedTuple):
    """What the kernel is told.

    Attributes:
        addresses: (places, K, 5) of ``addresses_of``.
        tiles, tile: (P, 3) of ``tiles_of``, for the states, and how many states a tile has.
        row_tiles, row_tile: the same for one state of each row.
    """

    addresses: Tensor
    tiles: Tensor
    tile: int
    row_tiles: Tensor
    row_tile: int


def squeezes_of(acts: Sequence[tuple[Where, Change | Seam]]) -> list[Squeeze] | None:
    """Return the two thin products that a set has at each place, None where it does anything else."""
    found: list[Squeeze] = []
    for _, act in acts:
        others = (act.norm, act.shift, act.fusion) if isinstance(act, Seam) else (act.scale_in, act.scale_out, act.bias)
        if act.squeeze is None or any(other is not None for other in others):
            return None
        found.append(act.squeeze)
    return found


def places_of(acts: Sequence[tuple[Where, Change | Seam]]) -> dict[Where, TabledPlace] | None:
    """Return where sets like this one act, None unless that is with thin products alone, and such as the kernel has."""
    squeezes = squeezes_of(acts)
    if not squeezes or any(squeeze.activation not in TABLED_ACTIVATIONS for squeeze in squeezes):
        return None
    found: dict[Where, TabledPlace] = {}
    for (where, act), squeeze in zip(acts, squeezes, strict=True):
        rank, wide = squeeze.weights.down.shape
        kind = act.kind if isinstance(act, Seam) else None
        found[where] = TabledPlace(len(found), wide, len(squeeze.weights.up_bias), rank, squeeze.activation, kind)
    return found


class TabledAdapters:
    """Several sets in one batch, sorted by set.

    Args:
        places: where the sets act.
        tables: that name the sets and their states.
    """

    def __init__(self, places: Mapping[Where, TabledPlace], tables: Tables) -> None:
        self._places, self._tables = places, tables

    def on_rows(self) -> Adapters:
        """Return the same for (B, H) states, one of each row."""
        tables = self._tables
        return TabledAdapters(self._places, tables._replace(tiles=tables.row_tiles, tile=tables.row_tile))

    def product(self, layer: int, parts: Parts, x: Tensor, frozen: Map) -> Tensor:
        """Return the (N, out) results of frozen products, each state's with its own set's change."""
        place = self._places.get((layer, parts))
        return frozen(x) if place is None else frozen(x) + self._squeeze(x, place)

    def prefix(self, layer: int, rows: int) -> None:
        """Return nothing."""
        return

    def join(self, layer: int, place: Place, sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the (N, H) states after one add-and-norm step."""
        found = self._places.get((layer, place))
        if found is None or found.kind is None:
            return NO_ADAPTERS.join(layer, place, sub, residual, norm)
        return join(found.kind, sub, residual, norm, partial(self._squeeze, place=found))

    def _squeeze(self, states: Tensor, place: TabledPlace) -> Tensor:
        from registry.graphs.squeeze_kernel import squeeze_tiles  # brings Triton, which a CPU need not load

        addresses, tiles, tile, _, _ = self._tables
        aligned = is_aligned(states.dtype, place.wide, place.rank)
        added: Tensor = squeeze_tiles(
            states.contiguous(), addresses[place.slot], tiles, tile, place.out, place.rank, place.activation, aligned
        )
        return added
