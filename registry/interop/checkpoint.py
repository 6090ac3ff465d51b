"""A set merged into the weights of transformers' own classifier: a checkpoint on disk, or a model in memory.

What LoRA, (IA)3 and BitFit change of a frozen product is a change of its weight and its bias:
``W' = diag(scale_out) W diag(scale_in) + up down`` and ``b' = scale_out b + change``. Bottlenecks and prefixes are no such
change. Sums are done in float64 and rounded once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.interface import Change, Place
from registry.config import TARGETS, AdapterConfig, HeadConfig, PrefixConfig
from registry.errors import BackboneMismatchError, ShapeMismatchError
from registry.interop.errors import FormatError
from registry.interop.trainer import label_settings
from registry.model.backbone import Backbone
from registry.model.encoder import Encoder
from registry.model.families import FAMILIES, Family
from registry.model.pretrained import (
    Weights,
    by_todays_names,
    fingerprint,
    locate,
    read_encoder_tensors,
    read_supported_config,
)
from registry.schema import Reference
from registry.store.registry import Registry

Tensors = Mapping[str, Tensor]

_NORMS: Mapping[Place, str] = {"attention": "attention_norm", "ffn": "ffn_norm"}


def save_checkpoint(registry: Registry, reference: str | Reference, folder: Path) -> None:
    """Write a stored set, merged into its backbone, as a checkpoint of transformers into a folder that is there.

    The files are ``config.json`` with the labels, ``model.safetensors`` in float32, and the tokenizer's, which cuts rows
    where the set does. Logits are the set's, in what it answers with: divided by its temperature, for regression in the
    unit of the labels.

    Args:
        registry: where the set is, with its backbone.
        reference: of the set.
        folder: empty.

    Raises:
        FormatError: the method, the pooling or the head is none that the family's own classifier can hold.
        BackboneMismatchError: another checkpoint stands now where the backbone was loaded from.
        AdapterNotFoundError, IntegrityError: and whatever ``Registry.load`` raises.
    """
    manifest, adapter_set, backbone = registry.manifest(reference), registry.load(reference), registry.backbone
    info = backbone.info
    what = f"'{reference}' as a checkpoint of transformers"
    config = read_supported_config(source := locate(info.source, info.revision), info.source)
    family = FAMILIES[config.model_type]
    check_mergeable(what, adapter_set, config)
    tensors = read_encoder_tensors(source, info.source, family.prefix, family.parts)
    found = fingerprint(config, tensors)
    if found != info.fingerprint:
        raise BackboneMismatchError(what, "backbone", info.fingerprint, found)
    exact = {name: tensor.float() for name, tensor in by_todays_names(tensors).items()}
    config, whole = _unshared(adapter_set, config, exact)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    plain = {f"{family.prefix}.{name}": tensor for name, tensor in whole.items()}
    found_there = plain | merged_tensors(adapter_set, config, whole)
    state = {name: found_there[name].cpu().contiguous() for name in model.state_dict()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    labels = label_settings(adapter_set.head_config)
    config.update({**labels, "architectures": [type(model).__name__], "dtype": "float32"})
    config.save_pretrained(folder)
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.model_max_length = manifest.max_length
    tokenizer.save_pretrained(folder)


def load_into(model: PreTrainedModel, reference: str | Reference, registry: Registry) -> None:
    """Merge a stored set into a model of transformers' in place: all of it, or nothing where anything does not fit.

    Args:
        model: ``BertForSequenceClassification`` and kin, loaded from the registry's backbone with as many labels.
        reference: of the set.
        registry: where it is.

    Raises:
        FormatError: the method, the pooling or the head is none that this model can hold.
        BackboneMismatchError: its encoder is not the backbone's, or something was merged into it before.
        ShapeMismatchError: it has another number of labels.
        AdapterNotFoundError, IntegrityError: and whatever ``Registry.load`` raises.
    """
    adapter_set, config = registry.load(reference), model.config
    what = f"'{reference}' in a {type(model).__name__}"
    if config.model_type != registry.backbone.info.family:
        raise BackboneMismatchError(what, "family", registry.backbone.info.family, str(config.model_type))
    check_mergeable(what, adapter_set, config)
    if _unshared(adapter_set, config, {})[0] is not config:
        raise FormatError(what, "layers with weights of their own", "weights that layers or positions share",
                          "export --format transformers gives each its own")  # fmt: skip
    family, state = FAMILIES[config.model_type], model.state_dict()
    start = f"{family.prefix}."
    tensors = {name.removeprefix(start): each for name, each in state.items() if name.startswith(start)}
    _check_encoder(what, tensors, config, registry.backbone)
    pooler = registry.backbone.encoder.pooler
    if pooler is not None:
        own = {f"{family.pooler}.weight": pooler.weight, f"{family.pooler}.bias": pooler.bias}
        tensors = own | tensors
    merged = merged_tensors(adapter_set, config, tensors)
    for name, tensor in merged.items():
        if name not in state or state[name].shape != tensor.shape:
            found = tuple(state[name].shape) if name in state else "none"
            raise ShapeMismatchError(f"{name} of {type(model).__name__}", tuple(tensor.shape), found)
    with torch.no_grad():
        for name, tensor in merged.items():
            state[name].copy_(tensor)
    config.update(label_settings(adapter_set.head_config))


def check_mergeable(what: str, adapter_set: AdapterSet, config: PretrainedConfig) -> None:
    """Refuse a set that the classifier which transformers has for a family cannot hold.

    Raises:
        FormatError: bottlenecks, a prefix, or another pooling or head than that classifier's.
    """
    family, head = FAMILIES[config.model_type], adapter_set.head_config
    method = adapter_set.adapter_config
    if isinstance(method, AdapterConfig | PrefixConfig):
        found = "bottlenecks" if isinstance(method, AdapterConfig) else "a prefix"
        raise FormatError(what, "lora, ia3 or bitfit, which merge into weights", found,
                          "archive and adapterhub can hold it")  # fmt: skip
    activation = getattr(config, "pooler_hidden_act", family.head_activation)
    fits = [("cls", f"dense_{activation}"), *([("pooler", "linear")] if activation == "tanh" else [])]
    if family.head_dense is None or (head.pooling, head.form) not in fits:
        known = " or ".join(f"{form} over {pooling}" for pooling, form in fits)
        expected = f"a head of {known}" if family.head_dense else "a family whose classifier has no norm in its head"
        raise FormatError(what, f"{expected}, as {config.model_type} has it", f"{head.form} over {head.pooling}",
                          "archive can hold it")  # fmt: skip


def merged_tensors(adapter_set: AdapterSet, config: PretrainedConfig, tensors: Tensors) -> dict[str, Tensor]:
    """Return what is not the backbone's any more, under the names of transformers' classifier, in the dtypes given.

    Args:
        adapter_set: one that ``check_mergeable`` lets through.
        config: of the classifier.
        tensors: the encoder's, without the model's prefix, its pooler's among them where the head needs it.
    """
    family, adapter = FAMILIES[config.model_type], adapter_set.adapter
    found: dict[str, Tensor] = {}
    for layer in range(adapter_set.layers):
        before = _layer_name(family, config, layer)
        for target in TARGETS:
            change = adapter.change(layer, (target,))
            if change is not None:
                weight, bias = (f"{before}{getattr(family, target)}.{part}" for part in ("weight", "bias"))
                found[weight], found[bias] = _apply(change, tensors[weight], tensors[bias])
        for place, norm in _NORMS.items():
            shift, name = adapter.seam(layer, place).shift, f"{before}{getattr(family, norm)}.bias"
            if shift is not None:
                found[name] = (tensors[name].double() + shift.to(tensors[name].device)).to(tensors[name].dtype)
    named = {f"{family.prefix}.{name}": tensor for name, tensor in found.items()}
    return {name: tensor.detach() for name, tensor in (named | dict(_head_tensors(adapter_set, family, tensors))).items()}


def _apply(change: Change, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias of a product with its change in them."""
    w, b = weight.double(), bias.double()
    if change.scale_in is not None:
        w = w * change.scale_in.to(w)
    if change.scale_out is not None:
        scale = change.scale_out.to(w)
        w, b = w * scale[:, None], b * scale
    if change.bias is not None:
        b = b + change.bias.to(b)
    if change.squeeze is not None:
        down, down_bias, up, up_bias = (part.to(w) for part in change.squeeze.weights)
        w, b = w + up @ down, b + up @ down_bias + up_bias
    return w.to(weight.dtype), b.to(bias.dtype)


