"""Does a report follow from its predictions: every score and every file made again and compared, field by field.

Contents that differ in a single byte have at least one difference; but for parquet, which every version of its library
packs in its own way, it is the table in it that counts.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from registry.bench.records import RunRecord, find_records, read_placed_record, read_predictions, record_path
from registry.bench.results import read_answers
from registry.errors import ConfigError, RunError, ShapeMismatchError
from registry.reports.content import gather_evidence
from registry.reports.report import write_report
from registry.schema import REPORT_FORMATS
from registry.stats.predictions import Predictions
from registry.tasks.metrics import score

_KEYS = ("task", "method", "seed")
_EXCERPT = 60  # characters of a line that are shown
_BEFORE = 15  # of them in front of the first difference
_NOTHING = "nothing"


@dataclass(frozen=True)
class Mismatch:
    """One thing that is not as it should be, told in one line."""

    file: str
    field: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.file}: {self.field}: expected {self.expected}, found {self.found}"


def compare_contents(file: str, expected: bytes, found: bytes) -> list[Mismatch]:
    """Return where ``found`` is not ``expected``; the end of the name decides how they are read."""
    if expected == found:
        return []
    if file.endswith(".parquet"):
        return [Mismatch(file, *each) for each in _compare_parquet(expected, found)]
    try:
        texts = expected.decode(), found.decode()
        readers = {"csv": _compare_csv, "json": _compare_json}
        fields = readers.get(file.rpartition(".")[2], _compare_lines)
        told = list(fields(*texts)) or list(_compare_lines(*texts))
    except (ValueError, RecursionError, csv.Error):  # no text, no JSON, no csv
        told = []
    told = told or [("bytes", _identity(expected), _identity(found))]
    return [Mismatch(file, *each) for each in told]


def _compare_parquet(expected: bytes, found: bytes) -> list[tuple[str, str, str]]:
    try:
        old, new = (pq.read_table(pa.BufferReader(content)) for content in (expected, found))
    except (pa.ArrowException, OSError):
        return [("bytes", _identity(expected), _identity(found))]
    told = list(_compare_csv(*(str(table.to_pandas().to_csv(index=False)) for table in (old, new))))
    if not told and not old.schema.equals(new.schema):
        return [("columns", *_excerpts(str(old.schema), str(new.schema)))]
    if not told and not old.equals(new):  # a csv spells what is missing and what is empty alike
        names = [name for name in old.column_names if not old.column(name).equals(new.column(name))]
        return [("cells", f"others missing in {', '.join(names)}", "empty ones, or the other way round")]
    return told


def _compare_csv(expected: str, found: str) -> Iterator[tuple[str, str, str]]:
    old, new = (list(csv.reader(io.StringIO(text, newline=""))) for text in (expected, found))
    columns, others = (rows[0] if rows else [] for rows in (old, new))
    if columns != others:
        lost, added = (
            [name for name in one if name not in rest] for one, rest in ((columns, others), (others, columns))
        )
        yield "columns", ", ".join(lost) or "another order", ", ".join(added) or "nothing else"
        return
    if len(old) != len(new):
        yield "rows", str(len(old) - 1), str(len(new) - 1)
    keys = [place for place, name in enumerate(columns) if name in _KEYS]
    for expected_row, found_row in zip(old[1:], new[1:], strict=False):
        name = " ".join(expected_row[place] for place in keys)
        if len(expected_row) != len(found_row):
            yield name, f"{len(expected_row)} cells", f"{len(found_row)} cells"
            continue
        for column, cell, other in zip(columns, expected_row, found_row, strict=True):
            if cell != other:
                yield f"{name}: {column}", cell or _NOTHING, other or _NOTHING


def _compare_json(expected: str, found: str) -> Iterator[tuple[str, str, str]]:
    return _compare_values("", json.loads(expected), json.loads(found))


def _compare_values(field: str, expected: Any, found: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            inner = f"{field}.{key}" if field else str(key)
            if key not in found:
                yield inner, _excerpt(json.dumps(expected[key])), _NOTHING
            elif key not in expected:
                yield inner, _NOTHING, _excerpt(json.dumps(found[key]))
            else:
                yield from _compare_values(inner, expected[key], found[key])
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for place, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from _compare_values(f"{field}[{place}]", one, other)
    elif isinstance(expected, list) and isinstance(found, list):
        yield field, f"{len(expected)} entries", f"{len(found)} entries"
    elif type(expected) is not type(found) or expected != found:
        yield field, *_excerpts(json.dumps(expected, ensure_ascii=False), json.dumps(found, ensure_ascii=False))


def _compare_lines(expected: str, found: str) -> Iterator[tuple[str, str, str]]:
    old, new = (text.splitlines(keepends=True) for text in (expected, found))
    for kind, first, last, other_first, other_last in difflib.SequenceMatcher(None, old, new, False).get_opcodes():
        if kind == "equal":
            continue
        for place in range(max(last - first, other_last - other_first)):
            line = old[first + place] if first + place < last else ""
            other = new[other_first + place] if other_first + place < other_last else ""
            yield f"line {first + place + 1}", *_excerpts(line, other)


def _excerpts(expected: str, found: str) -> tuple[str, str]:
    """Return both texts around their first difference."""
    common = next(
        (n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found))
    )
    start = max(0, common - _BEFORE) if max(len(expected), len(found)) > _EXCERPT else 0
    return _excerpt(expected, start), _excerpt(found, start)


def _excerpt(text: str, start: int = 0) -> str:
    if not text:
        return _NOTHING
    part = (each if each.isprintable() else each.encode("unicode_escape").decode() for each in text[start:][:_EXCERPT])
    return ("…" if start else "") + "".join(part) + ("…" if start + _EXCERPT < len(text) else "")


def _identity(content: bytes) -> str:
    return f"{len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()[:12]}"


_CLOSE = 1e-12  # other processors may add in another order
_SUM_CLOSE = 1e-4  # a float32 softmax is within 1e-6


@dataclass(frozen=True)
class Checked:
    """What was checked and what was found: no differences, or an expected and a found value for each."""

    records: int
    files: tuple[str, ...]
    differences: tuple[Mismatch, ...]


def check_report(out: Path) -> Checked:
    """Compute everything under ``out`` again from the stored predictions, and return whatever is not so.

    A record or prediction file that is missing, damaged or not the one its record names is a difference too. Report
    files that are not there are not asked for.

    Raises:
        RunError: there are no records.
    """
    differences: list[Mismatch] = []
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


def _check_record(out: Path, record: RunRecord, asked: dict[str, Predictions]) -> tuple[list[Mismatch], RunRecord]:
    """Return what is wrong with one record, and the record with the scores that follow from its answers.

    Args:
        out: the folder of the report.
        record: as it was read.
        asked: answers of an earlier record by task; those of the first one come in here.
    """
    file = _relative(out, record_path(out, record.task, record.method, record.seed))
    if record.status == "failed":
        kept = record.scores or record.predictions
        return ([Mismatch(file, "scores", "none, as the run failed", str(kept))] if kept else []), record
    try:
        answers = read_predictions(out, record)
    except RunError as err:
        return [_told(out, err, "predictions")], record
    beside = _relative(out, record_path(out, record.task, record.method, record.seed).parent)
    beside = f"{beside}/{record.predictions.path}" if record.predictions else beside
    found = _check_answers(beside, record, answers, asked.setdefault(record.task, answers))
    try:
        thresholds = record.head.thresholds if record.head is not None else ()
        labels, asked_for = answers.labels.tolist(), tuple(record.scores)
        scores = score(answers.problem_type, labels, answers.probabilities, asked_for, thresholds)
    except (ConfigError, ShapeMismatchError) as err:
        return [*found, Mismatch(file, "scores", "metrics that fit the predictions", str(err))], record
    wrong = [metric for metric, value in scores.items() if not _close(value, record.scores[metric])]
    found += [Mismatch(file, f"scores.{m}", repr(scores[m]), repr(record.scores[m])) for m in wrong]
    if record.main_metric not in scores:
        found.append(Mismatch(file, "scores", f"the main metric {record.main_metric}", ", ".join(scores) or "none"))
    return found, msgspec.structs.replace(record, scores={**record.scores, **{m: scores[m] for m in wrong}})


def _check_answers(file: str, record: RunRecord, answers: Predictions, first: Predictions) -> list[Mismatch]:
    """Return what the answers of one run cannot be: other rows or labels than another run's, no probabilities."""
    found = []
    rows = len(answers.row_numbers)
    if rows != record.data.reported_rows:
        found.append(Mismatch(file, "rows", str(record.data.reported_rows), str(rows)))
    for field, own, other in (
        ("row", answers.row_numbers, first.row_numbers),
        ("label", answers.labels, first.labels),
    ):
        if own.shape != other.shape:
            found.append(Mismatch(file, field, f"shape {other.shape} as in other runs", f"shape {own.shape}"))
        elif len(places := np.flatnonzero((own != other).reshape(rows, -1).any(axis=1))):
            place = places[0]
            where = f"{field} at place {place}, the first of {len(places)}"
            found.append(Mismatch(file, where, f"{other[place]} as in other runs", str(own[place])))
    if answers.problem_type != "regression":
        found += _check_probabilities(file, answers)
    return found


