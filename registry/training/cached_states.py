"""States below the lowest adapter of a training, computed once for all epochs.

A frozen encoder gives the same states for the same rows every time, so a set that begins above layer 0 (``layers``)
starts from states kept in memory. They belong to one call of the training: one encoder in one dtype on one device, one
list of token rows, one layer. So there is no key to get wrong, and nothing outlives what it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy
import torch
from torch import Tensor

from registry.model.batching import Batch, TokenRows, TokensOnDemand, sorted_batches
from registry.model.encoder import Encoder

MOST_BYTES = 2 * 2**30  # of states kept; more rows than that are computed anew at every step
BATCH_TOKENS, BATCH_ROWS = 8_192, 64


class CachedStates:
    """The states that enter one layer, of all tokens of all rows.

    Args:
        encoder: frozen.
        rows: what will be trained on.
        layer: the lowest layer with an adapter; at least 1.
    """

    def __init__(self, encoder: Encoder, rows: TokenRows | TokensOnDemand, layer: int) -> None:
        self.layer = layer
        lengths = rows.lengths
        self._starts = numpy.concatenate([[0], numpy.cumsum(lengths)])
        word = encoder.embeddings.word.weight
        self._states = torch.empty(sum(lengths), encoder.hidden_size, dtype=word.dtype, device=word.device)
        with torch.no_grad():
            for indices in sorted_batches(lengths, BATCH_TOKENS, BATCH_ROWS):
                batch = Batch.pack(rows.take(indices), device=word.device)
                tokens = self._tokens([indices[row] for row in batch.order.tolist()])
                self._states[tokens] = encoder.below(layer, batch)

    @staticmethod
    def fits(encoder: Encoder, parts: Iterable[TokenRows | TokensOnDemand]) -> bool:
        """Return whether the states of all these rows are few enough to keep."""
        tokens = sum(sum(rows.lengths) for rows in parts)
        return tokens * encoder.hidden_size * encoder.embeddings.word.weight.element_size() <= MOST_BYTES

    def of(self, indices: Sequence[int]) -> Tensor:
        """Return the (n, H) states of the tokens of the rows at ``indices``, row after row."""
        return self._states.index_select(0, self._tokens(indices))

    def _tokens(self, indices: Sequence[int]) -> Tensor:
        places = [numpy.arange(self._starts[row], self._starts[row + 1]) for row in indices]
        return torch.from_numpy(numpy.concatenate(places)).to(self._states.device)


def packed_order(batch: Batch) -> Tensor:
    """Return (N,) where each packed token of a batch is among the tokens of its rows in the caller's order."""
    order = batch.order.tolist()
    lengths = numpy.empty(len(order), dtype=numpy.int64)
    lengths[order] = batch.row_tokens
    starts = numpy.concatenate([[0], numpy.cumsum(lengths)])
    places = [numpy.arange(starts[row], starts[row + 1]) for row in order]
    return torch.from_numpy(numpy.concatenate(places)).to(batch.input_ids.device)
