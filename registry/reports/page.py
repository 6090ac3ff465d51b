"""The report's page: one html file that needs no other file and asks the network for nothing.

Tables, sentences and pictures stand in the html itself, so they can be read without scripts; page.js adds sorting, the
choice of light and dark, and the list of rows answered wrong, whose data goes in as JSON. Every text is escaped here or
set as text there. Equal content gives equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jinja2
import msgspec
from markupsafe import Markup

from registry.reports.figures import curve_panels, forest_chart, scatter_chart
from registry.reports.mistakes import ErrorRow, MethodConfusion, TaskConfusions, TaskErrors
from registry.reports.numbers import signed
from registry.reports.page_content import (
    Cell,
    Column,
    Forest,
    MethodCurves,
    PageContent,
    PageTable,
    RowGroup,
    Scatter,
    SizeCurve,
    TaskCurves,
)
from registry.reports.size_chart import size_chart
from registry.reports.svg import read_template
from registry.stats.comparison import Verdict

MOST_ERRORS = 2000  # rows of one task; the page stays a size that mail and repositories take

_MATRIX_LABELS = 10  # more labels than that become a list of the most frequent confusions
_MOST_CONFUSIONS = 30
_TINTS = 5
_DASH = "\N{EN DASH}"


def render_page(content: PageContent) -> str:
    """Return the whole page as html text; write it as UTF-8.

    A task's rows answered wrong are cut to the ``MOST_ERRORS`` most confident mistakes, and the page says so.
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
    script = read_template("page.js")
    parts = _parts(content)
    return environment.from_string(read_template("page.html")).render(
        content=content,
        style=Markup(style),
        script=Markup(script),
        style_digest=_digest(style),
        script_digest=_digest(script),
        sections=_sections(content),
        **parts,
    )


def _parts(content: PageContent) -> dict[str, Any]:
    errors = [task for task in content.errors if task.rows]
    lines = [line.method for curve in (*content.bottlenecks, *content.amounts) for line in curve.lines]
    styles = {method: index for index, method in enumerate(dict.fromkeys(lines))}
    return {
        "scatters": [_scatter(each, f"scatter-{index}") for index, each in enumerate(content.scatters)],
        "bottlenecks": [_sizes(each, f"bottleneck-{i}", styles) for i, each in enumerate(content.bottlenecks)],
        "amounts": [_sizes(each, f"amount-{i}", styles) for i, each in enumerate(content.amounts)],
        "forests": [_forest(each, f"forest-{index}") for index, each in enumerate(content.forests)],
        "curves": [_curves(each, f"curve-{index}") for index, each in enumerate(content.curves)],
        "confusions": [_confusions(each) for each in content.confusions],
        "errors": [task.task for task in errors],
        "error_notes": [note for task in errors for note in (task.how, _cut_note(task)) if note],
        "error_data": _json([_encoded(task) for task in errors]),
    }


def _sections(content: PageContent) -> list[tuple[str, str]]:
    found = [
        ("scores", "Scores", True),
        ("totals", "All tasks", content.totals),
        ("parameters", "Score against parameters", content.scatters),
        ("bottlenecks", "Bottleneck size", content.bottlenecks),
        ("amounts", "Training rows", content.amounts),
        ("differences", "Differences", content.forests),
        ("curves", "Learning curves", content.curves),
        ("confusions", "Confusions", content.confusions),
        ("errors", "Rows answered wrong", any(task.rows for task in content.errors)),
        ("provenance", "Provenance", content.provenance or content.commands),
        ("notes", "Notes", content.notes),
    ]
    return [(anchor, title) for anchor, title, there in found if there]


def _scatter(scatter: Scatter, name: str) -> dict[str, Any]:
    rows = [
        (
            Cell(text=point.method, value=point.method),
            Cell(text=f"{point.parameters:,}", value=point.parameters),
            Cell(text=f"{point.mean:.3f}", value=point.mean),
            Cell(text=_interval(point.low, point.high)),
        )
        for point in scatter.points
    ]
    table = _table(("method", "parameters", scatter.metric, "interval"), rows)
    return {"task": scatter.task, "metric": scatter.metric, "drawing": scatter_chart(scatter, name), "table": table}


