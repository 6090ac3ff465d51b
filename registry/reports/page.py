"""The report's page: one html file that needs no other file and asks the network for nothing.

Tables, sentences and pictures stand in the html itself, so they can be read without scripts; page.js adds sorting, the
choice of light and dark, and the list of rows answered wrong, whose data goes in as JSON. Every text is escaped by the
template or set as text by the script. Equal records give equal bytes: nothing of the moment or the machine is in it.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import msgspec
import pandas as pd
from markupsafe import Markup

from registry.bench.records import RunRecord
from registry.bench.results import FULL
from registry.reports.content import (
    ReportContent,
    SizeCurve,
    TaskRows,
    amount_curves,
    bottleneck_curves,
    commands_of,
    provenance_of,
    task_rows,
)
from registry.reports.figures import curve_panels, curve_points, forest_chart, scatter_chart, size_chart
from registry.reports.frames import main_score
from registry.reports.mistakes import (
    MOST_ROWS,
    RowTexts,
    confusions_of,
    label_names,
    reliabilities,
    reliability_panels,
    wrong_rows,
)
from registry.reports.numbers import (
    DASH,
    TITLE,
    number,
    p_value,
)
from registry.reports.page_tables import (
    PageCell,
    PageTable,
    count_cell,
    points_cell,
    scores_table,
    totals_table,
    verdict_cell,
)
from registry.reports.sentences import READING, missing_and_failed, notes, notice, power_sentence, sentences, unbroken
from registry.reports.svg import read_template
from registry.tasks.spec import LOWER_IS_BETTER


def render_report_page(evidence: ReportContent, texts: Mapping[str, RowTexts] | None = None) -> str:
    """Return the page of a report as html text; write it as UTF-8.

    Args:
        evidence: what the report is made of.
        texts: for each task the texts of its reported rows, by ``read_texts``, for a page that stays with its reader.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["sort_value"] = _sort_value
    style = "".join(map(read_template, ("colours.css", "page.css", "drawings.css")))
    script, told = read_template("page.js"), page_content(evidence, texts)
    own = {
        "style": Markup(style),
        "script": Markup(script),
        "digests": {"style": _digest(style), "script": _digest(script)},
    }
    return environment.from_string(read_template("page.html")).render(told, told=told, title=TITLE, **own)


def page_content(evidence: ReportContent, texts: Mapping[str, RowTexts] | None = None) -> dict[str, Any]:
    """Return everything that the template of the page asks for, by name; see ``render_report_page``."""
    records, summary, measured = evidence.records, evidence.summary, evidence.measured
    tasks, drawn, caveats = task_rows(summary), task_rows(summary, beside=True), missing_and_failed(records)
    bottlenecks, amounts = bottleneck_curves(records, measured), amount_curves(records, measured)
    swept_methods = dict.fromkeys(method for curve in (*bottlenecks, *amounts) for method, _ in curve.lines)
    styles = {method: index for index, method in enumerate(swept_methods)}
    return {
        "notice": notice(records),
        "summary": [unbroken(sentence) for sentence in sentences(summary, evidence.totals)],
        "scores": scores_table(summary),
        "reading": READING if measured.intervals else "",
        "caveats": caveats,
        "totals": totals_table(evidence.totals, summary["task"].nunique()),
        "parameters": [_scatter(task, f"scatter-{index}") for index, task in enumerate(drawn) if task.scored],
        "bottlenecks": [_sizes(curve, f"bottleneck-{index}", styles) for index, curve in enumerate(bottlenecks)],
        "amounts": [_sizes(curve, f"amount-{index}", styles) for index, curve in enumerate(amounts)],
        "differences": list(filter(None, (_forest(task, evidence, f"forest-{i}") for i, task in enumerate(tasks)))),
        "reliability": list(
            filter(None, (_reliability(task, evidence, f"reliable-{i}") for i, task in enumerate(tasks)))
        ),
        "curves": list(filter(None, (_curves(task, records, f"curve-{i}") for i, task in enumerate(tasks)))),
        **_row_sections(tasks, evidence, texts or {}),
        "provenance": provenance_of(records),
        "commands": commands_of(records),
        "notes": [note for note in notes(records, measured) if note not in caveats],
    }


def _scatter(task: TaskRows, name: str) -> dict[str, Any]:
    rows = [
        [PageCell(row["method"], row["method"]), count_cell(row["trainable"]), *main_score(row)] for row in task.scored
    ]
    return _with_numbers(task.title, task.metric, "parameters", scatter_chart(task, name), rows)


def _sizes(curve: SizeCurve, name: str, styles: Mapping[str, int]) -> dict[str, Any]:
    cells = [(method, size, one) for method, line in curve.lines for size, one in line.items()]
    rows = [[PageCell(method, method), count_cell(size), one.mean, one.low, one.high] for method, size, one in cells]
    return _with_numbers(curve.title, curve.metric, curve.axis, size_chart(curve, name, styles), rows)


