"""Whether two sets of answers differ, and what may be said of it: better, worse, or not distinguishable."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from registry.stats.intervals import (
    Interval,
    PairedDifference,
    holm,
    minimum_detectable_difference,
    paired_difference,
    score_interval,
    wilson_interval,
)
from registry.stats.predictions import (
    CellKey,
    CellPredictions,
    TrainingPair,
    changed_rows,
    changes_by_row,
    same_bits,
    training_pairs,
    why_not_same_rows,
)
from registry.tasks.spec import LOWER_IS_BETTER
from registry.validation import require

Verdict = Literal["better", "worse", "not distinguishable"]

ALPHA = 0.05
UNDECIDED: Verdict = "not distinguishable"


def verdict_of(goodness: float, holds_zero: bool, p: float) -> Verdict:
    """Return what a difference amounts to; interval and test must agree before one of two is called better.

    Args:
        goodness: the difference, above zero where the first of the two is better.
        holds_zero: whether its interval holds zero.
        p: its p-value, adjusted where there are several comparisons.
    """
    if holds_zero or p >= ALPHA:
        return UNDECIDED
    return "better" if goodness > 0 else "worse"


SHARES = ("accuracy", "exact_match")  # of right rows: what McNemar's test is about


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
    difference: PairedDifference
    adjusted_p: float
    seed_tests: Mapping[int, float]
    discordance: float

    @property
    def verdict(self) -> Verdict:
        """What may be said: the interval must leave zero out, and the adjusted p-value be below 0.05."""
        sign = -1 if self.metric in LOWER_IS_BETTER else 1
        return verdict_of(sign * self.difference.mean, self.difference.holds_zero, self.adjusted_p)


def compare(first: CellPredictions, second: CellPredictions, metric: str, reference: str = "") -> Comparison:
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


def interval_of(answers: CellPredictions, metric: str) -> Interval:
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


@dataclass(frozen=True)
class ComparedMetric:
    """One metric of both, each with its interval, and how they differ."""

    first: Interval
    second: Interval
    comparison: Comparison


@dataclass(frozen=True)
class Compared:
    """What two sets of answers to the same rows amount to.

    Attributes:
        main_metric: the one that decides.
        metrics: all of them, by name.
        pairs: trainings with the same seed, or all in their order where no seed is shared; none for regression,
            where nothing is right.
        changed: rows that the two of any such pair answered differently; for regression every row with another value.
        largest_change: of a probability between the two, means over seeds; for regression of a value.
        identical: whether every number is the same, to the bit.
        detectable: difference in right rows that two trainings on so many rows would probably show; NaN where none.
    """

    main_metric: str
    metrics: Mapping[str, ComparedMetric]
    pairs: tuple[TrainingPair, ...]
    changed: int
    largest_change: float
    identical: bool
    detectable: float

    @property
    def main(self) -> ComparedMetric:
        """The metric that decides."""
        return self.metrics[self.main_metric]

    @property
    def rows(self) -> int:
        """How many rows were answered."""
        return self.main.first.rows

    @property
    def verdict(self) -> Verdict:
        """Whether the first is better or worse by the main metric, as far as can be told."""
        return self.main.comparison.verdict


def compare_answers(first: CellPredictions, second: CellPredictions, metrics: Sequence[str]) -> Compared:
    """Return how ``first`` differs from ``second`` on the same rows; the first of ``metrics`` decides.

    Raises:
        ConfigError: answers to other rows, or metrics that do not fit.
    """
    reason = why_not_same_rows(first, second) or ("", "")
    require(not reason[0], "the second answers", reason[0], reason[1])
    require(bool(metrics), "metrics", "at least one", "none")
    pairs, changed = training_pairs(first, second), int(changed_rows(first, second).sum())
    found = {
        metric: ComparedMetric(
            interval_of(first, metric),
            interval_of(second, metric),
            compare(first, second, metric),
        )
        for metric in metrics
    }
    discordance = statistics.fmean(pair.discordance for pair in pairs) if pairs else 0.0
    rows = len(first.row_numbers)
    return Compared(
        main_metric=metrics[0],
        metrics=found,
        pairs=pairs,
        changed=changed,
        largest_change=float(changes_by_row(first, second).max()),
        identical=same_bits(first.probabilities, second.probabilities),
        detectable=minimum_detectable_difference(rows, discordance, ALPHA) if discordance else math.nan,
    )


def adjust_together(found: Mapping[CellKey, Compared]) -> dict[CellKey, Compared]:
    """Return the comparisons with p-values adjusted by Holm's method over all of them.

    The main metrics, which decide, are one family, whatever each cell's is; any other metric is adjusted with the same
    metric of all cells.
    """
    main = adjust({cell: one.main.comparison for cell, one in found.items()})
    adjusted = {cell: _replace_comparison(one, one.main_metric, main[cell]) for cell, one in found.items()}
    for metric in dict.fromkeys(metric for one in found.values() for metric in one.metrics):
        family = {cell: one.metrics[metric].comparison for cell, one in found.items() if metric in one.metrics}
        for cell, comparison in adjust(family).items():
            if metric != found[cell].main_metric:
                adjusted[cell] = _replace_comparison(adjusted[cell], metric, comparison)
    return adjusted


def _replace_comparison(compared: Compared, metric: str, comparison: Comparison) -> Compared:
    new = replace(compared.metrics[metric], comparison=comparison)
    return replace(compared, metrics={**compared.metrics, metric: new})
