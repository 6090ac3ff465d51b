"""Commands that ask stored sets: predict (a text, lines of standard input, the rows of a file) and evaluate."""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from registry.cli.data import DATA_OPTIONS, READING_OPTIONS, load_for_set, read_reading, told_columns
from registry.cli.options import (
    Settings,
    backbone_option,
    json_option,
    note,
    on_option,
    print_json,
    scores_text,
    with_options,
)
from registry.errors import ConfigError, DataError, RegistryError, RequestError, UnansweredError
from registry.schema import Reference, join_members, members_of
from registry.validation import printable, require

if TYPE_CHECKING:
    from registry.bulk.answer_file import FileQuestion
    from registry.schema import Manifest
    from registry.serving.predictor import Prediction, Predictor
    from registry.store.store import Store

CHUNK_ROWS = 1_024
SECONDS = 5.0  # between two notes of progress
_KEYS = ("adapter", "text", "pair")
_ANSWER_KEYS = {"label", "probabilities", "truncated", "error"}


@click.command()
@click.argument("reference", metavar="[REF]", required=False)
@click.argument("text", required=False)
@click.argument("pair", required=False)
@click.option(
    "--data",
    help="Answer every row of this file (csv, tsv, txt, jsonl, json, parquet, Excel, .gz, .zst), or of all files of "
    "this folder, here or as s3://bucket/rows, gs:// and so on.",
)
@click.option("--text-col", help="Column of the text in --data; the set's own by default.")
@click.option("--pair-col", help="Column of the second text.")
@click.option("--ref", "more", multiple=True, help="Answer with this set as well; may be repeated.")
@click.option("--ref-col", help="Column that names the set of each row, or several as in a+b; in the place of REF.")
@click.option("--out", help="csv, tsv, jsonl or parquet, else stdout; of a folder another folder, here or elsewhere.")
@click.option("--prefix", default="", help="In front of the names of added columns.")
@click.option("--restart", is_flag=True, help="Forget what an unfinished run has written beside --out.")
@with_options(READING_OPTIONS)
@click.option("--strict", is_flag=True, help="End at the first line of standard input that cannot be answered.")
@click.option("--threshold", type=float, metavar="P", help="Say labels of multi-label sets from this probability on.")
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Show the N likeliest labels alone.")
@on_option
@backbone_option
@json_option
@click.pass_obj
def predict(
    settings: Settings, /, reference: str | None, text: str | None, pair: str | None, as_json: bool, **options: Any
) -> None:
    """Answer TEXT (and PAIR) with a stored set, or every row of a file; '-' reads JSON lines, each naming its own set.

    \b
    adapter-registry predict sst2 "a gripping film"
    adapter-registry predict mrpc "He left." "He went away."
    adapter-registry predict mails --data mails.csv --text-col body --out answers.csv
    adapter-registry predict mails --data s3://bucket/mails --text-col body --out s3://bucket/answers
    adapter-registry predict mails+mails-2 "a text for two sets, whose probabilities are averaged"
    echo '{"adapter": "sst2", "text": "dull"}' | adapter-registry predict -
    """
    from registry.serving.predictor import Request

    if options["data"] is not None:
        require(text is None, "TEXT", "none beside --data", text)
        _answer_rows(settings, [each for each in (reference, *options["more"]) if each is not None], options)
        return
    for name in ("on", "out", "ref_col"):
        require(options[name] is None, f"--{name.replace('_', '-')}", "--data beside it", options[name])
    if reference is None:
        raise RequestError("answer", "a stored set and a text, '-', or --data FILE", "none")
    if reference == "-" or text == "-":
        own = None if reference == "-" else reference
        if own is not None:
            _parse_members(own)
        if sys.stdin is None:
            raise RequestError("answer lines of standard input", "an open one", "a closed one")
        _answer_lines(settings, sys.stdin.buffer, own, options)
        return
    _parse_members(reference)
    if text is None:
        raise RequestError(f"answer with '{reference}'", "a text, or '-' for JSON lines, or --data FILE", "none")
    if pair is None and os.path.isfile(text):  # unlike Path's, for texts of any length
        raise RequestError(f"answer with '{reference}'", f"a text, or --data {text} for its rows", "the name of a file")
    predictor = _open_predictor(settings, options)
    for answer in predictor.mixed([Request(reference, text, pair)]):
        _print_answer(answer, as_json, options["top"])


def _answer_lines(settings: Settings, stream: BinaryIO, own: str | None, options: dict[str, Any]) -> None:
    """Print for each line its answer or its error, in order, and tell at the end how many errors there were."""
    from registry.serving.predictor import Request

    predictor = _open_predictor(settings, options)
    numbered = ((number, line) for number, line in enumerate(stream, start=1) if line.strip())
    lines = errors = 0
    while chunk := list(islice(numbered, CHUNK_ROWS)):
        parsed = [_parse_or_error(number, line, own) for number, line in chunk]
        rows = [row for row in parsed if isinstance(row, dict)]
        answers = iter(predictor.answer_each([Request(row["adapter"], row["text"], row.get("pair")) for row in rows]))
        for (number, _), row in zip(chunk, parsed, strict=True):
            answer = next(answers) if isinstance(row, dict) else row
            more = {key: row[key] for key in row if key not in _KEYS} if isinstance(row, dict) else {}
            lines += 1
            if not isinstance(answer, RegistryError):
                print_json({**more, **_as_plain(answer, options["top"])})
                continue
            if options["strict"]:
                raise answer
            errors += 1
            told = (
                f"expected {answer.expected}, found {answer.found}" if isinstance(answer, RequestError) else str(answer)
            )
            print_json({**more, "line": number, "error": told})
    if errors:
        raise UnansweredError("lines of standard input", errors, lines)


