"""Folders of Hugging Face's ``peft``: LoRA and (IA)3 with the head that trained beside them, both ways.

Which modules a configuration means is found as ``peft`` 0.21.2 finds it, over the modules that the family has; the
tensors have to be exactly those. What it changes outside the layers becomes part of a head: a pooler that trained, or
that has a low-rank change, is a dense layer with a tanh.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from registry.adapters.method import Sizes
from registry.config import TARGETS, HeadConfig, Ia3Config, LoraConfig, Target
from registry.interop.folders import (
    CONFIG_FILE,
    ForeignSet,
    StoredSet,
    chosen_of,
    public_name,
    read_foreign_config,
    read_weights,
    take_tensors,
    tensor_bytes,
    to_bytes,
)
from registry.interop.heads import (
    STATIC_HEADS,
    TRAINED_POOLERS,
    ModelModules,
    StaticHead,
    changes_of_biases,
    head_obstacle,
    is_held_by_states,
    read_static_head,
    static_names,
    take_biases,
    trained_pooler,
)
from registry.interop.switches import (
    PEFT,
    is_peft_target,
    names_module,
    number_within,
    pattern_value,
    settle,
    shown,
    switch_errors,
    text,
    texts,
    whole_within,
)
from registry.model.backbone import Backbone
from registry.model.encoder import inner_sizes
from registry.model.families import FAMILIES
from registry.store.errors import ArchiveError, ForeignSwitchError, UnheldError

_WEIGHTS, _PICKLED_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
_VERSION = "0.21.2"

_PREFIX = "base_model.model."


class _Chosen(NamedTuple):
    """What a configuration changes: products by module, and whether it changes the pooler."""

    places: Mapping[str, tuple[int, Target]]
    pooler: str | None


def read_peft(path: Path, backbone: Backbone, labels: tuple[str, ...] = (), *, pickles: bool = False) -> ForeignSet:
    """Return the set in a folder that ``peft`` saved.

    Args:
        path: the folder.
        backbone: the one it is meant for; its weights are asked where a pooler or biases changed.
        labels: names of the head's classes, which its files do not have.
        pickles: whether weights may be read from a pickle.

    Raises:
        ForeignSwitchError: a switch that no set here has, or another backbone.
        ArchiveError: damaged or hostile.
    """
    found = read_foreign_config(path, CONFIG_FILE)
    kind = found.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT:
        raise ForeignSwitchError(path, "peft_type", " or ".join(PEFT), shown(kind))
    config = settle(path, found, PEFT[kind])
    tensors = read_weights(path, _WEIGHTS, _PICKLED_WEIGHTS, pickles=pickles)
    if tensors is None:
        raise ArchiveError(path, "content", f"{_WEIGHTS} or {_PICKLED_WEIGHTS}", "neither")
    tensors = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}
    model = _model_of(path, backbone, tensors)
    chosen = _find_chosen(path, config, model)
    own = {key: tensor for key, tensor in tensors.items() if ".lora_" in key or ".ia3_" in key}
    rest = {key: tensor for key, tensor in tensors.items() if key not in own}
    change, biases = None, take_biases(path / _WEIGHTS, config, rest, model)
    adapter: LoraConfig | Ia3Config
    if kind == "LORA":
        adapter, state, change = _read_lora(path, config, own, chosen, backbone)
        state |= changes_of_biases(path / _WEIGHTS, adapter, biases, model, backbone)
    else:
        adapter, state = _read_ia3(path, config, own, chosen, backbone)
    bias = biases.get(f"{model.pooler}.bias")
    pooler = None if model.pooler is None else trained_pooler(path, model.pooler, rest, change, bias, backbone)
    head = _read_head(path, config, rest, pooler, model, backbone, labels)
    version = text(path, "peft_version", config["peft_version"]) or "before 0.17"
    named = text(path, "base_model_name_or_path", config["base_model_name_or_path"])
    shape, weights = (None, {}) if head is None else head
    return ForeignSet(None, f"peft {version}", named, adapter, state, shape, weights)


def _model_of(path: Path, backbone: Backbone, tensors: Mapping[str, Tensor]) -> ModelModules:
    """Return the modules of the class for sequence classification, or of the encoder alone by the names of tensors."""
    info, family = backbone.info, FAMILIES[backbone.info.family]
    if family.groups is not None:
        raise ForeignSwitchError(path, "the backbone", "one whose layers have weights of their own", info.family)
    is_bare = any(key.startswith(f"{family.layers}.") for key in tensors)
    prefix = "" if is_bare else f"{family.prefix}."
    targets = [target for target in TARGETS if not (family.pre_norm and target in ("query", "key", "value"))]
    places: dict[str, tuple[int, Target]] = {
        f"{prefix}{family.layers}.{layer}.{getattr(family, target)}": (layer, target)
        for layer in range(info.layers)
        for target in targets
    }
    static = None if is_bare else STATIC_HEADS.get(info.family)
    heads = () if static is None else tuple(each for each in (static.dense, static.out) if each is not None)
    pooler = None if backbone.encoder.pooler is None else f"{prefix}{family.pooler}"
    return ModelModules(places, pooler, heads)


def _find_chosen(path: Path, config: Mapping[str, Any], model: ModelModules) -> _Chosen:
    """Return the modules that a configuration changes.

    Raises:
        ForeignSwitchError: none, some in the head, or patterns that are none.
    """
    places = {module: place for module, place in model.places.items() if is_peft_target(path, config, module)}
    if not places:
        raise ForeignSwitchError(
            path, "target_modules", "some of the layers' products", shown(config["target_modules"])
        )
    in_head = [module for module in model.heads if is_peft_target(path, config, module)]
    if in_head:
        expected = "none in the head but by modules_to_save"
        raise ForeignSwitchError(path, "target_modules", expected, ", ".join(in_head))
    has_pooler = model.pooler is not None and is_peft_target(path, config, model.pooler)
    return _Chosen(places, model.pooler if has_pooler else None)


def _read_lora(
    path: Path, config: Mapping[str, Any], own: Mapping[str, Tensor], chosen: _Chosen, backbone: Backbone
) -> tuple[LoraConfig, dict[str, Tensor], Tensor | None]:
    """Return the changes of the layers' products, and the (H, H) float64 change of the pooler's weight."""
    modules = [*chosen.places, *([] if chosen.pooler is None else [chosen.pooler])]
    names = {f"{module}.lora_{part}.weight": f"{module} {part}" for module in modules for part in ("A", "B")}
    found = take_tensors(path / _WEIGHTS, own, names, "target_modules")
    rank = whole_within(path, "r", config["r"], 1, 65_536)
    alpha = float(number_within(path, "lora_alpha", config["lora_alpha"], -1e6, 1e6))
    ranks, alphas = {}, {}
    state: dict[str, Tensor] = {}
    for module in modules:
        own_rank = pattern_value(path, "rank_pattern", config["rank_pattern"], module, rank)
        own_alpha = pattern_value(path, "alpha_pattern", config["alpha_pattern"], module, alpha)
        ranks[module] = whole_within(path, "rank_pattern", own_rank, 1, 65_536)
        alphas[module] = float(number_within(path, "alpha_pattern", own_alpha, -1e6, 1e6))
    layers, targets = _grid(chosen)
    if config["bias"] == "all":  # those of every layer train
        layers = tuple(range(backbone.info.layers))
    keys = {f"{layer}_{target}": module for module, (layer, target) in chosen.places.items()}
    for key, module in keys.items():
        state |= {f"products.{key}.lora_{part.lower()}": found[f"{module} {part}"] for part in ("A", "B")}
    empty = [(layer, target) for layer in layers for target in targets if f"{layer}_{target}" not in keys]
    for layer, target in empty:  # a product that nothing changes: its change is zero
        wide, out = Sizes(backbone.info.hidden_size, inner_sizes(backbone.encoder.config)).of(target)
        state[f"products.{layer}_{target}.lora_a"] = torch.zeros(1, wide)
        state[f"products.{layer}_{target}.lora_b"] = torch.zeros(out, 1)
    own_ranks = {key: ranks[module] for key, module in keys.items() if ranks[module] != rank}
    own_ranks |= {f"{layer}_{target}": 1 for layer, target in empty if rank != 1}
    with switch_errors(path):
        adapter = LoraConfig(
            rank=rank,
            alpha=alpha,
            ranks=own_ranks,
            alphas={key: alphas[module] for key, module in keys.items() if alphas[module] != alpha},
            rslora=config["use_rslora"],
            bias=config["bias"],
            targets=targets,
            dropout=float(number_within(path, "lora_dropout", config["lora_dropout"], 0.0, 1.0)),
            layers=None if len(layers) == backbone.info.layers else layers,
        )
    if chosen.pooler is None:
        return adapter, state, None
    a, b = (found[f"{chosen.pooler} {part}"] for part in ("A", "B"))
    size = backbone.info.hidden_size
    if tuple(a.shape) != (ranks[chosen.pooler], size) or tuple(b.shape) != (size, ranks[chosen.pooler]):
        raise ArchiveError(path / _WEIGHTS, f"shape of {chosen.pooler}", (ranks[chosen.pooler], size), tuple(a.shape))
    root = ranks[chosen.pooler] ** (0.5 if config["use_rslora"] else 1)
    return adapter, state, alphas[chosen.pooler] / root * (b.double() @ a.double())


def _grid(chosen: _Chosen) -> tuple[tuple[int, ...], tuple[Target, ...]]:
    """Return the layers and the targets that some change has."""
    layers = tuple(sorted({layer for layer, _ in chosen.places.values()}))
    own = {target for _, target in chosen.places.values()}
    return layers, tuple(target for target in TARGETS if target in own)


def _read_ia3(
    path: Path, config: Mapping[str, Any], own: Mapping[str, Tensor], chosen: _Chosen, backbone: Backbone
) -> tuple[Ia3Config, dict[str, Tensor]]:
    """Return the scales of the layers' products; of those in feedforward_modules what enters is scaled."""
    if chosen.pooler is not None:
        raise ForeignSwitchError(path, "target_modules", "none but the layers' products", chosen.pooler)
    names = {f"{module}.ia3_l": module for module in chosen.places}
    found = take_tensors(path / _WEIGHTS, own, names, "target_modules")
    entering = config["feedforward_modules"]
    if isinstance(entering, str):
        enters = {module for module in found if names_module(path, "feedforward_modules", entering, module)}
    else:
        ends = tuple(texts(path, "feedforward_modules", entering))
        enters = {module for module in found if module.endswith(ends)}
    layers, targets = _grid(chosen)
    inputs = {chosen.places[module][1] for module in enters}
    mixed = inputs & {chosen.places[module][1] for module in found if module not in enters}
    if mixed or inputs & {"query", "key", "value"}:
        expected = "the same in every layer, and not query, key or value"
        raise ForeignSwitchError(path, "feedforward_modules", expected, shown(entering))
    with switch_errors(path):
        adapter = Ia3Config(
            targets=targets,
            inputs=tuple(target for target in TARGETS if target in inputs),
            layers=None if len(layers) == backbone.info.layers else layers,
        )
    state, sizes = {}, Sizes(backbone.info.hidden_size, inner_sizes(backbone.encoder.config))
    for module, scale in found.items():
        layer, target = chosen.places[module]
        shape = (1, sizes.of(target)[0]) if target in inputs else (sizes.of(target)[1], 1)
        if tuple(scale.shape) != shape:
            raise ArchiveError(path / _WEIGHTS, f"shape of {module}", shape, tuple(scale.shape))
        state[f"scales.{layer}_{target}"] = scale.flatten()
    for layer in layers:
        for target in targets:
            size = sizes.of(target)[0 if target in inputs else 1]
            state.setdefault(f"scales.{layer}_{target}", torch.ones(size))
    return adapter, state


