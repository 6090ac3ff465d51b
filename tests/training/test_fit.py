"""What each method means, and that fitting it trains only what it may, on only the rows it may see."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
import torch

from registry.config import BASELINES, PLACEMENTS
from registry.errors import ConfigError
from registry.model.backbone import Backbone
from registry.tasks import tables
from registry.tasks.loading import load_task
from registry.tasks.spec import find_task, task_from_file
from registry.tasks.task_data import TaskData
from registry.training import loop
from registry.training.fit import fit
from registry.training.plan import Plan, make_plan
from registry.training.recipes import method_names, read_recipe, recipe_names
from tests.support.command_line import own_rows, write_csv, write_data_folder
from tests.support.toy_task import same_weights

QUICK = {"epochs": 1, "max_length": 32, "batch_size": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the three built-in tasks in little."""
    return write_data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def data(folder: Path) -> TaskData:
    """The little sst2: 24 rows to train on, 12 to score."""
    return load_task(find_task("sst2"), str(folder))


def own_data(path: Path, **fields: Any) -> TaskData:
    """Return a task on a file of one's own."""
    return load_task(task_from_file(path, text_column="body", **fields))


def plan_of(method: str, data: TaskData, backbone: Backbone, seed: int = 0, **overrides: Any) -> Plan:
    """Return a quick plan of the default recipe."""
    return make_plan(method, data, backbone, seed, **{**QUICK, **overrides})


def test_methods_are_baselines_placements_and_recipes() -> None:
    """A benchmark knows the baselines, every placement and every shipped recipe but the default."""
    assert (*BASELINES, *PLACEMENTS, *recipe_names()[1:]) == method_names()


@pytest.mark.parametrize("method", PLACEMENTS)
def test_placement_is_the_recipe_at_another_place(method: str, data: TaskData, tiny_backbone: Backbone) -> None:
    """A placement takes everything else from the recipe."""
    plan = plan_of(method, data, tiny_backbone)
    expected = read_recipe("default").adapter.for_hidden_size(32)
    assert msgspec.structs.replace(expected, placement=method) == plan.adapter
    assert (method, "default", False) == (plan.method, plan.recipe, plan.unfreezes)
    assert plan.head is not None
    assert ("negative", "positive") == plan.head.label_names


@pytest.mark.parametrize(
    ("method", "trains", "unfreezes"),
    [("majority", False, False), ("head_only", True, False), ("full_fine_tuning", True, True)],
)
def test_baselines_have_no_bottlenecks(
    method: str, trains: bool, unfreezes: bool, data: TaskData, tiny_backbone: Backbone
) -> None:
    """Majority has no model at all; the other baselines train their head, whatever the recipe says of it."""
    plan = make_plan(method, data, tiny_backbone, 3, read_recipe("lab-notebook"), **QUICK)
    assert plan.adapter is None
    assert (trains, unfreezes) == (plan.training is not None, plan.unfreezes)
    if plan.training is not None and plan.head is not None:
        assert plan.head.trained
        assert 3 == plan.training.seed


def test_recipe_as_a_method_and_as_it_is(data: TaskData, tiny_backbone: Backbone) -> None:
    """A recipe's name means that recipe; ``recipe`` means the one handed in, under its placement's name."""
    notebook = read_recipe("lab-notebook")
    by_name = plan_of("lab-notebook", data, tiny_backbone)
    as_it_is = make_plan("recipe", data, tiny_backbone, 0, notebook, **QUICK)
    assert ("lab-notebook", "after_layer") == (by_name.method, as_it_is.method)
    assert msgspec.structs.replace(by_name, method="after_layer") == as_it_is
    assert notebook.adapter.for_hidden_size(32) == by_name.adapter


