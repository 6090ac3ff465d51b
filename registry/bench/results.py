"""Which run records belong together: in one table, in one mean, and what a reader must be told of them.

Records of other data, another backbone or other settings are refused. Runs of different or uncommitted code are shown
but never averaged, since nobody could run their mean again. Nothing here knows of files or how a table looks.

The stored answers of all runs that a table counts, in arrays that statistics can take.

For each task and method: what every counted seed answered to the same rows. Which runs count is results.py's to
say; what the answers amount to is statistics.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from registry.bench.records import RunRecord, read_predictions, record_path
from registry.bench.sweep import split_name, swept_train_rows
from registry.config import BASELINES, PLACEMENTS
from registry.errors import RunError
from registry.provenance import DIRTY
from registry.stats.predictions import CellKey, CellPredictions, Predictions
from registry.tasks.metrics import centre_thresholds
from registry.tasks.spec import LOWER_IS_BETTER

FULL = "full_fine_tuning"  # what every method is compared with
_METHODS = ("majority", "head_only", *PLACEMENTS)


def check_comparable(records: Sequence[RunRecord]) -> None:
    """Refuse records that one table must not mix.

    Runs of one task have the same rows, but for those that tell in their method's name on how many they trained:
    these share the rows with all others of that number.

    Raises:
        RunError: there are none, or two of one task differ in data, backbone or split, or two of one task and
            method differ in dtype or in any setting but the seed, or a name tells another number of training rows.
    """
    if not records:
        raise RunError("this table", "at least one run record", "none", "make some with 'adapter-registry bench'")
    ordered = sorted(records, key=lambda record: (record.task, record.method, record.seed))
    for record in ordered:
        _check_named_rows(record)
    for _, task in groupby(ordered, key=lambda record: record.task):
        of_task = list(task)
        _check_equal(of_task, _task_conditions)
        for rows in {swept_train_rows(record.method): None for record in of_task}:
            _check_equal([record for record in of_task if swept_train_rows(record.method) == rows], _data_conditions)
    for _, cell in groupby(ordered, key=lambda record: (record.task, record.method)):
        _check_equal(list(cell), _cell_conditions)


def averaged_runs(cell: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the finished runs of one task and method if a mean over them may be taken; else none of them.

    Every mean, interval and comparison of methods starts here.
    """
    return [] if why_not_averaged(cell) else _finished(cell)


def why_not_averaged(cell: Sequence[RunRecord]) -> str:
    """Return what speaks against a mean over the finished runs of one task and method, or an empty string."""
    done = _finished(cell)
    codes = sorted({record.code for record in done})
    if len(codes) > 1:
        return f"runs of different code ({', '.join(codes)})"
    if len(done) > 1 and is_dirty(done[0]):
        return f"runs of uncommitted code ({codes[0]})"
    return ""


def reference_of(method: str) -> str:
    """Return what ``method`` is compared with: full fine-tuning, on as few rows where its name tells how many."""
    rows = swept_train_rows(method)
    return FULL if rows is None else f"{FULL}-n{rows}"


def is_reference(method: str) -> bool:
    """Return whether ``method`` is what others are compared with: full fine-tuning, on all rows or on fewer."""
    return reference_of(method) == method


def is_dirty(record: RunRecord) -> bool:
    """Return whether the package had uncommitted changes, so that nobody else can run the same code."""
    return record.code.endswith(DIRTY)


