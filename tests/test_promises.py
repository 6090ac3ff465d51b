"""The promises of the whole, one short test each: the page to read first."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from transformers import AutoModel

from registry.config import PLACEMENTS, AdapterConfig
from registry.model.backbone import Backbone
from registry.model.batching import Batch
from registry.model.inference import logits_of, predict_probabilities
from registry.model.mixed import MixedAdapters
from registry.store.registry import Registry
from registry.training.loop import train
from tests.support.stock_models import difference, our_states, random_rows, stock_states, unpack
from tests.support.toy_task import ADAPTER, HEAD, TRAINING, randomise, same_weights, toy_rows, train_fresh

TEXTS = ("the film was not good", "bad news!", "a very great cat, and no dog")


def test_training_leaves_the_backbone_unchanged(tiny_backbone: Backbone) -> None:
    """1. Training any task leaves the backbone's fingerprint unchanged, on disk and in memory."""
    fingerprint, digest = tiny_backbone.info.fingerprint, tiny_backbone.memory_digest()
    train_fresh(tiny_backbone)
    reloaded = Backbone.load(tiny_backbone.info.source, device="cpu")
    assert (fingerprint, digest) == (reloaded.info.fingerprint, tiny_backbone.memory_digest())


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_fresh_adapter_set_is_identity(tiny_backbone: Backbone, placement: str) -> None:
    """2. A fresh adapter set gives exactly the backbone's output."""
    fresh = tiny_backbone.new_adapter_set(AdapterConfig(placement=placement, reduction_factor=4), HEAD)
    batch = Batch.pack(tiny_backbone.tokenize(TEXTS, max_length=32))
    assert torch.equal(tiny_backbone(batch), tiny_backbone(batch, fresh.adapter))


def test_forward_without_adapters_equals_the_librarys_model(tiny_backbone: Backbone) -> None:
    """3. Without adapters our forward equals the library's model on real tokens (float32: within 1e-5)."""
    model = AutoModel.from_pretrained(tiny_backbone.info.source).eval()
    rows = tiny_backbone.tokenize(TEXTS, max_length=32)
    assert difference(stock_states(model, rows), our_states(tiny_backbone.encoder, rows)) <= 1e-5


def test_only_the_sets_parameters_receive_gradients(tiny_backbone: Backbone) -> None:
    """4. Only the parameters of the adapter set receive gradients, and all of them do."""
    adapter_set = randomise(tiny_backbone.new_adapter_set(ADAPTER, HEAD))
    batch = Batch.pack(tiny_backbone.tokenize(TEXTS, max_length=32))
    logits_of(tiny_backbone.encoder, adapter_set, batch).square().sum().backward()
    assert {None} == {parameter.grad for parameter in tiny_backbone.parameters()}
    assert all(bool(parameter.grad.abs().max() > 0) for parameter in adapter_set.parameters())


def test_saved_and_loaded_set_gives_equal_logits(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """5. Save then load gives bit-equal logits."""
    trained, _ = train_fresh(tiny_backbone)
    registry = Registry.create(tmp_path / "store", tiny_backbone)
    loaded = registry.load(registry.save("toy", trained))
    batch = Batch.pack(tiny_backbone.tokenize(TEXTS, max_length=32))
    expected, found = (logits_of(tiny_backbone.encoder, one, batch) for one in (trained.eval(), loaded))
    assert torch.equal(expected, found)


def test_training_one_task_leaves_the_others_answers(tiny_backbone: Backbone) -> None:
    """6. Training task B leaves task A's predictions bit-equal."""
    first, _ = train_fresh(tiny_backbone)
    rows = toy_rows(tiny_backbone, seed=1).tokens
    before = predict_probabilities(tiny_backbone.encoder, first, rows)
    second = tiny_backbone.new_adapter_set(ADAPTER, HEAD, seed=1)
    train(tiny_backbone.encoder, second, toy_rows(tiny_backbone, seed=2, words=("rose", "fell")), TRAINING)
    numpy.testing.assert_array_equal(before, predict_probabilities(tiny_backbone.encoder, first, rows))


def test_mixed_batch_equals_the_single_task_answers(tiny_backbone: Backbone) -> None:
    """7. A mixed-task batch equals the per-task answers (float32: within 1e-5)."""
    configs = [AdapterConfig(placement=placement, reduction_factor=4) for placement in PLACEMENTS]
    sets = [randomise(tiny_backbone.new_adapter_set(one, HEAD), seed) for seed, one in enumerate(configs)]
    rows, owners = random_rows(words=95), [3, 0, 2, 1, 1, 0, 3, 2]
    batch = Batch.pack(rows, owners)
    mixed = unpack(tiny_backbone(batch, MixedAdapters([one.adapter for one in sets], batch)), batch)
    alone = [our_states(tiny_backbone.encoder, rows.take([i]), sets[one].adapter)[0] for i, one in enumerate(owners)]
    assert difference(alone, mixed) <= 1e-5


def test_padding_does_not_change_an_answer(tiny_backbone: Backbone) -> None:
    """8. A row's answer does not depend on how long the rows beside it are: there is no padding at all."""
    rows = random_rows((5, 60, 17), words=95)
    adapter_set = randomise(tiny_backbone.new_adapter_set(ADAPTER, HEAD))
    together = predict_probabilities(tiny_backbone.encoder, adapter_set, rows)
    alone = [predict_probabilities(tiny_backbone.encoder, adapter_set, rows.take([row]))[0] for row in range(3)]
    numpy.testing.assert_allclose(together, numpy.stack(alone), rtol=0, atol=1e-5)
    assert 5 + 60 + 17 == len(Batch.pack(rows).input_ids)


def test_same_seed_gives_the_same_weights(tiny_backbone: Backbone) -> None:
    """9. The same seed on the same machine gives the same weights, bit for bit."""
    assert same_weights(train_fresh(tiny_backbone)[0], train_fresh(tiny_backbone)[0])
