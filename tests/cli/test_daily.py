"""What people do every day: folders and files of their own, whole files answered, a set asked about other rows."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from registry.cli.data import choose_tasks
from tests.support.command_line import (
    PROGRAM,
    QUICK,
    call,
    own_rows,
    single_rows,
    start,
    succeed,
    write_csv,
    write_data_folder,
)

COLUMNS = ("--text-col", "body", "--label-col", "mood")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with rows.csv and a store that holds a set trained on it; not to be changed."""
    folder = tmp_path_factory.mktemp("daily")
    write_csv(folder / "rows.csv", own_rows())
    places = ("--backbone", tiny_folder, "--data", folder / "rows.csv", "--name", "mails")
    succeed("--store", folder / "store", "train", *places, *COLUMNS, *QUICK)
    return folder


def rows_scored(trained: Path, *arguments: object) -> tuple[int, str]:
    """Return how many rows of which split ``evaluate mails`` scores."""
    (row,) = succeed("--store", trained / "store", "evaluate", "mails", "--json", *arguments).rows
    return row["rows"], row["split"]


def test_a_set_is_scored_on_its_held_out_rows_or_on_every_row_of_another_file(trained: Path, tmp_path: Path) -> None:
    """Its own file gives the rows held out in training, said so; any other is scored whole, with its own columns."""
    assert (6, "held_out") == rows_scored(trained)
    assert (6, "held_out") == rows_scored(trained, "--data", trained / "rows.csv")
    told = succeed("--store", trained / "store", "evaluate", "mails")
    assert "mails: scored on the rows of" in told.err
    other = write_csv(tmp_path / "test.csv", own_rows(17)[:17:2])
    assert (9, "all") == rows_scored(trained, "--data", other)
    assert (4, "all") == rows_scored(trained, "--data", other, "--limit-reported", "4")
    renamed = pd.read_csv(other).rename(columns={"body": "text", "mood": "class"})
    renamed.to_json(tmp_path / "test.jsonl", orient="records", lines=True)
    assert (9, "all") == rows_scored(
        trained, "--data", tmp_path / "test.jsonl", "--text-col", "text", "--label-col", "class"
    )


def test_two_sets_are_compared_on_every_row_of_a_file(trained: Path, tmp_path: Path) -> None:
    """compare scores as evaluate does."""
    other = write_csv(tmp_path / "test.csv", own_rows(21))
    (row,) = succeed("--store", trained / "store", "compare", "mails", "mails", "--data", other, "--json").rows
    assert (21, "all", True) == (row["rows"], row["split"], row["identical"])


def test_two_sets_are_compared_whatever_the_order_of_their_labels(tiny_folder: Path, tmp_path: Path) -> None:
    """Answers are matched by the labels' names, so a set differs in nothing from itself in another order."""
    path = write_csv(tmp_path / "rows.csv", own_rows())
    store = ("--store", tmp_path / "store")
    usual = ("train", "--data", path, *COLUMNS, "--backbone", tiny_folder, *QUICK)
    names = sorted({row["mood"] for row in own_rows()})
    for name, order in (("one", names), ("other", names[::-1])):
        succeed(*store, *usual, "--name", name, "--labels", ",".join(order))
    (told,) = succeed(*store, "compare", "one", "other", "--json").rows
    scores = [succeed(*store, "evaluate", name, "--json").rows[0]["scores"] for name in ("one", "other")]
    assert [scores[0]["accuracy"], scores[1]["accuracy"]] == pytest.approx(
        [told["metrics"]["accuracy"][side]["mean"] for side in ("first", "second")]
    )


