"""Whether a report is what follows from its predictions: every score, table and file computed again and compared.

What is believed are the per-row answers, the costs and the settings in the records; scores follow from the answers,
tables from the scores, files from the tables. Answers themselves are checked against each other: seeds and methods of
one task were asked the same rows, and probabilities add up. Nothing is written.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from registry.answers import read_answers
from registry.differences import Difference, compare_contents
from registry.errors import ConfigError, RunError, ShapeMismatchError
from registry.evidence import gather_evidence
from registry.metrics import score
from registry.records import (
    Predictions,
    find_records,
    read_placed_record,
    read_predictions,
    record_path,
)
from registry.reports import write_report
from registry.schema import RunRecord

_CLOSE = 1e-12  # other processors may add in another order
_SUM_CLOSE = 1e-4  # a float32 softmax is within 1e-6


@dataclass(frozen=True)
class Checked:
    """What was checked and what was found: no differences, or an expected and a found value for each."""

    records: int
    files: tuple[str, ...]
    differences: tuple[Difference, ...]


def check_report(out: Path) -> Checked:
    """Compute everything under ``out`` again from the stored predictions, and return whatever is not so.

    A record or prediction file that is missing, damaged or not the one its record names is a difference too. Report
    files that are not there are not asked for.

    Raises:
        RunError: there are no records.
    """
    differences: list[Difference] = []
    records: list[RunRecord] = []
    asked: dict[str, Predictions] = {}
    paths = find_records(out)
    for path in paths:
        try:
            record = read_placed_record(path)
        except RunError as err:
            differences.append(_told(out, err, "record"))
            continue
        found, again = _check_record(out, record, asked)
        differences += found
        records.append(again)
    # Where a record cannot be read, no table can follow from all of them.
    files, found = _check_files(out, records, differences) if len(records) == len(paths) else ((), [])
    return Checked(len(paths), files, (*differences, *found))


def _check_record(out: Path, record: RunRecord, asked: dict[str, Predictions]) -> tuple[list[Difference], RunRecord]:
    """Return what is wrong with one record, and the record with the scores that follow from its answers.

    Args:
        out: the folder of the report.
        record: as it was read.
        asked: answers of an earlier record by task; those of the first one come in here.
    """
    file = _relative(out, record_path(out, record.task, record.method, record.seed))
    if record.status == "failed":
        kept = record.scores or record.predictions
        return ([Difference(file, "scores", "none, as the run failed", str(kept))] if kept else []), record
    try:
        answers = read_predictions(out, record)
    except RunError as err:
        return [_told(out, err, "predictions")], record
    beside = _relative(out, record_path(out, record.task, record.method, record.seed).parent)
    beside = f"{beside}/{record.predictions.path}" if record.predictions else beside
    found = _check_answers(beside, record, answers, asked.setdefault(record.task, answers))
    try:
        scores = score(answers.problem_type, answers.labels.tolist(), answers.probabilities, tuple(record.scores))
    except (ConfigError, ShapeMismatchError) as err:
        return [*found, Difference(file, "scores", "metrics that fit the predictions", str(err))], record
    wrong = [metric for metric, value in scores.items() if not _close(value, record.scores[metric])]
    found += [Difference(file, f"scores.{m}", repr(scores[m]), repr(record.scores[m])) for m in wrong]
    if record.main_metric not in scores:
        found.append(Difference(file, "scores", f"the main metric {record.main_metric}", ", ".join(scores) or "none"))
    return found, msgspec.structs.replace(record, scores={**record.scores, **{m: scores[m] for m in wrong}})


def _check_answers(file: str, record: RunRecord, answers: Predictions, first: Predictions) -> list[Difference]:
    """Return what the answers of one run cannot be: other rows or labels than another run's, no probabilities."""
    found = []
    rows = len(answers.row_numbers)
    if rows != record.data.reported_rows:
        found.append(Difference(file, "rows", str(record.data.reported_rows), str(rows)))
    for field, own, other in (
        ("row", answers.row_numbers, first.row_numbers),
        ("label", answers.labels, first.labels),
    ):
        if own.shape != other.shape:
            found.append(Difference(file, field, f"shape {other.shape} as in other runs", f"shape {own.shape}"))
        elif len(places := np.flatnonzero((own != other).reshape(rows, -1).any(axis=1))):
            place = places[0]
            where = f"{field} at place {place}, the first of {len(places)}"
            found.append(Difference(file, where, f"{other[place]} as in other runs", str(own[place])))
    if answers.problem_type != "regression":
        found += _check_probabilities(file, answers)
    return found


def _check_probabilities(file: str, answers: Predictions) -> list[Difference]:
    values = answers.probabilities.astype(np.float64)
    good = ((values >= 0) & (values <= 1)).all(axis=1)
    if answers.problem_type == "classification":
        good &= np.abs(values.sum(axis=1) - 1) <= _SUM_CLOSE
    places = np.flatnonzero(~good)
    if not len(places):
        return []
    where = f"probabilities of row {answers.row_numbers[places[0]]}, the first of {len(places)}"
    return [Difference(file, where, "shares that add up to 1", str(answers.probabilities[places[0]].tolist()))]


def _check_files(
    out: Path, records: list[RunRecord], known: list[Difference]
) -> tuple[tuple[str, ...], list[Difference]]:
    """Return the report files that are there, and where they are not what would be written now.

    Where answers cannot be used no file follows from them; that is told once, as one of the ``known`` differences.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            written = write_report(Path(folder), gather_evidence(records, read_answers(out, records)))
        except (RunError, ConfigError) as err:
            what = err.path if isinstance(err, RunError) else err.field
            return (), [] if known else [Difference("runs", "records", err.expected, f"{err.found} ({what})")]
        there = sorted(path for path in written if (out / path.name).is_file())
        differences = [
            difference
            for path in there
            for difference in compare_contents(path.name, path.read_bytes(), (out / path.name).read_bytes())
        ]
    return tuple(path.name for path in there), differences


def _close(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=_CLOSE, abs_tol=_CLOSE)


def _told(out: Path, err: RunError, field: str) -> Difference:
    return Difference(_relative(out, Path(err.path)), field, err.expected, err.found)


def _relative(out: Path, path: Path) -> str:
    return path.relative_to(out).as_posix()
