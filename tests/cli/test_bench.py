"""The benchmark's commands: a grid runs once, records are never rewritten, tables come from records alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from registry.bench.records import RunRecord
from registry.provenance import code_version
from registry.validation import from_json
from tests.support.command_line import QUICK, call, pair_rows, single_rows, succeed, write_data_folder
from tests.support.run_records import pass_as_committed
from tests.support.stored_sets import tree

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


def test_texts_go_into_a_page_of_their_own(benched: tuple[Path, tuple[str, ...]], folder: Path, tmp_path: Path) -> None:
    """``--with-text`` writes a second page with the rows' texts; the first has none and still follows."""
    shutil.copytree(benched[0] / "out" / "runs", tmp_path / "runs")
    pass_as_committed(tmp_path)
    succeed("report", tmp_path, "--with-text", "--data", folder)
    texts = [row["sentence1"] for row in pair_rows(12, 100)] + [row["sentence"] for row in single_rows(12, 100)]
    pages = {name: (tmp_path / name).read_text() for name in ("report.html", "report-with-text.html")}
    assert [False, True] == [any(text in page for text in texts) for page in pages.values()]
    assert "report files follow" in succeed("report", tmp_path, "--check").out
    for arguments in (["--check"], ["--json"], ["--format", "csv"]):
        assert "expected html among the formats" in call("report", tmp_path, "--with-text", *arguments).err
    assert "--with-text beside it" in call("report", tmp_path, "--data", folder).err
    assert "as the runs had" in call("report", tmp_path, "--with-text", "--data", "sample").err


