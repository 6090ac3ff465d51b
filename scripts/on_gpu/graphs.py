"""Training steps and mixed batches through CUDA graphs, each beside the usual way, its baseline and its peers.

bert-base's shape with random weights in bfloat16, wall time. A step's seconds are the median of those of one training
after the first eight, in which graphs are captured; a whole epoch counts what capturing took as well.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu
import ours
import peers
import torch
from gpu import random_rows, seconds_of, square_rate
from profiling import forward_flops, training_flops
from speed import LORA, Note, measured, new_backbone, peer_rows, share_of_bare

from registry.adapters.adapter_set import AdapterSet
from registry.config import TrainingConfig
from registry.graphs.capture import Capture, CudaCapture
from registry.model.backbone import Backbone
from registry.model.batching import TokenRows
from registry.model.inference import LabelledRows
from registry.serving.graphs import GraphedAnswers
from registry.serving.mixed_graphs import GraphedMixed
from registry.serving.pool import AdapterPool
from registry.training.loop import train, train_together
from registry.training.state import TrainingJob

WARM_STEPS, STEPS = 8, 40
EPOCH_ROWS = 3_668  # MRPC's
SMALL_BATCH = 16


def measure(folder: Path, device: str, quick: bool, note: Note) -> dict[str, Any]:
    """Return all rows by name; ``note`` is told each as soon as it is known."""
    checkpoint, backbone = new_backbone(folder, device, quick)
    rounds, resident = (1, 8) if quick else (5, ours.RESIDENT_SETS)
    rate = square_rate(backbone.device, gpu.SQUARE)
    works = {
        "steps": lambda: step_shares(backbone, rate),
        "mixed": lambda: mixed_shares(backbone, gpu.MIXED_SETS, resident, rounds),
        "together": lambda: together(backbone, rounds),
        "epochs": lambda: epochs(backbone, checkpoint, 1 if quick else 3, 64 if quick else EPOCH_ROWS),
        "compiled": lambda: compiled_shares(backbone, rate),
    }
    return measured(works, lambda figures: note("graphs", figures))


def new_capture(backbone: Backbone) -> Capture | None:
    """Return what records steps; None on a CPU, where a trial takes them the usual way."""
    return CudaCapture(backbone.device) if backbone.device.type == "cuda" else None


def step_seconds(backbone: Backbone, count: int, capture: Capture | None) -> tuple[float, float]:
    """Return the seconds of a step over so many rows, and those of the slowest, which captured where any did."""
    rows = random_rows(backbone, count, gpu.LENGTH)
    steps = 12 if count <= 8 else STEPS
    copies = TokenRows(list(rows.input_ids) * steps, list(rows.type_ids) * steps)
    learned = LabelledRows(copies, tuple(row % 2 for row in range(len(copies))))
    times: list[float] = []
    config = TrainingConfig(epochs=1, batch_size=count, learning_rate=1e-3)
    train(backbone.encoder, backbone.new_adapter_set(ours.ADAPTER, ours.HEAD), learned, config, capture=capture,
          observe=lambda report: times.append(time.perf_counter()))  # fmt: skip
    passed = [after - before for before, after in itertools.pairwise(times)]
    return statistics.median(passed[WARM_STEPS:]), max(passed[:WARM_STEPS])


def step_shares(backbone: Backbone, rate: float) -> dict[str, Any]:
    """Return what steps of 16k and of 2k tokens take, the usual way and through graphs, and their share of the rate."""
    found: dict[str, Any] = {}
    for name, count in (("large", gpu.ROWS), ("small", SMALL_BATCH)):
        (usual, _), (graphed, captured) = (
            step_seconds(backbone, count, None),
            step_seconds(backbone, count, new_capture(backbone)),
        )
        flops = training_flops(backbone, [gpu.LENGTH] * count)
        found |= {
            f"{name}_step_ms": 1e3 * usual,
            f"{name}_graphed_step_ms": 1e3 * graphed,
            f"{name}_graph_speedup": usual / graphed,
            f"{name}_capture_ms": 1e3 * captured,
            f"{name}_training_share": flops / usual / rate,
            f"{name}_graphed_training_share": flops / graphed / rate,
        }
    return found


def mixed_shares(backbone: Backbone, sets: int, resident: int, rounds: int) -> dict[str, Any]:
    """Return the rates of a mixed batch, evenly over some sets and by Zipf's law, as shares of the bare model's."""
    even = torch.randperm(gpu.ROWS, generator=torch.Generator().manual_seed(0)).remainder(sets).tolist()
    zipf = ours.zipf_owners([range(gpu.ROWS)], resident)[0]
    return {
        "graphed_mixed_share_of_bare": mixed_share(backbone, ours.fill_pool(backbone, sets), even, rounds),
        "graphed_zipf_share_of_bare": mixed_share(backbone, ours.fill_pool(backbone, resident), zipf, rounds),
    }


def mixed_share(backbone: Backbone, pool: AdapterPool[int], owners: Sequence[int], rounds: int) -> float:
    """Return the rate of one batch of rows of several sets through a graph, as a share of the bare backbone's."""
    graphed = GraphedMixed(backbone.encoder)
    keys = list(dict.fromkeys(owners))
    places = [keys.index(key) for key in owners]

    def ask(rows: TokenRows) -> None:
        with pool.hold(keys) as sets:
            if graphed.logits(sets, places, rows) is None:
                usual(backbone, lambda: ours.ask_mixed(backbone, pool, rows, [list(range(len(rows)))], [owners]))

    return share_of_bare(backbone, rounds, ask)


