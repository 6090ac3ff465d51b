"""How sure a score is, and whether two methods differ: intervals over seeds and rows, and tests on the same rows.

Two things are chance in a score: which rows were reported, and which seed trained. Intervals here hold both, and the
types say where they cannot. Numbers only; nothing is known of run records or tables.

Sources: REPORTING.md; Owen 2007, "The pigeonhole bootstrap" (rows and seeds are crossed, not nested); Satterthwaite
1946 (degrees of freedom of a sum of variances); Hesterberg 2015, "What teachers should know about the bootstrap"
(percentile intervals are too narrow for few units, and are widened by Student's t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from registry.config import ProblemType
from registry.stats.bootstrap import Floats, resampled_scores
from registry.validation import Record, require

RESAMPLES = 10_000
LEVEL = 0.95

_LOWEST = dict.fromkeys(("matthews", "cohen_kappa", "pearson", "spearman"), -1.0)
_HIGHEST = {"mse": math.inf, "brier_score": 2.0}
_NORMAL_FROM = 1e6  # degrees of freedom from which Student's t is the normal distribution


class Interval(Record, frozen=True, kw_only=True):
    """A score and where it may lie.

    Attributes:
        mean: over the seeds.
        low, high: ends of the interval.
        seeds: how many trainings it comes from; with one it holds the chance of the rows alone.
        rows: how many rows were reported.
    """

    mean: float
    low: float
    high: float
    seeds: int
    rows: int

    @property
    def covers_seeds(self) -> bool:
        """Whether the chance of the seed is in the interval, not that of the rows alone."""
        return self.seeds > 1


class PairedDifference(Record, frozen=True, kw_only=True):
    """How much more the first method scores than the second, on the same rows.

    Attributes:
        mean: difference of the means over seeds.
        low, high: ends of the interval.
        p: two-sided; how often chance alone would differ as much if the methods were alike.
        seeds: of the first and of the second method.
        rows: how many rows both were reported on.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: tuple[int, int]
    rows: int

    @property
    def holds_zero(self) -> bool:
        """Whether zero lies inside, so that the methods are not distinguishable."""
        return self.low <= 0 <= self.high

    @property
    def covers_seeds(self) -> bool:
        """Whether the chance of the seed is in the interval for both methods."""
        return min(self.seeds) > 1


def score_interval(
    problem_type: ProblemType,
    metric: str,
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    generator_seed: int = 0,
) -> Interval:
    """Return the mean score over seeds with an interval that holds the chance of seeds and of rows.

    A two-level bootstrap. Rows are drawn with replacement, the same ones for all seeds, since all answered the same
    rows. Drawing two to five seeds with replacement would give far too narrow an interval, so each resample moves the
    mean by a normal draw with the unbiased standard error over seeds instead, and is widened by Student's t: with nu =
    S - 1 for the seeds' variance B and the rows' known variance A, by nu (1 + a (A / B)^2) degrees of freedom. That is
    Satterthwaite's nu (1 + A / B)^2 without its middle term, which makes it too large for few seeds (it covers 87 %
    with two). ``a`` is 1, but 0.8 for three seeds and 0.09 for two, fitted so that 95 % intervals hold 93 to 97 % at
    every A / B. The spread that seeds show on the same rows is part of both variances and is counted once. What comes
    out is a percentile interval; with one seed the plain one, over rows alone.

    Where no row differs (all answers right), resamples do not differ either; ``wilson_interval`` is for that case.

    Args:
        problem_type: decides what labels and probabilities are.
        metric: a name from METRICS.
        labels: (R,), or (R, C) zeros and ones for multi-label tasks.
        probabilities: (S, R, C), one of S for each seed; for regression (S, R, 1).
        resamples: how many.
        level: share of such intervals that hold the true mean.
        generator_seed: equal seeds and arrays give equal intervals.

    Raises:
        ConfigError: arrays of other shapes, NaN, an unknown metric, a level or number of resamples out of range.
    """
    _check(resamples, level)
    generator = np.random.default_rng(generator_seed)
    scores, drawn = resampled_scores(problem_type, metric, labels, probabilities, resamples, generator)
    spread = _spread([scores], [drawn], generator)
    mean = float(scores.mean())
    low, high = _ends(mean, spread, level)
    lowest, highest = _LOWEST.get(metric, 0.0), _HIGHEST.get(metric, 1.0)
    return Interval(mean=mean, low=max(low, lowest), high=min(high, highest), seeds=len(scores), rows=len(labels))


