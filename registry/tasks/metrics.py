"""Scores of predictions, by scikit-learn, under names that say exactly which number it is.

``f1_binary`` is F1 of class 1, as GLUE reports MRPC; ``f1_weighted`` and ``f1_macro`` are other numbers. Where a
score is undefined (nothing predicted, constant predictions) it is 0. Nothing here knows of tasks, rows or models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error

from registry.errors import ShapeMismatchError
from registry.schema import ProblemType
from registry.tasks.spec import METRICS
from registry.validation import choose, require

THRESHOLD = 0.5

Array = np.ndarray[Any, np.dtype[Any]]


def default_metrics(problem_type: ProblemType, classes: int) -> tuple[str, ...]:
    """Return the usual metrics of a problem type, the main one first."""
    if problem_type != "classification":
        return METRICS[problem_type]
    return ("accuracy", "f1_binary", "f1_weighted") if classes == 2 else ("accuracy", "f1_weighted", "f1_macro")


def check_metrics(problem_type: ProblemType, classes: int, metrics: Sequence[str]) -> None:
    """Refuse metrics that do not fit, so that a typing error shows before hours of training.

    Raises:
        ConfigError: an unknown metric, one of another problem type, or ``f1_binary`` with other than two classes.
    """
    for metric in metrics:
        choose(metric, METRICS[problem_type], "metrics")
    if classes != 2:
        require("f1_binary" not in metrics, "metrics", f"ones for {classes} classes, f1_macro say", "f1_binary")


def predicted_labels(problem_type: ProblemType, probabilities: Array) -> Array:
    """Return what (rows, C) probabilities say: the likeliest class, a yes or no per label, or the number itself."""
    if problem_type == "classification":
        found: Array = probabilities.argmax(axis=1)
    elif problem_type == "multi_label":
        found = (probabilities >= THRESHOLD).astype(np.int64)
    else:
        found = probabilities[:, 0]
    return found


def score(
    problem_type: ProblemType, labels: Sequence[Any], probabilities: Array, metrics: tuple[str, ...]
) -> dict[str, float]:
    """Return the value of each metric, in the order asked.

    Args:
        problem_type: decides what labels and probabilities are.
        labels: class indices, rows of 0 and 1, or numbers.
        probabilities: (rows, C); for regression (rows, 1) of predicted numbers.
        metrics: names from METRICS.

    Raises:
        ConfigError: a metric that does not fit, or probabilities that are not finite.
        ShapeMismatchError: not one row of probabilities for each label.
    """
    rows = len(labels)
    if probabilities.ndim != 2 or len(probabilities) != rows or rows == 0:
        raise ShapeMismatchError("probabilities", (max(rows, 1), "C"), probabilities.shape)
    check_metrics(problem_type, probabilities.shape[1], metrics)
    require(bool(np.isfinite(probabilities).all()), "probabilities", "finite numbers", "NaN or infinity")
    expected, found = np.asarray(labels), predicted_labels(problem_type, probabilities)
    if expected.shape != found.shape:
        raise ShapeMismatchError("labels", found.shape, expected.shape)
    return {metric: float(_SCORERS[problem_type][metric](expected, found)) for metric in metrics}


def _f1_of_ones(labels: Array, found: Array) -> float:
    return float(f1_score(labels, found, labels=[1], average=None, zero_division=0.0)[0])


def _f1_weighted(labels: Array, found: Array) -> float:
    return float(f1_score(labels, found, average="weighted", zero_division=0.0))


def _f1_macro(labels: Array, found: Array) -> float:
    return float(f1_score(labels, found, average="macro", zero_division=0.0))


def _matthews(labels: Array, found: Array) -> float:
    constant = len(np.unique(labels)) == 1 or len(np.unique(found)) == 1
    return 0.0 if constant else float(matthews_corrcoef(labels, found))


def _f1_micro_of_cells(labels: Array, found: Array) -> float:
    return _f1_of_ones(labels.ravel(), found.ravel())


def _f1_macro_of_columns(labels: Array, found: Array) -> float:
    return float(np.mean([_f1_of_ones(labels[:, c], found[:, c]) for c in range(labels.shape[1])]))


def _exact_match(labels: Array, found: Array) -> float:
    return float((labels == found).all(axis=1).mean())


def _pearson(labels: Array, found: Array) -> float:
    constant = np.ptp(labels) == 0 or np.ptp(found) == 0
    return 0.0 if constant else float(np.corrcoef(labels.astype(np.float64), found.astype(np.float64))[0, 1])


def _spearman(labels: Array, found: Array) -> float:
    return _pearson(pd.Series(labels).rank().to_numpy(), pd.Series(found).rank().to_numpy())


_SCORERS: Mapping[str, Mapping[str, Callable[[Array, Array], float]]] = MappingProxyType(
    {
        "classification": {
            "accuracy": accuracy_score,
            "f1_binary": _f1_of_ones,
            "f1_weighted": _f1_weighted,
            "f1_macro": _f1_macro,
            "matthews": _matthews,
        },
        "multi_label": {
            "f1_micro": _f1_micro_of_cells,
            "f1_macro": _f1_macro_of_columns,
            "exact_match": _exact_match,
        },
        "regression": {"pearson": _pearson, "spearman": _spearman, "mse": mean_squared_error},
    }
)
LOWER_IS_BETTER = ("mse",)

_ALWAYS = "matthews"  # of all metrics the one that a majority class cannot flatter


def told_metrics(names: tuple[str, ...], problem_type: ProblemType) -> tuple[str, ...]:
    """Return a task's metrics, and Matthews' correlation for every classification."""
    return (*names, _ALWAYS) if names and problem_type == "classification" and _ALWAYS not in names else names
