"""What is promised of run records on disk: whole or absent, strict, without text."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.bench.records import (
    RunRecord,
    read_predictions,
    read_record,
    read_records,
    record_path,
    write_file,
    write_record,
)
from registry.errors import ConfigError, InvalidNameError, RunError
from registry.stats.predictions import Predictions
from tests.support.run_records import make_record


@pytest.fixture
def record() -> RunRecord:
    return make_record("mrpc", "pfeiffer", seed=3)


@pytest.fixture
def predictions() -> Predictions:
    probabilities = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], dtype=np.float32)
    return Predictions(np.array([0, 1, 2]), np.array([1, 0, 0]), probabilities)


def test_record_reads_back_as_written(tmp_path: Path, record: RunRecord) -> None:
    """A record written without predictions is equal when read."""
    path = write_record(tmp_path, record, None)
    assert tmp_path / "runs" / "mrpc" / "pfeiffer" / "seed-3.json" == path
    assert record == read_record(path)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([1, 0, 1]),
        np.array([[1, 0], [1, 1], [0, 0]]),
        np.array([0.5, -1.25, 3.0]),
    ],
    ids=["classes", "multi_label", "regression"],
)
def test_predictions_read_back_as_written(tmp_path: Path, record: RunRecord, labels: np.ndarray) -> None:
    """Row numbers, labels of every problem type and probabilities survive the file bit for bit."""
    probabilities = np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]], dtype=np.float32)
    written = read_record(write_record(tmp_path, record, Predictions(np.array([5, 7, 9]), labels, probabilities)))
    read = read_predictions(tmp_path, written)
    assert [5, 7, 9] == read.row_numbers.tolist()
    assert labels.dtype == read.labels.dtype
    assert labels.tolist() == read.labels.tolist()
    assert np.float32 == read.probabilities.dtype
    assert probabilities.tolist() == read.probabilities.tolist()


def test_predictions_file_has_no_text_column(tmp_path: Path, record: RunRecord, predictions: Predictions) -> None:
    """The parquet holds three number columns and nothing that could be a row's text."""
    path = write_record(tmp_path, record, predictions).with_name("seed-3.predictions.parquet")
    schema = pq.read_schema(path)
    assert {"row": pa.int64(), "label": pa.int64(), "probabilities": pa.list_(pa.float32(), 2)} == {
        field.name: field.type for field in schema
    }


def test_predictions_refuse_text_labels() -> None:
    """Labels are numbers; names or texts are refused before anything is written."""
    with pytest.raises(ConfigError, match=r"cannot use labels: expected 1 rows of numbers, found '<U4 of shape"):
        Predictions(np.array([0]), np.array(["text"]), np.zeros((1, 2), dtype=np.float32))


def test_predictions_refuse_arrays_of_different_length() -> None:
    """Every row has probabilities."""
    with pytest.raises(
        ConfigError, match=r"probabilities: expected \(2, C\) floats, found 'float32 of shape \(1, 2\)'"
    ):
        Predictions(np.array([0, 1]), np.array([0, 1]), np.zeros((1, 2), dtype=np.float32))


def test_writing_leaves_no_temporary_file(tmp_path: Path, record: RunRecord, predictions: Predictions) -> None:
    """After a write, and after a second over it, the folder holds the record and its predictions only."""
    write_record(tmp_path, record, predictions)
    path = write_record(tmp_path, record, predictions)
    assert ["seed-3.json", "seed-3.predictions.parquet"] == sorted(entry.name for entry in path.parent.iterdir())


def test_equal_records_are_equal_bytes(tmp_path: Path, record: RunRecord, predictions: Predictions) -> None:
    """Writing the same run twice gives the same files."""
    first, second = (write_record(tmp_path / name, record, predictions) for name in ("a", "b"))
    for name in ("seed-3.json", "seed-3.predictions.parquet"):
        assert first.with_name(name).read_bytes() == second.with_name(name).read_bytes()


def test_failed_run_over_finished_one_drops_old_predictions(
    tmp_path: Path, record: RunRecord, predictions: Predictions
) -> None:
    """Predictions never stay beside a record that they do not belong to."""
    path = write_record(tmp_path, record, predictions)
    failed = msgspec.structs.replace(record, status="failed", error="diverged", scores={})
    write_record(tmp_path, failed, None)
    assert failed == read_record(path)
    assert [path] == list(path.parent.iterdir())
    with pytest.raises(
        RunError, match="expected a run with predictions, found a failed run without; delete the record"
    ):
        read_predictions(tmp_path, failed)


