"""``train --from``: a stored set's training done again gives the very same weights, or says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from registry.config import PLACEMENTS
from registry.schema import Manifest, Reference
from registry.store.store import Store
from registry.training.origin import find_differences, has_same_weights, read_repetition
from registry.validation import to_json
from tests.support.command_line import QUICK, Outcome, call, own_rows, start, succeed, write_csv, write_data_folder
from tests.support.stored_sets import reseal

RECIPE = """
description = "every choice that the command line has no option for"
[adapter]
placement = "{placement}"
reduction_factor = 4
dropout = 0.1
init = "{init}"
[head]
form = "{form}"
pooling = "{pooling}"
dropout = 0.1
[training]
optimizer = "{optimizer}"
"""
VARIED = (
    ("after_layer", "zero", "linear", "mean", "adamw"),
    ("houlsby", "normal", "dense_tanh", "cls", "adam"),
    ("pfeiffer", "xavier", "linear", "pooler", "adamw"),
    ("parallel", "normal", "dense_tanh", "mean", "adamw"),
)
WAIT_SECONDS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the three built-in tasks in little."""
    return write_data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, folder: Path) -> Path:
    """A store with a set for sst2; not to be changed."""
    store = tmp_path_factory.mktemp("stores") / "store"
    succeed("--store", store, "train", "sst2", "--data", folder, "--backbone", tiny_folder, *QUICK)
    return store


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained store, to be changed at will."""
    return Path(shutil.copytree(trained, tmp_path / "store"))


def manifest_path(store: Path, name: str = "sst2", version: int = 1) -> Path:
    return store / name / "versions" / f"{version:06d}" / "manifest.json"


def repeat(store: Path, reference: str, *more: object) -> Outcome:
    """Repeat a training and check what the answer says against the stored digests."""
    opened = Store.open(store)
    first = opened.manifest(*opened.resolve(reference))
    told = succeed("--store", store, "train", "--from", reference, *more)
    name, version = told.out.split()[0].split(":")
    second = opened.manifest(name, int(version))
    said = told.out.splitlines()[1].startswith("same weights as ")
    assert has_same_weights(first, second) == said
    return told


def test_placements_have_all_been_varied() -> None:
    """The test below forgets no placement."""
    assert sorted(PLACEMENTS) == sorted(placement for placement, *_ in VARIED)


@pytest.mark.parametrize("choices", VARIED, ids=lambda choices: choices[0])
def test_every_kind_of_set_comes_out_the_same(
    tmp_path: Path, tiny_folder: Path, folder: Path, choices: tuple[str, ...]
) -> None:
    """Placements, initial weights, heads, poolings, optimizers, dropout, held-out selection, limits and a seed."""
    names = ("placement", "init", "form", "pooling", "optimizer")
    recipe = tmp_path / "my.toml"
    recipe.write_text(RECIPE.format(**dict(zip(names, choices, strict=True))))
    store = tmp_path / "store"
    more = ("--seed", "7", "--limit", "20", "--limit-reported", "9", "--early-stopping", "2", "--epochs", "2")
    usual = ("--data", folder, "--backbone", tiny_folder, "--recipe", recipe, "--max-length", "16", *more)
    succeed("--store", store, "train", "mrpc", *usual)
    recipe.unlink()
    told = repeat(store, "mrpc:1")
    assert "mrpc:2" == told.out.split()[0]
    assert "same weights as mrpc:1" == told.out.splitlines()[1]
    first, second = (Store.open(store).manifest("mrpc", version) for version in (1, 2))
    same = {"created": "", "files": (), "digest": ""}
    assert to_json(msgspec.structs.replace(first, **same)) == to_json(msgspec.structs.replace(second, **same))


@pytest.mark.parametrize(
    "options", ["--layers 1", "--layer-norms", "--freeze-head", "--adapter-dropout 0.1 --weight-decay 0.5"]
)
def test_options_are_repeated(tmp_path: Path, tiny_folder: Path, folder: Path, options: str) -> None:
    """What was chosen by option is in the manifest, and so in the repetition."""
    store = tmp_path / "store"
    places = ("--data", folder, "--backbone", tiny_folder, *QUICK)
    succeed("--store", store, "train", "imdb", *places, *options.split())
    assert "same weights as imdb:1" in repeat(store, "imdb").out


def test_sample_precision_and_name(tmp_path: Path, tiny_folder: Path) -> None:
    """The bundled sample is found again, the precision is that of the training, and the name may be another."""
    store = tmp_path / "store"
    limits = ("--limit", "16", "--limit-reported", "8")
    arguments = ("train", "sst2", "--data", "sample", "--backbone", tiny_folder, *limits, *QUICK)
    succeed("--store", store, "--dtype", "bfloat16", *arguments)
    told = repeat(store, "sst2", "--name", "again")
    assert "again:1" == told.out.split()[0]
    assert "same weights as sst2:1" in told.out
    assert "bfloat16 on cpu" in told.err
    outcome = call("--store", store, "--dtype", "float32", "train", "--from", "sst2")
    assert outcome.code == 2
    assert "cannot use --dtype: expected bfloat16, in which sst2:1 was trained, found 'float32'" in outcome.message


def test_own_file(tmp_path: Path, tiny_folder: Path) -> None:
    """A task of one's own is found by the manifest alone; a file that was moved is named, and another place works."""
    store, mails = tmp_path / "store", write_csv(tmp_path / "mails.csv", own_rows())
    columns = ("--text-col", "body", "--pair-col", "reply", "--label-col", "mood")
    succeed("--store", store, "train", "--data", mails, *columns, "--backbone", tiny_folder, *QUICK)
    assert "same weights as mails:1" in repeat(store, "mails").out
    moved = mails.rename(tmp_path / "moved.csv")
    outcome = call("--store", store, "train", "--from", "mails:1")
    assert (1, True) == (outcome.code, f"cannot read {mails}: " in outcome.message)
    assert "same weights as mails:1" in repeat(store, "mails:1", "--data", moved).out


