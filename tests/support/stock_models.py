"""The independent reference of the encoder tests: a stock transformers model, fed rows padded to one length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from registry.adapters.interface import Adapters
from registry.model.batching import Batch, TokenRows
from registry.model.encoder import Encoder
from registry.model.pretrained import Weights

LENGTHS = (7, 3, 64, 12, 3, 29, 12, 1)


def random_rows(lengths: Sequence[int] = LENGTHS, seed: int = 0, words: int = 160, pairs: bool = True) -> TokenRows:
    """Return rows of random token ids; the second half of each is of type 1 if ``pairs``."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(5, words, (length,), generator=generator).tolist() for length in lengths]
    types = [[int(pairs and place >= length // 2) for place in range(length)] for length in lengths]
    return TokenRows(ids, types)


@torch.no_grad()
def stock_output(model: PreTrainedModel, rows: TokenRows) -> tuple[list[Tensor], Tensor | None]:
    """Return the (T, H) states of each row, and the (B, H) pooler output where the model has a pooler."""
    longest = max(len(ids) for ids in rows.input_ids)
    pad = model.config.pad_token_id
    inputs = {
        "input_ids": torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in rows.input_ids]),
        "attention_mask": torch.tensor([[int(t < len(ids)) for t in range(longest)] for ids in rows.input_ids]),
        "token_type_ids": torch.tensor([[*kinds, *[0] * (longest - len(kinds))] for kinds in rows.type_ids]),
    }
    if model.config.model_type in ("distilbert", "mpnet", "modernbert"):
        del inputs["token_type_ids"]
    output = model(**inputs)
    states = output.last_hidden_state
    return [states[row, : len(ids)] for row, ids in enumerate(rows.input_ids)], getattr(output, "pooler_output", None)


def stock_states(model: PreTrainedModel, rows: TokenRows) -> list[Tensor]:
    """Return the (T, H) states of each row after the stock model's last layer."""
    return stock_output(model, rows)[0]


def encoder_of(model: PreTrainedModel) -> Encoder:
    """Return our encoder made of the model's own weights, as it answers."""
    return Encoder(Weights(model.state_dict(), type(model).__name__), model.config).eval()


@torch.no_grad()
def our_states(encoder: Encoder, rows: TokenRows, adapters: Adapters | None = None) -> list[Tensor]:
    """Return the (T, H) states of each row of one packed batch, in the caller's order."""
    batch = Batch.pack(rows, device=encoder.embeddings.word.weight.device)
    return unpack(encoder(batch, adapters), batch)


def unpack(hidden: Tensor, batch: Batch) -> list[Tensor]:
    """Return the (T, H) states of each row in the caller's order, on the CPU in float32."""
    packed = torch.split(hidden.detach().float().cpu(), batch.lengths.tolist())
    return [states for _, states in sorted(zip(batch.order.tolist(), packed, strict=True), key=lambda pair: pair[0])]


def difference(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of any state of any row."""
    pairs = zip(expected, actual, strict=True)
    return max(float((a.detach().float().cpu() - b.detach().float().cpu()).abs().max()) for a, b in pairs)
