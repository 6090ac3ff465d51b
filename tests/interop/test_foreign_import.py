"""Folders of other libraries come in with the logits they had, or are refused by the switch that stands in the way."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from registry.adapters.adapter_set import AdapterSet
from registry.errors import InvalidNameError, RequestError
from registry.model.backbone import Backbone
from registry.model.batching import Batch, TokenRows
from registry.model.inference import logits_of
from registry.serving.predictor import Predictor
from registry.store.errors import ArchiveError, ArchiveNotFoundError, ForeignSwitchError
from registry.store.registry import Registry
from registry.tasks.task_data import TaskData
from tests.support.foreign_folders import FOLDERS, read_foreign
from tests.support.made_folders import (
    BOTTLENECK,
    HEAD,
    LORA,
    PEFT_IA3,
    PEFT_LORA,
    PREFIX,
    write_adapterhub,
    write_peft,
)

REFUSED = {
    "adapterhub-compacter": "phm_layer", "peft-dora": "use_dora", "ah-20-seq_bn_inv": "inv_adapter",
    "ah-21-compacter": "phm_layer", "ah-26-gating": "use_gating", "ah-29-tagging-head": "head_type",
    "pf-08-dora": "use_dora",
}  # fmt: skip
GOLDEN = sorted(FOLDERS.glob("*/expected.json")) + sorted(FOLDERS.glob("more/*/expected.json"))
ROWS = [[5, 40, 11, 23, 6], [5, 77, 8, 6], [5, 9, 8, 7, 12, 13, 14, 15, 6]]
MADE = {"bottleneck": BOTTLENECK, "lora": LORA, "prefix": PREFIX, "peft lora": PEFT_LORA, "peft ia3": PEFT_IA3}


@pytest.fixture
def registry(tmp_path: Path, tiny_folder: Path) -> Registry:
    """A store for a tiny BERT in a folder called ``tiny``."""
    return Registry.create(tmp_path / "store", Backbone.load(str(tiny_folder), device="cpu"))


def write(folder: Path, config: dict[str, Any], registry: Registry, **more: Any) -> Path:
    """Write a folder of either library for the registry's backbone."""
    source = registry.backbone.info.source
    return (write_peft if "peft_type" in config else write_adapterhub)(folder, config, source, **more)


def edit(folder: Path, file: str = "adapter_config.json", **changes: Any) -> Path:
    """Change keys of a folder's configuration; of AdapterHub's those of the method."""
    path = folder / file
    plain = json.loads(path.read_text())
    (plain["config"] if isinstance(plain.get("config"), dict) else plain).update(changes)
    path.write_text(json.dumps(plain))
    return folder


def logits(backbone: Backbone, adapter_set: AdapterSet, ids: list[list[int]], types: Any = None) -> torch.Tensor:
    batch = Batch.pack(TokenRows(ids, types or [[0] * len(row) for row in ids]))
    with torch.no_grad():
        if adapter_set.info is not None and adapter_set.info.imported and not adapter_set.info.imported.head:
            return batch.restore(backbone.encoder.pooled(batch, adapter_set.adapter, ("cls",))["cls"])
        return batch.restore(logits_of(backbone.encoder, adapter_set, batch))


@pytest.mark.skipif(not GOLDEN, reason="needs the folders that other libraries saved, beside the checkout")
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.parent.name)
def test_a_folder_that_a_library_saved_has_its_logits_or_is_refused_by_name(path: Path, tmp_path: Path) -> None:
    """Every golden folder answers as the library that saved it did, within 1e-5, or its switch is named."""
    expected = json.loads(path.read_text())
    beside = (FOLDERS / expected["backbone"], FOLDERS / "more" / "backbones" / expected["backbone"])
    backbone = Backbone.load(str(next(each for each in beside if each.is_dir())), device="cpu")
    registry = Registry.create(tmp_path / "store", backbone)
    folder = path.parent / "folder" if (path.parent / "folder").is_dir() else path.parent
    switch = REFUSED.get(path.parent.name)
    if switch is not None:
        with pytest.raises(ForeignSwitchError, match=f": {switch}: expected"):
            registry.import_from(folder, allow_pickle=True)
        return
    found = registry.load(registry.import_from(folder, name="golden", allow_pickle=True))
    wanted = expected.get("logits") or expected["first_token_state"]
    answered = logits(backbone, found, expected["input_ids"], expected.get("token_type_ids"))
    assert float((answered - torch.tensor(wanted)).abs().max()) <= 1e-5
    if expected.get("label_names"):
        assert tuple(expected["label_names"]) == found.head_config.label_names


