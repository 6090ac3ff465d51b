"""The scripts that put a server under load: what they count is so, and the committed report is made of its figures."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from registry.serving.engine import Engine
from registry.serving.predictor import Predictor
from registry.store.registry import Registry
from tests.support.scripts import load_script
from tests.support.server import Served

HERE = Path(__file__).parents[2]
FIGURES = {"rows_per_second": 90.0, "cpu_ms_per_row": 3.0, "p50_ms": 20.0, "p99_ms": 40.0, "statuses": {"200": 9}}


def test_the_load_generator_counts_what_the_server_counts(served: Served) -> None:
    """Requests in flight and requests a second are each answered once, and told by status."""
    load = load_script("serving/load.py")
    port = int(served.url.rpartition(":")[2])
    rows = itertools.cycle([("task0", "good"), ("task2", "bad")])
    body = load.row_bodies(rows, 3)
    kept = asyncio.run(load.keep_in_flight(port, "/v1/predict", body, 4, 0.5, 3))
    asked = asyncio.run(load.keep_rate(port, "/v1/predict", body, 40, 0.5, 5.0, 3))
    nowhere = asyncio.run(load.keep_in_flight(port, "/nowhere", body, 2, 0.2))
    assert {200} == set(kept.statuses) == set(asked.statuses)
    assert {404} == set(nowhere.statuses)
    assert kept.share(0.5) <= kept.share(0.99)
    told = served.http.get("/metrics").text
    line = 'adapter_registry_requests_total{route="/v1/predict",status="200"} '
    counted = float(told.partition(line)[2].partition("\n")[0])
    # What was answered after the half second is not counted by the generator.
    assert 0 <= counted - kept.statuses[200] - asked.statuses[200] <= 4
    gone = asyncio.run(load.keep_in_flight(1, "/v1/predict", body, 1, 0.1))
    assert {0} == set(gone.statuses)


def test_the_committed_report_is_made_of_its_figures() -> None:
    """reports/serving.md is what the script makes of reports/serving.json, and the sizes in the docs stand in it."""
    report = load_script("serving/report.py")
    found = json.loads((HERE / "reports" / "serving.json").read_text(encoding="utf-8"))
    assert report.render(found) == (HERE / "reports" / "serving.md").read_text(encoding="utf-8")
    docs = (HERE / "docs" / "serving.md").read_text(encoding="utf-8")
    for line in report.sizes(found["sizes"]["found"])[2:]:
        assert line in docs


def test_layers_count_the_rows_of_the_engine_and_the_processor_of_its_thread(registry: Registry) -> None:
    """Rows in flight are all answered and counted, and what the model's thread had is told apart from the others'."""
    layers = load_script("serving/layers.py")
    engine = Engine(Predictor(registry.backbone, registry))
    answered: list[int] = []
    engine.observe = lambda report: answered.append(len(report.references))
    engine.start()
    (model,) = (thread.native_id for thread in threading.enumerate() if thread.name == "engine")
    rows = itertools.cycle([("task0", "good"), ("task2", "bad")])
    counted: list[int] = []

    def run() -> int:
        counted.append(layers.through_engine(engine, rows, 4, 0.5))
        return counted[-1]

    told = layers.measure(run, os.getpid(), model)
    engine.close(5)
    assert [sum(answered)] == counted
    assert told["model_ms"] + told["still_ms"] == pytest.approx(1e3 / told["rows_per_second"])
    assert told["model_ms"] > 0


def test_layers_count_every_request_that_the_server_answered(served: Served) -> None:
    """Those that were still in flight when the time was over are among them, as their time is."""
    load, layers = load_script("serving/load.py"), load_script("serving/layers.py")
    port = int(served.url.rpartition(":")[2])

    async def ask(server: Served, rows: Any, in_flight: int, seconds: float) -> Any:
        return await load.keep_in_flight(port, "/v1/predict", load.row_bodies(rows), in_flight, seconds)

    counted = layers.through_server(ask, served, itertools.cycle([("task0", "good")]), 4, 0.3)
    line = f'adapter_registry_requests_total{{route="/v1/predict",status="200"}} {counted}.0'
    until = time.monotonic() + 10
    while line not in served.http.get("/metrics").text.splitlines():  # a request is counted once it is answered
        assert time.monotonic() < until


def test_a_report_tells_each_target_beside_what_was_found() -> None:
    """Shares are of the rate offline in the same round, ratios of the same round's others; what is missing is told."""
    report = load_script("serving/report.py")
    offline = {"rows_per_second": 100.0, "cpu_ms_per_row": 2.0}
    round_ = {"offline": offline, "offline_after": {**offline, "rows_per_second": 80.0}, "forward_ms": 16.0}
    round_ |= dict.fromkeys(("1", "8", "32", "128", "8 rows x 4"), FIGURES)
    other = {"32": FIGURES, "128": {**FIGURES, "rows_per_second": 45.0}}
    about = {"processor": "P", "threads": 1, "code": "c", "quick": False, "sets": 64, "seconds": 20.0}
    found = {
        "float32": {**about, "found": [round_]},
        "peers": {**about, "found": [{"ours": {"32": FIGURES, "128": FIGURES}, "peft": other}]},
    }
    told = {what: value for what, _, value in report.targets(found)}
    assert told["float32: share of offline, 32 in flight"] == pytest.approx(1.0)
    assert told["one in flight: p50 over the bare forward, at most"] == pytest.approx(1.25)
    assert told["rows/s at 128 over peft"] == pytest.approx(2.0)
    assert told["rows/s at 128 over litserve_32"] is None
    page = report.render(found)
    assert "| bfloat16: share of offline, 32 in flight | 0.90 | not measured |" in page
    assert "Each measurement: float32 20 s, peers 20 s." in page
    assert "A quick run" not in page


@pytest.mark.slow
def test_no_answer_is_anothers_while_aliases_move(tmp_path: Path) -> None:
    """The quick form of a million rows: each is the answer of the version that it names, and every version answers."""
    command = [
        sys.executable,
        str(HERE / "scripts" / "serving" / "moving.py"),
        "--rows",
        "2000",
        "--out",
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    found = json.loads((tmp_path / "serving-moving.json").read_text(encoding="utf-8"))
    assert (0, 0) == (done.returncode, found["strange_answers"]), done.stderr
    assert found["rows"] >= 2_000
    assert found["largest_difference"] <= 1e-5
