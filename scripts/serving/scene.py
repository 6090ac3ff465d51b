"""What all contenders serve and are asked: many sets on one encoder, real rows, sets drawn as Zipf's law has it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from registry.config import AdapterConfig, HeadConfig
from registry.model.backbone import Backbone
from registry.schema import SetInfo
from registry.store.registry import Registry
from registry.tasks.loading import load_task
from registry.tasks.spec import BUILT_IN

ADAPTER = AdapterConfig(placement="pfeiffer", reduction_factor=16, init="normal")
HEAD = HeadConfig(label_names=("negative", "positive"))
LENGTH = 128


def name_of(number: int) -> str:
    """Return what the ``number``-th set is called."""
    return f"task{number:04d}"


def make_store(folder: Path, backbone: Backbone, sets: int) -> Registry:
    """Make a store of so many random sets, all of one configuration and no two alike."""
    registry = Registry.create(folder, backbone)
    for number in range(sets):
        fresh = backbone.new_adapter_set(ADAPTER, HEAD, seed=number)
        with torch.no_grad():
            fresh.head.out.weight.mul_(10)
        registry.save(name_of(number), fresh, SetInfo(pair=False, max_length=LENGTH))
    return registry


def read_texts(path: Path | None) -> list[str]:
    """Return the texts of a file of JSON lines, or those of the bundled SST-2 sample."""
    if path is None:
        data = load_task(BUILT_IN["sst2"], "sample")
        return [*data.train.texts, *data.reported.texts]
    return [json.loads(line)["sentence"] for line in path.read_text(encoding="utf-8").splitlines()]


def draw_rows(texts: Sequence[str], sets: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield (set, text) without end: the k-th set with a weight of 1 / k, texts evenly."""
    chance = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(sets)]
    names = [name_of(number) for number in range(sets)]
    while True:
        yield from zip(chance.choices(names, weights, k=256), chance.choices(texts, k=256), strict=True)
