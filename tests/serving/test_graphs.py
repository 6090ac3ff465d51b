"""Small batches through CUDA graphs: padding changes no answer, and any number of sets shares what was captured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from registry.config import MethodConfig
from registry.model.backbone import Backbone
from registry.model.batching import TokenRows
from registry.serving.graphs import GraphedAnswers
from registry.serving.pool import ResidentSet
from tests.support.recorded_ops import attend_as_on_cuda, record
from tests.support.resident_sets import from_threads, new_resident, usual_logits
from tests.support.stock_models import random_rows
from tests.support.toy_task import ADAPTER, METHODS

LENGTHS = [(1,), (3, 7), (64, 1, 12), (30,) * 17]


def resident(backbone: Backbone, seed: int, adapter: MethodConfig | None = ADAPTER, **head: str) -> ResidentSet:
    """Return a resident set of random numbers, of bottlenecks where nothing else is said."""
    return new_resident(backbone, seed, adapter, **head)


def ungraphed(backbone: Backbone, one: ResidentSet, rows: TokenRows) -> Tensor:
    """Return the (B, C) logits of the usual way, in the order of the rows."""
    return usual_logits(backbone, [one], [0] * len(rows), rows)


@pytest.fixture
def graphed(tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> GraphedAnswers:
    """Answers through what stands in for graphs on a CPU."""
    attend_as_on_cuda(monkeypatch)
    return GraphedAnswers(tiny_backbone.encoder, record)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_a_padded_batch_answers_as_the_rows_alone(
    tiny_backbone: Backbone, graphed: GraphedAnswers, lengths: tuple[int, ...], pooling: str
) -> None:
    """What fills a bucket up reaches no row, in whatever order and number they come, and again for other rows."""
    one = resident(tiny_backbone, 0, pooling=pooling)
    for seed, shown in enumerate((lengths, lengths, lengths[::-1])):
        rows = random_rows(shown, seed)
        found = graphed.logits(one, rows)
        assert found is not None
        assert float((found - ungraphed(tiny_backbone, one, rows)).abs().max()) <= 1e-5
    assert 1 == len(graphed._graphs)


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("prefix")])
def test_a_graph_answers_as_whichever_set_is_asked(
    tiny_backbone: Backbone, graphed: GraphedAnswers, method: str
) -> None:
    """Two sets of one structure take turns in one graph, of every method, and each answers as itself."""
    sets = [resident(tiny_backbone, seed, METHODS[method]) for seed in (1, 2)]
    assert sets[0].structure == sets[1].structure
    rows = random_rows((5, 9))
    expected = [ungraphed(tiny_backbone, one, rows) for one in sets]
    for index in (0, 1, 1, 0):
        found = graphed.logits(sets[index], rows)
        assert found is not None
        assert float((found - expected[index]).abs().max()) <= 1e-5
    assert 1 == len(graphed._graphs)


def test_sets_that_compute_otherwise_have_other_structures(tiny_backbone: Backbone) -> None:
    """Method, form and pooling of the head and number of labels tell structures apart; numbers do not."""
    first = resident(tiny_backbone, 0)
    others = [
        resident(tiny_backbone, 0, METHODS["lora"]),
        resident(tiny_backbone, 0, pooling="cls"),
        resident(tiny_backbone, 0, form="dense_tanh"),
    ]
    assert len({first.structure, *(one.structure for one in others)}) == 4
    assert first.structure == resident(tiny_backbone, 5).structure


def test_on_a_cpu_nothing_is_graphed(tiny_backbone: Backbone) -> None:
    """Where there is no CUDA the usual way is taken, without a word."""
    one = resident(tiny_backbone, 0)
    assert GraphedAnswers(tiny_backbone.encoder).logits(one, random_rows((3,))) is None


def test_sets_of_one_structure_share_a_template(tiny_backbone: Backbone, graphed: GraphedAnswers) -> None:
    """Sets in turn, through buckets that share one template, answer each as itself."""
    sets = [resident(tiny_backbone, seed) for seed in (1, 2)]
    for lengths in ((5, 9), (1,), (40, 3), (5, 9)):
        for one in sets:
            rows = random_rows(lengths)
            found = graphed.logits(one, rows)
            assert found is not None
            assert float((found - ungraphed(tiny_backbone, one, rows)).abs().max()) <= 1e-5
    assert (1, 3) == (len(graphed._templates), len(graphed._graphs))


@pytest.mark.parametrize("method", ["prefix", "prefix-some"])
def test_prefixes_are_not_graphed(tiny_backbone: Backbone, graphed: GraphedAnswers, method: str) -> None:
    """Sets with a prefix, and batches beyond the buckets, go the usual way, and nothing is kept for them."""
    assert graphed.logits(resident(tiny_backbone, 0, METHODS[method]), random_rows((3,))) is None
    assert graphed.logits(resident(tiny_backbone, 0), random_rows((513,))) is None
    assert {} == graphed._templates


def test_a_capture_that_fails_is_told_once(tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be captured goes the usual way: one line says so the first time, and it is not tried again."""
    tries: list[object] = []

    def fail(*given: object) -> Any:
        tries.append(given)
        raise RuntimeError("operation not permitted\nsome advice on debugging")

    attend_as_on_cuda(monkeypatch)
    graphed = GraphedAnswers(tiny_backbone.encoder, fail)
    one, rows = resident(tiny_backbone, 0), random_rows((3,))
    with pytest.warns(RuntimeWarning, match=r"like those of set0:1 go without a CUDA graph: operation not permitted$"):
        assert graphed.logits(one, rows) is None
    assert graphed.logits(one, rows) is None
    assert 1 == len(tries)


