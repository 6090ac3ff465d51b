"""Sets go out as folders of other libraries and come back bit-equal; what a format cannot hold is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from registry.config import (
    AdapterConfig,
    BitFitConfig,
    HeadConfig,
    Ia3Config,
    LoraConfig,
    MethodConfig,
    PrefixConfig,
)
from registry.errors import BackboneMismatchError
from registry.interop.formats import FOLDER_FORMATS
from registry.model.backbone import Backbone
from registry.schema import EXPORT_FORMATS, SetInfo
from registry.store.errors import StoreWriteError, UnheldError
from registry.store.registry import Registry
from tests.support.made_folders import BOTTLENECK, LORA, write_adapterhub
from tests.support.scripts import SCRIPTS, load_script
from tests.support.stored_sets import tree
from tests.support.toy_task import randomise

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
CLS = HeadConfig(label_names=("no", "yes", "perhaps"), pooling="cls", form="dense_tanh")
HELD: list[tuple[str, MethodConfig]] = [
    *(("adapterhub", AdapterConfig(placement=each, reduction_factor=4)) for each in (  # type: ignore[arg-type]
        "after_layer", "houlsby", "pfeiffer", "parallel")),
    ("adapterhub", AdapterConfig(placement="pfeiffer", places=("attention",), widths={"0": 5}, layers=(0,))),
    ("adapterhub", AdapterConfig(placement="houlsby", activation="leaky_relu", scale=0.5, reduction_factor=8)),
    ("adapterhub", AdapterConfig(placement="parallel", learned_scale="channel", reduction_factor=4)),
    ("adapterhub", AdapterConfig(placement="pfeiffer", learned_scale="one", reduction_factor=4)),
    ("adapterhub", LoraConfig(targets=("query", "ffn_in", "ffn_out"), rank=3, layers=(1,))),
    ("adapterhub", Ia3Config(targets=("key", "ffn_in"), inputs=())),
    ("adapterhub", PrefixConfig(length=3, layers=(1,))),
    ("peft", LoraConfig(targets=("query", "attention_dense"), rank=3, alpha=5.5, rslora=True)),
    ("peft", LoraConfig(ranks={"0_query": 2}, alphas={"1_value": 3.0})),
    ("peft", Ia3Config()),
    ("peft", Ia3Config(targets=("attention_dense", "ffn_out"), inputs=("attention_dense",), layers=(0,))),
]  # fmt: skip


@pytest.fixture
def registry(tmp_path: Path, tiny_folder: Path) -> Registry:
    """A store for a tiny BERT."""
    return Registry.create(tmp_path / "store", Backbone.load(str(tiny_folder), device="cpu"))


def stored(registry: Registry, config: MethodConfig | None, head: HeadConfig = CLS) -> str:
    """Store a set of random tensors and return its reference."""
    made = randomise(registry.backbone.new_adapter_set(config, head))
    return str(registry.save("one", made, SetInfo(max_length=32)))


@pytest.mark.parametrize(("kind", "config"), HELD)
def test_a_round_trip_is_bit_equal(kind: Any, config: MethodConfig, registry: Registry, tmp_path: Path) -> None:
    """What goes out as a folder of another library comes back with the same bits, configuration and labels."""
    reference = stored(registry, config)
    folder = registry.export_to(reference, tmp_path / "folder", kind)
    again = registry.import_from(folder, name="again", labels=CLS.label_names)
    one, other = registry.load(reference), registry.load(again)
    assert one.head_config == other.head_config
    assert one.state_dict().keys() == other.state_dict().keys()
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key
    if not isinstance(config, AdapterConfig) or not (config.widths or config.layers):
        assert str(one.adapter_config) == str(other.adapter_config)


@pytest.mark.parametrize(
    ("kind", "config", "head", "told"),
    [
        ("adapterhub", AdapterConfig(layer_norms=True, reduction_factor=4), {}, "layer norms of its own"),
        ("adapterhub", LoraConfig(bias="all"), {}, "bias all"),
        ("adapterhub", LoraConfig(ranks={"0_query": 2}), {}, "ranks or scales that differ"),
        ("adapterhub", LoraConfig(targets=("attention_dense",)), {}, "attention_dense"),
        ("adapterhub", Ia3Config(), {}, "what enters ffn_out"),
        ("adapterhub", BitFitConfig(), {}, "bitfit"),
        ("adapterhub", None, {}, "a head alone"),
        ("adapterhub", PrefixConfig(length=2), {"pooling": "mean"}, "pooling mean"),
        ("adapterhub", PrefixConfig(length=2), {"temperature": 2.0}, "calibrated"),
        ("peft", AdapterConfig(placement="pfeiffer", reduction_factor=4), {}, "pfeiffer, where .* adapterhub, archive"),
        ("peft", LoraConfig(), {"form": "linear"}, r"linear over cls.* adapterhub, archive"),
        ("peft", LoraConfig(bias="lora_only"), {}, "bias lora_only"),
        ("peft", LoraConfig(), {"bias": False}, "without a bias"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_those_that_can(
    kind: Any, config: MethodConfig | None, head: dict[str, Any], told: str, registry: Registry, tmp_path: Path
) -> None:
    """A set that would not answer the same, or not come back the same, is refused, and no folder is there."""
    fields = {"label_names": CLS.label_names, "pooling": "cls", "form": "dense_tanh", **head}
    reference = stored(registry, config, HeadConfig(**fields))
    with pytest.raises(UnheldError, match=f"as {kind}: .*{told}.*" if "archive" in told else f"{told}.*archive"):
        registry.export_to(reference, tmp_path / "folder", kind)
    assert not (tmp_path / "folder").exists()


def test_a_set_without_a_head_goes_out_without_one(registry: Registry, tmp_path: Path) -> None:
    """The random head that stands in for a missing one is never written: AdapterHub's folder has none, PEFT refuses."""
    source = write_adapterhub(tmp_path / "source", BOTTLENECK, registry.backbone.info.source, head=False)
    reference = registry.import_from(source, name="headless")
    folder = registry.export_to(reference, tmp_path / "out", "adapterhub")
    assert {"adapter_config.json", "adapter.safetensors"} == {path.name for path in folder.iterdir()}
    again = registry.manifest(registry.import_from(folder, name="again")).imported
    assert again is not None
    assert not again.head
    lora = write_adapterhub(tmp_path / "lora", LORA, registry.backbone.info.source, head=False)
    with pytest.raises(UnheldError, match="without a head.*adapterhub, archive"):
        registry.export_to(registry.import_from(lora, name="lora"), tmp_path / "no", "peft")


