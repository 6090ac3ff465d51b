"""The answers to every row of a file, written beside its own columns, a chunk at a time.

What is written is confirmed by a journal after each chunk, so a run that was killed goes on where it stood: no row is
lost, doubled or out of order. Memory is that of a chunk, however long the file is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from registry.bulk.answer_formats import FORMATS, finish, writer_of
from registry.errors import ConfigError, DataError, OutputError, RegistryError, RequestError
from registry.schema import Manifest, Reading, members_of
from registry.serving.predictor import Prediction, Predictor, Request
from registry.store import files
from registry.tasks.cells import Table
from registry.tasks.tables import read_chunks
from registry.validation import Record, from_json, require, to_json

ANSWER_ROWS = 1_024  # answered, written and confirmed at a time: seconds of work on a CPU


class Journal(Record, frozen=True, kw_only=True):
    """How far an answer file has come: rows answered, rows with an error, bytes that hold them, and of what."""

    settings: str
    rows: int = 0
    errors: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class FileQuestion:
    """What is asked of a file.

    Attributes:
        path: of the rows.
        references: of the sets that answer each row, with their versions; none where each row names its own.
        text_columns: one, or two for pairs.
        reading: how the file becomes rows.
        prefix: in front of the names of added columns; the reference and a dot where several sets answer.
        threshold: the predictor's.
        reference_column: names the set, or the sets, of each row.
        first_row: the number that the file's first row has in what the file was cut from.
        mark: what tells the rows from others, where the file is made anew for each run.
    """

    path: Path
    references: tuple[str, ...]
    text_columns: tuple[str, ...]
    reading: Reading
    prefix: str = ""
    threshold: float | None = None
    reference_column: str | None = None
    first_row: int = 0
    mark: str | None = None

    def prefix_of(self, reference: str) -> str:
        """Return what stands in front of the columns that one set adds."""
        return f"{self.prefix}{reference}." if len(self.references) > 1 else self.prefix

    def count_errors(self, rows: Sequence[dict[str, Any]]) -> int:
        """Return how many of the answered rows have an error."""
        names = [f"{self.prefix_of(each)}error" for each in self.references or ("",)]
        return sum(any(row[name] for name in names) for row in rows)

    def digest(self) -> str:
        """Return what tells one question from another: the file as it is now, and all that is asked."""
        stat = None if self.mark is not None else os.stat(self.path)
        told = [self.mark] if stat is None else [str(self.path.absolute()), stat.st_size, stat.st_mtime_ns]
        asked = [self.references, self.text_columns, self.prefix, to_json(self.reading).decode(), self.threshold]
        plain = json.dumps([*told, *asked, *(() if self.reference_column is None else (self.reference_column,))])
        return hashlib.sha256(plain.encode()).hexdigest()


def answer_chunks(
    predictor: Predictor, question: FileQuestion, first: int = 0, rows: int = ANSWER_ROWS, *, one_header: bool = False
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of a file with their answers, from the ``first``-th row on.

    Each is a dictionary of the file's own columns, then for every set ``label``, ``probability.NAME`` for each label,
    and ``error``, which is empty where there is an answer. With ``one_header`` JSON rows of a later chunk may have no
    further columns.

    Raises:
        DataError: the file, or the rows up to where it is damaged.
        ConfigError: an added column has the name of one of the file's, or a row has one that the header lacks.
    """
    header: tuple[str, ...] | None = None
    added = all_added(predictor, question)
    own = () if question.reference_column is None else (question.reference_column,)
    wanted = (*question.text_columns, *own)
    for table in read_chunks(question.path, wanted, question.reading, rows=rows, with_rest=True):
        taken = {name for names in added.values() for name in names} & set(table.names)
        if taken:
            field, hint = f"columns of {question.path}", "--prefix answer. names the added ones answer.label and so on"
            raise ConfigError(field, "none that is called like an added one", sorted(taken)[0], hint)
        header = header or table.names
        if one_header and table.names != header:
            field, hint = f"columns of {question.path}", "--out FILE.jsonl keeps rows with columns of their own"
            new = next(name for name in table.names if name not in header)
            raise ConfigError(field, f"those of the first {rows:,} rows", new, hint)
        start = max(0, first - table.first)
        if start >= len(table):
            continue
        table = replace(table, first=table.first + question.first_row)
        yield _answer_table(predictor, question, table, start, added)


