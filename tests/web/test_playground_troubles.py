"""What the playground tells when something is wrong, and what it is to a keyboard and a screen reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.model.backbone import Backbone
from registry.serving.answering import BatchReport
from registry.serving.engine import Limits
from registry.serving.predictor import Request
from registry.store.registry import Registry
from registry.web.app import AppSettings
from registry.web.gate import ApiKeys
from tests.support.browser import CHROMIUM, Browser, running
from tests.support.playground import NO_BROWSER, ask, open_playground, text_of, texts_of, wait_for_text
from tests.support.server import HERE, Served, serving
from tests.web.test_app import key_file


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real Chromium with an empty profile."""
    if CHROMIUM is None:
        pytest.skip(NO_BROWSER)
    with running(tmp_path_factory.mktemp("profile")) as found:
        yield found


def test_keys_are_asked_for_and_kept(browser: Browser, registry: Registry, tmp_path: Path) -> None:
    """Without a key, and with an unknown one, that is told; a known one opens its sets, and is in no call's text."""
    with serving(registry, AppSettings(keys=ApiKeys.read(key_file(tmp_path)))) as served:
        browser.open(f"{served.url}/")
        wait_for_text(browser, "notice", "An API key is wanted: ")
        assert browser.evaluate("document.getElementById('access').open")
        for key, told in (
            ("ungültig", "letters, digits and signs of ASCII"),
            ("wrong", "This API key is not known here: "),
        ):
            browser.type("#key", key)
            browser.press("Tab")
            wait_for_text(browser, "notice", told)
        browser.type("#key", "some")
        browser.press("Tab")
        browser.wait_until("document.getElementById('card-task0') !== null")
        assert ["task0", "task2"] == texts_of(browser, "#sets b")
        ask(browser, "good")
        assert browser.evaluate("document.getElementById('notice').hidden")
        environment = {**os.environ, "PYTHONPATH": str(HERE), "ADAPTER_REGISTRY_KEY": "some"}
        for command in (["bash", "-c", text_of(browser, "curl")], [sys.executable, "-c", text_of(browser, "python")]):
            assert "some" not in command[-1]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
            assert "task0:1" in done.stdout


def test_an_empty_store_says_so(browser: Browser, tmp_path: Path, tiny_backbone: Backbone) -> None:
    """A server without sets tells that there are none, and how to have some."""
    with serving(Registry.create(tmp_path / "store", tiny_backbone)) as served:
        browser.open(f"{served.url}/")
        wait_for_text(browser, "nothing", "The store has no sets yet.")
        assert "0 sets" == text_of(browser, "count")
        assert [] == browser.complaints()


def test_servers_that_drain_or_are_gone_are_told(browser: Browser, registry: Registry) -> None:
    """A server that takes nothing more says so in its own words; one that is gone is told with its address."""
    with serving(registry) as served:
        open_playground(browser, served.url, "task0")
        served.engine.drain()
        browser.type("#text", "good")
        assert "The server takes no requests now: " in wait_for_text(browser, "notice", "no requests now")
        assert ["No answer"] == texts_of(browser, ".card .label")
    browser.type("#text", "bad")
    told = f"The server at {served.url} does not answer. Is it running?"
    assert told == wait_for_text(browser, "notice", "does not answer")


def test_a_busy_server_is_asked_once_more(browser: Browser, registry: Registry) -> None:
    """After 429 the page says when it asks again, does so once, and shows the answer, or that it is still busy."""
    go_on = threading.Event()
    with serving(registry, limits=Limits(max_queue_rows=1, max_rows=1)) as served:
        open_playground(browser, served.url, "task0")
        served.rows(("task0", "good"))
        served.engine.observe = lambda report: go_on.wait(60) and None  # type: ignore[func-returns-value]
        for _ in range(100):  # until the engine is held, what waits before it too, and the queue is full
            if served.engine.waiting.rows:
                break
            served.engine.submit([Request("task0", "good")], lambda job: None)
            threading.Event().wait(0.05)
        assert 1 == served.engine.waiting.rows
        browser.type("#text", "bad")
        told = wait_for_text(browser, "notice", "The server is busy: asking again in ")
        assert told.endswith(" s.")
        wait_for_text(browser, "notice", "The server is still busy: ")
        assert 2 == len([address for address in browser.requests() if address.endswith("/v1/predict")])
        browser.press("Enter", control=True)
        wait_for_text(browser, "notice", "The server is busy: asking again in ")
        go_on.set()
        wait_for_text(browser, "told", "1 row in one call")
        assert browser.evaluate("document.getElementById('notice').hidden")


