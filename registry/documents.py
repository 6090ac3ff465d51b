"""What people read: numbers in human form, and tables as Markdown and LaTeX.

Everything comes from the tables of frames.py; nothing is computed anew and no file is written here. Sentences are
findings.py's, the page is page.py's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from registry.comparable import LOWER_IS_BETTER
from registry.frames import NOT_RUN, score_in
from registry.verdicts import UNDECIDED

TITLE = "Benchmark report"
DASH = "\N{EN DASH}"

_LEFT = ("task", "method")


def display_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the summary as text cells: "0.864 ± 0.006", "113,810 (0.50 %)", "455 kB", dashes where nothing was run."""
    metrics = [str(name).removesuffix("_mean") for name in summary if str(name).endswith("_mean")]
    shown = [metric for metric in metrics if summary[f"{metric}_mean"].notna().any()]
    rows = []
    for row in summary.to_dict("records"):
        rows.append(
            {
                "task": f"{row['task']} ({row['split']})",
                "method": row["method"],
                "seeds": _seeds(row),
                "trainable": DASH if pd.isna(row["trainable"]) else f"{row['trainable']:,} ({share(row['percent'])})",
                "stored": readable_bytes(row["stored_bytes"]),
                **{metric: plus_minus(*score_in(row, metric)) for metric in shown},
                "vs full (points)": difference_text(row),
                "training": readable_seconds(row["train_seconds"]),
                "rows/s": number(row["rows_per_second"], ",.0f"),
                "peak memory": readable_bytes(row["peak_memory_bytes"]),
            }
        )
    return pd.DataFrame(rows)


def display_comparisons(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return the comparisons with full fine-tuning as text cells."""
    rows = [
        {
            "task": row["task"],
            "method": row["method"],
            "reference": row["reference"],
            "difference": format(row["difference"], _form(row)),
            "95 % interval": f"{row['low']:{_form(row)}} to {row['high']:{_form(row)}}",
            "p (Holm)": p_value(row["adjusted_p"]),
            "McNemar p by seed": row["seed_tests"] or DASH,
            "verdict": row["verdict"],
        }
        for row in comparisons.to_dict("records")
    ]
    return pd.DataFrame(rows)


def display_totals(totals: pd.DataFrame, tasks: int) -> pd.DataFrame:
    """Return the totals as text cells; ``tasks`` is how many there are."""
    rows = [
        {
            "method": row["method"],
            "tasks": f"{row['tasks']} of {tasks}",
            "mean of main metrics": number(row["main_metrics_mean"], ".3f"),
            "vs full (points)": number(row["difference_points"], "+.1f"),
            "worse than full on": worse_on(row),
            "on disk": readable_bytes(row["bytes"]),
            "as full models": readable_bytes(row["full_models_bytes"]),
            "training": readable_seconds(row["train_seconds"]),
        }
        for row in totals.to_dict("records")
    ]
    return pd.DataFrame(rows)


def to_markdown(
    warning: str, lead: Sequence[str], tables: Mapping[str, pd.DataFrame], picture: str, remarks: Sequence[str]
) -> str:
    """Return the whole report as GitHub Markdown, with ``picture`` the file name of the plot."""
    parts = [f"**{warning}**"] if warning else []
    parts += [f"# {TITLE}", *(_escape_markdown(sentence) for sentence in lead)]
    for heading, frame in tables.items():
        sides = ["left" if name in _LEFT else "right" for name in frame.columns]
        escaped = frame.map(_escape_markdown).rename(columns=_escape_markdown)
        table = escaped.to_markdown(index=False, disable_numparse=True, colalign=sides)
        parts += [f"## {heading}", table]
    parts += ["## Score against trainable parameters", f"![Score against trainable parameters, per task]({picture})"]
    parts += ["## Notes", "\n".join(f"- {_escape_markdown(note)}" for note in remarks)]
    return "\n\n".join(parts) + "\n"


def to_latex(warning: str, frame: pd.DataFrame, remarks: Sequence[str]) -> str:
    """Return the table for a paper, ruled by booktabs; ``warning`` stands above it, the remarks are comments."""
    frame = frame.drop(columns=["training", "rows/s", "peak memory"])
    sides = "".join("l" if name in _LEFT else "r" for name in frame.columns)
    style = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    table = style.to_latex(hrules=True, column_format=sides).replace("±", r"$\pm$").replace(DASH, "--")
    head = rf"\noindent\textbf{{{warning}}}\par" + "\n" if warning else ""
    comments = "".join(f"% {one_line(line)}\n" for line in (r"needs \usepackage{booktabs}", *remarks))
    return f"{head}{comments}{table}"


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


def _form(comparison: Mapping[Any, Any]) -> str:
    """Return how a difference is written: points with one place, errors with three digits."""
    return "+.3g" if comparison["metric"] in LOWER_IS_BETTER else "+.1f"


def _seeds(row: Mapping[Any, Any]) -> str:
    left_out = [f"{row[name]} {name.replace('_', ' ')}" for name in ("failed", "not_averaged") if row[name]]
    if left_out:
        return f"{row['seeds']} ({', '.join(left_out)})"
    return str(row["seeds"]) if row["seeds"] else NOT_RUN


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|*`\[\]])", r"\\\1", one_line(text)).replace("<", "&lt;")
