"""A Ray of two nodes on this machine, and replicas of an engine on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from registry.cluster.serve import Front, ReplicaTerms, deployed
from registry.serving.engine import Limits
from registry.store.store import Store

HERE = Path(__file__).parents[2]
# A dead node is found out soon, and workers are no nicer than the other tests, beside which they would starve.
_SETTINGS = {
    "worker_niceness": 0,
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 2,
}


@contextmanager
def local_cluster() -> Iterator[Cluster]:
    """Give a node of two CPUs that this process is connected to; others can be added."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        head = {"num_cpus": 2, "include_dashboard": False, "_system_config": _SETTINGS}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(cluster.address, log_to_driver=False, logging_level="error")
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@contextmanager
def replicas_of(store: Path, count: int) -> Iterator[Front]:
    """Give what answers from a store by so many replicas, on the Ray that is connected."""
    info = Store.open(store).info.backbone
    own = {"device": "cpu", "dtype": "float32", "offline": True, "threads": 1, "gpus": 0.0}
    terms = ReplicaTerms(str(store), info.source, None, limits=Limits(), capacity=2**30, threshold=None, **own)  # type: ignore[arg-type]
    with deployed(terms, (count, count), 2_048) as front:
        yield front
