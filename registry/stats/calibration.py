"""Whether probabilities can be believed, and what held-out rows say of them: temperature, thresholds for labels."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from registry.config import HeadConfig, TrainingConfig
from registry.validation import require

_WIDEST = 4.6  # of the temperature's logarithm: from a hundredth to a hundredfold
_LEAST, _MOST = 0.01, 0.99  # thresholds beyond these are chance


def check_calibration(head: HeadConfig, training: TrainingConfig) -> None:
    """Refuse to calibrate or to tune what has no probabilities or no thresholds.

    Raises:
        ConfigError: ``calibrate`` for numbers, or ``tune_thresholds`` but for several labels.
    """
    numbers = head.problem_type == "regression"
    require(not (training.calibrate and numbers), "calibrate", "a task of classes or labels", head.problem_type)
    several = head.problem_type == "multi_label"
    require(several or not training.tune_thresholds, "tune_thresholds", "a multi-label task", head.problem_type)


def calibrate_head(head: HeadConfig, training: TrainingConfig, logits: np.ndarray, labels: np.ndarray) -> HeadConfig:
    """Return the head with the temperature and thresholds that ``training`` asks for.

    Args:
        head: as it was trained.
        training: says what is wanted.
        logits: (R, C) of held-out rows.
        labels: of these rows: (R,) classes or (R, C) zeros and ones.
    """
    if training.calibrate:
        head = msgspec.structs.replace(head, temperature=find_temperature(logits, labels))
    if training.tune_thresholds:
        shares = np.exp(log_expit(logits.astype(np.float64) / head.temperature))
        head = msgspec.structs.replace(head, thresholds=find_thresholds(shares, labels))
    return head


def find_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return what (R, C) logits are to be divided by for the least loss on (R,) classes or (R, C) zeros and ones.

    Source: Guo et al. 2017, "On calibration of modern neural networks".
    """
    logits = logits.astype(np.float64)

    def loss(logarithm: float) -> float:
        scaled = logits / np.exp(logarithm)
        if labels.ndim == 1:
            return -float(log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].mean())
        return -float(np.where(labels == 1, log_expit(scaled), log_expit(-scaled)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-_WIDEST, _WIDEST), method="bounded").x))


def find_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
    """Return for each column the threshold with the best F1, the one nearest one half of several.

    A label that no row has, or that all have, keeps one half.

    Args:
        probabilities: (R, C).
        labels: (R, C) zeros and ones.
    """
    return tuple(_best_threshold(shares, ones) for shares, ones in zip(probabilities.T, labels.T, strict=True))


def _best_threshold(shares: np.ndarray, ones: np.ndarray) -> float:
    if ones.all() or not ones.any():
        return 0.5
    order = np.argsort(-shares, kind="stable")
    ranked = shares[order]
    hits, said = np.cumsum(ones[order]), np.arange(1, len(ones) + 1)
    last = np.append(ranked[1:] < ranked[:-1], True)  # equal shares are said together
    f1 = np.where(last, 2 * hits / (said + ones.sum()), -1.0)
    between = (ranked + np.append(ranked[1:], 0.0)) / 2
    best = np.flatnonzero(np.isclose(f1, f1.max()))
    # Any place between two neighbouring shares gives the same answers: one half, where it lies there.
    places = np.where((np.append(ranked[1:], 0.0) < 0.5) & (ranked >= 0.5), 0.5, between)[best]
    return float(np.clip(places[np.abs(places - 0.5).argmin()], _LEAST, _MOST))


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often answers are right, by the probability that was given to them; bins without answers are left out.

    Attributes:
        counts: (B,) answers in each bin.
        confidence: (B,) mean probability given to them.
        right: (B,) share of them that is right.
    """

    counts: np.ndarray
    confidence: np.ndarray
    right: np.ndarray

    @property
    def error(self) -> float:
        """Return the expected calibration error: the mean distance of the two, by answers."""
        return float(np.average(np.abs(self.confidence - self.right), weights=self.counts))

    @property
    def mean_confidence(self) -> float:
        """Return the mean probability given to all answers."""
        return float(np.average(self.confidence, weights=self.counts))

    @property
    def mean_right(self) -> float:
        """Return the share of all answers that is right."""
        return float(np.average(self.right, weights=self.counts))


def reliability_of(probabilities: np.ndarray, labels: np.ndarray, bins: int = 10) -> Reliability:
    """Return the reliability of answers in bins of equal width.

    An answer is the class with the highest probability, or, of several labels, that a label is there.

    Args:
        probabilities: (S, R, C) of S trainings.
        labels: (R,) classes, or (R, C) zeros and ones.
        bins: from 0 to 1.

    Source: Guo et al. 2017, "On calibration of modern neural networks".
    """
    if labels.ndim == 1:
        stated, right = probabilities.max(axis=2).ravel(), (probabilities.argmax(axis=2) == labels).ravel()
    else:
        stated = probabilities.ravel()
        right = np.broadcast_to(labels == 1, probabilities.shape).ravel()
    places = np.minimum((stated * bins).astype(int), bins - 1)
    counts = np.bincount(places, minlength=bins)
    sums = (np.bincount(places, weights=values.astype(np.float64), minlength=bins) for values in (stated, right))
    confidence, share = (total[counts > 0] / counts[counts > 0] for total in sums)
    return Reliability(counts[counts > 0], confidence, share)
