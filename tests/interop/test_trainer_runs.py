"""Whole runs of Hugging Face's own Trainer on a set: evaluation, early stopping, the best state, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, Trainer, TrainingArguments

from registry.adapters.adapter_set import AdapterSet
from registry.config import AdapterConfig, HeadConfig, LoraConfig, MethodConfig
from registry.interop.estimators import TrainerModel
from registry.model.backbone import Backbone
from registry.schema import SetInfo
from registry.serving.predictor import Predictor
from registry.store.registry import Registry
from registry.store.tensors import import_set
from tests.support.toy_task import FILLERS, same_weights

ADAPTER = AdapterConfig(placement="houlsby", reduction_factor=4, dropout=0.1)
HEAD = HeadConfig(label_names=("bad", "good"), dropout=0.1)
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "greater_is_better": True}


def rows(backbone: Backbone, count: int, flipped: bool = False) -> Dataset:
    """Return rows as the data sets of examples are: token ids of the tokenizer, and labels; one word decides."""
    texts = [f"{FILLERS[n % 5]} {('bad', 'good')[n % 2]} {FILLERS[n % 3]}" for n in range(count)]
    labels = [(n + flipped) % 2 for n in range(count)]
    return Dataset.from_dict({**backbone.tokenizer(texts), "labels": labels})


def accuracy(predictions: Any) -> dict[str, float]:
    """Return the metric as compute_metrics of every example does."""
    return {"accuracy": float((predictions.predictions.argmax(axis=1) == predictions.label_ids).mean())}


def trainer(
    folder: Path,
    backbone: Backbone,
    adapter_set: AdapterSet,
    *,
    held_out: Dataset | None = None,
    callbacks: Any = None,
    **options: Any,
) -> Trainer:
    """Return a Trainer as people set one up, on a set."""
    chosen = {"num_train_epochs": 4, "learning_rate": 3e-2, "logging_strategy": "epoch", **options}
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        eval_strategy="epoch",
        save_strategy="epoch",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=3,
        **chosen,
    )
    return Trainer(
        model=TrainerModel(backbone, adapter_set),
        args=arguments,
        train_dataset=rows(backbone, 32),
        eval_dataset=held_out if held_out is not None else rows(backbone, 16),
        data_collator=DataCollatorWithPadding(backbone.tokenizer),
        compute_metrics=accuracy,
        callbacks=callbacks,
    )


def fresh(backbone: Backbone, adapter: MethodConfig = ADAPTER) -> AdapterSet:
    """Return an untrained set, the same one at every call."""
    return backbone.new_adapter_set(adapter, HEAD, seed=1)


def scores_of(made: Trainer) -> list[float]:
    """Return the accuracy of every evaluation."""
    return [entry["eval_accuracy"] for entry in made.state.log_history if "eval_accuracy" in entry]


def test_its_evaluation_is_ours(tmp_path: Path, tiny_backbone: Backbone) -> None:
    """Scores after each epoch are those of the set at that time; predict gives the predictor's logits."""
    adapter_set = fresh(tiny_backbone)
    made = trainer(tmp_path, tiny_backbone, adapter_set, num_train_epochs=15)
    made.train()
    assert 15 == len(scores_of(made))
    assert scores_of(made)[-1] == pytest.approx(made.evaluate()["eval_accuracy"])
    assert made.evaluate()["eval_accuracy"] > 0.9
    registry = Registry.create(tmp_path / "store", tiny_backbone)
    registry.save("mood", adapter_set.eval(), SetInfo(max_length=32, pair=False))
    texts = ["the cat was good", "a dull film bad the cat", "bad"]
    given = made.predict(Dataset.from_dict(dict(tiny_backbone.tokenizer(texts)))).predictions
    expected = Predictor(tiny_backbone, registry).logits("mood", texts)
    numpy.testing.assert_allclose(expected, given, rtol=0, atol=1e-5)


