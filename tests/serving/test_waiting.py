"""Rows that wait: jobs in turns of eight rows, a little patience for clients that ask again, none for one alone."""

from __future__ import annotations

import threading
import time

import pytest

from registry.errors import ServerError
from registry.serving.predictor import Request
from registry.serving.waiting import QUANTUM, Job, Waiting, WaitingRow
from registry.store.reader import StoredVersion
from tests.support.stored_sets import new_manifest

KEY, MANIFEST = StoredVersion("mrpc", 1, (0, 0)), new_manifest()


def wait(waiting: Waiting, rows: int, timeout: float = 30.0) -> Job:
    """Let a job of so many rows wait, and return it."""
    now = time.monotonic()
    job = Job([Request("mrpc", "text")] * rows, now, now + timeout, lambda job: None)
    waiting.accept(job, rows)
    assert waiting.put(job, [WaitingRow(job, place, 0, KEY, MANIFEST) for place in range(rows)])
    return job


def counts(waiting: Waiting, most: int, *jobs: Job) -> list[int]:
    """Take rows, and return how many there were of each job."""
    taken = waiting.take(most) or []
    return [sum(row.job is job for row in taken) for job in jobs]


def test_jobs_take_turns() -> None:
    """Of a bulk job and two small ones each has its rows in the first batch, and the bulk job what is left."""
    waiting = Waiting(1_000)
    bulk, one, other = wait(waiting, 100), wait(waiting, 1), wait(waiting, 10)
    assert [QUANTUM + 3, 1, QUANTUM] == counts(waiting, 2 * QUANTUM + 4, bulk, one, other)
    assert [6, 0, 2] == counts(waiting, 8, bulk, one, other)
    assert 100 + 1 + 10 - 2 * QUANTUM - 4 - 8 == waiting.rows


def test_what_is_put_back_comes_first() -> None:
    """Rows that were too many for a batch are the next batch's first, in their order."""
    waiting = Waiting(100)
    first, second = wait(waiting, 3), wait(waiting, 3)
    taken = waiting.take(6) or []
    assert [] == waiting.put_back(taken[2:])
    assert 4 == waiting.rows
    assert taken[2:] == waiting.take(6)
    assert [0, 0] == [first.waiting, second.waiting]


def test_a_job_that_is_over_leaves_no_rows() -> None:
    """Its rows leave the queue, none is taken or put back, and there is room for others."""
    waiting = Waiting(10)
    job, other = wait(waiting, 8), wait(waiting, 2)
    taken = waiting.take(4) or []
    job.is_over = True
    assert 4 == len(waiting.drop(job))
    assert taken == waiting.put_back(taken)
    assert not waiting.put(job, taken)
    assert [0, 2] == counts(waiting, 10, job, other)
    assert 0 == waiting.rows
    wait(waiting, 10)


def test_a_batch_waits_for_those_just_answered() -> None:
    """After a batch of three, rows of which one is there at once and two come a moment later are one batch."""
    waiting = Waiting(100)
    wait(waiting, 3)
    assert 3 == len(waiting.take(8) or [])
    waiting.took(3, 1.0)
    waiting._linger_until = time.monotonic() + 30  # as patient as a test on a busy machine has to be
    wait(waiting, 1)
    late = threading.Timer(0.05, lambda: (wait(waiting, 1), wait(waiting, 1)))
    late.start()
    assert 3 == len(waiting.take(8) or [])
    late.join()


def test_a_client_alone_waits_for_nobody() -> None:
    """After its own batch of one, or when the moment is over, a row is taken as it comes."""
    waiting = Waiting(100)
    for _ in range(2):
        wait(waiting, 1)
        assert 1 == len(waiting.take(8) or [])
        waiting.took(1, 1.0)
        waiting._linger_until = float("inf")
    waiting.took(5, 1.0)
    waiting._linger_until = 0.0
    wait(waiting, 1)
    assert 1 == len(waiting.take(8) or [])


def test_the_expected_wait_follows_the_rate() -> None:
    """Rows that wait or are in hand, over the rows a second of late; a slow first batch, which finds nothing ready,
    refuses nobody, and what would take most of a deadline is refused."""
    waiting = Waiting(1_000)
    assert 0 == waiting.expected_wait()
    wait(waiting, 100)
    waiting.took(1, 100.0)
    assert 0 == waiting.expected_wait()
    waiting.took(50, 1.0)
    assert waiting.expected_wait() == pytest.approx(2.0)
    waiting.took(150, 1.0)
    assert waiting.expected_wait() == pytest.approx(1.0)
    for _ in range(200):
        waiting.took(10, 1.0)
    assert waiting.expected_wait() == pytest.approx(10.0, rel=0.01)
    with pytest.raises(ServerError, match=r"expected an answer within 0.8 s, found about 10.1 s; try again in 9 s"):
        wait(waiting, 1, timeout=1.0)
    assert 40 == len(waiting.take(40) or [])
    assert waiting.expected_wait() == pytest.approx(10.0, rel=0.01)
    wait(waiting, 1, timeout=13.0)
    with pytest.raises(ServerError, match="expected an answer within 8.0 s"):
        wait(waiting, 1, timeout=10.0)


def test_closed_and_empty_is_the_end() -> None:
    """What waits is taken first; then there is nothing more."""
    waiting = Waiting(10)
    wait(waiting, 3)
    waiting.close()
    assert 3 == len(waiting.take(8) or [])
    assert waiting.take(8) is None
