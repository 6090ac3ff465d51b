"""Who asks a server: a predictor's calls over HTTP, from threads or an event loop, asked again where that may help.

Answering changes nothing, so a request whose answer was lost is asked again. A server that is busy says when.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from registry.errors import ConfigError, RemoteError
from registry.serving.predictor import Prediction, Request, requests_of_texts
from registry.web.bodies import (
    MOST_BODY_ROWS,
    AdapterBody,
    Answer,
    Answers,
    ErrorBody,
    Failed,
    ListedAdapter,
    ListedAdapters,
    RowBody,
    RowsBody,
    encode,
)

if TYPE_CHECKING:
    import httpx2

Row: TypeAlias = Request | tuple[str, str] | tuple[str, str, str | None]

_Body = TypeVar("_Body")
_AGAIN = (429, 502, 503)
_FIRST_WAIT = 0.1  # seconds, doubled each time
_LONGEST_WAIT = 30.0
_AT_ONCE = 4  # bodies of one call from an event loop


@dataclass(frozen=True)
class _Call:
    """One exchange: what is sent, and what the answer is."""

    method: str
    path: str
    kind: type
    content: bytes | None = None


@dataclass(frozen=True)
class _Outcome:
    """How an exchange ended: a status with its content, or 0 and why there is none."""

    status: int
    content: bytes = b""
    retry_after: str | None = None
    reason: str = ""


class Client:
    """Asks a server from threads; as a predictor it is called with a reference and texts.

    Args:
        url: of the server, such as ``http://127.0.0.1:8000``.
        api_key: where the server wants one.
        timeout: seconds for one request; the server is told, and spends no forward later.
        retries: times that a request is asked again after a lost connection or where the server is busy.

    Raises:
        ConfigError: httpx2 is not installed.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 30.0, retries: int = 5) -> None:
        self._retries = retries
        self._http: httpx2.Client = _httpx2().Client(**_options(url, api_key, timeout))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the connections go."""
        self._http.close()

    def __call__(self, reference: str, texts: Iterable[str], pairs: Iterable[str] | None = None) -> list[Prediction]:
        """Return the answers of one set, one per text.

        Raises:
            RemoteError: the server, or a row, has no answer.
        """
        return self.mixed(requests_of_texts(reference, texts, pairs))

    def mixed(self, rows: Iterable[Row]) -> list[Prediction]:
        """Return the answers to rows of any sets in any order, in that order.

        Raises:
            RemoteError: the server, or a row, has no answer.
        """
        return _all_answered(self.answer_each(rows))

    def answer_each(self, rows: Iterable[Row]) -> list[Prediction | RemoteError]:
        """Return the answers to rows of any sets, in order; a row that cannot be answered has its error instead.

        Raises:
            RemoteError: the server has no answer.
        """
        return [answer for call in _row_calls(rows) for answer in _answers_in(self._send(call))]

    def adapters(self) -> list[ListedAdapter]:
        """Return the names that the server has, with their versions and aliases."""
        found: list[ListedAdapter] = []
        call: _Call | None = _listing()
        while call is not None:
            page: ListedAdapters = self._send(call)
            found += page.adapters
            call = None if page.next is None else _listing(page.next)
        return found

    def adapter(self, reference: str) -> AdapterBody:
        """Return what the server tells of a set."""
        known: AdapterBody = self._send(_known(reference))
        return known

    def is_ready(self) -> bool:
        """Return whether the server is there and takes requests."""
        return self._once(_READY).status == 200

    def _send(self, call: _Call) -> Any:
        outcome, retries = self._once(call), 0
        while (wait := _wait_of(outcome, retries, self._retries)) is not None:
            time.sleep(wait)
            outcome, retries = self._once(call), retries + 1
        return _read(call, outcome)

    def _once(self, call: _Call) -> _Outcome:
        try:
            return _outcome(self._http.request(call.method, call.path, content=call.content))
        except _httpx2().TransportError as err:
            return _Outcome(0, reason=type(err).__name__)


class AsyncClient:
    """Asks a server from an event loop; its calls are a ``Client``'s, each awaited.

    Args:
        url: of the server, such as ``http://127.0.0.1:8000``.
        api_key: where the server wants one.
        timeout: seconds for one request; the server is told, and spends no forward later.
        retries: times that a request is asked again after a lost connection or where the server is busy.

    Raises:
        ConfigError: httpx2 is not installed.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 30.0, retries: int = 5) -> None:
        self._retries = retries
        self._http: httpx2.AsyncClient = _httpx2().AsyncClient(**_options(url, api_key, timeout))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let the connections go."""
        await self._http.aclose()

    async def __call__(
        self, reference: str, texts: Iterable[str], pairs: Iterable[str] | None = None
    ) -> list[Prediction]:
        """Return the answers of one set, one per text."""
        return await self.mixed(requests_of_texts(reference, texts, pairs))

    async def mixed(self, rows: Iterable[Row]) -> list[Prediction]:
        """Return the answers to rows of any sets in any order, in that order."""
        return _all_answered(await self.answer_each(rows))

    async def answer_each(self, rows: Iterable[Row]) -> list[Prediction | RemoteError]:
        """Return the answers to rows of any sets, in order; a row that cannot be answered has its error instead."""
        few = asyncio.Semaphore(_AT_ONCE)

        async def send(call: _Call) -> Any:
            async with few:
                return await self._send(call)

        found = await asyncio.gather(*(send(call) for call in _row_calls(rows)))
        return [answer for answers in found for answer in _answers_in(answers)]

    async def adapters(self) -> list[ListedAdapter]:
        """Return the names that the server has, with their versions and aliases."""
        found: list[ListedAdapter] = []
        call: _Call | None = _listing()
        while call is not None:
            page: ListedAdapters = await self._send(call)
            found += page.adapters
            call = None if page.next is None else _listing(page.next)
        return found

    async def adapter(self, reference: str) -> AdapterBody:
        """Return what the server tells of a set."""
        known: AdapterBody = await self._send(_known(reference))
        return known

    async def is_ready(self) -> bool:
        """Return whether the server is there and takes requests."""
        return (await self._once(_READY)).status == 200

    async def _send(self, call: _Call) -> Any:
        outcome, retries = await self._once(call), 0
        while (wait := _wait_of(outcome, retries, self._retries)) is not None:
            await asyncio.sleep(wait)
            outcome, retries = await self._once(call), retries + 1
        return _read(call, outcome)

    async def _once(self, call: _Call) -> _Outcome:
        try:
            return _outcome(await self._http.request(call.method, call.path, content=call.content))
        except _httpx2().TransportError as err:
            return _Outcome(0, reason=type(err).__name__)


def _httpx2() -> Any:
    if find_spec("httpx2") is None:
        raise ConfigError("Client", "httpx2 to be installed", "none", "pip install 'adapter-registry[serve]'")
    import httpx2

    return httpx2


def _options(url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    """Return how a client of httpx2 is made; it waits a little longer than the server has time."""
    headers = {"content-type": "application/json", "x-request-timeout": f"{timeout:g}"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    return {"base_url": url, "headers": headers, "timeout": timeout + 5.0}


def _row_calls(rows: Iterable[Row]) -> list[_Call]:
    """Return the requests for rows, as many in each as a body may hold."""
    asked = [row if isinstance(row, Request) else Request(*row) for row in rows]
    bodies = [RowBody(row.reference, row.text, row.pair) for row in asked]
    parts = [bodies[first : first + MOST_BODY_ROWS] for first in range(0, len(bodies), MOST_BODY_ROWS)]
    return [_Call("POST", "/v1/predict", Answers, encode(RowsBody(part))) for part in parts]


_READY = _Call("GET", "/health/ready", dict)


def _listing(after: str = "") -> _Call:
    return _Call("GET", f"/v1/adapters?{urlencode({'after': after})}", ListedAdapters)


def _known(reference: str) -> _Call:
    return _Call("GET", f"/v1/adapters/{quote(reference, safe='@:+')}", AdapterBody)


def _outcome(response: Any) -> _Outcome:
    return _Outcome(response.status_code, response.content, response.headers.get("retry-after"))


def _wait_of(outcome: _Outcome, retries: int, most: int) -> float | None:
    """Return the seconds until a request is asked again, None where it is not."""
    if retries >= most or outcome.status not in (0, *_AGAIN):
        return None
    told = outcome.retry_after or ""
    if told.isascii() and told.isdigit():
        return min(float(told), _LONGEST_WAIT)
    return min(_FIRST_WAIT * 2.0**retries, _LONGEST_WAIT) * random.uniform(0.5, 1.0)


def _read(call: _Call, outcome: _Outcome) -> Any:
    """Return the body of a good answer.

    Raises:
        RemoteError: the server told an error, something else than it should, or nothing.
    """
    attempted = f"cannot ask {call.path.partition('?')[0]}"
    if outcome.status == 0:
        hint = "is it running, and is the address right?"
        raise RemoteError(0, "Unreachable", f"{attempted}: expected an answer, found {outcome.reason}", hint)
    try:
        if outcome.status == 200:
            return msgspec.json.decode(outcome.content, type=call.kind)
        error = msgspec.json.decode(outcome.content, type=Failed).error
    except msgspec.DecodeError as err:
        told = f"{attempted}: expected JSON of this program, found another body, of status {outcome.status}"
        raise RemoteError(outcome.status, "AnotherServer", told) from err
    raise RemoteError(outcome.status, error.type, error.message, error.hint)


def _answers_in(answers: Answers) -> list[Prediction | RemoteError]:
    return [_prediction(answer) for answer in answers.answers]


def _prediction(answer: Answer) -> Prediction | RemoteError:
    if answer.error is not None or answer.reference is None or answer.label is None:
        error = answer.error or ErrorBody("NoAnswer", "cannot read an answer: expected one, found none")
        return RemoteError(200, error.type, error.message, error.hint)
    label = tuple(answer.label) if isinstance(answer.label, list) else answer.label
    return Prediction(answer.reference, label, answer.probabilities or {}, bool(answer.truncated))


def _all_answered(answers: Sequence[Prediction | RemoteError]) -> list[Prediction]:
    predictions = []
    for answer in answers:
        if isinstance(answer, RemoteError):
            raise answer
        predictions.append(answer)
    return predictions
