"""What a loss weighs: classes by their rows or by number, and targets that are not quite sure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from registry.adapters.head import find_class_weights, loss_of
from registry.config import AdapterConfig, HeadConfig, TrainingConfig
from registry.errors import ConfigError
from registry.model.backbone import Backbone
from registry.model.inference import LabelledRows
from registry.store.registry import Registry
from registry.tasks.task_data import TaskData
from registry.training.fit import fit
from registry.training.loop import train
from registry.training.plan import make_plan
from tests.support.command_line import call, own_rows, succeed, write_csv
from tests.support.toy_task import toy_rows

CPU = torch.device("cpu")
HEAD = HeadConfig(label_names=("a", "b", "c"))
SEVERAL = HeadConfig(label_names=("a", "b"), problem_type="multi_label")
TWO = HeadConfig(label_names=("bad", "good"))
NUMBER = HeadConfig(label_names=("y",), problem_type="regression")


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    """n / (C * rows of the class); of several labels the rows without it for one with it."""
    labels = [0] * 7 + [1] * 2 + [2]
    found = find_class_weights(HEAD, TrainingConfig(class_weights="balanced"), labels, CPU)
    assert found is not None
    assert compute_class_weight("balanced", classes=numpy.arange(3), y=labels) == pytest.approx(found.tolist())
    rows = [(1, 0), (0, 0), (0, 1), (0, 1)]
    several = find_class_weights(SEVERAL, TrainingConfig(class_weights="balanced"), rows, CPU)
    assert several is not None
    assert [3.0, 1.0] == several.tolist()
    assert find_class_weights(HEAD, TrainingConfig(), labels, CPU) is None


def test_a_weighted_loss_is_the_weighted_mean() -> None:
    """Computed by hand, with and without smoothing."""
    logits, labels, weights = (
        torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0]]),
        torch.tensor([0, 2]),
        torch.tensor([1.0, 2.0, 4.0]),
    )
    logs = logits.log_softmax(dim=1)
    by_hand = -(1.0 * logs[0, 0] + 4.0 * logs[1, 2]) / 5.0
    assert by_hand.item() == pytest.approx(loss_of("classification", logits, labels, weights).item())
    smoothed = -(0.9 * logs[0, 0] + 0.1 * logs[0].mean() + 0.9 * logs[1, 2] + 0.1 * logs[1].mean()) / 2
    assert smoothed.item() == pytest.approx(loss_of("classification", logits, labels, None, 0.1).item())
    yes = loss_of("multi_label", torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([3.0, 1.0]))
    assert math.log(2) * (3 + 1) / 2 == pytest.approx(yes.item())


def test_weights_that_do_not_fit_are_refused() -> None:
    """Not one for each label, none for a number to predict, and no number below zero."""
    with pytest.raises(ConfigError, match="class_weights: expected 3 numbers, as there are labels, found 2"):
        find_class_weights(HEAD, TrainingConfig(class_weights=(1.0, 2.0)), [0, 1], CPU)
    for wrong in ({"class_weights": "balanced"}, {"label_smoothing": 0.1}):
        with pytest.raises(ConfigError, match="as the task predicts a number"):
            find_class_weights(NUMBER, TrainingConfig(**wrong), [0.5], CPU)
    with pytest.raises(ConfigError, match="class_weights: expected numbers above 0"):
        TrainingConfig(class_weights=(1.0, -1.0))


def test_weights_change_what_is_learned(tiny_backbone: Backbone) -> None:
    """Of a class that is one row in twenty more rows are found with balanced weights than without."""
    texts = [f"the film was {'bad' if n % 20 == 0 else 'good'} {n}" for n in range(400)]
    data = TaskData.from_lists(texts, ["bad" if n % 20 == 0 else "good" for n in range(400)])
    found = {}
    for weights in (None, "balanced"):
        plan = make_plan("head_only", data, tiny_backbone, 0, epochs=3, max_length=16, class_weights=weights)
        found[weights] = int((fit(plan, data, tiny_backbone).probabilities.argmax(axis=1) == 1).sum())
    assert found["balanced"] > found[None]


def test_loss_and_selection_are_options_of_every_recipe(tmp_path: Path, tiny_folder: Path) -> None:
    """They are in the manifest, so a training is repeated with them; a metric that does not fit is refused."""
    path = write_csv(tmp_path / "rows.csv", own_rows(60))
    usual = ("--store", tmp_path / "store", "train", "--data", path, "--text-col", "body", "--label-col", "mood")
    quick = ("--backbone", tiny_folder, "--max-length", "32", "--epochs", "1")
    loss = (
        "--class-weights",
        "1,2,3",
        "--label-smoothing",
        "0.1",
        "--select-best",
        "f1_macro",
        "--evaluate-every",
        "2",
    )
    succeed(*usual, *quick, *loss)
    (shown,) = succeed("--store", tmp_path / "store", "show", "rows", "--json").rows
    training = shown["training"]
    assert ([1.0, 2.0, 3.0], 0.1, "f1_macro", 2) == (
        training["class_weights"], training["label_smoothing"], training["select_best"], training["evaluate_every"],
    )  # fmt: skip
    assert "same weights as rows:1" in succeed("--store", tmp_path / "store", "train", "--from", "rows").out
    told = call(*usual, *quick, "--class-weights", "heavy")
    assert (2, True) == (told.code, "expected balanced, or numbers with commas, such as 1,3.5" in told.message)


@pytest.mark.parametrize("weights", [None, (1.0, 3.0)])
def test_accumulated_passes_make_the_step_of_one_pass(
    tiny_backbone: Backbone, weights: tuple[float, float] | None
) -> None:
    """Four passes of two rows take the step that one pass of eight takes, with class weights too, to rounding."""
    plain = {"epochs": 2, "max_length": 16, "learning_rate": 1e-2, "class_weights": weights}
    found = []
    for rows, passes in ((8, 1), (2, 4)):
        config = TrainingConfig(batch_size=rows, gradient_accumulation_steps=passes, **plain)
        fresh = tiny_backbone.new_adapter_set(AdapterConfig(reduction_factor=4), TWO, seed=0)
        result = train(tiny_backbone.encoder, fresh, toy_rows(tiny_backbone, 39), config)
        assert (10, 78) == (result.steps, result.rows)
        found.append((result.first_loss, torch.cat([tensor.flatten() for tensor in fresh.state_dict().values()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-3)


def focal(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the focal loss of Lin et al. 2017 as one's own."""
    of_truth = logits.log_softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
    return -(((1 - of_truth.exp()) ** 2) * of_truth).mean()


