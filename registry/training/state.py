"""The state of one set's training between two steps: what comes next, and what a step does to it.

A run draws everything random from generators of its own, so it learns the same whether it is trained alone or beside
others (training.py). It does not know how logits are made.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy
import torch
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.head import check_labels, find_class_weights, label_tensor, loss_of
from registry.config import TrainingConfig
from registry.errors import CheckpointError, ConfigError, NonFiniteLossError
from registry.model.batching import shuffled_batches
from registry.model.encoder import Encoder
from registry.model.inference import LabelledRows, predict_probabilities
from registry.schema import SetInfo
from registry.tasks.metrics import check_metrics, score
from registry.tasks.spec import LOWER_IS_BETTER, METRICS
from registry.training.checkpoint import Checkpoint, Snapshot
from registry.training.gradients import learning_rate_at, make_optimizer
from registry.validation import require

_RECENT_STEPS = 20
_DIVERGED = 2.0


Loss = Callable[[Tensor, Tensor], Tensor]  # of (B, C) logits and the labels as ``label_tensor`` makes them


@dataclass(frozen=True)
class StepReport:
    """What a progress display or a live log wants to know after a step.

    Attributes:
        step, steps: how many were taken, and how many there are in all.
        loss: of the step's rows, before the step.
        rows: of the step.
        learning_rate: the one just used.
        gradient_norm: before it was clipped.
        seconds: wall time of the training so far, observers left out; of sets trained together each has its share.
        held_out_scores: after the step, where it was time for them.
        rows_per_second: over the last twenty steps; NaN after the first one.
    """

    step: int
    steps: int
    loss: float
    rows: int
    learning_rate: float
    gradient_norm: float = 0.0
    seconds: float = 0.0
    held_out_scores: dict[str, float] = field(default_factory=dict)
    rows_per_second: float = math.nan


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training run.

    Attributes:
        steps: optimizer steps taken.
        final_loss: mean loss of the last epoch's steps.
        seconds: wall time of the loop; of sets trained together each has its share by tokens.
        rows: rows seen, every epoch counted, in this process.
        first_loss: of the first step.
        diverged: whether the weights kept are worse than none: the last epoch's loss is more than twice the first one
            and that of answering all rows alike.
        best_step: the step whose weights were kept; the last one without ``select_best``.
        history: (step, held-out scores) of each evaluation.
    """

    steps: int
    final_loss: float
    seconds: float
    rows: int
    best_step: int
    history: tuple[tuple[int, dict[str, float]], ...]
    first_loss: float = math.nan
    diverged: bool = False


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """One set to train.

    Attributes:
        adapter_set: changed in place; after an error it holds the weights of the last good step.
        rows: what to train on.
        config: all choices.
        held_out: rows for ``config.evaluate_every``; never those of the reported split.
        checkpoint: where to write state every so often; a state that is there already is continued.
        observe: called after every step.
        loss: an own one, of which ``config.loss`` is the name.
    """

    adapter_set: AdapterSet
    rows: LabelledRows
    config: TrainingConfig
    held_out: LabelledRows | None = None
    checkpoint: Checkpoint | None = None
    observe: Callable[[StepReport], None] | None = None
    loss: Loss | None = None


