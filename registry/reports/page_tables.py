"""The tables of a page: cells that show one thing and sort by another, and those of scores and totals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from registry.bench.results import FULL, is_reference, reference_of
from registry.reports.content import beside_methods
from registry.reports.frames import NOT_RUN, score_in, swept, unswept
from registry.reports.numbers import DASH, number, p_value, readable_bytes, readable_seconds, share, signed, worse_on


class PageCell(NamedTuple):
    """What a cell shows and the value it sorts by: None and NaN last, either way round.

    ``detail`` stands small below the text; ``tone`` is how it is set: ``strong`` for the number that counts, a verdict
    in its colour.
    """

    text: str
    value: float | str | None = None
    detail: str = ""
    tone: str = ""


class PageTable(NamedTuple):
    """A table: titles of columns, which of these hold words, and rows under the name of their group."""

    titles: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Sequence[PageCell]]]]
    words: Sequence[str] = ("method", "verdict")

    def is_sortable(self, column: int) -> bool:
        """Return whether any cell of a column has a value to sort by."""
        return any(row[column].value is not None for _, rows in self.groups for row in rows)


def scores_table(summary: pd.DataFrame) -> PageTable:
    """Return one row per task and method, those with swept settings below the others."""
    metrics = [str(name).removesuffix("_mean") for name in summary if str(name).endswith("_mean")]
    shown = [metric for metric in metrics if summary[f"{metric}_mean"].notna().any()]
    titles = ("method", "trainable", "stored", *shown, "vs full", "verdict", "training", "rows/s", "peak memory")
    groups = []
    for (task, split, metric), frame in summary.groupby(["task", "split", "main_metric"], sort=False):
        heading = f"{task} ({split}), by {metric}"
        for name, part in ((heading, unswept(frame)), (f"{heading}: swept settings", swept(frame))):
            if len(part):
                groups.append((name, [_score_row(row, shown) for row in part.to_dict("records")]))
    return PageTable(titles, groups)


def totals_table(totals: pd.DataFrame, tasks: int) -> PageTable:
    """Return one row per method: one backbone and a set for each of so many tasks against as many full models.

    Times of other tasks do not compare, so only methods that ran on all have a share of full fine-tuning's.
    """
    titles = (
        "method",
        "tasks",
        "mean of main metrics",
        "vs full",
        "worse on",
        "one backbone + sets",
        "full models",
        "training",
    )
    seconds = {row["method"]: row["train_seconds"] for row in totals.to_dict("records") if row["tasks"] == tasks}
    rows = []
    for row in beside_methods(totals, tasks, totals["tasks"]).to_dict("records"):
        method, whole = row["method"], row["full_models_bytes"]
        full = None if is_reference(method) or method not in seconds else seconds.get(reference_of(method))
        sets = "" if row["base_method"] == FULL else _ratio(row["bytes"], whole)
        rows.append(
            [
                PageCell(method, method),
                PageCell(f"{row['tasks']} of {tasks}", row["tasks"]),
                PageCell(number(row["main_metrics_mean"], ".3f"), row["main_metrics_mean"]),
                points_cell(row["difference_points"]),
                PageCell(worse_on(row), row["worse_tasks"] if row["compared_tasks"] else None),
                bytes_cell(row["bytes"], sets),
                bytes_cell(whole),
                seconds_cell(row["train_seconds"], _ratio(row["train_seconds"], full)),
            ]
        )
    return PageTable(titles, [("", rows)])


def _score_row(row: dict[Any, Any], metrics: Sequence[str]) -> list[PageCell]:
    seeds = f"{row['seeds']} seed{'' if row['seeds'] == 1 else 's'}"
    left_out = [f"{row[name]} {name.replace('_', ' ')}" for name in ("failed", "not_averaged") if row[name]]
    trainable = row["trainable"]
    verdict = PageCell("reference" if is_reference(row["method"]) and row["seeds"] else DASH, tone="soft")
    if row["verdict"]:
        verdict = verdict_cell(row["verdict"], f"p {p_value(row['difference_p'])}")
    return [
        PageCell(row["method"], row["method"], ", ".join([seeds] * bool(row["seeds"]) + left_out) or NOT_RUN),
        PageCell(DASH) if pd.isna(trainable) else PageCell(f"{trainable:,}", trainable, share(row["percent"])),
        bytes_cell(row["stored_bytes"]),
        *(
            score_cell(*score_in(row, metric), tone="strong" if metric == row["main_metric"] else "")
            for metric in metrics
        ),
        points_cell(row["difference_points"], row["difference_low"], row["difference_high"]),
        verdict,
        seconds_cell(row["train_seconds"]),
        PageCell(number(row["rows_per_second"], ",.0f"), row["rows_per_second"]),
        bytes_cell(row["peak_memory_bytes"]),
    ]


def verdict_cell(verdict: str, detail: str = "") -> PageCell:
    """Return a verdict in its colour, with a detail below it."""
    return PageCell(verdict, verdict, detail, verdict if verdict in ("better", "worse") else "soft")


def score_cell(mean: float, low: float, high: float, tone: str = "") -> PageCell:
    """Return a mean to three places with the ends of its interval below it."""
    joint = DASH if low >= 0 else " to "
    detail = "" if pd.isna(mean) or pd.isna(low) else f"{low:.3f}{joint}{high:.3f}".replace("-", "\N{MINUS SIGN}")
    return PageCell(number(mean, ".3f"), mean, detail, tone)


def points_cell(mean: float, low: float = math.nan, high: float = math.nan) -> PageCell:
    """Return a difference in points with the ends of its interval below it."""
    if pd.isna(mean):
        return PageCell(DASH)
    return PageCell(signed(mean), mean, "" if pd.isna(low) else f"{signed(low)} to {signed(high)}")


def count_cell(value: int) -> PageCell:
    """Return a whole number."""
    return PageCell(f"{value:,}", int(value))


def bytes_cell(value: Any, detail: str = "") -> PageCell:
    """Return a size in bytes as people read it."""
    return PageCell(readable_bytes(value), value, detail)


def seconds_cell(value: float, detail: str = "") -> PageCell:
    """Return a time in seconds as people read it."""
    return PageCell(readable_seconds(value), value, detail)


def _ratio(part: Any, whole: Any) -> str:
    return "" if pd.isna(part) or pd.isna(whole) or not part or not whole else f"{100 * part / whole:.0f} % of full"
