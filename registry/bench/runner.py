"""Tasks x methods x seeds -> run records, one cell or one pass at a time; a finished cell is never run twice.

A cell's record appears whole or not at all, so a benchmark that is stopped anywhere goes on where it was. Cells of one
pass share the backbone's batches and nothing else, so alone and together have equal settings. How a method is fitted
is fit.py's to know, how a table looks is the room reports'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy
import torch

from registry.bench.curves import CurveRecorder, LearningCurve
from registry.bench.records import RunRecord, read_record, record_path, write_record
from registry.bench.sweep import Variant
from registry.errors import NonFiniteLossError, RunError
from registry.model.backbone import Backbone
from registry.provenance import code_version, command_line, hardware, library_versions
from registry.stats.predictions import Predictions
from registry.store.registry import Registry
from registry.tasks.task_data import TaskData
from registry.training.fit import FitJob, Fitted, fit_together
from registry.training.origin import data_info
from registry.training.plan import ParameterCounts, Plan, make_plan
from registry.training.recipes import Recipe
from registry.training.state import StepReport


@dataclass(frozen=True)
class Cell:
    """One place of a benchmark's grid."""

    task: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task} {self.method} seed {self.seed}"


def find_record(out: Path, cell: Cell, settings: str) -> RunRecord | None:
    """Return the finished record of a cell, None where it is still to be run.

    Raises:
        RunError: the record that is there was made with other settings.
    """
    path = record_path(out, cell.task, cell.method, cell.seed)
    if not path.exists():
        return None
    record = read_record(path)
    if record.settings != settings:
        raise RunError(
            path, "a record of the same settings and rows", "one of others", "use another --out folder, or delete it"
        )
    return record if record.status == "finished" else None


def check_code(out: Path, jobs: Sequence[CellJob]) -> None:
    """Refuse to run a cell beside finished seeds of it that other code made: nobody could average them.

    Raises:
        RunError: such a record is there, or one made with other settings.
    """
    code = code_version()
    due = {job.cell for job in jobs if find_record(out, job.cell, job.settings) is None}
    for task, method in sorted({(cell.task, cell.method) for cell in due}):
        for path in sorted(record_path(out, task, method, 0).parent.glob("seed-*.json")):
            record = read_record(path)
            if record.status == "finished" and record.code != code:
                hint = "use another --out folder, or delete the records of the other code"
                raise RunError(path, f"a record of the code that runs now, {code}", record.code, hint)


@dataclass(frozen=True, eq=False)
class CellJob:
    """One cell to run.

    Attributes:
        cell: its place in the grid.
        plan: what its method means there.
        data: the rows.
        settings: SHA-256 over everything that decides the scores.
        keeps: whether the trained set is wanted in a registry, under the task's name.
    """

    cell: Cell
    plan: Plan
    data: TaskData
    settings: str
    keeps: bool = False

    @property
    def trains_a_set(self) -> bool:
        """Return whether the frozen backbone stays frozen and something trains: such cells can share a pass."""
        return self.plan.training is not None and not self.plan.unfreezes


def make_job(
    cell: Cell,
    data: TaskData,
    backbone: Backbone,
    *,
    recipe: Recipe | None = None,
    overrides: dict[str, Any] | None = None,
    variant: Variant | None = None,
    keeps: bool = False,
) -> CellJob:
    """Return all that is to be done for one cell; nothing is run yet.

    Args:
        cell: its task is ``data``'s, its method one that is known or the name of ``variant``.
        data: the rows.
        backbone: of the run.
        recipe: where the choices come from; the default recipe when None.
        overrides: training fields that win over the recipe's.
        variant: the method with swept settings, which win over both, or with fewer rows to train on.
        keeps: whether the trained set is wanted.

    Raises:
        ConfigError: choices that do not fit the backbone, or more training rows than there are.
    """
    variant = variant or Variant(name=cell.method, method=cell.method)
    data = data if variant.train_rows is None else data.with_train_rows(variant.train_rows)
    training = {**(overrides or {}), **variant.training}
    plan = make_plan(variant.method, data, backbone, cell.seed, recipe, choices=variant.adapter, **training)
    return CellJob(cell, plan, data, plan.digest(backbone, data), keeps)