class TrainingState:
    """A job under way.

    Args:
        encoder: frozen, or trained as well (full fine-tuning).
        job: what to train.
        autocast_dtype: mixed precision for an unfrozen encoder.

    Raises:
        ConfigError: no held-out rows for scores on them, or a metric to select by or class weights that do not fit.
    """

    def __init__(self, encoder: Encoder, job: TrainingJob, autocast_dtype: torch.dtype | None = None) -> None:
        config, head = job.config, job.adapter_set.head_config
        if config.holds_out and job.held_out is None:
            raise ConfigError("held_out", "rows for evaluate_every", None)
        if config.loss is not None and job.loss is None:
            raise ConfigError("loss", f"the function {config.loss}, given in Python as loss=", None)
        self.metric = config.select_best or METRICS[head.problem_type][0]
        check_metrics(head.problem_type, len(head.label_names), (self.metric,))
        more = self.metric not in LOWER_IS_BETTER
        require(more, "select_best", "a metric of which more is better", self.metric)
        check_labels(head, job.rows.labels, len(job.rows.tokens))
        self.encoder, self.job, self.config, self.autocast_dtype = encoder, job, config, autocast_dtype
        self.adapter_set = job.adapter_set
        self.device = encoder.embeddings.word.weight.device
        self.class_weights = find_class_weights(head, config, job.rows.labels, self.device)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.lengths = job.rows.tokens.lengths
        self.steps_per_epoch = math.ceil(len(job.rows) / config.step_rows)
        self.steps = self.steps_per_epoch * config.epochs
        modules = (encoder, job.adapter_set)
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.parameters, config, self.device)
        self.step, self.rows_seen, self.seconds = 0, 0, 0.0
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT_STEPS)
        self.losses: list[float] = []
        self.first_loss = math.nan
        self.best_step, self.best_score, self.since_best = 0, -math.inf, 0
        self.best_state: list[Tensor] | None = None
        self.history: list[tuple[int, dict[str, float]]] = []
        self.error: NonFiniteLossError | None = None
        self._epoch: tuple[int, list[numpy.typing.NDArray[numpy.int64]]] = (-1, [])

    @property
    def only_head_trains(self) -> bool:
        """Return whether the pooled states are the same at every step."""
        below_head = (*self.encoder.parameters(), *self.adapter_set.adapter.parameters())
        return not any(parameter.requires_grad for parameter in below_head)

    @property
    def is_done(self) -> bool:
        """Return whether no step is left: all taken, no better score for too long, or an error."""
        out_of_patience = self.config.patience is not None and self.since_best >= self.config.patience
        return self.step >= self.steps or out_of_patience or self.error is not None

    def next_rows(self) -> list[int]:
        """Return the indices of the rows of the next step."""
        if self.step % self.steps_per_epoch == 0:
            self.losses = []
        return self.rows_of(self.step)

    def rows_of(self, step: int) -> list[int]:
        """Return the indices of the rows of the step that comes after so many; later steps are asked later."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, shuffled_batches(self.lengths, self.config.step_rows, self.config.seed, epoch)
        return list(map(int, self._epoch[1][place]))

    def loss(self, logits: Tensor, indices: Sequence[int]) -> Tensor:
        """Return the mean loss of (B, C) logits for the rows at ``indices``."""
        head = self.adapter_set.head_config
        labels = self._labels(indices)
        if self.job.loss is not None:
            loss = self.job.loss(logits, labels)
            good = isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            require(good, "loss", "a scalar tensor that depends on the logits", found)
            return loss
        return loss_of(head.problem_type, logits, labels, self.class_weights, self.config.label_smoothing)

    def share(self, indices: Sequence[int], of: Sequence[int]) -> float:
        """Return how much the mean loss of some rows counts in that of a whole step."""
        if len(indices) == len(of):
            return 1.0
        weights, head = self.class_weights, self.adapter_set.head_config
        if weights is None or head.problem_type != "classification":
            return len(indices) / len(of)
        return float(weights[self._labels(indices)].sum() / weights[self._labels(of)].sum())

    def _labels(self, indices: Sequence[int]) -> Tensor:
        return label_tensor(self.adapter_set.head_config, [self.job.rows.labels[i] for i in indices], self.device)

    def accept(self, loss: float) -> bool:
        """Return whether a loss can be learned from; otherwise the run ends here with its error."""
        if not math.isfinite(loss):
            self.error = NonFiniteLossError(self.step + 1, loss, self.learning_rate)
        return self.error is None

    @property
    def learning_rate(self) -> float:
        """Return the learning rate of the next step."""
        return learning_rate_at(self.step, self.steps, self.config)

    def learn(self, loss: float, rows: int, norm: float) -> StepReport | None:
        """Take the optimizer's step with the gradients that are there; score, remember, and return what to report.

        The gradients are clipped, and ``norm`` was theirs before.
        """
        rate = self.learning_rate
        if not math.isfinite(norm):
            self.error = NonFiniteLossError(self.step + 1, norm, rate, "gradient norm")
            return None
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        self.rows_seen += rows
        self.losses.append(loss)
        self.first_loss = loss if self.step == 1 else self.first_loss
        scores = self._score_held_out()
        return StepReport(self.step, self.steps, loss, rows, rate, norm, self.seconds, scores)

    def timed(self, report: StepReport) -> StepReport:
        """Return the report of the last step with its time, which is known only when the step is over."""
        self._recent.append((self.seconds, report.rows))
        seconds = self._recent[-1][0] - self._recent[0][0]
        rows = sum(rows for _, rows in list(self._recent)[1:])
        return replace(report, seconds=self.seconds, rows_per_second=rows / seconds if seconds > 0 else math.nan)

    def _score_held_out(self) -> dict[str, float]:
        """Return the scores on held-out rows if it is time for them, and remember the best weights."""
        every, held_out = self.config.evaluate_every, self.job.held_out
        if every is None or held_out is None or (self.step % every != 0 and self.step != self.steps):
            return {}
        probabilities = predict_probabilities(self.encoder, self.adapter_set, held_out.tokens, self.autocast_dtype)
        scores = score(self.adapter_set.head_config.problem_type, held_out.labels, probabilities, (self.metric,))
        self.history.append((self.step, scores))
        self.since_best += 1
        if scores[self.metric] > self.best_score:
            self.best_step, self.best_score, self.since_best = self.step, scores[self.metric], 0
            self.best_state = [tensor.detach().clone() for tensor in self.parameters]
        return scores

    def finish(self) -> TrainingResult:
        """Return what came of the run, after putting back the best weights where they were asked for."""
        selects = self.config.select_best is not None
        if selects and self.best_state is not None:
            self._load_weights(self.best_state)
        if self.adapter_set.info is None:
            self.adapter_set.info = SetInfo(max_length=self.config.max_length, training=self.config)
        final_loss = sum(self.losses) / max(1, len(self.losses))
        return TrainingResult(
            steps=self.step,
            final_loss=final_loss,
            first_loss=self.first_loss,
            diverged=not selects and final_loss > _DIVERGED * self._usual_loss(),
            seconds=self.seconds,
            rows=self.rows_seen,
            best_step=self.best_step if selects else self.step,
            history=tuple(self.history),
        )

    def _usual_loss(self) -> float:
        """Return the first step's loss, or that of answering all rows alike where that is more."""
        head = self.adapter_set.head_config
        alike = {"classification": math.log(max(2, len(head.label_names))), "multi_label": math.log(2)}
        first = 0.0 if math.isnan(self.first_loss) else self.first_loss
        if self.job.loss is not None:
            return first
        return max(first, alike.get(head.problem_type, 1.0))  # of standard scores the variance is 1

    def write_checkpoint(self, is_last: bool) -> None:
        """Write the state where it is wanted: every so many steps, and before stopping."""
        checkpoint = self.job.checkpoint
        if checkpoint is not None and (is_last or checkpoint.is_due(self.step)):
            checkpoint.write(self._snapshot())

    def _load_weights(self, state: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, tensor in zip(self.parameters, state, strict=True):
                parameter.copy_(tensor)

    def _snapshot(self) -> Snapshot:
        """Return everything that the next step depends on."""
        tensors = {f"weight.{i}": p.detach() for i, p in enumerate(self.parameters)}
        for i, parameter in enumerate(self.parameters):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{i}.{name}"] = value
        for i, tensor in enumerate(self.best_state or ()):
            tensors[f"best.{i}"] = tensor
        tensors["rng.set"] = self.generator.get_state()
        tensors["rng.cpu"] = torch.get_rng_state()  # an unfrozen encoder's dropout draws from the global generators
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        return Snapshot(
            tensors=tensors,
            step=self.step,
            losses=self.losses,
            first_loss=self.first_loss,
            best_step=self.best_step,
            best_score=self.best_score,
            since_best=self.since_best,
            history=self.history,
        )

    def restore(self) -> None:
        """Continue from the checkpoint, where there is one to continue.

        Raises:
            CheckpointError: it was made by other settings or is damaged.
        """
        saved = self.job.checkpoint.read() if self.job.checkpoint is not None else None
        if saved is None:
            return
        tensors = saved.tensors
        if "rng.set" not in tensors and self.job.checkpoint is not None:
            raise CheckpointError(self.job.checkpoint.path, "a checkpoint of this version", "one of an older version")
        count = len(self.parameters)
        self._load_weights([tensors[f"weight.{i}"] for i in range(count)])
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
        self.generator.set_state(tensors["rng.set"])
        torch.set_rng_state(tensors["rng.cpu"])
        if self.device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
        self.step, self.losses, self.history = saved.step, list(saved.losses), list(saved.history)
        self.first_loss = saved.first_loss
        self.best_step, self.best_score, self.since_best = saved.best_step, saved.best_score, saved.since_best
