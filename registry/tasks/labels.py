"""What the cells of a label column mean to a task that knows its labels: one class, several, or a number."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from registry.errors import DataError, closest, shorten
from registry.tasks.cells import Table
from registry.tasks.spec import TaskSpec

MOST_NAME = 80  # letters of a label that a message shows
WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]{0,17}))(?:\.0+)?")


class BadCellError(Exception):
    """A cell that cannot be used: what was expected, and what is there."""

    def __init__(self, expected: str, found: str, hint: str = "") -> None:
        self.expected, self.found, self.hint = expected, found, hint


class NoLabelError(BadCellError):
    """A cell that is empty."""

    def __init__(self, expected: str = "a label") -> None:
        super().__init__(expected, "none, an unlabelled row")


def spell(cell: object) -> str:
    """Return the name of the class that a cell holds.

    Raises:
        NoLabelError: it holds nothing.
        BadCellError: it holds no class.
    """
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():  # whole numbers become floats where a column has gaps
        return str(int(cell))
    if isinstance(cell, int):
        return str(cell)
    if isinstance(cell, str) and cell.strip():
        return cell.strip()
    if cell is None or isinstance(cell, str) or (isinstance(cell, float) and math.isnan(cell)):
        raise NoLabelError
    raise BadCellError("a class name or whole number", repr(cell)[:MOST_NAME])


def shorten_names(names: Iterable[str]) -> list[str]:
    """Return names as a message shows them, each cut where it is long."""
    return [name if len(name) <= MOST_NAME else f"{name[:MOST_NAME]}…" for name in names]


def canonical(name: str) -> str:
    """Return the one spelling of whole numbers and booleans: ``1`` for 1.0, ``true`` for True."""
    whole = WHOLE.fullmatch(name)
    if whole:
        return "0" if whole[1] == "-0" else whole[1]
    return name.lower() if name.lower() in ("true", "false") else name


class Classes:
    """The classes of a task by every spelling that means one of them."""

    def __init__(self, names: Sequence[str], by_place: bool = True) -> None:
        self.names = tuple(names)
        numbers = {} if not by_place or any(map(WHOLE.fullmatch, names)) else {str(n): n for n in range(len(names))}
        plain = Counter(map(canonical, names))
        alike = {canonical(name): index for index, name in enumerate(names) if plain[canonical(name)] == 1}
        self._index = numbers | alike | {name: index for index, name in enumerate(names)}

    def find(self, name: str) -> int | None:
        """Return the index of the class that a name means, None where there is none."""
        return self._index.get(name, self._index.get(canonical(name)))


def split(cell: object, spec: TaskSpec) -> list[Any]:
    """Return the labels of a multi-label cell, or its 0 and 1 for each of them.

    Raises:
        BadCellError: neither a list nor a text.
    """
    if isinstance(cell, list | tuple):
        return list(cell)
    if isinstance(cell, str) and cell.strip().startswith("["):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(cell)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(found, list):
                return found
        raise BadCellError("a list of labels", repr(cell)[:MOST_NAME])
    if isinstance(cell, str):
        return [part for part in cell.split(spec.reading.label_sep or "|") if part.strip()]
    expected = f"a list of labels, or a text with {spec.reading.label_sep or '|'} between them"
    raise BadCellError(expected, "null" if cell is None else repr(cell)[:MOST_NAME])


def holds_vectors(table: Table, spec: TaskSpec) -> bool:
    """Return whether every cell is as long a list of 0 and 1, one for each label."""
    length = len(spec.label_names) if spec.label_names is not None else None
    for cell in table.column(spec.label_column):
        try:
            parts = split(cell, spec) if not isinstance(cell, str) or cell.strip().startswith("[") else []
        except BadCellError:
            continue
        length = len(parts) if length is None else length
        bits = all(isinstance(each, int | float) and each in (0, 1) for each in parts)
        if len(parts) != length or length < 2 or not bits:
            return False
    return length is not None


class LabelReader:
    """The labels of a table's rows, as a task with its label names takes them.

    Attributes:
        unknown: labels that the task does not have, with the rows that have them.
    """

    def __init__(self, table: Table, spec: TaskSpec, by_place: bool = True) -> None:
        self.spec, self.table = spec, table
        self.classes = Classes(spec.label_names or (), by_place)
        self.ignored = {canonical(name) for name in spec.reading.ignore_labels}
        several = spec.problem_type == "multi_label" and not spec.label_columns
        self.vectors = several and holds_vectors(table, spec)
        self.unknown: dict[str, list[int]] = {}
        columns = spec.label_columns or (spec.label_column,)
        self.cells = [table.column(name) for name in columns]
        given = table.class_names.get(spec.label_column, ())
        self.given = given if set(given) == set(self.classes.names) else ()  # what the data set calls its numbers

    def read(self, row: int) -> Any:
        """Return the label of one row: a class, zeros and ones, or a number; None where it is to be ignored.

        Raises:
            BadCellError: it has none that can be used.
        """
        if self.spec.label_columns:
            return tuple(_zero_or_one(cells[row]) for cells in self.cells)
        cell = self.cells[0][row]
        if self.spec.problem_type == "regression":
            return None if self._is_ignored(cell) else _number(cell)
        if self.spec.problem_type == "classification":
            is_number = isinstance(cell, int) and 0 <= cell < len(self.given)
            name = self.given[cell] if is_number else spell(cell)
            return None if canonical(name) in self.ignored else self._class(name, row)
        parts = split(cell, self.spec)
        if self.vectors:
            return tuple(int(part) for part in parts)
        names = [spell(part) for part in parts]
        if len(set(names)) < len(names) and set(names) <= {"0", "1"}:
            raise BadCellError("distinct labels, or as many of 0 and 1 in every row", repr(cell)[:MOST_NAME])
        present = {self._class(name, row) for name in names if canonical(name) not in self.ignored}
        return tuple(int(index in present) for index in range(len(self.classes.names)))

    def _is_ignored(self, cell: object) -> bool:
        return bool(self.ignored) and cell is not None and canonical(str(cell).strip()) in self.ignored

    def _class(self, name: str, row: int) -> int:
        index = self.classes.find(name)
        if index is None:
            self.unknown.setdefault(name, []).append(row)
            return -1
        return index

    def check_known(self) -> None:
        """Refuse labels that the task does not have, by name and count.

        Raises:
            DataError: there are some.
        """
        if not self.unknown:
            return
        rows = {name: len(there) for name, there in self.unknown.items()}
        told = ", ".join(f"'{shorten_names([name])[0]}' in {count:,} rows" for name, count in list(rows.items())[:3])
        more = f" and {len(rows) - 3} more labels" if len(rows) > 3 else ""
        first = next(iter(self.unknown))
        place = self.table.place(self.unknown[first][0])
        known = shorten(shorten_names(self.classes.names))
        name = shorten_names([first])[0]
        hint = closest(first[:MOST_NAME], self.classes.names) or f"--ignore-label {name} leaves such rows out"
        if first == "-1":  # how the Hub marks rows whose labels are kept secret
            hint = "-1 marks rows without a label: choose a labelled split, or give --ignore-label -1"
        field = f"{place}, column '{self.spec.label_column}'"
        found = told.replace(" in 1 rows", " in 1 row") + more
        raise DataError(self.table.source, field, f"a label seen in training ({known})", found, hint)


def _zero_or_one(cell: object) -> int:
    name = canonical(spell(cell))
    values: Mapping[str, int] = {"0": 0, "1": 1, "false": 0, "true": 1}
    if name not in values:
        raise BadCellError("0 or 1", repr(cell)[:MOST_NAME])
    return values[name]


def _number(cell: object) -> float:
    try:
        number = float(cell) if isinstance(cell, (int, float, str)) and not isinstance(cell, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadCellError("a finite number", "null" if cell is None else repr(cell)[:MOST_NAME])
    return number
