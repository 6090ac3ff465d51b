"""A registry with a set of every kind, and a predictor on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.model.backbone import Backbone
from registry.serving.predictor import Predictor
from registry.store.registry import Registry
from tests.support.served_sets import save_kinds


@pytest.fixture
def registry(tmp_path: Path, tiny_backbone: Backbone) -> Registry:
    """A registry with a set of every kind: task0 to task3."""
    return save_kinds(tmp_path / "store", tiny_backbone)


@pytest.fixture
def predictor(registry: Registry, tiny_backbone: Backbone) -> Predictor:
    """A predictor on that registry."""
    return Predictor(tiny_backbone, registry)
