"""A grid on Ray: what comes of it is what comes of it here, whatever dies on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from ray.cluster_utils import Cluster

from registry.bench.records import read_records
from registry.bench.runner import Cell, CellJob, make_job, plan_passes, run_pass
from registry.cluster.connection import ClusterError
from registry.cluster.grid import Terms, run_grid
from registry.errors import BackboneMismatchError
from registry.model.backbone import Backbone
from registry.provenance import command_line
from registry.store.registry import Registry
from registry.store.store import Store
from registry.tasks.loading import load_task
from registry.tasks.spec import find_task
from tests.support.command_line import QUICK as QUICK_OPTIONS
from tests.support.command_line import succeed, write_data_folder
from tests.support.scripts import load_script
from tests.support.toy_task import same_weights

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]  # one Ray at a time

QUICK = {"epochs": 1, "max_length": 32, "batch_size": 8}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Backbone) -> list[CellJob]:
    """Twelve cells of the little mrpc; the first one's set is wanted."""
    data = load_task(find_task("mrpc"), str(write_data_folder(tmp_path_factory.mktemp("data"))), limit=20)
    cells = [Cell("mrpc", method, seed) for method in ("houlsby", "lora", "head_only") for seed in range(4)]
    return [make_job(cell, data, tiny_backbone, overrides=dict(QUICK), keeps=cell == cells[0]) for cell in cells]


def test_a_node_killed_on_the_way_changes_no_report(
    tmp_path: Path, cluster: Cluster, jobs: list[CellJob], tiny_backbone: Backbone
) -> None:
    """Of twelve cells on two nodes, one of which is killed, all end as they end here: answers, curves and weights."""
    here, there = (Registry.create(tmp_path / name / "store", tiny_backbone) for name in ("here", "there"))
    for sharing in plan_passes(tmp_path / "here", jobs):
        run_pass(tmp_path / "here", sharing, tiny_backbone, keep_in=here)
    victim = cluster.add_node(num_cpus=1)
    steps: list[Any] = []
    out, passes = tmp_path / "there", plan_passes(tmp_path / "there", jobs)
    done = []
    for job, _ in run_grid(out, passes, tiny_backbone, Terms.like(tiny_backbone), lambda *s: steps.append(s), there):
        done.append(job)
        if len(done) == 4:
            cluster.remove_node(victim, allow_graceful=False)
    assert set(jobs) == set(done)
    assert steps  # are told as they come; a busy machine may lose some, which the records have
    assert {job for job, _ in steps} <= set(jobs)
    contents = load_script("clustering/main.py").contents
    assert contents(tmp_path / "here") == contents(out)
    assert {command_line()} == {record.command for record in read_records(out)}
    assert same_weights(here.load("mrpc"), there.load("mrpc"))


def test_a_worker_that_would_compute_something_else_is_refused(
    tmp_path: Path, cluster: Cluster, jobs: list[CellJob], tiny_backbone: Backbone
) -> None:
    """Another version of a library there, or another checkpoint, ends the grid with a line that names both."""
    terms = Terms.like(tiny_backbone)
    other = msgspec.structs.replace(terms.backbone, fingerprint="0" * 64)
    for changed, kind, message in (
        ({"versions": {**terms.versions, "torch": "1.0"}}, ClusterError, "expected torch 1.0, found"),
        ({"backbone": other}, BackboneMismatchError, "made for fingerprint 000000000000, this one is"),
    ):
        strange = Terms(**{**vars(terms), **changed})
        with pytest.raises(kind, match=message):
            list(run_grid(tmp_path, [jobs[-1:]], tiny_backbone, strange))
    assert not list(tmp_path.iterdir())


def test_sets_trained_on_a_worker_are_those_trained_here(tmp_path: Path, cluster: Cluster, tiny_folder: Path) -> None:
    """Of two tasks trained together, on Ray and here, weights are the same, and the driver's store has both."""
    data = ("--data", write_data_folder(tmp_path / "data"), "--together", *QUICK_OPTIONS)
    stores = {name: tmp_path / name for name in ("here", "there")}
    for name, more in (("here", ()), ("there", ("--on", "ray"))):
        front = ("--store", stores[name], "--device", "cpu")
        succeed(*front, "train", "mrpc", "sst2", "--backbone", tiny_folder, *data, *more)
    for task in ("mrpc", "sst2"):
        here, there = (Store.open(path).manifest(task, 1).files for path in stores.values())
        assert [each.sha256 for each in here] == [each.sha256 for each in there]
