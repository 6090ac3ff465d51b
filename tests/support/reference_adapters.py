"""The independent reference of the adapters: a stock padded transformers model, changed by forward hooks.

Written from the formulas of DESIGN.md with plain matrix products; it shares nothing with the package but the names
under which a set's tensors are saved.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from registry.adapters.adapter_set import AdapterSet
from registry.config import TARGETS, AdapterConfig, FusionConfig, LoraConfig, MethodConfig

Function = Callable[[Tensor], Tensor]

BERT_PATHS = {
    "layer": "encoder.layer.{}",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_dense": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_in": "intermediate.dense",
    "ffn_dense": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
PATHS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "bert": BERT_PATHS,
        "roberta": BERT_PATHS,
        "mpnet": {
            **BERT_PATHS,
            "query": "attention.attn.q",
            "key": "attention.attn.k",
            "value": "attention.attn.v",
            "attention_dense": "attention.attn.o",
            "attention_norm": "attention.LayerNorm",
        },
        "deberta-v2": {
            **BERT_PATHS,
            "query": "attention.self.query_proj",
            "key": "attention.self.key_proj",
            "value": "attention.self.value_proj",
        },
        "albert": {  # of two groups, so that two layers have weights of their own
            "layer": "encoder.albert_layer_groups.{}.albert_layers.0",
            "query": "attention.query",
            "key": "attention.key",
            "value": "attention.value",
            "attention_dense": "attention.dense",
            "attention_norm": "attention.LayerNorm",
            "ffn_in": "ffn",
            "ffn_dense": "ffn_output",
            "ffn_norm": "full_layer_layer_norm",
        },
        "modernbert": {
            "layer": "layers.{}",
            "attention_dense": "attn.Wo",
            "ffn_in": "mlp.Wi",
            "ffn_dense": "mlp.Wo",
        },
        "distilbert": {
            "layer": "transformer.layer.{}",
            "query": "attention.q_lin",
            "key": "attention.k_lin",
            "value": "attention.v_lin",
            "attention_dense": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "ffn_in": "ffn.lin1",
            "ffn_dense": "ffn.lin2",
            "ffn_norm": "output_layer_norm",
        },
    }
)
ACTIVATIONS: Mapping[str, Function] = MappingProxyType(
    {
        "relu": lambda x: x * (x > 0),
        "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        "silu": lambda x: x / (1 + torch.exp(-x)),
        "tanh": lambda x: 1 - 2 / (torch.exp(2 * x) + 1),
        "gelu_new": lambda x: x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
        "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
        "relu6": lambda x: x.clamp(0, 6),
        "relu2": lambda x: x * x * (x > 0),
        "mish": lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))),
        "identity": lambda x: x,
    }
)


def hooked_model(model: PreTrainedModel, adapter_set: AdapterSet) -> PreTrainedModel:
    """Return a copy of the stock model that computes what ``adapter_set`` should make of it."""
    changed = copy.deepcopy(model)
    config = adapter_set.adapter_config
    assert config is not None
    fused = None
    if isinstance(config, FusionConfig):
        fused = _fused(adapter_set, config)
        config = msgspec.structs.replace(config.members[0].adapter, scale=1.0)
    tensors = {name.removeprefix("adapter."): tensor for name, tensor in adapter_set.state_dict().items()}
    paths = PATHS[model.config.model_type]
    for layer in config.layers if config.layers is not None else range(adapter_set.layers):
        block = changed.get_submodule(paths["layer"].format(layer))
        if model.config.model_type == "modernbert":
            _hook_pre_norm(block, layer, config, tensors, fused)
            continue
        if not isinstance(config, AdapterConfig):
            table = getattr(changed.encoder, "rel_embeddings", None) if hasattr(changed, "encoder") else None
            _hook_products(block, layer, config, tensors, paths, 0 if table is None else len(table.weight))
            _hook_prefix(block, tensors.get(f"keys.{layer}"), tensors.get(f"values.{layer}"), paths, changed)
            continue
        for place in ("attention", "ffn"):
            _hook(block, place, paths, config, _Parts(tensors, f"{layer}_{place}", config, block, paths, fused))
    return changed


def _squeeze(tensors: Mapping[str, Tensor], key: str, config: AdapterConfig, x: Tensor) -> Tensor:
    """Return scale * up(act(down(x))) of the bottleneck at one seam."""
    names = ("down.weight", "down.bias", "up.weight", "up.bias")
    down, down_bias, up, up_bias = (tensors[f"bottlenecks.{key}.{name}"] for name in names)
    scale = tensors.get(f"bottlenecks.{key}.scale", config.scale)
    return scale * (ACTIVATIONS[config.activation](x @ down.T + down_bias) @ up.T + up_bias)


def _fused(adapter_set: AdapterSet, config: FusionConfig) -> Callable[[str, Tensor], Tensor]:
    """Return what a fused set adds at a seam, as Pfeiffer et al. 2021 have it: a value of each member, then the sum."""
    state = adapter_set.adapter.state_dict()
    members = [
        (member.adapter, dict(own.named_buffers()))
        for member, own in zip(config.members, adapter_set.adapter.members, strict=True)
    ]

    def fuse(key: str, x: Tensor) -> Tensor:
        query, bias, key_weight, value = (
            state[f"fusions.{key}.{name}"] for name in ("query", "query_bias", "key", "value")
        )
        value = torch.eye(len(value)) + value
        added = [_squeeze(tensors, key, shape, x) for shape, tensors in members]
        scores = torch.stack([((x @ query.T + bias) * (each @ key_weight.T)).sum(-1) for each in added])
        shares = torch.softmax(scores, dim=0)
        return torch.stack(
            [share[..., None] * (each @ value.T) for share, each in zip(shares, added, strict=True)]
        ).sum(0)

    return fuse


class _Parts:
    """One seam's bottleneck and layer norm as plain functions."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        key: str,
        config: AdapterConfig,
        block: nn.Module,
        paths: Mapping[str, str],
        fused: Callable[[str, Tensor], Tensor] | None = None,
    ) -> None:
        self.tensors, self.key, self.config, self.fused = tensors, key, config, fused
        self.stock_norm = block.get_submodule(paths[f"{key.split('_')[1]}_norm"])
        self.has_bottleneck = f"bottlenecks.{key}.down.weight" in tensors or f"fusions.{key}.query" in tensors

    def bottleneck(self, x: Tensor) -> Tensor:
        """Return what the set adds to these states."""
        if self.fused is not None:
            return self.fused(self.key, x)
        return _squeeze(self.tensors, self.key, self.config, x)

    def norm(self, x: Tensor) -> Tensor:
        """Return the layer norm with the task's weights where it has some, else the backbone's."""
        own = f"layer_norms.{self.key}"
        weight = self.tensors.get(f"{own}.weight", self.stock_norm.weight)
        bias = self.tensors.get(f"{own}.bias", self.stock_norm.bias)
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred**2).mean(-1, keepdim=True)
        return centred / torch.sqrt(spread + self.stock_norm.eps) * weight + bias


