"""What travels: the bodies of requests and answers, decoded once, and errors with the words of the command line.

Plain records for msgspec, from which the OpenAPI description is written too. Knows no web framework; the client reads
the same records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgspec

from registry.config import ProblemType
from registry.errors import RegistryError, ServerError
from registry.schema import Manifest
from registry.serving.predictor import Prediction, Request
from registry.store.errors import AdapterNotFoundError
from registry.validation import NOT_JSON

MOST_BODY_ROWS = 256  # of one body
LONGEST_TEXT = 100_000  # characters
_REFERENCE = "#/components/schemas/{name}"
_STATUS_OF_EXIT = {2: 422, 3: 404}
_KINDS = {
    400: "MalformedBody",
    401: "UnknownKey",
    403: "ForbiddenSet",
    404: "NoSuchRoute",
    405: "NoSuchMethod",
    408: "SlowBody",
    413: "TooLarge",
    422: "BadRequest",
    429: "Overloaded",
    503: "Draining",
    504: "DeadlinePassed",
}

Sees: TypeAlias = Callable[[str], bool]  # whether a reference may be told to somebody

_Body = TypeVar("_Body")
_encoder = msgspec.json.Encoder()
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}


class RowBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One row: the set that answers (``name``, ``name:3``, ``name@alias``, or ``a+b`` for their mean), and its text."""

    adapter: str
    text: str
    pair: str | None = None


class RowsBody(msgspec.Struct, forbid_unknown_fields=True):
    """Rows of any sets, answered in their order."""

    rows: list[RowBody]
    top_k: int | None = None


class TextsBody(msgspec.Struct, forbid_unknown_fields=True):
    """Texts for one set, with their second texts where its task is on pairs."""

    texts: list[str]
    pairs: list[str] | None = None
    top_k: int | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """What went wrong: the kind of error, what was attempted, expected and found, and what to do."""

    type: str
    message: str
    hint: str = ""


class Failed(msgspec.Struct, frozen=True):
    """The body of an answer to a request that failed."""

    error: ErrorBody
    request_id: str = ""