def all_added(predictor: Predictor, question: FileQuestion) -> dict[str, tuple[str, ...]]:
    """Return the names of the columns that each set adds; under an empty reference those of whichever a row names."""
    if question.reference_column is not None:
        return {"": tuple(f"{question.prefix}{name}" for name in ("answered_by", "label", "probabilities", "error"))}
    manifests = {each: predictor.registry.manifest(members_of(each)[0]) for each in question.references}
    return {each: added_columns(question, each, manifest) for each, manifest in manifests.items()}


def answer_schema(predictor: Predictor, question: FileQuestion) -> pa.Schema | None:
    """Return the columns of a parquet file with those that its answers add, None for other files.

    So a column has its type also where all cells of a file are empty, and the parts of a data set are of one schema.

    Raises:
        DataError: no parquet file.
    """
    if question.path.suffix.lower() != ".parquet":
        return None
    try:
        own = pq.read_schema(question.path).remove_metadata()
    except (pa.ArrowException, OSError) as err:
        raise DataError(question.path, "content", "a parquet file", (str(err).splitlines() or [""])[0]) from err
    text, number = pa.string(), pa.float64()
    if question.reference_column is not None:
        types = (text, text, pa.map_(text, number), text)
        return pa.schema([*own, *map(pa.field, all_added(predictor, question)[""], types)])
    fields = list(own)
    for reference, names in all_added(predictor, question).items():
        value = predictor.registry.manifest(members_of(reference)[0]).head.problem_type == "regression"
        types = (number if value else text, *[number] * (len(names) - 2), text)
        fields += map(pa.field, names, types)
    return pa.schema(fields)


def added_columns(question: FileQuestion, reference: str, manifest: Manifest) -> tuple[str, ...]:
    """Return the names of the columns that one set adds."""
    prefix = question.prefix_of(reference)
    names = tuple(f"{prefix}probability.{name}" for name in manifest.head.label_names)
    if manifest.head.problem_type == "regression":
        names = ()
    return (f"{prefix}label", *names, f"{prefix}error")


def _answer_table(
    predictor: Predictor, question: FileQuestion, table: Table, start: int, added: dict[str, tuple[str, ...]]
) -> list[dict[str, Any]]:
    places = range(start, len(table))
    names = [name for name in table.names if name in table.columns]
    answered: list[dict[str, Any]] = [{name: table.columns[name][place] for name in names} for place in places]
    columns = [table.column(name) for name in question.text_columns]
    if question.reference_column is not None:
        own = table.column(question.reference_column)
        answers = _answer_named(predictor, [(own[place], *(cells[place] for cells in columns)) for place in places])
        for place, row, answer in zip(places, answered, answers, strict=True):
            row.update(_named_cells(added[""], answer, table.place(place)))
    for reference in question.references:
        asked = [Request(reference, *(cells[place] for cells in columns)) for place in places]
        for place, row, answer in zip(places, answered, predictor.answer_each(asked), strict=True):
            row.update(_cells(added[reference], answer, table.place(place)))
    return answered


def _answer_named(predictor: Predictor, rows: Sequence[tuple[Any, ...]]) -> list[Prediction | RegistryError]:
    """Return the answers to rows of a reference, a text and perhaps a second one, which is empty for single texts."""
    asked = [Request(own, text, *(each or None for each in pair)) for own, text, *pair in rows if isinstance(own, str)]
    answers = iter(predictor.answer_each(asked))
    expected = "the name of a stored set"
    return [
        next(answers) if isinstance(own, str) else RequestError("answer a row", expected, repr(own)[:80])
        for own, *_ in rows
    ]


def _told(err: RegistryError, place: str) -> str:
    """Return why a row has no answer."""
    return f"{place}: expected {err.expected}, found {err.found}" if isinstance(err, RequestError) else str(err)


def _named_cells(names: Sequence[str], answer: Prediction | RegistryError, place: str) -> dict[str, Any]:
    """Return the added cells of a row that names its set: which version answered, and all its probabilities in one."""
    if isinstance(answer, RegistryError):
        return {**dict.fromkeys(names), names[-1]: _told(answer, place)}
    label = "|".join(answer.label) if isinstance(answer.label, tuple) else str(answer.label)
    shares = {name: round(share, 6) for name, share in answer.probabilities.items()}
    return dict(zip(names, [answer.reference, label, shares, None], strict=True))


