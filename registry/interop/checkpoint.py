"""A set merged into the weights of transformers' own classifier: a checkpoint on disk, or a model in memory.

What LoRA, (IA)3 and BitFit change of a frozen product is a change of its weight and its bias:
``W' = diag(scale_out) W diag(scale_in) + up down`` and ``b' = scale_out b + change``. Bottlenecks and prefixes are no
such change. Sums are done in float64 and rounded once.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save as format_tensors
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.interface import Change, Place
from registry.config import TARGETS, BitFitConfig, Ia3Config, LoraConfig
from registry.errors import BackboneMismatchError, ShapeMismatchError
from registry.interop.estimators import label_settings
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
from registry.store.errors import UnheldError
from registry.store.manifest import require_head
from registry.store.registry import Registry

Tensors = Mapping[str, Tensor]

_NORMS: Mapping[Place, str] = {"attention": "attention_norm", "ffn": "ffn_norm"}


def checkpoint_files(adapter_set: AdapterSet, backbone: Backbone, max_length: int) -> dict[str, bytes]:
    """Return the files of a checkpoint of transformers that is a set merged into its backbone, by name.

    They are ``config.json`` with the labels, ``model.safetensors`` in float32, and the tokenizer's, which cuts rows
    where the set does. Logits are what the set answers with: divided by its temperature, for regression in the unit of
    the labels.

    Args:
        adapter_set: one in which ``checkpoint_obstacle`` finds nothing.
        backbone: that it is for.
        max_length: tokens that rows are cut to.

    Raises:
        BackboneMismatchError: another checkpoint stands now where the backbone was loaded from.
    """
    info, family = backbone.info, FAMILIES[backbone.info.family]
    source = locate(info.source, info.revision)
    config = read_supported_config(source, info.source)
    tensors = read_encoder_tensors(source, info.source, family.prefix, family.parts)
    found = fingerprint(config, tensors)
    if found != info.fingerprint:
        raise BackboneMismatchError(f"the checkpoint in {source}", "backbone", info.fingerprint, found)
    exact = {name: tensor.float() for name, tensor in by_todays_names(tensors).items()}
    config, whole = _unshared(adapter_set, config, exact)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    plain = {f"{family.prefix}.{name}": tensor for name, tensor in whole.items()}
    merged = plain | merged_tensors(adapter_set, config, whole)
    weights = format_tensors(
        {name: merged[name].cpu().contiguous() for name in model.state_dict()}, metadata={"format": "pt"}
    )
    labels = label_settings(adapter_set.head_config)
    config.update({**labels, "architectures": [type(model).__name__], "dtype": "float32"})
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.model_max_length = max_length
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        small = {path.name: path.read_bytes() for path in Path(folder).glob("*.json")}
    return {**small, "model.safetensors": weights}


def load_into(model: PreTrainedModel, reference: str | Reference, registry: Registry) -> None:
    """Merge a stored set into a model of transformers' in place: all of it, or nothing where anything does not fit.

    Args:
        model: ``BertForSequenceClassification`` and kin, loaded from the registry's backbone with as many labels.
        reference: of the set.
        registry: where it is.

    Raises:
        RequestError: it was imported without a head.
        UnheldError: the method, the pooling or the head is none that this model can hold.
        BackboneMismatchError: its encoder is not the backbone's, or something was merged into it before.
        ShapeMismatchError: it has another number of labels.
        AdapterNotFoundError, IntegrityError: and whatever ``Registry.load`` raises.
    """
    require_head(str(reference), registry.manifest(reference))
    adapter_set, config, backbone = registry.load(reference), model.config, registry.backbone
    kind = type(model).__name__
    what = f"'{reference}' in a {kind}"
    if config.model_type != backbone.info.family:
        raise BackboneMismatchError(what, "family", backbone.info.family, str(config.model_type))
    obstacle = checkpoint_obstacle(adapter_set, config)
    if not obstacle and _unshared(adapter_set, config, {})[0] is not config:
        obstacle = "layers or positions share the weights that it changes, where an export gives each its own"
    if obstacle:
        raise UnheldError(str(reference), f"the weights of a {kind}", obstacle, ["archive"])
    family, state = FAMILIES[config.model_type], model.state_dict()
    start = f"{family.prefix}."
    tensors = {name.removeprefix(start): each for name, each in state.items() if name.startswith(start)}
    _check_encoder(what, tensors, config, backbone)
    pooler = backbone.encoder.pooler
    if pooler is not None:
        own = {f"{family.pooler}.weight": pooler.weight, f"{family.pooler}.bias": pooler.bias}
        tensors = own | tensors
    merged = merged_tensors(adapter_set, config, tensors)
    for name, tensor in merged.items():
        if name not in state or state[name].shape != tensor.shape:
            found = tuple(state[name].shape) if name in state else "none"
            raise ShapeMismatchError(f"{name} of {kind}", tuple(tensor.shape), found)
    with torch.no_grad():
        for name, tensor in merged.items():
            state[name].copy_(tensor)
    config.update(label_settings(adapter_set.head_config))


def checkpoint_obstacle(adapter_set: AdapterSet, config: PretrainedConfig) -> str:
    """Return what of a set the classifier which transformers has for a family cannot hold, an empty text for nothing.

    Args:
        adapter_set: of the family.
        config: of the backbone, or of a model of that family.
    """
    family, head = FAMILIES[config.model_type], adapter_set.head_config
    method = adapter_set.adapter_config
    if not isinstance(method, LoraConfig | Ia3Config | BitFitConfig | None):
        return f"what '{method.name}' does is no change of weights, as lora, ia3 and bitfit are"
    if family.head_dense is None:
        return f"the classifier of {config.model_type} has a norm between its head's layers, which no head here has"
    activation = getattr(config, "pooler_hidden_act", family.head_activation)
    fits = [("cls", f"dense_{activation}"), *([("pooler", "linear")] if activation == "tanh" else [])]
    if (head.pooling, head.form) in fits:
        return ""
    known = " or ".join(f"{form} over {pooling}" for pooling, form in fits)
    return f"the classifier of {config.model_type} has a head of {known}, this one is {head.form} over {head.pooling}"


def merged_tensors(adapter_set: AdapterSet, config: PretrainedConfig, tensors: Tensors) -> dict[str, Tensor]:
    """Return what is not the backbone's any more, under the names of transformers' classifier, in the dtypes given.

    Args:
        adapter_set: one that ``checkpoint_obstacle`` lets through.
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
    return {
        name: tensor.detach() for name, tensor in (named | dict(_head_tensors(adapter_set, family, tensors))).items()
    }


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
    """Raise BackboneMismatchError unless the tensors are the backbone's, in the coarser of the two precisions."""
    theirs = Encoder(Weights({name: each.detach() for name, each in tensors.items()}, what), config).state_dict()
    ours = backbone.encoder.state_dict()
    for name, tensor in theirs.items():
        own = ours.get(name)
        if own is None and name.startswith("pooler."):  # of no use to a set for a backbone without one
            continue
        same = own is not None and own.shape == tensor.shape
        if own is None or not same or not torch.equal(tensor.to(own.dtype).cpu(), own.to(tensor.dtype).to(own).cpu()):
            hint = f"load the model from the checkpoint of '{backbone.info.source}', and merge one set into it"
            raise BackboneMismatchError(what, "backbone", backbone.info.fingerprint, f"another ({name} differs)", hint)
