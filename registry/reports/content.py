"""Everything that one report is made of, computed once: what its answers amount to, its tables and tasks, what made it.

The tests are those of the room stats, which runs count is results.py's. Equal answers give equal results, to the bit.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import operator
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from registry.bench.records import RunRecord, read_records
from registry.bench.results import FULL, check_comparable, method_order, methods_of, read_answers, reference_of
from registry.config import AdapterConfig
from registry.reports.frames import main_score, source_name, summary_table, total_table, unswept
from registry.reports.numbers import readable_bytes
from registry.stats.comparison import ALPHA, Comparison, adjust, compare, interval_of
from registry.stats.intervals import Interval, minimum_detectable_difference
from registry.stats.predictions import CellKey, CellPredictions
from registry.tasks.metrics import told_metrics


@dataclass(frozen=True)
class Detectable:
    """The smallest difference in accuracy that two runs on so many rows would probably show.

    Attributes:
        rows: reported ones.
        discordance: share of rows that exactly one of two runs has right, as found.
        difference: a fraction; NaN where even the largest possible one would not show.
    """

    rows: int
    discordance: float
    difference: float


@dataclass(frozen=True)
class TableStatistics:
    """All that statistics have to say about one table.

    Attributes:
        intervals: for each task and method, of each metric.
        comparisons: of each task and method with full fine-tuning on as many rows, on the main metric.
        detectable: for each task with a comparison.
        swept: the compared cells with swept settings, whose p-values are adjusted apart from the others.
    """

    intervals: Mapping[CellKey, Mapping[str, Interval]] = field(default_factory=dict)
    comparisons: Mapping[CellKey, Comparison] = field(default_factory=dict)
    detectable: Mapping[str, Detectable] = field(default_factory=dict)
    swept: frozenset[CellKey] = frozenset()


def measure(records: Sequence[RunRecord], answers: Mapping[CellKey, CellPredictions]) -> TableStatistics:
    """Return intervals for every score in ``records`` and the comparisons with full fine-tuning.

    Args:
        records: of the table.
        answers: of the same folder, by ``read_answers``.

    Raises:
        ConfigError: scores and answers that do not fit each other.
    """
    metrics = {(record.task, record.method): tuple(record.scores) for record in records if record.scores}
    main = {record.task: record.main_metric for record in records}
    intervals = {
        cell: {name: interval_of(found, name) for name in told_metrics(metrics.get(cell, ()), found.problem_type)}
        for cell, found in answers.items()
    }
    comparisons: dict[CellKey, Comparison] = {}
    for task in sorted(main):
        methods = dict(sorted(methods_of(answers, task).items()))
        for method, found in methods.items():
            reference = reference_of(method)
            if reference != method and reference in methods:
                comparisons[task, method] = compare(found, methods[reference], main[task], reference)
    # Swept settings are another question than methods: a long sweep must not hide what methods differ by.
    variants = {(record.task, record.method) for record in records if record.swept}
    swept = {cell: one for cell, one in comparisons.items() if cell in variants}
    own = {cell: one for cell, one in comparisons.items() if cell not in swept}
    adjusted = adjust(own) | adjust(swept)
    detectable = {task: least for task in sorted(main) if (least := _detectable(task, answers, adjusted))}
    return TableStatistics(intervals, adjusted, detectable, frozenset(swept))


def _detectable(
    task: str, answers: Mapping[CellKey, CellPredictions], comparisons: Mapping[CellKey, Comparison]
) -> Detectable | None:
    """Return what the task's rows can show, at the discordance its trained methods have with full fine-tuning."""
    found = [
        one.discordance
        for (name, method), one in comparisons.items()
        if name == task and method != "majority" and one.reference == FULL and one.discordance > 0
    ]
    if not found:
        return None
    rows, discordance = len(answers[task, FULL].labels), statistics.median(found)
    return Detectable(rows, discordance, minimum_detectable_difference(rows, discordance, ALPHA))


@dataclass(frozen=True)
class SizeCurve:
    """Scores against something that was swept, on one task.

    Attributes:
        title: of the task.
        metric: the main one.
        axis: what was swept: a bottleneck's size, or training rows.
        lines: methods, each with its intervals by rising size.
        reference: mean of full fine-tuning on all rows; None where there is none.
    """

    title: str
    metric: str
    axis: str
    lines: Sequence[tuple[str, Mapping[int, Interval]]]
    reference: float | None


def bottleneck_curves(records: Sequence[RunRecord], measured: TableStatistics) -> list[SizeCurve]:
    """Return for each task the scores of methods of which nothing but the bottleneck's size differs."""
    fitting = [record for record in records if isinstance(record.adapter, AdapterConfig)]
    return _size_curves(fitting, measured, "reduction_factor", "bottleneck size M", _bottleneck)


