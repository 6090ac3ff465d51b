"""A set merged into transformers' own classifier: a checkpoint, a model in memory, and what neither can hold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from registry import load_into
from registry.config import AdapterConfig, HeadConfig, LoraConfig, MethodConfig, PrefixConfig
from registry.errors import BackboneMismatchError, RegistryError, ShapeMismatchError
from registry.model.backbone import Backbone
from registry.model.families import FAMILIES
from registry.schema import SetInfo
from registry.serving.predictor import Predictor
from registry.store.errors import UnheldError
from registry.store.registry import Registry
from tests.support.command_line import call, succeed
from tests.support.foreign_folders import FOLDERS
from tests.support.tiny_backbone import save_tiny_checkpoint, tiny_model, tiny_tokenizer
from tests.support.toy_task import METHODS, randomise

TEXTS = ["the film was not good", "bad news!", "a very great cat, and no dog", "yes"]
PAIRS = ["he left", "she went, the sun is red", "no", "a small city road"]
NAMES = ("bad", "fair", "good")
HELD = {family: entry for family, entry in FAMILIES.items() if entry.head_dense is not None}
MERGED: dict[str, MethodConfig | None] = {
    name: each for name, each in METHODS.items() if not {"prefix", "fusion"} & set(name.split("-"))
}
MERGED["head-alone"] = None


def head_for(family: str, **changes: Any) -> HeadConfig:
    """Return a head of the form that the family's own classifier has."""
    form: Any = f"dense_{FAMILIES[family].head_activation}"
    return HeadConfig(**{"label_names": NAMES, "form": form, "pooling": "cls", **changes})


def stored(folder: Path, family: str, adapter: MethodConfig | None, head: HeadConfig, **sizes: object) -> Registry:
    """Return a registry on a tiny backbone of a family with a random set, 'mood', in it."""
    save_tiny_checkpoint(folder / "backbone", family, **sizes)
    backbone = Backbone.load(str(folder / "backbone"), device="cpu")
    registry = Registry.create(folder / "store", backbone)
    registry.save("mood", randomise(backbone.new_adapter_set(adapter, head), seed=5), SetInfo(max_length=24))
    return registry


@torch.no_grad()
def stock_logits(model: PreTrainedModel, folder: Path, pairs: list[str] | None = None) -> numpy.ndarray:
    """Return what transformers' own model and tokenizer give."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, pairs, padding=True, truncation=True, return_tensors="pt")
    if model.config.model_type in ("distilbert", "mpnet"):
        inputs.pop("token_type_ids", None)
    return model.eval()(**inputs).logits.numpy()


def check_checkpoint(registry: Registry, folder: Path) -> None:
    """Export the set, and hold the logits of the checkpoint against those of the set."""
    registry.export_to("mood", folder, "transformers")
    model, told = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    predictor = Predictor(registry.backbone, registry)
    for pairs in (None, PAIRS):
        numpy.testing.assert_allclose(
            predictor.logits("mood", TEXTS, pairs), stock_logits(model, folder, pairs), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("method", MERGED)
@pytest.mark.parametrize("family", HELD)
def test_a_checkpoint_gives_the_sets_logits(tmp_path: Path, family: str, method: str) -> None:
    """For every family with such a classifier and every method that merges; nothing is missing or left over in it."""
    check_checkpoint(stored(tmp_path, family, MERGED[method], head_for(family)), tmp_path / "out")


def test_the_command_writes_one(tmp_path: Path) -> None:
    """export tells where and how large; a set that no classifier holds ends with the formats and exit code 5."""
    registry = stored(tmp_path, "bert", METHODS["bitfit"], head_for("bert"))
    fresh = registry.backbone.new_adapter_set(AdapterConfig(reduction_factor=4), head_for("bert"))
    registry.save("other", fresh, SetInfo(max_length=24))
    store, out = ("--store", registry.store.root), tmp_path / "out"
    assert "mood:1 -> " in succeed(*store, "export", "mood", out, "--format", "transformers").out
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} == set(os.listdir(out))
    refused = call(*store, "export", "other", tmp_path / "no", "--format", "transformers")
    assert (5, False) == (refused.code, (tmp_path / "no").exists())
    assert "is no change of weights, as lora, ia3 and bitfit are; formats that can hold it: a" in refused.message


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_a_linear_head_over_the_pooler_is_held(tmp_path: Path, family: str) -> None:
    """The checkpoint's pooler becomes the classifier's first layer, also where the family keeps it elsewhere."""
    head = HeadConfig(label_names=NAMES, pooling="pooler", bias=False)
    registry = stored(tmp_path, family, METHODS["lora-all"], head)
    check_checkpoint(registry, tmp_path / "out")
    source = registry.backbone.info.source
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=3)
    load_into(model, "mood", registry)
    expected = Predictor(registry.backbone, registry).logits("mood", TEXTS)
    numpy.testing.assert_allclose(expected, stock_logits(model, Path(source)), rtol=0, atol=1e-5)


def test_a_checkpoint_without_a_pooler_gets_one(tmp_path: Path) -> None:
    """Where BERT was saved without its pooler, the head's first layer takes that place, on disk and in memory."""
    AutoModel.from_config(tiny_model().config, add_pooling_layer=False).save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    backbone = Backbone.load(str(tmp_path / "backbone"), device="cpu")
    assert backbone.encoder.pooler is None
    registry = Registry.create(tmp_path / "store", backbone)
    fresh = backbone.new_adapter_set(METHODS["lora"], head_for("bert"))
    registry.save("mood", randomise(fresh, seed=5), SetInfo(max_length=24))
    check_checkpoint(registry, tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "backbone", num_labels=3)
    load_into(model, "mood", registry)
    expected = Predictor(backbone, registry).logits("mood", TEXTS)
    numpy.testing.assert_allclose(expected, stock_logits(model, tmp_path / "backbone"), rtol=0, atol=1e-5)


