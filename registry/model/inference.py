"""Answers of one adapter set for many rows, and what a problem type means in numbers: labels, loss, probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy
import torch
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.head import Head, probabilities_of
from registry.adapters.interface import Adapters, SetAdapter
from registry.model.batching import Batch, TokenRows, TokensOnDemand, sorted_batches
from registry.model.encoder import Encoder
from registry.model.mixed import MixedAdapters

EVALUATION_ROWS = 64
ANSWERED_ROWS = 65_536  # whose states are held at a time
EVALUATION_TOKENS = {"cpu": 4_096, "cuda": 32_768, "mps": 8_192}


@dataclass(frozen=True)
class LabelledRows:
    """Token rows and their labels: class indices, tuples of 0 and 1, or numbers, by problem type."""

    tokens: TokenRows | TokensOnDemand
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


def logits_of(encoder: Encoder, adapter_set: AnsweringSet, batch: Batch) -> Tensor:
    """Return (B, C) float32 logits in packed order for a batch whose rows all belong to ``adapter_set``."""
    pooling = adapter_set.head.config.pooling
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
    gathered = {pooling: states.index_select(0, order) for pooling, states in pooled.items()}
    heads = [sets[owner].head for owner in rows_of_sets]
    if is_mixed and order.is_cuda and (together := linear_logits(heads, counts, gathered)) is not None:
        answers = torch.split(together, counts)
    else:
        parts = {pooling: torch.split(states, counts) for pooling, states in gathered.items()}
        answers = tuple(head(parts[head.config.pooling][place]) for place, head in enumerate(heads))
    return {owner: (rows, own) for (owner, rows), own in zip(rows_of_sets.items(), answers, strict=True)}


def linear_logits(heads: Sequence[Head], counts: Sequence[int], pooled: Mapping[str, Tensor]) -> Tensor | None:
    """Return the (B, C) logits of rows by their own heads in a few launches, None where the heads are not alike.

    Alike are linear heads of one pooling and one number of labels that drop nothing now.

    Args:
        heads: in the order of the rows.
        counts: rows of each head.
        pooled: (B, H) float32 states by pooling.
    """
    first = heads[0]
    alike = all(
        head.dense is None
        and head.out.bias is not None
        and not head.dropout.is_active
        and head.out.weight.shape == first.out.weight.shape
        for head in heads
    )
    if not alike or len(pooled) > 1:
        return None
    places = torch.repeat_interleave(torch.tensor(counts)).to(first.out.weight.device)  # (B,) the head of each row
    weight = torch.stack([head.out.weight for head in heads]).index_select(0, places)  # (B, C, H)
    bias = torch.stack([head.out.bias for head in heads]).index_select(0, places)
    (states,) = pooled.values()
    return torch.baddbmm(bias.unsqueeze(2), weight, states.float().unsqueeze(2)).squeeze(2)


@torch.no_grad()
def pool_rows(
    encoder: Encoder,
    adapter_set: AdapterSet,
    rows: TokenRows | TokensOnDemand,
    autocast_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the (R, H) float32 states that the set's head sees, of all rows in their order.

    Both modules work in evaluation mode and are left in the mode they were in.
    """
    device = encoder.embeddings.word.weight.device
    modes = encoder.training, adapter_set.training
    encoder.eval()
    adapter_set.eval()
    pooled = torch.empty(len(rows), encoder.hidden_size, device=device)
    for indices in sorted_batches(rows.lengths, EVALUATION_TOKENS[device.type], EVALUATION_ROWS):
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
    encoder: Encoder,
    adapter_set: AdapterSet,
    rows: TokenRows | TokensOnDemand,
    autocast_dtype: torch.dtype | None = None,
) -> numpy.ndarray:
    """Return the (R, C) float32 probabilities of all rows, in their order, as in evaluation mode."""
    mode = adapter_set.training
    parts = []
    for start in range(0, max(1, len(rows)), ANSWERED_ROWS):
        some = range(start, min(len(rows), start + ANSWERED_ROWS))
        whole = len(some) == len(rows)
        pooled = pool_rows(encoder, adapter_set, rows if whole else rows.take(some), autocast_dtype)
        parts.append(adapter_set.eval().head(pooled))
        adapter_set.train(mode)
    return probabilities_of(adapter_set.head_config, torch.cat(parts)).float().cpu().numpy()
