"""Everything that one report is made of, read and computed once: records, answers, statistics, tables, provenance."""

from __future__ import annotations

import hashlib
import itertools
import math
import operator
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from registry.bench.records import RunRecord, read_records
from registry.bench.results import check_comparable, read_answers
from registry.bench.sweep import swept_train_rows
from registry.reports.frames import main_score, source_name, summary_table, total_table, unswept
from registry.reports.numbers import readable_bytes
from registry.reports.statistics import TableStatistics, measure
from registry.stats.predictions import CellKey, CellPredictions


@dataclass(frozen=True, eq=False)
class TaskRows:
    """One task as figures and page show it.

    Attributes:
        task: its name.
        title: what it is called: rows of another split are another thing.
        metric: the main one.
        rows: of the summary, without swept settings where there are others.
    """

    task: str
    title: str
    metric: str
    rows: tuple[dict[Any, Any], ...]

    @property
    def scored(self) -> list[dict[Any, Any]]:
        """Return the rows that have a mean of the main metric."""
        return [row for row in self.rows if not math.isnan(main_score(row)[0])]


def task_rows(summary: pd.DataFrame) -> list[TaskRows]:
    """Return the tasks of a summary in its order."""
    keys = operator.itemgetter("task", "split", "main_metric")
    grouped = itertools.groupby(unswept(summary).to_dict("records"), keys)
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
    own = "" if swept_train_rows(record.method) is None else f", {data.train_rows:,} training rows"
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
