"""ModernBERT's forward: norms before the sub-layers, rotary positions, local and global attention, a gated inner part.

The same places for adapters as in encoder.py; at a seam, the sum of what a sub-layer gave and was given is not
normalised, so placements that normalise there twice and norms of a task's own are not defined.

Source: Warner et al. 2024, "Smarter, Better, Faster, Longer"; modeling_modernbert.py of transformers 5.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig

from registry.adapters.interface import (
    ATTENTION_DENSE,
    FFN_IN,
    FFN_OUT,
    KEY_VALUE,
    QUERY,
    QUERY_KEY_VALUE,
    Adapters,
)
from registry.model.attention import Bias, attend, attend_from_first, attend_in_window, window_mask
from registry.model.batching import Batch
from registry.model.families import ENCODER_ACTIVATIONS, Family
from registry.model.pretrained import Weights

# What stands at a seam in the place of a norm.
NOTHING = cast(nn.LayerNorm, nn.Identity())


class ModernEmbeddings(nn.Module):
    """Word embeddings, normalised; positions come in the layers."""

    def __init__(self, weights: Weights, family: Family, config: PretrainedConfig) -> None:
        super().__init__()
        self.word = weights.embedding(family.word, config.hidden_size)
        self.norm = weights.norm(family.embedding_norm, config.hidden_size, config.norm_eps, config.norm_bias)
        self.dropout = float(config.embedding_dropout)

    def forward(self, batch: Batch) -> Tensor:
        """Return the (N, H) states that enter the first layer."""
        return F.dropout(self.norm(self.word(batch.input_ids)), self.dropout, self.training)


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021): queries and keys turned by angles that grow with their place."""

    def __init__(self, size: int, theta: float) -> None:
        super().__init__()
        self.size, self.theta = size, theta

    def forward(self, states: Tensor, positions: Tensor) -> Tensor:
        """Return (N, parts, heads, D) states of which all are turned by the angles of their (N,) positions."""
        places = torch.arange(0, self.size, 2, device=states.device).float() / self.size
        angles = positions.float()[:, None] / self.theta**places  # (N, D / 2)
        cosine, sine = (torch.cat([part, part], dim=1)[:, None, None, :] for part in (angles.cos(), angles.sin()))
        cosine, sine = cosine.to(states.dtype), sine.to(states.dtype)
        left, right = states.float().chunk(2, dim=-1)
        return (states.float() * cosine + torch.cat([-right, left], dim=-1) * sine).to(states.dtype)


class ModernLayer(nn.Module):
    """One layer: attention over all tokens or over a window, then the gated feed-forward part, each after a norm."""

    def __init__(self, weights: Weights, prefix: str, family: Family, config: PretrainedConfig, index: int) -> None:
        super().__init__()
        h, inner, eps = config.hidden_size, config.intermediate_size, config.norm_eps
        first = index == 0  # its states are normalised by the embeddings
        name = f"{prefix}{family.attention_norm}"
        self.attention_norm = nn.Identity() if first else weights.norm(name, h, eps, config.norm_bias)
        self.qkv = weights.linear([f"{prefix}attn.Wqkv"], h, 3 * h, config.attention_bias)
        self.attention_dense = weights.linear([prefix + family.attention_dense], h, h, config.attention_bias)
        self.ffn_norm = weights.norm(prefix + family.ffn_norm, h, eps, config.norm_bias)
        self.ffn_in = weights.linear([prefix + family.ffn_in], h, 2 * inner, config.mlp_bias)
        self.ffn_out = weights.linear([prefix + family.ffn_out], inner, h, config.mlp_bias)
        self.activation = ENCODER_ACTIVATIONS[config.hidden_activation]
        kind = config.layer_types[index]
        self.reach: int | None = config.local_attention // 2 if kind == "sliding_attention" else None
        self.heads: int = config.num_attention_heads
        self.rotary = Rotary(h // self.heads, config.rope_parameters[kind]["rope_theta"])
        self.attention_dropout, self.ffn_dropout = float(config.attention_dropout), float(config.mlp_dropout)

    def forward(self, x: Tensor, index: int, batch: Batch, adapters: Adapters) -> Tensor:
        """Return the (N, H) states after this layer, the ``index``-th."""
        normed = self.attention_norm(x)
        qkv = adapters.product(index, QUERY_KEY_VALUE, normed, self.qkv).view(len(x), 3, self.heads, -1)
        turned = torch.cat([self.rotary(qkv[:, :2], batch.positions), qkv[:, 2:]], dim=1).view(len(x), -1)
        dropout = self.attention_dropout if self.training else 0.0
        prefix = adapters.prefix(index, batch.row_count)
        if self.reach is not None and prefix is None:
            gathered = attend_in_window(turned, batch, self.heads, self.reach, dropout)
        else:
            gathered = attend(turned, batch, self.heads, dropout, prefix, self._bias(x))
        return self._finish(gathered, x, index, adapters)

    def first_tokens(self, x: Tensor, index: int, batch: Batch, adapters: Adapters) -> Tensor:
        """Return the (B, H) states of the rows' first tokens after this layer, whose place is 0."""
        width, rows = x.shape[1], adapters.on_rows()
        weight, whole = self.qkv.weight, self.qkv.bias
        bias = (None, None) if whole is None else (whole[:width], whole[width:])
        first, normed = x.index_select(0, batch.first_tokens), self.attention_norm(x)
        asking = self.attention_norm(first)
        query = rows.product(index, QUERY, asking, lambda states: F.linear(states, weight[:width], bias[0]))
        key_value = adapters.product(
            index, KEY_VALUE, normed, lambda states: F.linear(states, weight[width:], bias[1])
        ).view(len(x), 2, self.heads, -1)
        keys = self.rotary(key_value[:, :1], batch.positions)
        key_value = torch.cat([keys, key_value[:, 1:]], dim=1).view(len(x), -1)
        prefix = adapters.prefix(index, batch.row_count)
        gathered = attend_from_first(query, key_value, batch, self.heads, prefix, self._bias(x))
        return self._finish(gathered, first, index, rows)

    def _bias(self, x: Tensor) -> Bias | None:
        """Return what hides all tokens beyond the window; None where all are seen."""
        reach = self.reach
        if reach is None:
            return None

        def hide(length: int) -> Tensor:
            hidden = ~window_mask(length, reach, x.device)
            return torch.zeros(length, length, device=x.device).masked_fill(hidden, -torch.inf)[None]

        return hide

    def _finish(self, gathered: Tensor, x: Tensor, index: int, adapters: Adapters) -> Tensor:
        """Return the states after the projection of what attention gathered and the feed-forward part."""
        a = adapters.product(index, ATTENTION_DENSE, gathered, self.attention_dense)
        x = adapters.join(index, "attention", F.dropout(a, self.attention_dropout, self.training), x, NOTHING)
        inner, gate = adapters.product(index, FFN_IN, self.ffn_norm(x), self.ffn_in).chunk(2, dim=-1)
        gated = F.dropout(self.activation(inner) * gate, self.ffn_dropout, self.training)
        return adapters.join(index, "ffn", adapters.product(index, FFN_OUT, gated, self.ffn_out), x, NOTHING)
