"""What the command line refuses: one clear line, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.command_line import (
    QUICK,
    Outcome,
    call,
    json_lines,
    own_rows,
    pair_rows,
    single_rows,
    succeed,
    write_csv,
    write_data_folder,
)
from tests.support.stored_sets import tree
from tests.support.tiny_backbone import save_tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the three built-in tasks in little."""
    return write_data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, folder: Path) -> Path:
    """A store of the tiny backbone with sets for sst2 and mrpc."""
    store = tmp_path_factory.mktemp("stores") / "store"
    succeed("--store", store, "train", "sst2", "mrpc", "--data", folder, "--backbone", tiny_folder, *QUICK)
    return store


def refuse(store: Path, *arguments: object, stdin: bytes = b"") -> Outcome:
    """Run a command that has to fail in one line and leave the store as it was."""
    before = tree(store) if store.is_dir() else None
    outcome = call("--store", store, *arguments, stdin=stdin)
    assert before == (tree(store) if store.is_dir() else None)
    assert not outcome.out
    assert outcome.code != 0
    return outcome


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("trian sst2", 2, "no command 'trian'; did you mean 'train'?"),
        ("frobnicate", 2, "no command 'frobnicate'; expected one of demo, init, train"),
        ("train sst2 --epoch 3", 2, "(Did you mean one of: '--epochs', '--sep'?); see"),
        ("train sst2 --epochs few", 2, "Invalid value for '--epochs': 'few' is not a valid integer"),
        ("show", 2, "Missing argument 'REFERENCE'"),
        ("train", 2, "cannot use tasks: expected at least one task, --task-file, or --data FILE"),
        ("train stt2", 3, "unknown task 'stt2': expected one of imdb, mrpc, sst2; did you mean 'sst2'?"),
        ("train sst2 mrpc --name both", 2, "cannot use --name: expected one task, found '2 tasks'"),
        ("train sst2 --name Not/OK", 2, "cannot use name 'Not/OK': expected 1 to 64 of a-z 0-9"),
        ("train sst2 --recipe lab-notebok", 3, "did you mean 'lab-notebook'?"),
        ("train sst2 --recipe none-of-them", 3, "give one of these or the path of a .toml file"),
        ("train sst2 --placement houlsbi", 2, "one of after_layer, houlsby, pfeiffer, parallel, found 'houlsbi'; did"),
        ("train sst2 --activation rleu", 2, "did you mean 'relu'?"),
        ("train sst2 --pooling max", 2, "cannot use pooling: expected one of cls, mean, pooler, found 'max'"),
        (
            "train sst2 mrpc --text-col sentence --label-col label",
            2,
            "one at most beside --data FILE and columns, found 'sst2 mrpc'",
        ),
        ("train sst2 --task-file own.toml", 1, "own.toml"),
        ("train sst2 --reduction-factor 5", 2, "reduction_factor: expected a divisor of the hidden size 32, found 5"),
        ("train sst2 --reduction-factor 0", 2, "reduction_factor: expected a divisor of the hidden size 32, found 0"),
        ("train sst2 --layers one", 2, "cannot use layers: expected whole numbers with commas, such as 3,4,5"),
        ("train sst2 --layers 0,7", 2, "layers"),
        ("train sst2 --layers -1", 2, "layers"),
        ("train sst2 --epochs 0", 2, "cannot use epochs: expected an integer >= 1, found 0"),
        ("train sst2 --learning-rate nan", 2, "cannot use learning_rate: expected a number above 0"),
        ("train sst2 --max-length 1000", 2, "cannot use max_length: expected at most 66 tokens for this backbone"),
        ("train sst2 --limit 0", 2, "Invalid value for '--limit'"),
        ("train sst2 --seed -1", 2, "cannot use seed"),
        ("train sst2 --text-col sentence", 2, "expected --label-col beside it"),
        ("train sst2 --reported-split train", 2, "expected a split other than 'train', found 'train'"),
        ("bench sst2 --seeds 1,x", 2, "cannot use --seeds: expected numbers such as 0,1,2 or 0-4, found '1,x'"),
        ("bench sst2 --seeds 1,1", 2, "cannot use --seeds: expected distinct numbers"),
        ("bench sst2 --seeds 4-0", 2, "cannot use --seeds: expected rising ranges"),
        ("bench sst2 --seeds \N{SUPERSCRIPT TWO}", 2, "cannot use --seeds"),
        ("bench sst2 --seeds 0-999999999", 2, "cannot use --seeds: expected rising ranges of at most 1000 seeds"),
        ("bench sst2 --method housby", 2, "did you mean 'houlsby'?"),
        ("bench sst2 --method majority --keep houlsby", 2, "expected one of majority, found 'houlsby'"),
        ("bench sst2 --method majority --keep majority", 2, "expected a method that leaves an adapter set"),
        ("predict stt2 good", 3, "cannot find adapter set 'stt2'"),
        ("predict sst2:9 good", 3, "it has sst2:1; did you mean 'sst2:1'?"),
        ("predict sst2@best good", 3, "cannot find adapter set 'sst2@best'"),
        ("predict sst2:x good", 2, "expected a version from 1 to 999999 after the colon, found 'x'"),
        ("predict ../sst2 good", 2, "cannot use name '../sst2'"),
        ("predict sst2", 2, "cannot answer with 'sst2': expected a text, or '-' for JSON lines, or --data FILE"),
        ("predict sst2 good bad", 2, "expected one text, as its task is on single texts, found two"),
        ("predict mrpc good", 2, "expected two texts, as its task is on pairs, found one"),
        ("evaluate sst3", 3, "did you mean 'sst2'?"),
        ("verify nothing", 3, "cannot find adapter set 'nothing'"),
        ("show sst3", 3, "did you mean 'sst2'?"),
        ("alias sst2 Best 1", 2, "cannot use alias 'Best'"),
        ("alias sst2 best 9", 3, "cannot find adapter set 'sst2:9'"),
        ("remove sst3 --yes", 3, "did you mean 'sst2'?"),
        ("--dtype float3 predict sst2 good", 2, "did you mean 'float32'?"),
        ("--device gpu predict sst2 good", 1, "cannot use device 'gpu': expected auto, cpu, mps, cuda or cuda:N"),
    ],
)
def test_bad_arguments(store: Path, folder: Path, tmp_path: Path, arguments: str, code: int, message: str) -> None:
    """Whatever cannot be done is told in one line that names it, and nothing is written."""
    words = arguments.split()
    if words[0] in ("train", "bench"):
        words += ["--data", str(folder)]
        words += [] if "--max-length" in words else ["--max-length", "32"]
    if words[0] == "bench":
        words += ["--out", str(tmp_path / "out")]
    outcome = refuse(store, *words)
    assert (code, True) == (outcome.code, message in outcome.message), outcome.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--backbone bert-bas-uncased", 6, "cannot load backbone 'bert-bas-uncased': offline was asked for, and it "
         "is not cached; use --backbone embedded or a local folder; did you mean 'bert-base-uncased'?"),
        ("--backbone ./nowhere/at-all", 3, "cannot load backbone './nowhere/at-all': expected a folder, found none"),
        ("--backbone tiny --reduction-factor 5", 2, "expected a divisor of the hidden size 32, found 5"),
        ("--backbone tiny --max-length 1000", 2, "max_length: expected at most 66 tokens"),
        ("--backbone tiny --layers 7", 2, "layers"),
        ("--backbone tiny --data nowhere", 1, "cannot read nowhere: folder: expected a folder of data, found none"),
    ],
)  # fmt: skip
def test_failed_first_training_leaves_no_store(
    tmp_path: Path, tiny_folder: Path, folder: Path, arguments: str, code: int, message: str
) -> None:
    """A first ``train`` that cannot be done does not fix the store's backbone by leaving a store behind."""
    words = [str(tiny_folder) if word == "tiny" else word for word in arguments.split()]
    usual = {"--max-length": "32", "--data": str(folder)}
    left = [word for option in usual.items() if option[0] not in words for word in option]
    outcome = call("--offline", "--store", tmp_path / "store", "train", "sst2", *left, *words)
    assert (code, True) == (outcome.code, message in outcome.message), outcome.message
    assert not (tmp_path / "store").exists()


