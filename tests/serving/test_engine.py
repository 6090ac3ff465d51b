"""The engine: one queue for rows of all sets, answers that are each set's own, failures that are each set's own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from registry.errors import RegistryError, RequestError, ServerError
from registry.model.backbone import Backbone
from registry.serving.answering import BatchReport
from registry.serving.engine import Engine, Limits
from registry.serving.predictor import Prediction, Predictor, Request
from registry.serving.waiting import Job
from registry.store.errors import AdapterNotFoundError, IntegrityError
from registry.store.registry import Registry
from tests.support.served_sets import KINDS, assert_close, requests, save_kind


@contextmanager
def running(predictor: Predictor, limits: Limits | None = None) -> Iterator[Engine]:
    """Yield an engine at work, and end it."""
    engine = Engine(predictor, limits).start()
    try:
        yield engine
    finally:
        engine.close(5)


@contextmanager
def stopped(engine: Engine) -> Iterator[None]:
    """Keep the engine's thread from taking rows, in the middle of an observed batch, until the block ends."""
    taken, go_on = threading.Event(), threading.Event()

    def observe(report: BatchReport) -> None:
        taken.set()
        go_on.wait(30)

    before, engine.observe = engine.observe, observe
    engine.answer([Request("task0", "good")])
    assert taken.wait(30)
    engine.observe = before
    try:
        yield
    finally:
        go_on.set()


def submit(engine: Engine, rows: list[Request], timeout: float = 30.0) -> tuple[Job, queue.SimpleQueue[Job]]:
    """Submit rows, and return the job and where it comes out."""
    out: queue.SimpleQueue[Job] = queue.SimpleQueue()
    return engine.submit(rows, out.put, timeout), out


def answer_of(answer: Prediction | RegistryError | None) -> Prediction:
    """Return what has to be an answer."""
    assert isinstance(answer, Prediction), answer
    return answer


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("limits", [{}, {"max_rows": 3}, {"max_tokens": 20}])
def test_many_clients_get_each_sets_own_answers(predictor: Predictor, limits: dict[str, int], beside: bool) -> None:
    """Sixteen clients with rows of all kinds, in batches of any bound, get what the set gives alone, in their order."""
    rows = requests()
    alone = [predictor.mixed([row])[0] for row in rows]
    with running(predictor, Limits(**limits, tokenize_beside=beside)) as engine:

        def ask(client: int) -> list[tuple[int, Prediction]]:
            mine = [(client * 5 + place) % len(rows) for place in range(1 + client % 7)]
            return list(zip(mine, map(answer_of, engine.answer([rows[place] for place in mine])), strict=True))

        with ThreadPoolExecutor(16) as pool:
            answered = [pair for answers in pool.map(ask, range(48)) for pair in answers]
    assert set(range(len(rows))) == {place for place, _ in answered}
    for place, answer in answered:
        assert_close(alone[place], answer)


def test_requests_of_different_tasks_share_a_batch(predictor: Predictor) -> None:
    """What waits when the engine is free is one batch, whatever the sets; the report says what it held."""
    reports: list[BatchReport] = []
    with running(predictor) as engine:
        engine.answer(requests())  # all sets are resident from now on
        with stopped(engine):
            waiting = [submit(engine, [row]) for row in requests()[:12]]
            engine.observe = reports.append
        answers = [answer_of(out.get(timeout=30).answers[0]) for _, out in waiting]
    sizes = [(len(report.references), report.sets) for report in reports]
    assert [(12, 4)] == sizes
    assert {"task0:1", "task1:1", "task2:1", "task3:1"} == {answer.reference for answer in answers}


def test_a_bulk_request_starves_nobody(predictor: Predictor) -> None:
    """A request of one row that comes after one of 200 is answered within the second batch."""
    with running(predictor, Limits(max_rows=16)) as engine:
        order: list[str] = []
        engine.answer(requests())  # all sets are resident from now on
        with stopped(engine):
            bulk = [Request("task0", "good film")] * 200
            done = threading.Event()
            engine.submit(bulk, lambda job: (order.append("bulk"), done.set()))
            engine.submit([Request("task2", "bad")], lambda job: order.append("one"))
            first = engine.waiting.take(16) or []
            assert 1 == sum(row.job.requests is not bulk for row in first)
            assert [] == engine.waiting.put_back(first)
        assert done.wait(30)
    assert ["one", "bulk"] == order


def test_rows_that_cannot_be_answered_leave_the_others_alone(predictor: Predictor) -> None:
    """Unknown sets, a missing second text and an empty text have their errors in their places, and others answers."""
    rows = [
        Request("task0", "good"),
        Request("nobody", "good"),
        Request("task1", "good"),
        Request("task0", " "),
        Request("../task0", "good"),
        Request("task2", "bad"),
    ]
    with running(predictor) as engine:
        answers = engine.answer(rows)
    assert [Prediction, AdapterNotFoundError, RequestError, RequestError] == [type(each) for each in answers[:4]]
    assert "cannot use name '../task0'" in str(answers[4])
    assert "task2:1" == answer_of(answers[5]).reference


