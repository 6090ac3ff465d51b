"""A stored set with the call and the answers of transformers' ``pipeline("text-classification")``.

Source: ``TextClassificationPipeline`` of transformers 5, its parameters' names and the shapes of its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy
from numpy.typing import NDArray

from registry.errors import RequestError
from registry.model.inference import EVALUATION_ROWS
from registry.schema import Manifest
from registry.serving.predictor import Predictor
from registry.validation import choose, require

Scores: TypeAlias = NDArray[numpy.float32]
Labelled: TypeAlias = dict[str, Any] | list[dict[str, Any]]


def _sigmoid(logits: Scores) -> Scores:
    shares: Scores = numpy.reciprocal(1 + numpy.exp(-logits))
    return shares


def _softmax(logits: Scores) -> Scores:
    raised = numpy.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Scores = raised / raised.sum(axis=-1, keepdims=True)
    return shares


_FUNCTIONS: Mapping[str, Callable[[Scores], Scores]] = MappingProxyType(
    {"sigmoid": _sigmoid, "softmax": _softmax, "none": lambda logits: logits}
)
_LIKELIEST: Any = object()  # in the place of top_k: one answer alone, in no list of its own


class TextClassification:
    """Answers as transformers' pipeline on a checkpoint of the set does, from the predictor's backbone.

    Args:
        predictor: with the registry of the set.
        reference: of the set; a bare name or an alias is looked up at every call.
        top_k: how many labels of each text, the likeliest first, None for all; the likeliest alone when left out.
        function_to_apply: ``sigmoid``, ``softmax`` or ``none``; by the set's problem type when None.
        batch_size: rows that are answered at a time; as many as there are when None.
        truncation: False refuses a text that is longer than the set's rows, which is cut else.

    Raises:
        ConfigError: another function, or a number below 1.
    """

    task = "text-classification"

    def __init__(
        self,
        predictor: Predictor,
        reference: str,
        *,
        top_k: int | None = _LIKELIEST,
        function_to_apply: str | None = None,
        batch_size: int | None = None,
        truncation: bool = True,
    ) -> None:
        self.predictor, self.reference = predictor, reference
        self._chosen = _checked(
            top_k=top_k, function_to_apply=function_to_apply, batch_size=batch_size, truncation=truncation
        )

    def __repr__(self) -> str:
        return f"TextClassification({self.predictor!r}, {self.reference!r})"

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Return labels and scores.

        Args:
            inputs: a text, ``{"text": …, "text_pair": …}``, a list of either, or an iterable, which gives an iterator.
            options: ``top_k`` and the others in the place of the ones chosen at first.

        Returns:
            For a list a list with ``{"label": …, "score": …}`` of each, or with a list of ``top_k`` of them; for a text
            a list of one, or with ``top_k`` its list; for a pair alone its own answer.

        Raises:
            RequestError: an input that is none of these, or a row that the set cannot answer.
            ConfigError, TypeError: an option that is none.
        """
        unknown = options.keys() - self._chosen.keys()
        if unknown:
            raise TypeError(f"expected the options {', '.join(self._chosen)}, found {min(unknown)}")
        chosen = {**self._chosen, **_checked(**options)}
        if isinstance(inputs, str | Mapping):
            (answer,) = self._answers([inputs], chosen)
            return [answer] if isinstance(inputs, str) and "top_k" not in options else answer
        if isinstance(inputs, Sequence):
            return list(self._answers(inputs, chosen))
        return self._answers(inputs, chosen)

    def _answers(self, inputs: Iterable[Any], chosen: Mapping[str, Any]) -> Iterator[Labelled]:
        """Yield the answers of inputs, some of them at a time."""
        left = iter(inputs)
        at_once = chosen["batch_size"] or (len(inputs) if isinstance(inputs, Sequence) else EVALUATION_ROWS)
        while rows := list(islice(left, at_once)):
            yield from self._answer([_text_and_pair(self.reference, row) for row in rows], chosen)

    def _answer(self, rows: Sequence[tuple[Any, Any]], chosen: Mapping[str, Any]) -> list[Labelled]:
        manifest = self.predictor.registry.manifest(self.reference)
        logits = numpy.empty((len(rows), len(manifest.head.label_names)), dtype=numpy.float32)
        for paired in (False, True):
            own = [place for place, (_, pair) in enumerate(rows) if (pair is not None) == paired]
            if own:
                texts, pairs = [rows[place][0] for place in own], [rows[place][1] for place in own] if paired else None
                logits[own] = self.predictor.logits(self.reference, texts, pairs)
                if not chosen["truncation"]:
                    self._check_whole(texts, pairs, manifest)
        return [_named(scores, manifest, chosen["top_k"]) for scores in _scores(logits, manifest, chosen)]

    def _check_whole(self, texts: Sequence[str], pairs: Sequence[str] | None, manifest: Manifest) -> None:
        cut = self.predictor.backbone.tokenize(texts, pairs, manifest.max_length).truncated_rows
        if cut:
            expected = f"texts of at most {manifest.max_length} tokens, as truncation is off"
            raise RequestError(f"answer with '{self.reference}'", expected, f"a longer one: {texts[min(cut)][:40]!r}")


def _checked(**options: Any) -> dict[str, Any]:
    """Return options after a look at them."""
    if options.get("function_to_apply") is not None:
        options["function_to_apply"] = choose(options["function_to_apply"], tuple(_FUNCTIONS), "function_to_apply")
    for name in ("top_k", "batch_size"):
        value = options.get(name)
        good = value is None or value is _LIKELIEST or (isinstance(value, int) and value >= 1)
        require(good, name, "a number from 1, or None", value)
    return options


def _text_and_pair(reference: str, row: Any) -> tuple[Any, Any]:
    """Return the two texts of an input, the second None where there is none.

    Raises:
        RequestError: it has another form.
    """
    if isinstance(row, str):
        return row, None
    if isinstance(row, Mapping) and "text" in row and row.keys() <= {"text", "text_pair"}:
        return row["text"], row.get("text_pair")
    raise RequestError(f"answer with '{reference}'", "a text, or {'text': …, 'text_pair': …}", repr(row)[:60])


def _scores(logits: Scores, manifest: Manifest, chosen: Mapping[str, Any]) -> Scores:
    """Return the (R, C) scores of (R, C) logits, which first become those of the set's own answers."""
    head = manifest.head
    if head.problem_type == "regression":
        answers = logits * numpy.float32(head.target_deviation) + numpy.float32(head.target_mean)
    else:
        answers = logits / numpy.float32(head.temperature)
    usual = {"regression": "none", "multi_label": "sigmoid", "classification": "softmax"}[head.problem_type]
    return _FUNCTIONS[chosen["function_to_apply"] or usual](answers)


def _named(scores: Scores, manifest: Manifest, top_k: Any) -> Labelled:
    """Return the labels of a row with their scores, the highest first."""
    pairs = zip(manifest.head.label_names, scores.tolist(), strict=True)
    named = sorted(({"label": name, "score": score} for name, score in pairs), key=lambda one: -one["score"])
    return named[0] if top_k is _LIKELIEST else named[:top_k]
