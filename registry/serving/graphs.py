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
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from registry.model.batching import Batch, LengthGroup, TokenRows
from registry.model.encoder import Encoder, EncoderLayer
from registry.serving.pool import ResidentSet

# Doubling, then in quarters of that; the largest takes a batch of 16,384 tokens and what must be spare.
_DOUBLING = (512, 1_024, 2_048, 4_096, 8_192)
TOKENS = (32, 64, 128, 256, *(size * part // 4 for size in _DOUBLING for part in range(4, 8)), 16_512)
ROWS = (2, 4, 8, 16, 32, 64, 128, 256)
LONGEST = (32, 64, 128, 256, 512)
MOST_GRAPHS = 64
_WARM_UPS = 2
_CAPTURING = threading.Lock()  # torch allows one capture at a time in a process


class GraphedAnswers:
    """Answers of resident sets through graphs, safe to use from any number of threads that share a CUDA stream.

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
        # The least recently used first; None where a capture failed.
        self._graphs: OrderedDict[tuple[Hashable, Bucket], _Graph | None] = OrderedDict()
        # One graph runs at a time, so one memory does for all; it is shared by what is captured on one stream.
        self._memory = torch.cuda.graph_pool_handle() if self._applies else None
        self._stream: Any = torch.cuda.Stream(weight.device) if self._applies else None  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    @torch.inference_mode()
    def logits(self, one: ResidentSet, rows: TokenRows) -> Tensor | None:
        """Return (B, C) float32 logits of one set in the order of the rows, None where no graph applies."""
        bucket = bucket_of([len(ids) for ids in rows.input_ids]) if self._applies else None
        if bucket is None:
            return None
        with self._lock:
            graph = self._graph(one, bucket)
            return None if graph is None else graph.answer(one, rows)

    def _graph(self, one: ResidentSet, bucket: Bucket) -> _Graph | None:
        key = (one.structure, bucket)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        graph = None
        if not any(one.adapter.keys_and_values(layer) for layer in range(len(self._encoder.layers))):
            try:
                if one.structure not in self._templates:
                    self._templates[one.structure] = _Template(one)
                graph = _Graph(self._encoder, self._templates[one.structure], bucket)
                with _CAPTURING:
                    graph.capture(self._memory, self._stream)
            except RuntimeError as err:
                graph = None
                why = str(err).partition("\n")[0]  # CUDA adds advice on debugging, over several lines
                told = f"answers like those of {one.reference} go without a CUDA graph: {why}"
                warnings.warn(told, RuntimeWarning, stacklevel=4)
        self._graphs[key] = graph
        while len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)
            used = {structure for structure, _ in self._graphs}
            self._templates = {known: one for known, one in self._templates.items() if known in used}
        return graph


class Bucket(NamedTuple):
    """What a batch is padded to: ``tokens`` in all, in ``rows`` of at most ``longest`` tokens."""

    tokens: int
    rows: int
    longest: int

    def lengths(self, own: Sequence[int]) -> list[int]:
        """Return the tokens of each row: those that are there, then rows that only fill up and share what is left."""
        fillers = self.rows - len(own)
        each, more = divmod(self.tokens - sum(own), fillers)
        return [*own, *[each + 1] * more, *[each] * (fillers - more)]


def bucket_of(lengths: Sequence[int]) -> Bucket | None:
    """Return what rows of these lengths are padded to, None where that is beyond the largest.

    At least one row fills up, and each of those has a token and is no longer than the longest of its bucket: the kernel
    of attention has work to do for every place that a row could have.
    """
    count, total = len(lengths), sum(lengths)
    longest = next((size for size in LONGEST if size >= max(lengths)), None)
    if longest is None:
        return None
    for tokens in TOKENS:
        spare = tokens - total
        fitting = (size for size in ROWS if count + -(-spare // longest) <= size <= count + spare)
        if spare > 0 and (rows := next(fitting, None)) is not None:
            return Bucket(tokens, rows, longest)
    return None


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

    def __init__(self, encoder: Encoder, template: _Template, bucket: Bucket) -> None:
        self._encoder, self._template, self._bucket = encoder, template, bucket
        device = encoder.embeddings.word.weight.device
        # Ids, types, positions and where rows begin, in one tensor, so that they travel in one copy.
        self._staging = torch.zeros(
            3 * bucket.tokens + bucket.rows + 1, dtype=torch.long, pin_memory=device.type == "cuda"
        )
        self._numbers = self._staging.to(device, copy=True)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._copied: torch.cuda.Event | None = None
        self._logits: Tensor | None = None

    def capture(self, memory: Any, on: torch.cuda.Stream) -> None:
        """Record the forward, after it has run often enough for what it sets up to be there.

        Args:
            memory: of all graphs.
            on: the stream of all captures, which is on the encoder's GPU, as torch's own is on the current one.
        """
        self._fill(TokenRows([[0]], [[0]]))
        self._numbers.copy_(self._staging)
        usual = torch.cuda.current_stream(self._numbers.device)
        with torch.cuda.stream(usual):  # its GPU is the current one here; torch leaves ``on`` set where a capture fails
            warm = torch.cuda.Stream(self._numbers.device)  # type: ignore[no-untyped-call]
            warm.wait_stream(usual)
            with torch.cuda.stream(warm):
                for _ in range(_WARM_UPS):
                    self._forward([])
            usual.wait_stream(warm)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on meanwhile: only what this one does must be fit for a graph.
            with torch.cuda.graph(graph, pool=memory, stream=on, capture_error_mode="thread_local"):
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
        self._copied.record(torch.cuda.current_stream(self._numbers.device))
        self._graph.replay()
        return self._logits[: len(rows)].clone()

    def _fill(self, rows: TokenRows) -> list[int]:
        """Write the rows, and those that fill up, into the staging tensor, and return their lengths."""
        own, tokens = [len(ids) for ids in rows.input_ids], self._bucket.tokens
        lengths, real, count = self._bucket.lengths(own), sum(own), len(own)
        numbers = self._staging.numpy()
        ids, types, positions = numbers[: 3 * tokens].reshape(3, tokens)
        starts = numbers[3 * tokens :]
        starts[0] = 0
        numpy.cumsum(lengths, out=starts[1:])
        for place, given in ((ids, rows.input_ids), (types, rows.type_ids)):
            place[:real] = numpy.fromiter(chain.from_iterable(given), numpy.int64, real)
            place[real:] = 0
        positions[:real] = numpy.arange(real) - numpy.repeat(starts[:count], lengths[:count])
        positions[real:] = 0
        return lengths

    def _forward(self, lengths: Sequence[int]) -> Tensor:
        """Return (rows, C) logits of what the numbers say; only attention on a CPU asks for the lengths."""
        tokens, count, longest = self._bucket
        ids, types, positions = self._numbers[: 3 * tokens].view(3, tokens)
        starts = self._numbers[3 * tokens :]
        batch = Batch(
            input_ids=ids,
            type_ids=types,
            positions=positions,
            row_starts=starts.int(),
            lengths=starts.diff(),
            longest=longest,
            groups=tuple(LengthGroup(1, length) for length in lengths),
            owners=(0,) * count,
            row_tokens=tuple(lengths),
            order=starts[:-1],
        )
        resident = self._template.resident
        pooling = resident.head.config.pooling
        logits: Tensor = resident.head(self._encoder.pooled(batch, resident.adapter, (pooling,))[pooling])
        return logits.float()


def _is_plain(layer: torch.nn.Module) -> bool:
    return isinstance(layer, EncoderLayer) and layer.relative is None and layer.disentangled is None
