"""Files of rows as columns, and how damaged ones are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from registry.errors import DataError
from registry.tasks.tables import read_table

ROWS = {"body": ['said "no", twice', "line one\nline two", "naïve 北京 \u2028 🙂", "NA"], "y": ["1", "0", "1", "0"]}
WANTED = ("body", "y")


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".csv", lambda frame, path: frame.to_csv(path, index=False)),
        (".tsv", lambda frame, path: frame.to_csv(path, index=False, sep="\t")),
        (".jsonl", lambda frame, path: frame.to_json(path, orient="records", lines=True, force_ascii=False)),
        (".parquet", lambda frame, path: frame.to_parquet(path)),
    ],
)
def test_every_format_gives_the_same_cells(
    tmp_path: Path, suffix: str, write: Callable[[pd.DataFrame, Path], None]
) -> None:
    """Quotes, line breaks, other scripts and the text NA survive in all four formats."""
    path = tmp_path / ("rows" + suffix)
    write(pd.DataFrame(ROWS), path)
    table = read_table(path, WANTED)
    assert ROWS == {name: list(table.column(name)) for name in WANTED}


def test_line_numbers_count_lines_not_rows(tmp_path: Path) -> None:
    """A row after a field with a line break and a blank line is found where an editor shows it."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b'body,y\r\n"one\ntwo",0\r\n\r\nthree,1\r\n')
    table = read_table(path, WANTED)
    assert ["line 2", "line 5"] == [table.place(row) for row in range(2)]


def test_spreadsheet_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    """A csv saved by a spreadsheet has the columns one sees."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbfbody,y\na,1\n")
    assert ("body", "y") == read_table(path, WANTED).names


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"", "content: expected rows, found an empty file"),
        ("rows.csv", b"body,y\n", "content: expected at least one row, found none"),
        ("rows.jsonl", b"\n\n", "content: expected at least one row, found none"),
        ("rows.csv", b"body,y\nfine,1\ncaf\xe9,0\n", "line 3: expected UTF-8, found byte 0xe9 at offset 17"),
        ("rows.jsonl", b'{"body": "\xff"}\n', "line 1: expected UTF-8, found byte 0xff at offset 10"),
        ("rows.csv", b"body,y\na,b,1\n", "line 2: expected 2 fields, as in the first line, found 3"),
        (
            "rows.csv",
            b'body,y\na,1\n"open,1\n',
            "line 3: expected quotation marks around whole cells, doubled inside them",
        ),
        ("rows.jsonl", b'{"body": "a"}\n{"body": \n', "line 2: expected a JSON object, found Expecting value"),
        ("rows.jsonl", b'["a", 1]\n', "line 1: expected a JSON object, found a list"),
        ("rows.parquet", b"PAR1 not really", "content: expected a parquet file"),
        ("rows.json", b'[{"body": "a"}', "content: expected a JSON array of objects, found Expecting ',' delimiter"),
        ("rows.jsonl", b'{"body": "a", "body": "b"}', "line 1: expected every key once, found 'body' twice"),
        ("rows.xlsx", b"PK", "content: expected an Excel book"),
        (
            "rows.docx",
            b"PK",
            "expected one ending in .parquet, .jsonl, .csv, .tsv, .txt, .json, .feather, .arrow, .xlsx",
        ),
        ("rows.csv.gz", b"body,y", "content: expected a whole gzip file"),
        ("rows.csv", "body,y\na,1\n".encode("utf-16-le"), "found NUL characters; name the encoding with --encoding"),
        ("rows.tsv", b'body\ty\n"a\t1\nb"\t0\tc\n', "line 3: expected 2 fields, as in the first line, found 3"),
        ("rows.csv", b'body,y\n"a,1\nb,0\nc",1\n', "line 2: expected one row on each line, as every one has the right"),
    ],
)
def test_damaged_file_is_told_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """The message names the file, the place, what was expected and what is there."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_table(path, WANTED)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_told(tmp_path: Path) -> None:
    """A file that is not there, and a folder of its name, are told apart."""
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="file: expected a file, found none"):
        read_table(tmp_path / "rows.csv", WANTED)
    with pytest.raises(DataError, match="file: expected a file, found a folder"):
        read_table(tmp_path / "folder.csv", WANTED)


def test_missing_column_names_the_columns_there_are(tmp_path: Path) -> None:
    """A typing error in a column's name is answered with the nearest column."""
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,1\n", encoding="utf-8")
    with pytest.raises(DataError, match="a column 'txt', found label, text in the first line; did you mean 'text'"):
        read_table(path, ("txt", "label")).column("txt")
