"""What the page's drawings show, from the frames and records of a report: scores, differences, curves.

Methods with swept settings are left to the two curves over sizes, where there are others. Nothing is drawn here.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import pandas as pd

from registry.bench.records import RunRecord
from registry.bench.results import FULL
from registry.bench.sweep import split_name
from registry.reports.frames import main_score, method_order, unswept
from registry.reports.numbers import share
from registry.reports.page_content import (
    Forest,
    ForestRow,
    MethodCurves,
    MethodGroup,
    Scatter,
    ScatterPoint,
    SeedCurve,
    SizeCurve,
    SizeLine,
    SizePoint,
    TaskCurves,
)
from registry.reports.statistics import Detectable, TableStatistics
from registry.schema import BASELINES
from registry.stats.comparison import Comparison
from registry.stats.intervals import Interval
from registry.stats.predictions import CellKey
from registry.tasks.metrics import LOWER_IS_BETTER

_Size = Callable[[RunRecord], int]


def task_title(task: str, split: str) -> str:
    """Return what the page calls a task: rows of another split are another thing."""
    return f"{task} ({split})"


def task_rows(summary: pd.DataFrame) -> Iterator[tuple[str, str, str, list[dict[Any, Any]]]]:
    """Yield each task with its title, its main metric, and its rows without swept settings where there are such."""
    rows = unswept(summary).to_dict("records")
    for (task, split, metric), group in itertools.groupby(rows, operator.itemgetter("task", "split", "main_metric")):
        yield task, task_title(task, split), metric, list(group)


def scatters(summary: pd.DataFrame) -> tuple[Scatter, ...]:
    """Return for each task the mean and interval of the main metric over trainable parameters."""
    found = []
    for _, title, metric, rows in task_rows(summary):
        points = tuple(_point(row) for row in rows if not math.isnan(main_score(row)[0]))
        if points:
            found.append(Scatter(task=title, metric=metric, points=points))
    return tuple(found)


def forests(summary: pd.DataFrame, measured: TableStatistics) -> tuple[Forest, ...]:
    """Return for each task the differences of its methods to full fine-tuning, in points."""
    found = []
    for task, title, metric, of_task in task_rows(summary):
        rows = tuple(
            _difference(row["method"], measured.comparisons[task, row["method"]])
            for row in of_task
            if (task, row["method"]) in measured.comparisons
        )
        if not rows or metric in LOWER_IS_BETTER:
            continue
        least = measured.detectable.get(task)
        shows = least is not None and metric == "accuracy" and math.isfinite(least.difference)
        found.append(
            Forest(
                task=title,
                metric=metric,
                reference=FULL,
                rows=rows,
                detectable=100 * least.difference if least is not None and shows else None,
                power="" if least is None else _power(least, shows),
            )
        )
    return tuple(found)


def learning_curves(records: Sequence[RunRecord], summary: pd.DataFrame) -> tuple[TaskCurves, ...]:
    """Return the losses and held-out scores of every run that has them, those that diverged too."""
    found = []
    for task, title, metric, rows in task_rows(summary):
        methods = []
        for method in (row["method"] for row in rows):
            runs = [record for record in records if (record.task, record.method) == (task, method)]
            seeds = tuple(_seed_curve(run) for run in sorted(runs, key=lambda run: run.seed) if run.curve is not None)
            if seeds:
                methods.append(MethodCurves(method=method, seeds=seeds))
        if methods:
            found.append(TaskCurves(task=title, metric=metric, methods=tuple(methods)))
    return tuple(found)


def bottleneck_curves(records: Sequence[RunRecord], measured: TableStatistics) -> tuple[SizeCurve, ...]:
    """Return for each task the scores of methods of which nothing but the bottleneck's size differs."""
    fitting = [record for record in records if record.adapter is not None]
    return _size_curves(records, measured, "rf", "bottleneck size M", fitting, _bottleneck)


def amount_curves(records: Sequence[RunRecord], measured: TableStatistics) -> tuple[SizeCurve, ...]:
    """Return for each task the scores of methods of which nothing but the number of training rows differs."""
    fitting = [record for record in records if record.training is not None]
    return _size_curves(records, measured, "n", "training rows", fitting, lambda record: record.data.train_rows)


def group_of(method: str) -> MethodGroup:
    """Return whether a method is a baseline, full fine-tuning, or a set."""
    base = split_name(method)[0]
    if base == FULL:
        return "full"
    return "baseline" if base in BASELINES else "adapter"


