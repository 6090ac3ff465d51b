"""The web application: every answer is the set's own, every error tells what is wrong and nothing else."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path

import pytest

from registry.errors import ConfigError
from registry.serving.engine import Limits
from registry.serving.predictor import Predictor
from registry.store.registry import Registry
from registry.web.app import AppSettings
from registry.web.gate import ApiKeys
from tests.support.served_sets import requests, save_kind
from tests.support.server import Served, serving


def test_rows_of_any_sets_are_answered_in_their_order(served: Served, registry: Registry) -> None:
    """The answers to rows of all kinds are the predictor's, with reference, truncated and the request's id."""
    rows = requests()
    expected = Predictor(registry.backbone, registry).mixed(rows)
    asked = [{"adapter": row.reference, "text": row.text, "pair": row.pair} for row in rows]
    answer = served.post("/v1/predict", {"rows": asked}, headers={"x-request-id": "mine-1"})
    body = answer.json()
    assert (200, 0, "mine-1") == (answer.status_code, body["failed"], body["request_id"])
    assert "mine-1" == answer.headers["x-request-id"]
    for one, told in zip(expected, body["answers"], strict=True):
        assert (one.reference, one.truncated) == (told["reference"], told["truncated"])
        assert one.probabilities == pytest.approx(told["probabilities"], abs=1e-5)
        label = list(one.label) if isinstance(one.label, tuple) else one.label
        assert label == (pytest.approx(told["label"], abs=1e-5) if isinstance(label, float) else told["label"])


def test_a_row_that_cannot_be_answered_has_its_error(served: Served) -> None:
    """One bad row of three is counted and told; ``strict`` makes the request fail with the same body."""
    rows = ("task0", "good"), ("nobody", "good"), ("task1", "good")
    body = served.rows(*rows).json()
    assert 2 == body["failed"]
    assert "task0:1" == body["answers"][0]["reference"]
    unknown, single = body["answers"][1]["error"], body["answers"][2]["error"]
    assert "AdapterNotFoundError" == unknown["type"]
    assert "cannot find adapter set 'nobody' in the store: it has task0, task1, task2, task3" == unknown["message"]
    assert "expected two texts, as its task is on pairs, found one" in single["message"]
    strict = served.post("/v1/predict?strict=1", {"rows": [{"adapter": "nobody", "text": "x"}]})
    assert (422, 1) == (strict.status_code, strict.json()["failed"])


def test_texts_for_one_set(served: Served, registry: Registry) -> None:
    """One set in the path, texts and pairs in the body, the likeliest labels alone where that is asked."""
    registry.alias("task1", "best", 1)
    body = {"texts": ["he left", "good"], "pairs": ["she went", "bad"], "top_k": 2}
    answers = served.post("/v1/adapters/task1@best/predict", body).json()["answers"]
    assert ["task1:1", "task1:1"] == [answer["reference"] for answer in answers]
    for answer in answers:
        shares = list(answer["probabilities"].values())
        assert (2, sorted(shares, reverse=True)) == (len(shares), shares)
        assert next(iter(answer["probabilities"])) == answer["label"]
    uneven = served.post("/v1/adapters/task1/predict", {"texts": ["a", "b"], "pairs": ["c"]})
    assert (422, "expected 2 second texts, found 1") == (uneven.status_code, uneven.json()["error"]["message"][22:])


def test_the_mean_of_two_sets(served: Served, registry: Registry) -> None:
    """``a+b`` is answered as the predictor does."""
    save_kind(registry, "other", 0, 9)
    answer = served.rows(("task0+other", "a good film")).json()["answers"][0]
    expected = Predictor(registry.backbone, registry)("task0+other", ["a good film"])[0]
    assert ("task0:1+other:1", expected.label) == (answer["reference"], answer["label"])
    assert expected.probabilities == pytest.approx(answer["probabilities"], abs=1e-5)


def test_names_versions_and_aliases_are_listed(served: Served, registry: Registry, tmp_path: Path) -> None:
    """A list of names with what a client may know, page by page, and of one set its manifest without a path."""
    save_kind(registry, "task0", 0, 9)
    registry.alias("task0", "best", 2)
    first = served.http.get("/v1/adapters?limit=3").json()
    second = served.http.get(f"/v1/adapters?after={first['next']}").json()
    listed = first["adapters"] + second["adapters"]
    assert ["task0", "task1", "task2", "task3"] == [each["name"] for each in listed]
    assert ([1, 2], {"best": 2}, ["bad", "good"]) == tuple(listed[0][key] for key in ("versions", "aliases", "labels"))
    assert second["next"] is None
    told = served.http.get("/v1/adapters/task0@best").json()
    assert ("task0:2", 16, "classification") == (told["reference"], told["max_length"], told["problem_type"])
    assert str(tmp_path) not in json.dumps(told)


def test_changes_of_the_store_take_effect_at_once(served: Served, registry: Registry) -> None:
    """A new version, a moved alias, a removed name and a name saved anew answer from the next request on."""

    def reference(name: str) -> str:
        answer = served.rows((name, "good")).json()["answers"][0]
        return str(answer.get("reference") or answer["error"]["type"])

    registry.alias("task0", "best", 1)
    assert ["task0:1", "task0:1"] == [reference("task0"), reference("task0@best")]
    save_kind(registry, "task0", 0, 9)
    assert ["task0:2", "task0:1"] == [reference("task0"), reference("task0@best")]
    registry.alias("task0", "best", 2)
    assert "task0:2" == reference("task0@best")
    registry.remove("task0")
    assert ["AdapterNotFoundError"] * 2 == [reference("task0"), reference("task0@best")]
    save_kind(registry, "task0", 2, 5)
    answer = served.rows(("task0", "good")).json()["answers"][0]
    assert ("task0:1", {"red", "blue", "big", "small"}) == (answer["reference"], set(answer["probabilities"]))


def test_a_stream_is_answered_line_by_line(served: Served) -> None:
    """Lines of a stream have their answers or errors in order, more of them than a body may hold."""
    lines = [
        '{"adapter": "task0", "text": "good"}',
        '{"adapter": "task0"}',
        "nonsense",
        '{"adapter": "a/b", "text": "x"}',
    ]
    content = "\n".join(lines * 150) + "\n\n"
    answer = served.http.post("/v1/stream", content=content, headers={"x-request-id": "s"})
    told = [json.loads(line) for line in answer.text.splitlines()]
    assert list(range(1, 601)) == [each["line"] for each in told]
    assert {"s"} == {each["request_id"] for each in told}
    kinds = [each["error"]["type"] if "error" in each else each["reference"] for each in told]
    assert ["task0:1", "BadRequest", "MalformedBody", "InvalidNameError"] * 150 == kinds


def test_a_stream_waits_where_the_queue_is_full(registry: Registry) -> None:
    """A stream of many more rows than may wait is answered whole, and none of it is refused."""
    line = b'{"adapter": "task0", "text": "good film"}\n'
    with serving(registry, limits=Limits(max_queue_rows=40)) as served:
        answer = served.http.post("/v1/stream", content=line * 1_000)
    told = [json.loads(each) for each in answer.text.splitlines()]
    assert (1_000, {"task0:1"}) == (len(told), {each.get("reference") for each in told})


@pytest.mark.parametrize(
    ("content", "status", "kind", "message"),
    [
        (b"", 400, "MalformedBody", "cannot read the body: expected JSON in UTF-8, found Input data was truncated"),
        (b'{"rows": NaN}', 400, "MalformedBody", "expected JSON in UTF-8"),
        (b'{"rows": [{"adapter": "task0", "text": "\\ud83d"}]}', 400, "MalformedBody", "expected JSON in UTF-8"),
        (b'{"rows": [{"adapter": "task0", "text": "\xff"}]}', 400, "MalformedBody", "expected JSON in UTF-8"),
        (b'{"rows": ' + b"[" * 500_000, 422, "BadRequest", "expected the fields of RowsBody"),
        (b'{"rows": [], "more": ' + b"[" * 500_000, 422, "BadRequest", "unknown field `more`"),
        (b'{"rows": [{"adapter": "task0", "text": 3}]}', 422, "BadRequest", "Expected `str`, got `int`"),
        (b'{"rows": [{"adapter": "task0", "txet": "x"}]}', 422, "BadRequest", "unknown field `txet`"),
        (b'{"rows": [' + b'{"adapter":"a","text":"b"},' * 256 + b'{"adapter":"a","text":"b"}]}', 422, "BadRequest",
         "expected at most 256 rows, found 257"),
        (b'{"rows": [{"adapter":"task0","text":"' + b"a" * 100_001 + b'"}]}', 413, "TooLarge",
         "cannot read row 0: expected at most 100,000 characters, found 100,001"),
        (b" " * (2**20 + 1), 413, "TooLarge", "expected at most 1,048,576 bytes"),
    ],
)  # fmt: skip
def test_bodies_that_cannot_be_read(served: Served, content: bytes, status: int, kind: str, message: str) -> None:
    """What is no JSON, has other fields, or is too large is refused, and the server goes on."""
    answer = served.http.post("/v1/predict", content=content)
    error = answer.json()["error"]
    assert (status, kind) == (answer.status_code, error["type"])
    assert message in error["message"]
    assert 200 == served.rows(("task0", "good")).status_code


def test_deep_json_in_a_foreign_body_is_no_end(served: Served) -> None:
    """A body whose fields may hold anything is refused where it is nested too deep."""
    content = b'{"inputs": [], "parameters": ' + b'{"a":' * 200_000
    answer = served.http.post("/v2/models/task0/infer", content=content)
    assert 400 == answer.status_code
    assert 200 == served.rows(("task0", "good")).status_code


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan", "4000"])
def test_a_deadline_is_a_number_of_seconds(served: Served, given: str) -> None:
    """Anything else is refused."""
    answer = served.rows(("task0", "good"), headers={"x-request-timeout": given})
    assert (422, True) == (answer.status_code, "seconds from 0 to 3,600" in answer.json()["error"]["message"])


def test_an_unknown_route_and_method_are_told(served: Served) -> None:
    """Both have the shape of all errors."""
    told = [served.http.get("/nowhere"), served.http.get("/v1/predict")]
    assert [(404, "NoSuchRoute"), (405, "NoSuchMethod")] == [
        (answer.status_code, answer.json()["error"]["type"]) for answer in told
    ]


def test_errors_tell_no_place(served: Served, registry: Registry) -> None:
    """A damaged set is told without the store's folder, and with what is wrong."""
    file = next(registry.store.folder("task0", 1).glob("adapter*"))
    file.write_bytes(file.read_bytes()[:-1])
    error = served.rows(("task0", "good")).json()["answers"][0]["error"]
    assert "IntegrityError" == error["type"]
    assert error["message"].startswith("cannot load the store/task0/versions/000001/adapter.safetensors: ")
    assert "restore the file from a backup or remove this version" == error["hint"]
    assert str(registry.store.root) not in json.dumps(error)


