"""Our contenders of the benchmark: this package's own doors, asked to do the same rows as the peers.

Both dtypes use the architecture of ``adapters``' seq_bn with reduction factor 16: placement ``pfeiffer``, relu, M 24.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence

import psutil
import torch
from benchmark_rounds import Contender, timed

from registry.adapters import AdapterSet
from registry.backbone import Backbone
from registry.batching import Batch, TokenRows, sorted_batches
from registry.evaluation import LabelledRows, logits_of
from registry.mixing import MixedAdapters
from registry.schema import AdapterConfig, HeadConfig, TrainingConfig
from registry.training import train

DTYPES = ("float32", "bfloat16")
BATCH, BATCH_TOKENS = 16, 4_096
RESIDENT_SETS = 1_000
ADAPTER = AdapterConfig(placement="pfeiffer", reduction_factor=16, activation="relu")
HEAD = HeadConfig(label_names=("no", "yes"), pooling="mean")

Backbones = Mapping[str, Backbone]


def load_backbones(device: str) -> dict[str, Backbone]:
    """Return the embedded backbone in each dtype."""
    return {name: Backbone.load("embedded", device=device, dtype=name) for name in DTYPES}


def fresh_sets(backbone: Backbone, count: int) -> list[AdapterSet]:
    """Return sets of the benchmark's architecture, each from its own seed."""
    return [backbone.new_adapter_set(ADAPTER, HEAD, seed=seed).eval() for seed in range(count)]


def training_config(epochs: int = 1, seed: int = 0) -> TrainingConfig:
    """Return the choices of every training run here."""
    return TrainingConfig(epochs=epochs, batch_size=BATCH, learning_rate=1e-3, seed=seed)


def contenders(backbones: Backbones, work_of: Callable[[str, Backbone], Callable[[], object]], key: str, label: str,
               count: int) -> list[Contender]:  # fmt: skip
    """Return one contender for each dtype, ``work_of`` making its work."""
    return [
        Contender(f"{key}-{name}", f"{label}, {name}", count, timed(work_of(name, backbone), backbone.device))
        for name, backbone in backbones.items()
    ]


def training_contenders(backbones: Backbones, rows: LabelledRows) -> list[Contender]:
    """Return one epoch of training one set."""

    def work_of(name: str, backbone: Backbone) -> Callable[[], object]:
        adapter_set = backbone.new_adapter_set(ADAPTER, HEAD)
        return lambda: train(backbone.encoder, adapter_set.train(), rows, training_config())

    return contenders(backbones, work_of, "ours", "ours: one adapter set", len(rows))


def inference_contenders(backbones: Backbones, rows: TokenRows) -> list[Contender]:
    """Return answering all rows, by the bare backbone and by one set."""
    batches = sorted_batches([len(ids) for ids in rows.input_ids], BATCH_TOKENS, BATCH)

    def bare(name: str, backbone: Backbone) -> Callable[[], object]:
        return lambda: ask_bare(backbone, rows, batches)

    def one_set(name: str, backbone: Backbone) -> Callable[[], object]:
        (adapter_set,) = fresh_sets(backbone, 1)
        return lambda: ask_one(backbone, adapter_set, rows, batches)

    return [
        *contenders(backbones, bare, "ours_bare", "ours: bare backbone", len(rows)),
        *contenders(backbones, one_set, "ours", "ours: one adapter set", len(rows)),
    ]


@torch.inference_mode()
def ask_bare(backbone: Backbone, rows: TokenRows, batches: Sequence[Sequence[int]]) -> None:
    """Run the backbone alone over the batches."""
    for indices in batches:
        backbone(Batch.pack(rows.take(indices), device=backbone.device))


@torch.inference_mode()
def ask_one(backbone: Backbone, adapter_set: AdapterSet, rows: TokenRows, batches: Sequence[Sequence[int]]) -> None:
    """Answer the batches with one set."""
    for indices in batches:
        logits_of(backbone.encoder, adapter_set, Batch.pack(rows.take(indices), device=backbone.device))


@torch.inference_mode()
def ask_mixed(
    backbone: Backbone, sets: Sequence[AdapterSet], rows: TokenRows, batches: Sequence[Sequence[int]],
    owners: Sequence[Sequence[int]],
) -> None:  # fmt: skip
    """Answer the batches, row i of batch b with set ``owners[b][i]``."""
    for indices, chosen in zip(batches, owners, strict=True):
        batch = Batch.pack(rows.take(indices), chosen, backbone.device)
        hidden = backbone(batch, MixedAdapters(sets, batch.segments))
        pooled = backbone.encoder.pool(hidden, batch, HEAD.pooling)
        for segment in batch.segments:
            sets[segment.adapter_index].head(pooled[segment.rows])


def mixed_contenders(
    backbones: Backbones, sets: Mapping[str, Sequence[AdapterSet]], rows: TokenRows,
    batches: Sequence[Sequence[int]], owners: Sequence[Sequence[int]], label: str,
) -> list[Contender]:  # fmt: skip
    """Return answering the same batches by the bare backbone and by the sets that own the rows."""
    count = sum(len(batch) for batch in batches)

    def bare(name: str, backbone: Backbone) -> Callable[[], object]:
        return lambda: ask_bare(backbone, rows, batches)

    def mixed(name: str, backbone: Backbone) -> Callable[[], object]:
        return lambda: ask_mixed(backbone, sets[name], rows, batches, owners)

    return [
        *contenders(backbones, bare, "ours_bare", "ours: bare backbone, same batches", count),
        *contenders(backbones, mixed, "ours", label, count),
    ]


def resident_sets(backbone: Backbone) -> tuple[list[AdapterSet], float]:
    """Return 1,000 sets, and how much the process grew for each byte of their weights.

    Call it before anything else has grown and shrunk the process.
    """
    fresh_sets(backbone, 2)  # what the first ones load is not theirs
    gc.collect()
    before = psutil.Process().memory_info().rss
    sets = fresh_sets(backbone, RESIDENT_SETS)
    gc.collect()
    grown = psutil.Process().memory_info().rss - before
    weights = sum(tensor.nbytes for adapter_set in sets for tensor in adapter_set.state_dict().values())
    return sets, grown / weights


def zipf_owners(batches: Sequence[Sequence[int]], sets: int, seed: int = 0) -> list[list[int]]:
    """Return the set of each row of each batch: set k is asked for 1/k times as often as the first."""
    shares = 1.0 / torch.arange(1, sets + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return [torch.multinomial(shares, len(batch), True, generator=generator).tolist() for batch in batches]


def switching_contenders(sets: Sequence[AdapterSet], device: torch.device, switches: int = 100_000) -> list[Contender]:
    """Return choosing another resident set: it is an argument, so this is the cost of naming it."""

    def switch_among(count: int) -> Callable[[], object]:
        named = {f"set{number}": adapter_set for number, adapter_set in enumerate(sets[:count])}
        names = list(named)
        sequence = [names[place * 7 % count] for place in range(switches)]

        def switch() -> None:
            for name in sequence:
                _ = named[name].adapter

        return switch

    return [
        Contender(f"ours-{count}", f"ours: {count:,} resident sets", switches, timed(switch_among(count), device))
        for count in (64, RESIDENT_SETS)
    ]