@pytest.mark.parametrize("kind", MADE)
def test_a_folder_written_by_hand_reads_as_the_plain_reader_reads_it(
    kind: str, registry: Registry, tmp_path: Path
) -> None:
    """Folders of the layouts of both libraries mean here what a reader of a few lines says they mean."""
    folder = write(tmp_path / "folder", MADE[kind], registry)
    plain = read_foreign(folder, 32, 2, (64, 64))
    found = registry.load(registry.import_from(folder, name="made"))
    assert torch.equal(logits(registry.backbone, plain, ROWS), logits(registry.backbone, found, ROWS))
    imported = registry.manifest("made").imported
    assert imported is not None
    assert ("named", True) == (imported.fit, imported.head)
    assert ("bad", "good") == found.head_config.label_names or "peft" in kind


def test_the_backbone_is_asked_for_where_the_names_differ(registry: Registry, tmp_path: Path) -> None:
    """Files that name another backbone come in only on somebody's word, and the manifest keeps whose word it was."""
    folder = write_adapterhub(tmp_path / "folder", BOTTLENECK, "bert-base-uncased")
    with pytest.raises(ForeignSwitchError, match="the backbone's name: expected .*--backbone-unproven"):
        registry.import_from(folder)
    reference = registry.import_from(folder, backbone_unproven=True)
    imported = registry.manifest(reference).imported
    assert imported is not None
    assert ("claimed", "bert-base-uncased") == (imported.fit, imported.backbone)
    assert [] == registry.verify()


@pytest.mark.parametrize(
    ("top", "switch"),
    [({"model_type": "roberta"}, "model_type"), ({"hidden_size": 64}, "hidden_size"), ({"new": 1}, "new")],
)
def test_another_family_or_size_or_key_is_refused(
    registry: Registry, tmp_path: Path, top: dict[str, Any], switch: str
) -> None:
    """What the files do say of the backbone has to fit, and a key that nobody knows is named."""
    folder = write(tmp_path / "folder", BOTTLENECK, registry, **top)
    with pytest.raises(ForeignSwitchError, match=f": {switch}: expected"):
        registry.import_from(folder, backbone_unproven=True)


@pytest.mark.parametrize(
    ("kind", "changes", "switch"),
    [
        *(("bottleneck", {key: value}, key) for key, value in (
            ("ln_before", True), ("ln_after", True), ("use_gating", True), ("phm_layer", True), ("cross_adapter", True),
            ("inv_adapter", "nice"), ("residual_before_ln", "post_add"), ("non_linearity", "sigmoid"),
            ("scaling", "often"), ("reduction_factor", "many"), ("leave_out", [0, 1]), ("novel", 1),
            ("architecture", "reft"), ("mh_adapter", 1), ("dropout", 2.0),
        )),
        ("bottleneck", {"residual_before_ln": False}, "original_ln_before"),
        ("bottleneck", {"original_ln_after": False}, "original_ln_before"),
        *(("lora", {key: value}, key) for key, value in (
            ("use_dora", True), ("use_gating", True), ("vera_d", 0.1), ("attn_matrices", ["o"]), ("r", 0),
            ("composition_mode", "sum"), ("dtype", "float16"),
        )),
        *(("prefix", {key: value}, key) for key, value in (
            ("use_gating", True), ("prefix_length", 0), ("encoder_prefix", False), ("prefix_length", 10**9))),
        *(("peft lora", {key: value}, key) for key, value in (
            ("use_dora", True), ("lora_bias", True), ("fan_in_fan_out", True), ("init_lora_weights", "pissa"),
            ("target_parameters", ["x"]), ("layer_replication", [[0, 1]]), ("bias", "some"), ("novel", 1),
            ("task_type", "TOKEN_CLS"), ("trainable_token_indices", [1]), ("target_modules", ["nothing"]),
            ("target_modules", "(.+)+x"), ("target_modules", ".*.*.*.*.*.*query"), ("target_modules", "(a"),
            ("rank_pattern", {"query": "two"}), ("alpha_pattern", {"(q|.)(u|.)(e|.)(r|.)(y|.)(a|.)": 3}),
            ("peft_type", "ADALORA"), ("use_qalora", True),
        )),
        ("peft lora", {"layers_to_transform": [1], "layers_pattern": "layer"}, "layers_pattern"),
        ("peft ia3", {"feedforward_modules": ["key"]}, "feedforward_modules"),
    ],
)  # fmt: skip
def test_a_switch_that_no_set_has_is_refused_by_its_name(
    kind: str, changes: dict[str, Any], switch: str, registry: Registry, tmp_path: Path
) -> None:
    """Nothing is guessed: a value without an exact counterpart is refused, the switch is named, nothing is stored."""
    folder = edit(write(tmp_path / "folder", MADE[kind], registry), **changes)
    with pytest.raises(ForeignSwitchError, match=f": {switch}: expected"):
        registry.import_from(folder)
    assert [] == list(registry)


