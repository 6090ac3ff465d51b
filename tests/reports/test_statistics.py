"""What is promised of a table's statistics: they are those of its predictions, and chance makes nothing better."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest

from registry.bench.records import read_predictions, read_records, write_record
from registry.bench.results import read_answers
from registry.errors import RunError
from registry.reports.check import check_report
from registry.reports.content import gather_evidence, measure, read_evidence
from registry.reports.report import render_terminal, write_report
from registry.reports.sentences import notes, sentences
from registry.schema import REPORT_FORMATS
from registry.stats.comparison import compare
from registry.stats.intervals import (
    holm,
    mcnemar_exact,
    minimum_detectable_difference,
    paired_difference,
    score_interval,
)
from registry.stats.predictions import CellPredictions, Predictions
from tests.support.run_records import answer, fail, make_record, write_answered

FULL = "full_fine_tuning"
RIGHTS = {"majority": 0.5, "pfeiffer": 0.9, "houlsby": 0.6, FULL: 0.9}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks with answers: one method like full fine-tuning, one far below it."""
    out = tmp_path_factory.mktemp("answered")
    for task in ("mrpc", "sst2"):
        write_answered(out, task, RIGHTS)
    return out


@pytest.fixture
def out(written: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(written, tmp_path / "out")


def test_answers_are_those_beside_the_records(written: Path) -> None:
    """Every counted cell has the probabilities of all its seeds, in the order of the seeds."""
    records = read_records(written)
    answers = read_answers(written, records[::-1])
    assert {(task, method) for task in ("mrpc", "sst2") for method in RIGHTS} == set(answers)
    found = answers["mrpc", "houlsby"]
    assert (0, 1, 2) == found.seeds
    for place, record in enumerate(each for each in records if (each.task, each.method) == ("mrpc", "houlsby")):
        beside = read_predictions(written, record)
        assert np.array_equal(beside.probabilities, found.probabilities[place])
        assert record.scores["accuracy"] == pytest.approx(found.correct()[place].mean(), abs=1e-12)


def test_runs_that_do_not_count_have_no_answers(written: Path) -> None:
    """Failed runs and runs of different code are in no statistic."""
    records = read_records(written)
    changed = [
        msgspec.structs.replace(record, code=f"commit-{record.seed}")
        if record.method == "houlsby"
        else fail(record)
        if (record.method, record.seed) == ("pfeiffer", 2)
        else record
        for record in records
    ]
    answers = read_answers(written, changed)
    assert ("mrpc", "houlsby") not in answers
    assert (0, 1) == answers["mrpc", "pfeiffer"].seeds


@pytest.mark.parametrize("field", ["row_numbers", "labels"])
def test_runs_on_other_rows_are_refused(out: Path, field: str) -> None:
    """A run that was scored on other rows or labels is compared with none."""
    record = read_records(out)[-1]
    answers = read_predictions(out, record)
    parts = {"row_numbers": answers.row_numbers, "labels": answers.labels}
    parts[field] = parts[field][::-1].copy() if field == "row_numbers" else 1 - parts[field]
    write_record(out, record, Predictions(**parts, probabilities=answers.probabilities))
    with pytest.raises(RunError, match=rf"the {field.replace('_', ' ')} that .* was scored on"):
        read_evidence(out)


def test_missing_predictions_are_refused(out: Path) -> None:
    """A mean whose answers are gone is not shown with an interval from somewhere else."""
    next(out.rglob("seed-1.predictions.parquet")).unlink()
    with pytest.raises(
        RunError, match=r"seed-1\.predictions\.parquet.*delete the record, and bench runs that cell again"
    ):
        read_evidence(out)


def test_intervals_and_differences_are_those_of_statistics(written: Path) -> None:
    """The table's numbers are what the statistics say of the same arrays, with Matthews' correlation among them."""
    records = read_records(written)
    answers = read_answers(written, records)
    measured = measure(records, answers)
    one, full = answers["sst2", "houlsby"], answers["sst2", FULL]
    for metric in ("accuracy", "f1_binary", "matthews"):
        expected = score_interval("classification", metric, one.labels, one.probabilities)
        assert expected == measured.intervals["sst2", "houlsby"][metric]
    found = measured.comparisons["sst2", "houlsby"]
    expected = paired_difference("classification", "accuracy", one.labels, one.probabilities, full.probabilities)
    assert expected == found.difference
    right, other = one.correct(), full.correct()
    assert {seed: mcnemar_exact(right[seed], other[seed]) for seed in (0, 1, 2)} == found.seed_tests
    assert found.discordance == pytest.approx((right != other).mean(), abs=1e-12)


def test_p_values_are_adjusted_over_the_whole_table(written: Path) -> None:
    """Holm's correction counts the comparisons of all tasks together."""
    measured = read_evidence(written).measured
    assert 6 == len(measured.comparisons)
    raw = [one.difference.p for one in measured.comparisons.values()]
    assert holm(raw) == [one.adjusted_p for one in measured.comparisons.values()]
    assert max(raw) <= max(one.adjusted_p for one in measured.comparisons.values())


def test_runs_on_fewer_rows_are_compared_with_full_fine_tuning_on_as_many(out: Path) -> None:
    """A method on 100 rows is held against full fine-tuning on 100, or against none; never against that on all."""
    few = msgspec.structs.replace(make_record("mrpc", "any").data, train_rows=100, fingerprint="few")
    write_answered(out, "mrpc", {"pfeiffer-n100": 0.7, f"{FULL}-n100": 0.7}, data=few)
    write_answered(out, "sst2", {"pfeiffer-n100": 0.7}, data=few)
    evidence = read_evidence(out)
    comparisons = evidence.measured.comparisons
    assert f"{FULL}-n100" == comparisons["mrpc", "pfeiffer-n100"].reference
    assert {("sst2", "pfeiffer-n100"), ("mrpc", f"{FULL}-n100")}.isdisjoint(comparisons)
    means = evidence.summary.set_index(["task", "method"])["f1_binary_mean"]
    points = evidence.summary.set_index(["task", "method"])["difference_points"]
    expected = 100 * (means["mrpc", "pfeiffer-n100"] - means["mrpc", f"{FULL}-n100"])
    assert expected == pytest.approx(points["mrpc", "pfeiffer-n100"])
    assert np.isnan(points["sst2", "pfeiffer-n100"])


def test_sentences_of_fewer_rows_name_full_fine_tuning_on_as_many(tmp_path: Path) -> None:
    """Where all methods have fewer rows, the best is held against its own reference, which has no distance itself."""
    for task in ("mrpc", "sst2"):
        for rows, right in ((100, 0.7), (1000, 0.9)):
            data = msgspec.structs.replace(make_record(task, "any").data, train_rows=rows, fingerprint=f"{task} {rows}")
            write_answered(tmp_path, task, {f"pfeiffer-n{rows}": right, f"{FULL}-n{rows}": right}, data=data)
    evidence = read_evidence(tmp_path)
    told = sentences(evidence.summary, evidence.totals)
    assert 2 == len(told)  # means over different numbers of training rows do not compare
    points = evidence.summary.set_index(["task", "method"])["difference_points"]
    for task, sentence in zip(("mrpc", "sst2"), told, strict=True):
        assert "pfeiffer-n1000 has the best mean" in sentence
        side = "above" if points[task, "pfeiffer-n1000"] > 0 else "below"
        assert f"{side} full fine-tuning on as many rows (" in sentence
        assert np.isnan(points[task, f"{FULL}-n1000"])
    assert "over all 4 comparisons of the table, is" in " ".join(notes(evidence.records, evidence.measured))


def test_metrics_of_several_labels_are_no_classes() -> None:
    """A task of several labels that has only a metric of classes' name is not given Matthews' correlation."""
    labels = np.array([[0, 1], [1, 1], [1, 0], [0, 1]] * 5)
    answers = CellPredictions(
        "multi_label", (0,), np.arange(20), labels, np.asarray(labels, dtype=np.float32)[np.newaxis]
    )
    record = make_record("tags", "pfeiffer", main_metric="f1_macro", scores={"f1_macro": 1.0, "exact_match": 1.0})
    found = measure([record], {("tags", "pfeiffer"): answers}).intervals["tags", "pfeiffer"]
    assert ["f1_macro", "exact_match"] == list(found)
    assert 0.8 < found["exact_match"].low < found["exact_match"].mean == 1.0


def test_metrics_of_one_task_have_means_on_the_others(tmp_path: Path) -> None:
    """A score that only the answers tell has its mean beside its interval, where another task's records have it too."""
    for task in ("mrpc", "sst2"):
        record, predictions = answer(make_record(task, "pfeiffer"), 0.8)
        more = {"matthews": 0.25} if task == "mrpc" else {}
        write_record(tmp_path, msgspec.structs.replace(record, scores={**record.scores, **more}), predictions)
    evidence = read_evidence(tmp_path)
    means = evidence.summary.set_index(["task", "method"])["matthews_mean"]
    assert evidence.measured.intervals["sst2", "pfeiffer"]["matthews"].mean == means["sst2", "pfeiffer"]
    assert 0.25 == means["mrpc", "pfeiffer"]


def test_verdicts_tell_the_worse_method_and_no_other(written: Path) -> None:
    """A method that is 30 points below is worse; one that is right as often is not distinguishable."""
    comparisons = read_evidence(written).measured.comparisons
    for task in ("mrpc", "sst2"):
        assert "worse" == comparisons[task, "houlsby"].verdict
        assert "not distinguishable" == comparisons[task, "pfeiffer"].verdict
        assert comparisons[task, "pfeiffer"].difference.holds_zero


def test_smallest_detectable_difference_is_that_of_the_discordance_found(written: Path) -> None:
    """The table states what its rows can show at the disagreement its trained methods really have."""
    evidence = read_evidence(written)
    found = evidence.measured.detectable["mrpc"]
    shares = [evidence.measured.comparisons["mrpc", method].discordance for method in ("pfeiffer", "houlsby")]
    assert (200, np.median(shares)) == (found.rows, pytest.approx(found.discordance))
    assert minimum_detectable_difference(200, found.discordance) == found.difference


def test_a_perfect_score_still_has_an_interval() -> None:
    """All rows right is no certainty: Wilson's interval stands in where resamples cannot differ."""
    labels = np.array([0, 1] * 20)
    answers = CellPredictions(
        "classification", (0,), np.arange(40), labels, np.eye(2, dtype=np.float32)[labels][np.newaxis]
    )
    measured = measure([make_record("mrpc", "pfeiffer")], {("mrpc", "pfeiffer"): answers})
    interval = measured.intervals["mrpc", "pfeiffer"]["accuracy"]
    assert (1.0, 1.0) == (interval.mean, interval.high)
    assert interval.low == pytest.approx(0.9124, abs=1e-3)


def test_lower_errors_are_better() -> None:
    """For an error that should be small the verdict is turned round, and numbers have no McNemar test."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=300)
    near, far = (
        CellPredictions(
            "regression", (0, 1, 2), np.arange(300), values, (values + generator.normal(0, s, (3, 300)))[..., None]
        )
        for s in (0.1, 1.0)
    )
    forth, back = compare(near, far, "mse", "far"), compare(far, near, "mse", "near")
    assert ("better", "worse") == (forth.verdict, back.verdict)
    assert {} == forth.seed_tests


def test_the_report_says_what_was_measured(written: Path, tmp_path: Path) -> None:
    """Table, sentences and notes have the intervals, the verdicts and what so few rows cannot show."""
    evidence = read_evidence(written)
    write_report(tmp_path, evidence)
    report = (tmp_path / "report.md").read_text()
    row = next(line for line in report.splitlines() if line.startswith("| mrpc (validation) | houlsby"))
    interval = evidence.measured.intervals["mrpc", "houlsby"]["f1_binary"]
    assert f"{interval.mean:.3f} ± {(interval.high - interval.low) / 2:.3f}" in row
    difference = evidence.measured.comparisons["mrpc", "houlsby"].difference
    low, high = 100 * difference.low, 100 * difference.high
    assert rf"{100 * difference.mean:+.1f} \[{low:+.1f}, {high:+.1f}\] \*" in row
    told = "of the adapter methods, pfeiffer has the best mean f1_binary"
    assert told in report
    assert "not distinguishable (95 % interval" in report
    assert "by Holm's method over all 6 comparisons of the table, is" in report
    assert "## Differences to full fine-tuning" in report
    assert "would probably show" in report


def test_the_sentence_over_all_tasks_tells_the_best_small_method(written: Path) -> None:
    """Over all tasks the best method of at most one per cent is named with its distance and where it is worse."""
    evidence = read_evidence(written)
    last = sentences(evidence.summary, evidence.totals)[-1]
    points = evidence.summary.query("method == 'pfeiffer'")["difference_points"].mean()
    side = "above" if points > 0 else "below"
    assert f"pfeiffer has the best mean of the main metrics, {abs(points):.1f} points {side} full fine-tuning" in last
    assert last.endswith("on none of 2 can it be told to be worse.")


def test_a_changed_comparison_is_found_in_either_file(out: Path) -> None:
    """The comparisons are checked like every table: a changed verdict is told in csv and in parquet."""
    write_report(out, read_evidence(out), REPORT_FORMATS)
    assert () == check_report(out).differences
    for name, read, write in (
        ("comparisons.csv", pd.read_csv, pd.DataFrame.to_csv),
        ("comparisons.parquet", pd.read_parquet, pd.DataFrame.to_parquet),
    ):
        frame = read(out / name)
        frame.loc[0, "verdict"] = "better"
        write(frame, out / name, index=False)
    files = {difference.file for difference in check_report(out).differences if difference.field.endswith("verdict")}
    assert {"comparisons.csv", "comparisons.parquet"} == files


def test_equal_answers_give_equal_bytes(written: Path, tmp_path: Path) -> None:
    """Resampling is seeded: a report written twice is the same to the byte, whatever the order of its records."""
    records = read_records(written)
    first = write_report(tmp_path / "a", gather_evidence(records, read_answers(written, records)))
    turned = records[::-1]
    write_report(tmp_path / "b", gather_evidence(turned, read_answers(written, turned)))
    for path in first:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_one_seed_is_told_to_hold_the_chance_of_rows_alone(tmp_path: Path) -> None:
    """An interval that cannot hold the chance of the seed says so."""
    write_record(tmp_path, *answer(make_record("mrpc", "pfeiffer"), 0.8))
    write_report(tmp_path, read_evidence(tmp_path), ["markdown"])
    expected = "of it, and of differences to it, hold the chance of the rows alone: pfeiffer."
    assert expected in (tmp_path / "report.md").read_text()
    write_answered(tmp_path, "sst2", {"pfeiffer": 0.8}, seeds=2)
    write_report(tmp_path, read_evidence(tmp_path), ["markdown"])
    assert "the chance of the rows alone: pfeiffer on mrpc." in (tmp_path / "report.md").read_text()
    assert 1 == render_terminal(read_evidence(tmp_path)).columns[0].header.count("task")
