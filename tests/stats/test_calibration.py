"""Temperature and thresholds: what held-out rows say of probabilities, and that answers and scores go by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from registry.config import HeadConfig, TrainingConfig
from registry.errors import ConfigError
from registry.stats.calibration import check_calibration, find_temperature, find_thresholds, reliability_of
from registry.tasks.metrics import centre_thresholds, predicted_labels, score
from tests.support.command_line import QUICK, call, succeed, write_csv


def test_the_temperature_undoes_what_made_logits_too_sure() -> None:
    """Labels drawn from logits that are then tripled give a temperature of three, and a smaller Brier score."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (shares.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    assert find_temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)
    sure = np.exp(3 * logits) / np.exp(3 * logits).sum(axis=1, keepdims=True)
    errors = [score("classification", labels, each, ("brier_score",)) for each in (shares, sure)]
    assert errors[0]["brier_score"] < 0.95 * errors[1]["brier_score"]
    ones = (rng.random((20_000, 2)) < 1 / (1 + np.exp(-logits[:, :2]))).astype(np.int64)
    assert find_temperature(0.5 * logits[:, :2], ones) == pytest.approx(0.5, rel=0.05)


def test_thresholds_have_the_best_f1_of_their_label() -> None:
    """No other threshold scores higher, of several the one nearest one half is taken, and one-sided labels keep it."""
    rng = np.random.default_rng(1)
    labels = (rng.random((200, 4)) < [0.1, 0.5, 0.9, 0.3]).astype(np.int64)
    shares = np.round(np.clip(0.25 * labels + rng.random((200, 4)) * 0.5, 0.001, 0.999), 2)
    labels[:, 3] = 0
    found = find_thresholds(shares, labels)
    assert found[3] == 0.5
    for column, threshold in enumerate(found[:3]):
        tried = [f1_score(labels[:, column], shares[:, column] >= at) for at in np.arange(0.01, 1, 0.005)]
        assert f1_score(labels[:, column], shares[:, column] >= threshold) == pytest.approx(max(tried))
    assert find_thresholds(np.array([[0.2], [0.9]]), np.array([[0], [1]])) == (0.5,)


def test_moved_probabilities_answer_as_their_thresholds_say() -> None:
    """One half stands where each threshold was, to the last bit, and no row changes its rank."""
    rng = np.random.default_rng(2)
    thresholds = (0.013, 0.5, 0.98)
    for kind in (np.float32, np.float64):
        shares = rng.random((5_000, 3)).astype(kind)
        edges = np.array(thresholds, dtype=kind)
        shares = np.concatenate([shares, [edges], [np.nextafter(edges, kind(0))], [np.nextafter(edges, kind(1))]])
        moved = centre_thresholds(shares, thresholds)
        np.testing.assert_array_equal(predicted_labels("multi_label", moved), shares >= edges)
        for column in range(3):
            order = np.argsort(shares[:, column], kind="stable")
            assert (np.diff(moved[order, column]) >= 0).all()


def test_what_has_no_probabilities_is_not_calibrated() -> None:
    """A number has no temperature, and one class of several no thresholds."""
    number = HeadConfig(label_names=("y",), problem_type="regression")
    with pytest.raises(ConfigError, match="calibrate: expected a task of classes or labels"):
        check_calibration(number, TrainingConfig(calibrate=True))
    with pytest.raises(ConfigError, match="tune_thresholds: expected a multi-label task"):
        check_calibration(HeadConfig(label_names=("a", "b")), TrainingConfig(tune_thresholds=True))
    with pytest.raises(ConfigError, match="thresholds: expected one for each label"):
        HeadConfig(label_names=("a", "b"), problem_type="multi_label", thresholds=(0.5,))