def _point(row: dict[Any, Any]) -> ScatterPoint:
    mean, low, high = main_score(row)
    method, parameters = row["method"], int(row["trainable"])
    return ScatterPoint(
        method=method, parameters=parameters, mean=mean, low=_end(low), high=_end(high), group=group_of(method)
    )


def _difference(method: str, one: Comparison) -> ForestRow:
    found = one.difference
    return ForestRow(
        method=method,
        difference=100 * found.mean,
        low=100 * found.low,
        high=100 * found.high,
        p=one.adjusted_p,
        verdict=one.verdict,
        group=group_of(method),
        seed_tests=tuple(sorted(one.seed_tests.items())),
    )


def _power(least: Detectable, in_band: bool) -> str:
    where = f"Where exactly one of two runs is right on {share(100 * least.discordance)} of the rows, as here, "
    if math.isnan(least.difference):
        return f"{where}{least.rows:,} rows would probably show no difference between the two at all."
    points = f"{100 * least.difference:.1f} points of accuracy{' (the shaded band)' if in_band else ''}"
    return f"{where}{least.rows:,} rows would probably show a difference of {points}, and hardly a smaller one."


def _seed_curve(run: RunRecord) -> SeedCurve:
    steps, losses, held_out = (run.curve.steps, run.curve.losses, run.curve.held_out) if run.curve else ((), (), ())
    scored = [(each.step, each.scores[run.main_metric]) for each in held_out if run.main_metric in each.scores]
    return SeedCurve(
        seed=run.seed,
        steps=steps,
        losses=losses,
        score_steps=tuple(step for step, _ in scored),
        scores=tuple(score for _, score in scored),
        failed=run.status == "failed",
    )


def _bottleneck(record: RunRecord) -> int:
    return record.backbone.hidden_size // (record.adapter.reduction_factor if record.adapter else 1)


def _size_curves(
    records: Sequence[RunRecord],
    measured: TableStatistics,
    code: str,
    axis: str,
    fitting: Iterable[RunRecord],
    size: _Size,
) -> tuple[SizeCurve, ...]:
    """Return a curve for each task with a line for every method that was swept by ``code`` alone.

    A method as it is belongs to the line where all its other settings are the swept ones'.
    """
    first: dict[CellKey, RunRecord] = {}
    for record in fitting:
        if all(swept == code for swept, _ in split_name(record.method)[1]):
            first.setdefault((record.task, record.method), record)
    lines: dict[tuple[str, str, str], dict[int, tuple[str, Interval]]] = {}
    for (task, method), record in sorted(first.items(), key=lambda item: (item[0][0], method_order(item[0][1]))):
        interval = measured.intervals.get((task, method), {}).get(record.main_metric)
        if interval is not None:  # methods as they are come first, and a variant of the same size adds nothing
            line = lines.setdefault((task, split_name(method)[0], _other_settings(record, code)), {})
            line.setdefault(size(record), (method, interval))
    found: dict[str, list[SizeLine]] = {}
    for (task, base, _), line in lines.items():
        if len(line) > 1 and any(method != base for method, _ in line.values()):
            points = tuple(_size_point(each, line[each][1]) for each in sorted(line))
            found.setdefault(task, []).append(SizeLine(method=base, points=points, group=group_of(base)))
    tasks = {record.task: record for record in records}
    return tuple(_size_curve(tasks[task], measured, axis, found[task]) for task in sorted(found))


def _size_curve(record: RunRecord, measured: TableStatistics, axis: str, lines: Sequence[SizeLine]) -> SizeCurve:
    full = measured.intervals.get((record.task, FULL), {}).get(record.main_metric)
    return SizeCurve(
        task=task_title(record.task, record.split),
        metric=record.main_metric,
        axis=axis,
        lines=tuple(lines),
        reference=None if full is None else full.mean,
        reference_name="" if full is None else FULL,
    )


def _other_settings(record: RunRecord, code: str) -> str:
    """Return all that must be equal on one line: the settings but for the seed and for what is swept."""
    adapter = None if record.adapter is None else msgspec.to_builtins(record.adapter)
    training = None if record.training is None else msgspec.to_builtins(record.training)
    rows: int | None = record.data.train_rows
    if adapter is not None and code == "rf":
        del adapter["reduction_factor"]
    if code == "n":
        rows = None
    if training is not None:
        del training["seed"]
    head = None if record.head is None else msgspec.to_builtins(record.head)
    return msgspec.json.encode([adapter, training, head, rows, record.dtype], order="sorted").decode()


def _size_point(size: int, interval: Interval) -> SizePoint:
    return SizePoint(size=size, mean=interval.mean, low=_end(interval.low), high=_end(interval.high))


def _end(value: float) -> float | None:
    return value if math.isfinite(value) else None
