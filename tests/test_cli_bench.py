"""The benchmark's commands: a grid runs once, records are never rewritten, tables come from records alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from registry.schema import RunRecord
from registry.validation import from_json
from tests.commands import QUICK, succeed, write_data_folder
from tests.stored import tree

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the three built-in tasks in little."""
    return write_data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder of a small benchmark that kept one method's sets, and the command's arguments."""
    root = tmp_path_factory.mktemp("bench")
    methods = [part for name in ("majority", "head_only", "pfeiffer") for part in ("--method", name)]
    grid = ("bench", "sst2", "--task", "mrpc", *methods, "--seeds", "0-1", "--data", str(folder))
    places = ("--out", str(root / "out"), "--backbone", str(tiny_folder), "--keep", "pfeiffer")
    arguments = ("--store", str(root / "store"), *grid, *places, *QUICK)
    told = succeed(*arguments)
    assert "already there" not in told.err
    assert "sst2" in told.out
    return root, arguments


def test_bench_runs_the_whole_grid_once(benched: tuple[Path, tuple[str, ...]]) -> None:
    """Tasks x methods x seeds end as one record each; a second run runs nothing and changes no record."""
    root, arguments = benched
    records = sorted((root / "out" / "runs").rglob("seed-?.json"))
    assert 2 * 3 * 2 == len(records)
    before = tree(root / "out" / "runs")
    again = succeed(*arguments)
    assert 12 == again.err.count("(already there)")
    assert before == tree(root / "out" / "runs")
    assert [1] == succeed("--store", root / "store", "list", "--json").rows[0]["versions"]


def test_bench_keeps_the_sets_of_one_method(benched: tuple[Path, tuple[str, ...]], folder: Path) -> None:
    """``--keep`` stores the first seed's set of that method, with the record's scores."""
    root, _ = benched
    for row in succeed("--store", root / "store", "list", "--json").rows:
        record = from_json(RunRecord, (root / f"out/runs/{row['name']}/pfeiffer/seed-0.json").read_bytes())
        assert record.scores == row["scores"]
        scored = succeed("--store", root / "store", "evaluate", row["name"], "--data", folder, "--json").rows[0]
        assert record.scores == pytest.approx(scored["scores"])


def test_report_makes_the_tables_again(benched: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    """``report`` needs only the records: all formats or one, and JSON lines with the baselines that were not run."""
    shutil.copytree(benched[0] / "out" / "runs", tmp_path / "runs")
    told = succeed("report", tmp_path, "--format", "csv")
    assert {"table.csv", "runs.csv", "score_vs_parameters.png"} == {
        path.name for path in tmp_path.iterdir() if path.is_file()
    }
    assert "wrote " in told.err
    rows = succeed("report", tmp_path, "--json").rows
    assert {("sst2", "pfeiffer"), ("mrpc", "full_fine_tuning")} <= {(row["task"], row["method"]) for row in rows}
    kept = next(row for row in rows if (row["task"], row["method"]) == ("sst2", "pfeiffer"))
    assert (2, 24, "accuracy") == (kept["seeds"], kept["train_rows"], kept["main_metric"])
    assert 0 <= kept["accuracy_mean"] <= 1
    not_run = next(row for row in rows if row["method"] == "full_fine_tuning")
    assert "accuracy_mean" not in not_run


def test_keep_tells_when_the_weights_are_gone(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """A cell that was run without ``--keep`` has no weights left to store, and that is said."""
    common = ("--store", tmp_path / "store", "bench", "sst2", "--method", "head_only", "--data", folder)
    arguments = (*common, "--out", tmp_path / "out", "--backbone", tiny_folder, *QUICK)
    succeed(*arguments)
    told = succeed(*arguments, "--keep", "head_only")
    assert "sst2 head_only seed 0: nothing to keep; its weights are gone" in told.err
    assert not succeed("--store", tmp_path / "store", "list", "--json").out
