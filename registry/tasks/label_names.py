"""Which labels a task has, found in its training rows, and in which order.

One class has one spelling, whatever the format: 1.0 is 1 and True is true where the whole column is so. A column that
looks like something else than it is taken for is refused with the option that decides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from registry.errors import DataError, shorten
from registry.tasks.cells import Table
from registry.tasks.labels import (
    WHOLE,
    BadCellError,
    Classes,
    NoLabelError,
    canonical,
    holds_vectors,
    shorten_names,
    spell,
    split,
)
from registry.tasks.spec import TaskSpec
from registry.validation import require

NO_LABEL = ("-", "-1", "?", "N/A", "NA", "nan", "NaN", "null", "None")
_USUAL = (("0", "1"), ("false", "true"), ("no", "yes"))  # the positive one last
_SEPARATORS = ("|", ";", ",")
_FEW = 10  # classes that nobody is asked about
_ALONE = 0.25  # of the rows: numbers with more values than that are no classes


@dataclass(frozen=True)
class FoundLabels:
    """A task with the labels of its training rows, and what a reader should know of them."""

    spec: TaskSpec
    remarks: tuple[str, ...] = ()


def find_labels(table: Table, spec: TaskSpec) -> FoundLabels:
    """Return the task with the classes that a table of training rows has, where it names none itself.

    Raises:
        DataError: too few classes, or a column that looks like another problem type or like rows without labels.
        ConfigError: a positive label that is no class.
    """
    if spec.problem_type == "regression":
        return FoundLabels(msgspec.structs.replace(spec, label_names=spec.label_names or (spec.label_column,)))
    if spec.problem_type == "multi_label":
        return _find_sets(table, spec)
    counts = _count(table, spec)
    remarks: list[str] = []
    given = table.class_names.get(spec.label_column)
    names = spec.label_names or given
    if names is None:
        _ask_about(table, spec, counts)
        names = sort_names(counts)
        remarks += _remarks_on(counts)
        if len(names) < 2:
            raise _few(table, spec, names, 2)
    if len(names) == 2:
        names, positive = _with_positive_last(spec, names, {} if given else counts)
        spec = msgspec.structs.replace(spec, positive_label=names[1])
        remarks += positive
    else:
        require(spec.positive_label is None, "positive_label", "none, as there are not two labels", spec.positive_label)
    return FoundLabels(msgspec.structs.replace(spec, label_names=tuple(names)), tuple(remarks))


def _few(table: Table, spec: TaskSpec, names: Sequence[str], least: int) -> DataError:
    expected = f"at least {least} different label{'s' if least > 1 else ''} to train on"
    empty = sum(_is_empty(cell) for cell in table.column(spec.label_column))
    more = f", and {empty:,} row{'s' if empty > 1 else ''} without a label" if empty else ""
    return DataError(table.source, f"column '{spec.label_column}'", expected, shorten(shorten_names(names)) + more)


def _is_empty(cell: object) -> bool:
    try:
        spell(cell)
    except NoLabelError:
        return True
    except BadCellError:
        return False
    return False


def _count(table: Table, spec: TaskSpec) -> Counter[str]:
    """Return how many rows each class of a table has, without rows to be ignored and cells that are no label."""
    spelled: Counter[str] = Counter()
    for cell in table.column(spec.label_column):
        try:
            spelled[spell(cell)] += 1
        except BadCellError:
            continue
    ignored = {canonical(name) for name in spec.reading.ignore_labels}
    spelled = Counter({name: count for name, count in spelled.items() if canonical(name) not in ignored})
    one = unify(spelled)
    counts: Counter[str] = Counter()
    for name, count in spelled.items():
        counts[one[name]] += count
    return counts


def _ask_about(table: Table, spec: TaskSpec, counts: Counter[str]) -> None:
    """Refuse a column of classes that looks like numbers to predict, or has a class that looks like no label."""
    rows, column = counts.total(), f"column '{spec.label_column}'"
    if not spec.problem_type_given and _looks_like_numbers(counts):
        found = f"{len(counts):,} different numbers in {rows:,} rows, which look like a regression"
        hint = "say --problem-type regression, or --problem-type classification"
        raise DataError(table.source, column, "classes", found, hint)
    for name in NO_LABEL:
        if name not in counts or (name == "-1" and not _marks_no_label(counts)):
            continue
        found = f"{counts[name]:,} of {rows:,} rows with label '{name}', which looks like no label"
        hint = f"--ignore-label {name} leaves them out, --labels a,b,… names the labels if it is one"
        raise DataError(table.source, column, "labels", found, hint)


def _looks_like_numbers(counts: Counter[str]) -> bool:
    try:
        numbers = [float(name) for name in counts]
    except ValueError:
        return False
    if any(math.isfinite(number) and not number.is_integer() for number in numbers) and len(numbers) > 2:
        return True
    return len(counts) > max(_FEW, _ALONE * counts.total())


def _marks_no_label(counts: Counter[str]) -> bool:
    """Return whether -1 stands beside classes numbered from 0 and is too rare to be one of them."""
    others = sort_names(name for name in counts if name != "-1")
    numbered = len(others) >= 2 and others == tuple(map(str, range(len(others))))
    return numbered and counts["-1"] < 0.5 * min(counts[name] for name in others)


def _remarks_on(counts: Counter[str]) -> list[str]:
    remarks = []
    once = [name for name, count in counts.items() if count == 1]
    if len(counts) > max(_FEW, counts.total() / 2):
        remarks.append(f"{len(counts):,} labels in {counts.total():,} rows: is this the column of the labels?")
    elif once:
        remarks.append(f"one row alone has label {shorten(shorten_names(once), 3)}, so none of it is held out")
    if "-1" in counts and {"0", "1"} <= counts.keys():
        remarks.append("label '-1' is learned as a class; --ignore-label -1 leaves its rows out")
    return remarks


def _with_positive_last(
    spec: TaskSpec, names: Sequence[str], counts: Mapping[str, int]
) -> tuple[tuple[str, ...], list[str]]:
    """Return the two names with the positive one last, as f1_binary and the logits have it, and why it is that one.

    Names that the task or its data set gives keep their order, which is what numbers in the column count in.
    """
    chosen = spec.positive_label
    if chosen is not None:
        index = Classes(names, by_place=False).find(chosen.strip())
        require(index is not None, "positive_label", f"one of {', '.join(names)}", chosen)
        last = spec.label_names is None or index == 1
        require(last, "positive_label", f"the last of the labels that are named, {names[1]}", chosen)
        return (names[1 - (index or 0)], names[index or 0]), []
    if spec.label_names is not None or not counts:
        return tuple(names), []
    first, second = sorted(names)
    if (first.lower(), second.lower()) in _USUAL:
        return (first, second), []
    if counts[first] < counts[second]:
        first, second = second, first
    why = "the rarer label" if counts[first] != counts[second] else "the last by name, as both are as frequent"
    return (first, second), [f"f1_binary is of '{second}', {why}; --positive-label chooses"]


def _find_sets(table: Table, spec: TaskSpec) -> FoundLabels:
    """Return a multi-label task with its labels and the separator between them."""
    if spec.label_columns:
        return FoundLabels(msgspec.structs.replace(spec, label_names=spec.label_names or spec.label_columns))
    spec, remarks = _with_separator(table, spec)
    vectors = holds_vectors(table, spec)
    names: set[str] = set()
    for cell in table.column(spec.label_column):
        try:
            parts = split(cell, spec)
            names.update(map(str, range(len(parts))) if vectors else map(spell, parts))
        except BadCellError:
            continue
    ignored = {canonical(name) for name in spec.reading.ignore_labels}
    found = sort_names({one for name, one in unify(names).items() if canonical(name) not in ignored})
    if spec.label_names is None and not found:
        raise _few(table, spec, found, 1)
    if vectors and spec.label_names is None:
        remarks += ("each row has a 0 or 1 for every label, called by its place from 0; --labels a,b,… names them",)
    return FoundLabels(msgspec.structs.replace(spec, label_names=spec.label_names or found), remarks)


def _with_separator(table: Table, spec: TaskSpec) -> tuple[TaskSpec, tuple[str, ...]]:
    """Return the task with the separator that stands between the labels of a cell, found by looking.

    Raises:
        DataError: blanks that may stand between labels or inside of them; a single column of 0 and 1.
    """
    cells = [cell.strip() for cell in table.column(spec.label_column) if isinstance(cell, str) and cell.strip()]
    cells = [cell for cell in cells if not cell.startswith("[")]
    if spec.reading.label_sep is not None or not cells:
        return spec, ()
    column = f"column '{spec.label_column}'"
    if {canonical(cell) for cell in cells} <= {"0", "1"}:
        hint = "--label-cols a,b,… takes a column of 0 and 1 for each label"
        raise DataError(table.source, column, "the labels of each row", "a 0 or 1 alone", hint)
    separator = next((each for each in _SEPARATORS if any(each in cell for cell in cells)), None)
    if separator is None and any(" " in cell for cell in cells):
        parts = {part for cell in cells for part in cell.split()}
        alone = {cell for cell in cells if " " not in cell}
        if not parts & alone or len(parts) > len(set(cells)):
            hint = "--label-sep ' ' splits them there, --label-sep '|' does not"
            raise DataError(table.source, column, "a sign between labels", "blanks in them", hint)
        separator = " "
    if separator is None:
        return spec, ()
    reading = msgspec.structs.replace(spec.reading, label_sep=separator)
    told = "blanks" if separator == " " else f"'{separator}'"
    remark = f"labels are split at {told}; --label-sep chooses another sign" if separator != "|" else ""
    return msgspec.structs.replace(spec, reading=reading), (remark,) if remark else ()


def unify(names: Iterable[str]) -> dict[str, str]:
    """Return the class of every spelling: all spelled alike where that leaves no other name, else where two meet."""
    found = {name: canonical(name) for name in names}
    plain = all(WHOLE.fullmatch(name) for name in found) or set(found.values()) <= {"true", "false"}
    met = Counter(found.values())
    return {name: one if plain or met[one] > 1 else name for name, one in found.items()}


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in order, whole numbers by value."""
    found = list(names)
    whole = all(WHOLE.fullmatch(name) for name in found)
    return tuple(sorted(found, key=lambda name: (float(name) if whole else 0.0, name)))