@pytest.mark.parametrize(
    ("changes", "switch"),
    [({"layers": 3}, "layers"), ({"activation_function": None}, "activation_function"),
     ({"head_type": "question_answering"}, "head_type"), ({"label2id": {"a": 0, "b": 5}}, "label2id"),
     ({"label2id": {"a": 0}}, "label2id"), ({"novel": 2}, "novel")],
)  # fmt: skip
def test_a_head_that_is_none_of_ours_is_refused(
    changes: dict[str, Any], switch: str, registry: Registry, tmp_path: Path
) -> None:
    """Heads of other kinds, and label names that are no map to the outputs, are refused by name."""
    folder = edit(write(tmp_path / "folder", BOTTLENECK, registry), "head_config.json", **changes)
    with pytest.raises(ForeignSwitchError, match=f": {switch}: expected"):
        registry.import_from(folder)


def test_older_files_mean_what_their_library_makes_of_them(registry: Registry, tmp_path: Path) -> None:
    """Without a version gelu is gelu_new; a configuration may be named; LoRA before 1.1.0 had another scale."""
    folder = edit(write(tmp_path / "gelu", BOTTLENECK, registry), non_linearity="gelu")
    plain = json.loads((folder / "adapter_config.json").read_text())
    del plain["version"]
    (folder / "adapter_config.json").write_text(json.dumps(plain))
    adapter = registry.manifest(registry.import_from(folder, name="gelu")).adapter
    assert adapter is not None
    assert "gelu_new" == getattr(adapter, "activation", None)
    named = write(tmp_path / "named", {**BOTTLENECK, "reduction_factor": 16}, registry)
    plain = json.loads((named / "adapter_config.json").read_text())
    (named / "adapter_config.json").write_text(json.dumps({**plain, "config": "pfeiffer"}))
    with pytest.raises(ArchiveError, match="shape"):  # pfeiffer means M 2, and these tensors have 8
        registry.import_from(named, name="named")
    old = write(tmp_path / "old", LORA, registry, version="adapters.1.0.1")
    adapter = registry.manifest(registry.import_from(old, name="old")).adapter
    assert (4, 4.0) == (getattr(adapter, "rank", None), getattr(adapter, "alpha", None))


def test_labels_come_from_the_head_or_from_whoever_imports(registry: Registry, tmp_path: Path) -> None:
    """Names in the files win; where there are none those given count, else transformers' own."""
    folder = write(tmp_path / "folder", PEFT_LORA, registry)
    assert ("LABEL_0", "LABEL_1") == registry.manifest(registry.import_from(folder)).head.label_names
    assert ("n", "p") == registry.manifest(registry.import_from(folder, labels=("n", "p"))).head.label_names
    with pytest.raises(ForeignSwitchError, match="--labels: expected 2 names"):
        registry.import_from(folder, labels=("a", "b", "c"))
    named = write(tmp_path / "named", BOTTLENECK, registry)
    with pytest.raises(ForeignSwitchError, match="--labels: expected those that its own file has, bad, good"):
        registry.import_from(named, labels=("n", "p"))


