"""Replicas of a server's engine on Ray Serve, and what stands in its place behind the web application.

A replica has one device, one backbone and one pool, and shares nothing. The front resolves references, counts what
waits, and sends a request's rows set by set, by ``name:version``, to a replica where that set is resident, if there is
one with room. Answering twice does no harm, so rows whose replica died are sent once more. Knows no web.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from registry.cluster.connection import ClusterError, check_worker, what_decides
from registry.errors import RegistryError, ServerError
from registry.model.backbone import Backbone
from registry.schema import Manifest, members_of
from registry.serving.answering import BatchReport, Standing
from registry.serving.engine import Engine, Limits
from registry.serving.predictor import Prediction, Predictor, Request, check_request
from registry.serving.preparing import FAILURES, Resolved, failure
from registry.serving.waiting import Job, Waiting
from registry.store.reader import Resolver, StoredVersion
from registry.store.registry import Registry
from registry.store.store import Store, open_store

MOST_ROUTED = 1_000  # sets that a replica is known to have; its pool decides what it really has
ONGOING = 8  # requests at a replica at a time from which on another one is started
_SENT = 2  # times that rows are sent at most
_GRACE = 5.0  # seconds after a deadline in which a replica's own word about it is waited for


@dataclass(frozen=True)
class ReplicaTerms:
    """What every replica is made of.

    Attributes:
        store: the folder, where all nodes read it, or the address.
        source, revision: of the backbone.
        device, dtype, offline: of it.
        threads: that torch computes with, and CPUs that Ray is asked for.
        gpus: share of a GPU, 0 on CPUs.
        limits: of the engine.
        capacity, threshold: of the predictor.
    """

    store: str
    source: str
    revision: str | None
    device: str
    dtype: str
    offline: bool
    threads: int
    gpus: float
    limits: Limits
    capacity: int
    threshold: float | None


class Replica:
    """One engine, in a process of its own on some node."""

    def __init__(self, terms: ReplicaTerms, versions: dict[str, str]) -> None:
        check_worker(versions)
        torch.set_num_threads(terms.threads)
        own = {"device": terms.device, "dtype": terms.dtype, "revision": terms.revision, "offline": terms.offline}
        backbone = Backbone.load(terms.source, **own)  # type: ignore[arg-type]
        registry = Registry(terms.store, backbone)
        predictor = Predictor(backbone, registry, capacity=terms.capacity, threshold=terms.threshold)
        backbone.embed(["what the first request would wait for is done"])
        self._engine = Engine(predictor, terms.limits).start()
        self._reports: list[BatchReport] = []
        self._engine.observe = self._reports.append

    async def answer(
        self, requests: Sequence[Request], seconds: float, logits: bool
    ) -> tuple[list[Prediction | RegistryError | None], list[list[float]], list[BatchReport], Standing]:
        """Return the answers to rows, their logits, and what the engine tells of its batches and of itself."""
        await self._route(serve.get_multiplexed_model_id())
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Job] = loop.create_future()

        def deliver(job: Job) -> None:
            if not future.done():
                future.set_result(job)

        def done(job: Job) -> None:
            loop.call_soon_threadsafe(deliver, job)

        job = await asyncio.to_thread(self._engine.submit, requests, done, seconds, logits=logits)
        try:
            await future
        finally:
            self._engine.cancel(job)
        told = [self._reports.pop(0) for _ in range(len(self._reports))]
        return job.answers, job.logits, told, self._engine.standing()

    async def check_health(self) -> None:
        """Let Ray Serve replace this replica where its engine has ended."""
        if not self._engine.is_alive:
            raise ServerError(500, "answer", "an engine that is at work", "one that has ended")

    @serve.multiplexed(max_num_models_per_replica=MOST_ROUTED)  # type: ignore[untyped-decorator]
    async def _route(self, model_id: str) -> str:
        """Let Ray Serve know that rows of this set find it here; the engine loads it for its first row."""
        return model_id


class Front:
    """Answers in the place of an engine, by replicas.

    Args:
        store: where the sets are.
        handle: of the deployment.
        most: rows that wait at a time.

    Attributes:
        observe, tell, is_draining: see ``Answering``.
    """

    def __init__(self, store: Store, handle: Any, most: int) -> None:
        self.store, self._handle = store, handle
        self.observe: Callable[[BatchReport], None] = lambda report: None
        self.tell: Callable[[str, int], None] = lambda what, rows: None
        self.is_draining = False
        self._resolver, self._waiting = Resolver(store), Waiting(most)
        self._jobs: set[Job] = set()
        self._settling = threading.Lock()
        self._standing = Standing(0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="front", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Return whether requests can be sent."""
        return self._thread.is_alive()

    def standing(self) -> Standing:
        """Return what waits, and what the replica that answered last has said of its pool."""
        last = self._standing
        return Standing(self._waiting.rows, last.resident_bytes, last.resident_sets, last.loads, last.evictions)

    def drain(self) -> None:
        """Accept nothing more; what waits is still answered."""
        self.is_draining = True

    def close(self, seconds: float = 30.0) -> None:
        """Accept nothing more, wait for what is still to be answered for at most some seconds, and end."""
        self.drain()
        until = time.monotonic() + seconds
        while self._jobs and time.monotonic() < until:
            time.sleep(0.005)
        for job in list(self._jobs):
            error = ServerError(503, "answer", f"a turn within {seconds:g} s of the end", "none")
            self._settle(job, [(place, error) for place in range(len(job.requests))])
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(seconds + 1.0)
        if not self._thread.is_alive():
            self._loop.close()

    def recall(self, references: Iterable[str]) -> Resolved | None:
        """Return what ``submit`` would find, None where it would have to read a file or several sets answer."""
        found: dict[str, list[tuple[StoredVersion, Manifest]]] = {}
        for reference in references:
            known = self._resolver.recall(reference) if len(members_of(reference)) == 1 else None
            if known is None:
                return None
            found[reference] = [known]
        return found

    def submit(
        self,
        requests: Sequence[Request],
        done: Callable[[Job], None],
        timeout: float = 30.0,
        *,
        logits: bool = False,
        resolved: Resolved | None = None,
    ) -> Job:
        """Let rows wait for an answer and return their job; see ``Engine.submit``.

        Raises:
            ServerError: no room, no time, or it is draining; nothing waits.
        """
        now = time.monotonic()
        job = Job(requests, now, now + timeout, done, wants_logits=logits)
        groups = self._groups(job, dict(resolved or {}))
        if self.is_draining or not self.is_alive:
            raise ServerError(503, "answer", "a server that is at work", "one that is about to end", 1.0)
        try:
            self._waiting.accept(job, job.open)
        except ServerError:
            self.tell("rejected", job.open)
            raise
        if job.open == 0:
            job.is_over = True
            done(job)
            return job
        self._jobs.add(job)
        for model_id, rows in groups.items():
            asyncio.run_coroutine_threadsafe(self._ask(job, model_id, rows), self._loop)
        return job

    def cancel(self, job: Job) -> None:
        """Forget a job whose client has left; ``done`` is not called."""
        if rows := self._end(job):
            self.tell("cancelled", rows)

    def _groups(self, job: Job, found: dict[str, Any]) -> dict[str, list[tuple[int, Request]]]:
        """Return the rows by the set that answers them, its version written out; those that none can are settled."""
        groups: dict[str, list[tuple[int, Request]]] = {}
        for place, request in enumerate(job.requests):
            reference, members = request.reference, members_of(request.reference)
            try:
                if reference not in found:
                    found[reference] = [self._resolver.find(one) for one in members]
                for _, manifest in found[reference]:
                    check_request(place, request, reference, manifest)
            except RegistryError as err:
                job.settle(place, err)
                continue
            version: StoredVersion = found[reference][0][0]
            model_id = f"{version.name}:{version.version}"
            # Several sets that answer together are told by a replica as they were asked for, so it resolves them too.
            pinned = Request(model_id, request.text, request.pair) if len(members) == 1 else request
            groups.setdefault(model_id, []).append((place, pinned))
        return groups

    async def _ask(self, job: Job, model_id: str, rows: Sequence[tuple[int, Request]]) -> None:
        """Send rows of one set to a replica, once more where that has died, and settle them."""
        handle = self._handle.options(multiplexed_model_id=model_id)
        outcome: Any = ServerError(503, "answer", "a replica that is at work", f"{_SENT} that ended", 1.0)
        for _ in range(_SENT):
            left = job.deadline - time.monotonic()
            if left <= 0 or job.is_over:
                outcome = ServerError(504, "answer", "a turn before the deadline", "none")
                break
            try:
                asked = handle.answer.remote([request for _, request in rows], left, job.wants_logits)
                outcome = await asyncio.wait_for(asked, left + _GRACE)
                break
            except RayTaskError as err:
                outcome = err.cause if isinstance(err.cause, RegistryError) else failure(err.cause)
                break
            except asyncio.TimeoutError:
                outcome = ServerError(504, "answer", "a turn before the deadline", "none")
            except (RayError, RayServeException):
                continue  # the replica died
            except FAILURES as err:
                outcome = failure(err)
                break
        self._waiting.unprepared(job, len(rows))
        if isinstance(outcome, RegistryError):
            if isinstance(outcome, ServerError) and outcome.status == 504:
                self.tell("expired", len(rows))
            self._settle(job, [(place, outcome) for place, _ in rows])
            return
        answers, logits, reports, self._standing = outcome
        for (place, _), numbers in zip(rows, logits, strict=True):
            job.logits[place] = numbers
        for report in reports:
            self.observe(report)
        self._settle(job, [(place, answer) for (place, _), answer in zip(rows, answers, strict=True)])

    def _settle(self, job: Job, answers: Sequence[tuple[int, Prediction | RegistryError]]) -> None:
        with self._settling:
            ended = [job.settle(place, answer) for place, answer in answers]
            if job.is_over or not any(ended):
                return
            job.is_over = True
            self._jobs.discard(job)
        job.done(job)

    def _end(self, job: Job) -> int:
        with self._settling:
            if job.is_over:
                return 0
            job.is_over = True
            self._jobs.discard(job)
        self._waiting.drop(job)
        return job.open