def _hook(block: nn.Module, place: str, paths: Mapping[str, str], config: AdapterConfig, parts: _Parts) -> None:
    """Put the formulas of one seam on the stock modules around it."""
    before: list[Tensor] = []  # the residual of the sub-layer, for ``parallel``
    placement = config.placement if parts.has_bottleneck else "plain"
    formulas: Mapping[str, Function] = {
        "plain": parts.norm,
        "houlsby": parts.norm,
        "after_layer": lambda total: parts.norm(total) + parts.bottleneck(parts.norm(total)),
        "pfeiffer": lambda total: parts.norm(total + parts.bottleneck(parts.norm(total))),
        "parallel": lambda total: parts.norm(total + parts.bottleneck(before.pop())),
    }
    norm = block.get_submodule(paths[f"{place}_norm"])
    norm.register_forward_hook(lambda module, inputs, output: formulas[placement](inputs[0]))
    if placement == "parallel":
        first = block.get_submodule(paths["ffn_in" if place == "ffn" else "query"])
        first.register_forward_pre_hook(lambda module, inputs: before.append(inputs[0]))
    if placement == "houlsby":
        dense = block.get_submodule(paths[f"{place}_dense"])
        dense.register_forward_hook(lambda module, inputs, output: output + parts.bottleneck(output))


