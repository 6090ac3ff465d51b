"""Steps of a training through graphs: what is learned is what the usual way teaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch.nn import functional as F

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.interface import Dropout
from registry.config import AdapterConfig, HeadConfig, MethodConfig, TrainingConfig
from registry.errors import NonFiniteLossError
from registry.graphs.capture import Capture, CudaCapture
from registry.graphs.step import GraphedSteps
from registry.model.backbone import Backbone
from registry.model.inference import LabelledRows
from registry.training.gradients import clip
from registry.training.loop import train
from registry.training.state import StepReport
from tests.support.recorded_ops import attend_as_on_cuda, record
from tests.support.stock_models import random_rows
from tests.support.toy_task import ADAPTER, METHODS, TRAINING, labelled, moved, randomise, same_weights

STILL = AdapterConfig(placement="houlsby", reduction_factor=4)  # without dropout, which draws one mask more or less
HEAD = HeadConfig(label_names=("bad", "good"))
LABELS = HeadConfig(label_names=("x", "y", "z"), problem_type="multi_label", pooling="cls", form="dense_tanh")
NUMBER = HeadConfig(label_names=("score",), problem_type="regression", pooling="pooler")
FIVE = HeadConfig(label_names=tuple("abcde"), pooling="cls")
FROZEN = HeadConfig(label_names=("bad", "good"), trained=False)


class Counted:
    """Records, and counts what it recorded."""

    def __init__(self, capture: Capture = record) -> None:
        self.count, self._capture = 0, capture

    def __call__(
        self, work: Callable[[], Any], generators: Sequence[torch.Generator] = ()
    ) -> tuple[Any, Callable[[], None]]:
        """Record one function."""
        self.count += 1
        return self._capture(work, generators)


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """What records steps on a CPU, with attention as it is on CUDA."""
    attend_as_on_cuda(monkeypatch)
    return Counted()


def changed(**fields: object) -> TrainingConfig:
    """Return the configuration of these tests with other fields."""
    return msgspec.structs.replace(TRAINING, **fields)


def trained(
    backbone: Backbone,
    adapter: MethodConfig | None,
    head: HeadConfig = HEAD,
    config: TrainingConfig = TRAINING,
    capture: Capture | None = None,
    **options: Any,
) -> tuple[AdapterSet, list[tuple[float, float]]]:
    """Return a set of small random numbers after a training, and the loss and the gradients' norm of each step."""
    fresh = randomise(backbone.new_adapter_set(adapter, head, seed=1), 1, 0.05)
    rows = labelled(backbone, head, 0)
    steps: list[tuple[float, float]] = []

    def observe(report: StepReport) -> None:
        steps.append((report.loss, report.gradient_norm))

    train(backbone.encoder, fresh, rows, config, observe=observe, capture=capture, **options)
    return fresh, steps


def still(method: str) -> MethodConfig:
    """Return a method's configuration without dropout."""
    adapter = STILL if method == "bottleneck" else METHODS[method]
    return msgspec.structs.replace(adapter, dropout=0.0) if hasattr(adapter, "dropout") else adapter


def assert_alike(
    usual: Sequence[tuple[float, float]], graphed: Sequence[tuple[float, float]], tolerance: float = 1e-5
) -> None:
    """Check that losses and norms of all steps are the same but for rounding."""
    assert len(usual) == len(graphed)
    for expected, found in zip(usual, graphed, strict=True):
        assert expected == pytest.approx(found, abs=tolerance, rel=tolerance)


