"""The stored answers of all runs that a table counts, in arrays that statistics can take.

For each task and method: what every counted seed answered to the same rows. Which runs count is comparable.py's to
say; what the answers amount to is measured.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.comparable import averaged_runs
from registry.errors import RunError
from registry.metrics import answers as answer_rows
from registry.records import Predictions, read_predictions, record_path
from registry.schema import ProblemType, RunRecord

CellKey = tuple[str, str]  # task, method


@dataclass(frozen=True, eq=False)
class Answers:
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
        found = np.stack([answer_rows(self.problem_type, one) for one in self.probabilities])
        right = np.asarray(found == self.labels)
        return np.asarray(right.all(axis=2)) if right.ndim == 3 else right


def read_answers(out: Path, records: Iterable[RunRecord]) -> dict[CellKey, Answers]:
    """Return the answers of every task and method that a mean may be taken of, from the files beside the records.

    Raises:
        RunError: a file is missing or not the one its record names, or two runs of a task answered other rows.
    """
    cells: dict[CellKey, list[RunRecord]] = {}
    for record in sorted(records, key=lambda record: (record.task, record.method, record.seed)):
        cells.setdefault((record.task, record.method), []).append(record)
    first: dict[str, tuple[RunRecord, Predictions]] = {}
    found = {}
    for (task, method), cell in cells.items():
        runs = averaged_runs(cell)
        read = [read_predictions(out, record) for record in runs]
        for record, answers in zip(runs, read, strict=True):
            _check_same_rows(out, (record, answers), first.setdefault(task, (record, answers)))
        if runs:
            found[task, method] = _joined(runs, read)
    return found


def methods_of(answers: Mapping[CellKey, Answers], task: str) -> dict[str, Answers]:
    """Return the answers of each method on one task."""
    return {method: found for (name, method), found in answers.items() if name == task}


def _joined(runs: Sequence[RunRecord], read: Sequence[Predictions]) -> Answers:
    return Answers(
        problem_type=read[0].problem_type,
        seeds=tuple(record.seed for record in runs),
        row_numbers=read[0].row_numbers,
        labels=read[0].labels,
        probabilities=np.stack([answers.probabilities for answers in read]),
    )


def _check_same_rows(out: Path, one: tuple[RunRecord, Predictions], other: tuple[RunRecord, Predictions]) -> None:
    (record, answers), (first, expected) = one, other
    for field in ("row_numbers", "labels"):
        if not np.array_equal(getattr(answers, field), getattr(expected, field)):
            raise RunError(
                record_path(out, record.task, record.method, record.seed),
                f"the {field.replace('_', ' ')} that {first.method} seed {first.seed} was scored on",
                "others",
                "use another --out folder for runs on other rows",
            )
    if answers.probabilities.shape != expected.probabilities.shape:
        raise RunError(
            record_path(out, record.task, record.method, record.seed),
            f"answers of shape {expected.probabilities.shape}",
            str(answers.probabilities.shape),
            "delete the record, and bench runs that cell again",
        )
