"""Mixed batches through CUDA graphs: each row is answered by its own set, whichever sets a graph was captured with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from registry.config import AdapterConfig, LoraConfig, MethodConfig
from registry.model.backbone import Backbone
from registry.model.batching import TokenRows
from registry.serving.mixed_graphs import SETS, GraphedBatches, GraphedMixed
from registry.serving.pool import ResidentSet
from registry.serving.predictor import Predictor, Request
from registry.store.registry import Registry
from tests.support.recorded_ops import attend_as_on_cuda, record
from tests.support.resident_sets import from_threads, in_order, new_resident, usual_logits
from tests.support.served_sets import TEXTS, assert_close, requests, save_kind
from tests.support.stock_models import random_rows
from tests.support.toy_task import METHODS

pytest.importorskip("triton")  # which not every machine has

ADAPTERS: dict[str, MethodConfig] = {
    "houlsby": AdapterConfig(placement="houlsby", reduction_factor=4),
    "pfeiffer": AdapterConfig(placement="pfeiffer", reduction_factor=2, activation="relu"),
    "parallel": AdapterConfig(placement="parallel", reduction_factor=4, activation="tanh", scale=2.0),
    "after_layer": AdapterConfig(placement="after_layer", reduction_factor=8, activation="silu", layers=(1,)),
    "lora": LoraConfig(rank=4),
    "lora-some": METHODS["lora-some"],
    "lora-most": LoraConfig(rank=3, alpha=2.0, targets=("query", "key", "attention_dense", "ffn_in", "ffn_out")),
}


def by_graph(graphed: GraphedMixed, sets: list[ResidentSet], owners: list[int], rows: TokenRows) -> Tensor | None:
    """Return the (B, C) logits through graphs in the order of the rows, None where no graph applies."""
    answers = graphed.logits(sets, owners, rows)
    if answers is None:
        return None
    assert all(owners[row] == owner for owner, (own, _) in answers.items() for row in own)
    return in_order(answers)


@pytest.fixture
def graphed(tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> GraphedMixed:
    """Answers through what stands in for graphs on a CPU."""
    attend_as_on_cuda(monkeypatch)
    return GraphedMixed(tiny_backbone.encoder, record)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("method", ADAPTERS)
def test_each_row_is_answered_by_its_own_set(
    tiny_backbone: Backbone, graphed: GraphedMixed, method: str, pooling: str
) -> None:
    """One graph answers for other sets, rows, numbers of rows of each, and owners than it was captured with."""
    sets = [new_resident(tiny_backbone, seed, ADAPTERS[method], pooling=pooling) for seed in range(5)]
    for seed, (lengths, owners) in enumerate((
        ((5, 9, 3), [0, 1, 0]),
        ((9, 3, 5), [4, 2, 3]),
        ((2, 20, 4), [1, 0, 1]),
        ((40, 3), [2, 0]),
    )):  # fmt: skip
        rows = random_rows(lengths, seed)
        found = by_graph(graphed, sets, owners, rows)
        assert found is not None
        assert float((found - usual_logits(tiny_backbone, sets, owners, rows)).abs().max()) <= 1e-5
    assert 2 == len(graphed._graphs)  # of 32 tokens, and of 64


def test_heads_of_two_layers_answer_too(tiny_backbone: Backbone, graphed: GraphedMixed) -> None:
    """Heads are no part of the graph, so those that are no one product are asked one after another."""
    sets = [new_resident(tiny_backbone, seed, ADAPTERS["lora"], form="dense_tanh") for seed in range(3)]
    rows = random_rows((5, 9, 3))
    found = by_graph(graphed, sets, [2, 0, 1], rows)
    assert found is not None
    assert float((found - usual_logits(tiny_backbone, sets, [2, 0, 1], rows)).abs().max()) <= 1e-5


def test_a_set_that_was_loaded_again_is_found_where_it_is(tiny_backbone: Backbone, graphed: GraphedMixed) -> None:
    """Sets that left and came back, elsewhere in memory and with other numbers, are answered by the old graph."""
    rows = random_rows((5, 9))
    for seed in range(3):
        sets = [new_resident(tiny_backbone, 10 * seed + place, ADAPTERS["houlsby"]) for place in range(2)]
        found = by_graph(graphed, sets, [1, 0], rows)
        assert found is not None
        assert float((found - usual_logits(tiny_backbone, sets, [1, 0], rows)).abs().max()) <= 1e-5
        del sets
    assert 1 == len(graphed._graphs)
    assert 0 == len(graphed._addresses)


@pytest.mark.parametrize("method", ["lora-all", "ia3", "bitfit", "prefix", "fusion", "norms", "mish"])
def test_what_the_kernel_does_not_do_goes_the_usual_way(
    tiny_backbone: Backbone, graphed: GraphedMixed, method: str
) -> None:
    """Sets that scale, shift, fuse, normalise or go before keys, or have another activation, have no mixed graph."""
    others = {
        "norms": AdapterConfig(placement="pfeiffer", reduction_factor=4, layer_norms=True),
        "mish": AdapterConfig(placement="pfeiffer", reduction_factor=4, activation="mish"),
    }
    adapter = others.get(method) or METHODS[method]
    sets = [new_resident(tiny_backbone, seed, adapter) for seed in range(2)]
    assert by_graph(graphed, sets, [0, 1], random_rows((5, 9))) is None


def test_sets_of_several_structures_go_the_usual_way(tiny_backbone: Backbone, graphed: GraphedMixed) -> None:
    """A graph is of one structure, and has room for so many sets and tokens."""
    sets = [new_resident(tiny_backbone, 0, ADAPTERS["lora"]), new_resident(tiny_backbone, 1, ADAPTERS["houlsby"])]
    assert by_graph(graphed, sets, [0, 1], random_rows((5, 9))) is None
    same = [new_resident(tiny_backbone, 0, ADAPTERS["lora"])] * (SETS[-1] + 1)
    assert by_graph(graphed, same, list(range(len(same))), random_rows((3,) * len(same))) is None
    assert by_graph(graphed, same, [0, 1], random_rows((5, 513))) is None
    assert 0 == len(graphed._graphs)


def test_a_capture_that_fails_is_told_once(tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be captured goes the usual way: one line says so the first time, and it is not tried again."""

    def fail(*given: object) -> Any:
        raise RuntimeError("no compiler was found\nsome advice")

    attend_as_on_cuda(monkeypatch)
    graphed = GraphedMixed(tiny_backbone.encoder, fail)
    sets, rows = [new_resident(tiny_backbone, seed, ADAPTERS["lora"]) for seed in range(2)], random_rows((5, 9))
    with pytest.warns(RuntimeWarning, match=r"like set0:1 go without a CUDA graph: no compiler was found$"):
        assert by_graph(graphed, sets, [0, 1], rows) is None
    assert by_graph(graphed, sets, [0, 1], rows) is None  # a second warning would be an error


