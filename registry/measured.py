"""What the stored answers amount to: an interval for every score, and every method compared with full fine-tuning.

Statistics are statistics.py's, which runs count is comparable.py's. Equal answers give equal results, to the bit.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from registry.answers import Answers, CellKey, methods_of
from registry.comparable import FULL, LOWER_IS_BETTER, reference_of
from registry.schema import ProblemType, RunRecord
from registry.statistics import (
    Difference,
    Interval,
    holm,
    minimum_detectable_difference,
    paired_difference,
    score_interval,
    wilson_interval,
)
from registry.training_pairs import changed_rows, training_pairs
from registry.variants import split_name
from registry.verdicts import ALPHA, Verdict, verdict_of

SHARES = ("accuracy", "exact_match")  # of right rows: what McNemar's test is about

_ALWAYS = "matthews"  # of all metrics the one that a majority class cannot flatter


@dataclass(frozen=True)
class Comparison:
    """One method against another on the same rows of one task.

    Attributes:
        reference: the other method.
        metric: that the difference is of.
        difference: the method's mean less the reference's, a fraction.
        adjusted_p: its p-value by Holm's method over all comparisons made together.
        seed_tests: exact McNemar p-values of paired runs by the first one's seed; empty for regression.
        discordance: share of rows that exactly one of two paired runs has right, on average; NaN for regression.
    """

    reference: str
    metric: str
    difference: Difference
    adjusted_p: float
    seed_tests: Mapping[int, float]
    discordance: float

    @property
    def verdict(self) -> Verdict:
        """What may be said: the interval must leave zero out, and the adjusted p-value be below 0.05."""
        sign = -1 if self.metric in LOWER_IS_BETTER else 1
        return verdict_of(sign * self.difference.mean, self.difference.holds_zero, self.adjusted_p)


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
class Measured:
    """All that statistics have to say about one table.

    Attributes:
        intervals: for each task and method, of each metric.
        comparisons: of each task and method with full fine-tuning on as many rows, on the main metric.
        detectable: for each task with a comparison.
    """

    intervals: Mapping[CellKey, Mapping[str, Interval]] = field(default_factory=dict)
    comparisons: Mapping[CellKey, Comparison] = field(default_factory=dict)
    detectable: Mapping[str, Detectable] = field(default_factory=dict)


def measure(records: Sequence[RunRecord], answers: Mapping[CellKey, Answers]) -> Measured:
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
    return Measured(intervals, adjusted, detectable)


def compare(first: Answers, second: Answers, metric: str, reference: str = "") -> Comparison:
    """Return how ``first`` differs from ``second``, the ``reference``, on the same rows; the p-value is not adjusted.

    Where each was trained once, the p-value of the share of right rows is McNemar's exact one. No p-value is below
    that of exchanging the two on the rows they answer differently, so a handful of rows is never evidence.

    Raises:
        ConfigError: answers to other rows, or a metric that does not fit.
    """
    found = paired_difference(first.problem_type, metric, first.labels, first.probabilities, second.probabilities)
    pairs = training_pairs(first, second)
    p = pairs[0].p if metric in SHARES and found.seeds == (1, 1) else found.p
    p = max(p, min(1.0, 2.0 ** (1 - int(changed_rows(first, second).sum()))))
    tests = {pair.seeds[0]: pair.p for pair in pairs}
    discordance = statistics.fmean(pair.discordance for pair in pairs) if pairs else math.nan
    return Comparison(reference, metric, msgspec.structs.replace(found, p=p), p, tests, discordance)


def adjust(comparisons: Mapping[CellKey, Comparison]) -> dict[CellKey, Comparison]:
    """Return the comparisons with p-values adjusted by Holm's method, all of them counting as one table."""
    p_values = holm([comparison.difference.p for comparison in comparisons.values()])
    return {
        cell: dataclasses.replace(one, adjusted_p=p)
        for (cell, one), p in zip(comparisons.items(), p_values, strict=True)
    }


def told_metrics(names: tuple[str, ...], problem_type: ProblemType) -> tuple[str, ...]:
    """Return a task's metrics, and Matthews' correlation for every classification."""
    return (*names, _ALWAYS) if names and problem_type == "classification" and _ALWAYS not in names else names


def interval_of(answers: Answers, metric: str) -> Interval:
    """Return a mean score with its interval; of a share of right rows Wilson's where all are right or all are wrong.

    Raises:
        ConfigError: a metric that does not fit the answers.
    """
    found = score_interval(answers.problem_type, metric, answers.labels, answers.probabilities)
    if metric in SHARES and found.low == found.high:  # all right or all wrong: resamples cannot differ
        rows = found.rows
        sure = wilson_interval(round(found.mean * rows), rows)
        return Interval(mean=found.mean, low=sure.low, high=sure.high, seeds=found.seeds, rows=rows)
    return found


def _detectable(
    task: str, answers: Mapping[CellKey, Answers], comparisons: Mapping[CellKey, Comparison]
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
