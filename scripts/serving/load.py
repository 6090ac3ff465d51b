"""A load generator of HTTP/1.1: so many requests in flight, or so many a second, on connections that stay open.

Bare sockets and prepared bytes, so that on two cores it takes little from the server that it measures.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Body = Callable[[], bytes]  # the next one


@dataclass
class Outcome:
    """What came of a load.

    Attributes:
        seconds: it lasted.
        statuses: how many answers of each; 0 is a connection that ended.
        waits: seconds of each answer of status 200.
        rows: of one request.
        cpu: seconds of processor that the server had meanwhile.
    """

    seconds: float
    rows: int
    cpu: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Return the rows answered in a second."""
        return self.rows * len(self.waits) / self.seconds

    def share(self, part: float) -> float | None:
        """Return the milliseconds within which this part of the answers came, None where there were none."""
        ordered = sorted(self.waits)
        return 1e3 * ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else None

    def to_json(self) -> dict[str, object]:
        """Return all of it for a file, but each single wait."""
        statuses = {str(status): count for status, count in sorted(self.statuses.items())}
        median = 1e3 * statistics.median(self.waits) if self.waits else None
        spent = 1e3 * self.cpu / (self.rows * len(self.waits)) if self.waits else None
        rates = {"rows_per_second": self.rate, "cpu_ms_per_row": spent}
        return {**rates, "p50_ms": median, "p99_ms": self.share(0.99), "statuses": statuses}


class Connection:
    """One connection that is asked and answered in turn, and opened again where it ended."""

    def __init__(self, port: int, path: str, headers: str = "") -> None:
        self._port = port
        self._head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n{headers}"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer; status 0 where there was none."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(f"{self._head}content-length: {len(body)}\r\n\r\n".encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
            content = await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0, b""
        return int(head[9:12]), content

    def close(self) -> None:
        """End the connection."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def keep_in_flight(port: int, path: str, body: Body, in_flight: int, seconds: float, rows: int = 1) -> Outcome:
    """Keep so many requests in flight for some seconds, each client asking again when it is answered."""
    outcome, until = Outcome(seconds, rows), time.perf_counter() + seconds

    async def ask() -> None:
        connection = Connection(port, path)
        while (started := time.perf_counter()) < until:
            status, _ = await connection.ask(body())
            ended = time.perf_counter()
            if ended <= until:
                outcome.statuses[status] += 1
                if status == 200:
                    outcome.waits.append(ended - started)
            if status == 0:
                await asyncio.sleep(0.05)
        connection.close()

    await asyncio.gather(*(ask() for _ in range(in_flight)))
    return outcome


async def keep_rate(
    port: int, path: str, body: Body, each_second: float, seconds: float, deadline: float, rows: int = 1
) -> Outcome:
    """Ask so many requests a second, however many are not answered yet; only answers within the deadline count."""
    outcome = Outcome(seconds, rows)
    idle: list[Connection] = []
    tasks: set[asyncio.Task[None]] = set()

    async def ask() -> None:
        connection = idle.pop() if idle else Connection(port, path, f"x-request-timeout: {deadline:g}\r\n")
        started = time.perf_counter()
        status, _ = await connection.ask(body())
        wait = time.perf_counter() - started
        outcome.statuses[status if status != 200 or wait <= deadline else 599] += 1
        if status == 200 and wait <= deadline:
            outcome.waits.append(wait)
        idle.append(connection)

    started = time.perf_counter()
    asked = 0
    while (now := time.perf_counter() - started) < seconds:
        while asked < now * each_second:
            task = asyncio.ensure_future(ask())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            asked += 1
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    outcome.seconds = time.perf_counter() - started
    for connection in idle:
        connection.close()
    return outcome


def row_bodies(rows: Iterator[tuple[str, str]], count: int = 1) -> Body:
    """Return bodies of our own route, of so many rows each."""

    def body() -> bytes:
        own = [{"adapter": name, "text": text} for name, text in (next(rows) for _ in range(count))]
        return json.dumps({"rows": own}).encode()

    return body


def peer_bodies(rows: Iterator[tuple[str, str]]) -> Body:
    """Return bodies of the peers' routes, of one row each."""
    return lambda: json.dumps(dict(zip(("adapter", "text"), next(rows), strict=True))).encode()
