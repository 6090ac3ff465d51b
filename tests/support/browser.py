"""A real headless Chromium for tests, spoken to over its own pipe: no driver, no port and no other package.

The protocol is Chrome's DevTools protocol: JSON messages with a zero byte after each, in on descriptor 3, out on 4.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)

# Moves the two ends of our pipes to where the browser looks for them, then becomes the browser.
_LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
    os.close(end)
os.execv(sys.argv[3], sys.argv[3:])
"""
_PATIENCE = 60  # seconds a browser on a busy machine may take for one answer
_OPTIONS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-quic", "--no-first-run", "--no-default-browser-check", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars"),
)


class BrowserError(Exception):
    """The browser is gone, or refused a command."""


class Browser:
    """One browser process with one page."""

    def __init__(self, profile: Path) -> None:
        self._ids = iter(range(1, 1_000_000))
        self._rest = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        ours_in, self._write = os.pipe()
        self._read, ours_out = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", "-c", _LAUNCHER, str(ours_in), str(ours_out)),
                *(str(CHROMIUM), *_OPTIONS, f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(ours_in, ours_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(ours_in)
        os.close(ours_out)

    def attach(self) -> None:
        """Make the page and listen to it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result; what happens meanwhile is kept in ``events``."""
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            try:
                data = data[os.write(self._write, data) :]
            except BrokenPipeError as err:
                raise BrowserError(f"the browser ended before {method}") from err
        while True:
            answer = self._next_message()
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self.events.append(answer)

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True) -> None:
        """Load a page at a width in CSS pixels, as light or dark as the reader's system would be."""
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.media("", dark=dark)
        self.events.clear()
        self.call("Page.navigate", url=url)
        self._wait_for("Page.loadEventFired")

    def media(self, kind: str, dark: bool = False, calm: bool = False) -> None:
        """Show the page as on ``print`` or by default (""), light or dark, for readers who want motion or none."""
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
        ]
        self.call("Emulation.setEmulatedMedia", media=kind, features=features)

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str, control: bool = False) -> None:
        """Press and release a key, such as Enter or Tab, wherever the focus is, with Ctrl held where that is asked."""
        codes = {"Enter": (13, "\r"), "Tab": (9, ""), " ": (32, " ")}
        code, text = codes[key]
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            held = 2 if control else 0
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=held, **typed)

    def type(self, selector: str, text: str) -> None:
        """Put a text in the place of what an element holds, as a keyboard or a paste would."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def drop(self, path: Path) -> None:
        """Drop a file in the middle of the window."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=300, y=300, data=data)

    def wait_until(self, script: str) -> None:
        """Wait until a JavaScript expression is true."""
        until = time.monotonic() + _PATIENCE
        while not self.evaluate(script):
            if time.monotonic() > until:
                raise BrowserError(f"never true: {script}")
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Click with a real mouse in the middle of the element."""
        name = json.dumps(selector)
        self.evaluate(f"document.querySelector({name}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.evaluate(f"document.querySelector({name}).getBoundingClientRect().toJSON()")
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **place)

    def requests(self) -> list[str]:
        """Return the address of everything the page has asked for since it was opened, itself included."""
        return [event["params"]["request"]["url"] for event in self._named("Network.requestWillBeSent")]

    def complaints(self) -> list[Any]:
        """Return console messages, log entries and uncaught errors since the page was opened."""
        names = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for name in names for event in self._named(name)]

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Write a PNG of the page, all of it or what the window shows."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        """Return the page as it would be printed."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])

    def close(self) -> None:
        """End the browser and everything it started."""
        os.close(self._write)  # it ends by itself when nobody speaks to it
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._read)

    def _named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("method") == name]

    def _wait_for(self, name: str) -> None:
        while not self._named(name):
            self.events.append(self._next_message())

    def _next_message(self) -> dict[str, Any]:
        until = time.monotonic() + _PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            data = os.read(self._read, 1 << 20) if ready else b""
            if not data:
                raise BrowserError("the browser said nothing for too long, or has ended")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


@contextlib.contextmanager
def running(profile: Path) -> Iterator[Browser]:
    """Yield a browser with an empty profile, and end it whatever happens."""
    browser = Browser(profile)
    try:
        browser.attach()
        yield browser
    finally:
        browser.close()
