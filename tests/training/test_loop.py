"""Training one set: it learns, repeats exactly, stops cleanly, and touches nothing but what it should."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from registry.config import PLACEMENTS, AdapterConfig, HeadConfig, MethodConfig, TrainingConfig
from registry.errors import ConfigError, NonFiniteLossError
from registry.model.backbone import Backbone
from registry.model.batching import TokenRows
from registry.model.inference import LabelledRows, predict_probabilities
from registry.tasks.metrics import score
from registry.training.gradients import learning_rate_at, make_optimizer
from registry.training.loop import train
from registry.training.state import StepReport, TrainingJob, TrainingState
from tests.support.toy_task import ADAPTER, HEAD, METHODS, TRAINING, same_weights, toy_rows, train_fresh

SELECTING = msgspec.structs.replace(TRAINING, evaluate_every=2, select_best="accuracy")


def changed(config: TrainingConfig = TRAINING, **fields: object) -> TrainingConfig:
    """Return the configuration with other fields."""
    return msgspec.structs.replace(config, **fields)


def losses_of(backbone: Backbone, config: TrainingConfig, adapter: MethodConfig | None = ADAPTER) -> list[float]:
    """Return the loss of every step of a training on the toy rows."""
    losses: list[float] = []
    train_fresh(backbone, config, adapter, observe=lambda report: losses.append(report.loss))
    return losses


@pytest.mark.parametrize("method", [*PLACEMENTS, *(name for name in METHODS if "-" not in name), None])
def test_training_learns_a_separable_task(tiny_backbone: Backbone, method: str | None) -> None:
    """With any method, or a head alone, the loss falls and rows never seen are answered."""
    adapter = METHODS.get(method or "")
    if method in PLACEMENTS:
        adapter = AdapterConfig(placement=method, reduction_factor=4)
    few = method is None or method.startswith(("ia3", "prefix"))  # have little to learn with
    config = changed(epochs=50 if few else 16, learning_rate=5e-2 if few and method else 2e-2)
    losses = losses_of(tiny_backbone, config, adapter)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    trained, _ = train_fresh(tiny_backbone, config, adapter)
    unseen = toy_rows(tiny_backbone, 60, seed=9)
    scores = score(
        "classification",
        unseen.labels,
        predict_probabilities(tiny_backbone.encoder, trained, unseen.tokens),
        ("accuracy",),
    )
    assert scores["accuracy"] > 0.8


def test_head_alone_trains_on_states_pooled_once(tiny_backbone: Backbone) -> None:
    """Where only a head trains, the encoder answers every row once, whatever the number of epochs."""
    asked: list[int] = []
    watch = tiny_backbone.encoder.embeddings.register_forward_hook(
        lambda module, inputs, output: asked.append(inputs[0].row_count)
    )
    train_fresh(tiny_backbone, changed(epochs=3), None)
    once = sum(asked)
    asked.clear()
    train_fresh(tiny_backbone, changed(epochs=3), ADAPTER)
    watch.remove()
    assert (40, 3 * 40) == (once, sum(asked))


@pytest.mark.parametrize(
    ("head", "labels"),
    [
        (HeadConfig(label_names=tuple("abcde")), tuple(row % 5 for row in range(40))),
        (
            HeadConfig(label_names=("a", "b"), problem_type="multi_label"),
            tuple((int(row % 5 > 2), 1) for row in range(40)),
        ),
        (HeadConfig(label_names=("score",), problem_type="regression"), tuple(row % 5 * 0.5 for row in range(40))),
    ],
)
def test_every_problem_type_learns(
    tiny_backbone: Backbone, head: HeadConfig, labels: tuple[int, ...] | tuple[float, ...]
) -> None:
    """Five classes, several labels at once, or a number: the loss falls, and held-out rows can be scored."""
    rows = LabelledRows(toy_rows(tiny_backbone, words=("price", "rose", "fell", "court", "news")).tokens, labels)
    reports: list[StepReport] = []
    fresh = tiny_backbone.new_adapter_set(ADAPTER, head)
    config = changed(epochs=20, learning_rate=2e-2, evaluate_every=50)
    train(tiny_backbone.encoder, fresh, rows, config, held_out=rows, observe=reports.append)
    assert sum(report.loss for report in reports[-5:]) < 0.7 * sum(report.loss for report in reports[:5])
    assert [50, 100] == [report.step for report in reports if report.held_out_scores]


def test_same_seed_gives_the_same_weights(tiny_backbone: Backbone) -> None:
    """Equal settings give bit-identical weights, whatever was drawn before; another seed gives others."""
    first, _ = train_fresh(tiny_backbone)
    torch.randn(7)
    again, _ = train_fresh(tiny_backbone)
    other, _ = train_fresh(tiny_backbone, changed(seed=1))
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_training_leaves_the_global_generator_alone(tiny_backbone: Backbone) -> None:
    """Whoever trains between two random draws gets the draws of one who does not."""
    fresh, rows = tiny_backbone.new_adapter_set(ADAPTER, HEAD), toy_rows(tiny_backbone)
    before = torch.get_rng_state()
    train(tiny_backbone.encoder, fresh, rows, TRAINING)
    assert torch.equal(before, torch.get_rng_state())


def test_only_the_sets_parameters_get_gradients(tiny_backbone: Backbone) -> None:
    """What the optimizer changes is the set's parameters, all of them, and nothing else has a gradient."""
    fresh = tiny_backbone.new_adapter_set(AdapterConfig(reduction_factor=4, layer_norms=True), HEAD)
    start = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    run = TrainingState(tiny_backbone.encoder, TrainingJob(fresh, toy_rows(tiny_backbone), TRAINING))
    assert {id(parameter) for parameter in fresh.parameters()} == {id(parameter) for parameter in run.parameters}
    train(tiny_backbone.encoder, fresh, toy_rows(tiny_backbone), TRAINING)
    assert {None} == {parameter.grad for parameter in tiny_backbone.parameters()}
    assert [] == [name for name, tensor in fresh.state_dict().items() if torch.equal(start[name], tensor)]


