"""Files with a separator between the cells of a line: which separator, what quotation marks mean, and the rows.

The rows are cut by Python's csv module, strictly. What is not said is found by looking, and nothing is guessed where a
wrong guess would change rows: such files are refused with the option that decides.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from registry.errors import DataError
from registry.schema import Reading
from registry.tasks.files import open_text

SEPARATORS = {".csv": ",;\t|", ".tsv": "\t,;|", ".txt": "\t;,|"}  # in the order in which they are tried
MOST_CHARACTERS = 1 << 24  # of a cell; a quotation mark that is never closed would else take the rest of the file
_LOOKED_AT = 100  # lines
_SPELLED = {"\t": "tab", " ": "space"}

csv.field_size_limit(MOST_CHARACTERS)  # of the whole process: the module has no other way


def read_delimited(
    path: Path, wanted: Sequence[str], reading: Reading, ending: str
) -> tuple[tuple[str, ...], Iterator[tuple[int, list[str]]]]:
    """Return the names of the columns, and the rows with the line, from 1, where each starts.

    Without a header the columns are called 0, 1, 2 and so on.

    Raises:
        DataError: no text, or rows that are not as wide as the first line, now or while the rows are taken.
    """
    separator = reading.sep or _find_separator(path, wanted, reading, SEPARATORS[ending])
    quoted = (
        reading.quoting == "minimal" if reading.quoting else separator != "\t" or _quotes_whole_cells(path, reading)
    )
    rows = _rows(path, reading, separator, quoted)
    first = next(rows, None)
    if first is None:
        raise DataError(path, "content", "at least one row", "none")
    if reading.header:
        return tuple(name.strip() for name in first[1]), rows
    return tuple(map(str, range(len(first[1])))), _chain(first, rows)


def _chain(first: tuple[int, list[str]], rest: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    yield first
    yield from rest


def _find_separator(path: Path, wanted: Sequence[str], reading: Reading, tried: str) -> str:
    """Return the first separator that gives the wanted columns, else that of the file's ending."""
    with open_text(path, reading.encoding, newline="") as text:
        lines = [line for line in islice(text, _LOOKED_AT) if line.strip()]
    if reading.header:
        if not wanted:
            return max(tried, key=lambda each: len(_first_names(lines, each)))
        fits = [each for each in tried if set(wanted) <= set(_first_names(lines, each))]
        return fits[0] if fits else tried[0]
    fits = [each for each in tried if _widths(lines, each).isdisjoint({0, 1}) and len(_widths(lines, each)) == 1]
    if len(fits) > 1:
        told = " and ".join(_SPELLED.get(each, f"'{each}'") for each in fits)
        raise DataError(path, "separator", "one that cuts all lines alike", told, "choose one with --sep")
    return fits[0] if fits else tried[0]


def _first_names(lines: list[str], separator: str) -> list[str]:
    return [name.strip() for name in next(_cut(lines[:1], separator), [])]


def _widths(lines: list[str], separator: str) -> set[int]:
    return {len(row) for row in _cut(lines, separator)}


def _cut(lines: list[str], separator: str) -> Iterator[list[str]]:
    return iter(csv.reader(lines, delimiter=separator, quoting=_quoting(separator != "\t")))


def _quoting(quoted: bool) -> Literal[0, 3]:
    return csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE


def _quotes_whole_cells(path: Path, reading: Reading) -> bool:
    """Return whether every quotation mark of a tab file stands around a whole cell, doubled inside of it."""
    try:
        return all(_has_whole_quotes(line) for _, _, line in _cut_rows(path, reading, "\t", quoted=True))
    except DataError:
        return False


def _has_whole_quotes(line: str) -> bool:
    """Return whether the marks of a line are such; of a row of several lines the strict reader knows."""
    if '"' not in line or "\n" in line[:-1]:
        return True
    cells = [cell for cell in line.rstrip("\r\n").split("\t") if '"' in cell]
    return all(len(cell) >= 2 and cell[0] == cell[-1] == '"' for cell in cells) and all(
        '"' not in cell[1:-1].replace('""', "") for cell in cells
    )


def _rows(path: Path, reading: Reading, separator: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a file, the first line among them, each as wide as that, with the line where it starts."""
    return ((start, row) for start, row, _ in _cut_rows(path, reading, separator, quoted))


def _cut_rows(path: Path, reading: Reading, separator: str, quoted: bool) -> Iterator[tuple[int, list[str], str]]:
    """Yield what ``_rows`` does, and what each row was cut from."""
    with open_text(path, reading.encoding, newline="") as text:
        seen: list[str] = []  # the lines of the row that is being cut
        reader = csv.reader(_remember(text, seen), delimiter=separator, quoting=_quoting(quoted), strict=True)
        start, width = 1, 0
        while True:
            seen.clear()
            try:
                row = next(reader, None)
            except csv.Error as err:
                raise _no_row(path, start, str(err), quoted) from err
            if row is None:
                return
            if row:
                width = width or len(row)
                if len(row) != width:
                    hint = _about_width(separator, quoted, width, len(row))
                    expected = f"{width} {'field' if width == 1 else 'fields'}, as in the first line"
                    raise DataError(path, f"line {start}", expected, str(len(row)), hint)
                if len(seen) > 1 and width > 1 and reading.quoting is None:
                    _refuse_swallowed(path, start, seen, separator, width)
                yield start, row, "".join(seen)
            start = reader.line_num + 1


def _remember(lines: Iterator[str], seen: list[str]) -> Iterator[str]:
    for line in lines:
        seen.append(line)
        yield line


def _no_row(path: Path, line: int, found: str, quoted: bool) -> DataError:
    if quoted:
        expected = "quotation marks around whole cells, doubled inside them"
        return DataError(path, f"line {line}", expected, found, "--quoting none takes them as letters")
    return DataError(path, f"line {line}", f"cells of at most {MOST_CHARACTERS:,} characters", found)


def _about_width(separator: str, quoted: bool, width: int, found: int) -> str:
    if width == 1 or found == 1:
        return f"--sep names another separator than {_SPELLED.get(separator, separator)}"
    return "" if quoted else "--quoting minimal takes quotation marks as those around a cell"


def _refuse_swallowed(path: Path, start: int, lines: list[str], separator: str, width: int) -> None:
    """Refuse a quoted cell over several lines each of which looks like a row: it may have swallowed them.

    Raises:
        DataError: every line by itself has as many cells as a row.
    """
    if all(line.count(separator) == width - 1 for line in lines):
        expected = "one row on each line, as every one has the right number of cells"
        found = f"a quotation mark that takes lines {start} to {start + len(lines) - 1} as one row"
        hint = "--quoting none takes quotation marks as letters, --quoting minimal takes the lines as one row"
        raise DataError(path, f"line {start}", expected, found, hint)
