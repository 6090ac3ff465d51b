"""Two methods training by training: who is right on how many rows, and which rows they answer differently.

Trainings with the same seed are a pair, or all in their order where no seed is shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.config import ProblemType
from registry.stats.intervals import mcnemar_exact
from registry.tasks.metrics import predicted_labels
from registry.validation import require


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers of one run, row by row; they make paired comparisons of methods possible.

    Attributes:
        row_numbers: (R,) int64, the rows' places in the reported split.
        labels: (R,) int64 classes, (R, C) int64 zeros and ones, or (R,) float64 values.
        probabilities: (R, C) float32; for regression the one predicted value.
    """

    row_numbers: NDArray[np.int64]
    labels: NDArray[Any]
    probabilities: NDArray[np.float32]

    def __post_init__(self) -> None:
        rows, labels, probabilities = self.row_numbers, self.labels, self.probabilities
        require(rows.ndim == 1 and rows.dtype.kind in "iu", "row_numbers", "(R,) whole numbers", _form(rows))
        good = probabilities.ndim == 2 and probabilities.dtype.kind == "f" and len(probabilities) == len(rows)
        require(good, "probabilities", f"({len(rows)}, C) floats", _form(probabilities))
        one = labels.ndim == 1 and labels.dtype.kind in "iuf"
        many = labels.ndim == 2 and labels.dtype.kind in "iub" and labels.shape == probabilities.shape
        require((one or many) and len(labels) == len(rows), "labels", f"{len(rows)} rows of numbers", _form(labels))

    @property
    def problem_type(self) -> ProblemType:
        """What the form of the labels tells: values, rows of zeros and ones, or classes."""
        if self.labels.dtype.kind == "f":
            return "regression"
        return "multi_label" if self.labels.ndim == 2 else "classification"


def _form(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"


CellKey = tuple[str, str]  # task, method


@dataclass(frozen=True, eq=False)
class CellPredictions:
    """What the counted seeds of one method answered to the reported rows of one task.

    Attributes:
        problem_type: what the labels are.
        seeds: of the runs, S of them, rising.
        row_numbers: (R,) places of the rows in the reported split.
        labels: (R,), or (R, C) zeros and ones.
        probabilities: (S, R, C); for regression (S, R, 1).
    """

    problem_type: ProblemType
    seeds: tuple[int, ...]
    row_numbers: NDArray[np.int64]
    labels: NDArray[Any]
    probabilities: NDArray[np.float32]

    def correct(self) -> NDArray[np.bool_]:
        """Return (S, R) whether each seed's answer to each row is right; for regression nothing is."""
        found = np.stack([predicted_labels(self.problem_type, one) for one in self.probabilities])
        right = np.asarray(found == self.labels)
        return np.asarray(right.all(axis=2)) if right.ndim == 3 else right


@dataclass(frozen=True)
class TrainingPair:
    """One training of the first and one of the second, row by row.

    Attributes:
        seeds: of the two.
        both, only_first, only_second, neither: rows by who is right; multi-label answers are right as a whole.
        p: exact McNemar, two-sided.
    """

    seeds: tuple[int, int]
    both: int
    only_first: int
    only_second: int
    neither: int
    p: float

    @property
    def discordance(self) -> float:
        """Share of rows that exactly one of the two has right."""
        discordant = self.only_first + self.only_second
        return discordant / (discordant + self.both + self.neither)


def training_pairs(first: CellPredictions, second: CellPredictions) -> tuple[TrainingPair, ...]:
    """Return who is right on how many rows, for every pair of trainings; none for regression, where nothing is."""
    if first.problem_type == "regression":
        return ()
    ours, theirs = first.correct(), second.correct()
    pairs = []
    for one, other in _paired_places(first, second):
        mine, yours = ours[one], theirs[other]
        pair = TrainingPair(
            seeds=(first.seeds[one], second.seeds[other]),
            both=int((mine & yours).sum()),
            only_first=int((mine & ~yours).sum()),
            only_second=int((~mine & yours).sum()),
            neither=int((~mine & ~yours).sum()),
            p=mcnemar_exact(mine, yours),
        )
        pairs.append(pair)
    return tuple(pairs)


def changed_rows(first: CellPredictions, second: CellPredictions) -> NDArray[np.bool_]:
    """Return (R,) whether the two trainings of any pair, by ``training_pairs``, answered a row differently."""
    differ = np.zeros(len(first.row_numbers), dtype=bool)
    for one, other in _paired_places(first, second):
        ours, theirs = first.probabilities[one], second.probabilities[other]
        unlike = predicted_labels(first.problem_type, ours) != predicted_labels(first.problem_type, theirs)
        differ |= unlike.reshape(len(differ), -1).any(axis=1)
    return differ


def _paired_places(first: CellPredictions, second: CellPredictions) -> list[tuple[int, int]]:
    """Return the places of trainings with the same seed, or of all in their order where no seed is shared."""
    shared = [(first.seeds.index(seed), second.seeds.index(seed)) for seed in first.seeds if seed in second.seeds]
    return shared or [(place, place) for place in range(min(len(first.seeds), len(second.seeds)))]


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


def why_not_same_rows(first: CellPredictions, second: CellPredictions) -> tuple[str, str] | None:
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


def list_changed_rows(first: CellPredictions, second: CellPredictions, most: int | None = None) -> list[ChangedRow]:
    """Return the rows answered differently, the largest change first; at most ``most`` of them."""
    changes = changes_by_row(first, second)
    places = np.flatnonzero(changed_rows(first, second))
    order = places[np.argsort(-changes[places], kind="stable")][:most]
    return [_changed_row(first, second, int(place), float(changes[place])) for place in order]


def same_bits(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Return whether two arrays are equal bit for bit."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def changes_by_row(first: CellPredictions, second: CellPredictions) -> NDArray[np.float64]:
    """Return (R,) largest changes of a number between the means over seeds."""
    means = [answers.probabilities.mean(axis=0, dtype=np.float64) for answers in (first, second)]
    changes: NDArray[np.float64] = np.abs(means[0] - means[1]).max(axis=1)
    return changes


def _changed_row(first: CellPredictions, second: CellPredictions, place: int, change: float) -> ChangedRow:
    both, label = (first, second), first.labels[place]
    plain = tuple(int(cell) for cell in label) if label.ndim else label.item()
    if first.problem_type == "regression":
        values = tuple(float(one.probabilities[:, place, 0].mean(dtype=np.float64)) for one in both)
        return ChangedRow(place, int(first.row_numbers[place]), plain, (values[0], values[1]), None, None, change)
    answers = [_commonest(predicted_labels(one.problem_type, one.probabilities[:, place])) for one in both]
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


def _right(answers: CellPredictions, place: int) -> int:
    """Return how many seeds have one row right."""
    found = predicted_labels(answers.problem_type, answers.probabilities[:, place])
    return int((found == answers.labels[place]).reshape(len(found), -1).all(axis=1).sum())


def _commonest(answers: NDArray[np.generic]) -> int | tuple[int, ...]:
    """Return what most seeds answered to one row, the lowest of several; (S,) classes or (S, C) zeros and ones."""
    kinds, counts = np.unique(answers, axis=0, return_counts=True)
    found = kinds[counts.argmax()]
    return tuple(int(cell) for cell in found) if found.ndim else int(found)


def _truth(answers: CellPredictions, place: int) -> float:
    """Return the mean probability given to what is true of one row."""
    label, shares = answers.labels[place], answers.probabilities[:, place].astype(np.float64)
    told = np.where(label == 1, shares, 1 - shares) if answers.labels.ndim == 2 else shares[:, label]
    return float(told.mean())
