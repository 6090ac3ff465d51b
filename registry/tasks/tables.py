"""Files of rows as columns: csv, tsv, jsonl and parquet, each strictly.

A table knows its file and its lines, so that whoever finds a bad cell can say where it is. What the cells mean is
not known here.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from registry.errors import DataError, closest, shorten

EXTENSIONS = (".parquet", ".jsonl", ".csv", ".tsv")


@dataclass(frozen=True)
class Table:
    """The wanted columns of one file or Hub split.

    Attributes:
        source: the file, or what else messages should call it.
        names: all columns there are, those not wanted too.
        columns: the cells of those wanted columns that there are.
        lines: the line where each row starts, counted from 1; None where the source has no lines.
    """

    source: str
    names: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int] | None = None

    def column(self, name: str) -> Sequence[Any]:
        """Return the cells of one column.

        Raises:
            DataError: there is no such column.
        """
        if name not in self.columns:
            hint = closest(name, self.names)
            raise DataError(self.source, "columns", f"a column '{name}'", shorten(self.names, 9), hint)
        return self.columns[name]

    def place(self, row: int) -> str:
        """Return where a row is: its line, counted from 1, or its number, counted from 0."""
        return f"row {row}" if self.lines is None else f"line {self.lines[row]}"


def read_table(path: Path, wanted: Sequence[str]) -> Table:
    """Return the wanted columns of a csv, tsv, jsonl or parquet file.

    Raises:
        DataError: no such file, an unknown extension, or content that is damaged or has no rows.
    """
    suffix = path.suffix.lower()
    if suffix not in EXTENSIONS:
        hint = closest(suffix, EXTENSIONS)
        raise DataError(path, "file name", "one ending in .csv, .tsv, .jsonl or .parquet", f"'{path.name}'", hint)
    if not path.is_file():
        raise DataError(path, "file", "a file", "a folder" if path.is_dir() else "none")
    if path.stat().st_size == 0:
        raise DataError(path, "content", "rows", "an empty file")
    if suffix == ".parquet":
        return _read_parquet(path, wanted)
    text = _read_text(path)
    if suffix == ".jsonl":
        return _read_jsonl(path, text, wanted)
    return _read_delimited(path, text, wanted, "," if suffix == ".csv" else "\t")


def table_from_arrow(source: str, table: pa.Table, wanted: Sequence[str]) -> Table:
    """Return the wanted columns of an Arrow table.

    Raises:
        DataError: it has no rows, or text that is not UTF-8.
    """
    names = tuple(table.column_names)
    try:
        columns = {name: table.column(name).to_pylist() for name in wanted if name in names}
    except (pa.ArrowException, ValueError) as err:
        raise DataError(source, "content", "readable columns", str(err)) from err
    return _with_rows(Table(source, names, columns), table.num_rows)


def _read_parquet(path: Path, wanted: Sequence[str]) -> Table:
    try:
        with pq.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            table = file.read(columns=[name for name in wanted if name in names])
    except (pa.ArrowException, OSError) as err:
        raise DataError(path, "content", "a parquet file", str(err).splitlines()[0]) from err
    found = table_from_arrow(str(path), table, wanted)
    return Table(found.source, names, found.columns)


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")  # spreadsheets put a byte order mark in front
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        raise DataError(path, f"line {line}", "UTF-8", f"byte {data[err.start]:#04x} at offset {err.start}") from err


def _read_jsonl(path: Path, text: str, wanted: Sequence[str]) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also cut inside texts, at U+2028
        if line.strip():
            rows.append(_parse_line(path, number, line))
            lines.append(number)
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in wanted if name in names}
    return _with_rows(Table(str(path), names, columns, lines), len(rows))


def _parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as err:
        found = err.msg if isinstance(err, json.JSONDecodeError) else str(err)
        raise DataError(path, f"line {number}", "a JSON object", found) from err
    if not isinstance(row, dict):
        raise DataError(path, f"line {number}", "a JSON object", f"a {type(row).__name__}")
    return row


def _read_delimited(path: Path, text: str, wanted: Sequence[str], delimiter: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for row in reader:
            if row and not header:
                header = row
            elif row:
                _check_width(path, start, row, header)
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as err:
        expected = f"fields of at most {csv.field_size_limit()} characters, quoted as in RFC 4180"
        raise DataError(path, f"line {start}", expected, str(err)) from err
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(path, "columns", "every name once", f"'{twice}' twice")
    columns = {name: [row[header.index(name)] for row in rows] for name in wanted if name in header}
    return _with_rows(Table(str(path), tuple(header), columns, lines), len(rows))


def _check_width(path: Path, line: int, row: list[str], header: list[str]) -> None:
    if len(row) != len(header):
        raise DataError(path, f"line {line}", f"{len(header)} fields, as in the first line", str(len(row)))


def _with_rows(table: Table, rows: int) -> Table:
    if rows == 0:
        raise DataError(table.source, "content", "at least one row", "none")
    return table
