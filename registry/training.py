"""Train one adapter set on one task's rows.

It sees an encoder, a set, token rows and a configuration; it knows nothing of names, stores or files of data.
The encoder is a frozen backbone's, or a separate trainable copy for full fine-tuning: the loop is the same, since
what trains is whatever requires a gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from registry.adapters import AdapterSet
from registry.batching import Batch, shuffled_batches
from registry.checkpoints import Checkpoint, Snapshot
from registry.encoder import Encoder
from registry.errors import ConfigError, NonFiniteLossError, TrainingInterrupted
from registry.evaluation import LabelledRows, answer_rows, label_tensor, logits_of, loss_of, pool_rows
from registry.metrics import check_metrics, score
from registry.schema import TrainingConfig
from registry.tasks import METRICS
from registry.validation import require


@dataclass(frozen=True)
class StepReport:
    """What a progress display wants to know after a step; the learning rate is the one just used."""

    step: int
    steps: int
    loss: float
    rows: int
    learning_rate: float
    held_out_scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training run.

    Attributes:
        steps: optimizer steps taken.
        final_loss: mean loss of the last epoch's steps.
        seconds: wall time of the loop.
        rows: rows seen, every epoch counted, in this process.
        best_step: the step whose weights were kept; the last one without ``select_best``.
        history: (step, held-out scores) of each evaluation.
    """

    steps: int
    final_loss: float
    seconds: float
    rows: int
    best_step: int
    history: tuple[tuple[int, dict[str, float]], ...]


