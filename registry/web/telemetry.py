"""What a server tells of itself: metrics for Prometheus, and a log of JSON lines. No text of a request is in either."""

from __future__ import annotations

import json
import logging
import time
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from registry.serving.answering import Answering, BatchReport

PREFIX = "adapter_registry"
MOST_NAMES = 200  # adapters with a label of their own
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Telemetry:
    """The metrics of one process, for Prometheus.

    Args:
        engine: whose batches, queue and pool are told.
        shared: whether several processes answer on one port, and tell their metrics together through the folder that
            PROMETHEUS_MULTIPROC_DIR names.

    Attributes:
        inside: requests that are being answered.
    """

    def __init__(self, engine: Answering, *, shared: bool = False) -> None:
        self._engine, self._shared = engine, shared
        self.inside = 0
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        count: Any = partial(Counter, namespace=PREFIX, registry=self._registry)
        spread: Any = partial(Histogram, namespace=PREFIX, registry=self._registry)
        gauge: Any = partial(Gauge, namespace=PREFIX, registry=self._registry, multiprocess_mode="livesum")
        self._requests = count("requests", "Requests by route and status.", ("route", "status"))
        self._rows = count("rows", "Rows by route and status.", ("route", "status"))
        self._adapters = count("adapter_rows", "Rows answered by name of the set.", ("adapter",))
        self._wait = spread("wait_seconds", "Seconds that rows waited.", buckets=_SECONDS)
        self._compute = spread("compute_seconds", "Seconds that batches took.", buckets=_SECONDS)
        self._batch_rows = spread("batch_rows", "Rows of batches.", buckets=_SIZES)
        self._batch_tokens = spread("batch_tokens", "Tokens of batches.", buckets=[32 * size for size in _SIZES])
        self._batch_sets = spread("batch_sets", "Sets of batches.", buckets=_SIZES)
        self._told = {what: count(what, f"Rows {what}.") for what in ("expired", "rejected", "cancelled")}
        self._queue = gauge("queue_rows", "Rows that wait.")
        self._bytes = gauge("resident_bytes", "Bytes of resident sets.")
        self._sets = gauge("resident_sets", "Resident sets.")
        self._loads = count("loads", "Sets loaded.")
        self._evictions = count("evictions", "Sets that left memory.")
        self._counted = [0, 0]
        self._names: set[str] = set()
        engine.observe = self._batch
        engine.tell = lambda what, rows: self._told[what].inc(rows)

    def request(self, route: str, status: int, rows: int) -> None:
        """Count one request."""
        self._requests.labels(route, status).inc()
        if rows:
            self._rows.labels(route, status).inc(rows)

    def page(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        self._look()
        if not self._shared:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)

    def _batch(self, report: BatchReport) -> None:
        self._compute.observe(report.seconds)
        self._batch_rows.observe(len(report.references))
        self._batch_tokens.observe(report.tokens)
        self._batch_sets.observe(report.sets)
        for wait in report.waits:
            self._wait.observe(wait)
        counts: dict[str, int] = {}
        for reference in report.references:
            name = reference.partition(":")[0]
            if name not in self._names and len(self._names) < MOST_NAMES:
                self._names.add(name)
            label = name if name in self._names else "other"
            counts[label] = counts.get(label, 0) + 1
        for label, rows in counts.items():
            self._adapters.labels(label).inc(rows)
        self._look()

    def _look(self) -> None:
        """Take what the queue and the pool say now."""
        now_there = self._engine.standing()
        self._queue.set(now_there.queue_rows)
        self._bytes.set(now_there.resident_bytes)
        self._sets.set(now_there.resident_sets)
        grown = (self._loads, now_there.loads), (self._evictions, now_there.evictions)
        for place, (counter, now) in enumerate(grown):
            counter.inc(max(0, now - self._counted[place]))
            self._counted[place] = now


class JsonLines(logging.Formatter):
    """Logs as JSON lines: time, level, message, and what is told of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({**line, **getattr(record, "told", {})}, ensure_ascii=False)
