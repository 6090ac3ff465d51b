"""What a row needs before a batch can take it: the version that its reference means, its set in memory, its tokens.

A reference is resolved once, when its request arrives; that version answers, whatever moves meanwhile, and its set is
held in the pool while its rows wait. Sets that are not resident are loaded by a thread of their own, so that nothing
else waits for a disk; one that cannot be loaded fails its own rows alone. Where that is better, another one tokenizes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import torch

from registry.adapters.head import label_order
from registry.errors import RegistryError, ServerError
from registry.schema import Manifest, members_of
from registry.serving.pool import PoolHolds, ResidentSet
from registry.serving.predictor import SETS_AT_ONCE, Predictor, check_request
from registry.serving.waiting import Job, Waiting, WaitingRow
from registry.store.reader import Resolver, StoredVersion

Known: TypeAlias = tuple[StoredVersion, Manifest]
Resolved: TypeAlias = Mapping[str, list[Known]]  # by reference, one for each member
_Arrivals: TypeAlias = "queue.SimpleQueue[tuple[Job, list[WaitingRow]] | None]"

# What torch and tokenizers raise where a device is out of memory or an input is beyond them.
FAILURES = (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


class Preparation:
    """Makes rows ready and lets them wait for their turn.

    Args:
        predictor: with the backbone, the registry and the pool.
        waiting: where ready rows go.
        fail: called with rows that cannot be answered, and why.
        beside: whether a thread of its own tokenizes; else whoever takes the rows does.
        broken_seconds: how long a set that could not be loaded is not tried again.

    Attributes:
        threads: to be started and waited for.
    """

    def __init__(
        self,
        predictor: Predictor,
        waiting: Waiting,
        fail: Callable[[Sequence[WaitingRow], RegistryError], None],
        *,
        beside: bool,
        broken_seconds: float,
    ) -> None:
        self._predictor, self._waiting, self._fail = predictor, waiting, fail
        self._beside, self._broken_seconds = beside, broken_seconds
        self._resolver = Resolver(predictor.registry.store)
        self._holds = PoolHolds(predictor.pool)
        self._room = threading.Condition()  # for more held sets
        self._broken: dict[StoredVersion, tuple[RegistryError, float]] = {}
        self._loading: _Arrivals = queue.SimpleQueue()
        self._tokenizing: _Arrivals = queue.SimpleQueue()
        threads = [("loading", self._loading)] + ([("tokenizing", self._tokenizing)] if beside else [])
        self.threads = [
            threading.Thread(target=self._run, args=(own,), name=name, daemon=True) for name, own in threads
        ]

    def recall(self, references: Iterable[str]) -> Resolved | None:
        """Return what these references mean, None where that takes reading a manifest."""
        found: dict[str, list[Known]] = {}
        for reference in references:
            own = [self._resolver.recall(one) for one in members_of(reference)]
            known = [each for each in own if each is not None]
            if len(known) > 1 or len(known) < len(own):
                return None  # whether several answer together is checked as well
            found[reference] = known
        return found

    def resolve(self, reference: str) -> list[Known]:
        """Return the versions that a reference's members mean now, and what is known of them.

        Raises:
            AdapterNotFoundError, ManifestError, RequestError: one cannot be found, or they do not answer together.
        """
        found = [self._resolver.find(one) for one in members_of(reference)]
        label_order(reference, [manifest.head for _, manifest in found])
        return found

    def rows_of(self, job: Job, resolved: Resolved | None = None) -> list[WaitingRow]:
        """Return the rows to prepare; those of unknown sets, and those that their set cannot answer, are settled."""
        found: dict[str, list[Known] | RegistryError] = dict(resolved or {})
        rows: list[WaitingRow] = []
        for place, request in enumerate(job.requests):
            reference = request.reference
            if reference not in found:
                try:
                    found[reference] = self.resolve(reference)
                except RegistryError as err:
                    found[reference] = err
            own = found[reference]
            try:
                if isinstance(own, RegistryError):
                    raise own
                for _, manifest in own:
                    check_request(place, request, reference, manifest)
            except RegistryError as err:
                job.settle(place, err)
            else:
                rows += [WaitingRow(job, place, member, *each) for member, each in enumerate(own)]
        return rows

    def arrive(self, job: Job, rows: list[WaitingRow]) -> None:
        """Let rows of an accepted job become ready: at once where nothing is to be done, else by a thread."""
        keys = {row.key for row in rows}
        there = all(self._predictor.pool.has_resident(key) for key in keys)
        if not there or len(self._holds) + len(keys) > SETS_AT_ONCE:
            self._loading.put((job, rows))
        elif self._beside:
            self._tokenizing.put((job, rows))
        else:
            self._ready(job, rows)

    def close(self) -> None:
        """Let the threads end."""
        self._loading.put(None)
        self._tokenizing.put(None)

    def _run(self, arrivals: _Arrivals) -> None:
        use_device(self._predictor)
        while (arrival := arrivals.get()) is not None:
            self._ready(*arrival)

    def resident(self, row: WaitingRow) -> ResidentSet:
        """Return the set that is held for a row."""
        return self._holds[row.key]

    def release(self, rows: Iterable[WaitingRow]) -> None:
        """Let go of the sets that are held for rows."""
        self._holds.give([row.key for row in rows])
        with self._room:
            self._room.notify_all()

    def tokenize(self, rows: Sequence[WaitingRow]) -> None:
        """Give rows their tokens, those of one length and kind together."""
        groups: dict[tuple[int, bool], list[WaitingRow]] = {}
        for row in rows:
            is_pair = row.job.requests[row.place].pair is not None
            groups.setdefault((row.manifest.max_length, is_pair), []).append(row)
        for (max_length, is_pair), own in groups.items():
            requests = [row.job.requests[row.place] for row in own]
            pairs = [request.pair or "" for request in requests] if is_pair else None
            tokens = self._predictor.backbone.tokenize([request.text for request in requests], pairs, max_length)
            for index, row in enumerate(own):
                row.input_ids, row.type_ids = tokens.input_ids[index], tokens.type_ids[index]
                row.truncated = index in tokens.truncated_rows

    def _ready(self, job: Job, rows: Sequence[WaitingRow]) -> None:
        """Hold the sets of a job's rows and let these wait for their turn, set by set."""
        by_key: dict[StoredVersion, list[WaitingRow]] = {}
        for row in rows:
            by_key.setdefault(row.key, []).append(row)
        for key, own in by_key.items():
            if job.is_over:
                return
            try:
                self._hold(key, len(own))
            except RegistryError as err:
                self._waiting.unprepared(job, len(own))
                self._fail(own, err)
                continue
            try:
                if self._beside:
                    self.tokenize(own)
            except FAILURES as err:
                self._waiting.unprepared(job, len(own))
                self._fail(own, failure(err))
                self.release(own)
                continue
            if not self._waiting.put(job, own):
                self.release(own)

    def _hold(self, key: StoredVersion, users: int) -> None:
        """Hold a set for some rows; one that could not be loaded just now is not tried again.

        Raises:
            RegistryError: it cannot be loaded.
        """
        error, until = self._broken.get(key, (None, 0.0))
        if error is not None and time.monotonic() < until:
            raise error
        with self._room:
            while len(self._holds) >= SETS_AT_ONCE and key not in self._holds:
                self._room.wait()
        try:
            self._holds.take(key, users)
        except (RegistryError, *FAILURES) as err:
            error, now = err if isinstance(err, RegistryError) else failure(err), time.monotonic()
            self._broken = {each: kept for each, kept in self._broken.items() if kept[1] > now}
            self._broken[key] = error, now + self._broken_seconds
            raise error from err


def failure(err: Exception) -> ServerError:
    """Return what is told of a failure that is nobody's request's fault: its kind, not its words."""
    return ServerError(500, "answer", "a forward that ends well", type(err).__name__)


def use_device(predictor: Predictor) -> None:
    """Make the backbone's GPU the thread's own; all threads share its usual stream, which orders what they do."""
    if predictor.backbone.device.type == "cuda":
        torch.cuda.set_device(predictor.backbone.device)
