"""Intervals and tests, against scipy and statsmodels, and against what they promise in simulated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from registry.errors import ConfigError
from registry.stats.intervals import (
    Interval,
    PairedDifference,
    _degrees_of_freedom,
    holm,
    mcnemar_exact,
    minimum_detectable_difference,
    paired_difference,
    score_interval,
    wilson_interval,
)
from registry.tasks.spec import METRICS
from tests.stats.test_bootstrap import random_answers

CellPredictions = tuple[NDArray[np.int64], NDArray[np.float32]]
ONES = 0.68  # share of class 1, as in MRPC
SKILL = 0.85  # mean accuracy in simulated experiments


def experiment(
    rng: np.random.Generator, seeds: int, rows: int, deviation: float, alike: float = 0.8
) -> CellPredictions:
    """Return labels and answers of seeds that err mostly on the same hard rows and differ in skill by ``deviation``."""
    labels = (rng.random(rows) < ONES).astype(np.int64)
    skill = SKILL + deviation * rng.standard_normal(seeds)
    hard = math.sqrt(alike) * rng.standard_normal(rows)
    own = math.sqrt(1 - alike) * rng.standard_normal((seeds, rows))
    right = hard + own <= special.ndtri(skill)[:, np.newaxis]
    return labels, np.eye(2, dtype=np.float32)[np.where(right, labels, 1 - labels)]


def f1_of(skill: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return F1 of class 1 on endless rows of the experiment."""
    return 2 * ONES * skill / (2 * ONES * skill + 1 - skill)


