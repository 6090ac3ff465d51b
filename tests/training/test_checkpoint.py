"""A training that was stopped, in whatever way, goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from registry.adapters.adapter_set import AdapterSet
from registry.config import TrainingConfig
from registry.errors import CheckpointError, TrainingInterrupted
from registry.model.backbone import Backbone
from registry.training.checkpoint import Checkpoint
from registry.training.loop import train
from registry.training.state import StepReport, TrainingResult
from tests.support.toy_task import ADAPTER, HEAD, TRAINING, same_weights, stop_at, toy_rows, train_fresh

ROOT = Path(__file__).parents[2]
SETTINGS = "5" * 64
SELECTING = msgspec.structs.replace(TRAINING, evaluate_every=2, select_best="accuracy", learning_rate=0.3)
KILLED_TRAINING = """
import os, signal, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from registry.model.backbone import Backbone
from registry.training.checkpoint import Checkpoint
from tests.support.toy_task import train_fresh

def observe(report):
    if report.step == 8:
        os.kill(os.getpid(), signal.SIGKILL)

backbone = Backbone.load(sys.argv[1], device="cpu")
train_fresh(backbone, checkpoint=Checkpoint(Path(sys.argv[2]), "5" * 64, resume=True, every=1), observe=observe)
"""


def resume_until_done(
    backbone: Backbone, config: TrainingConfig, path: Path, stops: list[int]
) -> tuple[AdapterSet, TrainingResult]:
    """Train in one sitting more than there are stops, each of which ends after so many steps."""
    held_out = toy_rows(backbone, 20, seed=5)
    checkpoint = Checkpoint(path, SETTINGS, resume=True, every=1000)
    for stop in stops:
        fresh = backbone.new_adapter_set(ADAPTER, HEAD, seed=config.seed)
        with pytest.raises(TrainingInterrupted, match=f"after step .* of 15: a checkpoint is kept in {path}"):
            train(
                backbone.encoder,
                fresh,
                toy_rows(backbone),
                config,
                held_out=held_out,
                checkpoint=checkpoint,
                should_stop=stop_at(stop, []),
            )
    fresh = backbone.new_adapter_set(ADAPTER, HEAD, seed=config.seed)
    rows = toy_rows(backbone)
    return fresh, train(backbone.encoder, fresh, rows, config, held_out=held_out, checkpoint=checkpoint)


@pytest.mark.parametrize("stops", [[1], [5], [14], [3, 4, 2]])
@pytest.mark.parametrize("config", [TRAINING, SELECTING], ids=["last", "best"])
def test_resumed_training_equals_uninterrupted(
    tiny_backbone: Backbone, tmp_path: Path, config: TrainingConfig, stops: list[int]
) -> None:
    """Stopped once or often, within an epoch or between two, the weights and scores are the same to the last bit."""
    fresh = tiny_backbone.new_adapter_set(ADAPTER, HEAD)
    held_out = toy_rows(tiny_backbone, 20, seed=5)
    whole = train(tiny_backbone.encoder, fresh, toy_rows(tiny_backbone), config, held_out=held_out)
    resumed, result = resume_until_done(tiny_backbone, config, tmp_path / "state.safetensors", stops)
    assert same_weights(fresh, resumed)
    assert (whole.steps, whole.final_loss, whole.best_step, whole.history) == (
        result.steps, result.final_loss, result.best_step, result.history,
    )  # fmt: skip


def test_resumed_training_out_of_patience_does_not_go_on(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """Killed right after the last checkpoint of an early stop, a resumed training takes no step more."""
    rows, fresh = toy_rows(tiny_backbone), tiny_backbone.new_adapter_set(ADAPTER, HEAD)
    config = msgspec.structs.replace(TRAINING, evaluate_every=1, patience=3, learning_rate=1e-9)
    checkpoint = Checkpoint(tmp_path / "state", SETTINGS, resume=True, every=1)
    results = [
        train(tiny_backbone.encoder, fresh, rows, config, held_out=rows, checkpoint=checkpoint) for _ in range(2)
    ]
    assert [(4, 4), (4, 4)] == [(result.steps, len(result.history)) for result in results]
    assert [32, 0] == [result.rows for result in results]


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_weights(
    tiny_backbone: Backbone, tiny_folder: Path, tmp_path: Path
) -> None:
    """After kill -9 in the middle of a step's end, the state on disk is whole and leads to the same weights."""
    path = tmp_path / "state"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", KILLED_TRAINING, str(tiny_folder), str(path)]
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False)
    assert -signal.SIGKILL == killed.returncode, killed.stderr.decode()
    reports: list[StepReport] = []
    resumed, _ = train_fresh(tiny_backbone, checkpoint=Checkpoint(path, SETTINGS, resume=True), observe=reports.append)
    assert 8 == reports[0].step
    assert same_weights(train_fresh(tiny_backbone)[0], resumed)


