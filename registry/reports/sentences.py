"""What a table amounts to, in one sentence for each task and one over all of them.

The best adapter method is named with its interval, its distance to full fine-tuning, and whether that distance can be
told from none. Methods with swept settings are not named beside others, since they were chosen on the reported rows.

What a reader is told beside the numbers: how sure they are, seeds, rows, machine, and which runs to be wary of.

The tables are frames.py's, their form is numbers.py's; nothing is computed anew here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from typing import Any

import pandas as pd

from registry.bench.records import RunRecord
from registry.bench.results import FULL, is_dirty, not_above_majority, reference_of, why_not_averaged
from registry.config import BASELINES
from registry.provenance import Hardware
from registry.reports.content import Detectable, TableStatistics
from registry.reports.frames import SAMPLE_NOTICE, main_score, missing_baselines, source_name, unswept
from registry.reports.numbers import one_line, plus_minus, readable_bytes, share
from registry.stats.comparison import ALPHA, UNDECIDED
from registry.stats.intervals import LEVEL, RESAMPLES
from registry.tasks.spec import LOWER_IS_BETTER

READING = (
    f"Below each score stands its {100 * LEVEL:.0f} % interval over seeds and reported rows; the main metric of each "
    "task is set in bold. Differences to full fine-tuning are in points, hundredths of the main metric, with a paired "
    "interval over the same rows; below each verdict stands its p-value by Holm's method."
)
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
    adapters = [row for row in rows if _is_adapter(row) and not math.isnan(main_score(row)[0])]
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
        if _is_adapter(row)
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


def _is_adapter(row: Mapping[Any, Any]) -> bool:
    return row["base_method"] not in BASELINES


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


def notes(records: Sequence[RunRecord], measured: TableStatistics) -> list[str]:
    """Return what a reader needs to judge the numbers: how sure they are, seeds, rows, machine, what is missing."""
    records = sorted(records, key=lambda record: (record.task, record.method, record.seed))
    found = [
        *_statistics_notes(records, measured),
        f"Seeds: {_listed(record.seed for record in records)}; all of them are listed, none was chosen.",
        f"Main metric: {_listed(f'{record.task} {record.main_metric}' for record in records)}.",
        *_positive_notes(records),
        *_rows_notes(records),
        f"Backbone: {_listed(_backbone(record) for record in records)}. Trainable percentages are of its parameters.",
        f"Machine: {'; '.join(sorted({_machine(record) for record in records}))}.",
        f"Dtype: {_listed(record.dtype for record in records)}.",
        f"Libraries: {_listed(f'{n} {v}' for record in records for n, v in record.library_versions.items())}.",
        f"Code: {_listed(record.code for record in records)}.",
    ]
    if len({_machine(record) for record in records}) > 1:
        found.append("Times and memory come from different machines and do not compare.")
    together = [record.together for record in records if record.together > 1]
    if together:
        found.append(
            f"Of {len(records)} runs, {len(together)} were trained in passes of up to {max(together)} sets: their "
            "training seconds are shares of a joint pass by tokens, and their peak memory is the whole pass's."
        )
    if any(set(record.swept) - {"train_rows"} for record in records):
        found.append(
            "Methods with swept settings in their names are compared on the reported split itself: the best of them is "
            "chosen there, so its score flatters it."
        )
    if dirty := [record for record in records if is_dirty(record)]:
        found.append(
            f"{len(dirty)} of {len(records)} runs were made by uncommitted code "
            f"({_listed(record.code for record in dirty)}): nobody can repeat them, and none is averaged with another."
        )
    found += [_low_note(record, records) for record in not_above_majority(records)]
    return [*found, *missing_and_failed(records)]


def missing_and_failed(records: Sequence[RunRecord]) -> list[str]:
    """Return one line for baselines that were not run, one for each failed run, and one for each mean not taken."""
    found = []
    if missing := missing_baselines(records):
        found.append(f"Baselines not run: {', '.join(missing)}.")
    failed = [record for record in records if record.status == "failed"]
    found += [f"Failed: {_cell(record)}: {one_line(record.error or 'no reason recorded')}" for record in failed]
    found += [f"Diverged: {_cell(record)}: {one_line(record.error or '')}" for record in records if record.diverged]
    cells: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        cells.setdefault((record.task, record.method), []).append(record)
    for (task, method), cell in sorted(cells.items()):
        if why := why_not_averaged(cell):
            found.append(f"Not averaged: {method} on {task}: {why}; run them again with one commit.")
    return found


def notice(records: Sequence[RunRecord]) -> str:
    """Return the line that must come first where any record is from the bundled sample, or an empty string."""
    return SAMPLE_NOTICE if any(record.data.sample for record in records) else ""


def _statistics_notes(records: Sequence[RunRecord], measured: TableStatistics) -> list[str]:
    """Return how intervals, differences and tests were made, and what so few rows cannot show."""
    if not measured.intervals:
        return ["No intervals and no tests: there are no predictions to make them from."]
    percent = f"{100 * LEVEL:.0f} %"
    found = [
        f"± is half of a {percent} interval that holds the chance of seeds and of reported rows (two-level bootstrap, "
        f"{RESAMPLES:,} resamples); csv and json have its ends, and the standard deviation over seeds."
    ]
    if alone := _trained_once(measured):
        found.append(
            "One seed only, so that intervals of it, and of differences to it, hold the chance of the rows alone: "
            f"{', '.join(alone)}."
        )
    if measured.comparisons:
        found.append(
            "A difference is to full fine-tuning on the same rows, in points (hundredths of the main metric), with a "
            f"paired {percent} interval; * where that leaves out zero and the p-value, by Holm's method over "
            f"{_families(measured)}, is below {ALPHA}. All others are not distinguishable from it."
        )
    if any(one.reference != FULL for one in measured.comparisons.values()):
        found.append("A method on fewer training rows is compared with full fine-tuning on as many.")
    for task, one in sorted(measured.detectable.items()):
        least = "no difference" if isnan(one.difference) else f"{100 * one.difference:.1f} points of accuracy"
        found.append(
            f"{task}: two runs on {one.rows:,} rows of which one alone is right on {share(100 * one.discordance)}, as "
            f"here, would probably show {least} (exact McNemar test, power 0.8) and nothing smaller."
        )
    return found


def _families(measured: TableStatistics) -> str:
    """Return over which comparisons p-values were adjusted."""
    swept = len(measured.swept)
    own = len(measured.comparisons) - swept
    if not swept or not own:
        return f"all {own or swept} comparisons of the table"
    return f"all {own} comparisons of the table and, apart from them, all {swept} of swept settings"


def _trained_once(measured: TableStatistics) -> list[str]:
    """Return the methods that one run counts of: on all their tasks, or "method on task" where on others more do."""
    once: dict[str, dict[str, bool]] = {}
    for (task, method), scores in sorted(measured.intervals.items()):
        once.setdefault(method, {})[task] = any(not interval.covers_seeds for interval in scores.values())
    return [
        name
        for method, tasks in sorted(once.items())
        for name in ([method] if all(tasks.values()) else [f"{method} on {task}" for task in tasks if tasks[task]])
    ]


def _positive_notes(records: Sequence[RunRecord]) -> list[str]:
    """Return one line that names the class F1 is of, for each task whose records know it."""
    known = {(record.task, record.positive_label) for record in records if "f1_binary" in record.scores}
    told = ", ".join(f"'{label}' in {task}" for task, label in sorted(known, key=str) if label is not None)
    return [f"f1_binary is of {told}."] if told else []


def _rows_notes(records: Sequence[RunRecord]) -> list[str]:
    """Return one line for each task and what its runs saw, and one for numbers of training rows that names tell."""
    by_task: dict[str, list[RunRecord]] = {}
    for record in records:
        by_task.setdefault(record.task, []).append(record)
    seen = {_rows_note(record) for of_task in by_task.values() for record in _telling_rows(of_task)}
    return [*sorted(seen), *(note for task in sorted(by_task) if (note := _fewer_rows_note(by_task[task])))]


def _telling_rows(of_task: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the runs of one task that tell its rows: finished ones that read the texts, on all its training rows.

    Where there are none, those on most of them; a run that read no texts cannot say how many were cut.
    """
    read = [record for record in of_task if record.training is not None and record.status == "finished"]
    whole = [record for record in read if "train_rows" not in record.swept]
    most = max((record.data.train_rows for record in read), default=0)
    return whole or [record for record in read if record.data.train_rows == most] or list(of_task)


