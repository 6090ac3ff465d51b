"""A backbone and an adapter set as one module that Hugging Face's own ``Trainer`` trains.

It takes padded tensors and answers with a ``SequenceClassifierOutput`` of loss and logits, as models of transformers
do. The rows are packed before the encoder sees them, so padding costs nothing, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.head import label_tensor, loss_of, probabilities_of
from registry.config import HeadConfig
from registry.errors import ConfigError
from registry.model.backbone import Backbone
from registry.model.batching import Batch, TokenRows
from registry.model.inference import logits_of
from registry.schema import SetInfo
from registry.store.archive import write_folder
from registry.store.registry import make_manifest
from registry.store.tensors import tensor_files

_PROBLEM_TYPES: dict[str, Any] = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


def label_settings(head: HeadConfig) -> dict[str, Any]:
    """Return what a configuration of transformers says of a head's labels and problem type."""
    return {
        "id2label": dict(enumerate(head.label_names)),
        "label2id": {name: index for index, name in enumerate(head.label_names)},
        "problem_type": _PROBLEM_TYPES[head.problem_type],
    }


class TrainerModel(nn.Module):
    """An adapter set on a frozen backbone, in the form that ``transformers.Trainer`` expects.

    Only the set is a sub-module: what the Trainer optimises, moves, counts and saves is the set alone.

    Args:
        backbone: frozen; it stays where it is, so train on its device.
        adapter_set: made by ``backbone.new_adapter_set``; trained in place.
    """

    def __init__(self, backbone: Backbone, adapter_set: AdapterSet) -> None:
        super().__init__()
        adapter_set.check_fits(backbone.info.hidden_size, backbone.info.layers)
        backbone.check_pooling(adapter_set.head_config)
        self._backbone = (backbone,)  # in a tuple, so that it is no sub-module
        self.adapter_set = adapter_set
        self.config = PretrainedConfig(**label_settings(adapter_set.head_config))

    @property
    def num_labels(self) -> int:
        """Return how many labels the head has."""
        return len(self.adapter_set.head_config.label_names)

    def save_pretrained(self, folder: str | Path, info: SetInfo | None = None, *, name: str = "trained") -> None:
        """Write the set into a new folder, from which ``adapter-registry import FOLDER`` takes it into a store.

        Args:
            folder: as ``PreTrainedModel.save_pretrained`` has it; one that is new or empty.
            info: what is known of it: ``SetInfo(max_length=…, pair=…)``; what its training knows when None.
            name: of the set in a store.

        Raises:
            ConfigError: nothing is known of it, or a tensor is not finite.
            StoreWriteError: the folder has such a file already, or cannot be written.
        """
        manifest = make_manifest(name, self.adapter_set, self._backbone[0], info)
        write_folder(Path(folder), manifest, tensor_files(self.adapter_set))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Return the logits, and the loss where there are labels.

        Args:
            input_ids: (B, T) token ids, padded on either side.
            attention_mask: (B, T), 1 for tokens and 0 for padding; None means no padding.
            token_type_ids: (B, T), 1 in the second text of a pair; None means single texts.
            labels: (B,) classes, (B, C) zeros and ones, or (B,) numbers, by problem type.

        Returns:
            ``logits`` (B, C) float32 in the order of the rows, for regression in the unit of the labels; and ``loss``,
            a scalar.

        Raises:
            ConfigError: padding between the tokens of a row, no tokens at all, or labels that are none of the head's.
        """
        backbone = self._backbone[0]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        spans = [_span(row, kept) for row, kept in enumerate(mask.tolist())]
        rows = TokenRows(
            [row[first:last] for row, (first, last) in zip(input_ids.tolist(), spans, strict=True)],
            [row[first:last] for row, (first, last) in zip(types.tolist(), spans, strict=True)],
        )
        batch = Batch.pack(rows, device=backbone.device)
        logits = batch.restore(logits_of(backbone.encoder, self.adapter_set, batch))
        head = self.adapter_set.head_config
        answers = probabilities_of(head, logits) if head.problem_type == "regression" else logits
        if labels is None:
            return SequenceClassifierOutput(logits=answers)
        wanted = label_tensor(head, _checked(head, labels), logits.device)
        return SequenceClassifierOutput(loss=loss_of(head.problem_type, logits, wanted), logits=answers)


def _span(row: int, mask: Sequence[int]) -> tuple[int, int]:
    """Return where the tokens of a row begin and end.

    Raises:
        ConfigError: there are none, or padding stands between them.
    """
    count = sum(map(bool, mask))
    first = next((place for place, kept in enumerate(mask) if kept), 0)
    if not count or not all(mask[first : first + count]):
        found = "none" if not count else f"padding between the tokens of row {row}"
        raise ConfigError("attention_mask", "tokens side by side, padding before or after them", found)
    return first, first + count


def _checked(head: HeadConfig, labels: Tensor) -> list[Any]:
    """Return labels as plain numbers.

    Raises:
        ConfigError: a class that the head does not have, or not a number for each label of each row.
    """
    classes = len(head.label_names)
    if head.problem_type == "multi_label":
        if labels.ndim != 2 or labels.shape[1] != classes or not bool(((labels == 0) | (labels == 1)).all()):
            raise ConfigError("labels", f"zeros and ones of shape (rows, {classes})", list(labels.shape))
        return list(labels.tolist())
    values = labels.reshape(-1).tolist()
    if head.problem_type == "classification":
        for row, value in enumerate(values):
            if value != int(value) or not 0 <= value < classes:
                expected = f"a class from 0 to {classes - 1} ({', '.join(head.label_names[:5])})"
                raise ConfigError(f"the label of row {row}", expected, value)
        return [int(value) for value in values]
    return values
