"""What is done with gradients: summed over processes, clipped, and taken as a step at a rate over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from registry.config import TrainingConfig


class Ranks:
    """The processes of a torch process group that train one set together, each on its part of every batch.

    All hold the encoder and the set. What they send each other are the set's gradients, summed once a step, and one
    number a batch, its loss: too little for the buckets that ``DistributedDataParallel`` would fill while it goes back.
    Dropout is drawn on each rank anew; without any, the set learns what it learns in one process.

    Args:
        group: the default one when None, which ``torch.distributed.init_process_group`` made.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank, self.count = distributed.get_rank(group), distributed.get_world_size(group)

    def part(self, rows: list[int]) -> list[int]:
        """Return this rank's rows of a batch; of the last one there may be none."""
        return rows[self.rank :: self.count]

    def sum(self, value: float, device: torch.device) -> float:
        """Return the sum of a number over all ranks."""
        total = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(total, group=self._group)
        return float(total)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give each parameter the sum of its gradients over all ranks, those of a rank without rows being zero."""
        own = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        together = torch.cat([gradient.reshape(-1) for gradient in own])
        distributed.all_reduce(together, group=self._group)
        for parameter, total in zip(parameters, torch.split(together, [each.numel() for each in own]), strict=True):
            parameter.grad = total.view_as(parameter).clone()

    def start_alike(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give all ranks the weights of the first."""
        for parameter in parameters:
            distributed.broadcast(parameter.data, group_src=0, group=self._group)


def clip(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Return the norm of all gradients together, which is at most ``most`` afterwards; 0 leaves them as they are.

    Nothing of it waits for the device. Where the norm is no number, the gradients are none either.
    """
    norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
    if most > 0:
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


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
