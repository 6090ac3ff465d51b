"""A training's batches through CUDA graphs: the loss of one set's rows, and the gradients of what trains.

A step of training is some hundred kernels, so small that launching them takes a GPU's host longer than the GPU needs.
Of each bucket a graph is captured that goes forwards and backwards; it reads the set's weights where the optimizer
changes them. Clipping and the optimizer's step are outside, so what a step means is the training's own affair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.head import label_tensor, loss_of
from registry.graphs.buckets import Bucket, PaddedRows, bucket_of
from registry.graphs.capture import Capture, Replay, tell_failure
from registry.model.batching import TokenRows
from registry.model.encoder import Encoder
from registry.model.inference import logits_of

MOST_STEPS = 64


class GraphedSteps:
    """Losses and gradients of one set's batches.

    Args:
        encoder: frozen, one that ``can_capture`` allows.
        adapter_set: on the same device, in training mode; its dropout draws from ``generator``.
        class_weights: of the loss; see ``loss_of``.
        smoothing: of the labels; see ``loss_of``.
        generator: of the set's dropout.
        capture: records the steps.
    """

    def __init__(
        self,
        encoder: Encoder,
        adapter_set: AdapterSet,
        class_weights: Tensor | None,
        smoothing: float,
        generator: torch.Generator,
        capture: Capture,
    ) -> None:
        self._encoder, self._adapter_set, self._generator = encoder, adapter_set, generator
        self._class_weights, self._smoothing, self._capture = class_weights, smoothing, capture
        self._parameters = [parameter for parameter in adapter_set.parameters() if parameter.requires_grad]
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]  # of whichever step was last
        self._graphs: dict[Bucket, _GraphedStep | None] = {}  # None where a capture failed
        self._seen: set[Bucket] = set()

    def learn_from(self, rows: TokenRows, labels: Sequence[object]) -> Tensor | None:
        """Give the parameters the gradients of the rows' mean loss, and return that loss; None where no graph applies.

        None applies to a bucket that is asked for the first time, as many are never asked for again.
        """
        bucket = bucket_of(rows.lengths)
        if bucket is None or not self._is_wanted(bucket):
            return None
        if bucket not in self._graphs:
            self._graphs[bucket] = self._captured(bucket)
        graph = self._graphs[bucket]
        if graph is None:
            return None
        loss = graph.loss(rows, labels)
        for parameter, gradient, is_used in zip(self._parameters, self._gradients, graph.uses, strict=True):
            parameter.grad = gradient if is_used else None
        return loss

    def _is_wanted(self, bucket: Bucket) -> bool:
        is_known = bucket in self._graphs or (bucket in self._seen and len(self._graphs) < MOST_STEPS)
        self._seen.add(bucket)
        return is_known

    def _captured(self, bucket: Bucket) -> _GraphedStep | None:
        step = _GraphedStep(self._encoder, self._adapter_set, bucket)

        def work() -> tuple[Tensor, list[bool]]:
            loss = step.loss_now(self._class_weights, self._smoothing)
            found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            pairs = [(own, new) for own, new in zip(self._gradients, found, strict=True) if new is not None]
            torch._foreach_copy_([own for own, _ in pairs], [new for _, new in pairs])
            return loss.detach(), [new is not None for new in found]

        try:
            (step.result, step.uses), step.replay = self._capture(work, [self._generator])
        except RuntimeError as err:
            tell_failure(f"steps of {bucket.tokens} tokens are taken", err)
            return None
        return step


class _GraphedStep:
    """The steps whose rows fit one bucket.

    Attributes:
        result: the loss that the last replay found.
        uses: whether it depends on each of the parameters.
        replay: goes forwards and backwards.
    """

    result: Tensor
    uses: list[bool]
    replay: Replay

    def __init__(self, encoder: Encoder, adapter_set: AdapterSet, bucket: Bucket) -> None:
        self._encoder, self._adapter_set = encoder, adapter_set
        device = encoder.embeddings.word.weight.device
        self._rows = PaddedRows(bucket, device)
        head = adapter_set.head_config
        no_label = {"classification": 0, "multi_label": (0,) * len(head.label_names), "regression": 0.0}
        self._labels = label_tensor(head, [no_label[head.problem_type]] * bucket.rows, device)

    def loss(self, rows: TokenRows, labels: Sequence[object]) -> Tensor:
        """Return the mean loss of some rows, after the pass forwards and backwards."""
        self._rows.put(rows)
        self._labels[: len(rows)].copy_(label_tensor(self._adapter_set.head_config, labels, torch.device("cpu")))
        self.replay()
        return self.result

    def loss_now(self, class_weights: Tensor | None, smoothing: float) -> Tensor:
        """Return the mean loss of the real rows; those that fill up count nothing, whatever their labels."""
        kind = self._adapter_set.head_config.problem_type
        logits = logits_of(self._encoder, self._adapter_set, self._rows.batch)
        each = loss_of(kind, logits, self._labels, class_weights, smoothing, reduction="none")
        losses = each.view(len(each), -1).mean(dim=1)  # (rows,)
        real = self._rows.is_real
        counts = real.float()
        if class_weights is not None and kind == "classification":
            counts = counts * class_weights[self._labels]
        return torch.where(real, losses, 0.0).sum() / counts.sum()