def test_health_and_metrics(served: Served) -> None:
    """Live and ready are told while the engine is at work; metrics tell what was asked."""
    assert [200, 200] == [served.http.get(f"/health/{each}").status_code for each in ("live", "ready")]
    served.rows(("task0", "good"), ("task2", "bad"))
    until = time.monotonic() + 10
    counted = 'adapter_registry_adapter_rows_total{adapter="task2"} 1.0'
    while counted not in (told := served.http.get("/metrics").text.splitlines()):  # a batch is counted once answered
        assert time.monotonic() < until
    assert 'adapter_registry_rows_total{route="/v1/predict",status="200"} 2.0' in told
    assert "adapter_registry_resident_sets 2.0" in told
    assert "adapter_registry_loads_total 2.0" in told
    served.engine.drain()
    assert [200, 503] == [served.http.get(f"/health/{each}").status_code for each in ("live", "ready")]
    refused = served.rows(("task0", "good"))
    assert (503, "Draining", "1") == (
        refused.status_code,
        refused.json()["error"]["type"],
        refused.headers["retry-after"],
    )


def test_only_so_many_names_have_a_label(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound, rows are counted together."""
    monkeypatch.setattr("registry.web.telemetry.MOST_NAMES", 2)
    with serving(registry) as served:
        for name in ("task0", "task2", "task3", "task0"):
            served.rows((name, "good"))
        told = [line for line in served.http.get("/metrics").text.splitlines() if "adapter_rows_total{" in line]
    assert ['{adapter="other"} 1.0', '{adapter="task0"} 2.0', '{adapter="task2"} 1.0'] == sorted(
        line.removeprefix("adapter_registry_adapter_rows_total") for line in told
    )


def key_file(folder: Path) -> Path:
    """Write a file with a key for all sets and one for some, and return its path."""
    digests = [hashlib.sha256(key).hexdigest() for key in (b"all", b"some")]
    path = folder / "keys"
    path.write_text(f"# keys\n{digests[0]}\n\n{digests[1]} task0 task2* # of a client\n")
    return path


def test_keys_open_all_sets_or_some(registry: Registry, tmp_path: Path) -> None:
    """Without a key, or with a wrong one, nothing but health is told; a key for some names opens, and names, those."""
    settings = AppSettings(keys=ApiKeys.read(key_file(tmp_path)))
    with serving(registry, settings) as served:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": ""}, {"authorization": "Basic all"}):
            answer = served.rows(("task0", "good"), headers=headers)
            assert (401, "UnknownKey", "Bearer") == (
                answer.status_code, answer.json()["error"]["type"], answer.headers["www-authenticate"],
            )  # fmt: skip
            assert 401 == served.http.get("/metrics", headers=headers).status_code
        assert 200 == served.http.get("/health/ready").status_code
        assert 200 == served.rows(("task1", "good", "bad"), headers={"x-api-key": "all"}).status_code
        some = {"authorization": "Bearer some"}
        assert 200 == served.rows(("task0", "good"), ("task2:1", "bad"), headers=some).status_code
        for refused in ("task1", "task3@best", "task0+task3"):
            answer = served.rows((refused, "good"), headers=some)
            assert (403, "ForbiddenSet") == (answer.status_code, answer.json()["error"]["type"])
        assert 403 == served.http.get("/v1/adapters/task1", headers=some).status_code
        assert 403 == served.post("/models/task1", {"inputs": "x"}, headers=some).status_code
        line = served.http.post("/v1/stream", content=b'{"adapter": "task1", "text": "x"}', headers=some).json()
        assert "ForbiddenSet" == line["error"]["type"]
        names = [each["name"] for each in served.http.get("/v1/adapters", headers=some).json()["adapters"]]
        assert ["task0", "task2"] == names
        unknown = served.rows(("task2x", "good"), headers=some).json()["answers"][0]["error"]
        assert "it has task0, task2" in unknown["message"]
        assert "task1" not in unknown["message"]


@pytest.mark.parametrize("content", ["", "# nothing\n", "secret\n", "ABCD task0\n"])
def test_key_files_that_are_none(tmp_path: Path, content: str) -> None:
    """A file without a key, or with a key that is not hashed, is refused."""
    (tmp_path / "keys").write_text(content)
    with pytest.raises(ConfigError, match="expected (a file with a key|the SHA-256 of a key)"):
        ApiKeys.read(tmp_path / "keys")


def test_logs_hold_texts_where_that_is_asked_alone(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """A request is a line with its id, and its texts only where the server was told so; a key is in none."""
    caplog.set_level(logging.INFO, "adapter_registry.server")
    for log_texts in (False, True):
        caplog.clear()
        with serving(registry, AppSettings(log_texts=log_texts)) as served:
            served.rows(("task0", "secret words"), headers={"x-request-id": "r-7", "x-api-key": "k-1"})
        (told,) = [record.told for record in caplog.records if record.name == "adapter_registry.server"]  # type: ignore[attr-defined]
        assert ("r-7", "/v1/predict", 200, 1) == tuple(told[key] for key in ("request_id", "route", "status", "rows"))
        assert log_texts == ("secret words" in json.dumps(told))
        assert "k-1" not in json.dumps(told)


def test_pages_of_other_origins_may_not_ask_unless_told(registry: Registry) -> None:
    """Without --cors no origin is let in; with one, that one is."""
    headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
    for cors in ((), ("https://a.example",)):
        with serving(registry, AppSettings(cors=cors)) as served:
            answer = served.http.options("/v1/predict", headers=headers)
        assert bool(cors) == ("access-control-allow-origin" in answer.headers)


def test_openapi_tells_every_route_with_examples(served: Served) -> None:
    """Every route has a summary and what it takes and gives; examples are bodies that are answered."""
    told = served.http.get("/openapi.json").json()
    assert {"/v1/predict", "/v1/stream", "/models/{reference}", "/v2/models/{name}/infer"} <= set(told["paths"])
    text = json.dumps(told)
    names = set(told["components"]["schemas"])
    assert {"RowsBody", "Answers", "ErrorBody", "InferBody"} <= names
    for part in text.split('"#/components/schemas/')[1:]:
        assert part.partition('"')[0] in names
    for path, methods in told["paths"].items():
        for method, route in methods.items():
            assert route["summary"]
            assert path.count("{") == len(route.get("parameters", []))
            example = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            assert (method == "post") == (example is not None), path
    example = told["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert 2 == len(served.post("/v1/predict", example).json()["answers"])
