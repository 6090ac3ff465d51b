"""A task's head: pooled states to logits, what a problem type makes of them, and several heads that answer as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from types import MappingProxyType

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from registry.adapters.interface import Dropout, Map
from registry.config import HeadConfig, TrainingConfig
from registry.errors import ConfigError, RequestError
from registry.validation import require

_ACTIVATIONS: Mapping[str, Map] = MappingProxyType(
    {"dense_tanh": torch.tanh, "dense_gelu": F.gelu, "dense_relu": F.relu}
)


class Head(nn.Module):
    """Dropout and a linear layer, or a dense one with an activation before it, over one pooled state per row.

    ``dense_tanh`` is RoBERTa's classifier and AdapterHub's of two layers.
    """

    def __init__(self, hidden_size: int, config: HeadConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.dropout = Dropout(config.dropout)
        self.dense = nn.Linear(hidden_size, hidden_size) if config.form != "linear" else None
        self.out = nn.Linear(hidden_size, len(config.label_names), bias=config.bias)
        linears = [layer for layer in (self.dense, self.out) if layer is not None]
        for linear in linears:
            if not linear.weight.is_meta:
                nn.init.normal_(linear.weight, std=0.02, generator=generator)  # BERT's own initialisation
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
            if not config.trained:
                _turn_into_buffers(linear)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return (B, C) float32 logits for the (B, H) pooled states."""
        pooled = self.dropout(pooled.float())
        if self.dense is not None:
            pooled = self.dropout(_ACTIVATIONS[self.config.form](self.dense(pooled)))
        logits: Tensor = self.out(pooled)
        return logits


def _turn_into_buffers(linear: nn.Linear) -> None:
    """Make a frozen layer's tensors saved but not trainable, so that no list of names is needed for that."""
    for name, parameter in list(linear.named_parameters(recurse=False)):
        delattr(linear, name)
        linear.register_buffer(name, parameter.detach())


def label_tensor(head: HeadConfig, labels: Sequence[object], device: torch.device) -> Tensor:
    """Return (B,) class indices, (B, C) zeros and ones, or (B, 1) standard scores, as the loss wants them."""
    if head.problem_type == "classification":
        return torch.tensor(labels, dtype=torch.long, device=device)
    if head.problem_type == "multi_label":
        return torch.tensor(labels, dtype=torch.float32, device=device)
    numbers = torch.tensor(labels, dtype=torch.float64).unsqueeze(1)
    return ((numbers - head.target_mean) / head.target_deviation).to(device, torch.float32)


def loss_of(
    problem_type: str,
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Return the mean loss: cross-entropy, binary cross-entropy over labels, or squared error.

    Args:
        problem_type: decides which.
        logits: (B, C).
        labels: see ``label_tensor``.
        weights: (C,) of the classes, the mean being weighted too; of several labels that of a row that has the label.
        smoothing: share of the target that goes to all classes alike; of each of several labels to yes and no.
        reduction: ``none`` gives (B,) or (B, C) losses, of which the mean is one weighted by ``weights[labels]`` where
            classes have weights.
    """
    if problem_type == "classification":
        return F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction=reduction)
    if problem_type == "multi_label":
        smoothed = labels * (1 - smoothing) + smoothing / 2 if smoothing else labels
        return F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights, reduction=reduction)
    return F.mse_loss(logits, labels, reduction=reduction)


def probabilities_of(head: HeadConfig, logits: Tensor) -> Tensor:
    """Return (B, C) probabilities; for regression the values, in the unit of the labels.

    Source: Guo et al. 2017 for the temperature.
    """
    if head.problem_type == "classification":
        return (logits / head.temperature).softmax(dim=-1)
    if head.problem_type == "multi_label":
        return (logits / head.temperature).sigmoid()
    return logits * head.target_deviation + head.target_mean


def check_labels(head: HeadConfig, labels: Sequence[object], rows: int) -> None:
    """Refuse labels that a head cannot learn, in the place of what torch would say.

    Raises:
        ConfigError: not one for each row, or one that is no class index, no 0 and 1 for each label, no number.
    """
    require(len(labels) == rows, "labels", f"{rows:,}, one for each row", len(labels))
    count = len(head.label_names)
    for row, label in enumerate(labels):
        if head.problem_type == "classification":
            good = isinstance(label, Integral) and 0 <= int(label) < count
            expected = f"a class index from 0 to {count - 1} ({', '.join(head.label_names[:5])})"
        elif head.problem_type == "multi_label":
            good = isinstance(label, Sequence) and len(label) == count and set(label) <= {0, 1}
            expected = f"{count} of 0 and 1"
        else:
            good, expected = isinstance(label, Real) and math.isfinite(label), "a finite number"
        if not good:
            raise ConfigError(f"the label of row {row}", expected, label)


def find_class_weights(
    head: HeadConfig, training: TrainingConfig, labels: Sequence[object], device: torch.device
) -> Tensor | None:
    """Return (C,) weights for ``loss_of``, None where all are the same.

    ``balanced`` is n / (C * rows of the class), as scikit-learn has it; of each of several labels it is how many rows
    without it there are for one with it.

    Raises:
        ConfigError: weights or label smoothing for numbers, or not one weight for each label.
    """
    wanted, smoothing, count = training.class_weights, training.label_smoothing, len(head.label_names)
    if head.problem_type == "regression":
        require(wanted is None, "class_weights", "none, as the task predicts a number", wanted)
        require(not smoothing, "label_smoothing", "0, as the task predicts a number", smoothing)
    if wanted is None:
        return None
    if wanted != "balanced":
        require(len(wanted) == count, "class_weights", f"{count} numbers, as there are labels", len(wanted))
        return torch.tensor(wanted, dtype=torch.float32, device=device)
    found = torch.tensor(labels)
    if head.problem_type == "classification":
        rows = torch.bincount(found, minlength=count).clamp(min=1)
        return (len(found) / (count * rows)).to(device, torch.float32)
    rows = found.sum(dim=0).clamp(min=1)
    return ((len(found) - rows).clamp(min=1) / rows).to(device, torch.float32)


def label_order(reference: str, heads: Sequence[HeadConfig]) -> list[list[int]]:
    """Return for each member where the first member's labels stand among its own.

    Raises:
        RequestError: members of other labels or another problem type.
    """
    first, attempted = heads[0], f"answer with '{reference}'"
    for head in heads[1:]:
        if head.problem_type != first.problem_type:
            raise RequestError(attempted, f"members that are all {first.problem_type}", head.problem_type)
        names, others = (", ".join(sorted(each.label_names)) for each in (first, head))
        if names != others and first.problem_type != "regression":
            raise RequestError(attempted, f"members with the labels {names}", others)
    if first.problem_type == "regression":
        return [[0]] * len(heads)
    return [[head.label_names.index(name) for name in first.label_names] for head in heads]


def mean_thresholds(heads: Sequence[HeadConfig], order: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Return the mean of the members' thresholds, in the order of the first one's labels; empty where none has any."""
    if not any(head.thresholds for head in heads):
        return ()
    each = [
        [(head.thresholds or (0.5,) * len(places))[place] for place in places]
        for head, places in zip(heads, order, strict=True)
    ]
    return tuple(float(value) for value in numpy.mean(each, axis=0))