def _fewer_rows_note(of_task: Sequence[RunRecord]) -> str:
    sizes = sorted({record.data.train_rows for record in of_task if "train_rows" in record.swept})
    fewer = ", ".join(f"{rows:,}" for rows in sizes if rows < of_task[0].data.train_available)
    told = f"{of_task[0].task}, fewer training rows: {fewer} (drawn once, the same for all methods and seeds)."
    return told if fewer else ""


def _rows_note(record: RunRecord) -> str:
    data = record.data
    source = "the bundled sample" if data.sample else source_name(data.source)
    overlap = (
        "whether reported rows also stand in the training rows was not checked"
        if data.overlap_reported is None
        else f"{data.overlap_reported:,} of {data.reported_rows:,} reported rows also stand in the training rows, "
        "but for case, spacing and punctuation"
    )
    return (
        f"{record.task}, from {source}: trained on {data.train_rows:,} of {data.train_available:,} rows "
        f"({_truncated(data.truncated_train, data.train_rows)}), reported on {data.reported_rows:,} of "
        f"{data.reported_available:,} rows of {record.split} "
        f"({_truncated(data.truncated_reported, data.reported_rows)}); {overlap}."
    )


def _truncated(rows: int, of: int) -> str:
    return f"{rows:,} truncated, {share(100 * rows / of)}" if rows else "none truncated"


