"""Run records as pandas frames: long, one row per run, means over seeds, comparisons, totals over tasks.

The long table (task, method, seed, split, metric, value) is the source of every mean; what may be averaged is
results.py's to say, intervals and comparisons are content.py's. This file knows nothing of files or how numbers
look.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import msgspec
import pandas as pd

from registry.bench.records import RunRecord
from registry.bench.results import (
    FULL,
    averaged_runs,
    check_comparable,
    is_dirty,
    is_reference,
    method_order,
    not_above_majority,
    reference_of,
    why_not_averaged,
)
from registry.config import BASELINES
from registry.stats.comparison import Comparison
from registry.tasks.spec import LOWER_IS_BETTER

if TYPE_CHECKING:
    from registry.reports.content import TableStatistics

SAMPLE_NOTICE = "Scores from the bundled sample: for trying the program out, not evidence."
NOT_RUN = "not run"
DIRTY_NOTICE = "Uncommitted code: cannot be repeated."

_METRICS = ("accuracy", "f1_binary", "f1_weighted")
_LONG = ["task", "method", "seed", "split", "metric", "value"]
_LEADING = [
    "task",
    "split",
    "method",
    "base_method",
    "swept",
    "seeds",
    "train_rows",
    "trainable",
    "percent",
    "stored_bytes",
]
_DIFFERENCE = ["difference_points", "difference_low", "difference_high", "difference_p", "verdict"]
_TRAILING = [
    *("main_metric", *_DIFFERENCE, "train_seconds", "rows_per_second", "peak_memory_bytes"),
    *("dtype", "failed", "not_averaged", "notes"),
]
_COMPARED = [
    *("task", "method", "reference", "metric", "difference", "low", "high", "p", "adjusted_p", "verdict"),
    *("seeds", "reference_seeds", "rows", "seed_tests", "discordance", "notes"),
]
_WHOLE = ["train_rows", "trainable", "stored_bytes", "peak_memory_bytes"]
_BYTES_PER_PARAMETER = 4  # float32
_NAN = float("nan")


def long_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per score: task, method, seed, split, metric, value; failed runs have none."""
    rows = [
        (record.task, record.method, record.seed, record.split, metric, value)
        for record in _ordered(records)
        for metric, value in sorted(record.scores.items())
        if record.status == "finished"
    ]
    return pd.DataFrame(rows, columns=_LONG)