def not_above_majority(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the finished trainings whose main metric is no better than that of the majority class on their task.

    Such a run did not diverge, so it counts like any other; but it has learned nothing that its metric shows.
    """
    majority: dict[str, float] = {}
    for record in _finished(records):
        if record.method == "majority":
            majority[record.task] = _goodness(record)
    trained = [record for record in _finished(records) if record.method != "majority" and record.task in majority]
    return [record for record in trained if _goodness(record) <= majority[record.task]]


def _goodness(record: RunRecord) -> float:
    value = record.scores.get(record.main_metric, float("nan"))
    return -value if record.main_metric in LOWER_IS_BETTER else value


def _finished(records: Sequence[RunRecord]) -> list[RunRecord]:
    return [record for record in records if record.status == "finished"]


def _check_equal(records: Sequence[RunRecord], conditions: Callable[[RunRecord], dict[str, object]]) -> None:
    first = records[0]
    for other in records[1:]:
        expected, found = conditions(first), conditions(other)
        for name in [*expected, *(name for name in found if name not in expected)]:
            if expected.get(name) != found.get(name):
                raise RunError(
                    f"{_place(first)} and {_place(other)}",
                    f"the same {name}",
                    f"{_short(expected.get(name))} and {_short(found.get(name))}",
                    "use another --out folder for runs under other conditions",
                )


def _check_named_rows(record: RunRecord) -> None:
    named, found = swept_train_rows(record.method), record.data.train_rows
    if named not in (None, found):
        expected = f"{named:,} training rows, as its method's name says"
        raise RunError(_place(record), expected, f"{found:,}", "delete it and run it again")


def _place(record: RunRecord) -> str:
    return f"runs/{record.task}/{record.method}/seed-{record.seed}.json"


def _short(value: object) -> str:
    return str(value)[:12]


def _task_conditions(record: RunRecord) -> dict[str, object]:
    return {
        "number of reported rows": record.data.reported_rows,
        "backbone fingerprint": record.backbone.fingerprint,
        "tokenizer": record.backbone.tokenizer_digest,
        "split": record.split,
        "main metric": record.main_metric,
    }


def _data_conditions(record: RunRecord) -> dict[str, object]:
    return {"data fingerprint": record.data.fingerprint}


def _cell_conditions(record: RunRecord) -> dict[str, object]:
    found = ("seed", "temperature", "thresholds")  # what each training has of its own
    conditions: dict[str, object] = {"dtype": record.dtype}
    for part in ("adapter", "head", "training"):
        settings = getattr(record, part)
        plain = msgspec.structs.asdict(settings) if settings is not None else {}
        conditions.update({f"{part} {name}": value for name, value in plain.items() if name not in found})
    return conditions


def read_answers(out: Path, records: Iterable[RunRecord]) -> dict[CellKey, CellPredictions]:
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


def methods_of(answers: Mapping[CellKey, CellPredictions], task: str) -> dict[str, CellPredictions]:
    """Return the answers of each method on one task."""
    return {method: found for (name, method), found in answers.items() if name == task}


def _joined(runs: Sequence[RunRecord], read: Sequence[Predictions]) -> CellPredictions:
    return CellPredictions(
        problem_type=read[0].problem_type,
        seeds=tuple(record.seed for record in runs),
        row_numbers=read[0].row_numbers,
        labels=read[0].labels,
        probabilities=np.stack([_centred(*each) for each in zip(runs, read, strict=True)]),
    )


def _centred(record: RunRecord, answers: Predictions) -> np.ndarray:
    """Return a run's (R, C) probabilities, moved so that one half is where each label is said."""
    thresholds = record.head.thresholds if record.head is not None else ()
    return centre_thresholds(answers.probabilities, thresholds) if thresholds else answers.probabilities


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


def method_order(method: str) -> tuple[int, str, tuple[tuple[str, float], ...]]:
    """Return the sort key of a method: simple baselines, placements, other recipes, full fine-tuning last.

    Variants come after their method, by their swept values.
    """
    base, swept = split_name(method)
    place = _METHODS.index(base) if base in _METHODS else len(_METHODS) + (base == FULL)
    return place, base, swept


def group_of(base: str) -> Literal["baseline", "adapter", "full"]:
    """Return whether a method, its swept settings left out, is a baseline, full fine-tuning, or a set."""
    if base == FULL:
        return "full"
    return "baseline" if base in BASELINES else "adapter"
