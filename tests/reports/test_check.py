"""``report --check``: what follows from the predictions passes, and every digit changed by hand is found."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest

from registry.bench.records import RunRecord, read_predictions, read_record, write_file, write_record
from registry.bench.runner import Cell, run_cell
from registry.errors import RunError
from registry.model.backbone import Backbone
from registry.reports.check import Checked, check_report
from registry.reports.content import read_evidence
from registry.reports.report import write_report
from registry.schema import REPORT_FORMATS, FileEntry
from registry.stats.predictions import Predictions
from registry.tasks.loading import load_task
from registry.tasks.spec import find_task, task_from_file
from registry.tasks.task_data import TaskData
from registry.validation import to_json
from tests.support.command_line import call, own_rows, succeed, write_csv, write_data_folder
from tests.support.run_records import pass_as_committed

QUICK = {"epochs": 1, "max_length": 32, "batch_size": 8}
CELL = Path("runs/mrpc/pfeiffer")
RECORD, ANSWERS = CELL / "seed-1.json", CELL / "seed-1.predictions.parquet"


def bench(out: Path, data: TaskData, backbone: Backbone, methods: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    """Run real cells and write their report."""
    for method in methods:
        for seed in seeds:
            run_cell(out, Cell(data.spec.name, method, seed), data, backbone, overrides=dict(QUICK))
    pass_as_committed(out)
    write_report(out, read_evidence(out), REPORT_FORMATS)


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Backbone) -> Path:
    """A real little benchmark of two methods and two seeds, with its whole report."""
    root = tmp_path_factory.mktemp("bench")
    data = load_task(find_task("mrpc"), str(write_data_folder(root / "data")))
    bench(root / "out", data, tiny_backbone, ("majority", "pfeiffer"), (0, 1))
    return root / "out"


@pytest.fixture
def out(benched: Path, tmp_path: Path) -> Path:
    """A copy of the benchmark to break."""
    return shutil.copytree(benched, tmp_path / "out")


def files_of(checked: Checked) -> set[str]:
    return {difference.file for difference in checked.differences}


def change_answers(out: Path, change: Callable[[Predictions], Predictions]) -> RunRecord:
    """Rewrite the answers of one run, and make its record name the new file with its right size and digest."""
    record = read_record(out / RECORD)
    write_record(out, record, change(read_predictions(out, record)))
    return record


def swap_first(answers: Predictions) -> Predictions:
    """Exchange the probabilities of the first row's classes, so that its answer is another."""
    probabilities = answers.probabilities.copy()
    probabilities[0] = probabilities[0, ::-1]
    return Predictions(answers.row_numbers, answers.labels, probabilities)


def test_report_that_follows_passes(benched: Path) -> None:
    """All records and all files are checked, in one go and without writing anything."""
    before = {path: path.stat().st_mtime_ns for path in benched.rglob("*")}
    checked = check_report(benched)
    assert (4, ()) == (checked.records, checked.differences)
    assert {path.name for path in benched.iterdir() if path.is_file()} == set(checked.files)
    assert 11 == len(checked.files)
    assert before == {path: path.stat().st_mtime_ns for path in benched.rglob("*")}


def test_report_files_that_are_not_there_are_not_asked_for(out: Path) -> None:
    """Records alone can be checked, and so can a report of one format."""
    for path in out.iterdir():
        if path.is_file() and path.suffix != ".md":
            path.unlink()
    assert Checked(4, ("report.md",), ()) == check_report(out)


def test_wrong_answer_is_found_though_its_digest_is_right(out: Path) -> None:
    """Predictions changed together with the digest that names them no longer give the scores and tables."""
    record = change_answers(out, swap_first)
    checked = check_report(out)
    told = {difference.field: difference for difference in checked.differences if difference.file == str(RECORD)}
    assert {f"scores.{metric}" for metric in record.scores} >= set(told) >= {"scores.accuracy"}
    assert repr(record.scores["accuracy"]) == told["scores.accuracy"].found
    assert 1 / 12 == pytest.approx(abs(float(told["scores.accuracy"].expected) - record.scores["accuracy"]))
    assert {str(RECORD), "table.csv", "runs.csv", "table.json", "report.md"} <= files_of(checked)


def test_wrong_digit_of_a_probability_is_found(out: Path) -> None:
    """A digit that changes no answer leaves shares that no longer add up to 1, and a digest the report never had."""

    def change(answers: Predictions) -> Predictions:
        probabilities = answers.probabilities.copy()
        probabilities[3, probabilities[3].argmax()] += np.float32(0.01)
        return Predictions(answers.row_numbers, answers.labels, probabilities)

    change_answers(out, change)
    first, *others = check_report(out).differences
    assert (str(ANSWERS), "probabilities of row 3, the first of 1") == (first.file, first.field)
    assert "shares that add up to 1" == first.expected
    field = "mrpc pfeiffer 1: predictions_sha256"
    assert {("runs.csv", field), ("runs.parquet", field)} <= {(other.file, other.field) for other in others}