def _with_numbers(task: str, metric: str, axis: str, drawing: Markup, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return a drawing of scores with the table of its numbers; each row ends in a mean and its interval."""
    cells = [
        [
            *first,
            PageCell(f"{mean:.3f}", mean),
            PageCell(DASH if math.isnan(low + high) else f"{low:.3f} to {high:.3f}"),
        ]
        for *first, mean, low, high in rows
    ]
    table = PageTable(("method", axis, metric, "interval"), [("", cells)])
    return {"task": task, "metric": metric, "axis": axis, "drawing": drawing, "table": table}


def _forest(task: TaskRows, evidence: ReportContent, name: str) -> dict[str, Any] | None:
    """Return the differences of a task's methods to full fine-tuning; None where there are none in points."""
    cells = {row["method"]: evidence.measured.comparisons.get((task.task, row["method"])) for row in task.rows}
    found = {method: one for method, one in cells.items() if one is not None}
    if not found or task.metric in LOWER_IS_BETTER:
        return None
    rows = []
    for method, one in found.items():
        tests = ", ".join(f"{seed}: {p_value(p)}" for seed, p in sorted(one.seed_tests.items()))
        ends = (100 * end for end in (one.difference.mean, one.difference.low, one.difference.high))
        p = PageCell(p_value(one.adjusted_p), one.adjusted_p)
        rows.append(
            [PageCell(method, method), verdict_cell(one.verdict), points_cell(*ends), p, PageCell(tests or DASH)]
        )
    least = evidence.measured.detectable.get(task.task)
    shown = least is not None and task.metric == "accuracy" and math.isfinite(least.difference)
    return {
        "task": task.title,
        "reference": FULL,
        "drawing": forest_chart(task, found, 100 * least.difference if least is not None and shown else None, name),
        "table": PageTable(("method", "verdict", "points", "adjusted p", "McNemar p by seed"), [("", rows)]),
        "power": "" if least is None else power_sentence(least, shown),
    }


def _curves(task: TaskRows, records: Sequence[RunRecord], name: str) -> dict[str, Any] | None:
    """Return losses and held-out scores of every run that has them, those that diverged too; None without any."""
    of_task = [record for record in records if record.task == task.task and record.curve is not None]
    runs = {row["method"]: [run for run in of_task if run.method == row["method"]] for row in task.rows}
    runs = {method: of_method for method, of_method in runs.items() if of_method}
    if not runs:
        return None
    scores = curve_panels(task, runs, f"{name}-scores", scores=True)
    panels = [("Training loss", curve_panels(task, runs, name)), (f"{task.metric} on held-out rows", scores)]
    rows = []
    for run in (run for of_method in runs.values() for run in of_method):
        losses, held_out = curve_points(run, False), curve_points(run, True)
        ends = (
            [(losses[-1][0], ",.0f"), (losses[0][1], ".3f"), (losses[-1][1], ".3f")] if losses else [(math.nan, "")] * 3
        )
        cells = [
            PageCell(number(value, form), value)
            for value, form in (*ends, (held_out[-1][1] if held_out else math.nan, ".3f"))
        ]
        rows.append([PageCell(f"{run.method}, seed {run.seed}", run.method), *cells[: 4 if scores else 3]])
    titles = ("method and seed", "steps", "first loss", "last loss", "last held-out score")
    table = PageTable(titles if scores else titles[:-1], [("", rows)], titles[:1])
    return {"task": task.title, "panels": [each for each in panels if each[1]], "table": table}


def _reliability(task: TaskRows, evidence: ReportContent, name: str) -> dict[str, Any] | None:
    """Return how often answers of each probability are right; None where no method gives probabilities."""
    found = reliabilities(task, evidence)
    if not found:
        return None
    rows = [
        [PageCell(method, method), *(PageCell(f"{x:.3f}", x) for x in (one.mean_confidence, one.mean_right, one.error))]
        for method, one in found.items()
    ]
    table = PageTable(("method", "mean probability", "share right", "calibration error"), [("", rows)])
    return {"task": task.title, "panels": reliability_panels(task, found, name), "table": table}


def _row_sections(tasks: Iterable[TaskRows], evidence: ReportContent, texts: Mapping[str, RowTexts]) -> dict[str, Any]:
    """Return confusions and wrong rows of each task, of methods without swept settings where there are others."""
    confusions, errors, told, data = [], [], [], []
    titles = ("method", "true label", "answered", "times")
    for task in tasks:
        cells = {row["method"]: evidence.answers.get((task.task, row["method"])) for row in task.rows}
        methods = {method: one for method, one in cells.items() if one is not None}
        if not methods:
            continue
        names = label_names(evidence.records, task.task, next(iter(methods.values())))
        if {one.problem_type for one in methods.values()} == {"classification"}:
            found = confusions_of(names, methods)
            rows = [
                [*(PageCell(word, word) for word in words), count_cell(count)] for *words, count in found["frequent"]
            ]
            table = PageTable(titles, [("", rows)], titles[:3]) if rows else None
            confusions.append({"task": task.title, "label_names": names, "table": table, **found})
        wrong = wrong_rows(names, methods, texts.get(task.task))
        if wrong is not None and wrong.total:
            errors.append(task.title)
            data.append(wrong.columns)
            cut = f"the {MOST_ROWS:,} most confident mistakes of {wrong.total:,} rows that a method got wrong."
            told += [f"{task.title}: {note}" for note in (wrong.how, cut if wrong.total > MOST_ROWS else "") if note]
    holds_texts = any("x" in columns for columns in data)
    wrong_ones = {"errors": errors, "error_notes": told, "error_data": _json(data), "holds_texts": holds_texts}
    return {"confusions": confusions, **wrong_ones}


def _json(plain: Any) -> Markup:
    """Return JSON that may stand in a script element: no character in it can end the element or open a comment."""
    text = msgspec.json.encode(plain).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _sort_value(cell: PageCell) -> Markup:
    if isinstance(cell.value, str):
        return Markup(' data-text="{}"').format(cell.value)
    if cell.value is None or pd.isna(cell.value):
        return Markup("")
    return Markup(' data-number="{}"').format(repr(float(cell.value)).replace("inf", "Infinity"))


def _digest(text: str) -> str:
    """Return what the page's own policy allows: the SHA-256 of the one style and the one script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
