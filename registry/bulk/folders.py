"""A folder of files, on this machine or in object storage, in which a file is there whole or not at all.

Addresses are those of fsspec: ``s3://bucket/rows``, ``gs://``, ``az://`` (read and written by obstore), or any other.
"""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec  # type: ignore[import-untyped]

from registry.errors import ConfigError, DataError, OutputError
from registry.remote.objects import SCHEMES, parse_address
from registry.store import files

_STAMPS = ("e_tag", "ETag", "mtime", "last_modified", "LastModified", "modified", "created")


@dataclass(frozen=True)
class Folder:
    """A folder by its address; it travels to other processes as that.

    Raises:
        ConfigError: an address that nothing here can open, or with a key in it.
    """

    address: str

    def __post_init__(self) -> None:
        if "://" in self.address:
            parse_address("a folder", self.address)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        protocol = self.address.partition("://")[0] if "://" in self.address else "file"
        try:
            if protocol in SCHEMES:
                from obstore.fsspec import register

                register(protocol)
            address = self.address if protocol != "file" else str(Path(self.address).expanduser().absolute())
            system, root = fsspec.core.url_to_fs(address)
        except ImportError as err:
            hint = "pip install 'adapter-registry[remote]'" if protocol in SCHEMES else str(err)
            raise ConfigError(f"folder {self.address}", f"what opens {protocol}://", "none installed", hint) from err
        except ValueError as err:
            raise ConfigError(f"folder {self.address}", "an address that fsspec knows", f"{protocol}://") from err
        return system, str(root).rstrip("/")

    @property
    def local(self) -> Path | None:
        """Return where it is on this machine, None elsewhere."""
        system, root = self._opened
        return (
            Path(root)
            if "file" in ([system.protocol] if isinstance(system.protocol, str) else system.protocol)
            else None
        )

    def __str__(self) -> str:
        """Return the address, whole."""
        return str(self.local or self.address)

    def holds(self, other: Folder) -> bool:
        """Return whether another folder is this one or inside of it."""
        mine, theirs = (os.path.realpath(each.local) if each.local else str(each) for each in (self, other))
        return f"{theirs.rstrip('/')}/".startswith(f"{mine.rstrip('/')}/")

    def files(self) -> dict[str, tuple[int, str]]:
        """Return all files below, sorted by name, with their size and what tells one from another in its place.

        Raises:
            DataError: it cannot be listed.
        """
        system, root = self._opened
        with self._reading():
            system.invalidate_cache()
            found = system.find(root, detail=True)
        names = {name[len(root) :].lstrip("/"): info for name, info in found.items()}
        return {name: (int(names[name]["size"]), _stamp(names[name])) for name in sorted(names) if name}

    def stamp(self, name: str) -> tuple[int, str] | None:
        """Return what ``files`` tells of one, None where it is not there."""
        system, root = self._opened
        with self._reading():
            system.invalidate_cache()
            try:
                info = system.info(f"{root}/{name}")
            except FileNotFoundError:
                return None
        return int(info["size"]), _stamp(info)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open a file's bytes to be read here and there.

        Raises:
            DataError: it cannot be read.
        """
        system, root = self._opened
        with self._reading(name), system.open(f"{root}/{name}", "rb") as file:
            yield file

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, None where it is not there."""
        if self.stamp(name) is None:
            return None
        with self.open(name) as file:
            return file.read()

    def copy_to(self, name: str, path: Path) -> None:
        """Write a file's bytes to a path of this machine."""
        with self.open(name) as file, path.open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)

    def write(self, name: str, content: bytes) -> None:
        """Give a small file its content in one step.

        Raises:
            OutputError: it cannot be written.
        """
        with self._writing(name) as (system, path):
            if self.local is not None:
                files.replace_file(Path(path), content)
            else:
                system.pipe_file(path, content)

    def move_in(self, path: Path, name: str) -> None:
        """Put a file of this machine under a name, where it appears whole, and leave nothing of it at its path.

        Raises:
            OutputError: it cannot be written.
        """
        with self._writing(name) as (system, target):
            if self.local is not None and os.stat(path).st_dev == os.stat(self.local).st_dev:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
                files.fsync_folder(Path(target).parent)
                return
            if self.address.partition("://")[0] in SCHEMES:  # a put there is whole or not at all
                system.put_file(str(path), target)
            else:
                beside = f"{target}.{uuid.uuid4().hex}.tmp"
                system.makedirs(target.rpartition("/")[0], exist_ok=True)
                system.put_file(str(path), beside)
                system.mv(beside, target)
            path.unlink()

    def remove(self, names: Iterator[str] | list[str]) -> None:
        """Remove files that may be gone already.

        Raises:
            OutputError: they cannot be removed.
        """
        for name in names:
            with self._writing(name) as (system, path), suppress(FileNotFoundError):
                system.rm_file(path)

    def make(self) -> None:
        """Make it, where it is not there."""
        if self.local is not None:
            with self._writing(""):
                self.local.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _reading(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except _failures() as err:
            raise DataError(self._told(name), "content", "one that can be read", _reason(err)) from err

    @contextmanager
    def _writing(self, name: str) -> Iterator[tuple[Any, str]]:
        system, root = self._opened
        try:
            yield system, f"{root}/{name}".rstrip("/")
        except _failures() as err:
            raise OutputError(self._told(name), _reason(err)) from err

    def _told(self, name: str) -> str:
        return f"{self}/{name}".rstrip("/")


def _stamp(info: dict[str, Any]) -> str:
    found = next((info[name] for name in _STAMPS if info.get(name) is not None), "")
    return str(found.timestamp() if isinstance(found, datetime) else found)  # as some tell it now so, now so


def _failures() -> tuple[type[Exception], ...]:
    """Return what storage raises; obstore's own only once it is loaded."""
    if "obstore" not in sys.modules:
        return (OSError,)
    from obstore.exceptions import BaseError

    return (OSError, BaseError)


def _reason(err: Exception) -> str:
    """Return the first line of what storage said, without headers or bodies that it may quote."""
    if isinstance(err, OSError) and err.strerror:
        return err.strerror.lower()
    return (str(err).strip().splitlines() or [type(err).__name__])[0][:200]
