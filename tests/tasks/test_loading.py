"""A task's rows from the Hub, the sample, a folder and an own file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.errors import ConfigError, DataError
from registry.tasks.loading import load_task
from registry.tasks.spec import BUILT_IN, HubSource, find_task, read_task_file, replace_split, task_from_file
from registry.tasks.task_data import TaskData

DATA = Path(__file__).parents[3] / "shared" / "data"

MRPC_TRAIN = [
    {"sentence1": "He left.", "sentence2": "He went away.", "label": 1, "idx": 0},
    {"sentence1": "It rained.", "sentence2": "Shares fell.", "label": 0, "idx": 1},
    {"sentence1": "Ann won.", "sentence2": "Victory was Ann's.", "label": 1, "idx": 2},
]
MRPC_VALIDATION = [{"sentence1": "Bo ran.", "sentence2": "Bo slept.", "label": 0, "idx": 0}]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a jsonl file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder laid out as the research data, with MRPC only: train as parquet, validation as jsonl."""
    write_lines(tmp_path / "glue" / "mrpc" / "validation.jsonl", MRPC_VALIDATION)
    pq.write_table(pa.Table.from_pylist(MRPC_TRAIN), tmp_path / "glue" / "mrpc" / "train.parquet")
    return tmp_path


def load_own(path: Path, problem_type: Any = "classification", **settings: Any) -> TaskData:
    """Return the task of one file with columns body and y."""
    return load_task(task_from_file(path, text_column="body", label_column="y", problem_type=problem_type), **settings)


def test_folder_gives_the_rows_of_both_splits(folder: Path) -> None:
    """A folder of parquet and jsonl files gives pairs, labels and row numbers as they are."""
    data = load_task(find_task("mrpc"), str(folder))
    assert ("He left.", "It rained.", "Ann won.") == data.train.texts
    assert ("He went away.", "Shares fell.", "Victory was Ann's.") == data.train.pairs
    assert ((1, 0, 1), (0, 1, 2)) == (data.train.labels, data.train.row_numbers)
    assert (("Bo ran.",), (0,)) == (data.reported.texts, data.reported.labels)
    assert (str(folder), False, 3, 1) == (data.source, data.sample, data.train_available, data.reported_available)


def test_limits_take_rows_and_remember_how_many_there_were(folder: Path) -> None:
    """A limit cuts the rows, not the count of what was available; the rows decide the fingerprint."""
    whole, cut = load_task(find_task("mrpc"), str(folder)), load_task(find_task("mrpc"), str(folder), limit=2)
    assert (2, 3, 1) == (len(cut.train), cut.train_available, len(cut.reported))
    assert whole.fingerprint() != cut.fingerprint()
    assert cut.fingerprint() == load_task(find_task("mrpc"), str(folder), limit=2).fingerprint()


@pytest.mark.parametrize("field", ["limit", "limit_reported"])
def test_limit_below_one_is_refused(folder: Path, field: str) -> None:
    """A limit of no rows is a usage error."""
    with pytest.raises(ConfigError, match=f"{field}: expected at least 1 row, found 0"):
        load_task(find_task("mrpc"), str(folder), **{field: 0})  # type: ignore[arg-type]


def test_missing_folder_split_and_task_are_told(folder: Path) -> None:
    """Each missing part of the layout is named, with what is there."""
    with pytest.raises(DataError, match="folder: expected a folder of data, found none; did you mean 'sample'"):
        load_task(find_task("mrpc"), "smaple")
    with pytest.raises(DataError, match="sst2: folder: expected a folder of data, found none"):
        load_task(find_task("sst2"), str(folder))
    with pytest.raises(
        DataError,
        match=r"split 'test': expected test.parquet, test.jsonl, test.csv or another format, found splits train, valid",
    ):
        load_task(replace_split(find_task("mrpc"), "test"), str(folder))


def test_split_in_two_files_is_refused(folder: Path) -> None:
    """Which of two files is the split is not guessed."""
    write_lines(folder / "glue" / "mrpc" / "train.jsonl", MRPC_TRAIN)
    with pytest.raises(DataError, match=r"split 'train': expected one file, found train.jsonl, train.parquet"):
        load_task(find_task("mrpc"), str(folder))


def test_training_rows_of_one_class_are_refused(folder: Path) -> None:
    """A task cannot be learned from one class, even where the label names are known."""
    (folder / "glue" / "mrpc" / "train.parquet").unlink()
    write_lines(folder / "glue" / "mrpc" / "train.jsonl", MRPC_TRAIN[:1])
    with pytest.raises(DataError, match="'label': expected at least 2 different labels to train on, found only 'equiv"):
        load_task(find_task("mrpc"), str(folder))


