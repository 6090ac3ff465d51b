"""Attention itself, of every form: what drops its weights, and the precision that it computes in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from registry.adapters.interface import Prefix
from registry.model.attention import attend, attend_in_window
from registry.model.batching import Batch
from registry.model.relative_positions import Disentangled
from tests.support.stock_models import encoder_of, random_rows
from tests.support.tiny_backbone import tiny_model

HEADS, H, REACH = 2, 32, 4
Attention = Callable[..., Tensor]


def disentangled(qkv: Tensor, batch: Batch, dropout: float = 0.0, kinds: Sequence[str] = ("c2p", "p2c")) -> Tensor:
    """Attend as a layer of a frozen DeBERTa does."""
    encoder = encoder_of(tiny_model("deberta-v2", pos_att_type=[*kinds])).requires_grad_(False)
    layer = encoder.layers[0].disentangled
    assert isinstance(layer, Disentangled)
    query, key, value = qkv.chunk(3, dim=1)
    return layer(query, key, value, batch, batch.row_tokens, dropout)


def after_prefix(qkv: Tensor, batch: Batch, dropout: float = 0.0) -> Tensor:
    """Attend with two keys and values in front of every other row."""
    counts = tuple(2 * (row % 2) for row in range(batch.row_count))
    ones = torch.ones(sum(counts), H)
    return attend(qkv, batch, HEADS, dropout, Prefix(ones, ones, counts))


FORMS: dict[str, Attention] = {
    "all": lambda qkv, batch, dropout=0.0: attend(qkv, batch, HEADS, dropout),
    "biased": lambda qkv, batch, dropout=0.0: attend(
        qkv, batch, HEADS, dropout, bias=lambda length: torch.eye(length)[None]
    ),
    "prefix": after_prefix,
    "window": lambda qkv, batch, dropout=0.0: attend_in_window(qkv, batch, HEADS, REACH, dropout),
    "disentangled": disentangled,
}


def random_states(batch: Batch) -> Tensor:
    """Return (N, 3H) queries, keys and values."""
    return torch.randn(len(batch.input_ids), 3 * H, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", FORMS)
def test_dropout_drops_weights_and_keeps_their_mean(form: str) -> None:
    """Values of one stay one without dropout; with it they change, prefix or not, and their mean stays near one."""
    batch = Batch.pack(random_rows((64,) * 12 + (12, 7, 12)))
    qkv = random_states(batch)
    qkv[:, 2 * H :] = 1.0
    assert torch.allclose(torch.ones(()), FORMS[form](qkv, batch))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = FORMS[form](qkv, batch, 0.5)
    assert float((dropped - 1).abs().max()) > 0.1
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_does_not_reach_attention(form: str) -> None:
    """Under autocast attention gives, to the bit, what it gives without."""
    batch = Batch.pack(random_rows())
    qkv = random_states(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = FORMS[form](qkv, batch)
    assert torch.equal(FORMS[form](qkv, batch), cast)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_that_goes_backwards_on_a_cpu_is_computed_in_float32(form: str) -> None:
    """States that get a gradient are attended to in float32, and come back rounded to bfloat16."""
    batch = Batch.pack(random_rows())
    # Projections of positions are rounded to the backbone's dtype before, so that here there are none.
    attention = partial(disentangled, kinds=()) if form == "disentangled" else FORMS[form]
    half = random_states(batch).bfloat16()
    expected = attention(half.float(), batch).bfloat16()
    assert torch.equal(expected, attention(half.requires_grad_(True), batch))
