"""Relative positions: MPNet's biases of scores, and DeBERTa's disentangled attention, versions 2 and 3.

Both have one learned table for all layers, and a prefix has no position. DeBERTa scores content with content, content
with position, and position with content; what a set changes of queries and keys, it changes of the tokens' states, and
the positions' own queries and keys stay the frozen ones.

Sources: Raffel et al. 2020, section 2.1; He et al. 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention",
section 3.1; modeling_mpnet.py and modeling_deberta_v2.py of transformers 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig

from registry.adapters.interface import Prefix
from registry.model.attention import equal_rows, is_slow_backwards
from registry.model.batching import Batch
from registry.model.pretrained import Weights


class RelativeBias(nn.Module):
    """What is added to the scores of two tokens by how far apart they are, for each head; all layers share it.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 2.1; as MPNet has it.
    """

    _FARTHEST = 128  # places beyond which all are one bucket
    _LENGTHS = 32  # whose tables are kept

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self._kept: dict[int, Tensor] = {}

    def forward(self, length: int) -> Tensor:
        """Return (heads, length, length)."""
        if self.table.weight.requires_grad:
            self._kept = {}
            return self._bias(length)
        bias = self._kept.get(length)
        if bias is None:
            with torch.inference_mode(False), torch.no_grad():  # it outlives the call that made it
                bias = self._bias(length)
            self._kept = {**(self._kept if len(self._kept) < self._LENGTHS else {}), length: bias}
        return bias

    def _bias(self, length: int) -> Tensor:
        places = torch.arange(length, device=self.table.weight.device)
        bias: Tensor = self.table(self._buckets(places[None, :] - places[:, None])).permute(2, 0, 1)
        return bias

    def _buckets(self, distance: Tensor) -> Tensor:
        """Return the rows of the table: one each for near places, wider ones farther off, before and after apart."""
        half = self.table.num_embeddings // 2
        exact, far = half // 2, distance.abs()
        scale = math.log(self._FARTHEST / exact)
        wide = exact + (torch.log(far.clamp(min=1).float() / exact) / scale * (half - exact)).long()
        return half * (distance > 0) + torch.where(far < exact, far, wide.clamp(max=half - 1))

    def _apply(self, fn: Any, recurse: bool = True) -> RelativeBias:
        self._kept = {}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class RelativePositions(nn.Module):
    """The table of relative positions that all layers share: (2 span, H), near ones one by one, far ones in buckets."""

    def __init__(self, weights: Weights, config: PretrainedConfig) -> None:
        super().__init__()
        self.table = weights.embedding("encoder.rel_embeddings", config.hidden_size)
        normed = "layer_norm" in str(config.norm_rel_ebd)
        eps = float(config.layer_norm_eps)
        self.norm = weights.norm("encoder.LayerNorm", config.hidden_size, eps) if normed else None
        farthest = int(config.max_relative_positions)
        self.farthest = farthest if farthest >= 1 else int(config.max_position_embeddings)
        self.buckets = int(config.position_buckets)
        self.span = self.buckets if self.buckets > 0 else self.farthest

    def forward(self) -> Tensor:
        """Return the (2 span, H) states of the positions."""
        table = self.table.weight[: 2 * self.span]
        return table if self.norm is None else self.norm(table)

    def rows(self, length: int) -> Tensor:
        """Return (length, length) rows of the table, for a token in each place looking at one in each place."""
        places = torch.arange(length, device=self.table.weight.device)
        apart = places[:, None] - places[None, :]
        if self.buckets > 0 and self.farthest > 0:
            apart = self._bucket(apart)
        return (apart + self.span).clamp(0, 2 * self.span - 1)

    def _bucket(self, apart: Tensor) -> Tensor:
        middle = self.buckets // 2
        near = (apart < middle) & (apart > -middle)
        far = torch.where(near, torch.full_like(apart, middle - 1), apart.abs())
        scale = torch.log(torch.tensor((self.farthest - 1) / middle))
        wide = torch.ceil(torch.log(far / middle) / scale * (middle - 1)) + middle
        return torch.where(far <= middle, apart.to(wide.dtype), wide * torch.sign(apart)).long()


class Disentangled(nn.Module):
    """The attention of one layer but for its products of the tokens.

    Args:
        weights, prefix, config: of the checkpoint and the layer.
        positions: what all layers share.
        qkv: the layer's own product, which positions go through where they share it.
    """

    def __init__(
        self, weights: Weights, prefix: str, config: PretrainedConfig, positions: RelativePositions, qkv: nn.Linear
    ) -> None:
        super().__init__()
        h = config.hidden_size
        kinds = config.pos_att_type or ()
        self.heads: int = config.num_attention_heads
        self.to_position, self.from_position = "c2p" in kinds, "p2c" in kinds
        self.scale = 1 / math.sqrt(h // self.heads * (1 + self.to_position + self.from_position))
        self.positions = positions
        self._qkv = (qkv,)  # in a tuple, so that it is no sub-module twice
        shares = bool(config.share_att_key)
        own = f"{prefix}attention.self."
        self.key = weights.linear([f"{own}pos_key_proj"], h, h) if self.to_position and not shares else None
        self.query = weights.linear([f"{own}pos_query_proj"], h, h) if self.from_position and not shares else None
        self._kept: tuple[Tensor | None, Tensor | None] | None = None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        batch: Batch,
        asking: Sequence[int],
        dropout: float = 0.0,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """Return (Q, H) of what the queries gather from the tokens of their row, heads joined.

        Args:
            query: (Q, H), of each row the first ``asking`` tokens.
            key, value: (N, H), of all tokens.
            batch: says where rows begin.
            asking: (B,) queries of each row.
            dropout: share of attention weights dropped; only an encoder in fine-tuning has any.
            prefix: keys and values in front of each row's.
        """
        dtype = query.dtype
        of_positions = self._of_positions()
        if is_slow_backwards(query):
            query, key, value = query.float(), key.float(), value.float()
        keys_of, queries_of = (None if each is None else each.to(query.dtype) for each in of_positions)
        counts = (0,) * batch.row_count if prefix is None else prefix.counts
        parts = []
        with torch.autocast(query.device.type, enabled=False):
            for run in equal_rows(counts, batch.row_tokens, asking):
                queries, keys, values = run.by_head(query, key, value, self.heads)
                bias = self._bias(queries, keys, keys_of, queries_of)
                if prefix is not None and run.prefix[1] > run.prefix[0]:
                    keys, values = run.after(prefix, keys, values)
                    bias = F.pad(bias, (keys.shape[2] - bias.shape[3], 0))
                mixed = F.scaled_dot_product_attention(
                    queries, keys, values, attn_mask=bias, dropout_p=dropout, scale=self.scale
                )
                parts.append(mixed.transpose(1, 2).reshape(-1, query.shape[1]).to(dtype))
        return torch.cat(parts)

    def _bias(self, queries: Tensor, keys: Tensor, keys_of: Tensor | None, queries_of: Tensor | None) -> Tensor:
        """Return (rows, heads, queries, keys) of the scores that have a position in them."""
        asked, length = queries.shape[2], keys.shape[2]
        rows = self.positions.rows(length)[:asked]  # (queries, keys)
        first, last = int(rows.min()), int(rows.max()) + 1  # of so few places most of the table is not asked
        index = (rows - first).expand(*queries.shape[:2], -1, -1)
        bias = queries.new_zeros(*queries.shape[:3], length)
        if keys_of is not None:
            bias = bias + torch.gather(queries @ keys_of[:, first:last].transpose(1, 2), 3, index)
        if queries_of is not None:
            scores = keys @ queries_of[:, first:last].transpose(1, 2)  # (rows, heads, keys, places)
            bias = bias + torch.gather(scores, 3, index.transpose(2, 3)).transpose(2, 3)
        return bias * self.scale

    def _of_positions(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the (heads, 2 span, D) keys and queries of the positions, computed once while nothing trains."""
        table = self.positions.table.weight
        if table.requires_grad:
            self._kept = None
            return self._project_positions()
        if self._kept is None:
            # It outlives the call that made it, and the autocast of that call.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(table.device.type, enabled=False):
                self._kept = self._project_positions()
        return self._kept

    def _project_positions(self) -> tuple[Tensor | None, Tensor | None]:
        qkv, table = self._qkv[0], self.positions()
        width = table.shape[1]

        def product(own: nn.Linear | None, part: int) -> Tensor:
            if own is not None:
                states = own(table)
            else:
                rows = slice(part * width, (part + 1) * width)
                states = F.linear(table, qkv.weight[rows], qkv.bias[rows])
            by_head: Tensor = states.view(len(table), self.heads, -1).transpose(0, 1)
            return by_head

        return (
            product(self.key, 1) if self.to_position else None,
            product(self.query, 0) if self.from_position else None,
        )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Disentangled:
        self._kept = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave what was computed behind: a copy may train."""
        return {**self.__dict__, "_kept": None}