def amount_curves(records: Sequence[RunRecord], measured: TableStatistics) -> list[SizeCurve]:
    """Return for each task the scores of methods of which nothing but the number of training rows differs."""
    fitting = [record for record in records if record.training is not None]
    return _size_curves(fitting, measured, "train_rows", "training rows", lambda record: record.data.train_rows)


def _bottleneck(record: RunRecord) -> int:
    factor = record.adapter.reduction_factor if isinstance(record.adapter, AdapterConfig) else 1
    return record.backbone.hidden_size // factor


def _size_curves(
    fitting: Sequence[RunRecord], measured: TableStatistics, setting: str, axis: str, size: Callable[[RunRecord], int]
) -> list[SizeCurve]:
    """Return a curve for each task with a line for every method that was swept by ``setting`` alone.

    A method as it is belongs to the line where all its other settings are the swept ones'.
    """
    first: dict[CellKey, RunRecord] = {}
    for record in fitting:
        if set(record.swept) <= {setting}:
            first.setdefault((record.task, record.method), record)
    lines: dict[tuple[str, str, str], dict[int, tuple[str, Interval]]] = {}
    for (task, method), record in sorted(first.items(), key=lambda item: (item[0][0], method_order(item[0][1]))):
        interval = measured.intervals.get((task, method), {}).get(record.main_metric)
        if interval is not None:  # methods as they are come first, and a variant of the same size adds nothing
            line = lines.setdefault((task, record.base_method, _other_settings(record, setting)), {})
            line.setdefault(size(record), (method, interval))
    found: dict[str, list[tuple[str, Mapping[int, Interval]]]] = {}
    for (task, base, _), line in lines.items():
        if len(line) > 1 and any(method != base for method, _ in line.values()):
            found.setdefault(task, []).append((base, {each: line[each][1] for each in sorted(line)}))
    tasks, curves = {record.task: record for record in fitting}, []
    for task, of_task in sorted(found.items()):
        record = tasks[task]
        full = measured.intervals.get((task, FULL), {}).get(record.main_metric)
        title = f"{task} ({record.split})"
        curves.append(SizeCurve(title, record.main_metric, axis, of_task, None if full is None else full.mean))
    return curves


def _other_settings(record: RunRecord, setting: str) -> str:
    """Return all that must be equal on one line: the settings but for the seed and for what is swept."""
    adapter = None if record.adapter is None else msgspec.to_builtins(record.adapter)
    training = None if record.training is None else msgspec.to_builtins(record.training)
    rows: int | None = record.data.train_rows
    if adapter is not None and setting == "reduction_factor":
        del adapter["reduction_factor"]
    if setting == "train_rows":
        rows = None
    if training is not None:
        del training["seed"]
    head = None if record.head is None else msgspec.to_builtins(record.head)
    return msgspec.json.encode([adapter, training, head, rows, record.dtype], order="sorted").decode()


@dataclass(frozen=True, eq=False)
class TaskRows:
    """One task as figures and page show it.

    Attributes:
        task: its name.
        title: what it is called: rows of another split are another thing.
        metric: the main one.
        rows: of the summary, without swept settings where there are others, or with those that ran on all tasks.
    """

    task: str
    title: str
    metric: str
    rows: tuple[dict[Any, Any], ...]

    @property
    def scored(self) -> list[dict[Any, Any]]:
        """Return the rows that have a mean of the main metric."""
        return [row for row in self.rows if not math.isnan(main_score(row)[0])]


def beside_methods(frame: pd.DataFrame, tasks: int, ran: pd.Series) -> pd.DataFrame:
    """Return the rows of methods with settings of their own, and of swept settings that ran on all of several tasks.

    Those with fewer training rows stay out, as they are compared with others.

    Args:
        frame: with the columns ``method`` and ``swept``.
        tasks: how many there are.
        ran: on how many of them each row's method ran.
    """
    everywhere = (ran == tasks) & (tasks > 1) & (frame["method"].map(reference_of) == FULL)
    return frame[everywhere | frame.index.isin(unswept(frame).index)]


def task_rows(summary: pd.DataFrame, *, beside: bool = False) -> list[TaskRows]:
    """Return the tasks of a summary in its order; ``beside`` methods stand the swept settings that ran on all tasks."""
    keys = operator.itemgetter("task", "split", "main_metric")
    ran = summary["method"].map(summary[summary["seeds"] > 0].groupby("method")["task"].nunique())
    shown = beside_methods(summary, summary["task"].nunique(), ran) if beside else unswept(summary)
    grouped = itertools.groupby(shown.to_dict("records"), keys)
    return [TaskRows(task, f"{task} ({split})", metric, tuple(rows)) for (task, split, metric), rows in grouped]


