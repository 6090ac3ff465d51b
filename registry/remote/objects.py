"""Objects under an address: list, get, and puts that hold only where nobody was quicker.

Asked through obstore (S3, GCS, Azure, by each cloud's own credentials) or, after ``fsspec+``, through fsspec, which can
only be read. Knows keys and bytes, nothing of sets. What a library or a server says is never passed on word by word, as
it may hold an address with a key in it; it is sorted into a few sentences of our own.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol
from urllib.parse import SplitResult, urlsplit

from registry.errors import ConfigError
from registry.store.errors import IntegrityError, StoreAccessError

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss")
READ_ONLY = "fsspec+"
SECONDS = 60.0  # that one request may take, all its retries included
_RETRIES = 8

# Where the credentials of a cloud come from, and what names a server that is not its own.
_AMAZON = ("AWS_ACCESS_KEY_ID or an instance's role", ", and AWS_ENDPOINT_URL")
_GOOGLE = ("GOOGLE_APPLICATION_CREDENTIALS or an instance's role", "")
_AZURE = ("AZURE_STORAGE_ACCOUNT_NAME with its key, or an instance's role", ", and AZURE_STORAGE_ENDPOINT")
_SOURCES = {"s3": _AMAZON, "s3a": _AMAZON, "gs": _GOOGLE}
_ANSWER = "an answer of the store's server; check the address and the network"


class Stored(NamedTuple):
    """What a listing says of one object: its key under the address, its size, and the tag of its content."""

    key: str
    size: int
    tag: str
    changed: float  # seconds since 1970


class NotThereError(Exception):
    """No object of this key."""


class TakenError(Exception):
    """An object of this key is there already, or is another one by now."""


class LostAnswerError(Exception):
    """A put without an answer: it may be done or not."""


class Objects(Protocol):
    """What a store asks of object storage."""

    def list(self, prefix: str, after: str = "") -> Iterator[Stored]:
        """Yield the objects whose keys begin with a folder's name, rising, those after a key."""

    def get(self, key: str, limit: int) -> tuple[bytes, str]:
        """Return an object of at most ``limit`` bytes, and its tag; NotThereError for none."""

    def put(self, key: str, data: bytes, tag: str | None = None) -> None:
        """Make an object where there is none, or in the place of the one that has this tag.

        Raises:
            TakenError: that is not so.
            LostAnswerError: nobody knows.
        """

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there are no error."""


class ObjectPath(PurePosixPath):
    """A place in object storage, as errors tell it; nothing opens it."""

    def __str__(self) -> str:
        scheme, _, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest}"


def open_objects(address: str) -> Objects:
    """Return the objects under an address such as s3://bucket/folder.

    Raises:
        ConfigError: no address of a kind we know, or one with a key in it.
        StoreAccessError: what it needs is not installed.
    """
    parts = parse_address("store", address)
    if address.startswith(READ_ONLY):
        return _FsspecObjects(address)
    if parts.scheme not in SCHEMES or not parts.netloc:
        known = f"a folder, {', '.join(f'{each}://…' for each in SCHEMES[:4])} or {READ_ONLY}KIND://…"
        raise ConfigError("store", known, address)
    return _CloudObjects(address)


def parse_address(what: str, address: str) -> SplitResult:
    """Return the parts of an address, without a key in it; ``container@account`` of Azure is none.

    Raises:
        ConfigError: no address, or one with a key.
    """
    try:
        parts = urlsplit(address)
        user = None if parts.scheme.startswith("abfs") else parts.username
        hidden = user or parts.password or parts.query or parts.fragment
    except ValueError as err:
        raise ConfigError(what, "an address such as s3://bucket/folder", "one that is none") from err
    if hidden:
        raise ConfigError(what, "an address without a key in it", "one with", "credentials are each cloud's own")
    return parts


def _require_package(address: str, package: str) -> None:
    if sys.modules.get(package, find_spec) is None or (package not in sys.modules and find_spec(package) is None):
        hint = "pip install 'adapter-registry[remote]'"
        raise StoreAccessError("open", address, f"the package {package}", "none", hint)


class _CloudObjects:
    """Objects that obstore asks for."""

    def __init__(self, address: str) -> None:
        _require_package(address, "obstore")
        from obstore.store import from_url

        self._address = address
        retries: Any = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=SECONDS)}
        with self._asking("open", ""):
            self._store: Any = from_url(address, retry_config=retries, client_options=_client_options())

    def list(self, prefix: str, after: str = "") -> Iterator[Stored]:
        """Yield the objects of a folder."""
        with self._asking("list", prefix):
            for chunk in self._store.list(prefix, offset=after or None, chunk_size=1000):
                for each in chunk:
                    yield Stored(each["path"], each["size"], _tag(each), each["last_modified"].timestamp())

    def get(self, key: str, limit: int) -> tuple[bytes, str]:
        """Return an object and its tag."""
        with self._asking("read", key):
            found = self._store.get(key)
            if found.meta["size"] > limit:
                path = ObjectPath(self._address, key)
                raise IntegrityError(path, "size", f"at most {limit} bytes", f"{found.meta['size']} bytes")
            return bytes(found.bytes()), _tag(found.meta)

    def put(self, key: str, data: bytes, tag: str | None = None) -> None:
        """Make or replace an object."""
        from obstore import exceptions

        etag, _, version = (tag or "").partition("\n")
        mode: Any = "create" if tag is None else {"e_tag": etag, **({"version": version} if version else {})}
        try:
            self._store.put(key, data, mode=mode, use_multipart=False)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as err:
            raise TakenError(key) from err
        except FileNotFoundError as err:  # of the object to be replaced, or of the bucket
            if tag is not None:
                raise TakenError(key) from err
            raise self._error("write", err) from None
        except exceptions.BaseError as err:
            if _is_refusal(err):
                raise self._error("write", err) from None
            raise LostAnswerError(str(self._error("write", err))) from None

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects."""
        with self._asking("write", ""):
            self._store.delete(list(keys))

    @contextmanager
    def _asking(self, attempted: str, key: str) -> Iterator[None]:
        from obstore import exceptions

        try:
            yield
        except FileNotFoundError as err:
            if not key or attempted == "list" or _code(err) == "NoSuchBucket":
                raise self._error(attempted, err) from None
            raise NotThereError(key) from None
        except (exceptions.BaseError, OSError, ValueError) as err:
            if isinstance(err, IntegrityError):
                raise
            raise self._error(attempted, err) from None

    def _error(self, attempted: str, err: Exception) -> StoreAccessError:
        """Return which of a few things went wrong, without a word of what the server said."""
        from obstore import exceptions

        status, code = _status(err), _code(err)
        told = " ".join(each for each in (f"status {status}" if status else "", code) if each)
        credentials, server = _SOURCES.get(self._address.partition(":")[0], _AZURE)
        if status in (401, 403) or isinstance(err, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
            expected = f"credentials that may do this ({credentials})"
            return StoreAccessError(attempted, self._address, expected, told or "a refusal")
        if status == 404 or isinstance(err, FileNotFoundError):
            return StoreAccessError(attempted, self._address, "a bucket of this name", told or "none", "make it first")
        if status == 501 or isinstance(err, exceptions.NotSupportedError):
            return StoreAccessError(attempted, self._address, "a server with conditional puts", told or "one without")
        return StoreAccessError(attempted, self._address, _ANSWER + server, told or f"none ({type(err).__name__})")


def _client_options() -> Any:
    """Return the time of a request, and whether plain HTTP is allowed, which obstore reads no more beside options."""
    allowed = os.environ.get("AWS_ALLOW_HTTP", os.environ.get("AZURE_ALLOW_HTTP", "")).lower() in ("1", "true")
    return {"timeout": f"{SECONDS:.0f}s", "allow_http": allowed}


def _tag(meta: Any) -> str:
    """Return what a condition compares: the ETag, and the version where a cloud has one."""
    return "\n".join(each for each in (meta.get("e_tag") or "", meta.get("version") or "") if each)


def _status(err: BaseException) -> int:
    match = re.search(r"status(?: code)?:? ?(\d{3})|\b([45]\d\d) [A-Z][a-z]+", str(err))
    return int(match[1] or match[2]) if match else 0


def _code(err: BaseException) -> str:
    match = re.search(r"<Code>([A-Za-z]{1,40})</Code>", str(err))
    return match[1] if match else ""


def _is_refusal(err: BaseException) -> bool:
    """Return whether a server has said no, so that nothing was written."""
    return 400 <= _status(err) < 500 or _status(err) == 501


class _FsspecObjects:
    """Objects that fsspec asks for: read-only, as it cannot put on a condition."""

    def __init__(self, address: str) -> None:
        _require_package(address, "fsspec")
        import fsspec  # type: ignore[import-untyped]

        self._address = address
        with self._asking("open"):
            self._files, self._root = fsspec.core.url_to_fs(address.removeprefix(READ_ONLY))

    def list(self, prefix: str, after: str = "") -> Iterator[Stored]:
        """Yield the objects of a folder."""
        with self._asking("list"):
            root = self._root.rstrip("/")
            found = self._files.find(f"{root}/{prefix}", detail=True)
        for path, about in sorted(found.items()):
            key = path[len(root) :].strip("/")
            if key > after:
                size = int(about.get("size") or 0)
                yield Stored(key, size, "", 0.0)

    def get(self, key: str, limit: int) -> tuple[bytes, str]:
        """Return an object, without a tag."""
        with self._asking("read"):
            try:
                with self._files.open(f"{self._root.rstrip('/')}/{key}", "rb") as file:
                    data = bytes(file.read(limit + 1))
            except FileNotFoundError as err:
                raise NotThereError(key) from err
        if len(data) > limit:
            raise IntegrityError(ObjectPath(self._address, key), "size", f"at most {limit} bytes", "more")
        return data, ""

    def put(self, key: str, data: bytes, tag: str | None = None) -> None:
        """Refuse."""
        expected = f"a store that can put on a condition ({', '.join(SCHEMES[:4])})"
        raise StoreAccessError("write", self._address, expected, "fsspec, which can only be read")

    def delete(self, keys: Sequence[str]) -> None:
        """Refuse."""
        self.put("", b"")

    @contextmanager
    def _asking(self, attempted: str) -> Iterator[None]:
        try:
            yield
        except NotThereError:
            raise
        except ImportError:
            hint = "install what this kind needs"
            raise StoreAccessError(attempted, self._address, "a kind that fsspec has here", "none", hint) from None
        except (OSError, ValueError) as err:
            raise StoreAccessError(attempted, self._address, _ANSWER, type(err).__name__) from None
