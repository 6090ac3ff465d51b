"""A server under bad clients, bad disks and bad ends: others are answered, and so is all that was accepted."""

from __future__ import annotations

import asyncio
import json
import select
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from registry import AsyncClient, Client
from registry.errors import RemoteError
from registry.serving.answering import BatchReport
from registry.serving.engine import Limits
from registry.serving.predictor import Predictor, Request
from registry.store.registry import Registry
from tests.support.served_sets import assert_close, requests, save_kind
from tests.support.server import Program, Served, serving

HEAD = "POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
ROW = b'{"rows": [{"adapter": "task0", "text": "good"}]}'


def answers(served: Served) -> bool:
    """Return whether another client is answered within a second or two."""
    return served.rows(("task0", "good")).status_code == 200


def wait_until(condition: object, seconds: float = 20.0) -> None:
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it never was so"
        time.sleep(0.01)


def test_half_a_body_holds_nothing(served: Served) -> None:
    """A client that sends half a body and leaves costs no row, and others are answered meanwhile and after."""
    with served.connect() as connection:
        connection.sendall(f"{HEAD}content-length: {len(ROW)}\r\n\r\n".encode() + ROW[:20])
        assert answers(served)
    assert answers(served)
    wait_until(lambda: served.engine.jobs == 0)


def test_a_body_that_comes_too_slowly_is_given_up(served: Served) -> None:
    """A body that is not there when its time is up is refused, though bytes of it keep coming."""
    with served.connect() as connection:
        head = f"{HEAD}x-request-timeout: 0.5\r\ncontent-length: 9999\r\n\r\n"
        connection.sendall(head.encode())
        started = time.monotonic()
        while not select.select([connection], [], [], 0.05)[0]:
            connection.sendall(b" ")
            assert answers(served)
        told = connection.recv(65_536)
        assert time.monotonic() - started < 15
    assert b"HTTP/1.1 408 " in told
    assert b"cannot read the body: expected all of it within 0.5 s, found less" in told


def test_ten_megabytes_are_refused_before_they_have_come(served: Served) -> None:
    """A body of 10 MB, told or in chunks that tell nothing, is refused without being kept."""
    told = served.http.post("/v1/predict", content=b"a" * 10_000_000)
    assert 413 == told.status_code
    with served.connect() as connection:
        connection.sendall(f"{HEAD}transfer-encoding: chunked\r\n\r\n".encode())
        try:
            for _ in range(160):
                connection.sendall(b"10000\r\n" + b"a" * 65_536 + b"\r\n")
        except OSError:
            pass  # the server has ended the connection
        else:
            assert b"413" in connection.recv(65_536)
    assert answers(served)


def test_a_client_that_leaves_takes_its_rows_along(served: Served) -> None:
    """When a connection ends before its answer, its rows leave the queue, and others are answered."""
    go_on = threading.Event()
    served.engine.answer([Request("task0", "good")])
    served.engine.observe = lambda report: go_on.wait(30) and None  # type: ignore[func-returns-value]
    served.engine.submit([Request("task0", "good")], lambda job: None)
    wait_until(lambda: served.engine.waiting.rows == 0)
    body = json.dumps({"rows": [{"adapter": "task0", "text": "good"}] * 50}).encode()
    connection = served.connect()
    connection.sendall(f"{HEAD}content-length: {len(body)}\r\n\r\n".encode() + body)
    wait_until(lambda: served.engine.waiting.rows == 50)
    connection.close()
    wait_until(lambda: served.engine.waiting.rows == 0)
    go_on.set()
    assert answers(served)
    told = served.http.get("/metrics").text
    assert "adapter_registry_cancelled_total 50.0" in told
    assert 'adapter_registry_requests_total{route="/v1/predict",status="499"} 1.0' in told


