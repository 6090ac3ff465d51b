"""Overlap of two splits: equal texts are found whatever their form, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.tasks.loading import load_task
from registry.tasks.rows import Overlap, Rows, find_overlap, normalise
from registry.tasks.spec import find_task
from tests.support.command_line import json_lines, pair_rows, single_rows, write_data_folder


def rows_of(*texts: str, pairs: tuple[str, ...] | None = None, first: int = 0) -> Rows:
    return Rows(texts, pairs, (0,) * len(texts), tuple(range(first, first + len(texts))))


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("A Good film.", "a good FILM"),
        ("a  good\tfilm ", "a good\nfilm"),
        ("don't, go!", "dont go"),
        ("« gut » \N{EM DASH} ja", "gut ja"),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER A}\N{LATIN SMALL LIGATURE FI}ne", "afine"),
        ("cafe\N{COMBINING ACUTE ACCENT}", "café"),
    ],
)
def test_form_does_not_matter(text: str, other: str) -> None:
    """Case, spacing, punctuation and compatible characters do not make a text another one."""
    assert normalise(text) == normalise(other)
    assert Overlap((0,), (0,)) == find_overlap(rows_of(text), rows_of(other))


@pytest.mark.parametrize(
    ("text", "other"), [("good", "goods"), ("a b", "ab"), ("?", "!"), ("...", "…?"), ("कि", "का"), ("5 €", "5")]
)
def test_other_texts_are_other_texts(text: str, other: str) -> None:
    """Words, vowel signs and symbols count, and texts of punctuation alone are not all the same."""
    assert Overlap((), ()) == find_overlap(rows_of(text), rows_of(other))


def test_every_row_of_both_splits_is_named_by_its_number() -> None:
    """Doubles count each, on either side, by the row numbers of their own split."""
    train = rows_of("one", "two", "One!", "three", first=10)
    reported = rows_of("four", "ONE", "three.", "one", first=20)
    assert Overlap((10, 12, 13), (21, 22, 23)) == find_overlap(train, reported)


def test_pairs_are_found_in_either_order_and_only_whole() -> None:
    """A pair stands in the other split if both its texts do so in one row, whichever comes first."""
    train = rows_of("a", "b", "e", pairs=("x", "y", "e"))
    reported = rows_of("X.", "b", "a", "e", pairs=("A", "Y!", "y", "f"))
    assert Overlap((0, 1), (0, 1)) == find_overlap(train, reported)
    assert Overlap((), ()) == find_overlap(rows_of("ab", pairs=("c",)), rows_of("a", pairs=("bc",)))


def test_task_counts_only_rows_it_uses(tmp_path: Path) -> None:
    """A row that a limit leaves out is no overlap, and a task looks only once."""
    folder = write_data_folder(tmp_path)
    doubled = [*single_rows(12, 100), single_rows(1, 3)[0], single_rows(1, 5)[0]]
    (folder / "glue" / "sst2" / "validation.jsonl").write_text(json_lines(doubled))
    data = load_task(find_task("sst2"), str(folder))
    assert Overlap((3, 5), (12, 13)) == data.overlap
    assert data.overlap is data.overlap
    limited = load_task(find_task("sst2"), str(folder), limit_reported=6)
    assert set(limited.overlap.reported) == {12, 13} & set(limited.reported.row_numbers)
    (folder / "glue" / "mrpc" / "validation.jsonl").write_text(json_lines(pair_rows(3)))
    assert Overlap((0, 1, 2), (0, 1, 2)) == load_task(find_task("mrpc"), str(folder)).overlap


@pytest.mark.slow
@pytest.mark.parametrize(("task", "reported", "train"), [("mrpc", 1, 1), ("sst2", 2, 5)])
def test_overlap_of_real_data_is_known(shared_data: Path, task: str, reported: int, train: int) -> None:
    """The real splits overlap in as many rows as were counted by hand."""
    found = load_task(find_task(task), str(shared_data)).overlap
    assert (reported, train) == (len(found.reported), len(found.train))
