"""The files of a store in their exact form: ``store.json``, sealed manifests, aliases, hashed tensors.

A manifest carries the digests of its neighbours and one of its own bytes, so that a changed byte is noticed
wherever it is. Knows the form of each file, not where a store keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TypeVar

import msgspec

from registry.errors import BackboneMismatchError, ConfigError, RequestError
from registry.schema import STORE_FORMAT, BackboneInfo, FileEntry, Manifest
from registry.store import files
from registry.store.errors import IntegrityError, ManifestError
from registry.validation import Record, from_json, require, to_json

ADAPTER_FILE = "adapter.safetensors"
HEAD_FILE = "head.safetensors"
TENSOR_FILES = (ADAPTER_FILE, HEAD_FILE)
MANIFEST_LIMIT = 2**20  # bytes
FILE_LIMIT = 2**28  # bytes

ALIAS_LIMIT = 48  # bytes
_ALIAS_CONTENT = re.compile(rb"([1-9][0-9]{0,5})(?: ([0-9a-f]{16})(?: [0-9a-f]{8})?)?\n")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RESTORE = "restore the file from a backup; the sets beside it are not touched by this"
_NO_DIGEST = b"0" * 64
_IDENTITY = {  # the first two tell backbones apart; the rest follows from them, unless somebody edited a manifest
    "fingerprint": "backbone",
    "tokenizer_digest": "tokenizer",
    "family": "family",
    "hidden_size": "hidden size",
    "layers": "number of layers",
    "parameters": "number of parameters",
}

_T = TypeVar("_T", bound=Record)


class StoreInfo(Record, frozen=True, kw_only=True):
    """The content of ``store.json``: the format, and the backbone that every set in the store fits.

    Attributes:
        digest: SHA-256 of the file's own bytes with 64 zeros in this place; empty in stores made before it was kept.
    """

    format: int = STORE_FORMAT
    backbone: BackboneInfo
    digest: str = ""

    def __post_init__(self) -> None:
        require(self.format == STORE_FORMAT, "format", f"format {STORE_FORMAT} (a newer program?)", self.format)


def seal(manifest: Manifest, contents: Mapping[str, bytes]) -> bytes:
    """Return the bytes of the manifest with the entries of its files and its own digest filled in.

    Raises:
        ConfigError: something that could not be read back, such as a score that is not a finite number.
    """
    require(sorted(contents) == list(TENSOR_FILES), "files", " and ".join(TENSOR_FILES), sorted(contents))
    for file, data in contents.items():
        require(len(data) <= FILE_LIMIT, file, f"at most {FILE_LIMIT} bytes", len(data))
    entries = tuple(
        FileEntry(path=file, bytes=len(contents[file]), sha256=files.sha256(contents[file])) for file in TENSOR_FILES
    )
    blank = msgspec.structs.replace(manifest, files=entries, digest=_NO_DIGEST.decode())
    try:
        data = to_json(blank)
    except UnicodeEncodeError as err:
        raise ConfigError("manifest", "text that UTF-8 can hold", err.object[err.start]) from err
    sealed = to_json(msgspec.structs.replace(blank, digest=files.sha256(data)))
    require(len(sealed) <= MANIFEST_LIMIT, "manifest", f"at most {MANIFEST_LIMIT} bytes", len(sealed))
    from_json(Manifest, sealed)
    return sealed


def check_named_manifest(path: PurePath, data: bytes, name: str) -> Manifest:
    """Return the manifest of ``name`` that ``data`` spells, read from ``path``.

    Raises:
        ManifestError: changed, not of this format, or of another name.
    """
    manifest = check_manifest(path, data)
    if manifest.name != name:
        raise ManifestError(path, "name", name, manifest.name)
    return manifest


def check_manifest(path: PurePath, data: bytes) -> Manifest:
    """Return the manifest that ``data`` spells, read from ``path``.

    Raises:
        ManifestError: changed, or not of this format.
    """
    manifest = _parse(Manifest, path, data)
    listed = tuple(entry.path for entry in manifest.files)
    if listed != TENSOR_FILES:
        raise ManifestError(path, "files", " and ".join(TENSOR_FILES), repr(listed)[:200])
    check_digest(path, data, manifest.digest)
    return manifest


def read_tensor_file(path: Path, entry: FileEntry) -> bytes:
    """Return the bytes that a manifest's entry describes; a missing file is FileNotFoundError.

    Raises:
        IntegrityError: a link, too large, or changed.
    """
    with files.reading(path):
        data = files.read(path, FILE_LIMIT)
    check_tensor_file(path, entry, data)
    return data


def check_tensor_file(path: PurePath, entry: FileEntry, data: bytes) -> None:
    """Raise IntegrityError unless ``data``, read from ``path``, has the size and the digest of its entry."""
    if len(data) != entry.bytes:
        raise IntegrityError(path, "size", f"{entry.bytes} bytes", f"{len(data)} bytes")
    found = files.sha256(data)
    if found != entry.sha256:
        raise IntegrityError(path, "SHA-256", repr(entry.sha256[:64]), found)


def seal_store_info(info: StoreInfo) -> bytes:
    """Return the bytes of ``store.json`` with its own digest filled in."""
    blank = msgspec.structs.replace(info, digest=_NO_DIGEST.decode())
    return to_json(msgspec.structs.replace(blank, digest=files.sha256(to_json(blank))))


def read_store_info(path: Path) -> StoreInfo:
    """Return the content of a ``store.json``; a missing file is FileNotFoundError.

    Raises:
        ManifestError: too large, changed, or not of this format.
    """
    return check_store_info(path, read_limited(path, MANIFEST_LIMIT, _RESTORE))


def check_store_info(path: PurePath, data: bytes) -> StoreInfo:
    """Return the content that the ``data`` of a ``store.json`` spells.

    Raises:
        ManifestError: changed, or not of this format.
    """
    with _advising(_RESTORE):
        info = _parse(StoreInfo, path, data)
        if info.digest:
            check_digest(path, data, info.digest)
    return info


def format_alias(name: str, alias: str, version: int) -> bytes:
    """Return the content of an alias file: the version, and a check of it that fits no other alias."""
    check = files.sha256(f"{name}@{alias}:{version}".encode())[:16]
    return f"{version} {check}\n".encode()


def read_alias(path: files.Location, name: str, alias: str) -> int:
    """Return the version that an alias file points to; a missing file is FileNotFoundError."""
    with _advising("set the alias again or remove it"):
        data = read_limited(path, ALIAS_LIMIT)
    return check_alias(path, data, name, alias)


def check_alias(path: files.Location | PurePath, data: bytes, name: str, alias: str) -> int:
    """Return the version that an alias file's ``data`` points to.

    Raises:
        ManifestError: anything but a version number with its check (or without one, as a person would write it).
    """
    with _advising("set the alias again or remove it"):
        match = _ALIAS_CONTENT.fullmatch(data)
        if match is None:
            raise ManifestError(path, "alias", "a version number, its check and a line end", repr(data))
        version = int(match[1])
        if match[2] is not None and match[2] not in format_alias(name, alias, version):
            raise ManifestError(path, "check", f"that of '{name}@{alias}' at {version}", match[2].decode())
    return version


def require_head(reference: str, manifest: Manifest) -> Manifest:
    """Return the manifest of a set that can answer.

    Raises:
        RequestError: it came from another library without a head, and none was trained on it.
    """
    if manifest.imported is not None and not manifest.imported.head:
        expected = f"a set with a trained head; train one on it: 'adapter-registry train TASK --start-from {reference}'"
        raise RequestError(f"answer with '{reference}'", expected, "one that was imported without a head")
    return manifest


def check_backbone(what: str, made_for: BackboneInfo, backbone: BackboneInfo) -> None:
    """Raise BackboneMismatchError unless both are one backbone with one tokenizer, whatever the shapes."""
    hint = f"it belongs to {made_for.source!r}, and {backbone.source!r} needs a store of its own"
    for field, part in _IDENTITY.items():
        expected, found = str(getattr(made_for, field)), str(getattr(backbone, field))
        if expected != found:
            raise BackboneMismatchError(what, part, expected, found, hint)


def check_digest(path: files.Location | PurePath, data: bytes, digest: str) -> None:
    """Raise ManifestError unless ``digest`` is that of the very bytes it is in, where 64 zeros stand for itself."""
    if not _DIGEST.fullmatch(digest):
        raise ManifestError(path, "digest", "64 hex digits", repr(digest[:64]))
    found = files.sha256(data.replace(digest.encode(), _NO_DIGEST))
    if data.count(digest.encode()) != 1 or found != digest:
        raise ManifestError(path, "digest", digest, found)


@contextmanager
def _advising(hint: str) -> Iterator[None]:
    """Let a ManifestError of the block say what to do about a file that belongs to no version."""
    try:
        yield
    except ManifestError as err:
        raise ManifestError(err.path, err.field, err.expected, err.found, hint) from err


def read_limited(path: files.Location, limit: int, hint: str = "") -> bytes:
    """Return the content of a small file of the store; a missing one is FileNotFoundError.

    Raises:
        ManifestError: a link, a special file, or more than ``limit`` bytes.
    """
    try:
        with files.reading(path):
            return files.read(path, limit)
    except IntegrityError as err:
        raise ManifestError(path, err.what, str(err.expected), err.found, hint) from err


def _parse(kind: type[_T], path: PurePath, data: bytes) -> _T:
    try:
        return from_json(kind, data)
    except ConfigError as err:
        raise ManifestError(path, err.field, err.expected, repr(err.found)[:200]) from err
