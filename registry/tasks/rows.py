"""Labelled rows of one split: what they are, which ones are taken, and how table cells become them.

Every text and label is checked here, once, with its file, place and column named; whoever gets rows can rely on
them. Where the tables come from is not known here.

Which rows of one split also stand in another: equal texts, whatever their case, spacing and punctuation.

Rows are compared by digests of their normalised texts, so tens of thousands of long ones take seconds. Texts that say
the same in other words are not found, and labels are not looked at.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import random
import re
import string
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from registry.errors import DataError, closest, shorten
from registry.tasks.spec import TaskSpec
from registry.tasks.tables import Table
from registry.validation import require

_WHOLE_NUMBER = re.compile(r"-?[0-9]+")
_SEPARATOR = "|"


@dataclass(frozen=True)
class Rows:
    """Rows of one split, in order.

    Attributes:
        texts: the first or only text of each row.
        pairs: the second texts, None for a task on single texts.
        labels: class indices; for multi_label 0 or 1 for each class; for regression numbers.
        row_numbers: index of each row in its split, from 0.
    """

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[Any, ...]
    row_numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> Rows:
        """Return the rows at these positions, in the order given."""
        order = tuple(indices)
        return Rows(
            texts=tuple(self.texts[index] for index in order),
            pairs=None if self.pairs is None else tuple(self.pairs[index] for index in order),
            labels=tuple(self.labels[index] for index in order),
            row_numbers=tuple(self.row_numbers[index] for index in order),
        )

    def fingerprint(self) -> str:
        """Return the SHA-256 over texts, pairs and labels in order, as JSON lines."""
        digest = hashlib.sha256()
        for index, (text, label) in enumerate(zip(self.texts, self.labels, strict=True)):
            pair = None if self.pairs is None else self.pairs[index]
            digest.update(json.dumps([text, pair, label]).encode() + b"\n")
        return digest.hexdigest()


def shuffled(count: int, seed: int) -> list[int]:
    """Return 0 to ``count`` - 1 in an order that the seed alone decides."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def limit_rows(rows: Rows, limit: int | None, seed: int) -> Rows:
    """Return ``limit`` rows drawn by the seed, in their old order; a larger limit keeps those of a smaller one."""
    if limit is None or limit >= len(rows):
        return rows
    return rows.take(sorted(shuffled(len(rows), seed)[:limit]))


def limit_further(rows: Rows, limit: int, seed: int, available: int) -> Rows:
    """Return of already limited rows those that ``limit_rows`` draws with a smaller limit from all there were.

    Args:
        rows: what ``limit_rows`` returned.
        limit: at most as many as ``rows``.
        seed: as it was then.
        available: how many rows there were before any limit.
    """
    order = shuffled(available, seed)
    chosen = set(order[:limit])
    return rows.take(index for index, position in enumerate(sorted(order[: len(rows)])) if position in chosen)


def hold_out(rows: Rows, share: float, seed: int, stratify: bool) -> tuple[Rows, Rows]:
    """Return the kept and the held-out rows, both in their old order, the same for the same seed.

    Args:
        rows: at least two of some label if ``stratify``.
        share: fraction of the rows to hold out.
        seed: decides which.
        stratify: hold out that share of every label, always keeping a row of each; labels are class indices.

    Raises:
        ConfigError: the share leaves no rows on one side.
    """
    groups: dict[Any, list[int]] = {}
    for index in shuffled(len(rows), seed):
        groups.setdefault(rows.labels[index] if stratify else 0, []).append(index)
    held: set[int] = set()
    due = 0.0
    for label in sorted(groups):
        due += share * len(groups[label])  # what rounding leaves over goes to the next label
        taken = min(round(due), len(groups[label]) - 1)
        held.update(groups[label][:taken])
        due -= taken
    require(bool(held), "held_out", "a share that leaves rows on both sides", f"{share} of {len(rows)} rows")
    return rows.take(index for index in range(len(rows)) if index not in held), rows.take(sorted(held))


def find_label_names(table: Table, spec: TaskSpec) -> tuple[str, ...]:
    """Return the distinct labels of a table, sorted, whole numbers by value; for regression the column's name.

    Raises:
        DataError: a cell without a label, or with one that cannot name a class.
    """
    if spec.problem_type == "regression":
        return (spec.label_column,)
    names: set[str] = set()
    for row, cell in enumerate(table.column(spec.label_column)):
        cells = _split_labels(table, row, spec, cell) if spec.problem_type == "multi_label" else [cell]
        names.update(_label_name(table, row, spec, one) for one in cells)
    least = 1 if spec.problem_type == "multi_label" else 2
    if len(names) < least:
        expected = f"at least {least} different labels to train on"
        raise DataError(table.source, f"column '{spec.label_column}'", expected, shorten(names))
    whole = all(_WHOLE_NUMBER.fullmatch(name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if whole else 0, name)))


def rows_from_table(table: Table, spec: TaskSpec) -> Rows:
    """Return all rows of a table, every cell checked.

    Args:
        table: has the columns of ``spec``.
        spec: with its label names.

    Raises:
        DataError: a missing column, or a text or label that cannot be used.
    """
    texts = [_read_texts(table, name) for name in spec.text_columns]
    labels = _read_labels(table, spec)
    return Rows(texts[0], texts[1] if spec.pair else None, labels, tuple(range(len(labels))))


