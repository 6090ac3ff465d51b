"""Fit one method on one task: what the method means, its training, and its answers on the reported split.

A method is a placement, a baseline or a recipe; all end in a ``Fitted``. Names in a store and files of records
are not known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import numpy
import torch

from registry.adapters import AdapterSet
from registry.backbone import Backbone
from registry.checkpoints import Checkpoint
from registry.data import TaskData
from registry.errors import ConfigError, closest
from registry.evaluation import LabelledRows, answer_rows
from registry.metrics import score
from registry.recipes import DEFAULT, Recipe, read_recipe, recipe_names
from registry.rows import Rows, hold_out
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
from registry.training import StepReport, TrainingResult, train
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
        train_seconds, evaluate_seconds: wall time.
        peak_memory_bytes: most memory used meanwhile.
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


def method_names() -> tuple[str, ...]:
    """Return every method a benchmark knows: baselines, placements, and shipped recipes but the default."""
    return (*BASELINES, *PLACEMENTS, *(name for name in recipe_names() if name != DEFAULT))


def make_plan(
    method: str, data: TaskData, backbone: Backbone, seed: int, recipe: Recipe | None = None, **overrides: Any
) -> Plan:
    """Return what a method means for a task on a backbone.

    Args:
        method: one of ``method_names()``, or ``recipe`` for the given recipe as it is.
        data: for label names and problem type.
        backbone: for the hidden size.
        seed: of the run.
        recipe: where placements and baselines take their choices from; the default recipe when None.
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
    if plan.training is None or plan.head is None:
        return _majority(data, backbone)
    stopwatch = Stopwatch(backbone.device)
    learned, held_out, truncated = _training_rows(plan.training, plan.head, data, backbone)
    asked = _tokenize(data.reported, plan.training, backbone)
    adapter_set = backbone.new_adapter_set(plan.adapter, plan.head, seed=plan.training.seed)
    encoder = backbone.unfrozen_copy() if plan.unfreezes else backbone.encoder
    autocast = backbone.dtype if plan.unfreezes and backbone.dtype != torch.float32 else None
    with stopwatch.lap():
        result = train(
            encoder,
            adapter_set,
            learned,
            plan.training,
            held_out=held_out,
            autocast_dtype=autocast,
            checkpoint=checkpoint,
            observe=observe,
            should_stop=should_stop,
        )
    with stopwatch.lap():
        probabilities = answer_rows(encoder, adapter_set.eval(), asked.tokens, autocast)
    whole = encoder.parameter_count if plan.unfreezes else 0
    return Fitted(
        adapter_set=adapter_set,
        storable=not plan.unfreezes,
        probabilities=probabilities,
        scores=score(data.spec.problem_type, data.reported.labels, probabilities, data.spec.metrics),
        result=result,
        parameters=_count(backbone, whole + adapter_set.trainable_count, whole + adapter_set.stored_count, whole),
        stored_bytes=stored_bytes(adapter_set) + FLOAT32_BYTES * whole,
        truncated_train=truncated,
        truncated_reported=asked.tokens.truncated,
        train_seconds=stopwatch.laps[0],
        evaluate_seconds=stopwatch.laps[1],
        peak_memory_bytes=stopwatch.peak_memory(),
    )


def _training_rows(
    training: TrainingConfig, head: HeadConfig, data: TaskData, backbone: Backbone
) -> tuple[LabelledRows, LabelledRows | None, int]:
    """Return the rows to learn from, those held out where the training asks for some, and how many were cut."""
    if not training.holds_out:
        learned = _tokenize(data.train, training, backbone)
        return learned, None, learned.tokens.truncated
    parts = hold_out(data.train, training.held_out, training.seed, head.problem_type == "classification")
    learned, held_out = (_tokenize(rows, training, backbone) for rows in parts)
    return learned, held_out, learned.tokens.truncated + held_out.tokens.truncated


def _count(backbone: Backbone, trainable: int = 0, stored: int = 0, replaced: int = 0) -> ParameterCounts:
    """Return the counts of a method that stores ``stored`` elements, ``replaced`` of them in the backbone's place."""
    whole = backbone.info.parameters
    return ParameterCounts(trainable=trainable, stored=stored, backbone=whole, total=whole + stored - replaced)


def _tokenize(rows: Rows, training: TrainingConfig, backbone: Backbone) -> LabelledRows:
    return LabelledRows(backbone.tokenize(rows.texts, rows.pairs, training.max_length), rows.labels)


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
