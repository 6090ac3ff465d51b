"""What every request passes: its id, its key, its line in the log, and the shape in which it is told an error.

Texts are in no log unless that is asked for, and keys in none.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

from starlette import requests as web
from starlette.responses import Response

from registry.errors import ConfigError, RegistryError, ServerError
from registry.schema import members_of
from registry.web.bodies import Failed, Words, encode, status_of
from registry.web.telemetry import Telemetry

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger("adapter_registry.server")


@dataclass
class Visitor:
    """Who asks, and what is told of it afterwards.

    Attributes:
        request_id: the client's own, or a new one.
        globs: names that its key opens; None is all.
        rows: asked.
        texts: of the rows, where logs are to hold them.
    """

    request_id: str
    globs: tuple[str, ...] | None = None
    rows: int = 0
    texts: list[str] = field(default_factory=list)

    def may_ask(self, reference: str) -> bool:
        """Return whether its key opens all sets that a reference names."""
        if self.globs is None:
            return True
        names = [re.split("[:@]", member, maxsplit=1)[0] for member in members_of(reference)]
        return all(any(fnmatchcase(name, glob) for glob in self.globs) for name in names)

    def check(self, reference: str) -> None:
        """Refuse a reference to a set that the key does not open.

        Raises:
            ServerError: 403.
        """
        if not self.may_ask(reference):
            raise ServerError(403, f"ask '{reference[:80]}'", "a key that opens it", "one that does not")


class ApiKeys:
    """Keys by their SHA-256, each for all sets or for names that match one of its patterns."""

    def __init__(self, keys: Sequence[tuple[bytes, tuple[str, ...] | None]]) -> None:
        self._keys = keys

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """Return the keys of a file: on each line the SHA-256 of a key in hex, then patterns of names, none for all.

        Raises:
            ConfigError: no such file, no key in it, or a line that is none.
        """
        keys: list[tuple[bytes, tuple[str, ...] | None]] = []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as err:
            raise ConfigError("--api-keys", "a text file that can be read", str(path)) from err
        for number, line in enumerate(lines, 1):
            digest, *globs = line.partition("#")[0].split() or [""]
            if not digest:
                continue
            if not re.fullmatch("[0-9a-f]{64}", digest):
                hint = 'printf %s "$KEY" | sha256sum gives it'
                raise ConfigError(f"line {number} of {path}", "the SHA-256 of a key, in hex", "something else", hint)
            keys.append((bytes.fromhex(digest), tuple(globs) or None))
        if not keys:
            raise ConfigError("--api-keys", "a file with a key", f"{path} without one")
        return cls(keys)

    def find(self, key: bytes) -> tuple[str, ...] | None:
        """Return the patterns of a key, None for all names, in a time that tells nothing of which key it is.

        Raises:
            ServerError: 401 where it is none of them.
        """
        digest = hashlib.sha256(key).digest()
        found = [globs for known, globs in self._keys if hmac.compare_digest(known, digest)]
        if not found:
            raise ServerError(401, "answer", "a key, as in 'Authorization: Bearer KEY'", "none that is known here")
        return found[0]


class Gate:
    """A pure ASGI middleware.

    Args:
        app: what is behind it.
        words: of errors.
        telemetry: counts requests.
        keys: None lets everybody in.
        logs: whether each request is a line of the log.
    """

    def __init__(
        self, app: App, *, words: Words, telemetry: Telemetry, keys: ApiKeys | None = None, logs: bool = True
    ) -> None:
        self._app, self._words, self._telemetry, self._keys, self._logs = app, words, telemetry, keys, logs
        self._start, self._count = uuid.uuid4().hex[:16], count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        visitor = Visitor(given.decode() if _REQUEST_ID.fullmatch(given) else f"{self._start}-{next(self._count):x}")
        scope.setdefault("state", {})["visitor"] = visitor
        started, status = time.perf_counter(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", visitor.request_id.encode())]
            await send(message)

        self._telemetry.inside += 1
        try:
            if self._keys is not None and scope["path"] not in OPEN_PATHS and scope["method"] != "OPTIONS":
                visitor.globs = self._keys.find(_key_in(headers))
            await self._app(scope, receive, send_with_id)
        except ServerError as err:
            await error_response(scope, self._words, err)(scope, receive, send_with_id)
        except web.ClientDisconnect:
            status = 499
        finally:
            self._telemetry.inside -= 1
            route = getattr(scope.get("route"), "path", "other")
            self._telemetry.request(route, status, visitor.rows)
            if self._logs:
                self._tell(scope, visitor, route, status, time.perf_counter() - started)

    def _tell(self, scope: Scope, visitor: Visitor, route: str, status: int, seconds: float) -> None:
        line = {
            "request_id": visitor.request_id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "rows": visitor.rows,
            "ms": round(1_000 * seconds, 2),
            "client": (scope.get("client") or ("",))[0],
        }
        _log.info("request", extra={"told": line if not visitor.texts else {**line, "texts": visitor.texts}})


def _key_in(headers: dict[bytes, bytes]) -> bytes:
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")


def visitor_of(request: web.Request) -> Visitor:
    """Return who asks."""
    visitor: Visitor = request.state.visitor
    return visitor


def error_response(scope: Scope, words: Words, error: RegistryError) -> Response:
    """Return the response that tells an error, in the shape of the protocol that was spoken.

    The protocols of others tell an error as one text.
    """
    visitor: Visitor = scope["state"]["visitor"]
    told, status = words.error(error, visitor.may_ask), status_of(error)
    own: Any = Failed(told, visitor.request_id)
    if scope["path"].startswith(("/v2", "/models")):
        own = {"error": f"{told.message}; {told.hint}" if told.hint else told.message, "error_type": told.type}
    headers = {}
    if isinstance(error, ServerError) and error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status in (408, 413):
        headers["connection"] = "close"  # what still comes of the body is not waited for
    return Response(encode(own), status, headers, "application/json")
