"""The client: a predictor's answers over HTTP, and requests asked again where that helps and not where it does not."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from registry import AsyncClient, Client
from registry.errors import RemoteError
from registry.serving.predictor import Predictor
from registry.store.registry import Registry
from registry.web.app import AppSettings
from registry.web.gate import ApiKeys
from tests.support.served_sets import assert_close, requests
from tests.support.server import Served, serving

ANSWER = {"request_id": "r", "failed": 0, "answers": [{"reference": "a:1", "label": "x", "probabilities": {"x": 1.0}}]}


def test_a_client_answers_as_a_predictor_does(served: Served, registry: Registry) -> None:
    """Called with texts, or with more mixed rows than a body holds, a client returns the predictor's answers."""
    rows = requests() * 15
    expected = Predictor(registry.backbone, registry).mixed(rows)
    with Client(served.url) as client:
        assert client.is_ready()
        for one, answer in zip(expected, client.mixed(rows), strict=True):
            assert_close(one, answer)
        (pair,) = client("task1", ["he left"], ["she went"])
        assert "task1:1" == pair.reference
        assert [] == client.mixed([])
        assert ["task0", "task1", "task2", "task3"] == [each.name for each in client.adapters()]
        assert ("bad", "good") == tuple(client.adapter("task0:1").labels)


def test_an_async_client_answers_the_same(served: Served, registry: Registry) -> None:
    """From an event loop, many calls at once."""
    rows = requests() * 15

    async def ask() -> None:
        async with AsyncClient(served.url) as client:
            assert await client.is_ready()
            answers = await asyncio.gather(client.mixed(rows), *(client("task0", ["good"]) for _ in range(20)))
            assert 4 == len(await client.adapters())
            assert "task0:1" == (await client.adapter("task0")).reference
            for one, answer in zip(expected, answers[0], strict=True):
                assert_close(one, answer)
            assert {"task0:1"} == {one.reference for own in answers[1:] for one in own}

    expected = Predictor(registry.backbone, registry).mixed(rows)
    asyncio.run(ask())


def test_errors_of_rows_and_of_requests(served: Served, registry: Registry) -> None:
    """A row's error is in its place, or raised; a request's error is raised with its status."""
    with Client(served.url) as client:
        good, bad = client.answer_each([("task0", "good"), ("nobody", "good")])
        assert not isinstance(good, RemoteError)
        assert isinstance(bad, RemoteError)
        assert "AdapterNotFoundError" == bad.kind
        with pytest.raises(RemoteError, match="cannot find adapter set 'nobody'"):
            client("nobody", ["good"])
        with pytest.raises(RemoteError, match="cannot find adapter set 'nobody'") as err:
            client.adapter("nobody")
        assert 404 == err.value.status
    keys = ApiKeys([(bytes(32), None)])
    with serving(registry, AppSettings(keys=keys)) as guarded, Client(guarded.url, api_key="k") as client:
        with pytest.raises(RemoteError, match="expected a key") as err:
            client("task0", ["good"])
        assert 401 == err.value.status


@contextmanager
def answering(*answers: bytes | None) -> Iterator[tuple[str, list[float]]]:
    """Yield the address of a server that gives each connection the next answer, None for none, and when they came."""
    listening, moments = socket.create_server(("127.0.0.1", 0)), []

    def run() -> None:
        for answer in answers:
            try:
                connection, _ = listening.accept()
            except OSError:  # closed, with answers that nobody came for
                return
            moments.append(time.monotonic())
            with connection:
                connection.recv(65_536)
                if answer is not None:
                    connection.sendall(answer)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", moments
    finally:
        listening.close()


def http(status: str, body: object, *headers: str) -> bytes:
    """Return an answer of HTTP that ends its connection."""
    content = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(content)}", "connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


BUSY = http("429 Too Many", {"error": {"type": "Overloaded", "message": "cannot take more"}}, "retry-after: 1")


def test_a_request_is_asked_again_after_a_lost_connection_and_when_told(served: Served) -> None:
    """Connections that end without an answer, and a busy server, cost time and no answer; Retry-After is kept."""
    with answering(None, BUSY, None, http("200 OK", ANSWER)) as (url, moments), Client(url) as client:
        assert "a:1" == client("a", ["text"])[0].reference
    assert 4 == len(moments)
    assert moments[2] - moments[1] >= 1.0


def test_retries_end(served: Served) -> None:
    """After as many as were allowed the last error is raised; where nobody listens, that is told."""
    with answering(BUSY, BUSY, BUSY) as (url, moments), Client(url, retries=1) as client:
        with pytest.raises(RemoteError, match="cannot take more") as err:
            client("a", ["text"])
        assert (429, 2) == (err.value.status, len(moments))
    with Client("http://127.0.0.1:1", retries=0) as client:
        with pytest.raises(RemoteError, match="found ConnectError; is it running, and is the address right"):
            client("a", ["text"])
        assert not client.is_ready()


def test_another_kind_of_server_is_told(served: Served) -> None:
    """A page where JSON of ours should be is no answer."""
    page = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>"
    with answering(page) as (url, _), Client(url) as client, pytest.raises(RemoteError, match="found another body"):
        client("a", ["text"])
