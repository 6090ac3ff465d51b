"""Scores of predictions, by scikit-learn, under names that say exactly which number it is.

``f1_binary``, ``precision`` and ``recall`` are those of class 1, as GLUE reports MRPC; ``_weighted``, ``_macro`` and
``_micro`` are other numbers. ``roc_auc`` is one against rest, the mean over classes or labels. Where a score is
undefined (nothing predicted, constant predictions, one class) it is 0. Nothing here knows of tasks, rows or models.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    cohen_kappa_score,
    f1_score,
    matthews_corrcoef,
    mean_squared_error,
    precision_score,
    recall_score,
    roc_auc_score,
)

from registry.config import ProblemType
from registry.errors import ConfigError, ShapeMismatchError
from registry.tasks.spec import METRICS, OF_ONE_CLASS, is_own_metric
from registry.validation import choose, require

THRESHOLD = 0.5
Array = np.ndarray[Any, np.dtype[Any]]

_FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)  # of code not ours
_OWN: dict[str, Callable[[Array, Array], float]] = {}  # a stored name alone never runs code


def use_metric(metric: str | Callable[[Array, Array], float]) -> str:
    """Make a metric of one's own known to this process, and return its name, ``module:function``.

    Args:
        metric: the function or its name. It gets the (R,) class indices, (R, C) zeros and ones or (R,) numbers of the
            rows and their (R, C) probabilities, and returns one number of which more is better.

    Raises:
        ConfigError: no such function.
    """
    if not isinstance(metric, str):
        name = f"{metric.__module__}:{metric.__qualname__.replace('<', '').replace('>', '')}"
        _OWN[name] = metric
        return name
    require(is_own_metric(metric), "metric", "module:function", metric)
    module, function = metric.split(":")
    if os.getcwd() not in sys.path:  # a module beside the data, as 'python -m' would find it
        sys.path.append(os.getcwd())
    try:
        found: Any = import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as err:
        raise ConfigError(f"metric {metric}", "a function that can be imported from here", str(err)) from err
    require(callable(found), f"metric {metric}", "a function", type(found).__name__)
    _OWN[metric] = found
    return metric


def own_score(metric: str, labels: Array, probabilities: Array) -> float:
    """Return what a metric of one's own gives.

    Raises:
        ConfigError: it fails, or gives no finite number.
    """
    attempted = f"metric {metric} of {len(labels):,} rows"
    try:
        value = float(_OWN[metric](labels, probabilities))
    except _FAILURES as err:
        raise ConfigError(attempted, "a number", f"{type(err).__name__}: {err}") from err
    require(bool(np.isfinite(value)), attempted, "a finite number", value)
    return value


def default_metrics(problem_type: ProblemType, classes: int) -> tuple[str, ...]:
    """Return the usual metrics of a problem type, the main one first."""
    if problem_type != "classification":
        return METRICS[problem_type][:3]
    return ("accuracy", "f1_binary", "f1_weighted") if classes == 2 else ("accuracy", "f1_weighted", "f1_macro")


def check_metrics(problem_type: ProblemType, classes: int, metrics: Sequence[str]) -> None:
    """Refuse metrics that do not fit, so that a typing error shows before hours of training.

    Raises:
        ConfigError: an unknown metric, one of another problem type, or of one class with other than two classes.
    """
    for metric in metrics:
        if metric in _OWN:
            continue
        if is_own_metric(metric):
            hint = f"--metric {metric}, or use_metric in Python, which runs its code"
            raise ConfigError("metrics", "one that is known here", metric, hint)
        choose(metric, METRICS[problem_type], "metrics")
    if problem_type == "classification" and classes != 2:
        found = next((metric for metric in metrics if metric in OF_ONE_CLASS), None)
        require(found is None, "metrics", f"ones for {classes} classes, f1_macro say", found)


def predicted_labels(problem_type: ProblemType, probabilities: Array) -> Array:
    """Return what (rows, C) probabilities say: the likeliest class, a yes or no per label, or the number itself."""
    if problem_type == "classification":
        found: Array = probabilities.argmax(axis=1)
    elif problem_type == "multi_label":
        found = (probabilities >= THRESHOLD).astype(np.int64)
    else:
        found = probabilities[:, 0]
    return found


def centre_thresholds(probabilities: Array, thresholds: Sequence[float]) -> Array:
    """Return (rows, C) probabilities moved so that one half is where each label is said; their order stays.

    Args:
        probabilities: (rows, C), or further dimensions in front.
        thresholds: (C,) between 0 and 1.
    """
    at = np.asarray(thresholds, dtype=np.float64)
    said = probabilities >= at.astype(probabilities.dtype)
    above, below = 0.5 + 0.5 * (probabilities - at) / (1 - at), 0.5 * probabilities / at
    under = np.nextafter(probabilities.dtype.type(THRESHOLD), probabilities.dtype.type(0))
    moved = np.where(said, np.maximum(above, THRESHOLD), np.minimum(below, under))
    return moved.astype(probabilities.dtype)


def score(
    problem_type: ProblemType,
    labels: Sequence[Any],
    probabilities: Array,
    metrics: tuple[str, ...],
    thresholds: Sequence[float] = (),
) -> dict[str, float]:
    """Return the value of each metric, in the order asked.

    Args:
        problem_type: decides what labels and probabilities are.
        labels: class indices, rows of 0 and 1, or numbers.
        probabilities: (rows, C); for regression (rows, 1) of predicted numbers.
        metrics: names from METRICS.
        thresholds: of each of several labels, where one half is not meant.

    Raises:
        ConfigError: a metric that does not fit, or probabilities that are not finite.
        ShapeMismatchError: not one row of probabilities for each label.
    """
    rows = len(labels)
    if probabilities.ndim != 2 or len(probabilities) != rows or rows == 0:
        raise ShapeMismatchError("probabilities", (max(rows, 1), "C"), probabilities.shape)
    check_metrics(problem_type, probabilities.shape[1], metrics)
    require(bool(np.isfinite(probabilities).all()), "probabilities", "finite numbers", "NaN or infinity")
    if thresholds:
        probabilities = centre_thresholds(probabilities, thresholds)
    expected, found = np.asarray(labels), predicted_labels(problem_type, probabilities)
    if expected.shape != found.shape:
        raise ShapeMismatchError("labels", found.shape, expected.shape)

    def value_of(metric: str) -> float:
        if metric in _OWN:
            return own_score(metric, expected, probabilities)
        return float(_SCORERS[problem_type][metric](expected, probabilities if of_probabilities(metric) else found))

    return {metric: value_of(metric) for metric in metrics}


def of_probabilities(metric: str) -> bool:
    """Return whether a metric looks at probabilities, how rows are ranked say, not at answers alone."""
    return metric in ("roc_auc", "average_precision", "brier_score") or metric in _OWN


def ranked_columns(problem_type: ProblemType, labels: Array, probabilities: Array) -> list[tuple[Array, Array]]:
    """Return pairs of (rows,) zeros and ones and scores by which rows are ranked, one a class or label.

    Two classes make one pair, that of class 1.
    """
    if problem_type == "multi_label":
        return [(labels[:, c], probabilities[:, c]) for c in range(labels.shape[1])]
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return [((labels == c).astype(np.int64), probabilities[:, c]) for c in classes]


def _mean_over_columns(
    problem_type: ProblemType, each: Callable[[Array, Array], float], least: int
) -> Callable[[Array, Array], float]:
    """Return the mean of a ranking's score over the columns in which it is defined.

    Args:
        problem_type: decides what the columns are.
        each: of zeros and ones and their scores.
        least: 2 where both zeros and ones have to be there, 1 where ones have to.
    """

    def mean(labels: Array, probabilities: Array) -> float:
        columns = ranked_columns(problem_type, labels, probabilities)
        defined = [(y, p) for y, p in columns if y.any() and (least == 1 or not y.all())]
        return float(np.mean([each(y, p) for y, p in defined])) if defined else 0.0

    return mean


def squared_errors(labels: Array, probabilities: Array) -> Array:
    """Return the (rows,) parts of the Brier score: of two classes that of class 1, of more the sum over all."""
    classes = probabilities.shape[1]
    wanted = labels if labels.ndim == 2 else np.eye(classes)[labels]
    errors = (probabilities - wanted) ** 2
    if labels.ndim == 2:
        return np.asarray(errors.mean(axis=1))
    return np.asarray(errors[:, 1] if classes == 2 else errors.sum(axis=1))


def _brier_score(labels: Array, probabilities: Array) -> float:
    return float(squared_errors(labels, probabilities).mean())


def _of_ones(scorer: Callable[..., Any]) -> Callable[[Array, Array], float]:
    return lambda labels, found: float(scorer(labels, found, labels=[1], average=None, zero_division=0.0)[0])


def _averaged(scorer: Callable[..., Any], average: str) -> Callable[[Array, Array], float]:
    return lambda labels, found: float(scorer(labels, found, average=average, zero_division=0.0))


def _balanced_accuracy(labels: Array, found: Array) -> float:
    return float(recall_score(labels, found, labels=np.unique(labels), average="macro", zero_division=0.0))


def _cohen_kappa(labels: Array, found: Array) -> float:
    same = len(np.unique(np.concatenate([labels, found]))) == 1
    return 0.0 if same else float(cohen_kappa_score(labels, found))


def _matthews(labels: Array, found: Array) -> float:
    constant = len(np.unique(labels)) == 1 or len(np.unique(found)) == 1
    return 0.0 if constant else float(matthews_corrcoef(labels, found))


def _of_cells(scorer: Callable[..., Any]) -> Callable[[Array, Array], float]:
    one = _of_ones(scorer)
    return lambda labels, found: one(labels.ravel(), found.ravel())


def _of_columns(scorer: Callable[..., Any]) -> Callable[[Array, Array], float]:
    one = _of_ones(scorer)
    return lambda labels, found: float(np.mean([one(labels[:, c], found[:, c]) for c in range(labels.shape[1])]))


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
            "f1_binary": _of_ones(f1_score),
            "f1_weighted": _averaged(f1_score, "weighted"),
            "f1_macro": _averaged(f1_score, "macro"),
            "matthews": _matthews,
            "precision": _of_ones(precision_score),
            "recall": _of_ones(recall_score),
            "precision_macro": _averaged(precision_score, "macro"),
            "recall_macro": _averaged(recall_score, "macro"),
            "balanced_accuracy": _balanced_accuracy,
            "cohen_kappa": _cohen_kappa,
            "brier_score": _brier_score,
            "roc_auc": _mean_over_columns("classification", roc_auc_score, 2),
            "average_precision": _mean_over_columns("classification", average_precision_score, 1),
        },
        "multi_label": {
            "f1_micro": _of_cells(f1_score),
            "f1_macro": _of_columns(f1_score),
            "exact_match": _exact_match,
            "precision_micro": _of_cells(precision_score),
            "recall_micro": _of_cells(recall_score),
            "precision_macro": _of_columns(precision_score),
            "recall_macro": _of_columns(recall_score),
            "roc_auc": _mean_over_columns("multi_label", roc_auc_score, 2),
            "average_precision": _mean_over_columns("multi_label", average_precision_score, 1),
            "brier_score": _brier_score,
        },
        "regression": {"pearson": _pearson, "spearman": _spearman, "mse": mean_squared_error},
    }
)

_ALWAYS = "matthews"  # of all metrics the one that a majority class cannot flatter


def told_metrics(names: tuple[str, ...], problem_type: ProblemType) -> tuple[str, ...]:
    """Return a task's metrics, and Matthews' correlation for every classification."""
    return (*names, _ALWAYS) if names and problem_type == "classification" and _ALWAYS not in names else names
