"""The playground as its reader sees and uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.browser import Browser

NO_BROWSER = "no chromium here (Debian's package chromium, or google-chrome)"


def open_playground(browser: Browser, url: str, *names: str, **options: Any) -> None:
    """Open the page and choose some sets, and no others."""
    browser.open(f"{url}/", **options)
    browser.wait_until("document.querySelector('#sets input:checked') !== null")
    for name in browser.evaluate("[...document.querySelectorAll('#sets input')].map((each) => each.dataset.name)"):
        box = f"document.querySelector('#sets input[data-name=\"{name}\"]')"
        if browser.evaluate(f"{box}.checked") != (name in names):
            browser.evaluate(f"{box}.click()")
            shown = f"document.getElementById('card-{name}') {'!==' if name in names else '==='} null"
            browser.wait_until(shown)


def ask(browser: Browser, text: str, pair: str | None = None) -> None:
    """Type texts, and wait for the answers."""
    browser.evaluate("document.getElementById('told').textContent = ''")
    if pair is not None:
        browser.type("#pair", pair)
    browser.type("#text", text)
    browser.wait_until("document.getElementById('told').textContent !== ''")
    browser.wait_until("document.getElementById('answers').ariaBusy === 'false'")


def texts_of(browser: Browser, selector: str) -> list[str]:
    """Return the text of all elements of a selector."""
    found = f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.textContent)"
    return list(browser.evaluate(found))


def text_of(browser: Browser, name: str) -> str:
    """Return the text of an element by its id."""
    return str(browser.evaluate(f"document.getElementById('{name}').textContent"))


def wait_for_text(browser: Browser, name: str, part: str) -> str:
    """Wait until an element has a text with a part, and return all of it."""
    browser.wait_until(f"document.getElementById('{name}').textContent.includes({json.dumps(part)})")
    return text_of(browser, name)


def answer_file(browser: Browser, path: Path) -> None:
    """Drop a file, and wait for all of its answers."""
    browser.drop(path)
    browser.wait_until("!document.getElementById('work').hidden")
    browser.click("#run")
    browser.wait_until("!document.getElementById('save').hidden && document.getElementById('run').hidden")
