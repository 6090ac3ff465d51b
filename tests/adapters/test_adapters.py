"""Adapter sets: where bottlenecks join, how large they are, what trains and what is saved."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from transformers import AutoConfig, AutoModel

from registry.adapters.adapter_set import AdapterSet
from registry.config import PLACEMENTS, Activation, AdapterConfig, HeadConfig
from registry.errors import ConfigError, ShapeMismatchError
from registry.model.backbone import Backbone
from registry.model.batching import Batch
from registry.model.encoder import Encoder
from registry.model.inference import logits_of
from tests.support.reference_adapters import PATHS, hooked_model
from tests.support.stock_models import difference, encoder_of, our_states, random_rows, stock_states
from tests.support.tiny_backbone import tiny_model
from tests.support.toy_task import randomise

TOLERANCE = 1e-5
HEAD = HeadConfig(label_names=("no", "yes"))


def random_set(encoder: Encoder, config: AdapterConfig) -> AdapterSet:
    """Return a set for ``encoder`` whose every tensor is far from where it starts."""
    fresh = AdapterSet(encoder.hidden_size, len(encoder.layers), config, HEAD)
    encoder.start_layer_norms(fresh)
    return randomise(fresh).eval()


@pytest.mark.parametrize("family", PATHS)
@pytest.mark.parametrize("layer_norms", [False, True])
@pytest.mark.parametrize("layers", [None, (1,)])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placement_equals_the_hooked_stock_model(
    family: str, placement: str, layers: tuple[int, ...] | None, layer_norms: bool
) -> None:
    """Each placement is its formula, in every family, for some layers only and with the task's own layer norms."""
    model = tiny_model(family)
    config = AdapterConfig(placement=placement, reduction_factor=4, layers=layers, layer_norms=layer_norms, scale=2.5)
    encoder, rows = encoder_of(model), random_rows()
    if family == "modernbert" and (placement == "pfeiffer" or layer_norms):
        with pytest.raises(ConfigError, match="for modernbert"):
            encoder.check_method(config)
        return
    adapter_set = random_set(encoder, config)
    expected = stock_states(hooked_model(model, adapter_set), rows)
    assert difference(expected, our_states(encoder, rows, adapter_set.adapter)) <= TOLERANCE
    assert difference(expected, stock_states(model, rows)) > 0.1


@pytest.mark.parametrize("learned", ["none", "one", "channel"])
@pytest.mark.parametrize("places", [("attention",), ("ffn",), ("attention", "ffn")])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_places_widths_and_scales_equal_the_hooked_stock_model(
    placement: str, places: tuple[str, ...], learned: str
) -> None:
    """Any placement may act after either sub-layer, with other widths in some layers and scales of each kind."""
    model = tiny_model()
    config = AdapterConfig(
        placement=placement, reduction_factor=4, places=places, widths={"1": 5}, scale=0.5, learned_scale=learned
    )
    encoder, rows = encoder_of(model), random_rows()
    adapter_set = random_set(encoder, config)
    assert (5, 32) == tuple(adapter_set.state_dict()[f"adapter.bottlenecks.1_{places[0]}.down.weight"].shape)
    expected = stock_states(hooked_model(model, adapter_set), rows)
    assert difference(expected, our_states(encoder, rows, adapter_set.adapter)) <= TOLERANCE
    assert difference(expected, stock_states(model, rows)) > 0.1


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_activation_equals_the_hooked_stock_model(placement: str, activation: str) -> None:
    """Each activation is its formula, whatever the placement."""
    model = tiny_model()
    config = AdapterConfig(placement=placement, reduction_factor=2, activation=activation)
    encoder, rows = encoder_of(model), random_rows()
    adapter_set = random_set(encoder, config)
    expected = stock_states(hooked_model(model, adapter_set), rows)
    assert difference(expected, our_states(encoder, rows, adapter_set.adapter)) <= TOLERANCE


@pytest.mark.parametrize("layer_norms", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_fresh_set_is_exactly_the_backbone(tiny_backbone: Backbone, placement: str, layer_norms: bool) -> None:
    """A set that has not been trained changes no bit of the states."""
    fresh = tiny_backbone.new_adapter_set(
        AdapterConfig(placement=placement, reduction_factor=4, layer_norms=layer_norms), HEAD
    )
    batch = Batch.pack(random_rows(words=100))
    assert torch.equal(tiny_backbone(batch), tiny_backbone(batch, fresh.adapter))


@pytest.mark.parametrize(("init", "spread"), [("normal", 1e-3), ("xavier", (2 / (384 + 24)) ** 0.5)])
def test_other_initialisations_have_their_spread(init: str, spread: float) -> None:
    """``normal`` draws both projections with standard deviation 1e-3, ``xavier`` by its own formula; biases are 0."""
    state = AdapterSet(384, 6, AdapterConfig(init=init), HEAD).adapter.state_dict()
    for name, tensor in state.items():
        expected = 0.0 if name.endswith("bias") else spread
        assert expected == pytest.approx(float(tensor.std()), rel=0.05)


@pytest.mark.parametrize(
    ("hidden_size", "layers", "config", "expected"),
    [
        (768, 12, AdapterConfig(), 894_528),
        (768, 12, AdapterConfig(placement="houlsby", reduction_factor=12), 2_379_264),
        (384, 6, AdapterConfig(), 113_040),
        (384, 6, AdapterConfig(placement="houlsby"), 226_080),
        (384, 6, AdapterConfig(layers=(4, 5)), 37_680),
        (384, 6, AdapterConfig(layer_norms=True), 113_040 + 6 * 2 * 2 * 384),
    ],
)
def test_adapter_has_the_published_number_of_parameters(
    hidden_size: int, layers: int, config: AdapterConfig, expected: int
) -> None:
    """2HM + H + M for each bottleneck, 2H for each layer norm, and nothing else."""
    with torch.device("meta"):
        adapter_set = AdapterSet(hidden_size, layers, config, HEAD)
    assert expected == sum(parameter.numel() for parameter in adapter_set.adapter.parameters())
    assert expected + 2 * hidden_size + 2 == adapter_set.trainable_count == adapter_set.stored_count


def test_bert_base_with_adapters_and_head_has_110_378_306_parameters() -> None:
    """bert-base-uncased, its pooler, twelve bottlenecks of 48 and a head of two classes add up."""
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=30522))
        encoder = encoder_of(model)
        adapter_set = AdapterSet(768, 12, AdapterConfig(reduction_factor=16), HEAD)
    assert 109_482_240 == encoder.parameter_count
    assert 110_378_306 == encoder.parameter_count + adapter_set.trainable_count


