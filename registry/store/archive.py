"""One stored version as one file: an uncompressed zip of the manifest and the two tensor files.

An archive is one exact sequence of bytes: whatever differs from what ``pack`` writes for its three members is refused,
so there is nothing to hide in it, and nothing is ever extracted. Knows bytes and digests, nothing of torch.
"""

from __future__ import annotations

import io
import os
import struct
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from registry.schema import Manifest, Reference
from registry.store import files
from registry.store.errors import ArchiveError, ArchiveNotFoundError, IntegrityError, ManifestError, StoreWriteError
from registry.store.manifest import FILE_LIMIT, MANIFEST_LIMIT, TENSOR_FILES, check_manifest, check_tensor_file, seal
from registry.store.reader import MANIFEST_FILE, StoreReader
from registry.validation import require

MEMBERS = (MANIFEST_FILE, *TENSOR_FILES)

_LIMITS = {MANIFEST_FILE: MANIFEST_LIMIT} | dict.fromkeys(TENSOR_FILES, FILE_LIMIT)  # bytes
_OVERHEAD_LIMIT = 1024  # bytes of the zip beside its members
_DATE = (1980, 1, 1, 0, 0, 0)  # equal sets give equal archives
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # of a zip member; the last five: CRC, packed and true size, two lengths


def export_version(view: StoreReader, reference: Reference | str, path: Path, *, overwrite: bool = False) -> Path:
    """Write one stored version, all of its digests checked, into one file and return its path.

    Raises:
        AdapterNotFoundError: no such name, version or alias.
        ManifestError, IntegrityError: the stored version is damaged.
        StoreWriteError: the file is there already, or cannot be written; nothing was changed.
        CommitUncertainError: the file is there, but the disk did not confirm it.
    """
    _check_path(path)
    name, version = view.resolve(reference)
    manifest, contents = view.read_version(name, version)
    data = pack({MANIFEST_FILE: seal(manifest, contents), **contents})
    attempted = f"export '{name}:{version}' ({len(data):,} bytes)"
    write = files.replace if overwrite else files.publish
    try:
        with files.writing(path, attempted):
            write(path, data, by=path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp"))
    except StoreWriteError as err:
        if isinstance(err.__cause__, FileExistsError):
            raise StoreWriteError(path, attempted, "a file is there already (--force replaces it)") from err
        raise
    files.confirm(path.parent, f"{name}:{version}")
    return path


def write_folder(folder: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> None:
    """Write the three files of a version into a new or empty folder; ``read_archive`` reads them again.

    Raises:
        StoreWriteError: there is something already, or it cannot be written.
    """
    _check_path(folder)
    with files.writing(folder, f"save '{manifest.name}'"):
        files.make_folder(folder)
        for member, data in {**contents, MANIFEST_FILE: seal(manifest, contents)}.items():
            files.write_new(folder / member, data)
        files.fsync_folder(folder)


def read_archive(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest and the tensor files in an exported file, or a folder of all three, all digests checked.

    Raises:
        ArchiveNotFoundError: no such file.
        ArchiveError: too large, changed, or another kind of file.
    """
    _check_path(path)
    with archive_errors():
        try:
            with files.reading(path):
                # The user's own path may be a link; what it leads to may not.
                place = Path(os.path.realpath(path))
                if place.is_dir():
                    contents = {member: files.read(place / member, _LIMITS[member]) for member in MEMBERS}
                else:
                    contents = unpack(path, files.read(place, sum(_LIMITS.values()) + _OVERHEAD_LIMIT))
        except FileNotFoundError as err:
            if path.is_dir():
                raise ArchiveError(path, "content", ", ".join(MEMBERS), f"no {Path(err.filename).name}") from err
            raise ArchiveNotFoundError(path) from err
        manifest = check_manifest(path / MANIFEST_FILE, contents.pop(MANIFEST_FILE))
        for entry in manifest.files:
            check_tensor_file(path / entry.path, entry, contents[entry.path])
    return manifest, contents


def _check_path(path: Path) -> None:
    good = bool(path.name) and "\0" not in str(path)
    require(good, "file", "the path of a file", str(path))


@contextmanager
def archive_errors() -> Iterator[None]:
    """Turn what is said of a damaged version into what is said of a damaged archive."""
    try:
        yield
    except ManifestError as err:
        raise ArchiveError(err.path, err.field, err.expected, err.found) from err
    except IntegrityError as err:
        raise ArchiveError(err.path, err.what, err.expected, err.found) from err


def pack(contents: Mapping[str, bytes]) -> bytes:
    """Return the zip of the three members; equal contents give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for member in MEMBERS:
            info = zipfile.ZipInfo(member, _DATE)
            info.create_system, info.external_attr = 3, 0o644 << 16  # the same on every system
            archive.writestr(info, contents[member])
    return buffer.getvalue()


def unpack(path: Path, data: bytes) -> dict[str, bytes]:
    """Return the three members of the zip ``data``, read from ``path``.

    Raises:
        ArchiveError: any byte that ``pack`` would not have written.
    """
    contents, start = {}, 0
    for member in MEMBERS:
        begin = start + _LOCAL_HEADER.size + len(member)
        if begin > len(data):
            raise ArchiveError(path, "size", f"a zip with {', '.join(MEMBERS)}", f"{len(data)} bytes")
        size = _LOCAL_HEADER.unpack_from(data, start)[7]
        if size > _LIMITS[member]:
            raise ArchiveError(path, member, f"at most {_LIMITS[member]} bytes", f"{size} bytes")
        contents[member], start = data[begin : begin + size], begin + size
    if pack(contents) != data:
        expected = f"the bytes that export writes for {', '.join(MEMBERS)}"
        raise ArchiveError(path, "content", expected, "others")
    return contents
