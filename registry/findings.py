"""What a table amounts to, in one sentence for each task and one over all of them.

The best adapter method is named with its interval, its distance to full fine-tuning, and whether that distance can be
told from none. Methods with swept settings are not named beside others, since they were chosen on the reported rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from registry.comparable import FULL, LOWER_IS_BETTER, reference_of
from registry.documents import plus_minus, share
from registry.frames import main_score, unswept
from registry.schema import BASELINES
from registry.variants import split_name
from registry.verdicts import UNDECIDED

SMALL = 1.0  # per cent of the backbone's parameters


def sentences(summary: pd.DataFrame, totals: pd.DataFrame) -> list[str]:
    """Return one sentence per task, its best adapter method against full fine-tuning, and one over all tasks."""
    of_tasks = summary.groupby("task", sort=False)
    tasks = [_task_sentence(str(task), unswept(rows).to_dict("records")) for task, rows in of_tasks]
    over_all = _total_sentence(unswept(summary), totals) if len(tasks) > 1 else ""
    return [*tasks, over_all] if over_all else tasks


def _task_sentence(task: str, rows: Sequence[dict[Any, Any]]) -> str:
    metric, split = rows[0]["main_metric"], rows[0]["split"]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    adapters = [row for row in rows if _is_adapter(row["method"]) and not math.isnan(main_score(row)[0])]
    if not adapters:
        return f"{task} ({split}): no adapter method has a mean score."
    best = max(adapters, key=lambda row: sign * main_score(row)[0])
    reference = reference_of(best["method"])
    full = next((row for row in rows if row["method"] == reference), None)
    named = "full fine-tuning" if reference == FULL else "full fine-tuning on as many rows"
    text = (
        f"{task} ({split}): of the adapter methods, {best['method']} has the best mean {metric}, "
        f"{plus_minus(*main_score(best))}, training {share(best['percent'])} of the backbone's parameters; "
    )
    if full is None or math.isnan(main_score(full)[0]):
        return f"{text}there is no mean of {named} to compare with."
    if math.isnan(best["difference_points"]):
        return f"{text}{named} has {plus_minus(*main_score(full))}{_said(best)}."
    distance = _distance(best["difference_points"])
    return f"{text}that is {distance} {named} ({plus_minus(*main_score(full))}){_told(best)}."


def _total_sentence(summary: pd.DataFrame, totals: pd.DataFrame) -> str:
    """Return which method of at most one per cent has the best mean over all tasks; empty where none ran on all."""
    largest = summary.groupby("method")["percent"].max()
    rows = [
        row
        for row in totals.to_dict("records")
        if _is_adapter(row["method"])
        and reference_of(row["method"]) == FULL  # else means are over other numbers of training rows
        and largest.get(row["method"], math.inf) <= SMALL
        and not math.isnan(row["difference_points"])
    ]
    if not rows:
        return ""
    best, count = max(rows, key=lambda row: row["difference_points"]), summary["task"].nunique()
    worse = best["worse_tasks"]
    told = f"; worse than it on {worse} of {count}" if worse else f"; on none of {count} can it be told to be worse"
    told = told if best["compared_tasks"] == count else ""
    return (
        f"Over all tasks: of the adapter methods that train at most {SMALL:.0f} % of the parameters, {best['method']} "
        f"has the best mean of the main metrics, {_distance(best['difference_points'])} full fine-tuning{told}."
    )


def _is_adapter(method: str) -> bool:
    return split_name(method)[0] not in BASELINES


def _distance(points: float) -> str:
    gap = round(points, 1)
    return f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'}" if gap else "level with"


def _told(row: Mapping[Any, Any]) -> str:
    """Return the interval of a difference and what may be said of it."""
    if math.isnan(row["difference_low"]):
        return ""
    interval = f"95 % interval {row['difference_low']:+.1f} to {row['difference_high']:+.1f}"
    return f", {row['verdict']} ({interval})" if row["verdict"] == UNDECIDED else f", {interval}"


def _said(row: Mapping[Any, Any]) -> str:
    return f", {row['verdict']}" if row["verdict"] else ""
