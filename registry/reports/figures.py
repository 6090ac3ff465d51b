"""The pictures as SVG: scores over parameters, differences with intervals, learning curves, scores over what was swept.

Every number in a picture stands in a table of the page too. Colours are classes that drawings.css gives a light and a
dark form: grey baselines, blue adapter sets, full fine-tuning in the text's own colour, each with a form of its own.
``score_picture`` is a file of its own that brings these colours along; equal scores give equal bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from registry.bench.records import RunRecord
from registry.bench.results import FULL, group_of
from registry.reports.content import SizeCurve, TaskRows
from registry.reports.frames import main_score
from registry.reports.numbers import compact, signed
from registry.reports.svg import (
    Box,
    Layout,
    Scale,
    drawing,
    element,
    label,
    line,
    padded,
    path,
    short,
    standalone_style,
    ticks,
)
from registry.stats.comparison import UNDECIDED, Comparison
from registry.stats.intervals import Interval

_WIDTH, _HEIGHT = 380.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 368.0, 12.0, 256.0
_COLUMNS, _GAP = 3, 24.0  # of the file with all tasks
_ASIDE = 7.0  # between intervals of methods of one size
_NAMES, _NAME = 124.0, 20  # a forest's column of names: pixels, letters
_ROW = 26.0
_PANEL_WIDTH, _PANEL_HEIGHT = 190.0, 132.0
_LETTER, _MOST_LETTERS = 6.1, 17  # names at the ends of lines: pixels of a letter, letters
_APART = 14.0  # pixels between two of them
_INK = 6  # colours that drawings.css has for lines


def score_picture(tasks: Sequence[TaskRows], warning: str) -> str:
    """Return one file of SVG with a panel for each task; ``warning`` stands above them where one must be read first."""
    tasks = [task for task in tasks if task.scored]
    columns = min(max(len(tasks), 1), _COLUMNS)
    width, top = columns * (_WIDTH + _GAP) + _GAP, 30.0 if warning else 0.0
    height = top + math.ceil(len(tasks) / columns) * (_HEIGHT + _GAP) + _GAP
    parts = [element("rect", width=width, height=height, class_="paper")]
    parts += [label(_GAP, 24, warning, class_="strong warning")] if warning else []
    for index, task in enumerate(tasks):
        x, y = _GAP + index % columns * (_WIDTH + _GAP), top + index // columns * (_HEIGHT + _GAP) + _GAP
        parts.append(label(x + _LEFT, y, f"{task.title}, {task.metric}", class_="strong"))
        parts.append(scatter_chart(task, f"scatter-{index}", x=x, y=y + 8, width=_WIDTH, height=_HEIGHT))
    told = "; ".join(task.title for task in tasks)
    space: dict[str, str | float] = {"xmlns": "http://www.w3.org/2000/svg", "width": width, "height": height}
    style = element("style", Markup(standalone_style()))
    return f"{drawing('scores', width, height, 'Score against trainable parameters', told, style, *parts, **space)}\n"


def scatter_chart(task: TaskRows, name: str, **place: float) -> Markup:
    """Return the scores of one task over trainable parameters on a logarithmic axis that has a place for 0.

    Args:
        task: with the summary's rows; those without a mean are left out.
        name: of the drawing, for its ids.
        place: x, y, width and height within a larger drawing.
    """
    rows = sorted(task.scored, key=lambda row: (row["trainable"], -main_score(row)[0], row["method"]))
    scores = {row["method"]: _whole(*main_score(row)) for row in rows}
    up = Scale(*padded([end for ends in scores.values() for end in ends], 0.06), _BOTTOM, _TOP)
    across, marks = _parameter_axis([int(row["trainable"]) for row in rows])
    parts = [*_grid(up, _LEFT, _RIGHT), *(label(x, _BOTTOM + 18, text, "middle", "soft") for x, text in marks)]
    parts.append(label((_LEFT + _RIGHT) / 2, _BOTTOM + 37, "trainable parameters", "middle", "soft"))
    xs: dict[str, float] = {}
    for middle, group in itertools.groupby(rows, key=lambda row: across[int(row["trainable"])]):
        members = [row["method"] for row in group]  # methods of one size stand beside each other
        xs |= {each: middle + (index - (len(members) - 1) / 2) * _ASIDE for index, each in enumerate(members)}
    layout = Layout(Box(_LEFT, 0, _WIDTH, _BOTTOM))
    for row in rows:
        x, (mean, low, high) = xs[row["method"]], scores[row["method"]]
        layout.taken.append(Box(x - 5, up(mean) - 5, x + 5, up(mean) + 5))
        layout.taken.append(Box(x - 1, up(high), x + 1, up(low)))
        kind = group_of(row["base_method"])
        said = element("title", f"{row['method']}: {mean:.3f}, {int(row['trainable']):,} trainable parameters")
        parts.append(element("g", said, *_interval(x, up, low, high), _mark(x, up(mean), kind), class_=f"point {kind}"))
    for row in sorted(rows, key=lambda row: -scores[row["method"]][0]):
        parts.append(_name_of(row["method"], xs[row["method"]], up(scores[row["method"]][0]), layout))
    told = "; ".join(
        f"{r['method']} {scores[r['method']][0]:.3f} with {int(r['trainable']):,} parameters" for r in rows
    )
    return drawing(name, _WIDTH, _HEIGHT, f"{task.title}: {task.metric} over parameters", told, *parts, **place)


def forest_chart(task: TaskRows, differences: Mapping[str, Comparison], detectable: float | None, name: str) -> Markup:
    """Return one line a method: its difference to the reference in points, with the band that is too small to be seen.

    Args:
        task: for its title and metric.
        differences: by method.
        detectable: the smallest difference in points that so many rows can show; None where not computed.
        name: of the drawing, for its ids.
    """
    points = {
        m: tuple(100 * end for end in (d.difference.mean, d.difference.low, d.difference.high))
        for m, d in differences.items()
    }
    bases = {row["method"]: row["base_method"] for row in task.rows}
    near = {m: ends for m, ends in points.items() if group_of(bases[m]) != "baseline"} or points
    ends = [abs(end) for _, *two in near.values() for end in two if math.isfinite(end)]
    reach = max([1.0, (detectable or 0) * 1.15, *(end * 1.1 for end in ends)])  # far baselines become arrows
    across, bottom = Scale(-reach, reach, _NAMES + 8, _WIDTH - 10), len(points) * _ROW + 14
    reference = next(iter(differences.values())).reference
    parts = []
    if detectable is not None:
        left, right = across(max(-detectable, -reach)), across(min(detectable, reach))
        parts.append(element("rect", x=left, y=4, width=right - left, height=bottom - 4, class_="band"))
    for x in ticks(-reach, reach, 7):
        parts.append(line(across(x), 4, across(x), bottom, "zero" if x == 0 else "grid"))
        parts.append(label(across(x), bottom + 16, f"{x:+g}".replace("-", "\u2212") if x else "0", "middle", "soft"))
    parts.append(label(across(0), bottom + 35, f"points of {task.metric} against {reference}", "middle", "soft"))
    for index, (method, (mean, low, high)) in enumerate(points.items()):
        parts.append(_forest_row(method, differences[method].verdict, (mean, low, high), index * _ROW + 22, across))
    told = "; ".join(f"{m} {signed(mean)} ({differences[m].verdict})" for m, (mean, *_) in points.items())
    title = f"{task.title}: differences to {reference} in points of {task.metric}"
    return drawing(name, _WIDTH, bottom + 44, title, told, *parts)


def curve_panels(
    task: TaskRows, runs: Mapping[str, Sequence[RunRecord]], name: str, scores: bool = False
) -> list[Markup]:
    """Return a small panel for each method: its seeds in colour before the means of all others in grey.

    ``scores`` draws the held-out scores in place of the losses; methods without any have no panel.
    """
    curves = {method: [(run, curve_points(run, scores)) for run in of_method] for method, of_method in runs.items()}
    curves = {method: lines for method, lines in curves.items() if any(points for _, points in lines)}
    points = [point for lines in curves.values() for _, curve in lines for point in curve]
    if not points:
        return []
    across = Scale(0, max(x for x, _ in points) or 1, 30, _PANEL_WIDTH - 6)
    up = Scale(*padded(_heights([each for lines in curves.values() for each in lines]), 0.05), _PANEL_HEIGHT - 20, 24)
    shared = [
        element("path", d=path((across(x), up(y)) for x, y in _mean_curve(lines)), id=f"{name}-line-{index}")
        for index, lines in enumerate(curves.values())
    ]
    what, panels = task.metric if scores else "training loss", []
    for index, (method, lines) in enumerate(curves.items()):
        parts = [element("defs", *shared)] if index == 0 else []
        parts += [*_grid(up, 30, _PANEL_WIDTH - 6, 4, 25), label(30, _PANEL_HEIGHT - 5, "0", class_="soft")]
        parts.append(label(_PANEL_WIDTH - 6, _PANEL_HEIGHT - 5, f"{across.last:,.0f} steps", "end", "soft"))
        parts += [
            element("use", href=f"#{name}-line-{other}", class_="other")
            for other in range(len(curves))
            if other != index
        ]
        for run, curve in lines:
            drawn = path((across(x), up(min(y, up.last))) for x, y in curve)
            parts.append(element("path", d=drawn, class_="seed failed" if run.status == "failed" else "seed"))
        parts.append(element("use", href=f"#{name}-line-{index}", class_="mean"))
        parts.append(label(0, 12, short(method, 28), class_="strong"))
        last = ", ".join(f"{curve[-1][1]:.3g}" for _, curve in lines if curve)
        told = f"{len(lines)} seeds, {what} at the end: {last}"
        panels.append(
            drawing(f"{name}-{index}", _PANEL_WIDTH, _PANEL_HEIGHT, f"{task.title}, {method}: {what}", told, *parts)
        )
    return panels


def size_chart(curve: SizeCurve, name: str, styles: Mapping[str, int]) -> Markup:
    """Return the scores of one task over sizes on a logarithmic axis, with the reference as a dashed line.

    Names stand at the ends of their lines, so there is no legend to look things up in.

    Args:
        curve: at least one line.
        name: of the drawing, for its ids.
        styles: a number for each method's colour and mark, the same in all drawings of a page.
    """
    ends = [end for _, each in curve.lines for one in each.values() for end in _ends(one)]
    up = Scale(*padded([*ends, *([] if curve.reference is None else [curve.reference])], 0.06), _BOTTOM, _TOP)
    methods = [method for method, _ in curve.lines]
    names = methods if curve.reference is None else {*methods, FULL}
    right = _WIDTH - max(len(short(text, _MOST_LETTERS)) for text in names) * _LETTER - 14
    sizes = sorted({size for _, each in curve.lines for size in each})
    across = Scale(*padded([math.log10(size) for size in sizes], 0.05), _LEFT + 4, right)
    parts = [*_grid(up, _LEFT, right), label((_LEFT + right) / 2, _BOTTOM + 37, curve.axis, "middle", "soft")]
    parts += [label(x, _BOTTOM + 18, text, "middle", "soft") for x, text in _size_marks(sizes, across)]
    ends_of_lines = []
    if curve.reference is not None:
        parts.append(line(_LEFT, up(curve.reference), right, up(curve.reference), "reference"))
        if FULL not in methods:  # else the end of its own line has the name
            ends_of_lines.append((right, up(curve.reference), FULL, "soft"))
    for index, (method, each) in enumerate(curve.lines):
        group, style = group_of(method), styles[method]
        colour = f"line-{style % _INK}" if group == "adapter" else group
        aside = (index - (len(curve.lines) - 1) / 2) * min(4.0, 12.0 / max(len(curve.lines) - 1, 1))
        places = [(across(math.log10(size)) + aside, up(one.mean)) for size, one in each.items()]
        marks = [element("path", d=path(places), class_="run")]
        for (x, y), (size, one) in zip(places, each.items(), strict=True):
            said = element("title", f"{method}: {one.mean:.3f} at {size:,}")
            marks.append(element("g", said, *_interval(x, up, *_ends(one)[1:]), _mark(x, y, group, style)))
        parts.append(element("g", *marks, class_=f"size {colour}"))
        ends_of_lines.append((*places[-1], method, colour))
    parts += _end_names(ends_of_lines, right)
    told = "; ".join(
        f"{method}: " + ", ".join(f"{one.mean:.3f} at {size:,}" for size, one in each.items())
        for method, each in curve.lines
    )
    return drawing(name, _WIDTH, _HEIGHT, f"{curve.title}: {curve.metric} over {curve.axis}", told, *parts)


def curve_points(run: RunRecord, scores: bool) -> list[tuple[float, float]]:
    """Return the losses of a run at its steps, or its held-out scores of the main metric."""
    if run.curve is None:
        return []
    if scores:
        found = [(each.step, each.scores.get(run.main_metric)) for each in run.curve.held_out]
        return [(float(step), score) for step, score in found if score is not None]
    return list(zip(map(float, run.curve.steps), run.curve.losses, strict=True))


def _whole(mean: float, low: float, high: float) -> tuple[float, float, float]:
    return mean, mean if math.isnan(low) else low, mean if math.isnan(high) else high


def _ends(one: Interval) -> tuple[float, float, float]:
    return _whole(one.mean, one.low, one.high)


def _grid(up: Scale, left: float, right: float, about: int = 7, text: float | None = None) -> list[Markup]:
    marks = ticks(up.first, up.last, about)
    at = left - 7 if text is None else text
    return [
        each
        for y in marks
        for each in (line(left, up(y), right, up(y), "grid"), label(at, up(y) + 4, f"{y:g}", "end", "soft"))
    ]


def _interval(x: float, up: Scale, low: float, high: float) -> list[Markup]:
    return [] if low == high else [line(x, up(low), x, up(high), "interval")]


def _mark(x: float, y: float, group: str, style: int = 0) -> Markup:
    if group == "full":
        return element("rect", x=x - 4, y=y - 4, width=8, height=8)
    if group == "baseline":
        return element("path", d=path([(x, y - 5), (x + 5, y), (x, y + 5), (x - 5, y)]) + "Z")
    if style % 3 == 0:
        return element("circle", cx=x, cy=y, r=4.5)
    up = 1 if style % 3 == 1 else -1
    return element("path", d=path([(x, y - 5 * up), (x + 4.8, y + 3.8 * up), (x - 4.8, y + 3.8 * up)]) + "Z")


def _parameter_axis(counts: Sequence[int]) -> tuple[dict[int, float], list[tuple[float, str]]]:
    """Return the pixel of each count, and the marks; 0 has a place of its own left of the logarithmic part."""
    zero = min(counts, default=1) <= 0
    powers = [math.log10(count) for count in counts if count > 0] or [0.0]
    scale = Scale(min(powers) - 0.3, max(powers) + 0.3, _LEFT + (36 if zero else 4), _RIGHT)
    across = {count: scale(math.log10(count)) if count > 0 else _LEFT + 12 for count in counts}
    step = 1 if scale.last - scale.first <= 4 else 2
    marks = [
        (scale(power), compact(10.0**power))
        for power in range(math.ceil(scale.first), math.floor(scale.last) + 1, step)
    ]
    return across, [(_LEFT + 12, "0"), *marks] if zero else marks


def _name_of(method: str, x: float, y: float, layout: Layout) -> Markup:
    text = short(method, 26)
    left, base, anchor = layout.place(text, x, y, 9)
    parts = [label(left, base, text, anchor)]
    if abs(base - 4 - y) > 7:
        parts.insert(0, line(x, y, left - 2 if anchor == "start" else left + 2, base - 4, "lead"))
    return element("g", *parts)


def _forest_row(method: str, verdict: str, ends: tuple[float, float, float], y: float, across: Scale) -> Markup:
    (mean, low, high), reach = ends, across.last
    parts = [
        element("title", f"{method}: {signed(mean)} ({signed(low)} to {signed(high)})"),
        label(_NAMES - 4, y + 4, short(method, _NAME), "end"),
    ]
    if abs(mean) > reach:
        side = math.copysign(1, mean)
        tip = across(side * reach)
        parts.append(element("path", d=path([(tip, y), (tip - side * 9, y - 5), (tip - side * 9, y + 5)]) + "Z"))
        parts.append(label(tip - side * 14, y + 4, signed(mean), "start" if side < 0 else "end"))
    else:
        parts.append(line(across(max(low, -reach)), y, across(min(high, reach)), y, "interval"))
        parts.append(element("circle", cx=across(mean), cy=y, r=4.5))
    return element("g", *parts, class_=f"difference {'undecided' if verdict == UNDECIDED else verdict}")


def _heights(lines: Sequence[tuple[RunRecord, list[tuple[float, float]]]]) -> list[float]:
    """Return all that the axis must hold: a diverged run leaves it above twice the height of the others."""
    heights = [y for run, curve in lines if run.status != "failed" for _, y in curve]
    most = 2 * max((y for y in heights if math.isfinite(y)), default=math.inf)
    return [*heights, *(min(y, most) for run, curve in lines if run.status == "failed" for _, y in curve)]


def _mean_curve(lines: Sequence[tuple[RunRecord, list[tuple[float, float]]]]) -> list[tuple[float, float]]:
    """Return the mean over the finished seeds at the steps that all of them have."""
    tables = [dict(curve) for run, curve in lines if curve and run.status != "failed"]
    steps = [x for x in tables[0] if all(x in table for table in tables)] if tables else []
    return [(x, sum(table[x] for table in tables) / len(tables)) for x in steps]


def _size_marks(sizes: Sequence[int], across: Scale) -> list[tuple[float, str]]:
    """Return place and text of the sizes that have room on the axis, the largest always among them."""
    marks: list[tuple[float, str]] = []
    free = math.inf
    for size in reversed(sizes):
        x, text = across(math.log10(size)), f"{size:,}" if size < 10_000 and size % 1000 else compact(size)
        half = len(text) * _LETTER / 2
        if x + half + 7 <= free:
            marks.append((x, text))
            free = x - half
    return marks[::-1]


def _end_names(ends: Sequence[tuple[float, float, str, str]], right: float) -> list[Markup]:
    """Return each name at the right, as near to the end of its line as the other names let it."""
    ordered = sorted(ends, key=lambda each: (each[1], each[2]))
    heights: list[float] = []
    for _, y, _, _ in ordered:
        heights.append(max(y, heights[-1] + _APART) if heights else y)
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], _BOTTOM - (len(heights) - 1 - index) * _APART)
    parts = []
    for (x, y, text, class_), height in zip(ordered, heights, strict=True):
        if abs(height - y) > 4 or right - x > 12:
            parts.append(line(x, y, right + 8, height, "lead"))
        parts.append(label(right + 10, height + 4, short(text, _MOST_LETTERS), class_=f"name {class_}"))
    return parts