def test_hidden_test_labels_are_refused(folder: Path) -> None:
    """A GLUE test split, whose labels are all -1, cannot be reported."""
    write_lines(folder / "glue" / "mrpc" / "test.jsonl", [{**MRPC_TRAIN[0], "label": -1}])
    with pytest.raises(
        DataError,
        match="line 1, column 'label': expected a label seen in training .*, found '-1' in 1 row; -1 marks",
    ):
        load_task(replace_split(find_task("mrpc"), "test"), str(folder))


def test_hub_splits_become_rows() -> None:
    """What the Hub gives is checked and kept as a folder's rows are."""

    def fetch(source: HubSource, splits: Sequence[str], offline: bool) -> dict[str, pa.Table]:
        assert ("nyu-mll/glue mrpc", ("train", "validation"), True) == (str(source), tuple(splits), offline)
        return {"train": pa.Table.from_pylist(MRPC_TRAIN), "validation": pa.Table.from_pylist(MRPC_VALIDATION)}

    data = load_task(find_task("mrpc"), offline=True, fetch=fetch)
    assert ("hub", (1, 0, 1), ("Bo slept.",)) == (data.source, data.train.labels, data.reported.pairs)


def test_bad_hub_row_is_named_by_split_and_row() -> None:
    """A Hub row without a label is found by its split and number."""

    def fetch(source: HubSource, splits: Sequence[str], offline: bool) -> dict[str, pa.Table]:
        bad = [*MRPC_TRAIN, {**MRPC_TRAIN[0], "label": None}]
        return {split: pa.Table.from_pylist(bad) for split in splits}

    with pytest.raises(DataError, match="Hub data set 'nyu-mll/glue mrpc', split train: row 3, column 'label'"):
        load_task(find_task("mrpc"), fetch=fetch)


def test_own_csv_file_is_a_task(tmp_path: Path) -> None:
    """One csv file gives label names, usual metrics and a held-out fifth of each class."""
    path = tmp_path / "mail.csv"
    lines = [f"message {index},{'spam' if index % 4 == 0 else 'ham'}\n" for index in range(40)]
    path.write_text("body,y\n" + "".join(lines), encoding="utf-8")
    data = load_own(path)
    assert (("ham", "spam"), ("accuracy", "f1_binary", "f1_weighted")) == (data.spec.label_names, data.spec.metrics)
    assert ({0: 24, 1: 8}, {0: 6, 1: 2}) == (Counter(data.train.labels), Counter(data.reported.labels))
    assert (str(path), 32, 8) == (data.source, data.train_available, data.reported_available)
    assert data.fingerprint() == load_own(path).fingerprint() != load_own(path, seed=1).fingerprint()


def test_own_jsonl_file_may_have_many_labels_or_numbers(tmp_path: Path) -> None:
    """Multi-label and regression rows come from one file as well."""
    tags = [["sea"], [], ["war", "sea"], ["war"], ["love"]] * 4
    write_lines(tmp_path / "tags.jsonl", [{"body": f"book {i}", "y": tag} for i, tag in enumerate(tags)])
    write_lines(tmp_path / "stars.jsonl", [{"body": f"book {i}", "y": i / 2} for i in range(20)])
    many, numbers = load_own(tmp_path / "tags.jsonl", "multi_label"), load_own(tmp_path / "stars.jsonl", "regression")
    assert (("love", "sea", "war"), 16, 4) == (many.spec.label_names, len(many.train), len(many.reported))
    assert {3} == {len(label) for label in many.train.labels}
    assert (("y",), 16, 4) == (numbers.spec.label_names, len(numbers.train), len(numbers.reported))


def test_task_file_with_a_folder_ignores_where_others_come_from(tmp_path: Path) -> None:
    """A task file's own folder is read, whatever ``data`` is; names seen in training decide the labels."""
    for split, labels in (("train", ["warm", "cold", "warm"]), ("validation", ["cold"])):
        write_lines(tmp_path / "rows" / f"{split}.jsonl", [{"body": f"a {y} day", "label": y} for y in labels])
    (tmp_path / "tone.toml").write_text('text_columns = ["body"]\nfolder = "rows"\n', encoding="utf-8")
    data = load_task(read_task_file(tmp_path / "tone.toml"), "sample")
    assert (("warm", "cold"), (0, 1, 0), (1,)) == (data.spec.label_names, data.train.labels, data.reported.labels)
    assert (str(tmp_path / "rows"), False) == (data.source, data.sample)


