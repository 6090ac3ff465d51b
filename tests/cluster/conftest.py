"""One Ray for all tests of this folder, and one server on it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.model.backbone import Backbone
from registry.store.registry import Registry
from tests.support.served_sets import save_kinds
from tests.support.server import Served, serving_by

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def cluster() -> Iterator[object]:
    """A Ray that this process is connected to."""
    with warnings.catch_warnings():  # of Ray Serve's own schemas, when they are imported
        warnings.filterwarnings("ignore", "Using extra keyword arguments on `Field`")
        from tests.support.clusters import local_cluster

    with local_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Backbone) -> Registry:
    """A registry with a set of every kind: task0 to task3."""
    return save_kinds(tmp_path_factory.mktemp("served") / "store", tiny_backbone)


@pytest.fixture(scope="session")
def served(cluster: object, registry: Registry) -> Iterator[Served]:
    """A server on that registry, whose engines are two replicas on Ray."""
    from tests.support.clusters import replicas_of

    with replicas_of(Path(registry.store.root), 2) as front, serving_by(front) as served:
        yield served