def test_early_stopping_ends_a_run(tmp_path: Path, tiny_backbone: Backbone) -> None:
    """Held-out rows of the opposite labels get worse with every epoch, so patience ends the training."""
    made = trainer(
        tmp_path, tiny_backbone, fresh(tiny_backbone), held_out=rows(tiny_backbone, 16, flipped=True),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3)], num_train_epochs=15, **BEST,
    )  # fmt: skip
    made.train()
    scores = scores_of(made)
    assert len(scores) < 15
    assert len(scores) - 3 == 1 + scores.index(max(scores))
    assert scores[-1] < max(scores)


@pytest.mark.parametrize("adapter", [ADAPTER, LoraConfig(rank=4)], ids=["bottleneck", "lora"])
def test_the_best_state_is_loaded_at_the_end(tmp_path: Path, tiny_backbone: Backbone, adapter: MethodConfig) -> None:
    """The set has the tensors of the checkpoint with the best score, not of the last one, and can be stored."""
    adapter_set, before = fresh(tiny_backbone, adapter), tiny_backbone.memory_digest()
    made = trainer(
        tmp_path, tiny_backbone, adapter_set,
        held_out=rows(tiny_backbone, 16, flipped=True), num_train_epochs=12, **BEST,
    )  # fmt: skip
    made.train()
    best, scores = Path(str(made.state.best_model_checkpoint)), scores_of(made)
    assert f"checkpoint-{4 * (1 + scores.index(max(scores)))}" == best.name
    assert scores[-1] < max(scores), "the last must not be the best for this to prove anything"
    kept = load_file(best / "model.safetensors")
    found = made.model.state_dict()
    assert kept.keys() == found.keys()
    assert all(torch.equal(kept[name], found[name]) for name in kept)
    last = load_file(tmp_path / "checkpoint-48" / "model.safetensors")
    assert not all(torch.equal(last[name], found[name]) for name in last)
    assert before == tiny_backbone.memory_digest()
    made.model.save_pretrained(tmp_path / "saved", SetInfo(max_length=32, pair=False))
    registry = Registry.create(tmp_path / "store", tiny_backbone)
    import_set(registry.store, tmp_path / "saved", "best")
    assert same_weights(adapter_set, registry.load("best"))


class StopAfter(EarlyStoppingCallback):
    """An interruption after so many epochs."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for nothing of early stopping's."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Stop when the epochs are over, as somebody who presses Ctrl-C would."""
        control.should_training_stop = control.should_training_stop or round(state.epoch) >= self.epochs


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path, tiny_backbone: Backbone) -> None:
    """Two epochs, another process's set, two more: the weights of four epochs in one go, dropout included."""
    whole = fresh(tiny_backbone)
    trainer(tmp_path / "whole", tiny_backbone, whole).train()
    cut = trainer(tmp_path / "cut", tiny_backbone, fresh(tiny_backbone), callbacks=[StopAfter(2)])
    cut.train()
    assert 8 == cut.state.global_step
    resumed = tiny_backbone.new_adapter_set(ADAPTER, HEAD, seed=9)
    made = trainer(tmp_path / "cut", tiny_backbone, resumed)
    made.train(resume_from_checkpoint=True)
    assert (16, 4) == (made.state.global_step, len(scores_of(made)))
    assert same_weights(whole, resumed)


def test_old_checkpoints_are_removed(tmp_path: Path, tiny_backbone: Backbone) -> None:
    """Only as many stay as were asked for, each with the set alone: no tensor of the backbone is in it."""
    made = trainer(tmp_path, tiny_backbone, fresh(tiny_backbone), save_total_limit=1)
    made.train()
    (left,) = tmp_path.glob("checkpoint-*")
    saved = load_file(left / "model.safetensors")
    assert ("checkpoint-16", made.model.adapter_set.stored_count) == (
        left.name, sum(tensor.numel() for tensor in saved.values()),
    )  # fmt: skip
