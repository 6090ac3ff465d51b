"""Fit one method on one task: what the method means, its training, and its answers on the reported split.

A method is a placement, a baseline or a recipe; all end in a ``Fitted``. Names in a store and files of records
are not known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import numpy
import torch

from registry.adapters import AdapterSet
from registry.backbone import Backbone
from registry.checkpoints import Checkpoint
from registry.data import TaskData
from registry.encoder import Encoder
from registry.errors import ConfigError, NonFiniteLossError, closest
from registry.evaluation import LabelledRows, answer_rows
from registry.metrics import score
from registry.recipes import DEFAULT, Recipe, read_recipe, recipe_names
from registry.rows import Rows, hold_out
from registry.runs import StepReport, TrainingJob, TrainingResult
from registry.schema import (
    BASELINES,
    PLACEMENTS,
    AdapterConfig,
    HeadConfig,
    ParameterCounts,
    Placement,
    TrainingConfig,
)
from registry.stopwatch import Stopwatch
from registry.store import stored_bytes
from registry.training import train_together
from registry.validation import Record, require, to_json

FLOAT32_BYTES = 4


class Plan(Record, frozen=True, kw_only=True):
    """Every choice behind one cell of a table; equal plans on equal rows give equal scores.

    Attributes:
        method: a placement, a baseline or the name of a recipe.
        recipe: where the choices come from.
        adapter: None where the method has no bottlenecks.
        head: None for ``majority``, which has no model.
        training: None for ``majority``.
        unfreezes: whether a copy of the encoder trains as well (``full_fine_tuning``).
    """

    method: str
    recipe: str
    adapter: AdapterConfig | None = None
    head: HeadConfig | None = None
    training: TrainingConfig | None = None
    unfreezes: bool = False

    def digest(self, backbone: Backbone, data: TaskData) -> str:
        """Return the SHA-256 of all that decides the scores: choices, rows, backbone, precision, metrics."""
        parts = (
            to_json(self),
            data.fingerprint().encode(),
            backbone.info.fingerprint.encode(),
            backbone.info.tokenizer_digest.encode(),
            str(backbone.dtype).encode(),
            f"{data.spec.reported_split} {data.spec.metrics}".encode(),
        )
        return hashlib.sha256(b"\n".join(parts)).hexdigest()


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


def method_names() -> tuple[str, ...]:
    """Return every method a benchmark knows: baselines, placements, and shipped recipes but the default."""
    return (*BASELINES, *PLACEMENTS, *(name for name in recipe_names() if name != DEFAULT))


def make_plan(
    method: str,
    data: TaskData,
    backbone: Backbone,
    seed: int,
    recipe: Recipe | None = None,
    *,
    bottlenecks: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Plan:
    """Return what a method means for a task on a backbone.

    Args:
        method: one of ``method_names()``, or ``recipe`` for the given recipe as it is.
        data: for label names and problem type.
        backbone: for the hidden size.
        seed: of the run.
        recipe: where placements and baselines take their choices from; the default recipe when None.
        bottlenecks: choices of ``AdapterChoices`` that win over the recipe's; methods without bottlenecks have none.
        overrides: training fields that win over the recipe's, None meaning not given.

    Raises:
        ConfigError: an unknown method, or choices that do not fit the backbone.
    """
    names = method_names()
    if method not in (*names, "recipe"):
        raise ConfigError("method", f"one of {', '.join(names)}", method, closest(method, names))
    base = recipe or read_recipe(DEFAULT)
    if method == "majority":
        return Plan(method=method, recipe=base.name)
    if method in recipe_names():
        base = read_recipe(method)
    elif method in PLACEMENTS:
        base = base.with_choices({"placement": cast(Placement, method)}, {})
    if bottlenecks:
        require(method not in BASELINES, "bottlenecks", "a method that has them", method)
        base = base.with_choices(bottlenecks, {})
    kind = method if method in BASELINES else base.adapter.placement
    adapter = None if method in BASELINES else base.adapter.for_hidden_size(backbone.info.hidden_size)
    head = base.head.for_task(data.spec.label_names or (), data.spec.problem_type)
    if method in BASELINES:
        head = msgspec.structs.replace(head, trained=True)
    training = base.training_for(data.spec.name, kind, **{**overrides, "seed": seed})
    backbone.check_pooling(head)
    backbone.check_max_length(training.max_length)
    if adapter is not None and adapter.layers is not None:
        last = backbone.info.layers - 1
        require(adapter.layers[-1] <= last, "layers", f"indices from 0 to {last}", adapter.layers)
    return Plan(
        method=method if method != "recipe" else base.adapter.placement,
        recipe=base.name,
        adapter=adapter,
        head=head,
        training=training,
        unfreezes=method == "full_fine_tuning",
    )


@dataclass(frozen=True, eq=False)
class FitJob:
    """One plan to carry out on one task's rows; ``observe`` is called after every step."""

    plan: Plan
    data: TaskData
    checkpoint: Checkpoint | None = None
    observe: Callable[[StepReport], None] | None = None


def fit(
    plan: Plan,
    data: TaskData,
    backbone: Backbone,
    *,
    checkpoint: Checkpoint | None = None,
    observe: Callable[[StepReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Fitted:
    """Return the plan carried out: trained on ``data.train``, scored on ``data.reported``.

    Raises:
        NonFiniteLossError, TrainingInterrupted, CheckpointError: see ``train``.
        ConfigError: choices that do not fit the backbone.
    """
    (fitted,) = fit_together([FitJob(plan, data, checkpoint, observe)], backbone, should_stop=should_stop)
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
            tokens = self._backbone.tokenize(rows.texts, rows.pairs, max_length)
            self._rows[key] = rows, LabelledRows(tokens, rows.labels)  # ``rows`` is kept, so that its id stays its own
        return self._rows[key][1]


class _Learning:
    """A job with its rows tokenised and its set made, to be trained and then scored."""

    def __init__(self, job: FitJob, backbone: Backbone, tokenized: _Tokenized) -> None:
        plan, data = job.plan, job.data
        if plan.training is None or plan.head is None:
            raise ConfigError("plan", "one that trains", plan.method)
        self.job, self.backbone = job, backbone
        self.adapter_set = backbone.new_adapter_set(plan.adapter, plan.head, seed=plan.training.seed)
        parts: tuple[Rows, ...] = (data.train,)
        if plan.training.holds_out:
            stratified = plan.head.problem_type == "classification"
            parts = hold_out(data.train, plan.training.held_out, plan.training.seed, stratified)
        learned = [tokenized.rows(rows, plan.training.max_length) for rows in parts]
        self.asked = tokenized.rows(data.reported, plan.training.max_length)
        self.truncated = sum(rows.tokens.truncated for rows in learned)
        held_out = learned[1] if len(learned) > 1 else None
        self.training_job = TrainingJob(
            self.adapter_set, learned[0], plan.training, held_out, job.checkpoint, job.observe
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
        plan, data, adapter_set = self.job.plan, self.job.data, self.adapter_set
        with stopwatch.lap():
            probabilities = answer_rows(encoder, adapter_set.eval(), self.asked.tokens, autocast)
        whole = encoder.parameter_count if plan.unfreezes else 0
        trainable, stored = whole + adapter_set.trainable_count, whole + adapter_set.stored_count
        return Fitted(
            adapter_set=adapter_set,
            storable=not plan.unfreezes,
            probabilities=probabilities,
            scores=score(data.spec.problem_type, data.reported.labels, probabilities, data.spec.metrics),
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
