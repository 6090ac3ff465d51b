"""The durable file operations that a store is made of; nothing else touches a store's files.

Every promise about crashes, full disks and planted links comes down to these functions, so a test can record
or fail each one. They know paths and bytes, nothing of names, versions or manifests, and let OSError through:
``writing`` and ``reading`` turn it into our own errors where it is known what was attempted.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from registry.store_errors import CommitUncertainError, IntegrityError, StoreReadError, StoreWriteError

Kind = Literal["folder", "file", "symbolic link", "special file"]

# Windows lacks some of these: there a link is still refused by `kind`, and folders need no fsync.
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _SAFE  # opening a FIFO must not wait for a writer
_NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOTSUP)
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


@contextmanager
def writing(path: Path, attempted: str) -> Iterator[None]:
    """Turn any OSError of the block into StoreWriteError, told as ``attempted`` in ``path``."""
    try:
        yield
    except OSError as err:
        raise StoreWriteError(path, attempted, reason(err)) from err


@contextmanager
def reading(path: Path) -> Iterator[None]:
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


def rename_folder(source: Path, target: Path) -> None:
    """Move a folder onto a free path in one step; a path that is taken is FileExistsError on every system."""
    try:
        os.rename(source, target)
    except OSError as err:
        if err.errno in _TAKEN or (os.name == "nt" and kind(target) is not None):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from err
        raise


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _SAFE)
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
    for each in reversed(missing):
        make_folder(each)
        fsync_folder(each.parent)


def remove_file(path: Path) -> None:
    """Remove a file or a link, not what it points to."""
    os.unlink(path)


def remove_empty_folder(folder: Path) -> None:
    """Remove a folder if it is empty; nobody misses it, so one that stays is no error."""
    with suppress(OSError):
        os.rmdir(folder)


def remove_tree(folder: Path) -> None:
    """Remove what nobody can see any more, as far as possible: what is left of it does no harm."""
    shutil.rmtree(folder, ignore_errors=True)


def kind(path: Path, *, follow: bool = False) -> Kind | None:
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


def entries(folder: Path, wanted: Kind | None = None) -> list[str]:
    """Return the sorted names in ``folder``, or only those of folders or of regular files.

    A missing folder has none; links are neither folders nor files.
    """
    try:
        with os.scandir(folder) as found:
            if wanted == "folder":
                return sorted(entry.name for entry in found if entry.is_dir(follow_symlinks=False))
            if wanted == "file":
                return sorted(entry.name for entry in found if entry.is_file(follow_symlinks=False))
            return sorted(entry.name for entry in found)
    except (FileNotFoundError, NotADirectoryError):
        return []


def read(path: Path, limit: int) -> bytes:
    """Return the whole content of a regular file of at most ``limit`` bytes.

    Raises:
        IntegrityError: a link, not a regular file, or more bytes than that.
    """
    found = kind(path)
    if found not in (None, "file"):
        raise IntegrityError(path, "kind of file", "a regular file", f"a {found}")
    descriptor = os.open(path, _READ)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IntegrityError(path, "kind of file", "a regular file", "a special file")
        data = file.read(min(status.st_size, limit) + 1)  # one more than there should be shows growth
    if len(data) > limit:
        raise IntegrityError(path, "size", f"at most {limit} bytes", f"{max(status.st_size, len(data))} bytes")
    return data


def sha256(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()
