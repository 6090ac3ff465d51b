"""What people read: numbers in human form, and tables as Markdown and LaTeX.

Everything comes from the tables of frames.py; nothing is computed anew and no file is written here. Sentences are
sentences.py's, the page is page.py's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from registry.stats.comparison import UNDECIDED


def signed(value: float) -> str:
    """Return a number of points with its sign, a true minus and one decimal."""
    text = f"{abs(value):.1f}"
    return text if text == "0.0" else f"{'+' if value > 0 else chr(0x2212)}{text}"


def compact(value: float) -> str:
    """Return a count in three digits: "770", "225k", "22.7M"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


TITLE = "Benchmark report"
DASH = "\N{EN DASH}"


def plus_minus(mean: float, low: float, high: float) -> str:
    """Return "0.864 ± 0.006", half the interval's width after the sign, or the mean alone where there is none."""
    if math.isnan(mean):
        return DASH
    return f"{mean:.3f}" if math.isnan(low) or math.isnan(high) else f"{mean:.3f} ± {(high - low) / 2:.3f}"


def starred_points(row: Mapping[Any, Any]) -> str:
    """Return "-1.2", with a star where the two can be told apart."""
    star = " *" if row["verdict"] not in ("", UNDECIDED) else ""
    return number(row["difference_points"], "+.1f") + star


def difference_text(row: Mapping[Any, Any]) -> str:
    """Return "-1.2 [-3.4, +1.0]", with a star where the two can be told apart."""
    if pd.isna(row["difference_low"]):
        return starred_points(row)
    star = " *" if row["verdict"] not in ("", UNDECIDED) else ""
    return f"{row['difference_points']:+.1f} [{row['difference_low']:+.1f}, {row['difference_high']:+.1f}]{star}"


def worse_on(row: Mapping[Any, Any]) -> str:
    """Return "1 of 3", the tasks on which a method is told to be worse, or a dash where it was compared on none."""
    return f"{row['worse_tasks']} of {row['compared_tasks']}" if row["compared_tasks"] else DASH


def p_value(p: float) -> str:
    """Return a p-value with three places, or what it is below."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def share(percent: float) -> str:
    """Return a percentage with two places, or two digits below that."""
    if math.isnan(percent):
        return DASH
    return f"{percent:.2f} %" if percent >= 0.01 or percent == 0 else f"{percent:.1g} %"


def number(value: float, form: str) -> str:
    """Return the value in ``form``, or a dash where there is none."""
    return DASH if pd.isna(value) else format(value, form)


def readable_seconds(value: float) -> str:
    """Return seconds, as minutes from 100 on and hours from 100 minutes on."""
    if pd.isna(value):
        return DASH
    if value < 100:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.1f} h"


def readable_bytes(value: Any) -> str:
    """Return a size in decimal units with three digits: "455 kB", "90.9 MB"."""
    if pd.isna(value):
        return DASH
    size, unit = float(value), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.3g} {unit}"


def one_line(text: str) -> str:
    """Return the text with every run of white space as one space."""
    return " ".join(text.split())