def test_several_sets_answer_a_row_together(predictor: Predictor, registry: Registry) -> None:
    """``a+b`` is the predictor's mean, and sets of other labels are refused for their row alone."""
    save_kind(registry, "other", 0, 9)
    rows = [Request("task0+other", "a good film"), Request("task0+task2", "good"), Request("other", "a good film")]
    expected = predictor.mixed(rows[:1])[0]
    with running(predictor) as engine:
        both, refused, one = engine.answer(rows)
    assert_close(expected, answer_of(both))
    assert "expected members" in str(refused)
    assert "other:1" == answer_of(one).reference


def test_the_version_of_the_arrival_answers(predictor: Predictor, registry: Registry) -> None:
    """A row that waits keeps the version its reference meant when it came, though alias and newest have moved."""
    registry.alias("task0", "best", 1)
    with running(predictor) as engine:
        with stopped(engine):
            early = [submit(engine, [Request(name, "good")])[1] for name in ("task0", "task0@best")]
            save_kind(registry, "task0", 0, 9)
            registry.alias("task0", "best", 2)
            late = [submit(engine, [Request(name, "good")])[1] for name in ("task0", "task0@best")]
        found = [answer_of(out.get(timeout=30).answers[0]).reference for out in (*early, *late)]
    assert ["task0:1", "task0:1", "task0:2", "task0:2"] == found


def test_a_damaged_set_fails_its_own_rows(predictor: Predictor, registry: Registry) -> None:
    """A set whose file is damaged fails its rows, is not read again at once, and answers once it is mended."""
    file = next(registry.store.folder("task0", 1).glob("adapter*"))
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    rows = [Request("task0", "good"), Request("task2", "bad"), Request("task0", "bad")]
    with running(predictor, Limits(broken_seconds=0.3)) as engine:
        first, other, second = engine.answer(rows)
        assert isinstance(first, IntegrityError)
        assert first is second
        assert "task2:1" == answer_of(other).reference
        file.write_bytes(content)
        assert engine.answer(rows[:1])[0] is first
        time.sleep(0.3)
        assert "task0:1" == answer_of(engine.answer(rows[:1])[0]).reference


def test_sets_are_held_while_rows_wait_and_let_go_after(predictor: Predictor) -> None:
    """A pool that may keep nothing keeps the sets of rows that wait, and is empty when all are answered."""
    nothing = Predictor(predictor.backbone, predictor.registry, capacity=0)
    with running(nothing) as engine:
        with stopped(engine):
            outs = [submit(engine, [row])[1] for row in requests()]
            until = time.monotonic() + 30
            while len(nothing.pool) < len(KINDS) and time.monotonic() < until:
                time.sleep(0.01)
            assert len(KINDS) == len(nothing.pool)
        for row, out in zip(requests(), outs, strict=True):
            assert_close(predictor.mixed([row])[0], answer_of(out.get(timeout=30).answers[0]))
    assert (0, 0) == (len(nothing.pool), nothing.pool.bytes)