def plan_passes(out: Path, jobs: Sequence[CellJob], most: int = 1) -> list[list[CellJob]]:
    """Return the jobs in passes to run one after the other, each in the place of its first job.

    Args:
        out: where records are.
        jobs: of one backbone.
        most: how many unfinished cells that train a set share a pass at most; all others are alone.

    Raises:
        RunError: a record of other settings is in the way.
    """
    passes: list[list[CellJob]] = []
    joint: list[CellJob] = []
    for job in jobs:
        if find_record(out, job.cell, job.settings) is not None or not job.trains_a_set:
            passes.append([job])
        elif joint and len(joint) < most:
            joint.append(job)
        else:
            joint = [job]
            passes.append(joint)
    return passes


def run_pass(
    out: Path,
    jobs: Sequence[CellJob],
    backbone: Backbone,
    *,
    observers: Sequence[Callable[[StepReport], None] | None] = (),
    keep_in: Registry | None = None,
) -> list[tuple[RunRecord, bool]]:
    """Return for each cell its record and whether it was run now; those to be run are trained in one pass.

    A diverged cell is recorded as failed, and the others go on without it.

    Args:
        out: where records are.
        jobs: several that train sets, or one of any kind.
        backbone: frozen, and still so afterwards.
        observers: one per job, each called after every step of its training; or none at all.
        keep_in: the registry for the sets of jobs that keep theirs.

    Raises:
        RunError: a record of other settings is in the way, or the folder cannot be written.
    """
    found = {job: find_record(out, job.cell, job.settings) for job in jobs}
    due = {job: observe for job, observe in zip(jobs, observers or [None] * len(jobs), strict=True) if not found[job]}
    outcomes = dict(zip(due, compute_pass(list(due), backbone, list(due.values())), strict=True))
    return [(found[job] or keep_outcome(out, job, outcomes[job], keep_in), job in due) for job in jobs]


@dataclass(frozen=True)
class CellOutcome:
    """What came of a cell, before anything of it is written.

    Attributes:
        record: of it.
        predictions: row by row, None where it failed.
        kept: the trained set, where one is wanted in a registry and there is one.
    """

    record: RunRecord
    predictions: Predictions | None
    kept: Fitted | None


def compute_pass(
    jobs: Sequence[CellJob], backbone: Backbone, observers: Sequence[Callable[[StepReport], None] | None]
) -> list[CellOutcome]:
    """Return what comes of cells that are trained in one pass; nothing is written."""
    if not jobs:
        return []
    code = code_version()
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    curves = [CurveRecorder() for _ in jobs]
    fits = [
        FitJob(job.plan, job.data, observe=_record_steps(curve, observe))
        for job, curve, observe in zip(jobs, curves, observers, strict=True)
    ]
    outcomes = []
    for job, recorded, outcome in zip(jobs, curves, fit_together(fits, backbone), strict=True):
        fitted, error = (None, str(outcome)) if isinstance(outcome, NonFiniteLossError) else (outcome, None)
        if fitted is not None and fitted.result is not None and fitted.result.diverged:
            error = f"the loss rose from {fitted.result.first_loss:.3g} to {fitted.result.final_loss:.3g}"
        curve = recorded.curve()
        record = make_record(job, backbone, fitted, error, started, code, together=len(jobs), curve=curve)
        keeps = job.keeps and fitted is not None and fitted.storable and not record.diverged
        predictions = make_predictions(job.data, fitted.probabilities) if fitted else None
        outcomes.append(CellOutcome(record, predictions, fitted if keeps else None))
    return outcomes


def keep_outcome(out: Path, job: CellJob, outcome: CellOutcome, keep_in: Registry | None = None) -> RunRecord:
    """Write what came of a cell, and return its record as it can be read again.

    Raises:
        RunError: the folder cannot be written.
    """
    # The set goes first: once the record is there the cell is never run again.
    if outcome.kept is not None and keep_in is not None:
        keep_in.save(job.data.spec.name, outcome.kept)
    return read_record(write_record(out, outcome.record, outcome.predictions))