def _read_head(
    path: Path,
    config: Mapping[str, Any],
    rest: Mapping[str, Tensor],
    pooler: Mapping[str, Tensor] | None,
    model: ModelModules,
    backbone: Backbone,
    labels: tuple[str, ...],
) -> tuple[HeadConfig, dict[str, Tensor]] | None:
    """Return the head of transformers' class, None where only the encoder was saved."""
    if not rest and pooler is None:
        return None
    family = backbone.info.family
    static = STATIC_HEADS.get(family) if pooler is None else TRAINED_POOLERS.get(family)
    classes = config["auto_mapping"] if isinstance(config["auto_mapping"], dict) else {}
    named = str(classes.get("base_model_class", ""))
    if config["task_type"] != "SEQ_CLS" and not named.endswith("ForSequenceClassification"):
        raise ForeignSwitchError(path, "task_type", "SEQ_CLS, as there is a head", shown(config["task_type"]))
    if static is None or not model.heads:
        known = ", ".join(TRAINED_POOLERS if pooler is not None else STATIC_HEADS)
        raise ForeignSwitchError(path, "modules_to_save", f"a head of {known}", f"one of {family}")
    dense = f"{static.dense}.weight"
    if pooler is None and static.dense is not None and dense not in rest:
        expected = f"{static.dense} among them, which is no part of the encoder"
        raise ForeignSwitchError(path, "modules_to_save", expected, shown(config["modules_to_save"]))
    return read_static_head(path / _WEIGHTS, static, {**rest, **(pooler or {})}, None, labels)


