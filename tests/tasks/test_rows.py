"""Rows: taking, limiting, holding out, and the checks on every cell."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from registry.errors import ConfigError, DataError
from registry.tasks.cells import Table
from registry.tasks.label_names import find_labels
from registry.tasks.rows import Rows, hold_out, limit_rows, rows_from_table
from registry.tasks.spec import TaskSpec

SPEC = TaskSpec(name="own", text_columns=("body",), label_column="y")


def make_rows(labels: list[Any]) -> Rows:
    """Return rows with these labels and different texts."""
    count = range(len(labels))
    return Rows(tuple(f"text {index}" for index in count), None, tuple(labels), tuple(count))


def make_table(labels: list[Any], texts: list[Any] | None = None) -> Table:
    """Return a table as read from a csv file."""
    texts = [f"text {index}" for index in range(len(labels))] if texts is None else texts
    return Table("rows.csv", ("body", "y"), {"body": texts, "y": labels}, range(2, len(labels) + 2))


def find_label_names(table: Table, spec: TaskSpec) -> tuple[str, ...] | None:
    """Return the labels that a task has after a look at its training rows."""
    return find_labels(table, spec).spec.label_names


def spec_of(problem_type: str = "classification", names: tuple[str, ...] | None = None) -> TaskSpec:
    """Return the task of ``make_table`` with another problem type and label names."""
    return msgspec.structs.replace(SPEC, problem_type=problem_type, label_names=names)


def test_take_keeps_rows_whole() -> None:
    """Texts, pairs, labels and row numbers stay together in any order."""
    rows = Rows(("a", "b", "c"), ("x", "y", "z"), (0, 1, 0), (5, 6, 7))
    assert Rows(("c", "a"), ("z", "x"), (0, 0), (7, 5)) == rows.take([2, 0])


@pytest.mark.parametrize(
    "other",
    [
        Rows(("a", "c"), ("x", "y"), (0, 1), (0, 1)),
        Rows(("a", "b"), ("x", "z"), (0, 1), (0, 1)),
        Rows(("a", "b"), ("x", "y"), (1, 1), (0, 1)),
        Rows(("b", "a"), ("y", "x"), (1, 0), (0, 1)),
        Rows(("a", "b"), None, (0, 1), (0, 1)),
        Rows(("a",), ("x",), (0,), (0,)),
        Rows(('a", "b',), ("x",), (0,), (0,)),
    ],
)
def test_fingerprint_tells_rows_apart(other: Rows) -> None:
    """Another text, pair, label, order or number of rows gives another fingerprint."""
    rows = Rows(("a", "b"), ("x", "y"), (0, 1), (0, 1))
    assert rows.fingerprint() != other.fingerprint()
    assert rows.fingerprint() == rows.take([0, 1]).fingerprint()


def test_limit_keeps_order_and_grows() -> None:
    """The rows of a smaller limit are among those of a larger one, all in their old order."""
    rows = make_rows([0, 1] * 50)
    few, many = limit_rows(rows, 10, seed=0), limit_rows(rows, 30, seed=0)
    assert (10, 30) == (len(few), len(many))
    assert sorted(many.row_numbers) == list(many.row_numbers)
    assert set(few.row_numbers) < set(many.row_numbers)
    assert rows is limit_rows(rows, 1000, seed=0)


def test_limit_differs_with_the_seed_only() -> None:
    """The same seed draws the same rows, another seed others."""
    rows = make_rows([0, 1] * 50)
    assert limit_rows(rows, 10, seed=1) == limit_rows(rows, 10, seed=1)
    assert limit_rows(rows, 10, seed=1) != limit_rows(rows, 10, seed=2)


def test_hold_out_splits_every_label_alike() -> None:
    """Both sides keep the balance of labels, share no row and lose none."""
    rows = make_rows([0] * 60 + [1] * 30 + [2] * 10)
    kept, held = hold_out(rows, 0.2, seed=3, stratify=True)
    assert {0: 12, 1: 6, 2: 2} == Counter(held.labels)
    assert list(range(100)) == sorted(kept.row_numbers + held.row_numbers)
    assert sorted(held.row_numbers) == list(held.row_numbers)
    assert (kept, held) == hold_out(rows, 0.2, seed=3, stratify=True)
    assert held != hold_out(rows, 0.2, seed=4, stratify=True)[1]


def test_hold_out_keeps_a_row_of_every_label() -> None:
    """A label with one row stays among the rows to train on."""
    kept, held = hold_out(make_rows([0, 0, 0, 0, 1]), 0.5, seed=0, stratify=True)
    assert {0: 2, 1: 1} == Counter(kept.labels)
    assert {0: 2} == Counter(held.labels)


def test_hold_out_of_numbers_takes_the_share() -> None:
    """Rows whose labels are numbers are held out without regard to them."""
    kept, held = hold_out(make_rows([float(index) for index in range(50)]), 0.1, seed=0, stratify=False)
    assert (45, 5) == (len(kept), len(held))


def test_hold_out_refuses_an_empty_side() -> None:
    """A share that would leave nothing to score on is refused."""
    with pytest.raises(ConfigError, match=r"held_out: expected a share that leaves rows on both sides, found '0.1"):
        hold_out(make_rows([0, 1, 1]), 0.1, seed=0, stratify=True)


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["spam", "ham", "eggs"], ("eggs", "ham", "spam")),
        (["1.0", "0.0", "1"], ("0", "1")),
        (["True", "false", "False"], ("false", "true")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        ([2, 0, 1], ("0", "1", "2")),
        ([1.0, 0.0], ("0", "1")),
        ([True, False], ("false", "true")),
    ],
)
def test_label_names_are_the_sorted_labels(cells: list[Any], names: tuple[str, ...]) -> None:
    """Names are sorted, whole numbers by value, and labels are their indices."""
    assert names == find_label_names(make_table(cells), msgspec.structs.replace(SPEC, problem_type_given=True))
    found = rows_from_table(make_table(cells), spec_of(names=names)).labels
    assert tuple(names.index(str(cell).lower().removesuffix(".0")) for cell in cells) == found


@pytest.mark.parametrize(
    ("cells", "names"), [([1, 0], ("neg", "pos")), (["pos", "neg"], ("neg", "pos")), ([2, 1], ("1", "2"))]
)
def test_known_label_names_are_found_by_name_or_index(cells: list[Any], names: tuple[str, ...]) -> None:
    """A cell may hold a name or, where names are not numbers themselves, an index."""
    assert (1, 0) == rows_from_table(make_table(cells), spec_of(names=names)).labels


def test_multi_label_takes_lists_and_separated_texts() -> None:
    """Lists and texts with | between labels become one 0 or 1 for each class; none at all is fine."""
    cells = [["war", "love"], "love | sea", "", []]
    spec = spec_of("multi_label")
    names = find_label_names(make_table(cells), spec)
    found = rows_from_table(make_table(cells), spec_of("multi_label", names)).labels
    assert (("love", "sea", "war"), ((1, 0, 1), (1, 1, 0), (0, 0, 0), (0, 0, 0))) == (names, found)


def test_regression_takes_numbers_and_their_texts() -> None:
    """Labels to predict are finite numbers; the one name is the column's."""
    spec = spec_of("regression", ("y",))
    assert ("y",) == find_label_names(make_table([1, 2]), spec_of("regression"))
    assert (0.5, 2.0, -30.0) == rows_from_table(make_table([0.5, 2, "-3e1"]), spec).labels


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "found null"),
        ("", "found an empty one"),
        (" \n", "found an empty one"),
        (7, "found a int"),
        ("half \ud83d", "found half a character"),
    ],
)
def test_cell_without_text_is_refused(text: object, found: str) -> None:
    """A row without a usable text is named by file, line and column."""
    with pytest.raises(DataError, match=f"rows.csv: line 3, column 'body': expected a text, {found}"):
        rows_from_table(make_table([0, 1], ["fine", text]), spec_of(names=("no", "yes")))