SINGLE = ("--text-col", "body", "--label-col", "mood")
BAD_FILES = {
    "empty.csv": (b"", SINGLE, "content: expected rows, found an empty file"),
    "header.csv": (b"body,mood\n", SINGLE, "content: expected at least one row, found none"),
    "column.csv": (b"text,mood\ngood,a\nbad,b\n", SINGLE, "columns: expected a column 'body', found mood, text"),
    "unlabelled.csv": (
        b"body,mood\ngood,a\nbad,b\nso,\n",
        SINGLE,
        "line 4, column 'mood': expected a label, found",
    ),
    "hidden.csv": (b"body,mood\ngood,a\nbad,b\nso,\n", SINGLE, "--skip-bad-rows leaves it out and counts it"),
    "one.csv": (b"body,mood\ngood,a\nbad,a\n", SINGLE, "expected at least 2 different labels to train on, found a"),
    "few.csv": (b"body,mood\ngood,a\nbad,b\n", SINGLE, "held_out"),
    "text.csv": (b"body,mood\ngood,a\n ,b\n", SINGLE, "line 3, column 'body': expected a text, found an empty one"),
    "latin.csv": (b"body,mood\ncaf\xe9,a\n", SINGLE, "line 2: expected UTF-8, found byte 0xe9"),
    "wide.csv": (b"body,mood\ngood,a,b\n", SINGLE, "line 2: expected 2 fields, as in the first line, found 3"),
    "broken.jsonl": (b'{"body": "good", "mood": "a"}\n{"body"\n', SINGLE, "line 2: expected a JSON object"),
    "broken.parquet": (b"PAR1 not at all", SINGLE, "content: expected a parquet file"),
    "text.xlsx": (b"PK", SINGLE, "content: expected an Excel book"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(store: Path, tmp_path: Path, name: str) -> None:
    """A file of one's own that cannot be used is told with its name and line, before anything is trained."""
    content, columns, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    outcome = refuse(store, "train", "--data", tmp_path / name, *columns, *QUICK)
    assert outcome.code in (1, 2)
    assert message in outcome.message
    if name != "few.csv":
        assert f"cannot read {tmp_path / name}: " in outcome.message


def test_label_never_seen_in_training(store: Path, tmp_path: Path) -> None:
    """A split with another label than the training rows is refused with line, label and the labels known."""
    task = tmp_path / "mood.toml"
    task.write_text('text_columns = ["body"]\nlabel_column = "mood"\nfolder = "rows"\n')
    (tmp_path / "rows").mkdir()
    write_csv(tmp_path / "rows" / "train.csv", own_rows())
    write_csv(tmp_path / "rows" / "validation.csv", [*own_rows(2), {"body": "a", "reply": "b", "mood": "goood"}])
    outcome = refuse(store, "train", "--task-file", task, *QUICK)
    assert outcome.code == 1
    assert (
        "line 4, column 'mood': expected a label seen in training (dull, good, great), found 'goood' in 1 row; "
        "did you mean 'good'?"
    ) in outcome.message


def test_unlabelled_split(store: Path, tmp_path: Path) -> None:
    """A split whose labels the Hub keeps secret cannot be scored."""
    folder = write_data_folder(tmp_path / "data")
    path = folder / "glue" / "sst2" / "validation.jsonl"
    path.write_text(json_lines({**row, "label": -1} for row in single_rows(4)))
    outcome = refuse(store, "train", "sst2", "--data", folder, *QUICK)
    assert outcome.code == 1
    assert "found '-1' in 4 rows; -1 marks rows without a label: choose a labelled split" in outcome.message


def test_bad_task_file(store: Path, tmp_path: Path) -> None:
    """A task file with an unknown key, or that is no TOML, is told with its path."""
    task = tmp_path / "mood.toml"
    task.write_text('text_columns = ["body"]\nlabel_colum = "mood"\nfile = "rows.csv"\n')
    assert "found 'label_colum'; did you mean 'label_column'?" in refuse(store, "train", "--task-file", task).message
    task.write_text("text_columns = [")
    assert f"cannot read {task}: task file: expected TOML" in refuse(store, "train", "--task-file", task).message
    missing = refuse(store, "train", "--task-file", tmp_path / "none.toml")
    assert "expected a TOML file, found No such file" in missing.message


def test_evaluate_on_other_labels(store: Path, folder: Path, tmp_path: Path) -> None:
    """A set is not scored on a task whose labels are not its own, or on texts of another form."""
    path = write_csv(tmp_path / "rows.csv", own_rows())
    outcome = refuse(store, "evaluate", "sst2", "--data", path, *SINGLE)
    assert outcome.code == 1
    assert "expected a label seen in training (negative, positive), found 'dull' in 10 rows" in outcome.message
    pairs = write_csv(tmp_path / "pairs.csv", [{**row, "label": ["negative", "positive"][row["label"]]} for row in
                                               pair_rows(20)])  # fmt: skip
    columns = ("--text-col", "sentence1", "--pair-col", "sentence2", "--label-col", "label")
    outcome = refuse(store, "evaluate", "sst2", "--data", pairs, *columns)
    assert outcome.code == 2
    assert "cannot score 'sst2' on task 'pairs': expected one text per row, found two" in outcome.message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', "cannot answer line 2 of standard input: expected an object such as"),
        (b"[1]", "line 2 of standard input: expected an object such as"),
        (b'{"adapter": "sst2", "txt": "good"}', "line 2 of standard input: expected a text under 'text', found null"),
        (b'{"text": "good"}', "line 2 of standard input: expected a text under 'adapter', found null"),
        (b'{"adapter": "sst2", "text": 3}', "line 2 of standard input: expected a text under 'text', found 3"),
        (b'{"adapter": "sst2", "text": "good", "pair": 3}', "expected a text under 'pair', found 3"),
        (b'{"adapter": "SST 2", "text": "good"}', "cannot use name 'SST 2'"),
        (b'{"adapter": "sst3", "text": "good"}', "did you mean 'sst2'?"),
        (b'{"adapter": "sst2", "text": "good", "pair": "bad"}', "expected one text"),
        (b'{"adapter": "sst2", "text": "caf\xe9"}', "line 2 of standard input: expected UTF-8, found byte 0xe9"),
        (rb'{"adapter": "sst2", "text": "\ud83d"}', "expected a text, found half a character"),
        (b"[" * 100_000, "line 2 of standard input: expected an object such as"),
    ],
)
def test_bad_lines_on_standard_input(store: Path, line: bytes, message: str) -> None:
    """A line that cannot be answered is told with its number, empty lines counted."""
    outcome = refuse(store, "predict", "-", "--strict", stdin=b"\n" + line + b"\n")
    assert outcome.code in (2, 3)
    assert message in outcome.message


