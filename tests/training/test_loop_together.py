"""Several sets trained in one pass: each learns what it would learn alone, whatever happens to the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from registry.adapters.interface import Dropout
from registry.config import AdapterConfig, HeadConfig, MethodConfig, TrainingConfig
from registry.errors import ConfigError, NonFiniteLossError, TrainingInterrupted
from registry.model.backbone import Backbone
from registry.model.batching import Batch
from registry.model.grouped import Tiers
from registry.model.inference import LabelledRows, mixed_logits
from registry.training.checkpoint import Checkpoint
from registry.training.loop import train, train_together
from registry.training.state import StepReport, TrainingJob, TrainingResult
from tests.support.stock_models import difference, random_rows
from tests.support.toy_task import (
    ADAPTER,
    HEAD,
    METHODS,
    TRAINING,
    labelled,
    moved,
    randomise,
    same_weights,
    stop_at,
    toy_rows,
)  # fmt: skip

SETTINGS = "5" * 64
TOLERANCE = 1e-6
LABELS = HeadConfig(
    label_names=("x", "y", "z"), problem_type="multi_label", pooling="cls", form="dense_tanh", dropout=0.2
)
NUMBER = HeadConfig(label_names=("score",), problem_type="regression", pooling="pooler")
FIVE = HeadConfig(label_names=tuple("abcde"), pooling="cls", dropout=0.1)
FROZEN = HeadConfig(label_names=("bad", "good"), trained=False)
PARALLEL = AdapterConfig(placement="parallel", reduction_factor=2, dropout=0.2, scale=2.0, layer_norms=True)
AFTER = AdapterConfig(placement="after_layer", reduction_factor=8, activation="relu")
PFEIFFER = AdapterConfig(placement="pfeiffer", reduction_factor=4, layer_norms=True, dropout=0.1)
WIDE = AdapterConfig(placement="pfeiffer", reduction_factor=1, layer_norms=True, dropout=0.3)
HOULSBY = AdapterConfig(placement="houlsby", reduction_factor=1, dropout=0.3, layers=(1,))


def changed(**fields: object) -> TrainingConfig:
    """Return the configuration of these tests with other fields."""
    return msgspec.structs.replace(TRAINING, **{"epochs": 4, **fields})


KINDS: tuple[tuple[MethodConfig | None, HeadConfig, TrainingConfig], ...] = (
    (ADAPTER, HEAD, changed()),
    (HOULSBY, HEAD, changed(epochs=2, batch_size=4, seed=7)),
    (PARALLEL, LABELS, changed(epochs=2, batch_size=5, seed=3)),
    (AFTER, NUMBER, changed(epochs=7, batch_size=16, optimizer="adam", schedule="constant", clip_norm=0.0, seed=1)),
    (PFEIFFER, HEAD, changed(evaluate_every=3, select_best="accuracy", learning_rate=1e-2, seed=2)),
    (ADAPTER, HEAD, changed(evaluate_every=1, patience=3, learning_rate=1e-9, seed=4)),
    (None, FIVE, changed(epochs=1, batch_size=3, seed=5)),
    (AFTER, FROZEN, changed(epochs=1, batch_size=40, clip_norm=0.1, seed=6)),
    (WIDE, HEAD, changed(epochs=3, batch_size=7, seed=8)),
    *((config, HEAD, changed(epochs=1, seed=9)) for config in METHODS.values()),
)


def new_jobs(backbone: Backbone, folder: Path | None = None) -> list[TrainingJob]:
    """Return a fresh job of each of ``KINDS``, with checkpoints where there is a folder for them."""
    return [
        TrainingJob(
            backbone.new_adapter_set(adapter, head, seed=config.seed),
            labelled(backbone, head, number),
            config,
            labelled(backbone, head, 50 + number) if config.holds_out else None,
            Checkpoint(folder / f"{number}", SETTINGS, resume=True, every=1000) if folder is not None else None,
        )
        for number, (adapter, head, config) in enumerate(KINDS)
    ]


def alone(backbone: Backbone, job: TrainingJob) -> TrainingResult:
    """Return what comes of a job in a training of its own."""
    return train(backbone.encoder, job.adapter_set, job.rows, job.config, held_out=job.held_out)


def together(
    backbone: Backbone, jobs: list[TrainingJob], should_stop: Callable[[], bool] | None = None
) -> list[TrainingResult | NonFiniteLossError]:
    """Return what comes of all jobs in one pass."""
    return train_together(backbone.encoder, jobs, should_stop=should_stop)


@pytest.fixture(scope="module")
def uninterrupted(tiny_backbone: Backbone) -> tuple[list[TrainingJob], list[TrainingResult | NonFiniteLossError]]:
    """All jobs trained together once, and what came of it."""
    jobs = new_jobs(tiny_backbone)
    return jobs, together(tiny_backbone, jobs)


def test_each_set_learns_what_it_learns_alone(
    tiny_backbone: Backbone, uninterrupted: tuple[list[TrainingJob], list[TrainingResult]]
) -> None:
    """Sets of any placement, size, dropout, task, batch size and length of training have the weights of their own."""
    digest = tiny_backbone.memory_digest()
    fresh = new_jobs(tiny_backbone)
    separate = new_jobs(tiny_backbone)
    for number, (job, joint, result) in enumerate(zip(separate, *uninterrupted, strict=True)):
        expected = alone(tiny_backbone, job)
        assert moved(job.adapter_set, joint.adapter_set) <= TOLERANCE, number
        assert moved(fresh[number].adapter_set, joint.adapter_set) >= 0.9 * job.config.learning_rate
        assert (expected.steps, expected.rows, expected.best_step) == (result.steps, result.rows, result.best_step)
        assert expected.final_loss == pytest.approx(result.final_loss, abs=1e-5)
        assert [step for step, _ in expected.history] == [step for step, _ in result.history]
        for (_, own), (_, joined) in zip(expected.history, result.history, strict=True):
            assert own == pytest.approx(joined, abs=1e-6)
    assert [20, 20, 16, 21, 20, 4, 14, 1, 18, *[5] * len(METHODS)] == [result.steps for result in uninterrupted[1]]
    assert uninterrupted[1][4].best_step < 20
    assert digest == tiny_backbone.memory_digest()


def test_tiers_as_on_a_gpu_teach_the_same(
    tiny_backbone: Backbone,
    uninterrupted: tuple[list[TrainingJob], list[TrainingResult]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where sets of one kind are computed in one batched product, they still learn what they learn alone."""
    monkeypatch.setattr("registry.model.mixed.group_sets", lambda states, device, weights: Tiers(states, device))
    jobs = new_jobs(tiny_backbone)
    together(tiny_backbone, jobs)
    for first, second in zip(uninterrupted[0], jobs, strict=True):
        assert moved(first.adapter_set, second.adapter_set) <= 2 * TOLERANCE


