"""Scores of thousands of resamples of the same rows, for every seed at once.

A resample is how often each row was drawn; rows on which all seeds answered alike are counted together, so that for
classes 25,000 rows are a few dozen counts, and scores are sums of counts. Resamples are shared by all seeds (and by
both methods of a comparison), because all of them answered the same rows. The formulas are those of metrics.py, and
the tests hold them equal. What the spread of the scores means is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.config import ProblemType
from registry.tasks.metrics import (
    check_metrics,
    of_probabilities,
    own_score,
    predicted_labels,
    ranked_columns,
    squared_errors,
)
from registry.tasks.spec import is_own_metric
from registry.validation import require

Floats = NDArray[np.float64]
Sums = Callable[[NDArray[Any]], Floats]

_BLOCK = 4_000_000  # counts held at a time, 32 MB
_CONSTANT = 1e-12  # share of the mean square below which a variance is rounding


def check_answers(problem_type: ProblemType, metric: str, labels: NDArray[Any], probabilities: NDArray[Any]) -> None:
    """Refuse labels and probabilities that are not S seeds' answers to the same R rows.

    Args:
        problem_type: decides what labels and probabilities are.
        metric: a name from METRICS.
        labels: (R,), or (R, C) zeros and ones for multi-label tasks.
        probabilities: (S, R, C); for regression (S, R, 1).

    Raises:
        ConfigError: another shape, no rows, no seeds, NaN, a class without a probability, a metric that does not fit.
    """
    rows, shape = len(labels) if labels.ndim else 0, probabilities.shape
    good = len(shape) == 3 and min(shape) > 0 and shape[1] == rows
    require(good, "probabilities", f"shape (seeds, {max(rows, 1)}, classes)", shape)
    wanted = (rows, shape[2]) if problem_type == "multi_label" else (rows,)
    require(labels.shape == wanted, "labels", f"shape {wanted}", labels.shape)
    require(bool(np.isfinite(probabilities).all()), "probabilities", "finite numbers", "NaN or infinity")
    check_metrics(problem_type, shape[2], (metric,))
    if problem_type == "regression":
        require(shape[2] == 1, "probabilities", "one value a row", shape)
        require(bool(np.isfinite(labels).all()), "labels", "finite numbers", "NaN or infinity")
    else:
        require(labels.dtype.kind in "iub", "labels", "whole numbers", labels.dtype.name)
        most = 1 if problem_type == "multi_label" else shape[2] - 1
        inside = bool((labels >= 0).all() and (labels <= most).all())
        require(inside, "labels", f"from 0 to {most}", f"{labels.min()} to {labels.max()}")


def resampled_scores(
    problem_type: ProblemType,
    metric: str,
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    resamples: int,
    generator: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Return the (S,) scores of the seeds, and their (S, resamples) scores on rows drawn with replacement.

    Column b of the second array has the scores of all seeds on the same drawn rows. Arguments are as in
    ``check_answers``, which is called first.
    """
    check_answers(problem_type, metric, labels, probabilities)
    answers = [one if of_probabilities(metric) else predicted_labels(problem_type, one) for one in probabilities]
    found = np.stack(answers, axis=1)  # (R, S) or (R, S, C)
    expected, found, rows_of = _grouped(np.asarray(labels), found)
    scorers = [_scorer(problem_type, metric, probabilities.shape[2], expected, one) for one in np.moveaxis(found, 1, 0)]
    once = np.bincount(rows_of, minlength=len(expected))[np.newaxis]
    blocks = [np.stack([sums(counts) for sums in scorers]) for counts in _drawn(rows_of, resamples, generator)]
    return np.stack([sums(once) for sums in scorers])[:, 0], np.concatenate(blocks, axis=1)


