"""What the stored answers amount to: an interval for every score, and every method compared with full fine-tuning.

The tests are those of the room stats, which runs count is results.py's. Equal answers give equal results, to the bit.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from registry.bench.records import RunRecord
from registry.bench.results import FULL, methods_of, reference_of
from registry.bench.sweep import split_name
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
    """

    intervals: Mapping[CellKey, Mapping[str, Interval]] = field(default_factory=dict)
    comparisons: Mapping[CellKey, Comparison] = field(default_factory=dict)
    detectable: Mapping[str, Detectable] = field(default_factory=dict)


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
    swept = {cell: one for cell, one in comparisons.items() if split_name(cell[1])[1]}
    own = {cell: one for cell, one in comparisons.items() if cell not in swept}
    adjusted = adjust(own) | adjust(swept)
    detectable = {task: least for task in sorted(main) if (least := _detectable(task, answers, adjusted))}
    return TableStatistics(intervals, adjusted, detectable)


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