def test_method_tables_and_overrides(data: TaskData, tiny_backbone: Backbone) -> None:
    """A recipe's table for a method counts for that method, and an option wins over it."""
    recipe = msgspec.structs.replace(read_recipe("default"), method={"houlsby": {"learning_rate": 0.5}})
    rates = [
        make_plan(method, data, tiny_backbone, 0, recipe, **{**QUICK, **overrides}).training
        for method, overrides in (("houlsby", {}), ("pfeiffer", {}), ("houlsby", {"learning_rate": 0.25}))
    ]
    default = read_recipe("default").training_for("sst2").learning_rate
    assert [0.5, default, 0.25] == [training.learning_rate for training in rates if training]


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("housby", {}, "did you mean 'houlsby'?"),
        ("default", {}, "cannot use method: expected one of majority"),
        ("houlsby-2019", {}, "bottleneck_size: expected a divisor of the hidden size 32, found 64"),
        ("houlsby", {"max_length": 67}, "max_length: expected at most 66 tokens for this backbone, found 67"),
        ("houlsby", {"epoch": 3}, "did you mean 'epochs'?"),
    ],
)
def test_impossible_plans(
    method: str, changes: dict[str, Any], message: str, data: TaskData, tiny_backbone: Backbone
) -> None:
    """What does not fit the backbone is refused before anything is trained."""
    with pytest.raises(ConfigError) as refused:
        plan_of(method, data, tiny_backbone, **changes)
    assert message in str(refused.value)


def test_layers_that_are_not_there(data: TaskData, tiny_backbone: Backbone) -> None:
    """A layer index has to be below L."""
    recipe = read_recipe("default").with_choices({"layers": (0, 2)}, {})
    with pytest.raises(ConfigError, match="layers: expected indices from 0 to 1, found"):
        make_plan("houlsby", data, tiny_backbone, 0, recipe, **QUICK)


