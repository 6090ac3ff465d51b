"""A backbone and an adapter set as one module that Hugging Face's own ``Trainer`` trains.

It takes padded tensors and answers with ``{"loss", "logits"}``, as the original lab notebook's model did. The rows
are packed before the encoder sees them, so padding costs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.head import loss_of
from registry.model.backbone import Backbone
from registry.model.batching import Batch, TokenRows
from registry.model.inference import logits_of


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

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the logits, and the loss where there are labels.

        Args:
            input_ids: (B, T) token ids, padded on the right.
            attention_mask: (B, T), 1 for tokens and 0 for padding; None means no padding.
            token_type_ids: (B, T), 1 in the second text of a pair; None means single texts.
            labels: (B,) classes, (B, C) zeros and ones, or (B,) numbers, by problem type.

        Returns:
            ``logits`` (B, C) float32 in the order of the rows, and ``loss``, a scalar.
        """
        backbone = self._backbone[0]
        lengths = [input_ids.shape[1]] * len(input_ids)
        if attention_mask is not None:
            lengths = attention_mask.sum(dim=1).tolist()
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        rows = TokenRows(
            [row[:length] for row, length in zip(input_ids.tolist(), lengths, strict=True)],
            [row[:length] for row, length in zip(types.tolist(), lengths, strict=True)],
        )
        batch = Batch.pack(rows, device=backbone.device)
        logits = batch.restore(logits_of(backbone.encoder, self.adapter_set, batch))
        if labels is None:
            return {"logits": logits}
        problem = self.adapter_set.head_config.problem_type
        wanted = labels.to(logits.device)
        if problem != "classification":
            wanted = wanted.float().reshape(logits.shape)
        return {"loss": loss_of(problem, logits, wanted), "logits": logits}
