"""The parts of a data set: which files a folder has, and which of their rows are answered as one file.

Rows of parquet are cut by number; a file of lines is a part as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from registry.bulk.answer_file import FileQuestion
from registry.bulk.answer_formats import FORMATS
from registry.bulk.folders import Folder
from registry.errors import DataError, shorten
from registry.tasks.files import split_ending
from registry.validation import Record

PART_ROWS = 32_768  # of a parquet file are a part
COPIED_ROWS = 4_096  # at a time


class Source(Record, frozen=True, kw_only=True):
    """A file of rows, as it was when the run was begun."""

    name: str
    bytes: int
    stamp: str


class Part(Record, frozen=True, kw_only=True):
    """A file of answers: its name, and which rows of which source it answers; all of them where no number is given."""

    name: str
    source: str
    first: int = 0
    rows: int | None = None


class PartPlan(Record, frozen=True, kw_only=True):
    """What a run is to make, and of what."""

    settings: str
    sources: tuple[Source, ...]
    parts: tuple[Part, ...]


def plan_parts(question: FileQuestion, folder: Folder, part_rows: int = PART_ROWS) -> PartPlan:
    """Return which files a folder has and the parts of their answers.

    Names that begin with a dot or an underscore are no rows, as other readers of folders have it too.

    Raises:
        DataError: no rows, files of several formats or columns, or one that cannot be read.
    """
    listed = {name: told for name, told in folder.files().items() if not _is_hidden(name) and told[0]}
    endings = {name: _ending(name) for name in listed}
    formats = sorted(set(endings.values()))
    if not formats:
        raise DataError(str(folder), "folder", f"files of rows ({', '.join(FORMATS)})", "none")
    if len(formats) > 1 or formats[0] not in FORMATS:
        examples = [next(name for name in listed if endings[name] == each) for each in formats]
        expected, hint = f"files of one format of {', '.join(FORMATS)}", "--data answers a single file as well"
        raise DataError(str(folder), "folder", expected, shorten(examples), hint)
    sources = tuple(Source(name=name, bytes=size, stamp=stamp) for name, (size, stamp) in listed.items())
    if formats == [".parquet"]:
        parts = [part for source, rows in _count_rows(folder, sources) for part in _cut(source.name, rows, part_rows)]
    else:
        parts = [Part(name=_plain_name(source.name), source=source.name) for source in sources]
    if not parts:
        raise DataError(str(folder), "folder", "at least one row", "none")
    (name, times), *_ = Counter(part.name for part in parts).most_common(1)
    if times > 1:
        raise DataError(str(folder), "folder", "files whose parts have names of their own", f"two '{name}'")
    return PartPlan(settings=replace(question, mark=str(folder)).digest(), sources=sources, parts=tuple(parts))


def _is_hidden(name: str) -> bool:
    return any(each.startswith((".", "_")) for each in PurePosixPath(name).parts)


def _ending(name: str) -> str:
    """Return the format of a file; packed parquet is none, as its parts cannot be read by themselves."""
    try:
        ending, compression = split_ending(Path(name))
    except DataError:
        return Path(name).suffix.lower()
    return f"{ending} packed" if compression and ending == ".parquet" else ending


def _plain_name(name: str) -> str:
    """Return the name without its compression."""
    return name if Path(name).suffix.lower() in FORMATS else str(PurePosixPath(name).with_suffix(""))


def _count_rows(folder: Folder, sources: tuple[Source, ...]) -> Iterator[tuple[Source, int]]:
    """Yield the parquet files with their rows; all have the same columns."""
    schema: pa.Schema | None = None
    for source in sources:
        with _open_parquet(folder, source.name) as file:
            schema = schema or file.schema_arrow
            found = {field.name: str(field.type) for field in file.schema_arrow}
            wanted = {field.name: str(field.type) for field in schema}
            if found != wanted:
                name = next(each for each in (*found, *wanted) if found.get(each) != wanted.get(each))
                expected = f"the columns of {sources[0].name}, '{name}' {wanted.get(name, 'not among them')}"
                raise DataError(f"{folder}/{source.name}", "columns", expected, found.get(name, "no such column"))
            yield source, file.metadata.num_rows


@contextmanager
def _open_parquet(folder: Folder, name: str) -> Iterator[pq.ParquetFile]:
    with folder.open(name) as binary:
        try:
            yield pq.ParquetFile(binary)
        except pa.ArrowException as err:
            raise DataError(f"{folder}/{name}", "content", "a parquet file", str(err).splitlines()[0]) from err


def _cut(name: str, rows: int, part_rows: int) -> Iterator[Part]:
    """Yield the parts of a parquet file; one that has few rows keeps its name, and one without any has none."""
    count = -(-rows // part_rows)
    if count == 1:
        yield Part(name=name, source=name)
        return
    stem = str(PurePosixPath(name).with_suffix(""))
    for place in range(count):
        first = place * part_rows
        numbered = f"{stem}-{place:05d}-of-{count:05d}.parquet"
        yield Part(name=numbered, source=name, first=first, rows=min(part_rows, rows - first))


def copy_part(folder: Folder, part: Part, path: Path) -> None:
    """Write the rows of a part as a file of this machine.

    Raises:
        DataError: they cannot be read.
    """
    if part.rows is None:
        folder.copy_to(part.source, path)
        return
    with _open_parquet(folder, part.source) as file:
        _copy_rows(file, part.first, part.rows, path)


def _copy_rows(file: pq.ParquetFile, first: int, count: int, path: Path) -> None:
    """Write some rows of a parquet file as a file of their own, reading only the row groups that have them."""
    groups: list[int] = []
    start, skipped = 0, 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if start < first + count and first < start + size:
            skipped = skipped if groups else first - start
            groups.append(group)
        start += size
    with pq.ParquetWriter(path, file.schema_arrow) as writer:
        for batch in file.iter_batches(row_groups=groups, batch_size=COPIED_ROWS):
            some = batch.slice(min(skipped, len(batch)), count)
            skipped, count = max(0, skipped - len(batch)), count - len(some)
            if len(some):
                writer.write_batch(some)
            if not count:
                return


def difference(begun: PartPlan, plan: PartPlan, is_done: bool) -> tuple[str, str, str]:
    """Return what was expected of a folder of answers, what is found there, and the way on."""
    way_on = "name another" if is_done else "--restart forgets it, or name another"
    what = "answers" if is_done else "an unfinished run"
    if begun.settings != plan.settings:
        return f"{what} of the same folder, sets and options", "those of others", way_on
    changed = [each.name for each in {*begun.sources} ^ {*plan.sources}]
    return f"{what} of the files as they are now", f"of others before {shorten(set(changed))} changed", way_on