@pytest.mark.parametrize("pooling", ["cls", "pooler"])
def test_dropout_of_first_token_sets_is_the_same_beside_mean_pooled_ones(tiny_backbone: Backbone, pooling: str) -> None:
    """A set that looks at first tokens draws its masks as alone, though another needs the last layer's every token."""
    heads = [HeadConfig(label_names=("bad", "good"), pooling=each) for each in (pooling, "mean")]

    def jobs() -> list[TrainingJob]:
        return [
            TrainingJob(tiny_backbone.new_adapter_set(PARALLEL, head), toy_rows(tiny_backbone), changed())
            for head in heads
        ]

    separate, joint = jobs(), jobs()
    for job in separate:
        alone(tiny_backbone, job)
    together(tiny_backbone, joint)
    for one, other in zip(separate, joint, strict=True):
        assert moved(one.adapter_set, other.adapter_set) <= TOLERANCE


def test_repeated_training_is_bit_identical(
    tiny_backbone: Backbone, uninterrupted: tuple[list[TrainingJob], list[TrainingResult]]
) -> None:
    """The same jobs in the same order have the same weights to the last bit, and the caller's random draws stay."""
    again = new_jobs(tiny_backbone)
    torch.randn(5)
    before = torch.get_rng_state()
    together(tiny_backbone, again)
    assert torch.equal(before, torch.get_rng_state())
    for first, second in zip(uninterrupted[0], again, strict=True):
        assert same_weights(first.adapter_set, second.adapter_set)


def test_interrupted_training_resumes_bit_for_bit(
    tiny_backbone: Backbone,
    tmp_path: Path,
    uninterrupted: tuple[list[TrainingJob], list[TrainingResult]],
) -> None:
    """Stopped three times, every set's state is on disk, finished ones included, and the end is the same."""
    for step in (2, 6, 9):
        jobs = new_jobs(tiny_backbone, tmp_path)
        with pytest.raises(TrainingInterrupted, match=f"a checkpoint is kept in {tmp_path}"):
            together(tiny_backbone, jobs, stop_at(step, []))
        assert sorted(map(str, range(len(KINDS)))) == sorted(path.name for path in tmp_path.iterdir())
    jobs = new_jobs(tiny_backbone, tmp_path)
    results = together(tiny_backbone, jobs)
    for whole, resumed in zip(uninterrupted[0], jobs, strict=True):
        assert same_weights(whole.adapter_set, resumed.adapter_set)
    for expected, result in zip(uninterrupted[1], results, strict=True):
        assert isinstance(result, TrainingResult)
        assert (expected.steps, expected.final_loss, expected.best_step, expected.history) == (
            result.steps, result.final_loss, result.best_step, result.history,
        )  # fmt: skip


