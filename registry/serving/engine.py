"""The engine of a server: one thread owns the backbone and answers what waits as one mixed batch, whatever the tasks.

Knows no web.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from registry.adapters.head import probabilities_of
from registry.config import HeadConfig
from registry.errors import RegistryError, ServerError
from registry.model.batching import TokenRows
from registry.schema import Manifest
from registry.serving.answering import BatchReport, Standing
from registry.serving.predictor import Prediction, Predictor, Request, interpret
from registry.serving.preparing import FAILURES, Preparation, Resolved, failure, use_device
from registry.serving.waiting import Job, Waiting, WaitingRow
from registry.store.reader import StoredVersion
from registry.store.store import Store
from registry.validation import require

MAX_ROWS = {"cpu": 64, "cuda": 256, "mps": 64}
MAX_TOKENS = {"cpu": 4_096, "cuda": 16_384, "mps": 8_192}
TOKENIZED_BESIDE = {"cpu": False, "cuda": True, "mps": True}


@dataclass(frozen=True)
class Limits:
    """What the engine takes.

    Attributes:
        max_rows, max_tokens: of a batch; by device when None.
        max_queue_rows: rows waiting at a time.
        broken_seconds: how long a set that could not be loaded is not tried again.
        tokenize_beside: whether rows are tokenized by a thread of their own, beside the engine's; by device
            when None.
    """

    max_rows: int | None = None
    max_tokens: int | None = None
    max_queue_rows: int = 2_048
    broken_seconds: float = 2.0
    tokenize_beside: bool | None = None

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_tokens", "max_queue_rows"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "at least 1", value)


class Engine:
    """Answers requests of any sets from one queue, safe to ask from any number of threads.

    Args:
        predictor: with the backbone, the registry and the pool.
        limits: of batches and of what waits.

    Attributes:
        observe: called by the engine's thread after each batch.
        tell: called with ``expired``, ``rejected`` or ``cancelled`` and the rows that were.
    """

    def __init__(self, predictor: Predictor, limits: Limits | None = None) -> None:
        self.predictor, self.limits = predictor, limits or Limits()
        device = predictor.backbone.device.type
        self.max_rows = self.limits.max_rows or MAX_ROWS[device]
        self.max_tokens = self.limits.max_tokens or MAX_TOKENS[device]
        self.observe: Callable[[BatchReport], None] = lambda report: None
        self.tell: Callable[[str, int], None] = lambda what, rows: None
        self.waiting = Waiting(self.limits.max_queue_rows)
        beside = self.limits.tokenize_beside
        self._preparation = Preparation(
            predictor,
            self.waiting,
            self._fail,
            beside=TOKENIZED_BESIDE[device] if beside is None else beside,
            broken_seconds=self.limits.broken_seconds,
        )
        self._jobs: set[Job] = set()
        self._settling = threading.Lock()
        self._threads = [threading.Thread(target=self._run, name="engine", daemon=True), *self._preparation.threads]
        self.is_draining = False

    def start(self) -> Engine:
        """Start the threads, and return the engine."""
        for thread in self._threads:
            thread.start()
        return self

    @property
    def is_alive(self) -> bool:
        """Return whether all threads are at work."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def store(self) -> Store:
        """Return where the sets are."""
        return self.predictor.registry.store

    def standing(self) -> Standing:
        """Return what the queue and the pool say now."""
        pool = self.predictor.pool
        return Standing(self.waiting.rows, pool.bytes, len(pool), pool.loads, pool.evictions)

    @property
    def jobs(self) -> int:
        """Return how many requests have no answer yet."""
        return len(self._jobs)

    def drain(self) -> None:
        """Accept nothing more; what waits is still answered."""
        with self._settling:
            self.is_draining = True

    def close(self, seconds: float = 30.0) -> None:
        """Accept nothing more, answer what waits for at most some seconds, and end the threads."""
        self.drain()
        until = time.monotonic() + seconds
        while self._jobs and self.is_alive and time.monotonic() < until:
            time.sleep(0.005)
        for job in list(self._jobs):
            self._give_up(job, ServerError(503, "answer", f"a turn within {seconds:g} s of the end", "none"))
        self._preparation.close()
        self.waiting.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(1.0, until - time.monotonic()))

    def recall(self, references: Iterable[str]) -> Resolved | None:
        """Return what ``submit`` would find for these references, None where it would have to read a manifest."""
        return self._preparation.recall(references)

    def resolve(self, reference: str) -> list[tuple[StoredVersion, Manifest]]:
        """Return the versions that a reference's members mean now, and what is known of them.

        Raises:
            AdapterNotFoundError, ManifestError, RequestError: one cannot be found, or they do not answer together.
        """
        return self._preparation.resolve(reference)

    def submit(
        self,
        requests: Sequence[Request],
        done: Callable[[Job], None],
        timeout: float = 30.0,
        *,
        logits: bool = False,
        resolved: Resolved | None = None,
    ) -> Job:
        """Let rows wait for an answer and return their job; a row that cannot be answered has its error at once.

        Args:
            requests: the rows, of any sets.
            done: called with the job by whichever thread gives the last answer.
            timeout: seconds from now after which no batch takes the rows any more.
            logits: fill in the job's logits too.
            resolved: what was recalled of their references just now.

        Raises:
            ServerError: no room, no time, or the engine is draining; nothing waits.
        """
        now = time.monotonic()
        job = Job(requests, now, now + timeout, done, wants_logits=logits)
        rows = self._preparation.rows_of(job, resolved)
        with self._settling:
            if self.is_draining or not self.is_alive:
                raise ServerError(503, "answer", "a server that is at work", "one that is about to end", 1.0)
            try:
                self.waiting.accept(job, len(rows))
            except ServerError:
                self.tell("rejected", len(rows))
                raise
            job.is_over = job.open == 0
            if not job.is_over:
                self._jobs.add(job)
        if job.is_over:
            done(job)
        else:
            self._preparation.arrive(job, rows)
        return job

    def cancel(self, job: Job) -> None:
        """Forget a job whose client has left; ``done`` is not called."""
        if rows := self._end(job):
            self.tell("cancelled", rows)

    def answer(self, requests: Sequence[Request], timeout: float = 30.0) -> list[Prediction | RegistryError]:
        """Return the answers to rows of any sets, or errors in their places, once they are all there."""
        event = threading.Event()
        job = self.submit(requests, lambda _: event.set(), timeout)
        event.wait()
        return [answer for answer in job.answers if answer is not None]

    def _run(self) -> None:
        use_device(self.predictor)
        try:
            while (rows := self.waiting.take(self.max_rows)) is not None:
                self._work(rows)
        finally:  # nobody waits for an engine that has ended
            for job in list(self._jobs):
                self._give_up(job, ServerError(500, "answer", "an engine that is at work", "one that has ended"))

    def _work(self, rows: list[WaitingRow]) -> None:
        """Answer the rows that were taken, but those whose deadline has passed or whose client has left."""
        now = time.monotonic()
        for job in {row.job for row in rows if row.job.deadline <= now}.union(self.waiting.late()):
            late = self._give_up(job, ServerError(504, "answer", "a turn before the deadline", "none"))
            self.tell("expired", late)
        self._preparation.release(row for row in rows if row.job.is_over)
        rows = [row for row in rows if not row.job.is_over]
        try:
            self._preparation.tokenize([row for row in rows if row.input_ids is None])
        except FAILURES as err:
            self._fail(rows, failure(err))
            self._preparation.release(rows)
            return
        if rows := self._within_tokens(rows):
            self._answer(rows, now)

    def _within_tokens(self, rows: list[WaitingRow]) -> list[WaitingRow]:
        """Return as many of the rows as have few enough tokens together, at least one, and put the others back."""
        total = 0
        for count, row in enumerate(rows):
            total += len(row.input_ids or ())
            if total > self.max_tokens and count:
                self._preparation.release(self.waiting.put_back(rows[count:]))
                return rows[:count]
        return rows

    def _answer(self, rows: Sequence[WaitingRow], started: float) -> None:
        """Answer one batch; where it fails, each set's rows alone, so that a set that cannot answer fails its own."""
        keys = list(dict.fromkeys(row.key for row in rows))
        answers, error = [], None
        try:
            answers = self._predict(rows, keys)
        except FAILURES as err:
            if len(keys) > 1:
                for key in keys:
                    self._answer([row for row in rows if row.key == key], time.monotonic())
                return
            error = failure(err)
        seconds = time.monotonic() - started
        self.waiting.took(len(rows), seconds)
        for row, answer, logits in answers:
            self._settle(row, answer, logits)
        if error is not None:
            self._fail(rows, error)
        references = [self._preparation.resident(row).reference for row in rows]
        self._preparation.release(rows)
        tokens = sum(len(row.input_ids or ()) for row in rows)
        self.observe(BatchReport(references, [started - row.job.arrived for row in rows], tokens, len(keys), seconds))

    def _predict(
        self, rows: Sequence[WaitingRow], keys: Sequence[StoredVersion]
    ) -> list[tuple[WaitingRow, Prediction, list[float]]]:
        """Return the rows with their answers, and their logits where a job wants them."""
        place_of = {key: place for place, key in enumerate(keys)}
        owners = [place_of[row.key] for row in rows]
        holding = {row.key: row for row in rows}
        sets = [self._preparation.resident(holding[key]) for key in keys]
        tokens = TokenRows([row.input_ids or () for row in rows], [row.type_ids for row in rows])
        read = _probabilities_and_logits if any(row.job.wants_logits for row in rows) else probabilities_of
        answers = []
        for place, numbers in self.predictor.batch_numbers(tokens, owners, sets, read):
            one, row = sets[owners[place]], rows[place]
            labels = len(one.manifest.head.label_names)
            threshold = self.predictor.threshold
            answer = interpret(one.reference, one.manifest.head, numbers[:labels], row.truncated, threshold)
            answers.append((row, answer, numbers[labels:]))
        return answers

    def _settle(self, row: WaitingRow, answer: Prediction, logits: list[float]) -> None:
        """Give a row its answer, or one that several sets answer together the share of one of them."""
        job, members = row.job, row.job.members(row.place)
        if len(members) == 1:
            job.logits[row.place] = logits
            self._give(row, answer)
            return
        parts = job.parts.setdefault(row.place, {})
        parts[row.member] = answer, row.manifest.head
        if len(parts) == len(members):
            given = [parts[member] for member in range(len(members))]
            mean = self.predictor.mean_of(members, [part for part, _ in given], [head for _, head in given])
            self._give(row, mean)

    def _fail(self, rows: Iterable[WaitingRow], error: RegistryError) -> None:
        for row in rows:
            self._give(row, error)

    def _give(self, row: WaitingRow, answer: Prediction | RegistryError) -> None:
        job = row.job
        with self._settling:
            if job.is_over or not job.settle(row.place, answer):
                return
            job.is_over = True
            self._jobs.discard(job)
        job.done(job)

    def _give_up(self, job: Job, error: RegistryError) -> int:
        """Give a job's open rows an error, and return how many they were."""
        rows = self._end(job)
        if rows:
            for place in range(len(job.requests)):
                job.settle(place, error)
            job.done(job)
        return rows

    def _end(self, job: Job) -> int:
        """Let no row of a job be answered any more, and return how many had no answer."""
        with self._settling:
            if job.is_over:
                return 0
            job.is_over = True
            self._jobs.discard(job)
        self._preparation.release(self.waiting.drop(job))
        return job.open


def _probabilities_and_logits(head: HeadConfig, logits: Tensor) -> Tensor:
    """Return (B, 2 C): probabilities, then what they were made of."""
    return torch.cat([probabilities_of(head, logits), logits], dim=-1)
