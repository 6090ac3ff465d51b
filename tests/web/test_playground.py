"""What is promised of the playground in a real browser: quiet, whole, and the answers are the server's own."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.config import AdapterConfig, HeadConfig
from registry.model.backbone import Backbone
from registry.schema import SetInfo
from registry.serving.predictor import Prediction, Predictor, Request
from registry.store.registry import Registry
from registry.web.page import PARTS, SCRIPTS
from tests.support.browser import CHROMIUM, Browser, running
from tests.support.playground import NO_BROWSER, answer_file, ask, open_playground, text_of, texts_of
from tests.support.served_sets import save_kind, save_kinds
from tests.support.server import HERE, Served, serving
from tests.support.tiny_backbone import WORDS
from tests.support.toy_task import randomise

LABELS = tuple(f"label {number}" for number in range(12))
HOSTILE = 'it\'s "quoted" \\ <img src=x onerror=alert(1)> $HOME `id`\nnext line, ünïcode 🎬'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real Chromium with an empty profile."""
    if CHROMIUM is None:
        pytest.skip(NO_BROWSER)
    with running(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Backbone) -> Registry:
    """A set of every kind, two versions of the first, and one of twelve labels."""
    registry = save_kinds(tmp_path_factory.mktemp("stores") / "store", tiny_backbone)
    save_kind(registry, "task0", 0, 9)
    registry.alias("task0", "best", 1)
    many = tiny_backbone.new_adapter_set(AdapterConfig(reduction_factor=4), HeadConfig(label_names=LABELS))
    registry.save("many", randomise(many, seed=5), SetInfo(pair=False, max_length=8))
    return registry


@pytest.fixture(scope="module")
def site(store: Registry) -> Iterator[Served]:
    """A server on that store."""
    with serving(store) as served:
        yield served


def shown(browser: Browser, name: str) -> dict[str, Any]:
    """Return what a card shows."""
    lines = (
        "[...root.querySelectorAll('.bars li')].map("
        "(each) => [...each.querySelectorAll('span')].map((one) => one.textContent))"
    )
    script = (
        f"(() => {{ const root = document.getElementById('card-{name}').closest('article'); return {{"
        "reference: root.querySelector('h3').textContent, label: root.querySelector('.label').textContent,"
        f"lines: {lines}, cut: !root.querySelector('.mark').hidden, error: root.querySelector('.error').textContent,"
        "top: root.getBoundingClientRect().top, left: root.getBoundingClientRect().left}; })()"
    )
    return dict(browser.evaluate(script))


def percents(prediction: Prediction) -> dict[str, str]:
    def told(share: float) -> str:
        return "<0.1" if share < 0.0005 else ">99.9" if share >= 0.9995 else f"{100 * share:.1f}"

    return {name: f"{told(share)}\u202f%" for name, share in prediction.probabilities.items()}


def test_the_palette_is_that_of_reports() -> None:
    """The page and the report's page have the same colours, and every part of the page is on it."""
    colours = (HERE / "registry/reports/templates/colours.css").read_text(encoding="utf-8")
    assert (PARTS / "page.css").read_text(encoding="utf-8").startswith(colours)
    assert {"page.html", "page.css", *SCRIPTS} == {path.name for path in PARTS.iterdir()}


def test_the_page_and_its_policy_belong_together(site: Served) -> None:
    """The header allows the page's one style and one script by what they hold, and requests to its own server alone."""
    answer = site.http.get("/")
    policy = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
    for name, start, end in (
        ("style-src", "<style>", "</style>"),
        ("script-src", '<script type="module">', "</script>"),
    ):
        held = answer.text.split(start)[1].split(end)[0]
        assert f"'sha256-{base64.b64encode(hashlib.sha256(held.encode()).digest()).decode()}'" == policy[name]
    assert ("'none'", "'self'") == (policy["default-src"], policy["connect-src"])
    assert "http" not in answer.text.split("<body>")[0]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (360, False), (360, True)])
