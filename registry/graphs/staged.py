"""Tensors that stay where a graph reads them, and that the host writes anew before each replay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch


class Staged:
    """A tensor on a device and its twin in the host's memory, from which it is copied without waiting.

    Args:
        sizes: of the tensor, zeros at first.
        dtype: of the tensor.
        device: of the tensor.

    Attributes:
        tensor: on the device.
    """

    def __init__(self, sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._twin = torch.zeros(sizes, dtype=dtype, pin_memory=on_gpu)
        self.tensor = self._twin.to(device, copy=True)
        self._copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    @contextmanager
    def writing(self) -> Iterator[numpy.ndarray[Any, Any]]:
        """Give the twin's numbers to be written, and copy them in the order of the current stream."""
        if self._copied is not None:
            self._copied.synchronize()  # the last copy may still be under way
        yield self._twin.numpy()
        self.tensor.copy_(self._twin, non_blocking=True)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self.tensor.device))
