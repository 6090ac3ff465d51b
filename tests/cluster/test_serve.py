"""A server whose engines are replicas on Ray: the same answers by the same routes, and none lost with a replica."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from ray.util import list_named_actors

from registry.serving.predictor import Predictor
from registry.store.registry import Registry
from tests.support.served_sets import TEXTS
from tests.support.server import Served
from tests.web.test_app import (  # noqa: F401
    test_a_row_that_cannot_be_answered_has_its_error,
    test_a_stream_is_answered_line_by_line,
    test_rows_of_any_sets_are_answered_in_their_order,
    test_texts_for_one_set,
    test_the_mean_of_two_sets,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]  # one Ray at a time


def test_a_replica_killed_under_load_loses_no_request(served: Served, registry: Registry) -> None:
    """While one of two replicas is killed, every one of many requests is answered as a predictor answers it."""
    expected = {answer.label for answer in Predictor(registry.backbone, registry)("task0", [TEXTS[0]])}
    replicas = [each for each in list_named_actors(all_namespaces=True) if each["name"].startswith("SERVE_REPLICA")]

    def ask(number: int) -> tuple[int, set[str]]:
        if number == 20:
            ray.kill(ray.get_actor(**replicas[0]), no_restart=True)
        answered = served.rows(("task0", TEXTS[0]))
        return answered.status_code, {answer.get("label") for answer in answered.json()["answers"]}

    with ThreadPoolExecutor(8) as pool:
        assert [(200, expected)] * 100 == list(pool.map(ask, range(100)))