def test_a_set_without_a_head_answers_after_one_was_trained(registry: Registry, tmp_path: Path) -> None:
    """Without a head nothing is answered; a training that starts from the set keeps its adapter as the start."""
    folder = write(tmp_path / "folder", BOTTLENECK, registry, head=False)
    reference = registry.import_from(folder, name="headless")
    predictor = Predictor(registry.backbone, registry)
    with pytest.raises(RequestError, match="train one on it: 'adapter-registry train TASK --start-from headless:1'"):
        predictor("headless", ["a dull film"])
    rows = TaskData.from_lists(["a good film", "a bad film", "good", "bad"] * 4, ["p", "n", "p", "n"] * 4, name="mood")
    trained = registry.train("mood", rows, start_from=str(reference), epochs=1, max_length=32, keep_diverged=True)
    before, after = registry.load(reference).adapter.state_dict(), registry.load(trained.reference).adapter.state_dict()
    assert all(float((before[key] - after[key]).abs().max()) < 0.05 for key in before)
    manifest = registry.manifest(trained.reference)
    assert ("headless:1", None) == (manifest.started_from, manifest.imported)
    assert predictor("mood", ["a dull film"])[0].label in ("n", "p")


class _Runs:
    """What unpickling would run, if it ran anything."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.slow
def test_a_pickle_is_read_only_when_asked_for_and_runs_nothing(registry: Registry, tmp_path: Path) -> None:
    """A pickle alone is refused with the line that converts it; asked for, tensors are read and code is refused."""
    folder = write(tmp_path / "folder", BOTTLENECK, registry, head=False)
    tensors = load_file(folder / "adapter.safetensors")
    (folder / "adapter.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_adapter.bin")
    with pytest.raises(ForeignSwitchError, match=r"pytorch_adapter.bin: expected .*python -c .*--allow-pickle"):
        registry.import_from(folder)
    found = registry.load(registry.import_from(folder, allow_pickle=True)).adapter.state_dict()
    assert torch.equal(
        tensors["bert.encoder.layer.1.output.adapters.task.adapter_up.bias"], found["bottlenecks.1_ffn.up.bias"]
    )
    for bad in (pickle.dumps(_Runs(tmp_path / "ran")), b"nothing", pickle.dumps({"a": 1})):
        (folder / "pytorch_adapter.bin").write_bytes(bad)
        with pytest.raises(ArchiveError, match=r"pytorch_adapter.bin: content: expected"):
            registry.import_from(folder, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_hostile_files_are_refused(registry: Registry, tmp_path: Path) -> None:
    """Links, huge or nested configurations, NaN, hostile names, odd types: refused, in one line, nothing stored."""

    def fresh(number: int) -> Path:
        return write(tmp_path / f"folder-{number}", BOTTLENECK, registry)

    huge, deep, linked, named, absent = (fresh(number) for number in range(5))
    (huge / "adapter_config.json").write_text('{"config": "' + "x" * 10**7 + '"}')
    (deep / "adapter_config.json").write_text('{"config": ' + "[" * 10**5 + "]" * 10**5 + "}")
    (linked / "adapter.safetensors").rename(tmp_path / "elsewhere")
    (linked / "adapter.safetensors").symlink_to(tmp_path / "elsewhere")
    plain = json.loads((named / "adapter_config.json").read_text())
    (named / "adapter_config.json").write_text(json.dumps({**plain, "name": "../../evil"}))
    (absent / "adapter.safetensors").unlink()
    for folder in (huge, deep, linked, named, absent):
        with pytest.raises((ArchiveError, ForeignSwitchError)) as caught:
            registry.import_from(folder)
        assert "\n" not in str(caught.value)
    from safetensors.torch import save_file

    for number, value in ((10, float("nan")), (11, float("inf"))):
        folder = fresh(number)
        tensors = load_file(folder / "adapter.safetensors")
        next(iter(tensors.values()))[0] = value
        save_file(tensors, folder / "adapter.safetensors")
        with pytest.raises(ArchiveError, match="finite numbers"):
            registry.import_from(folder)
    evil = fresh(12)
    tensors = {
        key.replace(".task.", ".../../evil."): each for key, each in load_file(evil / "adapter.safetensors").items()
    }
    save_file(tensors, evil / "adapter.safetensors")
    edit(evil).joinpath("adapter_config.json").write_text(json.dumps({**plain, "name": "../../evil"}))
    with pytest.raises((InvalidNameError, ArchiveError)):
        registry.import_from(evil)
    with pytest.raises(ArchiveNotFoundError):
        registry.import_from(tmp_path / "nowhere")
    assert [] == list(registry)
    assert HEAD["layers"] == 2
