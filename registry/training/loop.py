"""Train adapter sets on their rows: one, or several in one pass of the backbone.

It sees an encoder, sets, token rows and configurations; it knows nothing of names, stores or files of data. Sets
trained together share the backbone's batches and nothing else: each has its own loss, clip norm, schedule and seed, so
each learns what it would learn alone. The encoder is a frozen backbone's, or a separate trainable copy for full
fine-tuning: the loop is the same, since what trains is whatever requires a gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.config import TrainingConfig
from registry.errors import ConfigError, NonFiniteLossError, TrainingInterrupted
from registry.graphs.capture import Capture, can_capture
from registry.graphs.step import GraphedSteps
from registry.model.batching import Batch, TokenRows
from registry.model.encoder import Encoder
from registry.model.inference import LabelledRows, mixed_logits, pool_rows
from registry.training.cached_states import MOST_BYTES, CachedStates, packed_order
from registry.training.checkpoint import Checkpoint
from registry.training.gradients import Ranks, clip
from registry.training.state import Loss, StepReport, TrainingJob, TrainingResult, TrainingState


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
    loss: Loss | None = None,
    ranks: Ranks | None = None,
    capture: Capture | None = None,
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
        loss: an own one, of (B, C) logits and their labels: (B,) classes, (B, C) zeros and ones, (B, 1) scores.
        ranks: the processes that do this together; each calls this with the same arguments on its own device, and
            the first alone writes checkpoints.
        capture: records steps, to be taken in one go (see ``train_together``).

    Raises:
        ConfigError: no held-out rows for scores on them, or a metric to select by that does not fit.
        NonFiniteLossError: the loss or its gradient became NaN or infinite.
        TrainingInterrupted: ``should_stop`` said so.
        CheckpointError: the state there was made by other settings or is damaged.
    """
    job = TrainingJob(adapter_set, rows, config, held_out, checkpoint, observe, loss)
    (result,) = train_together(
        encoder, [job], autocast_dtype=autocast_dtype, should_stop=should_stop, ranks=ranks, capture=capture
    )
    if isinstance(result, NonFiniteLossError):
        raise result
    return result


def train_together(
    encoder: Encoder,
    jobs: Sequence[TrainingJob],
    *,
    autocast_dtype: torch.dtype | None = None,
    should_stop: Callable[[], bool] | None = None,
    ranks: Ranks | None = None,
    capture: Capture | None = None,
) -> list[TrainingResult | NonFiniteLossError]:
    """Train several sets in place, the rows of all of them in each batch of the encoder.

    Each learns what ``train`` would teach it alone, up to rounding (float32: weights within 1e-6 after 20 steps). A set
    whose loss diverges ends with its error; the others go on.

    Args:
        encoder: frozen, unless there is only one job.
        jobs: of any placements, sizes, tasks, batch sizes and numbers of steps.
        autocast_dtype: mixed precision for an unfrozen encoder.
        should_stop: asked after every step; True writes all checkpoints and raises.
        ranks: the processes that train one set together.
        capture: records the steps of a set that trains alone, in one process, on a frozen encoder that ``can_capture``
            allows, from the first layer on, by a usual loss and without gradient accumulation; all other steps are
            taken the usual way, as are all without it. Dropout draws other masks than it does without.

    Raises:
        ConfigError: no held-out rows for scores on them, a metric to select by that does not fit, or several sets with
            an encoder that trains or over several ranks, where each rank may as well train its own.
        TrainingInterrupted: ``should_stop`` said so.
        CheckpointError: a state there was made by other settings or is damaged.
    """
    unfrozen = any(parameter.requires_grad for parameter in encoder.parameters())
    if unfrozen and len(jobs) > 1:
        raise ConfigError("jobs", "one, as the encoder trains with it", len(jobs))
    if ranks is not None and len(jobs) != 1:
        raise ConfigError("jobs", "one, as several ranks share each of its batches", len(jobs))
    runs = [TrainingState(encoder, job, autocast_dtype) for job in jobs]
    device = encoder.embeddings.word.weight.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(jobs[0].config.seed if jobs else 0)  # only an unfrozen encoder draws from it
        for run in runs:
            run.restore()
            if ranks is not None:
                ranks.start_alike(run.parameters)
                run.generator.manual_seed(run.config.seed + 1_000_003 * ranks.rank + run.step)
        modes = encoder.training, [run.adapter_set.training for run in runs]
        for run in runs:
            run.adapter_set.train()
            run.adapter_set.draw_dropout_from(run.generator)
        try:
            _Pass(encoder, runs, autocast_dtype, ranks, capture).loop(should_stop)
        finally:
            encoder.train(modes[0])
            for run, mode in zip(runs, modes[1], strict=True):
                run.adapter_set.train(mode)
                run.adapter_set.draw_dropout_from(None)
    return [run.error or run.finish() for run in runs]


