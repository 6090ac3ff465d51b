"""A table: columns of cells, in memory or, of large files, on disk.

A table knows its file and its lines, so that whoever finds a bad cell can say where it is. What the cells mean is
not known here.
"""

from __future__ import annotations

import tempfile
import threading
import weakref
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import IO, Any, overload

import msgspec

from registry.errors import DataError, closest, shorten

_PLAIN = (str, int, float, type(None), list, dict)  # what comes back from msgpack as it was


class CellsOnDisk(Sequence[Any]):
    """Cells in a temporary file, read back one at a time; a view of some of them after ``take``.

    The file has no name once it is open and goes with the process. Memory holds where each cell starts, 8 bytes, and 8
    more for each cell of a view.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="adapter-registry-")  # noqa: SIM115 - closed with the last view
        self._starts = array("q", [0])
        self._odd: dict[int, Any] = {}
        self._chosen: Sequence[int] | None = None
        self._lock = threading.Lock()
        weakref.finalize(self._starts, _close, self._file)  # every view holds them

    def extend(self, cells: Iterable[Any]) -> None:
        """Write cells behind those that are there.

        Raises:
            DataError: the disk is full.
        """
        with self._lock:
            try:
                self._file.seek(self._starts[-1])
                for cell in cells:
                    packed = _pack(cell)
                    if packed is None:
                        self._odd[len(self._starts) - 1] = cell
                    self._starts.append(self._starts[-1] + self._file.write(packed or b""))
                self._file.flush()
            except OSError as err:
                expected, hint = "room for the texts of a large file", "TMPDIR names another folder"
                found = err.strerror or str(err)
                raise DataError(tempfile.gettempdir(), "temporary file", expected, found, hint) from err

    def take(self, places: Iterable[int]) -> CellsOnDisk:
        """Return a view of the cells at these places, in this order; both share the file."""
        view = object.__new__(CellsOnDisk)
        view.__dict__ = self.__dict__ | {"_chosen": array("q", [self._place(place) for place in places])}
        return view

    def _place(self, index: int) -> int:
        return index if self._chosen is None else self._chosen[index]

    def __len__(self) -> int:
        return len(self._starts) - 1 if self._chosen is None else len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> CellsOnDisk: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Return a cell as it was written, or a view of several."""
        count = len(self)
        if isinstance(index, slice):
            return self.take(range(*index.indices(count)))
        if not -count <= index < count:
            raise IndexError(index)
        place = self._place(index + count if index < 0 else index)
        start, end = self._starts[place], self._starts[place + 1]
        if start == end:
            return self._odd[place]
        with self._lock:
            self._file.seek(start)
            return msgspec.msgpack.decode(self._file.read(end - start))


def take_cells(cells: Sequence[Any], places: Iterable[int]) -> Sequence[Any]:
    """Return the cells at these places, in this order, kept as the others are: on disk, as numbers or as objects."""
    if isinstance(cells, CellsOnDisk):
        return cells.take(places)
    chosen = (cells[place] for place in places)
    return array(cells.typecode, chosen) if isinstance(cells, array) else tuple(chosen)


def _close(file: IO[bytes]) -> None:
    """Close a file that nobody reads any more; what a full disk did not take has been told of."""
    with suppress(OSError):
        file.close()


def _pack(cell: object) -> bytes | None:
    """Return a cell as bytes, None for what would not come back as it was."""
    if not isinstance(cell, _PLAIN):
        return None
    try:
        return msgspec.msgpack.encode(cell)
    except (TypeError, OverflowError, UnicodeEncodeError, RecursionError):
        return None


@dataclass(frozen=True)
class Table:
    """Some columns of one file or Hub split, or of a chunk of its rows.

    Attributes:
        source: the file, or what else messages should call it.
        names: all columns there are, those not wanted too.
        columns: the cells of those wanted columns that there are.
        lines: the line where each row starts, counted from 1; None where the source has no lines.
        first: the number of the first row, counted from 0.
        class_names: of columns that the file says hold class numbers.
    """

    source: str
    names: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int] | None = None
    first: int = 0
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def column(self, name: str) -> Sequence[Any]:
        """Return the cells of one column.

        Raises:
            DataError: there is no such column, or there are two.
        """
        if self.names.count(name) > 1:
            raise DataError(self.source, "columns", f"one column '{name}'", f"'{name}' twice")
        if name not in self.columns:
            hint = closest(name, self.names)
            raise DataError(self.source, "columns", f"a column '{name}'", shorten(self.names, 9), hint)
        return self.columns[name]

    def place(self, row: int) -> str:
        """Return where a row is: its line, counted from 1, or its number, counted from 0."""
        return f"row {self.first + row}" if self.lines is None else f"line {self.lines[row]}"

    def take(self, rows: Sequence[int], source: str) -> Table:
        """Return some of the rows as a table of their own, counted anew."""
        columns = {name: take_cells(cells, rows) for name, cells in self.columns.items()}
        lines = None if self.lines is None else [self.lines[row] for row in rows]
        return Table(source, self.names, columns, lines, class_names=self.class_names)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def join_tables(tables: Iterable[Table], *, on_disk: bool = False) -> Table:
    """Return the rows of all tables of one source as one; there is at least one, and its columns count."""
    parts = iter(tables)
    first = next(parts)
    columns: dict[str, list[Any] | CellsOnDisk] = {name: CellsOnDisk() if on_disk else [] for name in first.columns}
    lines = None if first.lines is None else array("q")
    for part in chain([first], parts):
        for name, cells in columns.items():
            cells.extend(part.columns.get(name) or [None] * len(part))
        if lines is not None:
            lines.extend(part.lines or ())
    return Table(first.source, first.names, columns, lines, class_names=first.class_names)