def test_full_fine_tuning_resumes_to_the_same_weights(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """The weights of an unfrozen encoder are part of the state as well."""
    encoders = [tiny_backbone.unfrozen_copy() for _ in range(3)]
    sets = [tiny_backbone.new_adapter_set(None, HEAD) for _ in range(3)]
    rows, checkpoint = toy_rows(tiny_backbone), Checkpoint(tmp_path / "state", SETTINGS, resume=True)
    train(encoders[0], sets[0], rows, TRAINING)
    with pytest.raises(TrainingInterrupted):
        train(encoders[1], sets[1], rows, TRAINING, checkpoint=checkpoint, should_stop=stop_at(7, []))
    train(encoders[2], sets[2], rows, TRAINING, checkpoint=checkpoint)
    assert same_weights(sets[0], sets[2])
    whole, resumed = encoders[0].state_dict(), encoders[2].state_dict()
    assert all(bool((whole[name] == resumed[name]).all()) for name in whole)


def test_without_resume_a_training_starts_anew(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """A state that is there is left alone until it is overwritten."""
    path = tmp_path / "state"
    train_fresh(tiny_backbone, checkpoint=Checkpoint(path, SETTINGS, every=5))
    reports: list[StepReport] = []
    train_fresh(tiny_backbone, checkpoint=Checkpoint(path, SETTINGS, every=5), observe=reports.append)
    assert 1 == reports[0].step


def test_writing_states_does_not_change_the_training(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """A training that writes its state after each step gives the weights of one that never does."""
    watched, _ = train_fresh(tiny_backbone, checkpoint=Checkpoint(tmp_path / "state", SETTINGS, every=1))
    assert same_weights(watched, train_fresh(tiny_backbone)[0])
    assert ["state"] == [path.name for path in tmp_path.iterdir()]


def test_interruption_without_a_checkpoint_says_so(tiny_backbone: Backbone) -> None:
    """Whoever gave no place for the state is told that there is none."""
    with pytest.raises(TrainingInterrupted, match="after step 3 of 15: no checkpoint folder was given") as caught:
        train_fresh(tiny_backbone, should_stop=stop_at(3, []))
    assert (3, 15, 130) == (caught.value.step, caught.value.steps, caught.value.exit_code)


def test_asking_to_stop_at_the_end_is_no_interruption(tiny_backbone: Backbone) -> None:
    """After the last step there is nothing left to interrupt."""
    assert 15 == train_fresh(tiny_backbone, should_stop=stop_at(15, []))[1].steps


def test_checkpoint_of_other_settings_is_refused(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """A state belongs to one run; another one does not go on from it."""
    train_fresh(tiny_backbone, checkpoint=Checkpoint(tmp_path / "state", SETTINGS, every=5))
    other = Checkpoint(tmp_path / "state", "6" * 64, resume=True)
    with pytest.raises(CheckpointError, match="of the same task, data and settings, found other settings; train wi"):
        train_fresh(tiny_backbone, checkpoint=other)


@pytest.mark.parametrize("keep", [0, 4, 100, 3000, -1])
def test_damaged_checkpoint_is_refused(tiny_backbone: Backbone, tmp_path: Path, keep: int) -> None:
    """A file that was cut off anywhere is not taken for a state."""
    path = tmp_path / "state"
    checkpoint = Checkpoint(path, SETTINGS, resume=True, every=5)
    train_fresh(tiny_backbone, checkpoint=checkpoint)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=f"cannot resume from {path}: expected a whole checkpoint, found "):
        train_fresh(tiny_backbone, checkpoint=checkpoint)


@pytest.mark.parametrize("resume", [True, False])
def test_checkpoint_of_an_older_version_is_refused(tiny_backbone: Backbone, tmp_path: Path, resume: bool) -> None:
    """A state without the set's own random draws cannot be continued bit for bit, so it is not; it may be replaced."""
    path = tmp_path / "state"
    train_fresh(tiny_backbone, checkpoint=Checkpoint(path, SETTINGS, every=5))
    with safe_open(path, framework="pt") as stored:
        older = {name: stored.get_tensor(name) for name in stored.keys() if name != "rng.set"}  # noqa: SIM118
        metadata = stored.metadata()
    save_file(older, path, metadata)
    checkpoint = Checkpoint(path, SETTINGS, resume=resume, every=5)
    if resume:
        message = f"cannot resume from {path}: expected a checkpoint of this version, found one of an older version"
        with pytest.raises(CheckpointError, match=message):
            train_fresh(tiny_backbone, checkpoint=checkpoint)
    else:
        assert 15 == train_fresh(tiny_backbone, checkpoint=checkpoint)[1].steps


def test_dropout_goes_on_where_it_was(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """The losses after a stop are those of a training without one, so the masks are the next ones, not the first."""
    whole: list[StepReport] = []
    train_fresh(tiny_backbone, observe=whole.append)
    checkpoint = Checkpoint(tmp_path / "state", SETTINGS, resume=True)
    with pytest.raises(TrainingInterrupted):
        train_fresh(tiny_backbone, checkpoint=checkpoint, should_stop=stop_at(7, []))
    resumed: list[StepReport] = []
    train_fresh(tiny_backbone, checkpoint=checkpoint, observe=resumed.append)
    assert [report.loss for report in whole[7:]] == [report.loss for report in resumed]


def test_checkpoint_that_cannot_be_written_is_told(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """Where the folder is a file, the message names it and the training stops."""
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "state"
    with pytest.raises(CheckpointError, match=f"cannot write {path}: expected a folder that can be written, found "):
        train_fresh(tiny_backbone, checkpoint=Checkpoint(path, SETTINGS, every=1))


def test_discarded_checkpoint_is_gone(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """A finished run leaves nothing behind, and discarding twice is no error."""
    checkpoint = Checkpoint(tmp_path / "state", SETTINGS, every=5)
    train_fresh(tiny_backbone, checkpoint=checkpoint)
    assert checkpoint.path.exists()
    checkpoint.discard()
    checkpoint.discard()
    assert not checkpoint.path.exists()
