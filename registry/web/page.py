"""The playground: one page put together from its parts, and a policy that lets it run and ask nothing else.

The page asks the server that it came from, by the routes that everybody has; no text goes elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

PARTS = Path(__file__).with_name("playground")
SCRIPTS = ("server.js", "tables.js", "calls.js", "sets.js", "answers.js", "files.js", "page.js")


class PlaygroundPage:
    """The page as it is sent, with its headers."""

    def __init__(self) -> None:
        style, script = _read("page.css"), "".join(map(_read, SCRIPTS))
        page = _read("page.html").replace("{{ style }}", style).replace("{{ script }}", script)
        self._content = page.encode()
        self._headers = {
            "cache-control": "no-cache",
            "content-security-policy": _policy(style, script),
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    async def show(self, request: Request) -> Response:
        """Return the page."""
        return Response(self._content, headers=self._headers, media_type="text/html")


def _read(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy: the one style, the one script, requests to the page's own server."""
    own = {"default-src": "'none'", "style-src": _digest(style), "script-src": _digest(script)}
    own |= {"connect-src": "'self'", "img-src": "data:"}
    own |= dict.fromkeys(("base-uri", "form-action", "frame-ancestors"), "'none'")
    return "; ".join(f"{name} {source}" for name, source in own.items())


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