def _parse_or_error(number: int, line: bytes, reference: str | None) -> dict[str, Any] | RegistryError:
    try:
        return _parse_row(number, line, reference)
    except RegistryError as err:
        return err


def _parse_row(number: int, line: bytes, reference: str | None) -> dict[str, Any]:
    attempted = f"answer line {number} of standard input"
    expected = 'an object such as {"adapter": "sst2", "text": "dull"}'
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as err:
        raise RequestError(attempted, "UTF-8", f"byte {line[err.start]:#04x}") from err
    except (ValueError, RecursionError) as err:
        hint = " (--data FILE answers csv and other files)" if number == 1 else ""
        raise RequestError(attempted, f"{expected}{hint}", "no JSON") from err
    if not isinstance(row, dict):
        raise RequestError(attempted, expected, type(row).__name__)
    if reference is not None:
        row = {"adapter": reference, **row}
    taken = sorted(_ANSWER_KEYS & row.keys())
    if taken:
        raise RequestError(attempted, "no key that the answer has", f"'{taken[0]}'")
    for key in ("adapter", "text"):
        if not isinstance(row.get(key), str):
            raise RequestError(attempted, f"a text under '{key}'", json.dumps(row.get(key))[:80])
    if not isinstance(row.get("pair"), str | None):
        raise RequestError(attempted, "a text under 'pair'", json.dumps(row["pair"])[:80])
    _parse_members(row["adapter"])
    return row


def _parse_members(reference: str) -> tuple[Reference, ...]:
    """Return the sets that a reference names, one or several as in ``a+b``."""
    return tuple(map(Reference.parse, members_of(reference)))


def _answer_rows(settings: Settings, references: list[str], options: dict[str, Any]) -> None:
    """Answer every row of a file or a folder, into another or as JSON lines on stdout."""
    data, named = options["data"], options["ref_col"]
    is_folder = "://" in data or Path(data).expanduser().is_dir()
    require(is_folder or options["on"] is None, f"--on {options['on']}", "--data FOLDER beside it", data)
    if not is_folder and not Path(data).expanduser().is_file():
        raise DataError(data, "file", "a file or a folder", "none")
    is_asked = bool(references) != (named is not None)
    require(is_asked, f"--data {data}", "a stored set, or --ref-col", references or "none")
    question = _question(settings.open_store(), references, options)
    rows, errors = (_answer_folder if is_folder else _answer_file)(settings, question, options)
    if errors:
        raise UnansweredError(f"rows of {data}", errors, rows)


def _question(store: Store, references: list[str], options: dict[str, Any]) -> FileQuestion:
    """Return what is asked of each row, the sets with the versions that they have now."""
    from registry.bulk.answer_file import FileQuestion

    found = [[store.resolve(each) for each in _parse_members(reference)] for reference in references]
    exact = tuple(join_members([f"{name}:{version}" for name, version in members]) for members in found)
    columns = _text_columns(store.manifest(*found[0][0]) if found else None, options)
    path, rest = Path(options["data"]).expanduser(), (options["prefix"], options["threshold"], options["ref_col"])
    return FileQuestion(path, exact, columns, read_reading(options), *rest)


def _open_predictor(settings: Settings, options: dict[str, Any]) -> Predictor:
    """Return what answers, with the backbone loaded."""
    from registry.serving.predictor import Predictor

    registry = settings.open_registry(options["backbone"])
    return Predictor(registry.backbone, registry, threshold=options["threshold"])


def _answer_file(settings: Settings, question: FileQuestion, options: dict[str, Any]) -> tuple[int, int]:
    """Answer a file; return the rows and how many of them have an error."""
    from registry.bulk.answer_file import answer_chunks, write_answers

    predictor = _open_predictor(settings, options)
    if options["out"] is None:
        rows = errors = 0
        for chunk in answer_chunks(predictor, question):
            print_json(chunk)
            rows, errors = rows + len(chunk), errors + question.count_errors(chunk)
        return rows, errors
    watch, out, restart = _Watch(), Path(options["out"]), options["restart"]
    journal = write_answers(predictor, question, out, restart=restart, observe=lambda done: watch.observe(done.rows))
    note(f"{journal.rows - journal.errors:,} of {journal.rows:,} rows answered, in {out}")
    return journal.rows, journal.errors


