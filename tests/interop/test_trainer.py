"""An adapter set inside Hugging Face's own Trainer: the same numbers, and only the set trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from registry.config import AdapterConfig, HeadConfig
from registry.errors import ConfigError, ShapeMismatchError
from registry.interop.estimators import TrainerModel
from registry.model.backbone import Backbone
from registry.model.batching import Batch, TokenRows
from registry.model.inference import logits_of
from registry.schema import SetInfo
from registry.store.errors import ArchiveError, StoreWriteError
from registry.store.registry import Registry
from registry.store.tensors import import_set
from tests.support.toy_task import FILLERS, randomise, same_weights

ADAPTER = AdapterConfig(placement="houlsby", reduction_factor=4)
HEAD = HeadConfig(label_names=("bad", "good"))
WORDS = ("bad", "good")


def rows_of(backbone: Backbone, count: int = 32) -> TokenRows:
    """Return pairs of different lengths; one word of the first text decides the label."""
    firsts = [f"{FILLERS[n % 5]} {WORDS[n % 2]}" for n in range(count)]
    return backbone.tokenize(firsts, [FILLERS[n % 3] for n in range(count)], max_length=32)


def padded(rows: TokenRows, indices: list[int]) -> dict[str, Tensor]:
    """Return the rows as a padded batch, the way a data collator makes it."""
    longest = max(len(rows.input_ids[i]) for i in indices)

    def pad(values: list[list[int]]) -> Tensor:
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in values])

    return {
        "input_ids": pad([list(rows.input_ids[i]) for i in indices]),
        "token_type_ids": pad([list(rows.type_ids[i]) for i in indices]),
        "attention_mask": pad([[1] * len(rows.input_ids[i]) for i in indices]),
        "labels": torch.tensor([i % 2 for i in indices]),
    }


class Numbers(torch.utils.data.Dataset[dict[str, int]]):
    """The row numbers as a data set; the collator makes tensors of them."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"row": index}


def test_a_saved_folder_is_imported(tmp_path: Path, tiny_backbone: Backbone) -> None:
    """What save_pretrained writes comes into a store bit for bit; a set of which nothing is known is refused."""
    model = TrainerModel(tiny_backbone, randomise(tiny_backbone.new_adapter_set(ADAPTER, HEAD)))
    with pytest.raises(ConfigError, match="as this set was not trained here"):
        model.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved", SetInfo(max_length=32, pair=False), name="mine")
    registry = Registry.create(tmp_path / "store", tiny_backbone)
    assert "mine:1" == str(import_set(registry.store, tmp_path / "saved"))
    assert same_weights(model.adapter_set, registry.load("mine"))
    assert registry.manifest("mine").max_length == 32
    with pytest.raises(StoreWriteError):
        model.save_pretrained(tmp_path / "saved", SetInfo(max_length=32, pair=False))
    head = tmp_path / "saved" / "head.safetensors"
    head.write_bytes(head.read_bytes()[:-1] + b"x")
    with pytest.raises(ArchiveError, match="head.safetensors"):
        import_set(registry.store, tmp_path / "saved")


def test_trainer_trains_the_set_alone(tmp_path: Path, tiny_backbone: Backbone) -> None:
    """In the Trainer the loss falls, every tensor of the set moves, and the backbone stays as it was."""
    before = tiny_backbone.memory_digest()
    fresh = tiny_backbone.new_adapter_set(ADAPTER, HEAD)
    start = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    model = TrainerModel(tiny_backbone, fresh)
    rows = rows_of(tiny_backbone)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=15,
        per_device_train_batch_size=8,
        learning_rate=3e-2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="epoch",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=0,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Numbers(),
        data_collator=lambda features: padded(rows, [feature["row"] for feature in features]),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert 15 == len(losses)
    assert losses[-1] < losses[0] / 2
    assert before == tiny_backbone.memory_digest()
    assert not any(parameter.requires_grad for parameter in tiny_backbone.parameters())
    assert not any(torch.equal(tensor, start[name]) for name, tensor in fresh.state_dict().items())
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {id(parameter) for parameter in fresh.parameters()} == optimised


def test_logits_equal_the_packed_path(tiny_backbone: Backbone) -> None:
    """Padded rows give the logits of the packed ones, in the caller's order, and the loss is their mean."""
    adapter_set = randomise(tiny_backbone.new_adapter_set(ADAPTER, HEAD)).eval()
    model = TrainerModel(tiny_backbone, adapter_set).eval()
    rows = rows_of(tiny_backbone)
    indices = [7, 0, 12, 3, 31]
    batch = padded(rows, indices)
    with torch.no_grad():
        answer = model(**batch)
        packed = Batch.pack(rows.take(indices), device=tiny_backbone.device)
        expected = packed.restore(logits_of(tiny_backbone.encoder, adapter_set, packed))
    torch.testing.assert_close(expected, answer["logits"], atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(expected, batch["labels"]), answer["loss"])


