"""Folders of AdapterHub's library ``adapters``: its configuration and tensors, both ways.

Every method has a table of switches, and one function that names its tensors; reading and writing share both. Source:
``adapters`` 1.3.0, and for older files what it does when it loads them: the names of keys and activations, and the
scaling of LoRA before 1.1.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from registry.adapters.formulas import ACTIVATIONS
from registry.config import (
    AdapterConfig,
    BitFitConfig,
    FusionConfig,
    HeadConfig,
    Ia3Config,
    LoraConfig,
    MethodConfig,
    PrefixConfig,
)
from registry.interop.folders import (
    CONFIG_FILE,
    ForeignSet,
    StoredSet,
    chosen_of,
    has_file,
    public_name,
    read_foreign_config,
    read_weights,
    take_tensors,
    tensor_bytes,
    to_bytes,
)
from registry.interop.heads import (
    STATIC_HEADS,
    flex_config,
    flex_names,
    head_obstacle,
    is_held_by_states,
    read_flex_head,
    read_static_head,
)
from registry.interop.methods import (
    bottleneck_names,
    bottleneck_places,
    method_config,
    read_bottleneck,
    read_lora,
    read_prefix,
    settled_lora,
)
from registry.interop.switches import (
    ACTIVATION_NAMES,
    ADAPTERHUB,
    PRESETS,
    settle,
    shown,
    text,
)
from registry.model.families import FAMILIES
from registry.schema import BackboneInfo
from registry.store.errors import ArchiveError, ForeignSwitchError

_WEIGHTS, _PICKLED_WEIGHTS = "adapter.safetensors", "pytorch_adapter.bin"
HEAD_CONFIG, HEAD_WEIGHTS, PICKLED_HEAD = "head_config.json", "model_head.safetensors", "pytorch_model_head.bin"
_VERSION = "adapters.1.3.0"

# The families that both have, by the names of the library's classes.
CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "bert": "Bert",
        "roberta": "Roberta",
        "xlm-roberta": "XLMRoberta",
        "electra": "Electra",
        "distilbert": "DistilBert",
        "deberta-v2": "DebertaV2",
    }
)
_TWO_LAYERS = ("0.weight", "0.bias", "2.weight", "2.bias")
_PLACES = {"attention": "attention.output", "ffn": "output"}
_PLACES_OF_DISTILBERT = {"attention": "attention_adapters", "ffn": "output_adapters"}
_LEGACY = re.compile(r"(?:attention|layer)_text_(?:task|lang)_adapters")
_GELU = {"gelu": "gelu_new", "gelu_orig": "gelu"}


def read_adapterhub(
    path: Path, backbone: BackboneInfo, labels: tuple[str, ...] = (), *, pickles: bool = False
) -> ForeignSet:
    """Return the set in a folder that ``adapters`` saved.

    Args:
        path: the folder.
        backbone: the one it is meant for.
        labels: names where its head has none.
        pickles: whether weights may be read from a pickle.

    Raises:
        ForeignSwitchError: a switch that no set here has, or another backbone.
        ArchiveError: damaged or hostile.
    """
    top = settle(path, read_foreign_config(path, CONFIG_FILE), ADAPTERHUB[CONFIG_FILE])
    _check_backbone(path, top, backbone)
    name = text(path, "name", top["name"])
    tensors = read_weights(path, _WEIGHTS, _PICKLED_WEIGHTS, pickles=pickles)
    if tensors is None:
        raise ArchiveError(path, "content", f"{_WEIGHTS} or {_PICKLED_WEIGHTS}", "neither")
    tensors = {_modern(key, backbone.family): tensor for key, tensor in tensors.items()}
    adapter, not_kept = _method(path, top, backbone, tensors)
    if isinstance(adapter, PrefixConfig):
        modules = prefix_modules(name, backbone)
        state = _read_prefix(path / _WEIGHTS, adapter, _spelled_out(path, top), tensors, modules)
    else:
        state = take_tensors(path / _WEIGHTS, tensors, tensor_names(adapter, name, backbone))
    if isinstance(adapter, Ia3Config):
        factor = settled_lora(path, _spelled_out(path, top), top["version"])[1]
        state = {key: tensor.flatten() if factor == 1 else tensor.flatten() * factor for key, tensor in state.items()}
    head = _read_head(path, backbone, labels, pickles=pickles)
    return ForeignSet(
        name or None,
        text(path, "version", top["version"]) or "adapter-transformers",
        text(path, "model_name", top["model_name"]),
        adapter,
        state,
        None if head is None else head[0],
        {} if head is None else head[1],
        not_kept,
    )


def _check_backbone(path: Path, top: Mapping[str, Any], backbone: BackboneInfo) -> None:
    if backbone.family not in CLASSES:
        raise ForeignSwitchError(path, "model_type", f"a store for one of {', '.join(CLASSES)}", backbone.family)
    for key, own in (("model_type", backbone.family), ("hidden_size", backbone.hidden_size)):
        if top[key] not in (None, own):
            raise ForeignSwitchError(path, key, f"{own}, as the store's backbone has", shown(top[key]))


def _modern(key: str, family: str) -> str:
    """Return the name that a tensor of an older file, or of a model without a head, has today."""
    key = _LEGACY.sub("adapters", key)
    prefix = f"{FAMILIES[family].prefix}."
    return key if key.startswith((prefix, "heads.", "classifier")) else prefix + key


def _method(
    path: Path, top: Mapping[str, Any], backbone: BackboneInfo, tensors: Mapping[str, Tensor]
) -> tuple[MethodConfig, tuple[str, ...]]:
    """Return the method that a configuration means, and what of it is not kept."""
    found = _spelled_out(path, top)
    if top["version"] is None and isinstance(found.get("non_linearity"), str):
        found = {**found, "non_linearity": _GELU.get(found["non_linearity"], found["non_linearity"])}
    architecture = found.get("architecture")
    if architecture == "lora":
        return read_lora(path, found, top["version"], backbone.layers), ()
    if architecture == "prefix_tuning":
        return read_prefix(path, found, backbone.layers)
    if architecture not in (None, "bottleneck"):
        known = "none (a bottleneck), lora or prefix_tuning"
        raise ForeignSwitchError(path, "architecture", known, shown(architecture))
    if top["type"] == "text_task" and not any(".invertible_" in key for key in tensors):
        # Task adapters of the first versions name one that they do not have; their library passes over it too.
        gone = ("invertible_adapter", "inv_adapter", "inv_adapter_reduction_factor")
        found = {key: value for key, value in found.items() if key not in gone}
    return read_bottleneck(path, found, backbone.hidden_size, backbone.layers)


def _spelled_out(path: Path, top: Mapping[str, Any]) -> dict[str, Any]:
    found = top["config"]
    if isinstance(found, str) and found in PRESETS:
        return dict(PRESETS[found])
    if not isinstance(found, dict):
        raise ForeignSwitchError(path, "config", f"an object, or one of {', '.join(PRESETS)}", shown(found))
    return found


def tensor_names(config: MethodConfig, name: str, backbone: BackboneInfo) -> dict[str, str]:
    """Return our name of each tensor that their library has for bottlenecks, LoRA or (IA)3."""
    family, layers = FAMILIES[backbone.family], f"{FAMILIES[backbone.family].prefix}.{FAMILIES[backbone.family].layers}"
    if isinstance(config, AdapterConfig):
        own = _PLACES_OF_DISTILBERT if backbone.family == "distilbert" else _PLACES
        modules = {
            (layer, place): f"{layers}.{layer}.{own[place]}.adapters.{name}"
            for layer, place in bottleneck_places(config, backbone.layers)
        }
        return bottleneck_names(config, modules)
    names = {}
    chosen = range(backbone.layers) if config.layers is None else config.layers
    for layer in chosen:
        for target in config.targets if isinstance(config, LoraConfig | Ia3Config) else ():
            module = f"{layers}.{layer}.{getattr(family, target)}.loras.{name}"
            if isinstance(config, LoraConfig):
                names[f"{module}.lora_A"] = f"products.{layer}_{target}.lora_a"
                names[f"{module}.lora_B"] = f"products.{layer}_{target}.lora_b"
            else:
                names[f"{module}.lora_B"] = f"scales.{layer}_{target}"
    return names


def prefix_modules(name: str, backbone: BackboneInfo) -> list[str]:
    """Return where their library keeps a prefix: in one pool, which every layer has again."""
    family, is_distilbert = FAMILIES[backbone.family], backbone.family == "distilbert"
    end = f"prefix_tunings.{name}.{'self' if is_distilbert else 'self_prefix'}"
    attention = "attention" if is_distilbert else "attention.self"
    layers = [f"{family.prefix}.{family.layers}.{layer}" for layer in range(backbone.layers)]
    return [
        f"{family.prefix}.prefix_tuning.{end}",
        *(f"{each}.{attention}.prefix_tuning.pool.{end}" for each in layers),
    ]


def _read_prefix(
    path: Path, config: PrefixConfig, found: Mapping[str, Any], tensors: Mapping[str, Tensor], modules: list[str]
) -> dict[str, Tensor]:
    """Return the (P, H) keys and values of each layer, as they are or as the two layers that train make them."""
    is_flat = found.get("flat", ADAPTERHUB["prefix_tuning"]["flat"].default)
    parts = (".control_trans",) if is_flat else (".wte.weight", *(f".control_trans.{each}" for each in _TWO_LAYERS))
    expected = {f"{module}{part}": f"{place}{part}" for place, module in enumerate(modules) for part in parts}
    own = take_tensors(path, tensors, expected)
    for part in parts:
        same = all(torch.equal(own[f"0{part}"], own[f"{place}{part}"]) for place in range(len(modules)))
        if not same:
            raise ArchiveError(path, f"values of {part[1:]}", "the same in every layer, as they are one", "several")
    flat = own["0.control_trans"] if is_flat else _made(path, found, [own[f"0{part}"] for part in parts])
    layers = range(len(modules) - 1) if config.layers is None else config.layers
    if flat.numel() % (config.length * len(layers) * 2):
        raise ArchiveError(path, "size of the prefix", f"{config.length} keys and values a layer", flat.numel())
    both = flat.reshape(config.length, len(layers), 2, -1)
    state = {f"keys.{layer}": both[:, place, 0].contiguous() for place, layer in enumerate(layers)}
    return state | {f"values.{layer}": both[:, place, 1].contiguous() for place, layer in enumerate(layers)}


def _made(path: Path, config: Mapping[str, Any], weights: list[Tensor]) -> Tensor:
    """Return what a reparametrised prefix gives: embeddings through two layers."""
    embeddings, first, first_bias, second, second_bias = weights
    named = text(path, "non_linearity", config.get("non_linearity", "tanh")).lower()
    if named not in ACTIVATION_NAMES:
        raise ForeignSwitchError(path, "non_linearity", f"one of {', '.join(ACTIVATION_NAMES)}", shown(named))
    sizes = (embeddings.ndim, first.ndim, second.ndim, first_bias.ndim, second_bias.ndim)
    chain = embeddings.shape[-1:] == first.shape[-1:] and first.shape[:1] == second.shape[-1:] == first_bias.shape
    if sizes != (2, 2, 2, 1, 1) or not chain or second.shape[:1] != second_bias.shape:
        raise ArchiveError(
            path, "shapes of the prefix", "two layers after embeddings", [list(w.shape) for w in weights]
        )
    return F.linear(ACTIVATIONS[ACTIVATION_NAMES[named]](F.linear(embeddings, first, first_bias)), second, second_bias)


def _read_head(
    path: Path, backbone: BackboneInfo, labels: tuple[str, ...], *, pickles: bool
) -> tuple[HeadConfig, dict[str, Tensor]] | None:
    """Return the head in a folder, None where there is none."""
    if not has_file(path, HEAD_CONFIG):
        if has_file(path, HEAD_WEIGHTS) or has_file(path, PICKLED_HEAD):
            raise ArchiveError(path, "content", f"{HEAD_CONFIG} beside the head's tensors", "none")
        return None
    top = settle(path, read_foreign_config(path, HEAD_CONFIG), ADAPTERHUB[HEAD_CONFIG])
    _check_backbone(path, top, backbone)
    tensors = read_weights(path, HEAD_WEIGHTS, PICKLED_HEAD, pickles=pickles)
    if tensors is None:
        raise ArchiveError(path, "content", f"{HEAD_WEIGHTS} or {PICKLED_HEAD} beside {HEAD_CONFIG}", "neither")
    if top["config"] is not None:
        if not isinstance(top["config"], dict):
            raise ForeignSwitchError(path, "config", "an object in the head's file", shown(top["config"]))
        return read_flex_head(path, text(path, "name", top["name"]), top["config"], tensors, labels)
    named = text(path, "model_class", top["model_class"])
    if named != f"{CLASSES[backbone.family]}ForSequenceClassification":
        expected = f"{CLASSES[backbone.family]}ForSequenceClassification, or a flexible head"
        raise ForeignSwitchError(path, "model_class", expected, shown(named))
    return read_static_head(path / HEAD_WEIGHTS, STATIC_HEADS[backbone.family], tensors, top["label2id"], labels)


def adapterhub_obstacle(stored: StoredSet) -> str:
    """Return what of a set their folders have no place for, an empty text for nothing."""
    config, family = stored.manifest.adapter, stored.manifest.backbone.family
    if family not in CLASSES:
        return f"its backbone is of family {family}, where their library has {', '.join(CLASSES)}"
    if config is None:
        return "it is a head alone"
    if isinstance(config, BitFitConfig):
        return "bitfit, which their library does not have"
    if isinstance(config, FusionConfig):
        return "fusion of sets that have folders of their own"
    if isinstance(config, AdapterConfig) and config.layer_norms:
        return "it has layer norms of its own"
    if isinstance(config, LoraConfig):
        places = [(layer, target) for layer in chosen_of(config, stored) for target in config.targets]
        kinds = {(config.rank_at(*place), config.scale_at(*place)) for place in places}
        if config.bias != "none":
            return f"bias {config.bias}, where their LoRA trains none"
        if len(kinds) > 1:
            return "ranks or scales that differ between products (ranks, alphas)"
    if isinstance(config, Ia3Config) and config.inputs:
        return f"(IA)3 of what enters {', '.join(config.inputs)}, where theirs scales what products give"
    if isinstance(config, LoraConfig | Ia3Config) and "attention_dense" in config.targets:
        return "the target attention_dense, where their library has query, key, value, ffn_in and ffn_out"
    if not is_held_by_states(family, config):
        return "changes of queries and keys, through which DeBERTa's positions go there too"
    return head_obstacle(stored.manifest.head) if stored.has_head else ""


def adapterhub_contents(stored: StoredSet) -> dict[str, bytes]:
    """Return the files of a folder that their library loads: two of the method, and two of the head if there is one."""
    manifest, backbone = stored.manifest, stored.manifest.backbone
    name = _module_name(manifest.name)
    state = stored.adapter_set.adapter.state_dict()
    config = manifest.adapter
    if isinstance(config, PrefixConfig):
        both = [
            torch.stack([state[f"keys.{layer}"], state[f"values.{layer}"]], 1) for layer in chosen_of(config, stored)
        ]
        flat = torch.stack(both, 1).flatten()  # (P, layers, 2, H)
        tensors = {f"{module}.control_trans": flat for module in prefix_modules(name, backbone)}
    else:
        names = tensor_names(config, name, backbone) if config is not None else {}
        tensors = {theirs: state[ours] for theirs, ours in names.items()}
        if isinstance(config, Ia3Config):
            tensors = {key: tensor.unsqueeze(1) for key, tensor in tensors.items()}
    head = stored.adapter_set.head.state_dict()
    heads = {theirs: head[ours] for theirs, ours in flex_names(name, manifest.head).items()}
    top = {
        "name": name,
        "version": _VERSION,
        "model_type": backbone.family,
        "model_name": public_name(backbone),
        "model_class": f"{CLASSES[backbone.family]}AdapterModel",
        "hidden_size": backbone.hidden_size,
    }
    told = {**top, "config": method_config(config, backbone.hidden_size, backbone.layers)}
    found = {CONFIG_FILE: to_bytes(told), _WEIGHTS: tensor_bytes(tensors)}
    if not stored.has_head:
        return found
    head_told = {**top, "config": flex_config(manifest.head)}
    return {**found, HEAD_CONFIG: to_bytes(head_told), HEAD_WEIGHTS: tensor_bytes(heads)}


def _module_name(name: str) -> str:
    """Return a name that a torch module can have as one of its parts."""
    plain = name.replace(".", "_")
    return f"{plain}_set" if hasattr(nn.ModuleDict(), plain) else plain
