"""Files of rows as columns, a chunk at a time, each format strictly: csv and its kin, JSON, parquet, Arrow, Excel.

What the cells mean is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from registry.errors import DataError, closest, shorten
from registry.schema import Reading
from registry.tasks.cells import Table, join_tables
from registry.tasks.delimited import read_delimited
from registry.tasks.files import open_bytes, open_text, split_ending

CHUNK_ROWS = 8_192
LARGE = 64 * 2**20  # bytes of files whose cells are kept on disk
PACKED = 8  # how much larger than its file packed content is taken to be


def read_table(path: Path, wanted: Sequence[str], reading: Reading | None = None) -> Table:
    """Return the wanted columns of a file.

    Raises:
        DataError: no such file, an unknown ending, or content that is damaged or has no rows.
    """
    return join_tables(read_chunks(path, wanted, reading), on_disk=is_large([path]))


def is_large(paths: Iterable[Path]) -> bool:
    """Return whether the cells of these files together are to be kept on disk and not in memory."""
    sizes = (path.stat().st_size * (PACKED if split_ending(path)[1] else 1) for path in paths if path.is_file())
    return sum(sizes) > LARGE


def read_chunks(
    path: Path,
    wanted: Sequence[str],
    reading: Reading | None = None,
    *,
    rows: int = CHUNK_ROWS,
    with_rest: bool = False,
) -> Iterator[Table]:
    """Yield a file's rows in tables of at most ``rows``, in their order and in memory of their size.

    JSON arrays and Excel books alone are read whole.

    Args:
        path: its ending tells the format; ``.gz`` and ``.zst`` behind it are unpacked.
        wanted: columns; a name with dots also reaches into objects.
        reading: how text becomes cells; found by looking when None.
        rows: of a table.
        with_rest: give the columns that are not wanted as well.

    Raises:
        DataError: see ``read_table``.
    """
    reading = reading or Reading()
    ending, _ = split_ending(path)
    if ending == ".parquet":
        tables = _read_parquet(path, wanted, rows, with_rest)
    elif ending in (".feather", ".arrow"):
        tables = _read_arrow(path, wanted, rows, with_rest)
    elif ending == ".xlsx":
        tables = iter([_read_excel(path, wanted, reading, with_rest)])
    elif ending in (".jsonl", ".json"):
        tables = _read_json(path, wanted, reading, ending, rows, with_rest)
    else:
        tables = _read_delimited(path, wanted, reading, ending, rows, with_rest)
    some = False
    for table in tables:
        if len(table) or not set(wanted) <= table.columns.keys():
            some = True
            yield table
    if not some:
        raise DataError(path, "content", "at least one row", "none")


def column_names(path: Path, reading: Reading | None = None) -> tuple[str, ...]:
    """Return the names of a file's columns; of JSON those of the first rows.

    Raises:
        DataError: see ``read_table``.
    """
    return next(read_chunks(path, (), reading, rows=100, with_rest=True)).names


def table_from_arrow(
    source: str, table: pa.Table | pa.RecordBatch, wanted: Sequence[str], with_rest: bool = False
) -> Table:
    """Return the wanted columns of an Arrow table.

    Raises:
        DataError: text that is not UTF-8.
    """
    names = tuple(table.schema.names)
    try:
        columns = {
            name: cells
            for name in _asked(names, wanted, with_rest)
            if (cells := _arrow_column(table, name)) is not None
        }
    except (pa.ArrowException, ValueError, KeyError) as err:
        raise DataError(source, "content", "readable columns", str(err)) from err
    return Table(source, names, columns, class_names=_class_names(table.schema))


def _asked(names: Iterable[str], wanted: Sequence[str], with_rest: bool) -> tuple[str, ...]:
    """Return the names of the cells to give: those wanted, and then perhaps all others."""
    return tuple(dict.fromkeys([*wanted, *(names if with_rest else ())]))


def _arrow_column(table: pa.Table | pa.RecordBatch, name: str) -> list[Any] | None:
    if name in table.schema.names:
        return list(table.column(name).to_pylist())
    outer, *inner = name.split(".")
    if not inner or outer not in table.schema.names:
        return None
    return [_dig(cell, inner) for cell in table.column(outer).to_pylist()]


def _class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Return the class names that the datasets library keeps beside columns of class numbers."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        named = {name: each["names"] for name, each in features.items() if each.get("_type") == "ClassLabel"}
        return {name: tuple(map(str, names)) for name, names in named.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _numbered(tables: Iterable[Table]) -> Iterator[Table]:
    first = 0
    for table in tables:
        yield Table(table.source, table.names, table.columns, None, first, table.class_names)
        first += len(table)


def _read_parquet(path: Path, wanted: Sequence[str], rows: int, with_rest: bool) -> Iterator[Table]:
    with _ToldAs(path, "a parquet file"), open_bytes(path) as binary:
        file = pq.ParquetFile(path if path.suffix.lower() == ".parquet" else pa.BufferReader(binary.read()))
        names = file.schema_arrow.names
        outer = {*wanted, *(name.partition(".")[0] for name in wanted)}
        some = [name for name in names if with_rest or name in outer]
        batches = file.iter_batches(batch_size=rows, columns=some)
        for table in _numbered(table_from_arrow(str(path), batch, wanted, with_rest) for batch in batches):
            yield Table(table.source, tuple(names), table.columns, None, table.first, _class_names(file.schema_arrow))


def _read_arrow(path: Path, wanted: Sequence[str], rows: int, with_rest: bool) -> Iterator[Table]:
    with _ToldAs(path, "an Arrow file"), open_bytes(path) as binary:
        packed = path.suffix.lower() not in (".feather", ".arrow")
        content = pa.BufferReader(binary.read()) if packed else pa.memory_map(str(path))
        try:
            file = pa.ipc.open_file(content)
            batches: Iterable[pa.RecordBatch] = (file.get_batch(each) for each in range(file.num_record_batches))
        except pa.ArrowInvalid:
            content.seek(0)
            batches = pa.ipc.open_stream(content)
        parts = (batch.slice(start, rows) for batch in batches for start in range(0, batch.num_rows, rows))
        yield from _numbered(table_from_arrow(str(path), part, wanted, with_rest) for part in parts)


class _ToldAs:
    """What Arrow says of a damaged file becomes our error."""

    def __init__(self, path: Path, expected: str) -> None:
        self.path, self.expected = path, expected

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if isinstance(err, (pa.ArrowException, OSError)):
            found = (str(err).splitlines() or [type(err).__name__])[0]
            raise DataError(self.path, "content", self.expected, found) from err


def _read_excel(path: Path, wanted: Sequence[str], reading: Reading, with_rest: bool) -> Table:
    """Return the first sheet; pandas reads it, and gaps of the sheet are None."""
    import pandas as pd

    with _ToldAs(path, "an Excel book"), open_bytes(path) as binary:
        try:
            frame = pd.read_excel(
                binary, header=0 if reading.header else None, dtype=object, keep_default_na=False, engine="openpyxl"
            )
        except ImportError as err:
            hint = "pip install 'adapter-registry[excel]'"
            raise DataError(path, "content", "openpyxl, which reads Excel books", "none installed", hint) from err
        except (ValueError, KeyError) as err:
            raise DataError(path, "content", "an Excel book", str(err)) from err
    names = tuple(map(str, frame.columns))
    cells = {name: frame.iloc[:, place].tolist() for place, name in enumerate(names)}
    lines = range(2 if reading.header else 1, len(frame) + 2)
    return Table(
        str(path), names, {name: cells[name] for name in _asked(names, wanted, with_rest) if name in cells}, lines
    )


def _read_json(
    path: Path, wanted: Sequence[str], reading: Reading, ending: str, rows: int, with_rest: bool
) -> Iterator[Table]:
    with open_text(path, reading.encoding, newline="\n") as text:  # no other sign ends a line: U+2028 is a letter
        blank = 0
        while (start := text.readline()) and not start.strip():
            blank += 1
        if ending == ".json" and start.lstrip().startswith("["):
            found = _parse(path, "content", start + text.read(), "a JSON array of objects")
            numbered = ((place, _check_object(path, f"row {place}", row)) for place, row in enumerate(found))
            has_lines = False
        else:
            has_lines = True
            numbered = (
                (number, _check_object(path, f"line {number}", _parse(path, f"line {number}", line)))
                for number, line in enumerate(chain([start], text), start=blank + 1)
                if line.strip()
            )
        names: dict[str, None] = {}
        first = 0
        while chunk := list(islice(numbered, rows)):
            names.update(dict.fromkeys(name for _, row in chunk for name in row))
            columns = {
                name: [_dig(row, [name]) if name in row else _dig(row, name.split(".")) for _, row in chunk]
                for name in _asked(names, wanted, with_rest)
                if name in names or any(_dig(row, name.split(".")) is not None for _, row in chunk)
            }
            yield Table(str(path), tuple(names), columns, [n for n, _ in chunk] if has_lines else None, first)
            first += len(chunk)


def _dig(cell: Any, path: Sequence[str]) -> Any:
    """Return what a path of names leads to in nested objects, None where it leads nowhere."""
    for name in path:
        cell = cell.get(name) if isinstance(cell, dict) else None
    return cell


def _parse(path: Path, place: str, text: str, expected: str = "a JSON object") -> Any:
    try:
        found = json.loads(text, object_pairs_hook=lambda pairs: _distinct(path, place, pairs))
    except (ValueError, RecursionError) as err:
        if isinstance(err, DataError):
            raise
        told = err.msg if isinstance(err, json.JSONDecodeError) else str(err)
        raise DataError(path, place, expected, told) from err
    return found


def _distinct(path: Path, place: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(path, place, "every key once", f"'{twice}' twice")
    return found


def _check_object(path: Path, place: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(path, place, "a JSON object", f"a {type(row).__name__}")
    return row


def _all_distinct(names: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return names of which none is lost where all columns are kept: repeated ones and empty ones get their place."""
    unclear = {name for name in names if not name or names.count(name) > 1} - set(wanted)
    return tuple(f"{name or 'column'}.{place}" if name in unclear else name for place, name in enumerate(names))


def _read_delimited(
    path: Path, wanted: Sequence[str], reading: Reading, ending: str, rows: int, with_rest: bool
) -> Iterator[Table]:
    names, numbered = read_delimited(path, wanted, reading, ending)
    names = _all_distinct(names, wanted) if with_rest else names
    places = {name: names.index(name) for name in _asked(names, wanted, with_rest) if name in names}
    for name in wanted:
        if name not in places:
            way_on = "--no-header says that it is a row" if reading.header else "--no-header columns count from 0"
            hint = closest(name, names) or f"--sep names another separator, {way_on}"
            found = f"{shorten(names, 9)} in the first line"
            raise DataError(path, "columns", f"a column '{name}'", found, hint)
    first = 0
    while True:
        chunk = list(islice(numbered, rows))
        if chunk or not first:
            columns = {name: [row[place] for _, row in chunk] for name, place in places.items()}
            yield Table(str(path), names, columns, [number for number, _ in chunk], first)
        if not chunk:
            return
        first += len(chunk)
