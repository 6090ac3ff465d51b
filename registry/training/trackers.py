"""Live logs of trainings: what is logged, the tools that draw it, and how a log that fails is given up alone.

Losses, rates and scores are logged; texts never are. Each tool (TensorBoard, MLflow) is an optional extra, writes into
a local folder and asks no network; its packages are imported when a training starts, so nothing else waits for them.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from registry.errors import ConfigError, TrackerError
from registry.validation import choose

if TYPE_CHECKING:
    from registry.model.backbone import Backbone
    from registry.tasks.task_data import TaskData
    from registry.training.plan import Plan
    from registry.training.state import StepReport

Status = Literal["finished", "failed", "stopped"]
Point = tuple[int, Mapping[str, float]]  # a step and what was measured there

PROJECT = "adapter-registry"

_SECONDS = 1.0  # between two writes

# What the code of others raises where a disk is full, a folder is gone, or its version is not the one we know.
_FAILURES = (ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class Tracker(Protocol):
    """The log of one training in one tool; a method that fails raises TrackerError, and the training goes on."""

    def start(self, run: str, settings: Mapping[str, str]) -> None:
        """Begin the log of a training; ``run`` is what it is called, ``settings`` how it is done."""

    def log(self, points: Sequence[Point]) -> None:
        """Write what was measured at some steps, in their order."""

    def finish(self, status: Status) -> None:
        """End the log."""


class TensorBoardTracker:
    """Event files in a folder of each training: ``tensorboard --logdir FOLDER`` shows them.

    Not by torch's SummaryWriter: its thread ends in a traceback of its own where the disk is full.

    Args:
        folder: of all trainings.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder

    def start(self, run: str, settings: Mapping[str, str]) -> None:
        """Make a folder for the training, with a number behind its name where the name is taken."""
        with _telling("tensorboard"):
            self._file = _new_folder(self._folder, run) / "events.out.tfevents.0.adapter-registry"
            lines = ["| setting | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in settings.items())]
            self._append([{"file_version": "brain.Event:2"}, {"step": 0, "summary": _text("settings", lines)}])

    def log(self, points: Sequence[Point]) -> None:
        """Append one event for each step."""
        with _telling("tensorboard"):
            self._append([{"step": step, "summary": _scalars(values)} for step, values in points])

    def finish(self, status: Status) -> None:
        """Append how the training ended."""
        with _telling("tensorboard"):
            self._append([{"step": 0, "summary": _text("status", [status])}])

    def _append(self, events: Sequence[Mapping[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        content = io.BytesIO()
        writer = RecordWriter(content)
        for event in events:
            writer.write(Event(wall_time=time.time(), **event).SerializeToString())
        with open(self._file, "ab") as file:  # opened anew each time: after a failure nothing is left to be closed
            file.write(content.getvalue())


def _new_folder(parent: Path, name: str) -> Path:
    """Return a folder that was not there before."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}.{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(parent)


def _scalars(values: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


def _text(name: str, lines: Sequence[str]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.text.metadata import create_summary_metadata

    tensor = TensorProto(dtype=DT_STRING, string_val=["\n".join(lines).encode()])
    return Summary(value=[Summary.Value(tag=name, metadata=create_summary_metadata(name, ""), tensor=tensor)])


class MlflowTracker:
    """Runs in an SQLite file: ``mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db`` shows them.

    Args:
        folder: of all trainings.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._client: Any = None
        self._run = ""

    def start(self, run: str, settings: Mapping[str, str]) -> None:
        """Make a run of our experiment, and the file before where there is none."""
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # it would tell its makers over the network
        logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)  # what fails is told by us
        with _telling("mlflow", _mlflow_errors):
            from mlflow import MlflowClient
            from mlflow.entities import Param

            self._folder.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(tracking_uri=f"sqlite:///{self._folder / 'mlflow.db'}")
            found = self._client.get_experiment_by_name(PROJECT)
            artifacts = (self._folder / "artifacts").as_uri()
            experiment = found.experiment_id if found else self._client.create_experiment(PROJECT, artifacts)
            self._run = self._client.create_run(experiment, run_name=run).info.run_id
            self._client.log_batch(self._run, params=[Param(name, value) for name, value in settings.items()])

    def log(self, points: Sequence[Point]) -> None:
        """Write the steps in one transaction."""
        with _telling("mlflow", _mlflow_errors):
            from mlflow.entities import Metric

            now = int(1000 * time.time())
            metrics = [Metric(name, value, now, step) for step, values in points for name, value in values.items()]
            for first in range(0, len(metrics), 1000):  # no more are taken at once
                self._client.log_batch(self._run, metrics=metrics[first : first + 1000])

    def finish(self, status: Status) -> None:
        """Say how the run ended."""
        with _telling("mlflow", _mlflow_errors):
            names = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
            self._client.set_terminated(self._run, names[status])


def _mlflow_errors() -> tuple[type[Exception], ...]:
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, CommandError


TRACKERS: Mapping[str, Callable[[Path], Tracker]] = MappingProxyType(
    {"tensorboard": TensorBoardTracker, "mlflow": MlflowTracker}
)
_PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}


def check_installed(kind: str) -> None:
    """Do nothing where a tracker's packages are there; they are not imported yet.

    Raises:
        ConfigError: no such tracker, or a package is missing.
    """
    choose(kind, tuple(TRACKERS), "--track")
    missing = [package for package in _PACKAGES[kind] if find_spec(package) is None]
    if missing:
        hint = f"pip install 'adapter-registry[{kind}]'"
        raise ConfigError(f"--track {kind}", f"the package {missing[0]}", "no such package", hint)


@contextmanager
def _telling(kind: str, more: Callable[[], tuple[type[Exception], ...]] | None = None) -> Iterator[None]:
    """Tell what the code of others raises as an error of ours; ``more`` are the errors of its own."""
    failures: tuple[type[Exception], ...] = _FAILURES
    try:
        failures += more() if more is not None else ()
    except ImportError as err:
        raise TrackerError(kind, str(err)) from err
    try:
        yield
    except failures as err:
        raise TrackerError(kind, str(err) or type(err).__name__) from err


class Tracking:
    """The logs of a command's trainings; each training has a run of its own in every tool.

    Leaving the ``with`` block ends what is still open as stopped. A tool that fails is told once and not used again.

    Args:
        kinds: names of ``trackers.TRACKERS``; none means that nothing is logged.
        folder: each tool has a folder of its own in it.
        tell: shows one line to the user.

    Raises:
        ConfigError: no such tool, or its package is missing.
    """

    def __init__(self, kinds: Sequence[str], folder: Path, tell: Callable[[str], None]) -> None:
        for kind in kinds:
            check_installed(kind)
        self._makers = {kind: TRACKERS[kind] for kind in kinds}
        self._folder, self._tell = folder, tell
        self._failed: set[str] = set()
        self._open: list[TrackedRun] = []

    def run(self, name: str, settings: Mapping[str, str]) -> TrackedRun:
        """Return the log of one training; it begins with the training's first step."""
        trackers = {kind: make(self._folder / kind) for kind, make in self._makers.items()}
        self._open.append(TrackedRun(self, name, settings, trackers))
        return self._open[-1]

    def attempt(self, kind: str, action: Callable[..., None], *arguments: object) -> None:
        """Do something with a tool that has not failed yet; the first failure is told and the last."""
        if kind in self._failed:
            return
        try:
            action(*arguments)
        except TrackerError as err:
            self._failed.add(kind)
            self._tell(f"{err}; the training goes on without it")

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run in self._open:
            run.finish("stopped")


class TrackedRun:
    """The log of one training; made by ``Tracking.run``."""

    def __init__(
        self, tracking: Tracking, name: str, settings: Mapping[str, str], trackers: Mapping[str, Tracker]
    ) -> None:
        self._tracking, self._name, self._settings, self._trackers = tracking, name, settings, trackers
        self._points: list[Point] = []
        self._last_step, self._written = 0, 0.0
        self._is_open = False

    def observe(self, report: StepReport) -> None:
        """Log one step: loss, learning rate, gradient norm, rows per second and held-out scores."""
        values = {
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "rows_per_second": report.rows_per_second,
            **{f"held_out/{metric}": value for metric, value in report.held_out_scores.items()},
        }
        self._last_step = report.step
        self._add(report.step, values)
        if not self._is_open:
            self._is_open = True
            for kind, tracker in self._trackers.items():
                self._tracking.attempt(kind, tracker.start, self._name, self._settings)
        if time.monotonic() - self._written >= _SECONDS:
            self._write()

    def finish(self, status: Status, scores: Mapping[str, float] | None = None) -> None:
        """End the log, with the scores on the reported split where there are any; a second time does nothing."""
        if not self._is_open:
            return
        self._add(self._last_step, {f"reported/{metric}": value for metric, value in (scores or {}).items()})
        self._write()
        self._is_open = False
        for kind, tracker in self._trackers.items():
            self._tracking.attempt(kind, tracker.finish, status)

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if finite and self._trackers:
            self._points.append((step, finite))

    def _write(self) -> None:
        points, self._points = self._points, []
        if points:
            for kind, tracker in self._trackers.items():
                self._tracking.attempt(kind, tracker.log, points)
        self._written = time.monotonic()


def observers(*each: Callable[[StepReport], None]) -> Callable[[StepReport], None]:
    """Return one observer that calls all of these."""

    def observe(report: StepReport) -> None:
        for call in each:
            call(report)

    return observe


def settings_of(plan: Plan, data: TaskData, backbone: Backbone) -> dict[str, str]:
    """Return how a training is done, as texts by name; label names are counted and not told."""
    told: dict[str, Any] = {
        "task": data.spec.name,
        "method": plan.method,
        "recipe": plan.recipe,
        "data": data.source,
        "data.fingerprint": data.fingerprint(),
        "train_rows": len(data.train),
        "reported_rows": len(data.reported),
        "split": data.spec.reported_split,
        "backbone": backbone.info.source,
        "backbone.fingerprint": backbone.info.fingerprint,
        "device": str(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
    }
    for part in ("adapter", "head", "training"):
        record = getattr(plan, part)
        told |= {f"{part}.{name}": value for name, value in msgspec.structs.asdict(record).items()} if record else {}
    names = told.pop("head.label_names", ())
    return {name: str(value) for name, value in {**told, "labels": len(names)}.items()}
