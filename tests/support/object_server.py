"""A real S3 server in a process of its own, and the faults of a network in front of it."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "s3cr3t", "AWS_REGION": "us-east-1"}
FAULTS = ("cut before", "cut after", "5xx before", "5xx after", "slow", "repeat", "short body")
# Moto checks a condition and stores in two steps, between which another request may come; a real S3 does not let it.
_SERVER = """
import sys, threading
from moto import server

turn, run = threading.Lock(), server.run_simple

def in_turn(app):
    def answer(environ, start_response):
        with turn:
            return list(app(environ, start_response))
    return answer

server.run_simple = lambda host, port, app, **options: run(host, port, in_turn(app), **options)
server.main(sys.argv[1:])
"""


def endpoint_settings(port: int) -> dict[str, str]:
    """Return the environment in which obstore asks the server at a port of this machine."""
    return {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true", **KEYS}


@contextmanager
def object_server() -> Iterator[int]:
    """Run moto's server with an empty bucket and give its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-c", _SERVER, "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with suppress(OSError):
                if ask(port, "PUT", f"/{BUCKET}") == 200:
                    break
            if server.poll() is not None:
                raise RuntimeError(f"the server ended with {server.returncode}")
            time.sleep(0.1)
        yield port
    finally:
        server.kill()
        server.wait()


def ask(port: int, method: str, path: str) -> int:
    """Ask a server of this machine and return the status of its answer."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, headers={"Content-Length": "0"})
        return connection.getresponse().status


class FaultyNetwork:
    """A server in front of another that does some fault to a share of its requests, and counts what it passed on.

    Args:
        target: the port of the real server.
        faults: which; each in ``FAULTS``.
        share: of the requests, from 0 to 1.
        methods: of requests that meet faults.
    """

    def __init__(self, target: int, faults: tuple[str, ...] = FAULTS, share: float = 0.0, seed: int = 0) -> None:
        self.target, self.faults, self.share = target, faults, share
        self.methods: tuple[str, ...] = ("GET", "PUT", "POST", "DELETE", "HEAD")
        self.victim: subprocess.Popen[str] | None = None  # is killed after so many puts that were passed on
        self.puts_left = 0
        self.done: dict[str, int] = {}
        self.passed: list[tuple[str, str, int]] = []  # method, path, bytes of the body
        self.dice, self.lock = random.Random(seed), threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"network": self}))
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()

    def choose(self, method: str) -> str | None:
        """Return the fault of the next request, None for none."""
        with self.lock:
            if method not in self.methods or self.dice.random() >= self.share:
                return None
            fault = self.dice.choice(self.faults)
            self.done[fault] = self.done.get(fault, 0) + 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    network: FaultyNetwork
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _pass(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        with closing(HTTPConnection("127.0.0.1", self.network.target, timeout=60)) as connection:
            skipped = ("connection", "content-length", "transfer-encoding")
            headers = {key: value for key, value in self.headers.items() if key.lower() not in skipped}
            connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            answer = connection.getresponse()
            content = answer.read()
            kept = [each for each in answer.getheaders() if each[0].lower() not in skipped]
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        with self.network.lock:
            self.network.passed.append((self.command, self.path, len(body)))
            if self.command == "PUT" and self.network.victim is not None:
                self.network.puts_left -= 1
                if self.network.puts_left == 0:
                    self.network.victim.kill()
        return answer.status, [*kept, ("Content-Length", length or "0")], content

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.network.choose(self.command)
        if fault == "cut before":
            self._cut()
        elif fault == "5xx before":
            self._answer(503, [("Content-Length", "0")], b"")
        else:
            status, headers, content = self._pass(body)
            if fault == "repeat":
                self._pass(body)
            if fault == "slow":
                time.sleep(0.05)
            if fault == "cut after":
                self._cut()
            elif fault == "5xx after":
                self._answer(500, [("Content-Length", "0")], b"")
            elif fault == "short body" and content:
                self._answer(status, headers, content[: len(content) // 2])
                self._cut()
            else:
                self._answer(status, headers, content)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        with suppress(OSError):
            self.send_response_only(status)
            for key, value in headers:
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()

    def _cut(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815  (what http.server calls)