def test_a_stream_whose_client_leaves_ends(served: Served) -> None:
    """A client that leaves in the middle of a stream leaves nothing behind."""
    with served.connect() as connection:
        connection.sendall(b"POST /v1/stream HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        line = b'{"adapter": "task0", "text": "good"}\n'
        connection.sendall(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        told = b""
        while b"task0:1" not in told:
            told += connection.recv(65_536)
    wait_until(lambda: served.engine.jobs == 0 and served.engine.waiting.rows == 0)
    assert answers(served)


def test_deadlines_are_kept_over_http(served: Served) -> None:
    """A request that has no turn in its time has 504, and one that would wait too long 429 and when to come again."""
    go_on = threading.Event()
    served.engine.answer([Request("task0", "good")])
    served.engine.observe = lambda report: go_on.wait(30) and None  # type: ignore[func-returns-value]
    served.engine.submit([Request("task0", "good")], lambda job: None)
    wait_until(lambda: served.engine.waiting.rows == 0)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(served.rows, ("task0", "good"), headers={"x-request-timeout": "0.2"})
        wait_until(lambda: served.engine.waiting.rows == 1)
        served.engine.waiting.rate = 0.1
        busy = served.rows(("task0", "good"), headers={"x-request-timeout": "2"})
        time.sleep(0.2)
        go_on.set()
        answer = late.result(timeout=30)
    assert (504, "DeadlinePassed") == (answer.status_code, answer.json()["error"]["type"])
    assert (429, "Overloaded", "18") == (busy.status_code, busy.json()["error"]["type"], busy.headers["retry-after"])


def test_an_overload_is_refused_and_nothing_is_answered_twice(registry: Registry) -> None:
    """Of many more requests than may wait, each is answered once or refused, and the queue never holds more."""
    most = 0

    def watch(report: BatchReport) -> None:
        nonlocal most
        most = max(most, served.engine.waiting.rows)
        time.sleep(0.005)

    async def ask() -> list[int]:
        async with httpx2.AsyncClient(base_url=served.url, timeout=60, limits=httpx2.Limits()) as http:
            body = {"rows": [{"adapter": "task0", "text": "good"}] * 4}

            async def one() -> int:
                answer = await http.post("/v1/predict", json=body)
                return 200 + len(answer.json()["answers"]) if answer.status_code == 200 else answer.status_code

            return list(await asyncio.gather(*(one() for _ in range(300))))

    with serving(registry, limits=Limits(max_queue_rows=100, max_rows=8)) as served:
        served.engine.observe = watch
        told = asyncio.run(ask())
        assert 0 == served.engine.waiting.rows == served.engine.jobs
    assert {204, 429} == set(told)
    assert told.count(204) >= 25
    assert most <= 100


def test_five_hundred_connections(served: Served, registry: Registry) -> None:
    """Five hundred clients at once, each on a connection of its own, get the answers of their own rows."""
    rows = requests()
    expected = Predictor(registry.backbone, registry).mixed(rows)

    async def ask(place: int) -> None:
        async with AsyncClient(served.url, timeout=120) as client:
            answer = (await client.mixed([rows[place % len(rows)]]))[0]
        assert_close(expected[place % len(rows)], answer)

    async def ask_all() -> None:
        await asyncio.gather(*(ask(place) for place in range(500)))

    asyncio.run(ask_all())


def test_a_damaged_set_fails_its_own_requests_and_is_mended(registry: Registry) -> None:
    """While others are answered; once its file is back, it answers too."""
    file = next(registry.store.folder("task0", 1).glob("head*"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    with serving(registry, limits=Limits(broken_seconds=0.1)) as served:
        told = served.rows(("task0", "good"), ("task2", "good")).json()["answers"]
        assert ("IntegrityError", "task2:1") == (told[0]["error"]["type"], told[1]["reference"])
        file.write_bytes(content)
        time.sleep(0.1)
        assert answers(served)


def test_sets_change_under_load_and_each_answer_is_its_versions(served: Served, registry: Registry) -> None:
    """While aliases move and versions come and go, every answer is what the version it names gives alone."""
    for seed in (7, 8):
        save_kind(registry, "task0", 0, seed)
    registry.alias("task0", "best", 1)
    predictor = Predictor(registry.backbone, registry)
    expected = {f"task0:{version}": predictor(f"task0:{version}", ["good"])[0] for version in (1, 2, 3)}
    over, seen = threading.Event(), set()

    def move() -> None:
        turn = 0
        while not over.wait(0.02):
            turn += 1
            registry.alias("task0", "best", 1 + turn % 3)
            save_kind(registry, "passing", 2, turn)
            registry.remove("passing")

    def ask(client: Client) -> None:
        for _ in range(60):
            own, passing = client.answer_each([("task0@best", "good"), ("passing", "good")])
            assert not isinstance(own, RemoteError), own
            assert_close(expected[own.reference], own)
            seen.add(own.reference)
            assert isinstance(passing, RemoteError) or passing.reference == "passing:1"

    moving = threading.Thread(target=move)
    moving.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            clients = [Client(served.url) for _ in range(4)]
            list(pool.map(ask, clients))
            for client in clients:
                client.close()
    finally:
        over.set()
        moving.join()
    assert set(expected) == seen


@pytest.mark.slow
def test_sigterm_answers_all_that_was_accepted(registry: Registry) -> None:
    """Under load, SIGTERM lets every accepted request be answered; new ones are refused, and the end is a good one."""
    outcomes: list[str] = []

    def ask(url: str) -> None:
        with httpx2.Client(base_url=url, timeout=60) as http:
            while True:
                try:
                    answer = http.post("/v1/predict", json={"rows": [{"adapter": "task0", "text": "good"}] * 64})
                except httpx2.ConnectError:
                    return
                except httpx2.TransportError as err:
                    outcomes.append(type(err).__name__)
                    return
                if answer.status_code == 429:  # a busy machine; nothing was accepted
                    time.sleep(0.1)
                    continue
                good = answer.status_code == 200 and answer.json()["failed"] == 0
                outcomes.append("answered" if good else str(answer.status_code))
                if not good:
                    return

    with Program(Path(registry.store.root), "--no-log") as program:
        threads = [threading.Thread(target=ask, args=(program.url,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(outcomes) >= 40, 120)
        program.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert 0 == program.process.wait(30)
    # A connection that was idle when the server ended is closed without an answer to what had not been accepted.
    assert set(outcomes) <= {"answered", "503", "RemoteProtocolError", "ReadError", "WriteError"}
    assert outcomes.count("answered") >= 40
    assert "answered" == max(set(outcomes), key=outcomes.count)


@pytest.mark.slow
def test_kill_loses_only_what_was_not_answered(registry: Registry) -> None:
    """After kill -9 the store is as it was, and another server answers as the first did."""
    root = Path(registry.store.root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    told = []
    for _ in range(2):
        with Program(root, "--no-log") as program, Client(program.url) as client:
            told.append(client.mixed(requests()))
            program.process.kill()
            with pytest.raises(RemoteError, match="is it running"):
                Client(program.url, retries=0)("task0", ["good"])
    for one, other in zip(*told, strict=True):
        assert_close(one, other)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.mark.slow
def test_several_processes_share_a_port_and_one_that_is_killed_is_replaced(registry: Registry) -> None:
    """Two workers answer on one port and tell their metrics together; kill -9 of one costs no service."""
    import psutil

    with Program(Path(registry.store.root), "--workers", "2", "--no-log") as program:
        parent = psutil.Process(program.process.pid)

        def workers() -> list[psutil.Process]:
            alive = [each for each in parent.children() if each.status() != psutil.STATUS_ZOMBIE]
            return [each for each in alive if "spawn_main" in " ".join(each.cmdline())]

        with Client(program.url) as client:
            for _ in range(20):
                assert "task0:1" == client("task0", ["good"])[0].reference
            victim = workers()[0]
            victim.kill()
            wait_until(lambda: len(workers()) == 2 and victim.pid not in [each.pid for each in workers()], 60)
            for _ in range(20):
                assert "task0:1" == client("task0", ["good"])[0].reference
        assert "adapter_registry_rows_total" in httpx2.get(f"{program.url}/metrics", timeout=30).text
        program.process.send_signal(signal.SIGTERM)
        assert 0 == program.process.wait(60)
