"""A training's batches through CUDA graphs: the loss of one set's rows, and the gradients of what trains.

A step of training is some hundred kernels, so small that launching them takes a GPU's host longer than the GPU needs.
Of each bucket a graph is captured that goes forwards and backwards and clips; it reads the set's weights where the
optimizer changes them. What a step means beyond that, and when one is taken, is the training's own affair. While the
GPU is at work, the rows of the step after are put in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.head import label_tensor, loss_of
from registry.config import HeadConfig
from registry.graphs.buckets import Bucket, PaddedRows, bucket_of
from registry.graphs.capture import Capture, GraphCache, Replay
from registry.graphs.staged import Staged
from registry.model.batching import TokenRows
from registry.model.encoder import Encoder
from registry.model.inference import LabelledRows, logits_of


class GraphedSteps:
    """Losses and gradients of one set's batches.

    Args:
        encoder: frozen, one that ``can_capture`` allows.
        adapter_set: on the same device, in training mode; its dropout draws from ``generator``.
        rows: of which each step is a batch.
        class_weights: of the loss; see ``loss_of``.
        smoothing: of the labels; see ``loss_of``.
        clip: returns the norm of the parameters' gradients, and clips them, without waiting for the device.
        generator: of the set's dropout.
        capture: records the steps.
    """

    def __init__(
        self,
        encoder: Encoder,
        adapter_set: AdapterSet,
        rows: LabelledRows,
        class_weights: Tensor | None,
        smoothing: float,
        clip: Callable[[Sequence[nn.Parameter]], Tensor],
        generator: torch.Generator,
        capture: Capture,
    ) -> None:
        self._encoder, self._adapter_set, self._generator = encoder, adapter_set, generator
        self._class_weights, self._smoothing, self._clip = class_weights, smoothing, clip
        self._rows, self._lengths, self._capture = rows, rows.tokens.lengths, capture
        self._parameters = [parameter for parameter in adapter_set.parameters() if parameter.requires_grad]
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]  # of whichever step was last
        self._graphs: GraphCache[Bucket, _GraphedStep] = GraphCache()
        self._seen: set[Bucket] = set()
        self._in_place: list[int] | None = None

    def learn_from(self, indices: list[int], ahead: list[int] | None = None) -> tuple[float, float] | None:
        """Give the parameters the clipped gradients of the mean loss of some rows; return it, and the norm before.

        None is returned where no graph applies, and so where a bucket comes for the first time, as many never come
        again. Then nothing is changed.

        Args:
            indices: of the rows.
            ahead: of those of the step after this, which are put in their place while the device is at work.
        """
        bucket = self._bucket(indices)
        if bucket is None:
            return None
        if bucket not in self._seen:
            self._seen.add(bucket)
            return None
        graph = self._graphs.find(bucket, lambda: self._captured(bucket), f"steps of {bucket.tokens} tokens are taken")
        if graph is None:
            return None
        if self._in_place != indices:
            self._put(graph, indices)
        graph.replay()
        self._in_place = None
        following = None if ahead is None else self._bucket(ahead)
        if ahead is not None and following is not None and (its_graph := self._graphs.known(following)) is not None:
            self._put(its_graph, ahead)  # in the order of the stream, so after what is under way
            self._in_place = ahead
        loss, norm = graph.result.tolist()  # one wait for the device
        self._give(graph.uses)
        return loss, norm

    def _bucket(self, indices: Sequence[int]) -> Bucket | None:
        return bucket_of([self._lengths[row] for row in indices], few=True)

    def _put(self, graph: _GraphedStep, indices: Sequence[int]) -> None:
        graph.examples.put(self._rows.tokens.take(indices), [self._rows.labels[row] for row in indices])

    def _give(self, uses: Sequence[bool]) -> None:
        for parameter, gradient, is_used in zip(self._parameters, self._gradients, uses, strict=True):
            parameter.grad = gradient if is_used else None

    def _captured(self, bucket: Bucket) -> _GraphedStep:
        head = self._adapter_set.head_config
        examples = _PaddedExamples(head, bucket, self._encoder.embeddings.word.weight.device)

        def work() -> tuple[Tensor, list[bool]]:
            logits = logits_of(self._encoder, self._adapter_set, examples.rows.batch)
            loss = examples.loss(logits, self._class_weights, self._smoothing)
            found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            pairs = [(own, new) for own, new in zip(self._gradients, found, strict=True) if new is not None]
            torch._foreach_copy_([own for own, _ in pairs], [new for _, new in pairs])
            uses = [new is not None for new in found]
            self._give(uses)
            return torch.stack([loss.detach(), self._clip(self._parameters)]), uses

        (result, uses), replay = self._capture(work, [self._generator])
        return _GraphedStep(examples, result, uses, replay)


class _GraphedStep(NamedTuple):
    """The steps whose rows fit one bucket.

    Attributes:
        examples: what the next replay learns from.
        result: (2,) the loss that the last replay found, and the norm of its gradients.
        uses: whether the loss depends on each of the parameters.
        replay: goes forwards and backwards, and clips.
    """

    examples: _PaddedExamples
    result: Tensor
    uses: list[bool]
    replay: Replay


class _PaddedExamples:
    """Rows padded to a bucket, and their labels, in tensors that stay where they are."""

    def __init__(self, head: HeadConfig, bucket: Bucket, device: torch.device) -> None:
        self._head = head
        self.rows = PaddedRows(bucket, device)
        no_label = {"classification": 0, "multi_label": (0,) * len(head.label_names), "regression": 0.0}
        none = label_tensor(head, [no_label[head.problem_type]] * bucket.rows, torch.device("cpu"))
        self._labels = Staged(tuple(none.shape), none.dtype, device)

    def put(self, tokens: TokenRows, labels: Sequence[object]) -> None:
        """Take these rows in the place of those before, in the order of the current stream."""
        self.rows.put(tokens)
        with self._labels.writing() as staged:
            own = label_tensor(self._head, labels, torch.device("cpu"))
            staged[: len(own)] = own.numpy()

    def loss(self, logits: Tensor, class_weights: Tensor | None, smoothing: float) -> Tensor:
        """Return the mean loss of the real rows; those that fill up count nothing, whatever their labels."""
        kind, labels = self._head.problem_type, self._labels.tensor
        each = loss_of(kind, logits, labels, class_weights, smoothing, reduction="none")
        losses = each.view(len(each), -1).mean(dim=1)  # (rows,)
        real = self.rows.is_real
        counts = real.float()
        if class_weights is not None and kind == "classification":
            counts = counts * class_weights[labels]
        return torch.where(real, losses, 0.0).sum() / counts.sum()