def test_report_makes_the_tables_again(benched: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    """``report`` needs only the records: all formats or one, and JSON lines with the baselines that were not run."""
    shutil.copytree(benched[0] / "out" / "runs", tmp_path / "runs")
    pass_as_committed(tmp_path)
    told = succeed("report", tmp_path, "--format", "csv")
    assert {"table.csv", "runs.csv", "comparisons.csv", "score_vs_parameters.svg"} == {
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


def test_bench_does_not_mix_versions_of_the_code(
    benched: tuple[Path, tuple[str, ...]], tmp_path: Path, tiny_folder: Path, folder: Path
) -> None:
    """A seed missing beside finished ones of other code is refused before anything runs; elsewhere it is run."""
    out = tmp_path / "out"
    shutil.copytree(benched[0] / "out", out)
    pass_as_committed(out)
    missing = out / "runs" / "mrpc" / "head_only" / "seed-1.json"
    missing.unlink()
    before = tree(out)
    arguments = ("bench", "sst2", "mrpc", "--method", "head_only", "--seeds", "0-1", "--data", folder)
    places = ("--store", tmp_path / "none", *arguments, "--backbone", tiny_folder, *QUICK)
    outcome = call(*places, "--out", out)
    assert 1 == outcome.code
    assert "mrpc/head_only/seed-0.json: expected a record of the code that runs now, " in outcome.message
    assert "found 0123456789ab; use another --out folder, or delete the records of the other code" in outcome.message
    assert before == tree(out)
    (out / "runs" / "mrpc" / "head_only" / "seed-0.json").unlink()
    succeed(*places, "--out", out)
    assert missing.is_file()


def test_bench_says_beforehand_what_is_not_averaged(benched: tuple[Path, tuple[str, ...]]) -> None:
    """Several seeds of code with uncommitted changes are announced as not to be averaged; committed code is not."""
    _, arguments = benched
    told = succeed(*arguments)
    warned = "seeds will be listed and not averaged" in told.err
    assert code_version().endswith("-dirty") == warned == ("Not averaged: pfeiffer on mrpc" in told.out)


def test_keep_tells_when_the_weights_are_gone(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """A cell that was run without ``--keep`` has no weights left to store, and that is said."""
    common = ("--store", tmp_path / "store", "bench", "sst2", "--method", "head_only", "--data", folder)
    arguments = (*common, "--out", tmp_path / "out", "--backbone", tiny_folder, *QUICK)
    succeed(*arguments)
    told = succeed(*arguments, "--keep", "head_only")
    assert "sst2 head_only seed 0: nothing to keep; its weights are gone" in told.err
    assert not succeed("--store", tmp_path / "store", "list", "--json").out


def test_fewer_training_rows_are_methods_of_one_table(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """``train_rows`` trains every method on the same drawn rows, those of ``--limit``; a kept set can be repeated."""
    arguments = ("mrpc", "--data", folder, "--backbone", tiny_folder, *QUICK)
    methods = [part for name in ("head_only", "pfeiffer", "full_fine_tuning") for part in ("--method", name)]
    sweep = ("--sweep", "train_rows=16,8", "--sweep", "weight_decay=0", "--together", "--keep", "pfeiffer-wd0-n8")
    store, out = ("--store", tmp_path / "store"), tmp_path / "out"
    succeed(*store, "bench", *arguments, "--out", out, *methods, *sweep, "--limit", 20)
    for whole in ("majority", "pfeiffer"):
        succeed(*store, "bench", *arguments, "--out", out, "--method", whole, "--limit", 20)
    succeed("bench", *arguments, "--out", tmp_path / "limited", *methods, "--limit", 8, "--weight-decay", 0)
    paths = sorted((out / "runs" / "mrpc").glob("*/seed-0.json"))
    records = {path.parent.name: from_json(RunRecord, path.read_bytes()) for path in paths}
    assert 2 * 3 + 2 == len(records)
    assert {"head_only-wd0-n8": (8, 24, 1), "pfeiffer-wd0-n16": (16, 24, 2), "pfeiffer": (20, 24, 3)} == {
        name: (records[name].data.train_rows, records[name].data.train_available, records[name].steps)
        for name in ("head_only-wd0-n8", "pfeiffer-wd0-n16", "pfeiffer")
    }
    assert 4 == records["pfeiffer-wd0-n8"].together
    for method in methods[1::2]:
        limited = from_json(RunRecord, (tmp_path / f"limited/runs/mrpc/{method}/seed-0.json").read_bytes())
        assert (limited.data, limited.settings) == (
            records[f"{method}-wd0-n8"].data,
            records[f"{method}-wd0-n8"].settings,
        )
    told = (out / "report.md").read_text()
    assert "mrpc, fewer training rows: 8, 16 (drawn once, the same for all methods and seeds)." in told
    assert 1 == told.count("trained on 20 of 24 rows")
    assert "the best of them is chosen there" in told  # of the weight decays
    assert "mrpc:1" == succeed(*store, "train", "--from", "mrpc", "--json").rows[0]["repeats"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train_rows=8,25", "cannot use train_rows: expected 1 to 24, the training rows of 'mrpc', found 25"),
        (
            "train_rows=8,20 --limit 16",
            "cannot use train_rows: expected 1 to 16, the training rows of 'mrpc', limited from 24, found 20",
        ),
        ("train_rows=8,0", "cannot use --sweep train_rows: expected at least 1 row, found 0"),
        ("train_rows=8.5", "cannot use --sweep train_rows: expected whole numbers with commas, found '8.5'"),
    ],
)
def test_more_training_rows_than_there_are(
    tmp_path: Path, tiny_folder: Path, folder: Path, arguments: str, message: str
) -> None:
    """A number of training rows that no run can have is told in one line before anything is trained."""
    places = ("--store", tmp_path / "store", "bench", "sst2", "mrpc", "--data", folder, "--backbone", tiny_folder)
    outcome = call(*places, *QUICK, "--method", "pfeiffer", "--out", tmp_path / "out", "--sweep", *arguments.split())
    assert 2 == outcome.code
    assert message.replace("'mrpc'", "'sst2'") in outcome.message
    assert [] == list(tmp_path.iterdir())
