"""Our contenders of the benchmark: this package's own doors, asked to do the same rows as the peers.

Both dtypes use the architecture of ``adapters``' seq_bn with reduction factor 16: placement ``pfeiffer``, relu, M 24.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence

import psutil
import torch
from rounds import Contender, timed

from registry.adapters.adapter_set import AdapterSet
from registry.config import AdapterConfig, HeadConfig, MethodConfig, TrainingConfig
from registry.model.backbone import Backbone
from registry.model.batching import Batch, TokenRows, sorted_batches
from registry.model.encoder import NO_ADAPTERS
from registry.model.inference import LabelledRows, logits_of, mixed_logits
from registry.schema import Manifest
from registry.serving.pool import AdapterPool, ResidentSet
from registry.training.loop import train

DTYPES = ("float32", "bfloat16")
BATCH, BATCH_TOKENS = 16, 4_096
RESIDENT_SETS = 1_000
ADAPTER = AdapterConfig(placement="pfeiffer", reduction_factor=16, activation="relu")
AFTER_LAYER = AdapterConfig(placement="after_layer", reduction_factor=16, activation="relu")
HEAD = HeadConfig(label_names=("no", "yes"), pooling="mean")

Backbones = Mapping[str, Backbone]


def load_backbones(device: str) -> dict[str, Backbone]:
    """Return the embedded backbone in each dtype."""
    return {name: Backbone.load("embedded", device=device, dtype=name) for name in DTYPES}


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
        adapter_set = backbone.new_adapter_set(ADAPTER, HEAD).eval()
        return lambda: ask_one(backbone, adapter_set, rows, batches)

    return [
        *contenders(backbones, bare, "ours_bare", "ours: bare backbone", len(rows)),
        *contenders(backbones, one_set, "ours", "ours: one adapter set", len(rows)),
    ]


@torch.inference_mode()
def ask_bare(backbone: Backbone, rows: TokenRows, batches: Sequence[Sequence[int]]) -> None:
    """Run the backbone alone over the batches, up to one pooled state for each row."""
    for indices in batches:
        batch = Batch.pack(rows.take(indices), device=backbone.device)
        backbone.encoder.pooled(batch, NO_ADAPTERS, (HEAD.pooling,))


@torch.inference_mode()
def ask_one(backbone: Backbone, adapter_set: AdapterSet, rows: TokenRows, batches: Sequence[Sequence[int]]) -> None:
    """Answer the batches with one set."""
    for indices in batches:
        logits_of(backbone.encoder, adapter_set, Batch.pack(rows.take(indices), device=backbone.device))


@torch.inference_mode()
def ask_mixed(
    backbone: Backbone, pool: AdapterPool[int], rows: TokenRows, batches: Sequence[Sequence[int]],
    owners: Sequence[Sequence[int]],
) -> None:  # fmt: skip
    """Answer the batches from a pool, row i of batch b with the set of key ``owners[b][i]``."""
    for indices, chosen in zip(batches, owners, strict=True):
        keys = list(dict.fromkeys(chosen))
        place = {key: index for index, key in enumerate(keys)}
        with pool.hold(keys) as sets:
            batch = Batch.pack(rows.take(indices), [place[key] for key in chosen], backbone.device)
            mixed_logits(backbone.encoder, sets, batch)


def mixed_contenders(
    backbones: Backbones, pools: Mapping[str, Mapping[str, AdapterPool[int]]], rows: TokenRows,
    batches: Sequence[Sequence[int]], owners: Sequence[Sequence[int]], label: str,
) -> list[Contender]:  # fmt: skip
    """Return answering the same batches by the bare backbone and by the sets that own the rows.

    Args:
        pools: by dtype, of each kind of sets: ``ours`` has the peers' architecture.
    """
    count = sum(len(batch) for batch in batches)

    def bare(name: str, backbone: Backbone) -> Callable[[], object]:
        return lambda: ask_bare(backbone, rows, batches)

    def mixed(kind: str) -> Callable[[str, Backbone], Callable[[], object]]:
        return lambda name, backbone: lambda: ask_mixed(backbone, pools[kind][name], rows, batches, owners)

    found = contenders(backbones, bare, "ours_bare", "ours: bare backbone, same batches", count)
    for kind in pools:
        special = kind.removeprefix("ours").lstrip("_")
        found += contenders(backbones, mixed(kind), kind, f"{label}, {special}" if special else label, count)
    return found


def resident_set(backbone: Backbone, adapter_set: AdapterSet, key: int = 0) -> ResidentSet:
    """Return a set as a predictor has it."""
    manifest = Manifest(
        name=f"set{key}",
        created="2026-01-01T00:00:00+00:00",
        adapter=adapter_set.adapter_config,
        head=adapter_set.head_config,
        parameters=adapter_set.stored_count,
        backbone=backbone.info,
    )
    return ResidentSet(f"set{key}:1", manifest, adapter_set.eval(), backbone.dtype)


def fill_pool(backbone: Backbone, count: int, adapter: MethodConfig = ADAPTER) -> AdapterPool[int]:
    """Return a pool in which the sets 0 to ``count`` - 1 are resident, as a predictor has them."""
    pool: AdapterPool[int] = AdapterPool(
        lambda key: resident_set(backbone, backbone.new_adapter_set(adapter, HEAD, seed=key), key)
    )
    for key in range(count):
        with pool.hold([key]):
            pass
    return pool


def resident_pool(backbone: Backbone) -> tuple[AdapterPool[int], float]:
    """Return a pool of 1,000 sets, and how much the process grew for each byte of their weights.

    Call it before anything else has grown and shrunk the process. It reads the process's own memory, so it says
    nothing of a GPU's.
    """
    fill_pool(backbone, 2)  # what the first ones load is not theirs
    gc.collect()
    before = psutil.Process().memory_info().rss
    pool = fill_pool(backbone, RESIDENT_SETS)
    gc.collect()
    return pool, (psutil.Process().memory_info().rss - before) / pool.bytes


def zipf_owners(batches: Sequence[Sequence[int]], sets: int, seed: int = 0) -> list[list[int]]:
    """Return the set of each row of each batch: set k is asked for 1/k times as often as the first."""
    shares = 1.0 / torch.arange(1, sets + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return [torch.multinomial(shares, len(batch), True, generator=generator).tolist() for batch in batches]


def switching_contenders(backbone: Backbone, switches: int = 20_000) -> list[Contender]:
    """Return holding another resident set: looking it up in a pool of so many, and letting it go again."""

    def switch_among(count: int) -> Callable[[], object]:
        pool = fill_pool(backbone, count)
        sequence = [place * 7 % count for place in range(switches)]

        def switch() -> None:
            for key in sequence:
                with pool.hold((key,)):
                    pass

        return switch

    return [
        Contender(
            f"ours-{count}", f"ours: {count:,} resident sets", switches, timed(switch_among(count), backbone.device)
        )
        for count in (64, RESIDENT_SETS)
    ]
