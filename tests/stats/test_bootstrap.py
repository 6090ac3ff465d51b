"""Scores of resamples, against scikit-learn on the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from registry.config import ProblemType
from registry.errors import ConfigError
from registry.stats.bootstrap import resampled_scores
from registry.tasks.metrics import score, use_metric
from registry.tasks.spec import METRICS, OF_ONE_CLASS

ALL = [(problem_type, metric) for problem_type, metrics in METRICS.items() for metric in metrics]


def random_answers(
    problem_type: ProblemType, rows: int, seeds: int, classes: int, rng: np.random.Generator
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return labels and the seeds' probabilities, some classes rare or never said."""
    if problem_type == "multi_label":
        labels = (rng.random((rows, classes)) < rng.random(classes)).astype(np.int64)
        return labels, rng.random((seeds, rows, classes)).astype(np.float32)
    if problem_type == "regression":
        labels = rng.integers(0, 11, rows) / 2.0  # ties, as in STS-B
        return labels, (labels + rng.normal(size=(seeds, rows)))[..., np.newaxis].astype(np.float32)
    labels = rng.choice(classes, rows, p=rng.dirichlet(np.ones(classes)))
    noise = rng.random((seeds, rows, classes)) + rng.random(classes)
    sure = noise + 0.7 * np.eye(classes)[labels]
    return labels, (sure / sure.sum(axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("problem_type", "metric"), ALL)
def test_scores_of_drawn_rows_are_those_of_metrics(problem_type: ProblemType, metric: str) -> None:
    """On random tables, with classes that are missing among them, resamples score as their rows do alone."""
    for table in range(12):
        rng = np.random.default_rng(table)
        rows, classes = int(rng.integers(1, 12)), 2 if metric in OF_ONE_CLASS else int(rng.integers(2, 5))
        rows = min(rows, 4) if problem_type == "classification" else rows  # so few are drawn one by one
        classes = 1 if problem_type == "regression" else classes
        labels, probabilities = random_answers(problem_type, rows, 2, classes, rng)
        scores, drawn = resampled_scores(problem_type, metric, labels, probabilities, 3, np.random.default_rng(table))
        again = np.random.default_rng(table)
        picks = [np.arange(rows), *(again.integers(0, rows, rows) for _ in range(3))]
        expected = [
            [score(problem_type, labels[pick], one[pick], (metric,))[metric] for pick in picks] for one in probabilities
        ]
        np.testing.assert_allclose(np.concatenate([scores[:, np.newaxis], drawn], axis=1), expected, atol=1e-7)


@pytest.mark.parametrize("metric", METRICS["classification"])
def test_scores_of_many_rows_are_those_of_metrics(metric: str) -> None:
    """Rows counted together score as they do one by one, and resamples spread around that as drawn rows do."""
    labels, probabilities = random_answers("classification", 400, 3, 2, np.random.default_rng(1))
    scores, drawn = resampled_scores("classification", metric, labels, probabilities, 4_000, np.random.default_rng(0))
    expected = [score("classification", labels, one, (metric,))[metric] for one in probabilities]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    rng = np.random.default_rng(5)
    picks = [rng.integers(0, 400, 400) for _ in range(200)]
    one_by_one = [
        [score("classification", labels[p], one[p], (metric,))[metric] for p in picks] for one in probabilities
    ]
    np.testing.assert_allclose(drawn.mean(axis=1), np.mean(one_by_one, axis=1), atol=0.01)
    np.testing.assert_allclose(np.cov(drawn), np.cov(one_by_one), rtol=0.3, atol=3e-4)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_random_tables_score_as_scikit_learn_says(classes: int) -> None:
    """Counted rows give the numbers of scikit-learn on random tables, rare and missing classes among them."""
    for table in range(20):
        rng = np.random.default_rng([classes, table])
        labels, probabilities = random_answers("classification", int(rng.integers(5, 300)), 1, classes, rng)
        metrics = tuple(name for name in METRICS["classification"] if classes == 2 or name not in OF_ONE_CLASS)
        expected = score("classification", labels, probabilities[0], metrics)
        draw = np.random.default_rng(0)
        found = {
            name: resampled_scores("classification", name, labels, probabilities, 1, draw)[0][0] for name in metrics
        }
        assert pytest.approx(expected, abs=1e-12) == found


def mean_of_truth(labels: np.ndarray[Any, Any], probabilities: np.ndarray[Any, Any]) -> float:
    """Return the mean probability of what is true."""
    return float(probabilities[np.arange(len(labels)), labels].mean())


def test_own_metrics_are_resampled_too() -> None:
    """A function of one's own has the scores of the drawn rows, row by row."""
    name = use_metric(mean_of_truth)
    labels, probabilities = random_answers("classification", 40, 2, 3, np.random.default_rng(3))
    scores, drawn = resampled_scores("classification", name, labels, probabilities, 5, np.random.default_rng(0))
    again = np.random.default_rng(0)
    picks = [np.sort(again.integers(0, 40, 40)) for _ in range(5)]
    np.testing.assert_allclose(scores, [mean_of_truth(labels, one) for one in probabilities], rtol=1e-6)
    expected = [[mean_of_truth(labels[pick], one[pick]) for pick in picks] for one in probabilities]
    np.testing.assert_allclose(drawn, expected, rtol=1e-6)


def test_all_seeds_get_the_same_drawn_rows() -> None:
    """Two seeds with the same answers have the same score on every resample."""
    labels, probabilities = random_answers("classification", 50, 1, 3, np.random.default_rng(2))
    twice = np.concatenate([probabilities, probabilities])
    _, drawn = resampled_scores("classification", "f1_macro", labels, twice, 200, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert len(np.unique(drawn)) > 20


@pytest.mark.parametrize(
    ("problem_type", "metric", "labels", "shape", "message"),
    [
        (
            "classification",
            "accuracy",
            [0, 1],
            (2, 2),
            r"probabilities: expected shape \(seeds, 2, classes\), found \(2, 2",
        ),
        ("classification", "accuracy", [0, 1], (1, 3, 2), r"expected shape \(seeds, 2, classes\), found \(1, 3, 2\)"),
        ("classification", "accuracy", [], (1, 0, 2), r"expected shape \(seeds, 1, classes\), found \(1, 0, 2\)"),
        ("classification", "accuracy", [0, 1], (0, 2, 2), r"expected shape \(seeds, 2, classes\), found \(0, 2, 2\)"),
        ("classification", "accuracy", [0, 2], (1, 2, 2), "labels: expected from 0 to 1, found '0 to 2'"),
        ("classification", "accuracy", [0.0, 1.0], (1, 2, 2), "labels: expected whole numbers, found 'float64'"),
        ("classification", "acuracy", [0, 1], (1, 2, 2), "did you mean 'accuracy'"),
        ("classification", "f1_binary", [0, 1], (1, 2, 3), "ones for 3 classes"),
        ("multi_label", "f1_micro", [0, 1], (1, 2, 2), r"labels: expected shape \(2, 2\), found \(2,\)"),
        ("regression", "mse", [0.5, np.nan], (1, 2, 1), "labels: expected finite numbers"),
        ("regression", "mse", [0.5, 1.0], (1, 2, 2), "probabilities: expected one value a row"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    problem_type: ProblemType, metric: str, labels: list[Any], shape: tuple[int, ...], message: str
) -> None:
    """Wrong shapes, labels and metrics are told by name."""
    with pytest.raises(ConfigError, match=message):
        resampled_scores(problem_type, metric, np.array(labels), np.ones(shape), 10, np.random.default_rng(0))


def test_answers_of_a_diverged_run_are_refused() -> None:
    """NaN has no score and no interval."""
    answers = np.full((1, 2, 2), np.nan)
    with pytest.raises(ConfigError, match="probabilities: expected finite numbers"):
        resampled_scores("classification", "accuracy", np.array([0, 1]), answers, 10, np.random.default_rng(0))