def test_half_precision_on_disk_is_exact(tmp_path: Path) -> None:
    """A backbone stored in 16 bits becomes a checkpoint in float32, as the set's weights are."""
    model = tiny_model()
    model.to(torch.bfloat16).save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    backbone = Backbone.load(str(tmp_path / "backbone"), device="cpu", dtype="float32")
    registry = Registry.create(tmp_path / "store", backbone)
    registry.save(
        "mood", randomise(backbone.new_adapter_set(METHODS["lora-all"], head_for("bert"))), SetInfo(max_length=24)
    )
    check_checkpoint(registry, tmp_path / "out")
    assert {torch.float32} == {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()}


def test_shared_weights_get_their_own(tmp_path: Path) -> None:
    """Layers of one ALBERT group, and DeBERTa's positions, have their own weights in the checkpoint."""
    registry = stored(tmp_path / "a", "albert", METHODS["lora-all"], head_for("albert"), num_hidden_groups=1)
    check_checkpoint(registry, tmp_path / "albert")
    assert 2 == json.loads((tmp_path / "albert" / "config.json").read_text())["num_hidden_groups"]
    for ways, count in ((["c2p"], 2), (["p2c", "c2p"], 4), ([], 0)):
        folder = tmp_path / str(count)
        registry = stored(folder, "deberta-v2", METHODS["lora"], head_for("deberta-v2"), pos_att_type=ways)
        check_checkpoint(registry, folder / "out")
        names = load_file(folder / "out" / "model.safetensors")
        assert count == sum(".pos_" in name and name.endswith("weight") for name in names)


def test_a_checkpoint_answers_in_what_the_set_answers_with(tmp_path: Path) -> None:
    """Labels, problem type and length are written down; numbers have their unit, probabilities their temperature."""
    stars = head_for("bert", label_names=("stars",), problem_type="regression", target_mean=3.0, target_deviation=2.5)
    several = head_for("bert", problem_type="multi_label", temperature=2.0)
    for name, head in (("stars", stars), ("several", several)):
        registry = stored(tmp_path / name, "bert", METHODS["lora"], head)
        out = tmp_path / name / "out"
        registry.export_to("mood", out, "transformers")
        model = AutoModelForSequenceClassification.from_pretrained(out)
        logits = torch.from_numpy(stock_logits(model, out))
        shares = logits if head.problem_type == "regression" else logits.sigmoid()
        answers = [list(one.probabilities.values()) for one in Predictor(registry.backbone, registry)("mood", TEXTS)]
        numpy.testing.assert_allclose(answers, shares, rtol=0, atol=1e-5)
        assert dict(enumerate(head.label_names)) == model.config.id2label
        assert 24 == AutoTokenizer.from_pretrained(out).model_max_length
    assert "multi_label_classification" == model.config.problem_type


@pytest.mark.parametrize(
    ("family", "adapter", "changes", "found"),
    [
        ("bert", AdapterConfig(reduction_factor=4), {}, "what 'after_layer' does is no change of weights"),
        ("bert", PrefixConfig(length=2), {}, "what 'prefix' does is no change of weights"),
        ("bert", LoraConfig(), {"pooling": "mean", "form": "linear"}, "this one is linear over mean; formats that can"),
        ("bert", LoraConfig(), {"pooling": "mean"}, "has a head of dense_tanh over cls or linear over pooler"),
        (
            "electra",
            LoraConfig(),
            {"form": "dense_relu"},
            "classifier of electra has a head of dense_gelu over cls",
        ),
        ("modernbert", LoraConfig(), {}, "the classifier of modernbert has a norm between its head's layers"),
    ],
)
def test_what_no_classifier_holds_is_refused(
    tmp_path: Path, family: str, adapter: MethodConfig, changes: dict[str, Any], found: str
) -> None:
    """With what it has that others have not, and the formats that can hold it; nothing is written."""
    registry = stored(tmp_path, family, adapter, head_for(family, **changes))
    with pytest.raises(UnheldError, match=found) as caught:
        registry.export_to("mood", tmp_path / "out", "transformers")
    assert (5, False) == (caught.value.exit_code, (tmp_path / "out").exists())
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "backbone", num_labels=3)
    with pytest.raises(UnheldError, match="the weights of a .*ForSequenceClassification"):
        load_into(model, "mood", registry)


