"""Batches of one set through CUDA graphs.

A graph is captured once for a bucket of tokens and rows and a *structure* (of which method, sizes and head a set is),
and reads a template's tensors, into which those of the wanted set are copied: any number of sets shares it. What has no
graph, or is large enough to keep a GPU busy, goes the usual way.
"""

from __future__ import annotations

import copy
import threading
import weakref
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from registry.graphs.buckets import Bucket, PaddedRows, bucket_of
from registry.graphs.capture import Capture, GraphCache, can_capture, capture_for
from registry.model.batching import TokenRows
from registry.model.encoder import Encoder
from registry.model.inference import logits_of
from registry.serving.pool import ResidentSet


class GraphedAnswers:
    """Answers of resident sets through graphs, safe to use from any number of threads that share a CUDA stream.

    Args:
        encoder: on any device; see ``can_capture`` for those that have graphs.
        capture: records answers there; the encoder's GPU does when None.
    """

    def __init__(self, encoder: Encoder, capture: Capture | None = None) -> None:
        self._encoder, self._capture = encoder, capture_for(encoder, capture)
        self._templates: WeakValueDictionary[str, _Template] = WeakValueDictionary()  # by structure, held by graphs
        self._graphs: GraphCache[tuple[str, Bucket], _Graph] = GraphCache()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def logits(self, one: ResidentSet, rows: TokenRows) -> Tensor | None:
        """Return (B, C) float32 logits of one set in the order of the rows, None where no graph applies."""
        bucket = None if self._capture is None else bucket_of(rows.lengths)
        if bucket is None:
            return None
        with self._lock:
            what = f"answers like those of {one.reference} go"
            graph = self._graphs.find((one.structure, bucket), lambda: self._captured(one, bucket), what)
            return None if graph is None else graph.answer(one, rows)

    def _captured(self, one: ResidentSet, bucket: Bucket) -> _Graph | None:
        if self._capture is None or not can_capture(self._encoder, one.adapter):
            return None
        template = self._templates.get(one.structure)
        if template is None:
            template = self._templates[one.structure] = _Template(one)
        return _Graph(self._encoder, template, bucket, self._capture)


class _Template:
    """The tensors that the graphs of one structure read, and whose numbers they have now."""

    def __init__(self, one: ResidentSet) -> None:
        self.resident = copy.deepcopy(one)
        self._holder = weakref.ref(one)

    def take(self, one: ResidentSet) -> None:
        """Copy the tensors of a set of this structure, where they are not those that are there."""
        if self._holder() is not one:
            torch._foreach_copy_(self.resident.tensors, one.tensors)
            self._holder = weakref.ref(one)


class _Graph:
    """The answers of one structure's sets to rows of one bucket."""

    def __init__(self, encoder: Encoder, template: _Template, bucket: Bucket, capture: Capture) -> None:
        self._template = template
        self._rows = PaddedRows(bucket, encoder.embeddings.word.weight.device)
        self._logits: Tensor
        self._logits, self._replay = capture(lambda: logits_of(encoder, template.resident, self._rows.batch), ())

    def answer(self, one: ResidentSet, rows: TokenRows) -> Tensor:
        """Return (B, C) float32 logits in the order of the rows."""
        self._rows.put(rows)
        self._template.take(one)
        self._replay()
        return self._logits[: len(rows)].clone()