class _Tokens:
    """A stock product whose hooks see the tokens' states and not DeBERTa's ``positions`` relative ones."""

    def __init__(self, module: nn.Module, positions: int) -> None:
        self.module, self.positions = module, positions

    def register_forward_hook(self, hook: Callable[..., Tensor | None]) -> None:
        """Change what comes out for tokens."""
        self.module.register_forward_hook(
            lambda module, inputs, output: None if self._is_table(inputs) else hook(module, inputs, output)
        )

    def register_forward_pre_hook(self, hook: Callable[..., tuple[Tensor, ...]]) -> None:
        """Change what goes in for tokens."""
        self.module.register_forward_pre_hook(
            lambda module, inputs: None if self._is_table(inputs) else hook(module, inputs)
        )

    def _is_table(self, inputs: tuple[Tensor, ...]) -> bool:
        return self.positions > 0 and inputs[0].shape[:2] == (1, self.positions)


def _hook_products(
    block: nn.Module,
    layer: int,
    config: MethodConfig,
    tensors: Mapping[str, Tensor],
    paths: Mapping[str, str],
    positions: int,
) -> None:
    """Put LoRA's, (IA)3's and BitFit's formulas on the stock products and norms of one layer.

    ``positions`` is how many relative positions go through the products of queries and keys as well, unchanged.
    """
    for target in TARGETS:
        module = _Tokens(block.get_submodule(paths["ffn_dense" if target == "ffn_out" else target]), positions)
        key = f"{layer}_{target}"
        scale, bias = tensors.get(f"scales.{key}"), tensors.get(f"biases.products.{key}")
        if scale is not None and target in getattr(config, "inputs", ()):
            module.register_forward_pre_hook(lambda module, inputs, scale=scale: (inputs[0] * scale,))
        elif scale is not None:
            module.register_forward_hook(lambda module, inputs, output, scale=scale: output * scale)
        if bias is not None:
            module.register_forward_hook(lambda module, inputs, output, bias=bias: output + bias)
        if f"products.{key}.lora_a" in tensors:
            assert isinstance(config, LoraConfig)
            a, b = tensors[f"products.{key}.lora_a"], tensors[f"products.{key}.lora_b"]
            rank = len(a)
            factor = config.alpha / (math.sqrt(rank) if config.rslora else rank)
            module.register_forward_hook(
                lambda module, inputs, output, a=a, b=b, factor=factor: output + factor * (inputs[0] @ a.T @ b.T)
            )
    for place in ("attention", "ffn"):
        shift = tensors.get(f"biases.norms.{layer}_{place}")
        if shift is not None:
            norm = block.get_submodule(paths[f"{place}_norm"])
            norm.register_forward_hook(lambda module, inputs, output, shift=shift: output + shift)


