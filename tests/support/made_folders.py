"""Folders of AdapterHub and PEFT as their libraries lay them out, written by hand for a tiny BERT (H 32, L 2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

BOTTLENECK = {
    "mh_adapter": False, "output_adapter": True, "reduction_factor": 4, "non_linearity": "relu",
    "original_ln_before": True, "original_ln_after": True, "residual_before_ln": True, "is_parallel": False,
    "scaling": 1.0, "leave_out": [], "dropout": 0.0,
}  # fmt: skip
LORA = {"architecture": "lora", "r": 4, "alpha": 8, "attn_matrices": ["q", "v"], "composition_mode": "add"}
PREFIX = {"architecture": "prefix_tuning", "flat": True, "prefix_length": 3}
HEAD = {
    "head_type": "classification", "num_labels": 2, "layers": 2, "activation_function": "tanh",
    "label2id": {"bad": 0, "good": 1}, "use_pooler": False, "bias": True, "dropout_prob": None,
}  # fmt: skip
PEFT_LORA = {
    "peft_type": "LORA", "task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8, "alpha_pattern": {}, "rank_pattern": {},
    "target_modules": ["query", "value"], "use_rslora": False, "bias": "none",
    "modules_to_save": ["classifier", "score"],
}  # fmt: skip
PEFT_IA3 = {
    "peft_type": "IA3", "task_type": "SEQ_CLS", "target_modules": ["key", "value", "output.dense"],
    "feedforward_modules": ["output.dense"], "modules_to_save": ["classifier", "score"],
}  # fmt: skip
_LAYER = "bert.encoder.layer"


def _random(seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def _dump(path: Path, plain: object) -> None:
    path.write_text(json.dumps(plain, indent=2, sort_keys=True))


def write_adapterhub(
    folder: Path, config: dict[str, Any], backbone: str, *, head: bool = True, seed: int = 0, **top: Any
) -> Path:
    """Write a folder of bottlenecks after the feed-forward part, LoRA on q and v, or a flat prefix; return it."""
    folder.mkdir(parents=True)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        if config.get("architecture") == "lora":
            for module in ("query", "value"):
                place = f"{_LAYER}.{layer}.attention.self.{module}.loras.task"
                shapes |= {f"{place}.lora_A": (4, 32), f"{place}.lora_B": (32, 4)}
        elif config.get("architecture") is None:
            place = f"{_LAYER}.{layer}.output.adapters.task"
            shapes |= {f"{place}.adapter_down.0.weight": (8, 32), f"{place}.adapter_down.0.bias": (8,)}
            shapes |= {f"{place}.adapter_up.weight": (32, 8), f"{place}.adapter_up.bias": (32,)}
    tensors = _random(seed, shapes)
    if config.get("architecture") == "prefix_tuning":
        end = "prefix_tunings.task.self_prefix.control_trans"
        flat = _random(seed, {"flat": (3 * 2 * 2 * 32,)})["flat"]
        places = [f"{_LAYER}.{layer}.attention.self.prefix_tuning.pool.{end}" for layer in range(2)]
        tensors = {place: flat.clone() for place in [f"bert.prefix_tuning.{end}", *places]}
    common = {
        "hidden_size": 32, "model_class": "BertAdapterModel", "model_name": backbone, "model_type": "bert",
        "name": "task", "version": "adapters.1.3.0", **top,
    }  # fmt: skip
    _dump(folder / "adapter_config.json", {**common, "config": config})
    save_file(tensors, folder / "adapter.safetensors")
    if head:
        _dump(folder / "head_config.json", {**common, "config": HEAD})
        shapes = {"heads.task.1.weight": (32, 32), "heads.task.1.bias": (32,)}
        shapes |= {"heads.task.4.weight": (2, 32), "heads.task.4.bias": (2,)}
        save_file(_random(seed + 1, shapes), folder / "model_head.safetensors")
    return folder


def write_peft(folder: Path, config: dict[str, Any], backbone: str, *, seed: int = 0) -> Path:
    """Write a folder of LoRA on query and value, or of (IA)3 on key, value and output.dense; return it."""
    folder.mkdir(parents=True)
    shapes: dict[str, tuple[int, ...]] = {"base_model.model.classifier.weight": (2, 32)}
    shapes["base_model.model.classifier.bias"] = (2,)
    for layer in range(2):
        place = f"base_model.model.{_LAYER}.{layer}"
        if config["peft_type"] == "LORA":
            for module in ("query", "value"):
                shapes[f"{place}.attention.self.{module}.lora_A.weight"] = (4, 32)
                shapes[f"{place}.attention.self.{module}.lora_B.weight"] = (32, 4)
        else:
            for module in ("key", "value"):
                shapes[f"{place}.attention.self.{module}.ia3_l"] = (32, 1)
            shapes |= {f"{place}.attention.output.dense.ia3_l": (1, 32), f"{place}.output.dense.ia3_l": (1, 64)}
    _dump(folder / "adapter_config.json", {**config, "base_model_name_or_path": backbone, "peft_version": "0.21.2"})
    save_file(_random(seed, shapes), folder / "adapter_model.safetensors", {"format": "pt"})
    return folder
