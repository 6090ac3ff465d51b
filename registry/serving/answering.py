"""What a server asks of whatever answers its rows: an engine of its own process, or one of other machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from registry.serving.predictor import Request
from registry.serving.preparing import Resolved
from registry.serving.waiting import Job
from registry.store.store import Store


@dataclass(frozen=True)
class BatchReport:
    """What is told of one batch.

    Attributes:
        references: of each row, with its version.
        waits: seconds that each row waited.
        tokens, sets: of all rows together.
        seconds: that the batch took.
    """

    references: Sequence[str]
    waits: Sequence[float]
    tokens: int
    sets: int
    seconds: float


@dataclass(frozen=True)
class Standing:
    """How things stand at a moment: rows that wait, bytes and sets that are resident, loads and evictions so far."""

    queue_rows: int
    resident_bytes: int = 0
    resident_sets: int = 0
    loads: int = 0
    evictions: int = 0


class Answering(Protocol):
    """Answers requests of any sets, safe to ask from any number of threads; see ``Engine``, which is one."""

    observe: Callable[[BatchReport], None]
    tell: Callable[[str, int], None]
    is_draining: bool

    @property
    def store(self) -> Store:
        """Return where the sets are."""
        ...

    @property
    def is_alive(self) -> bool:
        """Return whether it is at work."""
        ...

    def standing(self) -> Standing:
        """Return how things stand now."""
        ...

    def drain(self) -> None:
        """Accept nothing more; what waits is still answered."""
        ...

    def close(self, seconds: float = 30.0) -> None:
        """Accept nothing more, answer what waits for at most some seconds, and end."""
        ...

    def recall(self, references: Iterable[str]) -> Resolved | None:
        """Return what ``submit`` would find for these references, None where it would have to read a file."""
        ...

    def submit(
        self,
        requests: Sequence[Request],
        done: Callable[[Job], None],
        timeout: float = 30.0,
        *,
        logits: bool = False,
        resolved: Resolved | None = None,
    ) -> Job:
        """Let rows wait for an answer and return their job; ``done`` is called with it once all are there."""
        ...

    def cancel(self, job: Job) -> None:
        """Forget a job whose client has left."""
        ...
