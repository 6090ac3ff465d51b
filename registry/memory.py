"""Keep the C library from giving memory back to the system between two layers.

The states of a batch are a few megabytes each and live for one layer. glibc returns blocks of that size to the system
when they are freed, so every layer would pay for fresh pages again.
"""

from __future__ import annotations

import ctypes
import sys

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
