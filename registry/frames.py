"""Run records as pandas frames: long, one row per run, means over seeds, totals over tasks.

The long table (task, method, seed, split, metric, value) is the source of every mean; further statistics start
there. Records that do not belong together are refused here. This file knows nothing of files or how numbers look.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import PurePath
from typing import Any

import msgspec
import pandas as pd

from registry.errors import RunError
from registry.schema import BASELINES, PLACEMENTS, RunRecord
from registry.variants import split_name

SAMPLE_NOTICE = "Scores from the bundled sample: for trying the program out, not evidence."
NOT_RUN = "not run"
FULL = "full_fine_tuning"
LOWER_IS_BETTER = ("mse",)

_METRICS = ("accuracy", "f1_binary", "f1_weighted")
_METHODS = ("majority", "head_only", *PLACEMENTS)
_LONG = ["task", "method", "seed", "split", "metric", "value"]
_LEADING = ["task", "split", "method", "seeds", "train_rows", "trainable", "percent", "stored_bytes"]
_TRAILING = [
    *("main_metric", "difference_points", "train_seconds", "rows_per_second", "peak_memory_bytes"),
    *("dtype", "failed", "notes"),
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
    frame = pd.DataFrame([_run_row(record) for record in ordered])
    scores = [[record.scores.get(metric, _NAN) for metric in metrics] for record in ordered]
    return frame.join(pd.DataFrame(scores, columns=metrics, index=frame.index))


def summary_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per task and method: mean and sample standard deviation over the finished seeds, and the costs.

    The baselines always have a row, so that nobody reads a score without them: one that was not run is empty
    and says so in ``notes``. Failed runs are counted and never averaged in.

    Raises:
        RunError: there are no records, or records of one table were made under different conditions.
    """
    check_comparable(records)
    cells = [(task, method) for task in task_names(records) for method in _methods_of(records, task)]
    frame = pd.DataFrame([_summary_row(records, task, method) for task, method in cells])
    scores = long_table(records).groupby(["task", "method", "metric"])["value"].agg(["mean", "std"]).unstack()
    columns = []
    for metric in score_names(records):
        for statistic in ("mean", "std"):
            values = scores.get((statistic, metric), pd.Series(dtype=float))
            frame[f"{metric}_{statistic}"] = [values.get(cell, _NAN) for cell in cells]
            columns.append(f"{metric}_{statistic}")
    frame["difference_points"] = _differences(frame)
    return frame[[*_LEADING, *columns, *_TRAILING]].astype(dict.fromkeys(_WHOLE, "Int64"))