def paired_difference(
    problem_type: ProblemType,
    metric: str,
    labels: NDArray[Any],
    first: NDArray[Any],
    second: NDArray[Any],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    generator_seed: int = 0,
) -> PairedDifference:
    """Return how much more ``first`` scores than ``second`` on the same rows, with its interval and p-value.

    As in ``score_interval``: each resample draws rows once for all seeds of both methods, and takes the difference of
    the means. The seeds of the two methods are their own, so their variances add up; the degrees of freedom are those
    of the method whose seeds say least. With one seed a method's own chance is not in the interval.

    Args:
        problem_type: decides what labels and probabilities are.
        metric: a name from METRICS.
        labels: (R,), or (R, C) zeros and ones for multi-label tasks.
        first: (S, R, C).
        second: (T, R, C); T need not be S.
        resamples: how many.
        level: share of such intervals that hold the true difference.
        generator_seed: equal seeds and arrays give equal results.

    Raises:
        ConfigError: as in ``score_interval``, or arrays of different rows or classes.
    """
    _check(resamples, level)
    same = first.ndim == second.ndim == 3 and first.shape[1:] == second.shape[1:]
    require(
        same, "probabilities", f"two methods of (seeds, rows, classes) on the same rows, {first.shape}", second.shape
    )
    generator, both = np.random.default_rng(generator_seed), np.concatenate([first, second])
    scores, drawn = resampled_scores(problem_type, metric, labels, both, resamples, generator)
    seeds = len(first)
    spread = _spread([scores[:seeds], scores[seeds:]], [drawn[:seeds], drawn[seeds:]], generator)
    mean = float(scores[:seeds].mean() - scores[seeds:].mean())
    low, high = _ends(mean, spread, level)
    widest = _HIGHEST.get(metric, 1.0) - _LOWEST.get(metric, 0.0)
    beyond = min(int((mean + spread <= 0).sum()), int((mean + spread >= 0).sum()))
    return PairedDifference(
        mean=mean,
        low=max(low, -widest),
        high=min(high, widest),
        p=min(1.0, 2 * (beyond + 1) / (resamples + 1)),
        seeds=(seeds, len(second)),
        rows=len(labels),
    )


