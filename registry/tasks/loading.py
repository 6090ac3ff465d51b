"""The rows of a task, from the Hub, the bundled sample, a folder of one file per split, or files of one's own.

Everything that reads rows goes through ``load_task`` and ``load_to_score``; whatever the source, the rows are checked
by the same code. Tokens, batches and models are not known here.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pyarrow as pa

from registry.errors import ConfigError, DataError, closest, shorten
from registry.schema import DataInfo
from registry.tasks.folders import read_split
from registry.tasks.hub import fetch_from_hub
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
from registry.tasks.spec import BUILT_IN, HubSource, TaskSpec, task_name
from registry.tasks.tables import Table, read_table, table_from_arrow
from registry.validation import require

HUB = "hub"
SAMPLE = "sample"
SAMPLE_FOLDER = Path(__file__).parent / "sample"

Fetch = Callable[[HubSource, Sequence[str], bool], Mapping[str, pa.Table]]


@dataclass(frozen=True)
class TaskData:
    """A task with its rows.

    Attributes:
        spec: with its label names and metrics filled in.
        train: rows to train on.
        reported: rows to score on.
        source: ``hub``, ``sample``, or the folder or file as given.
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

    @functools.cached_property
    def _with_fewer_rows(self) -> dict[int, TaskData]:
        return {}


def load_task(
    spec: TaskSpec,
    data: str = HUB,
    *,
    offline: bool = False,
    limit: int | None = None,
    limit_reported: int | None = None,
    seed: int = 0,
    fetch: Fetch = fetch_from_hub,
) -> TaskData:
    """Return the task's rows, every one checked.

    A task with a file or folder of its own is read from there whatever ``data`` is.

    Args:
        spec: the task.
        data: ``hub``, ``sample``, or a folder with one file per split (``glue/mrpc/train.parquet``, say).
        offline: never ask the network.
        limit: at most this many training rows.
        limit_reported: at most this many rows to score on.
        seed: draws the limited and the held-out rows; leave it alone, so that all runs see the same rows.
        fetch: asks the Hub for splits.

    Raises:
        ConfigError: a limit below 1, a metric that does not fit, or a source that the task does not have.
        DataError: a file, column or row that cannot be used.
        DataUnavailableError: the Hub cannot be reached and the data set is not cached.
    """
    for field, value in (("limit", limit), ("limit_reported", limit_reported)):
        require(value is None or value >= 1, field, "at least 1 row", value)
    source = _choose_source(spec, data)
    tables = _read_file(spec) if spec.file is not None else _read_splits(spec, source, offline, fetch)
    found = find_labels(tables[0], spec)
    spec = _with_metrics(found.spec)
    rows = [rows_from_table(table, spec) for table in tables]
    _check_training_labels(tables[0], rows[0], spec)
    repeated = count_repeated(rows[0]) if spec.file is not None and len(rows) == 1 else 0
    if len(rows) == 1:
        stratify = spec.problem_type == "classification"
        rows = [*hold_out(rows[0], spec.held_out, seed, stratify, by_text=spec.held_out_by == "text")]
    train, reported = rows
    left_out = sum(map(len, tables)) - len(train) - len(reported)
    return TaskData(
        spec=spec,
        train=limit_rows(train, limit, seed),
        reported=limit_rows(reported, limit_reported, seed),
        source=source,
        sample=source == SAMPLE,
        train_available=len(train),
        reported_available=len(reported),
        seed=seed,
        left_out=left_out,
        repeated=repeated,
        remarks=(*found.remarks, *_remarks(spec, rows, left_out, repeated)),
    )