def test_not_a_store(tmp_path: Path) -> None:
    """Commands that need a store say where they looked and how one is made."""
    for path, found in ((tmp_path / "nowhere", "found nothing"), (tmp_path, "found a folder without it")):
        for command in (["list"], ["show", "sst2"], ["predict", "sst2", "good"], ["verify"]):
            outcome = refuse(path, *command)
            assert outcome.code == 3
            assert f"cannot open store {path}: expected a folder with store.json, {found}" in outcome.message
            assert "make one with 'adapter-registry init --backbone embedded'" in outcome.message


def test_folder_with_other_files_becomes_no_store(tmp_path: Path, tiny_folder: Path) -> None:
    """``init`` in a folder that holds something else changes nothing there."""
    (tmp_path / "letter.txt").write_text("mine")
    outcome = refuse(tmp_path, "init", "--backbone", tiny_folder)
    assert (3, True) == (outcome.code, "a folder with other files in it" in outcome.message)


def test_store_of_another_backbone(store: Path, folder: Path, tmp_path: Path) -> None:
    """A store belongs to one backbone: another one is refused by ``init``, ``train`` and ``bench --keep``."""
    other = tmp_path / "other"
    save_tiny_checkpoint(other, seed=1)
    keep = ("bench", "sst2", "--method", "houlsby", "--keep", "houlsby", "--out", tmp_path / "out")
    for command in (("train", "sst2"), keep, ("init",)):
        data = () if command == ("init",) else ("--data", folder, *QUICK)
        outcome = refuse(store, *command, *data, "--backbone", other)
        assert outcome.code == 5
        assert f"cannot use store {store}: it was made for backbone" in outcome.message