def peft_obstacle(stored: StoredSet) -> str:
    """Return what of a set their folders have no place for, an empty text for nothing."""
    config, head, info = stored.manifest.adapter, stored.manifest.head, stored.manifest.backbone
    family = FAMILIES[info.family]
    if not isinstance(config, LoraConfig | Ia3Config):
        return f"{'a head alone' if config is None else config.name}, where their library has LoRA and (IA)3"
    if isinstance(config, LoraConfig) and config.bias != "none":
        return f"bias {config.bias}: here they are changes, and there sums that would not come back bit by bit"
    if family.groups is not None or (family.pre_norm and {"query", "key", "value"} & set(config.targets)):
        return f"its products are not the modules of {info.family}, which joins some of them"
    if not is_held_by_states(info.family, config):
        return "changes of queries and keys, through which DeBERTa's positions go there too"
    if not stored.has_head:
        return "it was imported without a head"
    if _static_of(info.family, head) is None:
        return f"its head ({head.form} over {head.pooling}) is not the one that transformers has for {info.family}"
    if not head.bias or head.problem_type == "multi_label":
        return "a head of several labels, or without a bias, of which their files do not tell"
    return head_obstacle(head)


def _static_of(family: str, head: HeadConfig) -> StaticHead | None:
    known = (STATIC_HEADS.get(family), TRAINED_POOLERS.get(family))
    return next((each for each in known if each and (each.form, each.pooling) == (head.form, head.pooling)), None)


