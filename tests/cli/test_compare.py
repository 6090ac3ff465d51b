"""The compare command: two stored sets, two report folders, two methods of one; what it tells and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from registry.bench.records import read_predictions, read_record, record_path, write_record
from registry.config import HeadConfig
from registry.reports.frames import SAMPLE_NOTICE
from registry.stats.intervals import holm
from registry.stats.predictions import Predictions
from registry.tasks.metrics import score
from tests.support.command_line import (
    QUICK,
    Outcome,
    call,
    json_lines,
    own_rows,
    single_rows,
    succeed,
    write_csv,
    write_data_folder,
)
from tests.support.run_records import answer, fail, from_sample, make_record, write_answered
from tests.support.stored_sets import ROOT, run_python

pytestmark = pytest.mark.xdist_group("compare")  # its sets are trained once

RIGHTS = {"majority": 0.5, "houlsby": 0.9, "pfeiffer": 0.85, "full_fine_tuning": 0.9}
COLUMNS = ("--text-col", "body", "--label-col", "mood")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in tasks in little; one text to score would repaint a terminal."""
    root = write_data_folder(tmp_path_factory.mktemp("data"))
    rows = [{**row, "sentence": f"\x1b[31m{row['sentence']}"} for row in single_rows(12, 100)]
    (root / "glue/sst2/validation.jsonl").write_text(json_lines(rows))
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, folder: Path) -> Path:
    """A store of the tiny backbone: sst2 twice, once under another name, imdb, and mrpc; not to be changed."""
    store = tmp_path_factory.mktemp("stores") / "store"
    shared = ("--data", folder, *QUICK)
    succeed("--store", store, "train", "sst2", "imdb", "mrpc", "--backbone", tiny_folder, *shared)
    succeed("--store", store, "train", "sst2", "--name", "films", *shared, "--learning-rate", "0.05")
    return store


@pytest.fixture
def reports(tmp_path: Path) -> tuple[Path, Path]:
    """Two report folders of two tasks; the second has other houlsby runs, and no majority on sst2."""
    first, second = tmp_path / "first", tmp_path / "second"
    for out, rights in ((first, RIGHTS), (second, {**RIGHTS, "houlsby": 0.6})):
        write_answered(out, "mrpc", rights)
        write_answered(
            out, "sst2", {name: right for name, right in rights.items() if (out, name) != (second, "majority")}
        )
    return first, second


def as_rows(*arguments: object) -> list[dict[str, Any]]:
    return succeed("compare", *arguments, "--json").rows


def widest(outcome: Outcome) -> int:
    return max(map(len, outcome.out.splitlines()))


def test_sets_are_scored_as_evaluate_does(store: Path, folder: Path) -> None:
    """Scores, counts and rows of two sets of other names belong together; the scores are those of evaluate."""
    data = ("--data", folder)
    (found,) = succeed("--store", store, "compare", "sst2", "films:1", *data, "--json", "--rows", "99").rows
    assert ("sst2:1", "films:1", "sst2", "validation") == tuple(
        found[key] for key in ("first", "second", "task", "split")
    )
    for side, name in (("first", "sst2"), ("second", "films")):
        scored = succeed("--store", store, "evaluate", name, *data, "--json").rows[0]["scores"]
        assert scored == pytest.approx({metric: found["metrics"][metric][side]["mean"] for metric in scored})
    assert ["accuracy", "f1_binary", "f1_weighted", "matthews"] == list(found["metrics"])
    (pair,) = found["pairs"]
    assert 12 == found["rows"] == sum(pair[key] for key in ("both", "only_first", "only_second", "neither"))
    assert found["changed"] == len(found["changed_rows"]) == pair["only_first"] + pair["only_second"]
    changes = [row["change"] for row in found["changed_rows"]]
    assert sorted(changes, reverse=True) == changes
    assert all("texts" not in row for row in found["changed_rows"])


def test_sets_are_told_in_a_hundred_columns(store: Path, folder: Path) -> None:
    """The text has every metric, who is right, the rows, and that one seed each is not the whole chance."""
    told = succeed("--store", store, "compare", "sst2:1", "films:1", "--data", folder, "--rows", "2")
    for part in ("sst2:1", "films:1", "f1_weighted", "matthews", "McNemar p", "both wrong", "difference (points)"):
        assert part in told.out
    assert "Each was trained once: intervals hold the chance of the rows, not that of another seed." in told.out
    assert "Rows answered differently, 2 of " in told.out
    assert widest(told) <= 100
    assert "\x1b" not in told.out
    silent = succeed("--store", store, "compare", "sst2:1", "films:1", "--data", folder, "--rows", "0")
    assert "Rows answered differently" not in silent.out


