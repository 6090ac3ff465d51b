"""Everything that one report is made of, read and computed once: records, answers, statistics and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from registry.bench.records import RunRecord, read_records
from registry.bench.results import check_comparable, read_answers
from registry.reports.frames import summary_table, total_table
from registry.reports.statistics import TableStatistics, measure
from registry.stats.predictions import CellKey, CellPredictions


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
