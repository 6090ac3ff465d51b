"""Rows that wait for the engine: request by request in turn, within a bound, none past its deadline.

A job is one request with all its rows. Jobs take turns of a few rows each, so that a bulk request starves nobody. Knows
clocks and counts, nothing of sets or tensors.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from registry.config import HeadConfig
from registry.errors import RegistryError, ServerError
from registry.schema import Manifest, members_of
from registry.serving.predictor import Prediction, Request
from registry.store.reader import StoredVersion

QUANTUM = 8  # rows that one job has in a turn
LINGER_SHARE = 0.05  # of the last batch's own time
LINGER_MOST = 0.020  # seconds
_SURE = 0.8  # of a deadline: more is not promised by a moving rate
_WEIGHT = 0.1  # of the last batch in the moving rate, once there have been ten


@dataclass(eq=False)
class Job:
    """One request: its rows in order, and what has become of them.

    Attributes:
        requests: the rows.
        arrived, deadline: on the clock of ``time.monotonic``.
        done: called once, by the thread that answers the last row or gives the job up.
        wants_logits: whether ``logits`` is filled in.
        answers: one for each row, None until it has one.
        logits: of each answered row.
        parts: of a row that several sets answer together, the answers so far by member, by place.
        open: rows without an answer.
        waiting: rows, counted once for each member, that no batch has taken yet.
        is_over: whether nobody waits for it any more.
    """

    requests: Sequence[Request]
    arrived: float
    deadline: float
    done: Callable[[Job], None]
    wants_logits: bool = False
    answers: list[Prediction | RegistryError | None] = field(default_factory=list)
    logits: list[list[float]] = field(default_factory=list)
    parts: dict[int, dict[int, tuple[Prediction, HeadConfig]]] = field(default_factory=dict)
    open: int = 0
    waiting: int = 0
    is_over: bool = False

    def __post_init__(self) -> None:
        self.open = len(self.requests)
        self.answers = [None] * self.open
        self.logits = [[] for _ in self.requests]

    def settle(self, place: int, answer: Prediction | RegistryError) -> bool:
        """Give a row its answer, and return whether it was the last; a row that has one keeps it."""
        if self.answers[place] is not None:
            return False
        self.answers[place] = answer
        self.open -= 1
        return self.open == 0

    def members(self, place: int) -> tuple[str, ...]:
        """Return the references that answer a row together."""
        return members_of(self.requests[place].reference)


@dataclass(eq=False, slots=True)
class WaitingRow:
    """A row, or one member's share of it, with the set that answers and, once there, its tokens."""

    job: Job
    place: int
    member: int
    key: StoredVersion
    manifest: Manifest
    input_ids: Sequence[int] | None = None
    type_ids: Sequence[int] = ()
    truncated: bool = False


