"""What a stored set answers to the reported rows of a task that fits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from registry.adapters.adapter_set import AdapterSet
from registry.errors import RequestError
from registry.model.backbone import Backbone
from registry.model.inference import predict_probabilities
from registry.schema import Manifest
from registry.stats.predictions import CellPredictions
from registry.store.manifest import require_head
from registry.tasks.metrics import centre_thresholds
from registry.tasks.task_data import TaskData


@dataclass(frozen=True, eq=False)
class Answered:
    """The (R, C) float32 probabilities of all reported rows, in order, how many were cut, the set's thresholds."""

    probabilities: numpy.ndarray
    truncated: int
    thresholds: tuple[float, ...] = ()


def check_fits(reference: str, manifest: Manifest, data: TaskData) -> None:
    """Refuse to ask a set what it was not trained to answer; its labels may stand in another order.

    Raises:
        RequestError: labels, problem type or number of texts are not the task's.
    """
    attempted = f"score '{reference}' on task '{data.spec.name}'"
    head = manifest.head
    if sorted(head.label_names) != sorted(data.spec.label_names or ()):
        raise RequestError(
            attempted, f"labels {', '.join(head.label_names)}", ", ".join(data.spec.label_names or ()) or "none"
        )
    if head.problem_type != data.spec.problem_type:
        raise RequestError(attempted, head.problem_type, data.spec.problem_type)
    if manifest.pair not in (None, data.spec.pair):
        texts = ("one text per row", "two") if data.spec.pair else ("two texts per row", "one")
        raise RequestError(attempted, *texts)


def answer_task(
    backbone: Backbone, reference: str, manifest: Manifest, adapter_set: AdapterSet, data: TaskData
) -> Answered:
    """Return a set's answers to the reported rows, each cut to the longest length it was trained for.

    Args:
        backbone: of the set.
        reference: what the set is called in an error.
        manifest: of the set.
        adapter_set: its weights.
        data: rows of a task with the same labels, whose order the answers have.

    Raises:
        RequestError: the task does not fit the set.
    """
    require_head(reference, manifest)
    check_fits(reference, manifest, data)
    tokenize = backbone.tokenize_on_demand if data.reported.on_disk else backbone.tokenize
    tokens = tokenize(data.reported.texts, data.reported.pairs, manifest.max_length)
    head, shares = adapter_set.head_config, predict_probabilities(backbone.encoder, adapter_set, tokens)
    order = [head.label_names.index(name) for name in data.spec.label_names or ()]
    thresholds = tuple(head.thresholds[place] for place in order) if head.thresholds else ()
    return Answered(shares[:, order], tokens.truncated, thresholds)


def mean_answers(answered: Sequence[Answered]) -> Answered:
    """Return the mean of what several sets answer to the same rows, and of their thresholds."""
    if len(answered) == 1:
        return answered[0]
    shares = numpy.stack([one.probabilities for one in answered]).mean(axis=0, dtype=numpy.float64)
    thresholds: tuple[float, ...] = ()
    if any(one.thresholds for one in answered):
        half = (0.5,) * shares.shape[1]
        thresholds = tuple(map(float, numpy.mean([one.thresholds or half for one in answered], axis=0)))
    return Answered(shares.astype(numpy.float32), max(one.truncated for one in answered), thresholds)


def as_answers(data: TaskData, answered: Answered, seed: int) -> CellPredictions:
    """Return the answers of one training as statistics take them."""
    thresholds = answered.thresholds
    shares = centre_thresholds(answered.probabilities, thresholds) if thresholds else answered.probabilities
    kind = numpy.float64 if data.spec.problem_type == "regression" else numpy.int64
    return CellPredictions(
        problem_type=data.spec.problem_type,
        seeds=(seed,),
        row_numbers=numpy.asarray(data.reported.row_numbers, dtype=numpy.int64),
        labels=numpy.asarray(data.reported.labels, dtype=kind),
        probabilities=shares[numpy.newaxis],
    )
