"""A local Ray for tests, and a server whose engines are replicas on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from registry.cluster.serve import Front, ReplicaTerms, deployed
from registry.serving.engine import Limits
from registry.store.store import Store

HERE = Path(__file__).parents[2]


@contextmanager
def replicas_of(store: Path, count: int = 1) -> Iterator[Front]:
    """Give what answers from a store by so many replicas, on the Ray that is connected."""
    info = Store.open(store).info.backbone
    terms = ReplicaTerms(
        store, info.source, None, "cpu", "float32", True, torch.get_num_threads(), 0.0, Limits(), 2**30, None
    )
    with deployed(terms, (count, count), 2_048) as front:
        yield front