def test_a_stored_set_answers_by_its_own_thresholds(tmp_path: Path, tiny_folder: Path) -> None:
    """They are chosen on held-out training rows, kept with the set, and used by predict, evaluate, compare, reports."""
    rows = [("rain and sun", "a b"), ("rain", "a"), ("sun and city", "b"), ("a dull road", "b")]
    texts = [{"text": f"{text} {n}", "tags": tags} for n in range(40) for text, tags in rows]
    path = write_csv(tmp_path / "tags.csv", texts)
    columns = ("--data", path, "--text-col", "text", "--label-col", "tags", "--problem-type", "multi_label")
    usual = ("--store", tmp_path / "store")
    tuned = ("--calibrate", "--tune-thresholds")
    told = succeed(*usual, "train", *columns, "--backbone", tiny_folder, *QUICK, *tuned, "--labels", "a,b", "--json")
    (shown,) = succeed(*usual, "show", "tags", "--json").rows
    head = shown["head"]
    assert len(head["thresholds"]) == 2
    assert 0 < head["temperature"] != 1
    (scored,) = succeed(*usual, "evaluate", "tags", "--json").rows
    assert told.rows[0]["scores"] == pytest.approx(scored["scores"], abs=1e-6)
    (answer,) = succeed(*usual, "predict", "tags", "rain and sun", "--json").rows
    said = [name for name, at in zip("ab", head["thresholds"], strict=True) if answer["probabilities"][name] >= at]
    assert said == answer["label"]
    least = min(answer["probabilities"].values())
    (lower,) = succeed(*usual, "predict", "tags", "rain and sun", "--json", "--threshold", str(least * 0.9)).rows
    assert ["a", "b"] == lower["label"]
    refused = call(*usual, "predict", "tags", "rain", "--threshold", "2")
    assert (2, True) == (refused.code, "threshold: expected a share between 0 and 1, found 2.0" in refused.message)
    again = succeed(*usual, "train", "--from", "tags")
    assert "same weights as tags:1" in again.out
    (repeated,) = succeed(*usual, "show", "tags:2", "--json").rows
    assert repeated["head"] == head
    out = tmp_path / "bench"
    grid = ("--method", "head_only", "--method", "houlsby", "--out", out)
    succeed("bench", *columns, "--backbone", tiny_folder, *QUICK, *tuned, "--labels", "a,b", *grid)
    assert "2 records" in succeed("report", out, "--check").out
    assert "houlsby" in succeed("compare", out, "--method", "houlsby", "--method", "head_only").out


def test_reliability_counts_answers_by_their_probability() -> None:
    """Bins hold their answers, their mean probability and the share that is right; the error weighs the distances."""
    probabilities = np.array([[[0.95, 0.05], [0.08, 0.92], [0.55, 0.45]], [[0.45, 0.55], [0.0, 1.0], [0.52, 0.48]]])
    found = reliability_of(probabilities, np.array([0, 0, 0]))
    assert [3, 3] == found.counts.tolist()
    np.testing.assert_allclose([(0.55 + 0.55 + 0.52) / 3, (0.95 + 0.92 + 1.0) / 3], found.confidence)
    np.testing.assert_allclose([2 / 3, 1 / 3], found.right)
    assert found.error == pytest.approx((abs(0.54 - 2 / 3) + abs(2.87 / 3 - 1 / 3)) / 2)
    assert (3 / 6, pytest.approx((1.62 + 2.87) / 6)) == (found.mean_right, found.mean_confidence)


def test_reliability_of_labels_is_that_of_each_being_there() -> None:
    """Of several labels every probability is an answer, right where the label is there."""
    found = reliability_of(np.array([[[0.2, 0.9], [0.25, 0.95]]]), np.array([[0, 1], [1, 0]]))
    assert ([2, 2], [0.5, 0.5]) == (found.counts.tolist(), found.right.tolist())


def test_drawn_labels_are_reliable() -> None:
    """Labels drawn by their own probabilities have nearly no error; the same ones said twice as surely have one."""
    rng = np.random.default_rng(0)
    ones = rng.uniform(size=40_000)
    shares = np.stack([1 - ones, ones], axis=1)
    labels = (rng.uniform(size=len(ones)) < ones).astype(int)
    sure = shares**3 / (shares**3).sum(axis=1, keepdims=True)
    assert reliability_of(shares[np.newaxis], labels).error < 0.01
    assert reliability_of(sure[np.newaxis], labels).error > 0.05