def test_frozen_head_stays_as_it_was(tiny_backbone: Backbone) -> None:
    """A head that is not trained keeps its random start while the bottlenecks learn around it."""
    fresh = tiny_backbone.new_adapter_set(ADAPTER, HeadConfig(label_names=("bad", "good"), trained=False))
    start = fresh.head.state_dict()["out.weight"].clone()
    train(tiny_backbone.encoder, fresh, toy_rows(tiny_backbone), TRAINING)
    assert torch.equal(start, fresh.head.state_dict()["out.weight"])
    assert fresh.adapter.state_dict()["bottlenecks.0_ffn.up.weight"].abs().max() > 0


def test_modes_are_given_back(tiny_backbone: Backbone) -> None:
    """A set that was answering goes on answering without dropout after it was trained."""
    fresh = tiny_backbone.new_adapter_set(ADAPTER, HEAD).eval()
    train(tiny_backbone.encoder, fresh, toy_rows(tiny_backbone), TRAINING)
    assert (False, False) == (fresh.training, tiny_backbone.encoder.training)


def test_result_tells_what_was_done(tiny_backbone: Backbone) -> None:
    """Steps, rows and the mean loss of the last epoch are those of the reports."""
    reports: list[StepReport] = []
    _, result = train_fresh(tiny_backbone, observe=reports.append)
    assert (15, 120, 15, ()) == (result.steps, result.rows, result.best_step, result.history)
    assert list(range(1, 16)) == [report.step for report in reports]
    assert sum(report.loss for report in reports[-5:]) / 5 == pytest.approx(result.final_loss)
    assert [learning_rate_at(step, 15, TRAINING) for step in range(15)] == [report.learning_rate for report in reports]


def test_learning_rate_rises_and_falls() -> None:
    """Warm-up reaches the highest rate at its last step; linear decay ends one step above zero."""
    linear = TrainingConfig(learning_rate=1.0, warmup=0.2)
    assert [0.5, 1.0, 1.0, 0.875, 0.125] == [learning_rate_at(step, 10, linear) for step in (0, 1, 2, 3, 9)]
    constant = changed(linear, schedule="constant")
    assert [0.5, 1.0, 1.0, 1.0] == [learning_rate_at(step, 10, constant) for step in (0, 1, 2, 9)]
    assert [1.0, 0.5] == [learning_rate_at(step, 2, changed(linear, warmup=0.0)) for step in (0, 1)]
    assert 1.0 == learning_rate_at(0, 1, changed(linear, warmup=0.9))


def test_biases_and_norms_are_not_decayed() -> None:
    """Weight decay shrinks matrices only; plain Adam decays nothing."""
    layer, device = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), torch.device("cpu")
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
        nn.init.ones_(parameter)
    config = TrainingConfig(learning_rate=0.5, weight_decay=0.5)
    make_optimizer(list(layer.parameters()), config, device).step()
    assert [0.75, 1.0, 1.0, 1.0] == [float(parameter.detach().mean()) for parameter in layer.parameters()]
    make_optimizer(list(layer.parameters()), changed(config, optimizer="adam"), device).step()
    assert [0.75, 1.0, 1.0, 1.0] == [float(parameter.detach().mean()) for parameter in layer.parameters()]


