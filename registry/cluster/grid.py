"""Passes of a grid, and trainings, as tasks of Ray: the driver plans and writes, workers compute.

A pass has its CPUs, or its share of a GPU, for itself. It is computed by the function that computes it here, so
weights are equal where thread counts are. A worker or node that is lost is tried again elsewhere; what is lost
thrice is told as a failure of its pass, and the others go on. Knows no file.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from registry.adapters.adapter_set import AdapterSet
from registry.bench.records import RunRecord
from registry.bench.runner import CellJob, CellOutcome, compute_pass, keep_outcome, make_record
from registry.cluster.connection import check_worker, what_decides
from registry.errors import BackboneMismatchError, RegistryError
from registry.model.backbone import Backbone
from registry.provenance import command_line
from registry.schema import BackboneInfo
from registry.store.registry import Registry
from registry.tasks.task_data import TaskData
from registry.training.fit import FitJob, Fitted, fit_together
from registry.training.state import StepReport

RETRIES = 2  # by Ray, after a worker or node was lost
_TELL_SECONDS = 0.5  # between two messages of a pass about its steps

Observe = Callable[[StepReport], None]


class _HasRows(Protocol):
    """A job, of whichever kind."""

    @property
    def data(self) -> TaskData:
        """Return the rows."""
        ...


J = TypeVar("J", bound=_HasRows)
T = TypeVar("T")
Compute = Callable[[Sequence[J], Backbone, Sequence[Observe]], list[T]]


@dataclass(frozen=True)
class Terms:
    """What a pass has of a machine, and what is to be the same there as here.

    Attributes:
        backbone: to be loaded from the same source, and of the same fingerprint.
        device, dtype: of it.
        offline: never ask the network.
        threads: that torch computes with, and CPUs that Ray is asked for.
        gpus: share of a GPU, 0 on CPUs.
        versions: of libraries and code.
    """

    backbone: BackboneInfo
    device: str
    dtype: str
    offline: bool
    threads: int
    gpus: float
    versions: dict[str, str]

    @classmethod
    def like(cls, backbone: Backbone, *, offline: bool = False, gpu_share: float = 1.0) -> Terms:
        """Return the terms under which a worker computes what this process would."""
        return cls(
            backbone=backbone.info,
            device=backbone.device.type,
            dtype=str(backbone.dtype).removeprefix("torch."),
            offline=offline,
            threads=torch.get_num_threads(),
            gpus=gpu_share if backbone.device.type == "cuda" else 0.0,
            versions=what_decides(),
        )

    @property
    def are_met(self) -> bool:
        """Return whether some node that is there now has that much."""
        found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return any(each.get("CPU", 0) >= self.threads and each.get("GPU", 0) >= self.gpus for each in found)


def run_passes(
    passes: Sequence[Sequence[J]],
    compute: Compute[J, T],
    terms: Terms,
    observe: Callable[[J, StepReport], None] = lambda job, report: None,
) -> Iterator[tuple[Sequence[J], list[T] | str]]:
    """Yield each pass with what came of it as soon as it is there: one for each job, or why there is none.

    Args:
        passes: of jobs; the rows of a task go to the cluster once.
        compute: a function that workers can import.
        terms: what a pass has of a machine.
        observe: called after every step of a job, in its order, a little late; from its first step again where a worker
            was lost.

    Raises:
        ClusterError: a worker with other libraries or other code.
        RegistryError: what ``compute`` has raised.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
    # GPU tasks too keep their process, and the backbone in it: without max_calls, Ray ends it after one.
    own = {"num_cpus": terms.threads, "num_gpus": terms.gpus, "max_retries": RETRIES, "max_calls": 0}
    task = ray.remote(**own)(_carry_out)
    of_task: dict[str, list[J]] = {}
    for jobs in passes:
        of_task.setdefault(jobs[0].data.spec.name, []).extend(jobs)
    stored = {name: ray.put(jobs) for name, jobs in of_task.items()}
    terms_stored = ray.put(terms)
    pending: dict[Any, Sequence[J]] = {}
    for number, jobs in enumerate(passes):
        name = jobs[0].data.spec.name
        places = [of_task[name].index(job) for job in jobs]
        pending[task.remote(terms_stored, stored[name], places, compute, board, number)] = jobs
    try:
        while pending:
            done, _ = ray.wait(list(pending), timeout=_TELL_SECONDS)
            for number, place, report in _taken(board):
                observe(passes[number][place], report)
            for reference in done:
                yield pending.pop(reference), _outcome(reference)
    finally:
        with suppress(RayError):
            for reference in pending:
                ray.cancel(reference, force=True)
            ray.kill(board)