def test_an_own_loss_is_learned_and_named(tmp_path: Path, tiny_backbone: Backbone) -> None:
    """It gets logits and labels, its name is in the manifest, and without it the training cannot be repeated."""
    registry = Registry.create(tmp_path / "store", tiny_backbone)
    texts = [f"the film was {'bad' if n % 2 else 'good'} {n}" for n in range(60)]
    data = TaskData.from_lists(texts, ["bad" if n % 2 else "good" for n in range(60)])
    usual = registry.train("moods", data, epochs=1, max_length=16)
    own = registry.train("moods", data, epochs=1, max_length=16, loss=focal)
    results = [each.fitted.result for each in (usual, own)]
    assert results[0] is not None
    assert results[1] is not None
    assert results[1].first_loss < 0.5 * results[0].first_loss  # a quarter of it where both classes are alike
    training = registry.manifest("moods").training
    assert training is not None
    assert training.loss == f"{__name__}:focal"
    with pytest.raises(ConfigError, match=r"loss: expected the function .*:focal, given in Python as loss="):
        train(tiny_backbone.encoder, tiny_backbone.new_adapter_set(None, TWO), toy_rows(tiny_backbone), training)
    with pytest.raises(ConfigError, match=r"loss: expected a scalar tensor that depends on the logits, found \(2,\)"):
        registry.train("moods", data, epochs=1, max_length=16, loss=lambda logits, labels: logits.mean(dim=0))


@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        (HEAD, ("a", "b"), r"the label of row 0: expected a class index from 0 to 2 \(a, b, c\), found 'a'"),
        (HEAD, (1, 3), "the label of row 1: expected a class index from 0 to 2"),
        (HEAD, (1.0, 2.0), "the label of row 0: expected a class index"),
        (HEAD, (1,), "labels: expected 2, one for each row, found 1"),
        (SEVERAL, ((1, 0), (1, 2)), "the label of row 1: expected 2 of 0 and 1"),
        (NUMBER, (1.0, math.nan), "the label of row 1: expected a finite number, found nan"),
    ],
)
def test_labels_that_cannot_be_learned_are_told(
    tiny_backbone: Backbone, head: HeadConfig, labels: tuple[Any, ...], message: str
) -> None:
    """Strings, numbers from 1 on and too few labels are named with their row, before torch sees them."""
    rows = LabelledRows(tiny_backbone.tokenize(["a film", "a city"], max_length=16), labels)
    with pytest.raises(ConfigError, match=message):
        train(tiny_backbone.encoder, tiny_backbone.new_adapter_set(None, head), rows, TrainingConfig(epochs=1))
