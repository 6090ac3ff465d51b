"""Two sets of answers to the same rows: counted by hand, careful with few rows, told in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from registry.config import ProblemType
from registry.errors import ConfigError
from registry.reports.contrast import points_text, sentence
from registry.stats.comparison import adjust_together, compare, compare_answers
from registry.stats.intervals import holm, minimum_detectable_difference, score_interval
from registry.stats.predictions import CellPredictions, changed_rows, list_changed_rows, why_not_same_rows
from registry.tasks.spec import METRICS


def answers_of(
    labels: Sequence[object], *probabilities: Sequence[Sequence[float]], kind: ProblemType = "classification"
) -> CellPredictions:
    """Return the answers of as many seeds as there are probabilities."""
    return CellPredictions(
        problem_type=kind,
        seeds=tuple(range(len(probabilities))),
        row_numbers=np.arange(len(labels), dtype=np.int64) + 10,
        labels=np.asarray(labels),
        probabilities=np.asarray(probabilities, dtype=np.float32),
    )


def sure_of(classes: Sequence[int], share: float = 0.75) -> list[list[float]]:
    """Return probabilities that say these classes of two."""
    return [[share, 1 - share] if each == 0 else [1 - share, share] for each in classes]


def random_answers(kind: ProblemType, seeds: int, start: int = 0, rows: int = 30) -> CellPredictions:
    """Return answers of a problem type that are right more often than not."""
    generator = np.random.default_rng(start)
    fixed = np.random.default_rng(99)
    if kind == "regression":
        labels = fixed.normal(size=rows)
        values = labels[:, np.newaxis] + generator.normal(0, 0.5, (seeds, rows, 1))
        return answers_of(labels, *values, kind=kind)
    if kind == "multi_label":
        labels = fixed.integers(0, 2, (rows, 3))
        return answers_of(labels, *np.clip(labels * 0.4 + generator.uniform(0, 0.6, (seeds, rows, 3)), 0, 1), kind=kind)
    labels = fixed.integers(0, 2, rows)
    shares = generator.uniform(0, 1, (seeds, rows, 2)) + 0.5 * np.eye(2)[labels]
    return answers_of(labels, *(shares / shares.sum(axis=2, keepdims=True)))


def test_counts_are_those_made_by_hand() -> None:
    """Who is right on which row, the rows answered differently, and McNemar's p of one against three rows."""
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    first = answers_of(labels, sure_of([0, 0, 0, 1, 1, 1, 0, 0]))
    second = answers_of(labels, sure_of([0, 1, 1, 0, 1, 0, 0, 0]))
    found = compare_answers(first, second, ("accuracy", "f1_binary"))
    (pair,) = found.pairs
    assert (2, 3, 1, 2) == (pair.both, pair.only_first, pair.only_second, pair.neither)
    assert 0.5 == pair.discordance
    assert pytest.approx(2 * (1 + 4) / 2**4) == pair.p
    assert (4, 8, 0.5) == (found.changed, found.rows, found.largest_change)
    assert [False, True, True, True, False, True, False, False] == changed_rows(first, second).tolist()
    assert (0.625, 0.375) == (found.metrics["accuracy"].first.mean, found.metrics["accuracy"].second.mean)
    assert 0.25 == found.main.comparison.difference.mean
    assert ("accuracy", False) == (found.main_metric, found.identical)


def test_identical_answers_are_told_to_be_so() -> None:
    """Equal bits are the same answers to every row; equal classes with other probabilities are not."""
    first = random_answers("classification", 1)
    same = compare_answers(first, first, ("accuracy",))
    assert (True, 0, 0.0) == (same.identical, same.changed, same.largest_change)
    assert "one and two gave the same answers to every row, to the bit" == sentence(same, "one", "two")
    assert not list_changed_rows(first, first)
    nearly = answers_of(
        first.labels, first.probabilities[0] * 0.5 + np.eye(2)[first.probabilities[0].argmax(axis=1)] * 0.5
    )
    found = compare_answers(first, nearly, ("accuracy",))
    assert (False, 0, 1.0) == (found.identical, found.changed, found.main.comparison.adjusted_p)
    assert sentence(found, "one", "two").endswith("+0.0 points [+0.0, +0.0], p 1.000; every row has the same answer")


@pytest.mark.parametrize("kind", list(METRICS))
def test_every_metric_has_intervals_and_a_difference(kind: ProblemType) -> None:
    """Scores and differences are those of a metric alone, for each problem type."""
    first, second = random_answers(kind, 3), random_answers(kind, 2, start=1)
    found = compare_answers(first, second, METRICS[kind])
    for metric in METRICS[kind]:
        one = found.metrics[metric]
        assert score_interval(kind, metric, first.labels, first.probabilities) == one.first
        expected = compare(first, second, metric).difference
        assert (expected.mean, expected.low, expected.high) == (
            one.comparison.difference.mean,
            one.comparison.difference.low,
            one.comparison.difference.high,
        )
        assert pytest.approx(one.first.mean - one.second.mean) == expected.mean
    assert (0 if kind == "regression" else 2) == len(found.pairs)
    assert kind != "regression" or math.isnan(found.detectable)


