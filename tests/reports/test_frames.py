"""What is promised of the tables: right means, fixed order, and only records that belong together."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from registry.bench.records import RunRecord
from registry.config import TrainingConfig
from registry.errors import RunError
from registry.reports.frames import long_table, missing_baselines, runs_table
from tests.support.run_records import BACKBONE, fail, make_record, make_records, summary_of, totals_of


@pytest.fixture
def records() -> list[RunRecord]:
    return make_records()


def cell(frame, task: str, method: str):
    found = frame[(frame["task"] == task) & (frame["method"] == method)]
    assert 1 == len(found)
    return found.to_dict("records")[0]


def test_long_table_has_one_row_per_score(records: list[RunRecord]) -> None:
    """The tidy table holds every score of every finished run once, under its exact name."""
    table = long_table(records)
    assert ["task", "method", "seed", "split", "metric", "value"] == list(table.columns)
    assert len(records) * 3 == len(table)
    one = table[(table["task"] == "mrpc") & (table["method"] == "houlsby") & (table["seed"] == 2)]
    assert {"accuracy": 0.78125, "f1_binary": 0.90625, "f1_weighted": 0.84375} == dict(
        zip(one["metric"], one["value"], strict=True)
    )


def test_summary_has_means_and_sample_deviations(records: list[RunRecord]) -> None:
    """Mean and standard deviation (n - 1) over seeds are those that numpy computes."""
    row = cell(summary_of(records), "mrpc", "houlsby")
    values = [record.scores["f1_binary"] for record in records if (record.task, record.method) == ("mrpc", "houlsby")]
    assert np.mean(values) == pytest.approx(row["f1_binary_mean"], abs=1e-15)
    assert np.std(values, ddof=1) == pytest.approx(row["f1_binary_std"], abs=1e-15)
    assert (3, 226_850, 907_400, 11.0, 1002, 0) == tuple(
        row[name] for name in ("seeds", "trainable", "stored_bytes", "train_seconds", "peak_memory_bytes", "failed")
    )
    assert 100 * 226_850 / BACKBONE == row["percent"]
    assert -6.25 == pytest.approx(row["difference_points"])


def test_summary_of_one_seed_has_no_deviation() -> None:
    """One seed tells nothing about seeds: its deviation is empty, not zero."""
    row = cell(summary_of([make_record("mrpc", "pfeiffer")]), "mrpc", "pfeiffer")
    assert 0.8125 == row["f1_binary_mean"]
    assert np.isnan(row["f1_binary_std"])


def test_summary_order_is_fixed() -> None:
    """Rows run from the simplest method to full fine-tuning, whatever order the records come in."""
    methods = ["zeta", "full_fine_tuning", "parallel", "alpha", "pfeiffer", "head_only", "after_layer", "majority"]
    table = summary_of([make_record("mrpc", method) for method in [*methods, "houlsby"]])
    assert [
        *("majority", "head_only", "after_layer", "houlsby", "pfeiffer", "parallel"),
        *("alpha", "zeta", "full_fine_tuning"),
    ] == list(table["method"])


def test_summary_keeps_a_tasks_own_metrics() -> None:
    """A metric beyond the three gets columns, and a metric that a task lacks is empty."""
    own = make_record("stars", "pfeiffer", main_metric="pearson", scores={"pearson": 0.5, "mse": 0.25})
    row = cell(summary_of([own, make_record("mrpc", "pfeiffer")]), "stars", "pfeiffer")
    assert (0.5, 0.25) == (row["pearson_mean"], row["mse_mean"])
    assert np.isnan(row["accuracy_mean"])


def test_failed_runs_are_counted_and_never_averaged(records: list[RunRecord]) -> None:
    """A diverged run changes no mean, is counted in its row, and keeps its line in the table of runs."""
    diverged = fail(make_record("mrpc", "houlsby", seed=7, train_seconds=1e6))
    row = cell(summary_of([*records, diverged]).dropna(axis="columns"), "mrpc", "houlsby")
    assert cell(summary_of(records).dropna(axis="columns"), "mrpc", "houlsby") | {"failed": 1} == row
    assert ["failed"] == [
        row["status"] for row in runs_table([*records, diverged]).to_dict("records") if row["seed"] == 7
    ]


def test_baselines_always_have_a_row() -> None:
    """A missing baseline is an empty row that says so, so that no score stands without its context."""
    records = [make_record("mrpc", "pfeiffer"), make_record("mrpc", "head_only")]
    assert ["majority on mrpc", "full_fine_tuning on mrpc"] == missing_baselines(records)
    row = cell(summary_of(records), "mrpc", "majority")
    assert (0, "not run") == (row["seeds"], row["notes"])
    assert np.isnan(row["f1_binary_mean"])


def test_totals_compare_one_backbone_with_full_models(records: list[RunRecord]) -> None:
    """Two tasks cost one backbone and two sets, or two full models; a method that lacks a task has no mean."""
    totals = totals_of([*records, make_record("mrpc", "parallel")]).set_index("method").to_dict("index")
    assert 4 * BACKBONE + 2 * 907_400 == totals["houlsby"]["bytes"]
    assert 2 * 4 * BACKBONE == totals["houlsby"]["full_models_bytes"]
    assert 2 * 4 * (BACKBONE + 770) == totals["full_fine_tuning"]["bytes"]
    assert 22.0 == totals["houlsby"]["train_seconds"]
    assert (0.890625 + 0.765625) / 2 == pytest.approx(totals["houlsby"]["main_metrics_mean"])
    assert 1 == totals["parallel"]["tasks"]
    assert np.isnan(totals["parallel"]["main_metrics_mean"])


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (
            "pfeiffer",
            {"training": TrainingConfig(seed=1, learning_rate=0.5)},
            "training learning_rate, found 0.001 and 0.5",
        ),
        ("pfeiffer", {"dtype": "bfloat16"}, "dtype, found float32 and bfloat16"),
        ("pfeiffer", {"split": "test"}, "split, found validation and test"),
        ("houlsby", {"split": "test"}, "split, found test and validation"),
        ("houlsby", {"main_metric": "accuracy"}, "main metric, found accuracy and f1_binary"),
    ],
)
def test_records_of_different_conditions_are_refused(method: str, changes: dict, message: str) -> None:
    """Runs under different conditions never share a row or a task's table; the two files are named."""
    mixed = [make_record("mrpc", "pfeiffer"), make_record("mrpc", method, seed=1, **changes)]
    with pytest.raises(RunError, match=message) as caught:
        summary_of(mixed)
    assert "runs/mrpc/pfeiffer/seed-0.json" in str(caught.value)
    assert f"runs/mrpc/{method}/seed-1.json" in str(caught.value)
    assert str(caught.value).endswith("use another --out folder for runs under other conditions")


@pytest.mark.parametrize(("part", "expected"), [("data", "data fingerprint"), ("backbone", "backbone fingerprint")])
def test_other_data_or_backbone_is_refused(records: list[RunRecord], part: str, expected: str) -> None:
    """Methods of one task are compared on the same rows and the same backbone, or not at all."""
    other = msgspec.structs.replace(getattr(records[0], part), fingerprint="other")
    changed = make_record("mrpc", "parallel", **{part: other})
    with pytest.raises(RunError, match=f"expected the same {expected}, found .* and other; use another --out"):
        totals_of([*records, changed])