def _sizes(curve: SizeCurve, name: str, styles: Mapping[str, int]) -> dict[str, Any]:
    rows = [
        (
            Cell(text=line.method, value=line.method),
            Cell(text=f"{point.size:,}", value=point.size),
            Cell(text=f"{point.mean:.3f}", value=point.mean),
            Cell(text=_interval(point.low, point.high)),
        )
        for line in curve.lines
        for point in line.points
    ]
    table = _table(("method", curve.axis, curve.metric, "interval"), rows)
    drawing = size_chart(curve, name, styles)
    return {"task": curve.task, "metric": curve.metric, "axis": curve.axis, "drawing": drawing, "table": table}


def _forest(forest: Forest, name: str) -> dict[str, Any]:
    tested = any(row.seed_tests for row in forest.rows)
    rows = []
    for row in forest.rows:
        cells = (
            Cell(text=row.method, value=row.method),
            Cell(text=row.verdict, value=row.verdict, tone=tone_of(row.verdict)),
            Cell(text=signed(row.difference), value=row.difference, detail=_points(row.low, row.high)),
            Cell(text=_p_value(row.p), value=row.p),
            Cell(text=", ".join(f"{seed}: {_p_value(p)}" for seed, p in row.seed_tests) or _DASH),
        )
        rows.append(cells if tested else cells[:-1])
    titles = ("method", "verdict", "points", "adjusted p", "McNemar p by seed")
    return {
        "task": forest.task,
        "reference": forest.reference,
        "drawing": forest_chart(forest, name),
        "table": _table(titles if tested else titles[:-1], rows, left=2),
        "power": forest.power,
    }


def tone_of(verdict: Verdict) -> Literal["better", "worse", "soft"]:
    """Return how a verdict is set in a cell."""
    tones: dict[Verdict, Literal["better", "worse", "soft"]] = {"better": "better", "worse": "worse"}
    return tones.get(verdict, "soft")


def _curves(task: TaskCurves, name: str) -> dict[str, Any]:
    losses = curve_panels(task, name)
    scores = curve_panels(task, f"{name}-scores", scores=True)
    panels = [("Training loss", losses), (f"{task.metric} on held-out rows", scores)]
    rows = [row if scores else row[:-1] for method in task.methods for row in _curve_rows(method)]
    titles = ("method and seed", "steps", "first loss", "last loss", "last held-out score")
    table = _table(titles if scores else titles[:-1], rows)
    return {"task": task.task, "panels": [each for each in panels if each[1]], "table": table}


def _curve_rows(method: MethodCurves) -> list[tuple[Cell, ...]]:
    return [
        (
            Cell(text=f"{method.method}, seed {seed.seed}", value=method.method),
            _number(seed.steps[-1] if seed.steps else None, ",.0f"),
            _number(seed.losses[0] if seed.losses else None, ".3f"),
            _number(seed.losses[-1] if seed.losses else None, ".3f"),
            _number(seed.scores[-1] if seed.scores else None, ".3f"),
        )
        for seed in method.seeds
    ]


def _confusions(task: TaskConfusions) -> dict[str, Any]:
    names = task.label_names
    found: dict[str, Any] = {"task": task.task, "label_names": names, "table": None}
    if len(names) > _MATRIX_LABELS:
        return found | {"table": _frequent_confusions(task)}
    return found | {"matrices": [_matrix(method, names) for method in task.methods], "form": _form(names)}


def _form(names: Sequence[str]) -> str:
    """Return how matrices stand side by side: in narrow or wide columns, or each as wide as it is."""
    if len(names) > 3:
        return "free"
    return "narrow" if len(names) == 2 and max(map(len, names)) <= 9 else "wide"


