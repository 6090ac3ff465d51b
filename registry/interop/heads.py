"""What trained beside a method in other libraries: heads and their label names, both ways; poolers, and biases.

Two kinds: AdapterHub's *flexible* head, which its own file describes, and the *static* one that transformers' class for
sequence classification has for each family, of which only tensors tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from registry.config import TARGETS, HeadConfig, HeadForm, Ia3Config, LoraConfig, Pooling, ProblemType, Target
from registry.interop.folders import take_tensors
from registry.interop.switches import ADAPTERHUB, settle, shown, switch_errors, whole_within
from registry.model.backbone import Backbone
from registry.model.families import FAMILIES
from registry.store.errors import ArchiveError, ForeignSwitchError

LABEL_LIMIT = 65_536


# AdapterHub's two-layer heads by their activation; one layer is ``linear``.
FLEX_FORMS: Mapping[str, HeadForm] = MappingProxyType(
    {"tanh": "dense_tanh", "gelu": "dense_gelu", "relu": "dense_relu"}
)
FLEX_TYPES: Mapping[str, ProblemType] = MappingProxyType(
    {"classification": "classification", "multilabel_classification": "multi_label"}
)


class StaticHead(NamedTuple):
    """The head that transformers' class for sequence classification has for a family.

    Attributes:
        form, pooling: which of ours it is.
        dense, out: its modules, from the model; ``dense`` is None for a linear one.
    """

    form: HeadForm
    pooling: Pooling
    dense: str | None
    out: str


_OVER_POOLER = StaticHead("linear", "pooler", None, "classifier")
_OF_ROBERTA = StaticHead("dense_tanh", "cls", "classifier.dense", "classifier.out_proj")
STATIC_HEADS: Mapping[str, StaticHead] = MappingProxyType(
    {
        "bert": _OVER_POOLER,
        **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "mpnet"), _OF_ROBERTA),
        "electra": StaticHead("dense_gelu", "cls", "classifier.dense", "classifier.out_proj"),
        "distilbert": StaticHead("dense_relu", "cls", "pre_classifier", "classifier"),
        "deberta-v2": StaticHead("dense_gelu", "cls", "pooler.dense", "classifier"),
    }
)
# The same where the pooler trained too: its own dense layer and tanh.
TRAINED_POOLERS: Mapping[str, StaticHead] = MappingProxyType(
    {"bert": StaticHead("dense_tanh", "cls", "bert.pooler.dense", "classifier")}
)


class ModelModules(NamedTuple):
    """The modules of the transformers class that an adapter was saved from.

    Attributes:
        places: by module, the products of the layers.
        pooler: the pooler's dense layer, None where there is none.
        heads: the modules of a head.
    """

    places: Mapping[str, tuple[int, Target]]
    pooler: str | None
    heads: tuple[str, ...]


def is_held_by_states(family: str, config: object) -> bool:
    """Return whether a method changes here what it changes elsewhere.

    DeBERTa's positions go through the products of queries and keys too, which a set here changes for tokens alone.
    """
    targets = config.targets if isinstance(config, LoraConfig | Ia3Config) else ()
    return not (FAMILIES[family].disentangled and {"query", "key"} & set(targets))


def generic_labels(count: int) -> tuple[str, ...]:
    """Return the names that transformers gives labels which have none."""
    return tuple(f"LABEL_{index}" for index in range(count))


def choose_labels(path: Path, told: object, given: Sequence[str], count: int) -> tuple[str, ...]:
    """Return the label names of a head: those of its file, else those given, else generic ones.

    Raises:
        ForeignSwitchError: names in the file that are no one-to-one map to 0 … C - 1, or others than those given.
    """
    own = _names_of(path, told, count)
    if given and len(given) != count:
        raise ForeignSwitchError(path, "--labels", f"{count} names, as the head has outputs", len(given))
    if own is None or own == generic_labels(count):
        return tuple(given) or generic_labels(count)
    if given and tuple(given) != own:
        raise ForeignSwitchError(path, "--labels", f"those that its own file has, {', '.join(own[:5])}", shown(given))
    return own


def _names_of(path: Path, told: object, count: int) -> tuple[str, ...] | None:
    if not told:
        return None
    good = (
        isinstance(told, dict)
        and len(told) == count
        and all(isinstance(name, str) and isinstance(each, int) for name, each in told.items())
        and sorted(told.values()) == list(range(count))
    )
    if not good or not isinstance(told, dict):
        raise ForeignSwitchError(path, "label2id", f"{count} names and the numbers from 0", shown(told))
    return tuple(sorted(told, key=told.__getitem__))


def read_flex_head(
    path: Path, name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], labels: Sequence[str]
) -> tuple[HeadConfig, dict[str, Tensor]]:
    """Return AdapterHub's own head; tensors of other heads, which its library saves along, are passed over.

    Raises:
        ForeignSwitchError: a head that is none of ours.
        ArchiveError: tensors that are not those of its configuration.
    """
    settled = settle(path, config, ADAPTERHUB["head"])
    count = whole_within(path, "num_labels", settled["num_labels"], 1, LABEL_LIMIT)
    form: HeadForm = "linear"
    if settled["layers"] == 2:
        found = str(settled["activation_function"]).lower()
        if found not in FLEX_FORMS:
            raise ForeignSwitchError(path, "activation_function", f"{' or '.join(FLEX_FORMS)}", shown(found))
        form = FLEX_FORMS[found]
    problem = FLEX_TYPES[settled["head_type"]]
    dropout = settled["dropout_prob"]
    with switch_errors(path):
        head = HeadConfig(
            label_names=choose_labels(path, settled["label2id"], labels, count),
            form=form,
            bias=bool(settled["bias"]),
            pooling="pooler" if settled["use_pooler"] else "cls",
            problem_type="regression" if count == 1 and problem == "classification" else problem,
            dropout=float(dropout) if isinstance(dropout, int | float) else 0.0,
        )
    own = {key: tensor for key, tensor in tensors.items() if key.startswith(f"heads.{name}.")}
    return head, take_tensors(path, own, flex_names(name, head))


def flex_names(name: str, head: HeadConfig) -> dict[str, str]:
    """Return our name of each tensor that AdapterHub's library has for a head: [dropout, dense, act,] dropout, out."""
    dense = head.form != "linear"
    names = {f"heads.{name}.1.{part}": f"dense.{part}" for part in ("weight", "bias")} if dense else {}
    names |= {f"heads.{name}.{4 if dense else 1}.weight": "out.weight"}
    return names | ({f"heads.{name}.{4 if dense else 1}.bias": "out.bias"} if head.bias else {})


