"""The durable file operations that a store is made of; nothing else touches a store's files.

Every promise about crashes, full disks and planted links comes down to these functions, so a test can record
or fail each one. They know paths and bytes, nothing of names, versions or manifests, and let OSError through:
``writing`` and ``reading`` turn it into our own errors where it is known what was attempted.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from registry.store.errors import CommitUncertainError, IntegrityError, StoreReadError, StoreWriteError

EntryKind = Literal["folder", "file", "symbolic link", "special file"]
Location = str | Path  # text where thousands are looked at

# Windows lacks some of these: there a link is still refused by `kind`, and folders need no fsync.
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _SAFE  # opening a FIFO must not wait for a writer
_NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOTSUP)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # exFAT, some network disks
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


@contextmanager
def writing(path: Path, attempted: str) -> Iterator[None]:
    """Turn any OSError of the block into StoreWriteError, told as ``attempted`` in ``path``."""
    try:
        yield
    except OSError as err:
        raise StoreWriteError(path, attempted, reason(err)) from err


@contextmanager
def reading(path: Location) -> Iterator[None]:
    """Turn any OSError of the block but a missing file into StoreReadError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as err:
        raise StoreReadError(path, reason(err)) from err


def confirm(folder: Path, reference: str) -> None:
    """Flush a folder after the step that made a change of ``reference`` visible.

    Raises:
        CommitUncertainError: the change stands, but the disk did not confirm it.
    """
    try:
        fsync_folder(folder)
    except OSError as err:
        raise CommitUncertainError(reference, folder, reason(err)) from err


def reason(err: OSError) -> str:
    """Return the operating system's own words, as a part of a sentence."""
    return (err.strerror or str(err)).lower()


def write_new(path: Path, data: bytes) -> None:
    """Create ``path`` with ``data`` and flush it to the disk; an existing file or link is never written."""
    descriptor = os.open(path, _CREATE, 0o644)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(target: Path, data: bytes, *, by: Path) -> None:
    """Give ``target`` new content in one step, written to the path ``by`` first: never half of it is there."""
    try:
        write_new(by, data)
        os.replace(by, target)
    finally:
        with suppress(OSError):
            os.unlink(by)


def replace_file(target: Path, data: bytes) -> None:
    """Give ``target`` new content in one step, in a folder that is made if need be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    replace(target, data, by=target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp"))


def publish(target: Path, data: bytes, *, by: Path) -> None:
    """Like ``replace``, but a ``target`` that is there already is FileExistsError."""
    try:
        write_new(by, data)
        try:
            os.link(by, target)
        except OSError as err:
            if err.errno not in _NO_LINKS:
                raise
            if kind(target) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from err
            os.replace(by, target)
    finally:
        with suppress(OSError):
            os.unlink(by)


def rename_folder(source: Path, target: Path) -> None:
    """Move a folder onto a free path in one step; a path that is taken is FileExistsError on every system."""
    try:
        os.rename(source, target)
    except OSError as err:
        if err.errno in _TAKEN or (os.name == "nt" and kind(target) is not None):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from err
        raise


def fsync_folder(folder: Path, *, foreign: bool = False) -> None:
    """Flush a folder's entries to the disk, where the system can; a ``foreign`` one only if we may open it."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _SAFE)
    except PermissionError:
        if foreign:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno not in _NO_FOLDER_FSYNC:
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder in an existing one; a folder that is there already is fine."""
    while True:
        try:
            os.mkdir(folder)
        except FileExistsError:
            found = kind(folder)
            if found is None:  # somebody removed it just now
                continue
            if found != "folder":
                raise
        return


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, and have them on the disk."""
    missing = [each for each in (folder, *folder.parents) if kind(each) is None]
    there = missing[-1].parent if missing else folder
    fsync_folder(there.parent, foreign=True)  # whoever made it may have been killed before that
    for each in reversed(missing):
        make_folder(each)
        fsync_folder(each.parent)


def remove_file(path: Path) -> None:
    """Remove a file or a link, not what it points to."""
    os.unlink(path)


def rename(source: Path, target: Path) -> None:
    """Move a file, a link itself or a folder onto a path that nobody else knows."""
    os.rename(source, target)


def discard(path: Path) -> None:
    """Remove what nobody can see any more, as far as possible: what is left of it does no harm."""
    with suppress(OSError):  # of the look at it too: rmtree lets some through, though asked to ignore them
        if kind(path) == "folder":
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def last_change(path: Path) -> float:
    """Return when ``path`` itself was changed last, in seconds since 1970; one that is gone is changing right now."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return math.inf
    return max(status.st_mtime, status.st_ctime)


def stamp(path: Location) -> tuple[int, int]:
    """Return what tells a file or folder from another that took its place; zeros where there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def kind(path: Location, *, follow: bool = False) -> EntryKind | None:
    """Return what is at ``path``, None for nothing; links are seen, not followed, unless asked for."""
    try:
        mode = os.stat(path, follow_symlinks=follow).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(mode):
        return "symbolic link"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "special file"


def entries(folder: Location, wanted: EntryKind | None = None) -> list[str]:
    """Return the sorted names in ``folder``, or only those of folders or of regular files.

    A missing folder has none; links are neither folders nor files.
    """
    try:
        with os.scandir(folder) as found:
            if wanted == "folder":
                return sorted([entry.name for entry in found if entry.is_dir(follow_symlinks=False)])
            if wanted == "file":
                return sorted([entry.name for entry in found if entry.is_file(follow_symlinks=False)])
            return sorted([entry.name for entry in found])
    except (FileNotFoundError, NotADirectoryError):
        return []


def read(path: Location, limit: int) -> bytes:
    """Return the whole content of a regular file of at most ``limit`` bytes.

    Raises:
        IntegrityError: a link, not a regular file, or more bytes than that.
    """
    found = kind(path)
    if found not in (None, "file"):
        raise IntegrityError(path, "kind of file", "a regular file", f"a {found}")
    descriptor = os.open(path, _READ)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IntegrityError(path, "kind of file", "a regular file", "a special file")
        data = _read_bytes(descriptor, min(status.st_size, limit))
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise IntegrityError(path, "size", f"at most {limit} bytes", f"{max(status.st_size, len(data))} bytes")
    return data


def _read_bytes(descriptor: int, expected: int) -> bytes:
    """Return what a file holds, asking for one byte more than expected, which shows that it has grown."""
    data = os.read(descriptor, expected + 1)
    while len(data) < expected and (more := os.read(descriptor, expected + 1 - len(data))):  # reads may come in parts
        data += more
    return data


def sha256(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()