@pytest.mark.parametrize("method", ["bottleneck", *METHODS])
def test_graphs_teach_what_the_usual_way_teaches(tiny_backbone: Backbone, capture: Counted, method: str) -> None:
    """For every method, steps replayed for other rows, lengths and weights than recorded end with the same weights.

    Sets with a prefix, or that begin above the first layer, go the usual way.
    """
    adapter = still(method)
    usual, usual_steps = trained(tiny_backbone, adapter)
    graphed, steps = trained(tiny_backbone, adapter, capture=capture)
    assert_alike(usual_steps, steps)
    assert moved(usual, graphed) <= 1e-5
    goes_usually = method.startswith("prefix") or method in ("lora-some", "fusion-some")
    assert (capture.count == 0) == goes_usually


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        (HEAD, {"class_weights": (0.2, 3.0), "label_smoothing": 0.1}),
        (HEAD, {"clip_norm": 0.01, "batch_size": 7, "optimizer": "adam"}),
        (LABELS, {"class_weights": "balanced", "label_smoothing": 0.2}),
        (NUMBER, {}),
        (FIVE, {"class_weights": "balanced", "batch_size": 3}),
        (FROZEN, {}),
    ],
)
def test_losses_of_every_kind(
    tiny_backbone: Backbone, capture: Counted, head: HeadConfig, fields: dict[str, Any]
) -> None:
    """Rows that fill up count nothing, whatever the problem type, the classes' weights, smoothing and pooling."""
    config = changed(**fields)
    usual, usual_steps = trained(tiny_backbone, STILL, head, config)
    graphed, steps = trained(tiny_backbone, STILL, head, config, capture)
    assert capture.count > 0
    assert_alike(usual_steps, steps)
    assert moved(usual, graphed) <= 1e-5


def test_whatever_was_put_ahead_the_rows_asked_are_learned(tiny_backbone: Backbone, capture: Counted) -> None:
    """A step learns from the rows that it is asked, whichever were put in place for it."""
    one = randomise(tiny_backbone.new_adapter_set(STILL, HEAD, seed=1), 1, 0.05).train()
    rows = LabelledRows(random_rows((5, 9, 3, 7, 4, 6, 600)), (0, 1, 1, 0, 1, 0, 1))
    clipped = partial(clip, most=1.0)
    steps = GraphedSteps(tiny_backbone.encoder, one, rows, None, 0.0, clipped, torch.Generator(), capture)
    first, second = [0, 1, 2], [3, 4, 5]
    assert steps.learn_from(first) is None
    alone = [steps.learn_from(each) for each in (first, second)]
    assert alone[0] != alone[1]
    assert [alone[0], alone[1], alone[0], alone[0], alone[1]] == [
        steps.learn_from(first, second),
        steps.learn_from(second, second),  # the same again, and then other rows
        steps.learn_from(first, first),
        steps.learn_from(first),
        steps.learn_from(second, [6]),
    ]


def test_a_bucket_is_recorded_when_it_comes_again(tiny_backbone: Backbone, capture: Counted) -> None:
    """What comes once is not recorded; what comes again is, once, and no step is taken twice."""
    one_batch = changed(epochs=1, batch_size=40)
    assert 1 == len(trained(tiny_backbone, STILL, HEAD, one_batch, capture)[1])
    assert 0 == capture.count
    assert 5 == len(trained(tiny_backbone, STILL, HEAD, changed(epochs=5, batch_size=40), capture)[1])
    assert 1 == capture.count


def test_dropout_draws_anew_at_each_replay(tiny_backbone: Backbone, capture: Counted) -> None:
    """Replays of one batch drop other elements each time, and the same seed drops the same again."""
    head = msgspec.structs.replace(HEAD, dropout=0.5)
    config = changed(epochs=6, batch_size=40, learning_rate=1e-12)
    one, steps = trained(tiny_backbone, ADAPTER, head, config, capture)
    other, again = trained(tiny_backbone, ADAPTER, head, config, capture)
    assert len(steps) == len(set(steps)) == 6
    assert steps == again
    assert same_weights(one, other)


def test_recording_draws_nothing(tiny_backbone: Backbone, capture: Counted) -> None:
    """What is recorded runs some times before it counts, and the generator is afterwards where it was."""
    generator = torch.Generator().manual_seed(3)
    dropout = Dropout(0.5).train()
    dropout.generator = generator
    before = generator.get_state()
    result, replay = capture(lambda: dropout(torch.ones(8)), [generator])
    assert torch.equal(before, generator.get_state())
    expected = torch.empty(8).bernoulli_(0.5, generator=torch.Generator().manual_seed(3)).div(0.5)
    replay()
    assert torch.equal(expected, result)


def test_a_step_that_cannot_be_recorded_is_told_once(tiny_backbone: Backbone, capture: Counted) -> None:
    """A training whose steps cannot be recorded says so for each bucket and learns the usual way, bit for bit."""

    def refuse(work: object, generators: object) -> object:
        raise RuntimeError("operation not permitted\nsome advice on debugging")

    config = changed(batch_size=40)
    usual, _ = trained(tiny_backbone, STILL, HEAD, config)
    with pytest.warns(
        RuntimeWarning, match=r"^steps of \d+ tokens are taken without a CUDA graph: .* permitted$"
    ) as told:
        refused, _ = trained(tiny_backbone, STILL, HEAD, config, refuse)  # type: ignore[arg-type]
    assert 1 == len(told)
    assert same_weights(usual, refused)


