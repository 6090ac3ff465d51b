"""Files as people come with them: each is read with the rows and labels that it has, or refused with a way on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.errors import ConfigError, DataError
from registry.schema import Reading
from registry.tasks.loading import load_task, load_to_score
from registry.tasks.spec import task_from_file
from registry.tasks.tables import read_chunks
from registry.tasks.task_data import TaskData

COUNT = 20
TEXTS = [f"note {number} about {word}" for number, word in zip(range(COUNT), ["rain", "wind"] * COUNT, strict=False)]
BITS = [number % 2 for number in range(COUNT)]


def read(path: Path, **fields: Any) -> TaskData:
    """Return the task that a file makes; options of reading stand among the fields."""
    reading = {name: fields.pop(name) for name in list(fields) if name in Reading.__struct_fields__}
    fields.setdefault("text_column", "text")
    return load_task(task_from_file(path, reading=Reading(**reading), **fields))


def pairs_of(data: TaskData) -> dict[str, Any]:
    """Return text and label of every row of a file, both sides together, by text."""
    names = data.spec.label_names or ()
    found = {}
    for rows in (data.train, data.reported):
        for text, label in zip(rows.texts, rows.labels, strict=True):
            several = isinstance(label, tuple)
            found[text] = (
                tuple(name for name, there in zip(names, label, strict=True) if there)
                if several
                else names[label]
                if isinstance(label, int)
                else label
            )
    return found


def expected(labels: list[Any]) -> dict[str, Any]:
    """Return what ``pairs_of`` finds in a file of ``TEXTS`` with these labels."""
    return dict(zip(TEXTS, labels, strict=True))


def lines(separator: str, labels: list[Any], *, header: bool = True) -> str:
    """Return a file with a separator and no quotation marks."""
    head = [f"text{separator}label"] if header else []
    return "\n".join([*head, *(f"{text}{separator}{label}" for text, label in zip(TEXTS, labels, strict=True))]) + "\n"


FORMS: dict[str, tuple[bytes, Mapping[str, Any]]] = {
    "semicolon.csv": (lines(";", BITS).encode(), {}),
    "bar.txt": (lines("|", BITS).encode(), {}),
    "utf16.csv": (lines(",", BITS).encode("utf-16"), {}),
    "latin1.csv": (lines(",", BITS).replace("rain", "caf\xe9").encode("latin-1"), {"encoding": "latin-1"}),
    "zipped.csv.gz": (gzip.compress(lines(",", BITS).encode()), {}),
    "zipped.tsv.zst": (pa.compress(lines("\t", BITS).encode(), codec="zstd", asbytes=True), {}),
    "bare.tsv": (lines("\t", BITS, header=False).encode(), {"header": False, "text_column": "0", "label_column": "1"}),
    "bare.txt": (lines(";", BITS, header=False).encode(), {"header": False, "text_column": "0", "label_column": "1"}),
    "floats.csv": (lines(",", [f"{bit}.0" for bit in BITS]).encode(), {}),
    "both.csv": (lines(",", [bit if number < 9 else f"{bit}.0" for number, bit in enumerate(BITS)]).encode(), {}),
    "trailing.csv": (lines(",", [f"{bit},,," for bit in BITS]).replace("label", "label,,,").encode(), {}),
    "array.json": (json.dumps([{"text": t, "label": b} for t, b in zip(TEXTS, BITS, strict=True)]).encode(), {}),
    "packed.jsonl.gz": (
        gzip.compress(
            "".join(json.dumps({"text": t, "label": b}) + "\n" for t, b in zip(TEXTS, BITS, strict=True)).encode()
        ),
        {},
    ),
    "nested.jsonl": (
        "".join(
            json.dumps({"a": {"b": t}, "meta": {"y": b}}) + "\n" for t, b in zip(TEXTS, BITS, strict=True)
        ).encode(),
        {"text_column": "a.b", "label_column": "meta.y"},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_one_table_in_many_forms(tmp_path: Path, name: str) -> None:
    """Separators, encodings, compression, missing headers, empty columns and nested objects give the same rows."""
    content, fields = FORMS[name]
    path = tmp_path / name
    path.write_bytes(content)
    found = {text.replace("caf\xe9", "rain"): label for text, label in pairs_of(read(path, **fields)).items()}
    assert expected([str(bit) for bit in BITS]) == found


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".arrow", ".xlsx", ".csv"])
@pytest.mark.parametrize("kind", ["bool", "float", "int"])
def test_booleans_and_whole_numbers_have_one_spelling(tmp_path: Path, suffix: str, kind: str) -> None:
    """Whatever format and type a column has, its classes are called the same."""
    frame = pd.DataFrame({"text": TEXTS, "label": pd.Series(BITS).astype(kind)})
    path = tmp_path / f"rows{suffix}"
    if suffix == ".arrow":
        table = pa.Table.from_pandas(frame)
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        write = {".parquet": "to_parquet", ".feather": "to_feather", ".xlsx": "to_excel", ".csv": "to_csv"}[suffix]
        getattr(frame, write)(path, **({"index": False} if suffix in (".xlsx", ".csv") else {}))
    names = ("false", "true") if kind == "bool" else ("0", "1")
    assert expected([names[bit] for bit in BITS]) == pairs_of(read(path))


@pytest.mark.parametrize("names", [("ham", "spam"), ("spam", "ham")])
@pytest.mark.parametrize("positive", [None, "ham", "spam"])
def test_class_names_of_a_saved_data_set_are_kept(tmp_path: Path, names: tuple[str, str], positive: str | None) -> None:
    """Numbers that the datasets library wrote with their names are called by these, whatever is rare or positive."""
    labels = [int(number % 5 == 0) for number in range(COUNT)]
    features = {"label": {"names": list(names), "_type": "ClassLabel"}}
    table = pa.table({"text": TEXTS, "label": labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "rows.parquet")
    data = read(tmp_path / "rows.parquet", positive_label=positive)
    assert expected([names[label] for label in labels]) == pairs_of(data)
    assert (positive or names[1]) == data.spec.positive_label
    scored = load_to_score(data.spec, tmp_path / "rows.parquet")
    assert expected([names[label] for label in labels]) == pairs_of(scored)


def test_named_labels_keep_the_places_that_numbers_mean(tmp_path: Path) -> None:
    """With --labels a number is the place of its name, so that the positive one is named last and not moved there."""
    pd.DataFrame({"text": TEXTS, "label": BITS}).to_csv(tmp_path / "rows.csv", index=False)
    found = read(tmp_path / "rows.csv", label_names=("neg", "pos"), positive_label="pos")
    assert expected([("neg", "pos")[bit] for bit in BITS]) == pairs_of(found)
    with pytest.raises(ConfigError, match="positive_label: expected the last of the labels that are named, pos"):
        read(tmp_path / "rows.csv", label_names=("neg", "pos"), positive_label="neg")


def test_quotation_marks_of_tab_files_are_letters(tmp_path: Path) -> None:
    """A mark that opens a cell and closes another swallows no row; marks around whole cells are taken off."""
    texts = [text.replace("note 5", '"note 5').replace("note 8 about rain", 'note 8 about rain"') for text in TEXTS]
    path = tmp_path / "rows.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{t}\t{b}\n" for t, b in zip(texts, BITS, strict=True)))
    assert dict(zip(texts, map(str, BITS), strict=True)) == pairs_of(read(path))
    path.write_text("text\tlabel\n" + "".join(f'"{t}"\t{b}\n' for t, b in zip(TEXTS, BITS, strict=True)))
    assert expected([str(bit) for bit in BITS]) == pairs_of(read(path))
    assert {f'"{text}"' for text in TEXTS} == set(pairs_of(read(path, quoting="none")))


def test_a_mark_that_swallows_rows_of_a_csv_is_refused(tmp_path: Path) -> None:
    """Lines that each look like a row are not made one without a word; both readings can be asked for."""
    path = tmp_path / "rows.csv"
    content = (
        lines(",", BITS)
        .replace("note 3 about wind,1", '"note 3 about wind,1')
        .replace("note 6 about rain", 'note 6 about rain"')
    )
    path.write_text(content)
    with pytest.raises(DataError, match=r"line 5: .* --quoting none takes quotation marks as letters"):
        read(path)
    assert COUNT == len(pairs_of(read(path, quoting="none")))


@pytest.mark.parametrize("form", ["| ", ", ", ";", " ", "json", "python"])
def test_several_labels_in_a_cell_are_split(tmp_path: Path, form: str) -> None:
    """Separators are found by looking, and lists as JSON or Python write them are lists."""
    labels = [("big", "red") if bit else ("red",) for bit in BITS]
    cells = [
        json.dumps(list(one)) if form == "json" else str(list(one)) if form == "python" else form.join(one)
        for one in labels
    ]
    pd.DataFrame({"text": TEXTS, "label": cells}).to_csv(tmp_path / "rows.csv", index=False)
    data = read(tmp_path / "rows.csv", problem_type="multi_label")
    assert expected(labels) == pairs_of(data)
    assert expected(labels) == {
        text: tuple(sorted(one)) for text, one in pairs_of(load_to_score(data.spec, tmp_path / "rows.csv")).items()
    }


@pytest.mark.parametrize("as_text", [False, True])
def test_a_vector_of_zeros_and_ones_is_one_for_each_label(tmp_path: Path, as_text: bool) -> None:
    """Lists of equal length of 0 and 1 are no class numbers; names come from the task or are places."""
    vectors = [[bit, 0, 1 - bit] for bit in BITS]
    rows = [{"text": t, "label": str(v) if as_text else v} for t, v in zip(TEXTS, vectors, strict=True)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = pairs_of(read(path, problem_type="multi_label"))
    assert expected([("0",) if bit else ("2",) for bit in BITS]) == found
    short = [*rows[:-1], {"text": TEXTS[-1], "label": "[1, 0]" if as_text else [1, 0]}]
    (tmp_path / "short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short))
    with pytest.raises(DataError, match="distinct labels, or as many of 0 and 1 in every row"):
        read(tmp_path / "short.jsonl", problem_type="multi_label")
    named = read(path, problem_type="multi_label", label_names=("a", "b", "c"))
    assert expected([("a",) if bit else ("c",) for bit in BITS]) == pairs_of(named)


def test_a_column_for_each_label(tmp_path: Path) -> None:
    """Columns of 0 and 1 are the labels; anything else in them is refused with its line."""
    frame = pd.DataFrame({"text": TEXTS, "toxic": BITS, "rude": [1 - bit for bit in BITS]})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    fields: dict[str, Any] = {"label_columns": ("toxic", "rude"), "problem_type": "multi_label"}
    found = pairs_of(read(tmp_path / "rows.csv", **fields))
    assert expected([("toxic",) if bit else ("rude",) for bit in BITS]) == found
    frame["rude"] = "maybe"
    frame.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match="line 2, column .*: expected 0 or 1, found 'maybe'"):
        read(tmp_path / "rows.csv", **fields)


@pytest.mark.parametrize(
    ("labels", "fields", "message"),
    [
        (
            ["-", *["yes", "no"] * 9, "no"],
            {},
            "1 of 20 rows with label '-', which looks like no label",
        ),
        ([-1, *BITS[1:]], {}, "1 of 20 rows with label '-1', which looks like no label; --ignore-label -1"),
        (["N/A", *["yes", "no"] * 9, "no"], {}, "--labels a,b,… names the labels if it is one"),
        ([200_000 + 7 * n for n in range(COUNT)], {}, "20 different numbers in 20 rows, which look like a regression"),
        ([0.5, 1.5, *[2.5] * 18], {}, "say --problem-type regression, or --problem-type classification"),
        (["blue sky", "red", *["green sea"] * 18], {"problem_type": "multi_label"}, "--label-sep ' ' splits them"),
        (BITS, {"problem_type": "multi_label"}, "found a 0 or 1 alone; --label-cols a,b,… takes a column of"),
    ],
)
def test_labels_that_look_like_something_else_are_asked_about(
    tmp_path: Path, labels: list[Any], fields: dict[str, Any], message: str
) -> None:
    """Nothing is learned wrong in silence: the file is refused with the option that decides."""
    pd.DataFrame({"text": TEXTS, "label": labels}).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match=message.replace("|", r"\|")):
        read(tmp_path / "rows.csv", **fields)


def test_what_was_asked_about_can_be_said(tmp_path: Path) -> None:
    """Ignored labels are left out and counted; named labels and a named problem type are taken as they are."""
    labels = ["-", *["yes", "no"] * 9, "no"]
    pd.DataFrame({"text": TEXTS, "label": labels}).to_csv(tmp_path / "rows.csv", index=False)
    ignored = read(tmp_path / "rows.csv", ignore_labels=("-",))
    assert (1, COUNT - 1, {"yes", "no"}) == (ignored.left_out, len(pairs_of(ignored)), set(pairs_of(ignored).values()))
    assert any("1 row was left out" in remark for remark in ignored.remarks)
    named = read(tmp_path / "rows.csv", label_names=("-", "no", "yes"))
    assert expected(labels) == pairs_of(named)
    pd.DataFrame({"text": TEXTS, "label": range(COUNT)}).to_csv(tmp_path / "ids.csv", index=False)
    assert expected([float(n) for n in range(COUNT)]) == pairs_of(read(tmp_path / "ids.csv", problem_type="regression"))


def test_bad_rows_are_told_together_and_can_be_skipped(tmp_path: Path) -> None:
    """An empty text and a missing label are refused with their number and the way on, which counts them."""
    texts, labels = [*TEXTS], [str(bit) for bit in BITS]
    texts[4], labels[9] = " ", ""
    pd.DataFrame({"text": texts, "label": labels}).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match=r"line 6, column 'text': .* and 1 more row of 20 cannot be used; --skip"):
        read(tmp_path / "rows.csv")
    data = read(tmp_path / "rows.csv", skip_bad_rows=True)
    assert (2, COUNT - 2) == (data.left_out, len(pairs_of(data)))
    assert {4, 9}.isdisjoint({*data.train.row_numbers, *data.reported.row_numbers})


def test_equal_texts_stay_on_one_side(tmp_path: Path) -> None:
    """A file in which every row stands twice holds out no text that is trained on, and says how many repeat."""
    pd.DataFrame({"text": [*TEXTS, *TEXTS], "label": [*BITS, *BITS]}).to_csv(tmp_path / "rows.csv", index=False)
    data = read(tmp_path / "rows.csv")
    assert set(data.train.texts).isdisjoint(data.reported.texts)
    assert (COUNT, 8) == (data.repeated, len(data.reported))
    assert any("20 rows repeat the text of another row" in remark for remark in data.remarks)
    by_row = load_task(msgspec.structs.replace(data.spec, held_out_by="row"))
    assert not set(by_row.train.texts).isdisjoint(by_row.reported.texts)


def test_the_positive_label_is_the_rarer_one_or_the_one_named(tmp_path: Path) -> None:
    """The class that f1_binary is of stands last and is told; 1, true and yes are it whatever their number."""
    labels = ["broken" if number % 4 == 0 else "fine" for number in range(COUNT)]
    pd.DataFrame({"text": TEXTS, "label": labels}).to_csv(tmp_path / "rows.csv", index=False)
    data = read(tmp_path / "rows.csv")
    assert (("fine", "broken"), "broken") == (data.spec.label_names, data.spec.positive_label)
    assert any("f1_binary is of 'broken', the rarer label" in remark for remark in data.remarks)
    other = read(tmp_path / "rows.csv", positive_label="fine")
    assert (("broken", "fine"), expected(labels)) == (other.spec.label_names, pairs_of(other))
    frequent = ["1" if number % 4 else "0" for number in range(COUNT)]
    pd.DataFrame({"text": TEXTS, "label": frequent}).to_csv(tmp_path / "rows.csv", index=False)
    assert "1" == read(tmp_path / "rows.csv").spec.positive_label


def test_a_file_to_score_may_lack_classes_but_not_add_any(tmp_path: Path) -> None:
    """All its rows are scored under the set's own labels; one that the set does not know is named and counted."""
    labels = [("bad", "fair", "good")[number % 3] for number in range(COUNT)]
    pd.DataFrame({"text": TEXTS, "label": labels}).to_csv(tmp_path / "train.csv", index=False)
    spec = read(tmp_path / "train.csv").spec
    pd.DataFrame({"text": TEXTS[:6], "label": ["good", "bad"] * 3}).to_csv(tmp_path / "test.csv", index=False)
    data = load_to_score(spec, tmp_path / "test.csv")
    assert ((2, 0) * 3, 0, ("bad", "fair", "good")) == (data.reported.labels, len(data.train), data.spec.label_names)
    assert any("no row to score has label fair" in remark for remark in data.remarks)
    pd.DataFrame({"text": TEXTS[:4], "label": ["good", "odd", "odd", "bad"]}).to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(DataError, match=r"line 3, column 'label': .*\(bad, fair, good\), found 'odd' in 2 rows"):
        load_to_score(spec, tmp_path / "test.csv")