def usual(backbone: Backbone, work: Callable[[], object]) -> None:
    """Do what no graph did, on a CPU, where this is a trial.

    Raises:
        RuntimeError: there should have been a graph.
    """
    if backbone.device.type == "cuda":
        raise RuntimeError("no graph was captured")
    work()


def together(backbone: Backbone, rounds: int) -> dict[str, float]:
    """Return how many times faster 8 sets train together than one after another through graphs, 16 rows a step."""
    rows = random_rows(backbone, 8 * gpu.ROWS, gpu.LENGTH)
    learned = LabelledRows(rows, tuple(row % 2 for row in range(len(rows))))
    config = TrainingConfig(epochs=1, batch_size=SMALL_BATCH, learning_rate=1e-3)
    sets = [backbone.new_adapter_set(ours.ADAPTER, ours.HEAD, seed=seed) for seed in range(gpu.JOINT_SETS)]
    jobs = [TrainingJob(one, learned, config) for one in sets]
    works: tuple[Callable[[], object], ...] = (
        lambda: [train_together(backbone.encoder, [job], capture=new_capture(backbone)) for job in jobs],
        lambda: train_together(backbone.encoder, jobs),
    )
    turns = zip(*(seconds_of(work, backbone.device, min(rounds, 3)) for work in works), strict=True)
    return {"joint_training_over_graphed": statistics.median(apart / joint for apart, joint in turns)}


def epochs(backbone: Backbone, checkpoint: Path, rounds: int, count: int) -> dict[str, Any]:
    """Return how many times faster an epoch is through graphs than by peft's LoRA and a stock model with hooks."""
    learned = peer_rows(backbone, count)
    found: dict[str, Any] = {"epoch_rows": count}
    for name, adapter in (("bottleneck", ours.AFTER_LAYER), ("lora", LORA)):
        peer, fresh = peers.Peer(checkpoint, name, str(backbone.device)), backbone.new_adapter_set(adapter, ours.HEAD)

        def graphed(one: AdapterSet = fresh) -> None:
            train(backbone.encoder, one, learned, ours.training_config(), capture=new_capture(backbone))

        def other(one: peers.Peer = peer) -> None:
            one.train(learned)

        turns = list(zip(*(seconds_of(work, backbone.device, rounds) for work in (graphed, other)), strict=True))
        found[f"{name}_graphed_training_times_the_peer"] = statistics.median(theirs / us for us, theirs in turns)
        found[f"{name}_graphed_training_rows_per_second"] = count / statistics.median(us for us, _ in turns)
    return found


def compiled_shares(backbone: Backbone, rate: float) -> dict[str, Any]:
    """Return what graphs of 16k tokens make of the rate once ``torch.compile`` has made the kernels of each layer."""
    on_gpu = backbone.device.type == "cuda"
    before = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = 64  # each layer's index makes a graph of its own
    began = time.perf_counter()
    try:
        for layer in backbone.encoder.layers:
            layer.compile(dynamic=True, backend="inductor" if on_gpu else "aot_eager")
        forward = bare_seconds(backbone)
        training, _ = step_seconds(backbone, gpu.ROWS, new_capture(backbone))
    finally:
        torch._dynamo.config.recompile_limit = before
        for layer in backbone.encoder.layers:
            layer._compiled_call_impl = None
    lengths = [gpu.LENGTH] * gpu.ROWS
    return {
        "compiled_forward_share": forward_flops(backbone, lengths, with_adapter=False) / forward / rate,
        "compiled_training_share": training_flops(backbone, lengths) / training / rate,
        "compiling_seconds": time.perf_counter() - began,
    }


def bare_seconds(backbone: Backbone, batches: int = 8) -> float:
    """Return the seconds of the bare model's answers to 16k tokens through a graph, batch after batch."""
    rows = random_rows(backbone, gpu.ROWS, gpu.LENGTH)
    one = ours.resident_set(backbone, backbone.new_adapter_set(None, ours.HEAD))
    graphed = GraphedAnswers(backbone.encoder)

    def ask() -> None:
        for _ in range(batches):
            if graphed.logits(one, rows) is None:
                usual(backbone, lambda: ours.ask_bare(backbone, rows, [list(range(len(rows)))]))

    return statistics.median(seconds_of(ask, backbone.device, 5)) / batches