class Waiting:
    """Rows accepted and not yet taken, safe to use from any number of threads.

    Args:
        most: rows accepted at a time.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.rows = 0  # accepted and not yet taken, those still being prepared among them
        self.rate: float | None = None  # rows a second that batches have answered lately
        self._in_hand = 0  # rows that were taken last, and are being answered
        self._batches = 0
        self._ready = 0  # of them in turns
        self._turns: deque[tuple[Job, deque[WaitingRow]]] = deque()
        self._mine: dict[Job, deque[WaitingRow]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._wanted = 0  # rows of the last batch, whose clients often ask again, and those that were ready at its end
        self._linger_until = 0.0

    def accept(self, job: Job, rows: int) -> None:
        """Count a job's rows as waiting.

        Raises:
            ServerError: 429 where there is no room, or the wait is longer than its deadline allows.
        """
        with self._changed:
            wait = self.expected_wait(rows)
            if self.rows + rows > self.most:
                found = f"{self.rows:,} waiting"
                raise ServerError(
                    429, "take more rows", f"room for {rows:,} among {self.most:,}", found, max(wait, 1.0)
                )
            left = _SURE * (job.deadline - time.monotonic())
            if wait > left:
                expected, found = f"an answer within {left:.1f} s", f"about {wait:.1f} s"
                raise ServerError(429, "answer in time", expected, found, wait - left)
            self.rows += rows
            job.waiting += rows

    def expected_wait(self, rows: int = 0) -> float:
        """Return the seconds until so many rows accepted now are answered, by the moving rate."""
        return (self.rows + self._in_hand + rows) / self.rate if self.rate else 0.0

    def put(self, job: Job, rows: Sequence[WaitingRow]) -> bool:
        """Let prepared rows of an accepted job wait for their turn; return whether anybody still waits for them."""
        with self._changed:
            if job.is_over:
                return False
            if job not in self._mine:
                self._mine[job] = deque()
                self._turns.append((job, self._mine[job]))
            self._mine[job].extend(rows)
            self._ready += len(rows)
            self._changed.notify_all()
            return True

    def put_back(self, rows: Sequence[WaitingRow]) -> list[WaitingRow]:
        """Let rows that were taken too many have the first turn, and return those that nobody waits for any more."""
        with self._changed:
            leaving = [row for row in rows if row.job.is_over]
            rows = [row for row in rows if not row.job.is_over]
            for row in reversed(rows):
                if row.job not in self._mine:
                    self._mine[row.job] = deque()
                    self._turns.appendleft((row.job, self._mine[row.job]))
                self._mine[row.job].appendleft(row)
                row.job.waiting += 1
            self.rows += len(rows)
            self._ready += len(rows)
            self._in_hand -= len(leaving) + len(rows)
            return leaving

    def drop(self, job: Job) -> list[WaitingRow]:
        """Forget what still waits of a job, and return its rows that were in turns."""
        with self._changed:
            own = list(self._mine.pop(job, ()))
            if own:
                self._turns = deque(turn for turn in self._turns if turn[0] is not job)
            self._ready -= len(own)
            self.rows -= job.waiting
            job.waiting = 0
            self._changed.notify_all()
            return own

    def unprepared(self, job: Job, rows: int) -> None:
        """Count rows of a job out that could not be prepared."""
        with self._changed:
            rows = min(rows, job.waiting)
            self.rows -= rows
            job.waiting -= rows
            self._changed.notify_all()

    def late(self) -> list[Job]:
        """Return the jobs in turns whose deadline has passed."""
        now = time.monotonic()
        with self._changed:
            return [job for job, _ in self._turns if job.deadline <= now]

    def take(self, most: int) -> list[WaitingRow] | None:
        """Return up to ``most`` rows, job by job in turns; waits for one, and returns None once closed and empty."""
        with self._changed:
            self._in_hand = 0
            while True:
                while self._ready == 0:
                    if self._closed and self.rows == 0:
                        return None
                    self._changed.wait()
                while self._ready < min(self._wanted, most) and (left := self._linger_until - time.monotonic()) > 0:
                    self._changed.wait(left)
                if taken := self._taken(most):
                    return taken

    def took(self, rows: int, seconds: float) -> None:
        """Note how long a batch of rows took, before it is answered: clients that ask again are waited for a little."""
        with self._changed:
            self._batches += 1
            if self._batches > 1:  # the first one pays for what all later ones find ready, and tells nothing of them
                rate, weight = rows / max(seconds, 1e-6), max(_WEIGHT, 1 / (self._batches - 1))
                self.rate = (1 - weight) * (self.rate or 0.0) + weight * rate
            self._in_hand = max(0, self._in_hand - rows)
            self._wanted = rows + self._ready
            self._linger_until = time.monotonic() + min(LINGER_SHARE * seconds, LINGER_MOST)

    def close(self) -> None:
        """Let ``take`` return nothing once all rows are taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _taken(self, most: int) -> list[WaitingRow]:
        taken: list[WaitingRow] = []
        while self._turns and len(taken) < most:
            job, own = self._turns.popleft()
            for _ in range(min(QUANTUM, len(own), most - len(taken))):
                taken.append(own.popleft())
                job.waiting -= 1
            if own:
                self._turns.append((job, own))
            else:
                del self._mine[job]
        self.rows -= len(taken)
        self._ready -= len(taken)
        self._in_hand = len(taken)
        return taken