def test_changed_predictions_are_refused(tmp_path: Path, record: RunRecord, predictions: Predictions) -> None:
    """One flipped byte in the prediction file is seen by its digest."""
    path = write_record(tmp_path, record, predictions)
    beside = path.with_name("seed-3.predictions.parquet")
    data = bytearray(beside.read_bytes())
    data[len(data) // 2] ^= 1
    beside.write_bytes(data)
    with pytest.raises(RunError, match=r"seed-3\.predictions\.parquet: expected .* SHA-256 \w{12}, found .* SHA-256"):
        read_predictions(tmp_path, read_record(path))


def test_missing_predictions_are_refused(tmp_path: Path, record: RunRecord, predictions: Predictions) -> None:
    """A record whose prediction file is gone says which file it wants."""
    path = write_record(tmp_path, record, predictions)
    path.with_name("seed-3.predictions.parquet").unlink()
    with pytest.raises(
        RunError, match=r"seed-3\.predictions\.parquet: expected the predictions of a run, found No such"
    ):
        read_predictions(tmp_path, read_record(path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "expected the JSON text to be valid JSON, found Unterminated|Expecting"),
        (lambda data: b"", "expected the JSON text to be valid JSON"),
        (lambda data: b"\xff" + data, "expected the JSON text to be UTF-8"),
        (lambda data: data.replace(b'"seed": 3', b'"seed": "3"'), "expected RunRecord to be the fields of its format"),
        (
            lambda data: data.replace(b'"format": 2', b'"format": 9'),
            "expected format to be a format from 1 to 2 .*, found 9",
        ),
    ],
    ids=["cut", "empty", "not text", "wrong type", "newer format"],
)
def test_damaged_record_is_told_in_one_line(tmp_path: Path, record: RunRecord, damage, message: str) -> None:
    """A record that is not whole is refused with its path and what to do, in one line."""
    path = write_record(tmp_path, record, None)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("delete the record, and bench runs that cell again")
    assert "\n" not in str(caught.value)


def test_records_are_sorted_by_task_method_and_seed(tmp_path: Path, record: RunRecord) -> None:
    """Seed 10 comes after seed 9, whatever the file names sort like."""
    cells = [("sst2", "pfeiffer", 0), ("mrpc", "pfeiffer", 10), ("mrpc", "pfeiffer", 9), ("mrpc", "houlsby", 11)]
    for task, method, seed in cells:
        write_record(tmp_path, msgspec.structs.replace(record, task=task, method=method, seed=seed), None)
    assert sorted(cells) == [(read.task, read.method, read.seed) for read in read_records(tmp_path)]


def test_folder_without_records_is_refused(tmp_path: Path) -> None:
    """An empty report folder names the command that fills it."""
    with pytest.raises(RunError, match="found none; make some with 'adapter-registry bench'"):
        read_records(tmp_path)


def test_copied_record_is_refused(tmp_path: Path, record: RunRecord) -> None:
    """A record copied to another seed's place would count one run twice."""
    path = write_record(tmp_path, record, None)
    path.with_name("seed-4.json").write_bytes(path.read_bytes())
    with pytest.raises(RunError, match=r"the record of mrpc/pfeiffer/seed-4\.json, found that of mrpc/.*seed-3\.json"):
        read_records(tmp_path)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".."])
def test_record_path_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    """No task or method name leads out of the folder."""
    with pytest.raises(InvalidNameError, match="cannot use task"):
        record_path(tmp_path, name, "pfeiffer", 0)
    with pytest.raises(InvalidNameError, match="cannot use method"):
        record_path(tmp_path, "mrpc", name, 0)


def test_unwritable_folder_is_one_of_our_errors(tmp_path: Path, record: RunRecord) -> None:
    """A folder that cannot be made is told in one line, and nothing is left behind."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        RunError, match="expected a folder that can be written, found Not a directory; use another --out"
    ):
        write_record(tmp_path / "file", record, None)
    assert ["file"] == [entry.name for entry in tmp_path.iterdir()]


def test_replace_file_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    """A target that cannot be replaced stays, and the staged bytes go."""
    (tmp_path / "target" / "full").mkdir(parents=True)
    with pytest.raises(RunError, match=r"cannot use run records in .*target"):
        write_file(tmp_path / "target", b"new")
    assert ["target"] == [entry.name for entry in tmp_path.iterdir()]