def test_a_predictor_answers_alike_with_and_without(
    tiny_backbone: Backbone, predictor: Predictor, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of one set, mixed ones and those that no graph takes have the answers of the usual way."""
    save_kind(registry, "another", 0, seed=9)
    alike = [Request(name, text) for text in TEXTS for name in ("task0", "another")]
    graphing = Predictor(tiny_backbone, registry, graph_mixed=True)
    assert copy.copy(graphing)._graphs.mixed
    attend_as_on_cuda(monkeypatch)
    graphs = graphing._graphs = GraphedBatches(tiny_backbone.encoder, mixed=True, capture=record)
    for asked in (alike, alike[:1], requests()):
        for expected, found in zip(predictor.mixed(asked), graphing.mixed(asked), strict=True):
            assert_close(expected, found)
    assert (1, 1) == (len(graphs._of_one._graphs), len(graphs._of_several._graphs))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("method", ADAPTERS)
def test_mixed_graphs_on_cuda_answer_as_the_usual_way(tiny_folder: Path, method: str, pooling: str) -> None:
    """In bfloat16 sets in any mixture, rows of several lengths and several threads get their ungraphed answers."""
    backbone = Backbone.load(str(tiny_folder), device="cuda", dtype="bfloat16")
    sets = [new_resident(backbone, seed, ADAPTERS[method], pooling=pooling) for seed in range(6)]
    graphed = GraphedMixed(backbone.encoder)
    wrong: list[float] = []

    def ask(seed: int) -> None:
        for lengths, owners in (((5, 9, 3), [0, 1, 0]), ((20, 3, 4, 7), [5, 4, 3, 2]), ((8, 8), [1, 2])):
            rows = random_rows(lengths, seed, words=100)
            found, expected = by_graph(graphed, sets, owners, rows), usual_logits(backbone, sets, owners, rows)
            assert found is not None
            wrong.append(float((found - expected).abs().max() / expected.abs().max().clamp(min=1)))

    from_threads(ask)
    assert len(wrong) == 4 * 3
    assert max(wrong) <= 3e-2
