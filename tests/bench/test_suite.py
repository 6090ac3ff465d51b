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
