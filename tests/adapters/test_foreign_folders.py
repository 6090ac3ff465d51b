"""Methods against the real libraries: what they saved gives the logits that they gave."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, BertConfig, BertModel

from registry.adapters.adapter_set import AdapterSet
from registry.config import Activation, AdapterConfig, HeadConfig, Placement
from registry.model.batching import Batch, TokenRows
from registry.model.encoder import inner_sizes
from registry.model.inference import logits_of
from tests.support.foreign_folders import FOLDERS, read_foreign
from tests.support.stock_models import difference, encoder_of, our_states
from tests.support.toy_task import fusion_of

NAMES = (
    *("adapterhub-lora", "adapterhub-ia3", "adapterhub-prefix"),
    *("adapterhub-seq_bn", "adapterhub-double_seq_bn", "adapterhub-par_bn"),
    *("peft-lora-qv", "peft-lora-all", "peft-lora-patterns", "peft-ia3"),
)


@pytest.mark.skipif(not FOLDERS.is_dir(), reason="needs the folders that other libraries saved, beside the checkout")
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_another_library_has_its_logits(name: str) -> None:
    """LoRA, (IA)3, prefixes and bottlenecks of AdapterHub and PEFT answer here as they do there, within 1e-5."""
    expected = json.loads((FOLDERS / name / "expected.json").read_text())
    model = AutoModel.from_pretrained(FOLDERS / expected["backbone"]).eval()
    encoder, config = encoder_of(model), model.config
    found = read_foreign(FOLDERS / name, config.hidden_size, config.num_hidden_layers, inner_sizes(config))
    rows = TokenRows(expected["input_ids"], [[0] * len(ids) for ids in expected["input_ids"]])
    batch = Batch.pack(rows)
    with torch.no_grad():
        logits = batch.restore(logits_of(encoder, found, batch))
    assert float((logits - torch.tensor(expected["logits"])).abs().max()) <= 1e-5


PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason="needs the environment that scripts/peers makes")
@pytest.mark.parametrize(("placement", "act"), [("pfeiffer", "relu"), ("houlsby", "silu"), ("after_layer", "tanh")])
def test_fused_sets_are_adapterhubs(tmp_path: Path, placement: Placement, act: Activation) -> None:
    """Three fused adapters give the states that AdapterHub's library gives, whose key has a bias that nothing sees."""
    script = Path(__file__).parents[1] / "support" / "fused_by_adapterhub.py"
    subprocess.run([PEERS, script, tmp_path, placement], check=True, timeout=120, capture_output=True)
    tensors = load_file(tmp_path / "fused.safetensors")
    model = BertModel(BertConfig.from_pretrained(tmp_path)).eval()
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    shape = AdapterConfig(placement=placement, reduction_factor=4, activation=act)
    one = AdapterSet(32, 2, fusion_of(shape, shape, shape), HeadConfig(label_names=("no", "yes"))).eval()
    places = {"attention": "attention.output", "ffn": "output"}
    fusions: dict[str, torch.Tensor] = {}
    members: list[dict[str, torch.Tensor]] = [{}, {}, {}]
    for key in one.adapter.fusions:
        layer, place = key.split("_")
        prefix = f"encoder.layer.{layer}.{places[place]}"
        own = {n: tensors[f"{prefix}.adapter_fusion_layer.a,b,c.{n}.weight"] for n in ("query", "key", "value")}
        own["value"] = own["value"] - torch.eye(32)
        own["query_bias"] = tensors[f"{prefix}.adapter_fusion_layer.a,b,c.query.bias"]
        fusions |= {f"fusions.{key}.{name}": tensor for name, tensor in own.items()}
        for name, state in zip("abc", members, strict=True):
            for ours, theirs in (("down", "adapter_down.0"), ("up", "adapter_up")):
                for part in ("weight", "bias"):
                    state[f"bottlenecks.{key}.{ours}.{part}"] = tensors[f"{prefix}.adapters.{name}.{theirs}.{part}"]
    one.adapter.load_state_dict(fusions)
    sets = [AdapterSet(32, 2, shape, one.head_config) for _ in members]
    for each, state in zip(sets, members, strict=True):
        each.adapter.load_state_dict(state)
    one.adapter.take_members([each.adapter for each in sets])
    ids = tensors["ids"].tolist()
    found = our_states(encoder_of(model), TokenRows(ids, [[0] * len(row) for row in ids]), one.adapter)
    assert difference(list(tensors["states"]), found) <= 1e-5
