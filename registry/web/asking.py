"""The way of rows to the engine and back: a body read in time, rows that leave the queue when their client leaves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from starlette import requests as web
from starlette.responses import Response

from registry.errors import RegistryError, ServerError
from registry.serving.answering import Answering
from registry.serving.predictor import Prediction, Request
from registry.serving.waiting import Job
from registry.web.bodies import AdapterBody, Words, adapter_body, encode
from registry.web.gate import visitor_of

LARGEST_BODY = 2**20


class Bridge:
    """Brings jobs from the engine's threads to the event loop, many in one step."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finished: deque[tuple[asyncio.Future[Job], Job]] = deque()
        self._is_scheduled = False

    def future(self) -> asyncio.Future[Job]:
        """Return what a job will come out of."""
        self._loop = asyncio.get_running_loop()
        return self._loop.create_future()

    def bring(self, future: asyncio.Future[Job], job: Job) -> None:
        """Let a job come out of its future; from any thread."""
        self._finished.append((future, job))
        if not self._is_scheduled and self._loop is not None:
            self._is_scheduled = True
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_scheduled = False
        while self._finished:
            future, job = self._finished.popleft()
            if not future.done():
                future.set_result(job)


class Asker:
    """The way of rows to the engine and back.

    Args:
        engine: answers.
        log_texts: whether texts are told in the log.
    """

    def __init__(self, engine: Answering, *, log_texts: bool = False) -> None:
        self.engine, self._log_texts = engine, log_texts
        self.store = engine.store
        self.words = Words(str(self.store.root))
        self._bridge = Bridge()

    async def ask(self, request: web.Request, rows: Sequence[Request], *, logits: bool = False) -> Job:
        """Return the job of some rows once it is done; where the client leaves, its rows leave the queue.

        Raises:
            ServerError: the engine does not take them, or no row has a turn in time.
            ClientDisconnect: the client left.
        """
        self.note(request, rows)
        job, future = await self.submit(request, rows, logits=logits)
        leaving = asyncio.ensure_future(left(request))
        try:
            await asyncio.wait((future, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not future.done():
                self.engine.cancel(job)
        if not future.done():
            raise web.ClientDisconnect
        first = job.answers[0] if job.answers else None
        if isinstance(first, ServerError) and all(answer is first for answer in job.answers):
            raise first
        return job

    def note(self, request: web.Request, rows: Sequence[Request]) -> None:
        """Note what is asked, for metrics and log."""
        visitor = visitor_of(request)
        visitor.rows += len(rows)
        if self._log_texts:
            visitor.texts += [text for row in rows for text in (row.text, row.pair) if text is not None]

    async def submit(
        self, request: web.Request, rows: Sequence[Request], *, logits: bool = False
    ) -> tuple[Job, asyncio.Future[Job]]:
        """Let rows wait, and return their job and what it comes out of."""
        references = {row.reference for row in rows}
        for reference in references:
            visitor_of(request).check(reference)
        future = self._bridge.future()
        resolved = self.engine.recall(references)
        ask = partial(
            self.engine.submit, rows, partial(self._bridge.bring, future), timeout_of(request),
            logits=logits, resolved=resolved,
        )  # fmt: skip
        # Reading a manifest may wait for a disk, which the event loop does not.
        job = ask() if resolved is not None else await asyncio.to_thread(ask)
        return job, future

    def known(self, request: web.Request, reference: str) -> AdapterBody:
        """Return what a client may know of a stored set; reads files.

        Raises:
            ServerError, AdapterNotFoundError, ManifestError: its key does not open it, or it cannot be read.
        """
        visitor_of(request).check(reference)
        name, version = self.store.resolve(reference)
        versions, aliases = self.store.versions(name), self.store.aliases(name)
        return adapter_body(self.store.manifest(name, version), version, versions, aliases)


async def left(request: web.Request) -> None:
    """Return once the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def timeout_of(request: web.Request, usual: float = 30.0) -> float:
    """Return the seconds that a client will wait.

    Raises:
        ServerError: 422 where the header is no such number.
    """
    given = request.headers.get("x-request-timeout")
    if given is None:
        return usual
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 3_600:
        raise ServerError(422, "read X-Request-Timeout", "seconds from 0 to 3,600", given[:40])
    return seconds


def json_response(body: object, status: int = 200) -> Response:
    """Return a body as a response."""
    return Response(encode(body), status, media_type="application/json")


async def read_body(request: web.Request, largest: int = LARGEST_BODY) -> bytes:
    """Return the whole body of a request.

    Raises:
        ServerError: it is too large (413), or did not come in time (408).
        ClientDisconnect: the client left.
    """
    too_large = ServerError(413, "read the body", f"at most {largest:,} bytes", "more")
    if int(request.headers.get("content-length") or 0) > largest:
        raise too_large
    timeout = timeout_of(request)

    async def collect() -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > largest:
                raise too_large
            parts.append(part)
        return b"".join(parts)

    try:
        return await asyncio.wait_for(collect(), timeout)
    except asyncio.TimeoutError as err:
        raise ServerError(408, "read the body", f"all of it within {timeout:g} s", "less") from err


def predictions(job: Job) -> list[Prediction]:
    """Return the answers of a job whose protocol has no place for a row's own error.

    Raises:
        RegistryError: what was wrong with the first row that has no answer.
    """
    answers = []
    for answer in job.answers:
        if isinstance(answer, RegistryError):
            raise answer
        if answer is not None:
            answers.append(answer)
    return answers
