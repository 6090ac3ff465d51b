"""Scores, against numbers worked out by hand or by the textbook formula."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from registry.errors import ConfigError, ShapeMismatchError
from registry.tasks.loading import load_task
from registry.tasks.metrics import check_metrics, default_metrics, score, use_metric
from registry.tasks.spec import METRICS, find_task, replace_split

DATA = Path(__file__).parents[3] / "shared" / "data"


def one_hot(classes: list[int], count: int) -> np.ndarray:
    """Return probabilities that are certain of these classes."""
    return np.eye(count, dtype=np.float32)[classes]


def test_two_classes_score_as_by_hand() -> None:
    """With 3 true positives, 1 false positive, 2 false negatives and 4 true negatives every number is known."""
    labels = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    found = one_hot([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], 2)
    expected = {
        "accuracy": 7 / 10,
        "f1_binary": 6 / 9,
        "f1_weighted": (6 / 9 + 8 / 11) / 2,
        "f1_macro": (6 / 9 + 8 / 11) / 2,
        "matthews": (3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6),
        "precision": 3 / 4,
        "recall": 3 / 5,
        "precision_macro": (3 / 4 + 4 / 6) / 2,
        "recall_macro": (3 / 5 + 4 / 5) / 2,
        "balanced_accuracy": (3 / 5 + 4 / 5) / 2,
        "cohen_kappa": (7 - 5) / (10 - 5),  # by chance (5 * 4 + 5 * 6) / 10 are right
        "roc_auc": (3 * 4 + (3 * 1 + 2 * 4) / 2) / 25,  # two scores only: all ties within them count half
        "average_precision": 3 / 4 * 3 / 5 + 5 / 10 * 2 / 5,
        "brier_score": 3 / 10,  # all are said for certain, three wrongly
    }
    assert pytest.approx(expected) == score("classification", labels, found, METRICS["classification"])


def test_three_classes_weigh_by_size_or_not() -> None:
    """Weighted F1 counts every row, macro F1 every class."""
    labels = [0, 0, 0, 0, 1, 2]
    found = one_hot([0, 0, 0, 0, 1, 1], 3)
    expected = {"f1_weighted": (4 * 1 + 2 / 3 + 0) / 6, "f1_macro": (1 + 2 / 3 + 0) / 3}
    assert pytest.approx(expected) == score("classification", labels, found, ("f1_weighted", "f1_macro"))


def share_of_thirds(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return an own metric: the rows whose truth has at least a third."""
    return float((probabilities[np.arange(len(labels)), labels] >= 1 / 3).mean())