def test_frozen_head_is_saved_but_not_trained() -> None:
    """A head that is not trained has no parameters, though its tensors are stored."""
    head = HeadConfig(label_names=("no", "yes"), form="dense_tanh", trained=False)
    frozen, trained = (AdapterSet(32, 2, None, one, seed=3) for one in (head, HeadConfig(label_names=("no", "yes"))))
    assert [] == list(frozen.parameters())
    assert {"head.dense.weight", "head.dense.bias", "head.out.weight", "head.out.bias"} == set(frozen.state_dict())
    assert (0, 32 * 32 + 32 + 66) == (frozen.trainable_count, frozen.stored_count)
    assert (66, 66) == (trained.trainable_count, trained.stored_count)


def test_head_is_dense_tanh_linear_over_the_pooled_state(tiny_backbone: Backbone) -> None:
    """Both forms of the head are their formulas on the mean of a row's states."""
    batch = Batch.pack(random_rows((6,), words=100))
    mean = tiny_backbone(batch).mean(0)
    for form in ("linear", "dense_tanh"):
        adapter_set = randomise(tiny_backbone.new_adapter_set(None, HeadConfig(label_names=("a", "b", "c"), form=form)))
        state = adapter_set.eval().head.state_dict()
        inner = mean if form == "linear" else torch.tanh(state["dense.weight"] @ mean + state["dense.bias"])
        expected = state["out.weight"] @ inner + state["out.bias"]
        assert difference([expected], list(logits_of(tiny_backbone.encoder, adapter_set, batch).detach())) <= TOLERANCE


def test_seed_decides_the_initial_weights(tiny_backbone: Backbone) -> None:
    """The same seed gives the same set, another seed another one."""
    one, same, other = (tiny_backbone.new_adapter_set(AdapterConfig(), HEAD, seed=seed) for seed in (5, 5, 6))
    weight = "adapter.bottlenecks.0_ffn.down.weight"
    assert torch.equal(one.state_dict()[weight], same.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])


def test_gradients_stop_below_the_lowest_adapter(tiny_backbone: Backbone) -> None:
    """With bottlenecks in the last layer only, no layer below takes part in the backward pass."""
    adapter_set = tiny_backbone.new_adapter_set(AdapterConfig(reduction_factor=4, layers=(1,)), HEAD)
    needs_grad: list[bool] = []
    watch = tiny_backbone.encoder.layers[0].register_forward_hook(
        lambda module, inputs, output: needs_grad.append(output.requires_grad)
    )
    logits = logits_of(tiny_backbone.encoder, adapter_set, Batch.pack(random_rows(words=100)))
    watch.remove()
    assert [False] == needs_grad
    assert logits.requires_grad


def test_reduction_factor_that_does_not_divide_is_refused() -> None:
    """H / M must come out even, and the message names both numbers."""
    with pytest.raises(ConfigError, match="reduction_factor: expected a divisor of the hidden size 32, found 5"):
        AdapterSet(32, 2, AdapterConfig(reduction_factor=5), HEAD)


def test_layer_that_the_backbone_lacks_is_refused() -> None:
    """A set for layer 2 does not fit a backbone of two layers."""
    with pytest.raises(ConfigError, match=r"layers: expected indices below 2, found \(0, 2\)"):
        AdapterSet(32, 2, AdapterConfig(reduction_factor=4, layers=(0, 2)), HEAD)


def test_set_of_another_size_is_refused() -> None:
    """A set knows the H and L it was made for."""
    with pytest.raises(ShapeMismatchError, match=r"expected shape \(32, 2\), found \(384, 6\)"):
        AdapterSet(32, 2, None, HEAD).check_fits(384, 6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placement_on_cuda_is_near_the_hooked_stock_model(placement: str) -> None:
    """On CUDA in float32 each placement is its formula up to the rounding of other kernels."""
    model = tiny_model()
    encoder, rows = encoder_of(model), random_rows()
    adapter_set = random_set(encoder, AdapterConfig(placement=placement, reduction_factor=4, layer_norms=True))
    expected = stock_states(hooked_model(model, adapter_set), rows)
    assert difference(expected, our_states(encoder.to("cuda"), rows, adapter_set.to("cuda").adapter)) <= 1e-4