def train(
    encoder: Encoder,
    adapter_set: AdapterSet,
    rows: LabelledRows,
    config: TrainingConfig,
    *,
    held_out: LabelledRows | None = None,
    autocast_dtype: torch.dtype | None = None,
    checkpoint: Checkpoint | None = None,
    observe: Callable[[StepReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train ``adapter_set`` (and the encoder, where it is not frozen) in place.

    The same seed on the same CPU gives bit-identical weights, resumed or not.

    Args:
        encoder: where the set's tensors are too.
        adapter_set: changed in place; after an error it holds the weights of the last good step.
        rows: what to train on.
        config: all choices.
        held_out: rows for ``config.evaluate_every``; never those of the reported split.
        autocast_dtype: mixed precision for an unfrozen encoder.
        checkpoint: where to write state every so often; a state that is there already is continued.
        observe: called after every step.
        should_stop: asked after every step; True writes a checkpoint and raises.

    Raises:
        ConfigError: no held-out rows for scores on them, or a metric to select by that does not fit.
        NonFiniteLossError: the loss or its gradient became NaN or infinite.
        TrainingInterrupted: ``should_stop`` said so.
        CheckpointError: the state there was made by other settings or is damaged.
    """
    run = TrainingRun(encoder, adapter_set, rows, config, held_out, autocast_dtype)
    devices = [run.device] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(config.seed)
        if checkpoint is not None:
            saved = checkpoint.read()
            if saved is not None:
                run.restore(saved)
        started = time.perf_counter()
        encoder_mode, set_mode = encoder.training, adapter_set.training
        adapter_set.train()
        try:
            rows_seen = run.loop(checkpoint, observe, should_stop)
        finally:
            encoder.train(encoder_mode)
            adapter_set.train(set_mode)
    if config.select_best is not None and run.best_state is not None:
        run.load_weights(run.best_state)
    return TrainingResult(
        steps=run.step,
        final_loss=sum(run.losses) / max(1, len(run.losses)),
        seconds=time.perf_counter() - started,
        rows=rows_seen,
        best_step=run.best_step if config.select_best is not None else run.step,
        history=tuple(run.history),
    )


class TrainingRun:
    """The state of one training run between two steps, and how to take the next step."""

    def __init__(
        self,
        encoder: Encoder,
        adapter_set: AdapterSet,
        rows: LabelledRows,
        config: TrainingConfig,
        held_out: LabelledRows | None,
        autocast_dtype: torch.dtype | None,
    ) -> None:
        if config.holds_out and held_out is None:
            raise ConfigError("held_out", "rows for evaluate_every", None)
        head = adapter_set.head_config
        self.metric = config.select_best or METRICS[head.problem_type][0]
        check_metrics(head.problem_type, len(head.label_names), (self.metric,))
        require(self.metric != "mse", "select_best", "a metric of which more is better", self.metric)
        self.encoder, self.adapter_set, self.rows, self.config = encoder, adapter_set, rows, config
        self.held_out, self.autocast_dtype = held_out, autocast_dtype
        self.device = encoder.embeddings.word.weight.device
        self.lengths = [len(ids) for ids in rows.tokens.input_ids]
        self.steps_per_epoch = math.ceil(len(rows) / config.batch_size)
        self.steps = self.steps_per_epoch * config.epochs
        self.parameters = [p for module in (encoder, adapter_set) for p in module.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.parameters, config, self.device)
        below_head = (*encoder.parameters(), *adapter_set.adapter.parameters())
        self.only_head_trains = not any(parameter.requires_grad for parameter in below_head)
        self.pooled: Tensor | None = None
        self.step = 0
        self.losses: list[float] = []
        self.best_step, self.best_score, self.since_best = 0, -math.inf, 0
        self.best_state: list[Tensor] | None = None
        self.history: list[tuple[int, dict[str, float]]] = []

    @property
    def is_out_of_patience(self) -> bool:
        """Return whether the scores did not get better for as long as the configuration waits."""
        return self.config.patience is not None and self.since_best >= self.config.patience

    def loop(
        self,
        checkpoint: Checkpoint | None,
        observe: Callable[[StepReport], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> int:
        """Take all remaining steps and return the number of rows seen."""
        rows_seen = 0
        while self.step < self.steps and not self.is_out_of_patience:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            batches = shuffled_batches(self.lengths, self.config.batch_size, self.config.seed, epoch)
            for indices in batches[first:]:
                if self.step % self.steps_per_epoch == 0:
                    self.losses = []
                rate = learning_rate_at(self.step, self.steps, self.config)
                loss = self.take_step(indices, rate)
                rows_seen += len(indices)
                scores = self.score_held_out()
                if observe is not None:
                    observe(StepReport(self.step, self.steps, loss, len(indices), rate, scores))
                self.write_if_due(checkpoint, should_stop)
                if self.is_out_of_patience:
                    return rows_seen
        return rows_seen

    def take_step(self, indices: Sequence[int], rate: float) -> float:
        """Learn from the rows at ``indices`` and return their mean loss."""
        problem = self.adapter_set.head_config.problem_type
        labels = label_tensor(problem, [self.rows.labels[i] for i in indices], self.device)
        loss = loss_of(problem, self.logits(indices), labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteLossError(self.step + 1, value, rate)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if not math.isfinite(float(norm)):
            raise NonFiniteLossError(self.step + 1, float(norm), rate, "gradient norm")
        if self.config.clip_norm > 0:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        self.losses.append(value)
        return value

    def logits(self, indices: Sequence[int]) -> Tensor:
        """Return the (B, C) logits of the rows at ``indices``, ready for the backward pass."""
        if self.only_head_trains:
            if self.pooled is None:  # what a frozen head-only model pools is the same in every epoch
                self.pooled = pool_rows(self.encoder, self.adapter_set, self.rows.tokens)
            logits: Tensor = self.adapter_set.head(self.pooled[torch.tensor(indices, device=self.device)])
            return logits
        batch = Batch.pack(self.rows.tokens.take(indices), device=self.device)
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            return batch.restore(logits_of(self.encoder, self.adapter_set, batch))

    def score_held_out(self) -> dict[str, float]:
        """Return the scores on held-out rows if it is time for them, and remember the best weights."""
        every = self.config.evaluate_every
        if every is None or self.held_out is None or (self.step % every != 0 and self.step != self.steps):
            return {}
        probabilities = answer_rows(self.encoder, self.adapter_set, self.held_out.tokens, self.autocast_dtype)
        scores = score(self.adapter_set.head_config.problem_type, self.held_out.labels, probabilities, (self.metric,))
        self.history.append((self.step, scores))
        self.since_best += 1
        if scores[self.metric] > self.best_score:
            self.best_step, self.best_score, self.since_best = self.step, scores[self.metric], 0
            self.best_state = [tensor.detach().clone() for tensor in self.parameters]
        return scores

    def load_weights(self, state: Sequence[Tensor]) -> None:
        """Put back weights that were remembered."""
        with torch.no_grad():
            for parameter, tensor in zip(self.parameters, state, strict=True):
                parameter.copy_(tensor)

    def write_if_due(self, checkpoint: Checkpoint | None, should_stop: Callable[[], bool] | None) -> None:
        """Write a checkpoint every so many steps, and before stopping when asked to."""
        stop = should_stop is not None and should_stop() and self.step < self.steps
        if checkpoint is not None and (stop or checkpoint.is_due(self.step)):
            checkpoint.write(self.snapshot())
        if stop:
            raise TrainingInterrupted(self.step, self.steps, checkpoint.path if checkpoint else None)

    def snapshot(self) -> Snapshot:
        """Return everything that the next step depends on."""
        tensors = {f"weight.{i}": p.detach() for i, p in enumerate(self.parameters)}
        for i, parameter in enumerate(self.parameters):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{i}.{name}"] = value
        for i, tensor in enumerate(self.best_state or ()):
            tensors[f"best.{i}"] = tensor
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        return Snapshot(
            tensors=tensors,
            step=self.step,
            losses=self.losses,
            best_step=self.best_step,
            best_score=self.best_score,
            since_best=self.since_best,
            history=self.history,
        )

    def restore(self, saved: Snapshot) -> None:
        """Continue from a snapshot of a run with the same settings."""
        tensors = saved.tensors
        count = len(self.parameters)
        self.load_weights([tensors[f"weight.{i}"] for i in range(count)])
        for i, parameter in enumerate(self.parameters):
            prefix = f"optimizer.{i}."
            # The step count stays where the optimizer made it: on the CPU, or beside fused CUDA parameters.
            self.optimizer.state[parameter] = {
                name.removeprefix(prefix): tensor.to(self.device)
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
        if "best.0" in tensors:
            self.best_state = [tensors[f"best.{i}"].to(self.device) for i in range(count)]
        torch.set_rng_state(tensors["rng.cpu"])
        if self.device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
        self.step, self.losses, self.history = saved.step, list(saved.losses), list(saved.history)
        self.best_step, self.best_score, self.since_best = saved.best_step, saved.best_score, saved.since_best


def make_optimizer(
    parameters: Sequence[nn.Parameter], config: TrainingConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Return AdamW or Adam over the parameters; biases and norms are not decayed."""
    fused = device.type in ("cpu", "cuda")
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.learning_rate, fused=fused)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)


def learning_rate_at(step: int, steps: int, config: TrainingConfig) -> float:
    """Return the learning rate of the step after ``step`` steps: rising through warm-up, then as scheduled."""
    warmup = math.ceil(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (steps - step) / max(1, steps - warmup)