def total_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per method: what it costs and scores over all tasks together.

    ``bytes`` is one backbone in float32 and one set per task, or as many full models; ``full_models_bytes`` is what
    the same tasks need as full models. ``train_seconds`` adds up one run (the mean over seeds) per task. The mean of
    the main metrics is empty where a task is missing, since means over different tasks do not compare.

    Raises:
        RunError: as in ``summary_table``.
    """
    summary = summary_table(records)
    backbones = {record.task: record.parameters.backbone * _BYTES_PER_PARAMETER for record in records}
    methods = sorted(set(summary["method"]), key=method_order)
    rows = []
    for method in methods:
        done = summary[(summary["method"] == method) & (summary["seeds"] > 0)]
        scores = [main_score(row)[0] for row in done.to_dict("records")]
        alone = split_name(method)[0] in ("majority", FULL)
        shared = 0 if alone else max((backbones[task] for task in done["task"]), default=0)
        rows.append(
            {
                "method": method,
                "tasks": len(done),
                "main_metrics_mean": statistics.fmean(scores) if len(scores) == len(backbones) else _NAN,
                "bytes": shared + int(done["stored_bytes"].sum()) if len(done) else None,
                "full_models_bytes": sum(backbones[task] for task in done["task"]) if len(done) else None,
                "train_seconds": float(done["train_seconds"].sum()) if len(done) else _NAN,
            }
        )
    return pd.DataFrame(rows).astype({"bytes": "Int64", "full_models_bytes": "Int64"})


def missing_baselines(records: Sequence[RunRecord]) -> list[str]:
    """Return "<baseline> on <task>" for every baseline that no run was made of."""
    ran = {(record.task, record.method) for record in records}
    ordered = sorted(BASELINES, key=method_order)
    return [f"{method} on {task}" for task in task_names(records) for method in ordered if (task, method) not in ran]


def check_comparable(records: Sequence[RunRecord]) -> None:
    """Refuse records that one table must not mix.

    Raises:
        RunError: there are none, or two of one task differ in data, backbone or split, or two of one task and
            method differ in dtype or in any setting but the seed.
    """
    if not records:
        raise RunError("this table", "at least one run record", "none", "make some with 'adapter-registry bench'")
    ordered = _ordered(records)
    for _, task in groupby(ordered, key=lambda record: record.task):
        _check_equal(list(task), _task_conditions)
    for _, cell in groupby(ordered, key=lambda record: (record.task, record.method)):
        _check_equal(list(cell), _cell_conditions)


def main_score(row: dict[Any, Any]) -> tuple[float, float]:
    """Return mean and standard deviation of the main metric in one row of the summary."""
    metric = row["main_metric"]
    return row.get(f"{metric}_mean", _NAN), row.get(f"{metric}_std", _NAN)


def score_names(records: Iterable[RunRecord]) -> list[str]:
    """Return the metric columns: the three that are always there, then others by name."""
    others = {metric for record in records for metric in record.scores} - set(_METRICS)
    return [*_METRICS, *sorted(others)]


def task_names(records: Iterable[RunRecord]) -> list[str]:
    """Return the sorted names of the tasks."""
    return sorted({record.task for record in records})


def method_order(method: str) -> tuple[int, str, tuple[tuple[str, float], ...]]:
    """Return the sort key of a method: simple baselines, placements, other recipes, full fine-tuning last.

    Variants come after their method, by their swept values.
    """
    base, swept = split_name(method)
    place = _METHODS.index(base) if base in _METHODS else len(_METHODS) + (base == FULL)
    return place, base, swept


def source_name(source: str) -> str:
    """Return a data or backbone source without the folders of the machine it was read on."""
    path = PurePath(source)
    return path.name if path.is_absolute() else source


def _ordered(records: Iterable[RunRecord]) -> list[RunRecord]:
    return sorted(records, key=lambda record: (record.task, method_order(record.method), record.seed))


def _methods_of(records: Iterable[RunRecord], task: str) -> list[str]:
    ran = {record.method for record in records if record.task == task}
    return sorted(ran.union(BASELINES), key=method_order)


def _run_row(record: RunRecord) -> dict[str, Any]:
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
        "notes": SAMPLE_NOTICE if record.data.sample else "",
    }


def _summary_row(records: Sequence[RunRecord], task: str, method: str) -> dict[str, Any]:
    of_task = [record for record in records if record.task == task]
    cell = [record for record in of_task if record.method == method]
    done = [record for record in cell if record.status == "finished"]
    notes = [SAMPLE_NOTICE] if of_task[0].data.sample else []
    first = cell[0] if cell else None
    return {
        "task": task,
        "split": of_task[0].split,
        "method": method,
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
        "failed": len(cell) - len(done),
        "notes": " ".join(notes if cell else [*notes, NOT_RUN]),
    }


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else _NAN


def _differences(frame: pd.DataFrame) -> list[float]:
    """Return the main metric's distance to full fine-tuning in points, for metrics that count in hundredths."""
    rows = frame.to_dict("records")
    full = {row["task"]: main_score(row)[0] for row in rows if row["method"] == FULL}
    return [
        _NAN if row["main_metric"] in LOWER_IS_BETTER else 100 * (main_score(row)[0] - full[row["task"]])
        for row in rows
    ]  # fmt: skip


def _check_equal(records: Sequence[RunRecord], conditions: Callable[[RunRecord], dict[str, object]]) -> None:
    first = records[0]
    for other in records[1:]:
        expected, found = conditions(first), conditions(other)
        for name in [*expected, *(name for name in found if name not in expected)]:
            if expected.get(name) != found.get(name):
                raise RunError(
                    f"{_place(first)} and {_place(other)}",
                    f"the same {name}",
                    f"{_short(expected.get(name))} and {_short(found.get(name))}",
                    "use another --out folder for runs under other conditions",
                )


def _place(record: RunRecord) -> str:
    return f"runs/{record.task}/{record.method}/seed-{record.seed}.json"


def _short(value: object) -> str:
    return str(value)[:12]


def _task_conditions(record: RunRecord) -> dict[str, object]:
    return {
        "data fingerprint": record.data.fingerprint,
        "backbone fingerprint": record.backbone.fingerprint,
        "split": record.split,
        "main metric": record.main_metric,
    }


def _cell_conditions(record: RunRecord) -> dict[str, object]:
    conditions: dict[str, object] = {"dtype": record.dtype}
    for part in ("adapter", "head", "training"):
        settings = getattr(record, part)
        plain = msgspec.structs.asdict(settings) if settings is not None else {}
        conditions.update({f"{part} {name}": value for name, value in plain.items() if name != "seed"})
    return conditions
