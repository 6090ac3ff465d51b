"""CUDA graphs: what a function launches on a GPU is recorded once, launched again in one go, and kept by a key."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from subprocess import SubprocessError
from typing import Any, Generic, TypeVar

import torch

from registry.adapters.interface import SetAdapter
from registry.model.attention import has_varlen_kernel
from registry.model.encoder import Encoder, EncoderLayer

Result = TypeVar("Result")
_Key = TypeVar("_Key", bound=Hashable)
_Kept = TypeVar("_Kept")
Replay = Callable[[], object]
# Of a function and the generators that it draws from: what it returned, whose tensors a replay fills, and the replay.
Capture = Callable[[Callable[[], Any], Sequence[torch.Generator]], tuple[Any, Replay]]

MOST_GRAPHS = 64
CANNOT_CAPTURE = (ImportError, OSError, RuntimeError, SubprocessError)  # Triton or its compiler may be missing too
_WARM_UPS = 2
_CAPTURING = threading.Lock()  # torch allows one capture at a time in a process


class CudaCapture:
    """Captures on one GPU; all of them share one memory, so one is replayed at a time, on one stream.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._memory: Any = None
        self._keeper: torch.cuda.CUDAGraph | None = None  # torch shares the memory of a graph that is there

    def __call__(self, work: Callable[[], Result], generators: Sequence[torch.Generator] = ()) -> tuple[Result, Replay]:
        """Record ``work``, after it has run often enough for what it sets up to be there.

        Args:
            work: reads and writes tensors that stay where they are, and asks the host nothing.
            generators: that it draws from; captures leave them as they were, and each replay draws anew.

        Raises:
            RuntimeError: it does what a graph cannot hold.
        """
        with _CAPTURING:
            states = [each.get_state() for each in generators]
            usual = torch.cuda.current_stream(self._device)
            with torch.cuda.stream(usual):  # its GPU is the current one here; torch leaves its own set after a failure
                warm: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                warm.wait_stream(usual)
                try:
                    with torch.cuda.stream(warm):
                        for _ in range(_WARM_UPS):
                            work()
                    usual.wait_stream(warm)
                finally:
                    for each, state in zip(generators, states, strict=True):
                        each.set_state(state)
                if self._keeper is None:
                    self._take_memory(())
                try:
                    result, graph = self._record(work, generators)
                except RuntimeError:
                    self._take_memory(generators)
                    raise
        return result, graph.replay

    def _take_memory(self, generators: Sequence[torch.Generator]) -> None:
        """Take a new memory, and capture something in it that succeeds.

        After a capture that failed torch goes on recording into its memory, and (torch 2.11) neither draws from its
        generators nor replays graphs that do, until another capture with them has ended.
        """
        self._memory = torch.cuda.graph_pool_handle()
        _, self._keeper = self._record(lambda: torch.zeros(1, device=self._device), generators)

    def _record(
        self, work: Callable[[], Result], generators: Sequence[torch.Generator]
    ) -> tuple[Result, torch.cuda.CUDAGraph]:
        graph = torch.cuda.CUDAGraph()
        for each in generators:
            graph.register_generator_state(each)
        # Other threads may go on meanwhile: only what this one does must be fit for a graph.
        with torch.cuda.graph(graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        return result, graph


def can_capture(encoder: Encoder, adapter: SetAdapter | None = None) -> bool:
    """Return whether the forward of an encoder, with a set of this adapter, asks the host nothing.

    It is so on CUDA in half precision, where one kernel attends over all rows, without relative positions, windows and
    prefixes.
    """
    layers = range(len(encoder.layers))
    plain = all(
        isinstance(layer, EncoderLayer) and layer.relative is None and layer.disentangled is None
        for layer in encoder.layers
    )
    has_prefix = adapter is not None and any(adapter.keys_and_values(layer) is not None for layer in layers)
    return plain and not has_prefix and has_varlen_kernel(encoder.embeddings.word.weight)


def capture_for(encoder: Encoder, given: Capture | None) -> Capture | None:
    """Return what records forwards of an encoder: the given one, else its GPU; None where nothing can be captured."""
    if not can_capture(encoder):
        return None
    return given or CudaCapture(encoder.embeddings.word.weight.device)


class GraphCache(Generic[_Key, _Kept]):
    """Graphs by key, the least recently used of which leave; for what could not be captured there is None."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[_Key, _Kept | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def known(self, key: _Key) -> _Kept | None:
        """Return the graph of a key, None where there is none yet."""
        return self._graphs.get(key)

    def find(self, key: _Key, make: Callable[[], _Kept | None], what: str) -> _Kept | None:
        """Return the graph of a key, made where the key is new; if it cannot be captured, a warning says so once.

        Args:
            key: tells apart what graphs are for.
            make: captures one; None is returned where none applies.
            what: goes the usual way if it fails.
        """
        if key not in self._graphs:
            try:
                self._graphs[key] = make()
            except CANNOT_CAPTURE as err:
                self._graphs[key] = None
                why = str(err).partition("\n")[0]  # CUDA adds advice on debugging, over several lines
                warnings.warn(f"{what} without a CUDA graph: {why}", RuntimeWarning, stacklevel=4)
        self._graphs.move_to_end(key)
        while len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)
        return self._graphs[key]
