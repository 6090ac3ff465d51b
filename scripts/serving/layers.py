"""What a server's share of the offline rate is made of: the same rows, one layer after the other around the model.

The predictor alone, in batches of two sizes; the engine in this process without a web, alone and while another process
keeps the other core busy; the whole server. Of each: rows a second, and for each row the milliseconds of processor of
the thread that owns the model, those of all other threads of its process, and the time in which it did not run.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from registry.serving.engine import Engine
from registry.serving.predictor import Predictor, Request
from registry.serving.waiting import Job

Rows = Iterator[tuple[str, str]]
IN_FLIGHT = (32, 128)
# What a server's process does before it starts: its engine's thread says who it is.
TELL_THREAD = """import threading, registry.serving.engine as e
run = e.Engine._run
def told(self):
    open({path!r}, "w").write(str(threading.get_native_id()))
    run(self)
e.Engine._run = told
"""
# Ends with who started it.
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"


def measure(run: Callable[[], int], pid: int, thread: int) -> dict[str, float]:
    """Return what came of a run that answers rows and returns how many; ``thread`` of the process owns the model."""
    before, started = _processor(pid), time.perf_counter()
    rows = run()
    took, after = time.perf_counter() - started, _processor(pid)
    own = after[thread] - before[thread]
    all_threads = sum(after.values()) - sum(before.get(each, 0.0) for each in after)
    return {
        "rows_per_second": rows / took,
        "model_ms": 1e3 * own / rows,
        "other_ms": 1e3 * (all_threads - own) / rows,
        "still_ms": 1e3 * (took - own) / rows,
    }


def _processor(pid: int) -> dict[int, float]:
    """Return the seconds of processor that each thread of a process has had."""
    return {each.id: each.user_time + each.system_time for each in psutil.Process(pid).threads()}


def through_predictor(predictor: Predictor, rows: Rows, at_once: int, seconds: float) -> int:
    """Answer rows for some seconds, so many at a time, and return how many they were."""
    answered, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        answered += len(predictor.mixed(list(itertools.islice(rows, at_once))))
    return answered


def through_engine(engine: Engine, rows: Rows, in_flight: int, seconds: float) -> int:
    """Keep so many requests of one row in flight for some seconds, without a web; return how many were answered."""
    finished: queue.SimpleQueue[Job] = queue.SimpleQueue()
    answered, until = 0, time.perf_counter() + seconds
    for name, text in itertools.islice(rows, in_flight):
        engine.submit([Request(name, text)], finished.put)
    while time.perf_counter() < until:
        finished.get()
        answered += 1
        name, text = next(rows)
        engine.submit([Request(name, text)], finished.put)
    for _ in range(in_flight):
        finished.get()
    return answered + in_flight


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Keep another core busy with Python that touches little memory."""
    process = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def through_server(ask: Any, server: Any, rows: Rows, in_flight: int, seconds: float) -> int:
    """Keep so many requests in flight at a server for some seconds; return how many were answered, the last too."""
    asked = 0

    def counted() -> Rows:
        nonlocal asked
        for row in rows:
            asked += 1
            yield row

    asyncio.run(ask(server, counted(), in_flight, seconds))
    return asked


def measure_layers(predictor: Predictor, rows: Rows, seconds: float, rounds: int, serve: Any, ask: Any) -> Any:
    """Measure all layers in turn, round after round.

    Args:
        serve: ``serve(before)`` starts a server that does ``before`` first.
        ask: ``ask(process, rows, in_flight, seconds)``, a coroutine, keeps requests in flight at it.
    """
    found: list[dict[str, dict[str, float]]] = []
    me, own = os.getpid(), threading.get_native_id()
    engine = Engine(predictor).start()
    (model,) = (thread.native_id for thread in threading.enumerate() if thread.name == "engine")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "thread"
        with serve(TELL_THREAD.format(path=str(path))) as server:
            theirs = int(path.read_text(encoding="utf-8"))
            for turn in range(rounds + 1):
                told: dict[str, dict[str, float]] = {}
                offline = partial(through_predictor, predictor, rows)
                for size in (64, 32):
                    told[f"predictor, {size} rows at a time"] = measure(partial(offline, size, seconds), me, own)
                for n in IN_FLIGHT:
                    engine_alone = partial(through_engine, engine, rows, n, seconds)
                    told[f"engine, {n} in flight"] = measure(engine_alone, me, model)
                    with busy_neighbour():
                        told[f"engine, {n} in flight, the other core busy"] = measure(engine_alone, me, model)
                    asked = partial(through_server, ask, server, rows, n, seconds)
                    told[f"server, {n} in flight"] = measure(asked, server.process.pid, theirs)
                with busy_neighbour():
                    told["predictor, 64 rows at a time, the other core busy"] = measure(
                        partial(offline, 64, seconds), me, own
                    )
                found += [told] if turn else []  # the first warms up
    engine.close()
    return found
