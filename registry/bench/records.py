"""Run records: one JSON and one parquet file for each benchmark run, written whole or not at all, read strictly.

A record is ``OUT/runs/<task>/<method>/seed-<n>.json``; beside it, a parquet file holds its answers row by row. It never
stores text: rows are numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from registry.bench.curves import LearningCurve
from registry.bench.sweep import split_name, swept_settings
from registry.config import HeadConfig, MethodConfig, TrainingConfig
from registry.errors import ConfigError, RunError
from registry.provenance import Hardware
from registry.schema import BackboneInfo, DataInfo, FileEntry, name_method
from registry.stats.predictions import Predictions
from registry.store import files
from registry.training.plan import ParameterCounts
from registry.validation import Record, check_name, from_json, require, to_json

RUN_FORMAT = 2


class RunRecord(Record, frozen=True, kw_only=True):
    """One cell of a benchmark table: one method on one task with one seed.

    Attributes:
        status: ``finished``, or ``failed`` with ``error`` told (a diverged run is listed, never dropped).
        settings: SHA-256 over everything that decides the scores; a finished cell is reused only if equal.
        scores: on ``split``; empty when failed.
        positive_label: the class that ``f1_binary`` is of, where the task has two.
        diverged: whether the loss rose instead of falling; ``error`` tells how far.
        curve: how the training went, a diverged one too; None without training, and in older records.
        together: how many sets were trained in the same pass of the backbone, this one among them.
        train_seconds, evaluate_seconds: wall time; of sets trained together each has its share by tokens.
        rows_per_second: training rows, all epochs counted, per second of training.
        evaluate_rows_per_second: rows of the reported split per second.
        peak_memory_bytes: largest resident set of the process, or the most memory allocated on the GPU.
        stored_bytes: what this task adds on disk.
        predictions: the per-row answers beside the record; they hold no text.
    """

    format: int = RUN_FORMAT
    status: Literal["finished", "failed"] = "finished"
    error: str | None = None
    settings: str
    task: str
    method: str
    seed: int
    recipe: str
    split: str
    main_metric: str
    scores: dict[str, float] = {}
    parameters: ParameterCounts
    stored_bytes: int
    steps: int = 0
    final_loss: float | None = None
    diverged: bool = False
    positive_label: str | None = None
    curve: LearningCurve | None = None
    together: int = 1
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    rows_per_second: float = 0.0
    evaluate_rows_per_second: float = 0.0
    peak_memory_bytes: int = 0
    data: DataInfo
    backbone: BackboneInfo
    adapter: MethodConfig | None = None
    head: HeadConfig | None = None
    training: TrainingConfig | None = None
    device: str
    dtype: str
    hardware: Hardware
    library_versions: dict[str, str]
    code: str
    command: str
    started: str
    predictions: FileEntry | None = None

    @property
    def base_method(self) -> str:
        """Return the method without its swept settings."""
        return split_name(self.method)[0]

    @property
    def swept(self) -> dict[str, float]:
        """Return the settings that a sweep put in the place of the method's own, by their names."""
        return swept_settings(self.method)

    def __post_init__(self) -> None:
        known = f"a format from 1 to {RUN_FORMAT} (a newer program?)"
        require(1 <= self.format <= RUN_FORMAT, "format", known, self.format)

    @classmethod
    def upgrade(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Return what a record of format 1 says, as this one says it."""
        return name_method(plain)


_RUN_AGAIN = "delete the record, and bench runs that cell again"
_COLUMNS = ["row", "label", "probabilities"]


def record_path(out: Path, task: str, method: str, seed: int) -> Path:
    """Return where the record of one cell lies.

    Raises:
        InvalidNameError: the task or method could lead out of the folder.
    """
    return Path(out) / "runs" / check_name(task, "task") / check_name(method, "method") / f"seed-{seed}.json"


def write_record(out: Path, record: RunRecord, predictions: Predictions | None) -> Path:
    """Write the record, after its predictions, and return its path.

    An older record of the same cell goes away before its predictions do, so whatever record is visible is whole.

    Raises:
        RunError: the folder cannot be written.
        InvalidNameError: the task or method could lead out of the folder.
    """
    path = record_path(out, record.task, record.method, record.seed)
    beside = _predictions_path(path)
    if predictions is None:
        write_file(path, to_json(msgspec.structs.replace(record, predictions=None)))
        _discard(beside)
        return path
    data = _to_parquet(predictions)
    entry = FileEntry(path=beside.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    staged = _stage(path, to_json(msgspec.structs.replace(record, predictions=entry)))
    try:
        staged_beside = _stage(beside, data)
        _discard(path)
        _commit(staged_beside, beside)
        _commit(staged, path)
    finally:
        _discard(staged)
    return path


def write_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` in one step: a reader sees the old file or the new one, never a part.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        files.replace_file(path, data)
    except OSError as err:
        raise _unwritable(path, err) from err


def read_record(path: Path) -> RunRecord:
    """Return the record in one file.

    Raises:
        RunError: the file is missing, damaged or of another format.
    """
    try:
        return from_json(RunRecord, path.read_bytes())
    except OSError as err:
        raise RunError(path, "a readable run record", err.strerror or str(err), "check the path") from err
    except ConfigError as err:
        raise RunError(path, f"{err.field} to be {err.expected}", str(err.found)[:200], _RUN_AGAIN) from err


def find_records(out: Path) -> list[Path]:
    """Return the sorted paths of all records under ``out``.

    Raises:
        RunError: there are none.
    """
    paths = sorted(Path(out).glob("runs/*/*/seed-*.json"))
    if not paths:
        raise RunError(out, "runs/<task>/<method>/seed-<n>.json", "none", "make some with 'adapter-registry bench'")
    return paths


def read_placed_record(path: Path) -> RunRecord:
    """Return the record in one file, which lies where its cell's record belongs.

    Raises:
        RunError: the file is missing, damaged, of another format or in another cell's place.
    """
    record = read_record(path)
    named = (record.task, record.method, f"seed-{record.seed}.json")
    if path.parts[-3:] != named:
        raise RunError(path, f"the record of {'/'.join(path.parts[-3:])}", f"that of {'/'.join(named)}", _RUN_AGAIN)
    return record


def read_records(out: Path) -> list[RunRecord]:
    """Return all records under ``out``, sorted by task, method and seed.

    Raises:
        RunError: there are none, or one is damaged or lies in another cell's place.
    """
    records = [read_placed_record(path) for path in find_records(out)]
    return sorted(records, key=lambda record: (record.task, record.method, record.seed))


def read_predictions(out: Path, record: RunRecord) -> Predictions:
    """Return the answers that ``record`` was written with, from the very bytes its digest is of.

    Raises:
        RunError: the record has none, or the file is missing or not the one it names.
        InvalidNameError: the record's task or method could lead out of the folder.
    """
    path = _predictions_path(record_path(out, record.task, record.method, record.seed))
    if record.predictions is None:
        raise RunError(path, "a run with predictions", f"a {record.status} run without", _RUN_AGAIN)
    try:
        data = path.read_bytes()
    except OSError as err:
        raise RunError(path, "the predictions of a run", err.strerror or str(err), _RUN_AGAIN) from err
    found = FileEntry(path=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    if found != record.predictions:
        raise RunError(path, _identity(record.predictions), _identity(found), _RUN_AGAIN)
    try:
        return _from_parquet(data)
    except (pa.ArrowException, ConfigError) as err:
        raise RunError(path, f"the columns {', '.join(_COLUMNS)}", str(err), _RUN_AGAIN) from err


def _predictions_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.predictions.parquet")


def _identity(entry: FileEntry) -> str:
    return f"{entry.path} of {entry.bytes} bytes, SHA-256 {entry.sha256[:12]}"


def _stage(path: Path, data: bytes) -> Path:
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_new(staged, data)
    except OSError as err:
        _discard(staged)
        raise _unwritable(path, err) from err
    return staged


def _commit(staged: Path, path: Path) -> None:
    try:
        os.replace(staged, path)
    except OSError as err:
        _discard(staged)
        raise _unwritable(path, err) from err


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _unwritable(path: Path, err: OSError) -> RunError:
    return RunError(path, "a folder that can be written", err.strerror or str(err), "use another --out folder")


def _to_parquet(predictions: Predictions) -> bytes:
    labels = predictions.labels.astype(np.float64 if predictions.labels.dtype.kind == "f" else np.int64)
    columns = [
        pa.array(predictions.row_numbers.astype(np.int64)),
        pa.array(labels) if labels.ndim == 1 else _fixed_lists(labels),
        _fixed_lists(predictions.probabilities.astype(np.float32)),
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(columns, names=_COLUMNS), sink)
    return bytes(sink.getvalue())


def _fixed_lists(array: NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def _from_parquet(data: bytes) -> Predictions:
    table = pq.read_table(pa.BufferReader(data))
    if table.column_names != _COLUMNS:
        raise ConfigError("the columns", ", ".join(_COLUMNS), ", ".join(table.column_names))
    row, label, probabilities = (table.column(name).combine_chunks() for name in _COLUMNS)
    return Predictions(_to_numpy(row), _to_numpy(label), _to_numpy(probabilities))


def _to_numpy(column: pa.Array) -> NDArray[Any]:
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)  # (R, C)
    return np.asarray(column)