def test_stopping_writes_the_state_of_jobs_that_never_had_a_turn(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """A job without a place for its state is no obstacle for those that have one."""
    first, second = new_jobs(tiny_backbone, tmp_path)[:2]
    second = TrainingJob(second.adapter_set, second.rows, second.config)
    with pytest.raises(TrainingInterrupted, match="after step 1 of 20"):
        together(tiny_backbone, [first, second], stop_at(1, []))
    assert ["0"] == [path.name for path in tmp_path.iterdir()]


def diverging_jobs(backbone: Backbone) -> list[TrainingJob]:
    """Return two jobs that go well around three that do not: by a loss, a gradient and states that overflow."""
    good = new_jobs(backbone)
    head = HeadConfig(label_names=("score",), problem_type="regression")
    tokens = toy_rows(backbone).tokens
    zeros, far = LabelledRows(tokens, (0.0,) * 40), LabelledRows(tokens, tuple(1e30 * (row == 39) for row in range(40)))
    loss = backbone.new_adapter_set(ADAPTER, head)
    gradient = backbone.new_adapter_set(AFTER, head)
    states = backbone.new_adapter_set(msgspec.structs.replace(HOULSBY, reduction_factor=4), head)
    with torch.no_grad():
        gradient.adapter.get_parameter("bottlenecks.1_ffn.up.bias").fill_(1e25)
        gradient.head.out.weight.fill_(1e-10)
        states.adapter.get_parameter("bottlenecks.1_ffn.up.bias").fill_(1e25)
    return [
        good[0],
        TrainingJob(loss, far, changed(seed=2)),
        TrainingJob(gradient, zeros, changed()),
        TrainingJob(states, zeros, changed()),
        good[1],
    ]


def test_a_set_that_diverges_ends_alone(tiny_backbone: Backbone) -> None:
    """Its place holds its error, its weights are the last good ones, and the others learn what they learn alone."""
    separate, jobs, seen = diverging_jobs(tiny_backbone), diverging_jobs(tiny_backbone), []
    start = diverging_jobs(tiny_backbone)
    jobs[1] = TrainingJob(jobs[1].adapter_set, jobs[1].rows, jobs[1].config, observe=seen.append)
    first, *errors, last = together(tiny_backbone, jobs)
    assert {NonFiniteLossError} == {type(error) for error in errors}
    assert "expected a finite loss, found inf" in str(errors[0])
    assert "step 1: expected a finite gradient norm, found inf" in str(errors[1])
    assert "step 1: expected a finite loss, found nan" in str(errors[2])
    assert errors[0].step == len(seen) + 1 > 1
    assert all(same_weights(start[place].adapter_set, jobs[place].adapter_set) for place in (2, 3))
    for place, error in enumerate(errors, start=1):
        with pytest.raises(NonFiniteLossError) as caught:
            alone(tiny_backbone, separate[place])
        assert caught.value.step == error.step
    expected = [alone(tiny_backbone, separate[place]) for place in (0, 4)]
    assert [one.steps for one in expected] == [first.steps, last.steps]
    for one, other in zip(separate, jobs, strict=True):
        assert moved(one.adapter_set, other.adapter_set) <= TOLERANCE


def test_an_encoder_that_trains_takes_one_job_only(tiny_backbone: Backbone) -> None:
    """Two sets cannot both move one encoder and each be what it would be alone."""
    encoder, jobs = tiny_backbone.unfrozen_copy(), new_jobs(tiny_backbone)[:2]
    with pytest.raises(ConfigError, match="cannot use jobs: expected one, as the encoder trains with it, found 2"):
        train_together(encoder, jobs)
    assert 2 == len(train_together(tiny_backbone.encoder, jobs))


def test_a_job_that_cannot_run_stops_all_before_the_first_step(tiny_backbone: Backbone) -> None:
    """Settings are checked before anything is trained."""
    good, bad = new_jobs(tiny_backbone)[0], new_jobs(tiny_backbone)[4]
    start = new_jobs(tiny_backbone)[0].adapter_set
    with pytest.raises(ConfigError, match="held_out: expected rows for evaluate_every, found None"):
        together(tiny_backbone, [good, TrainingJob(bad.adapter_set, bad.rows, bad.config)])
    assert same_weights(start, good.adapter_set)


def test_no_jobs_have_no_results(tiny_backbone: Backbone) -> None:
    """An empty list is no error."""
    assert [] == together(tiny_backbone, [])


def test_reports_and_seconds_are_each_sets_own(tiny_backbone: Backbone) -> None:
    """Every job hears of its own steps, and the time of the pass is shared out among all."""
    reports: list[list[StepReport]] = [[], []]
    jobs = [
        TrainingJob(job.adapter_set, job.rows, job.config, observe=own.append)
        for job, own in zip(new_jobs(tiny_backbone), reports, strict=False)
    ]
    results = together(tiny_backbone, jobs)
    assert [(step, 20, 8) for step in range(1, 21)] == [(one.step, one.steps, one.rows) for one in reports[0]]
    assert [(step, 20, 4) for step in range(1, 21)] == [(one.step, one.steps, one.rows) for one in reports[1]]
    assert all(isinstance(result, TrainingResult) and result.seconds > 0 for result in results)


def test_modes_are_given_back(
    tiny_backbone: Backbone, uninterrupted: tuple[list[TrainingJob], list[TrainingResult]]
) -> None:
    """Sets train with dropout and go on in the mode they were in, drawing from nobody's generator."""
    jobs = new_jobs(tiny_backbone)[:3]
    jobs[1].adapter_set.eval()
    together(tiny_backbone, jobs)
    assert moved(uninterrupted[0][1].adapter_set, jobs[1].adapter_set) <= TOLERANCE
    assert [True, False, True] == [job.adapter_set.training for job in jobs]
    assert not tiny_backbone.encoder.training
    dropouts = [module for job in jobs for module in job.adapter_set.modules() if isinstance(module, Dropout)]
    assert {None} == {dropout.generator for dropout in dropouts}


def first_loss(backbone: Backbone, adapter: AdapterConfig, head: HeadConfig, seed: int) -> float:
    """Return the loss of a first step over all rows of a random set, which depends on the seed by dropout alone."""
    reports: list[StepReport] = []
    one = randomise(backbone.new_adapter_set(adapter, head))
    config = changed(epochs=1, batch_size=40, seed=seed)
    train(backbone.encoder, one, toy_rows(backbone), config, observe=reports.append)
    return reports[0].loss


@pytest.mark.parametrize(("in_adapter", "in_head"), [(0.5, 0.0), (0.0, 0.5)])
def test_dropout_is_active_in_training(tiny_backbone: Backbone, in_adapter: float, in_head: float) -> None:
    """Bottlenecks and head drop by the set's seed: the same again, others for another seed, none without a share."""
    adapter = AdapterConfig(placement="pfeiffer", reduction_factor=2, dropout=in_adapter)
    head = HeadConfig(label_names=("bad", "good"), dropout=in_head)
    without = (msgspec.structs.replace(adapter, dropout=0.0), msgspec.structs.replace(head, dropout=0.0))
    losses = [first_loss(tiny_backbone, adapter, head, seed) for seed in (0, 0, 1)]
    plain = [first_loss(tiny_backbone, *without, seed) for seed in (0, 1)]
    assert losses[0] == losses[1]
    assert abs(losses[0] - losses[2]) > 1e-4
    assert plain[0] == pytest.approx(plain[1], abs=1e-6)
    assert abs(losses[0] - plain[0]) > 1e-4


@pytest.mark.parametrize("form", ["linear", "dense_tanh"])
def test_sets_draw_from_the_generator_they_were_given(tiny_backbone: Backbone, form: str) -> None:
    """A forward repeats with a generator of the same seed, whatever the global one does, and not with another's."""
    head = HeadConfig(label_names=("bad", "good"), dropout=0.3, form=form)
    one, batch = randomise(tiny_backbone.new_adapter_set(ADAPTER, head)), Batch.pack(random_rows(words=100))

    def logits(seed: int | None) -> torch.Tensor:
        one.train(seed is not None)
        one.draw_dropout_from(torch.Generator().manual_seed(seed or 0))
        return mixed_logits(tiny_backbone.encoder, [one], batch)[0][1].detach()

    before = torch.get_rng_state()
    first, again, other, none = logits(1), logits(1), logits(2), logits(None)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert difference([first], [other]) > 1e-3
    assert difference([first], [none]) > 1e-3