def flex_config(head: HeadConfig) -> dict[str, Any]:
    """Return the configuration of AdapterHub's head for one of ours that ``head_obstacle`` has nothing against."""
    types = {ours: theirs for theirs, ours in FLEX_TYPES.items()}
    activations: dict[str, str] = {ours: theirs for theirs, ours in FLEX_FORMS.items()}
    return {
        "head_type": types.get(head.problem_type, "classification"),
        "layers": 1 if head.form == "linear" else 2,
        "activation_function": activations.get(head.form, "tanh"),
        "use_pooler": head.pooling == "pooler",
        "bias": head.bias,
        "num_labels": len(head.label_names),
        "label2id": {label: index for index, label in enumerate(head.label_names)},
        "dropout_prob": head.dropout,
    }


def read_static_head(
    path: Path, static: StaticHead, tensors: Mapping[str, Tensor], told: object, labels: Sequence[str]
) -> tuple[HeadConfig, dict[str, Tensor]]:
    """Return the head that transformers' class of a family has.

    Raises:
        ArchiveError: other tensors than its own.
        ForeignSwitchError: label names that do not fit it.
    """
    out = tensors.get(f"{static.out}.weight")
    if out is None or out.ndim != 2 or not 1 <= len(out) <= LABEL_LIMIT:
        raise ArchiveError(path, "tensor names", f"a matrix {static.out}.weight", "none")
    count = len(out)
    with switch_errors(path):
        head = HeadConfig(
            label_names=choose_labels(path, told, labels, count),
            form=static.form,
            pooling=static.pooling,
            problem_type="regression" if count == 1 else "classification",
        )
    return head, take_tensors(path, tensors, static_names(static), "modules_to_save")


def static_names(static: StaticHead) -> dict[str, str]:
    """Return our name of each tensor of a static head."""
    modules = {"out": static.out} | ({} if static.dense is None else {"dense": static.dense})
    return {f"{theirs}.{part}": f"{ours}.{part}" for ours, theirs in modules.items() for part in ("weight", "bias")}


def trained_pooler(
    path: Path,
    module: str,
    rest: dict[str, Tensor],
    change: Tensor | None,
    bias: Tensor | None,
    backbone: Backbone,
) -> dict[str, Tensor] | None:
    """Return the two tensors of a pooler that is not the backbone's any more, None where it is.

    Args:
        path: the folder.
        module: the pooler's dense layer.
        rest: tensors of a file beside its adapter; a whole pooler is taken out of it.
        change: of its weight, None for none.
        bias: as it is after training, None where it did not train.
        backbone: has the pooler as it was.

    Raises:
        ForeignSwitchError: the backbone is not as exact in memory as its checkpoint.
    """
    saved = [key for key in (f"{module}.weight", f"{module}.bias") if key in rest]
    if saved:
        return {key: rest.pop(key) for key in saved}
    pooler = backbone.encoder.pooler
    if pooler is None or (change is None and (bias is None or torch.equal(bias, pooler.bias.cpu()))):
        return None
    if backbone.dtype != torch.float32:
        raise ForeignSwitchError(path, f"changes of {module}", "--dtype float32, to add them to it", backbone.dtype)
    weight = pooler.weight.detach().cpu()
    own = pooler.bias.detach().cpu() if bias is None else bias
    return {f"{module}.weight": weight if change is None else (weight.double() + change).float(), f"{module}.bias": own}