@pytest.mark.parametrize(("clip_norm", "expected"), [(0.0, None), (1e-3, 1e-3)])
def test_gradients_are_clipped_to_the_norm(tiny_backbone: Backbone, clip_norm: float, expected: float | None) -> None:
    """No gradient is longer than ``clip_norm``, and 0 does not clip."""
    fresh = tiny_backbone.new_adapter_set(ADAPTER, HEAD)
    config = changed(epochs=1, clip_norm=clip_norm)
    train(tiny_backbone.encoder, fresh, toy_rows(tiny_backbone), config)
    norm = float(nn.utils.get_total_norm([p.grad for p in fresh.parameters() if p.grad is not None]))
    assert norm > 1e-2 if expected is None else norm == pytest.approx(expected, rel=1e-3)


def test_select_best_keeps_the_best_held_out_weights(tiny_backbone: Backbone) -> None:
    """The kept weights are those of the first step with the best score, bit for bit."""
    held_out = toy_rows(tiny_backbone, 20, seed=5)
    fresh = tiny_backbone.new_adapter_set(ADAPTER, HEAD)
    seen: dict[int, tuple[float, list[torch.Tensor]]] = {}

    def observe(report: StepReport) -> None:
        if report.held_out_scores:
            weights = [parameter.detach().clone() for parameter in fresh.parameters()]
            seen[report.step] = (report.held_out_scores["accuracy"], weights)

    config = changed(SELECTING, learning_rate=0.3)
    result = train(tiny_backbone.encoder, fresh, toy_rows(tiny_backbone), config, held_out=held_out, observe=observe)
    assert [2, 4, 6, 8, 10, 12, 14, 15] == list(seen) == [step for step, _ in result.history]
    best = max(seen, key=lambda step: seen[step][0])
    assert best == result.best_step < 15
    assert all(torch.equal(kept, now) for kept, now in zip(seen[best][1], fresh.parameters(), strict=True))
    answers = predict_probabilities(tiny_backbone.encoder, fresh, held_out.tokens)
    assert seen[best][0] == score("classification", held_out.labels, answers, ("accuracy",))["accuracy"]


def test_patience_stops_training(tiny_backbone: Backbone) -> None:
    """After as many evaluations without a better score as allowed, training ends."""
    rows = toy_rows(tiny_backbone)
    config = changed(epochs=20, evaluate_every=1, patience=3, learning_rate=1e-9)
    fresh = tiny_backbone.new_adapter_set(ADAPTER, HEAD)
    result = train(tiny_backbone.encoder, fresh, rows, config, held_out=rows)
    assert (4, 4) == (result.steps, len(result.history))


@pytest.mark.parametrize("metric", ["mse", "accuracy"])
def test_metric_that_cannot_select_is_refused_at_once(tiny_backbone: Backbone, metric: str) -> None:
    """A metric of another problem type, or one of which less is better, fails before the first step."""
    head = HeadConfig(label_names=("score",), problem_type="regression")
    fresh = tiny_backbone.new_adapter_set(ADAPTER, head)
    with pytest.raises(ConfigError, match=r"cannot use (select_best|metrics): expected .*, found '(mse|accuracy)'"):
        train(
            tiny_backbone.encoder,
            fresh,
            toy_rows(tiny_backbone),
            changed(SELECTING, select_best=metric),
            held_out=toy_rows(tiny_backbone),
        )


def test_held_out_rows_are_asked_for(tiny_backbone: Backbone) -> None:
    """Scores on held-out rows need held-out rows."""
    with pytest.raises(ConfigError, match="held_out: expected rows for evaluate_every, found None"):
        train_fresh(tiny_backbone, SELECTING)


def test_infinite_loss_keeps_the_last_good_weights(tiny_backbone: Backbone) -> None:
    """A loss that overflows stops training before it reaches any weight."""
    rows = toy_rows(tiny_backbone)
    values = LabelledRows(rows.tokens, tuple(1e30 if row == 39 else 0.0 for row in range(40)))
    fresh = tiny_backbone.new_adapter_set(ADAPTER, HeadConfig(label_names=("score",), problem_type="regression"))
    seen: list[list[torch.Tensor]] = []

    def observe(report: StepReport) -> None:
        seen.append([parameter.detach().clone() for parameter in fresh.parameters()])

    with pytest.raises(NonFiniteLossError, match="expected a finite loss, found inf at learning rate") as caught:
        train(tiny_backbone.encoder, fresh, values, changed(seed=2), observe=observe)
    assert len(seen) + 1 == caught.value.step > 1
    assert all(torch.equal(kept, now) for kept, now in zip(seen[-1], fresh.parameters(), strict=True))