def run_grid(
    out: Path,
    passes: Sequence[Sequence[CellJob]],
    backbone: Backbone,
    terms: Terms,
    observe: Callable[[CellJob, StepReport], None] = lambda job, report: None,
    keep_in: Registry | None = None,
) -> Iterator[tuple[CellJob, RunRecord]]:
    """Yield each cell with its record, which is written here, in whichever order they are finished.

    Args:
        out: where records are.
        passes: of cells that have no record yet.
        backbone: of the run.
        terms, observe: see ``run_passes``.
        keep_in: the registry for the sets of jobs that keep theirs.

    Raises:
        RunError: the folder cannot be written.
        ClusterError, RegistryError: see ``run_passes``.
    """
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for jobs, outcomes in run_passes(passes, compute_pass, terms, observe):
        if isinstance(outcomes, str):
            code, error = terms.versions["code"], outcomes
            records = [make_record(job, backbone, None, error, started, code, together=len(jobs)) for job in jobs]
            outcomes = [CellOutcome(record, None, None) for record in records]
        for job, outcome in zip(jobs, outcomes, strict=True):
            own = msgspec.structs.replace(outcome.record, command=command_line())
            yield job, keep_outcome(out, job, replace(outcome, record=own), keep_in)


def _outcome(reference: Any) -> Any:
    """Return what came of a pass, or in one line why nothing did."""
    try:
        return ray.get(reference)
    except RayTaskError as err:
        if isinstance(err.cause, RegistryError):
            raise err.cause from err
        lines = str(err.cause).strip().splitlines() or ["no reason given"]
        return f"{type(err.cause).__name__}: {lines[0][:300]}"
    except RayError as err:
        lines = str(err).strip().splitlines() or ["no reason given"]
        return f"its worker was lost {RETRIES + 1} times ({type(err).__name__}: {lines[0][:200]})"


def fit_jobs(jobs: Sequence[FitJob], backbone: Backbone, observers: Sequence[Observe]) -> list[Any]:
    """Return trainings carried out in one pass, as ``fit_together`` does it."""
    observed = [replace(job, observe=observe) for job, observe in zip(jobs, observers, strict=True)]
    return list(fit_together(observed, backbone))


class _Board:
    """An actor beside the driver, where workers leave what they tell of their steps."""

    def __init__(self) -> None:
        self._left: list[tuple[int, int, StepReport]] = []

    def leave(self, number: int, reports: Sequence[tuple[int, StepReport]]) -> None:
        """Leave reports of a pass, each with the place of its job."""
        self._left += [(number, place, report) for place, report in reports]

    def take(self) -> list[tuple[int, int, StepReport]]:
        """Return what was left since the last time."""
        left, self._left = self._left, []
        return left


def _taken(board: Any) -> list[tuple[int, int, StepReport]]:
    with suppress(RayError):  # nobody sees the steps any more; their trainings go on
        taken: list[tuple[int, int, StepReport]] = ray.get(board.take.remote(), timeout=10)
        return taken
    return []


class _Reporter:
    """Leaves a pass's reports on the board, some together."""

    def __init__(self, board: Any, number: int) -> None:
        self._board, self._number = board, number
        self._reports: list[tuple[int, StepReport]] = []
        self._told = time.monotonic()

    def observe(self, place: int, report: StepReport) -> None:
        """Note one step."""
        self._reports.append((place, report))
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self.tell()

    def tell(self) -> Any:
        """Leave what there is."""
        sent = self._board.leave.remote(self._number, self._reports)
        self._reports, self._told = [], time.monotonic()
        return sent


def _carry_out(
    terms: Terms, jobs: Sequence[J], places: Sequence[int], compute: Compute[J, T], board: Any, number: int
) -> list[T]:
    """Compute one pass, on a worker."""
    check_worker(terms.versions)
    torch.set_num_threads(terms.threads)
    backbone = _load(terms.backbone.source, terms.backbone.revision, terms.device, terms.dtype, terms.offline)
    for part in ("fingerprint", "tokenizer_digest"):
        expected, found = getattr(terms.backbone, part), getattr(backbone.info, part)
        if expected != found:
            hint = f"'{terms.backbone.source}' has to be the same on all machines"
            raise BackboneMismatchError("a worker", part.replace("_", " "), expected, found, hint)
    reporter = _Reporter(board, number)
    observers = [functools.partial(reporter.observe, place) for place in range(len(places))]
    outcomes = compute([jobs[place] for place in places], backbone, observers)
    with suppress(RayError):
        ray.get(reporter.tell(), timeout=10)
    return [_at_home(outcome) for outcome in outcomes]


@functools.lru_cache(maxsize=1)
def _load(source: str, revision: str | None, device: str, dtype: str, offline: bool) -> Backbone:
    """Return the backbone, loaded once a process."""
    return Backbone.load(source, device=device, dtype=dtype, revision=revision, offline=offline)


def _at_home(outcome: T) -> T:
    """Return what came of a job with its set in plain memory, where every machine can read it."""
    fitted = outcome.kept if isinstance(outcome, CellOutcome) else outcome
    if isinstance(fitted, Fitted) and isinstance(fitted.adapter_set, AdapterSet):
        fitted.adapter_set.cpu()
    return outcome
