"""Answers to every row of a file: beside its own columns, in order, and the same after any number of stops."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from registry.bulk.answer_file import FileQuestion, Journal, answer_chunks, write_answers
from registry.config import AdapterConfig, HeadConfig
from registry.errors import ConfigError
from registry.model.backbone import Backbone
from registry.schema import Reading, SetInfo
from registry.serving.predictor import Predictor
from registry.store.registry import Registry
from tests.support.toy_task import randomise

COUNT = 23
TEXTS = [f"the film was {word} and {n}" for n, word in zip(range(COUNT), ["good", "bad", "dull"] * COUNT, strict=False)]
BAD = 11  # the row without a text


@pytest.fixture
def predictor(tmp_path: Path, tiny_backbone: Backbone) -> Predictor:
    """A predictor with a set of two classes, one of several labels, and one of a number."""
    registry = Registry.create(tmp_path / "store", tiny_backbone)
    heads = {
        "two": HeadConfig(label_names=("no", "yes")),
        "many": HeadConfig(label_names=("a", "b"), problem_type="multi_label"),
        "price": HeadConfig(label_names=("price",), problem_type="regression", target_mean=50.0, target_deviation=9.0),
    }
    for seed, (name, head) in enumerate(heads.items()):
        fresh = tiny_backbone.new_adapter_set(AdapterConfig(reduction_factor=4), head)
        registry.save(name, randomise(fresh, seed=seed), SetInfo(pair=False, max_length=16))
    return Predictor(tiny_backbone, registry)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A csv with an own column on either side of the texts, one of which is empty."""
    path = tmp_path / "rows.csv"
    texts = [" " if number == BAD else text for number, text in enumerate(TEXTS)]
    frame = pd.DataFrame({"id": range(COUNT), "body": texts, "note": ["a, b", 'said "no"', "x"] * 7 + ["y", "z"]})
    frame.to_csv(path, index=False)
    return path


def ask(path: Path, *references: str) -> FileQuestion:
    """Return the question that some sets answer about the column body."""
    return FileQuestion(path, tuple(f"{each}:1" for each in references), ("body",), Reading())


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_answers_stand_beside_the_rows_own_columns(
    tmp_path: Path, rows: Path, predictor: Predictor, suffix: str
) -> None:
    """Every row is there once, in order, with its columns, the answer of each set, and an error where there is none."""
    out = tmp_path / f"answers{suffix}"
    journal = write_answers(predictor, ask(rows, "two", "many", "price"), out, rows=5)
    assert (COUNT, 1) == (journal.rows, journal.errors)
    read = {
        ".csv": lambda path: pd.read_csv(path, keep_default_na=False),
        ".tsv": lambda path: pd.read_csv(path, sep="\t", keep_default_na=False),
        ".jsonl": lambda path: pd.read_json(path, lines=True),
        ".parquet": pd.read_parquet,
    }
    found = read[suffix](out)
    assert pd.read_csv(rows)["note"].tolist() == found["note"].tolist()
    assert list(map(str, range(COUNT))) == [str(value) for value in found["id"]]
    good = [number for number in range(COUNT) if number != BAD]
    asked = [TEXTS[number] for number in good]
    two, many = predictor("two", asked), predictor("many", asked)
    assert [answer.label for answer in two] == [found["two:1.label"][number] for number in good]
    assert ["|".join(answer.label) for answer in many if isinstance(answer.label, tuple)] == [
        found["many:1.label"][number] for number in good
    ]
    shares = [float(found["two:1.probability.yes"][number]) for number in good]
    assert shares == pytest.approx([answer.probabilities["yes"] for answer in two], abs=2e-6)
    values = [float(found["price:1.label"][number]) for number in good]
    assert values == pytest.approx([answer.label for answer in predictor("price", asked)], rel=1e-5)
    assert "expected a text, found an empty one" in found["two:1.error"][BAD]
    assert not list(tmp_path.glob("answers*.part")) + list(tmp_path.glob("answers*.journal"))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_run_that_was_stopped_goes_on_where_it_stood(
    tmp_path: Path, rows: Path, predictor: Predictor, suffix: str
) -> None:
    """However often and wherever it is stopped, the result is that of an undisturbed run, to the byte."""

    class StoppedError(Exception):
        pass

    def stop_after(chunks: int) -> None:
        seen: list[Journal] = []

        def observe(journal: Journal) -> None:
            seen.append(journal)
            if len(seen) > chunks:
                raise StoppedError

        with pytest.raises(StoppedError):
            write_answers(predictor, ask(rows, "two"), out, observe=observe, rows=4)
        with (tmp_path / f"killed{suffix}.part").open("ab") as part:
            part.write(b"half of a row that nobody confirmed")

    out = tmp_path / f"killed{suffix}"
    for chunks in (1, 0, 2):
        stop_after(chunks)
    assert not out.exists()
    write_answers(predictor, ask(rows, "two"), out, rows=4)
    write_answers(predictor, ask(rows, "two"), tmp_path / f"whole{suffix}", rows=4)
    assert (tmp_path / f"whole{suffix}").read_bytes() == out.read_bytes()


