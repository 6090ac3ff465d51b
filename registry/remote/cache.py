"""What was read from object storage once, kept in a folder by its SHA-256 and believed only if it still has it.

Bounded: what was used least recently leaves first. A cache that cannot be read or written is passed over, as everything
in it can be fetched again. Knows bytes and digests, nothing of sets.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from registry.store import files
from registry.store.errors import StoreError

VARIABLE = "ADAPTER_REGISTRY_CACHE"
LIMIT = 10 * 2**30  # bytes
_DIGEST_BYTES = 64

Kept = dict[str, tuple[str, bytes]]  # the tag and the content of an object by its key


def open_cache(folder: str | Path | None = None) -> Cache:
    """Return the cache in a folder: the one given, that of the environment, or the user's own."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Cache(Path(folder or os.environ.get(VARIABLE) or os.path.join(home, "adapter-registry")))


class Cache:
    """Contents by their SHA-256, and for each store the small objects that a list reads, by their tags.

    Args:
        folder: made when something is kept.
        limit: bytes of it.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit
        self._bytes: int | None = None  # as far as this process knows

    def get(self, digest: str) -> bytes | None:
        """Return the content of this SHA-256; None where there is none, or a damaged one, which is thrown away."""
        path = self._path(digest)
        with suppress(OSError, StoreError):
            data = files.read(path, self.limit)
            if files.sha256(data) == digest:
                os.utime(path)  # used just now
                return data
            files.discard(path)
        return None

    def put(self, digest: str, data: bytes) -> None:
        """Keep a content, after making room for it."""
        with suppress(OSError):
            if len(data) <= self.limit:
                if self._bytes is None or self._bytes + len(data) > self.limit:
                    self._bytes = self._make_room(len(data))
                self._bytes += len(data)
                files.replace_file(self._path(digest), data)

    def recall(self, address: str) -> Kept:
        """Return the small objects of a store that were kept, nothing where they are damaged."""
        with suppress(OSError, StoreError, msgspec.MsgspecError, UnicodeDecodeError):
            data = files.read(self._listed(address), self.limit)
            digest, content = data[:_DIGEST_BYTES].decode("ascii"), data[_DIGEST_BYTES:]
            if files.sha256(content) == digest:
                return msgspec.msgpack.decode(content, type=Kept)
        return {}

    def remember(self, address: str, kept: Kept) -> None:
        """Keep the small objects of a store in place of those before."""
        content = msgspec.msgpack.encode(kept)
        with suppress(OSError):
            files.replace_file(self._listed(address), files.sha256(content).encode() + content)

    def _path(self, digest: str) -> Path:
        return self.folder / "sha256" / digest[:2] / digest

    def _listed(self, address: str) -> Path:
        return self.folder / "lists" / files.sha256(address.encode())

    def _make_room(self, needed: int) -> int:
        """Let the least recently used contents go until there is room, and return the bytes of those that stay."""
        found = []
        for path in (self.folder / "sha256").glob("*/*"):
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total + needed <= self.limit:
                break
            files.discard(path)
            total -= size
        return total