def test_wrong_label_is_found_by_the_other_runs(out: Path) -> None:
    """All runs of a task were asked the same rows, so one that has another label is told, its scores aside."""

    def change(answers: Predictions) -> Predictions:
        labels = answers.labels.copy()
        labels[5] = 1 - labels[5]
        return Predictions(answers.row_numbers, labels, answers.probabilities)

    change_answers(out, change)
    told = [str(difference) for difference in check_report(out).differences if difference.file == str(ANSWERS)]
    assert [f"{ANSWERS}: label at place 5, the first of 1: expected 1 as in other runs, found 0"] == told


def test_other_rows_are_found(out: Path) -> None:
    """Answers to fewer rows than the record says are told with both numbers, whatever their score."""

    def change(answers: Predictions) -> Predictions:
        return Predictions(answers.row_numbers[:6], answers.labels[:6], answers.probabilities[:6])

    change_answers(out, change)
    told = [str(difference) for difference in check_report(out).differences if difference.file == str(ANSWERS)]
    assert f"{ANSWERS}: rows: expected 12, found 6" in told
    assert f"{ANSWERS}: label: expected shape (12,) as in other runs, found shape (6,)" in told


def test_flipped_byte_in_predictions_is_found(out: Path) -> None:
    """A prediction file that is not the one its record names is told by its digest; tables stay as they were."""
    content = bytearray((out / ANSWERS).read_bytes())
    content[len(content) // 2] ^= 1
    (out / ANSWERS).write_bytes(content)
    (difference,) = check_report(out).differences
    assert (str(ANSWERS), "predictions") == (difference.file, difference.field)
    assert hashlib.sha256(content).hexdigest()[:12] in difference.found


def test_missing_predictions_are_found(out: Path) -> None:
    """Scores without answers follow from nothing."""
    (out / ANSWERS).unlink()
    (difference,) = check_report(out).differences
    expected = f"{ANSWERS}: predictions: expected the predictions of a run, found No such file or directory"
    assert expected == str(difference)


def test_wrong_digit_in_a_record_is_found(out: Path) -> None:
    """A score that its answers do not have is told with both values, even if all tables were made from it."""
    record = read_record(out / RECORD)
    wrong = record.scores["accuracy"] + 1e-9
    write_file(out / RECORD, to_json(msgspec.structs.replace(record, scores={**record.scores, "accuracy": wrong})))
    write_report(out, read_evidence(out), REPORT_FORMATS)
    checked = check_report(out)
    assert f"{RECORD}: scores.accuracy: expected {record.scores['accuracy']!r}, found {wrong!r}" == str(
        checked.differences[0]
    )
    assert "table.csv: mrpc pfeiffer: accuracy_mean" in {
        f"{difference.file}: {difference.field}" for difference in checked.differences
    }


def test_wrong_digit_in_the_table_is_found(out: Path) -> None:
    """One cell of table.csv that is not what follows is told by its row and column, and nothing else is."""
    path = out / "table.csv"
    row = next(row for row in csv.DictReader(io.StringIO(path.read_text())) if row["method"] == "pfeiffer")
    right = row["f1_weighted_mean"]
    wrong = right[:-1] + str((int(right[-1]) + 1) % 10)
    path.write_text(path.read_text().replace(f",{right},", f",{wrong},"))
    told = [str(difference) for difference in check_report(out).differences]
    assert [f"table.csv: mrpc pfeiffer: f1_weighted_mean: expected {right}, found {wrong}"] == told


@pytest.mark.parametrize("name", ["runs.csv", "table.json", "report.md", "table.tex", "report.html"])
def test_wrong_digit_in_any_file_is_found(out: Path, name: str) -> None:
    """The last digit of a file that stands for a number is as safe as the first."""
    text = (out / name).read_text()
    place = text.rindex("12 rows of validation") if name != "runs.csv" else text.rindex(",12,")
    place = text.index("2", place)
    (out / name).write_text(text[:place] + "3" + text[place + 1 :])
    checked = check_report(out)
    assert ({name}, 1) == (files_of(checked), len(checked.differences))


@pytest.mark.parametrize("name", ["table", "runs"])
def test_wrong_number_in_a_parquet_file_is_found(out: Path, name: str) -> None:
    """A changed cell of a parquet table is told by its column; one that is packed otherwise holds the same table."""
    path = out / f"{name}.parquet"
    frame = pd.read_parquet(path)
    frame.to_parquet(path, compression="gzip", index=False)
    assert () == check_report(out).differences
    column = "trainable" if name == "runs" else "task"
    frame[column] = frame[column] * 2 if name == "runs" else [f"{task}s" for task in frame[column]]
    frame.to_parquet(path, index=False)
    first = check_report(out).differences[0]
    assert path.name == first.file
    assert first.field.endswith(f": {column}")


def test_other_picture_is_found(out: Path) -> None:
    """A picture of other records is told by the line that differs."""
    path = out / "score_vs_parameters.svg"
    path.write_bytes(path.read_bytes() + b"\0")
    (difference,) = check_report(out).differences
    assert ("score_vs_parameters.svg", True) == (difference.file, difference.field.startswith("line "))


def test_record_that_cannot_be_read_is_a_difference(out: Path) -> None:
    """A damaged record is told like any other difference, and no table is blamed for it."""
    (out / RECORD).write_text("{")
    (difference,) = check_report(out).differences
    assert (str(RECORD), "record", "the JSON text to be valid JSON") == (
        *(difference.file, difference.field),
        difference.expected,
    )


def test_failed_run_has_no_scores(out: Path) -> None:
    """A run that failed and still claims a score is told."""
    record = read_record(out / RECORD)
    write_file(out / RECORD, to_json(msgspec.structs.replace(record, status="failed", error="nan")))
    assert f"{RECORD}: scores: expected none, as the run failed, found " in str(check_report(out).differences[0])


def test_unknown_or_missing_metrics_are_told(out: Path) -> None:
    """A record whose scores cannot follow from its answers is a difference, not a traceback."""
    record = read_record(out / RECORD)
    for scores, expected in (({"f2": 0.5}, "metrics that fit the predictions"), ({}, "the main metric f1_binary")):
        write_file(out / RECORD, to_json(msgspec.structs.replace(record, scores=scores)))
        assert f"{RECORD}: scores: expected {expected}, found" in str(check_report(out).differences[0])


def test_records_that_do_not_belong_together_are_told(out: Path) -> None:
    """Where no table can be made the reason is a difference."""
    record = read_record(out / RECORD)
    data = msgspec.structs.replace(record.data, fingerprint="0" * 64)
    write_file(out / RECORD, to_json(msgspec.structs.replace(record, data=data)))
    (difference,) = check_report(out).differences
    assert ("runs", "the same data fingerprint") == (difference.file, difference.expected)
    assert str(RECORD) in difference.found


def test_predictions_of_another_run_are_told(out: Path) -> None:
    """A record that names the file of another seed is told, as the answers beside it are others."""
    record = read_record(out / RECORD)
    other = (out / CELL / "seed-0.predictions.parquet").read_bytes()
    (out / ANSWERS).write_bytes(other)
    entry = FileEntry(path=ANSWERS.name, bytes=len(other), sha256=hashlib.sha256(other).hexdigest())
    write_file(out / RECORD, to_json(msgspec.structs.replace(record, predictions=entry)))
    assert "runs.csv" in files_of(check_report(out))


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_every_problem_type_can_be_checked(tmp_path: Path, tiny_backbone: Backbone, problem: str) -> None:
    """Scores of label sets and of numbers follow from their answers too, and a wrong one is found."""
    rows = [
        {**row, "mood": f"{row['mood']}|b" if n % 2 else "b", "stars": str(n / 4)} for n, row in enumerate(own_rows())
    ]
    column = "mood" if problem == "multi_label" else "stars"
    spec = task_from_file(
        write_csv(tmp_path / "rows.csv", rows), text_column="body", label_column=column, problem_type=problem
    )
    out = tmp_path / "out"
    bench(out, load_task(spec), tiny_backbone, ("majority", "pfeiffer"), (0,))
    assert () == check_report(out).differences
    path = out / "runs" / "rows" / "pfeiffer" / "seed-0.json"
    record = read_record(path)
    metric = record.main_metric
    write_file(path, to_json(msgspec.structs.replace(record, scores={**record.scores, metric: 0.123})))
    assert f"scores.{metric}: expected {record.scores[metric]!r}, found 0.123" in str(check_report(out).differences[0])


def test_folder_without_records_is_refused(tmp_path: Path) -> None:
    """Nothing to check is no clean bill of health."""
    with pytest.raises(RunError, match="found none; make some with 'adapter-registry bench'"):
        check_report(tmp_path)


def test_command_tells_each_difference_in_a_line(out: Path) -> None:
    """``report --check`` is quiet and 0 on a whole report; else a line or JSON record each, and exit code 4."""
    assert "4 records and 11 report files follow from the predictions\n" == succeed("report", out, "--check").out
    assert [] == succeed("report", out, "--check", "--json").rows
    change_answers(out, swap_first)
    told = call("report", out, "--check")
    assert 4 == told.code
    assert any(line.startswith(f"{RECORD}: scores.accuracy: expected 0.") for line in told.out.splitlines())
    assert f"found {len(told.out.splitlines())} differences; where only tables differ" in told.message
    rows = call("report", out, "--check", "--json").rows
    assert len(told.out.splitlines()) == len(rows)
    assert {"file", "field", "expected", "found"} == set(rows[0])
    refused = call("report", out, "--check", "--format", "csv")
    assert (2, True) == (refused.code, "cannot use --check: expected no --format beside it" in refused.message)