def test_page_is_quiet_and_fits(browser: Browser, site: Served, tmp_path: Path, width: int, dark: bool) -> None:
    """With every set, texts and a file: no complaint, no foreign request, no sideways scrolling, no motion unasked."""
    (tmp_path / "films.txt").write_text("good film\n" + "averyveryverylongwordwithoutanend" * 9 + "\n")
    open_playground(browser, site.url, "many", "task0", "task1", "task2", "task3", width=width, dark=dark)
    ask(browser, "good film " + "x" * 300, "bad film")
    answer_file(browser, tmp_path / "films.txt")
    browser.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert [] == browser.complaints()
    assert {site.url} == {"/".join(address.split("/")[:3]) for address in browser.requests()}
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    light = browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(252, 252, 250)"
    assert light != dark
    browser.click("#theme")
    assert light != (browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(252, 252, 250)")
    browser.media("", dark=dark, calm=True)
    assert "none" == browser.evaluate(
        "getComputedStyle(document.querySelector('.bars i'), '::after').transitionProperty"
    )


def test_nothing_else_may_run_or_be_asked(browser: Browser, site: Served) -> None:
    """The policy in the header stops foreign requests, and scripts and styles that are not the page's own."""
    open_playground(browser, site.url, "task0")
    foreign = site.url.replace("127.0.0.1", "localhost")
    assert browser.evaluate(f"fetch('{foreign}/health/live').then(() => false, () => true)")
    assert browser.evaluate(
        "(() => { const node = document.createElement('script'); node.textContent = 'window.foreign = 1';"
        "document.body.append(node); return window.foreign === undefined; })()"
    )


def test_the_documentation_comes_from_the_server_alone(browser: Browser, site: Served) -> None:
    """The page of the routes shows them without a request to anybody else, so that a closed network has it."""
    browser.open(f"{site.url}/docs")
    browser.wait_until("document.body.innerText.includes('/v1/adapters/{reference}/predict')")
    assert [] == browser.complaints()
    asked = [address for address in browser.requests() if not address.startswith("data:")]
    assert {site.url} == {"/".join(address.split("/")[:3]) for address in asked}


def test_sets_answer_side_by_side(browser: Browser, site: Served, store: Registry) -> None:
    """One call for all chosen sets, a card each, beside each other, with the predictor's labels and probabilities."""
    open_playground(browser, site.url, "many", "task0")
    ask(browser, "a good film")
    many, task0 = Predictor(store.backbone, store).mixed(
        [Request("many", "a good film"), Request("task0", "a good film")]
    )
    first, second = shown(browser, "many"), shown(browser, "task0")
    assert (first["top"], True) == (second["top"], first["left"] < second["left"])
    assert ("task0:2", task0.label, percents(task0)) == (second["reference"], second["label"], dict(second["lines"]))
    assert ("many:1", many.label, percents(many)) == (first["reference"], first["label"], dict(first["lines"]))
    assert many.label == first["lines"][0][0]  # of more than eight labels the likeliest come first
    assert 8 == browser.evaluate("document.querySelector('.card .bars').children.length")
    assert ["4 more labels"] == texts_of(browser, ".card details:not([hidden]) summary")
    assert text_of(browser, "told").startswith("2 rows in one call, there and back in ")
    assert text_of(browser, "spoken").startswith(f"many:1: {many.label}, ")
    calls = [address for address in browser.requests() if address.endswith("/v1/predict")]
    assert 1 == len(calls)


def test_every_kind_of_answer_is_shown(browser: Browser, site: Served, store: Registry) -> None:
    """Several labels, numbers, rows that were cut; a set on pairs waits for the second text, a single one has none."""
    open_playground(browser, site.url, "task2")
    assert browser.evaluate("document.getElementById('second').hidden")
    open_playground(browser, site.url, "task1", "task2", "task3")
    assert not browser.evaluate("document.getElementById('second').hidden")
    text = "the cat was not very big and she left the city " * 3
    ask(browser, text)
    assert "Waits for the second text" == shown(browser, "task1")["label"]
    ask(browser, text, "he left")
    rows = [Request("task1", text, "he left"), Request("task2", text), Request("task3", text, "he left")]
    pair, several, number = Predictor(store.backbone, store).mixed(rows)
    assert (pair.label, True) == (shown(browser, "task1")["label"], shown(browser, "task1")["cut"])
    assert isinstance(several.label, tuple)
    assert (", ".join(several.label) or "none of its labels") == shown(browser, "task2")["label"]
    assert (f"{number.label:.3f}stars", []) == (shown(browser, "task3")["label"], shown(browser, "task3")["lines"])


def test_versions_and_aliases_can_be_chosen(browser: Browser, site: Served) -> None:
    """A set of several versions answers with the one that is chosen, and the search finds names and labels."""
    open_playground(browser, site.url, "task0")
    ask(browser, "good")
    before = shown(browser, "task0")
    browser.evaluate(
        "(() => { const each = document.querySelector('#sets select'); each.value = 'task0@best';"
        "each.dispatchEvent(new Event('change')); })()"
    )
    browser.wait_until("document.getElementById('card-task0').textContent === 'task0:1'")
    assert before["lines"] != shown(browser, "task0")["lines"]
    assert '"adapter":"task0@best"' in text_of(browser, "curl")
    browser.type("#search", "BLUE")
    assert ["task2"] == texts_of(browser, "#sets b")
    assert "1 of 5 sets, 1 chosen" == text_of(browser, "count")


def test_long_lists_come_page_by_page(browser: Browser, site: Served) -> None:
    """All names are listed, however few of them the server tells at a time."""
    browser.call("Fetch.enable", patterns=[{"urlPattern": "*/v1/adapters\\?*"}])
    try:
        browser.open(f"{site.url}/")
        asked = []
        while len(texts_of(browser, "#sets b")) < 5:
            paused = [each for each in browser.events if each.get("method") == "Fetch.requestPaused"]
            for each in paused[len(asked) :]:
                asked.append(each["params"]["request"]["url"])
                fewer = asked[-1].replace("limit=500", "limit=2")
                browser.call("Fetch.continueRequest", requestId=each["params"]["requestId"], url=fewer)
    finally:
        browser.call("Fetch.disable")
    assert ["", "task0", "task2"] == [each.split("after=")[1].split("&")[0] for each in asked]
    assert ["many", "task0", "task1", "task2", "task3"] == texts_of(browser, "#sets b")


def test_the_last_text_wins(browser: Browser, site: Served, store: Registry) -> None:
    """A call whose text was changed meanwhile is given up, and only the last one is shown."""
    held, go_on = threading.Event(), threading.Event()

    def hold(report: object) -> None:
        held.set()
        go_on.wait(60)

    open_playground(browser, site.url, "task0")
    ask(browser, "good")
    site.engine.observe = hold
    try:
        site.engine.submit([Request("task0", "good")], lambda job: None)
        held.wait(60)
        for number, text in enumerate(("one two", "bad film"), start=2):
            browser.type("#text", text)
            while number > len([address for address in browser.requests() if address.endswith("/v1/predict")]):
                browser.evaluate("1")
    finally:
        site.engine.observe = lambda report: None
        go_on.set()
    expected = Predictor(store.backbone, store)("task0", ["bad film"])[0]
    line = json.dumps(next(iter(percents(expected).values())))
    browser.wait_until(f"document.querySelector('.card .bars span + span').textContent === {line}")
    browser.wait_until("document.getElementById('answers').ariaBusy === 'false'")
    assert percents(expected) == dict(shown(browser, "task0")["lines"])
    failed = [each["params"] for each in browser.events if each.get("method") == "Network.loadingFailed"]
    assert [True] == [each["canceled"] for each in failed]
    assert [] == browser.complaints()


def test_the_calls_run_as_they_stand(browser: Browser, site: Served, store: Registry, tmp_path: Path) -> None:
    """The line of curl in a shell and the lines of Python give the answers of the page, whatever is in the text."""
    open_playground(browser, site.url, "task0", "task1")
    ask(browser, HOSTILE, "he's left")
    expected = Predictor(store.backbone, store).mixed(
        [Request("task0", HOSTILE), Request("task1", HOSTILE, "he's left")]
    )
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    told = subprocess.run(["bash", "-c", text_of(browser, "curl")], capture_output=True, check=True, timeout=60)
    answers = json.loads(told.stdout)["answers"]
    assert [(one.reference, one.label) for one in expected] == [(each["reference"], each["label"]) for each in answers]
    for one, each in zip(expected, answers, strict=True):
        assert one.probabilities == pytest.approx(each["probabilities"], abs=1e-5)
    environment = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONIOENCODING": "utf-8"}
    script = [sys.executable, "-c", text_of(browser, "python")]
    printed = subprocess.run(script, capture_output=True, check=True, text=True, env=environment, timeout=120)
    starts = [f"{one.reference} {one.label} " for one in expected]
    assert all(line.startswith(start) for start, line in zip(starts, printed.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("name", ["curl", "python"])
@pytest.mark.parametrize("has_clipboard", [True, False])
def test_calls_are_copied(browser: Browser, site: Served, name: str, has_clipboard: bool) -> None:
    """What is copied is what is shown, also where a page may not use the clipboard itself."""
    open_playground(browser, site.url, "task0")
    ask(browser, "good\nfilm")
    if not has_clipboard:
        browser.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    shown_call = text_of(browser, name)
    browser.click(f"[data-copies={name}]")
    browser.wait_until("document.getElementById('copied').textContent.endsWith('is copied.')")
    browser.evaluate("document.getElementById('text').select()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="v", commands=["paste"])
    browser.wait_until(f"document.getElementById('text').value === {json.dumps(shown_call)}")


def test_a_dropped_file_is_answered_whole_and_in_order(
    browser: Browser, site: Served, store: Registry, tmp_path: Path
) -> None:
    """Every row of a csv, by two sets and in several calls, in the table and in what is saved; no text is markup."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=6)) for _ in range(299)] + [HOSTILE]
    with (tmp_path / "films.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=";").writerows([("number", "text"), *enumerate(texts)])
    open_playground(browser, site.url, "task0", "task2")
    answer_file(browser, tmp_path / "films.csv")
    assert "films.csv: 300 rows" == text_of(browser, "file-told")
    assert text_of(browser, "run-told").startswith("600 of 600 answers, in ")
    expected = Predictor(store.backbone, store).mixed(
        [Request(name, text) for text in texts for name in ("task0", "task2")]
    )
    assert texts == texts_of(browser, "#results .text")
    assert [str(one.label) for one in expected[::2]] == texts_of(browser, "#results td:nth-child(3) b")
    assert 0 == browser.evaluate("document.querySelectorAll('#results img').length")
    assert 3 == len([address for address in browser.requests() if address.endswith("/v1/predict")])
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.click("#save")
    saved = tmp_path / "films-answers.csv"
    until = time.monotonic() + 60
    while not saved.exists() and time.monotonic() < until:
        browser.evaluate("1")
        time.sleep(0.05)
    with saved.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert texts == [row["text"] for row in rows]
    for one, row in zip(expected[::2], rows, strict=True):
        assert (one.reference, one.label, "") == (row["task0 reference"], row["task0 label"], row["task0 error"])
        assert one.probabilities[str(one.label)] == pytest.approx(float(row["task0 probability"]), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "told", "columns"),
    [
        ("a.txt", "one\r\n\r\ntwo\nthree", "a.txt: 3 rows", ["line"]),
        ("a.tsv", 'id\tsentence\n1\t"a ""b""\nc"\n2\td\n', "a.tsv: 2 rows", ["id", "sentence"]),
        ("a.jsonl", '{"id": 1, "text": "a"}\n{"text": "b", "more": [1]}\n', "a.jsonl: 2 rows", ["id", "text", "more"]),
        ("a.csv", "text\n" + "good\n" * 2_100, "a.csv: 2,100 rows; the first 2,000 are taken", ["text"]),
        ("a.csv", "text\n", "Cannot read a.csv: expected rows, found none.", None),
        ("a.csv", 'text\n"open', "Cannot read a.csv: a quotation mark is not closed.", None),
        ("a.jsonl", '{"a": 1}\n3', "Cannot read a.jsonl: line 2: expected a JSON object, found something else.", None),
        ("a.pdf", "x", "Cannot read a.pdf: expected .txt, .csv, .tsv or .jsonl, found another ending.", None),
    ],
)
def test_files_are_read_or_refused(
    browser: Browser, site: Served, tmp_path: Path, name: str, content: str, told: str, columns: list[str] | None
) -> None:
    """A file of each kind has its rows and columns, the text's column is found, and what cannot be read is told."""
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    open_playground(browser, site.url, "task0")
    browser.drop(tmp_path / name)
    browser.wait_until("document.getElementById('file-told').textContent !== ''")
    assert told == text_of(browser, "file-told")
    assert (columns is None) == browser.evaluate("document.getElementById('work').hidden")
    if columns is not None:
        assert columns == texts_of(browser, "#column option")
        chosen = browser.evaluate("document.getElementById('column').selectedOptions[0].textContent")
        assert chosen in ("line", "sentence", "text")