def _low_note(record: RunRecord, records: Sequence[RunRecord]) -> str:
    metric = record.main_metric
    majority = next(
        one for one in records if (one.task, one.method, one.status) == (record.task, "majority", "finished")
    )
    return (
        f"No better than the majority class: {_cell(record)}: {metric} {record.scores[metric]:.3f}, "
        f"majority {majority.scores[metric]:.3f}."
    )


def _backbone(record: RunRecord) -> str:
    info = record.backbone
    return f"{source_name(info.source)} ({info.parameters:,} parameters, fingerprint {info.fingerprint[:12]})"


def _machine(record: RunRecord) -> str:
    machine: Hardware = record.hardware
    accelerator = f", {machine.accelerator}" if machine.accelerator else ""
    memory = readable_bytes(machine.memory_bytes)
    return (
        f"{machine.processor}, {machine.cores} cores, threads a run: {machine.threads}, {memory} memory{accelerator}, "
        f"{machine.system}, on {record.device}"
    )


def _cell(record: RunRecord) -> str:
    return f"{record.method} on {record.task}, seed {record.seed}"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in sorted(set(values)))


def power_sentence(least: Detectable, in_band: bool) -> str:
    """Return what so many rows can show; ``in_band`` where a picture shades it."""
    where = f"Where exactly one of two runs is right on {share(100 * least.discordance)} of the rows, as here, "
    if math.isnan(least.difference):
        return f"{where}{least.rows:,} rows would probably show no difference between the two at all."
    points = f"{100 * least.difference:.1f} points of accuracy{' (the shaded band)' if in_band else ''}"
    return f"{where}{least.rows:,} rows would probably show a difference of {points}, and hardly a smaller one."


def unbroken(sentence: str) -> str:
    """Return a sentence whose scores stay on one line with their intervals, and whose minus signs are such."""
    sentence = re.sub(r"(?<=\d) (?=± \d)|(?<=±) (?=\d)|(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", sentence)
    return re.sub(r"(?<= )-(?=\d)", "\N{MINUS SIGN}", sentence)
