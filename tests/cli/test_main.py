"""The command line: every command does its work, data is on stdout and everything else on stderr."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from registry.cli.main import cli
from registry.schema import Manifest
from registry.validation import from_json
from tests.support.command_line import (
    PROGRAM,
    QUICK,
    call,
    json_lines,
    own_rows,
    single_rows,
    start,
    succeed,
    write_csv,
    write_data_folder,
)
from tests.support.stored_sets import tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the three built-in tasks in little."""
    return write_data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, folder: Path) -> Path:
    """A store of the tiny backbone with sets for sst2 and mrpc; not to be changed."""
    store = tmp_path_factory.mktemp("stores") / "store"
    succeed("--store", store, "train", "sst2", "mrpc", "--data", folder, "--backbone", tiny_folder, *QUICK)
    return store


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained store, to be changed at will."""
    return Path(shutil.copytree(trained, tmp_path / "store"))


@pytest.mark.parametrize("command", [None, *sorted(cli.commands)])
def test_help_of_every_command(command: str | None) -> None:
    """Every command tells what it does on stdout, under its own name."""
    told = succeed(*([command] if command else []), "--help")
    assert "Usage: " in told.out
    assert not told.err
    if command is None:
        assert all(name in told.out for name in cli.commands)


def test_init_makes_a_store_for_one_backbone(tmp_path: Path, tiny_folder: Path) -> None:
    """``init`` makes an empty store that belongs to the backbone named, and may be repeated."""
    for _ in range(2):
        told = succeed("--store", tmp_path / "store", "init", "--backbone", tiny_folder)
        assert f"store {tmp_path / 'store'} is ready for '{tiny_folder}'\n" == told.out
        assert "2 layers, H 32" in told.err
    empty = succeed("--store", tmp_path / "store", "list")
    assert not empty.out
    assert "is empty" in empty.err


def test_store_can_be_named_by_the_environment(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ADAPTER_REGISTRY_STORE stands in for --store."""
    monkeypatch.setenv("ADAPTER_REGISTRY_STORE", str(trained))
    assert ["mrpc", "sst2"] == [row["name"] for row in succeed("list", "--json").rows]


def test_train_tells_on_stdout_only_what_was_stored(store: Path, folder: Path) -> None:
    """``train --json`` prints one object: the new version, its scores and what it cost; notes are on stderr."""
    told = succeed("--store", store, "train", "sst2", "--data", folder, "--json", *QUICK)
    assert len(told.rows) == 1
    assert "sst2:2" == told.rows[0]["adapter"]
    assert {"accuracy", "f1_binary", "f1_weighted"} == set(told.rows[0]["scores"])
    assert "24 rows to train on, 12 to score" in told.err
    assert "step 3/3" in told.err


def test_train_stores_everything_about_the_set(trained: Path, tiny_folder: Path, folder: Path) -> None:
    """The manifest of a trained set has the task, rows, recipe, choices, scores and backbone."""
    path = trained / "mrpc" / "versions" / "000001" / "manifest.json"
    manifest = from_json(Manifest, path.read_bytes())
    assert ("mrpc", True, 32) == (manifest.task, manifest.pair, manifest.max_length)
    assert ("default", "validation", "float32") == (manifest.recipe, manifest.split, manifest.dtype)
    assert ("not_equivalent", "equivalent") == manifest.head.label_names
    assert manifest.main_metric == "f1_binary"
    assert manifest.training is not None
    assert (1, 8, 32) == (manifest.training.epochs, manifest.training.batch_size, manifest.training.max_length)
    assert manifest.data is not None
    assert (str(folder), False, 24, 12) == (
        manifest.data.source,
        manifest.data.sample,
        manifest.data.train_rows,
        manifest.data.reported_rows,
    )
    assert str(tiny_folder) == manifest.backbone.source
    assert not (trained / ".checkpoints" / "mrpc.safetensors").exists()