def peft_contents(stored: StoredSet) -> dict[str, bytes]:
    """Return the two files of a folder that their library loads."""
    manifest, info = stored.manifest, stored.manifest.backbone
    family, static, config = FAMILIES[info.family], _static_of(info.family, manifest.head), manifest.adapter
    state, tensors = stored.adapter_set.adapter.state_dict(), {}
    if static is None or not isinstance(config, LoraConfig | Ia3Config):
        raise UnheldError(manifest.name, "peft", peft_obstacle(stored), ["archive"])
    modules = {
        f"{layer}_{target}": f"{family.prefix}.{family.layers}.{layer}.{getattr(family, target)}"
        for layer in chosen_of(config, stored)
        for target in config.targets
    }
    saved = {"classifier", "score", *(module.removeprefix(f"{family.prefix}.").split(".")[0]
                                      for module in (static.dense, static.out) if module)}  # fmt: skip
    told: dict[str, Any] = {
        "base_model_name_or_path": public_name(info),
        "peft_version": _VERSION,
        "task_type": "SEQ_CLS",
        "target_modules": sorted(modules.values()),
        "modules_to_save": sorted(saved),
    }
    if isinstance(config, LoraConfig):
        told |= {"r": config.rank, "lora_alpha": _plain(config.alpha), "use_rslora": config.rslora}
        told |= {"rank_pattern": {modules[key]: rank for key, rank in config.ranks.items() if key in modules}}
        told |= {"alpha_pattern": {modules[key]: _plain(each) for key, each in config.alphas.items() if key in modules}}
        told |= {"lora_dropout": config.dropout}
        for key, module in modules.items():
            for part in ("A", "B"):
                tensors[f"{_PREFIX}{module}.lora_{part}.weight"] = state[f"products.{key}.lora_{part.lower()}"]
    else:
        entering = {key for key in modules if key.partition("_")[2] in config.inputs}
        told |= {"feedforward_modules": sorted(modules[key] for key in entering)}
        for key, module in modules.items():
            tensors[f"{_PREFIX}{module}.ia3_l"] = state[f"scales.{key}"].unsqueeze(0 if key in entering else 1)
    head = stored.adapter_set.head.state_dict()
    tensors |= {f"{_PREFIX}{theirs}": head[ours] for theirs, ours in static_names(static).items()}
    table = PEFT["LORA" if isinstance(config, LoraConfig) else "IA3"]
    defaults = {key: switch.default for key, switch in table.items() if switch.exported}
    return {CONFIG_FILE: to_bytes({**defaults, **told}), _WEIGHTS: tensor_bytes(tensors)}


def _plain(value: float) -> float:
    """Return a whole number without its fraction of zero, as their files have it."""
    return int(value) if value == int(value) else value
