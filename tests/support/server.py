"""A real server for tests: uvicorn on a free port of this machine, in a thread or in a process of its own."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from registry.serving.engine import Engine, Limits
from registry.serving.predictor import Predictor
from registry.store.registry import Registry
from registry.web.app import AppSettings, create_app

HERE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Served:
    """A server in a thread of this process."""

    url: str
    engine: Any
    http: httpx2.Client

    def post(self, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        """Send a body as JSON."""
        return self.http.post(path, **({"json": body} if body is not None else {}), **options)

    def rows(self, *rows: tuple[str, ...], **options: Any) -> httpx2.Response:
        """Ask rows of (adapter, text) or (adapter, text, pair)."""
        asked = [dict(zip(("adapter", "text", "pair"), row, strict=False)) for row in rows]
        return self.post("/v1/predict", {"rows": asked}, **options)

    def connect(self) -> socket.socket:
        """Return a connection of one's own."""
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=30)


@contextmanager
def serving(registry: Registry, settings: AppSettings | None = None, limits: Limits | None = None) -> Iterator[Served]:
    """Serve a registry in a thread of this process."""
    with serving_by(Engine(Predictor(registry.backbone, registry), limits).start(), settings) as served:
        yield served


@contextmanager
def serving_by(engine: Any, settings: AppSettings | None = None) -> Iterator[Served]:
    """Serve in a thread of this process what an engine answers, or whatever stands in its place."""
    config = uvicorn.Config(
        create_app(engine, settings),
        port=0,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with httpx2.Client(base_url=url, timeout=30) as http:
            yield Served(url, engine, http)
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


class Program:
    """The command ``serve`` in a process of its own.

    Attributes:
        process: of it.
        url: of the server.
    """

    def __init__(self, store: Path, *arguments: str) -> None:
        command = [sys.executable, "-c", "from registry.cli.main import main; main()", "--store", str(store)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
        self.process = subprocess.Popen(
            [*command, "serve", "--port", "0", *arguments], stderr=subprocess.PIPE, text=True, env=environment
        )
        self.url = self._told()
        self.lines: list[str] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self._wait()

    def _told(self) -> str:
        until = time.monotonic() + 60
        assert self.process.stderr is not None
        seen = []
        while time.monotonic() < until and self.process.poll() is None:
            if select.select([self.process.stderr], [], [], 1)[0]:
                seen.append(self.process.stderr.readline())
                if found := re.search(r"on (http://\S+);", seen[-1]):
                    return found[1]
        raise AssertionError("".join(seen))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def _wait(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if httpx2.get(f"{self.url}/health/ready", timeout=5).status_code == 200:
                    return
            except httpx2.TransportError:
                time.sleep(0.05)
        raise AssertionError("".join(self.lines))

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reading.join(30)
        assert self.process.stderr is not None
        self.process.stderr.close()
