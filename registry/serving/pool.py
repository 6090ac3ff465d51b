"""Adapter sets resident beside the backbone, within a number of bytes: the least recently used leave first.

Choosing a set is looking it up. A set in use by a batch never leaves; one that left comes back from where it was
loaded when it is named again. What a reference is, and where sets come from, is not known here.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.head import Head
from registry.adapters.interface import (
    ATTENTION_DENSE,
    FFN_IN,
    FFN_OUT,
    KEY_VALUE,
    PLAIN,
    QUERY,
    QUERY_KEY_VALUE,
    BottleneckWeights,
    Change,
    Fusion,
    NormWeights,
    Parts,
    Place,
    Seam,
    Squeeze,
    Where,
)
from registry.adapters.method import MethodAdapter
from registry.schema import Manifest
from registry.store.manifest import require_head
from registry.validation import require, to_json

GIBIBYTE = 2**30


class ResidentAdapter(MethodAdapter):
    """An adapter for answers only: plain tensors, nothing that trains.

    Args:
        adapter: of the set; its tensors are copied.
        layers: of the backbone.
        dtype: of the matrices; vectors stay float32.
    """

    def __init__(self, adapter: MethodAdapter, layers: int, dtype: torch.dtype) -> None:
        super().__init__(adapter.config)
        places: tuple[Place, ...] = ("attention", "ffn")
        seams = {(layer, place): adapter.seam(layer, place) for layer in range(layers) for place in places}
        self._seams = {where: _detach_seam(seam, dtype) for where, seam in seams.items() if seam is not PLAIN}
        self._changes: dict[tuple[int, Parts], Change] = {}
        self._prefixes: dict[int, tuple[Tensor, Tensor]] = {}
        for layer in range(layers):
            # First tokens alone may be asked of the last layer, whose queries are then a product of their own.
            of_last = (QUERY, KEY_VALUE) if layer == layers - 1 else ()
            for parts in (QUERY_KEY_VALUE, *of_last, ATTENTION_DENSE, FFN_IN, FFN_OUT):
                if (change := adapter.change(layer, parts)) is not None:
                    self._changes[layer, parts] = _detach_change(change, dtype)
            if (own := adapter.keys_and_values(layer)) is not None:
                self._prefixes[layer] = own[0].detach().to(dtype, copy=True), own[1].detach().to(dtype, copy=True)

    @property
    def tensors(self) -> list[Tensor]:
        """Return all tensors, in an order that only the configuration decides."""
        return list(_tensors_in([*self._seams.values(), *self._changes.values(), *self._prefixes.values()]))

    @property
    def acts(self) -> list[tuple[Where, Change | Seam]]:
        """Return what this set does at each product and seam where it does anything, in the same order for its like."""
        return [*self._changes.items(), *self._seams.items()]

    def change(self, layer: int, parts: Parts) -> Change | None:
        """Return what this set changes of frozen products, None where nothing."""
        return self._changes.get((layer, parts))

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return this set's own (P, H) keys and (P, H) values of a layer."""
        return self._prefixes.get(layer)

    def seam(self, layer: int, place: Place) -> Seam:
        """Return what this set does after one sub-layer."""
        return self._seams.get((layer, place), PLAIN)


class ResidentSet:
    """A stored adapter set in memory, ready to answer.

    Args:
        reference: with its version, for answers.
        manifest: what is known of it.
        adapter_set: copied, so that nothing of a module stays.
        dtype: the backbone's. On a GPU its bottlenecks take it, as a product there has a single dtype; on a CPU they
            stay float32, as products this small are no faster in bfloat16.

    Raises:
        RequestError: a set that came without a head.
    """

    def __init__(self, reference: str, manifest: Manifest, adapter_set: AdapterSet, dtype: torch.dtype) -> None:
        self.reference = reference
        self.manifest = require_head(reference, manifest)
        on_gpu = adapter_set.head.out.weight.is_cuda
        self.adapter = ResidentAdapter(adapter_set.adapter, adapter_set.layers, dtype if on_gpu else torch.float32)
        self.head: Head = copy.deepcopy(adapter_set.head).requires_grad_(False).eval()

    @property
    def tensors(self) -> list[Tensor]:
        """Return all tensors; those of sets of one structure are alike."""
        return [*self.adapter.tensors, *self.head.state_dict().values()]

    @property
    def bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def structure(self) -> str:
        """Return what two sets have in common that differ in nothing but numbers and names."""
        head = self.head.config
        sizes = [(tuple(tensor.shape), tensor.dtype) for tensor in self.tensors]
        config = None if self.adapter.config is None else to_json(self.adapter.config)
        return repr((config, head.form, head.pooling, head.bias, sizes))  # a text, whose hash is worked out once


def _detach_seam(seam: Seam, dtype: torch.dtype) -> Seam:
    """Return the seam with tensors of its own that train no more."""
    norm = None if seam.norm is None else NormWeights(*(tensor.detach().clone() for tensor in seam.norm))
    squeeze = None if seam.squeeze is None else _detach_squeeze(seam.squeeze, dtype)
    fusion = None if seam.fusion is None else _detach_fusion(seam.fusion, dtype)
    return Seam(seam.kind, squeeze, norm, _copied(seam.shift), fusion)


def _detach_fusion(fusion: Fusion, dtype: torch.dtype) -> Fusion:
    """Return the fusion with copies of its members too, so that a fused set counts the bytes of all it answers with."""
    query, bias, key, value = (tensor.detach().to(dtype, copy=True) for tensor in fusion[:4])
    members = tuple(_detach_squeeze(member, dtype) for member in fusion.members)
    return Fusion(query, bias, key, value, members, fusion.scales)