def test_an_unfinished_run_of_another_question_is_not_continued(
    tmp_path: Path, rows: Path, predictor: Predictor
) -> None:
    """Another set, or a file that has changed since, is told before anything is written; --restart forgets."""
    out = tmp_path / "answers.csv"
    question = ask(rows, "two")
    (tmp_path / "answers.csv.part").write_text("begun")
    begun = {"settings": question.digest(), "rows": 0, "errors": 0, "bytes": 0}
    (tmp_path / "answers.csv.journal").write_text(json.dumps(begun))
    with pytest.raises(ConfigError, match="an unfinished run of the same file, sets and options.*--restart forgets it"):
        write_answers(predictor, ask(rows, "many"), out)
    assert COUNT == write_answers(predictor, ask(rows, "many"), out, restart=True).rows
    with pytest.raises(ConfigError, match=r"expected a name that is free, found 'a file'; name another"):
        write_answers(predictor, question, out)


def test_a_column_called_like_an_answer_is_not_overwritten(tmp_path: Path, predictor: Predictor) -> None:
    """A file that has a label of its own is refused with the option that names ours differently."""
    path = tmp_path / "gold.csv"
    pd.DataFrame({"body": TEXTS, "label": ["no"] * COUNT}).to_csv(path, index=False)
    with pytest.raises(ConfigError, match="none that is called like an added one, found 'label'; --prefix"):
        list(answer_chunks(predictor, ask(path, "two")))
    question = FileQuestion(path, ("two:1",), ("body",), Reading(), prefix="ours.")
    (chunk,) = answer_chunks(predictor, question)
    assert ["no"] * COUNT == [row["label"] for row in chunk]
    assert {"no", "yes"} >= {row["ours.label"] for row in chunk}


def test_what_an_unfinished_run_wrote_has_to_be_there(tmp_path: Path, rows: Path, predictor: Predictor) -> None:
    """A journal without its rows, as a removed file leaves it, is not believed."""
    out = tmp_path / "answers.csv"
    question = ask(rows, "two")
    stale = {"settings": question.digest(), "rows": 8, "errors": 0, "bytes": 500}
    (tmp_path / "answers.csv.journal").write_text(json.dumps(stale))
    assert COUNT == write_answers(predictor, question, out, rows=4).rows
    assert list(range(COUNT)) == pd.read_csv(out)["id"].tolist()


def test_rows_with_columns_of_their_own_need_a_format_that_has_them(tmp_path: Path, predictor: Predictor) -> None:
    """A key that only later rows have is not lost or put under another name: JSON lines keep it, csv is refused."""
    path = tmp_path / "rows.jsonl"
    lines = [{"body": text, **({"late": n} if n > 10 else {})} for n, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError, match="expected those of the first 5 rows, found 'late'; --out FILE.jsonl keeps"):
        write_answers(predictor, ask(path, "two"), tmp_path / "answers.csv", rows=5)
    write_answers(predictor, ask(path, "two"), tmp_path / "answers.jsonl", rows=5)
    found = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [n if n > 10 else None for n in range(COUNT)] == [row.get("late") for row in found]
    mixed = tmp_path / "mixed.jsonl"
    marked = [{"body": text, "id": n if n % 2 else "x"} for n, text in enumerate(TEXTS)]
    mixed.write_text("".join(json.dumps(line) + "\n" for line in marked))
    with pytest.raises(ConfigError, match="expected cells of one type in each column.*--out FILE.jsonl takes cells"):
        write_answers(predictor, ask(mixed, "two"), tmp_path / "answers.parquet", rows=5)
