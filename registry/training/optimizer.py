"""What makes a step of gradients: the optimizer, and its learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from registry.config import TrainingConfig


def make_optimizer(
    parameters: Sequence[nn.Parameter], config: TrainingConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Return AdamW or Adam over the parameters; biases and norms are not decayed."""
    fused = device.type in ("cpu", "cuda")
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.learning_rate, fused=fused)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)


def learning_rate_at(step: int, steps: int, config: TrainingConfig) -> float:
    """Return the learning rate of the step after ``step`` steps: rising through warm-up, then as scheduled."""
    warmup = math.ceil(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (steps - step) / max(1, steps - warmup)