def run_cell(
    out: Path,
    cell: Cell,
    data: TaskData,
    backbone: Backbone,
    *,
    recipe: Recipe | None = None,
    overrides: dict[str, Any] | None = None,
    observe: Callable[[StepReport], None] | None = None,
    keep_in: Registry | None = None,
) -> tuple[RunRecord, bool]:
    """Return the record of one cell, trained alone, and whether it was run now; see ``make_job`` and ``run_pass``.

    Raises:
        RunError: a record of other settings is in the way, or the folder cannot be written.
    """
    job = make_job(cell, data, backbone, recipe=recipe, overrides=overrides, keeps=keep_in is not None)
    return run_pass(out, [job], backbone, observers=[observe], keep_in=keep_in)[0]


def _record_steps(curve: CurveRecorder, observe: Callable[[StepReport], None] | None) -> Callable[[StepReport], None]:
    """Return an observer that keeps the learning curve and calls ``observe``, if there is one."""

    def record(report: StepReport) -> None:
        curve.add(report.steps, report.loss, report.held_out_scores)
        if observe is not None:
            observe(report)

    return record


def make_record(
    job: CellJob,
    backbone: Backbone,
    fitted: Fitted | None,
    error: str | None,
    started: str,
    code: str,
    *,
    together: int = 1,
    curve: LearningCurve | None = None,
) -> RunRecord:
    """Return the record of a cell that was fitted, or that failed; ``error`` says why, or how a fitted one diverged."""
    cell, plan, data = job.cell, job.plan, job.data
    result = fitted.result if fitted else None
    none = ParameterCounts(trainable=0, stored=0, backbone=backbone.info.parameters, total=backbone.info.parameters)
    train_seconds = fitted.train_seconds if fitted else 0.0
    evaluate_seconds = fitted.evaluate_seconds if fitted else 0.0
    return RunRecord(
        status="finished" if fitted else "failed",
        error=error,
        settings=job.settings,
        task=cell.task,
        method=cell.method,
        seed=cell.seed,
        recipe=plan.recipe,
        split=data.spec.reported_split,
        main_metric=data.spec.main_metric,
        scores=fitted.scores if fitted else {},
        parameters=fitted.parameters if fitted else none,
        stored_bytes=fitted.stored_bytes if fitted else 0,
        steps=result.steps if result else curve.steps[-1] if curve else 0,
        final_loss=result.final_loss if result else None,
        diverged=result.diverged if result else False,
        positive_label=data.spec.positive_label,
        curve=curve,
        together=together,
        train_seconds=round(train_seconds, 3),
        evaluate_seconds=round(evaluate_seconds, 3),
        rows_per_second=round(result.rows / train_seconds, 2) if result and train_seconds else 0.0,
        evaluate_rows_per_second=round(len(data.reported) / evaluate_seconds, 2) if evaluate_seconds else 0.0,
        peak_memory_bytes=fitted.peak_memory_bytes if fitted else 0,
        data=data_info(data, *((fitted.truncated_train, fitted.truncated_reported) if fitted else ())),
        backbone=backbone.info,
        adapter=plan.adapter,
        head=fitted.adapter_set.head_config if fitted and fitted.adapter_set else plan.head,
        training=plan.training,
        device=str(backbone.device),
        dtype=str(backbone.dtype).removeprefix("torch."),
        hardware=hardware(torch.get_num_threads(), _accelerator(backbone.device)),
        library_versions=library_versions(),
        code=code,
        command=command_line(),
        started=started,
    )


def _accelerator(device: torch.device) -> str | None:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else None


def make_predictions(data: TaskData, probabilities: numpy.ndarray) -> Predictions:
    """Return the per-row answers as they are written beside a record: numbers only, no text."""
    return Predictions(
        row_numbers=numpy.asarray(data.reported.row_numbers, dtype=numpy.int64),
        labels=numpy.asarray(data.reported.labels),
        probabilities=probabilities.astype(numpy.float32),
    )


def cells_of(tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Return the grid in the order it is run: task by task, cheap methods as they were named, every seed."""
    return [Cell(task, method, seed) for task in tasks for method in methods for seed in seeds]
