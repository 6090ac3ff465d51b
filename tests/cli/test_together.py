"""``--together`` and ``--sweep``: several sets in one pass of the backbone, each as it would be alone."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from registry.bench.records import RunRecord, read_predictions, read_record, read_records
from tests.support.command_line import (
    QUICK,
    call,
    json_lines,
    set_digest,
    single_rows,
    start,
    succeed,
    visible,
    write_data_folder,
)
from tests.support.stored_sets import tree

pytestmark = pytest.mark.slow

TASKS = ("sst2", "mrpc", "imdb")
WAIT_SECONDS = 60
DIVERGES = """
description = "sst2 diverges"
[adapter]
placement = "pfeiffer"
reduction_factor = 4
[head]
[training]
[task.sst2]
weight_decay = 1e30
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the three built-in tasks in little."""
    return write_data_folder(tmp_path_factory.mktemp("data"))


def train(store: Path, backbone: Path, folder: Path, *arguments: object) -> tuple[object, ...]:
    """Return the arguments of a short training."""
    return ("--store", store, "train", *arguments, "--data", folder, "--backbone", backbone, *QUICK)


def bench(out: Path, backbone: Path, folder: Path, *arguments: object) -> tuple[object, ...]:
    """Return the arguments of a short benchmark on mrpc."""
    places = ("--data", folder, "--backbone", backbone, "--out", out)
    return ("--store", out / "store", "bench", "mrpc", *arguments, *places, *QUICK)


def statuses(out: Path) -> dict[str, str]:
    """Return the status of every record by method and seed."""
    return {f"{record.method} {record.seed}": record.status for record in read_records(out)}


def test_tasks_trained_together_are_what_they_are_alone(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """One JSON object per task comes in the order asked, with the scores and nearly the weights of each alone."""
    told = succeed(*train(tmp_path / "joint", tiny_folder, folder, *TASKS, "--together", "--json"))
    alone = succeed(*train(tmp_path / "alone", tiny_folder, folder, *TASKS, "--json"))
    assert ["sst2:1", "mrpc:1", "imdb:1"] == [row["adapter"] for row in told.rows]
    for expected, found in zip(alone.rows, told.rows, strict=True):
        assert {**expected, "train_seconds": 0} == {**found, "train_seconds": 0}
        assert found["train_seconds"] >= 0
    for task in TASKS:
        assert f"{task}: step 3/3  loss " in told.err
        weights = [
            load_file(tmp_path / place / task / "versions" / "000001" / "adapter.safetensors")
            for place in ("alone", "joint")
        ]
        assert sorted(weights[0]) == sorted(weights[1])
        for name, tensor in weights[0].items():
            assert tensor.numpy() == pytest.approx(weights[1][name].numpy(), abs=1e-5), name
    assert not list((tmp_path / "joint").rglob(".checkpoints/*"))


def test_one_task_together_is_a_training_as_ever(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """With one task ``--together`` changes no bit."""
    succeed(*train(tmp_path / "one", tiny_folder, folder, "mrpc", "--together"))
    succeed(*train(tmp_path / "two", tiny_folder, folder, "mrpc"))
    assert set_digest(tmp_path / "one", "mrpc") == set_digest(tmp_path / "two", "mrpc")


def test_diverged_task_does_not_keep_the_others_from_being_saved(
    tmp_path: Path, tiny_folder: Path, folder: Path
) -> None:
    """The others are saved and told, the one that diverged is named, and the command ends with its error."""
    recipe = tmp_path / "diverges.toml"
    recipe.write_text(DIVERGES)
    outcome = call(*train(tmp_path / "store", tiny_folder, folder, *TASKS, "--together", "--recipe", recipe))
    assert outcome.code == 1
    assert ["mrpc:1", "imdb:1"] == [line.split()[0] for line in outcome.out.splitlines()]
    assert outcome.message.startswith("adapter-registry: training stopped at step ")
    assert "sst2: not saved: training stopped at step " in outcome.err
    rows = succeed("--store", tmp_path / "store", "list", "--json").rows
    assert ["imdb", "mrpc"] == sorted(row["name"] for row in rows)


def test_tasks_twice_in_one_pass_are_refused(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """Two trainings of one name would share a checkpoint."""
    outcome = call(*train(tmp_path / "store", tiny_folder, folder, "sst2", "mrpc", "sst2", "--together"))
    assert outcome.code == 2
    assert "cannot use tasks: expected each once with --together, found 'sst2 mrpc sst2'" in outcome.message
    assert not (tmp_path / "store").exists()


def test_stopped_pass_goes_on_with_all_of_its_sets(tmp_path: Path, tiny_folder: Path) -> None:
    """Ctrl-C keeps a checkpoint of every set, finished ones too, and ``--resume`` ends with the very same weights."""
    folder = write_data_folder(tmp_path / "data", count=100)
    (folder / "glue" / "sst2" / "train.jsonl").write_text(json_lines(single_rows(8)))  # finished after 12 of 150 steps
    options = ("--together", "--epochs", "6", "--batch-size", "4", "--reduction-factor", "4", "--max-length", "32")
    rest = ("train", "sst2", "mrpc", *options, "--data", folder, "--backbone", tiny_folder)
    succeed("--store", tmp_path / "through", *rest)
    store = tmp_path / "store"
    process = start("--store", store, *rest)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not (store / ".checkpoints" / "mrpc.safetensors").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_SECONDS)
    finally:
        process.kill()
        process.communicate()
    assert (130, "") == (process.returncode, out)
    assert f"checkpoints of sst2, mrpc are kept in {store / '.checkpoints'}" in err
    assert "adapter-registry: training interrupted after step " in err.splitlines()[-1]
    assert [".checkpoints/mrpc.safetensors", ".checkpoints/sst2.safetensors", "store.json"] == visible(store)
    resumed = succeed("--store", store, *rest, "--resume")
    assert "sst2: step" not in resumed.err
    for task in ("sst2", "mrpc"):
        assert set_digest(tmp_path / "through", task) == set_digest(store, task)
    assert not list((store / ".checkpoints").iterdir())


def test_cells_trained_together_are_what_they_are_alone(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """Joint and separate benchmarks agree in settings, scores and answers, and go on with each other's records."""
    names = ("majority", "head_only", "pfeiffer", "full_fine_tuning")
    methods = [part for name in names for part in ("--method", name)]
    joint, alone = (tmp_path / place for place in ("joint", "alone"))
    succeed(*bench(joint, tiny_folder, folder, *methods, "--seeds", "0-1", "--together"))
    succeed(*bench(alone, tiny_folder, folder, *methods, "--seeds", "0-1"))
    records = read_records(joint)
    assert 8 == len(records)
    for one, other in zip(records, read_records(alone), strict=True):
        assert (4 if one.method in ("head_only", "pfeiffer") else 1) == one.together
        assert (one.settings, one.scores, one.steps) == (other.settings, other.scores, other.steps)
        answers = [read_predictions(*place).probabilities for place in ((joint, one), (alone, other))]
        assert answers[0] == pytest.approx(answers[1], abs=1e-4)
    lost = joint / "runs" / "mrpc" / "pfeiffer" / "seed-1.json"
    before = read_record(lost)
    lost.unlink()
    again = succeed(*bench(joint, tiny_folder, folder, *methods, "--seeds", "0-1", "--together"))
    assert 7 == again.err.count("(already there)")
    after = read_record(lost)
    assert (before.scores, before.settings, 1) == (after.scores, after.settings, after.together)
    kept = tree(joint / "runs")
    succeed(*bench(joint, tiny_folder, folder, *methods, "--seeds", "0-1"))
    assert kept == tree(joint / "runs")


