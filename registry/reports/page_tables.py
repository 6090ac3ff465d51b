"""The page's two tables from the frames of a report: scores by task and method, and totals over all tasks.

Cells carry the numbers they sort by. Methods with swept settings stand below the others. Nothing is computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from registry.bench.results import FULL, is_reference, reference_of
from registry.bench.sweep import split_name
from registry.reports.frames import NOT_RUN, score_in, swept, unswept
from registry.reports.numbers import DASH, number, p_value, readable_bytes, readable_seconds, share, signed, worse_on
from registry.reports.page import tone_of
from registry.reports.page_content import Cell, Column, PageTable, RowGroup
from registry.stats.intervals import LEVEL

READING = (
    f"Below each score stands its {100 * LEVEL:.0f} % interval over seeds and reported rows; the main metric of each "
    "task is set in bold. Differences to full fine-tuning are in points, hundredths of the main metric, with a paired "
    "interval over the same rows; below each verdict stands its p-value by Holm's method."
)


def scores_table(summary: pd.DataFrame) -> PageTable:
    """Return one row per task and method; ``summary`` is by ``summary_table``."""
    metrics = [str(name).removesuffix("_mean") for name in summary if str(name).endswith("_mean")]
    shown = [metric for metric in metrics if summary[f"{metric}_mean"].notna().any()]
    titles = (
        "method",
        "trainable",
        "stored",
        *shown,
        "vs full",
        "verdict",
        "training",
        "rows/s",
        "peak memory",
    )
    groups = []
    for (task, split, metric), frame in summary.groupby(["task", "split", "main_metric"], sort=False):
        heading = f"{task} ({split}), by {metric}"
        for name, part in ((heading, unswept(frame)), (f"{heading}: swept settings", swept(frame))):
            if len(part):
                rows = tuple(_score_row(row, shown) for row in part.to_dict("records"))
                groups.append(RowGroup(name=name, rows=rows))
    return _table(titles, groups)


def totals_table(totals: pd.DataFrame, tasks: int) -> PageTable:
    """Return one row per method: one backbone and a set for each task against as many full models.

    Swept settings are left out where there are others: they are hardly ever run on all tasks.

    Args:
        totals: by ``total_table``.
        tasks: how many there are.
    """
    titles = (
        *("method", "tasks", "mean of main metrics", "vs full", "worse on"),
        *("one backbone + sets", "full models", "training"),
    )
    seconds = {row["method"]: row["train_seconds"] for row in totals.to_dict("records") if row["tasks"] == tasks}
    rows = tuple(_total_row(row, seconds, tasks) for row in unswept(totals).to_dict("records"))
    return _table(titles, [RowGroup(rows=rows)])


def _score_row(row: dict[Any, Any], metrics: Sequence[str]) -> tuple[Cell, ...]:
    trainable = None if pd.isna(row["trainable"]) else int(row["trainable"])
    return (
        Cell(text=row["method"], value=row["method"], detail=_seeds(row)),
        Cell(text=DASH)
        if trainable is None
        else Cell(text=f"{trainable:,}", value=float(trainable), detail=share(row["percent"])),
        _bytes(row["stored_bytes"]),
        *(_score(row, metric) for metric in metrics),
        _difference(row),
        _verdict(row),
        _cell(row["train_seconds"], readable_seconds(row["train_seconds"])),
        _cell(row["rows_per_second"], number(row["rows_per_second"], ",.0f")),
        _bytes(row["peak_memory_bytes"]),
    )


def _seeds(row: Mapping[Any, Any]) -> str:
    """Return how many runs count, and how many do not."""
    seeds = f"{row['seeds']} seed{'' if row['seeds'] == 1 else 's'}"
    left_out = [f"{row[name]} {name.replace('_', ' ')}" for name in ("failed", "not_averaged") if row[name]]
    return ", ".join([seeds] * bool(row["seeds"]) + left_out) or NOT_RUN


def _score(row: dict[Any, Any], metric: str) -> Cell:
    mean, low, high = score_in(row, metric)
    joint = DASH if low >= 0 else " to "
    detail = "" if pd.isna(mean) or pd.isna(low) else f"{low:.3f}{joint}{high:.3f}".replace("-", "\N{MINUS SIGN}")
    main = metric == row["main_metric"]
    return Cell(text=number(mean, ".3f"), value=_value(mean), detail=detail, tone="strong" if main else "")


def _difference(row: Mapping[Any, Any]) -> Cell:
    points = row["difference_points"]
    if pd.isna(points):
        return Cell(text=DASH)
    low, high = row["difference_low"], row["difference_high"]
    detail = "" if pd.isna(low) else f"{signed(low)} to {signed(high)}"
    return Cell(text=signed(points), value=float(points), detail=detail)


def _verdict(row: Mapping[Any, Any]) -> Cell:
    verdict = row["verdict"]
    if not verdict:
        return Cell(text="reference" if is_reference(row["method"]) and row["seeds"] else DASH, tone="soft")
    detail = f"p {p_value(row['difference_p'])}"
    return Cell(text=verdict, value=verdict, detail=detail, tone=tone_of(verdict))


def _total_row(row: Mapping[Any, Any], seconds: Mapping[str, float], tasks: int) -> tuple[Cell, ...]:
    """Return one row of the totals.

    Args:
        row: of the frame.
        seconds: of the methods that ran on all tasks, since times of other tasks do not compare.
        tasks: how many there are.
    """
    method, mean, points = row["method"], row["main_metrics_mean"], row["difference_points"]
    full_seconds = None if is_reference(method) else seconds.get(reference_of(method))
    return (
        Cell(text=method, value=method),
        Cell(text=f"{row['tasks']} of {tasks}", value=float(row["tasks"])),
        _cell(mean, number(mean, ".3f")),
        Cell(text=DASH) if pd.isna(points) else Cell(text=signed(points), value=float(points)),
        Cell(text=worse_on(row), value=float(row["worse_tasks"]) if row["compared_tasks"] else None),
        _cell(
            row["bytes"],
            readable_bytes(row["bytes"]),
            "" if split_name(method)[0] == FULL else _ratio(row["bytes"], row["full_models_bytes"]),
        ),
        _bytes(row["full_models_bytes"]),
        _cell(
            row["train_seconds"],
            readable_seconds(row["train_seconds"]),
            _ratio(row["train_seconds"], full_seconds) if method in seconds else "",
        ),
    )


def _ratio(part: Any, whole: Any) -> str:
    return "" if pd.isna(part) or pd.isna(whole) or not part or not whole else f"{100 * part / whole:.0f} % of full"


def _bytes(value: Any) -> Cell:
    return _cell(value, readable_bytes(value))


def _cell(value: Any, text: str, detail: str = "") -> Cell:
    return Cell(text=text, value=_value(value), detail=detail)


def _value(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _table(titles: Sequence[str], groups: Sequence[RowGroup]) -> PageTable:
    columns = tuple(
        Column(key=title, title=title, side="left" if title in ("method", "verdict") else "right") for title in titles
    )
    return PageTable(columns=columns, groups=tuple(groups))
