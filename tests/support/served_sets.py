"""Sets of every kind for tests of what answers: bottlenecks, a head alone, one label, several, numbers, pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.config import AdapterConfig, HeadConfig
from registry.model.backbone import Backbone
from registry.schema import SetInfo
from registry.serving.predictor import Prediction, Request
from registry.store.registry import Registry
from tests.support.toy_task import randomise

TEXTS = ("a good film", "bad", "the cat was not very big and she left the city", "sun rain city road", "one two")
KINDS = (
    (AdapterConfig(placement="houlsby", reduction_factor=4), HeadConfig(label_names=("bad", "good")), False),
    (
        AdapterConfig(placement="parallel", reduction_factor=2, layers=(1,), scale=2.0),
        HeadConfig(label_names=("a", "b", "c"), pooling="cls", form="dense_tanh"),
        True,
    ),
    (
        AdapterConfig(reduction_factor=8, activation="relu", layer_norms=True),
        HeadConfig(label_names=("red", "blue", "big", "small"), problem_type="multi_label"),
        False,
    ),
    (None, HeadConfig(label_names=("stars",), problem_type="regression", pooling="pooler"), None),
)


def save_kinds(root: Path, backbone: Backbone) -> Registry:
    """Return a new registry with a set of every kind: task0 to task3."""
    registry = Registry.create(root, backbone)
    for number in range(len(KINDS)):
        save_kind(registry, f"task{number}", number, number)
    return registry


def save_kind(registry: Registry, name: str, number: int, seed: int) -> None:
    """Save a random set of a kind as the next version of a name."""
    adapter, head, pair = KINDS[number]
    fresh = registry.backbone.new_adapter_set(adapter, head)
    registry.save(name, randomise(fresh, seed=seed), SetInfo(pair=pair, max_length=16))


def requests() -> list[Request]:
    """Return rows of all four sets, those of one set never beside each other."""
    return [
        Request(f"task{number}", text, "he left" if KINDS[number][2] else None)
        for text in TEXTS
        for number in (2, 0, 3, 1)
    ]


def assert_close(expected: Prediction, actual: Prediction, tolerance: float = 1e-5) -> None:
    """Check that two answers are the same but for rounding."""
    assert (expected.reference, expected.truncated) == (actual.reference, actual.truncated)
    assert expected.probabilities == pytest.approx(actual.probabilities, abs=tolerance)
    assert expected.label == (pytest.approx(actual.label, abs=tolerance) if expected.label.__class__ is float
                              else actual.label)  # fmt: skip
