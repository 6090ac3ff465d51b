"""Folders that ``adapters`` and ``peft`` save, a case for each value of each switch; runs in their environment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import adapters
import peft
import torch
import transformers


@dataclass(frozen=True)
class Case:
    """One folder: what is made, on which family, and how its files are changed afterwards.

    Attributes:
        title: for the report.
        config: arguments of the library's configuration.
        kind: its class or preset.
        family: of the backbone.
        head: arguments of AdapterHub's head; None is none.
        edit: changes its files as an older version would have written them.
    """

    title: str
    config: dict[str, Any] = field(default_factory=dict)
    kind: str = "SeqBnConfig"
    family: str = "bert"
    head: dict[str, Any] | None = field(default_factory=dict)
    edit: Callable[[Path], None] | None = None


def _randomise(model: Any, *parts: str) -> None:
    # As large as trained values are: with larger ones float32's own rounding is beyond 1e-5, on either side.
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in parts):
                start = 1.0 if ("ia3" in name or name.endswith(("scaling", "LayerNorm.weight"))) else 0.0
                parameter.copy_(start + 0.2 * torch.randn(parameter.shape, generator=generator))


def _config_edit(change: Callable[[dict[str, Any]], None], file: str = "adapter_config.json") -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        plain = json.loads((folder / file).read_text())
        change(plain)
        (folder / file).write_text(json.dumps(plain))

    return edit


def _old_names(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter.safetensors"
    old = {
        key.replace(".output.adapters.", ".output.layer_text_task_adapters.").replace(
            "attention.output.layer_text_task_adapters", "attention.output.attention_text_task_adapters"
        ): tensor
        for key, tensor in load_file(path).items()
    }
    save_file(old, path)


_ACTIVATIONS = (*sorted(set(transformers.activations.ACT2FN) - {"prelu", "xielu"}), "leakyrelu", "ReLU")
_PLACINGS = [
    {"mh_adapter": mh, "output_adapter": out, "original_ln_before": before, "original_ln_after": after,
     "residual_before_ln": residual, "is_parallel": parallel}
    for (mh, out), before, after, residual, parallel in product(
        ((True, False), (False, True), (True, True)), (True, False), (True, False), (True, False, "post_add"),
        (True, False)
    )
]  # fmt: skip
_BOTTLENECK: list[dict[str, Any]] = [
    *_PLACINGS,
    *({"non_linearity": name} for name in _ACTIVATIONS),
    *({"reduction_factor": factor} for factor in (2, 3, 5, 3.7, 0.5, 40, {"0": 4, "default": 8}, {"0": 3, "1": 5})),
    *({"scaling": value} for value in (0.5, -2.0, "learned", "channel")),
    *({"leave_out": layers} for layers in ([0], [1], [0, 1], [1, 7])),
    *({"inv_adapter": name, "inv_adapter_reduction_factor": 2} for name in ("nice", "glow")),
    *({key: True} for key in ("ln_before", "ln_after", "use_gating", "cross_adapter", "adapter_residual_before_ln")),
    {"ln_after": True, "adapter_residual_before_ln": True},
    {"phm_layer": True, "phm_dim": 2},
    {"dropout": 0.3},
    *({"init_weights": name} for name in ("houlsby", "mam_adapter")),
    {"init_weights_seed": 3},
    {"mh_adapter": True, "scaling": "channel", "leave_out": [0], "reduction_factor": 7},
]
_LORA: list[dict[str, Any]] = [
    {},
    {"r": 1, "alpha": 16},
    {"attn_matrices": ["k"]},
    {"attn_matrices": ["q", "k", "v"], "intermediate_lora": True, "output_lora": True},
    {"selfattn_lora": False, "output_lora": True},
    {"leave_out": [1]},
    {"dropout": 0.2},
    {"use_gating": True},
    {"use_dora": True},
    {"vera_d": 0.1, "vera_b": 0.1, "init_weights": "vera"},
    {"dtype": "float16"},
    {"init_weights": "bert"},
]
_HEADS: list[dict[str, Any]] = [
    *({"layers": layers} for layers in (1, 2, 3)),
    *({"activation_function": name} for name in ("relu", "gelu", "swish", None)),
    {"use_pooler": True},
    {"bias": False},
    {"num_labels": 1},
    {"num_labels": 5, "layers": 1, "use_pooler": True},
    {"id2label": {0: "dull", 1: "great"}},
    {"dropout_prob": 0.4},
    {"multilabel": True, "num_labels": 3},
    {"add": "add_tagging_head"},
    {"add": "add_multiple_choice_head"},
    {"add": "add_qa_head"},
]
ADAPTERHUB: tuple[Case, ...] = (
    *(Case(f"bottleneck {json.dumps(each)}", each) for each in _BOTTLENECK),
    *(Case(f"{kind} on {family}", {}, kind, family)
      for kind in ("SeqBnConfig", "DoubleSeqBnConfig", "ParBnConfig", "LoRAConfig", "IA3Config",
                   "CompacterConfig", "SeqBnInvConfig", "PromptTuningConfig", "LoReftConfig", "MAMConfig",
                   "UniPELTConfig", "VeraConfig", "MTLLoRAConfig")
      for family in ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "deberta-v2")),
    *(Case(f"AdapterPlusConfig on {family}", {"stochastic_depth": 0.0}, "AdapterPlusConfig", family)
      for family in ("bert", "roberta", "deberta-v2")),
    *(Case(f"lora {json.dumps(each)}", each, "LoRAConfig") for each in _LORA),
    *(Case(f"ia3 {json.dumps(each)}", each, "IA3Config")
      for each in ({"alpha": 2}, {"output_lora": True, "attn_matrices": ["q"]}, {"leave_out": [0]})),
    *(Case(f"prefix {json.dumps(each)} on {family}", {"bottleneck_size": 8, **each}, "PrefixTuningConfig", family)
      for each in ({"flat": True}, {"flat": False}, {"flat": True, "prefix_length": 3, "leave_out": [0]},
                   {"flat": False, "non_linearity": "gelu", "prefix_length": 2}, {"flat": True, "use_gating": True})
      for family in ("bert", "roberta", "distilbert")),
    *(Case(f"head {json.dumps(each)}", {}, head=each) for each in _HEADS),
    *(Case(f"static head on {family}", {}, family=family, head={"static": True})
      for family in ("bert", "roberta", "electra", "distilbert", "deberta-v2")),
    Case("no head", {}, head=None),
    Case("no version, gelu", {"non_linearity": "gelu"}, edit=_config_edit(lambda plain: plain.pop("version"))),
    Case("no version, relu, old names of tensors", {"mh_adapter": True}, edit=_old_names),
    Case("LoRA of 1.0.1", {"r": 2, "alpha": 8}, "LoRAConfig",
         edit=_config_edit(lambda plain: plain.update(version="adapters.1.0.1"))),
    *(Case(f"config named {name}", {}, kind, edit=_config_edit(lambda plain, name=name: plain.update(config=name)))
      for name, kind in (("pfeiffer", "SeqBnConfig"), ("houlsby", "DoubleSeqBnConfig"), ("scaled_parallel", "scaled"),
                         ("lora", "LoRAConfig"), ("ia3", "IA3Config"))),
    Case("old task adapter that names an inv_adapter",
         edit=_config_edit(lambda plain: (plain.update(type="text_task"), plain["config"].update(
             invertible_adapter={"block_type": "nice", "non_linearity": "relu", "reduction_factor": 2})))),
    Case("an unknown key", edit=_config_edit(lambda plain: plain["config"].update(new_switch=True))),
)  # fmt: skip


def make_adapterhub(case: Case, backbone: str, folder: Path) -> tuple[Any, bool]:
    """Save a folder with ``adapters``; return the model that loads it again, and whether its states are pooled."""
    classes = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "electra": "Electra",
               "distilbert": "DistilBert", "deberta-v2": "DebertaV2"}  # fmt: skip
    is_static = bool(case.head and case.head.get("static"))
    torch.manual_seed(0)

    def fresh() -> Any:
        if is_static:
            model = getattr(transformers, f"{classes[case.family]}ForSequenceClassification").from_pretrained(backbone)
            adapters.init(model)
            return model
        return getattr(adapters, f"{classes[case.family]}AdapterModel").from_pretrained(backbone)

    model = fresh()
    config = (
        adapters.ParBnConfig(scaling="learned")
        if case.kind == "scaled"
        else getattr(adapters, case.kind)(**case.config)
    )
    model.add_adapter("task", config=config)
    if case.head is not None and not is_static:
        options = {"num_labels": 2, **case.head}
        add = options.pop("add", "add_classification_head")
        if add != "add_classification_head":
            options = {}
        getattr(model, add)("task", **options)
    _randomise(model, ".task.", "heads.task", "classifier")
    is_shared = "Prefix" in case.kind or case.kind in ("MAMConfig", "UniPELTConfig", "MTLLoRAConfig", "VeraConfig")
    is_shared = is_shared or case.config.get("ln_before", False)
    if is_shared and "Prefix" in case.kind:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "prefix" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape))
    model.save_adapter(str(folder), "task", use_safetensors=not is_shared)
    if case.edit is not None:
        case.edit(folder)
    again = fresh()
    if is_static:  # the head that its library loads into the same class
        with torch.no_grad():
            for name, parameter in again.named_parameters():
                if name.split(".")[0] in ("classifier", "pre_classifier", "pooler"):
                    parameter.copy_(model.state_dict()[name])
    again.load_adapter(str(folder), use_safetensors=not is_shared, set_active=True)
    if case.head is None:
        return None, True
    return again, False


_PEFT_LORA: list[dict[str, Any]] = [
    *({"target_modules": names} for names in (
        ["query", "value"], ["query", "key", "value"], ["dense"], ["output.dense"], ["intermediate.dense"],
        ["attention.output.dense"], ["attention.self.query"], "all-linear", ".*query", ".*(query|value)",
        ".*layer\\.0\\.attention\\.self\\.(query|key)", ".*layer\\.(0|1)\\.output\\.dense",
        "(.*layer\\.0\\..*query|.*layer\\.1\\..*value)", "bert\\.encoder\\..*\\.key", ["word_embeddings"],
        ["query", "pooler.dense"], ["classifier"],
    )),
    {"target_modules": "all-linear", "exclude_modules": ["pooler.dense"]},
    {"target_modules": ["query", "value"], "exclude_modules": ".*layer\\.0.*"},
    {"target_modules": ["query", "value"], "r": 4, "rank_pattern": {"query": 2}},
    {"target_modules": ["query", "value"], "alpha_pattern": {"layer.0.attention.self.value": 3}, "lora_alpha": 5},
    {"target_modules": ["query", "value"], "rank_pattern": {"layer.1.*value": 6, "value": 3}, "use_rslora": True},
    {"target_modules": ["query", "value"], "alpha_pattern": {"^bert.encoder.layer.0.*query": 32}},
    {"target_modules": ["query"], "use_rslora": True, "lora_alpha": 3},
    {"target_modules": ["query"], "lora_dropout": 0.3},
    {"target_modules": ["query"], "bias": "all"},
    {"target_modules": ["query", "output.dense"], "bias": "lora_only"},
    {"target_modules": ["query"], "layers_to_transform": [1]},
    {"target_modules": ["query"], "layers_to_transform": 0},
    {"target_modules": ["query"], "layers_to_transform": [1], "layers_pattern": "layer"},
    {"target_modules": ["query"], "layers_to_transform": [0, 1], "bias": "lora_only"},
    *({"target_modules": ["query"], "init_lora_weights": how} for how in (False, "gaussian", "pissa", "olora")),
    {"target_modules": ["query"], "use_dora": True},
    {"target_modules": ["query"], "lora_bias": True},
    {"target_modules": ["query"], "fan_in_fan_out": True},
    {"target_modules": ["query"], "modules_to_save": ["pooler"]},
    {"target_modules": ["query"], "modules_to_save": ["embeddings.LayerNorm"]},
    {"target_modules": ["query"], "trainable_token_indices": [1, 2]},
    {"target_modules": ["query"], "task_type": "TOKEN_CLS"},
    {"target_modules": ["query"], "task_type": None},
    {"target_modules": ["query"], "task_type": None, "modules_to_save": ["classifier"]},
    {"target_modules": ["query"], "task_type": "FEATURE_EXTRACTION"},
    {"target_modules": ["query"], "layer_replication": [[0, 2], [1, 2]]},
]  # fmt: skip
_PEFT_IA3: list[dict[str, Any]] = [
    {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]},
    {"target_modules": ["key", "value", "intermediate.dense"], "feedforward_modules": []},
    {"target_modules": ["dense"], "feedforward_modules": ["dense"]},
    {"target_modules": ["query", "intermediate.dense"], "feedforward_modules": ["intermediate.dense"]},
    {"target_modules": ["query"], "feedforward_modules": ["query"]},
    {"target_modules": ".*layer\\.0\\..*(key|value)", "feedforward_modules": ".*output.dense"},
    {"target_modules": ["key"], "feedforward_modules": [], "modules_to_save": ["pooler"]},
    {"target_modules": ["pooler.dense", "key"], "feedforward_modules": []},
]
_Q = {"distilbert": "q_lin", "mpnet": "q", "deberta-v2": "query_proj"}
PEFT: tuple[Case, ...] = (
    *(Case(f"lora {json.dumps(each)}", each, "LoraConfig") for each in _PEFT_LORA),
    *(Case(f"ia3 {json.dumps(each)}", each, "IA3Config") for each in _PEFT_IA3),
    *(Case(f"lora on {family}", {"target_modules": [_Q.get(family, "query")], **more}, "LoraConfig", family)
      for family in ("roberta", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet", "albert", "deberta-v2")
      for more in ({}, {"bias": "all"}, {"modules_to_save": ["pre_classifier", "classifier", "pooler"]})),
    *(Case(f"all-linear on {family}", {"target_modules": "all-linear"}, "LoraConfig", family)
      for family in ("roberta", "electra", "distilbert", "mpnet", "deberta-v2", "albert")),
    *(Case(f"{kind}", config, kind) for kind, config in (
        ("AdaLoraConfig", {"target_modules": ["query"], "total_step": 10}),
        ("LoHaConfig", {"target_modules": ["query"]}),
        ("VeraConfig", {"target_modules": ["query"]}), ("OFTConfig", {"target_modules": ["query"]}),
        ("PrefixTuningConfig", {"num_virtual_tokens": 3}), ("PromptTuningConfig", {"num_virtual_tokens": 3}),
        ("LNTuningConfig", {"target_modules": ["LayerNorm"]}))),
    Case("an unknown key", {"target_modules": ["query"]}, "LoraConfig",
         edit=_config_edit(lambda plain: plain.update(new_switch=1))),
)  # fmt: skip


def make_peft(case: Case, backbone: str, folder: Path) -> tuple[Any, bool]:
    """Save a folder with ``peft``; return the model that loads it again, and whether its states are pooled."""
    torch.manual_seed(0)
    task = case.config.get("task_type", "SEQ_CLS")
    kinds = {"TOKEN_CLS": "TokenClassification", "FEATURE_EXTRACTION": ""}
    loader = transformers.AutoModelForSequenceClassification if task in ("SEQ_CLS", None) else (
        transformers.AutoModelForTokenClassification if kinds[task] else transformers.AutoModel)  # fmt: skip

    def fresh() -> Any:
        torch.manual_seed(1)
        return loader.from_pretrained(backbone)

    config = getattr(peft, case.kind)(**{"task_type": task, **case.config})
    if case.kind == "LoraConfig" and "r" not in case.config:
        config.r = 2
    model = peft.get_peft_model(fresh(), config)
    keep = {name: each.detach().clone() for name, each in model.named_parameters() if "embeddings" in name}
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    _randomise(model, *trained)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if name in keep and case.config.get("bias") == "all":
                each.copy_(keep[name])
    model.save_pretrained(str(folder))
    if case.edit is not None:
        case.edit(folder)
        return None, False
    again = peft.PeftModel.from_pretrained(fresh(), str(folder))
    if task == "FEATURE_EXTRACTION" or (task is None and "modules_to_save" not in case.config):
        return None, True
    return again, False
