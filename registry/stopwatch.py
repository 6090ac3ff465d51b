"""How long a piece of work took and how much memory it used at most."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

_PROCESS = Path("/proc/self")


class Stopwatch:
    """Seconds of each lap, and the peak of memory since the start.

    On CUDA a lap waits for the device, and memory is what torch had allocated there at most. Elsewhere it is the
    process's largest resident set, which Linux can set back at the start; other systems tell the present one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: list[float] = []
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):
                (_PROCESS / "clear_refs").write_text("5")

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Time what happens inside the ``with`` block."""
        started = self._now()
        yield
        self.laps.append(self._now() - started)

    def peak_memory(self) -> int:
        """Return the most bytes used since the start."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        with suppress(OSError, StopIteration, ValueError, IndexError):
            lines = (_PROCESS / "status").read_text().splitlines()
            return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
        return int(psutil.Process().memory_info().rss)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
