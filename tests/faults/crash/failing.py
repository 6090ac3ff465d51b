"""Calls of the operating system that fail or never return, counted below ``registry.store.files``; in this process.

A crash stops everything: once it came, no further call changes anything, so that no clean-up runs that a killed process
could not run either. ``inject.py`` does the same to real processes by real signals, which takes longer.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from registry.store import archive, files, store

CHANGING = ("open", "mkdir", "write", "fsync", "link", "rename", "replace", "unlink", "rmdir")


class Crash(BaseException):
    """The process is dead from here on; nothing can catch it as an error."""


CRASH = Crash("crashed")
DISK_ERROR = OSError(errno.EIO, os.strerror(errno.EIO))


class FailingCalls:
    """The modules ``os`` and ``shutil`` in one, of which one changing call fails, or all from one on.

    Args:
        at: the first call that fails, from 1.
        error: what it raises; after a ``Crash`` every call does.
        for_good: whether later calls fail as well.

    Attributes:
        left: calls until the first that fails; 0 or less once it came.
    """

    def __init__(self, at: int, error: BaseException, *, for_good: bool) -> None:
        self.left = at
        self.error = error
        self.for_good = for_good or isinstance(error, Crash)

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGING:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            only_reads = name == "open" and not arguments[1] & os.O_CREAT
            if not only_reads and self._fails():
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise self.error
            return real(*arguments, **options)

        return call

    def rmtree(self, folder: Path, *, ignore_errors: bool) -> None:
        """Remove a tree by calls that are counted one by one."""
        with suppress(*([OSError] if ignore_errors else [])):
            for path in sorted(Path(folder).rglob("*"), reverse=True):
                self.rmdir(path) if path.is_dir() and not path.is_symlink() else self.unlink(path)
            self.rmdir(folder)

    def _fails(self) -> bool:
        self.left -= 1
        return self.left == 0 or (self.left < 0 and self.for_good)


@contextmanager
def failing_calls(at: int, error: BaseException, *, for_good: bool = False) -> Iterator[FailingCalls]:
    """Let the ``at``-th changing call of the store's file operations raise ``error``."""
    calls = FailingCalls(at, error, for_good=for_good)
    with _calling(calls):
        yield calls


class BeforeRename:
    """The module ``os``, in which something happens before the first rename."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act: Callable[[], None] | None = act

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def rename(self, source: Path, target: Path) -> None:
        """Let it happen, then rename."""
        act, self.act = self.act, None
        if act is not None:
            act()
        os.rename(source, target)

    def rmtree(self, folder: Path, *, ignore_errors: bool) -> None:
        """Remove a tree."""
        shutil.rmtree(folder, ignore_errors=ignore_errors)


class CountedNames:
    """The module ``uuid`` for the store until ``stop``: new names come in order, so a run repeats to the last step.

    What garbage collection comes to first depends on the names in ``tmp/``.
    """

    def __init__(self) -> None:
        self.given = 0
        self.before = store.uuid, archive.uuid
        store.uuid = archive.uuid = self  # type: ignore[assignment]

    def uuid4(self) -> UUID:
        """Return the next name."""
        self.given += 1
        return UUID(int=self.given * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128)  # in no order that sorting knows

    def stop(self) -> None:
        """Put the real module back."""
        store.uuid, archive.uuid = self.before


@contextmanager
def before_rename(act: Callable[[], None]) -> Iterator[None]:
    """Let ``act`` happen just before the first rename of the store's file operations."""
    with _calling(BeforeRename(act)):
        yield


@contextmanager
def _calling(calls: Any) -> Iterator[None]:
    before = files.os, files.shutil
    files.os = files.shutil = calls
    try:
        yield
    finally:
        files.os, files.shutil = before