def _read_texts(table: Table, name: str) -> tuple[str, ...]:
    cells = table.column(name)
    for row, cell in enumerate(cells):
        if not isinstance(cell, str):
            found = "null" if cell is None else f"a {type(cell).__name__}"
        elif not cell.strip():
            found = "an empty one"
        elif not cell.isascii() and any("\ud800" <= letter <= "\udfff" for letter in cell):
            found = "half a character (a lone surrogate)"
        else:
            continue
        raise DataError(table.source, f"{table.place(row)}, column '{name}'", "a text", found)
    return tuple(cells)


def _read_labels(table: Table, spec: TaskSpec) -> tuple[Any, ...]:
    cells = table.column(spec.label_column)
    if spec.problem_type == "regression":
        return tuple(_number(table, row, spec, cell) for row, cell in enumerate(cells))
    classes = _class_numbers(spec.label_names or ())
    if spec.problem_type == "classification":
        return tuple(_class_number(table, row, spec, cell, classes) for row, cell in enumerate(cells))
    count = len(spec.label_names or ())
    labels = []
    for row, cell in enumerate(cells):
        split = _split_labels(table, row, spec, cell)
        present = {_class_number(table, row, spec, one, classes) for one in split}
        labels.append(tuple(int(index in present) for index in range(count)))
    return tuple(labels)


def _class_numbers(names: Sequence[str]) -> dict[str, int]:
    """Return the class index of every spelling of a label: its name, and its index unless names are numbers."""
    numbers = {} if any(map(_WHOLE_NUMBER.fullmatch, names)) else {str(n): n for n in range(len(names))}
    return numbers | {name: index for index, name in enumerate(names)}


def _class_number(table: Table, row: int, spec: TaskSpec, cell: object, classes: dict[str, int]) -> int:
    name = _label_name(table, row, spec, cell)
    if name in classes:
        return classes[name]
    if name == "-1":  # how the Hub marks rows whose labels are kept secret
        raise _label_error(table, row, spec, "a label", "-1, an unlabelled row", "choose a labelled split")
    names = spec.label_names or ()
    hint = closest(name, names)
    raise _label_error(table, row, spec, f"a label seen in training ({shorten(names)})", f"'{name}'", hint)


def _label_name(table: Table, row: int, spec: TaskSpec, cell: object) -> str:
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():  # whole numbers become floats where a column has gaps
        return str(int(cell))
    if isinstance(cell, int):
        return str(cell)
    if isinstance(cell, str) and cell.strip():
        return cell.strip()
    if cell is None or isinstance(cell, str) or (isinstance(cell, float) and math.isnan(cell)):
        raise _label_error(table, row, spec, "a label", "none, an unlabelled row", "leave unlabelled rows out")
    raise _label_error(table, row, spec, "a class name or whole number", repr(cell)[:80])


def _split_labels(table: Table, row: int, spec: TaskSpec, cell: object) -> list[Any]:
    if isinstance(cell, list):
        return cell
    if isinstance(cell, str):
        return [part for part in cell.split(_SEPARATOR) if part.strip()]
    expected = f"a list of labels, or a text with {_SEPARATOR} between them"
    raise _label_error(table, row, spec, expected, "null" if cell is None else repr(cell)[:80])


def _number(table: Table, row: int, spec: TaskSpec, cell: object) -> float:
    try:
        number = float(cell) if isinstance(cell, (int, float, str)) and not isinstance(cell, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _label_error(table, row, spec, "a finite number", "null" if cell is None else repr(cell)[:80])
    return number


def _label_error(table: Table, row: int, spec: TaskSpec, expected: str, found: str, hint: str = "") -> DataError:
    return DataError(table.source, f"{table.place(row)}, column '{spec.label_column}'", expected, found, hint)


_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Overlap:
    """Rows whose texts stand in both splits, as row numbers of their own split."""

    train: tuple[int, ...]
    reported: tuple[int, ...]


def find_overlap(train: Rows, reported: Rows) -> Overlap:
    """Return the rows of either split whose normalised text also stands in the other.

    A pair stands in the other split if both its texts do so together, in either order.
    """
    keys = _keys(train), _keys(reported)
    common = set(keys[0]).intersection(keys[1])
    found = (
        tuple(number for number, key in zip(rows.row_numbers, own, strict=True) if key in common)
        for rows, own in zip((train, reported), keys, strict=True)
    )
    return Overlap(*found)


def normalise(text: str) -> str:
    """Return the text in NFKC and lower case, with single spaces and no punctuation; all punctuation stays as it is."""
    plain = (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()
    bare = " ".join(plain.translate(_punctuation()).split())
    return bare or " ".join(plain.split())


def _keys(rows: Rows) -> list[bytes]:
    texts = [normalise(text) for text in rows.texts]
    if rows.pairs is None:
        return [_digest(text) for text in texts]
    pairs = [normalise(text) for text in rows.pairs]
    return [b"".join(sorted(map(_digest, both))) for both in zip(texts, pairs, strict=True)]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


@functools.cache
def _punctuation() -> Mapping[int, None]:
    """Return what ``str.translate`` deletes: ASCII's 32 marks, and all that Unicode calls punctuation."""
    marks = (code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("P"))
    return dict.fromkeys([*map(ord, string.punctuation), *marks])
