"""Hugging Face's text classification: what its clients send to an inference endpoint, and what they expect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
from starlette import requests as web
from starlette.responses import Response

from registry.errors import ServerError
from registry.serving.predictor import Request
from registry.serving.waiting import Job
from registry.web.asking import Asker, json_response, predictions, read_body
from registry.web.bodies import Route, check_rows, decode, describe, likeliest


class TextPair(msgspec.Struct):
    """A text, and a second one for tasks on pairs."""

    text: str
    text_pair: str | None = None


class ClassificationParameters(msgspec.Struct):
    """How many labels are told, and what becomes of their logits; the set's own function where nothing is asked."""

    top_k: int | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


class ClassificationBody(msgspec.Struct):
    """The body of Hugging Face's text classification."""

    inputs: str | TextPair | list[str | TextPair]
    parameters: ClassificationParameters | None = None


class LabelScore(msgspec.Struct):
    """One label of an answer."""

    label: str
    score: float


class HuggingFaceRoutes:
    """The route that clients of Hugging Face ask.

    Args:
        asker: brings rows to the engine.
    """

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    @property
    def table(self) -> list[Route]:
        """Return the route."""
        example = {"inputs": ["a gripping film"], "parameters": {"top_k": 1}}
        told = describe(ClassificationBody, None, example)
        return [Route("POST", "/models/{reference}", self.classify, told, (ClassificationBody,))]

    async def classify(self, request: web.Request) -> Response:
        """Answer as Hugging Face's text classification does."""
        body = decode(ClassificationBody, await read_body(request))
        rows = classification_rows(body, request.path_params["reference"])
        parameters = body.parameters or ClassificationParameters()
        job = await self._asker.ask(request, rows, logits=parameters.function_to_apply is not None)
        answer = json_response(classification_answer(job, parameters))
        told = predictions(job)
        answer.headers["x-adapter-reference"] = ", ".join(dict.fromkeys(each.reference for each in told))
        answer.headers["x-truncated"] = ", ".join(str(place) for place, each in enumerate(told) if each.truncated)
        return answer


def classification_rows(body: ClassificationBody, reference: str) -> Sequence[Request]:
    """Return the rows that a client of Hugging Face asks.

    Raises:
        ServerError: too many, or a text that is too long.
    """
    inputs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    pairs = [TextPair(each) if isinstance(each, str) else each for each in inputs]
    return check_rows([Request(reference, each.text, each.text_pair) for each in pairs])


def classification_answer(job: Job, parameters: ClassificationParameters) -> list[list[LabelScore]]:
    """Return for each row its labels and their scores, the likeliest first.

    Raises:
        RegistryError: what was wrong with the first row that has no answer, or several sets' logits are asked.
    """
    answered = []
    for answer, logits in zip(predictions(job), job.logits, strict=True):
        scores = answer.probabilities
        if parameters.function_to_apply is not None and not isinstance(answer.label, float):
            if not logits:
                raise ServerError(422, "apply a function to logits", "one set", f"'{answer.reference}'")
            scores = dict(zip(scores, _apply(parameters.function_to_apply, logits), strict=True))
        top_k = len(scores) if parameters.top_k is None else parameters.top_k
        answered.append([LabelScore(name, score) for name, score in likeliest(scores, top_k).items()])
    return answered


def _apply(function: str, logits: Sequence[float]) -> list[float]:
    if function == "softmax":
        largest = max(logits)
        exponents = [math.exp(logit - largest) for logit in logits]
        return [each / sum(exponents) for each in exponents]
    if function == "sigmoid":
        return [0.5 * (1 + math.tanh(logit / 2)) for logit in logits]
    return list(logits)
