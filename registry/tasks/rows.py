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
import random
import string
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from registry.errors import DataError
from registry.tasks.labels import BadCellError, LabelReader
from registry.tasks.spec import TaskSpec
from registry.tasks.tables import Table
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
    keys: Sequence[Any] = _keys(rows) if by_text else range(len(rows))
    alike: dict[Any, list[int]] = {}  # rows that stay together
    groups: dict[Any, list[Any]] = {}
    for index in shuffled(len(rows), seed):
        if keys[index] not in alike:
            groups.setdefault(rows.labels[index] if stratify else 0, []).append(keys[index])
        alike.setdefault(keys[index], []).append(index)
    held: set[int] = set()
    due = 0.0
    for label in sorted(groups):
        due += share * sum(len(alike[key]) for key in groups[label])  # what rounding leaves over goes to the next label
        wanted, taken = round(due), 0
        for key in groups[label][:-1]:
            if taken + len(alike[key]) <= wanted:
                held.update(alike[key])
                taken += len(alike[key])
        due -= taken
    if not held and round(share * len(rows)):  # every text stands in more rows than were to be held out
        spare = [alike[key] for keys in groups.values() for key in keys[:-1]]
        held.update(min(spare, key=lambda one: len(list(one)), default=[]))
    require(bool(held), "held_out", "a share that leaves rows on both sides", f"{share} of {len(rows)} rows")
    return rows.take(index for index in range(len(rows)) if index not in held), rows.take(sorted(held))


def count_repeated(rows: Rows) -> int:
    """Return how many rows have the normalised text of an earlier one."""
    return len(rows) - len(set(_keys(rows)))


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
    labels: dict[int, Any] = {}
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
            labels[row] = label
        except BadCellError as err:
            bad.append((row, column, err))
    if bad and not spec.reading.skip_bad_rows:
        raise _bad_rows(table, bad)
    reader.check_known()
    if not labels:
        raise DataError(table.source, "content", "at least one row with a text and a label", "none")
    kept = tuple(labels)
    texts = [tuple(cells[row] for row in kept) for cells in columns]
    numbers = tuple(table.first + row for row in kept)
    return Rows(texts[0], texts[1] if spec.pair else None, tuple(labels.values()), numbers)


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
    texts = [tuple(cells) for cells in columns]
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
