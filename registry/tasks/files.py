"""The characters of a data file, whatever its compression and encoding, streamed.

A file is UTF-8 unless it begins with a byte order mark or another encoding is named; bytes that are no text are told
with their line, and with the encodings that do read the file.
"""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from registry.errors import DataError, closest

ENDINGS = (".parquet", ".jsonl", ".csv", ".tsv", ".txt", ".json", ".feather", ".arrow", ".xlsx")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LOOKED_AT = 1 << 16  # bytes from which an encoding is guessed


def split_ending(path: Path) -> tuple[str, str | None]:
    """Return the ending that tells a file's format, and its compression: ``.csv`` and ``gzip`` of ``a.csv.gz``.

    Raises:
        DataError: no format has this ending.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    ending = (Path(path.stem) if compression else path).suffix.lower()
    if ending not in ENDINGS:
        expected = f"one ending in {', '.join(ENDINGS)}, or one of these with .gz or .zst"
        raise DataError(path, "file name", expected, f"'{path.name}'", closest(ending, ENDINGS))
    return ending, compression


def stem_of(path: Path) -> str:
    """Return a data file's name without its ending and compression."""
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSIONS else path.stem


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file's bytes, decompressed; one that changes before it is closed is told.

    Raises:
        DataError: no such file, an empty one, damaged compression, or another content now than when it was opened.
    """
    import pyarrow as pa  # not at once: the command line asks this file for names alone

    if not path.is_file():
        raise DataError(path, "file", "a file", "a folder" if path.is_dir() else "none")
    before = os.stat(path)
    if before.st_size == 0:
        raise DataError(path, "content", "rows", "an empty file")
    _, compression = split_ending(path)
    try:
        stream = pa.input_stream(str(path), compression=compression)
    except OSError as err:
        raise DataError(path, "file", "one that can be read", err.strerror or str(err)) from err
    with stream:
        try:
            yield cast(BinaryIO, io.BufferedReader(stream))
        except (pa.ArrowException, OSError) as err:
            if compression is None:
                raise
            found = str(err).splitlines()[0] if str(err) else type(err).__name__
            raise DataError(path, "content", f"a whole {compression} file", found) from err
    after = os.stat(path)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(path, "file", "one that stays as it is while it is read", "one that was written to meanwhile")


@contextmanager
def open_text(path: Path, encoding: str | None, newline: str) -> Iterator[TextIO]:
    """Open a file's characters.

    Args:
        encoding: None is UTF-8, or what a byte order mark says.
        newline: where lines end, as ``io.TextIOWrapper`` has it.

    Raises:
        DataError: what ``open_bytes`` raises, and bytes that are no text, at the line where they stand.
    """
    try:
        with open_bytes(path) as binary:
            found = encoding or find_encoding(path, cast(io.BufferedReader, binary))
            yield io.TextIOWrapper(binary, encoding=found, newline=newline)
    except UnicodeError as err:
        raise _no_text(path, encoding or "UTF-8") from err
    except OSError as err:
        raise DataError(path, "content", "a file that can be read", err.strerror or str(err)) from err


def find_encoding(path: Path, binary: io.BufferedReader) -> str:
    """Return what the first bytes say, without taking them.

    Raises:
        DataError: NUL characters, as UTF-16 without its mark has them.
    """
    start = binary.peek(_LOOKED_AT)
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    if b"\0" in start[:4096]:
        hint = "name the encoding with --encoding, utf-16-le or utf-16-be say"
        raise DataError(path, "content", "text in UTF-8", "NUL characters", hint)
    return "utf-8"


def _no_text(path: Path, encoding: str) -> DataError:
    """Return the error that says where the bytes stop being text, and which encodings read all of them."""
    from charset_normalizer import from_bytes

    decoder, number, offset = codecs.getincrementaldecoder(encoding)(), 0, 0
    with open_bytes(path) as binary:
        for line in binary:
            number += 1
            try:
                decoder.decode(line)
            except UnicodeError as err:
                start = err.start if isinstance(err, UnicodeDecodeError) else 0
                found = f"byte {line[min(start, len(line) - 1)]:#04x} at offset {offset + start}"
                break
            offset += len(line)
        else:
            line, found = b"", "half a character at its end"
    guesses = [each.encoding for each in from_bytes(line[:_LOOKED_AT])] if line else []
    fits = [each for each in dict.fromkeys(["latin-1", "cp1252", *guesses[:3]]) if _reads(path, each)]
    hint = f"name the encoding with --encoding; {', '.join(fits[:4])} read this file" if fits else ""
    return DataError(path, f"line {number}", encoding.upper(), found, hint)


def _reads(path: Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        with open_bytes(path) as binary:
            for line in binary:
                decoder.decode(line)
            decoder.decode(b"", final=True)
    except UnicodeError:
        return False
    return True
