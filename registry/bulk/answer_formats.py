"""The bytes of answered rows, in the format that a file's name tells: csv, tsv, JSON lines, parquet.

A file that is not finished grows by whole chunks, so that it can be cut after the last one that was confirmed.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")

WriteRows: TypeAlias = Callable[[BinaryIO, list[dict[str, Any]], bool], None]  # file, rows, whether they are its first


def writer_of(out: Path, schema: pa.Schema | None) -> WriteRows:
    """Return what writes a chunk of rows behind those of an unfinished file.

    Args:
        out: its ending tells the format.
        schema: the types of a parquet file's columns; found from the rows when None.
    """
    ending = out.suffix.lower()
    if ending == ".parquet":
        return lambda file, rows, is_first: _write_arrow(file, rows, schema)
    return _write_lines if ending == ".jsonl" else _write_delimited("\t" if ending == ".tsv" else ",")


def finish(part: Path, out: Path) -> None:
    """Put what was written under its name, in the format that this tells."""
    if out.suffix.lower() != ".parquet":
        os.replace(part, out)
        return
    _to_parquet(part, out)
    part.unlink()


def _write_delimited(separator: str) -> WriteRows:
    def write(file: BinaryIO, rows: list[dict[str, Any]], is_first: bool) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=separator, lineterminator="\n")
        if is_first:
            writer.writerow(rows[0])
        writer.writerows([_plain(value) for value in row.values()] for row in rows)
        file.write(text.getvalue().encode())

    return write


def _plain(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _write_lines(file: BinaryIO, rows: list[dict[str, Any]], is_first: bool) -> None:
    file.write("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode())


def _write_arrow(file: BinaryIO, rows: list[dict[str, Any]], schema: pa.Schema | None) -> None:
    """Write messages of Arrow's stream format; each chunk with its own schema, as types may only show later."""
    table = pa.Table.from_pylist(rows, schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    file.write(len(content).to_bytes(8, "little") + content)


def _to_parquet(part: Path, out: Path) -> None:
    """Write the chunks of an unfinished file as parquet, all with the columns' common types."""
    schema = pa.schema([])
    for table in _arrow_chunks(part):  # one by one, as there may be thousands
        schema = pa.unify_schemas([schema, table.schema], promote_options="permissive")
    schema = pa.schema([pa.field(each.name, pa.string()) if pa.types.is_null(each.type) else each for each in schema])
    beside = out.with_name(f"{out.name}.tmp")
    with pq.ParquetWriter(beside, schema) as writer:
        for table in _arrow_chunks(part):
            writer.write_table(table.cast(schema))
    with beside.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(beside, out)


def _arrow_chunks(part: Path) -> Iterator[pa.Table]:
    with part.open("rb") as file:
        while head := file.read(8):
            yield pa.ipc.open_stream(file.read(int.from_bytes(head, "little"))).read_all()
