"""Run by the Python of ``.venv-peers``: what AdapterHub's own library makes of three fused adapters, into one file."""

from __future__ import annotations

import sys

import adapters
import torch
from adapters import BnConfig, DoubleSeqBnConfig, SeqBnConfig
from adapters.composition import Fuse
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

OTHER = {"mh_adapter": False, "output_adapter": True, "original_ln_before": True, "original_ln_after": False}
CONFIGS = {
    "pfeiffer": SeqBnConfig(reduction_factor=4),
    "houlsby": DoubleSeqBnConfig(reduction_factor=4),
    "after_layer": BnConfig(**OTHER, residual_before_ln=False, non_linearity="tanh", reduction_factor=4),
}


def main(folder: str, placement: str) -> None:
    """Save a random backbone, its fused adapters, some rows and their states."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(**sizes, vocab_size=100, max_position_embeddings=66)
    model = BertModel(config).eval()
    config.save_pretrained(folder)
    adapters.init(model)
    for name in "abc":
        model.add_adapter(name, config=CONFIGS[placement])
    model.add_adapter_fusion(Fuse(*"abc"))
    model.set_active_adapters(Fuse(*"abc"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adapter" in name:
                start = torch.eye(32) if name.endswith("value.weight") else 0
                parameter.copy_(torch.randn_like(parameter) * 0.2 + start)
        ids = torch.randint(0, 100, (3, 9))
        states = model(ids).last_hidden_state
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file({**tensors, "ids": ids, "states": states}, f"{folder}/fused.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
