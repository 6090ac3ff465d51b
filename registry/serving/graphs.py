"""CUDA graphs for batches of one set: their kernels take less time than launching them, which a graph does once.

Rows are padded to a bucket of tokens and rows. A graph is captured once for a bucket and a *structure* (of which
method, sizes and head a set is), and reads a template's tensors, into which those of the wanted set are copied: any
number of sets shares it. What has no graph, or is large enough to keep a GPU busy, goes the usual way.
"""

from __future__ import annotations

import copy
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import chain

import numpy
import torch
from torch import Tensor

from registry.model.batching import Batch, LengthGroup, TokenRows
from registry.model.encoder import Encoder, EncoderLayer
from registry.serving.pool import ResidentSet

# Doubling, then in quarters of that; the largest takes a batch of 16,384 tokens and what must be spare.
_DOUBLING = (512, 1_024, 2_048, 4_096, 8_192)
TOKENS = (32, 64, 128, 256, *(size * part // 4 for size in _DOUBLING for part in range(4, 8)), 16_512)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
MOST_GRAPHS = 64
_WARM_UPS = 2


class GraphedAnswers:
    """Answers of resident sets through graphs, safe to use from any number of threads.

    Args:
        encoder: on any device; graphs are only made on CUDA in half precision, for encoders without relative positions
            or windows, whose forward asks the host nothing.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        weight = encoder.embeddings.word.weight
        half = weight.dtype in (torch.bfloat16, torch.float16)
        self._applies = (
            weight.is_cuda
            and half
            and torch.cuda.get_device_capability(weight.device) >= (8, 0)
            and all(_is_plain(layer) for layer in encoder.layers)
        )
        self._templates: dict[Hashable, _Template] = {}
        self._buckets: OrderedDict[tuple[Hashable, tuple[int, int]], _Bucket | None] = (
            OrderedDict()
        )  # the least recently used first
        self._memory = torch.cuda.graph_pool_handle() if self._applies else None  # one at a time, so one for all
        self._lock = threading.Lock()

    @torch.inference_mode()
    def logits(self, one: ResidentSet, rows: TokenRows) -> Tensor | None:
        """Return (B, C) float32 logits of one set in the order of the rows, None where no graph applies."""
        size = bucket_of([len(ids) for ids in rows.input_ids]) if self._applies else None
        if size is None:
            return None
        with self._lock:
            bucket = self._bucket(one, size)
            return None if bucket is None else bucket.answer(one, rows)

    def _bucket(self, one: ResidentSet, size: tuple[int, int]) -> _Bucket | None:
        key = (one.structure, size)
        if key in self._buckets:
            self._buckets.move_to_end(key)
            return self._buckets[key]
        bucket = None
        if not any(one.adapter.keys_and_values(layer) for layer in range(len(self._encoder.layers))):
            if one.structure not in self._templates:
                self._templates[one.structure] = _Template(one)
            bucket = _Bucket(self._encoder, self._templates[one.structure], *size)
            try:
                bucket.capture(self._memory)
            except RuntimeError as err:
                bucket = None
                told = f"answers like those of {one.reference} go without a CUDA graph: {err}"
                warnings.warn(told, RuntimeWarning, stacklevel=4)
        self._buckets[key] = bucket
        while len(self._buckets) > MOST_GRAPHS:
            self._buckets.popitem(last=False)
            used = {structure for structure, _ in self._buckets}
            self._templates = {known: one for known, one in self._templates.items() if known in used}
        return bucket


def bucket_of(lengths: Sequence[int]) -> tuple[int, int] | None:
    """Return the tokens and rows that rows of these lengths are padded to, None where that is beyond the largest.

    One row is always spare, and rows that are there only to fill up have one token each.
    """
    rows = next((size for size in ROWS if size >= len(lengths)), None)
    if rows is None:
        return None
    needed = sum(lengths) + (rows - len(lengths)) + 1
    tokens = next((size for size in TOKENS if size >= needed), None)
    return None if tokens is None else (tokens, rows)


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


class _Bucket:
    """The answers of one structure's sets to at most so many tokens and rows."""

    def __init__(self, encoder: Encoder, template: _Template, tokens: int, rows: int) -> None:
        self._encoder, self._template, self._tokens, self._rows = encoder, template, tokens, rows + 1
        device = encoder.embeddings.word.weight.device
        # Ids, types, positions and where rows begin, in one tensor, so that they travel in one copy.
        self._staging = torch.zeros(3 * tokens + self._rows + 1, dtype=torch.long, pin_memory=device.type == "cuda")
        self._numbers = self._staging.to(device, copy=True)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._copied: torch.cuda.Event | None = None
        self._logits: Tensor | None = None

    def capture(self, memory: tuple[int, int] | None) -> None:
        """Record the forward, after it has run often enough for what it sets up to be there."""
        self._fill(TokenRows([[0]], [[0]]))
        self._numbers.copy_(self._staging)
        stream = torch.cuda.Stream(self._numbers.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._numbers.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._forward([])
        torch.cuda.current_stream(self._numbers.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory):
            self._logits = self._forward([])
        self._graph, self._copied = graph, torch.cuda.Event()  # type: ignore[no-untyped-call]

    def answer(self, one: ResidentSet, rows: TokenRows) -> Tensor:
        """Return (B, C) float32 logits in the order of the rows."""
        if self._copied is not None:
            self._copied.synchronize()  # the last copy from the staging tensor may still be under way
        lengths = self._fill(rows)
        self._numbers.copy_(self._staging, non_blocking=True)
        self._template.take(one)
        if self._graph is None or self._logits is None or self._copied is None:
            return self._forward(lengths)[: len(rows)]
        self._copied.record()
        self._graph.replay()
        return self._logits[: len(rows)].clone()

    def _fill(self, rows: TokenRows) -> list[int]:
        """Write the rows, those that fill up and the spare one into the staging tensor, and return their lengths."""
        lengths = [len(ids) for ids in rows.input_ids]
        real, count = sum(lengths), len(lengths)
        lengths += [1] * (self._rows - 1 - count)
        lengths.append(self._tokens - sum(lengths))
        numbers = self._staging.numpy()
        ids, types, positions = numbers[: 3 * self._tokens].reshape(3, self._tokens)
        starts = numbers[3 * self._tokens :]
        starts[0] = 0
        numpy.cumsum(lengths, out=starts[1:])
        for place, own in ((ids, rows.input_ids), (types, rows.type_ids)):
            place[:real] = numpy.fromiter(chain.from_iterable(own), numpy.int64, real)
            place[real:] = 0
        positions[:real] = numpy.arange(real) - numpy.repeat(starts[:count], lengths[:count])
        positions[real:] = 0
        return lengths

    def _forward(self, lengths: Sequence[int]) -> Tensor:
        """Return (rows, C) logits of what the numbers say; only attention on a CPU asks for the lengths."""
        ids, types, positions = self._numbers[: 3 * self._tokens].view(3, self._tokens)
        starts = self._numbers[3 * self._tokens :]
        batch = Batch(
            input_ids=ids,
            type_ids=types,
            positions=positions,
            row_starts=starts.int(),
            lengths=starts.diff(),
            longest=self._tokens,
            groups=tuple(LengthGroup(1, length) for length in lengths),
            owners=(0,) * self._rows,
            row_tokens=tuple(lengths),
            order=starts[:-1],
        )
        resident = self._template.resident
        pooling = resident.head.config.pooling
        logits: Tensor = resident.head(self._encoder.pooled(batch, resident.adapter, (pooling,))[pooling])
        return logits.float()


def _is_plain(layer: torch.nn.Module) -> bool:
    return isinstance(layer, EncoderLayer) and layer.relative is None and layer.disentangled is None
