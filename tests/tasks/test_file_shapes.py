"""Thousands of generated files with known rows: each is read as it is, or refused, and never read otherwise."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from registry.errors import RegistryError
from registry.schema import Reading
from registry.tasks.loading import load_task
from registry.tasks.spec import task_from_file

FILES, BATCHES = 2_000, 8
SEPARATORS = {".csv": ",;|", ".tsv": "\t;", ".txt": "\t;|,"}
PIECES = (
    "rain",
    "a day",
    "so, so",
    "50 %",
    "x;y",
    '5" pipe',
    "it's",
    "e|f",
    "naïve",
    "café",
    "two\tcells",
    "one\nmore",
)
LABELS: dict[str, list[Any]] = {
    "words": ["good", "bad", "so so"],
    "numbers": [0, 1, 2],
    "floats": ["0.0", "1.0"],
    "both": ["0", "0.0", "1", "1.0"],
    "booleans": ["True", "False"],
    "spaced": [" yes", "no "],
    "dash": ["yes", "no", "-"],
    "missing": ["yes", "no", ""],
}


class Made(NamedTuple):
    """A file, how it is to be read, and the label of every text in it."""

    path: Path
    columns: dict[str, str]
    reading: dict[str, Any]
    known: dict[str, str]


def spelled(label: Any) -> str:
    """Return the one name of a label's spellings here."""
    plain = str(label).strip()
    return plain.lower() if plain in ("True", "False") else plain.removesuffix(".0")


def make_file(chance: random.Random, folder: Path) -> Made:
    """Write a file of some shape."""
    count, form = chance.randint(12, 24), chance.choice(list(LABELS))
    texts = [f"{n} " + " ".join(chance.choices(PIECES, k=chance.randint(1, 4))) for n in range(count)]
    labels = [chance.choice(LABELS[form]) for _ in range(count)]
    suffix = chance.choice([".csv", ".csv", ".tsv", ".txt", ".jsonl", ".json"])
    columns: dict[str, str] = {"text_column": "text", "label_column": "label"}
    reading: dict[str, Any] = {}
    if suffix in (".jsonl", ".json"):
        rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
        content = json.dumps(rows) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        return write(chance, folder / f"rows{suffix}", content, Made(folder, columns, reading, {}), texts, labels)
    separator = chance.choice(SEPARATORS[suffix])
    if chance.random() < 0.4:  # as programs write that know no quotation marks
        texts = [text.replace(separator, " ").replace("\n", " ") for text in texts]
        texts = [f'"{text}' if chance.random() < 0.1 else text for text in texts]
        labels = [str(label).replace(separator, " ") for label in labels]
        content = "".join(f"{text}{separator}{label}\n" for text, label in zip(texts, labels, strict=True))
    else:
        buffer = io.StringIO()
        quoting, end = chance.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), chance.choice(["\n", "\r\n"])
        writer = csv.writer(buffer, delimiter=separator, quoting=quoting, lineterminator=end)
        writer.writerows(zip(texts, labels, strict=True))
        content = buffer.getvalue()
    if chance.random() < 0.3:
        columns, reading = {"text_column": "0", "label_column": "1"}, {"header": False}
    else:
        content = f"text{separator}label\n{content}"
    if chance.random() < 0.2:
        reading["sep"] = separator
    return write(chance, folder / f"rows{suffix}", content, Made(folder, columns, reading, {}), texts, labels)


def write(chance: random.Random, path: Path, content: str, made: Made, texts: list[str], labels: list[Any]) -> Made:
    """Write the content in some encoding, perhaps packed."""
    encoding = chance.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])
    named = {"encoding": "latin-1"} if encoding == "latin-1" and chance.random() < 0.5 else {}
    data = content.encode(encoding)
    if chance.random() < 0.2:
        path, data = path.with_name(f"{path.name}.gz"), gzip.compress(data)
    path.write_bytes(data)
    known = dict(zip(texts, map(spelled, labels), strict=True))
    return Made(path, made.columns, {**made.reading, **named}, known)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_file_is_read_as_it_is_or_refused(tmp_path: Path, batch: int) -> None:
    """Separator, quotation marks, encoding, header, labels and gaps are found or told, never mistaken."""
    wrong, read = [], 0
    for number in range(batch, FILES, BATCHES):
        made = make_file(random.Random(number), tmp_path)
        try:
            data = load_task(task_from_file(made.path, **made.columns, reading=Reading(**made.reading)))
        except RegistryError:
            continue
        names, read = data.spec.label_names or (), read + 1
        rows = [*zip(data.train.texts, data.train.labels, strict=True)]
        rows += zip(data.reported.texts, data.reported.labels, strict=True)
        if len(rows) != len(made.known) or {text: names[label] for text, label in rows} != made.known:
            wrong.append((number, made.path.name, made.reading))
    assert [] == wrong
    assert read > FILES / BATCHES / 3, "too few files were read to prove anything"


def test_pandas_and_we_read_a_quoted_file_alike(tmp_path: Path) -> None:
    """What a frame wrote is what is read, to the character."""
    texts = [f"{n} {first} {second}" for n, (first, second) in enumerate(zip(PIECES, PIECES[::-1], strict=True))]
    pd.DataFrame({"text": texts, "label": ["a", "b"] * 6}).to_csv(tmp_path / "rows.csv", index=False)
    data = load_task(task_from_file(tmp_path / "rows.csv", text_column="text"))
    assert set(texts) == {*data.train.texts, *data.reported.texts}