def test_own_metrics_run_only_where_they_were_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function scores under its name; a stored name alone imports nothing, and a failing one is told."""
    found = np.array([[0.6, 0.4], [0.2, 0.8], [0.9, 0.1]])
    name = use_metric(share_of_thirds)
    assert score("classification", [0, 0, 0], found, ("accuracy", name)) == {"accuracy": 2 / 3, name: 2 / 3}
    (tmp_path / "ours.py").write_text("def zero(labels, probabilities):\n    return 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"known here, found 'ours:zero'.*--metric ours:zero"):
        score("classification", [0, 0, 0], found, ("ours:zero",))
    assert "ours" not in sys.modules
    use_metric("ours:zero")
    with pytest.raises(ConfigError, match="metric ours:zero of 3 rows: expected a number, found .ZeroDivisionError"):
        score("classification", [0, 0, 0], found, ("ours:zero",))
    with pytest.raises(ConfigError, match="a function that can be imported from here"):
        use_metric("ours:none")


@pytest.mark.parametrize("answer", [0, 1])
def test_constant_answers_have_scores_without_warnings(answer: int) -> None:
    """Answers that never differ score 0 where nothing is defined, and warn of nothing."""
    found = score("classification", [0, 0], one_hot([answer] * 2, 2), METRICS["classification"])
    assert {"accuracy": 1.0 - answer, "f1_binary": 0.0, "matthews": 0.0} == {
        name: found[name] for name in ("accuracy", "f1_binary", "matthews")
    }


def test_multi_label_scores_as_by_hand() -> None:
    """Micro F1 counts cells, macro F1 columns, exact match whole rows; 0.5 is a yes."""
    labels = [(1, 0, 1), (0, 0, 1), (1, 0, 0)]
    found = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4], [0.8, 0.7, 0.1]], dtype=np.float32)
    expected = {"f1_micro": 6 / 8, "f1_macro": (1 + 0 + 2 / 3) / 3, "exact_match": 1 / 3}
    expected |= {"precision_micro": 3 / 4, "recall_micro": 3 / 4}
    expected |= {"precision_macro": (1 + 0 + 1) / 3, "recall_macro": (1 + 0 + 1 / 2) / 3}
    # The second label has no ones: neither ranking is defined for it.
    expected |= {"roc_auc": (1 + 1) / 2, "average_precision": (1 + 1) / 2}
    squares = (0.01 + 0.01 + 0.25) + (0.04 + 0.09 + 0.36) + (0.04 + 0.49 + 0.01)
    expected |= {"brier_score": squares / 9}
    assert pytest.approx(expected) == score("multi_label", labels, found, METRICS["multi_label"])


def test_one_label_is_scored_on_its_ones() -> None:
    """A multi-label task of one label does not count its zeros as hits."""
    found = np.array([[0.1], [0.2], [0.3], [0.9]], dtype=np.float32)
    expected = {"f1_micro": 2 / 3, "f1_macro": 2 / 3, "exact_match": 0.75}
    assert pytest.approx(expected) == score("multi_label", [(1,), (0,), (0,), (1,)], found, tuple(expected))


def test_regression_scores_as_by_hand() -> None:
    """A monotone curve has rank correlation 1 and a lower linear one; ties share ranks."""
    found = np.array([[1.0], [4.0], [9.0], [16.0]], dtype=np.float32)
    scores = score("regression", [1.0, 2.0, 3.0, 4.0], found, METRICS["regression"])
    expected = {"pearson": 25 / np.sqrt(5 * 129), "spearman": 1.0, "mse": (0 + 4 + 36 + 144) / 4}
    assert pytest.approx(expected) == scores
    tied = score("regression", [1.0, 1.0, 2.0], np.array([[1.0], [2.0], [3.0]]), ("spearman",))
    assert pytest.approx({"spearman": np.sqrt(3) / 2}) == tied


def test_constant_numbers_correlate_with_nothing() -> None:
    """A prediction that never differs has correlation 0, not NaN."""
    found = score("regression", [1.0, 2.0], np.ones((2, 1)), ("pearson", "spearman", "mse"))
    assert {"pearson": 0.0, "spearman": 0.0, "mse": 0.5} == found


@pytest.mark.parametrize(
    ("problem_type", "classes", "metrics"),
    [
        ("classification", 2, ("accuracy", "f1_binary", "f1_weighted")),
        ("classification", 3, ("accuracy", "f1_weighted", "f1_macro")),
        ("multi_label", 4, ("f1_micro", "f1_macro", "exact_match")),
        ("regression", 1, ("pearson", "spearman", "mse")),
    ],
)
def test_usual_metrics_fit(problem_type: str, classes: int, metrics: tuple[str, ...]) -> None:
    """Every problem type has metrics that its scores can be computed for."""
    assert metrics == default_metrics(problem_type, classes)  # type: ignore[arg-type]
    check_metrics(problem_type, classes, metrics)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("problem_type", "classes", "metric", "message"),
    [
        ("classification", 2, "acuracy", "found 'acuracy'; did you mean 'accuracy'"),
        ("classification", 2, "pearson", "one of accuracy, f1_binary, f1_weighted, f1_macro, matthews"),
        ("classification", 3, "f1_binary", "ones for 3 classes, f1_macro say, found 'f1_binary'"),
        ("multi_label", 3, "accuracy", "one of f1_micro, f1_macro, exact_match"),
    ],
)
def test_metric_that_does_not_fit_is_refused(problem_type: str, classes: int, metric: str, message: str) -> None:
    """An unknown metric, or one of another problem type, is refused by name."""
    with pytest.raises(ConfigError, match=message):
        score(problem_type, [0], np.ones((1, classes)), (metric,))  # type: ignore[arg-type]


def test_answers_must_be_as_many_as_labels() -> None:
    """A row of probabilities too few is an error, not a lower score."""
    with pytest.raises(ShapeMismatchError, match=r"'probabilities': expected shape \(3, 'C'\), found \(2, 2\)"):
        score("classification", [0, 1, 1], one_hot([0, 1], 2), ("accuracy",))
    with pytest.raises(ShapeMismatchError, match=r"'labels': expected shape \(1, 2\), found \(1, 3\)"):
        score("multi_label", [(0, 1, 1)], np.ones((1, 2)), ("f1_micro",))


def test_answers_must_be_finite() -> None:
    """The answers of a diverged model get no score."""
    with pytest.raises(ConfigError, match="probabilities: expected finite numbers"):
        score("classification", [0], np.array([[np.nan, 1.0]]), ("accuracy",))


@pytest.mark.skipif(not DATA.is_dir(), reason="the research data is not here")
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("validation", {"accuracy": 0.684, "f1_binary": 0.812, "f1_weighted": 0.555, "f1_macro": 0.406}),
        ("test", {"accuracy": 0.665, "f1_binary": 0.799, "f1_weighted": 0.531, "f1_macro": 0.399}),
    ],
)
def test_majority_on_mrpc_scores_as_published(split: str, expected: dict[str, float]) -> None:
    """Always answering 'equivalent' gives the known scores on MRPC."""
    rows = load_task(replace_split(find_task("mrpc"), split), str(DATA)).reported
    found = score("classification", rows.labels, one_hot([1] * len(rows), 2), tuple(expected))
    assert pytest.approx(expected, abs=5e-4) == found