def load_to_score(spec: TaskSpec, path: Path | str, *, limit_reported: int | None = None, seed: int = 0) -> TaskData:
    """Return every labelled row of a file to be scored, and none to train on.

    Args:
        spec: with the label names of the set that is to answer; a file may lack some of them.
        path: the file.
        limit_reported: at most this many rows.
        seed: draws them.

    Raises:
        DataError: a file, column or row that cannot be used, or a label that is none of the set's.
    """
    require(limit_reported is None or limit_reported >= 1, "limit_reported", "at least 1 row", limit_reported)
    path = Path(path).expanduser()
    table = read_table(path, spec.columns, spec.reading)
    spec = msgspec.structs.replace(
        _with_metrics(find_labels(table, spec).spec),
        name=task_name(path) or spec.name,
        file=str(path),
        reported_split="all",
    )
    rows = rows_from_table(table, spec)
    left_out = len(table) - len(rows)
    return TaskData(
        spec=spec,
        train=rows.take(()),
        reported=limit_rows(rows, limit_reported, seed),
        source=str(path),
        sample=False,
        train_available=0,
        reported_available=len(rows),
        seed=seed,
        left_out=left_out,
        remarks=tuple(_remarks(spec, [rows], left_out, 0)),
    )


def _read_file(spec: TaskSpec) -> list[Table]:
    """Return the rows of a task's one file or two."""
    paths = [spec.file, *([spec.reported_file] if spec.reported_file is not None else [])]
    return [read_table(Path(path or "").expanduser(), spec.columns, spec.reading) for path in paths]


def _remarks(spec: TaskSpec, rows: Sequence[Rows], left_out: int, repeated: int) -> list[str]:
    """Return what a reader should know of the rows of a task."""
    told = []
    if left_out:
        row = "row was" if left_out == 1 else "rows were"
        told.append(f"{left_out:,} {row} left out: without a usable text or label, or with one to be ignored")
    if repeated:
        row = "row repeats" if repeated == 1 else "rows repeat"
        told.append(f"{repeated:,} {row} the text of another row; equal texts are on one side of the held-out rows")
    names = spec.label_names or ()
    if spec.problem_type == "classification" and len(rows) > 0:
        missing = [name for index, name in enumerate(names) if index not in set(rows[-1].labels)]
        if missing:
            told.append(f"no row to score has label {shorten(missing, 3)}")
    return told


def load_again(spec: TaskSpec, info: DataInfo, source: str | None = None, *, offline: bool = False) -> TaskData:
    """Return the rows that an earlier run took of a task, so many as ``info`` says; see ``load_task``.

    Whether they are the same rows is told by their fingerprint.

    Args:
        spec: the task, with the split that was reported.
        info: what is known of the run's rows.
        source: where they are now; where they were when None.
        offline: never ask the network.
    """
    return load_task(
        spec,
        source or info.source,
        offline=offline,
        limit=info.train_rows if info.train_rows < info.train_available else None,
        limit_reported=info.reported_rows if info.reported_rows < info.reported_available else None,
    )


def _choose_source(spec: TaskSpec, data: str) -> str:
    """Return ``hub``, ``sample``, or the file or folder that the rows come from."""
    if spec.file is not None:
        return spec.file
    if spec.folder is not None and Path(spec.folder).is_absolute():
        return spec.folder
    if data == HUB and spec.hub is None:
        raise ConfigError("data", f"a folder, as task '{spec.name}' is not on the Hub", data)
    if data == SAMPLE and (spec.folder is None or not (SAMPLE_FOLDER / spec.folder).is_dir()):
        expected = f"hub or a folder, as the sample has only {shorten(BUILT_IN)}"
        raise ConfigError(f"data for task '{spec.name}'", expected, data)
    return data


def _read_splits(spec: TaskSpec, source: str, offline: bool, fetch: Fetch) -> list[Table]:
    splits = (spec.train_split, spec.reported_split)
    if source == HUB and spec.hub is not None:
        tables = fetch(spec.hub, splits, offline)
        named = {split: f"Hub data set '{spec.hub}', split {split}" for split in splits}
        found = [table_from_arrow(named[split], tables[split], spec.columns) for split in splits]
        for table, split in zip(found, splits, strict=True):
            if not tables[split].num_rows:
                raise DataError(table.source, "content", "at least one row", "none")
        return found
    root = SAMPLE_FOLDER if source == SAMPLE else Path(source).expanduser()
    if not root.is_dir():
        hint = closest(source, (HUB, SAMPLE)) or "--data takes hub, sample or a folder"
        raise DataError(root, "folder", "a folder of data", "a file" if root.exists() else "none", hint)
    folder = root / (spec.folder or spec.name)
    return [read_split(folder, split, spec) for split in splits]


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
