"""Where our time goes: operations of one contender in a few groups, beside the floor that arithmetic sets.

The floor is the floating-point operations of the rows divided by the rate at which this very machine multiplies
matrices of the same shape in the same dtype. Formulas: H hidden, L layers, M bottleneck, 24 H^2 per token and layer
for the products, 4 T H per token and layer for attention; a frozen backbone trains at twice its products and 3.5
times its attention, and nothing goes back through the layer below the first bottleneck.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rounds import Contender, now
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from registry.model.backbone import Backbone
from registry.model.encoder import intermediate_size
from registry.model.machine import FrozenLinear

# The first group with a matching piece of the operation's name has it.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("optimizer", ("adam", "foreach", "linalg_vector_norm", "clip")),
    ("attention", ("scaled_dot_product", "flash", "varlen", "softmax")),
    ("matrix products", ("mm", "linear", "matmul", "gemm")),
    ("gelu and relu", ("gelu", "relu", "threshold")),
    ("norms", ("layer_norm",)),
    ("copies and casts", ("copy", "cat", "clone", "contiguous", "_to_copy", "::to", "index", "stack", "embedding",
                          "split", "transpose", "permute", "reshape", "view", "empty", "fill", "zero", "as_strided",
                          "slice", "select", "expand", "::t", "detach", "tensor")),
)  # fmt: skip
OTHER, PYTHON = "other operations", "Python between operations"


@dataclass(frozen=True)
class Profile:
    """The time of one go of a contender.

    Attributes:
        subject: group and contender.
        seconds: of one go without the profiler.
        shares: of those seconds, by group of operations.
        flops: that its rows need.
        matmul_rate: operations per second of this machine's matrix products, same dtype and shape.
    """

    subject: str
    seconds: float
    shares: dict[str, float]
    flops: float
    matmul_rate: float

    @property
    def floor(self) -> float:
        """Return the seconds that the arithmetic alone would take."""
        return self.flops / self.matmul_rate

    def to_json(self) -> dict[str, Any]:
        """Return all of it for a file."""
        return {**vars(self), "floor": self.floor}


def profile_contender(
    group: str,
    contender: Contender,
    backbone: Backbone,
    seconds: float,
    lengths: Sequence[int],
    batch_rows: int,
    trains: bool,
) -> Profile:
    """Return where the time of one of our contenders goes.

    Args:
        group: which rows it does.
        contender: one of ours, on ``backbone``.
        backbone: says dtype and device.
        seconds: that one go took without the profiler.
        lengths: tokens of each row of one go.
        batch_rows: rows of one batch, for the shape of the products.
        trains: whether it goes backwards too.
    """
    contender.go()  # a fresh one warms up
    tokens = max(1, sum(lengths) * batch_rows // len(lengths))
    with_adapter = not contender.key.startswith("ours_bare")
    return Profile(
        subject=f"{group} / {contender.label}",
        seconds=seconds,
        shares=shares_of(contender, seconds, backbone.device),
        flops=training_flops(backbone, lengths) if trains else forward_flops(backbone, lengths, with_adapter),
        matmul_rate=matmul_rate(backbone, tokens),
    )


def shares_of(contender: Contender, seconds: float, device: torch.device) -> dict[str, float]:
    """Return the share of ``seconds`` that each group of operations takes, and what is left between them."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        contender.go()
    spent = {name: 0.0 for name, _ in GROUPS} | {OTHER: 0.0}
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        spent[group_of(event.key)] += microseconds / 1e6
    total = max(seconds, sum(spent.values()))  # the profiler itself costs a little on every operation
    return {**{name: value / total for name, value in spent.items()}, PYTHON: 1 - sum(spent.values()) / total}


def group_of(operation: str) -> str:
    """Return the group that an operation belongs to."""
    name = operation.lower()
    return next((group for group, pieces in GROUPS if any(piece in name for piece in pieces)), OTHER)


def forward_flops(backbone: Backbone, lengths: Sequence[int], with_adapter: bool, reduction_factor: int = 16) -> float:
    """Return the operations of one forward over rows of these lengths."""
    products, attention, adapter = parts_of(backbone, lengths, reduction_factor)
    return products + attention + (adapter if with_adapter else 0.0)


def training_flops(backbone: Backbone, lengths: Sequence[int], reduction_factor: int = 16) -> float:
    """Return the operations of one epoch of training one set that has a bottleneck after every layer."""
    products, attention, adapter = parts_of(backbone, lengths, reduction_factor)
    layers = backbone.info.layers
    backwards = (layers - 1) / layers
    return products * (1 + backwards) + attention * (1 + 2.5 * backwards) + 3 * adapter


def parts_of(backbone: Backbone, lengths: Sequence[int], reduction_factor: int) -> tuple[float, float, float]:
    """Return the operations of the products, of attention and of the bottlenecks in one forward."""
    h, layers = backbone.info.hidden_size, backbone.info.layers
    inner = intermediate_size(backbone.encoder.config)
    tokens, squares = sum(lengths), sum(length * length for length in lengths)
    products = layers * tokens * (8.0 * h * h + 4.0 * h * inner)
    return products, layers * 4.0 * h * squares, layers * tokens * 4.0 * h * (h // reduction_factor)


def frozen(weight: Tensor) -> FrozenLinear:
    """Return the package's own frozen layer with that weight, as its products are the fastest that we know of."""
    layer = FrozenLinear(weight.shape[1], weight.shape[0]).to(weight.device, weight.dtype)
    layer.weight.data.copy_(weight)
    return layer.requires_grad_(False)


@torch.inference_mode()
def matmul_rate(backbone: Backbone, tokens: int, seconds: float = 0.5) -> float:
    """Return the operations per second of one layer's four products for a batch of ``tokens``, the best of many."""
    h, inner = backbone.info.hidden_size, intermediate_size(backbone.encoder.config)
    shapes = ((h, 3 * h), (h, h), (h, inner), (inner, h))
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator).to(backbone.device, backbone.dtype)

    pairs = [(draw(tokens, rows), frozen(draw(columns, rows))) for rows, columns in shapes]
    best = float("inf")
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        started = now(backbone.device)
        for _ in range(5):
            for states, layer in pairs:
                layer(states)
        best = min(best, (now(backbone.device) - started) / 5)
    return sum(2.0 * tokens * rows * columns for rows, columns in shapes) / best
