"""What of a training is logged while it runs, and how a log that fails is given up without the training.

Losses, rates and scores are logged; texts never are. The tools are trackers.py's to know.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from registry.errors import TrackerError
from registry.training.trackers import TRACKERS, Point, Status, Tracker, check_installed

if TYPE_CHECKING:
    from registry.model.backbone import Backbone
    from registry.tasks.loading import TaskData
    from registry.training.recipes import Plan
    from registry.training.state import StepReport

_SECONDS = 1.0  # between two writes


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
