"""What is promised of the report's page in a real browser: quiet, sortable, filterable, readable everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.reports.content import ReportContent, read_evidence
from registry.reports.mistakes import wrong_rows
from registry.reports.page import render_report_page
from tests.support.benchmark_records import SKILLS, SWEEPS, write_run
from tests.support.browser import CHROMIUM, Browser, running
from tests.support.page_contents import HOSTILE, PageReader, make_hostile

pytestmark = pytest.mark.xdist_group("page")

NO_BROWSER = "no chromium here (Debian's package chromium, or google-chrome)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real Chromium with an empty profile."""
    if CHROMIUM is None:
        pytest.skip(NO_BROWSER)
    with running(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def report(evidence: ReportContent, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the page of the benchmark lies."""
    return save(tmp_path_factory.mktemp("page") / "report.html", render_report_page(evidence))


def save(target: Path, page: str) -> str:
    target.write_text(page, encoding="utf-8")
    return target.as_uri()


def texts_of(browser: Browser, selector: str) -> list[str]:
    return list(
        browser.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.textContent)")
    )


def choose(browser: Browser, name: str, value: str) -> None:
    """Choose an option as a reader would, by its value."""
    browser.evaluate(
        f"(() => {{ const each = document.getElementById('{name}'); each.value = '{value}';"
        "each.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_page_from_records_is_quiet_and_whole(browser: Browser, report: str, width: int, dark: bool) -> None:
    """A page of real records has every section, complains of nothing and is never wider than its window."""
    browser.open(report, width=width, dark=dark)
    sections = browser.evaluate("[...document.querySelectorAll('section')].map((each) => each.id)")
    expected = "scores totals parameters bottlenecks amounts differences reliability curves confusions errors"
    assert [*expected.split(), "provenance", "notes"] == sections
    browser.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert [report] == browser.requests()
    assert [] == browser.complaints()
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert 4 == browser.evaluate("document.querySelectorAll('#bottlenecks svg, #amounts svg').length")
    inside = (
        "[...document.querySelectorAll('.chart svg text')].every((each) => {"
        "const [box, whole] = [each, each.closest('figure')].map((one) => one.getBoundingClientRect());"
        "return box.left >= whole.left - 4 && box.right <= whole.right + 4; })"
    )
    assert browser.evaluate(inside), "a name of a drawing is cut"


def test_page_from_records_sorts_and_filters(browser: Browser, report: str) -> None:
    """Methods sort by score within their group, swept ones below the others; errors filter by task and method."""
    browser.open(report)
    browser.click("#scores thead th:nth-child(4) button")
    groups = browser.evaluate(
        "[...document.querySelectorAll('#scores tbody')].map((body) =>"
        "[...body.querySelectorAll('.row td:nth-child(4)')].map((cell) => Number(cell.dataset.number)))"
    )
    assert [len(SKILLS), len(SWEEPS)] * 2 == [len(group) for group in groups]
    assert groups == [sorted(group, reverse=True) for group in groups]
    count = "Number(document.getElementById('error-status').textContent.match(/of ([0-9,]+)/)[1])"
    every = browser.evaluate(count)
    choose(browser, "error-method", "0")
    assert 0 < browser.evaluate(count) < every
    choose(browser, "error-task", "1")
    assert ["row", "true label", "head_only", "after_layer", "pfeiffer", "full_fine_tuning"] == texts_of(
        browser, "#error-table thead th"
    )
    assert {"negative", "positive"} == set(texts_of(browser, "#error-table tbody td:nth-child(2)"))


def test_clicks_sort_by_values_within_each_task(browser: Browser, report: str) -> None:
    """A head sorts each task's rows by value, not by text; missing values stay last; a third click undoes it."""
    browser.open(report)
    column = 1 + texts_of(browser, "#scores thead th").index("vs full")
    head = f"#scores thead th:nth-child({column})"
    state = f"document.querySelector('{head}').getAttribute('aria-sort')"
    rows = "[...document.querySelector('#scores tbody').querySelectorAll('.row"
    names = f"{rows} th')].map((each) => each.firstChild.data)"
    value = "each.dataset.number === undefined ? null : Number(each.dataset.number)"
    values = f"{rows} td:nth-child({column})')].map((each) => {value})"
    assert list(SKILLS) == browser.evaluate(names)
    for order, sign in (("descending", -1), ("ascending", 1)):
        browser.click(f"{head} button")
        assert order == browser.evaluate(state)
        *found, last = browser.evaluate(values)
        assert last is None  # full fine-tuning, the reference
        assert sorted(found, key=lambda value, sign=sign: sign * value) == found
    browser.click(f"{head} button")
    assert ("none", list(SKILLS)) == (browser.evaluate(state), browser.evaluate(names))


def test_keyboard_sorts_too(browser: Browser, report: str) -> None:
    """Enter on a head sorts by it, the focus can be seen, and only one column is the sorted one."""
    browser.open(report)
    browser.click("#scores thead th:nth-child(3) button")
    browser.evaluate("document.querySelector('#scores thead button').focus()")
    browser.press("Tab")
    browser.press("Enter")
    assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    states = "[...document.querySelectorAll('#scores thead th')].map((each) => each.getAttribute('aria-sort'))"
    assert ["none", "descending", "none"] == browser.evaluate(states)[:3]
    assert {"none"} == set(browser.evaluate(states)[3:])


def test_rows_answered_wrong_can_be_filtered(browser: Browser, report: str, evidence: ReportContent) -> None:
    """Task, method, every seed and order choose the rows; the most confident mistake is first, fifty to a page."""
    browser.open(report)
    methods = {method: evidence.answers["mrpc", method] for method in SKILLS}
    found = wrong_rows(("not_equivalent", "equivalent"), methods)
    assert found is not None
    rows, count = found.columns["n"], len(found.columns["methods"])
    wrong = [found.columns["w"][start : start + count] for start in range(0, len(rows) * count, count)]
    shown = "#error-table tbody th"

    def numbers() -> list[int]:
        return [int(text) for text in texts_of(browser, shown)]

    assert len(rows) > 50
    assert [f"Rows 1 to 50 of {len(rows)}."] == texts_of(browser, "#error-status")
    assert rows[:50] == numbers()
    browser.click("#error-next")
    assert [f"Rows 51 to {len(rows)} of {len(rows)}."] == texts_of(browser, "#error-status")
    assert rows[50:] == numbers()
    browser.click("#error-every")
    sure = [row for row, seeds in zip(rows, wrong, strict=True) if 3 in seeds]
    choose(browser, "error-order", "row")
    assert sorted(sure)[:50] == numbers()
    choose(browser, "error-method", "0")
    assert sorted(row for row, seeds in zip(rows, wrong, strict=True) if seeds[0] == 3)[:50] == numbers()
    browser.click("#error-every")
    assert sorted(row for row, seeds in zip(rows, wrong, strict=True) if seeds[0])[:50] == numbers()
    choose(browser, "error-method", "every")
    assert sorted(row for row, seeds in zip(rows, wrong, strict=True) if all(seeds)) == numbers()
    assert texts_of(browser, "#error-table tbody tr:first-child td")[1].endswith(" seeds")


def test_a_filter_that_leaves_nothing_says_so(browser: Browser, tmp_path: Path) -> None:
    """Where no row is wrong in the way that was asked for, the page says so instead of showing an empty list."""
    for seed in (0, 1):
        for method in ("pfeiffer", "full_fine_tuning"):
            write_run(tmp_path, "mrpc", method, seed, rows=20)
    evidence = read_evidence(tmp_path)
    answers = evidence.answers["mrpc", "pfeiffer"]
    answers.probabilities[:] = 0.01
    answers.probabilities[:, range(20), answers.labels] = 0.99  # pfeiffer has every row right
    browser.open(save(tmp_path / "report.html", render_report_page(evidence)))
    choose(browser, "error-method", "0")
    assert ["No row is like that."] == texts_of(browser, "#error-status")


def test_theme_follows_the_system_until_the_reader_chooses(browser: Browser, report: str) -> None:
    """The page is as dark as the system, and the button turns it round and says so."""
    background = "getComputedStyle(document.body).backgroundColor"
    pressed = "document.getElementById('theme').getAttribute('aria-pressed')"
    browser.open(report, dark=True)
    dark = browser.evaluate(background)
    assert "true" == browser.evaluate(pressed)
    browser.open(report)
    light = browser.evaluate(background)
    assert light != dark
    browser.click("#theme")
    assert (dark, "true") == (browser.evaluate(background), browser.evaluate(pressed))
    browser.click("#theme")
    assert (light, "false") == (browser.evaluate(background), browser.evaluate(pressed))


def test_hostile_texts_stay_texts_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    """Names and texts made to break out run nothing and are shown letter by letter."""
    page = render_report_page(*make_hostile())
    browser.open(save(tmp_path / "hostile.html", page))
    assert [] == browser.complaints()
    assert 1 == len(browser.requests())
    assert 0 == browser.evaluate("document.querySelectorAll('img, [onerror], [onload]').length")
    assert list(HOSTILE) == texts_of(browser, "#error-table tr:first-child td.text p")
    assert HOSTILE[0] in texts_of(browser, "#error-task option")[0]
    browser.open(save(tmp_path / "hostile.html", page), width=380)
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_paper_shows_everything_but_the_controls(browser: Browser, report: str) -> None:
    """In print every section is there, the folded numbers too, on white; buttons and lists of choices are not."""
    browser.open(report, width=380, dark=True)
    browser.media("print", dark=True)
    seen = "[...document.querySelectorAll('{}')].map((each) => each.checkVisibility({{contentVisibilityAuto: true}}))"
    for selector in ("section", "section table", "details .data td", "svg"):
        assert {True} == set(browser.evaluate(seen.format(selector))), selector
    for selector in ("nav", ".controls", ".control", "summary"):
        assert {False} == set(browser.evaluate(seen.format(selector))), selector
    assert "rgb(255, 255, 255)" == browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert {"visible"} == set(
        browser.evaluate("[...document.querySelectorAll('.scroll')].map((each) => getComputedStyle(each).overflowX)")
    )
    browser.media("")
    assert browser.pdf().startswith(b"%PDF")
    assert 0 == browser.evaluate("document.querySelectorAll('details[open]').length")


def test_page_can_be_read_without_scripts(browser: Browser, report: str) -> None:
    """Summary, tables and drawings are there without scripts, and no dead button is."""
    try:
        browser.open(report, scripts=False)
        document = browser.call("DOM.getDocument", depth=0)["root"]["nodeId"]
        html = browser.call("DOM.getOuterHTML", nodeId=document)["outerHTML"]
        assert "has the best mean f1_binary" in html
        assert "113,810" in html
        assert "This list needs scripts" in html
        buttons = [
            each for each in PageReader(html).all("button") if each.get("id") not in ("error-back", "error-next")
        ]
        assert ["hidden" in each for each in buttons] == [True]
        assert "hidden" in next(each for each in PageReader(html).all("div") if each.get("id") == "explorer")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_head_and_first_column_stay_in_sight(browser: Browser, report: str) -> None:
    """Scrolled down the head stays on top of the window; scrolled aside the first column stays at the left."""
    browser.open(report, height=400)
    browser.evaluate(
        "(() => { const last = document.querySelector('#scores tbody:last-child .row');"
        "last.scrollIntoView({block: 'center', behavior: 'instant'}); })()"
    )
    assert 0 == round(browser.evaluate("document.querySelector('#scores thead th').getBoundingClientRect().top"))
    browser.open(report, width=380)
    box = "document.querySelector('#error-table').parentElement"
    left = "document.querySelector('#error-table tbody th').getBoundingClientRect().left"
    before = browser.evaluate(left)
    browser.evaluate(f"{box}.scrollLeft = 100")
    assert 100 == browser.evaluate(f"{box}.scrollLeft")
    assert before == browser.evaluate(left)


def test_readers_who_want_no_motion_get_none(browser: Browser, report: str) -> None:
    """Leading to a section is smooth, but at once for those who asked for that."""
    browser.open(report)
    how = "getComputedStyle(document.documentElement).scrollBehavior"
    assert "smooth" == browser.evaluate(how)
    browser.media("", calm=True)
    assert "auto" == browser.evaluate(how)