@contextmanager
def deployed(terms: ReplicaTerms, replicas: tuple[int, int], most: int) -> Iterator[Front]:
    """Give what answers by replicas on the Ray that is connected; they end with the ``with`` block.

    Args:
        terms: what they are made of.
        replicas: how many at least and at most; Ray Serve starts more while requests wait.
        most: rows that wait at a time.

    Raises:
        ClusterError: no replica could be started.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    least, at_most = replicas
    scaling = {"min_replicas": least, "max_replicas": at_most, "target_ongoing_requests": ONGOING}
    deployment = serve.deployment(
        Replica,
        name="engine",
        ray_actor_options={"num_cpus": terms.threads, "num_gpus": terms.gpus},
        autoscaling_config=scaling,
        max_ongoing_requests=10 * ONGOING,
        health_check_period_s=2,
    )
    name = f"adapter-registry-{uuid.uuid4().hex[:8]}"
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
    try:
        try:
            handle = serve.run(deployment.bind(terms, what_decides()), name=name, route_prefix=None)
        except (RuntimeError, RayError) as err:
            told = (str(err).strip().splitlines() or [type(err).__name__])[-1][:300]
            hint = "'ray logs' on the cluster, or ADAPTER_REGISTRY_RAY_LOG=1, tells more"
            raise ClusterError("serve on Ray", f"{least} replicas that start", told, hint) from err
        yield Front(open_store(terms.store), handle, most)
    finally:
        serve.delete(name, _blocking=False)
