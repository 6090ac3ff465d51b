"""Cells of large files lie on disk, and nothing that is made of them can tell."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import DataError
from registry.tasks import tables
from registry.tasks.cells import CellsOnDisk, take_cells
from registry.tasks.loading import load_task
from registry.tasks.spec import TaskSpec

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.just("\ud800"), st.binary(),
    st.just(datetime.date(2024, 2, 29)), st.just((1, 2)),
)  # fmt: skip
CELLS = st.lists(st.one_of(SCALARS, st.lists(st.text()), st.dictionaries(st.text(), st.integers())))


@given(CELLS, st.data())
def test_cells_come_back_as_they_were(cells: list[Any], data: st.DataObject) -> None:
    """Whatever a cell is, it comes back equal and of its kind, alone, in order and through views of views."""
    column = CellsOnDisk()
    cut = data.draw(st.integers(0, len(cells)))
    column.extend(cells[:cut])
    column.extend(cells[cut:])
    assert cells == list(column)
    assert [*map(type, cells)] == [*map(type, column)]
    places = data.draw(st.lists(st.sampled_from(range(len(cells))))) if cells else []
    assert [cells[place] for place in places] == list(take_cells(column, places))
    assert [cells[place] for place in places][1::2] == list(column.take(places)[1::2])
    if cells:
        assert cells[-1] == column[-1]
    with pytest.raises(IndexError):
        column[len(cells)]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("held_out_by", ["text", "row"])
def test_a_large_file_gives_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, held_out_by: str
) -> None:
    """A file over the limit is held out, limited and counted as one below it, its texts on disk."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {
            "body": [f"Text {row % 40}, with more words" if row % 9 else "a, b\nc" for row in range(200)],
            "other": [f"second {row}" for row in range(200)],
            "y": ["yes" if row % 3 else "no" for row in range(200)],
        }
    )
    path = tmp_path / f"rows.{ending}"
    write = {"csv": frame.to_csv, "parquet": frame.to_parquet, "jsonl": None}[ending]
    write(path, index=False) if write else frame.to_json(path, orient="records", lines=True)
    spec = TaskSpec(
        name="own", text_columns=("body", "other"), label_column="y", file=str(path), held_out_by=held_out_by,
        reported_split="held_out",
    )  # fmt: skip
    small = load_task(spec, limit=90)
    monkeypatch.setattr(tables, "LARGE", 0)
    large = load_task(spec, limit=90)
    assert (False, True) == (small.train.on_disk, large.reported.on_disk)
    assert small.fingerprint() == large.fingerprint()
    assert list(small.train.row_numbers) == list(large.train.row_numbers)
    assert (small.remarks, small.repeated, small.overlap) == (large.remarks, large.repeated, large.overlap)
    assert small.with_train_rows(50).train.fingerprint() == large.with_train_rows(50).train.fingerprint()


def test_a_bad_row_of_a_large_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that cannot be used is told by its line in a file over the limit as well."""
    path = tmp_path / "rows.csv"
    path.write_text("body,y\n" + "good,a\nbad,b\n" * 30 + " ,a\n")
    spec = TaskSpec(name="own", text_columns=("body",), label_column="y", file=str(path), reported_split="held_out")
    monkeypatch.setattr(tables, "LARGE", 0)
    with pytest.raises(DataError, match="line 62, column 'body': expected a text, found an empty one"):
        load_task(spec)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_with_the_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a large file's texts have no room, one line says where and how to choose another place."""
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(DataError, match=r"expected room for the texts .* No space left on device; TMPDIR names"):
        CellsOnDisk().extend(["a text"])