def test_more_sets_than_are_held_wait_outside(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of more sets than may be held at once are all answered, with never more held."""
    monkeypatch.setattr("registry.serving.preparing.SETS_AT_ONCE", 2)
    nothing = Predictor(predictor.backbone, predictor.registry, capacity=0)
    with running(nothing) as engine:
        with stopped(engine):
            outs = [submit(engine, [row])[1] for row in requests()]
            time.sleep(0.1)
            assert 2 == len(nothing.pool)
        assert 4 == len({answer_of(out.get(timeout=30).answers[0]).reference for out in outs})


def test_a_full_queue_refuses_and_says_when_to_come_again(predictor: Predictor) -> None:
    """Rows beyond the bound are refused at once with a time; what was accepted is answered, and there is room again."""
    with running(predictor, Limits(max_queue_rows=10)) as engine:
        told: list[tuple[str, int]] = []
        engine.tell = lambda what, rows: told.append((what, rows))
        with stopped(engine):
            _, out = submit(engine, [Request("task0", "good")] * 8)
            with pytest.raises(
                ServerError, match="expected room for 3 among 10, found 8 waiting; try again in 1 s"
            ) as err:
                submit(engine, [Request("task0", "good")] * 3)
            assert 429 == err.value.status
        assert 8 == len(out.get(timeout=30).answers)
        assert 10 == len(engine.answer([Request("task0", "good")] * 10))
        assert 0 == engine.waiting.rows
    assert [("rejected", 3)] == told


def test_a_wait_longer_than_the_deadline_is_refused_at_once(predictor: Predictor) -> None:
    """Where the moving rate says that the wait is too long, nothing waits in vain."""
    with running(predictor) as engine, stopped(engine):
        submit(engine, [Request("task0", "good")] * 100)
        engine.waiting.rate = 10.0
        with pytest.raises(ServerError, match="expected an answer within 1.6 s, found about 10.1 s; try again in 9 s"):
            submit(engine, [Request("task0", "good")], timeout=2.0)
        submit(engine, [Request("task0", "good")], timeout=20.0)


def test_no_forward_is_spent_past_a_deadline(predictor: Predictor) -> None:
    """Rows whose deadline passes while they wait have an error, and no batch holds them."""
    reports: list[BatchReport] = []
    with running(predictor) as engine:
        with stopped(engine):
            _, late = submit(engine, [Request("task0", "good")] * 3, timeout=0.05)
            _, good = submit(engine, [Request("task2", "good")])
            time.sleep(0.1)
        engine.observe = reports.append
        job = late.get(timeout=30)
        assert [504] * 3 == [error.status for error in job.answers if isinstance(error, ServerError)]
        answer_of(good.get(timeout=30).answers[0])
    assert {"task2:1"} >= {reference for report in reports for reference in report.references}


def test_a_client_that_left_costs_no_forward(predictor: Predictor) -> None:
    """A cancelled request leaves the queue with all its rows, its sets are let go, and it is not answered."""
    told: list[tuple[str, int]] = []
    with running(predictor) as engine:
        engine.tell = lambda what, rows: told.append((what, rows))
        with stopped(engine):
            job, out = submit(engine, [Request("task0", "good")] * 20)
            engine.cancel(job)
            engine.cancel(job)
            assert 0 == engine.waiting.rows
        answer_of(engine.answer([Request("task2", "good")])[0])
        assert out.empty()
    assert [("cancelled", 20)] == told


def test_closing_answers_what_waits_and_refuses_what_comes(predictor: Predictor) -> None:
    """An engine that drains answers what it has accepted, refuses the rest, and its threads end."""
    engine = Engine(predictor).start()
    with stopped(engine):
        outs = [submit(engine, [row])[1] for row in requests()]
        engine.drain()
        with pytest.raises(ServerError, match="found one that is about to end") as err:
            submit(engine, requests())
        assert 503 == err.value.status
    engine.close(30)
    assert len(requests()) == sum(isinstance(out.get(timeout=1).answers[0], Prediction) for out in outs)
    assert not engine.is_alive
    assert 0 == engine.jobs


def test_closing_waits_no_longer_than_it_is_told(predictor: Predictor) -> None:
    """What is not answered by then is told so."""
    engine = Engine(predictor).start()
    with stopped(engine):
        _, out = submit(engine, [Request("task0", "good")])
        threading.Thread(target=engine.close, args=(0.1,)).start()
        answer = out.get(timeout=30).answers[0]
        assert "expected a turn within 0.1 s of the end" in str(answer)


def test_logits_come_with_the_answers_where_they_are_wanted(predictor: Predictor) -> None:
    """The logits of a job are the predictor's; a job beside it that wants none has none."""
    outs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    with running(predictor) as engine:
        engine.submit([Request("task0", "good"), Request("task2", "bad")], outs.put, logits=True)
        job = outs.get(timeout=30)
    for (name, text), logits in zip((("task0", "good"), ("task2", "bad")), job.logits, strict=True):
        assert logits == pytest.approx(predictor.logits(name, [text])[0].tolist(), abs=1e-5)


def test_an_alias_that_moves_is_followed_at_once(
    predictor: Predictor, registry: Registry, tiny_backbone: Backbone
) -> None:
    """Whatever the resolver remembers, a request is answered by the version that the alias points to when it comes."""
    save_kind(registry, "task0", 0, 9)
    with running(predictor) as engine:
        for turn in range(32):
            version = 1 + turn % 2
            registry.alias("task0", "best", version)
            for _ in range(3):
                assert f"task0:{version}" == answer_of(engine.answer([Request("task0@best", "good")])[0]).reference
            time.sleep(0.01 * (turn % 8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("beside", [False, True])
def test_an_engine_on_a_gpu(registry: Registry, tiny_folder: Path, beside: bool) -> None:
    """On CUDA in bfloat16, batches of one set through graphs and mixed ones answer as on a CPU, but for rounding."""
    rows = requests()
    expected = [Predictor(registry.backbone, registry).mixed([row])[0] for row in rows]
    backbone = Backbone.load(str(tiny_folder), device="cuda", dtype="bfloat16")
    predictor = Predictor(backbone, Registry(registry.store.root, backbone))
    with running(predictor, Limits(tokenize_beside=beside)) as engine, ThreadPoolExecutor(16) as pool:
        alone = list(pool.map(lambda row: answer_of(engine.answer([row])[0]), rows))
        together = list(map(answer_of, engine.answer(rows)))
    for one, *others in zip(expected, alone, together, strict=True):
        for other in others:
            assert one.reference == other.reference
            assert one.probabilities == pytest.approx(other.probabilities, abs=0.1)