def test_train_options_reach_the_set(store: Path, folder: Path) -> None:
    """Placement, size, activation, layers, layer norms, pooling, seed and name are as they were asked for."""
    choices = ("--placement", "houlsby", "--reduction-factor", "8", "--activation", "relu", "--layers", "1")
    more = ("--layer-norms", "--pooling", "cls", "--adapter-dropout", "0.1", "--seed", "7", "--weight-decay", "0.1")
    names = ("--name", "other", "--limit", "10", "--limit-reported", "5", "--learning-rate", "0.01")
    succeed("--store", store, "train", "sst2", "--data", folder, *QUICK, *choices, *more, *names)
    shown = succeed("--store", store, "show", "other", "--json").rows[0]
    adapter, head, training = shown["adapter"], shown["head"], shown["training"]
    assert ("houlsby", 8, "relu", [1], True, 0.1) == tuple(
        adapter[key] for key in ("placement", "reduction_factor", "activation", "layers", "layer_norms", "dropout")
    )
    assert ("cls", True) == (head["pooling"], head["trained"])
    assert (7, 0.1, 0.01) == (training["seed"], training["weight_decay"], training["learning_rate"])
    assert (10, 24, 5, 12) == tuple(
        shown["data"][key] for key in ("train_rows", "train_available", "reported_rows", "reported_available")
    )


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_train_on_a_file_of_ones_own(store: Path, tmp_path: Path, ending: str) -> None:
    """A labelled file is a task: labels are its own words, the name is the file's."""
    path = tmp_path / f"My Mails.{ending}"
    frame = pd.DataFrame(own_rows())
    if ending == "jsonl":
        path.write_text(json_lines(own_rows()))
    elif ending == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="," if ending == "csv" else "\t")
    columns = ("--text-col", "body", "--label-col", "mood")
    told = succeed("--store", store, "train", "--data", path, *columns, *QUICK)
    assert told.out.startswith("my-mails:1  accuracy ")
    assert "24 rows to train on, 6 to score" in told.err
    answer = succeed("--store", store, "predict", "my-mails", "a great film", "--json").rows[0]
    assert ["dull", "good", "great"] == list(answer["probabilities"])
    scored = succeed("--store", store, "evaluate", "my-mails", "--data", path, *columns, "--json").rows[0]
    stored = succeed("--store", store, "show", "my-mails", "--json").rows[0]
    assert stored["scores"] == pytest.approx(scored["scores"])


def test_train_on_pairs_of_ones_own(store: Path, tmp_path: Path) -> None:
    """With --pair-col a row has two texts, and the set then wants two; a task name may be given."""
    path = write_csv(tmp_path / "pairs.csv", own_rows())
    columns = ("--text-col", "body", "--pair-col", "reply", "--label-col", "mood")
    succeed("--store", store, "train", "answers", "--data", path, *columns, *QUICK)
    assert succeed("--store", store, "show", "answers", "--json").rows[0]["pair"] is True
    assert succeed("--store", store, "predict", "answers", "a film", "yes").out


def test_train_on_a_task_file(store: Path, tmp_path: Path) -> None:
    """A TOML file spells a task; ``evaluate`` takes the same file and finds the stored scores again."""
    write_csv(tmp_path / "rows.csv", own_rows())
    task = tmp_path / "mood.toml"
    task.write_text('text_columns = ["body"]\nlabel_column = "mood"\nmetrics = ["f1_macro"]\nfile = "rows.csv"\n')
    trained = succeed("--store", store, "train", "--task-file", task, "--json", *QUICK).rows[0]
    assert ("mood:1", ["f1_macro"]) == (trained["adapter"], list(trained["scores"]))
    scored = succeed("--store", store, "evaluate", "mood", "--task-file", task, "--json").rows[0]
    assert trained["scores"] == pytest.approx(scored["scores"])


def test_several_task_files_make_one_grid(tmp_path: Path, tiny_folder: Path) -> None:
    """bench takes them beside built-in tasks; two of one name are refused."""
    write_csv(tmp_path / "rows.csv", own_rows())
    for name in ("one", "other"):
        text = 'text_columns = ["body"]\nlabel_column = "mood"\nfile = "rows.csv"\n'
        (tmp_path / f"{name}.toml").write_text(text)
    files = ("--task-file", tmp_path / "one.toml", "--task-file", tmp_path / "other.toml")
    usual = ("--method", "majority", "--backbone", tiny_folder, "--out", tmp_path / "bench")
    succeed("bench", "sst2", "--data", "sample", *files, *usual)
    rows = succeed("report", tmp_path / "bench", "--json").rows
    assert ["one", "other", "sst2"] == sorted({row["task"] for row in rows})
    told = call("bench", *files[:2], *files[:2], *usual)
    assert (2, True) == (told.code, "tasks: expected each of another name, found 'one one'" in told.message)


def test_regression_and_multi_label_of_ones_own(store: Path, tmp_path: Path) -> None:
    """Numbers and lists of labels are trained on, predicted and told as such."""
    rows = [{"body": row["body"], "stars": n % 5, "tags": "good|red" if n % 2 else ""} for n, row in
            enumerate(own_rows())]  # fmt: skip
    path = write_csv(tmp_path / "rows.csv", rows)
    own = ("--store", store, "train", "--data", path, "--text-col", "body", *QUICK)
    succeed(*own, "stars", "--label-col", "stars", "--problem-type", "regression")
    succeed(*own, "tags", "--label-col", "tags", "--problem-type", "multi_label")
    stars = succeed("--store", store, "predict", "stars", "a great film", "--json").rows[0]
    assert {"stars": pytest.approx(stars["label"], abs=1e-6)} == stars["probabilities"]
    assert float(succeed("--store", store, "predict", "stars", "a great film").out.split()[0]) is not None
    tags = succeed("--store", store, "predict", "tags", "a great film", "--json").rows[0]
    assert [name for name, share in tags["probabilities"].items() if share >= 0.5] == tags["label"]
    assert "(" not in succeed("--store", store, "predict", "tags", "a great film").out