def _answer_folder(settings: Settings, question: FileQuestion, options: dict[str, Any]) -> tuple[int, int]:
    """Answer all files of a folder, in parts; return the rows and how many of them have an error."""
    from registry.bulk.data_set import DataSetRun, answer_data_set
    from registry.bulk.folders import Folder

    if options["out"] is None:
        raise ConfigError(f"--data {options['data']}", "--out FOLDER beside a folder", "none")
    folder, out, watch = Folder(options["data"]), Folder(options["out"]), _Watch()
    run = DataSetRun.begin(question, folder, out, restart=options["restart"])
    predictor = _open_predictor(settings, options)
    if options["on"] is None:
        done = answer_data_set(predictor, run, watch.observe)
    else:
        from registry.cluster.connection import connect
        from registry.cluster.predict import answer_on_cluster

        with connect(options["on"]):
            done = answer_on_cluster(predictor, run, watch.observe)
    note(f"{done.rows - done.errors:,} of {done.rows:,} rows answered, in {len(done.parts):,} files of {out}")
    return done.rows, done.errors


def _text_columns(manifest: Manifest | None, options: dict[str, Any]) -> tuple[str, ...]:
    """Return the columns of the texts: those given, else those that the set was trained on."""
    own = manifest.origin.text_columns if manifest is not None and manifest.origin is not None else ()
    if options["text_col"] is None and not own:
        raise ConfigError(f"--data {options['data']}", "--text-col beside it", "none", told_columns(options))
    first = options["text_col"] or own[0]
    second = options["pair_col"] or (own[1] if len(own) > 1 else None)
    return (first,) if second is None else (first, second)


class _Watch:
    """Tells now and then how far the answers to a file have come."""

    def __init__(self) -> None:
        self._started, self._told, self._first = time.monotonic(), time.monotonic(), -1

    def observe(self, rows: int, parts: int = 0) -> None:
        """Tell the rows answered so far, at the first call that a run is continued."""
        now = time.monotonic()
        if self._first < 0:
            self._first = rows
            if rows:
                note(f"{rows:,} rows were answered before; going on after them")
            return
        if now - self._told >= SECONDS:
            rate = (rows - self._first) / (now - self._started)
            note(f"{rows:,} rows answered, {rate:,.0f} rows/s")
            self._told = now


def _as_plain(answer: Prediction, top: int | None) -> dict[str, Any]:
    content: dict[str, Any] = {
        "adapter": answer.reference,
        "label": answer.label,
        "probabilities": {name: round(share, 6) for name, share in _likeliest(answer, top)},
    }
    return {**content, "truncated": True} if answer.truncated else content


def _likeliest(answer: Prediction, top: int | None) -> list[tuple[str, float]]:
    """Return labels and probabilities in the order of the logits, or the ``top`` likeliest from the first on."""
    if top is None:
        return list(answer.probabilities.items())
    return sorted(answer.probabilities.items(), key=lambda item: -item[1])[:top]


def _print_answer(answer: Prediction, as_json: bool, top: int | None) -> None:
    if as_json:
        print_json(_as_plain(answer, top))
        return
    shares = _likeliest(answer, top or len(answer.probabilities))
    told = "  ".join(f"{name} {share:.3f}" for name, share in shares)
    click.echo(printable(f"{_readable(answer.label)}  {told}"))
    if answer.truncated:
        note("the text was cut to the longest length this set was trained for")


def _readable(label: str | tuple[str, ...] | float) -> str:
    if isinstance(label, tuple):
        return ", ".join(label) or "none"
    return label if isinstance(label, str) else f"{label:.3f}"


@click.command()
@click.argument("reference", metavar="REF")
@with_options(DATA_OPTIONS)
@backbone_option
@json_option
@click.pass_obj
def evaluate(settings: Settings, /, reference: str, as_json: bool, **options: Any) -> None:
    """Score a stored set on the reported split of its task; a+b scores the mean of two sets' probabilities."""
    from registry.adapters.head import label_order
    from registry.tasks.metrics import score
    from registry.training.evaluate import answer_task, mean_answers

    members = _parse_members(reference)
    registry = settings.open_registry(options["backbone"])
    manifests = [registry.manifest(each) for each in members]
    label_order(reference, [manifest.head for manifest in manifests])
    sets = [registry.load(each) for each in members]
    data = load_for_set(settings, str(members[0]), manifests[0], options)
    asked = zip(map(str, members), manifests, sets, strict=True)
    answered = mean_answers([answer_task(registry.backbone, *one, data) for one in asked])
    labels, metrics = data.reported.labels, data.spec.metrics
    scores = score(data.spec.problem_type, labels, answered.probabilities, metrics, answered.thresholds)
    if data.sample:
        note("scores from the bundled sample: for trying the program out, not evidence")
    if as_json:
        print_json(
            {
                "adapter": str(reference),
                "task": data.spec.name,
                "split": data.spec.reported_split,
                "rows": len(data.reported),
                "truncated": answered.truncated,
                "sample": data.sample,
                "left_out": data.left_out,
                "positive_label": data.spec.positive_label,
                "scores": scores,
            }
        )
        return
    told = scores_text(scores, data.spec.positive_label, 4)
    click.echo(f"{reference} on {len(data.reported):,} rows of {data.spec.name} {data.spec.reported_split}: {told}")
