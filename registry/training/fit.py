"""Fit one method on one task: what the method means, its training, and its answers on the reported split.

A method is a placement, a baseline or a recipe; all end in a ``Fitted``. Names in a store and files of records
are not known here.

How long a piece of work took and how much memory it used at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy
import psutil
import torch

from registry.adapters.adapter_set import AdapterSet
from registry.errors import ConfigError, NonFiniteLossError
from registry.model.backbone import Backbone
from registry.model.encoder import Encoder
from registry.model.inference import LabelledRows, pool_rows, predict_probabilities
from registry.stats.calibration import calibrate_head, check_calibration
from registry.store.tensors import stored_bytes
from registry.tasks.metrics import score
from registry.tasks.rows import Rows, hold_out
from registry.tasks.task_data import TaskData
from registry.training.checkpoint import Checkpoint
from registry.training.loop import train_together
from registry.training.origin import data_info, set_info
from registry.training.plan import ParameterCounts, Plan
from registry.training.state import Loss, StepReport, TrainingJob, TrainingResult

_PROCESS = Path("/proc/self")


class Stopwatch:
    """Seconds of each lap, and the peak of memory since the start.

    On CUDA a lap waits for the device, and memory is what torch had allocated there at most. Elsewhere it is the
    process's largest resident set, which Linux can set back at the start; other systems tell the present one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: list[float] = []
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):
                (_PROCESS / "clear_refs").write_text("5")

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Time what happens inside the ``with`` block."""
        started = self._now()
        yield
        self.laps.append(self._now() - started)

    def peak_memory(self) -> int:
        """Return the most bytes used since the start."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        with suppress(OSError, StopIteration, ValueError, IndexError):
            lines = (_PROCESS / "status").read_text().splitlines()
            return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
        return int(psutil.Process().memory_info().rss)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Fitted:
    """One method fitted on one task, and how it did.

    Attributes:
        adapter_set: the trained set; None for ``majority``.
        storable: whether the set alone gives these answers (not so after full fine-tuning).
        probabilities: (R, C) float32 answers on the reported rows.
        scores: of those answers.
        result: of the training; None for ``majority``.
        parameters: elements that train, are stored and are there in all.
        stored_bytes: what this task adds on disk.
        truncated_train, truncated_reported: rows cut to the longest length.
        train_seconds, evaluate_seconds: wall time; of plans carried out together each has its share.
        peak_memory_bytes: most memory used meanwhile.
        together: how many sets were trained in the same pass, this one among them.
    """

    adapter_set: AdapterSet | None
    storable: bool
    probabilities: numpy.ndarray
    scores: dict[str, float]
    result: TrainingResult | None
    parameters: ParameterCounts
    stored_bytes: int
    truncated_train: int
    truncated_reported: int
    train_seconds: float
    evaluate_seconds: float
    peak_memory_bytes: int
    together: int = 1


class Start(NamedTuple):
    """A stored set whose adapter a training goes on from, under a head of its own."""

    reference: str
    adapter_set: AdapterSet


@dataclass(frozen=True, eq=False)
class FitJob:
    """One plan to carry out on one task's rows.

    Attributes:
        observe: called after every step.
        loss: one's own.
        members: the sets that a fused one needs, as ``Registry.load_members`` gives them.
        start: where its adapter comes from; the plan has its configuration. None is a fresh one.
    """

    plan: Plan
    data: TaskData
    checkpoint: Checkpoint | None = None
    observe: Callable[[StepReport], None] | None = None
    loss: Loss | None = None
    members: Sequence[AdapterSet] = ()
    start: Start | None = None


