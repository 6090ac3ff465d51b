"""Live logs of trainings: what they hold, that they hold no texts, and that no training is lost with its log."""

from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.training.state import StepReport
from registry.training.trackers import TRACKERS, TensorBoardTracker, Tracking
from tests.support.command_line import FILLERS, QUICK, call, set_digest, start, succeed, write_data_folder

NOT_INSTALLED = {kind: importlib.util.find_spec(kind) is None for kind in TRACKERS}
needs_tensorboard = pytest.mark.skipif(NOT_INSTALLED["tensorboard"], reason="the extra tensorboard is not installed")
needs_mlflow = pytest.mark.skipif(NOT_INSTALLED["mlflow"], reason="the extra mlflow is not installed")

LARGEST_FILE = 32_768  # bytes: more than a tiny set, less than the log of its training
WAIT_SECONDS = 120
STEP_VALUES = {"loss", "learning_rate", "gradient_norm", "rows_per_second"}
DIVERGES = 'description = "d"\n[adapter]\nreduction_factor = 4\n[head]\n[training]\nweight_decay = 1e30\n'

READ_MLFLOW = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(tracking_uri="sqlite:///" + sys.argv[1])
experiment = client.get_experiment_by_name("adapter-registry")
(run,) = client.search_runs([experiment.experiment_id])
steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
print(json.dumps([run.info.run_name, run.info.status, run.data.params["task"], run.data.metrics, steps]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the three built-in tasks in little."""
    return write_data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(tmp_path: Path, tiny_folder: Path, folder: Path) -> Callable[..., tuple[object, ...]]:
    """Return the arguments of a short training that logs into ``tmp_path / "log"``."""

    def arguments(*more: object, store: str = "store") -> tuple[object, ...]:
        places = ("--data", folder, "--backbone", tiny_folder, "--track-to", tmp_path / "log")
        return ("--store", tmp_path / store, "train", *places, *QUICK, *more)

    return arguments


def read_events(folder: Path) -> list[tuple[int, str, Any]]:
    """Return step, tag and value of everything in the one event file of a folder, checksums checked."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    (file,) = folder.iterdir()
    events = [Event.FromString(data) for data in RawEventFileLoader(str(file)).Load()]
    return [
        (event.step, value.tag, value.tensor.string_val[0].decode() if value.HasField("tensor") else value.simple_value)
        for event in events
        for value in event.summary.value
    ]


def a_report(step: int = 1, **changes: Any) -> StepReport:
    fields = {"step": step, "steps": 9, "loss": 0.5, "rows": 8, "learning_rate": 0.25, "gradient_norm": 2.0}
    return StepReport(**{**fields, "seconds": float(step), **changes})


@needs_tensorboard
def test_training_is_logged_step_by_step(tmp_path: Path, train: Callable[..., Any]) -> None:
    """Every step has its loss, rate, gradient norm and speed, evaluations their scores, the end those of the report."""
    told = succeed(*train("sst2", "--track", "tensorboard", "--early-stopping", "3", "--json"))
    events = read_events(tmp_path / "log" / "tensorboard" / "sst2")
    by_step = {step: {tag for at, tag, _ in events if at == step} for step, _, _ in events}
    assert {"settings", "status"} == by_step[0]
    assert STEP_VALUES - {"rows_per_second"} == by_step[1]  # one step has no speed yet
    assert by_step[2] == STEP_VALUES
    assert STEP_VALUES | {"held_out/accuracy"} <= by_step[3]
    reported = {tag.split("/")[1]: value for _, tag, value in events if tag.startswith("reported/")}
    assert told.rows[0]["scores"] == pytest.approx(reported)
    (settings,) = (value for _, tag, value in events if tag == "settings")
    assert "| training.learning_rate | 0.001 |" in settings
    assert "| task | sst2 |" in settings
    assert ["finished"] == [value for _, tag, value in events if tag == "status"]


@needs_tensorboard
def test_log_changes_no_weight_and_holds_no_text(tmp_path: Path, train: Callable[..., Any]) -> None:
    """A training learns the same with a log, and neither rows nor names of labels are in it."""
    succeed(*train("sst2", "--track", "tensorboard"))
    succeed(*train("sst2", store="other"))
    assert set_digest(tmp_path / "other", "sst2") == set_digest(tmp_path / "store", "sst2")
    (file,) = (tmp_path / "log").rglob("events*")
    content = file.read_bytes()
    assert not [text for text in (*FILLERS, "positive") if text.encode() in content]


@needs_tensorboard
def test_every_training_has_a_run_of_its_own(tmp_path: Path, train: Callable[..., Any]) -> None:
    """Sets trained together are logged side by side, and a second training does not write into the first one's log."""
    succeed(*train("sst2", "mrpc", "--together", "--track", "tensorboard"))
    first = {path.name: path.stat().st_size for path in (tmp_path / "log").rglob("sst2/events*")}
    succeed(*train("sst2", "--track", "tensorboard"))
    log = tmp_path / "log" / "tensorboard"
    assert ["mrpc", "sst2", "sst2.2"] == sorted(path.name for path in log.iterdir())
    assert first == {path.name: path.stat().st_size for path in (tmp_path / "log").rglob("sst2/events*")}
    for name in ("mrpc", "sst2", "sst2.2"):
        assert [1, 2, 3] == [step for step, tag, _ in read_events(log / name) if tag == "loss"]


@needs_tensorboard
def test_bench_logs_the_cells_it_runs(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """Each trained cell has a run with its scores; one that is finished already is not logged again."""
    places = ("--data", folder, "--backbone", tiny_folder, "--out", tmp_path / "out", "--track-to", tmp_path / "log")
    methods = ("--method", "majority", "--method", "pfeiffer", "--method", "head_only", "--together")
    for _ in range(2):
        succeed("--store", tmp_path / "s", "bench", "mrpc", *methods, *places, *QUICK, "--track", "tensorboard")
    log = tmp_path / "log" / "tensorboard"
    assert ["mrpc-head_only-seed-0", "mrpc-pfeiffer-seed-0"] == sorted(path.name for path in log.iterdir())
    record = json.loads((tmp_path / "out" / "runs" / "mrpc" / "pfeiffer" / "seed-0.json").read_text())
    events = read_events(log / "mrpc-pfeiffer-seed-0")
    scores = {tag.split("/")[1]: value for _, tag, value in events if tag.startswith("reported/")}
    assert record["scores"] == pytest.approx(scores)


@needs_tensorboard
def test_log_tells_how_a_training_ended(tmp_path: Path, train: Callable[..., Any]) -> None:
    """A training that diverges is logged as failed, one that nobody ended (Ctrl-C) as stopped."""
    (tmp_path / "diverges.toml").write_text(DIVERGES)
    assert call(*train("sst2", "--recipe", tmp_path / "diverges.toml", "--track", "tensorboard")).code == 1
    with Tracking(["tensorboard"], tmp_path / "log", pytest.fail) as tracking:
        tracking.run("left", {}).observe(a_report())
    ends = {
        name: [value for _, tag, value in read_events(tmp_path / "log" / "tensorboard" / name) if tag == "status"]
        for name in ("sst2", "left")
    }
    assert {"sst2": ["failed"], "left": ["stopped"]} == ends


@needs_tensorboard
def test_log_that_cannot_be_written_any_more_loses_no_training(
    tmp_path: Path, train: Callable[..., Any], folder: Path
) -> None:
    """A disk that is full in the middle is told once, and the set is saved with the weights it has without a log."""
    words, bare = (
        list(train("sst2", "--reduction-factor", "8", *more, store=store))
        for more, store in ((("--track", "tensorboard"), "full"), ((), "store"))
    )
    for arguments in (words, bare):
        arguments[arguments.index("--epochs") + 1] = "150"
    process = start(
        *words,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE)),
    )
    out, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, err
    assert out.startswith("sst2:1  accuracy ")
    assert err.count("cannot log to tensorboard: [Errno 27] File too large; the training goes on without it") == 1
    assert "Traceback" not in err
    succeed(*bare)
    assert set_digest(tmp_path / "store", "sst2") == set_digest(tmp_path / "full", "sst2")


@needs_tensorboard
def test_log_that_cannot_begin_loses_no_training(tmp_path: Path, train: Callable[..., Any]) -> None:
    """A folder that cannot be made is told once, for all sets of a pass."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "tensorboard").write_text("in the way")
    told = succeed(*train("sst2", "mrpc", "--together", "--track", "tensorboard"))
    assert told.err.count("cannot log to tensorboard: ") == 1
    assert ["mrpc:1", "sst2:1"] == sorted(line.split()[0] for line in told.out.splitlines())


@needs_tensorboard
def test_several_steps_are_written_at_once(tmp_path: Path) -> None:
    """What comes within a second is kept and written at the end, numbers that are not finite left out."""
    with Tracking(["tensorboard"], tmp_path, pytest.fail) as tracking:
        run = tracking.run("x", {})
        run.observe(a_report(1))
        (file,) = (tmp_path / "tensorboard" / "x").iterdir()
        before = file.stat().st_size
        run.observe(a_report(2, rows_per_second=8.0, held_out_scores={"pearson": float("nan")}))
        assert before == file.stat().st_size
        run.finish("finished", {"accuracy": 0.75})
        run.finish("failed")
    events = [event for event in read_events(tmp_path / "tensorboard" / "x") if event[0] > 0]
    common = [("loss", 0.5), ("learning_rate", 0.25), ("gradient_norm", 2.0)]
    expected = [(1, *each) for each in common]
    expected += [(2, *each) for each in (*common, ("rows_per_second", 8.0), ("reported/accuracy", 0.75))]
    assert expected == events


@pytest.mark.parametrize("kind", sorted(TRACKERS))
def test_missing_package_is_told_with_its_extra(
    tmp_path: Path, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Nothing is trained where a tool's package is missing; the line says what to install."""
    monkeypatch.setitem(sys.modules, kind, None)
    outcome = call(*train("sst2", "--track", kind))
    assert outcome.code == 2
    assert outcome.message.endswith(f"; pip install 'adapter-registry[{kind}]'")
    assert f"cannot use --track {kind}: expected the package {kind}" in outcome.message
    assert not (tmp_path / "store").exists()


def test_nothing_is_logged_unless_it_is_asked_for(tmp_path: Path, train: Callable[..., Any]) -> None:
    """Without ``--track`` no folder is made; an unknown tool is a usage error."""
    succeed(*train("sst2"))
    assert not (tmp_path / "log").exists()
    outcome = call(*train("sst2", "--track", "wandb"))
    assert (2, True) == (outcome.code, "'wandb' is not one of" in outcome.message)


@pytest.mark.slow
def test_no_tool_is_imported_before_it_is_needed() -> None:
    """The command line knows the tools by name alone, so that ``--help`` stays quick."""
    code = "import sys, registry.cli.main; print(sorted({'torch', 'tensorboard', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@needs_tensorboard
def test_names_that_are_taken_get_numbers(tmp_path: Path) -> None:
    """Three runs of one name are three folders."""
    for _ in range(3):
        TensorBoardTracker(tmp_path).start("mrpc", {})
    assert ["mrpc", "mrpc.2", "mrpc.3"] == sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.slow
@needs_mlflow
def test_mlflow(tmp_path: Path, train: Callable[..., Any]) -> None:
    """A run in a local SQLite file has the settings, each step, the scores, and its end."""
    out, err = start(*train("sst2", "--track", "mlflow")).communicate(timeout=WAIT_SECONDS)
    assert out.startswith("sst2:1"), err
    database = tmp_path / "log" / "mlflow" / "mlflow.db"
    done = subprocess.run([sys.executable, "-c", READ_MLFLOW, database], capture_output=True, text=True, check=True)
    name, status, task, metrics, steps = json.loads(done.stdout.splitlines()[-1])
    assert ("sst2", "FINISHED", "sst2", [1, 2, 3]) == (name, status, task, steps)
    assert STEP_VALUES | {"reported/accuracy"} <= set(metrics)
