"""Resident sets of random numbers, what they answer the usual way, and threads that ask them at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import msgspec
import torch
from torch import Tensor

from registry.config import HeadConfig, MethodConfig
from registry.model.backbone import Backbone
from registry.model.batching import Batch, TokenRows
from registry.model.inference import mixed_logits
from registry.serving.pool import ResidentSet
from tests.support.stored_sets import new_manifest
from tests.support.toy_task import randomise

HEAD = HeadConfig(label_names=("no", "maybe", "yes"))


def new_resident(backbone: Backbone, seed: int, adapter: MethodConfig | None, **head: str) -> ResidentSet:
    """Return a resident set of random numbers where the backbone is."""
    one = randomise(backbone.new_adapter_set(adapter, msgspec.structs.replace(HEAD, **head)), seed)
    return ResidentSet(f"set{seed}:1", new_manifest("set"), one.to(backbone.device).eval(), backbone.dtype)


@torch.inference_mode()
def usual_logits(backbone: Backbone, sets: Sequence[ResidentSet], owners: Sequence[int], rows: TokenRows) -> Tensor:
    """Return the (B, C) logits of the usual way, in the order of the rows."""
    batch = Batch.pack(rows, owners, backbone.device)
    order = batch.order.tolist()
    answered = mixed_logits(backbone.encoder, sets, batch)
    return in_order({owner: ([order[row] for row in own], logits) for owner, (own, logits) in answered.items()})


def in_order(answered: dict[int, tuple[list[int], Tensor]]) -> Tensor:
    """Return the (B, C) logits of all sets in the order of the rows."""
    found: dict[int, Tensor] = {}
    for own, logits in answered.values():
        found.update(zip(own, logits, strict=True))
    return torch.stack([found[row] for row in range(len(found))])


def from_threads(ask: Callable[[int], None], count: int = 4) -> None:
    """Ask from so many threads at once, each with a number of its own."""
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
