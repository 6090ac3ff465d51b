"""What the machine offers: device and dtype, and on a CPU frozen products in the library's own layout, and kept memory.

The states of a batch are a few megabytes each and live for one layer. glibc returns blocks of that size to the system
when they are freed, so every layer would pay for fresh pages again.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from registry.errors import DeviceError
from registry.validation import choose

if hasattr(os, "register_at_fork"):
    # A forked child has the parent's pool of threads without its threads, and would wait for them for good.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

DTYPES = ("auto", "float32", "bfloat16", "float16")

# What torch's own compiler calls for a frozen weight; in torch 2.11 to 2.13, and looked for before it is used.
_HAS_LAYOUT = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
)
# oneDNN refuses bfloat16 weights on processors without AVX-512 or AVX-NE-CONVERT; torch's own product takes them.
_HAS_BFLOAT16 = _HAS_LAYOUT and torch.ops.mkldnn._is_mkldnn_bf16_supported()
_LAYOUT_DTYPES = (torch.float32, torch.bfloat16) if _HAS_BFLOAT16 else (torch.float32,)


def has_frozen_layout() -> bool:
    """Return whether frozen weights are laid out as oneDNN wants them."""
    return _HAS_LAYOUT


def choose_device(device: str) -> torch.device:
    """Return the device that ``device`` names, ``auto`` being the best this machine has.

    Raises:
        DeviceError: this machine does not have it.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as err:
        raise DeviceError(device, "expected auto, cpu, mps, cuda or cuda:N") from err
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise DeviceError(device, f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(device, "torch sees no Apple GPU here")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(device, "expected auto, cpu, mps, cuda or cuda:N")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype that ``dtype`` names; ``auto`` is bfloat16 on CUDA and float32 elsewhere."""
    choose(dtype, DTYPES, "dtype")
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found: torch.dtype = getattr(torch, dtype)
    return found


def is_slow(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether products of this dtype are made without instructions for it, many times slower than in float32."""
    return device.type == "cpu" and _HAS_LAYOUT and dtype == torch.bfloat16 and not _HAS_BFLOAT16


class FrozenLinear(nn.Linear):
    """``nn.Linear`` with its frozen weight also in the layout, and in the transposed layout, that products want."""

    def __init__(self, inputs: int, outputs: int, *, device: str | None = None) -> None:
        super().__init__(inputs, outputs, device=device)
        self._laid_out: dict[str, Tensor] = {}

    def forward(self, states: Tensor) -> Tensor:
        """Return ``states @ weight.T + bias``, (N, outputs)."""
        weight = self.weight
        if weight.requires_grad:
            self._laid_out = {}  # what trains will not be what was laid out
        frozen_on_cpu = not weight.requires_grad and weight.device.type == "cpu" and weight.dtype in _LAYOUT_DTYPES
        if not (frozen_on_cpu and _HAS_LAYOUT) or torch.is_autocast_enabled("cpu"):
            return F.linear(states, weight, self.bias)
        if states.requires_grad and torch.is_grad_enabled():
            product: Tensor = _FrozenProduct.apply(states, self)  # type: ignore[no-untyped-call]
            return product
        return _multiply(states, self.layout(), self.bias)

    def layout(self) -> Tensor:
        """Return the weight in the layout of a product with states."""
        if "forward" not in self._laid_out:
            self._laid_out["forward"] = _lay_out(self.weight)
        return self._laid_out["forward"]

    def transposed_layout(self) -> Tensor:
        """Return the weight in the layout of a product with gradients."""
        if "backward" not in self._laid_out:
            self._laid_out["backward"] = _lay_out(self.weight.t())
        return self._laid_out["backward"]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the layouts behind: a copy makes its own, or trains and needs none."""
        return {**self.__dict__, "_laid_out": {}}

    def _apply(self, fn: Any, recurse: bool = True) -> FrozenLinear:
        self._laid_out = {}  # another dtype or device wants another layout
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class _FrozenProduct(torch.autograd.Function):
    """The product with a frozen weight; only the states get a gradient."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return _multiply(states, layer.layout(), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _multiply(gradients[0], ctx.layer.transposed_layout(), None), None


@torch.no_grad()
def _lay_out(weight: Tensor) -> Tensor:
    with torch.inference_mode(False):  # it outlives the call that made it
        laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
    return laid_out


def _multiply(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return product


# From glibc's malloc.h: the numbers of the options, and what is kept.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEPT_BYTES = 512 * 2**20
_TOP_BYTES = 64 * 2**20
_LARGEST_BLOCK = 32 * 2**20  # glibc's own limit for blocks that are kept


def keep_freed_memory() -> None:
    """Let this process keep up to 512 MiB of freed memory; without glibc nothing is done."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, value in (
        (_TRIM_THRESHOLD, _KEPT_BYTES),
        (_TOP_PAD, _TOP_BYTES),
        (_MMAP_THRESHOLD, _LARGEST_BLOCK),
    ):
        mallopt(option, value)