def _detach_change(change: Change, dtype: torch.dtype) -> Change:
    squeeze = None if change.squeeze is None else _detach_squeeze(change.squeeze, dtype)
    return Change(squeeze, _copied(change.scale_in), _copied(change.scale_out), _copied(change.bias))


def _detach_squeeze(squeeze: Squeeze, dtype: torch.dtype) -> Squeeze:
    copied = (tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format) for tensor in squeeze.weights)
    weights = BottleneckWeights(*copied)
    return Squeeze(weights, squeeze.activation)


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _tensors_in(parts: Iterable[object]) -> Iterator[Tensor]:
    """Yield all tensors in tuples of tuples."""
    for part in parts:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, tuple):
            yield from _tensors_in(part)


Key = TypeVar("Key", bound=Hashable)


@dataclass(eq=False)
class _Place:
    """One set's place in the pool: empty while it is being loaded."""

    resident: ResidentSet | None = None
    users: int = 0
    loading: threading.Lock = field(default_factory=threading.Lock)


class AdapterPool(Generic[Key]):
    """Resident sets by key, safe to use from any number of threads.

    Args:
        load: brings the set of a key; called once for each time it becomes resident, never under the pool's lock.
        capacity: bytes of tensors kept; only sets in use, and those a batch is waiting for, may exceed it.

    Raises:
        ConfigError: a capacity below zero.
    """

    def __init__(self, load: Callable[[Key], ResidentSet], capacity: int = 2 * GIBIBYTE) -> None:
        require(capacity >= 0, "capacity", "at least 0 bytes", capacity)
        self._load = load
        self.capacity = capacity
        self.loads = self.evictions = 0  # since it was made
        self._bytes = 0
        self._places: OrderedDict[Key, _Place] = OrderedDict()  # the least recently used first
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Return the bytes of the tensors of all resident sets."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def has_resident(self, key: Key) -> bool:
        """Return whether a set is in memory now, so that holding it waits for no disk."""
        place = self._places.get(key)
        return place is not None and place.resident is not None

    @contextmanager
    def hold(self, keys: Sequence[Key]) -> Iterator[list[ResidentSet]]:
        """Give the sets of ``keys``, in that order, and keep them resident meanwhile.

        Raises:
            whatever ``load`` raises; then nothing is held.
        """
        taken: list[Key] = []
        try:
            sets = []
            for key in keys:
                place = self._take(key)
                taken.append(key)
                sets.append(place.resident or self._fill(key, place))
            yield sets
        finally:
            self._release(taken)

    def _take(self, key: Key) -> _Place:
        """Return the place of a key, now the most recently used, with one user more."""
        with self._lock:
            place = self._places.get(key)
            if place is None:
                place = self._places[key] = _Place()
            self._places.move_to_end(key)
            place.users += 1
            return place

    def _fill(self, key: Key, place: _Place) -> ResidentSet:
        """Return the set of a place, loaded by the first thread that asks while others wait for it."""
        with place.loading:
            if place.resident is None:
                place.resident = self._load(key)
                with self._lock:
                    self._bytes += place.resident.bytes
                    self.loads += 1
            return place.resident

    def _release(self, keys: Sequence[Key]) -> None:
        """Give back one use of each key, and let the least recently used sets go while there are too many bytes."""
        with self._lock:
            for key in keys:
                place = self._places[key]
                place.users -= 1
                if place.resident is None and place.users == 0:  # it could not be loaded
                    del self._places[key]
            for key in self._superfluous():
                resident = self._places.pop(key).resident
                self._bytes -= resident.bytes if resident is not None else 0
                self.evictions += 1

    def _superfluous(self) -> list[Key]:
        """Return the least recently used sets that nobody uses, as many as are too much."""
        leaving: list[Key] = []
        excess = self._bytes - self.capacity
        for key, place in self._places.items():
            if excess <= 0:
                break
            if place.users == 0 and place.resident is not None:
                leaving.append(key)
                excess -= place.resident.bytes
        return leaving


class PoolHolds(Generic[Key]):
    """Sets of a pool that several rows hold together: the first that needs a set holds it, the last lets it go."""

    def __init__(self, pool: AdapterPool[Key]) -> None:
        self._pool = pool
        self._held: dict[Key, tuple[AbstractContextManager[list[ResidentSet]], ResidentSet]] = {}
        self._users: Counter[Key] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def __getitem__(self, key: Key) -> ResidentSet:
        return self._held[key][1]

    def take(self, key: Key, users: int = 1) -> None:
        """Hold a set for some users more, after loading it where it is not resident.

        Raises:
            whatever the pool's ``load`` raises; then it is not held for them.
        """
        with self._lock:
            if key in self._held:
                self._users[key] += users
                return
        hold = self._pool.hold([key])
        (resident,) = hold.__enter__()
        with self._lock:
            self._users[key] += users
            if key not in self._held:
                self._held[key] = hold, resident
                return
        hold.__exit__(None, None, None)  # another thread was quicker

    def give(self, keys: Iterable[Key]) -> None:
        """Give back one use for each of ``keys``."""
        leaving = []
        with self._lock:
            for key in keys:
                self._users[key] -= 1
                if self._users[key] == 0:
                    del self._users[key]
                    leaving.append(self._held.pop(key)[0])
        for hold in leaving:
            hold.__exit__(None, None, None)
