"""The one picture: what a method scores against how many parameters it trains.

It uses figure objects only, no pyplot, so drawing changes no state of the process. Bytes are equal for equal tables.
Colours: Okabe and Ito 2008, which keep apart for all common forms of colour blindness.
"""

from __future__ import annotations

import io
import itertools
import math
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox, IdentityTransform, ScaledTranslation, Transform

from registry.bench.records import replace_file
from registry.bench.results import FULL
from registry.reports.frames import main_score, method_order, unswept

_COLOURS = {
    "majority": "#7f7f7f",
    "head_only": "#e69f00",
    "after_layer": "#0072b2",
    "houlsby": "#d55e00",
    "pfeiffer": "#009e73",
    "parallel": "#cc79a7",
    FULL: "#1d1f23",
}
_OTHER_COLOURS = ("#56b4e9", "#8c6d31", "#5b3a8e", "#a3123a")
_TEXT, _SOFT, _GRID = "#1d1f23", "#5c6068", "#e4e4e0"
_COLUMNS = 3
_PANEL = (5.0, 4.4)  # inches
_STEP_ASIDE = 5.5  # points
_LEAD_FROM = 18  # pixels; nearer names need no line
_LINEAR_TO = 100  # below it the x axis is linear, which gives 0 a place


@dataclass(frozen=True)
class _Point:
    method: str
    parameters: float
    mean: float
    low: float  # the interval's ends, or the mean
    high: float
    aside: float  # points to the right
    colour: str


def score_against_parameters(summary: pd.DataFrame, warning: str, path: pathlib.Path) -> None:
    """Draw one panel per task, mean and interval of the main metric over trainable parameters, as PNG.

    Args:
        summary: by ``summary_table``; methods with swept settings are left out where there are others.
        warning: a title, where one must be read first.
        path: of the file.

    Raises:
        RunError: the folder cannot be written.
    """
    rows = unswept(summary).to_dict("records")
    panels = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["task"])]
    colours = _colours(row["method"] for row in rows)
    columns = min(len(panels), _COLUMNS)
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(columns * _PANEL[0], 6.5), lines * _PANEL[1] + 0.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False)
    panel_axes = [axes for line in grid for axes in line]
    for axes in panel_axes[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(panel_axes, panels, strict=False):
        _draw_panel(axes, panel, _points(panel, colours))
    if warning:
        figure.suptitle(warning, fontsize=10, fontweight="bold", color="#a33b00")
    figure.draw_without_rendering()  # the layout must stand before labels can be placed between the points
    figure.set_layout_engine("none")
    for axes, panel in zip(panel_axes, panels, strict=False):
        _label_points(axes, _points(panel, colours))
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    replace_file(path, image.getvalue())


def _colours(methods: Iterator[str]) -> dict[str, str]:
    ordered = sorted(set(methods), key=method_order)
    others = (method for method in ordered if method not in _COLOURS)
    return _COLOURS | dict(zip(others, itertools.cycle(_OTHER_COLOURS), strict=False))


def _points(panel: Sequence[dict[Any, Any]], colours: dict[str, str]) -> list[_Point]:
    """Return what was run to its end; methods that train equally many parameters step aside for each other."""
    done = [row for row in panel if not math.isnan(main_score(row)[0])]
    found = []
    for row in done:
        mean, low, high = main_score(row)
        equal = [other["method"] for other in done if other["trainable"] == row["trainable"]]
        aside = (equal.index(row["method"]) - (len(equal) - 1) / 2) * _STEP_ASIDE
        low, high = (mean if math.isnan(end) else end for end in (low, high))
        found.append(_Point(row["method"], float(row["trainable"]), mean, low, high, aside, colours[row["method"]]))
    return found


def _draw_panel(axes: Axes, panel: Sequence[dict[Any, Any]], points: Sequence[_Point]) -> None:
    for point in points:
        if point.method in ("majority", FULL):
            axes.axhline(point.mean, color=point.colour, linewidth=0.8, linestyle=(0, (4, 4)), alpha=0.6, zorder=1)
        axes.errorbar(
            point.parameters, point.mean, yerr=_error_bar(point), color=point.colour, marker="o", markersize=6,
            capsize=2.5, elinewidth=1.3, markeredgecolor="white", markeredgewidth=0.6, zorder=3,
            transform=_place(axes, point),
        )  # fmt: skip
    largest = max([1000.0, *(point.parameters for point in points)])
    axes.set_xscale("symlog", linthresh=_LINEAR_TO, linscale=0.6)
    axes.set_xlim(-30, largest * 6)
    axes.set_xticks([0.0, *(10.0**power for power in range(2, int(math.log10(largest)) + 1))])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_count(value)))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    lowest = min((point.low for point in points), default=0.0)
    highest = max((point.high for point in points), default=1.0)
    room = 0.12 * (highest - lowest) or 0.1
    axes.set_ylim(lowest - room, highest + room)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_SOFT)
    axes.tick_params(colors=_SOFT, labelsize=9, length=3)
    axes.set_title(f"{panel[0]['task']} ({panel[0]['split']})", loc="left", fontsize=12, color=_TEXT, parse_math=False)
    beside = " (equal counts side by side)" if any(point.aside for point in points) else ""
    axes.set_xlabel(f"trainable parameters{beside}", fontsize=9.5, color=_SOFT)
    axes.set_ylabel(panel[0]["main_metric"], fontsize=9.5, color=_SOFT, parse_math=False)