def _grouped(labels: NDArray[Any], found: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Return the K distinct (label, answers of all seeds), and for each row which of them it is."""
    table = np.concatenate([labels.reshape(len(labels), -1), found.reshape(len(labels), -1)], axis=1)
    if table.dtype.kind == "f":
        return labels, found, np.arange(len(labels))  # numbers hardly repeat
    base, columns = int(table.max()) + 1, table.shape[1]
    if base**columns < 2**63:  # one number for a whole row sorts many times faster
        _, first, rows_of = np.unique(table @ base ** np.arange(columns), return_index=True, return_inverse=True)
    else:
        _, first, rows_of = np.unique(table, axis=0, return_index=True, return_inverse=True)
    return labels[first], found[first], rows_of.reshape(-1)


def _drawn(rows_of: NDArray[np.int64], resamples: int, generator: np.random.Generator) -> Iterator[NDArray[Any]]:
    """Yield blocks of (b, K) float64 counts of rows drawn with replacement."""
    times = np.bincount(rows_of)
    kinds, rows = len(times), len(rows_of)
    block = max(1, _BLOCK // kinds)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        if 4 * kinds < rows:  # drawing a count for each kind takes longer than drawing a row, but there are fewer
            yield generator.multinomial(rows, times / rows, size=size).astype(np.float64)
        else:
            draws = (rows_of[generator.integers(0, rows, rows)] for _ in range(size))
            yield np.stack([np.bincount(one, minlength=kinds) for one in draws]).astype(np.float64)


def _scorer(problem_type: ProblemType, metric: str, classes: int, labels: NDArray[Any], found: NDArray[Any]) -> Sums:
    """Return the function from (b, K) counts of rows to (b,) scores of one seed."""
    if metric in ("accuracy", "exact_match", "mse"):
        difference = (labels - found.astype(np.float64)).reshape(len(labels), -1)
        each = (difference**2).mean(axis=1) if metric == "mse" else (difference == 0).all(axis=1)
        return lambda counts: (counts @ each.astype(np.float64)) / counts.sum(axis=1)
    if metric == "pearson":
        x, y = (values.astype(np.float64) - values.mean(dtype=np.float64) for values in (labels, found))
        return lambda counts: _correlation(counts, x, y)
    if metric == "spearman":
        x_ranks, y_ranks = _middle_ranks(labels), _middle_ranks(found)
        return lambda counts: _correlation(counts, x_ranks(counts), y_ranks(counts))
    if is_own_metric(metric):
        return _own(metric, labels, found)
    if metric == "brier_score":
        errors = squared_errors(labels, found)
        return lambda counts: np.asarray((counts @ errors) / counts.sum(axis=1))
    if of_probabilities(metric):
        one = _roc_auc if metric == "roc_auc" else _average_precision
        return _mean_of_defined([one(ones, scores) for ones, scores in ranked_columns(problem_type, labels, found)])
    if problem_type == "classification":
        labels, found = np.eye(classes, dtype=np.int64)[labels], np.eye(classes, dtype=np.int64)[found]
    parts = np.concatenate([labels * found, labels, found], axis=1).astype(np.float64)  # (K, 3 C)
    formula = _FORMULAS[problem_type][metric]

    def of_counts(counts: NDArray[Any]) -> Floats:
        hits, there, said = np.split(counts @ parts, 3, axis=1)
        return formula(hits, there, said)

    return of_counts


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _f1(hits: Floats, there: Floats, said: Floats) -> Floats:
    return _ratio(2 * hits, there + said)


def _precision(hits: Floats, there: Floats, said: Floats) -> Floats:
    return _ratio(hits, said)


def _recall(hits: Floats, there: Floats, said: Floats) -> Floats:
    return _ratio(hits, there)


Rates = Callable[[Floats, Floats, Floats], Floats]  # of hits, rows that are and rows that are said to be, each (b, C)


def _of_ones(rate: Rates) -> Rates:
    return lambda hits, there, said: rate(hits, there, said)[:, 1]


def _over_classes(rate: Rates) -> Rates:
    """Return the mean over the classes that occur, as scikit-learn averages."""
    return lambda hits, there, said: rate(hits, there, said).sum(axis=1) / (there + said > 0).sum(axis=1)


def _over_columns(rate: Rates) -> Rates:
    return lambda hits, there, said: np.asarray(rate(hits, there, said).mean(axis=1))


def _over_cells(rate: Rates) -> Rates:
    return lambda hits, there, said: rate(hits.sum(axis=1), there.sum(axis=1), said.sum(axis=1))


def _balanced_accuracy(hits: Floats, there: Floats, said: Floats) -> Floats:
    return np.asarray(_recall(hits, there, said).sum(axis=1) / (there > 0).sum(axis=1))


def _cohen_kappa(hits: Floats, there: Floats, said: Floats) -> Floats:
    rows = there.sum(axis=1)
    by_chance = (there * said).sum(axis=1) / rows
    return _ratio(hits.sum(axis=1) - by_chance, rows - by_chance)


def _f1_weighted(hits: Floats, there: Floats, said: Floats) -> Floats:
    weighted: Floats = (_f1(hits, there, said) * there).sum(axis=1) / there.sum(axis=1)
    return weighted


def _matthews(hits: Floats, there: Floats, said: Floats) -> Floats:
    """Return the K-class correlation of Gorodkin 2004, from how often each class is, is said, and is hit."""
    rows = there.sum(axis=1)
    covariance = rows * hits.sum(axis=1) - (there * said).sum(axis=1)
    spread = (rows**2 - (there**2).sum(axis=1)) * (rows**2 - (said**2).sum(axis=1))
    return _ratio(covariance, np.sqrt(spread))


_FORMULAS: Mapping[str, Mapping[str, Rates]] = MappingProxyType(
    {
        "classification": {
            "f1_binary": _of_ones(_f1),
            "f1_weighted": _f1_weighted,
            "f1_macro": _over_classes(_f1),
            "matthews": _matthews,
            "precision": _of_ones(_precision),
            "recall": _of_ones(_recall),
            "precision_macro": _over_classes(_precision),
            "recall_macro": _over_classes(_recall),
            "balanced_accuracy": _balanced_accuracy,
            "cohen_kappa": _cohen_kappa,
        },
        "multi_label": {
            "f1_micro": _over_cells(_f1),
            "f1_macro": _over_columns(_f1),
            "precision_micro": _over_cells(_precision),
            "recall_micro": _over_cells(_recall),
            "precision_macro": _over_columns(_precision),
            "recall_macro": _over_columns(_recall),
        },
    }
)


def _mean_of_defined(columns: Sequence[Sums]) -> Sums:
    """Return the mean over columns of scores that are NaN where the drawn rows leave them undefined, 0 where all do."""

    def mean(counts: NDArray[Any]) -> Floats:
        scores = np.stack([sums(counts) for sums in columns])
        there = ~np.isnan(scores)
        return _ratio(np.where(there, scores, 0.0).sum(axis=0), there.sum(axis=0).astype(np.float64))

    return mean


def _own(metric: str, labels: NDArray[Any], found: NDArray[Any]) -> Sums:
    """Return the function that scores drawn rows one resample at a time, as nothing is known of the metric."""

    def scores(counts: NDArray[Any]) -> Floats:
        times = counts.astype(np.int64)
        return np.array([own_score(metric, labels.repeat(one, 0), found.repeat(one, 0)) for one in times])

    return scores


def _by_rank(ones: NDArray[Any], scores: NDArray[Any]) -> Callable[[NDArray[Any]], tuple[Floats, Floats]]:
    """Return the function from (b, K) counts to (b, T) ones and zeros of each of T different scores, falling."""
    _, place = np.unique(-scores, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(place.max() + 1))
    is_one = ones[order].astype(np.float64)

    def ranked(counts: NDArray[Any]) -> tuple[Floats, Floats]:
        sorted_counts = counts[:, order]
        hits = np.add.reduceat(sorted_counts * is_one, starts, axis=1)
        return hits, np.add.reduceat(sorted_counts, starts, axis=1) - hits

    return ranked


def _or_nan(above: Floats, below: Floats) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0))


def _roc_auc(ones: NDArray[Any], scores: NDArray[Any]) -> Sums:
    """Return the share of pairs of a one and a zero in which the one scores higher, ties counting half."""
    ranked = _by_rank(ones, scores)

    def area(counts: NDArray[Any]) -> Floats:
        hits, misses = ranked(counts)
        below = misses.sum(axis=1, keepdims=True) - np.cumsum(misses, axis=1) + misses / 2
        pairs = hits.sum(axis=1) * misses.sum(axis=1)
        return _or_nan((hits * below).sum(axis=1), pairs)

    return area


def _average_precision(ones: NDArray[Any], scores: NDArray[Any]) -> Sums:
    """Return the mean precision at each one, equal scores being taken together."""
    ranked = _by_rank(ones, scores)

    def mean(counts: NDArray[Any]) -> Floats:
        hits, misses = ranked(counts)
        found = np.cumsum(hits, axis=1)
        precision = _ratio(found, found + np.cumsum(misses, axis=1))
        total = hits.sum(axis=1)
        return _or_nan((precision * hits).sum(axis=1), total)

    return mean


def _correlation(counts: NDArray[Any], x: Floats, y: Floats) -> Floats:
    """Return (b,) linear correlations of values that count (b, K) times; x and y are (K,) or (b, K)."""
    rows, x_sum, y_sum = counts.sum(axis=1), _total(counts, x), _total(counts, y)
    x_square, y_square = rows * _total(counts, x**2), rows * _total(counts, y**2)
    x_spread, y_spread = x_square - x_sum**2, y_square - y_sum**2
    varied = (x_spread > _CONSTANT * x_square) & (y_spread > _CONSTANT * y_square)
    below = np.where(varied, np.sqrt(np.abs(x_spread * y_spread)), 0.0)
    return _ratio(rows * _total(counts, x * y) - x_sum * y_sum, below)


def _total(counts: NDArray[Any], values: Floats) -> Floats:
    total: Floats = counts @ values if values.ndim == 1 else np.einsum("bk,bk->b", counts, values)
    return total


def _middle_ranks(values: NDArray[Any]) -> Callable[[NDArray[Any]], Floats]:
    """Return the function from (b, K) counts to (b, K) ranks around 0 of values that count so many times.

    Equal values share the middle of their ranks.
    """
    _, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(place.max() + 1))

    def ranks(counts: NDArray[Any]) -> Floats:
        found = np.empty(counts.shape)
        for one, into in zip(counts, found, strict=True):  # one at a time stays within the processor's cache
            ties = np.add.reduceat(one[order], starts)
            into[:] = (np.cumsum(ties) - (ties + one.sum()) / 2)[place]
        return found

    return ranks
