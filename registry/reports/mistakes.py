"""What was answered wrong: confusions, and the rows themselves, with their texts where these are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from registry.bench.records import RunRecord
from registry.bench.results import methods_of
from registry.bench.sweep import split_name
from registry.errors import DataError
from registry.reports.content import ReportContent
from registry.stats.predictions import CellPredictions
from registry.tasks.loading import TaskData, load_task
from registry.tasks.metrics import predicted_labels
from registry.tasks.spec import TaskSpec, find_task, replace_split
from registry.validation import Record, require


class MethodConfusion(Record, frozen=True, kw_only=True):
    """Answers of one method, counted over its seeds: ``counts[true][answered]``."""

    method: str
    seeds: int
    counts: tuple[tuple[int, ...], ...]


class TaskConfusions(Record, frozen=True, kw_only=True):
    """The confusion counts of all methods on one task."""

    task: str
    label_names: tuple[str, ...]
    methods: tuple[MethodConfusion, ...]

    def __post_init__(self) -> None:
        size = len(self.label_names)
        for method in self.methods:
            sizes = {len(method.counts), *map(len, method.counts)}
            require(sizes == {size}, "counts", f"{size} x {size} counts", sorted(sizes))


class ErrorRow(Record, frozen=True, kw_only=True):
    """A row that some method got wrong.

    Attributes:
        row: its number in the reported split.
        label: the true label's index.
        probabilities: of the true label, per method, averaged over seeds.
        wrong: how many seeds were wrong, per method.
        texts: the row's text or pair of texts; empty unless the user asked for them.
    """

    row: int
    label: int
    probabilities: tuple[float, ...]
    wrong: tuple[int, ...]
    texts: tuple[str, ...] = ()


class TaskErrors(Record, frozen=True, kw_only=True):
    """All rows of one task that any method got wrong, with the number of seeds of each method.

    Attributes:
        how: what a reader must know of these numbers in particular; or empty.
    """

    task: str
    label_names: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[ErrorRow, ...]
    how: str = ""

    def __post_init__(self) -> None:
        count = len(self.methods)
        require(len(self.seeds) == count, "seeds", f"{count} numbers", len(self.seeds))
        for row in self.rows:
            sizes = {len(row.probabilities), len(row.wrong)}
            require(sizes == {count}, f"row {row.row}", f"{count} probabilities and counts", sorted(sizes))
            require(0 <= row.label < len(self.label_names), f"row {row.row}", "an index of a label", row.label)


Texts = Mapping[int, tuple[str, ...]]

_SEVERAL_LABELS = (
    "A row of this task has several labels and is wrong where any of them is: its number is the least probability "
    "that was given to the truth about one label."
)
_MAJORITY = "majority"
_NO_LABEL = "none"


def confusions_of(title: str, names: Sequence[str], methods: Mapping[str, CellPredictions]) -> TaskConfusions | None:
    """Return the confusion counts of each method, summed over its seeds; None where rows have no single class.

    Args:
        title: what the page calls the task.
        names: of the labels.
        methods: in the order of the page.
    """
    kinds = {one.problem_type for one in methods.values()}
    if kinds != {"classification"}:
        return None
    counted = tuple(
        MethodConfusion(method=method, seeds=len(one.seeds), counts=_count(one, len(names)))
        for method, one in methods.items()
    )
    return TaskConfusions(task=title, label_names=tuple(names), methods=counted)


def errors_of(
    title: str, names: Sequence[str], methods: Mapping[str, CellPredictions], texts: Texts | None = None
) -> TaskErrors | None:
    """Return every row that some seed of some method got wrong; None where nothing is right or wrong.

    Args:
        title: what the page calls the task.
        names: of the labels.
        methods: in the order of the page; the majority class is left out.
        texts: of each row by its number, for pages that stay with their reader.
    """
    read = {method: one for method, one in methods.items() if split_name(method)[0] != _MAJORITY}
    first = next(iter(read.values()), None)
    if first is None or first.problem_type == "regression":
        return None
    several = first.problem_type == "multi_label"
    labels, label_names = _label_sets(first.labels, names) if several else (first.labels.tolist(), tuple(names))
    wrong = np.stack([(~one.correct()).sum(axis=0) for one in read.values()], axis=1)  # (R, methods)
    truth = np.stack([_given_to_truth(one).mean(axis=0) for one in read.values()], axis=1)  # (R, methods)
    rows = tuple(
        ErrorRow(
            row=number,
            label=labels[index],
            probabilities=tuple(truth[index].tolist()),
            wrong=tuple(wrong[index].tolist()),
            texts=texts[number] if texts is not None else (),
        )
        for index, number in enumerate(first.row_numbers.tolist())
        if wrong[index].any()
    )
    seeds = tuple(len(one.seeds) for one in read.values())
    how = f"{title}: {_SEVERAL_LABELS}" if several else ""
    return TaskErrors(task=title, label_names=label_names, methods=tuple(read), seeds=seeds, rows=rows, how=how)


def _count(one: CellPredictions, classes: int) -> tuple[tuple[int, ...], ...]:
    counts = np.zeros((classes, classes), dtype=np.int64)
    for probabilities in one.probabilities:
        np.add.at(counts, (one.labels, predicted_labels(one.problem_type, probabilities)), 1)
    return tuple(tuple(line) for line in counts.tolist())


def _given_to_truth(one: CellPredictions) -> NDArray[np.float64]:
    """Return (S, R) the probability of the true label, or the least of those of what is true of each label."""
    probabilities = one.probabilities.astype(np.float64)
    if one.problem_type == "multi_label":
        least: NDArray[np.float64] = np.where(one.labels == 1, probabilities, 1 - probabilities).min(axis=2)
        return least
    return probabilities[:, np.arange(len(one.labels)), one.labels]


def _label_sets(labels: NDArray[np.int64], names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return for each row the index of its set of labels, and how each set is called."""
    sets, index = np.unique(labels, axis=0, return_inverse=True)
    called = [", ".join(name for name, there in zip(names, one, strict=True) if there) or _NO_LABEL for one in sets]
    return [int(place) for place in index.reshape(-1)], tuple(called)


RowTexts = dict[int, tuple[str, ...]]


def read_texts(
    evidence: ReportContent,
    data: str | None = None,
    *,
    offline: bool = False,
    specs: Iterable[TaskSpec] = (),
) -> dict[str, RowTexts]:
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
    found: dict[str, RowTexts] = {}
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
    record: RunRecord,
    spec: TaskSpec,
    answers: CellPredictions | None,
    data: str | None = None,
    *,
    offline: bool = False,
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


def _check(record: RunRecord, loaded: TaskData, answers: CellPredictions | None) -> None:
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
