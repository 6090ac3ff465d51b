"""Methods against the real libraries: what they saved gives the logits that they gave."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModel

from registry.model.batching import Batch, TokenRows
from registry.model.encoder import inner_sizes
from registry.model.inference import logits_of
from tests.support.foreign_folders import FOLDERS, read_foreign
from tests.support.stock_models import encoder_of

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