def test_trainings_pair_by_seed_or_else_in_order() -> None:
    """Seeds that both have are compared with each other; where none is shared, the first with the first."""
    first, second = random_answers("classification", 3), random_answers("classification", 2, start=1)
    assert [(0, 0), (1, 1)] == [pair.seeds for pair in compare_answers(first, second, ("accuracy",)).pairs]
    other = CellPredictions("classification", (7, 9), second.row_numbers, second.labels, second.probabilities)
    assert [(0, 7), (1, 9)] == [pair.seeds for pair in compare_answers(first, other, ("accuracy",)).pairs]


def test_multi_label_rows_are_right_as_a_whole() -> None:
    """A row with one wrong label of two is wrong, and its probability of the truth is the mean over labels."""
    labels = [[1, 0], [1, 1]]
    first = answers_of(labels, [[0.75, 0.25], [0.75, 0.75]], kind="multi_label")
    second = answers_of(labels, [[0.75, 0.75], [0.75, 1.0]], kind="multi_label")
    found = compare_answers(first, second, ("exact_match",))
    assert (1, 1, 0, 0) == (
        found.pairs[0].both,
        found.pairs[0].only_first,
        found.pairs[0].only_second,
        found.pairs[0].neither,
    )
    (row,) = list_changed_rows(first, second)
    assert (10, (1, 0), ((1, 0), (1, 1)), (1, 0), (0.75, 0.5)) == (
        row.row,
        row.label,
        row.answers,
        row.right,
        row.truth,
    )


def test_changed_rows_come_by_how_much() -> None:
    """The row with the largest change comes first, with the commonest answer, right seeds and mean probability."""
    labels = [0, 1, 1]
    first = answers_of(labels, [[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]], [[0.75, 0.25], [0.0, 1.0], [0.25, 0.75]])
    second = answers_of(labels, [[0.25, 0.75], [1.0, 0.0], [0.25, 0.75]], [[0.25, 0.75], [0.75, 0.25], [0.25, 0.75]])
    rows = list_changed_rows(first, second)
    assert [11, 10, 12] == [row.row for row in rows]
    top = rows[0]
    assert (1, 1, (1, 0), (2, 0), (0.875, 0.125), 0.75) == (
        top.place,
        top.label,
        top.answers,
        top.right,
        top.truth,
        top.change,
    )
    assert [11] == [row.row for row in list_changed_rows(first, second, 1)]
    assert not list_changed_rows(first, second, 0)


def test_regression_lists_values() -> None:
    """A row of a regression has the two values, and nothing that would be right or wrong."""
    first = answers_of([1.0, 2.0], [[1.5], [2.0]], kind="regression")
    second = answers_of([1.0, 2.0], [[1.0], [2.0]], kind="regression")
    (row,) = list_changed_rows(first, second)
    assert (10, 1.0, (1.5, 1.0), None, None, 0.5) == (
        row.row,
        row.label,
        row.answers,
        row.right,
        row.truth,
        row.change,
    )
    found = compare_answers(first, second, ("mse",))
    assert "+0.125 [0, +0.25]" == points_text(found.main.comparison)


def test_a_handful_of_rows_is_no_evidence() -> None:
    """Five rows that all speak for one method are no more than exchanging the two by chance would give."""
    labels = [0] * 5 + [1] * 5
    right, wrong = answers_of(labels, sure_of(labels)), answers_of(labels, sure_of([1] * 5 + [1] * 5))
    for metric in ("accuracy", "f1_binary"):
        found = compare_answers(right, wrong, (metric,))
        assert 0 < found.main.comparison.difference.low
        assert (0.0625, "not distinguishable") == (found.main.comparison.adjusted_p, found.verdict)


def test_one_training_each_has_mcnemars_p_for_accuracy() -> None:
    """The share of right rows of two trainings is tested exactly; other metrics and several seeds are resampled."""
    first, second = random_answers("classification", 1), random_answers("classification", 1, start=1)
    found = compare_answers(first, second, ("accuracy", "matthews"))
    assert found.pairs[0].p == found.metrics["accuracy"].comparison.adjusted_p
    assert compare(first, second, "matthews").difference.p == found.metrics["matthews"].comparison.adjusted_p


