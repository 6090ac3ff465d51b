"""The model card: what a manifest says, in the form that the Hub's own library takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from huggingface_hub import ModelCard

from registry.config import AdapterConfig, HeadConfig, LoraConfig, TrainingConfig
from registry.errors import ConfigError
from registry.interop.card import model_card
from registry.schema import DataInfo, ExportFormat, Manifest, Origin
from registry.stats.intervals import wilson_interval
from registry.store.shipped import open_shipped
from tests.support.stored_sets import INFO, new_manifest
from tests.support.toy_task import fusion_of

FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
DATA = DataInfo(
    source="mails.csv", sample=False, train_rows=90, reported_rows=40, train_available=90, reported_available=40,
    fingerprint="c" * 64,
)  # fmt: skip
ORIGIN = Origin(
    text_columns=("body",), label_column="y", train_split="train", held_out=0.2, together=1, device="cpu", threads=1,
    processor="one", code="0.1.0", file="/home/somebody/mails.csv",
)  # fmt: skip
OWN = new_manifest(
    "mails", task="mails", split="validation", data=DATA, origin=ORIGIN, main_metric="accuracy", pair=False,
    scores={"f1_binary": 0.8, "accuracy": 0.85}, recipe="default", training=TrainingConfig(epochs=7),
)  # fmt: skip


def card_of(manifest: Manifest, format: ExportFormat = "archive", license: str = "mit") -> ModelCard:
    """Return the card as huggingface_hub reads it, which checks its metadata."""
    return ModelCard(model_card(manifest, "me/mood", license, format))


def shipped(name: str) -> Manifest:
    """Return the manifest of a set that comes with the package."""
    store = open_shipped()
    return store.manifest(*store.resolve(name))


def changed(manifest: Manifest, **changes: Any) -> Manifest:
    """Return the manifest with other fields."""
    return msgspec.structs.replace(manifest, **changes)


def replaced(manifest: Manifest, source: str) -> Manifest:
    """Return the manifest of a set for a backbone from somewhere else."""
    return changed(manifest, backbone=msgspec.structs.replace(INFO, source=source))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["sst2", "mrpc", "imdb"])
def test_the_shipped_sets_have_cards(name: str, format: ExportFormat) -> None:
    """Backbone, data, library, license and scores stand in the metadata as the Hub's library takes them."""
    manifest = shipped(name)
    data = card_of(manifest, format).data
    libraries = {"archive": "adapter-registry", "adapterhub": "adapter-transformers"}
    assert (libraries.get(format, format), "mit") == (data.library_name, data.license)
    assert ("sentence-transformers/all-MiniLM-L6-v2", "text-classification") == (data.base_model, data.pipeline_tag)
    assert [{"imdb": "stanfordnlp/imdb"}.get(name, "nyu-mll/glue")] == data.datasets
    assert {"accuracy", "f1"} == set(data.metrics or ())
    assert {"adapter-registry", manifest.adapter.name if manifest.adapter else ""} <= set(data.tags or ())
    assert len(manifest.scores) == len(data.eval_results or ())
    main = (data.eval_results or [])[0]
    assert main.metric_value == pytest.approx(manifest.scores[str(manifest.main_metric)], abs=1e-6)
    assert (manifest.split, data.datasets[0]) == (main.dataset_split, main.dataset_type)
    assert data.to_dict() == ModelCard(str(card_of(manifest, format))).data.to_dict()


def test_the_score_has_its_interval() -> None:
    """That of an accuracy over the reported rows is Wilson's, in the metadata and on the page; F1 has none."""
    interval = wilson_interval(34, 40)
    card = card_of(OWN)
    accuracy, f1 = card.data.eval_results or ()
    assert {"rows": 40, "interval": [round(interval.low, 6), round(interval.high, 6)], "level": 0.95} == (
        accuracy.metric_args
    )
    assert ({"rows": 40}, "f1", "f1_binary") == (f1.metric_args, f1.metric_type, f1.metric_name)
    assert f"| accuracy | 0.8500 | {interval.low:.4f} to {interval.high:.4f} (Wilson) |" in card.text
    assert "| f1_binary | 0.8000 | – |" in card.text
    odd = card_of(changed(OWN, scores={"accuracy": 0.8512345}))
    assert {"rows": 40} == (odd.data.eval_results or [])[0].metric_args, "no count of right rows gives this accuracy"


