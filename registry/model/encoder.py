"""A transformer encoder over packed tokens, built from a transformers checkpoint's own weights.

The forward is written in the order data flows and takes the adapters as an argument; there is no active-adapter
state. Whether it is frozen is not its business: ``Backbone`` freezes one, full fine-tuning trains a copy.

Shapes: B rows, T tokens of a row, N tokens of all rows, H hidden size, L layers.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.interface import (
    ATTENTION_DENSE,
    FFN_IN,
    FFN_OUT,
    KEY_VALUE,
    QUERY,
    QUERY_KEY_VALUE,
    Adapters,
    NoAdapters,
)
from registry.config import AdapterConfig, BitFitConfig, FusionConfig, LoraConfig, MethodConfig
from registry.model.attention import attend, attend_from_first
from registry.model.batching import Batch
from registry.model.families import ENCODER_ACTIVATIONS, FAMILIES, Family
from registry.model.modernbert import ModernEmbeddings, ModernLayer
from registry.model.pretrained import Weights
from registry.model.relative_positions import Disentangled, RelativeBias, RelativePositions
from registry.validation import require

NO_ADAPTERS = NoAdapters()


class Embeddings(nn.Module):
    """Word, position and token-type embeddings, summed and normalised."""

    def __init__(self, weights: Weights, family: Family, config: PretrainedConfig) -> None:
        super().__init__()
        projected = family.projection is not None and weights.has(family.projection)
        width = config.embedding_size if projected else config.hidden_size
        self.word = weights.embedding(family.word, width)
        has_positions = not family.disentangled or config.position_biased_input
        self.position = weights.embedding(family.position, width) if has_positions else None
        has_types = family.token_type is not None and (not family.disentangled or config.type_vocab_size > 0)
        self.token_type = weights.embedding(str(family.token_type), width) if has_types else None
        self.norm = weights.norm(family.embedding_norm, width, _norm_eps(config))
        self.projection = weights.linear([str(family.projection)], width, config.hidden_size) if projected else None
        self.first_position = config.pad_token_id + 1 if family.positions_after_padding else 0
        self.dropout = float(getattr(config, family.state_dropout))

    def forward(self, batch: Batch) -> Tensor:
        """Return the (N, H) states that enter the first layer."""
        x = self.word(batch.input_ids)
        if self.position is not None:
            x = x + self.position(batch.positions + self.first_position)
        if self.token_type is not None:
            x = x + self.token_type(batch.type_ids)
        x = F.dropout(self.norm(x), self.dropout, self.training)
        return x if self.projection is None else self.projection(x)


class EncoderLayer(nn.Module):
    """One layer: attention and feed-forward, each followed by a seam; adapters act on its products, keys and seams."""

    def __init__(
        self,
        weights: Weights,
        prefix: str,
        family: Family,
        config: PretrainedConfig,
        relative: RelativeBias | RelativePositions | None = None,
    ) -> None:
        super().__init__()
        self.relative = relative if isinstance(relative, RelativeBias) else None
        h, inner, eps = config.hidden_size, intermediate_size(config), _norm_eps(config)
        names = [prefix + name for name in (family.query, family.key, family.value)]
        self.qkv = weights.linear(names, h, h)  # one product instead of three
        self.attention_dense = weights.linear([prefix + family.attention_dense], h, h)
        self.attention_norm = weights.norm(prefix + family.attention_norm, h, eps)
        self.ffn_in = weights.linear([prefix + family.ffn_in], h, inner)
        self.activation = ENCODER_ACTIVATIONS[getattr(config, family.activation)]
        self.ffn_out = weights.linear([prefix + family.ffn_out], inner, h)
        self.ffn_norm = weights.norm(prefix + family.ffn_norm, h, eps)
        self.heads: int = config.num_attention_heads
        self.disentangled: Disentangled | None = None
        if isinstance(relative, RelativePositions):
            self.disentangled = Disentangled(weights, prefix, config, relative, self.qkv)
        self.dropout = float(getattr(config, family.state_dropout))
        self.attention_dropout = float(getattr(config, family.attention_dropout))

    def forward(self, x: Tensor, index: int, batch: Batch, adapters: Adapters) -> Tensor:
        """Return the (N, H) states after this layer, the ``index``-th."""
        qkv = adapters.product(index, QUERY_KEY_VALUE, x, self.qkv)  # (N, 3H)
        dropout = self.attention_dropout if self.training else 0.0
        prefix = adapters.prefix(index, batch.row_count)
        if self.disentangled is not None:
            query, key, value = qkv.chunk(3, dim=1)
            gathered = self.disentangled(query, key, value, batch, batch.row_tokens, dropout, prefix)
        else:
            gathered = attend(qkv, batch, self.heads, dropout, prefix, self.relative)
        return self._finish(gathered, x, index, adapters)

    def first_tokens(self, x: Tensor, index: int, batch: Batch, adapters: Adapters) -> Tensor:
        """Return the (B, H) states of the rows' first tokens after this layer: all that some poolings ask of the last.

        Keys and values are needed of every token; queries and what follows them of the first alone.
        """
        width, rows = x.shape[1], adapters.on_rows()
        first = x.index_select(0, batch.first_tokens)  # (B, H)
        weight, bias = self.qkv.weight, self.qkv.bias
        query = rows.product(index, QUERY, first, lambda states: F.linear(states, weight[:width], bias[:width]))
        key_value = adapters.product(  # (N, 2H)
            index, KEY_VALUE, x, lambda states: F.linear(states, weight[width:], bias[width:])
        )
        prefix = adapters.prefix(index, batch.row_count)
        if self.disentangled is not None:
            key, value = key_value.chunk(2, dim=1)
            gathered = self.disentangled(query, key, value, batch, (1,) * len(query), prefix=prefix)
        else:
            gathered = attend_from_first(query, key_value, batch, self.heads, prefix, self.relative)
        return self._finish(gathered, first, index, rows)

    def _finish(self, gathered: Tensor, x: Tensor, index: int, adapters: Adapters) -> Tensor:
        """Return the states after the projection of what attention gathered and the feed-forward part."""
        a = adapters.product(index, ATTENTION_DENSE, gathered, self.attention_dense)  # (N, H)
        x = adapters.join(index, "attention", F.dropout(a, self.dropout, self.training), x, self.attention_norm)
        inner = self.activation(adapters.product(index, FFN_IN, x, self.ffn_in))
        f = adapters.product(index, FFN_OUT, inner, self.ffn_out)  # (N, H)
        return adapters.join(index, "ffn", F.dropout(f, self.dropout, self.training), x, self.ffn_norm)


class Encoder(nn.Module):
    """Embeddings, layers and (where the checkpoint has one) the pooler of one model.

    Args:
        weights: of the checkpoint's encoder; all of them must have a place here.
        config: the checkpoint's, of one of ``FAMILIES``.

    Raises:
        IntegrityError: a tensor is missing, left over, or of another shape than the configuration says.
    """

    def __init__(self, weights: Weights, config: PretrainedConfig) -> None:
        super().__init__()
        family = FAMILIES[config.model_type]
        self.config = config
        self.hidden_size: int = config.hidden_size
        self.is_pre_norm = family.pre_norm
        self.embeddings = (
            ModernEmbeddings(weights, family, config) if family.pre_norm else Embeddings(weights, family, config)
        )
        self.layers = nn.ModuleList(_make_layers(weights, family, config))
        last = family.last_norm
        self.last_norm = (
            None if last is None else weights.norm(last, config.hidden_size, config.norm_eps, config.norm_bias)
        )
        has_pooler = family.pooler is not None and weights.has(family.pooler)
        h = self.hidden_size
        self.pooler = weights.linear([str(family.pooler)], h, h) if has_pooler else None
        weights.check_all_taken()

    @property
    def max_length(self) -> int:
        """Return the longest row, in tokens, that the position embeddings allow."""
        if isinstance(self.embeddings, ModernEmbeddings) or self.embeddings.position is None:
            return int(self.config.max_position_embeddings)
        return int(self.embeddings.position.num_embeddings) - self.embeddings.first_position

    @property
    def token_types(self) -> int:
        """Return how many token types the embeddings know; 1 where they have none."""
        table = None if isinstance(self.embeddings, ModernEmbeddings) else self.embeddings.token_type
        return 1 if table is None else table.num_embeddings

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
        x = self._run(self.embeddings(batch), batch, adapters or NO_ADAPTERS, range(len(self.layers)))
        return x if self.last_norm is None else self.last_norm(x)

    def below(self, layer: int, batch: Batch) -> Tensor:
        """Return the (N, H) states that enter the ``layer``-th layer where no adapter joins before it."""
        return self._run(self.embeddings(batch), batch, NO_ADAPTERS, range(layer))

    def pooled(
        self,
        batch: Batch,
        adapters: Adapters,
        poolings: Collection[str],
        entering: Tensor | None = None,
        layer: int = 0,
    ) -> dict[str, Tensor]:
        """Return one (B, H) float32 state per row, in packed order, for each of the ``poolings``.

        Args:
            batch: packed tokens on this encoder's device.
            adapters: what joins at the seams.
            poolings: ``cls``, ``mean`` or ``pooler``; the last needs a checkpoint with a pooler.
            entering: (N, H) states that enter the ``layer``-th layer; None starts with the embeddings.
        """
        x = self.embeddings(batch) if entering is None else entering
        last = len(self.layers) - 1
        if "mean" in poolings or self.training or layer > last:
            x = self._run(x, batch, adapters, range(layer, last + 1))
            x = x if self.last_norm is None else self.last_norm(x)
            return {pooling: self.pool(x, batch, pooling) for pooling in poolings}
        x = self._run(x, batch, adapters, range(layer, last))
        first = self.layers[last].first_tokens(x, last, batch, adapters)  # type: ignore[operator]
        first = first if self.last_norm is None else self.last_norm(first)
        return {pooling: self._pool_first(first, pooling) for pooling in poolings}

    def pool(self, hidden: Tensor, batch: Batch, pooling: str) -> Tensor:
        """Return one (B, H) float32 state per row, in packed order.

        Args:
            hidden: (N, H) states of all tokens.
            batch: the rows those tokens belong to.
            pooling: ``cls``, ``mean`` or ``pooler``; the last needs a checkpoint with a pooler.
        """
        if pooling == "mean":
            return row_means(hidden.float(), batch)
        return self._pool_first(hidden.index_select(0, batch.first_tokens), pooling)

    def _pool_first(self, first: Tensor, pooling: str) -> Tensor:
        """Return what the (B, H) states of the first tokens are pooled to."""
        if pooling == "pooler" and self.pooler is not None:
            first = torch.tanh(self.pooler(first))
        return first.float()

    def _run(self, x: Tensor, batch: Batch, adapters: Adapters, layers: range) -> Tensor:
        for index in layers:
            x = self.layers[index](x, index, batch, adapters)
        return x

    def check_method(self, adapter: MethodConfig | None) -> None:
        """Refuse a method that is not defined on this family.

        Raises:
            ConfigError: norms of a task's own or a placement within a norm where sub-layers end without one, or a
                change of biases where there are none.
        """
        biases = self.layers[0].get_submodule("ffn_out").bias is not None
        family = str(self.config.model_type)
        shape = adapter.members[0].adapter if isinstance(adapter, FusionConfig) else adapter
        if isinstance(shape, AdapterConfig) and self.is_pre_norm:
            known = ("after_layer", "houlsby", "parallel")
            require(shape.placement in known, "placement", f"{', '.join(known)} for {family}", shape.placement)
            require(not shape.layer_norms, "layer_norms", f"none for {family}, which has none at the seams", True)
        changes = isinstance(adapter, BitFitConfig) or (isinstance(adapter, LoraConfig) and adapter.bias != "none")
        require(biases or not changes, "bias", f"no change of biases for {family}, which has none", str(adapter))

    def start_layer_norms(self, adapter_set: AdapterSet) -> None:
        """Give a set's own layer norms, where it has any, this encoder's weights as their start."""
        for index, layer in enumerate(self.layers):
            attention_norm, ffn_norm = layer.get_submodule("attention_norm"), layer.get_submodule("ffn_norm")
            adapter_set.adapter.start_norms(index, attention_norm, ffn_norm)


def _make_layers(weights: Weights, family: Family, config: PretrainedConfig) -> list[nn.Module]:
    """Return L layers; those of one group are one and the same module."""
    count = int(config.num_hidden_layers)
    if family.pre_norm:
        return [ModernLayer(weights, f"{family.layers}.{index}.", family, config, index) for index in range(count)]
    relative: RelativeBias | RelativePositions | None = None
    if family.disentangled:
        relative = RelativePositions(weights, config)
    if family.relative is not None:
        relative = RelativeBias(weights.embedding(family.relative, config.num_attention_heads))
    if family.groups is None:
        prefixes = [f"{family.layers}.{index}." for index in range(count)]
        return [EncoderLayer(weights, prefix, family, config, relative) for prefix in prefixes]
    groups = int(config.num_hidden_groups)
    made = [
        EncoderLayer(weights, f"{family.groups}.{group}.albert_layers.0.", family, config) for group in range(groups)
    ]
    return [made[index * groups // count] for index in range(count)]


def row_means(hidden: Tensor, batch: Batch) -> Tensor:
    """Return the (B, H) mean over each row's tokens of (N, H) states, the same bits at every call."""
    if hidden.device.type == "mps":  # torch has no segment_reduce there
        rows = torch.repeat_interleave(batch.lengths)  # (N,) row of each token
        sums = hidden.new_zeros(batch.row_count, hidden.shape[1]).index_add(0, rows, hidden)
        return sums / batch.lengths.unsqueeze(1)
    return torch.segment_reduce(hidden, "mean", lengths=batch.lengths, axis=0, unsafe=True)


def intermediate_size(config: PretrainedConfig) -> int:
    """Return the width inside the feed-forward part, under either of its names."""
    return int(getattr(config, "intermediate_size", None) or config.hidden_dim)


def inner_sizes(config: PretrainedConfig) -> tuple[int, int]:
    """Return how many elements leave the feed-forward part's first product, and how many enter its second."""
    inner = intermediate_size(config)
    return (2 * inner if FAMILIES[config.model_type].pre_norm else inner), inner


def _norm_eps(config: PretrainedConfig) -> float:
    return float(getattr(config, "layer_norm_eps", 1e-12))  # DistilBERT's is fixed at this value