def test_label_that_training_lacks_is_named(tmp_path: Path) -> None:
    """A label that appears only in the reported split is refused, not scored as always wrong."""
    for split, labels in (("train", ["warm", "cold"]), ("validation", ["cold", "hot"])):
        write_lines(tmp_path / "rows" / f"{split}.jsonl", [{"body": f"a {y} day", "label": y} for y in labels])
    (tmp_path / "tone.toml").write_text('text_columns = ["body"]\nfolder = "rows"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"validation.jsonl: line 2, column 'label': .* \(cold, warm\), found 'hot'"):
        load_task(read_task_file(tmp_path / "tone.toml"))


def test_metric_that_needs_two_classes_is_refused_before_training(tmp_path: Path) -> None:
    """A metric that the data cannot have is an error of reading, not of scoring."""
    write_lines(tmp_path / "rows.jsonl", [{"body": f"text {i}", "y": i % 3} for i in range(12)])
    text = 'text_columns = ["body"]\nlabel_column = "y"\nfile = "rows.jsonl"\nmetrics = ["f1_binary"]\n'
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="metrics: expected ones for 3 classes, f1_macro say, found 'f1_binary'"):
        load_task(read_task_file(tmp_path / "own.toml"))


def test_own_task_is_not_in_the_sample_nor_on_the_hub() -> None:
    """A task without a source of its own says which sources there are."""
    spec = find_task("mrpc").__class__(name="own", text_columns=("body",))
    with pytest.raises(ConfigError, match="data: expected a folder, as task 'own' is not on the Hub, found 'hub'"):
        load_task(spec)
    with pytest.raises(
        ConfigError, match="data for task 'own': expected .*as the sample has only imdb, mrpc, sst2, found 'sample'"
    ):
        load_task(spec, "sample")


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_sample_is_balanced_and_never_repeats(name: str) -> None:
    """The bundled sample has 160 and 80 rows, both labels alike, and no text twice."""
    data = load_task(find_task(name), "sample", offline=True)
    assert ("sample", True, 160, 80) == (data.source, data.sample, len(data.train), len(data.reported))
    for rows in (data.train, data.reported):
        share = sum(rows.labels) / len(rows)
        assert 0.4 <= share <= 0.7
    texts = [text for rows in (data.train, data.reported) for text in (*rows.texts, *(rows.pairs or ()))]
    assert len(texts) == len({" ".join(text.lower().split()) for text in texts})


def test_sample_reviews_are_of_a_reviews_length() -> None:
    """Reviews of the sample have 40 to 120 words."""
    data = load_task(find_task("imdb"), "sample", offline=True)
    lengths = [len(text.split()) for rows in (data.train, data.reported) for text in rows.texts]
    assert 40 <= min(lengths) <= max(lengths) <= 120


@pytest.mark.skipif(not DATA.is_dir(), reason="the research data is not here")
@pytest.mark.parametrize(
    ("name", "split", "train", "reported"),
    [
        ("mrpc", "validation", 3668, 408),
        ("mrpc", "test", 3668, 1725),
        ("sst2", "validation", 67349, 872),
        ("imdb", "test", 25000, 25000),
    ],
)
def test_research_data_has_its_published_size(name: str, split: str, train: int, reported: int) -> None:
    """The three tasks have the Hub's numbers of rows."""
    data = load_task(replace_split(find_task(name), split), str(DATA), limit=100)
    assert (train, reported, 100) == (data.train_available, data.reported_available, len(data.train))


def test_fewer_training_rows_are_those_of_a_limit(tmp_path: Path) -> None:
    """With or without a limit before it, a number of training rows draws what that limit draws, once."""
    rows = [{"body": f"row {n}", "y": "no" if n % 3 else "yes"} for n in range(40)]
    write_lines(tmp_path / "own.jsonl", rows)
    whole, limited, expected = (
        load_own(tmp_path / "own.jsonl", seed=3, **limit) for limit in ({}, {"limit": 20}, {"limit": 7})
    )
    assert (32, 20, 7) == (len(whole.train), len(limited.train), len(expected.train))
    for data in (whole, limited):
        fewer = data.with_train_rows(7)
        assert expected == fewer
        assert expected.fingerprint() == fewer.fingerprint()
        assert fewer is data.with_train_rows(7)
        assert data.reported is fewer.reported
        assert set(fewer.train.row_numbers) < set(data.with_train_rows(8).train.row_numbers)
        assert data is data.with_train_rows(len(data.train))
    assert expected == limited.with_train_rows(12).with_train_rows(7)
    with pytest.raises(ConfigError, match="train_rows: expected 1 to 20, the training rows of 'own', limited from 32"):
        limited.with_train_rows(21)
    with pytest.raises(ConfigError, match="train_rows: expected 1 to 32, the training rows of 'own', found 0"):
        whole.with_train_rows(0)
