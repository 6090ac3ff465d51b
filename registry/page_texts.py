"""The texts of the reported rows, read again for a page that stays on its reader's machine.

Records hold no text. The rows are loaded as the runs loaded them, and used only where they are the very same ones.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from registry.answers import Answers, methods_of
from registry.data import TaskData, load_task
from registry.errors import DataError
from registry.evidence import Evidence
from registry.schema import RunRecord
from registry.tasks import TaskSpec, find_task, replace_split

Texts = dict[int, tuple[str, ...]]


def read_texts(
    evidence: Evidence,
    data: str | None = None,
    *,
    offline: bool = False,
    specs: Iterable[TaskSpec] = (),
) -> dict[str, Texts]:
    """Return for each task the text, or pair of texts, of every reported row by its number.

    Args:
        evidence: of the report.
        data: where the rows are; where the records say when None.
        offline: never ask the network.
        specs: of the user's own tasks; the built-in ones are known.

    Raises:
        UnknownTaskError: a task that is neither built in nor among ``specs``.
        DataError: the rows cannot be read, or are not those of the records.
        DataUnavailableError: the Hub cannot be reached and the data set is not cached.
    """
    own = {spec.name: spec for spec in specs}
    found: dict[str, Texts] = {}
    for task in sorted({record.task for record in evidence.records}):
        # All runs of a task have the same reported rows; the one with most training rows has those of the others too.
        record = max(
            (one for one in evidence.records if one.task == task), key=lambda one: (one.data.train_rows, one.method)
        )
        spec = own[task] if task in own else find_task(task)
        answers = next(iter(methods_of(evidence.answers, task).values()), None)
        rows = load_rows(record, spec, answers, data, offline=offline).reported
        columns = [rows.texts] if rows.pairs is None else [rows.texts, rows.pairs]
        found[task] = dict(zip(rows.row_numbers, zip(*columns, strict=True), strict=True))
    return found


def load_rows(
    record: RunRecord, spec: TaskSpec, answers: Answers | None, data: str | None = None, *, offline: bool = False
) -> TaskData:
    """Return the very rows that a run was trained and scored on.

    Args:
        record: of the run.
        spec: of its task.
        answers: of the run, whose row numbers and labels are checked too.
        data: where the rows are; where the record says when None.
        offline: never ask the network.

    Raises:
        DataError: the rows cannot be read, or are not those of the record.
        DataUnavailableError: the Hub cannot be reached and the data set is not cached.
    """
    loaded = _load(record, spec, data or record.data.source, offline)
    _check(record, loaded, answers)
    return loaded


def _load(record: RunRecord, spec: TaskSpec, source: str, offline: bool) -> TaskData:
    info = record.data
    return load_task(
        spec if spec.reported_split == record.split else replace_split(spec, record.split),
        source,
        offline=offline,
        limit=info.train_rows if info.train_rows < info.train_available else None,
        limit_reported=info.reported_rows if info.reported_rows < info.reported_available else None,
    )


def _check(record: RunRecord, loaded: TaskData, answers: Answers | None) -> None:
    expected, found = record.data.fingerprint, loaded.fingerprint()
    hint = "give --data the source that the runs were made from"
    if found != expected:
        told = f"rows with fingerprint {expected[:12]}, as the runs had"
        raise DataError(loaded.source, f"task '{record.task}'", told, found[:12], hint)
    if answers is None:
        return
    rows = loaded.reported
    same = np.array_equal(answers.row_numbers, rows.row_numbers) and np.array_equal(answers.labels, rows.labels)
    if not same:
        raise DataError(
            loaded.source, f"task '{record.task}'", "the rows and labels that the runs answered", "others", hint
        )