def test_every_format_is_in_the_table() -> None:
    """The names that the command line offers are the archive and the formats of the table."""
    assert set(EXPORT_FORMATS) == {"archive", *FOLDER_FORMATS}


def test_a_folder_is_replaced_only_when_asked_and_only_its_own(registry: Registry, tmp_path: Path) -> None:
    """Files that are there stay, unless told otherwise; a folder with other files in it is never touched."""
    reference, folder = stored(registry, LoraConfig()), tmp_path / "folder"
    registry.export_to(reference, folder, "peft")
    before = tree(folder)
    with pytest.raises(StoreWriteError, match="--force"):
        registry.export_to(reference, folder, "peft")
    registry.export_to(reference, folder, "peft", overwrite=True)
    assert before == tree(folder)
    (folder / "precious.txt").write_text("mine")
    with pytest.raises(StoreWriteError, match=r"'precious.txt' is there"):
        registry.export_to(reference, folder, "peft", overwrite=True)
    assert [folder.name] == [path.name for path in tmp_path.iterdir() if path.name.endswith(("folder", ".tmp", ".old"))]


def test_an_archive_of_another_backbone_stays_refused(registry: Registry, tmp_path: Path, tiny_folder: Path) -> None:
    """The looking door takes archives as the plain one does: checked, and never for another backbone."""
    file = registry.export_to(stored(registry, LoraConfig()), tmp_path / "one.adapter")
    assert "two:1" == str(registry.import_from(file, name="two"))
    from tests.support.tiny_backbone import save_tiny_checkpoint

    save_tiny_checkpoint(tmp_path / "other", seed=5)
    other = Registry.create(tmp_path / "others", Backbone.load(str(tmp_path / "other"), device="cpu"))
    with pytest.raises(BackboneMismatchError):
        other.import_from(file)


def test_the_report_is_what_the_script_makes_of_its_figures() -> None:
    """reports/interop.md is made of reports/interop.json, in which no promise is broken."""
    found = json.loads((ROOT / "reports" / "interop.json").read_text(encoding="utf-8"))
    page = load_script("interoperating/report.py").render_report(found)
    assert page == (ROOT / "reports" / "interop.md").read_text(encoding="utf-8")
    assert [] == found["broken"]
    held = [each for each in found["exports"] if "refused" not in each]
    assert len(held) >= 80
    assert all(not each["missing"] and not each["unexpected"] and each["difference"] <= 1e-5 for each in held)
    assert len([each for each in found["imports"] if "difference" in each]) >= 150


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason="needs the libraries themselves: scripts/peers makes their environment")
def test_the_libraries_themselves_load_what_is_exported(registry: Registry, tmp_path: Path) -> None:
    """adapters and peft find no missing and no unexpected key, have our bits, and answer within 1e-5."""
    rows = [[5, 40, 11, 23, 6], [5, 77, 8, 6]]
    cases, ours = [], []
    for number, (kind, config) in enumerate(HELD):
        name = f"set-{number}"
        made = randomise(registry.backbone.new_adapter_set(config, CLS, seed=number))
        registry.save(name, made, SetInfo(max_length=32))
        folder = str(registry.export_to(name, tmp_path / name, kind))  # type: ignore[arg-type]
        case = {"case": name, "format": kind, "folder": folder, "back": f"{folder}-back"}
        cases.append({**case, "backbone": registry.backbone.info.source})
        ours.append(load_answers(registry, name, rows))
    (tmp_path / "job.json").write_text(json.dumps({"do": "load", "cases": cases, "rows": rows}))
    script = SCRIPTS / "interoperating" / "peers.py"
    subprocess.run([PEERS, script, tmp_path / "job.json", tmp_path / "answer.json"], check=True, capture_output=True)
    answers = json.loads((tmp_path / "answer.json").read_text())["answers"]
    for answer, expected in zip(answers, ours, strict=True):
        assert ([], [], True) == (answer["missing"], answer["unexpected"], answer["bit_equal"]), answer
        assert float((torch.tensor(answer["logits"]) - expected).abs().max()) <= 1e-5


def load_answers(registry: Registry, name: str, rows: list[list[int]]) -> torch.Tensor:
    """Return the logits of a stored set."""
    from registry.model.batching import Batch, TokenRows
    from registry.model.inference import logits_of

    batch = Batch.pack(TokenRows(rows, [[0] * len(row) for row in rows]))
    with torch.no_grad():
        return batch.restore(logits_of(registry.backbone.encoder, registry.load(name), batch))