def test_a_set_gives_the_same_answers_as_itself(store: Path, folder: Path) -> None:
    """A set compared with itself is identical to the bit, and that is told."""
    arguments = ("--store", store, "compare", "mrpc", "mrpc:1", "--data", folder)
    (found,) = succeed(*arguments, "--json").rows
    assert (True, 0, [], 0.0) == tuple(found[key] for key in ("identical", "changed", "changed_rows", "largest_change"))
    assert "mrpc:1 and mrpc:1 gave the same answers to every row, to the bit." in succeed(*arguments).out


def test_texts_are_shown_on_request_and_spelled_out(store: Path, folder: Path) -> None:
    """--with-text shows the texts of the rows listed; a control code in them does not reach the terminal."""
    arguments = ("--store", store, "compare", "sst2", "films", "--data", folder, "--rows", "1", "--with-text")
    told = succeed(*arguments)
    assert "sst2 row " in told.out
    assert "\\x1b[31m" in told.out
    assert "\x1b" not in told.out
    (row,) = succeed(*arguments, "--json").rows[0]["changed_rows"]
    assert row["texts"][0].startswith("\x1b[31m")


def test_sample_is_marked(store: Path) -> None:
    """A comparison on the bundled sample says so, in text and in JSON."""
    arguments = ("--store", store, "compare", "sst2", "films", "--data", "sample", "--limit-reported", "20")
    assert SAMPLE_NOTICE in succeed(*arguments).out
    (found,) = succeed(*arguments, "--json").rows
    assert (True, 20) == (found["sample"], found["rows"])


@pytest.mark.parametrize("problem_type", ["multi_label", "regression"])
def test_other_problem_types_work(tmp_path: Path, tiny_folder: Path, problem_type: str) -> None:
    """Sets of several labels or of values are compared as well; values have no McNemar test."""
    moods = {"multi_label": ("dull|slow", "good", ""), "regression": ("-1.5", "0.5", "2")}[problem_type]
    rows = [{**row, "mood": moods[n % 3]} for n, row in enumerate(own_rows(40))]
    data = ("--data", write_csv(tmp_path / "own.csv", rows), *COLUMNS, "--problem-type", problem_type)
    place = ("--store", tmp_path / "store")
    for options in (("--backbone", tiny_folder), ("--learning-rate", "0.05")):
        succeed(*place, "train", *data, *options, *QUICK)
    told = succeed(*place, "compare", "own:1", "own:2", *data)
    (found,) = succeed(*place, "compare", "own:1", "own:2", *data, "--json").rows
    assert (0 if problem_type == "regression" else 1) == len(found["pairs"])
    assert ("McNemar" in told.out, "its own unit" in told.out) == (
        problem_type != "regression",
        problem_type == "regression",
    )
    assert widest(told) <= 100


def test_folders_are_compared_cell_by_cell(reports: tuple[Path, Path]) -> None:
    """Every task and method of both is compared over seeds and rows; one that a folder lacks is named."""
    first, second = reports
    found = as_rows(first, second, "--rows", "2")
    compared = {(row["task"], row["method"]): row for row in found if "left_out" not in row}
    assert [("mrpc", name) for name in sorted(RIGHTS)] + [
        ("sst2", name) for name in sorted(RIGHTS) if name != "majority"
    ] == list(compared)
    assert [{"task": "sst2", "method": "majority", "left_out": f"{second} has no run of majority"}] == [
        row for row in found if "left_out" in row
    ]
    assert ("better", False) == tuple(compared["mrpc", "houlsby"][key] for key in ("verdict", "identical"))
    assert all(row["identical"] for cell, row in compared.items() if cell[1] != "houlsby")
    assert [[0, 1, 2], [0, 1, 2]] == compared["sst2", "houlsby"]["seeds"]
    assert [[0, 0], [1, 1], [2, 2]] == [pair["seeds"] for pair in compared["sst2", "houlsby"]["pairs"]]
    assert all(len(row["changed_rows"]) <= 2 for row in compared.values())
    main = [row["metrics"][row["main_metric"]]["difference"] for row in compared.values()]
    assert holm([each["p"] for each in main]) == [each["adjusted_p"] for each in main]


def test_folders_are_told_in_one_table(reports: tuple[Path, Path]) -> None:
    """The overview has a line for each cell and a summary, names what is not compared, and is 100 columns wide."""
    told = succeed("compare", *reports, "--rows", "3")
    assert f"not compared: sst2 majority: {reports[1]} has no run of majority" in " ".join(told.out.split())
    assert "better in 2, with the same answers in 5." in " ".join(told.out.split())
    assert "p is adjusted by Holm's method over these comparisons." in told.out
    assert "Rows answered differently, 3 of " in told.out
    assert widest(told) <= 100


