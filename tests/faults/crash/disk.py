"""A disk that notes what is done to it and can lose its power after every step.

``Disk`` stands in for the ``os`` and ``shutil`` of ``registry.store.files``: each call is really performed below one
folder and noted as a step; what may be left of them when the power goes is after_loss.py's to say.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.store import files

ROOM = 2**26  # bytes that a folder in memory must have left to be used
TOP = 0  # the folder that all paths are in

Tree = dict[str, bytes | None]  # what is on a disk: path -> content, None for a folder
Slot = tuple[int, str]  # a folder and the name of an entry in it


class Killed(BaseException):
    """The process is gone; nothing of it, not even its clean-up, reaches the disk any more."""


@dataclass(frozen=True)
class Change:
    """Entries that change together: ``node`` is put somewhere, taken from somewhere, or both."""

    node: int
    put: Slot | None
    taken: Slot | None
    folder: bool

    @property
    def folders(self) -> set[int]:
        """The folders whose flush makes it safe."""
        return {slot[0] for slot in (self.put, self.taken) if slot is not None}


@dataclass(frozen=True)
class Written:
    """The whole content of a file after a write."""

    node: int
    data: bytes


@dataclass(frozen=True)
class Flushed:
    """An fsync that came back without an error."""

    node: int


Step = Change | Written | Flushed


class Disk:
    """Performs and notes what ``registry.store.files`` does below a folder, fails a flush or kills on demand.

    Attributes:
        steps: all that changed so far.
        calls: changing calls since the last ``arm``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[Step] = []
        self.arm()
        self._nodes: dict[str, int] = {"": TOP}  # path below the folder -> node
        self._files: dict[int, bytes] = {}
        self._open: dict[int, int] = {}  # descriptor -> node
        self._born = TOP

    def arm(self, *, kill_at: int | None = None, fail_flush_at: int | None = None, fail_confirm: bool = False) -> None:
        """Order a fault, or none any more.

        Args:
            kill_at: the changing call, counted from here and from 1, before which the process dies.
            fail_flush_at: the fsync that fails, counted in the same way.
            fail_confirm: whether the first fsync after a move, a link or a removal fails.
        """
        self._kill_at, self._fail_at, self._fail_confirm = kill_at, fail_flush_at, fail_confirm
        self.calls = self._flushes = 0
        self._moved = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put this disk below the store for a while."""
        real = files.os, files.shutil
        files.os, files.shutil = _Calls(self), _Shutil(self)  # type: ignore[assignment]
        try:
            yield
        finally:
            files.os, files.shutil = real  # type: ignore[assignment]

    def unknown_changes(self) -> list[str]:
        """Return the paths at which the folder is not as the steps say: somebody went past ``registry.store.files``."""
        noted: Tree = {path: self._files.get(node) for path, node in self._nodes.items() if path}
        real = read_tree(self.folder)
        return sorted(path for path in noted.keys() | real.keys() if noted.get(path, b"?") != real.get(path, b"?"))

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        """Open a file to read, a folder, or a file that is not there yet to write."""
        fresh = flags & os.O_CREAT and not os.path.lexists(path)
        if flags & (os.O_WRONLY | os.O_RDWR) and not flags & os.O_EXCL:
            raise NotImplementedError("the simulated disk only knows files that are written once")
        if fresh:
            self._alive()
        descriptor = os.open(path, flags, mode)
        if fresh:
            self._files[self._create(path, folder=False)] = b""
        self._open[descriptor] = self._nodes[self._inner(path)]
        return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        """Add to the end of a file."""
        self._alive()
        count, node = os.write(descriptor, data), self._open[descriptor]
        self._files[node] += bytes(data[:count])
        self.steps.append(Written(node, self._files[node]))
        return count

    def fsync(self, descriptor: int) -> None:
        """Say that a file or folder is on the disk, without having a real one wait."""
        self._alive()
        self._flushes += 1
        if self._flushes == self._fail_at or (self._fail_confirm and self._moved):
            self._fail_confirm = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.steps.append(Flushed(self._open[descriptor]))

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        """Make a folder."""
        self._alive()
        os.mkdir(path, mode)
        self._create(path, folder=True)

    def rename(self, source: Any, target: Any) -> None:
        """Move a file or folder, onto another where the system lets it."""
        self._alive(moving=True)
        os.rename(source, target)
        old, new = self._inner(source), self._inner(target)
        node = self._nodes[old]
        change = Change(node, self._slot(new), self._slot(old), node not in self._files)
        for path in [path for path in self._nodes if path == old or path.startswith(f"{old}/")]:
            self._nodes[new + path[len(old) :]] = self._nodes.pop(path)
        self.steps.append(change)

    def link(self, source: Any, target: Any) -> None:
        """Give a file a second name."""
        self._alive(moving=True)
        os.link(source, target)
        node = self._nodes[self._inner(target)] = self._nodes[self._inner(source)]
        self.steps.append(Change(node, self._slot(self._inner(target)), None, folder=False))

    def unlink(self, path: Any) -> None:
        """Remove a name of a file."""
        self._alive(moving=True)
        os.unlink(path)
        self._forget(path)

    def rmdir(self, path: Any) -> None:
        """Remove an empty folder."""
        self._alive()
        os.rmdir(path)
        self._forget(path)

    def rmtree(self, path: Any, *, ignore_errors: bool = False) -> None:
        """Take a folder apart entry by entry, as the real one does."""
        try:
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    self.rmtree(entry.path, ignore_errors=ignore_errors)
                else:
                    self.unlink(entry.path)
            self.rmdir(path)
        except OSError:
            if not ignore_errors:
                raise

    def _alive(self, *, moving: bool = False) -> None:
        self.calls += 1
        self._moved = self._moved or moving
        if self._kill_at is not None and self.calls >= self._kill_at:
            raise Killed

    def _inner(self, path: Any) -> str:
        inner = Path(path).relative_to(self.folder).as_posix()
        return "" if inner == "." else inner

    def _slot(self, inner: str) -> Slot:
        parent, _, name = inner.rpartition("/")
        return self._nodes[parent], name

    def _create(self, path: Any, *, folder: bool) -> int:
        inner = self._inner(path)
        self._born += 1
        self._nodes[inner] = self._born
        self.steps.append(Change(self._born, self._slot(inner), None, folder))
        return self._born

    def _forget(self, path: Any) -> None:
        inner = self._inner(path)
        node = self._nodes[inner]
        self.steps.append(Change(node, None, self._slot(inner), node not in self._files))
        del self._nodes[inner]


class _Calls:
    """The ``os`` of a ``Disk``: what changes something is the disk's, what only looks is real, the rest is refused."""

    _CHANGING = frozenset({"open", "write", "fsync", "mkdir", "rename", "link", "unlink", "rmdir"})
    _LOOKING = frozenset(
        {
            "close",
            "fdopen",
            "fspath",
            "fstat",
            "listdir",
            "lstat",
            "name",
            "path",
            "read",
            "scandir",
            "stat",
            "strerror",
        }
    )

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.replace, self.remove = disk.rename, disk.unlink  # the same on POSIX

    def __getattr__(self, name: str) -> Any:
        if name in self._CHANGING:
            return getattr(self._disk, name)
        if name in self._LOOKING or name.startswith("O_"):
            return getattr(os, name)
        raise NotImplementedError(f"the simulated disk does not know os.{name}")


class _Shutil:
    def __init__(self, disk: Disk) -> None:
        self.rmtree = disk.rmtree


class _NoFlush:
    """The real ``os``, but nothing waits for a disk."""

    def __getattr__(self, name: str) -> Any:
        return (lambda descriptor: None) if name == "fsync" else getattr(os, name)


@contextmanager
def without_flushes() -> Iterator[None]:
    """Spare the real disk the flushes of a store that is thrown away at once."""
    real = files.os
    files.os = _NoFlush()  # type: ignore[assignment]
    try:
        yield
    finally:
        files.os = real


def read_tree(folder: Path) -> Tree:
    """Return all that is below a folder."""
    found = sorted(folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes() for path in found}


def write_tree(folder: Path, tree: Tree) -> None:
    """Make a folder that holds ``tree``; parents come before their entries."""
    os.mkdir(folder)
    for path, content in tree.items():
        if content is None:
            os.mkdir(folder / path)
        else:
            (folder / path).write_bytes(content)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Return a folder for many short-lived files: in memory where there is room, else inside ``folder``."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= ROOM
    with tempfile.TemporaryDirectory(dir=memory if usable else folder) as name:
        yield Path(name)
