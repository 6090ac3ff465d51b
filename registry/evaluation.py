"""Answers of one adapter set for many rows, and what a problem type means in numbers: labels, loss, probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from registry.adapters import AdapterSet
from registry.batching import Batch, TokenRows, sorted_batches
from registry.encoder import Encoder

EVALUATION_ROWS = 64
EVALUATION_TOKENS = {"cpu": 4_096, "cuda": 32_768, "mps": 8_192}


@dataclass(frozen=True)
class LabelledRows:
    """Token rows and their labels: class indices, tuples of 0 and 1, or numbers, by problem type."""

    tokens: TokenRows
    labels: tuple[int, ...] | tuple[float, ...] | tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.tokens)


def label_tensor(problem_type: str, labels: Sequence[object], device: torch.device) -> Tensor:
    """Return (B,) class indices, (B, C) zeros and ones, or (B, 1) values, as the loss wants them."""
    if problem_type == "classification":
        return torch.tensor(labels, dtype=torch.long, device=device)
    numbers = torch.tensor(labels, dtype=torch.float32, device=device)
    return numbers if problem_type == "multi_label" else numbers.unsqueeze(1)


def loss_of(problem_type: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss: cross-entropy, binary cross-entropy over labels, or squared error."""
    if problem_type == "classification":
        return F.cross_entropy(logits, labels)
    if problem_type == "multi_label":
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.mse_loss(logits, labels)


def probabilities_of(problem_type: str, logits: Tensor) -> Tensor:
    """Return (B, C) probabilities; for regression the values themselves."""
    if problem_type == "classification":
        return logits.softmax(dim=-1)
    return logits.sigmoid() if problem_type == "multi_label" else logits


def logits_of(encoder: Encoder, adapter_set: AdapterSet, batch: Batch) -> Tensor:
    """Return (B, C) float32 logits in packed order for a batch whose rows all belong to ``adapter_set``."""
    hidden = encoder(batch, adapter_set.adapter)  # (N, H)
    logits: Tensor = adapter_set.head(encoder.pool(hidden, batch, adapter_set.head_config.pooling))
    return logits.float()


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
            hidden = encoder(batch, adapter_set.adapter)
            states = encoder.pool(hidden, batch, adapter_set.head_config.pooling)
        pooled[torch.tensor(indices, device=device)] = batch.restore(states)
    encoder.train(modes[0])
    adapter_set.train(modes[1])
    return pooled


@torch.no_grad()
def answer_rows(
    encoder: Encoder, adapter_set: AdapterSet, rows: TokenRows, autocast_dtype: torch.dtype | None = None
) -> numpy.ndarray:
    """Return the (R, C) float32 probabilities of all rows, in their order, as in evaluation mode."""
    pooled = pool_rows(encoder, adapter_set, rows, autocast_dtype)
    mode = adapter_set.training
    logits = adapter_set.eval().head(pooled)
    adapter_set.train(mode)
    return probabilities_of(adapter_set.head_config.problem_type, logits).float().cpu().numpy()