def test_digest_names_all_that_decides_the_scores(folder: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """Equal plans on equal rows have one digest; seed, any choice, rows, labels and metrics change it."""
    plan = plan_of("houlsby", data, tiny_backbone)
    digest = plan.digest(tiny_backbone, data)
    assert digest == plan_of("houlsby", data, tiny_backbone).digest(tiny_backbone, data)
    assert digest == plan.digest(tiny_backbone, dataclasses.replace(data, source="elsewhere"))
    plans = [
        plan_of("houlsby", data, tiny_backbone, seed=1),
        plan_of("houlsby", data, tiny_backbone, epochs=2),
        plan_of("pfeiffer", data, tiny_backbone),
        plan_of("head_only", data, tiny_backbone),
    ]
    fewer = load_task(find_task("sst2"), str(folder), limit=20)
    turned = dataclasses.replace(data.reported, labels=tuple(1 - label for label in data.reported.labels))
    others = [
        fewer,
        dataclasses.replace(data, reported=turned),
        dataclasses.replace(data, spec=msgspec.structs.replace(data.spec, metrics=("f1_macro",))),
    ]
    digests = [each.digest(tiny_backbone, data) for each in plans]
    digests += [plan.digest(tiny_backbone, each) for each in others]
    assert len(digests) + 1 == len({digest, *digests})


def test_majority_answers_with_the_shares_of_the_training_rows(tmp_path: Path, tiny_backbone: Backbone) -> None:
    """Every row gets the training rows' class shares, so its scores are those of the commonest class."""
    rows = [{**row, "mood": "dull" if n % 3 else "good"} for n, row in enumerate(own_rows())]  # the rarer label is last
    data = own_data(write_csv(tmp_path / "rows.csv", rows), label_column="mood")
    fitted = fit(make_plan("majority", data, tiny_backbone, 0), data, tiny_backbone)
    shares = Counter(data.train.labels)
    expected = [shares[index] / len(data.train) for index in (0, 1)]
    assert numpy.allclose([expected] * len(data.reported), fitted.probabilities)
    assert Counter(data.reported.labels)[0] / len(data.reported) == fitted.scores["accuracy"]
    assert (0, 0, 0.0, 0, False) == (
        fitted.parameters.trainable,
        fitted.parameters.stored,
        fitted.parameters.percent,
        fitted.stored_bytes,
        fitted.storable,
    )


def test_majority_of_numbers_and_of_many_labels(tmp_path: Path, tiny_backbone: Backbone) -> None:
    """For numbers it answers their mean, for many labels the share of rows that have each."""
    rows = [{"body": row["body"], "stars": n % 4, "tags": "red|blue" if n % 3 else "red"} for n, row in
            enumerate(own_rows())]  # fmt: skip
    path = write_csv(tmp_path / "rows.csv", rows)
    for column, kind in (("stars", "regression"), ("tags", "multi_label")):
        data = own_data(path, label_column=column, problem_type=kind)
        fitted = fit(make_plan("majority", data, tiny_backbone, 0), data, tiny_backbone)
        mean = numpy.asarray(data.train.labels).reshape(len(data.train), -1).mean(axis=0)
        assert numpy.allclose(numpy.tile(mean, (len(data.reported), 1)), fitted.probabilities)


def test_head_only_trains_only_a_head(data: TaskData, tiny_backbone: Backbone) -> None:
    """The set of head_only has no bottleneck, and its count is that of the head."""
    fitted = fit(plan_of("head_only", data, tiny_backbone), data, tiny_backbone)
    assert fitted.adapter_set is not None
    assert {"head"} == {name.split(".")[0] for name, _ in fitted.adapter_set.named_parameters()}
    assert 2 * 32 + 2 == fitted.parameters.trainable == fitted.parameters.stored
    assert fitted.storable


def test_lab_notebook_leaves_the_classifier_at_its_start(data: TaskData, tiny_backbone: Backbone) -> None:
    """No head parameter trains in the lab notebook's recipe, and with --train-head the head trains."""
    for trained in (False, True):
        recipe = read_recipe("lab-notebook").with_choices({}, {"trained": trained})
        plan = make_plan("recipe", data, tiny_backbone, 0, recipe, **QUICK, evaluate_every=2)
        assert plan.head is not None
        fresh = tiny_backbone.new_adapter_set(plan.adapter, plan.head)
        fitted = fit(plan, data, tiny_backbone)
        assert fitted.adapter_set is not None
        parts = {name.split(".")[0] for name, _ in fitted.adapter_set.named_parameters()}
        assert ({"adapter", "head"} if trained else {"adapter"}) == parts
        unchanged = [
            torch.equal(tensor, fitted.adapter_set.state_dict()[name])
            for name, tensor in fresh.state_dict().items()
            if name.startswith("head.")
        ]
        assert [not trained] * len(unchanged) == unchanged
        assert (fitted.parameters.trainable == fitted.parameters.stored) == trained


def test_counts_of_a_placement(data: TaskData, tiny_backbone: Backbone) -> None:
    """Trainable elements are bottlenecks and head; the backbone is counted once; bytes are those of the files."""
    recipe = read_recipe("default").with_choices({"reduction_factor": 4, "layer_norms": False}, {})
    fitted = fit(make_plan("houlsby", data, tiny_backbone, 0, recipe, **QUICK), data, tiny_backbone)
    bottlenecks = 4 * (32 * 8 + 8 + 8 * 32 + 32)
    assert bottlenecks + 2 * 32 + 2 == fitted.parameters.trainable
    whole = tiny_backbone.info.parameters
    assert whole == sum(parameter.numel() for parameter in tiny_backbone.parameters())
    assert (whole, whole + fitted.parameters.stored) == (fitted.parameters.backbone, fitted.parameters.total)
    assert 100 * fitted.parameters.trainable / whole == pytest.approx(fitted.parameters.percent)
    assert 4 * fitted.parameters.stored < fitted.stored_bytes < 4 * fitted.parameters.stored + 4096


def test_full_fine_tuning_trains_a_copy(data: TaskData, tiny_backbone: Backbone) -> None:
    """All of a copy trains, the frozen backbone is as it was, and no set of its own could be stored."""
    before = tiny_backbone.memory_digest()
    fitted = fit(plan_of("full_fine_tuning", data, tiny_backbone), data, tiny_backbone)
    assert before == tiny_backbone.memory_digest()
    whole, head = tiny_backbone.info.parameters, 2 * 32 + 2
    assert (whole + head, whole + head, whole + head) == (
        fitted.parameters.trainable,
        fitted.parameters.stored,
        fitted.parameters.total,
    )
    assert fitted.stored_bytes >= 4 * (whole + head)
    assert not fitted.storable
    assert (12, 2) == fitted.probabilities.shape


def test_same_seed_same_weights(data: TaskData, tiny_backbone: Backbone) -> None:
    """The seed decides the weights to the last bit, another one gives others."""
    first, again, other = (
        fit(plan_of("houlsby", data, tiny_backbone, seed=seed), data, tiny_backbone).adapter_set for seed in (5, 5, 6)
    )
    assert first is not None
    assert again is not None
    assert other is not None
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_nothing_is_chosen_on_the_reported_rows(data: TaskData, tiny_backbone: Backbone) -> None:
    """Choosing the best state looks at held-out training rows: turning all reported labels changes nothing."""
    choice = {"evaluate_every": 1, "select_best": "accuracy", "epochs": 2, "learning_rate": 0.05}
    turned = dataclasses.replace(data.reported, labels=tuple(1 - label for label in data.reported.labels))
    fitted, other = (
        fit(plan_of("houlsby", rows, tiny_backbone, **choice), rows, tiny_backbone)
        for rows in (data, dataclasses.replace(data, reported=turned))
    )
    assert fitted.result is not None
    assert other.result is not None
    assert fitted.result.history == other.result.history
    assert fitted.result.best_step == other.result.best_step
    assert fitted.adapter_set is not None
    assert other.adapter_set is not None
    assert same_weights(fitted.adapter_set, other.adapter_set)
    assert fitted.scores["accuracy"] == pytest.approx(1 - other.scores["accuracy"])
    # 2 of 24 rows are held out, so an epoch is 22 rows in 3 steps, and each is scored
    assert (44, 6, list(range(1, 7))) == (
        fitted.result.rows,
        fitted.result.steps,
        [step for step, _ in fitted.result.history],
    )


def test_cut_rows_are_counted(data: TaskData, tiny_backbone: Backbone) -> None:
    """Rows longer than the maximum are counted, held-out ones too."""
    for changes in ({}, {"evaluate_every": 2}):
        fitted = fit(plan_of("head_only", data, tiny_backbone, max_length=5, **changes), data, tiny_backbone)
        assert (24, 12) == (fitted.truncated_train, fitted.truncated_reported)


@pytest.mark.parametrize("method", ["pfeiffer", "lora", "head_only"])
def test_rows_on_disk_train_the_same_set(
    method: str, tmp_path: Path, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows on disk, tokenised as they are asked for, train the same set as rows in memory, which answers the same."""
    path = write_csv(tmp_path / "own.csv", own_rows(60))
    fitted = []
    for large in (tables.LARGE, 0):
        monkeypatch.setattr(tables, "LARGE", large)
        monkeypatch.setattr(loop, "MOST_BYTES", large)  # of pooled states that a head alone learns from
        data = own_data(path, label_column="mood")
        assert data.train.on_disk == (large == 0)
        plan = plan_of(method, data, tiny_backbone, epochs=2, max_length=6)
        fitted.append(fit(plan, data, tiny_backbone))
    assert same_weights(*(one.adapter_set for one in fitted))
    numpy.testing.assert_array_equal(*(one.probabilities for one in fitted))
    assert fitted[0].truncated_train == fitted[1].truncated_train