def test_own_rows_are_no_data_set_of_the_hub() -> None:
    """Nor are the sample's scores evidence, and no path of the machine that trained stands on the page."""
    card = card_of(OWN)
    assert card.data.datasets is None
    assert "mails" == (card.data.eval_results or [])[0].dataset_type
    assert "somebody" not in str(card)
    assert "mails.csv" not in str(card)
    assert '"epochs": 7' in card.text
    sample = card_of(changed(OWN, data=msgspec.structs.replace(DATA, sample=True)))
    assert sample.data.eval_results is None
    assert "which is no evidence of anything" in sample.text
    unknown = card_of(new_manifest("bare", scores={}))
    assert (None, None) == (unknown.data.eval_results, unknown.data.metrics)
    assert "None is known." in unknown.text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("embedded", "sentence-transformers/all-MiniLM-L6-v2"),
        ("roberta-base", "roberta-base"),
        ("google/electra-small-discriminator", "google/electra-small-discriminator"),
        ("/home/somebody/bert", None),
        ("tests", None),
    ],
)
def test_a_folder_is_no_base_model(source: str, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone's id is the Hub's, or the embedded one's; what a folder holds nobody knows, and its path is kept."""
    monkeypatch.chdir(Path(__file__).parents[2])
    card = card_of(replaced(OWN, source))
    assert expected == card.data.base_model
    assert "somebody" not in str(card)


def test_three_lines_load_it() -> None:
    """Ours where this program reads the format, and those of the format's own library."""
    own = replaced(changed(OWN, adapter=LoraConfig()), "roberta-base")
    texts = {format: card_of(own, format).text for format in FORMATS}
    for format, text in texts.items():
        blocks = re.findall(r"```(?:console|python)\n(.*?)\n```", text, flags=re.DOTALL)
        assert [3] * (1 if format in ("archive", "transformers") else 2) == [
            len(block.splitlines()) for block in blocks
        ]
        assert ("adapter-registry pull hub:me/mood" in text) == (format != "transformers")
    assert 'AutoPeftModelForSequenceClassification.from_pretrained("me/mood", num_labels=2)' in texts["peft"]
    assert 'AutoAdapterModel.from_pretrained("roberta-base")' in texts["adapterhub"]
    assert 'pipeline("text-classification", model="me/mood")' in texts["transformers"]
    pair = card_of(changed(own, pair=True), "transformers").text
    assert 'classify({"text": "a text", "text_pair": "a second text"}, truncation=True)' in pair


def test_a_fused_sets_card_names_its_members() -> None:
    """Whoever pulls a fused set reads first which sets have to be there."""
    config = fusion_of(AdapterConfig(reduction_factor=4), AdapterConfig(reduction_factor=4))
    text = card_of(changed(OWN, adapter=config)).text
    assert text.index("It joins the sets `a`, `b` and does not hold them") < text.index("## Load it")
    assert "It joins the sets" not in card_of(OWN).text


def test_parameters_are_counted() -> None:
    """Those of the set, of the encoder, and their share."""
    manifest = shipped("mrpc")
    text = card_of(manifest).text
    assert "| this set, its head among them | 448,322 |" in text
    assert "| the frozen encoder | 22,713,216 |" in text
    assert "1.94%" in text


def test_a_label_is_not_the_page() -> None:
    """Names that would end a cell, a block or the metadata are letters of it."""
    names = ("a`|b", "```\n---\nlicense: other\n---", "<script>")
    odd = changed(OWN, head=HeadConfig(label_names=names), adapter=AdapterConfig(), split="x|y`", task="t\n---\nz: 1")
    card = card_of(odd)
    assert "mit" == card.data.license
    assert "<script>" not in card.text.split("## Recipe")[0]
    assert "\nlicense:" not in card.text
    recipe = card.text.split("```json\n")[1].split("\n```")[0]
    assert list(names) == msgspec.json.decode(recipe)["head"]["label_names"]


@pytest.mark.parametrize("license", ["", "Apache 2.0", "mit\nx: y", "a" * 80])
def test_what_is_no_license_is_refused(license: str) -> None:
    """With the form that the Hub's names have."""
    with pytest.raises(ConfigError, match="such as apache-2.0, mit or cc-by-4.0"):
        card_of(OWN, license=license)
