"""The predict command: answers to a text, or to lines of standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from registry.cli.options import (
    Settings,
    json_option,
    note,
    print_json,
    printable,
)
from registry.errors import RequestError
from registry.schema import Reference

if TYPE_CHECKING:
    from registry.serving.predictor import Prediction, Request

CHUNK_ROWS = 1_024
_KEYS = {"adapter", "text", "pair"}


@click.command()
@click.argument("reference", metavar="REF")
@click.argument("text", required=False)
@click.argument("pair", required=False)
@json_option
@click.pass_obj
def predict(settings: Settings, reference: str, text: str | None, pair: str | None, as_json: bool) -> None:
    """Answer TEXT (and PAIR) with a stored set; '-' reads JSON lines, each naming its own set.

    \b
    adapter-registry predict sst2 "a gripping film"
    adapter-registry predict mrpc "He left." "He went away."
    echo '{"adapter": "sst2", "text": "dull"}' | adapter-registry predict -
    """
    from registry.serving.predictor import Predictor, Request

    if reference == "-" and text is None:
        chunks = _chunks(sys.stdin.buffer, None)
        as_json = True
    elif text == "-":
        Reference.parse(reference)
        chunks = _chunks(sys.stdin.buffer, reference)
        as_json = True
    else:
        Reference.parse(reference)
        if text is None:
            raise RequestError(f"answer with '{reference}'", "a text, or '-' for JSON lines", "none")
        chunks = iter([[Request(reference, text, pair)]])
    registry = settings.open_registry()
    predictor = Predictor(registry.backbone, registry)
    for chunk in chunks:
        for answer in predictor.mixed(chunk):
            _print_answer(answer, as_json)


def _chunks(stream: BinaryIO, reference: str | None) -> Iterator[list[Request]]:
    from registry.serving.predictor import Request

    numbered = ((number, line) for number, line in enumerate(stream, start=1) if line.strip())
    while chunk := list(islice(numbered, CHUNK_ROWS)):
        requests = []
        for number, line in chunk:
            row = _parse_row(number, line, reference)
            requests.append(Request(row["adapter"], row["text"], row.get("pair")))
        yield requests


def _parse_row(number: int, line: bytes, reference: str | None) -> dict[str, Any]:
    attempted = f"answer line {number} of standard input"
    expected = 'an object such as {"adapter": "sst2", "text": "dull"}'
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as err:
        raise RequestError(attempted, "UTF-8", f"byte {line[err.start]:#04x}") from err
    except (ValueError, RecursionError) as err:
        raise RequestError(attempted, expected, "no JSON") from err
    if not isinstance(row, dict):
        raise RequestError(attempted, expected, type(row).__name__)
    if reference is not None:
        row = {"adapter": reference, **row}
    unknown = sorted(set(row) - _KEYS)
    if unknown:
        raise RequestError(attempted, "the keys adapter, text and pair", f"'{unknown[0]}'")
    for key in ("adapter", "text"):
        if not isinstance(row.get(key), str):
            raise RequestError(attempted, f"a text under '{key}'", json.dumps(row.get(key))[:80])
    if not isinstance(row.get("pair"), str | None):
        raise RequestError(attempted, "a text under 'pair'", json.dumps(row["pair"])[:80])
    Reference.parse(row["adapter"])
    return row


def _print_answer(answer: Prediction, as_json: bool) -> None:
    if as_json:
        content: dict[str, Any] = {
            "adapter": answer.reference,
            "label": answer.label,
            "probabilities": {name: round(share, 6) for name, share in answer.probabilities.items()},
        }
        if answer.truncated:
            content["truncated"] = True
        print_json(content)
        return
    shares = sorted(answer.probabilities.items(), key=lambda item: -item[1])
    told = "  ".join(f"{name} {share:.3f}" for name, share in shares)
    click.echo(printable(f"{_readable(answer.label)}  {told}"))
    if answer.truncated:
        note("the text was cut to the longest length this set was trained for")


def _readable(label: str | tuple[str, ...] | float) -> str:
    if isinstance(label, tuple):
        return ", ".join(label) or "none"
    return label if isinstance(label, str) else f"{label:.3f}"
