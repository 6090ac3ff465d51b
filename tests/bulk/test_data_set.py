"""Folders of rows answered: parts made once each, the same after any stop, on this machine and elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.bulk.answer_file import FileQuestion, Journal
from registry.bulk.data_set import MANIFEST, AnswerManifest, DataSetRun, answer_data_set
from registry.bulk.folders import Folder
from registry.errors import ConfigError, DataError
from registry.model.backbone import Backbone
from registry.schema import Reading
from registry.serving.predictor import Predictor
from registry.validation import from_json
from tests.support.served_sets import TEXTS, save_kinds

COUNT = 23
PART_ROWS, ROWS = 9, 4  # of a part and of a chunk here
QUESTION = FileQuestion(Path("."), ("task0:1",), ("body",), Reading())


class StoppedError(Exception):
    """What ends a run here, wherever it stands."""


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Backbone) -> Predictor:
    """A predictor with a set of every kind: task0 to task3."""
    return Predictor(tiny_backbone, save_kinds(tmp_path_factory.mktemp("kinds") / "store", tiny_backbone))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder of two parquet files, in row groups that fit no part, of which one text is empty."""
    table = pa.table({
        "id": pa.array(range(COUNT), pa.int32()),
        "body": [" " if n == 11 else f"{TEXTS[n % 5]} {n}" for n in range(COUNT)],
        "note": pa.array([None] * COUNT, pa.large_string()),
    })  # fmt: skip
    (tmp_path / "rows" / "more").mkdir(parents=True)
    pq.write_table(table, tmp_path / "rows" / "a.parquet", row_group_size=7)
    pq.write_table(table.slice(0, 3), tmp_path / "rows" / "more" / "b.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "rows" / "none.parquet")
    (tmp_path / "rows" / "_SUCCESS").touch()
    return tmp_path / "rows"


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The address of a folder that is not on the disk."""
    yield "memory://bucket"
    fsspec.filesystem("memory").store.clear()


def begin(folder: object, out: object, question: FileQuestion = QUESTION, *, restart: bool = False) -> DataSetRun:
    """Return a run over a folder, in small parts."""
    return DataSetRun.begin(question, Folder(str(folder)), Folder(str(out)), restart=restart, part_rows=PART_ROWS)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_answered_in_parts_of_one_schema(tmp_path: Path, rows: Path, predictor: Predictor) -> None:
    """Every row is there once, in order, in files that readers take as one table; a manifest tells of all."""
    found = answer_data_set(predictor, begin(rows, tmp_path / "out"), rows=ROWS)
    names = [f"a-0000{n}-of-00003.parquet" for n in range(3)] + ["more/b.parquet"]
    assert (26, 1, names) == (found.rows, found.errors, [part.name for part in found.parts])
    assert sorted([*names, MANIFEST]) == sorted(contents(tmp_path / "out"))
    assert found == from_json(AnswerManifest, (tmp_path / "out" / MANIFEST).read_bytes())
    read = pq.read_table(tmp_path / "out")
    assert [*range(COUNT), 0, 1, 2] == read["id"].to_pylist()
    own = {"id": "int32", "body": "string", "note": "large_string", "label": "string", "error": "string"}
    shares = {"probability.bad": "double", "probability.good": "double"}
    assert {**own, **shares} == {field.name: str(field.type) for field in read.schema}
    assert "row 11: expected a text" in read["error"][11].as_py()
    asked = [text for text in read["body"].to_pylist() if text.strip()]
    assert [each.label for each in predictor("task0", asked)] == [each for each in read["label"].to_pylist() if each]


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_a_run_that_was_stopped_makes_what_is_missing(
    tmp_path: Path, rows: Path, predictor: Predictor, elsewhere: str, place: str
) -> None:
    """Stopped in any part it goes on, makes no part again, and ends as an undisturbed run does, to the byte."""
    folder: object = rows
    out: object = tmp_path / "out"
    if place == "elsewhere":
        folder, out = f"{elsewhere}/rows", f"{elsewhere}/out"
        fsspec.filesystem("memory").put(str(rows), "/bucket/rows", recursive=True)
    seen: list[tuple[int, int]] = []

    def stop(answered: int, parts: int) -> None:
        seen.append((answered, parts))
        if len(seen) % 7 == 0:
            raise StoppedError

    manifest = None
    while manifest is None:
        run = begin(folder, out)
        before = {name: told for name, told in run.out.files().items() if not name.startswith("_")}
        try:
            manifest = answer_data_set(predictor, run, stop, ROWS)
        except StoppedError:
            assert MANIFEST not in run.out.files()
        assert before.items() <= run.out.files().items(), "a part was made again"
    assert len(seen) > 8
    answer_data_set(predictor, begin(rows, tmp_path / "whole"), rows=ROWS)
    if place == "elsewhere":
        fsspec.filesystem("memory").get("/bucket/out", str(tmp_path / "out"), recursive=True)
    found, whole = contents(tmp_path / "out"), contents(tmp_path / "whole")
    manifests = [json.loads(each.pop(MANIFEST)) for each in (found, whole)]
    assert (found, manifests[0]["parts"]) == (whole, manifests[1]["parts"])
    assert manifest == answer_data_set(predictor, begin(folder, out)), "all is done: told again, and nothing made"


def test_lines_keep_their_own_columns(tmp_path: Path, predictor: Predictor) -> None:
    """A file of lines, packed too, is a part, whose rows have the keys they had."""
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"body": text, "n": n}) + "\n" for n, text in enumerate(TEXTS)))
    with fsspec.open(str(folder / "b.jsonl.gz"), "wt", compression="gzip") as packed:
        packed.write(json.dumps({"body": "one", "own": [1]}) + "\n")
    answer_data_set(predictor, begin(folder, tmp_path / "out"), rows=ROWS)
    first, second = ((tmp_path / "out" / name).read_text().splitlines() for name in ("a.jsonl", "b.jsonl"))
    assert list(range(len(TEXTS))) == [json.loads(line)["n"] for line in first]
    assert [1] == json.loads(second[0])["own"]


def test_each_row_may_name_the_set_that_answers_it(tmp_path: Path, predictor: Predictor) -> None:
    """Rows of different sets are answered together; one whose set is unknown or not named has its own error."""
    (tmp_path / "rows").mkdir()
    named = ["task0", "task1:1", "nope", None, "task3", "task2"]
    table = {"adapter": named, "body": ["a good film"] * 6, "second": ["", "he left", None, None, None, None]}
    pq.write_table(pa.table(table), tmp_path / "rows" / "a.parquet")
    question = replace(QUESTION, references=(), text_columns=("body", "second"), reference_column="adapter")
    found = answer_data_set(predictor, begin(tmp_path / "rows", tmp_path / "out", question))
    assert (6, 2) == (found.rows, found.errors)
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert ["task0:1", "task1:1", None, None, "task3:1", "task2:1"] == [row["answered_by"] for row in rows]
    assert "nope" in rows[2]["error"]
    assert "row 3: expected the name of a stored set, found None" == rows[3]["error"]
    (pair,) = predictor("task1", ["a good film"], ["he left"])
    assert pair.label == rows[1]["label"]
    assert pair.probabilities == pytest.approx(dict(rows[1]["probabilities"]), abs=1e-5)


def test_folders_that_cannot_be_answered_are_told(tmp_path: Path, rows: Path, predictor: Predictor) -> None:
    """No rows, mixed formats, columns that differ and folders in each other end in one line before anything is made."""
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"files of rows \(.csv, .tsv, .jsonl, .parquet\), found none"):
        begin(tmp_path / "empty", out)
    for place in (rows, rows / "out", tmp_path):
        with pytest.raises(ConfigError, match="a folder apart from that of --data"):
            begin(rows, place)
    (rows / "c.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"files of one format of .*, found a.parquet, c.jsonl"):
        begin(rows, out)
    (rows / "c.jsonl").unlink()
    pq.write_table(pa.table({"id": [1], "body": ["x"], "note": ["y"]}), rows / "c.parquet")
    with pytest.raises(DataError, match=r"the columns of a.parquet, 'id' int32, found int64"):
        begin(rows, out)
    (rows / "c.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"c.parquet.*a parquet file"):
        begin(rows, out)
    with pytest.raises(ConfigError, match="an address that fsspec knows"):
        begin("nowhere://rows", out)
    with pytest.raises(ConfigError, match="an address without a key in it, found 'one with'"):
        Folder("ftp://me:secret@host/rows")
    assert not out.exists()


def test_answers_of_another_question_are_not_mixed(tmp_path: Path, rows: Path, predictor: Predictor) -> None:
    """A folder of other things, another set or files that changed are refused; --restart forgets an unfinished run."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("of another kind")
    with pytest.raises(ConfigError, match="a folder that is empty, or that this command has begun, found .*mine.txt"):
        begin(rows, out)
    (out / "mine.txt").unlink()
    run = begin(rows, out)
    run.answer(predictor, run.plan.parts[0])
    other = replace(QUESTION, references=("task2:1",))
    with pytest.raises(ConfigError, match="an unfinished run of the same folder, sets and options.*--restart forgets"):
        begin(rows, out, other)
    (rows / "more" / "b.parquet").unlink()
    pq.write_table(pq.read_table(rows / "a.parquet").slice(0, 5), rows / "a.parquet")
    with pytest.raises(ConfigError, match="of others before a.parquet, more/b.parquet changed"):
        begin(rows, out)
    with pytest.raises(DataError, match="the file that it was when the run was begun"):
        run.answer(predictor, run.plan.parts[1])
    done = answer_data_set(predictor, begin(rows, out, other, restart=True))
    assert (5, ["a.parquet", MANIFEST]) == (done.rows, sorted(contents(out), reverse=True))
    with pytest.raises(ConfigError, match="answers of the same folder, sets and options.*name another"):
        begin(rows, out, restart=True)


def test_a_part_goes_on_after_its_last_chunk(tmp_path: Path, rows: Path, predictor: Predictor) -> None:
    """On this machine a part that was killed half-way does not ask its first rows again."""
    run = begin(rows, tmp_path / "out")

    def stop(journal: Journal) -> None:
        if journal.rows:
            raise StoppedError

    with pytest.raises(StoppedError):
        run.answer(predictor, run.plan.parts[0], observe=stop, rows=ROWS)
    told: list[int] = []
    run.answer(predictor, run.plan.parts[0], observe=lambda journal: told.append(journal.rows), rows=ROWS)
    assert [4, 8, 9] == told