def test_state_is_the_set_alone(tiny_backbone: Backbone) -> None:
    """What a Trainer would save, count or move is the set: no tensor of the backbone is part of the module."""
    fresh = tiny_backbone.new_adapter_set(ADAPTER, HEAD)
    model = TrainerModel(tiny_backbone, fresh)
    assert {f"adapter_set.{name}" for name in fresh.state_dict()} == set(model.state_dict())
    assert fresh.trainable_count == sum(parameter.numel() for parameter in model.parameters())


def test_mask_types_and_labels_may_be_left_out(tiny_backbone: Backbone) -> None:
    """Without a mask there is no padding, without types one text, without labels no loss."""
    model = TrainerModel(tiny_backbone, randomise(tiny_backbone.new_adapter_set(ADAPTER, HEAD))).eval()
    ids = torch.tensor([[2, 9, 10, 3], [2, 11, 12, 3]])
    with torch.no_grad():
        short = model(input_ids=ids)
        full = model(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids))
    assert ["logits"] == list(short)
    assert torch.equal(full["logits"], short["logits"])


@pytest.mark.parametrize(
    ("problem", "names", "labels"),
    [
        ("multi_label", ("red", "blue", "big"), torch.tensor([[1, 0, 1], [0, 0, 1]])),
        ("regression", ("stars",), torch.tensor([1.0, 4.5])),
    ],
)
def test_other_problem_types(tiny_backbone: Backbone, problem: str, names: tuple[str, ...], labels: Tensor) -> None:
    """Many labels and numbers have their own losses, and gradients reach every parameter of the set."""
    head = HeadConfig(label_names=names, problem_type=problem)  # type: ignore[arg-type]
    adapter_set = randomise(tiny_backbone.new_adapter_set(ADAPTER, head))
    answer = TrainerModel(tiny_backbone, adapter_set)(input_ids=torch.tensor([[2, 9, 3], [2, 11, 3]]), labels=labels)
    logits = answer["logits"].detach()
    assert (2, len(names)) == logits.shape
    if problem == "regression":
        expected = ((logits[:, 0] - labels) ** 2).mean()
    else:
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
    torch.testing.assert_close(expected, answer["loss"].detach())
    answer["loss"].backward()
    assert all(parameter.grad is not None for parameter in adapter_set.parameters())


def test_set_of_another_backbone_is_refused(tiny_backbone: Backbone) -> None:
    """A set for another H does not get into a Trainer."""
    other = tiny_backbone.new_adapter_set(ADAPTER, HEAD)
    other.hidden_size = 64
    with pytest.raises(ShapeMismatchError, match=r"expected shape \(64, 2\), found \(32, 2\)"):
        TrainerModel(tiny_backbone, other)


def test_padding_may_stand_on_either_side(tiny_backbone: Backbone) -> None:
    """The mask decides which tokens count; one with holes, or a row of padding alone, is refused."""
    model = TrainerModel(tiny_backbone, randomise(tiny_backbone.new_adapter_set(ADAPTER, HEAD), seed=1)).eval()
    right = padded(rows_of(tiny_backbone), list(range(6)))
    left = {name: tensor.clone() for name, tensor in right.items()}
    for row, length in enumerate(right["attention_mask"].sum(dim=1).tolist()):
        for name in ("input_ids", "token_type_ids", "attention_mask"):
            left[name][row] = right[name][row].roll(right[name].shape[1] - length)
    assert torch.allclose(model(**right).logits, model(**left).logits, atol=1e-6)
    assert not torch.equal(left["input_ids"], right["input_ids"])
    for place, found in ((1, "padding between the tokens of row 2"), (slice(None), "found 'none'")):
        holes = {**right, "attention_mask": right["attention_mask"].clone()}
        holes["attention_mask"][2, place] = 0
        with pytest.raises(ConfigError, match=found):
            model(**holes)


def test_it_looks_like_a_model_of_transformers(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """Its configuration tells the labels, outputs have attributes, and the Trainer's label smoothing works."""
    model = TrainerModel(tiny_backbone, tiny_backbone.new_adapter_set(ADAPTER, HEAD))
    assert (2, 2, {0: "bad", 1: "good"}) == (model.num_labels, model.config.num_labels, model.config.id2label)
    assert "single_label_classification" == model.config.problem_type
    batch = padded(rows_of(tiny_backbone), [0, 1, 2])
    answered = model(**batch)
    assert torch.equal(answered["logits"], answered.logits)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
        label_smoothing_factor=0.1, remove_unused_columns=False,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=Numbers(), data_collator=lambda rows: dict(batch)).train()


@pytest.mark.parametrize(
    ("labels", "found"), [(torch.tensor([1, 2, 3]), "the label of row 1"), (torch.tensor([0.0, 0.5, 1.0]), "row 1")]
)
def test_labels_that_are_no_classes_are_told(tiny_backbone: Backbone, labels: Tensor, found: str) -> None:
    """With their row, before torch sees them; whole numbers as floats are classes."""
    model = TrainerModel(tiny_backbone, tiny_backbone.new_adapter_set(ADAPTER, HEAD))
    batch = padded(rows_of(tiny_backbone), [0, 1, 2])
    with pytest.raises(ConfigError, match=found):
        model(**{**batch, "labels": labels})
    assert model(**{**batch, "labels": torch.tensor([0.0, 1.0, 1.0])}).loss.isfinite()
