"""Where two contents of a file differ, field by field: cells of a csv or parquet, values of a JSON, lines of texts.

Contents that differ in a single byte have at least one difference; but for parquet, which every version of its library
packs in its own way, it is the table in it that counts. Nothing here knows what the files are about.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_KEYS = ("task", "method", "seed")
_EXCERPT = 60  # characters of a line that are shown
_BEFORE = 15  # of them in front of the first difference
_NOTHING = "nothing"


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it should be, told in one line."""

    file: str
    field: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.file}: {self.field}: expected {self.expected}, found {self.found}"


def compare_contents(file: str, expected: bytes, found: bytes) -> list[Difference]:
    """Return where ``found`` is not ``expected``; the end of the name decides how they are read."""
    if expected == found:
        return []
    if file.endswith(".parquet"):
        return [Difference(file, *each) for each in _compare_parquet(expected, found)]
    try:
        texts = expected.decode(), found.decode()
        readers = {"csv": _compare_csv, "json": _compare_json}
        fields = readers.get(file.rpartition(".")[2], _compare_lines)
        told = list(fields(*texts)) or list(_compare_lines(*texts))
    except (ValueError, RecursionError, csv.Error):  # no text, no JSON, no csv
        told = []
    told = told or [("bytes", _identity(expected), _identity(found))]
    return [Difference(file, *each) for each in told]


def _compare_parquet(expected: bytes, found: bytes) -> list[tuple[str, str, str]]:
    try:
        old, new = (pq.read_table(pa.BufferReader(content)) for content in (expected, found))
    except (pa.ArrowException, OSError):
        return [("bytes", _identity(expected), _identity(found))]
    told = list(_compare_csv(*(str(table.to_pandas().to_csv(index=False)) for table in (old, new))))
    if not told and not old.schema.equals(new.schema):
        return [("columns", *_excerpts(str(old.schema), str(new.schema)))]
    if not told and not old.equals(new):  # a csv spells what is missing and what is empty alike
        names = [name for name in old.column_names if not old.column(name).equals(new.column(name))]
        return [("cells", f"others missing in {', '.join(names)}", "empty ones, or the other way round")]
    return told


def _compare_csv(expected: str, found: str) -> Iterator[tuple[str, str, str]]:
    old, new = (list(csv.reader(io.StringIO(text, newline=""))) for text in (expected, found))
    columns, others = (rows[0] if rows else [] for rows in (old, new))
    if columns != others:
        lost, added = (
            [name for name in one if name not in rest] for one, rest in ((columns, others), (others, columns))
        )
        yield "columns", ", ".join(lost) or "another order", ", ".join(added) or "nothing else"
        return
    if len(old) != len(new):
        yield "rows", str(len(old) - 1), str(len(new) - 1)
    keys = [place for place, name in enumerate(columns) if name in _KEYS]
    for expected_row, found_row in zip(old[1:], new[1:], strict=False):
        name = " ".join(expected_row[place] for place in keys)
        if len(expected_row) != len(found_row):
            yield name, f"{len(expected_row)} cells", f"{len(found_row)} cells"
            continue
        for column, cell, other in zip(columns, expected_row, found_row, strict=True):
            if cell != other:
                yield f"{name}: {column}", cell or _NOTHING, other or _NOTHING


def _compare_json(expected: str, found: str) -> Iterator[tuple[str, str, str]]:
    return _compare_values("", json.loads(expected), json.loads(found))


def _compare_values(field: str, expected: Any, found: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            inner = f"{field}.{key}" if field else str(key)
            if key not in found:
                yield inner, _excerpt(json.dumps(expected[key])), _NOTHING
            elif key not in expected:
                yield inner, _NOTHING, _excerpt(json.dumps(found[key]))
            else:
                yield from _compare_values(inner, expected[key], found[key])
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for place, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from _compare_values(f"{field}[{place}]", one, other)
    elif isinstance(expected, list) and isinstance(found, list):
        yield field, f"{len(expected)} entries", f"{len(found)} entries"
    elif type(expected) is not type(found) or expected != found:
        yield field, *_excerpts(json.dumps(expected, ensure_ascii=False), json.dumps(found, ensure_ascii=False))


def _compare_lines(expected: str, found: str) -> Iterator[tuple[str, str, str]]:
    old, new = (text.splitlines(keepends=True) for text in (expected, found))
    for kind, first, last, other_first, other_last in difflib.SequenceMatcher(None, old, new, False).get_opcodes():
        if kind == "equal":
            continue
        for place in range(max(last - first, other_last - other_first)):
            line = old[first + place] if first + place < last else ""
            other = new[other_first + place] if other_first + place < other_last else ""
            yield f"line {first + place + 1}", *_excerpts(line, other)


def _excerpts(expected: str, found: str) -> tuple[str, str]:
    """Return both texts around their first difference."""
    common = next(
        (n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found))
    )
    start = max(0, common - _BEFORE) if max(len(expected), len(found)) > _EXCERPT else 0
    return _excerpt(expected, start), _excerpt(found, start)


def _excerpt(text: str, start: int = 0) -> str:
    if not text:
        return _NOTHING
    part = (each if each.isprintable() else each.encode("unicode_escape").decode() for each in text[start:][:_EXCERPT])
    return ("…" if start else "") + "".join(part) + ("…" if start + _EXCERPT < len(text) else "")


def _identity(content: bytes) -> str:
    return f"{len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()[:12]}"