@dataclass(frozen=True, eq=False)
class ReportContent:
    """What a report is made of.

    Attributes:
        records: all runs of the table, failed ones too, by task, method and seed.
        answers: of the runs that count, by task and method.
        measured: intervals and comparisons that follow from the answers.
        summary: one row per task and method.
        totals: one row per method.
    """

    records: tuple[RunRecord, ...]
    answers: Mapping[CellKey, CellPredictions]
    measured: TableStatistics
    summary: pd.DataFrame
    totals: pd.DataFrame


def gather_evidence(records: Sequence[RunRecord], answers: Mapping[CellKey, CellPredictions]) -> ReportContent:
    """Return what follows from ``records`` and their ``answers``; scores without answers have no intervals.

    Raises:
        RunError: there are no records, or they do not belong in one table.
    """
    check_comparable(records)
    ordered = tuple(sorted(records, key=lambda record: (record.task, record.method, record.seed)))
    measured = measure(ordered, answers)
    summary = summary_table(ordered, measured)
    return ReportContent(ordered, answers, measured, summary, total_table(ordered, summary))


def read_evidence(out: Path) -> ReportContent:
    """Return what follows from all records under ``out`` and the predictions beside them.

    Raises:
        RunError: there are no records, one file is missing or damaged, or they do not belong in one table.
    """
    records = read_records(out)
    return gather_evidence(records, read_answers(out, records))


def provenance_of(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Return what made the records, each thing once: where several values are listed, the runs differ in it."""
    libraries = sorted({name for record in records for name in record.library_versions})
    machines = [record.hardware for record in records]
    started = sorted(record.started for record in records)
    rows = [
        ("runs", f"{len(records)}, started {started[0]} to {started[-1]}"),
        ("seeds", _listed(record.seed for record in records)),
        ("code", _listed(record.code for record in records)),
        *(
            (name, _listed(record.library_versions.get(name, "not installed") for record in records))
            for name in libraries
        ),
        ("processor", _listed(machine.processor for machine in machines)),
        ("accelerator", _listed(machine.accelerator or "none" for machine in machines)),
        ("cores, threads of a run", _listed(f"{machine.cores}, {machine.threads}" for machine in machines)),
        ("memory", _listed(readable_bytes(machine.memory_bytes) for machine in machines)),
        ("system", _listed(machine.system for machine in machines)),
        ("device, dtype", _listed(f"{record.device}, {record.dtype}" for record in records)),
        ("backbone", _listed(_backbone(record) for record in records)),
        ("backbone fingerprint", _listed(record.backbone.fingerprint for record in records)),
        ("tokenizer digest", _listed(record.backbone.tokenizer_digest for record in records)),
        ("recipes", _listed(record.recipe for record in records)),
    ]
    for task, split in sorted({(record.task, record.split) for record in records}):
        of_task = [record for record in records if record.task == task]
        sources = dict.fromkeys(_data(each) for each in sorted(of_task, key=lambda each: -each.data.train_rows))
        rows.append((f"{task} ({split}) data", "; ".join(sources)))
    digests = sorted(record.predictions.sha256 for record in records if record.predictions is not None)
    together = hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()
    return [*rows, ("predictions", f"{len(digests)} files; SHA-256 over their sorted digests {together}")]


def _backbone(record: RunRecord) -> str:
    info = record.backbone
    revision = f" at {info.revision}" if info.revision else ""
    return f"{source_name(info.source)}{revision} ({info.family}, {info.layers} layers, {info.parameters:,} parameters)"


def _data(record: RunRecord) -> str:
    data = record.data
    own = "" if "train_rows" not in record.swept else f", {data.train_rows:,} training rows"
    source = "the bundled sample" if data.sample else source_name(data.source)
    return f"{source}{own}: fingerprint {data.fingerprint}"


def commands_of(records: Sequence[RunRecord]) -> list[str]:
    """Return every distinct command, in the order in which they were first given."""
    first: dict[str, str] = {}
    for record in records:
        command = _without_folders(record.command)
        first[command] = min(record.started, first.get(command, record.started))
    return sorted(first, key=lambda command: (first[command], command))


def _without_folders(command: str) -> str:
    """Return a command with whole paths named by their last part, as the page is read on other machines."""
    try:
        parts = shlex.split(command)
    except ValueError:  # not of a shell's making
        return command
    return shlex.join("=".join(map(source_name, part.split("=", 1))) for part in parts)


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(set(values))))
