"""The Open Inference Protocol: texts as BYTES tensors in, labels and probabilities as tensors out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette import requests as web
from starlette.responses import Response

from registry.errors import ServerError
from registry.serving.predictor import Prediction, Request
from registry.version import __version__
from registry.web.asking import Asker, json_response, predictions, read_body
from registry.web.bodies import Route, check_rows, decode, describe
from registry.web.gate import visitor_of

PLATFORM = "adapter-registry"


class InputTensor(msgspec.Struct):
    """A tensor of texts: ``text``, or ``pair`` with the second texts."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] | None = None


class OutputName(msgspec.Struct):
    """A tensor that is wanted; all of them where none is named."""

    name: str
    parameters: dict[str, Any] | None = None


class InferBody(msgspec.Struct):
    """The body of an inference of the Open Inference Protocol."""

    inputs: list[InputTensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[OutputName] | None = None


class OutputTensor(msgspec.Struct):
    """One tensor of an answer, its numbers row by row."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class InferAnswer(msgspec.Struct, omit_defaults=True):
    """The answer of the Open Inference Protocol."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | None = None
    parameters: dict[str, str] | None = None


class OpenInferenceRoutes:
    """The routes that clients of the protocol ask, but those of health.

    Args:
        asker: brings rows to the engine.
    """

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    @property
    def table(self) -> list[Route]:
        """Return the routes."""
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a gripping film"]}
        infer, plain = describe(InferBody, InferAnswer, {"inputs": [tensor]}), describe(None, None)
        models = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
        return [
            *(Route("POST", f"{model}/infer", self.infer, infer, (InferBody, InferAnswer)) for model in models),
            *(Route("GET", f"{model}{end}", self.model, plain) for model in models for end in ("", "/ready")),
            Route("GET", "/v2", self.platform, plain),
        ]

    async def infer(self, request: web.Request) -> Response:
        """Answer as the Open Inference Protocol does."""
        body = decode(InferBody, await read_body(request))
        name = request.path_params["name"]
        job = await self._asker.ask(request, infer_rows(body, _versioned(request)))
        answers = predictions(job)
        return json_response(infer_answer(body, name, answers, visitor_of(request).request_id))

    async def model(self, request: web.Request) -> Response:
        """Tell of a set as the Open Inference Protocol does."""
        known = await asyncio.to_thread(self._asker.known, request, _versioned(request))
        name = request.path_params["name"]
        return json_response(model_metadata(name, known.versions, known.pair, len(known.labels)))

    async def platform(self, request: web.Request) -> Response:
        """Tell of the server as the Open Inference Protocol does."""
        return json_response({"name": PLATFORM, "version": __version__, "extensions": []})


def _versioned(request: web.Request) -> str:
    """Return the reference that a path names."""
    name, version = request.path_params["name"], request.path_params.get("version")
    return str(name) if version is None else f"{name}:{version}"


def infer_rows(body: InferBody, reference: str) -> Sequence[Request]:
    """Return the rows that the tensors ``text`` and ``pair`` hold.

    Raises:
        ServerError: other tensors, or data that is not as told.
    """
    found = {tensor.name: _texts_in(tensor) for tensor in body.inputs}
    if len(found) < len(body.inputs) or "text" not in found or set(found) > {"text", "pair"}:
        names = ", ".join(tensor.name for tensor in body.inputs)[:80]
        raise ServerError(422, "read the body", "a tensor 'text', and 'pair' for pairs", names or "none")
    texts, pairs = found["text"], found.get("pair")
    if pairs is None:
        return check_rows([Request(reference, text) for text in texts])
    if len(pairs) != len(texts):
        raise ServerError(422, "read tensor 'pair'", f"{len(texts)} texts", str(len(pairs)))
    return check_rows([Request(reference, text, pair) for text, pair in zip(texts, pairs, strict=True)])


def _texts_in(tensor: InputTensor) -> list[str]:
    attempted = f"read tensor '{tensor.name[:40]}'"
    if tensor.datatype != "BYTES":
        raise ServerError(422, attempted, "datatype BYTES", tensor.datatype[:20])
    texts = [text for each in tensor.data for text in (each if isinstance(each, list) else [each])]
    if not all(isinstance(text, str) for text in texts):
        raise ServerError(422, attempted, "texts", "something else")
    if len(tensor.shape) not in (1, 2) or math.prod(tensor.shape) != len(texts):
        raise ServerError(422, attempted, f"a shape of {len(texts)} texts", str(tensor.shape)[:40])
    return texts


def infer_answer(body: InferBody, name: str, answers: Sequence[Prediction], request_id: str) -> InferAnswer:
    """Return the tensors ``label``, ``probabilities`` and ``truncated``, or those of them that are wanted.

    Raises:
        ServerError: another tensor is wanted.
    """
    rows = len(answers)
    shares = [list(answer.probabilities.values()) for answer in answers]
    columns = len(shares[0]) if shares else 0
    labels = ["|".join(each.label) if isinstance(each.label, tuple) else str(each.label) for each in answers]
    outputs = {
        "label": OutputTensor("label", "BYTES", [rows], labels),
        "probabilities": OutputTensor(
            "probabilities", "FP32", [rows, columns], [share for own in shares for share in own]
        ),
        "truncated": OutputTensor("truncated", "BOOL", [rows], [answer.truncated for answer in answers]),
    }
    wanted = [output.name for output in body.outputs] if body.outputs else list(outputs)
    if set(wanted) - set(outputs):
        raise ServerError(422, "read the body", f"outputs of {', '.join(outputs)}", ", ".join(wanted)[:80])
    references = list(dict.fromkeys(answer.reference for answer in answers))
    version = references[0].rpartition(":")[2] if len(references) == 1 and "+" not in references[0] else ""
    told = {"request_id": request_id, "reference": ", ".join(references)}
    return InferAnswer(name, version, [outputs[each] for each in wanted], body.id or request_id, told)


def model_metadata(name: str, versions: Sequence[int], pair: bool | None, labels: int) -> dict[str, Any]:
    """Return what the Open Inference Protocol tells of a model."""
    inputs = ["text"] if pair is False else ["text", "pair"]
    return {
        "name": name,
        "versions": [str(version) for version in versions],
        "platform": PLATFORM,
        "inputs": [{"name": each, "datatype": "BYTES", "shape": [-1]} for each in inputs],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, labels]},
            {"name": "truncated", "datatype": "BOOL", "shape": [-1]},
        ],
    }