def test_infinite_gradient_of_a_finite_loss_keeps_the_last_good_weights(tiny_backbone: Backbone) -> None:
    """A gradient may overflow where the loss does not; it never reaches the weights either."""
    head = HeadConfig(label_names=("score",), problem_type="regression")
    fresh = tiny_backbone.new_adapter_set(AdapterConfig(reduction_factor=4, layers=(1,)), head)
    with torch.no_grad():
        fresh.adapter.get_parameter("bottlenecks.1_ffn.up.bias").fill_(1e25)
        fresh.head.out.weight.fill_(1e-10)
    start = [parameter.detach().clone() for parameter in fresh.parameters()]
    rows = LabelledRows(toy_rows(tiny_backbone).tokens, tuple(0.0 for _ in range(40)))
    for clip_norm in (0.0, 1.0):
        with pytest.raises(NonFiniteLossError, match="step 1: expected a finite gradient norm, found inf at"):
            train(tiny_backbone.encoder, fresh, rows, changed(clip_norm=clip_norm))
    assert all(torch.equal(kept, now) for kept, now in zip(start, fresh.parameters(), strict=True))


def test_absurd_learning_rate_leaves_finite_weights(tiny_backbone: Backbone) -> None:
    """The highest rate that the configuration allows either stops with an error or ends; no weight becomes NaN."""
    fresh = tiny_backbone.new_adapter_set(ADAPTER, HEAD)
    config = changed(epochs=20, learning_rate=9.9, weight_decay=5.0, schedule="constant", clip_norm=0.0)
    with contextlib.suppress(NonFiniteLossError):
        train(tiny_backbone.encoder, fresh, toy_rows(tiny_backbone), config)
    assert all(bool(parameter.isfinite().all()) for parameter in fresh.parameters())


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_full_fine_tuning_trains_a_copy_only(tiny_backbone: Backbone, autocast: torch.dtype | None) -> None:
    """Every weight of the copy that matters learns, in either precision, and the backbone keeps every bit."""
    digest, encoder = tiny_backbone.memory_digest(), tiny_backbone.unfrozen_copy()
    fresh = tiny_backbone.new_adapter_set(None, HEAD)
    losses: list[float] = []
    config = changed(epochs=12, learning_rate=5e-3)
    train(
        encoder,
        fresh,
        toy_rows(tiny_backbone),
        config,
        autocast_dtype=autocast,
        observe=lambda report: losses.append(report.loss),
    )
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert digest == tiny_backbone.memory_digest()
    assert {torch.float32} == {parameter.dtype for parameter in encoder.parameters()}
    moved = dict(encoder.named_parameters())
    for name, frozen in tiny_backbone.encoder.named_parameters():
        assert torch.equal(frozen, moved[name]) == name.startswith("pooler")


def test_bfloat16_backbone_trains(tiny_backbone: Backbone, tiny_folder: Path) -> None:
    """On a half-precision backbone a set trains in float32 and ends near what float32 gives."""
    half = Backbone.load(str(tiny_folder), device="cpu", dtype="bfloat16")
    adapter, config = AdapterConfig(placement="houlsby", reduction_factor=4), changed(epochs=6, learning_rate=1e-2)
    on_half, _ = train_fresh(half, config, adapter)
    exact, _ = train_fresh(tiny_backbone, config, adapter)
    assert {torch.float32} == {parameter.dtype for parameter in on_half.parameters()}
    rows: TokenRows = toy_rows(half).tokens
    answers = predict_probabilities(half.encoder, on_half, rows)
    assert 0.9 <= score("classification", toy_rows(half).labels, answers, ("accuracy",))["accuracy"]
    assert abs(answers - predict_probabilities(tiny_backbone.encoder, exact, rows)).max() < 0.2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_training_on_cuda_is_near_the_cpu(tiny_backbone: Backbone, tiny_folder: Path) -> None:
    """In float32 and without dropout an epoch on CUDA has the losses of one on the CPU, from the same start."""
    on_cuda = Backbone.load(str(tiny_folder), device="cuda", dtype="float32")
    adapter, head = AdapterConfig(placement="houlsby", reduction_factor=4), HeadConfig(label_names=("bad", "good"))
    losses: list[list[float]] = []
    for backbone in (tiny_backbone, on_cuda):
        fresh, reports = backbone.new_adapter_set(adapter, head), []
        train(backbone.encoder, fresh, toy_rows(backbone), changed(epochs=1), observe=reports.append)
        losses.append([report.loss for report in reports])
    assert losses[0] == pytest.approx(losses[1], abs=1e-2)


def test_a_report_tells_how_fast_the_last_steps_were(tiny_backbone: Backbone) -> None:
    """Rows per second are those of the last twenty steps over their time; after the first step nothing is known."""
    reports: list[StepReport] = []
    train_fresh(tiny_backbone, observe=reports.append)
    assert math.isnan(reports[0].rows_per_second)
    for number, report in enumerate(reports[1:], 1):
        recent = reports[max(0, number - 19) : number + 1]
        seconds = recent[-1].seconds - recent[0].seconds
        assert pytest.approx(sum(each.rows for each in recent[1:]) / seconds) == report.rows_per_second
