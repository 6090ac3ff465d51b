"""Tasks x methods x seeds -> run records, one cell at a time; a finished cell is never run twice.

A cell's record appears whole or not at all, so a benchmark that is stopped anywhere goes on where it was. How a
method is fitted is fitting.py's to know, how a table looks is reports.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy
import torch

from registry.backbone import Backbone
from registry.data import TaskData
from registry.errors import NonFiniteLossError, RunError
from registry.fitting import Fitted, Plan, fit, make_plan
from registry.provenance import code_version, command_line, hardware, library_versions
from registry.recipes import Recipe
from registry.records import Predictions, read_record, record_path, write_record
from registry.references import Reference
from registry.registry import Registry
from registry.runs import StepReport
from registry.schema import DataInfo, ParameterCounts, RunRecord


@dataclass(frozen=True)
class Cell:
    """One place of a benchmark's grid."""

    task: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task} {self.method} seed {self.seed}"


def data_info(data: TaskData, fitted: Fitted | None = None) -> DataInfo:
    """Return which rows a run saw, and how many of them were cut."""
    return DataInfo(
        source=data.source,
        sample=data.sample,
        train_rows=len(data.train),
        reported_rows=len(data.reported),
        train_available=data.train_available,
        reported_available=data.reported_available,
        truncated_train=fitted.truncated_train if fitted else 0,
        truncated_reported=fitted.truncated_reported if fitted else 0,
        fingerprint=data.fingerprint(),
    )


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
    """Return the record of one cell and whether it was run now; a diverged run is recorded as failed.

    Args:
        out: where records are.
        cell: what to run; its task is ``data``'s.
        data: the rows.
        backbone: frozen, and still so afterwards.
        recipe: where the choices come from; the default recipe when None.
        overrides: training fields that win over the recipe's.
        observe: called after every training step.
        keep_in: a registry to save the trained set in, under the task's name.

    Raises:
        RunError: a record of other settings is in the way, or the folder cannot be written.
    """
    plan = make_plan(cell.method, data, backbone, cell.seed, recipe, **(overrides or {}))
    settings = plan.digest(backbone, data)
    found = find_record(out, cell, settings)
    if found is not None:
        return found, False
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    fitted, error = None, None
    try:
        fitted = fit(plan, data, backbone, observe=observe)
    except NonFiniteLossError as err:
        error = str(err)
    record = make_record(cell, plan, settings, data, backbone, fitted, error, started)
    predictions = make_predictions(data, fitted.probabilities) if fitted else None
    # The set goes first: once the record is there the cell is never run again.
    if keep_in is not None and fitted is not None and fitted.storable:
        save_fitted(keep_in, data.spec.name, plan, data, fitted)
    return read_record(write_record(out, record, predictions)), True


def make_record(
    cell: Cell,
    plan: Plan,
    settings: str,
    data: TaskData,
    backbone: Backbone,
    fitted: Fitted | None,
    error: str | None,
    started: str,
) -> RunRecord:
    """Return the record of a cell that was fitted, or that failed with ``error``."""
    result = fitted.result if fitted else None
    none = ParameterCounts(trainable=0, stored=0, backbone=backbone.info.parameters, total=backbone.info.parameters)
    train_seconds = fitted.train_seconds if fitted else 0.0
    evaluate_seconds = fitted.evaluate_seconds if fitted else 0.0
    return RunRecord(
        status="failed" if error else "finished",
        error=error,
        settings=settings,
        task=cell.task,
        method=cell.method,
        seed=cell.seed,
        recipe=plan.recipe,
        split=data.spec.reported_split,
        main_metric=data.spec.main_metric,
        scores=fitted.scores if fitted else {},
        parameters=fitted.parameters if fitted else none,
        stored_bytes=fitted.stored_bytes if fitted else 0,
        steps=result.steps if result else 0,
        final_loss=result.final_loss if result else None,
        train_seconds=round(train_seconds, 3),
        evaluate_seconds=round(evaluate_seconds, 3),
        rows_per_second=round(result.rows / train_seconds, 2) if result and train_seconds else 0.0,
        evaluate_rows_per_second=round(len(data.reported) / evaluate_seconds, 2) if evaluate_seconds else 0.0,
        peak_memory_bytes=fitted.peak_memory_bytes if fitted else 0,
        data=data_info(data, fitted),
        backbone=backbone.info,
        adapter=plan.adapter,
        head=plan.head,
        training=plan.training,
        device=str(backbone.device),
        dtype=str(backbone.dtype).removeprefix("torch."),
        hardware=hardware(torch.get_num_threads(), _accelerator(backbone.device)),
        library_versions=library_versions(),
        code=code_version(),
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


def save_fitted(registry: Registry, name: str, plan: Plan, data: TaskData, fitted: Fitted) -> Reference:
    """Store a fitted set with everything about where it comes from, and return the reference to it.

    Raises:
        RunError: the method leaves no set to store.
        StoreWriteError: nothing was changed.
    """
    if fitted.adapter_set is None or not fitted.storable or plan.training is None:
        raise RunError(registry.catalog.root, "a method that trains a set", plan.method, "train a placement instead")
    return registry.save(
        name,
        fitted.adapter_set,
        task=data.spec.name,
        pair=data.spec.pair,
        max_length=plan.training.max_length,
        scores=fitted.scores,
        main_metric=data.spec.main_metric,
        recipe=plan.recipe,
        training=plan.training,
        data=data_info(data, fitted),
        split=data.spec.reported_split,
    )


def cells_of(tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Return the grid in the order it is run: task by task, cheap methods as they were named, every seed."""
    return [Cell(task, method, seed) for task in tasks for method in methods for seed in seeds]
