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
from registry.graphs.buckets import Bucket, PaddedRows, bucket_of
from registry.graphs.capture import Capture, Replay, tell_failure
from registry.graphs.staged import Staged
from registry.model.batching import TokenRows
from registry.model.encoder import Encoder
from registry.model.inference import logits_of

MOST_STEPS = 64


class Examples(NamedTuple):
    """Rows of one batch, and the label of each."""

    tokens: TokenRows
    labels: Sequence[object]


class GraphedSteps:
    """Losses and gradients of one set's batches.

    Args:
        encoder: frozen, one that ``can_capture`` allows.
        adapter_set: on the same device, in training mode; its dropout draws from ``generator``.
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
        class_weights: Tensor | None,
        smoothing: float,
        clip: Callable[[Sequence[nn.Parameter]], Tensor],
        generator: torch.Generator,
        capture: Capture,
    ) -> None:
        self._encoder, self._adapter_set, self._generator = encoder, adapter_set, generator
        self._class_weights, self._smoothing, self._clip = class_weights, smoothing, clip
        self._capture = capture
        self._parameters = [parameter for parameter in adapter_set.parameters() if parameter.requires_grad]
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]  # of whichever step was last
        self._graphs: dict[Bucket, _GraphedStep | None] = {}  # None where a capture failed
        self._seen: set[Bucket] = set()
        self._in_place: Examples | None = None

    def learn_from(
        self, asked: Examples, ahead: Callable[[], Examples | None] = lambda: None
    ) -> tuple[float, float] | None:
        """Give the parameters the clipped gradients of the rows' mean loss; return that loss, and the norm before.

        None is returned where no graph applies, and so where a bucket comes for the first time, as many never come
        again. Then nothing is changed.

        Args:
            asked: the rows.
            ahead: asked while the device is at work for those of the step after this; they are recognised by identity.
        """
        graph = self._graph(asked)
        if graph is None:
            return None
        if self._in_place is not asked:
            graph.put(asked)
        graph.replay()
        self._put_ahead(ahead())  # in the order of the stream, so after what is under way
        loss, norm = graph.result.tolist()  # one wait for the device
        self._give(graph.uses)
        return loss, norm

    def _put_ahead(self, examples: Examples | None) -> None:
        """Put the rows of the next step in their place, where they have a graph."""
        bucket = None if examples is None else bucket_of(examples.tokens.lengths, few=True)
        graph = None if bucket is None else self._graphs.get(bucket)
        self._in_place = None if graph is None else examples
        if examples is not None and graph is not None:
            graph.put(examples)

    def _graph(self, asked: Examples) -> _GraphedStep | None:
        bucket = bucket_of(asked.tokens.lengths, few=True)
        if bucket is None or not self._is_wanted(bucket):
            return None
        if bucket not in self._graphs:
            self._graphs[bucket] = self._captured(bucket)
        return self._graphs[bucket]

    def _give(self, uses: Sequence[bool]) -> None:
        for parameter, gradient, is_used in zip(self._parameters, self._gradients, uses, strict=True):
            parameter.grad = gradient if is_used else None

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
            uses = [new is not None for new in found]
            self._give(uses)
            return torch.stack([loss.detach(), self._clip(self._parameters)]), uses

        try:
            (step.result, step.uses), step.replay = self._capture(work, [self._generator])
        except RuntimeError as err:
            tell_failure(f"steps of {bucket.tokens} tokens are taken", err)
            return None
        return step


class _GraphedStep:
    """The steps whose rows fit one bucket.

    Attributes:
        result: (2,) the loss that the last replay found, and the norm of its gradients.
        uses: whether it depends on each of the parameters.
        replay: goes forwards and backwards, and clips.
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
        none = label_tensor(head, [no_label[head.problem_type]] * bucket.rows, torch.device("cpu"))
        self._labels = Staged(tuple(none.shape), none.dtype, device)

    def put(self, asked: Examples) -> None:
        """Take these rows in the place of those before, in the order of the current stream."""
        self._rows.put(asked.tokens)
        with self._labels.writing() as labels:
            own = label_tensor(self._adapter_set.head_config, asked.labels, torch.device("cpu"))
            labels[: len(own)] = own.numpy()

    def loss_now(self, class_weights: Tensor | None, smoothing: float) -> Tensor:
        """Return the mean loss of the real rows; those that fill up count nothing, whatever their labels."""
        kind = self._adapter_set.head_config.problem_type
        logits = logits_of(self._encoder, self._adapter_set, self._rows.batch)
        each = loss_of(kind, logits, self._labels.tensor, class_weights, smoothing, reduction="none")
        losses = each.view(len(each), -1).mean(dim=1)  # (rows,)
        real = self._rows.is_real
        counts = real.float()
        if class_weights is not None and kind == "classification":
            counts = counts * class_weights[self._labels.tensor]
        return torch.where(real, losses, 0.0).sum() / counts.sum()
