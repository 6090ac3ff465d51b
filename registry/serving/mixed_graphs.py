"""Mixed batches through CUDA graphs: sets of one structure whose thin products one kernel does, told by tables.

A graph is captured once for a structure, a bucket of tokens and rows, and a number of sets that it has room for. Where
the tensors of a batch's sets lie is written into its table before each replay, so nothing is copied or gathered, and
sets that were loaded later are answered by graphs that were captured before. Other mixed batches go the usual way.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy
import torch
from torch import Tensor

from registry.adapters.interface import Where
from registry.graphs.buckets import Bucket, PaddedRows, bucket_of
from registry.graphs.capture import Capture, GraphCache, can_capture, capture_for
from registry.graphs.set_tables import LEAST_TILE, MOST_TILE, addresses_of, tiles_of
from registry.graphs.staged import Staged
from registry.graphs.tabled_adapters import TabledAdapters, TabledPlace, Tables, places_of, squeezes_of
from registry.model.batching import TokenRows
from registry.model.encoder import Encoder
from registry.model.inference import linear_logits
from registry.serving.graphs import GraphedAnswers
from registry.serving.pool import ResidentSet

SETS = (8, 32, 128, 512)  # that a graph has room for
Addresses = numpy.typing.NDArray[numpy.int64]  # (places, 5) of one set


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
        self._encoder, self._capture = encoder, capture_for(encoder, capture)
        self._graphs: GraphCache[tuple[str, Bucket, int], _MixedGraph] = GraphCache()
        self._addresses: WeakKeyDictionary[ResidentSet, Addresses] = WeakKeyDictionary()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def logits(
        self, sets: Sequence[ResidentSet], owners: Sequence[int], rows: TokenRows
    ) -> dict[int, tuple[list[int], Tensor]] | None:
        """Return what ``GraphedBatches`` returns for several sets."""
        asked = {owner: sets[owner] for owner in sorted(set(owners))}
        room = next((size for size in SETS if size >= len(asked)), None)
        bucket = None if self._capture is None else bucket_of(rows.lengths)
        if bucket is None or room is None or len({one.structure for one in asked.values()}) > 1:
            return None
        order = sorted(range(len(rows)), key=owners.__getitem__)
        own = [list(run) for _, run in groupby(order, key=owners.__getitem__)]
        first = next(iter(asked.values()))
        with self._lock:
            addresses = [self._addresses_of(one) for one in asked.values()]
            batch = _Sorted(rows.take(order), [len(each) for each in own], addresses)
            graph = self._graphs.find(
                (first.structure, bucket, room),
                lambda: self._captured(first, bucket, room, batch),
                f"mixed batches of sets like {first.reference} go",
            )
            if graph is None:
                return None
            logits = _logits_of(list(asked.values()), batch.counts, graph.pooled(batch))
        return dict(zip(asked, zip(own, torch.split(logits, batch.counts), strict=True), strict=True))

    def _captured(self, one: ResidentSet, bucket: Bucket, room: int, first: _Sorted) -> _MixedGraph | None:
        places = places_of(one.adapter.acts)
        if places is None or self._capture is None or not can_capture(self._encoder, one.adapter):
            return None
        pooling = one.head.config.pooling
        return _MixedGraph(self._encoder, places, bucket, room, pooling, first, self._capture)

    def _addresses_of(self, one: ResidentSet) -> Addresses:
        """Return where the tensors of a set lie for as long as it lives; none where it does more than the kernel."""
        if one not in self._addresses:
            squeezes = squeezes_of(one.adapter.acts) or []
            self._addresses[one] = numpy.array([addresses_of(each.weights) for each in squeezes], numpy.int64)
        return self._addresses[one]


class _Sorted(NamedTuple):
    """Rows side by side by set, how many rows each set has, and where the sets lie."""

    rows: TokenRows
    counts: list[int]
    addresses: list[Addresses]


class _MixedGraph:
    """The states that heads see in mixed batches of one structure that fit one bucket.

    Args:
        places: where the sets act.
        room: for sets.
        pooling: of the heads.
        first: a batch, with which it is captured.
    """

    def __init__(
        self,
        encoder: Encoder,
        places: Mapping[Where, TabledPlace],
        bucket: Bucket,
        room: int,
        pooling: str,
        first: _Sorted,
        capture: Capture,
    ) -> None:
        device = encoder.embeddings.word.weight.device
        self._bucket, self._tile = bucket, _tile_for(bucket.tokens, room)
        self._rows = PaddedRows(bucket, device)
        self._addresses = Staged((len(places), room, 5), torch.int64, device)
        self._tiles = Staged((-(-bucket.tokens // self._tile) + room, 3), torch.int32, device)
        self._row_tiles = Staged((-(-bucket.rows // LEAST_TILE) + room, 3), torch.int32, device)
        tables = Tables(self._addresses.tensor, self._tiles.tensor, self._tile, self._row_tiles.tensor, LEAST_TILE)
        adapters = TabledAdapters(places, tables)
        self._put(first)
        self._pooled: Tensor
        self._pooled, self._replay = capture(
            lambda: encoder.pooled(self._rows.batch, adapters, (pooling,))[pooling], ()
        )

    def pooled(self, batch: _Sorted) -> Tensor:
        """Return the (B, H) float32 states of the rows, which the next batch overwrites."""
        self._put(batch)
        self._replay()
        return self._pooled[: len(batch.rows)]

    def _put(self, batch: _Sorted) -> None:
        """Say which rows are asked, where their sets' tensors lie, and which states are whose."""
        self._rows.put(batch.rows)
        with self._addresses.writing() as addresses:
            addresses[:, : len(batch.addresses)] = numpy.stack(batch.addresses, axis=1)
        firsts = numpy.cumsum([0, *batch.counts[:-1]])
        tokens = numpy.add.reduceat(numpy.asarray(batch.rows.lengths), firsts)  # of each set
        for staged, tile, counts, total in (
            (self._tiles, self._tile, tokens, self._bucket.tokens),
            (self._row_tiles, LEAST_TILE, numpy.array(batch.counts), self._bucket.rows),
        ):
            counts[-1] += total - counts.sum()  # what fills up goes with the last set
            with staged.writing() as tiles:
                tiles[:] = tiles_of(counts.tolist(), tile, len(tiles))


def _logits_of(sets: Sequence[ResidentSet], counts: Sequence[int], pooled: Tensor) -> Tensor:
    """Return (B, C) float32 logits of rows by their own heads, which are of one structure."""
    heads = [one.head for one in sets]
    together = linear_logits(heads, counts, {heads[0].config.pooling: pooled})
    if together is not None:
        return together
    return torch.cat([head(part) for head, part in zip(heads, torch.split(pooled, list(counts)), strict=True)])


def _tile_for(tokens: int, room: int) -> int:
    """Return how many states a tile has: small ones for small sets, so that few are empty and many run at once."""
    return next((tile for tile in (LEAST_TILE, 32) if tokens // room <= tile), MOST_TILE)
