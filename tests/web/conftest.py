"""A registry with a set of every kind, and a server on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.model.backbone import Backbone
from registry.store.registry import Registry
from tests.support.served_sets import save_kinds
from tests.support.server import Served, serving


@pytest.fixture
def registry(tmp_path: Path, tiny_backbone: Backbone) -> Registry:
    """A registry with a set of every kind: task0 to task3."""
    return save_kinds(tmp_path / "store", tiny_backbone)


@pytest.fixture
def served(registry: Registry) -> Iterator[Served]:
    """A server on that registry."""
    with serving(registry) as served:
        yield served