def runs_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per run, failed ones too, with all its scalar fields and a column per metric."""
    ordered, metrics = _ordered(records), score_names(records)
    low = not_above_majority(records)
    frame = pd.DataFrame([_run_row(record, record in low) for record in ordered])
    scores = [[record.scores.get(metric, _NAN) for metric in metrics] for record in ordered]
    return frame.join(pd.DataFrame(scores, columns=metrics, index=frame.index))


def summary_table(records: Sequence[RunRecord], measured: TableStatistics) -> pd.DataFrame:
    """Return one row per task and method: means over the finished seeds with their intervals, and the costs.

    The baselines always have a row, so that nobody reads a score without them: one that was not run is empty
    and says so in ``notes``. Failed runs are counted and never averaged in, nor are runs of different or uncommitted
    code: their row has no scores and its notes say why.

    Args:
        records: of one table.
        measured: their intervals and comparisons, by ``measure``; what it lacks stays empty.

    Raises:
        RunError: there are no records, or records of one table were made under different conditions.
    """
    check_comparable(records)
    cells = [(task, method) for task in task_names(records) for method in _methods_of(records, task)]
    frame = pd.DataFrame([_summary_row(records, task, method) for task, method in cells])
    counted = [run for task, method in cells for run in averaged_runs(_cell(records, task, method))]
    scores = long_table(counted).groupby(["task", "method", "metric"])["value"].agg(["mean", "std"]).unstack()
    columns = {}
    for metric in _measured_names(records, measured):
        intervals = [measured.intervals.get(cell, {}).get(metric) for cell in cells]
        for statistic in ("mean", "std"):
            values = scores.get((statistic, metric), pd.Series(dtype=float))
            columns[f"{metric}_{statistic}"] = [values.get(cell, _NAN) for cell in cells]
        means = zip(columns[f"{metric}_mean"], intervals, strict=True)  # some are told by the answers alone
        columns[f"{metric}_mean"] = [one.mean if one and pd.isna(mean) else mean for mean, one in means]
        columns[f"{metric}_low"] = [one.low if one else _NAN for one in intervals]
        columns[f"{metric}_high"] = [one.high if one else _NAN for one in intervals]
    frame = frame.join(pd.DataFrame(columns, index=frame.index))
    frame["difference_points"] = _differences(frame)
    found = [_comparison_columns(measured.comparisons.get(cell)) for cell in cells]
    frame = frame.join(pd.DataFrame(found, columns=_DIFFERENCE[1:], index=frame.index))
    return frame[[*_LEADING, *columns, *_TRAILING]].astype(dict.fromkeys(_WHOLE, "Int64"))


def comparison_table(records: Sequence[RunRecord], measured: TableStatistics) -> pd.DataFrame:
    """Return one row per comparison with full fine-tuning: interval, p-values, exact McNemar of each seed, verdict."""
    samples = {record.task for record in records if record.data.sample}
    rows = []
    ordered = sorted(measured.comparisons.items(), key=lambda item: (item[0][0], method_order(item[0][1])))
    for (task, method), one in ordered:
        found, scale = one.difference, points_of(one.metric)
        tests = ", ".join(f"{seed}: {p:.3g}" for seed, p in sorted(one.seed_tests.items()))
        numbers = (scale * found.mean, scale * found.low, scale * found.high, found.p, one.adjusted_p, one.verdict)
        label = SAMPLE_NOTICE if task in samples else ""
        rows.append(
            (task, method, one.reference, one.metric, *numbers, *found.seeds, found.rows, tests, one.discordance, label)
        )
    return pd.DataFrame(rows, columns=_COMPARED)


def total_table(records: Sequence[RunRecord], summary: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method: what it costs and scores over all tasks together.

    ``bytes`` is one backbone in float32 and one set per task, or as many full models; ``full_models_bytes`` is what
    the same tasks need as full models. ``train_seconds`` adds up one run (the mean over seeds) per task. The mean of
    the main metrics, and how far it is from full fine-tuning's, are empty where a task is missing, since means over
    different tasks do not compare. ``compared_tasks`` counts those on which the method was compared with full
    fine-tuning, ``worse_tasks`` those of them on which it is told to be worse.

    Args:
        records: of one table.
        summary: of the same records.
    """
    backbones = {record.task: record.parameters.backbone * _BYTES_PER_PARAMETER for record in records}
    methods = sorted(set(summary["method"]), key=method_order)
    rows = []
    for method in methods:
        done = summary[(summary["method"] == method) & (summary["seeds"] > 0)]
        scores = [main_score(row)[0] for row in done.to_dict("records")]
        of_method = summary[summary["method"] == method].iloc[0]
        alone = of_method["base_method"] in ("majority", FULL)
        shared = 0 if alone else max((backbones[task] for task in done["task"]), default=0)
        rows.append(
            {
                "method": method,
                "base_method": of_method["base_method"],
                "swept": of_method["swept"],
                "tasks": len(done),
                "main_metrics_mean": statistics.fmean(scores) if len(scores) == len(backbones) else _NAN,
                "difference_points": _mean_difference(done, len(backbones)),
                "compared_tasks": int((done["verdict"] != "").sum()),
                "worse_tasks": int((done["verdict"] == "worse").sum()),
                "bytes": shared + int(done["stored_bytes"].sum()) if len(done) else None,
                "full_models_bytes": sum(backbones[task] for task in done["task"]) if len(done) else None,
                "train_seconds": float(done["train_seconds"].sum()) if len(done) else _NAN,
            }
        )
    return pd.DataFrame(rows).astype({"bytes": "Int64", "full_models_bytes": "Int64"})


