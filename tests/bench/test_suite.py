"""A suite: a paper's table as one file and one command."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from registry.bench.suite import read_suite, suite_names
from registry.errors import ConfigError, DataError, UnknownTaskError
from tests.support.command_line import QUICK, call, own_rows, single_rows, succeed, write_csv, write_data_folder

SUITE = """
description = "ours and theirs"
tasks = ["sst2", "mrpc", "tone.toml"]
methods = ["majority", "head_only"]
seeds = "0-1"
data = "data"

[[task]]
name = "mood"
text_columns = ["body"]
label_column = "mood"
file = "mood.csv"

[[task]]
name = "stars"
text_columns = ["sentence"]
label_column = "idx"
problem_type = "regression"
file = "stars.csv"
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite of two built-in tasks and three of one's own, with their rows beside it."""
    write_data_folder(tmp_path / "data")
    write_csv(tmp_path / "mood.csv", own_rows(40))
    write_csv(tmp_path / "stars.csv", single_rows(40))
    write_csv(tmp_path / "tone.csv", single_rows(30))
    (tmp_path / "tone.toml").write_text('text_columns = ["sentence"]\nfile = "tone.csv"\n')
    (tmp_path / "paper.toml").write_text(SUITE.replace('"data"', f'"{tmp_path / "data"}"'))
    return tmp_path / "paper.toml"


def test_a_suite_makes_one_table_and_one_page(suite: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Own tasks and built-in ones stand in the same table; an option wins over what the suite says."""
    out = tmp_path / "out"
    succeed("bench", "--suite", suite, "--seeds", "0", "--out", out, "--backbone", tiny_folder, *QUICK)
    table = pd.read_csv(out / "table.csv")
    tasks, methods = {"sst2", "mrpc", "tone", "mood", "stars"}, {"majority", "head_only"}
    run = table[table["method"].isin(methods)]  # a baseline that was not run has an empty row
    assert {(task, method) for task in tasks for method in methods} == set(zip(run["task"], run["method"], strict=True))
    assert [1] * 10 == run["seeds"].tolist()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(f">{task}" in page for task in tasks)


def test_a_suite_ends_with_its_average_and_the_files_of_a_leaderboard(
    suite: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """Tasks count by the mean of their metrics, groups as one; kept sets answer rows whose labels nobody has."""
    more = """
average = [{ tasks = ["sst2"], metrics = ["accuracy", "f1_binary"] }, { tasks = ["mrpc", "mood"] }]

[submission]
sst2 = { file = "SST-2.tsv", split = "test" }
mrpc = { file = "MRPC.tsv", split = "test", names = true }
"""
    head, tasks = suite.read_text().split("\n[[task]]", 1)
    suite.write_text(f"{head}{more}\n[[task]]{tasks}")
    folder = tmp_path / "data" / "glue"
    for name in ("sst2", "mrpc"):
        split = pd.read_json(folder / name / "validation.jsonl", lines=True)
        split.assign(label=-1).to_json(folder / name / "test.jsonl", orient="records", lines=True)
    out, store = tmp_path / "out", tmp_path / "store"
    usual = ("--suite", suite, "--seeds", "0", "--method", "head_only", "--keep", "head_only")
    succeed("--store", store, "bench", *usual, "--out", out, "--backbone", tiny_folder, *QUICK)
    (row,) = pd.read_csv(out / "average.csv").to_dict("records")
    scores = {each["task"]: each for each in succeed("report", out, "--json").rows if each["method"] == "head_only"}
    of = {task: [scores[task][f"{metric}_mean"] for metric in metrics] for task, metrics in {
        "sst2": ("accuracy", "f1_binary"), "mrpc": ("f1_binary",), "mood": ("accuracy",),
    }.items()}  # fmt: skip
    means = {task: sum(values) / len(values) for task, values in of.items()}
    pair = (means["mrpc"] + means["mood"]) / 2
    assert row["sst2"] == pytest.approx(means["sst2"], abs=1e-5)
    assert row["mrpc+mood"] == pytest.approx(pair, abs=1e-5)
    assert row["average"] == pytest.approx((means["sst2"] + pair) / 2, abs=1e-5)
    for task, file, answers in (("sst2", "SST-2", {"0", "1"}), ("mrpc", "MRPC", {"not_equivalent", "equivalent"})):
        lines = (out / "submission" / f"{file}.tsv").read_text().splitlines()
        assert lines[0] == "index\tprediction"
        assert [str(n) for n in range(len(lines) - 1)] == [line.split("\t")[0] for line in lines[1:]]
        assert len(lines) - 1 == len((folder / task / "test.jsonl").read_text().splitlines())
        assert {line.split("\t")[1] for line in lines[1:]} <= answers
    suite.write_text(suite.read_text().replace('["sst2"]', '["sst3"]', 1))
    told = call("bench", "--suite", suite, "--out", out, "--backbone", tiny_folder)
    assert (1, True) == (told.code, "average and submission: expected tasks of the suite" in told.message)


def test_the_shipped_suite_is_glue() -> None:
    """It has the Hub's columns and GLUE's own main metrics."""
    assert ("glue",) == suite_names()
    _, specs = read_suite("glue")
    main = {spec.name: spec.main_metric for spec in specs}
    assert {
        "cola": "matthews", "sst2": "accuracy", "mrpc": "f1_binary", "stsb": "pearson", "qqp": "f1_binary",
        "mnli": "accuracy", "mnli-mm": "accuracy", "qnli": "accuracy", "rte": "accuracy",
    } == main  # fmt: skip
    assert {"nyu-mll/glue"} == {spec.hub.path for spec in specs if spec.hub is not None}
    assert 9 == len(specs)


def test_what_is_wrong_with_a_suite_is_told(suite: Path, tmp_path: Path) -> None:
    """No such suite, an unknown key or task, a name twice, and tasks beside a suite."""
    with pytest.raises(ConfigError, match="--suite: expected one of glue, found 'gleu'; did you mean 'glue'"):
        read_suite("gleu")
    for text, error, message in (
        ("method = []", DataError, "unknown field `method`"),
        ('tasks = ["sst3"]', UnknownTaskError, "did you mean 'sst2'"),
        ("", DataError, "tasks: expected at least one, each of another name, found none"),
        ('tasks = ["sst2", "sst2"]', DataError, "each of another name, found sst2, sst2"),
        ('[[task]]\nname = "x"\ntext_column = "y"', DataError, "'text_column'; did you mean 'text_columns'"),
    ):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(error, match=message):
            read_suite(str(tmp_path / "bad.toml"))
    told = call("bench", "mrpc", "--suite", suite)
    assert (2, True) == (told.code, "expected none beside --suite, which has its own, found 'mrpc'" in told.message)