def mcnemar_exact(first_correct: NDArray[Any], second_correct: NDArray[Any]) -> float:
    """Return the exact two-sided p-value that two classifiers, each trained once, err alike on the same rows.

    Args:
        first_correct: (R,) booleans, whether the first is right.
        second_correct: (R,) booleans.

    Raises:
        ConfigError: not two arrays of booleans of one length.

    Source: McNemar 1947; Dietterich 1998 on why this test and not others.
    """
    for name, correct in (("first_correct", first_correct), ("second_correct", second_correct)):
        good = correct.ndim == 1 and correct.dtype.kind == "b"
        require(good, name, "one boolean a row", f"{correct.dtype} of shape {correct.shape}")
    require(
        len(first_correct) == len(second_correct), "second_correct", f"{len(first_correct)} rows", len(second_correct)
    )
    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((~first_correct & second_correct).sum())
    return min(1.0, 2 * float(stats.binom.cdf(min(only_first, only_second), only_first + only_second, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values, in their order, adjusted so that all of a table together err at most as often as one.

    Raises:
        ConfigError: a value that is no probability.

    Source: Holm 1979.
    """
    for value in p_values:
        require(0 <= value <= 1, "p_values", "probabilities from 0 to 1", value)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted


def wilson_interval(correct: int, rows: int, level: float = LEVEL) -> Interval:
    """Return the accuracy of one training and its interval over rows, which is of use even if all rows are right.

    Raises:
        ConfigError: no rows, or more right ones than there are.

    Source: Wilson 1927.
    """
    require(rows >= 1, "rows", "at least 1", rows)
    require(0 <= correct <= rows, "correct", f"a count from 0 to {rows}", correct)
    require(0 < level < 1, "level", "a fraction between 0 and 1", level)
    ends = stats.binomtest(correct, rows).proportion_ci(level, method="wilson")
    return Interval(mean=correct / rows, low=float(ends.low), high=float(ends.high), seeds=1, rows=rows)


def minimum_detectable_difference(rows: int, discordance: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest difference in accuracy that the exact McNemar test on so many rows would probably notice.

    Args:
        rows: reported ones.
        discordance: share of rows on which exactly one of the two is right, above 0 and at most 1.
        alpha: the p-value from which on methods count as different.
        power: how probably the difference is noticed.

    Returns:
        A fraction of the rows, at most ``discordance``; NaN where not even that would be noticed.

    Raises:
        ConfigError: an argument out of range.

    Source: Card et al. 2020, "With little power comes great responsibility"; here summed exactly, not simulated.
    """
    require(rows >= 1, "rows", "at least 1", rows)
    require(0 < discordance <= 1, "discordance", "a fraction above 0 and at most 1", discordance)
    for name, value in (("alpha", alpha), ("power", power)):
        require(0 < value < 1, name, "a fraction between 0 and 1", value)
    discordant = np.arange(rows + 1)
    weights = stats.binom.pmf(discordant, rows, discordance)
    discordant, weights = discordant[weights > 1e-12], weights[weights > 1e-12]
    most = stats.binom.ppf(alpha / 2, discordant, 0.5)  # of the smaller count; one less where that is too probable
    most -= 2 * stats.binom.cdf(most, discordant, 0.5) > alpha

    def detected(difference: float) -> float:
        share = (1 - difference / discordance) / 2
        noticed = stats.binom.cdf(most, discordant, share) + stats.binom.cdf(most, discordant, 1 - share)
        return float((weights * noticed).sum())

    if detected(discordance) < power:
        return math.nan
    low, high = 0.0, discordance
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (low, middle) if detected(middle) >= power else (middle, high)
    return high


def _check(resamples: int, level: float) -> None:
    require(resamples >= 100, "resamples", "at least 100", resamples)
    require(0 < level < 1, "level", "a fraction between 0 and 1", level)


def _ends(mean: float, spread: Floats, level: float) -> tuple[float, float]:
    # Places among one more than the resamples there are: neither few nor many of them make the interval narrower.
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2], method="weibull")
    return mean + float(low), mean + float(high)


def _spread(scores: Sequence[Floats], drawn: Sequence[Floats], generator: np.random.Generator) -> Floats:
    """Return (resamples,) moves of the mean, or of the first method's mean less the second's.

    Args:
        scores: of one method (S,), or of two.
        drawn: for each method (S, resamples), their scores on drawn rows.
        generator: for the draws at the level of seeds.
    """
    means = [one.mean(axis=0) for one in drawn]
    rows = means[0] - means[1] if len(means) == 2 else means[0]
    rows = rows - (scores[0].mean() - scores[1].mean() if len(scores) == 2 else scores[0].mean())
    several = [(one, draws, mean) for one, draws, mean in zip(scores, drawn, means, strict=True) if len(one) > 1]
    of_seeds = [float(one.var(ddof=1)) / len(one) for one, _, _ in several]
    # What seeds differ by because each errs on other rows: in the rows' spread already, and again in the seeds'.
    twice = sum(float(draws.var(axis=1).mean() - mean.var()) / (len(one) - 1) for one, draws, mean in several)
    whole = float(rows.var())
    of_rows = max(0.0, whole - twice)
    moved: Floats = rows * math.sqrt(of_rows / whole) if whole > 0 else rows
    if not several:
        return moved
    moved = moved + math.sqrt(sum(of_seeds)) * generator.standard_normal(len(rows))
    freedom = _degrees_of_freedom(of_rows, of_seeds, [len(one) - 1 for one, _, _ in several])
    if freedom < _NORMAL_FROM:
        moved = moved * np.sqrt(freedom / generator.chisquare(freedom, len(rows)))
    return moved


def _degrees_of_freedom(of_rows: float, of_seeds: Sequence[float], own: Sequence[int]) -> float:
    """Return Student's degrees of freedom for a sum of variances, by the one of them that is known least."""
    whole = of_rows + sum(of_seeds)
    found = [
        freedom * (1 + {1: 0.09, 2: 0.8}.get(freedom, 1.0) * ((whole - variance) / variance) ** 2)
        for variance, freedom in zip(of_seeds, own, strict=True)
        if variance > whole / _NORMAL_FROM
    ]
    return min(found, default=math.inf)
