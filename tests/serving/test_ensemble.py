"""Several sets that answer as one: the mean of what each says, whatever the order of their labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from registry.config import AdapterConfig, HeadConfig, LoraConfig
from registry.errors import RequestError
from registry.model.backbone import Backbone
from registry.schema import SetInfo
from registry.serving.predictor import Predictor, Request
from registry.store.registry import Registry
from tests.support.command_line import QUICK, call, own_rows, succeed, write_csv
from tests.support.served_sets import assert_close
from tests.support.toy_task import randomise

HEAD = HeadConfig(label_names=("bad", "good"))
SEVERAL = HeadConfig(label_names=("a", "b"), problem_type="multi_label", thresholds=(0.2, 0.9))
TEXTS = ["the film was great", "a dull road", "she left"]


@pytest.fixture
def predictor(tmp_path: Path, tiny_backbone: Backbone) -> Predictor:
    """A predictor over sets of different methods."""
    registry = Registry.create(tmp_path / "store", tiny_backbone)
    shapes = {
        "one": (LoraConfig(rank=2), HEAD),
        "two": (
            AdapterConfig(reduction_factor=4),
            HeadConfig(label_names=("good", "bad"), form="dense_gelu", bias=False),
        ),
        "tags": (None, SEVERAL),
        "number": (None, HeadConfig(label_names=("stars",), problem_type="regression")),
    }
    for seed, (name, shape) in enumerate(shapes.items()):
        registry.save(name, randomise(tiny_backbone.new_adapter_set(*shape), seed), SetInfo(pair=False, max_length=32))
    return Predictor(tiny_backbone, registry)


def test_an_ensemble_is_the_mean_of_its_members(predictor: Predictor) -> None:
    """Labels are matched by name, the answer names both versions, and rows of others may be in the same call."""
    one, two = (predictor(name, TEXTS) for name in ("one", "two"))
    found = predictor.mixed([Request("one+two", text) for text in TEXTS] + [Request("one", TEXTS[0])])
    for first, second, both in zip(one, two, found, strict=False):
        expected = {name: (first.probabilities[name] + second.probabilities[name]) / 2 for name in HEAD.label_names}
        assert both.probabilities == pytest.approx(expected)
        assert (both.reference, both.label) == ("one:1+two:1", max(expected, key=lambda name: expected[name]))
    assert_close(one[0], found[-1], 1e-6)  # in another batch a processor may round otherwise
    assert predictor("number+number", TEXTS)[0].label == pytest.approx(predictor("number", TEXTS)[0].label)


def test_thresholds_of_an_ensemble_are_their_mean(predictor: Predictor) -> None:
    """A label is said from the mean of the members' thresholds on."""
    for alone, twice in zip(predictor("tags", TEXTS), predictor("tags+tags", TEXTS), strict=True):
        said = tuple(
            n for n, at in zip("ab", SEVERAL.thresholds, strict=True) if alone.probabilities[n] >= np.float32(at)
        )
        assert said == alone.label == twice.label


def test_members_that_answer_other_questions_are_refused(predictor: Predictor) -> None:
    """Other labels or another problem type have no mean; a line of its own has its error."""
    with pytest.raises(RequestError, match="members that are all classification, found multi_label"):
        predictor("one+tags", TEXTS)
    with pytest.raises(
        RequestError, match="answer row 1 with 'one': expected one text, as its task is on single texts"
    ):
        predictor.mixed([Request("one", "a film"), Request("one+two", "a film", "another")])
    (error,) = predictor.answer_each([Request("one+number", "a film")])
    assert isinstance(error, RequestError)


def test_commands_take_ensembles(tmp_path: Path, tiny_folder: Path) -> None:
    """predict answers a text, lines and files with them, and evaluate scores them."""
    path = write_csv(tmp_path / "rows.csv", own_rows())
    store = ("--store", tmp_path / "store")
    usual = ("train", "--data", path, "--text-col", "body", "--label-col", "mood", "--backbone", tiny_folder, *QUICK)
    succeed(*store, *usual, "--name", "one", "--method", "lora", "--rank", "2")
    succeed(*store, *usual, "--name", "two", "--method", "prefix", "--prefix-length", "3", "--head-form", "dense_relu")
    (answer,) = succeed(*store, "predict", "one+two", "a great film", "--json").rows
    each = [succeed(*store, "predict", name, "a great film", "--json").rows[0] for name in ("one", "two")]
    mean = {name: sum(one["probabilities"][name] for one in each) / 2 for name in answer["probabilities"]}
    assert answer["probabilities"] == pytest.approx(mean, abs=2e-6)
    rows = succeed(*store, "predict", "one+two", "--data", path, "--text-col", "body").rows
    assert len(rows) == len(own_rows())
    (scored,) = succeed(*store, "evaluate", "one+two", "--json").rows
    assert scored["adapter"] == "one+two"
    told = call(*store, "evaluate", "one+none")
    assert (3, True) == (told.code, "none" in told.message)