@pytest.mark.parametrize("family", [family for family in HELD if family not in ("albert", "deberta-v2")])
@pytest.mark.parametrize("method", ["lora-all", "bitfit", "ia3"])
def test_a_set_is_merged_in_place(tmp_path: Path, family: str, method: str) -> None:
    """A stock classifier answers as the set does, and knows its labels; a second set does not fit on top of it."""
    registry = stored(tmp_path, family, METHODS[method], head_for(family))
    source = registry.backbone.info.source
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=3)
    load_into(model, "mood", registry)
    expected = Predictor(registry.backbone, registry).logits("mood", TEXTS)
    numpy.testing.assert_allclose(expected, stock_logits(model, Path(source)), rtol=0, atol=1e-5)
    assert dict(enumerate(NAMES)) == model.config.id2label
    with pytest.raises(BackboneMismatchError, match="merge one set into it"):
        load_into(model, "mood", registry)


@pytest.mark.parametrize(("family", "shared"), [("albert", {"num_hidden_groups": 1}), ("deberta-v2", {})])
def test_shared_weights_are_not_changed_in_place(tmp_path: Path, family: str, shared: dict[str, object]) -> None:
    """What would change more than the set does is refused with the way on; a head alone is not."""
    registry = stored(tmp_path, family, METHODS["lora"], head_for(family), **shared)
    source = registry.backbone.info.source
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=3)
    with pytest.raises(UnheldError, match="where an export gives each its own"):
        load_into(model, "mood", registry)
    alone = registry.backbone.new_adapter_set(None, head_for(family), seed=3)
    registry.save("alone", alone, SetInfo(max_length=24))
    load_into(model, "alone", registry)
    expected = Predictor(registry.backbone, registry).logits("alone", TEXTS)
    numpy.testing.assert_allclose(expected, stock_logits(model, Path(source)), rtol=0, atol=1e-5)


def test_a_model_that_does_not_fit_stays_as_it_was(tmp_path: Path) -> None:
    """Another family, another checkpoint, other labels, a headless model: refused, and not one tensor has changed."""
    registry = stored(tmp_path, "bert", METHODS["lora"], head_for("bert"))
    save_tiny_checkpoint(tmp_path / "other", seed=1)
    save_tiny_checkpoint(tmp_path / "roberta", "roberta")
    own = tmp_path / "backbone"
    for folder, labels, kind in (
        (tmp_path / "roberta", 3, BackboneMismatchError),
        (tmp_path / "other", 3, BackboneMismatchError),
        (own, 2, ShapeMismatchError),
    ):
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(kind) as caught:
            load_into(model, "mood", registry)
        assert isinstance(caught.value, RegistryError)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert labels == model.config.num_labels


def test_a_model_in_16_bits_is_that_backbone_too(tmp_path: Path) -> None:
    """The encoder is compared in the coarser precision, and the merged weights stay in the model's."""
    registry = stored(tmp_path, "bert", METHODS["lora"], head_for("bert"))
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "backbone", num_labels=3, dtype=torch.bfloat16
    )
    load_into(model, "mood", registry)
    assert {torch.bfloat16} == {parameter.dtype for parameter in model.parameters()}
    expected = Predictor(registry.backbone, registry).logits("mood", TEXTS)
    found = stock_logits(model.float(), tmp_path / "backbone")
    assert float(numpy.abs(expected - found).max()) < 0.1


GOLDEN = ("adapterhub-lora", "adapterhub-ia3", "peft-lora-qv", "peft-lora-all", "peft-lora-patterns", "peft-ia3")


@pytest.mark.skipif(not FOLDERS.is_dir(), reason="needs the folders that other libraries saved, beside the checkout")
@pytest.mark.parametrize("name", GOLDEN)
def test_what_other_libraries_saved_becomes_a_checkpoint(tmp_path: Path, name: str) -> None:
    """A set of AdapterHub or PEFT, merged here, gives in transformers the logits that its own library gave."""
    expected = json.loads((FOLDERS / name / "expected.json").read_text())
    backbone = Backbone.load(str(FOLDERS / expected["backbone"]), device="cpu")
    registry = Registry.create(tmp_path / "store", backbone)
    reference = registry.import_from(FOLDERS / name, name="theirs", backbone_unproven=True)
    registry.export_to(reference, tmp_path / "out", "transformers")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    for ids, logits in zip(expected["input_ids"], expected["logits"], strict=True):
        with torch.no_grad():
            found = model(input_ids=torch.tensor([ids])).logits[0].tolist()
        numpy.testing.assert_allclose(logits, found, rtol=0, atol=1e-5)