def test_own_losses_and_accumulated_steps_go_the_usual_way(tiny_backbone: Backbone, capture: Counted) -> None:
    """A loss of one's own sees real rows alone, and a step of several batches is taken batch by batch."""
    own = changed(loss="torch.nn.functional:cross_entropy")
    expected, _ = trained(tiny_backbone, STILL, HEAD, own, loss=F.cross_entropy)
    found, _ = trained(tiny_backbone, STILL, HEAD, own, capture, loss=F.cross_entropy)
    assert same_weights(expected, found)
    several = changed(gradient_accumulation_steps=2)
    expected, _ = trained(tiny_backbone, STILL, HEAD, several)
    found, _ = trained(tiny_backbone, STILL, HEAD, several, capture)
    assert same_weights(expected, found)
    assert 0 == capture.count


def test_a_loss_that_is_no_number_leaves_the_last_good_weights(tiny_backbone: Backbone, capture: Counted) -> None:
    """A diverging graphed training ends with its error, and the set has the weights of the step before."""
    rows = labelled(tiny_backbone, HEAD, 0)
    fresh = tiny_backbone.new_adapter_set(STILL, HEAD, seed=1)
    states: list[dict[str, torch.Tensor]] = []

    def poison(report: object) -> None:
        states.append({name: tensor.clone() for name, tensor in fresh.state_dict().items()})
        if len(states) == 3:
            with torch.no_grad():
                fresh.head.out.weight[0, 0] = float("inf")

    config = changed(epochs=6, batch_size=40)
    with pytest.raises(NonFiniteLossError, match="step 4"):
        train(tiny_backbone.encoder, fresh, rows, config, observe=poison, capture=capture)
    assert 1 == capture.count
    kept = fresh.state_dict()
    assert float("inf") == float(kept["head.out.weight"][0, 0])
    assert all(torch.equal(kept[name], states[2][name]) for name in kept if name != "head.out.weight")


def test_graphs_that_left_are_captured_again(
    tiny_backbone: Backbone, capture: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one graph alone steps of several buckets teach the same; what left is captured again."""
    config = changed(batch_size=3, epochs=4)
    usual, _ = trained(tiny_backbone, STILL, HEAD, config)
    trained(tiny_backbone, STILL, HEAD, config, capture)
    roomy, capture.count = capture.count, 0
    monkeypatch.setattr("registry.graphs.capture.MOST_GRAPHS", 1)
    limited, _ = trained(tiny_backbone, STILL, HEAD, config, capture)
    assert capture.count > roomy > 1
    assert moved(usual, limited) <= 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("method", ["bottleneck", "lora", "ia3", "bitfit", "fusion"])
def test_cuda_graphs_teach_what_the_usual_way_teaches(tiny_folder: Path, method: str, pooling: str) -> None:
    """In bfloat16 a graphed training has the losses of the usual one but for rounding, step by step."""
    backbone = Backbone.load(str(tiny_folder), device="cuda", dtype="bfloat16")
    adapter = still(method)
    head = msgspec.structs.replace(HEAD, pooling=pooling)
    _, usual = trained(backbone, adapter, head)
    captured = Counted(CudaCapture(backbone.device))
    _, graphed = trained(backbone, adapter, head, capture=captured)
    assert captured.count > 0
    assert_alike(usual, graphed, 5e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_dropout_draws_anew_at_each_replay_on_cuda(tiny_folder: Path) -> None:
    """Replays of one batch drop other elements each time, and the same seed drops the same again."""
    backbone = Backbone.load(str(tiny_folder), device="cuda", dtype="bfloat16")
    head = msgspec.structs.replace(HEAD, dropout=0.5)
    config = changed(epochs=6, batch_size=40, learning_rate=1e-12)
    one, steps = trained(backbone, ADAPTER, head, config, CudaCapture(backbone.device))
    other, again = trained(backbone, ADAPTER, head, config, CudaCapture(backbone.device))
    assert len(steps) == len(set(steps)) == 6
    assert_alike(steps, again, 1e-3)
    assert moved(one, other) <= 1e-6