def _matrix(method: MethodConfusion, names: Sequence[str]) -> dict[str, Any]:
    lines = []
    for true, (name, counts) in enumerate(zip(names, method.counts, strict=True)):
        total = sum(counts)
        shares = [count / total if total else 0.0 for count in counts]
        tints = [min(int(share * _TINTS), _TINTS - 1) for share in shares]
        cells = [
            {"count": f"{count:,}", "share": f"{share:.0%}", "tint": f"{'right' if index == true else 'wrong'}-{tint}"}
            for index, (count, share, tint) in enumerate(zip(counts, shares, tints, strict=True))
        ]
        lines.append((name, cells))
    right, total = sum(row[i] for i, row in enumerate(method.counts)), sum(map(sum, method.counts))
    seeds = f"{method.seeds} seed{'' if method.seeds == 1 else 's'}"
    return {"method": method.method, "lines": lines, "right": f"{right / max(total, 1):.1%} right, {seeds}"}


def _frequent_confusions(task: TaskConfusions) -> PageTable:
    found = [
        (count, method.method, task.label_names[true], task.label_names[answered])
        for method in task.methods
        for true, counts in enumerate(method.counts)
        for answered, count in enumerate(counts)
        if count and true != answered
    ]
    rows = [
        (
            Cell(text=method, value=method),
            Cell(text=true, value=true),
            Cell(text=other, value=other),
            _number(count, ",.0f"),
        )
        for count, method, true, other in sorted(found, key=lambda each: (-each[0], *each[1:]))[:_MOST_CONFUSIONS]
    ]
    return _table(("method", "true label", "answered", "times"), rows, left=3)


def _confidence(row: ErrorRow) -> float:
    """Return the least probability that a method which was wrong gave to the true label."""
    wrong = [share for share, seeds in zip(row.probabilities, row.wrong, strict=True) if seeds]
    return min(wrong, default=math.inf)


def _cut_note(task: TaskErrors) -> str:
    if len(task.rows) <= MOST_ERRORS:
        return ""
    return (
        f"{task.task}: the {MOST_ERRORS:,} most confident mistakes of {len(task.rows):,} rows that a method got wrong."
    )


def _encoded(task: TaskErrors) -> dict[str, Any]:
    """Return the rows in columns, most confident mistake first; page.js says what the letters mean."""
    rows = sorted(task.rows, key=lambda row: (_confidence(row), row.row))[:MOST_ERRORS]
    plain: dict[str, Any] = {
        "labels": task.label_names,
        "methods": task.methods,
        "seeds": task.seeds,
        "n": [row.row for row in rows],
        "t": [row.label for row in rows],
        "p": [round(1000 * share) for row in rows for share in row.probabilities],
        "w": [seeds for row in rows for seeds in row.wrong],
    }
    return plain | {"x": [row.texts for row in rows]} if any(row.texts for row in rows) else plain


def _json(plain: Any) -> Markup:
    """Return JSON that may stand in a script element: no character in it can end the element or open a comment."""
    text = msgspec.json.encode(plain).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _table(titles: Sequence[str], rows: Sequence[tuple[Cell, ...]], left: int = 1) -> PageTable:
    columns = tuple(
        Column(
            key=f"column-{index}",
            title=title,
            side="left" if index < left else "right",
            sortable=any(row[index].value is not None for row in rows),
        )
        for index, title in enumerate(titles)
    )
    return PageTable(columns=columns, groups=(RowGroup(rows=tuple(rows)),))


def _sort_value(cell: Cell) -> Markup:
    if isinstance(cell.value, str):
        return Markup(' data-text="{}"').format(cell.value)
    if cell.value is None or math.isnan(cell.value):
        return Markup("")
    return Markup(' data-number="{}"').format(repr(float(cell.value)).replace("inf", "Infinity"))


def _number(value: float | None, form: str) -> Cell:
    return Cell(text=_DASH if value is None else format(value, form), value=value)


def _points(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}"


def _interval(low: float | None, high: float | None) -> str:
    return _DASH if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _p_value(p: float | None) -> str:
    if p is None:
        return _DASH
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _digest(text: str) -> str:
    """Return what the page's own policy allows: the SHA-256 of the one style and the one script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
