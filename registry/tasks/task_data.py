"""A task with its rows, from whatever tables they stand in: files, the Hub, frames, lists.

Labels are found, every row is checked, and rows are held out here; where tables come from is not known.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from registry.errors import ConfigError, DataError, shorten
from registry.tasks.cells import Table
from registry.tasks.label_names import find_labels
from registry.tasks.metrics import check_metrics, default_metrics
from registry.tasks.rows import (
    Overlap,
    Rows,
    count_repeated,
    find_overlap,
    hold_out,
    limit_further,
    limit_rows,
    rows_from_table,
)
from registry.tasks.spec import REPORTED_NAMES, TRAIN_NAMES, TaskSpec
from registry.tasks.tables import table_from_arrow
from registry.validation import require

MEMORY = "memory"


@dataclass(frozen=True, repr=False)
class TaskData:
    """A task with its rows.

    Attributes:
        spec: with its label names and metrics filled in.
        train: rows to train on.
        reported: rows to score on.
        source: ``hub``, ``sample``, ``memory``, or the folder or file as given.
        sample: whether it is the bundled sample, whose scores are no evidence.
        train_available: training rows before any limit.
        reported_available: rows to score on before any limit.
        seed: of the draw, which a smaller number of training rows repeats.
        left_out: rows without a usable text or label, or with a label to be ignored, of both splits.
        repeated: rows of one file whose texts stand in an earlier row, which stay on its side.
        remarks: what a reader should know of the rows.
    """

    spec: TaskSpec
    train: Rows
    reported: Rows
    source: str
    sample: bool
    train_available: int
    reported_available: int
    seed: int = 0
    left_out: int = 0
    repeated: int = 0
    remarks: tuple[str, ...] = ()

    @classmethod
    def from_pandas(
        cls, frame: Any, *, text: str, label: str, pair: str | None = None, validation: Any = None, **fields: Any
    ) -> TaskData:
        """Return the task that a frame makes.

        Args:
            frame: a pandas ``DataFrame``, a row for each row.
            text, label, pair: its columns; gaps are no text and no label.
            validation: a second frame to score on; a share of distinct texts is held out when None.
            fields: other fields of ``TaskSpec``: name, problem_type, positive_label, reading and so on.

        Raises:
            ConfigError, DataError: a field, column or row that cannot be used.
        """
        spec = _own_spec(text, label, pair, validation, fields)
        frames = [frame] if validation is None else [frame, validation]
        return make_task_data(spec, [_table_from_frame(each, spec) for each in frames], MEMORY)

    @classmethod
    def from_dataset(
        cls, dataset: Any, *, text: str, label: str, pair: str | None = None, validation: Any = None, **fields: Any
    ) -> TaskData:
        """Return the task that a data set of the ``datasets`` library makes; see ``from_pandas``.

        Args:
            dataset: a ``Dataset``, or a ``DatasetDict`` with a split to train on and one to score on by their usual
                names, or by ``train_split`` and ``reported_split`` among the fields.
        """
        if isinstance(dataset, Mapping):
            names = [fields.pop(each, None) for each in ("train_split", "reported_split")]
            train, reported = (
                _split_of(dataset, *each) for each in zip(names, (TRAIN_NAMES, REPORTED_NAMES), strict=True)
            )
            dataset, validation = dataset[train], dataset[reported]
            fields.update(train_split=train, reported_split=reported)
        spec = _own_spec(text, label, pair, validation, fields)
        parts = [dataset] if validation is None else [dataset, validation]
        return make_task_data(spec, [_table_from_dataset(each, spec) for each in parts], MEMORY)

    @classmethod
    def from_lists(
        cls, texts: Iterable[str], labels: Iterable[Any], pairs: Iterable[str] | None = None, **fields: Any
    ) -> TaskData:
        """Return the task that texts and their labels make; a share of distinct texts is held out to score on.

        Args:
            texts, labels, pairs: of the same length.
            fields: other fields of ``TaskSpec``.

        Raises:
            ConfigError: lists of different lengths, or a text in the place of a list.
            DataError: a row that cannot be used.
        """
        columns = {"text": texts, "label": labels, **({} if pairs is None else {"pair": pairs})}
        for name, cells in columns.items():
            require(not isinstance(cells, str), f"{name}s", "a list", "one text")
        lists = {name: list(cells) for name, cells in columns.items()}
        lengths = {name: len(cells) for name, cells in lists.items()}
        told = ", ".join(f"{count:,} {name}s" for name, count in lengths.items())
        require(len(set(lengths.values())) == 1, "lists", "as many labels as texts", told)
        spec = _own_spec("text", "label", None if pairs is None else "pair", None, fields)
        return make_task_data(spec, [Table("the lists", tuple(lists), lists)], MEMORY)

    def fingerprint(self) -> str:
        """Return the SHA-256 over the training rows, then the reported rows."""
        both = self.train.fingerprint() + self.reported.fingerprint()
        return hashlib.sha256(both.encode()).hexdigest()

    @functools.cached_property
    def overlap(self) -> Overlap:
        """Return the rows whose texts stand in both splits; looked for once, since every run asks."""
        return find_overlap(self.train, self.reported)

    def with_train_rows(self, count: int) -> TaskData:
        """Return the task with so many of its training rows: those that ``load_task`` gives with that limit.

        Asked again, it returns the same object, so runs on these rows share their tokens and what is known of them.

        Raises:
            ConfigError: there are not so many.
        """
        there = len(self.train)
        if not 1 <= count <= there:
            limited = f", limited from {self.train_available:,}" if there < self.train_available else ""
            raise ConfigError("train_rows", f"1 to {there:,}, the training rows of '{self.spec.name}'{limited}", count)
        if count == there:
            return self
        if count not in self._with_fewer_rows:
            train = limit_further(self.train, count, self.seed, self.train_available)
            self._with_fewer_rows[count] = replace(self, train=train)
        return self._with_fewer_rows[count]

    def __repr__(self) -> str:
        labels = ", ".join((self.spec.label_names or ())[:5])
        rows = f"{len(self.train):,} rows to train on, {len(self.reported):,} to score"
        return f"TaskData({self.spec.name!r}: {rows}, {self.spec.problem_type} of {labels})"

    @functools.cached_property
    def _with_fewer_rows(self) -> dict[int, TaskData]:
        return {}


def make_task_data(
    spec: TaskSpec,
    tables: Sequence[Table],
    source: str,
    sample: bool = False,
    limit: int | None = None,
    limit_reported: int | None = None,
    seed: int = 0,
) -> TaskData:
    """Return a task with the rows of one table, part of which is held out, or of two.

    Args:
        spec: label names and metrics are filled in where it has none.
        tables: rows to train on, then perhaps rows to score on.
        source, sample: see ``TaskData``.
        limit, limit_reported: at most so many rows on either side.
        seed: draws the limited and the held-out rows.

    Raises:
        ConfigError, DataError: a metric, column or row that cannot be used.
    """
    for table in tables:
        if not len(table) and set(spec.columns) <= set(table.columns):
            raise DataError(table.source, "content", "at least one row", "none")
    found = find_labels(tables[0], spec)
    spec = _with_metrics(found.spec)
    rows = [rows_from_table(table, spec) for table in tables]
    _check_training_labels(tables[0], rows[0], spec)
    repeated = count_repeated(rows[0]) if len(rows) == 1 else 0
    if len(rows) == 1:
        spec, *rows = _hold_out(spec, rows[0], seed)
    train, reported = rows
    left_out = sum(map(len, tables)) - len(train) - len(reported)
    return TaskData(
        spec=spec,
        train=limit_rows(train, limit, seed),
        reported=limit_rows(reported, limit_reported, seed),
        source=source,
        sample=sample,
        train_available=len(train),
        reported_available=len(reported),
        seed=seed,
        left_out=left_out,
        repeated=repeated,
        remarks=(*found.remarks, *_remarks(spec, reported, left_out, repeated)),
    )


def _hold_out(spec: TaskSpec, rows: Rows, seed: int) -> tuple[TaskSpec, Rows, Rows]:
    """Return rows to train on and to score on, drawn by distinct texts where there are enough of these."""
    stratify = spec.problem_type == "classification"
    if spec.held_out_by == "text":
        try:
            return spec, *hold_out(rows, spec.held_out, seed, stratify, by_text=True)
        except ConfigError:
            spec = msgspec.structs.replace(spec, held_out_by="row")
    try:
        return spec, *hold_out(rows, spec.held_out, seed, stratify)
    except ConfigError as err:
        count = len(spec.label_names or ())
        hint = f"there are {count:,} labels in {len(rows):,} rows: is this the column of the labels?"
        raise ConfigError(
            err.field, err.expected, err.found, hint if stratify and 2 * count > len(rows) else ""
        ) from err


def make_scored_data(spec: TaskSpec, table: Table, source: str, limit: int | None = None, seed: int = 0) -> TaskData:
    """Return all rows of a table to be scored under the spec's own label names, and none to train on.

    Numbers mean a class by its place only where the data set of the spec is one of the Hub, which writes them so.
    """
    spec = _with_metrics(find_labels(table, spec).spec)
    rows = rows_from_table(table, spec, by_place=spec.hub is not None)
    left_out = len(table) - len(rows)
    return TaskData(
        spec=spec,
        train=rows.take(()),
        reported=limit_rows(rows, limit, seed),
        source=source,
        sample=False,
        train_available=0,
        reported_available=len(rows),
        seed=seed,
        left_out=left_out,
        remarks=tuple(_remarks(spec, rows, left_out, 0)),
    )


def _own_spec(text: str, label: str, pair: str | None, validation: object, fields: dict[str, Any]) -> TaskSpec:
    """Return the spec of rows in memory."""
    unknown = sorted(fields.keys() - set(TaskSpec.__struct_fields__))
    if unknown:
        raise ConfigError("fields", f"fields of TaskSpec ({', '.join(TaskSpec.__struct_fields__)})", unknown[0])
    reported = "held_out" if validation is None else "validation"
    usual = {"name": "task", "reported_split": reported, "problem_type_given": "problem_type" in fields}
    columns = (text,) if pair is None else (text, pair)
    return TaskSpec(**{**usual, **fields, "text_columns": columns, "label_column": label})


def _split_of(dataset: Mapping[str, Any], asked: str | None, names: Sequence[str]) -> str:
    name = next((each for each in ((asked,) if asked else names) if each in dataset), None)
    if name is None:
        raise ConfigError("dataset", f"a split {asked or ' or '.join(names)}", ", ".join(dataset))
    return name


def _table_from_frame(frame: Any, spec: TaskSpec) -> Table:
    names = tuple(map(str, frame.columns))
    columns = {name: _cells(frame[name]) for name in spec.columns if names.count(name) == 1}
    return Table("the frame", names, columns)


def _cells(column: Any) -> list[Any]:
    """Return the cells of a pandas column, None for what is missing."""
    return [None if missing is True else cell for cell, missing in zip(column.tolist(), column.isna(), strict=True)]


def _table_from_dataset(dataset: Any, spec: TaskSpec) -> Table:
    table = table_from_arrow("the data set", dataset.with_format("arrow")[:], spec.columns)
    named = {name: tuple(each.names) for name, each in dataset.features.items() if hasattr(each, "names")}
    return replace(table, class_names=named)


def _remarks(spec: TaskSpec, reported: Rows, left_out: int, repeated: int) -> list[str]:
    """Return what a reader should know of the rows of a task."""
    told = []
    if left_out:
        row = "row was" if left_out == 1 else "rows were"
        told.append(f"{left_out:,} {row} left out: without a usable text or label, or with one to be ignored")
    if repeated:
        row = "row repeats" if repeated == 1 else "rows repeat"
        one = "equal texts are on one side of the held-out rows"
        both = "so few are different that equal texts are trained on and scored, which makes scores too good"
        told.append(f"{repeated:,} {row} the text of another row; {one if spec.held_out_by == 'text' else both}")
    names = spec.label_names or ()
    if spec.problem_type == "classification":
        there = set(reported.labels)
        missing = [name for index, name in enumerate(names) if index not in there]
        if missing:
            told.append(f"no row to score has label {shorten(missing, 3)}")
    return told


def _with_metrics(spec: TaskSpec) -> TaskSpec:
    """Return the spec with the usual metrics, where it has none."""
    count = len(spec.label_names or ())
    metrics = spec.metrics or default_metrics(spec.problem_type, count)
    check_metrics(spec.problem_type, count, metrics)
    return msgspec.structs.replace(spec, metrics=metrics)


def _check_training_labels(table: Table, rows: Rows, spec: TaskSpec) -> None:
    if spec.problem_type == "classification" and len(set(rows.labels)) < 2:
        only = (spec.label_names or ())[rows.labels[0]]
        expected = "at least 2 different labels to train on"
        raise DataError(table.source, f"column '{spec.label_column}'", expected, f"only '{only}'")