@pytest.mark.parametrize(
    ("problem_type", "names", "cell", "message"),
    [
        ("classification", ("no", "yes"), None, "line 3, column 'y': expected a label, found none, an unlabelled row"),
        ("classification", ("no", "yes"), "", "found none, an unlabelled row; --skip-bad-rows leaves it out"),
        ("classification", ("no", "yes"), float("nan"), "found none, an unlabelled row"),
        (
            "classification",
            ("no", "yes"),
            -1,
            "found '-1' in 1 row; -1 marks rows without a label: choose a labelled split",
        ),
        ("classification", ("no", "yes"), 2, r"a label seen in training \(no, yes\), found '2'"),
        ("classification", ("no", "yes"), "yess", "found 'yess' in 1 row; did you mean 'yes'"),
        ("classification", ("1", "2"), 0, r"a label seen in training \(1, 2\), found '0'"),
        ("classification", ("no", "yes"), 0.5, "a class name or whole number, found 0.5"),
        ("multi_label", ("love", "war"), None, "a list of labels, or a text with | between them, found null"),
        ("multi_label", ("love", "war"), ["love", "sea"], "found 'sea'"),
        ("regression", ("y",), None, "a finite number, found null"),
        ("regression", ("y",), "high", "a finite number, found 'high'"),
        ("regression", ("y",), float("inf"), "a finite number, found inf"),
        ("regression", ("y",), True, "a finite number, found True"),
    ],
)
def test_cell_without_label_is_refused(problem_type: str, names: tuple[str, ...], cell: object, message: str) -> None:
    """A label that cannot be used is named by file, line and column."""
    good: object = {"classification": names[-1], "multi_label": "war", "regression": 1.0}[problem_type]
    with pytest.raises(DataError, match=message.replace("|", r"\|")):
        rows_from_table(make_table([good, cell]), spec_of(problem_type, names))


def test_one_class_is_not_enough_to_train_on() -> None:
    """A column with one label everywhere is refused."""
    with pytest.raises(DataError, match="column 'y': expected at least 2 different labels to train on, found ham"):
        find_label_names(make_table(["ham", "ham"]), SPEC)
