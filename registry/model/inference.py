"""Answers of one adapter set for many rows, and what a problem type means in numbers: labels, loss, probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy
import torch
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.head import Head, probabilities_of
from registry.adapters.interface import Adapters, SetAdapter
from registry.model.batching import Batch, TokenRows, sorted_batches
from registry.model.encoder import Encoder
from registry.model.mixed import MixedAdapters

EVALUATION_ROWS = 64
EVALUATION_TOKENS = {"cpu": 4_096, "cuda": 32_768, "mps": 8_192}


@dataclass(frozen=True)
class LabelledRows:
    """Token rows and their labels: class indices, tuples of 0 and 1, or numbers, by problem type."""

    tokens: TokenRows
    labels: tuple[int, ...] | tuple[float, ...] | tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.tokens)


class AnsweringSet(Protocol):
    """What a batch asks of an adapter set: in training (adapters.py) or resident (pool.py)."""

    @property
    def adapter(self) -> SetAdapter:
        """Return what acts in the layers."""
        ...

    @property
    def head(self) -> Head:
        """Return the classifier."""
        ...


def logits_of(encoder: Encoder, adapter_set: AdapterSet, batch: Batch) -> Tensor:
    """Return (B, C) float32 logits in packed order for a batch whose rows all belong to ``adapter_set``."""
    pooling = adapter_set.head_config.pooling
    logits: Tensor = adapter_set.head(encoder.pooled(batch, adapter_set.adapter, (pooling,))[pooling])
    return logits.float()


def mixed_logits(
    encoder: Encoder, sets: Sequence[AnsweringSet], batch: Batch, entering: Tensor | None = None, layer: int = 0
) -> dict[int, tuple[list[int], Tensor]]:
    """Return for each set in the batch its packed rows and their (rows, C) float32 logits.

    Args:
        encoder: shared by all.
        sets: what the batch's owners count in.
        batch: packed rows on the encoder's device.
        entering: (N, H) states that enter the ``layer``-th layer; None starts with the embeddings.
    """
    rows_of_sets = batch.rows_of_sets
    is_mixed = len(rows_of_sets) > 1
    adapters: Adapters = (
        MixedAdapters([one.adapter for one in sets], batch) if is_mixed else sets[batch.owners[0]].adapter
    )
    poolings = {sets[owner].head.config.pooling for owner in rows_of_sets}
    pooled = encoder.pooled(batch, adapters, poolings, entering, layer)
    # Every set's rows side by side: splitting what was gathered once is cheaper than gathering for each set.
    order = torch.tensor([row for rows in rows_of_sets.values() for row in rows], device=batch.input_ids.device)
    counts = [len(rows) for rows in rows_of_sets.values()]
    parts = {pooling: torch.split(states.index_select(0, order), counts) for pooling, states in pooled.items()}
    return {
        owner: (rows, sets[owner].head(parts[sets[owner].head.config.pooling][place]))
        for place, (owner, rows) in enumerate(rows_of_sets.items())
    }


@torch.no_grad()
def pool_rows(
    encoder: Encoder, adapter_set: AdapterSet, rows: TokenRows, autocast_dtype: torch.dtype | None = None
) -> Tensor:
    """Return the (R, H) float32 states that the set's head sees, of all rows in their order.

    Both modules work in evaluation mode and are left in the mode they were in.
    """
    device = encoder.embeddings.word.weight.device
    modes = encoder.training, adapter_set.training
    encoder.eval()
    adapter_set.eval()
    pooled = torch.empty(len(rows), encoder.hidden_size, device=device)
    lengths = [len(ids) for ids in rows.input_ids]
    for indices in sorted_batches(lengths, EVALUATION_TOKENS[device.type], EVALUATION_ROWS):
        batch = Batch.pack(rows.take(indices), device=device)
        with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
            pooling = adapter_set.head_config.pooling
            states = encoder.pooled(batch, adapter_set.adapter, (pooling,))[pooling]
        pooled[torch.tensor(indices, device=device)] = batch.restore(states)
    encoder.train(modes[0])
    adapter_set.train(modes[1])
    return pooled


@torch.no_grad()
def predict_probabilities(
    encoder: Encoder, adapter_set: AdapterSet, rows: TokenRows, autocast_dtype: torch.dtype | None = None
) -> numpy.ndarray:
    """Return the (R, C) float32 probabilities of all rows, in their order, as in evaluation mode."""
    pooled = pool_rows(encoder, adapter_set, rows, autocast_dtype)
    mode = adapter_set.training
    logits = adapter_set.eval().head(pooled)
    adapter_set.train(mode)
    return probabilities_of(adapter_set.head_config, logits).float().cpu().numpy()
