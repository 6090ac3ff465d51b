"""The pictures as SVG: scores over parameters, differences with intervals, learning curves.

Every number in a picture stands in a table of the page too. Colours are classes that drawings.css gives a light and a
dark form: grey baselines, blue adapter sets, full fine-tuning in the text's own colour, each with a form of its own.
``score_picture`` is a file of its own that brings these colours along; equal scores give equal bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from markupsafe import Markup

from registry.reports.numbers import compact, signed
from registry.reports.page_content import Forest, ForestRow, MethodCurves, Scatter, ScatterPoint, TaskCurves
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
    standalone_style,
    ticks,
)
from registry.stats.comparison import UNDECIDED

_WIDTH, _HEIGHT = 380.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 368.0, 12.0, 256.0
_COLUMNS, _GAP = 3, 24.0  # of the file with all tasks
_ASIDE = 7.0  # between intervals of methods of one size
_NAMES, _NAME = 124.0, 20  # a forest's column of names: pixels, letters
_ROW = 26.0
_PANEL_WIDTH, _PANEL_HEIGHT = 190.0, 132.0


def score_picture(scatters: Sequence[Scatter], warning: str) -> str:
    """Return one file of SVG with a panel for each task; ``warning`` stands above them where one must be read first."""
    columns = min(max(len(scatters), 1), _COLUMNS)
    width, top = columns * (_WIDTH + _GAP) + _GAP, 30.0 if warning else 0.0
    height = top + math.ceil(len(scatters) / columns) * (_HEIGHT + _GAP) + _GAP
    parts = [element("rect", width=width, height=height, class_="paper")]
    parts += [label(_GAP, 24, warning, class_="strong warning")] if warning else []
    for index, scatter in enumerate(scatters):
        x, y = _GAP + index % columns * (_WIDTH + _GAP), top + index // columns * (_HEIGHT + _GAP) + _GAP
        parts.append(label(x + _LEFT, y, f"{scatter.task}, {scatter.metric}", class_="strong"))
        parts.append(scatter_chart(scatter, f"scatter-{index}", x=x, y=y + 8, width=_WIDTH, height=_HEIGHT))
    style = element("style", Markup(standalone_style()))
    title, told = "Score against trainable parameters", "; ".join(scatter.task for scatter in scatters)
    space: dict[str, str | float] = {"xmlns": "http://www.w3.org/2000/svg", "width": width, "height": height}
    return f"{drawing('scores', width, height, title, told, style, *parts, **space)}\n"


def scatter_chart(scatter: Scatter, name: str, **place: float) -> Markup:
    """Return the scores of one task over trainable parameters on a logarithmic axis that has a place for 0.

    Args:
        scatter: the points.
        name: of the drawing, for its ids.
        place: x, y, width and height within a larger drawing.
    """
    points = sorted(scatter.points, key=lambda point: (point.parameters, -point.mean, point.method))
    ends = [end for point in points for end in (point.low, point.mean, point.high) if end is not None]
    up = Scale(*padded(ends, 0.06), _BOTTOM, _TOP)
    across, marks = _parameter_axis([point.parameters for point in points])
    parts = [
        Markup("").join(
            [line(_LEFT, up(y), _RIGHT, up(y), "grid"), label(_LEFT - 7, up(y) + 4, f"{y:g}", "end", "soft")]
        )
        for y in ticks(up.first, up.last, 7)
    ]
    parts += [label(x, _BOTTOM + 18, text, "middle", "soft") for x, text in marks]
    parts.append(label((_LEFT + _RIGHT) / 2, _BOTTOM + 37, "trainable parameters", "middle", "soft"))
    placed = list(_side_by_side(points, across))
    layout = Layout(Box(_LEFT, 0, _WIDTH, _BOTTOM))
    for x, point in placed:
        layout.taken.append(Box(x - 5, up(point.mean) - 5, x + 5, up(point.mean) + 5))
        layout.taken.append(Box(x - 1, up(_high(point)), x + 1, up(_low(point))))
    parts += [_scatter_point(x, point, up) for x, point in placed]
    parts += [_name_of(x, point, up, layout) for x, point in sorted(placed, key=lambda each: -each[1].mean)]
    told = "; ".join(f"{p.method} {p.mean:.3f} with {p.parameters:,} parameters" for p in points)
    return drawing(name, _WIDTH, _HEIGHT, f"{scatter.task}: {scatter.metric} over parameters", told, *parts, **place)


def forest_chart(forest: Forest, name: str) -> Markup:
    """Return one line a method: its difference to the reference, with the band that is too small to be seen."""
    reach = _reach(forest)
    across = Scale(-reach, reach, _NAMES + 8, _WIDTH - 10)
    bottom = len(forest.rows) * _ROW + 14
    parts = []
    if forest.detectable is not None:
        left, right = across(max(-forest.detectable, -reach)), across(min(forest.detectable, reach))
        parts.append(element("rect", x=left, y=4, width=right - left, height=bottom - 4, class_="band"))
    for x in ticks(-reach, reach, 7):
        parts.append(line(across(x), 4, across(x), bottom, "zero" if x == 0 else "grid"))
        parts.append(label(across(x), bottom + 16, f"{x:+g}".replace("-", "\u2212") if x else "0", "middle", "soft"))
    parts.append(
        label(across(0), bottom + 35, f"points of {forest.metric} against {forest.reference}", "middle", "soft")
    )
    parts += [_forest_row(row, index * _ROW + 22, across) for index, row in enumerate(forest.rows)]
    told = "; ".join(f"{row.method} {signed(row.difference)} ({row.verdict})" for row in forest.rows)
    title = f"{forest.task}: differences to {forest.reference} in points of {forest.metric}"
    return drawing(name, _WIDTH, bottom + 44, title, told, *parts)


def curve_panels(task: TaskCurves, name: str, scores: bool = False) -> list[Markup]:
    """Return a small panel for each method: its seeds in colour before the means of all others in grey.

    ``scores`` draws the held-out scores in place of the losses; methods without any have no panel.
    """
    methods = {method.method: method for method in task.methods if any(_curves(method, scores))}
    curves = {name: _curves(method, scores) for name, method in methods.items()}
    points = [point for lines in curves.values() for curve in lines for point in curve]
    if not points:
        return []
    across = Scale(0, max(x for x, _ in points) or 1, 30, _PANEL_WIDTH - 6)
    up = Scale(*padded(_heights(methods.values(), scores), 0.05), _PANEL_HEIGHT - 20, 24)
    means = [_mean_curve(method, scores) for method in methods.values()]
    shared = [
        element("path", d=path((across(x), up(y)) for x, y in mean), id=f"{name}-line-{index}")
        for index, mean in enumerate(means)
    ]
    what = task.metric if scores else "training loss"
    panels = []
    for index, (method, lines) in enumerate(curves.items()):
        drawn = [
            element(
                "path",
                d=path((across(x), up(min(y, up.last))) for x, y in curve),
                class_="seed failed" if seed.failed else "seed",
            )
            for curve, seed in zip(lines, methods[method].seeds, strict=True)
        ]
        others = [_use(f"{name}-line-{other}", "other") for other in range(len(curves)) if other != index]
        own = _use(f"{name}-line-{index}", "mean")
        last = [curve[-1][1] for curve in lines if curve]
        told = f"{len(lines)} seeds, {what} at the end: {', '.join(f'{value:.3g}' for value in last)}"
        parts = [element("defs", *shared)] if index == 0 else []
        parts += [*_panel_axes(across, up), *others, *drawn, own, label(0, 12, _short(method, 28), class_="strong")]
        title = f"{task.task}, {method}: {what}"
        panels.append(drawing(f"{name}-{index}", _PANEL_WIDTH, _PANEL_HEIGHT, title, told, *parts))
    return panels


def _parameter_axis(counts: Sequence[int]) -> tuple[dict[int, float], list[tuple[float, str]]]:
    """Return the pixel of each count, and the marks; 0 has a place of its own left of the logarithmic part."""
    zero = min(counts, default=1) <= 0
    powers = [math.log10(count) for count in counts if count > 0] or [0.0]
    scale = Scale(min(powers) - 0.3, max(powers) + 0.3, _LEFT + (36 if zero else 4), _RIGHT)
    across = {count: scale(math.log10(count)) if count > 0 else _LEFT + 12 for count in counts}
    step = 1 if scale.last - scale.first <= 4 else 2
    whole = range(math.ceil(scale.first), math.floor(scale.last) + 1, step)
    marks = [(scale(power), compact(10.0**power)) for power in whole]
    return across, [(_LEFT + 12, "0"), *marks] if zero else marks


def _side_by_side(points: Sequence[ScatterPoint], across: dict[int, float]) -> Iterator[tuple[float, ScatterPoint]]:
    """Yield each point with its x; methods of one size stand beside each other."""
    for middle, group in itertools.groupby(points, key=lambda point: across[point.parameters]):
        members = list(group)
        for index, point in enumerate(members):
            yield middle + (index - (len(members) - 1) / 2) * _ASIDE, point


def _scatter_point(x: float, point: ScatterPoint, up: Scale) -> Markup:
    parts = [element("title", f"{point.method}: {point.mean:.3f}, {point.parameters:,} trainable parameters")]
    if point.low is not None and point.high is not None:
        parts.append(line(x, up(point.low), x, up(point.high), "interval"))
    parts.append(_mark(x, up(point.mean), point.group))
    return element("g", *parts, class_=f"point {point.group}")


def _mark(x: float, y: float, group: str) -> Markup:
    if group == "full":
        return element("rect", x=x - 4, y=y - 4, width=8, height=8)
    if group == "baseline":
        return element("path", d=path([(x, y - 5), (x + 5, y), (x, y + 5), (x - 5, y)]) + "Z")
    return element("circle", cx=x, cy=y, r=4.5)


def _name_of(x: float, point: ScatterPoint, up: Scale, layout: Layout) -> Markup:
    text = _short(point.method, 26)
    left, base, anchor = layout.place(text, x, up(point.mean), 9)
    end = left - 2 if anchor == "start" else left + 2
    parts = [label(left, base, text, anchor)]
    if abs(base - 4 - up(point.mean)) > 7:
        parts.insert(0, line(x, up(point.mean), end, base - 4, "lead"))
    return element("g", *parts)


def _reach(forest: Forest) -> float:
    """Return how far the axis goes: all of the adapter methods, while far baselines become arrows at its ends."""
    near = [row for row in forest.rows if row.group != "baseline"] or list(forest.rows)
    ends = [abs(end) for row in near for end in (row.low, row.high) if math.isfinite(end)]
    return max([1.0, (forest.detectable or 0) * 1.15, *(end * 1.1 for end in ends)])


def _forest_row(row: ForestRow, y: float, across: Scale) -> Markup:
    reach = across.last
    kind = "undecided" if row.verdict == UNDECIDED else row.verdict
    parts = [
        element("title", f"{row.method}: {signed(row.difference)} ({signed(row.low)} to {signed(row.high)})"),
        label(_NAMES - 4, y + 4, _short(row.method, _NAME), "end"),
    ]
    if abs(row.difference) > reach:
        side = math.copysign(1, row.difference)
        tip = across(side * reach)
        parts.append(element("path", d=path([(tip, y), (tip - side * 9, y - 5), (tip - side * 9, y + 5)]) + "Z"))
        parts.append(label(tip - side * 14, y + 4, signed(row.difference), "start" if side < 0 else "end"))
    else:
        parts.append(line(across(max(row.low, -reach)), y, across(min(row.high, reach)), y, "interval"))
        parts.append(element("circle", cx=across(row.difference), cy=y, r=4.5))
    return element("g", *parts, class_=f"difference {kind}")


def _curves(method: MethodCurves, scores: bool) -> list[list[tuple[float, float]]]:
    if scores:
        return [list(zip(map(float, seed.score_steps), seed.scores, strict=True)) for seed in method.seeds]
    return [list(zip(map(float, seed.steps), seed.losses, strict=True)) for seed in method.seeds]


def _heights(methods: Iterable[MethodCurves], scores: bool) -> list[float]:
    """Return all that the axis must hold: a diverged run leaves it above twice the height of the others."""
    seeds = [pair for method in methods for pair in zip(_curves(method, scores), method.seeds, strict=True)]
    heights = [y for curve, seed in seeds if not seed.failed for _, y in curve]
    diverged = [y for curve, seed in seeds if seed.failed for _, y in curve]
    most = 2 * max((y for y in heights if math.isfinite(y)), default=math.inf)
    return [*heights, *(min(y, most) for y in diverged)]


def _mean_curve(method: MethodCurves, scores: bool) -> list[tuple[float, float]]:
    """Return the mean over the finished seeds at the steps that all of them have."""
    finished = zip(_curves(method, scores), method.seeds, strict=True)
    tables = [dict(curve) for curve, seed in finished if curve and not seed.failed]
    if not tables:
        return []
    steps = [x for x in tables[0] if all(x in table for table in tables)]
    return [(x, sum(table[x] for table in tables) / len(tables)) for x in steps]


def _panel_axes(across: Scale, up: Scale) -> list[Markup]:
    marks = ticks(up.first, up.last, 4)
    parts = [line(30, up(y), _PANEL_WIDTH - 6, up(y), "grid") for y in marks]
    parts += [label(25, up(y) + 4, f"{y:g}", "end", "soft") for y in marks]
    parts.append(label(30, _PANEL_HEIGHT - 5, "0", class_="soft"))
    parts.append(label(_PANEL_WIDTH - 6, _PANEL_HEIGHT - 5, f"{across.last:,.0f} steps", "end", "soft"))
    return parts


def _use(name: str, class_: str) -> Markup:
    return element("use", href=f"#{name}", class_=class_)


def _low(point: ScatterPoint) -> float:
    return point.mean if point.low is None else point.low


def _high(point: ScatterPoint) -> float:
    return point.mean if point.high is None else point.high


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}"