def _cells(names: Sequence[str], answer: Prediction | RegistryError, place: str) -> dict[str, Any]:
    """Return the added cells of one row under their names."""
    if isinstance(answer, RegistryError):
        return {**dict.fromkeys(names), names[-1]: _told(answer, place)}
    label = "|".join(answer.label) if isinstance(answer.label, tuple) else answer.label
    shares = [] if isinstance(answer.label, float) else [round(share, 6) for share in answer.probabilities.values()]
    return dict(zip(names, [label, *shares, None], strict=True))


def write_answers(
    predictor: Predictor,
    question: FileQuestion,
    out: Path,
    *,
    restart: bool = False,
    observe: Callable[[Journal], None] | None = None,
    rows: int = ANSWER_ROWS,
) -> Journal:
    """Write the rows of a file with their answers to ``out``, and return how many rows and errors there are.

    A run that was stopped is continued by the same question. The file appears under its name when it is whole.

    Args:
        predictor: answers.
        question: what is asked.
        out: csv, tsv, jsonl or parquet; must not be there.
        restart: forget what an unfinished run of another question has written.
        observe: called at the start, with what an earlier run has done, and after each chunk.
        rows: of a chunk.

    Raises:
        ConfigError: ``out`` is there, has another ending, or is begun with another question.
        DataError, AdapterNotFoundError: see ``answer_chunks``.
        OutputError: ``out`` cannot be written.
    """
    require(out.suffix.lower() in FORMATS, f"--out {out}", f"a file ending in {', '.join(FORMATS)}", out.suffix)
    if out.exists():
        raise ConfigError(f"--out {out}", "a name that is free", "a file", "name another, or remove it")
    part, path = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.journal")
    settings = question.digest()
    journal = Journal(settings=settings) if restart else _read_journal(path, part, settings)
    try:
        if observe is not None:
            observe(journal)
        with part.open("r+b" if part.exists() else "w+b") as file:
            file.truncate(journal.bytes)  # what a killed run wrote after its last chunk was confirmed
            file.seek(journal.bytes)
            one_header = out.suffix.lower() in (".csv", ".tsv")
            schema = answer_schema(predictor, question) if out.suffix.lower() == ".parquet" else None
            write = writer_of(out, schema)
            for chunk in answer_chunks(predictor, question, journal.rows, rows, one_header=one_header):
                write(file, chunk, journal.rows == 0)
                journal = _confirm(path, journal, file, len(chunk), question.count_errors(chunk))
                if observe is not None:
                    observe(journal)
        finish(part, out)
        path.unlink(missing_ok=True)
    except pa.ArrowException as err:
        hint = "--out FILE.jsonl takes cells of any type"
        raise ConfigError(f"--out {out}", "cells of one type in each column", str(err).splitlines()[0], hint) from err
    except OSError as err:
        raise OutputError(out, files.reason(err)) from err
    return journal


def _confirm(path: Path, journal: Journal, file: BinaryIO, rows: int, errors: int) -> Journal:
    """Return the journal with rows more, written after their bytes are on the disk."""
    file.flush()
    os.fsync(file.fileno())
    done = Journal(
        settings=journal.settings, rows=journal.rows + rows, errors=journal.errors + errors, bytes=file.tell()
    )
    files.replace_file(path, to_json(done))
    return done


def _read_journal(path: Path, part: Path, settings: str) -> Journal:
    """Return how far an earlier run of the same question has come; nowhere where there is none, or not all it wrote.

    Raises:
        ConfigError: it was another question.
    """
    if not path.exists():
        return Journal(settings=settings)
    try:
        journal = from_json(Journal, path.read_bytes())
    except (ConfigError, OSError):
        return Journal(settings=settings)
    if journal.settings != settings:
        expected, found = "an unfinished run of the same file, sets and options", "one of others"
        raise ConfigError(str(path), expected, found, "--restart forgets it")
    there = part.stat().st_size if part.exists() else 0
    return journal if there >= journal.bytes else Journal(settings=settings)