def test_the_least_recently_used_graphs_leave(
    tiny_backbone: Backbone, graphed: GraphedAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most so many graphs are kept, those used last, and no template that none of them reads."""
    monkeypatch.setattr("registry.graphs.capture.MOST_GRAPHS", 2)
    first, second = resident(tiny_backbone, 0), resident(tiny_backbone, 0, METHODS["lora"])
    for one, length in ((first, 3), (second, 3), (first, 3), (second, 40)):
        assert graphed.logits(one, random_rows((length,))) is not None
    assert [first.structure, second.structure] == [structure for structure, _ in graphed._graphs._graphs]
    assert graphed.logits(second, random_rows((3,))) is not None
    assert [second.structure] == list(graphed._templates)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("method", ["bottleneck", "lora", "ia3", "bitfit", "fusion"])
def test_graphs_on_cuda_answer_as_the_usual_way(tiny_folder: Path, method: str, pooling: str) -> None:
    """In bfloat16 sets in turn, rows of several lengths and several threads get the answers that they get ungraphed."""
    backbone = Backbone.load(str(tiny_folder), device="cuda", dtype="bfloat16")
    adapter = ADAPTER if method == "bottleneck" else METHODS[method]
    sets = [resident(backbone, seed, adapter, pooling=pooling) for seed in (1, 2)]
    graphed = GraphedAnswers(backbone.encoder)
    wrong: list[float] = []

    def ask(seed: int) -> None:
        for lengths in ((5, 9), (1,), (20, 3, 4)):
            for one in sets:
                rows = random_rows(lengths, seed, words=100)
                found, expected = graphed.logits(one, rows), ungraphed(backbone, one, rows)
                assert found is not None
                wrong.append(float((found - expected).abs().max() / expected.abs().max().clamp(min=1)))

    from_threads(ask)
    assert len(wrong) == 4 * 3 * 2
    assert max(wrong) <= 3e-2


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_graphs_on_another_gpu_than_the_current_one(tiny_folder: Path) -> None:
    """An encoder on the second GPU is captured there, while the first is the current one."""
    backbone = Backbone.load(str(tiny_folder), device="cuda:1", dtype="bfloat16")
    one, graphed = resident(backbone, 1), GraphedAnswers(backbone.encoder)
    for seed in (0, 1, 2):
        rows = random_rows((5, 9), seed, words=100)
        found, expected = graphed.logits(one, rows), ungraphed(backbone, one, rows)
        assert found is not None
        assert float((found - expected).abs().max() / expected.abs().max().clamp(min=1)) <= 3e-2
    assert 0 == torch.cuda.current_device()
