"""JSON lines in, JSON lines out, in their order as they are answered: bulk work over one connection.

A stream is read no faster than it is answered, so its client feels the queue's own bound. The client reads while it
writes; one that only writes ends up waiting for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from starlette import requests as web
from starlette.responses import Response

from registry.errors import RegistryError, ServerError
from registry.serving.predictor import Request
from registry.web.asking import LARGEST_BODY, Asker, left
from registry.web.bodies import Answer, Route, RowBody, check_rows, decode, describe, encode
from registry.web.gate import visitor_of

_Wanted = TypeVar("_Wanted")
_ROWS = 32  # of a stream that are asked together
_JOBS = 8  # of one stream at a time


class StreamRoutes:
    """The route of JSON lines.

    Args:
        asker: brings rows to the engine.
    """

    def __init__(self, asker: Asker) -> None:
        self._asker, self._words = asker, asker.words

    @property
    def table(self) -> list[Route]:
        """Return the route."""
        row = {"adapter": "sst2", "text": "a gripping film"}
        return [Route("POST", "/v1/stream", self.stream, describe(RowBody, Answer, row), (RowBody, Answer))]

    async def stream(self, request: web.Request) -> Response:
        """Answer JSON lines as JSON lines, in their order, as they come; reads no faster than it answers."""
        return _Lines(self._answer_lines(request))

    async def _answer_lines(self, request: web.Request) -> AsyncIterator[bytes]:
        asked: asyncio.Queue[asyncio.Task[list[Answer]] | None] = asyncio.Queue(_JOBS)
        tasks: set[asyncio.Task[list[Answer]]] = set()

        async def read() -> None:
            """Ask what comes, and return once the client has left."""
            first = 1
            async for lines in _lines_of(request):
                task = asyncio.ensure_future(self._answer_some(request, lines, first))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                first += len(lines)
                await asked.put(task)
            await asked.put(None)
            await left(request)

        reading = asyncio.ensure_future(read())
        try:
            while (task := await _before(reading, asked.get())) is not None:
                yield b"".join(encode(answer) + b"\n" for answer in await _before(reading, task))
        except ServerError as err:
            visitor = visitor_of(request)
            yield encode(Answer(error=self._words.error(err, visitor.may_ask), request_id=visitor.request_id)) + b"\n"
        finally:
            for each in (reading, *tasks):
                each.cancel()

    async def _answer_some(self, request: web.Request, lines: Sequence[bytes], first: int) -> list[Answer]:
        """Return the answers to some lines of a stream, which wait where the queue is full."""
        visitor = visitor_of(request)
        found: list[Request | RegistryError] = []
        for number, line in enumerate(lines, first):
            try:
                row = decode(RowBody, line, f"read line {number}")
                visitor.check(row.adapter)
                found += check_rows([Request(row.adapter, row.text, row.pair)])
            except RegistryError as err:
                found.append(err)
        rows = [each for each in found if isinstance(each, Request)]
        self._asker.note(request, rows)
        answers = iter(await self._answers_or_errors(request, rows))
        told = [next(answers) if isinstance(each, Request) else each for each in found]
        plain = [self._words.answer(each, visitor.may_ask) for each in told]
        for number, answer in enumerate(plain, first):
            answer.line, answer.request_id = number, visitor.request_id
        return plain

    async def _answers_or_errors(self, request: web.Request, rows: Sequence[Request]) -> Sequence[Any]:
        while True:
            try:
                job, future = await self._asker.submit(request, rows)
            except ServerError as err:
                if err.status != 429:
                    return [err] * len(rows)
                await asyncio.sleep(min(err.retry_after or 0.1, 0.1))
                continue
            try:
                return (await future).answers
            finally:
                self._asker.engine.cancel(job)


class _Lines(Response):
    """JSON lines as they come; unlike starlette's own it leaves what is received to whoever makes the lines."""

    media_type = "application/x-ndjson"

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._lines = lines

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the lines."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for some in self._lines:
            await send({"type": "http.response.body", "body": some, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _before(reading: asyncio.Task[None], wanted: Awaitable[_Wanted]) -> _Wanted:
    """Return what is waited for.

    Raises:
        ClientDisconnect, ServerError: the client left before it was there, or sends what cannot be read.
    """
    future = asyncio.ensure_future(wanted)
    await asyncio.wait((future, reading), return_when=asyncio.FIRST_COMPLETED)
    if future.done():
        return future.result()
    future.cancel()
    reading.result()
    raise web.ClientDisconnect


async def _lines_of(request: web.Request) -> AsyncIterator[list[bytes]]:
    """Yield the lines of a body as they come, a few together.

    Raises:
        ServerError: a line that is longer than a body may be.
    """
    rest = b""
    async for part in request.stream():
        *lines, rest = (rest + part).split(b"\n")
        lines = [line for line in lines if line.strip()]
        for first in range(0, len(lines), _ROWS):
            yield lines[first : first + _ROWS]
        if len(rest) > LARGEST_BODY:
            raise ServerError(413, "read a line", f"at most {LARGEST_BODY:,} bytes", "more")
    if rest.strip():
        yield [rest]
