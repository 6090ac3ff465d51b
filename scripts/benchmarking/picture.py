"""The benchmark's picture: one bar for each ratio, with its target as a tick.

Figure objects only, no pyplot. Colours: Okabe and Ito 2008, as in the report's own picture.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullLocator

MET, MISSED = "#009e73", "#d55e00"
TEXT, SOFT, GRID = "#1d1f23", "#5c6068", "#e4e4e0"


def draw(rows: Sequence[Any]) -> bytes:
    """Return a PNG of the ratios of ``rows``, the first one on top; green is met, orange is missed."""
    figure = Figure(figsize=(11, 1.3 + 0.42 * max(1, len(rows))), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = range(len(rows))
    ratios = [row.ratio for row in rows]
    axes.barh(places, ratios, height=0.62, color=[MET if row.met else MISSED for row in rows], zorder=2)
    axes.scatter([row.limit for row in rows], places, marker="|", s=230, linewidths=2, color=TEXT, zorder=4,
                 label="target")  # fmt: skip
    axes.axvline(1, color=SOFT, linewidth=1, linestyle=(0, (4, 4)), zorder=3)
    for place, row in enumerate(rows):
        text = f"{row.ratio:.2f}" if row.ratio < 10 else f"{row.ratio:.0f}"
        axes.text(max(row.ratio, row.limit) * 1.06, place, text, va="center", fontsize=9, color=TEXT, zorder=5,
                  path_effects=[withStroke(linewidth=3, foreground="white")])  # fmt: skip
    axes.set_yticks(places, [row.measure for row in rows], fontsize=9, color=TEXT, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.5, 1.6 * max([2.0, *ratios, *(row.limit for row in rows)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    axes.tick_params(colors=SOFT, labelsize=9, length=0)
    axes.tick_params(axis="y", labelcolor=TEXT)
    axes.set_xlabel("times the base of each line (dashed: equal)", fontsize=9.5, color=SOFT)
    axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=SOFT)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return image.getvalue()