def test_list_shows_every_name(store: Path) -> None:
    """``list`` has a line per name with its newest version, aliases, size and score."""
    succeed("--store", store, "alias", "sst2", "best", "1")
    lines = succeed("--store", store, "list").out.splitlines()
    assert 3 == len(lines)
    assert ["mrpc", "sst2"] == [line.split()[0] for line in lines[1:]]
    assert "best -> 1" in lines[2]
    assert "accuracy" in lines[2]


def test_list_as_json_is_one_object_per_name(trained: Path) -> None:
    """``list --json`` gives programs the versions, aliases, labels, bytes and scores."""
    mrpc, sst2 = succeed("--store", trained, "list", "--json").rows
    assert ("mrpc", [1], {}) == (mrpc["name"], mrpc["versions"], mrpc["aliases"])
    assert ["negative", "positive"] == sst2["label_names"]
    files = (trained / "sst2" / "versions" / "000001").glob("*.safetensors")
    assert sum(path.stat().st_size for path in files) == sst2["bytes"]


def test_show_tells_all_of_one_version(trained: Path) -> None:
    """``show`` prints every field of the manifest; ``--json`` the same for programs."""
    content = succeed("--store", trained, "show", "sst2", "--json").rows[0]
    stored = json.loads((trained / "sst2" / "versions" / "000001" / "manifest.json").read_text())
    assert {"version": 1, **stored} == content
    text = succeed("--store", trained, "show", "sst2:1").out
    assert all(key in text for key in content)


def test_predict_answers_single_texts_and_pairs(trained: Path) -> None:
    """``predict`` prints the label first, then the probability of every label, the highest first."""
    words = succeed("--store", trained, "predict", "sst2", "a good film").out.split()
    assert words[0] in ("negative", "positive")
    assert words[0] == words[1]
    assert float(words[2]) + float(words[4]) == pytest.approx(1, abs=2e-3)
    assert succeed("--store", trained, "predict", "mrpc:1", "He left.", "He went.").out.startswith(
        ("equivalent", "not_equivalent")
    )


def test_predict_reads_lines_for_one_set(trained: Path) -> None:
    """``predict REF -`` answers each JSON line with that set, and passes over empty lines."""
    lines = b'{"text": "a good film"}\n\n  \n{"text": "a bad film"}\n'
    answers = succeed("--store", trained, "predict", "sst2", "-", stdin=lines).rows
    assert ["sst2:1", "sst2:1"] == [answer["adapter"] for answer in answers]
    alone = succeed("--store", trained, "predict", "sst2", "a bad film", "--json").rows[0]
    assert alone["probabilities"] == pytest.approx(answers[1]["probabilities"], abs=2e-5)


def test_predict_answers_mixed_lines_in_their_order(trained: Path) -> None:
    """``predict -`` takes rows of different sets in any order and answers them in that order."""
    rows = [
        {"adapter": "sst2", "text": "a good film"},
        {"adapter": "mrpc", "text": "he left", "pair": "he went"},
        {"adapter": "sst2:1", "text": "bad"},
        {"adapter": "mrpc", "text": "rain", "pair": "sun and the road"},
    ]
    answers = succeed("--store", trained, "predict", "-", stdin=json_lines(rows).encode()).rows
    assert ["sst2:1", "mrpc:1", "sst2:1", "mrpc:1"] == [answer["adapter"] for answer in answers]
    for row, answer in zip(rows, answers, strict=True):
        texts = [row["text"], *([row["pair"]] if "pair" in row else [])]
        alone = succeed("--store", trained, "predict", row["adapter"], *texts, "--json").rows[0]
        assert alone["label"] == answer["label"]
        assert alone["probabilities"] == pytest.approx(answer["probabilities"], abs=2e-5)