def test_task_file(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """A task file is not needed again: splits, folder and metrics are in the manifest."""
    task = tmp_path / "task.toml"
    shutil.copytree(folder / "glue" / "sst2", tmp_path / "rows")
    (tmp_path / "rows" / "train.jsonl").rename(tmp_path / "rows" / "learn.jsonl")
    task.write_text('text_columns = ["sentence"]\ntrain_split = "learn"\nfolder = "rows"\nmetrics = ["matthews"]\n')
    store = tmp_path / "store"
    succeed("--store", store, "train", "--task-file", task, "--backbone", tiny_folder, *QUICK)
    task.unlink()
    told = repeat(store, "task")
    assert told.out.startswith("task:2  matthews ")
    assert "same weights as task:1" in told.out


def test_sets_kept_by_bench(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """A head without bottlenecks that a benchmark kept is repeated like any other set."""
    store, places = tmp_path / "store", ("--data", folder, "--backbone", tiny_folder, "--out", tmp_path / "out")
    methods = ("--method", "head_only", "--keep", "head_only", "--seeds", "3")
    succeed("--store", store, "bench", "mrpc", *methods, *places, *QUICK)
    assert "same weights as mrpc:1" in repeat(store, "mrpc").out


@pytest.mark.slow
def test_other_processes_come_to_the_same_weights(store: Path) -> None:
    """Nothing of the process that trained first is needed."""
    out, err = start("--store", store, "train", "--from", "sst2:1", "--json").communicate(timeout=WAIT_SECONDS)
    told = json.loads(out or "{}")
    assert ("sst2:2", "sst2:1", True) == (told["adapter"], told["repeats"], told["same_weights"]), err


def test_sets_trained_together_are_repeated_alone(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """Company in training rounds differently, so only the scores are promised; a difference is put down to it."""
    store = tmp_path / "store"
    places = ("--data", folder, "--backbone", tiny_folder, *QUICK)
    succeed("--store", store, "train", "sst2", "mrpc", "imdb", "--together", *places)
    for name in ("sst2", "mrpc", "imdb"):
        told = repeat(store, f"{name}:1").out
        if "other weights than" in told:
            assert "it was trained in one pass with 2 more, which rounds differently" in told
        assert "same weights as" in repeat(store, f"{name}:2").out  # alone and alone again


def test_other_weights_are_told_with_what_differs(tmp_path: Path, store: Path, folder: Path) -> None:
    """A set whose weights cannot be had again is saved beside it, with the libraries and the machine that differ."""
    succeed("--store", store, "train", "sst2", "--data", folder, *QUICK, "--seed", "1")
    opened = Store.open(store)
    manifest, _ = opened.read_version("sst2", 1)
    assert manifest.origin is not None
    versions = {**manifest.library_versions, "torch": "1.0", "extinct": "2.0"}
    origin = msgspec.structs.replace(manifest.origin, threads=97, code="release 0.0.1", together=2)
    changed = msgspec.structs.replace(manifest, name="old", library_versions=versions, origin=origin)
    assert 1 == opened.commit(changed, opened.read_version("sst2", 2)[1])  # as if another machine had come to these
    told = repeat(store, "old").out.splitlines()[1]
    assert told.startswith("other weights than old:1: extinct was 2.0, is missing; torch was 1.0, is ")
    assert "; code was release 0.0.1, is " in told
    assert "; number of threads was 97, is 1; " in told
    assert told.endswith("; it was trained in one pass with 1 more, which rounds differently")
    row = succeed("--store", store, "train", "--from", "old:1", "--json").rows[0]
    assert ("old:1", False, 5) == (row["repeats"], row["same_weights"], len(row["differences"]))
    unchanged = msgspec.structs.replace(manifest, name="odd")
    opened.commit(unchanged, opened.read_version("sst2", 2)[1])
    assert "other weights than odd:1: nothing that is recorded differs" == repeat(store, "odd").out.splitlines()[1]


def test_manifests_of_older_versions(store: Path) -> None:
    """Built-in tasks are repeated from manifests that hold no origin; a difference could have any reason."""
    path = manifest_path(store)
    reseal(path, lambda plain: plain.pop("origin"))
    assert "same weights as sst2:1" in repeat(store, "sst2:1").out
    opened = Store.open(store)
    old, now = opened.manifest("sst2", 1), opened.manifest("sst2", 2)
    assert ["its machine, code and number of threads were not recorded then"] == find_differences(old, now)
    reseal(path, lambda plain: plain.update(task="mine"))
    outcome = call("--store", store, "train", "--from", "sst2:1")
    assert outcome.code == 2
    assert "cannot use --from sst2:1: expected a built-in task (mrpc, sst2, imdb), as this manifest" in outcome.message


@pytest.mark.parametrize("field", ["training", "data", "task", "split", "dtype"])
def test_missing_facts(trained: Path, field: str) -> None:
    """A set that was made by hand tells which facts it lacks."""
    manifest: Manifest = msgspec.structs.replace(Store.open(trained).manifest("sst2", 1), **{field: None})
    with pytest.raises(ValueError, match=f"cannot use --from sst2:1: expected a set that train .* without {field}'"):
        read_repetition(Reference(name="sst2", version=1), manifest)


def test_changed_rows_are_refused(tmp_path: Path, store: Path, folder: Path) -> None:
    """Rows with another fingerprint train nothing: one changed word, or one row more."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    rows = other / "glue" / "sst2" / "train.jsonl"
    assert "same weights as sst2:1" in repeat(store, "sst2:1", "--data", other).out
    edits: list[Callable[[str], str]] = [
        lambda text: text.replace("good no 1", "good no 2", 1),
        lambda text: text + text.splitlines()[0] + "\n",
    ]
    for edit, count in zip(edits, (24, 25), strict=True):
        text = rows.read_text()
        rows.write_text(edit(text))
        outcome = call("--store", store, "train", "--from", "sst2:1", "--data", other)
        assert outcome.code == 1
        assert f"cannot read {other}: rows: expected those of sst2:1, fingerprint " in outcome.message
        assert f" ({count} to train on, 12 to score); the data has changed, or --data names another" in outcome.message
        rows.write_text(text)
    assert not manifest_path(store, version=3).exists()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("--epochs 1", "--epochs"),
        ("--seed 0", "--seed"),
        ("--together", "--together"),
        ("--placement houlsby --limit 3", "--placement --limit"),
        ("--early-stopping 3", "--early-stopping"),
        ("--task-file x.toml", "--task-file"),
        ("--recipe default", "--recipe"),
        ("sst2", "sst2"),
    ],
)
def test_choices_beside_from_are_refused(trained: Path, arguments: str, found: str) -> None:
    """A repetition repeats every choice, so that none may be given, not even the same."""
    outcome = call("--store", trained, "train", "--from", "sst2", *arguments.split())
    assert outcome.code == 2
    assert "cannot use --from sst2: expected no " in outcome.message
    assert f", found '{found}'" in outcome.message


def test_unknown_references(tmp_path: Path, trained: Path) -> None:
    """A version or a store that is not there is told like everywhere else."""
    assert 3 == call("--store", trained, "train", "--from", "sst2:9").code
    assert 3 == call("--store", tmp_path / "none", "train", "--from", "sst2").code


def test_repetition_can_be_resumed_and_logged(tmp_path: Path, store: Path) -> None:
    """``--resume`` and ``--track`` go with ``--from``, as they change no weight."""
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    told = repeat(store, "sst2:1", "--resume", "--track", "tensorboard", "--track-to", tmp_path / "log")
    assert "same weights as sst2:1" in told.out
    assert list((tmp_path / "log").rglob("events*"))