def test_backbone_changed_under_the_store(store: Path, tmp_path: Path, tiny_folder: Path) -> None:
    """A checkpoint that was replaced in its folder no longer fits the store's sets, whatever its shapes."""
    checkpoint, copy = tmp_path / "checkpoint", tmp_path / "store"
    shutil.copytree(tiny_folder, checkpoint)
    succeed("--store", copy, "init", "--backbone", checkpoint)
    save_tiny_checkpoint(checkpoint, seed=2)
    outcome = refuse(copy, "predict", "sst2", "good")
    assert (5, True) == (outcome.code, "it was made for backbone" in outcome.message)


def test_damaged_sets_never_answer(store: Path, tmp_path: Path) -> None:
    """One flipped byte in a tensor file or the manifest: exit 4 and the path, and ``verify`` finds it too."""
    for file in ("adapter.safetensors", "head.safetensors", "manifest.json"):
        copy = tmp_path / file
        shutil.copytree(store, copy)
        path = copy / "sst2" / "versions" / "000001" / file
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        for command in (["predict", "sst2", "good"], ["verify"], ["verify", "sst2"]):
            outcome = refuse(copy, *command)
            assert outcome.code == 4
            assert str(path) in outcome.message
        assert succeed("--store", copy, "predict", "mrpc", "he left", "he went").out
        problems = call("--store", copy, "verify", "--json")
        assert ["sst2:1"] == [json.loads(line)["reference"] for line in problems.out.splitlines()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_asked_for_and_absent(store: Path) -> None:
    """A device that is not there is told with the ways on."""
    outcome = refuse(store, "--device", "cuda", "predict", "sst2", "good")
    assert outcome.code == 1
    assert "cannot use device 'cuda': torch" in outcome.message
    assert "use --device cpu or --device auto" in outcome.message


def test_bad_recipe_file(store: Path, folder: Path, tmp_path: Path) -> None:
    """A recipe of one's own with an unknown or impossible field is refused before any training."""
    recipe = tmp_path / "mine.toml"
    shipped = (Path(__file__).parents[2] / "registry" / "training" / "recipes" / "default.toml").read_text()
    recipe.write_text(shipped.replace("[training]", "[training]\nepoch = 3"))
    outcome = refuse(store, "train", "sst2", "--data", folder, "--recipe", recipe)
    assert (2, True) == (outcome.code, "epoch" in outcome.message)


def test_report_without_records(tmp_path: Path) -> None:
    """Without records, with damaged ones or for an unknown format, no report is made and the way on is told."""
    outcome = refuse(tmp_path / "store", "report", tmp_path)
    assert (1, True) == (outcome.code, "make some with 'adapter-registry bench'" in outcome.message)
    damaged = tmp_path / "runs" / "sst2" / "houlsby" / "seed-0.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{}")
    outcome = refuse(tmp_path / "store", "report", tmp_path)
    assert (1, True) == (outcome.code, str(damaged) in outcome.message)
    assert ["runs"] == [path.name for path in tmp_path.iterdir()]


def test_bench_refuses_records_of_other_settings(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """Records of other choices are neither reused nor overwritten."""
    common = ("bench", "sst2", "--method", "head_only", "--data", folder, "--backbone", tiny_folder)
    arguments = (*common, "--out", tmp_path, "--max-length", "32")
    succeed("--store", tmp_path / "none", *arguments, "--epochs", "1")
    before = tree(tmp_path / "runs")
    outcome = refuse(tmp_path / "none", *arguments, "--epochs", "2")
    assert outcome.code == 1
    assert "expected a record of the same settings and rows, found one of others" in outcome.message
    assert before == tree(tmp_path / "runs")
