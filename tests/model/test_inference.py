"""Answers for rows, and what each problem type means by labels, loss and probabilities."""

from __future__ import annotations

import math

import msgspec
import numpy
import pytest
import torch
from torch import Tensor

from registry.adapters.head import label_tensor, loss_of, probabilities_of
from registry.config import AdapterConfig, HeadConfig
from registry.model.backbone import Backbone
from registry.model.batching import Batch
from registry.model.encoder import Encoder
from registry.model.inference import logits_of, predict_probabilities
from tests.support.stock_models import difference, our_states, random_rows
from tests.support.toy_task import randomise

CPU = torch.device("cpu")
HEADS = {
    "two": HeadConfig(label_names=("a", "b")),
    "five": HeadConfig(label_names=("a", "b", "c", "d", "e"), form="dense_tanh", pooling="cls"),
    "multi": HeadConfig(label_names=("a", "b", "c"), problem_type="multi_label", pooling="pooler"),
    "value": HeadConfig(label_names=("score",), problem_type="regression"),
}
LABELS = {
    "two": (0, 1, 1, 0, 1, 0, 0, 1),
    "five": (0, 4, 2, 2, 3, 1, 0, 4),
    "multi": ((0, 1, 1), (1, 0, 0), (0, 0, 0), (1, 1, 1), (0, 1, 0), (1, 0, 1), (0, 0, 1), (1, 1, 0)),
    "value": (0.5, -1.0, 2.25, 3.0, 0.0, 1.5, 4.0, -2.0),
}


def plain_loss(problem_type: str, logits: Tensor, labels: object) -> float:
    """Return the mean loss by its formula, one number at a time."""
    losses = []
    for row, label in zip(logits.tolist(), labels, strict=True):  # type: ignore[call-overload]
        if problem_type == "classification":
            losses.append(math.log(sum(math.exp(x) for x in row)) - row[label])
        elif problem_type == "multi_label":
            chances = [1 / (1 + math.exp(-x)) for x in row]
            losses += [-math.log(p if wanted else 1 - p) for p, wanted in zip(chances, label, strict=True)]
        else:
            losses.append((row[0] - label) ** 2)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("name", HEADS)
def test_loss_is_its_formula_and_reaches_every_parameter(tiny_backbone: Backbone, name: str) -> None:
    """Cross-entropy, binary cross-entropy and squared error are means over the batch, and all of the set learns."""
    head = HEADS[name]
    adapter_set = randomise(tiny_backbone.new_adapter_set(AdapterConfig(reduction_factor=4), head))
    batch = Batch.pack(random_rows(words=100))
    logits = logits_of(tiny_backbone.encoder, adapter_set, batch)
    labels = label_tensor(head, LABELS[name], CPU)[batch.order]
    loss = loss_of(head.problem_type, logits, labels)
    expected = plain_loss(head.problem_type, batch.restore(logits), LABELS[name])
    assert expected == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    for parameter in adapter_set.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("name", HEADS)
def test_answers_equal_row_by_row_answers_in_order(tiny_backbone: Backbone, name: str) -> None:
    """However rows are sorted and batched inside, each gets the answer it gets alone, in its own place."""
    adapter_set = randomise(tiny_backbone.new_adapter_set(AdapterConfig(reduction_factor=4), HEADS[name]))
    lengths = torch.randint(1, 60, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = random_rows(lengths, words=100)
    answers = predict_probabilities(tiny_backbone.encoder, adapter_set, rows)
    assert ((150, len(HEADS[name].label_names)), numpy.float32) == (answers.shape, answers.dtype)
    for row in (0, 7, 80, 149):
        alone = predict_probabilities(tiny_backbone.encoder, adapter_set, rows.take([row]))
        numpy.testing.assert_allclose(answers[row], alone[0], atol=1e-5)


def test_answers_are_the_softmax_of_the_head_over_the_mean(tiny_backbone: Backbone) -> None:
    """From states to probabilities nothing happens but the mean, the head and the softmax."""
    adapter_set = randomise(tiny_backbone.new_adapter_set(AdapterConfig(reduction_factor=4), HEADS["two"])).eval()
    rows = random_rows(words=100)
    states = our_states(tiny_backbone.encoder, rows, adapter_set.adapter)
    weight, bias = adapter_set.head.state_dict()["out.weight"], adapter_set.head.state_dict()["out.bias"]
    raised = [(weight @ one.mean(0) + bias).exp() for one in states]
    expected = [one / one.sum() for one in raised]
    answers = predict_probabilities(tiny_backbone.encoder, adapter_set, rows)
    assert difference(expected, list(torch.from_numpy(answers))) <= 1e-5


def test_probabilities_follow_the_problem_type() -> None:
    """Classes share one, labels are independent, and a value is given in the unit of its labels."""
    logits = torch.tensor([[0.0, math.log(3.0)]])
    classes, labels = HeadConfig(label_names=("a", "b")), HeadConfig(label_names=("a", "b"), problem_type="multi_label")
    assert [[0.25, 0.75]] == [pytest.approx(row) for row in probabilities_of(classes, logits).tolist()]
    assert [[0.5, 0.75]] == [pytest.approx(row) for row in probabilities_of(labels, logits).tolist()]
    value = HeadConfig(label_names=("y",), problem_type="regression")
    assert torch.equal(logits, probabilities_of(value, logits))
    prices = msgspec.structs.replace(value, target_mean=300_000.0, target_deviation=80_000.0)
    answers = probabilities_of(prices, torch.tensor([[-1.0], [0.5]]))
    assert [220_000.0, 340_000.0] == answers.squeeze(1).tolist()
    assert [-1.0, 0.5] == label_tensor(prices, answers.squeeze(1).tolist(), CPU).squeeze(1).tolist()


def test_answering_leaves_the_modes_as_they_were(tiny_backbone: Backbone) -> None:
    """In the middle of a training with dropout, answers have none and dropout goes on afterwards."""
    head = HeadConfig(label_names=("a", "b"), dropout=0.5)
    adapter_set = randomise(tiny_backbone.new_adapter_set(AdapterConfig(reduction_factor=4, dropout=0.5), head))
    encoder: Encoder = tiny_backbone.unfrozen_copy()
    adapter_set.train()
    rows = random_rows(words=100)
    first, second = predict_probabilities(encoder, adapter_set, rows), predict_probabilities(encoder, adapter_set, rows)
    numpy.testing.assert_array_equal(first, second)
    assert (True, True) == (encoder.training, adapter_set.training)
    adapter_set.eval()
    predict_probabilities(tiny_backbone.encoder, adapter_set, rows)
    assert (False, False) == (tiny_backbone.encoder.training, adapter_set.training)


def test_no_rows_give_no_answers(tiny_backbone: Backbone) -> None:
    """Nothing asked is nothing answered, with the right number of columns."""
    adapter_set = tiny_backbone.new_adapter_set(None, HEADS["five"])
    assert (0, 5) == predict_probabilities(tiny_backbone.encoder, adapter_set, random_rows(())).shape


def test_autocast_answers_are_near_float32(tiny_backbone: Backbone) -> None:
    """Mixed precision changes answers in the third digit only, and they stay float32."""
    adapter_set = randomise(tiny_backbone.new_adapter_set(AdapterConfig(reduction_factor=4), HEADS["two"]))
    encoder, rows = tiny_backbone.unfrozen_copy(), random_rows(words=100)
    exact, mixed = (predict_probabilities(encoder, adapter_set, rows, dtype) for dtype in (None, torch.bfloat16))
    assert numpy.float32 == mixed.dtype
    assert 0 < numpy.abs(exact - mixed).max() < 0.05