def _hook_prefix(
    block: nn.Module, keys: Tensor | None, values: Tensor | None, paths: Mapping[str, str], model: PreTrainedModel
) -> None:
    """Let one layer attend to (P, H) keys and values first; rows have to come alone, as no mask is looked at."""
    if keys is None or values is None:
        return
    seen: dict[str, Tensor] = {}
    is_deberta = model.config.model_type == "deberta-v2"
    positions = len(model.encoder.rel_embeddings.weight) if is_deberta else 0
    for name in ("query", "key", "value"):
        _Tokens(block.get_submodule(paths[name]), positions).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output})
        )

    def gather(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        batch, length, width = seen["query"].shape
        heads = model.config.num_attention_heads
        size = width // heads
        bias = torch.zeros(heads, length, length + len(keys))
        scale = math.sqrt(size * (3 if is_deberta else 1))
        if is_deberta:
            by_head = [
                seen[name].view(batch, length, heads, size).transpose(1, 2).flatten(0, 1) for name in ("query", "key")
            ]
            table = model.encoder.get_rel_embedding()
            own = block.get_submodule("attention.self")
            bias[..., len(keys) :] = own.disentangled_attention_bias(*by_head, None, table, 3)
        if model.config.model_type == "mpnet":
            bias[..., len(keys) :] = model.encoder.compute_position_bias(seen["query"])[0]
        query, key, value = (
            torch.cat([own.expand(batch, -1, -1), seen[name]], dim=1) if own is not None else seen[name]
            for name, own in (("query", None), ("key", keys), ("value", values))
        )
        gathered = torch.empty(batch, length, width)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            weights = (query[..., part] @ key[..., part].transpose(1, 2) / scale + bias[head]).softmax(dim=-1)
            gathered[..., part] = weights @ value[..., part]
        return (gathered,)

    block.get_submodule(paths["attention_dense"]).register_forward_pre_hook(gather)


def _hook_pre_norm(
    block: nn.Module,
    layer: int,
    config: MethodConfig,
    tensors: Mapping[str, Tensor],
    fused: Callable[[str, Tensor], Tensor] | None,
) -> None:
    """Put the formulas on one layer of ModernBERT, whose products of attention are one and whose sums are bare."""
    modules = {"attention_dense": "attn.Wo", "ffn_in": "mlp.Wi", "ffn_out": "mlp.Wo"}
    width = block.get_submodule("attn.Wo").weight.shape[0]
    for place, target in enumerate(TARGETS):
        module = block.get_submodule(modules.get(target, "attn.Wqkv"))
        part = slice(place * width, (place + 1) * width) if target not in modules else slice(None)
        key = f"{layer}_{target}"
        scale = tensors.get(f"scales.{key}")
        if scale is not None and target in getattr(config, "inputs", ()):
            module.register_forward_pre_hook(lambda module, inputs, scale=scale: (inputs[0] * scale,))
        elif scale is not None:

            def multiply(
                module: nn.Module, inputs: object, output: Tensor, part: slice = part, scale: Tensor = scale
            ) -> Tensor:
                output = output.clone()
                output[..., part] = output[..., part] * scale
                return output

            module.register_forward_hook(multiply)
        if f"products.{key}.lora_a" in tensors:
            assert isinstance(config, LoraConfig)
            a, b = tensors[f"products.{key}.lora_a"], tensors[f"products.{key}.lora_b"]
            factor = config.alpha / (math.sqrt(len(a)) if config.rslora else len(a))

            def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor, part: slice = part,
                    a: Tensor = a, b: Tensor = b, factor: float = factor) -> Tensor:  # fmt: skip
                output = output.clone()
                output[..., part] = output[..., part] + factor * (inputs[0] @ a.T @ b.T)
                return output

            module.register_forward_hook(add)
    if not isinstance(config, AdapterConfig):
        return

    def squeeze(place: str, x: Tensor) -> Tensor:
        key = f"{layer}_{place}"
        return fused(key, x) if fused is not None else _squeeze(tensors, key, config, x)

    before: list[Tensor] = []
    if config.placement == "houlsby":
        for place, name in (("attention", "attn.Wo"), ("ffn", "mlp.Wo")):
            block.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, place=place: output + squeeze(place, output)
            )
    elif config.placement == "after_layer":
        block.register_forward_hook(lambda module, inputs, output: output + squeeze("ffn", output))
    else:
        block.get_submodule("mlp_norm").register_forward_pre_hook(lambda module, inputs: before.append(inputs[0]))
        block.get_submodule("mlp.Wo").register_forward_hook(
            lambda module, inputs, output: output + squeeze("ffn", before.pop())
        )