def _head_tensors(adapter_set: AdapterSet, family: Family, tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    """Yield the classifier's two layers: the dense one (the pooler's where the set's head is linear), and the last."""
    head, config = adapter_set.head, adapter_set.head_config
    for part in ("weight", "bias"):
        own = tensors[f"{family.pooler}.{part}"] if head.dense is None else getattr(head.dense, part)
        yield f"{family.head_dense}.{part}", own
    weight = head.out.weight.double()
    bias = weight.new_zeros(len(weight)) if head.out.bias is None else head.out.bias.double()
    if config.problem_type == "regression":
        weight, bias = weight * config.target_deviation, bias * config.target_deviation + config.target_mean
    else:
        weight, bias = weight / config.temperature, bias / config.temperature
    yield f"{family.head_out}.weight", weight.float()
    yield f"{family.head_out}.bias", bias.float()


def _layer_name(family: Family, config: PretrainedConfig, layer: int) -> str:
    """Return what stands before the names of a layer's modules."""
    if family.groups is None:
        return f"{family.layers}.{layer}."
    return f"{family.groups}.{layer * config.num_hidden_groups // config.num_hidden_layers}.albert_layers.0."


def _unshared(
    adapter_set: AdapterSet, config: PretrainedConfig, tensors: Tensors
) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """Return a configuration and encoder in which what the set changes belongs to one layer and to tokens alone.

    ALBERT's layers share the weights of their group, DeBERTa's positions those of the queries and keys of the tokens.
    Both families have a setting by which each has weights of its own.
    """
    family, method = FAMILIES[config.model_type], adapter_set.adapter_config
    if family.groups is not None and method is not None and config.num_hidden_groups < config.num_hidden_layers:
        changed = copy.deepcopy(config)
        changed.num_hidden_groups = config.num_hidden_layers
        whole = {name: each for name, each in tensors.items() if not name.startswith(f"{family.groups}.")}
        for layer in range(config.num_hidden_layers):
            old, new = _layer_name(family, config, layer), _layer_name(family, changed, layer)
            for name, each in tensors.items():
                if name.startswith(old):
                    whole[new + name.removeprefix(old)] = each.clone()
        return changed, whole
    if family.disentangled and config.share_att_key and _changes_scores(adapter_set):
        changed, whole = copy.deepcopy(config), dict(tensors)
        changed.share_att_key = False
        ways = {"c2p": (family.key, "pos_key_proj"), "p2c": (family.query, "pos_query_proj")}
        for name, each in tensors.items():
            for way, (of_tokens, of_positions) in ways.items():
                if way in config.pos_att_type and f".{of_tokens}." in name:
                    whole[name.replace(of_tokens.rpartition(".")[2], of_positions)] = each.clone()
        return changed, whole
    return config, dict(tensors)


def _changes_scores(adapter_set: AdapterSet) -> bool:
    """Return whether a set changes any layer's queries or keys."""
    layers, adapter = range(adapter_set.layers), adapter_set.adapter
    return any(adapter.change(layer, ("query", "key")) is not None for layer in layers)


def _check_encoder(what: str, tensors: Tensors, config: PretrainedConfig, backbone: Backbone) -> None:
    """Raise BackboneMismatchError unless the tensors are those of the backbone, in the coarser of the two precisions."""
    theirs = Encoder(Weights({name: each.detach() for name, each in tensors.items()}, what), config).state_dict()
    ours = backbone.encoder.state_dict()
    for name, tensor in theirs.items():
        own = ours.get(name)
        same = own is not None and own.shape == tensor.shape
        if own is None or not same or not torch.equal(tensor.to(own.dtype).cpu(), own.to(tensor.dtype).to(own).cpu()):
            hint = f"load the model from the checkpoint of '{backbone.info.source}', and merge one set into it"
            raise BackboneMismatchError(what, "backbone", backbone.info.fingerprint, f"another ({name} differs)", hint)