def _error_bar(point: _Point) -> list[list[float]] | None:
    return None if point.low == point.high else [[point.mean - point.low], [point.high - point.mean]]


def _place(axes: Axes, point: _Point) -> Transform:
    return axes.transData + ScaledTranslation(point.aside / 72, 0, axes.figure.dpi_scale_trans)


def _short_count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _label_points(axes: Axes, points: Sequence[_Point]) -> None:
    """Write each method's name at the nearest place where it and the line to it cover nothing else."""
    taken = [_marker_box(axes, point) for point in points]
    leads: list[Path] = []
    inside = axes.get_window_extent()
    for index, point in sorted(enumerate(points), key=lambda pair: -pair[1].mean):
        text = axes.text(
            0, 0, point.method, fontsize=9, color=_TEXT, va="center", transform=IdentityTransform(), parse_math=False,
            zorder=4, path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        size = text.get_window_extent()
        x, y = _place(axes, point).transform((point.parameters, point.mean))
        others = [box for place, box in enumerate(taken) if place != index]
        choices = list(_names_round(x, y, size.width, size.height))
        free = (
            (box, lead) for box, lead in choices
            if _contains(inside, box) and not box.overlaps(taken[index])
            and not any(box.overlaps(other) or lead.intersects_bbox(other) for other in others)
            and not any(old.intersects_bbox(box) or old.intersects_path(lead) for old in leads)
        )  # fmt: skip
        box, lead = next(free, choices[0])
        taken.append(box.padded(4))
        text.set_position((box.x0, (box.y0 + box.y1) / 2))
        if max(lead.get_extents().size) > _LEAD_FROM:
            leads.append(lead)
            axes.add_artist(PathPatch(lead, edgecolor=point.colour, linewidth=0.9, zorder=2, transform=None))


def _marker_box(axes: Axes, point: _Point) -> Bbox:
    place = _place(axes, point)
    x, low = place.transform((point.parameters, point.low))
    _, high = place.transform((point.parameters, point.high))
    return Bbox.from_extents(x - 8, low - 8, x + 8, high + 8)


def _names_round(x: float, y: float, width: float, height: float) -> Iterator[tuple[Bbox, Path]]:
    """Yield boxes for a name and the lines to them, in pixels: right, left, above, below, between; then further out."""
    for radius in (14, 22, 32, 44, 58, 74, 92, 112):
        for angle in (0, 180, 90, 270, 45, 135, 315, 225, 22, 158, 338, 202, 67, 113, 293, 247):
            along, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            end = (x + radius * along, y + radius * up)
            left = end[0] - (width / 2 if abs(along) < 0.3 else width if along < 0 else 0)
            box = Bbox.from_bounds(left, end[1] + (up - 1) * height / 2, width, height)
            yield box, Path([(x, y), end])


def _contains(outer: Bbox, box: Bbox) -> bool:
    return bool(outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1)
