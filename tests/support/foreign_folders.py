"""A small reader of folders that AdapterHub's and PEFT's own libraries saved, for tests of what methods compute."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.config import (
    TARGETS,
    AdapterConfig,
    HeadConfig,
    Ia3Config,
    LoraConfig,
    MethodConfig,
    PrefixConfig,
    Target,
)

FOLDERS = Path(__file__).parents[3] / "shared" / "interop"
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.*)")
_MODULES: dict[str, Target] = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_dense",
    "intermediate.dense": "ffn_in",
    "output.dense": "ffn_out",
}
_ACTIVATIONS = {"relu": "relu", "swish": "silu", "gelu": "gelu", "tanh": "tanh"}


def read_foreign(folder: Path, hidden_size: int, layers: int, inner_sizes: tuple[int, int]) -> AdapterSet:
    """Return the set that a folder of LoRA, (IA)3, a flat prefix or bottlenecks means for an encoder of these sizes."""
    tensors, config = _read_tensors(folder), json.loads((folder / "adapter_config.json").read_text())
    found: dict[tuple[int, str], Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _LAYER.search(name)
        if match is None:
            head[name] = tensor
        else:
            found[int(match[1]), match[2]] = tensor
    adapter, state = _peft(config, found) if "peft_type" in config else _adapterhub(config["config"], found)
    shape, weights = _head(folder, head)
    made = AdapterSet(hidden_size, layers, adapter, shape, inner_sizes=inner_sizes)
    made.load_state_dict({**{f"adapter.{key}": tensor for key, tensor in state.items()}, **weights})
    return made.eval()


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            found |= load_file(path)
        elif path.suffix == ".bin":
            found |= torch.load(path, weights_only=True)
    return found


def _target(module: str) -> Target:
    return next(target for suffix, target in _MODULES.items() if module == suffix)


def _peft(config: dict[str, Any], found: dict[tuple[int, str], Tensor]) -> tuple[MethodConfig, dict[str, Tensor]]:
    state: dict[str, Tensor] = {}
    targets: dict[Target, None] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for (layer, name), tensor in found.items():
        module, _, kind = name.removesuffix(".weight").rpartition(".")
        target = _target(module)
        targets[target] = None
        place = f"{layer}_{target}"
        if kind == "ia3_l":
            state[f"scales.{place}"] = tensor.flatten()
            continue
        state[f"products.{place}.{kind.lower()}"] = tensor
        if kind == "lora_A":
            ranks[place] = len(tensor)
            patterns = config["alpha_pattern"] or {}
            alphas[place] = next((v for k, v in patterns.items() if module.endswith(k)), config["lora_alpha"])
    chosen = tuple(target for target in TARGETS if target in targets)
    if config["peft_type"] == "IA3":
        inputs: tuple[Target, ...] = ("attention_dense", "ffn_out")
        return Ia3Config(targets=chosen, inputs=inputs), state
    return LoraConfig(ranks=ranks, alphas=alphas, rslora=config["use_rslora"], targets=chosen), state


def _adapterhub(config: dict[str, Any], found: dict[tuple[int, str], Tensor]) -> tuple[MethodConfig, dict[str, Tensor]]:
    state: dict[str, Tensor] = {}
    if config.get("architecture") == "prefix_tuning":
        layers = len(found)
        for (layer, _), tensor in found.items():  # each layer has the keys and values of all
            both = tensor.view(config["prefix_length"], layers, 2, -1)
            state[f"keys.{layer}"], state[f"values.{layer}"] = both[:, layer].unbind(1)
        return PrefixConfig(length=config["prefix_length"]), state
    if config.get("architecture") == "lora":
        targets = {_target(name.split(".loras.")[0]): None for _, name in found}
        chosen = tuple(target for target in TARGETS if target in targets)
        for (layer, name), tensor in found.items():
            place = f"{layer}_{_target(name.split('.loras.')[0])}"
            if config["composition_mode"] == "scale":
                state[f"scales.{place}"] = config["alpha"] / config["r"] * tensor.flatten()
            else:
                state[f"products.{place}.{name.rsplit('.', 1)[1].lower()}"] = tensor
        if config["composition_mode"] == "scale":
            return Ia3Config(targets=chosen, inputs=()), state
        return LoraConfig(rank=config["r"], alpha=config["alpha"], targets=chosen), state
    for (layer, name), tensor in found.items():
        place = "attention" if name.startswith("attention") else "ffn"
        part = name.split("adapter_")[1].replace("down.0.", "down.")
        state[f"bottlenecks.{layer}_{place}.{part}"] = tensor
    placement: Any = "houlsby" if config["mh_adapter"] else "parallel" if config["is_parallel"] else "pfeiffer"
    made = AdapterConfig(
        placement=placement,
        reduction_factor=config["reduction_factor"],
        activation=_ACTIVATIONS[config["non_linearity"]],  # type: ignore[arg-type]
        scale=config["scaling"],
    )
    return made, state


def _head(folder: Path, head: dict[str, Tensor]) -> tuple[HeadConfig, dict[str, Tensor]]:
    """Return AdapterHub's head over the first token, BERT's linear one over the pooler, or RoBERTa's two layers."""
    names = {"dense": ("heads.task.1", "classifier.dense"), "out": ("heads.task.4", "classifier.out_proj")}
    weights = {
        f"head.{ours}.{part}": tensor
        for ours, theirs in names.items()
        for name, tensor in head.items()
        for part in ("weight", "bias")
        if name.endswith(tuple(f"{each}.{part}" for each in theirs))
    }
    form: Any = "dense_tanh"
    if "head.out.weight" not in weights:
        form = "linear"
        weights = {
            f"head.out.{part}": tensor
            for name, tensor in head.items()
            for part in ("weight", "bias")
            if name.endswith((f"heads.task.1.{part}", f"classifier.{part}"))
        }
    labels = tuple(map(str, range(len(weights["head.out.bias"]))))
    from_pooler = form == "linear" and not (folder / "head_config.json").exists()
    return HeadConfig(label_names=labels, form=form, pooling="pooler" if from_pooler else "cls"), weights