class Answer(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The answer to one row, or its error.

    Attributes:
        line: of the stream that it answers, from 1.
        reference: the set that answered, with its version.
        label: a label; several for multi-label sets; the value for regression.
        probabilities: by label name, the ``top_k`` likeliest first where that is asked.
        truncated: whether the row was cut to the set's longest length.
        error: in the place of all others.
        request_id: of a stream.
    """

    line: int | None = None
    reference: str | None = None
    label: str | list[str] | float | None = None
    probabilities: dict[str, float] | None = None
    truncated: bool | None = None
    error: ErrorBody | None = None
    request_id: str | None = None


class Answers(msgspec.Struct, kw_only=True):
    """The answers to all rows in their order, and how many are errors."""

    request_id: str
    failed: int
    answers: list[Answer]


class ListedAdapter(msgspec.Struct, kw_only=True):
    """A name of the store: its versions, the newest last, and where its aliases point."""

    name: str
    versions: list[int]
    aliases: dict[str, int]
    task: str | None = None
    labels: tuple[str, ...] = ()
    error: ErrorBody | None = None


class ListedAdapters(msgspec.Struct, kw_only=True):
    """Names in order; ``next`` is what ``after`` has to say for those that follow."""

    adapters: list[ListedAdapter]
    next: str | None = None


class AdapterBody(msgspec.Struct, kw_only=True):
    """What is known of a stored set that a client may know: no path, and nothing of the machine that trained it."""

    reference: str
    name: str
    version: int
    versions: list[int]
    aliases: dict[str, int]
    created: str
    task: str | None
    problem_type: ProblemType
    labels: tuple[str, ...]
    pair: bool | None
    max_length: int
    main_metric: str | None
    scores: dict[str, float]
    split: str | None
    parameters: int
    method: Any
    digest: str


def decode(kind: type[_Body], data: bytes, attempted: str = "read the body") -> _Body:
    """Return the body that ``data`` spells.

    Raises:
        ServerError: no JSON (400), or other fields (422).
    """
    if kind not in _decoders:
        _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        body: _Body = _decoders[kind].decode(data)
    except msgspec.ValidationError as err:
        raise ServerError(422, attempted, f"the fields of {kind.__name__}", str(err)) from err
    except NOT_JSON as err:
        told = str(err) if isinstance(err, msgspec.DecodeError) else type(err).__name__
        raise ServerError(400, attempted, "JSON in UTF-8", told) from err
    return body


def encode(body: object) -> bytes:
    """Return a body as JSON."""
    return _encoder.encode(body)


def check_rows(rows: Sequence[Request]) -> Sequence[Request]:
    """Return the rows of a body where they are few and short enough.

    Raises:
        ServerError: too many (422), or a text that is too long (413).
    """
    if len(rows) > MOST_BODY_ROWS:
        raise ServerError(422, "read the body", f"at most {MOST_BODY_ROWS} rows", f"{len(rows):,}")
    for index, row in enumerate(rows):
        longest = max(len(row.text), len(row.pair or ""))
        if longest > LONGEST_TEXT:
            raise ServerError(413, f"read row {index}", f"at most {LONGEST_TEXT:,} characters", f"{longest:,}")
    return rows


def requests_of(body: TextsBody, reference: str) -> list[Request]:
    """Return the rows of texts for one set.

    Raises:
        ServerError: another number of second texts.
    """
    pairs = body.pairs
    if pairs is None:
        return [Request(reference, text) for text in body.texts]
    if len(pairs) != len(body.texts):
        raise ServerError(422, "read the body", f"{len(body.texts)} second texts", str(len(pairs)))
    return [Request(reference, text, pair) for text, pair in zip(body.texts, pairs, strict=True)]


def likeliest(probabilities: dict[str, float], top_k: int | None) -> dict[str, float]:
    """Return probabilities in the order of the labels, or the ``top_k`` likeliest from the first on."""
    if top_k is None:
        return probabilities
    return dict(sorted(probabilities.items(), key=lambda item: -item[1])[: max(top_k, 0)])


def status_of(error: RegistryError) -> int:
    """Return the status of HTTP that tells an error."""
    return error.status if isinstance(error, ServerError) else _STATUS_OF_EXIT.get(error.exit_code, 500)


class Words:
    """Errors and answers as they are told to clients: without the store's place, or names that they may not see.

    Args:
        root: of the store.
    """

    def __init__(self, root: str) -> None:
        self._root = root

    def error(self, error: RegistryError, sees: Sees = lambda reference: True) -> ErrorBody:
        """Return what is told of an error to somebody who sees only some references."""
        if isinstance(error, AdapterNotFoundError):
            error = AdapterNotFoundError(error.reference, filter(sees, error.available), "the store")
        told = str(error).replace(self._root, "the store")
        message, semicolon, hint = told.rpartition("; ")
        kind = _KINDS.get(error.status, "InternalError") if isinstance(error, ServerError) else type(error).__name__
        return ErrorBody(kind, message if semicolon else told, hint if semicolon else "")

    def answer(self, answer: Prediction | RegistryError, sees: Sees, top_k: int | None = None) -> Answer:
        """Return what is told of the answer to a row."""
        if isinstance(answer, RegistryError):
            return Answer(error=self.error(answer, sees))
        label = list(answer.label) if isinstance(answer.label, tuple) else answer.label
        shares = likeliest(answer.probabilities, top_k)
        return Answer(reference=answer.reference, label=label, probabilities=shares, truncated=answer.truncated)


def adapter_body(manifest: Manifest, version: int, versions: list[int], aliases: dict[str, int]) -> AdapterBody:
    """Return what a client may know of a stored set."""
    head = manifest.head
    return AdapterBody(
        reference=f"{manifest.name}:{version}",
        name=manifest.name,
        version=version,
        versions=versions,
        aliases=aliases,
        created=manifest.created,
        task=manifest.task,
        problem_type=head.problem_type,
        labels=head.label_names,
        pair=manifest.pair,
        max_length=manifest.max_length,
        main_metric=manifest.main_metric,
        scores=manifest.scores,
        split=manifest.split,
        parameters=manifest.parameters,
        method=manifest.adapter,
        digest=manifest.digest,
    )


class Route(NamedTuple):
    """A route: its method and path, the function that answers, what OpenAPI tells of it, and the bodies told there."""

    method: str
    path: str
    function: Callable[..., Any]
    told: dict[str, Any]
    bodies: tuple[type, ...] = ()


def describe(kind: type | None, answer: type | None, example: Any = None, told: Any = None) -> dict[str, Any]:
    """Return what OpenAPI tells of a route: the schemas of its bodies, with an example of each."""
    failed = {"description": "What went wrong.", "content": _content(Failed)}
    good = {"description": "The answer.", **({} if answer is None else {"content": _content(answer, told)})}
    described: dict[str, Any] = {"responses": {"200": good, "default": failed}}
    if kind is not None:
        described["requestBody"] = {"required": True, "content": _content(kind, example)}
    return described


def schemas(kinds: Sequence[type]) -> dict[str, Any]:
    """Return the schemas that ``describe`` refers to, by name."""
    return msgspec.json.schema_components(kinds, ref_template=_REFERENCE)[1]


def _content(kind: type, example: Any = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": _REFERENCE.format(name=kind.__name__)}}
    return {"application/json": content if example is None else {**content, "example": example}}