def _check_probabilities(file: str, answers: Predictions) -> list[Mismatch]:
    values = answers.probabilities.astype(np.float64)
    good = ((values >= 0) & (values <= 1)).all(axis=1)
    if answers.problem_type == "classification":
        good &= np.abs(values.sum(axis=1) - 1) <= _SUM_CLOSE
    places = np.flatnonzero(~good)
    if not len(places):
        return []
    where = f"probabilities of row {answers.row_numbers[places[0]]}, the first of {len(places)}"
    return [Mismatch(file, where, "shares that add up to 1", str(answers.probabilities[places[0]].tolist()))]


def _check_files(out: Path, records: list[RunRecord], known: list[Mismatch]) -> tuple[tuple[str, ...], list[Mismatch]]:
    """Return the report files that are there, and where they are not what would be written now.

    Where answers cannot be used no file follows from them; that is told once, as one of the ``known`` differences.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            evidence = gather_evidence(records, read_answers(out, records))
            written = write_report(Path(folder), evidence, REPORT_FORMATS)
        except (RunError, ConfigError) as err:
            what = err.path if isinstance(err, RunError) else err.field
            return (), [] if known else [Mismatch("runs", "records", err.expected, f"{err.found} ({what})")]
        there = sorted(path for path in written if (out / path.name).is_file())
        differences = [
            difference
            for path in there
            for difference in compare_contents(path.name, path.read_bytes(), (out / path.name).read_bytes())
        ]
    return tuple(path.name for path in there), differences


def _close(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=_CLOSE, abs_tol=_CLOSE)


def _told(out: Path, err: RunError, field: str) -> Mismatch:
    return Mismatch(_relative(out, Path(err.path)), field, err.expected, err.found)


def _relative(out: Path, path: Path) -> str:
    return path.relative_to(out).as_posix()