def test_more_sets_than_fit_take_several_passes(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """Nine sets are trained as eight and one."""
    succeed(*bench(tmp_path, tiny_folder, folder, "--method", "head_only", "--seeds", "0-8", "--together"))
    assert [8] * 8 + [1] == [record.together for record in read_records(tmp_path)]


def test_sweep_makes_a_row_of_every_combination(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """Each combination is a method in records, tables and ``--keep``; one that diverges fails beside the others."""
    sweeps = ("--sweep", "reduction_factor=4,8", "--sweep", "weight_decay=0.01,1e30")
    options = ("--method", "houlsby", *sweeps, "--together", "--keep", "houlsby-rf4-wd0.01")
    told = succeed(*bench(tmp_path, tiny_folder, folder, *options, "--seeds", "0-1"))
    for factor in (4, 8):
        for seed in (0, 1):
            assert statuses(tmp_path)[f"houlsby-rf{factor}-wd0.01 {seed}"] == "finished"
            assert statuses(tmp_path)[f"houlsby-rf{factor}-wd1e30 {seed}"] == "failed"
            assert f"mrpc houlsby-rf{factor}-wd1e30 seed {seed}: failed: training stopped at step " in told.err
    assert 8 == len(statuses(tmp_path))
    record = read_record(tmp_path / "runs" / "mrpc" / "houlsby-rf8-wd0.01" / "seed-1.json")
    assert (8, 8, "default") == (record.together, _factor(record), record.recipe)
    kept = succeed("--store", tmp_path / "store", "show", "mrpc", "--json").rows[0]
    assert 4 == kept["adapter"]["reduction_factor"]
    succeed("report", tmp_path)
    rows = succeed("report", tmp_path, "--json").rows
    named = [row["method"] for row in rows if row["method"].startswith("houlsby")]
    assert [f"houlsby-rf{factor}-wd{decay}" for factor in (4, 8) for decay in ("0.01", "1e30")] == named
    assert "were trained in passes of up to 8 sets" in (tmp_path / "report.md").read_text()


def _factor(record: RunRecord) -> int | None:
    return record.adapter.reduction_factor if record.adapter else None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--sweep learning_rate=1,2", "cannot use --sweep: expected methods that train (name them with --method)"),
        ("--method houlsby --sweep lr=1", "cannot use --sweep: expected one of the fields learning_rate, reduction_"),
        ("--method houlsby --sweep learning_rate=1e30", "cannot use learning_rate: expected a number above 0"),
        ("--method houlsby --sweep reduction_factor=8,5", "expected a divisor of the hidden size 32, found 5"),
        ("--method head_only --sweep reduction_factor=8", "expected methods with an adapter (name them with --meth"),
        ("--method houlsby --sweep epochs=1", "cannot use --sweep epochs: expected no --epochs beside it, found 1"),
        (
            "--method houlsby --sweep learning_rate=1,2 --keep houlsby",
            "--keep: expected one of houlsby-lr1, houlsby-lr2, found",
        ),
    ],
)
def test_bad_sweeps(tmp_path: Path, tiny_folder: Path, folder: Path, arguments: str, message: str) -> None:
    """A sweep that cannot be is told in one line before anything is trained."""
    outcome = call(*bench(tmp_path / "out", tiny_folder, folder, *arguments.split(), "--together"))
    assert (2, True) == (outcome.code, message in outcome.message), outcome.message
    assert not (tmp_path / "out").exists()
