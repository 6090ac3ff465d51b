"""Where two contents differ: named by the cell, the value or the line, and never missed."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.reports.check import compare_contents

TABLE = "task,method,score,note\nmrpc,houlsby,0.875,fine\nmrpc,parallel,0.75,\n"
PLAIN = {"notes": ["a", "b"], "table": [{"score": 0.875, "seeds": 3}, {"score": None, "seeds": 0}]}


def told(name: str, expected: str, found: str) -> list[str]:
    return [str(each) for each in compare_contents(name, expected.encode(), found.encode())]


def test_equal_contents_have_no_difference() -> None:
    """Nothing is told of what is as it should be."""
    assert [] == compare_contents("table.csv", b"a\n1\n", b"a\n1\n")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("0.875", "0.885", "mrpc houlsby: score: expected 0.875, found 0.885"),
        ("0.75,", "0.75,well", "mrpc parallel: note: expected nothing, found well"),
        ("score,note", "score,remark", "columns: expected note, found remark"),
        ("score,note", "note,score", "columns: expected another order, found nothing else"),
        ("mrpc,parallel,0.75,\n", "", "rows: expected 2, found 1"),
        ("0.875,fine", "0.875", "mrpc houlsby: expected 4 cells, found 3 cells"),
        ("fine", '"fine"', 'line 2: expected mrpc,houlsby,0.875,fine\\n, found mrpc,houlsby,0.875,"fine"\\n'),
        (TABLE, "", "columns: expected task, method, score, note, found nothing else"),
    ],
)
def test_csv_is_told_by_its_cells(old: str, new: str, expected: str) -> None:
    """A cell is named by its row's task and method and its column; another spelling of equal cells by its line."""
    assert [f"table.csv: {expected}"] == told("table.csv", TABLE, TABLE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("0.875", "0.874", "table[0].score: expected 0.875, found 0.874"),
        ("null", "0.5", "table[1].score: expected null, found 0.5"),
        ("3", "3.0", "table[0].seeds: expected 3, found 3.0"),
        ('"seeds": 0', '"seed": 0', "table[1].seeds: expected 0, found nothing"),
        ('"a", "b"', '"a"', "notes: expected 2 entries, found 1 entries"),
        ('"a", "b"', '"a",  "b"', 'line 1: expected …"notes": ["a", "b"], "table": [{'),
    ],
)
def test_json_is_told_by_its_values(old: str, new: str, expected: str) -> None:
    """A value is named by the way to it, whatever its type; other spacing by its line."""
    text = json.dumps(PLAIN)
    lines = told("table.json", text, text.replace(old, new))
    assert lines[0].startswith(f"table.json: {expected}")


def test_broken_json_is_still_a_difference() -> None:
    """A file that is no longer what its name says is told by its bytes."""
    (line,) = told("table.json", json.dumps(PLAIN), "{")
    assert line.startswith("table.json: bytes: expected 91 bytes, SHA-256 ")


def test_text_is_told_by_its_lines() -> None:
    """Changed, lost and added lines are each told once, around the first character that differs."""
    old = "one\ntwo " + "x" * 80 + "8\nthree\nfour\n"
    new = old.replace("8", "9").replace("three\n", "") + "five\n"
    assert [
        "report.md: line 2: expected …xxxxxxxxxxxxxxx8\\n, found …xxxxxxxxxxxxxxx9\\n",
        "report.md: line 3: expected three\\n, found nothing",
        "report.md: line 5: expected nothing, found five\\n",
    ] == told("report.md", old, new)


def test_missing_and_empty_cells_of_a_parquet_are_told_apart() -> None:
    """A cell that is empty where it was missing is a difference, though both look alike in a csv."""
    tables = []
    for note in ("", None):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"task": ["mrpc"], "note": pa.array([note], pa.string())}), sink)
        tables.append(bytes(sink.getvalue()))
    (found,) = compare_contents("table.parquet", *tables)
    assert ("cells", "others missing in note") == (found.field, found.expected)


def test_bytes_are_told_by_their_digest() -> None:
    """What is no text is told by size and digest."""
    (found,) = compare_contents("plot.png", b"\xff\x00", b"\xff\x01")
    assert ("bytes", "2 bytes, SHA-256 ") == (found.field, found.expected[:17])


@given(st.sampled_from(["a.csv", "a.json", "a.md"]), st.text(min_size=1), st.text())
def test_no_difference_is_missed(name: str, expected: str, found: str) -> None:
    """Any two texts are told apart if and only if they differ, each difference in one line."""
    lines = [str(each) for each in compare_contents(name, expected.encode(), found.encode())]
    assert (expected != found) == bool(lines)
    assert not any("\n" in line for line in lines)