def take_biases(
    path: Path, config: Mapping[str, Any], rest: dict[str, Tensor], model: ModelModules
) -> dict[str, Tensor]:
    """Take the backbone's own biases, as they are after training, out of what is left of a file; return them."""
    if config.get("bias", "none") == "none":
        return {}
    found, heads = {}, {head.split(".")[0] for head in model.heads}
    for key in [key for key in rest if key.endswith(".bias") and key.removesuffix(".bias") not in model.heads]:
        value = rest.pop(key)
        if key.split(".")[0] not in heads:
            found[key.replace(".base_layer.", ".")] = value
            continue
        # peft saves a head's biases once more: of the copy that trained, and of the one it does not use.
        own = rest.get(re.sub(r"\.modules_to_save(\.default)?\.", ".", key))
        if ".original_module." not in key and (own is None or not torch.equal(own, value)):
            raise ArchiveError(path, ascii(key)[:120], "that of the head", "another")
    return found


def changes_of_biases(
    path: Path, adapter: LoraConfig, found: Mapping[str, Tensor], model: ModelModules, backbone: Backbone
) -> dict[str, Tensor]:
    """Return how much biases of the layers differ from the backbone's; beside them only the pooler's may."""
    if adapter.bias == "none":
        return {}
    if backbone.dtype != torch.float32:
        raise ForeignSwitchError(path, f"bias {adapter.bias}", "--dtype float32, to know what changed", backbone.dtype)
    family = FAMILIES[backbone.info.family]
    layers = adapter.layers if adapter.layers is not None else range(backbone.info.layers)
    modules = {place: module for module, place in model.places.items()}
    targets = adapter.targets if adapter.bias == "lora_only" else TARGETS
    names = {f"{modules[layer, target]}.bias": f"products.{layer}_{target}" for layer in layers for target in targets}
    base = {f"products.{layer}_{target}": _bias(backbone, layer, target) for layer in layers for target in targets}
    others: dict[str, Tensor] = {}
    if adapter.bias == "all":
        prefix = next(iter(model.places)).partition(family.layers)[0]
        for layer in layers:
            for place in ("attention", "ffn"):
                norm = getattr(family, f"{place}_norm")
                names[f"{prefix}{family.layers}.{layer}.{norm}.bias"] = f"norms.{layer}_{place}"
                base[f"norms.{layer}_{place}"] = (
                    backbone.encoder.layers[layer].get_submodule(f"{place}_norm").get_parameter("bias")
                )
        others[f"{prefix}{family.embedding_norm}.bias"] = backbone.encoder.embeddings.norm.get_parameter("bias")
    own = {key: tensor for key, tensor in found.items() if key not in others and key != f"{model.pooler}.bias"}
    if not all(key in found and torch.equal(found[key], each.cpu()) for key, each in others.items()):
        raise ForeignSwitchError(path, "bias all", "the backbone's own bias of its embeddings", "another, or none")
    if adapter.bias == "lora_only":  # products that nothing changes keep theirs
        own |= {key: base[ours].cpu() for key, ours in names.items() if key not in own}
    taken = take_tensors(path, own, names, "bias")
    for key, tensor in taken.items():
        if tensor.shape != base[key].shape:
            raise ArchiveError(path, f"shape of {key}", tuple(base[key].shape), tuple(tensor.shape))
    return {f"biases.{key}": tensor - base[key].detach().cpu() for key, tensor in taken.items()}


def _bias(backbone: Backbone, layer: int, target: Target) -> Tensor:
    """Return the backbone's own bias of one product."""
    joined = ("query", "key", "value")
    module = "qkv" if target in joined else target
    bias = backbone.encoder.layers[layer].get_submodule(module).get_parameter("bias")
    return bias.chunk(3)[joined.index(target)] if target in joined else bias


def head_obstacle(head: HeadConfig) -> str:
    """Return what of a head's answers other libraries' files have no place for, an empty text for nothing."""
    if head.temperature != 1.0 or head.thresholds:
        return "its probabilities are calibrated (temperature, thresholds), for which the format has no place"
    if (head.target_mean, head.target_deviation) != (0.0, 1.0):
        return "it answers numbers in the unit of its labels (target_mean, target_deviation), not as its logits are"
    return "pooling mean, where the format has the first token or the pooler" if head.pooling == "mean" else ""
