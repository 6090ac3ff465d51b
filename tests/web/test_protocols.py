"""Clients that others wrote speak to the server: Hugging Face's, and the Open Inference Protocol's."""

from __future__ import annotations

import math
from collections.abc import Iterator

import httpx
import pytest
from huggingface_hub import InferenceClient, close_session, constants
from huggingface_hub.errors import HfHubHTTPError
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.core.api_error import ApiError
from open_inference.openapi.types import InferenceRequest, RequestInput, RequestOutput, TensorData

from registry.serving.predictor import Predictor
from registry.store.registry import Registry
from tests.support.served_sets import save_kind
from tests.support.server import Served


@pytest.fixture(autouse=True)
def own_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the Hub's library ask this machine, which it does not where the Hub is not to be asked."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    close_session()


@pytest.fixture
def open_client(served: Served) -> Iterator[OpenInferenceClient]:
    """The client of the protocol's working group."""
    with httpx.Client(timeout=30) as http:
        yield OpenInferenceClient(base_url=served.url, httpx_client=http)


@pytest.fixture
def predictor(registry: Registry) -> Predictor:
    """What the answers have to be."""
    return Predictor(registry.backbone, registry)


def test_huggingfaces_client_classifies(served: Served, predictor: Predictor) -> None:
    """InferenceClient gets all labels and their probabilities, the likeliest first, or as many as it wants."""
    client = InferenceClient(model=f"{served.url}/models/task0")
    told = client.text_classification("a good film")
    expected = predictor("task0", ["a good film"])[0].probabilities
    assert expected == pytest.approx({each.label: each.score for each in told}, abs=1e-5)
    assert told[0].score >= told[1].score
    (one,) = client.text_classification("a good film", top_k=1)
    assert told[0] == one


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_huggingfaces_client_applies_a_function(served: Served, predictor: Predictor, function: str) -> None:
    """What becomes of the logits is the client's to say."""
    logits = predictor.logits("task2", ["a good film"])[0].tolist()
    total = sum(map(math.exp, logits))
    shares = {
        "softmax": [math.exp(logit) / total for logit in logits],
        "sigmoid": [1 / (1 + math.exp(-logit)) for logit in logits],
        "none": logits,
    }[function]
    client = InferenceClient(model=f"{served.url}/models/task2:1")
    told = client.text_classification("a good film", function_to_apply=function)  # type: ignore[arg-type]
    scores = {each.label: each.score for each in told}
    assert shares == pytest.approx([scores[name] for name in ("red", "blue", "big", "small")], abs=1e-5)


def test_huggingfaces_client_reads_errors(served: Served) -> None:
    """An unknown set and a text that is none are told in the words of the command line."""
    with pytest.raises(HfHubHTTPError, match="cannot find adapter set 'nobody' in the store") as err:
        InferenceClient(model=f"{served.url}/models/nobody").text_classification("good")
    assert 404 == err.value.response.status_code
    with pytest.raises(HfHubHTTPError, match="expected a text, found an empty one"):
        InferenceClient(model=f"{served.url}/models/task0").text_classification(" ")


def test_an_endpoint_takes_lists_and_pairs(served: Served, predictor: Predictor) -> None:
    """Lists of texts and of pairs, as endpoints of Hugging Face take them; the version is told in a header."""
    pairs = [{"text": "he left", "text_pair": "she went"}, {"text": "good", "text_pair": "bad"}]
    answer = served.post("/models/task1", {"inputs": pairs, "options": {"wait_for_model": True}})
    assert "task1:1" == answer.headers["x-adapter-reference"]
    for told, expected in zip(answer.json(), predictor("task1", ["he left", "good"], ["she went", "bad"]), strict=True):
        assert expected.probabilities == pytest.approx({each["label"]: each["score"] for each in told}, abs=1e-5)
    ((value,),) = served.post("/models/task3", {"inputs": "good"}).json()
    assert ("stars", pytest.approx(predictor("task3", ["good"])[0].label, abs=1e-5)) == (value["label"], value["score"])
    refused = served.post("/models/task0+task0", {"inputs": "good", "parameters": {"function_to_apply": "none"}})
    assert (422, True) == (refused.status_code, "expected one set" in refused.json()["error"])


def tensor(name: str, texts: list[str]) -> RequestInput:
    """Return a tensor of texts."""
    return RequestInput(name=name, shape=[len(texts)], datatype="BYTES", data=TensorData.parse_obj(texts))


def outputs(answer: object) -> dict[str, list[object]]:
    """Return the data of each tensor of an answer."""
    return {each.name: list(each.data.__root__) for each in answer.outputs}  # type: ignore[attr-defined]


def test_a_client_of_the_open_inference_protocol(
    open_client: OpenInferenceClient, predictor: Predictor, registry: Registry
) -> None:
    """The working group's own client finds server and model, and gets labels and probabilities of the set asked."""
    save_kind(registry, "task1", 1, 9)
    client = open_client
    client.check_server_liveness()
    client.check_server_readiness()
    client.check_model_readiness("task1")
    assert "adapter-registry" == client.read_server_metadata().name
    model = client.read_model_metadata("task1")
    assert (["1", "2"], ["text", "pair"]) == (model.versions, [each.name for each in model.inputs or []])
    texts, pairs = ["he left", "a good film"], ["she went", "bad"]
    inputs = [tensor("text", texts), tensor("pair", pairs)]
    for version, reference in ((None, "task1"), ("1", "task1:1")):
        request = InferenceRequest(id="mine", inputs=inputs)
        ask = client.model_infer if version is None else client.model_version_infer
        where = {"model_name": "task1", **({} if version is None else {"model_version": version})}
        answer = ask(**where, request=request)
        expected = predictor(reference, texts, pairs)
        assert ("task1", expected[0].reference.split(":")[1], "mine") == (
            answer.model_name,
            answer.model_version,
            answer.id,
        )
        told = outputs(answer)
        assert [each.label for each in expected] == told["label"]
        shares = [share for each in expected for share in each.probabilities.values()]
        assert shares == pytest.approx(told["probabilities"], abs=1e-5)
        assert [False, False] == told["truncated"]
    wanted = InferenceRequest(inputs=inputs, outputs=[RequestOutput(name="label")])
    assert {"label"} == set(outputs(client.model_infer("task1", request=wanted)))


def test_the_open_inference_client_reads_errors(open_client: OpenInferenceClient) -> None:
    """Unknown models, other tensors and texts that cannot be answered are told."""
    client = open_client
    with pytest.raises(ApiError) as unknown:
        client.read_model_metadata("nobody")
    assert 404 == unknown.value.status_code
    cases = [
        ("task0", [tensor("words", ["good"])], "expected a tensor 'text'"),
        ("task0", [tensor("text", ["good"]), tensor("pair", ["a", "b"])], "expected 1 texts, found 2"),
        ("task1", [tensor("text", ["good"])], "expected two texts"),
        ("task0", [RequestInput(name="text", shape=[3], datatype="BYTES", data=TensorData.parse_obj(["a"]))],
         "expected a shape of 1 texts, found [3]"),
        ("task0", [RequestInput(name="text", shape=[1], datatype="FP32", data=TensorData.parse_obj([1.0]))],
         "expected datatype BYTES, found FP32"),
    ]  # fmt: skip
    for name, inputs, message in cases:
        with pytest.raises(ApiError) as err:
            client.model_infer(name, request=InferenceRequest(inputs=inputs))
        assert 422 == err.value.status_code
        assert message in str(err.value.body)
