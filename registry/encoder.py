"""A transformer encoder over packed tokens, built from a stock transformers model's own weights.

The forward is written in the order data flows and takes the adapters as an argument; there is no active-adapter
state. Whether it is frozen is not its business: ``Backbone`` freezes one, full fine-tuning trains a copy.

Shapes: B rows, T tokens of a row, N tokens of all rows, H hidden size, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from registry.adapters import Adapters, AdapterSet, NoAdapters
from registry.attention import attend
from registry.batching import Batch
from registry.errors import ShapeMismatchError
from registry.families import FAMILIES, Family

NO_ADAPTERS = NoAdapters()


class Embeddings(nn.Module):
    """Word, position and token-type embeddings, summed and normalised."""

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        super().__init__()
        self.word = _part(model, family.word, nn.Embedding)
        self.position = _part(model, family.position, nn.Embedding)
        self.token_type = _part(model, family.token_type, nn.Embedding) if family.token_type else None
        self.norm = _part(model, family.embedding_norm, nn.LayerNorm)
        projected = family.projection is not None and hasattr(model, family.projection)
        self.projection = _part(model, str(family.projection), nn.Linear) if projected else None
        self.first_position = model.config.pad_token_id + 1 if family.positions_after_padding else 0
        self.dropout = float(getattr(model.config, family.state_dropout))

    def forward(self, batch: Batch) -> Tensor:
        """Return the (N, H) states that enter the first layer."""
        x = self.word(batch.input_ids) + self.position(batch.positions + self.first_position)
        if self.token_type is not None:
            x = x + self.token_type(batch.type_ids)
        x = F.dropout(self.norm(x), self.dropout, self.training)
        return x if self.projection is None else self.projection(x)


class EncoderLayer(nn.Module):
    """One layer: attention and feed-forward, each followed by the seam where adapters join."""

    def __init__(self, layer: nn.Module, family: Family, config: PretrainedConfig) -> None:
        super().__init__()
        self.qkv = _fuse([_part(layer, name, nn.Linear) for name in (family.query, family.key, family.value)])
        self.attention_dense = _part(layer, family.attention_dense, nn.Linear)
        self.attention_norm = _part(layer, family.attention_norm, nn.LayerNorm)
        self.ffn_in = _part(layer, family.ffn_in, nn.Linear)
        self.activation: Callable[[Tensor], Tensor] = ACT2FN[getattr(config, family.activation)]
        self.ffn_out = _part(layer, family.ffn_out, nn.Linear)
        self.ffn_norm = _part(layer, family.ffn_norm, nn.LayerNorm)
        self.heads = config.num_attention_heads
        self.dropout = float(getattr(config, family.state_dropout))
        self.attention_dropout = float(getattr(config, family.attention_dropout))

    def forward(self, x: Tensor, index: int, batch: Batch, adapters: Adapters) -> Tensor:
        """Return the (N, H) states after this layer, the ``index``-th."""
        gathered = attend(self.qkv(x), batch, self.heads, self.attention_dropout if self.training else 0.0)
        a = F.dropout(self.attention_dense(gathered), self.dropout, self.training)  # (N, H)
        x = adapters.join(index, "attention", a, x, self.attention_norm)
        f = self.ffn_out(self.activation(self.ffn_in(x)))  # (N, H)
        return adapters.join(index, "ffn", F.dropout(f, self.dropout, self.training), x, self.ffn_norm)


class Encoder(nn.Module):
    """Embeddings, layers and (where the checkpoint has one) the pooler of one model.

    Args:
        model: a base model of one of ``FAMILIES``; its modules are taken over, the model itself is done with.
        has_pooler: whether the checkpoint held the pooler's weights.
    """

    def __init__(self, model: PreTrainedModel, *, has_pooler: bool) -> None:
        super().__init__()
        config = model.config
        family = FAMILIES[config.model_type]
        self.config = config
        self.hidden_size: int = config.hidden_size
        self.embeddings = Embeddings(model, family)
        layers = _part(model, family.layers, nn.ModuleList)
        self.layers = nn.ModuleList(EncoderLayer(layer, family, config) for layer in layers)
        self.pooler = _part(model, family.pooler, nn.Linear) if has_pooler and family.pooler else None

    @property
    def max_length(self) -> int:
        """Return the longest row, in tokens, that the position embeddings allow."""
        return int(self.embeddings.position.num_embeddings) - self.embeddings.first_position

    @property
    def parameter_count(self) -> int:
        """Return the number of elements, the pooler's included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, batch: Batch, adapters: Adapters | None = None) -> Tensor:
        """Return the last layer's states of all tokens.

        Args:
            batch: packed tokens on this encoder's device.
            adapters: what joins at the seams; None is the plain encoder.

        Returns:
            (N, H), in this encoder's dtype.
        """
        joined = adapters if adapters is not None else NO_ADAPTERS
        x = self.embeddings(batch)  # (N, H)
        for index, layer in enumerate(self.layers):
            x = layer(x, index, batch, joined)
        hidden: Tensor = x
        return hidden

    def pool(self, hidden: Tensor, batch: Batch, pooling: str) -> Tensor:
        """Return one (B, H) float32 state per row, in packed order.

        Args:
            hidden: (N, H) states of all tokens.
            batch: the rows those tokens belong to.
            pooling: ``cls``, ``mean`` or ``pooler``; the last needs a checkpoint with a pooler.
        """
        if pooling == "mean":
            return torch.segment_reduce(hidden.float(), "mean", lengths=batch.lengths, axis=0, unsafe=True)
        first = hidden[batch.row_starts[:-1].long()]  # (B, H)
        if pooling == "pooler" and self.pooler is not None:
            first = torch.tanh(self.pooler(first))
        return first.float()

    def start_layer_norms(self, adapter_set: AdapterSet) -> None:
        """Give a set's own layer norms, where it has any, this encoder's weights as their start."""
        for index, layer in enumerate(self.layers):
            attention_norm, ffn_norm = layer.get_submodule("attention_norm"), layer.get_submodule("ffn_norm")
            adapter_set.adapter.start_norms(index, attention_norm, ffn_norm)


Part = TypeVar("Part", bound=nn.Module)


def _part(module: nn.Module, dotted: str, kind: type[Part]) -> Part:
    found = module.get_submodule(dotted)
    if not isinstance(found, kind):
        raise ShapeMismatchError(dotted, kind.__name__, type(found).__name__)
    return found


def _fuse(linears: list[nn.Linear]) -> nn.Linear:
    """Return one linear layer whose outputs are those of all, side by side: one product instead of three."""
    fused = nn.Linear(linears[0].in_features, sum(linear.out_features for linear in linears))
    fused.weight = nn.Parameter(torch.cat([linear.weight.detach() for linear in linears]))
    fused.bias = nn.Parameter(torch.cat([linear.bias.detach() for linear in linears]))
    return fused