def test_an_own_metric_is_scored_where_it_is_named(
    trained: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its module lies beside the data; every command names it anew, and a stored name alone runs nothing."""
    (tmp_path / "mine.py").write_text(
        "import pathlib\npathlib.Path('imported').touch()\n"
        "def sure(labels, probabilities):\n    return probabilities.max(axis=1).mean()\n"
    )
    monkeypatch.chdir(tmp_path)
    own = ("--metric", "accuracy", "--metric", "mine:sure")
    data = ("--data", trained / "rows.csv", *COLUMNS, "--backbone", tiny_folder, *QUICK)
    (row,) = succeed("--store", "store", "train", *data, *own, "--name", "mails", "--json").rows
    assert ["accuracy", "mine:sure"] == list(row["scores"])
    (scored,) = succeed("--store", "store", "evaluate", "mails", *own, "--json").rows
    assert scored["scores"] == pytest.approx(row["scores"], abs=1e-6)
    succeed("bench", *data, *own, "--method", "majority", "--out", "bench")
    Path("imported").unlink()
    for command in (("--store", "store", "evaluate", "mails"), ("report", "bench")):
        told = subprocess.run([PROGRAM, *command], capture_output=True, text=True, check=False)
        assert (2, True) == (told.returncode, "--metric mine:sure, or use_metric in Python" in told.stderr), told.stderr
    assert not Path("imported").exists()
    assert "1 records" in succeed("report", "bench", "--metric", "mine:sure", "--check").out


def test_a_folder_is_a_task(tiny_folder: Path, tmp_path: Path) -> None:
    """train.csv and dev.csv are found by name; the set is scored on the second, then and later."""
    folder = tmp_path / "mails"
    folder.mkdir()
    write_csv(folder / "train.csv", own_rows(24))
    write_csv(folder / "dev.csv", own_rows(9))
    usual = ("--store", tmp_path / "store")
    succeed(*usual, "train", "--data", folder, *COLUMNS, "--backbone", tiny_folder, *QUICK)
    (row,) = succeed(*usual, "evaluate", "mails", "--json").rows
    assert (9, "dev") == (row["rows"], row["split"])
    other = tmp_path / "other"
    other.mkdir()
    for name, count in (("train", 12), ("test", 7)):
        write_csv(other / f"{name}.csv", own_rows(count))
    (row,) = succeed(*usual, "evaluate", "mails", "--data", other, "--json").rows
    assert (7, "test") == (row["rows"], row["split"])
    told = call(*usual, "evaluate", "mails", "--data", "sample")
    assert (2, True) == (told.code, "a file or a folder, as 'mails' is of a task of its own" in told.message)
    told = call(*usual, "train", "--data", tmp_path, *COLUMNS)
    assert (1, True) == (told.code, "a file called train or training" in told.message)


def test_columns_that_are_not_named_are_listed(trained: Path) -> None:
    """Whoever gives a file alone learns its columns at the first try."""
    told = call("--store", trained / "store", "train", "shop", "--data", trained / "rows.csv")
    assert (2, True) == (told.code, "expected --text-col and --label-col beside it" in told.message)
    assert "its columns are body, mood, reply" in told.message


def test_an_option_given_twice_is_refused(trained: Path) -> None:
    """Of two values only one could count; the one for several columns is named."""
    told = call("--store", trained / "store", "train", "--data", "x.csv", "--label-col", "a", "--label-col", "b")
    assert (2, True) == (told.code, "expected --label-col once, found it 2 times; --label-cols a,b,…" in told.message)


def test_the_class_of_f1_is_told(tiny_folder: Path, tmp_path: Path) -> None:
    """On the terminal, in JSON, in the manifest; and it can be chosen."""
    rows = [{"body": f"the film {n}", "mood": "broken" if n % 4 == 0 else "fine"} for n in range(32)]
    path = write_csv(tmp_path / "rows.csv", rows)
    usual = ("--store", tmp_path / "store")
    places = ("--data", path, *COLUMNS, "--backbone", tiny_folder, *QUICK)
    told = succeed(*usual, "train", *places)
    assert "(of 'broken')" in told.out
    assert "f1_binary is of 'broken', the rarer label; --positive-label chooses" in told.err
    (row,) = succeed(*usual, "train", *places, "--positive-label", "fine", "--json").rows
    (shown,) = succeed(*usual, "show", "rows", "--json").rows
    assert ("fine", "fine", ["broken", "fine"]) == (
        row["positive_label"],
        shown["positive_label"],
        shown["head"]["label_names"],
    )


def test_numbers_are_answered_in_their_own_unit(tiny_folder: Path, tmp_path: Path) -> None:
    """Prices far from 0 and 1 are learned; the scale is in the manifest."""
    rows = [
        {"body": f"a {'big' if n % 2 else 'small'} city {n}", "price": 200_000 + 90_000 * (n % 2)} for n in range(40)
    ]
    path = write_csv(tmp_path / "prices.csv", rows)
    usual = ("--store", tmp_path / "store")
    places = ("--data", path, "--text-col", "body", "--label-col", "price", "--backbone", tiny_folder)
    succeed(*usual, "train", *places, "--problem-type", "regression", "--max-length", "32", "--epochs", "6")
    (answer,) = succeed(*usual, "predict", "prices", "a big city", "--json").rows
    assert 150_000 < answer["label"] < 350_000
    (shown,) = succeed(*usual, "show", "prices", "--json").rows
    assert 230_000 < shown["head"]["target_mean"] < 260_000
    assert shown["scores"]["mse"] < 1.3 * 45_000**2


def test_a_training_whose_loss_rises_is_not_saved(trained: Path, tmp_path: Path) -> None:
    """The command says from what to what, and saves the set only when that is wanted."""
    store = Path(shutil.copytree(trained / "store", tmp_path / "store"))
    rate = ("--learning-rate", "9", "--epochs", "20", "--max-length", "32", "--name", "wild")
    places = ("--store", store, "train", "--data", trained / "rows.csv", *COLUMNS, *rate)
    told = call(*places)
    assert (1, True) == (
        told.code,
        "cannot save 'wild': expected a loss that falls, found one that rose" in told.message,
    )
    kept = succeed(*places, "--keep-diverged")
    assert kept.out.startswith("wild:1 ")
    assert "wild: diverged: the loss rose from" in kept.err


def test_a_checkpoint_is_not_lost_without_a_word(trained: Path, tmp_path: Path) -> None:
    """Beside one of an interrupted training nothing starts anew; what differs, and that there is none, is told."""
    store = Path(shutil.copytree(trained / "store", tmp_path / "store"))
    long = ("train", "--data", trained / "rows.csv", *COLUMNS, "--name", "long", "--max-length", "32")
    process = start("--store", store, *long, "--epochs", "4000")
    checkpoint = store / ".checkpoints" / "long.safetensors"
    for _ in range(1200):
        if checkpoint.exists():
            break
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
    assert 130 == process.returncode
    kept = checkpoint.read_bytes()
    told = call("--store", store, *long, "--epochs", "1")
    assert (1, True) == (told.code, "go on with --resume, or give --restart to lose it" in told.message)
    told = call("--store", store, *long, "--epochs", "1", "--resume")
    assert (1, True) == (told.code, "found other settings: epochs 4000 instead of 1; train without" in told.message)
    assert kept == checkpoint.read_bytes()
    succeed("--store", store, *long, "--epochs", "1", "--restart")
    assert not checkpoint.exists()
    again = succeed("--store", store, *long, "--epochs", "1", "--resume")
    assert "long: no checkpoint to resume from; the training starts at its first step" in again.err


def test_a_backbone_that_has_moved_is_found_or_named(tiny_folder: Path, tmp_path: Path) -> None:
    """From another working directory it is found; after a move --backbone names it, and another one is refused."""
    bert = Path(shutil.copytree(tiny_folder, tmp_path / "bert"))
    for command in (("init", "--backbone", "bert"), ("verify",)):
        done = subprocess.run([PROGRAM, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert 0 == done.returncode, done.stderr
    store = ("--store", tmp_path / "adapters_store")
    succeed(*store, "verify")
    moved = bert.rename(tmp_path / "elsewhere")
    told = call(*store, "verify")
    assert (3, True) == (told.code, "--backbone or ADAPTER_REGISTRY_BACKBONE names the place" in told.message)
    succeed(*store, "verify", "--backbone", moved)
    wrong = call(*store, "verify", "--backbone", "embedded")
    assert (5, True) == (wrong.code, "leave --backbone out, or name another --store" in wrong.message)


def test_a_whole_file_is_answered_though_it_was_killed(trained: Path, tmp_path: Path) -> None:
    """Killed on the way and started again, the command writes what an undisturbed one writes."""
    rows = [{"id": n, "body": f"the film was {('good', 'dull')[n % 2]} {n}"} for n in range(12_000)]
    path = write_csv(tmp_path / "new.csv", rows)
    ask = ("--store", trained / "store", "predict", "mails", "--data", path)
    out = tmp_path / "killed.csv"
    process = start(*ask, "--out", out)
    for _ in range(1200):
        if out.with_name("killed.csv.journal").exists():
            break
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)
    assert not out.exists()
    again = succeed(*ask, "--out", out)
    assert "rows were answered before; going on after them" in again.err
    assert list(range(12_000)) == pd.read_csv(out)["id"].tolist()
    succeed(*ask, "--out", tmp_path / "whole.csv")
    assert (tmp_path / "whole.csv").read_bytes() == out.read_bytes()


def test_every_line_has_its_answer_or_its_error(trained: Path) -> None:
    """Lines are answered in order, other keys handed through, and errors end the command with 1 after all of them."""
    lines = [
        {"id": 7, "adapter": "mails", "text": "a good film"},
        {"adapter": "nope", "text": "no such set"},
        {"adapter": "mails", "text": ""},
        "no object",
        {"adapter": "mails", "text": "a dull film", "source": "form"},
    ]
    told = call("--store", trained / "store", "predict", "-", stdin="\n".join(map(json.dumps, lines)).encode())
    assert (1, True) == (told.code, "3 of 5 lines of standard input have no answer" in told.message)
    assert [True, False, False, False, True] == ["label" in row for row in told.rows]
    assert (7, "form", 3) == (told.rows[0]["id"], told.rows[4]["source"], told.rows[2]["line"])


def test_the_name_of_a_file_is_no_text(trained: Path) -> None:
    """A file given as a text is told of, and so is a text that begins with a dash."""
    store = ("--store", trained / "store")
    told = call(*store, "predict", "mails", trained / "rows.csv")
    assert (2, True) == (told.code, f"or --data {trained / 'rows.csv'} for its rows" in told.message)
    told = call(*store, "predict", "mails", "-0.5 percent")
    assert (2, True) == (told.code, "a text that begins with a dash stands after --" in told.message)
    succeed(*store, "predict", "mails", "--", "-0.5 percent")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("predict mails good > /dev/full", 1),
        ("list >&-", 1),
        ("predict mails - <&-", 2),
        ("predict mails good 2> /dev/full", 0),
        ("predict mails good 2>&-", 0),
    ],
)
def test_closed_and_full_pipes_end_in_one_line(trained: Path, words: str, code: int) -> None:
    """Where nothing can be written or read, that is said; notes that cannot be written end nothing."""
    command = f"{PROGRAM} --store {trained / 'store'} {words}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert code == done.returncode, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_any_data_set_of_the_hub_is_a_task() -> None:
    """hub:NAME:CONFIG with the column options names data set, configuration and splits."""
    options = dict.fromkeys(("split_col", "pair_col", "label_cols", "labels", "positive_label", "validation"))
    options["task_files"] = ()
    options |= {"sep": None, "quoting": None, "encoding": None, "no_header": False, "problem_type": None, "metrics": ()}
    options |= {"data": "hub:org/news:small", "text_col": "text", "label_col": "topic", "reported_split": "test"}
    (spec,) = choose_tasks([], options)
    assert ("news-small", "org/news", "small", "test") == (
        spec.name,
        spec.hub and spec.hub.path,
        spec.hub and spec.hub.config,
        spec.reported_split,
    )
    assert (("text",), "topic", None) == (spec.text_columns, spec.label_column, spec.file)


def test_selection_says_what_it_kept(trained: Path, tmp_path: Path) -> None:
    """With early stopping the step that was kept and the rows set aside are told."""
    store = Path(shutil.copytree(trained / "store", tmp_path / "store"))
    told = succeed(
        *("--store", store, "train", "--data", trained / "rows.csv", *COLUMNS, "--name", "kept"),
        *("--max-length", "32", "--epochs", "3", "--early-stopping", "2", "--evaluate-every", "1"),
    )
    assert "kept: the weights are those of step" in told.err
    assert "10% of the training rows were set aside for it" in told.err


def test_a_column_may_tell_the_split(tiny_folder: Path, tmp_path: Path) -> None:
    """Rows are trained on and scored as the column says, then and later; others are left out."""
    names = ["train"] * 20 + ["Dev"] * 7 + ["unused"] * 3
    rows = [{**row, "part": name} for row, name in zip(own_rows(30), names, strict=True)]
    path = write_csv(tmp_path / "mails.csv", rows)
    usual = ("--store", tmp_path / "store")
    places = ("--data", path, *COLUMNS, "--backbone", tiny_folder, *QUICK)
    succeed(*usual, "train", *places, "--split-col", "part")
    (shown,) = succeed(*usual, "show", "mails", "--json").rows
    assert (20, 7, "dev") == (shown["data"]["train_rows"], shown["data"]["reported_rows"], shown["split"])
    for more in ((), ("--data", path)):
        (row,) = succeed(*usual, "evaluate", "mails", "--json", *more).rows
        assert (7, "dev") == (row["rows"], row["split"])
    assert "same weights as mails:1" in succeed(*usual, "train", "--from", "mails").out
    told = succeed(*usual, "train", *places, "--split-col", "part", "--reported-split", "unused")
    assert "7 rows of other splits than train and unused are left out" in told.err
    told = call(*usual, "train", *places, "--split-col", "part", "--reported-split", "test")
    assert (1, True) == (told.code, "expected rows of train or training, and of test, found dev, train" in told.message)
    told = call(*usual, "train", *places, "--split-col", "mood")
    assert (1, True) == (told.code, "expected rows of train or training, and of validation" in told.message)


def test_numbers_mean_places_only_to_a_set_of_the_hub(trained: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """A GLUE file's 0 and 1 are scored by a set of that task; a set of one's own matches names, and says so."""
    data = write_data_folder(tmp_path / "data")
    usual = ("--store", tmp_path / "store")
    succeed(*usual, "train", "sst2", "--data", data, "--backbone", tiny_folder, *QUICK)
    dev = write_csv(tmp_path / "dev.csv", single_rows(8))
    (row,) = succeed(*usual, "evaluate", "sst2", "--data", dev, "--json").rows
    assert 8 == row["rows"]
    columns = ("--text-col", "sentence", "--label-col", "label")
    told = call("--store", trained / "store", "evaluate", "mails", "--data", dev, *columns)
    assert (1, True) == (told.code, "(dull, good, great), found '0' in 4 rows, '1' in 4 rows" in told.message)


def test_a_folder_is_answered_into_a_folder(trained: Path, tmp_path: Path) -> None:
    """Files are answered into files of their names; without a place for them, or a set, that is said in one line."""
    rows = tmp_path / "rows"
    rows.mkdir()
    for name in ("a", "b"):
        write_csv(rows / f"{name}.csv", own_rows(5))
    ask = ("--store", trained / "store", "predict", "--data", rows)
    told = succeed(*ask, "mails", "--out", tmp_path / "out")
    assert "10 of 10 rows answered, in 2 files of" in told.err
    assert ["_manifest.json", "a.csv", "b.csv"] == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert 5 == len(pd.read_csv(tmp_path / "out" / "b.csv")["label"])
    assert "expected --out FOLDER beside a folder" in call(*ask, "mails").message
    assert "a stored set, or --ref-col" in call(*ask, "--out", tmp_path / "other").message
    named = call(*ask, "--ref-col", "mood", "--text-col", "body", "--out", tmp_path / "named")
    assert "10 of 10 rows of" in named.message
    assert "--data FOLDER beside it" in call(*ask[:3], "mails", "--data", rows / "a.csv", "--on", "ray").message