def test_two_methods_of_one_folder(reports: tuple[Path, Path]) -> None:
    """One folder and two methods are compared on every task; one task alone is told in full."""
    first, second = reports
    found = as_rows(second, "--method", "houlsby", "--method", "full_fine_tuning")
    assert [("houlsby", "full_fine_tuning", None, "worse")] * 2 == [
        (row["first"], row["second"], row["method"], row["verdict"]) for row in found
    ]
    assert ["mrpc", "sst2"] == [row["task"] for row in found]
    (out,) = [row for row in as_rows(second, "--method", "majority", "--method", "houlsby") if "left_out" in row]
    assert f"{second} has no run of majority" == out["left_out"]
    told = succeed("compare", second, "--method", "majority", "--method", "houlsby").out
    assert "mrpc (validation), 200 rows" in told
    assert "\n seeds " in told
    assert [row["method"] for row in as_rows(first, second, "--method", "pfeiffer")] == ["pfeiffer"] * 2


def test_no_torch_for_folders(reports: tuple[Path, Path]) -> None:
    """Two folders are compared without importing torch or transformers."""
    script = (
        "import sys; from registry.cli.main import cli\n"
        "cli.main(['compare', *sys.argv[1:]], standalone_mode=False)\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    ran = run_python(script, *reports)
    assert (0, "set()") == (ran.returncode, ran.stdout.splitlines()[-1]), ran.stderr


def rewrite(out: Path, method: str, shift: int = 0, **changes: Any) -> None:
    """Change every mrpc run of a method; its answers stay, but for the numbers of their rows."""
    for seed in range(3):
        record = read_record(record_path(out, "mrpc", method, seed))
        read = read_predictions(out, record)
        moved = Predictions(read.row_numbers + shift, read.labels, read.probabilities)
        write_record(out, msgspec.structs.replace(record, **changes), moved)


SAMPLE = from_sample(answer(make_record("mrpc", "pfeiffer"), 0.8)[0]).data
FEWER = msgspec.structs.replace(answer(make_record("mrpc", "pfeiffer"), 0.8)[0].data, reported_rows=100)
OTHERS = msgspec.structs.replace(FEWER, reported_rows=200, fingerprint="d" * 64)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shift": 1}, "other rows: the same row numbers in the first, others in the second"),
        ({"split": "test"}, "other split: validation in the first, test in the second"),
        ({"main_metric": "accuracy"}, "other main metric: f1_binary in the first, accuracy in the second"),
        ({"data": FEWER}, "other number of reported rows: 200 in the first, 100 in the second"),
        ({"data": OTHERS}, "other digest of the rows: mrpc data in the first, dddddddddddd in the second"),
        ({"data": SAMPLE}, "other source: other data than the bundled sample in the first, the bundled sample in the"),
    ],
)
def test_cells_on_other_rows_are_named_with_their_reason(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    """Other rows, splits, metrics or data keep a cell out, and the others are compared."""
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        write_answered(out, "mrpc", {"pfeiffer": 0.8})
        write_answered(out, "sst2", {"pfeiffer": 0.8})
    rewrite(second, "pfeiffer", **changes)
    compared, left_out = as_rows(first, second, "--rows", "0")
    assert ("sst2", True) == (compared["task"], compared["identical"])
    assert ("mrpc", "pfeiffer") == (left_out["task"], left_out["method"])
    assert left_out["left_out"].startswith(reason)


def test_other_training_rows_may_be_compared(tmp_path: Path) -> None:
    """Runs on fewer training rows answered the same reported rows, so they are compared."""
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        write_answered(out, "mrpc", {"pfeiffer": 0.8})
    rewrite(second, "pfeiffer", data=msgspec.structs.replace(OTHERS, train_rows=100))
    assert as_rows(first, second)[0]["identical"]


def test_labels_failures_and_other_code_keep_a_cell_out(reports: tuple[Path, Path]) -> None:
    """A mean that may not be taken is not compared, nor are runs that all failed or that had other labels."""
    first, second = reports
    rewrite(first, "houlsby", head=HeadConfig(label_names=("no", "yes")))
    rewrite(second, "houlsby", head=HeadConfig(label_names=("yes", "no")))
    write_record(second, *answer(make_record("mrpc", "pfeiffer", 1, code="0.2.0"), 0.8))
    for seed in range(3):
        write_record(second, fail(answer(make_record("mrpc", "full_fine_tuning", seed), 0.8)[0]), None)
    found = {row["method"]: row for row in as_rows(first, second) if row["task"] == "mrpc"}
    assert "other labels: no, yes in the first, yes, no in the second" == found["houlsby"]["left_out"]
    assert f"{second} has runs of different code (0.1.0, 0.2.0) of pfeiffer" == found["pfeiffer"]["left_out"]
    assert f"{second} has no finished run of full_fine_tuning" == found["full_fine_tuning"]["left_out"]
    assert found["majority"]["identical"]


def test_texts_of_reports_come_from_the_very_rows(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """A report holds no text: --with-text reads the rows again, and refuses others than the runs had."""
    out, other = tmp_path / "out", write_data_folder(tmp_path / "other")
    succeed(
        *("bench", "sst2", "--method", "majority", "--method", "head_only", "--seeds", "0", "--out", out),
        *("--data", folder, "--backbone", tiny_folder, *QUICK),
    )
    methods = ("--method", "majority", "--method", "head_only")
    for data in ((), ("--data", folder)):
        told = succeed("compare", out, *methods, "--with-text", "--rows", "1", *data).out
        assert ("\\x1b[31m" in told) == ("Rows answered differently" in told)
    refused = call("compare", out, *methods, "--with-text", "--data", other)
    assert (1, True) == (refused.code, "as the runs had, found" in refused.message)
    labels = read_predictions(out, read_record(record_path(out, "sst2", "majority", 0)))
    (found,) = as_rows(out, *methods)
    scores = score("classification", labels.labels.tolist(), labels.probabilities, ("accuracy",))
    assert scores["accuracy"] == pytest.approx(found["metrics"]["accuracy"]["first"]["mean"])


def test_readme_shows_what_the_command_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison in docs/commands.md is that of the committed report, line for line."""
    monkeypatch.chdir(ROOT)
    command = "$ adapter-registry compare reports --method "
    readme = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    methods, *shown = readme.split(command)[1].split("```")[0].splitlines()
    told = succeed("compare", "reports", "--method", *methods.split()).out.splitlines()
    assert [line.rstrip() for line in told if line.strip()] == [line.rstrip() for line in shown if line.strip()]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("sst2", 2, "cannot compare 'sst2': expected a second set, found none"),
        ("sst2 imdb", 2, "expected labels negative, positive, found neg, pos; choose two sets of one task"),
        ("sst2 mrpc", 2, "cannot compare 'sst2:1' with 'mrpc:1': expected labels negative, positive"),
        ("sst2:1 sst2:7", 3, "cannot find adapter set 'sst2:7'"),
        ("sst2:1 sst2:x", 2, "expected a version from 1 to 999999 after the colon"),
        ("sst2 sst2 --method houlsby", 2, "cannot use --method: expected none beside stored sets"),
        ("sst2 sst2 --rows -1", 2, "Invalid value for '--rows'"),
        ("sst2 FIRST", 2, "expected two stored sets or two report folders, found a stored set and a report folder"),
        ("FIRST", 2, "expected a second report folder, or two --method, found neither"),
        ("FIRST --method houlsby", 2, "expected a second report folder, or two --method, found --method 1 times"),
        ("FIRST --method houlsby --method pfeifer", 2, "found 'pfeifer'; did you mean 'pfeiffer'?"),
        ("FIRST SECOND --method pfeifer", 2, "found 'pfeifer'; did you mean 'pfeiffer'?"),
        ("FIRST SECOND --method houlsby --method pfeifer", 2, "found 'pfeifer'; did you mean 'pfeiffer'?"),
        ("FIRST SECOND --limit-reported 5", 2, "cannot use --limit-reported: expected none beside report folders"),
        ("FIRST SECOND --data sample", 2, "whose records say which rows, or --with-text beside it, found 'sample'"),
        ("FIRST ./nothing", 1, "expected runs/<task>/<method>/seed-<n>.json, found none; make some with"),
        ("FIRST OTHER", 2, "expected a task and method in both, found none; imdb: "),
    ],
)  # fmt: skip
def test_what_is_refused(
    store: Path, reports: tuple[Path, Path], tmp_path: Path, arguments: str, code: int, message: str
) -> None:
    """Whatever cannot be compared is told in one line with the right exit code."""
    write_answered(tmp_path / "other", "imdb", {"pfeiffer": 0.8})
    places = {"FIRST": reports[0], "SECOND": reports[1], "OTHER": tmp_path / "other"}
    words = [places.get(word, word) for word in arguments.split()]
    outcome = call("--store", store, "compare", *words)
    assert not outcome.out
    assert (code, True) == (outcome.code, message in outcome.message), outcome.message
