"""A frozen projection is a linear layer: the same numbers, in every mode, from every thread, in every copy."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from registry.model import machine
from registry.model.machine import FrozenLinear
from tests.support.stock_models import difference

PRECISIONS = [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)]  # the second relative to the largest number


def pair(dtype: torch.dtype = torch.float32) -> tuple[FrozenLinear, nn.Linear]:
    """Return a frozen projection and the linear layer with the same random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer, plain = FrozenLinear(48, 80), nn.Linear(48, 80)
    plain.load_state_dict(layer.state_dict())
    return layer.to(dtype).requires_grad_(False), plain.to(dtype).requires_grad_(False)


def random_states(count: int = 37, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return (count, 48) states."""
    return torch.randn(count, 48, generator=torch.Generator().manual_seed(1)).to(dtype)


def relative(expected: Tensor, actual: Tensor) -> float:
    """Return the largest difference in units of the largest number."""
    assert (expected.dtype, expected.shape) == (actual.dtype, actual.shape)
    return difference([expected], [actual]) / float(expected.abs().max())


@pytest.mark.parametrize("count", [1, 37])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_frozen_projection_equals_a_linear_layer(dtype: torch.dtype, tolerance: float, count: int) -> None:
    """The product and the gradient of the states are those of ``nn.Linear``."""
    layer, plain = pair(dtype)
    found = []
    for one in (plain, layer):
        states = random_states(count, dtype).requires_grad_(True)
        product = one(states)
        product.square().sum().backward()
        with torch.no_grad():
            assert relative(product.detach(), one(states)) <= tolerance
        assert states.grad is not None
        found.append((product.detach(), states.grad))
    assert relative(found[0][0], found[1][0]) <= tolerance
    assert relative(found[0][1], found[1][1]) <= tolerance
    assert {None} == {parameter.grad for parameter in layer.parameters()}


@pytest.mark.parametrize("change", [copy.deepcopy, lambda layer: copy.deepcopy(layer).to(torch.bfloat16)])
def test_copies_make_layouts_of_their_own(change: object) -> None:
    """A copy, and one in another dtype, multiplies with its own weights, not with what the original laid out."""
    layer, _ = pair()
    states = random_states().requires_grad_(True)
    layer(states).sum().backward()
    before = layer(random_states())
    changed: FrozenLinear = change(layer)  # type: ignore[operator]
    assert not changed._laid_out
    with torch.no_grad():
        changed.weight.mul_(3.0)
    own = states.detach().to(changed.weight.dtype).requires_grad_(True)
    product = changed(own)
    product.sum().backward()
    expected = nn.functional.linear(own, changed.weight, changed.bias)
    assert relative(expected.detach(), product.detach()) <= 1e-2
    assert own.grad is not None
    assert relative(changed.weight.sum(0).expand(37, 48), own.grad) <= 2e-2
    assert torch.equal(before, layer(random_states()))


def test_change_of_dtype_drops_the_layout() -> None:
    """The same layer cast to bfloat16 and back answers in each with the weights it has then."""
    layer, plain = pair()
    states = random_states()
    layer(states)
    layer.to(torch.bfloat16)
    assert relative(plain.bfloat16()(states.bfloat16()), layer(states.bfloat16())) <= 1e-2
    layer.float()
    assert relative(plain.float()(states), layer(states)) <= 1e-5


def test_trainable_weight_gets_gradients() -> None:
    """While it trains it is the plain layer: same product bit for bit, and weights that change are used at once."""
    layer, plain = pair()
    layer.requires_grad_(True)
    plain.requires_grad_(True)
    for one in (layer, plain):
        one(random_states()).square().sum().backward()
    assert layer.weight.grad is not None
    assert plain.weight.grad is not None
    assert torch.equal(plain.weight.grad, layer.weight.grad)
    with torch.no_grad():
        layer.weight.mul_(2.0)
        plain.weight.mul_(2.0)
    assert torch.equal(plain(random_states()), layer(random_states()))


def test_layout_made_in_inference_mode_serves_training() -> None:
    """A backbone that answered first can train sets afterwards, and answer again."""
    layer, plain = pair()
    with torch.inference_mode():
        first = layer(random_states()).clone()
    assert not any(laid_out.is_inference() for laid_out in layer._laid_out.values())
    states = random_states().requires_grad_(True)
    layer(states).sum().backward()
    assert states.grad is not None
    assert difference([plain.weight.sum(0).expand(37, 48)], [states.grad]) <= 1e-5
    with torch.inference_mode():
        assert torch.equal(first, layer(random_states()))


def test_threads_may_ask_first_at_once() -> None:
    """Eight threads that find no layout yet all get the right product and gradient."""
    layer, plain = pair()
    together, expected = threading.Barrier(8), plain(random_states())

    def ask(worker: int) -> tuple[Tensor, Tensor]:
        together.wait(timeout=30)
        states = random_states().requires_grad_(True)
        if worker % 2:
            with torch.inference_mode():
                layer(states)
        product = layer(states)
        product.sum().backward()
        assert states.grad is not None
        return product.detach(), states.grad

    with ThreadPoolExecutor(8) as threads:
        for product, gradient in threads.map(ask, range(8)):
            assert relative(expected, product) <= 1e-5
            assert relative(plain.weight.sum(0).expand(37, 48), gradient) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_the_layout_it_is_the_plain_layer(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """On a machine whose torch has no such layout, product and gradient are those of ``nn.Linear`` bit for bit."""
    monkeypatch.setattr("registry.model.machine._HAS_LAYOUT", False)
    layer, plain = pair(dtype)
    gradients = []
    for one in (plain, layer):
        states = random_states(dtype=dtype).requires_grad_(True)
        one(states).square().sum().backward()
        gradients.append(states.grad)
    assert torch.equal(plain(random_states(dtype=dtype)), layer(random_states(dtype=dtype)))
    assert torch.equal(*gradients)
    assert not layer._laid_out


def test_autocast_decides_the_precision() -> None:
    """Under autocast a frozen projection gives bfloat16 as any linear layer does."""
    layer, plain = pair()
    layer(random_states())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, actual = plain(random_states()), layer(random_states())
    assert torch.bfloat16 == actual.dtype
    assert relative(expected, actual) <= 1e-2


def test_what_is_saved_is_what_a_linear_layer_saves() -> None:
    """Layouts are nobody's weights: the state has two tensors before the first product and after."""
    layer, plain = pair()
    layer(random_states())
    assert list(plain.state_dict()) == list(layer.state_dict()) == ["weight", "bias"]


def test_bfloat16_is_called_slow_only_where_a_cpu_lacks_it() -> None:
    """It is slow on an x86 CPU without AVX-512; float32 and other devices are never slow."""
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    if "avx2" in told and "avx512" not in told:
        assert machine.is_slow(torch.bfloat16, torch.device("cpu"))
    assert not machine.is_slow(torch.float32, torch.device("cpu"))
    assert not machine.is_slow(torch.bfloat16, torch.device("cuda"))
