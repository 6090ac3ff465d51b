"""Several processes train one set together, each on its part of every batch; here on a CPU, over gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import distributed, multiprocessing

from registry.adapters.adapter_set import AdapterSet
from registry.config import AdapterConfig, HeadConfig, LoraConfig, MethodConfig
from registry.errors import ConfigError, NonFiniteLossError, TrainingInterrupted
from registry.model.backbone import Backbone
from registry.training.checkpoint import Checkpoint
from registry.training.gradients import Ranks
from registry.training.loop import train, train_together
from registry.training.state import TrainingJob
from tests.support.toy_task import TRAINING, stop_at, toy_rows

pytestmark = pytest.mark.xdist_group("ranks")  # their processes are started once

RANKS = 2
HEAD = HeadConfig(label_names=("bad", "good"))
CASES: dict[str, tuple[MethodConfig, dict[str, Any]]] = {
    # 41 rows in batches of 8: of the last batch the second rank has no row
    "bottleneck": (AdapterConfig(placement="houlsby", reduction_factor=4), {}),
    "weighted": (AdapterConfig(reduction_factor=4), {"class_weights": (1.0, 3.0), "gradient_accumulation_steps": 2}),
    "lora above": (LoraConfig(rank=4, layers=(1,)), {"evaluate_every": 5, "select_best": "accuracy"}),
}


def learn(folder: Path, case: str, ranks: Ranks | None, seed: int = 0, **options: Any) -> tuple[AdapterSet, Any]:
    """Return a set trained on 41 toy rows, and what came of it."""
    adapter, changes = CASES[case]
    config = msgspec.structs.replace(TRAINING, **changes)
    backbone = Backbone.load(str(folder), device="cpu")
    fresh = backbone.new_adapter_set(adapter, HEAD, seed=seed)
    held_out = toy_rows(backbone, 10, seed=1) if config.holds_out else None
    rows = toy_rows(backbone, 41)
    return fresh, train(backbone.encoder, fresh, rows, config, held_out=held_out, ranks=ranks, **options)


def work(rank: int, folder: Path, place: Path) -> None:
    """Do what the tests ask of one rank, and write down what it saw."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=RANKS)
    found: dict[str, Any] = {}
    for case in CASES:
        fresh, result = learn(folder, case, Ranks(), seed=rank)  # the first rank's start is everybody's
        found[case] = fresh.state_dict(), result.final_loss, result.history
    try:
        learn(folder, "bottleneck", Ranks(), loss=lambda logits, labels: logits.sum() * (float("nan") if rank else 1.0))
    except NonFiniteLossError:
        found["diverged"] = True
    try:
        learn(
            folder,
            "bottleneck",
            Ranks(),
            checkpoint=Checkpoint(place / "checkpoint", "bottleneck", resume=True),
            should_stop=stop_at(4 if rank else 99, []),
        )
    except TrainingInterrupted as err:
        found["stopped"] = str(err)
    distributed.barrier()
    goes_on = Checkpoint(place / "checkpoint", "bottleneck", resume=True)
    found["resumed"] = learn(folder, "bottleneck", Ranks(), checkpoint=goes_on)[0].state_dict()
    torch.save(found, place / f"rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw."""
    place = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, (tiny_folder, place), nprocs=RANKS)
    return [torch.load(place / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES)
def test_ranks_learn_what_one_process_learns(tiny_folder: Path, seen: list[dict[str, Any]], case: str) -> None:
    """Weights, loss and scores are those of one process up to rounding, and the same bits on every rank."""
    alone, result = learn(tiny_folder, case, None)
    first, second = (each[case] for each in seen)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(first[0][name], second[0][name])
        assert float((first[0][name] - tensor).abs().max()) <= 1e-5
    assert first[1] == second[1] == pytest.approx(result.final_loss, abs=1e-5)
    assert tuple(first[2]) == result.history


def test_a_loss_that_fails_on_one_rank_ends_all(seen: list[dict[str, Any]]) -> None:
    """Where one rank's loss is not finite, every rank ends with the error, and none waits for another."""
    assert [True, True] == [each.get("diverged") for each in seen]


def test_ranks_stop_after_the_same_step_and_go_on(tiny_folder: Path, seen: list[dict[str, Any]]) -> None:
    """A stop that one rank alone is asked for stops all; from the one checkpoint they learn what they would have."""
    assert "4" in seen[0]["stopped"]
    assert seen[0]["stopped"] == seen[1]["stopped"]
    for name, tensor in seen[0]["bottleneck"][0].items():
        assert float((seen[0]["resumed"][name] - tensor).abs().max()) <= 1e-6
        assert torch.equal(seen[0]["resumed"][name], seen[1]["resumed"][name])


def test_several_sets_are_no_work_for_ranks(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """Ranks share the batches of one set; several sets are refused, as each rank can train its own."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        made = [tiny_backbone.new_adapter_set(None, HEAD) for _ in range(2)]
        jobs = [TrainingJob(one, toy_rows(tiny_backbone), TRAINING) for one in made]
        with pytest.raises(ConfigError, match="several ranks share"):
            train_together(tiny_backbone.encoder, jobs, ranks=Ranks())
    finally:
        distributed.destroy_process_group()
