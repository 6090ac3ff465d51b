"""Tools that draw a training while it runs: TensorBoard, MLflow, trackio; each an optional extra.

Each writes into a local folder and asks no network. Their packages are imported when a training starts, so nothing else
waits for them. What is logged and when is tracking.py's to know.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

from registry.errors import ConfigError, TrackerError
from registry.validation import choose

Status = Literal["finished", "failed", "stopped"]
Point = tuple[int, Mapping[str, float]]  # a step and what was measured there

PROJECT = "adapter-registry"

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


class TrackioTracker:
    """Runs of one project in an SQLite file: ``TRACKIO_DIR=FOLDER trackio show`` draws them.

    It writes through trackio's storage and not through ``trackio.init``, which asks the Hugging Face Hub for the user's
    name, logs the machine from threads of its own, and goes on without a word we could pass on where a write fails.

    Args:
        folder: of all trainings; one for the whole process, as trackio reads it once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._run, self._id = "", ""
        self._config: dict[str, Any] | None = None

    def start(self, run: str, settings: Mapping[str, str]) -> None:
        """Remember what is written with the first step."""
        os.environ["TRACKIO_DIR"] = str(self._folder)
        with _telling("trackio", _trackio_errors):
            from trackio.utils import TRACKIO_DIR

            if Path(TRACKIO_DIR).absolute() != self._folder:
                raise RuntimeError(f"this process writes to {TRACKIO_DIR} already")
            self._folder.mkdir(parents=True, exist_ok=True)
            created = datetime.now(timezone.utc).isoformat()
            self._run, self._id = run, uuid.uuid4().hex
            self._config = {**settings, "_Username": None, "_Created": created, "_Group": None}

    def log(self, points: Sequence[Point]) -> None:
        """Write the steps in one transaction."""
        with _telling("trackio", _trackio_errors):
            from trackio.sqlite_storage import SQLiteStorage

            SQLiteStorage.bulk_log(
                project=PROJECT,
                run=self._run,
                run_id=self._id,
                metrics_list=[dict(values) for _, values in points],
                steps=[step for step, _ in points],
                config=self._config,
            )
            self._config = None

    def finish(self, status: Status) -> None:
        """Do nothing: a run of trackio has no end."""


def _trackio_errors() -> tuple[type[Exception], ...]:
    from sqlite3 import Error

    return (Error,)


TRACKERS: Mapping[str, Callable[[Path], Tracker]] = MappingProxyType(
    {"tensorboard": TensorBoardTracker, "mlflow": MlflowTracker, "trackio": TrackioTracker}
)
_PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "trackio": ("trackio",)}


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