def test_a_label_of_thousands_of_digits_is_a_name(tmp_path: Path) -> None:
    """It is sorted and matched like another, and shown shortened."""
    labels = ["9" * 5000 if bit else "7" for bit in BITS]
    pd.DataFrame({"text": TEXTS, "label": labels}).to_csv(tmp_path / "rows.csv", index=False)
    assert expected(labels) == pairs_of(read(tmp_path / "rows.csv", problem_type="classification"))


def test_two_files_are_one_task(tmp_path: Path) -> None:
    """With a second file nothing is held out of the first."""
    pd.DataFrame({"text": TEXTS, "label": BITS}).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame({"text": TEXTS[:5], "label": BITS[:5]}).to_csv(tmp_path / "b.csv", index=False)
    data = read(tmp_path / "a.csv", reported_file=tmp_path / "b.csv")
    assert (COUNT, 5) == (len(data.train), len(data.reported))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """What was read before and after is no one table."""
    path = tmp_path / "rows.csv"
    path.write_text(lines(",", BITS))
    chunks = read_chunks(path, ("text",), rows=5)
    next(chunks)
    with path.open("a") as file:
        file.write("one more,1\n")
    with pytest.raises(DataError, match="expected one that stays as it is while it is read"):
        list(chunks)


def test_columns_without_a_name_of_their_own_are_kept_beside_answers(tmp_path: Path) -> None:
    """Where all columns are wanted, repeated and empty names get their place; a JSON array tells rows and no lines."""
    (tmp_path / "rows.csv").write_text("text,note,note,\nfine,a,b,c\n")
    (table,) = read_chunks(tmp_path / "rows.csv", ("text",), with_rest=True)
    assert {"text": ["fine"], "note.1": ["a"], "note.2": ["b"], "column.3": ["c"]} == dict(table.columns)
    (tmp_path / "rows.json").write_text('[{"text": "fine"}, {"text": "so"}]')
    (table,) = read_chunks(tmp_path / "rows.json", ("text",))
    assert "row 1" == table.place(1)
