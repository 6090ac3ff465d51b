"""Mixed batches through CUDA graphs: sets of one structure whose thin products one kernel does, told by tables.

A graph is captured once for a structure, a bucket of tokens and rows, and a number of sets that it has room for. Where
the tensors of a batch's sets lie is written into its table before each replay, so nothing is copied or gathered, and
sets that were loaded later are answered by graphs that were captured before. Other mixed batches go the usual way.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from subprocess import SubprocessError
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy
import torch
from torch import Tensor, nn

from registry.adapters.formulas import join
from registry.adapters.interface import (
    ATTENTION_DENSE,
    FFN_IN,
    FFN_OUT,
    KEY_VALUE,
    QUERY,
    QUERY_KEY_VALUE,
    Adapters,
    Kind,
    Map,
    Parts,
    Place,
    SetAdapter,
    Squeeze,
)
from registry.graphs.buckets import Bucket, PaddedRows, bucket_of
from registry.graphs.capture import Capture, CudaCapture, can_capture, tell_failure
from registry.graphs.set_tables import LEAST_TILE, MOST_TILE, TABLED_ACTIVATIONS, addresses_of, is_aligned, tiles_of
from registry.graphs.staged import Staged
from registry.model.batching import TokenRows
from registry.model.encoder import NO_ADAPTERS, Encoder
from registry.model.inference import linear_logits
from registry.serving.graphs import GraphedAnswers
from registry.serving.pool import ResidentSet

MOST_MIXED_GRAPHS = 32
SETS = (8, 32, 128, 512)  # that a graph has room for
CANNOT_CAPTURE = (ImportError, OSError, RuntimeError, SubprocessError)  # Triton or its compiler may be missing too
Addresses = numpy.typing.NDArray[numpy.int64]
Where = tuple[int, Place | Parts]  # a layer, and the seam or the product there


class GraphedBatches:
    """Answers of one or of several resident sets through graphs.

    Args:
        encoder: on any device.
        mixed: whether batches of several sets go through graphs as well.
        capture: see ``GraphedAnswers``.
    """

    def __init__(self, encoder: Encoder, *, mixed: bool, capture: Capture | None = None) -> None:
        self.mixed = mixed
        self._of_one, self._of_several = GraphedAnswers(encoder, capture), GraphedMixed(encoder, capture)

    def logits(
        self, sets: Sequence[ResidentSet], owners: Sequence[int], rows: TokenRows
    ) -> dict[int, tuple[list[int], Tensor]] | None:
        """Return for each set in the batch its rows and their (R, C) float32 logits, None where no graph applies.

        Args:
            sets: what ``owners`` count in.
            owners: the set of each row.
            rows: of the batch.
        """
        if len(set(owners)) == 1:
            logits = self._of_one.logits(sets[owners[0]], rows)
            return None if logits is None else {owners[0]: (list(range(len(rows))), logits)}
        return self._of_several.logits(sets, owners, rows) if self.mixed else None


class GraphedMixed:
    """Answers of several resident sets in one batch through graphs, safe to use from threads that share a CUDA stream.

    Args:
        encoder, capture: see ``GraphedAnswers``.
    """

    def __init__(self, encoder: Encoder, capture: Capture | None = None) -> None:
        self._encoder = encoder
        self._capture: Capture | None = None
        if can_capture(encoder):
            self._capture = capture or CudaCapture(encoder.embeddings.word.weight.device)
        # The least recently used first; None where sets do more than the kernel, or a capture failed.
        self._graphs: OrderedDict[tuple[str, Bucket, int], _MixedGraph | None] = OrderedDict()
        self._known: WeakKeyDictionary[ResidentSet, Addresses] = WeakKeyDictionary()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def logits(
        self, sets: Sequence[ResidentSet], owners: Sequence[int], rows: TokenRows
    ) -> dict[int, tuple[list[int], Tensor]] | None:
        """Return what ``GraphedBatches`` returns for several sets."""
        if self._capture is None:
            return None
        order = sorted(range(len(rows)), key=owners.__getitem__)
        own = {owner: list(run) for owner, run in groupby(order, key=owners.__getitem__)}
        asked = _Asked(rows.take(order), [sets[owner] for owner in own], [len(each) for each in own.values()])
        bucket = bucket_of(rows.lengths)
        room = next((size for size in SETS if size >= len(own)), None)
        if bucket is None or room is None or len({one.structure for one in asked.sets}) > 1:
            return None
        with self._lock:
            graph = self._graph(asked, bucket, room, self._capture)
            answers = None if graph is None else torch.split(graph.answer(asked), asked.counts)
        if answers is None:
            return None
        return {owner: (own[owner], logits) for owner, logits in zip(own, answers, strict=True)}

    def _graph(self, asked: _Asked, bucket: Bucket, room: int, capture: Capture) -> _MixedGraph | None:
        first = asked.sets[0]
        key = (first.structure, bucket, room)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        graph = None
        places = squeezed_places(first.adapter, len(self._encoder.layers))
        if places is not None:
            try:
                graph = _MixedGraph(self._encoder, places, bucket, room, asked, self._known, capture)
            except CANNOT_CAPTURE as err:
                tell_failure(f"mixed batches of sets like {first.reference} go", err)
        self._graphs[key] = graph
        while len(self._graphs) > MOST_MIXED_GRAPHS:
            self._graphs.popitem(last=False)
        return graph


class _Asked(NamedTuple):
    """Rows side by side by set, the sets in that order, and how many rows each has."""

    rows: TokenRows
    sets: list[ResidentSet]
    counts: list[int]


class _SqueezedPlace(NamedTuple):
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


def squeezed_places(adapter: SetAdapter, layers: int) -> dict[Where, _SqueezedPlace] | None:
    """Return the places where sets like this one act, None unless bottlenecks and low-rank changes are all they do."""
    found: dict[Where, _SqueezedPlace] = {}
    for where, kind, squeeze in _places(adapter, layers):
        if squeeze is None or squeeze.activation not in TABLED_ACTIVATIONS:
            return None
        weights = squeeze.weights
        rank, wide = weights.down.shape
        found[where] = _SqueezedPlace(len(found), wide, len(weights.up_bias), rank, squeeze.activation, kind)
    return found or None


def _places(adapter: SetAdapter, layers: int) -> Iterator[tuple[Where, Kind | None, Squeeze | None]]:
    """Yield each place where a set acts, and its two products there, None where it does something else."""
    seams: tuple[Place, ...] = ("attention", "ffn")
    for layer in range(layers):
        for parts in (QUERY_KEY_VALUE, QUERY, KEY_VALUE, ATTENTION_DENSE, FFN_IN, FFN_OUT):
            change = adapter.change(layer, parts)
            if change is not None:
                alone = change.scale_in is None and change.scale_out is None and change.bias is None
                yield (layer, parts), None, change.squeeze if alone else None
        for place in seams:
            seam = adapter.seam(layer, place)
            if seam.kind.placement is not None or seam.kind.has_norm or seam.kind.has_shift:
                alone = seam.norm is None and seam.shift is None and seam.fusion is None
                yield (layer, place), seam.kind, seam.squeeze if alone else None


class _TabledAdapters:
    """Several sets in one batch, told by tables: each state goes through the set that its tile names.

    Args:
        places: where the sets act.
        addresses: (places, K, 5) of ``addresses_of``.
        tiles: (P, 3) of ``tiles_of``, for the states, and how many states a tile has.
        row_tiles: the same for one state of each row.
    """

    def __init__(
        self,
        places: Mapping[Where, _SqueezedPlace],
        addresses: Tensor,
        tiles: tuple[Tensor, int],
        row_tiles: tuple[Tensor, int],
    ) -> None:
        self._places, self._addresses, self._tiles, self._row_tiles = places, addresses, tiles, row_tiles

    def on_rows(self) -> Adapters:
        """Return the same for (B, H) states, one of each row."""
        return _TabledAdapters(self._places, self._addresses, self._row_tiles, self._row_tiles)

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

    def _squeeze(self, states: Tensor, place: _SqueezedPlace) -> Tensor:
        from registry.graphs.squeeze_kernel import squeeze_tiles  # brings Triton, which a CPU need not load

        tiles, tile = self._tiles
        aligned = is_aligned(states.dtype, place.wide, place.rank)
        added: Tensor = squeeze_tiles(
            states.contiguous(), self._addresses[place.slot], tiles, tile, place.out, place.rank, place.activation,
            aligned,
        )  # fmt: skip
        return added


class _MixedGraph:
    """The answers to mixed batches of one structure that fit one bucket.

    Args:
        places: where the sets act.
        room: for sets.
        first: a batch, with which it is captured.
        known: (places, 5) of where the tensors of a set lie, for as long as it lives.

    Raises:
        ImportError, OSError, SubprocessError: Triton is missing, or a compiler that it asks.
        RuntimeError: it cannot be captured.
    """

    def __init__(
        self,
        encoder: Encoder,
        places: Mapping[Where, _SqueezedPlace],
        bucket: Bucket,
        room: int,
        first: _Asked,
        known: WeakKeyDictionary[ResidentSet, Addresses],
        capture: Capture,
    ) -> None:
        device = encoder.embeddings.word.weight.device
        self._layers, self._bucket = len(encoder.layers), bucket
        self._rows = PaddedRows(bucket, device)
        self._addresses = Staged((len(places), room, 5), torch.int64, device)
        self._tiles, self._row_tiles = (
            (Staged((-(-count // tile) + room, 3), torch.int32, device), tile)
            for count, tile in ((bucket.tokens, _tile_for(bucket.tokens, room)), (bucket.rows, LEAST_TILE))
        )
        tiles, row_tiles = ((staged.tensor, tile) for staged, tile in (self._tiles, self._row_tiles))
        adapters = _TabledAdapters(places, self._addresses.tensor, tiles, row_tiles)
        pooling = self._pooling = first.sets[0].head.config.pooling
        self._known = known
        self._put(first)
        self._pooled: Tensor
        self._pooled, self._replay = capture(
            lambda: encoder.pooled(self._rows.batch, adapters, (pooling,))[pooling], ()
        )

    def answer(self, asked: _Asked) -> Tensor:
        """Return (B, C) float32 logits in the order of the rows."""
        self._put(asked)
        self._replay()
        pooled = self._pooled[: len(asked.rows)]
        heads = [one.head for one in asked.sets]
        together = linear_logits(heads, asked.counts, {self._pooling: pooled})
        if together is not None:
            return together
        return torch.cat([head(part) for head, part in zip(heads, torch.split(pooled, asked.counts), strict=True)])

    def _put(self, asked: _Asked) -> None:
        """Say which rows are asked, where their sets' tensors lie, and which states are whose."""
        self._rows.put(asked.rows)
        with self._addresses.writing() as addresses:
            for place, one in enumerate(asked.sets):
                addresses[:, place] = self._addresses_of(one)
        lengths = numpy.asarray(asked.rows.lengths)
        firsts = numpy.cumsum([0, *asked.counts[:-1]])
        tokens = numpy.add.reduceat(lengths, firsts)  # of each set
        for (staged, tile), counts, total in (
            (self._tiles, tokens, self._bucket.tokens),
            (self._row_tiles, numpy.array(asked.counts), self._bucket.rows),
        ):
            counts[-1] += total - counts.sum()  # what fills up goes with the last set
            with staged.writing() as tiles:
                tiles[:] = tiles_of(counts.tolist(), tile, len(tiles))

    def _addresses_of(self, one: ResidentSet) -> Addresses:
        """Return (places, 5) of where the tensors of a set lie."""
        if one not in self._known:
            squeezes = [squeeze for _, _, squeeze in _places(one.adapter, self._layers)]
            self._known[one] = numpy.array([addresses_of(each.weights) for each in squeezes if each is not None])
        return self._known[one]


def _tile_for(tokens: int, room: int) -> int:
    """Return how many states a tile has: small ones for small sets, so that few are empty and many run at once."""
    return next((tile for tile in (LEAST_TILE, 32) if tokens // room <= tile), MOST_TILE)
