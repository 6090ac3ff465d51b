"""Where the device's time goes in one training step, one batch of answers and one mixed batch.

Kernel time and launches are the profiler's; the idle share is of the wall time of the same work without the profiler.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gpu
import ours
import torch
from gpu import random_rows, seconds_of
from speed import new_backbone
from torch.profiler import ProfilerActivity, profile

from registry.config import TrainingConfig
from registry.graphs.capture import CudaCapture
from registry.graphs.step import GraphedSteps
from registry.model.batching import TokenRows
from registry.model.inference import LabelledRows
from registry.serving.graphs import GraphedAnswers
from registry.serving.mixed_graphs import GraphedMixed
from registry.training.gradients import clip
from registry.training.loop import train

KERNELS = 14


def measure(folder: Path, device: str, quick: bool) -> dict[str, Any]:
    """Return the profiles by name, and how far from its own rate each kind of kernel is."""
    _, backbone = new_backbone(folder, device, quick)
    count, sets = (8, 4) if quick else (gpu.ROWS, 64)
    rows, small = random_rows(backbone, count), random_rows(backbone, 16)
    pool, one = ours.fill_pool(backbone, sets), backbone.new_adapter_set(ours.ADAPTER, ours.HEAD)
    batches = [list(range(count))]
    owners = [[row % sets for row in range(count)]]

    def step_of(tokens: TokenRows) -> Callable[[], object]:
        learned = LabelledRows(tokens, tuple(row % 2 for row in range(len(tokens))))
        config = TrainingConfig(epochs=1, batch_size=len(tokens), learning_rate=1e-3)
        return lambda: train(backbone.encoder, one, learned, config)

    def graphed_pass(tokens: TokenRows) -> Callable[[], object]:
        indices = list(range(len(tokens)))
        learned = LabelledRows(tokens, tuple(row % 2 for row in indices))
        generator, clipped = torch.Generator(backbone.device), partial(clip, most=1.0)
        capture = CudaCapture(backbone.device)
        steps = GraphedSteps(backbone.encoder, one.train(), learned, None, 0.0, clipped, generator, capture)
        steps.learn_from(indices)  # a bucket has a graph when it comes again
        return lambda: steps.learn_from(indices)

    def mixed_by_graph() -> object:
        with pool.hold(list(range(sets))) as resident_sets:
            return graphed_mixed.logits(resident_sets, owners[0], rows)

    graphed, graphed_mixed = GraphedAnswers(backbone.encoder), GraphedMixed(backbone.encoder)
    plain, resident = (ours.resident_set(backbone, each) for each in (backbone.new_adapter_set(None, ours.HEAD), one))
    works: dict[str, Callable[[], object]] = {
        "bare answers, 16k tokens": lambda: ours.ask_bare(backbone, rows, batches),
        "answers of one set, 16k tokens": lambda: ours.ask_one(backbone, one.eval(), rows, batches),
        "bare answers through a graph, 16k tokens": lambda: graphed.logits(plain, rows),
        "answers of one set through a graph, 16k tokens": lambda: graphed.logits(resident, rows),
        f"mixed batch over {sets} sets, 16k tokens": lambda: ours.ask_mixed(backbone, pool, rows, batches, owners),
        "training step, 16k tokens": step_of(rows),
        "training step, 2k tokens": step_of(small),
    }
    if backbone.device.type == "cuda":
        works |= {
            f"mixed batch over {sets} sets through a graph, 16k tokens": mixed_by_graph,
            "forwards and backwards through a graph, 16k tokens": graphed_pass(rows),
            "forwards and backwards through a graph, 2k tokens": graphed_pass(small),
        }
    return {name: profile_of(work, backbone.device) for name, work in works.items()}


def profile_of(work: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Return wall and kernel milliseconds, launches, the idle share and the longest kernels of one go."""
    seconds = statistics.median(seconds_of(work, device, 5))
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
    kernels: dict[str, list[float]] = {}
    for event in profiler.events() or ():
        is_kernel = not event.name.startswith("Optimizer.")  # a note of torch's own over several kernels
        if on_gpu and event.device_type == torch.autograd.DeviceType.CUDA and is_kernel:
            kernels.setdefault(event.name, []).append(event.device_time / 1e3)
    total = sum(map(sum, kernels.values()))
    longest = sorted(kernels.items(), key=lambda each: -sum(each[1]))[:KERNELS]
    found = {
        "wall_ms": 1e3 * seconds,
        "kernel_ms": total,
        "launches": sum(map(len, kernels.values())),
        "idle_share": max(0.0, 1 - total / (1e3 * seconds)),
        "kernels": [{"name": name[:110], "ms": sum(each), "launches": len(each)} for name, each in longest],
    }
    print(f"{found['wall_ms']:.2f} ms, kernels {total:.2f} ms, {found['launches']} launches", flush=True)
    for each in found["kernels"]:
        print(f"    {each['ms']:8.3f} ms {each['launches']:5d} x {each['name']}", flush=True)
    return found