def test_long_texts_are_cut_counted_and_told(store: Path, tmp_path: Path) -> None:
    """Rows longer than the maximum are cut; the manifest counts them and stderr tells; so does an answer."""
    rows = [{**row, "sentence": row["sentence"] + " good" * (40 if row["idx"] < 3 else 0)} for row in single_rows(24)]
    folder = write_data_folder(tmp_path / "data")
    (folder / "glue" / "sst2" / "train.jsonl").write_text(json_lines(rows))
    told = succeed("--store", store, "train", "sst2", "--data", folder, *QUICK)
    assert "sst2: 3 training and 0 scored rows were cut" in told.err
    data = succeed("--store", store, "show", "sst2", "--json").rows[0]["data"]
    assert (3, 0) == (data["truncated_train"], data["truncated_reported"])
    answer = succeed("--store", store, "predict", "sst2", "good " * 40)
    assert "cut to the longest length" in answer.err
    assert succeed("--store", store, "predict", "sst2", "good " * 40, "--json").rows[0]["truncated"] is True


def test_evaluate_finds_the_stored_scores_again(trained: Path, folder: Path) -> None:
    """Scoring a stored set on the rows it was reported on gives the scores in its manifest."""
    scored = succeed("--store", trained, "evaluate", "mrpc", "--data", folder, "--json").rows[0]
    stored = succeed("--store", trained, "show", "mrpc", "--json").rows[0]
    assert stored["scores"] == pytest.approx(scored["scores"])
    assert ("mrpc", "validation", 12, False) == tuple(scored[key] for key in ("task", "split", "rows", "sample"))
    text = succeed("--store", trained, "evaluate", "mrpc", "--data", folder)
    assert text.out.startswith("mrpc on 12 rows of mrpc validation: f1_binary ")


def test_verify_says_that_all_is_whole(trained: Path) -> None:
    """``verify`` loads the whole store, or the sets named."""
    assert "2 of 2 names are whole and fit the backbone\n" == succeed("--store", trained, "verify").out
    assert succeed("--store", trained, "verify", "sst2:1").out.startswith("1 of 1")
    assert not succeed("--store", trained, "verify", "--json").out


def test_alias_and_remove(store: Path) -> None:
    """An alias is a name for a version; versions, aliases and names can be removed, the rest stays."""
    assert "sst2@best -> sst2:1\n" == succeed("--store", store, "alias", "sst2", "best", "1").out
    assert succeed("--store", store, "predict", "sst2@best", "good", "--json").rows[0]["adapter"] == "sst2:1"
    assert "removed sst2@best\n" == succeed("--store", store, "remove", "sst2@best", "--yes").out
    assert "removed all 1 versions of 'sst2'\n" == succeed("--store", store, "remove", "sst2", "--yes").out
    assert ["mrpc"] == [row["name"] for row in succeed("--store", store, "list", "--json").rows]


def test_remove_asks_first(store: Path) -> None:
    """Without --yes nothing goes before the answer is yes."""
    before = tree(store)
    assert call("--store", store, "remove", "sst2", stdin=b"n\n").code == 130
    assert before == tree(store)


@pytest.mark.slow
def test_installed_program_keeps_data_and_notes_apart(trained: Path) -> None:
    """The installed program answers a pipe: only JSON on stdout, the backbone told on stderr."""
    process = start("--store", trained, "predict", "-", stdin=subprocess.PIPE)
    out, err = process.communicate('{"adapter": "sst2", "text": "a good film"}\n', timeout=60)
    assert process.returncode == 0
    assert "sst2:1" == json.loads(out)["adapter"]
    assert err.startswith("backbone ")
    assert 1 == len(err.splitlines())


@pytest.mark.slow
def test_no_color_on_a_terminal(trained: Path) -> None:
    """With NO_COLOR even a terminal gets plain text; without it the head of the table is bold."""
    assert "\x1b" not in _on_terminal(trained, {"NO_COLOR": "1"})
    assert "\x1b[1m" in _on_terminal(trained, {})


def _on_terminal(store: Path, environment: dict[str, str]) -> str:
    """Return what ``list`` writes to a terminal."""
    reader, writer = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    command = [str(PROGRAM), "--store", str(store), "list"]
    variables = {**plain, "TERM": "xterm", **environment}
    subprocess.run(command, stdout=writer, stderr=subprocess.DEVNULL, env=variables, check=True, timeout=60)
    os.close(writer)
    try:
        return os.read(reader, 65_536).decode()
    finally:
        os.close(reader)


def test_torchs_libraries_are_told_before_they_are_imported() -> None:
    """oneDNN keeps few shapes' kernels and waiting threads sleep soon, unless the caller has said otherwise."""
    names = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "GOMP_SPINCOUNT")
    code = (
        "import os, sys; from registry.cli.main import main\ntry: main(['--version'])\nexcept SystemExit: pass\n"
        f"print(*(os.environ[name] for name in {names}), 'torch' in sys.modules)"
    )
    environment = {key: value for key, value in os.environ.items() if key not in names}
    environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "7"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ["128", "7", "10000", "False"] == done.stdout.split()[-4:]
