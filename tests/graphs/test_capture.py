"""What can be captured: forwards that ask the host nothing."""

from __future__ import annotations

import pytest
import torch

from registry.graphs.capture import CudaCapture, can_capture
from registry.model.backbone import Backbone
from registry.model.families import FAMILIES
from tests.support.recorded_ops import attend_as_on_cuda, record
from tests.support.stock_models import encoder_of
from tests.support.tiny_backbone import tiny_model
from tests.support.toy_task import HEAD, METHODS


@pytest.mark.parametrize("family", FAMILIES)
def test_only_plain_encoders_are_captured(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders with relative positions or windows ask the host for each length, so they go the usual way."""
    attend_as_on_cuda(monkeypatch)
    assert can_capture(encoder_of(tiny_model(family))) == (family not in ("mpnet", "deberta-v2", "modernbert"))


@pytest.mark.parametrize("method", METHODS)
def test_sets_with_prefixes_are_not_captured(
    tiny_backbone: Backbone, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where prefixes stand depends on every length, which Python works out; no other method asks the host anything."""
    attend_as_on_cuda(monkeypatch)
    adapter = tiny_backbone.new_adapter_set(METHODS[method], HEAD).adapter
    assert can_capture(tiny_backbone.encoder, adapter) == (not method.startswith("prefix"))


def test_nothing_is_captured_on_a_cpu(tiny_backbone: Backbone) -> None:
    """Where one kernel for rows of any lengths is missing, attention asks for them."""
    assert not can_capture(tiny_backbone.encoder)


def test_the_stand_in_refuses_what_a_gpu_refuses() -> None:
    """Reading a number while recording fails, and what Python made then is what it was at every replay."""
    with pytest.raises(RuntimeError, match="asks the host"):
        record(lambda: float(torch.ones(2).sum()))
    place, given = torch.zeros(2), [1.0]
    result, replay = record(lambda: place + torch.tensor(given))
    place.fill_(5.0)
    given[0] = 7.0
    replay()
    assert [6.0, 6.0] == result.tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_capture_that_failed_disturbs_nothing_else() -> None:
    """What asks the host is refused; then generators, older graphs and further captures do what they did before."""
    device = torch.device("cuda", torch.cuda.current_device())
    capture, generator = CudaCapture(device), torch.Generator(device).manual_seed(3)
    drawn, replay = capture(lambda: torch.empty(8, device=device).bernoulli_(generator=generator), [generator])
    torch.cuda.manual_seed(4)

    def draw_and_ask() -> float:
        mask = torch.empty(8, device=device).bernoulli_(generator=generator)
        return float(mask.sum()) if torch.cuda.is_current_stream_capturing() else 0.0

    with pytest.raises(RuntimeError):
        capture(draw_and_ask, [generator])
    expected = torch.Generator(device).manual_seed(3)
    for _ in range(2):
        assert torch.equal(torch.empty(8, device=device).bernoulli_(generator=expected),
                           torch.empty(8, device=device).bernoulli_(generator=generator))  # fmt: skip
    by_seed = torch.rand(8, device=device, generator=torch.Generator(device).manual_seed(4))
    assert torch.equal(by_seed, torch.rand(8, device=device))
    for again in (replay, capture(lambda: torch.ones(8, device=device).add_(1), [generator])[1]):
        again()
    assert torch.equal(torch.empty(8, device=device).bernoulli_(generator=expected), drawn)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_captures_go_on_after_all_graphs_have_left() -> None:
    """One object captures for one training after another, though the graphs of the first are gone."""
    device = torch.device("cuda", torch.cuda.current_device())
    capture, place = CudaCapture(device), torch.zeros(4, device=device)
    for number in (1.0, 2.0, 3.0):
        result, replay = capture(lambda number=number: place + number)
        place.fill_(number)
        replay()
        assert [2 * number] * 4 == result.tolist()
        place.zero_()
        del result, replay
