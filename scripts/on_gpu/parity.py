"""Every family with every method and placement on the device, in each dtype, beside the CPU's float32.

The figure is the largest difference of any row's logits, one set alone and five sets in one batch. What is refused on
the CPU, as it is not defined, is not asked of the device.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import ours
import torch
from torch import Tensor

from registry.config import AdapterConfig, HeadConfig, MethodConfig
from registry.errors import ConfigError
from registry.model.backbone import Backbone
from registry.model.batching import Batch
from registry.model.families import FAMILIES
from registry.model.inference import mixed_logits
from tests.support.stock_models import random_rows
from tests.support.tiny_backbone import save_tiny_checkpoint
from tests.support.toy_task import METHODS, randomise

PLACEMENTS: dict[str, MethodConfig] = {
    name: AdapterConfig(placement=name, reduction_factor=4, activation=activation, layer_norms=norms)
    for name, activation, norms in (
        ("after_layer", "relu", False),
        ("houlsby", "gelu", True),
        ("pfeiffer", "silu", False),
        ("parallel", "tanh", False),
    )
}
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.15}
SETS = 5


def measure(folder: Path, device: str) -> dict[str, Any]:
    """Return by dtype the largest difference of each family's methods, and what differs by more than it may."""
    found: dict[str, Any] = {dtype: {} for dtype in TOLERANCES}
    beyond: list[str] = []
    for family in FAMILIES:
        place = folder / family
        save_tiny_checkpoint(place, family)
        exact = Backbone.load(str(place), device="cpu", dtype="float32")
        others = {dtype: Backbone.load(str(place), device=device, dtype=dtype) for dtype in TOLERANCES}
        for method, config in (PLACEMENTS | dict(METHODS)).items():
            try:
                sets = [randomise(exact.new_adapter_set(config, HeadConfig(label_names=("a", "b", "c"))), seed)
                        for seed in range(SETS)]  # fmt: skip
            except ConfigError:
                continue
            for dtype, backbone in others.items():
                try:
                    apart = difference(exact, backbone, sets)
                except Exception as err:
                    beyond.append(f"{family} {method} {dtype}: {type(err).__name__}: {err}"[:400])
                    continue
                found[dtype].setdefault(family, {})[method] = apart
                if not apart <= TOLERANCES[dtype]:
                    beyond.append(f"{family} {method} {dtype}: {apart:.3g}")
    for dtype, families in found.items():
        cells = [value for methods in families.values() for value in methods.values()]
        print(f"parity {dtype}: {len(cells)} cells, largest difference {max(cells, default=0):.3g}", flush=True)
    print(*beyond[:40], sep="\n", flush=True)
    return {"differences": found, "tolerances": TOLERANCES, "beyond": beyond}


def difference(exact: Backbone, backbone: Backbone, sets: list[Any]) -> float:
    """Return the largest difference of any logit, relative to the largest logit, alone and in a mixed batch."""
    owners = [0, 1, 2, 3, 4, 0, 1, 2]
    worst = 0.0
    for chosen in ([0] * len(owners), owners):
        expected, actual = answers(exact, sets, chosen), answers(backbone, sets, chosen)
        worst = max(worst, float((expected - actual).abs().max() / expected.abs().max().clamp(min=1)))
    return worst


@torch.inference_mode()
def answers(backbone: Backbone, sets: list[Any], owners: list[int]) -> Tensor:
    """Return (B, C) logits in the caller's order."""
    moved = [copy.deepcopy(one).to(backbone.device) for one in sets]
    resident = [ours.resident_set(backbone, one, key) for key, one in enumerate(moved)]
    batch = Batch.pack(random_rows(), owners, backbone.device)
    logits = torch.empty(len(owners), 3)
    order = batch.order.tolist()
    for rows, own in mixed_logits(backbone.encoder, resident, batch).values():
        logits[[order[row] for row in rows]] = own.float().cpu()
    return logits