def fit(
    plan: Plan,
    data: TaskData,
    backbone: Backbone,
    *,
    checkpoint: Checkpoint | None = None,
    observe: Callable[[StepReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    loss: Loss | None = None,
    members: Sequence[AdapterSet] = (),
    start: Start | None = None,
) -> Fitted:
    """Return the plan carried out: trained on ``data.train``, scored on ``data.reported``; see ``FitJob``.

    ``start`` is where its adapter comes from; the plan has its configuration.

    Raises:
        NonFiniteLossError, TrainingInterrupted, CheckpointError: see ``train``.
        ConfigError: choices that do not fit the backbone.
    """
    job = FitJob(plan, data, checkpoint, observe, loss, members, start)
    (fitted,) = fit_together([job], backbone, should_stop=should_stop)
    if isinstance(fitted, NonFiniteLossError):
        raise fitted
    return fitted


def fit_together(
    jobs: Sequence[FitJob], backbone: Backbone, *, should_stop: Callable[[], bool] | None = None
) -> list[Fitted | NonFiniteLossError]:
    """Return several plans carried out, trained in one pass; one that diverges gives its error instead.

    Raises:
        TrainingInterrupted, CheckpointError: see ``train_together``.
        ConfigError: choices that do not fit the backbone, or full fine-tuning beside other plans.
    """
    stopwatch = Stopwatch(backbone.device)
    tokenized = _Tokenized(backbone)
    learning = [_Learning(job, backbone, tokenized) for job in jobs if job.plan.training is not None]
    unfrozen = [one for one in learning if one.job.plan.unfreezes]
    encoder = backbone.unfrozen_copy() if unfrozen else backbone.encoder
    autocast = backbone.dtype if unfrozen and backbone.dtype != torch.float32 else None
    with stopwatch.lap():
        results = train_together(
            encoder, [one.training_job for one in learning], autocast_dtype=autocast, should_stop=should_stop
        )
    outcomes: dict[FitJob, Fitted | NonFiniteLossError] = {}
    for one, result in zip(learning, results, strict=True):
        if isinstance(result, NonFiniteLossError):
            outcomes[one.job] = result
        else:
            outcomes[one.job] = one.score(result, encoder, autocast, stopwatch, len(learning))
    return [outcomes[job] if job in outcomes else _majority(job.data, backbone) for job in jobs]


class _Tokenized:
    """Token rows by what they were made of, so that seeds of one task share them."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._rows: dict[tuple[int, int], tuple[Rows, LabelledRows]] = {}

    def rows(self, rows: Rows, max_length: int) -> LabelledRows:
        """Return the labelled token rows of ``rows``, cut to ``max_length``."""
        key = id(rows), max_length
        if key not in self._rows:
            tokenize = self._backbone.tokenize_on_demand if rows.on_disk else self._backbone.tokenize
            tokens = tokenize(rows.texts, rows.pairs, max_length)
            self._rows[key] = rows, LabelledRows(tokens, rows.labels)  # ``rows`` is kept, so that its id stays its own
        return self._rows[key][1]


class _Learning:
    """A job with its rows tokenised and its set made, to be trained and then scored."""

    def __init__(self, job: FitJob, backbone: Backbone, tokenized: _Tokenized) -> None:
        plan, data = job.plan, job.data
        training, head = plan.training, plan.head
        if training is None or head is None:
            raise ConfigError("plan", "one that trains", plan.method)
        if job.loss is not None and training.loss is None:
            name = f"{job.loss.__module__}:{getattr(job.loss, '__qualname__', type(job.loss).__qualname__)}"
            training = msgspec.structs.replace(training, loss=name)
            plan = msgspec.structs.replace(plan, training=training)
        check_calibration(head, training)
        self.job, self.plan, self.backbone = job, plan, backbone
        self.adapter_set = backbone.new_adapter_set(plan.adapter, head, seed=training.seed)
        self.adapter_set.adapter.take_members([member.adapter for member in job.members])
        if job.start is not None:
            self.adapter_set.adapter.load_state_dict(job.start.adapter_set.adapter.state_dict())
        parts: tuple[Rows, ...] = (data.train,)
        if training.holds_out:
            stratified = head.problem_type == "classification"
            parts = hold_out(data.train, training.held_out, training.seed, stratified)
        learned = [tokenized.rows(rows, training.max_length) for rows in parts]
        self.asked = tokenized.rows(data.reported, training.max_length)
        self.truncated = sum(rows.tokens.truncated for rows in learned)
        held_out = learned[1] if len(learned) > 1 else None
        self.training_job = TrainingJob(
            self.adapter_set, learned[0], training, held_out, job.checkpoint, job.observe, job.loss
        )

    def score(
        self,
        result: TrainingResult,
        encoder: Encoder,
        autocast: torch.dtype | None,
        stopwatch: Stopwatch,
        together: int,
    ) -> Fitted:
        """Return the trained set with its answers on the reported split; ``together`` sets were trained."""
        plan, data, adapter_set = self.plan, self.job.data, self.adapter_set
        self._calibrate(encoder, autocast)
        with stopwatch.lap():
            probabilities = predict_probabilities(encoder, adapter_set.eval(), self.asked.tokens, autocast)
        whole = encoder.parameter_count if plan.unfreezes else 0
        trainable, stored = whole + adapter_set.trainable_count, whole + adapter_set.stored_count
        thresholds = adapter_set.head_config.thresholds
        scores = score(data.spec.problem_type, data.reported.labels, probabilities, data.spec.metrics, thresholds)
        rows = data_info(data, self.truncated, self.asked.tokens.truncated)
        info = set_info(plan, data, self.backbone, scores, rows, together)
        if self.job.start is not None:
            info = msgspec.structs.replace(info, started_from=self.job.start.reference)
        adapter_set.info = None if plan.unfreezes else info
        return Fitted(
            adapter_set=adapter_set,
            storable=not plan.unfreezes,
            probabilities=probabilities,
            scores=scores,
            result=result,
            parameters=_count(self.backbone, trainable, stored, whole),
            stored_bytes=stored_bytes(adapter_set) + FLOAT32_BYTES * whole,
            truncated_train=self.truncated,
            truncated_reported=self.asked.tokens.truncated,
            train_seconds=result.seconds,
            evaluate_seconds=stopwatch.laps[-1],
            peak_memory_bytes=stopwatch.peak_memory(),
            together=together,
        )

    def _calibrate(self, encoder: Encoder, autocast: torch.dtype | None) -> None:
        """Give the head the temperature and thresholds that the plan wants."""
        training, held_out = self.training_job.config, self.training_job.held_out
        if held_out is not None and (training.calibrate or training.tune_thresholds):
            head = self.adapter_set.eval().head
            with torch.no_grad():
                logits = head(pool_rows(encoder, self.adapter_set, held_out.tokens, autocast))
            labels = numpy.asarray(held_out.labels)
            head.config = calibrate_head(head.config, training, logits.cpu().numpy(), labels)


def _count(backbone: Backbone, trainable: int = 0, stored: int = 0, replaced: int = 0) -> ParameterCounts:
    """Return the counts of a method that stores ``stored`` elements, ``replaced`` of them in the backbone's place."""
    whole = backbone.info.parameters
    return ParameterCounts(trainable=trainable, stored=stored, backbone=whole, total=whole + stored - replaced)


def _majority(data: TaskData, backbone: Backbone) -> Fitted:
    """Answer every row with what is most common in training: class shares, label shares, or the mean value."""
    labels = numpy.asarray(data.train.labels)
    names = data.spec.label_names or ()
    if data.spec.problem_type == "classification":
        answer = numpy.bincount(labels, minlength=len(names)) / len(labels)
    else:
        answer = labels.reshape(len(labels), -1).mean(axis=0)
    probabilities = numpy.tile(answer.astype(numpy.float32), (len(data.reported), 1))
    return Fitted(
        adapter_set=None,
        storable=False,
        probabilities=probabilities,
        scores=score(data.spec.problem_type, data.reported.labels, probabilities, data.spec.metrics),
        result=None,
        parameters=_count(backbone),
        stored_bytes=0,
        truncated_train=0,
        truncated_reported=0,
        train_seconds=0.0,
        evaluate_seconds=0.0,
        peak_memory_bytes=0,
    )
