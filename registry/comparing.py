"""Two sets of answers to the same rows: whether they differ, on which rows, by how much, and whether it is chance.

Intervals, tests and verdicts are those of measured.py and statistics.py; here they are put beside the rows they come
from. Nothing is known of stores, folders or texts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from registry.answers import Answers, CellKey
from registry.documents import p_value
from registry.frames import points_of
from registry.measured import Comparison, adjust, compare, interval_of
from registry.metrics import answers as answers_in
from registry.statistics import Interval, minimum_detectable_difference
from registry.training_pairs import TrainingPair, changed_rows, training_pairs
from registry.validation import require
from registry.verdicts import ALPHA, UNDECIDED, Verdict

_SAID = {"better": "is better than", "worse": "is worse than"}


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


@dataclass(frozen=True)
class ChangedRow:
    """One row that the two do not answer alike.

    Attributes:
        place: among the answers.
        row: its number in the reported split.
        label: class index, zeros and ones, or a value.
        answers: the commonest one of each over its seeds; for regression the mean.
        right: how many seeds of each are right; None for regression.
        truth: mean probability that each gave to what is true; for multi-label over its labels; None for regression.
        change: the largest one of a probability or value.
    """

    place: int
    row: int
    label: int | float | tuple[int, ...]
    answers: tuple[int | float | tuple[int, ...], int | float | tuple[int, ...]]
    right: tuple[int, int] | None
    truth: tuple[float, float] | None
    change: float


def why_not_same_rows(first: Answers, second: Answers) -> tuple[str, str] | None:
    """Return what was expected of ``second`` and what was found, or None where both answered the same rows."""
    if first.problem_type != second.problem_type:
        return first.problem_type, second.problem_type
    if len(first.row_numbers) != len(second.row_numbers):
        return f"{len(first.row_numbers):,} reported rows", f"{len(second.row_numbers):,}"
    if not np.array_equal(first.row_numbers, second.row_numbers):
        return "the same row numbers", "others"
    if first.labels.shape != second.labels.shape or not np.array_equal(first.labels, second.labels):
        return "the same labels", "others"
    if first.probabilities.shape[2] != second.probabilities.shape[2]:
        return f"{first.probabilities.shape[2]} classes", f"{second.probabilities.shape[2]}"
    return None


def compare_answers(first: Answers, second: Answers, metrics: Sequence[str]) -> Compared:
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
        largest_change=float(_changes(first, second).max()),
        identical=_same_bits(first.probabilities, second.probabilities),
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


def list_changed_rows(first: Answers, second: Answers, most: int | None = None) -> list[ChangedRow]:
    """Return the rows answered differently, the largest change first; at most ``most`` of them."""
    changes = _changes(first, second)
    places = np.flatnonzero(changed_rows(first, second))
    order = places[np.argsort(-changes[places], kind="stable")][:most]
    return [_changed_row(first, second, int(place), float(changes[place])) for place in order]


def sentence(compared: Compared, first: str, second: str) -> str:
    """Return in one sentence what may be said of the two."""
    if compared.identical:
        return f"{first} and {second} gave the same answers to every row, to the bit"
    comparison = compared.main.comparison
    points = " points" if points_of(compared.main_metric) > 1 else ""
    told = f"{compared.main_metric} {points_text(comparison, f'{points} ')}, p {p_value(comparison.adjusted_p)}"
    if compared.verdict != UNDECIDED:
        return f"{first} {_SAID[compared.verdict]} {second}: {told}"
    return f"{first} and {second} are {UNDECIDED}: {told}{_power(compared)}"


def points_text(comparison: Comparison, between: str = " ") -> str:
    """Return a difference in points and its interval, "+0.5 [-1.2, +2.2]"; of an error in its own unit."""
    found = comparison.difference
    mean, low, high = (_signed(end, comparison.metric) for end in (found.mean, found.low, found.high))
    return f"{mean}{between}[{low}, {high}]"


def _signed(value: float, metric: str) -> str:
    """Return a difference with its sign; what rounds to nothing is not below nothing."""
    if points_of(metric) == 1:
        return f"{value:+.3g}" if value else "0"
    return f"{round(100 * value, 1) + 0.0:+.1f}"


def _power(compared: Compared) -> str:
    """Return what so many rows could have shown, the other half of "not distinguishable"."""
    if not compared.changed:
        return "; every row has the same answer"
    if not compared.pairs:
        return ""
    if math.isnan(compared.detectable):
        return f"; so few of the {compared.rows:,} rows tell them apart that probably no difference would show"
    least = f"{100 * compared.detectable:.1f} points on"
    return f"; two trainings on {compared.rows:,} rows would probably show a difference in right rows from {least}"


def _replace_comparison(compared: Compared, metric: str, comparison: Comparison) -> Compared:
    new = replace(compared.metrics[metric], comparison=comparison)
    return replace(compared, metrics={**compared.metrics, metric: new})


def _same_bits(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def _changes(first: Answers, second: Answers) -> NDArray[np.float64]:
    """Return (R,) largest changes of a number between the means over seeds."""
    means = [answers.probabilities.mean(axis=0, dtype=np.float64) for answers in (first, second)]
    changes: NDArray[np.float64] = np.abs(means[0] - means[1]).max(axis=1)
    return changes


def _changed_row(first: Answers, second: Answers, place: int, change: float) -> ChangedRow:
    both, label = (first, second), first.labels[place]
    plain = tuple(int(cell) for cell in label) if label.ndim else label.item()
    if first.problem_type == "regression":
        values = tuple(float(one.probabilities[:, place, 0].mean(dtype=np.float64)) for one in both)
        return ChangedRow(place, int(first.row_numbers[place]), plain, (values[0], values[1]), None, None, change)
    answers = [_commonest(answers_in(one.problem_type, one.probabilities[:, place])) for one in both]
    right = [_right(one, place) for one in both]
    truth = [_truth(one, place) for one in both]
    return ChangedRow(
        place=place,
        row=int(first.row_numbers[place]),
        label=plain,
        answers=(answers[0], answers[1]),
        right=(right[0], right[1]),
        truth=(truth[0], truth[1]),
        change=change,
    )


def _right(answers: Answers, place: int) -> int:
    """Return how many seeds have one row right."""
    found = answers_in(answers.problem_type, answers.probabilities[:, place])
    return int((found == answers.labels[place]).reshape(len(found), -1).all(axis=1).sum())


def _commonest(answers: NDArray[np.generic]) -> int | tuple[int, ...]:
    """Return what most seeds answered to one row, the lowest of several; (S,) classes or (S, C) zeros and ones."""
    kinds, counts = np.unique(answers, axis=0, return_counts=True)
    found = kinds[counts.argmax()]
    return tuple(int(cell) for cell in found) if found.ndim else int(found)


def _truth(answers: Answers, place: int) -> float:
    """Return the mean probability given to what is true of one row."""
    label, shares = answers.labels[place], answers.probabilities[:, place].astype(np.float64)
    told = np.where(label == 1, shares, 1 - shares) if answers.labels.ndim == 2 else shares[:, label]
    return float(told.mean())