def test_a_row_without_an_answer_is_told_in_its_card(browser: Browser, registry: Registry, served: Served) -> None:
    """One set that is gone has the server's own words in its card; the other answers."""
    open_playground(browser, served.url, "task0", "task2")
    registry.remove("task2")
    ask(browser, "good")
    errors = texts_of(browser, ".card .error:not([hidden])")
    assert 1 == len(errors)
    assert "cannot find adapter set 'task2' in the store: it has task0" in errors[0]
    assert "task0:1" == text_of(browser, "card-task0")


def test_a_file_can_be_stopped_and_gone_on_with(browser: Browser, registry: Registry, tmp_path: Path) -> None:
    """Stopped in the middle, what was answered stays; going on asks the rest alone, in its order."""
    texts = [f"film {number}" for number in range(300)]
    (tmp_path / "films.txt").write_text("\n".join(texts))
    go_on, answered = threading.Event(), []

    def hold(report: BatchReport) -> None:
        answered.extend(report.references)
        if len(answered) >= 256:
            go_on.wait(60)

    with serving(registry) as served:
        served.engine.observe = hold
        open_playground(browser, served.url, "task0")
        browser.drop(tmp_path / "films.txt")
        browser.wait_until("!document.getElementById('work').hidden")
        browser.click("#run")
        wait_for_text(browser, "run-told", "256 of 300 answers")
        browser.press("Enter")  # the focus is on what stops it
        assert "Go on with the other 44 answers" == wait_for_text(browser, "run", "Go on")
        go_on.set()
        browser.click("#run")
        wait_for_text(browser, "run-told", "300 of 300 answers")
        assert texts == texts_of(browser, "#results .text")
        assert "save" == browser.evaluate("document.activeElement.id")


def test_everything_is_reached_by_keyboard(browser: Browser, served: Served, tmp_path: Path) -> None:
    """Tab goes through the page in its order with a visible focus; Space chooses a set, and Ctrl+Enter answers."""
    open_playground(browser, served.url, "task0")
    (tmp_path / "a.txt").write_text("good\nbad\n")
    browser.drop(tmp_path / "a.txt")
    browser.wait_until("!document.getElementById('work').hidden")
    order = []
    name = (
        "(({id, dataset, ariaLabel, className, tagName}) =>"
        "id || dataset.name || dataset.copies || ariaLabel || className || tagName)(document.activeElement)"
    )
    browser.evaluate("document.body.focus()")
    for _ in range(40):
        browser.press("Tab")
        order.append(browser.evaluate(name))
        if order[-1] == "BODY":
            break
        focus = "#drop label" if order[-1] == "file" else ":focus"
        assert "solid" == browser.evaluate(f"getComputedStyle(document.querySelector('{focus}')).outlineStyle"), order
    wanted = "skip theme search task0 task1 task2 task3 SUMMARY text send file column run curl python"
    assert wanted.split() == [each for each in order if each in wanted.split()]
    browser.evaluate("document.querySelector('[data-name=task2]').focus()")
    browser.press(" ")
    browser.wait_until("document.getElementById('card-task2') !== null")
    assert "task2" == browser.evaluate(name)  # the list was drawn anew, and the focus stayed
    browser.type("#text", "good")
    browser.press("Enter", control=True)
    wait_for_text(browser, "told", "2 rows in one call")
    assert "good" == browser.evaluate("document.getElementById('text').value")


def test_every_control_has_a_name(browser: Browser, served: Served, tmp_path: Path) -> None:
    """In the browser's accessibility tree each control has a name, and answers are told politely."""
    (tmp_path / "a.csv").write_text("text,pair\ngood,bad\n")
    open_playground(browser, served.url, "task0", "task1")
    browser.drop(tmp_path / "a.csv")
    browser.wait_until("!document.getElementById('work').hidden")
    browser.evaluate("document.getElementById('access').open = true")
    roles = {"button", "textbox", "searchbox", "checkbox", "combobox", "region", "article", "DisclosureTriangle"}
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    found = [each for each in nodes if not each["ignored"] and each["role"]["value"] in roles]
    assert {"button", "textbox", "searchbox", "checkbox", "combobox", "article"} <= {
        each["role"]["value"] for each in found
    }
    assert [] == [json.dumps(each["role"]) for each in found if not each.get("name", {}).get("value", "").strip()]
    ask(browser, "good", "bad")
    live = browser.evaluate("[document.getElementById('spoken').ariaLive, document.getElementById('notice').role]")
    assert ["polite", "alert"] == live
    assert text_of(browser, "spoken").count(":1: ") == 2