class _Pass:
    """All runs over one encoder, step by step."""

    def __init__(
        self,
        encoder: Encoder,
        runs: Sequence[TrainingState],
        autocast_dtype: torch.dtype | None,
        ranks: Ranks | None = None,
        capture: Capture | None = None,
    ) -> None:
        self.encoder, self.runs, self.autocast_dtype, self.ranks = encoder, runs, autocast_dtype, ranks
        self.device = encoder.embeddings.word.weight.device
        self.pooled: dict[TrainingState, Tensor] = {}  # (R, H) where only a head trains
        through = [run for run in runs if not run.only_head_trains]
        frozen = not any(parameter.requires_grad for parameter in encoder.parameters())
        self.layer = min((run.adapter_set.lowest_layer for run in through), default=0) if frozen else 0
        if not CachedStates.fits(encoder, {id(run.job.rows.tokens): run.job.rows.tokens for run in through}.values()):
            self.layer = 0
        self.graphed: GraphedSteps | None = None
        alone = frozen and ranks is None and len(runs) == len(through) == 1 and self.layer == 0
        if capture is not None and alone and can_capture(encoder, runs[0].adapter_set.adapter):
            self.graphed = _graphed_steps(runs[0], capture)
        self.prefixes: dict[int, CachedStates] = {}  # by the identity of the rows, which seeds of one task share

    def loop(self, should_stop: Callable[[], bool] | None) -> None:
        """Take all remaining steps of all runs."""
        while active := [run for run in self.runs if not run.is_done]:
            self._step(active)
            stop = should_stop is not None and should_stop()
            if self.ranks is not None and should_stop is not None:
                stop = self.ranks.sum(float(stop), self.device) > 0  # whoever is asked, all stop after the same step
            stop = stop and any(not run.is_done for run in self.runs)
            if self.ranks is None or self.ranks.rank == 0:
                for run in self.runs if stop else active:
                    run.write_checkpoint(is_last=stop)
            if stop:
                first = next(run for run in self.runs if not run.is_done)
                path = first.job.checkpoint.path if first.job.checkpoint is not None else None
                raise TrainingInterrupted(first.step, first.steps, path)

    def _step(self, active: Sequence[TrainingState]) -> None:
        """Take one step of each of the runs."""
        started = time.perf_counter()
        chosen = {run: run.next_rows() for run in active}
        values = dict.fromkeys(active, 0.0)
        clipped: float | None = None
        for run in active:
            run.optimizer.zero_grad(set_to_none=True)
        for place in range(max(run.config.gradient_accumulation_steps for run in active)):
            clipped = self._accumulate(chosen, place, values)
        learning = [run for run in active if run.error is None]
        if self.ranks is not None:
            for run in learning:
                self.ranks.sum_gradients(run.parameters)
        tokens = {run: sum(run.lengths[i] for i in chosen[run]) for run in active}
        passed = time.perf_counter() - started
        for run in active:
            run.seconds += passed * tokens[run] / sum(tokens.values())
        for run in learning:
            began = time.perf_counter()
            norm = float(clip(run.parameters, run.config.clip_norm)) if clipped is None else clipped
            report = run.learn(values[run], len(chosen[run]), norm)
            run.seconds += time.perf_counter() - began
            if report is not None and run.job.observe is not None:
                run.job.observe(run.timed(report))

    def _accumulate(
        self, chosen: dict[TrainingState, list[int]], place: int, values: dict[TrainingState, float]
    ) -> float | None:
        """Add the gradients of each run's ``place``-th batch of its step, and their part of the step's loss.

        What is returned is their norm where they went through a graph, which is a whole step and clips them.
        """
        parts: dict[TrainingState, list[int]] = {}
        for run, rows in chosen.items():
            part = rows[place * run.config.batch_size : (place + 1) * run.config.batch_size]
            if part and run.error is None:
                parts[run] = part
        if not parts:
            return None
        if self.ranks is not None:
            parts = {run: self.ranks.part(part) for run, part in parts.items()}
        if self.graphed is not None:
            ((run, rows),) = parts.items()
            at_once = self.graphed.learn_from(rows, run.rows_of(run.step + 1) if run.step + 1 < run.steps else None)
            if at_once is not None:
                values[run], norm = at_once
                run.accept(values[run])
                return norm
        own = {run: part for run, part in parts.items() if part}
        losses = {run: run.loss(logits, own[run]) for run, logits in self._logits(own).items()}
        shares = {run: run.share(own[run], chosen[run]) for run in losses}
        stacked = torch.stack(list(losses.values())).tolist() if losses else []  # one wait for the device
        found = {run: loss * shares[run] for run, loss in zip(losses, stacked, strict=True)}
        if self.ranks is not None:
            found = {run: self.ranks.sum(found.get(run, 0.0), self.device) for run in parts}
        accepted = [run for run in found if run.accept(found[run])]
        for run in accepted:
            values[run] += found[run]
        learning = [run for run in accepted if run in losses]
        if learning:
            scaled = [losses[run] if shares[run] == 1.0 else losses[run] * shares[run] for run in learning]
            torch.stack(scaled).sum().backward()  # type: ignore[no-untyped-call]
        return None

    def _logits(self, chosen: dict[TrainingState, list[int]]) -> dict[TrainingState, Tensor]:
        """Return the (B, C) logits of each run's rows in their order, ready for the backward pass."""
        logits = {run: self._head_logits(run, rows) for run, rows in chosen.items() if run.only_head_trains}
        through = [run for run in chosen if run not in logits]
        # A set that looks at first tokens alone has fewer states in the last layer, and so draws fewer dropout masks;
        # it would draw more beside one that looks at all tokens.
        for of_all_tokens in (False, True):
            alike = [run for run in through if (run.adapter_set.head_config.pooling == "mean") == of_all_tokens]
            if alike:
                logits |= self._passed_through(alike, chosen)
        return logits

    def _passed_through(
        self, runs: Sequence[TrainingState], chosen: dict[TrainingState, list[int]]
    ) -> dict[TrainingState, Tensor]:
        """Return the (B, C) logits of each run's rows from one batch of the encoder."""
        taken = [run.job.rows.tokens.take(chosen[run]) for run in runs]
        owners = [owner for owner, rows in enumerate(taken) for _ in range(len(rows))]
        batch = Batch.pack(_join(taken), owners, self.device)
        entering = None
        if self.layer > 0:
            states = torch.cat([self._prefix(run).of(chosen[run]) for run in runs])
            entering = states.index_select(0, packed_order(batch))
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            sets = [run.adapter_set for run in runs]
            answered = mixed_logits(self.encoder, sets, batch, entering, self.layer)
        order = batch.order.tolist()
        logits: dict[TrainingState, Tensor] = {}
        for owner, (packed, answers) in answered.items():
            callers = [order[row] for row in packed]  # rising by set, so a set's own rows need no offset to be sorted
            places = sorted(range(len(callers)), key=callers.__getitem__)
            logits[runs[owner]] = answers.float().index_select(0, torch.tensor(places, device=self.device))
        return logits

    def _head_logits(self, run: TrainingState, rows: Sequence[int]) -> Tensor:
        tokens = run.job.rows.tokens
        if len(tokens) * self.encoder.hidden_size * torch.float32.itemsize > MOST_BYTES:
            pooled = pool_rows(self.encoder, run.adapter_set, tokens.take(rows))
        else:
            if run not in self.pooled:  # what a frozen head-only model pools is the same in every epoch
                self.pooled[run] = pool_rows(self.encoder, run.adapter_set, tokens)
            pooled = self.pooled[run][torch.tensor(rows, device=self.device)]
        logits: Tensor = run.adapter_set.head(pooled)
        return logits

    def _prefix(self, run: TrainingState) -> CachedStates:
        rows = run.job.rows.tokens
        if id(rows) not in self.prefixes:
            self.prefixes[id(rows)] = CachedStates(self.encoder, rows, self.layer)
        return self.prefixes[id(rows)]


def _graphed_steps(run: TrainingState, capture: Capture) -> GraphedSteps | None:
    """Return what takes a run's steps through graphs, None where one is several batches or has a loss of its own."""
    config = run.config
    if run.job.loss is not None or config.gradient_accumulation_steps > 1:
        return None
    weights, smoothing, clipping = run.class_weights, config.label_smoothing, partial(clip, most=config.clip_norm)
    rows, generator = run.job.rows, run.generator
    return GraphedSteps(run.encoder, run.adapter_set, rows, weights, smoothing, clipping, generator, capture)


def _join(parts: Sequence[TokenRows]) -> TokenRows:
    """Return the rows of all parts, one after the other."""
    return TokenRows(
        [ids for rows in parts for ids in rows.input_ids], [ids for rows in parts for ids in rows.type_ids]
    )