def unswept(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of methods with settings of their own; all rows where every method was swept."""
    own = frame[frame["swept"] == ""]
    trained = own[~own["method"].isin(BASELINES)]
    return own if len(trained) or len(own) == len(frame) else frame


def swept(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that ``unswept`` leaves out."""
    return frame.drop(unswept(frame).index)


def missing_baselines(records: Sequence[RunRecord]) -> list[str]:
    """Return "<baseline> on <task>" for every baseline that no run was made of."""
    ran = {(record.task, record.method) for record in records}
    ordered = sorted(BASELINES, key=method_order)
    return [f"{method} on {task}" for task in task_names(records) for method in ordered if (task, method) not in ran]


def main_score(row: dict[Any, Any]) -> tuple[float, float, float]:
    """Return mean of the main metric in one row of the summary, and the ends of its interval."""
    return score_in(row, row["main_metric"])


def score_in(row: dict[Any, Any], metric: str) -> tuple[float, float, float]:
    """Return mean of a metric in one row of the summary, and the ends of its interval; NaN where there is none."""
    mean, low, high = (row.get(f"{metric}_{statistic}", _NAN) for statistic in ("mean", "low", "high"))
    return mean, low, high


def points_of(metric: str) -> float:
    """Return what a difference is multiplied by: scores up to 1 count in hundredths, errors in their own unit."""
    return 1.0 if metric in LOWER_IS_BETTER else 100.0


def score_names(records: Iterable[RunRecord]) -> list[str]:
    """Return the metric columns: the three that are always there, then others by name."""
    others = {metric for record in records for metric in record.scores} - set(_METRICS)
    return [*_METRICS, *sorted(others)]


def task_names(records: Iterable[RunRecord]) -> list[str]:
    """Return the sorted names of the tasks."""
    return sorted({record.task for record in records})


def source_name(source: str) -> str:
    """Return a data or backbone source without the folders of the machine it was read on."""
    path = PurePath(source)
    outside = path.is_absolute() or path.parts[:1] in (("..",), ("~",))
    return path.name if outside else source


def _ordered(records: Iterable[RunRecord]) -> list[RunRecord]:
    return sorted(records, key=lambda record: (record.task, method_order(record.method), record.seed))


def _methods_of(records: Iterable[RunRecord], task: str) -> list[str]:
    ran = {record.method for record in records if record.task == task}
    return sorted(ran.union(BASELINES), key=method_order)


def _run_row(record: RunRecord, below: bool) -> dict[str, Any]:
    plain = msgspec.structs.asdict(record)
    names = ("task", "method", "seed", "status", "error", "split", "recipe", "main_metric")
    costs = ("stored_bytes", "steps", "final_loss", "together", "train_seconds", "evaluate_seconds", "rows_per_second")
    rest = ("evaluate_rows_per_second", "peak_memory_bytes", "device", "dtype", "settings", "code", "started")
    data = {name: value for name, value in msgspec.structs.asdict(record.data).items() if name != "fingerprint"}
    return {
        **{name: plain[name] for name in names},
        **msgspec.structs.asdict(record.parameters),
        "percent": record.parameters.percent,
        **{name: plain[name] for name in (*costs, *rest)},
        **data,
        "source": source_name(record.data.source),
        "data_fingerprint": record.data.fingerprint,
        "backbone_source": source_name(record.backbone.source),
        "backbone_fingerprint": record.backbone.fingerprint,
        "processor": record.hardware.processor,
        "accelerator": record.hardware.accelerator,
        "predictions_sha256": record.predictions.sha256 if record.predictions else None,
        "notes": " ".join(
            [SAMPLE_NOTICE] * record.data.sample
            + [DIRTY_NOTICE] * is_dirty(record)
            + ["No better than the majority class."] * below
        ),
    }


def _summary_row(records: Sequence[RunRecord], task: str, method: str) -> dict[str, Any]:
    of_task = [record for record in records if record.task == task]
    cell, done = _cell(records, task, method), averaged_runs(_cell(records, task, method))
    failed = sum(record.status == "failed" for record in cell)
    first = cell[0] if cell else None
    return {
        "task": task,
        "split": of_task[0].split,
        "method": method,
        "base_method": first.base_method if first else method,
        "swept": " ".join(f"{name}={value:g}" for name, value in first.swept.items()) if first else "",
        "seeds": len(done),
        "train_rows": first.data.train_rows if first else None,
        "trainable": first.parameters.trainable if first else None,
        "percent": first.parameters.percent if first else _NAN,
        "stored_bytes": max((record.stored_bytes for record in done), default=None),
        "main_metric": of_task[0].main_metric,
        "train_seconds": _mean([record.train_seconds for record in done]),
        "rows_per_second": _mean([record.rows_per_second for record in done]),
        "peak_memory_bytes": max((record.peak_memory_bytes for record in done), default=None),
        "dtype": first.dtype if first else "",
        "failed": failed,
        "not_averaged": len(cell) - len(done) - failed,
        "notes": " ".join(_cell_notes(cell, of_task)),
    }


def _cell(records: Iterable[RunRecord], task: str, method: str) -> list[RunRecord]:
    return [record for record in records if (record.task, record.method) == (task, method)]


def _cell_notes(cell: Sequence[RunRecord], of_task: Sequence[RunRecord]) -> list[str]:
    """Return what stands beside the numbers of one task and method."""
    found = [SAMPLE_NOTICE] if of_task[0].data.sample else []
    if not cell:
        return [*found, NOT_RUN]
    if why := why_not_averaged(cell):
        found.append(f"Not averaged: {why}.")
    elif any(is_dirty(record) for record in averaged_runs(cell)):
        found.append(DIRTY_NOTICE)
    if low := sum(record in cell for record in not_above_majority(of_task)):
        found.append(f"{low} of {len(cell)} runs no better than the majority class.")
    return found


def _measured_names(records: Sequence[RunRecord], measured: TableStatistics) -> list[str]:
    """Return the metric columns, those that only the answers tell after those that are in records."""
    names = score_names(records)
    return [*names, *sorted({name for found in measured.intervals.values() for name in found} - set(names))]


def _comparison_columns(one: Comparison | None) -> tuple[float, float, float, str]:
    if one is None:
        return _NAN, _NAN, _NAN, ""
    if one.metric in LOWER_IS_BETTER:  # has no points
        return _NAN, _NAN, one.adjusted_p, one.verdict
    return 100 * one.difference.low, 100 * one.difference.high, one.adjusted_p, one.verdict


def _mean_difference(done: pd.DataFrame, tasks: int) -> float:
    """Return the mean over all tasks of a method's differences to full fine-tuning, in points."""
    found = done["difference_points"].dropna()
    return float(found.mean()) if len(found) == tasks else _NAN


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else _NAN


def _differences(frame: pd.DataFrame) -> list[float]:
    """Return the main metric's distance to full fine-tuning in points, for metrics that count in hundredths."""
    rows = frame.to_dict("records")
    means = {(row["task"], row["method"]): main_score(row)[0] for row in rows}
    references = [means.get((row["task"], reference_of(row["method"])), _NAN) for row in rows]
    return [
        _NAN
        if row["main_metric"] in LOWER_IS_BETTER or is_reference(row["method"])
        else 100 * (main_score(row)[0] - reference)
        for row, reference in zip(rows, references, strict=True)
    ]