def test_sentence_says_which_is_better_or_what_could_have_shown() -> None:
    """Better and worse are told with interval and p; an open question with what so many rows can show."""
    labels = [0, 1] * 50
    good, bad = answers_of(labels, sure_of(labels)), answers_of(labels, sure_of([0] * 100))
    assert sentence(compare_answers(good, bad, ("accuracy",)), "a", "b").startswith(
        "a is better than b: accuracy +50.0"
    )
    assert sentence(compare_answers(bad, good, ("accuracy",)), "b", "a").startswith("b is worse than a: accuracy -50.0")
    close = answers_of(labels, sure_of([1 - labels[0], 1 - labels[1], *labels[2:]]))
    closer = answers_of(labels, sure_of([*labels[:92], *(1 - each for each in labels[92:])]))
    found = compare_answers(close, closer, ("accuracy",))
    least = 100 * minimum_detectable_difference(100, 0.1)
    told = sentence(found, "a", "b")
    assert told.startswith("a and b are not distinguishable: accuracy +6.0 points [")
    assert (
        f"100 rows would probably show a difference in right rows from {least:.1f} points on" in told
    ) != math.isnan(least)


def test_lower_error_is_better() -> None:
    """The verdict on an error is turned around: less of it is better."""
    labels = np.linspace(0, 1, 80)
    near = answers_of(labels, labels[:, np.newaxis] + 0.01, kind="regression")
    far = answers_of(labels, labels[:, np.newaxis] + np.linspace(0.4, 0.6, 80)[:, np.newaxis], kind="regression")
    assert "better" == compare_answers(near, far, ("mse",)).verdict
    assert "worse" == compare_answers(far, near, ("mse",)).verdict


def test_p_is_adjusted_over_all_cells_metric_by_metric() -> None:
    """Holm's method counts the cells of one metric; a single comparison is left as it is."""
    first = random_answers("classification", 1)
    cells = {
        ("a", "x"): compare_answers(first, random_answers("classification", 1, start=1), ("accuracy", "matthews")),
        ("b", "x"): compare_answers(first, random_answers("classification", 1, start=2), ("accuracy",)),
    }
    adjusted = adjust_together(cells)
    raw = [cells[cell].metrics["accuracy"].comparison.difference.p for cell in cells]
    expected = sorted(raw)
    smaller = min(1.0, 2 * expected[0])
    assert sorted([smaller, max(smaller, expected[1])]) == sorted(
        adjusted[cell].metrics["accuracy"].comparison.adjusted_p for cell in cells
    )
    alone = adjusted["a", "x"].metrics["matthews"].comparison
    assert alone.difference.p == alone.adjusted_p


def test_main_metrics_are_adjusted_together() -> None:
    """What decides is one family, though one cell goes by accuracy and the other by Matthews' correlation."""
    first, names = random_answers("classification", 1), ("accuracy", "matthews")
    cells = {
        ("a", "x"): compare_answers(first, random_answers("classification", 1, start=1), names),
        ("b", "x"): compare_answers(first, random_answers("classification", 1, start=2), names[::-1]),
    }
    adjusted = adjust_together(cells)
    raw = [one.main.comparison.difference.p for one in cells.values()]
    assert holm(raw) == [one.main.comparison.adjusted_p for one in adjusted.values()]
    for place, other in ((0, "matthews"), (1, "accuracy")):
        raw = [one.metrics[other].comparison.difference.p for one in cells.values()]
        assert holm(raw)[place] == list(adjusted.values())[place].metrics[other].comparison.adjusted_p


def test_opposite_answers_can_show_a_difference() -> None:
    """Two trainings that contradict each other on every row have many different answers, and it is not denied."""
    labels = [0, 1] * 50
    found = compare_answers(
        answers_of(labels, sure_of([0] * 100)), answers_of(labels, sure_of([1] * 100)), ["accuracy"]
    )
    assert (1.0, "not distinguishable") == (found.pairs[0].discordance, found.verdict)
    assert minimum_detectable_difference(100, 1.0) == found.detectable
    assert "two trainings on 100 rows would probably show a difference" in sentence(found, "a", "b")


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (answers_of([0, 1, 1], sure_of([0, 1, 1])), ("2 reported rows", "3")),
        (answers_of([0, 0], sure_of([0, 1])), ("the same labels", "others")),
        (answers_of([0, 1], [[0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]), ("2 classes", "3")),
        (answers_of([0.0, 1.0], [[0.5], [0.5]], kind="regression"), ("classification", "regression")),
    ],
    ids=["rows", "labels", "classes", "kind"],
)
def test_answers_to_other_rows_are_refused(second: CellPredictions, expected: tuple[str, str]) -> None:
    """Other rows, labels, classes or another problem type cannot be compared, and the reason is told."""
    first = answers_of([0, 1], sure_of([0, 1]))
    assert expected == why_not_same_rows(first, second)
    with pytest.raises(
        ConfigError, match=f"cannot use the second answers: expected {expected[0]}, found '{expected[1]}'"
    ):
        compare_answers(first, second, ("accuracy",))


def test_other_row_numbers_are_refused() -> None:
    """The same labels at other places of the split are other rows."""
    first = answers_of([0, 1], sure_of([0, 1]))
    moved = CellPredictions("classification", (0,), first.row_numbers + 1, first.labels, first.probabilities)
    assert ("the same row numbers", "others") == why_not_same_rows(first, moved)
    assert why_not_same_rows(first, first) is None