@pytest.mark.parametrize("metric", ["accuracy", "f1_binary"])
def test_interval_of_one_seed_is_scipys(metric: str) -> None:
    """With one seed the interval is the plain percentile bootstrap over rows."""
    labels, probabilities = experiment(np.random.default_rng(0), 1, 400, 0)
    said = probabilities[0].argmax(axis=1)

    def statistic(expected: NDArray[np.int64], found: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        hits = (expected & found).sum(axis=axis)
        f1: NDArray[np.float64] = 2 * hits / (expected.sum(axis=axis) + found.sum(axis=axis))
        return f1 if metric == "f1_binary" else (expected == found).mean(axis=axis)

    theirs = stats.bootstrap((labels, said), statistic, paired=True, method="percentile", rng=np.random.default_rng(1))
    ours = score_interval("classification", metric, labels, probabilities)
    assert not ours.covers_seeds
    assert pytest.approx(tuple(theirs.confidence_interval), abs=0.003) == (ours.low, ours.high)
    assert pytest.approx(float(statistic(labels, said, -1))) == ours.mean


def test_difference_of_single_seeds_is_scipys() -> None:
    """With one seed each the difference is the plain paired percentile bootstrap."""
    labels, probabilities = experiment(np.random.default_rng(3), 2, 500, 0.02)
    right = (probabilities.argmax(axis=2) == labels).astype(np.int64)
    theirs = stats.bootstrap(
        (right[0] - right[1],), np.mean, method="percentile", vectorized=True, rng=np.random.default_rng(1)
    )
    ours = paired_difference("classification", "accuracy", labels, probabilities[:1], probabilities[1:])
    assert pytest.approx(tuple(theirs.confidence_interval), abs=0.003) == (ours.low, ours.high)
    spread = theirs.bootstrap_distribution
    assert pytest.approx(2 * min((spread <= 0).mean(), (spread >= 0).mean()), abs=0.03) == ours.p


@pytest.mark.parametrize("seeds", [2, 3, 4, 5, 10])
def test_degrees_of_freedom_hold_at_every_ratio(seeds: int) -> None:
    """Whatever the seeds' variance is beside the rows', a nominal 95 % interval covers 93 to 97 % (by integration)."""
    own = seeds - 1
    seen = stats.chi2.ppf((np.arange(400) + 0.5) / 400, own) / own  # what the seeds' variance may look like
    for of_seeds in np.logspace(-3, 3, 13):
        freedom = np.array([_degrees_of_freedom(1.0, [of_seeds * times], [own]) for times in seen])
        width = stats.t.ppf(0.975, np.minimum(freedom, 1e9)) * np.sqrt(1 + of_seeds * seen)
        covered = float((2 * stats.norm.cdf(width / math.sqrt(1 + of_seeds)) - 1).mean())
        assert 0.93 <= covered <= 0.97, f"{covered} at {of_seeds}"


@pytest.mark.parametrize(
    ("seeds", "rows", "deviation", "metric"),
    [
        (1, 408, 0.0, "f1_binary"),
        (2, 408, 0.005, "accuracy"),
        (2, 2_000, 0.02, "accuracy"),
        (3, 100, 0.02, "f1_binary"),
        (5, 872, 0.005, "accuracy"),
    ],
)
def test_intervals_cover_as_often_as_they_say(seeds: int, rows: int, deviation: float, metric: str) -> None:
    """Nominal 95 % intervals hold the true score in 93 to 97 % of 2,000 simulated experiments."""
    rng, experiments = np.random.default_rng([seeds, rows]), 2_000
    skills = SKILL + deviation * stats.norm.ppf((np.arange(2_000) + 0.5) / 2_000)
    truth = float((f1_of(skills) if metric == "f1_binary" else skills).mean())
    held = 0
    for _ in range(experiments):
        labels, probabilities = experiment(rng, seeds, rows, deviation)
        found = score_interval("classification", metric, labels, probabilities, resamples=199)
        held += found.low <= truth <= found.high
    assert 0.93 <= held / experiments <= 0.97


@pytest.mark.parametrize(
    ("seeds", "rows", "deviation"), [((1, 1), 408, 0.0), ((3, 3), 408, 0.02), ((2, 5), 100, 0.005)]
)
def test_alike_methods_are_seldom_told_apart(seeds: tuple[int, int], rows: int, deviation: float) -> None:
    """Two methods that are identical in distribution differ by p < 0.05 in at most 6 % of 2,000 experiments."""
    rng, experiments = np.random.default_rng([*seeds, rows]), 2_000
    told_apart = outside = 0
    for _ in range(experiments):
        labels, both = experiment(rng, sum(seeds), rows, deviation)
        first, second = np.split(both, [seeds[0]])
        found = paired_difference("classification", "accuracy", labels, first, second, resamples=199)
        told_apart += found.p < 0.05
        outside += not found.holds_zero
    assert max(told_apart, outside) / experiments <= 0.06


def test_methods_that_differ_are_told_apart() -> None:
    """Ten points on 872 rows with five seeds are no chance, and the sign says who is better."""
    rng = np.random.default_rng(0)
    labels, good = experiment(rng, 5, 872, 0.01)
    poor = np.where(rng.random((5, 872, 1)) < 0.15, good[:, :, ::-1], good)
    found = paired_difference("classification", "accuracy", labels, good, poor)
    assert not found.holds_zero
    assert 0 < found.low < found.mean < found.high
    assert found.p == 2 / 10_001  # never 0: as much as so many resamples can say
    turned = paired_difference("classification", "accuracy", labels, poor, good)
    assert (pytest.approx(-found.mean), (5, 5)) == (turned.mean, turned.seeds)
    assert pytest.approx((-found.high, -found.low), abs=0.003) == (turned.low, turned.high)


def test_seeds_that_differ_widen_the_interval() -> None:
    """An interval over seeds of different skill is wider than that of one of them, and few seeds cost more."""
    labels, probabilities = experiment(np.random.default_rng(4), 10, 872, 0.04)
    width = {}
    for seeds in (1, 3, 10):
        found = score_interval("classification", "accuracy", labels, probabilities[:seeds])
        assert (seeds, 872, seeds > 1) == (found.seeds, found.rows, found.covers_seeds)
        width[seeds] = found.high - found.low
    assert width[1] < width[10] < width[3]


def test_intervals_stay_within_what_a_metric_can_be() -> None:
    """Two seeds as far apart as can be say nothing, which is an interval of all scores and of all differences."""
    labels = np.arange(40) % 2
    right = np.eye(2, dtype=np.float32)[labels]
    apart = np.stack([right, right[:, ::-1]])
    for metric, lowest in (("accuracy", 0.0), ("matthews", -1.0)):
        found = score_interval("classification", metric, labels, apart)
        assert (lowest, 1.0) == (found.low, found.high)
        difference = paired_difference("classification", metric, labels, apart, apart[:1])
        assert (lowest - 1, 1 - lowest) == (difference.low, difference.high)


def test_seeds_that_agree_add_nothing() -> None:
    """The same answers three times over give the interval of one seed: rows are shared, not more."""
    labels, once = experiment(np.random.default_rng(1), 1, 300, 0)
    one = score_interval("classification", "f1_macro", labels, once)
    three = score_interval("classification", "f1_macro", labels, np.repeat(once, 3, axis=0))
    assert pytest.approx((one.mean, one.low, one.high)) == (three.mean, three.low, three.high)


@pytest.mark.parametrize("problem_type", METRICS)
def test_every_metric_has_intervals(problem_type: str) -> None:
    """Every metric of every problem type has an interval around its mean within the metric's range, and differences."""
    classes = 1 if problem_type == "regression" else 2
    labels, both = random_answers(problem_type, 200, 5, classes, np.random.default_rng(7))  # type: ignore[arg-type]
    for metric in METRICS[problem_type]:
        found = score_interval(problem_type, metric, labels, both[:3], resamples=500)  # type: ignore[arg-type]
        assert -1 <= found.low < found.mean < found.high
        assert found.high <= {"mse": math.inf, "brier_score": 2}.get(metric, 1)
        difference = paired_difference(problem_type, metric, labels, both[:3], both[3:], resamples=500)  # type: ignore[arg-type]
        assert difference.low < difference.mean < difference.high


def test_equal_answers_give_equal_numbers() -> None:
    """The same arrays give the same interval, another generator seed one that differs a little."""
    labels, probabilities = experiment(np.random.default_rng(7), 5, 408, 0.01)
    one, again = (score_interval("classification", "accuracy", labels, probabilities) for _ in range(2))
    other = score_interval("classification", "accuracy", labels, probabilities, generator_seed=1)
    assert one == again
    assert one != other
    assert pytest.approx((other.low, other.high), abs=0.004) == (one.low, one.high)
    pair = [paired_difference("classification", "accuracy", labels, probabilities[:2], probabilities[2:]) for _ in "ab"]
    assert pair[0] == pair[1]


def test_a_higher_level_is_a_wider_interval() -> None:
    """99 % intervals hold 80 % intervals."""
    labels, probabilities = experiment(np.random.default_rng(7), 3, 408, 0.01)
    wide, narrow = (score_interval("classification", "accuracy", labels, probabilities, level=at) for at in (0.99, 0.8))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_rows_that_never_differ_have_no_spread() -> None:
    """One row, or answers that are all right, resample to themselves; Wilson's interval still has a width."""
    sure = np.eye(2, dtype=np.float32)[np.ones((2, 50), dtype=np.int64)]
    expected = Interval(mean=1.0, low=1.0, high=1.0, seeds=2, rows=50)
    assert expected == score_interval("classification", "accuracy", np.ones(50, dtype=np.int64), sure)
    one = score_interval("classification", "accuracy", np.zeros(1, dtype=np.int64), sure[:1, :1])
    assert Interval(mean=0.0, low=0.0, high=0.0, seeds=1, rows=1) == one
    assert 0.9 < wilson_interval(50, 50).low < wilson_interval(50, 50).high == 1


def test_single_class_is_scored_without_warnings() -> None:
    """Where all rows are of one class, undefined scores are 0, in every resample."""
    labels = np.zeros(30, dtype=np.int64)
    probabilities = np.random.default_rng(0).random((2, 30, 2))
    found = score_interval("classification", "f1_binary", labels, probabilities)
    assert (0.0, 0.0, 0.0) == (found.mean, found.low, found.high)
    assert (0.0, 0.0) == tuple(
        getattr(score_interval("classification", "matthews", labels, probabilities), end) for end in ("low", "high")
    )


def test_a_method_does_not_differ_from_itself() -> None:
    """The same answers on both sides give a difference of zero that nothing tells apart."""
    labels, probabilities = experiment(np.random.default_rng(2), 1, 100, 0)
    found = paired_difference("classification", "accuracy", labels, probabilities, probabilities)
    assert PairedDifference(mean=0.0, low=0.0, high=0.0, p=1.0, seeds=(1, 1), rows=100) == found
    assert found.holds_zero
    assert not found.covers_seeds


def test_what_does_not_fit_is_refused() -> None:
    """Methods on other rows, too few resamples, impossible levels are told by name."""
    labels, probabilities = experiment(np.random.default_rng(2), 2, 20, 0)
    with pytest.raises(ConfigError, match=r"two methods of \(seeds, rows, classes\) on the same rows, \(2, 20, 2\)"):
        paired_difference("classification", "accuracy", labels, probabilities, probabilities[:, :10])
    with pytest.raises(ConfigError, match="resamples: expected at least 100, found 10"):
        score_interval("classification", "accuracy", labels, probabilities, resamples=10)
    with pytest.raises(ConfigError, match="level: expected a fraction between 0 and 1, found 95"):
        score_interval("classification", "accuracy", labels, probabilities, level=95)
    with pytest.raises(ConfigError, match=r"probabilities: expected shape \(seeds, 20, classes\), found \(20, 2\)"):
        score_interval("classification", "accuracy", labels, probabilities[0])


def test_mcnemar_is_that_of_statsmodels_and_scipy() -> None:
    """The exact test agrees on a thousand random pairs of classifiers."""
    rng = np.random.default_rng(0)
    for _ in range(1_000):
        rows, wrong = int(rng.integers(1, 300)), rng.random(2)
        first, second = (rng.random(rows) > share for share in wrong)
        only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
        table = [[int((first & second).sum()), only_first], [only_second, int((~first & ~second).sum())]]
        found = mcnemar_exact(first, second)
        if only_first + only_second:
            assert pytest.approx(stats.binomtest(only_first, only_first + only_second).pvalue) == found
            assert pytest.approx(mcnemar(table, exact=True).pvalue) == found
        else:
            assert found == 1.0


def test_mcnemar_wants_one_boolean_a_row() -> None:
    """Labels in place of hits, or classifiers on other rows, are refused."""
    right = np.ones(3, dtype=np.bool_)
    with pytest.raises(ConfigError, match=r"first_correct: expected one boolean a row, found 'int64 of shape \(3,\)'"):
        mcnemar_exact(right.astype(np.int64), right)
    with pytest.raises(ConfigError, match="second_correct: expected 3 rows, found 2"):
        mcnemar_exact(right, right[:2])


def test_holm_is_that_of_statsmodels() -> None:
    """Adjusted p-values agree on random tables, ties among them, in the order given."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 10, 40, 200):  # few, as each of their calls collects garbage
        p_values = np.round(rng.random(size) ** 3, 2)
        assert pytest.approx(multipletests(p_values, method="holm")[1]) == holm(list(p_values))
    assert [] == holm([])
    with pytest.raises(ConfigError, match="p_values: expected probabilities from 0 to 1, found nan"):
        holm([0.5, math.nan])


def test_wilson_is_that_of_statsmodels() -> None:
    """The interval of a proportion agrees for every count of some numbers of rows."""
    for rows in (1, 2, 17, 408):
        for correct in range(rows + 1):
            found = wilson_interval(correct, rows)
            assert pytest.approx(proportion_confint(correct, rows, method="wilson"), abs=1e-12) == (
                found.low,
                found.high,
            )
            assert (correct / rows, 1, rows) == (found.mean, found.seeds, found.rows)
    with pytest.raises(ConfigError, match="correct: expected a count from 0 to 10, found 11"):
        wilson_interval(11, 10)


@pytest.mark.parametrize(
    ("rows", "points"),
    [(408, (3.2, 4.5, 5.5)), (872, (2.2, 3.1, 3.7)), (1_725, (1.5, 2.2, 2.7)), (25_000, (0.40, 0.57, 0.69))],
)
def test_detectable_differences_are_those_of_the_specification(rows: int, points: tuple[float, ...]) -> None:
    """At 5, 10 and 15 % discordant rows the smallest differences are those published, as far as they give digits."""
    found = [100 * minimum_detectable_difference(rows, discordance) for discordance in (0.05, 0.10, 0.15)]
    assert pytest.approx(points, abs=0.065) == found


def test_detectable_difference_is_detected_as_often_as_said() -> None:
    """In simulated pairs that differ by just so much, the exact test says so in four of five; on few rows never."""
    rows, discordance = 408, 0.1
    difference = minimum_detectable_difference(rows, discordance)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(
        rows, [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance], 5_000
    )
    p_values = 2 * stats.binom.cdf(counts[:, :2].min(axis=1), counts[:, :2].sum(axis=1), 0.5)
    assert pytest.approx(0.8, abs=0.02) == (p_values <= 0.05).mean()
    assert math.isnan(minimum_detectable_difference(50, 0.05))
    with pytest.raises(ConfigError, match="discordance: expected a fraction above 0 and at most 1, found 5"):
        minimum_detectable_difference(408, 5)
