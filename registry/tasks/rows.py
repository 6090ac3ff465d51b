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
import itertools
import json
import random
import string
import sys
import unicodedata
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from registry.errors import DataError
from registry.tasks.cells import CellsOnDisk, Table, take_cells
from registry.tasks.labels import BadCellError, LabelReader
from registry.tasks.spec import TaskSpec
from registry.validation import require


@dataclass(frozen=True)
class Rows:
    """Rows of one split, in order.

    Attributes:
        texts: the first or only text of each row.
        pairs: the second texts, None for a task on single texts.
        labels: class indices; for multi_label 0 or 1 for each class; for regression numbers.
        row_numbers: index of each row in its split, from 0.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: tuple[Any, ...]
    row_numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> Rows:
        """Return the rows at these positions, in the order given."""
        order = array("q", indices)
        return Rows(
            texts=take_cells(self.texts, order),
            pairs=None if self.pairs is None else take_cells(self.pairs, order),
            labels=tuple(self.labels[index] for index in order),
            row_numbers=take_cells(self.row_numbers, order),
        )

    @property
    def on_disk(self) -> bool:
        """Return whether the texts are too many to be held in memory."""
        return isinstance(self.texts, CellsOnDisk)

    def fingerprint(self) -> str:
        """Return the SHA-256 over texts, pairs and labels in order, as JSON lines."""
        digest = hashlib.sha256()
        for index, (text, label) in enumerate(zip(self.texts, self.labels, strict=True)):
            pair = None if self.pairs is None else self.pairs[index]
            digest.update(json.dumps([text, pair, label]).encode() + b"\n")
        return digest.hexdigest()


def shuffled(count: int, seed: int) -> array[int]:
    """Return 0 to ``count`` - 1 in an order that the seed alone decides."""
    order = array("q", range(count))
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


def hold_out(rows: Rows, share: float, seed: int, stratify: bool, *, by_text: bool = False) -> tuple[Rows, Rows]:
    """Return the kept and the held-out rows, both in their old order, the same for the same seed.

    Args:
        rows: at least two of some label if ``stratify``.
        share: fraction of the rows to hold out.
        seed: decides which.
        stratify: hold out that share of every label, always keeping a row of each; labels are class indices.
        by_text: keep rows of the same normalised text on one side, whose label is then that of the first one drawn.

    Raises:
        ConfigError: the share leaves no rows on one side.
    """
    (texts,) = _number_texts(rows) if by_text else (numpy.arange(len(rows)),)  # (R,) rows of one number stay together
    order = numpy.array(shuffled(len(rows), seed))
    numbers, first = numpy.unique(texts[order], return_index=True)
    drawn = numbers[numpy.argsort(first)]  # the texts as they are drawn
    labels = numpy.array(rows.labels)[order[numpy.sort(first)]] if stratify else numpy.zeros(len(drawn), dtype=int)
    sizes = numpy.bincount(texts)
    held = numpy.zeros(len(sizes), dtype=bool)
    due = 0.0
    for label in numpy.unique(labels):
        alike = drawn[labels == label]
        due += share * int(sizes[alike].sum())  # what rounding leaves over goes to the next label
        wanted, taken = round(due), 0
        for text in alike[:-1].tolist():
            if taken + sizes[text] <= wanted:
                held[text] = True
                taken += int(sizes[text])
        due -= taken
    if not held.any() and round(share * len(rows)):  # every text stands in more rows than were to be held out
        spare = numpy.concatenate([drawn[labels == label][:-1] for label in dict.fromkeys(labels.tolist())])
        held[spare[numpy.argsort(sizes[spare], kind="stable")[:1]]] = True
    require(bool(held.any()), "held_out", "a share that leaves rows on both sides", f"{share} of {len(rows)} rows")
    return rows.take(numpy.flatnonzero(~held[texts])), rows.take(numpy.flatnonzero(held[texts]))


def count_repeated(rows: Rows) -> int:
    """Return how many rows have the normalised text of an earlier one."""
    (texts,) = _number_texts(rows)
    return len(rows) - len(numpy.unique(texts))


def rows_from_table(table: Table, spec: TaskSpec, *, by_place: bool = True) -> Rows:
    """Return the rows of a table that the task takes, every cell checked.

    Rows with a label to be ignored are left out, and so are those without a text or label where the task says so; the
    others keep their numbers.

    Args:
        table: has the columns of ``spec``.
        spec: with its label names.
        by_place: whether a number may mean the class of that place, where names are no numbers.

    Raises:
        DataError: a missing column, or a text or label that cannot be used, at the first row that has one.
    """
    columns = [table.column(name) for name in spec.text_columns]
    reader = LabelReader(table, spec, by_place)
    kept, labels = array("q"), []
    bad: list[tuple[int, str, BadCellError]] = []
    for row in range(len(table)):
        column = spec.label_column
        try:
            label = reader.read(row)
            if label is None:
                continue
            for name, cells in zip(spec.text_columns, columns, strict=True):
                column = name
                check_text(cells[row])
        except BadCellError as err:
            bad.append((row, column, err))
        else:
            kept.append(row)
            labels.append(label)
    if bad and not spec.reading.skip_bad_rows:
        raise _bad_rows(table, bad)
    reader.check_known()
    if not kept:
        raise DataError(table.source, "content", "at least one row with a text and a label", "none")
    texts = [take_cells(cells, kept) for cells in columns]
    numbers = array("q", (table.first + row for row in kept))
    on_disk = isinstance(texts[0], CellsOnDisk)
    return Rows(texts[0], texts[1] if spec.pair else None, tuple(labels), numbers if on_disk else tuple(numbers))


def unlabelled_rows(table: Table, spec: TaskSpec) -> Rows:
    """Return all rows of a table whose labels nobody looks at: 0 stands for each.

    Raises:
        DataError: no rows, a missing column, or a text that cannot be used.
    """
    columns = [table.column(name) for name in spec.text_columns]
    for name, cells in zip(spec.text_columns, columns, strict=True):
        for row, cell in enumerate(cells):
            try:
                check_text(cell)
            except BadCellError as err:
                raise _bad_rows(table, [(row, name, err)]) from err
    if not len(table):
        raise DataError(table.source, "content", "at least one row", "none")
    texts = [take_cells(cells, range(len(table))) for cells in columns]
    return Rows(texts[0], texts[1] if spec.pair else None, (0,) * len(table), tuple(range(len(table))))


def check_text(cell: object) -> None:
    """Refuse a cell that is no text, an empty one, or one with half a character.

    Raises:
        BadCellError: it is.
    """
    if not isinstance(cell, str):
        found = "null" if cell is None else f"a {type(cell).__name__}"
    elif not cell.strip():
        found = "an empty one"
    elif not cell.isascii() and any("\ud800" <= letter <= "\udfff" for letter in cell):
        found = "half a character (a lone surrogate)"
    else:
        return
    raise BadCellError("a text", found)


def _bad_rows(table: Table, bad: Sequence[tuple[int, str, BadCellError]]) -> DataError:
    row, column, first = bad[0]
    count = len(bad)
    others = (
        f", and {count - 1:,} more row{'s' if count > 2 else ''} of {len(table):,} cannot be used" if count > 1 else ""
    )
    which = "such rows" if count > 1 else "it"
    hint = first.hint or f"--skip-bad-rows leaves {which} out and counts {'them' if count > 1 else 'it'}"
    return DataError(table.source, f"{table.place(row)}, column '{column}'", first.expected, first.found + others, hint)


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
    texts = _number_texts(train, reported)
    common = numpy.intersect1d(texts[0], texts[1])
    found = (
        tuple(numpy.asarray(rows.row_numbers)[numpy.isin(own, common)].tolist())
        for rows, own in zip((train, reported), texts, strict=True)
    )
    return Overlap(*found)


def normalise(text: str) -> str:
    """Return the text in NFKC and lower case, with single spaces and no punctuation; all punctuation stays as it is."""
    plain = (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()
    bare = " ".join(plain.translate(_punctuation()).split())
    return bare or " ".join(plain.split())


def _number_texts(*parts: Rows) -> list[NDArray[numpy.int64]]:
    """Return a number for each row of each part, the same for the same normalised text or two texts in any order."""
    digests = bytearray()
    for rows in parts:
        for text, pair in zip(rows.texts, rows.pairs or itertools.repeat(None), strict=rows.pairs is not None):
            both = [normalise(text)] if pair is None else [normalise(text), normalise(pair)]
            for each in sorted(map(_digest, both)):
                digests += each
    width = 1 if parts[0].pairs is None else 2
    words = numpy.frombuffer(digests, dtype=numpy.uint64).reshape(-1, width * _DIGEST_BYTES // 8)
    count = len(words)
    order = numpy.lexsort(words.T)
    starts = numpy.ones(count, dtype=bool)  # whether a row's text is another than that of the row before it
    starts[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    numbers = numpy.empty(count, dtype=numpy.int64)
    numbers[order] = numpy.cumsum(starts) - 1
    return numpy.split(numbers, numpy.cumsum([len(rows) for rows in parts])[:-1])


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


@functools.cache
def _punctuation() -> Mapping[int, None]:
    """Return what ``str.translate`` deletes: ASCII's 32 marks, and all that Unicode calls punctuation."""
    marks = (code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("P"))
    return dict.fromkeys([*map(ord, string.punctuation), *marks])
