"""LoRA, (IA)3, BitFit, prefix tuning and fusion: each is its formula, starts as it should, and trains nothing else."""

from __future__ import annotations

import pytest
import torch

from registry.adapters.adapter_set import AdapterSet
from registry.config import (
    TARGETS,
    AdapterConfig,
    BitFitConfig,
    HeadConfig,
    Ia3Config,
    LoraConfig,
    MethodConfig,
    PrefixConfig,
)
from registry.errors import ConfigError
from registry.model.backbone import Backbone
from registry.model.batching import Batch
from registry.model.encoder import inner_sizes
from registry.model.inference import logits_of
from registry.training.plan import check_adapter
from tests.support.reference_adapters import PATHS, hooked_model
from tests.support.stock_models import difference, encoder_of, our_states, random_rows, stock_states
from tests.support.tiny_backbone import tiny_model
from tests.support.toy_task import METHODS, fusion_of, randomise

TOLERANCE = 1e-5
HEAD = HeadConfig(label_names=("no", "yes"))


@pytest.mark.parametrize("family", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_method_equals_the_hooked_stock_model(family: str, method: str) -> None:
    """Each method is its formula in every family, in a packed batch of rows of different lengths."""
    model = tiny_model(family)
    encoder, rows = encoder_of(model), random_rows()
    inner = inner_sizes(model.config)
    if family == "modernbert" and (method == "bitfit" or getattr(METHODS[method], "bias", "none") != "none"):
        with pytest.raises(ConfigError, match="bias: expected no change of biases for modernbert, which has none"):
            encoder.check_method(METHODS[method])
        return
    if family == "modernbert" and method.startswith("prefix"):
        pytest.skip("its reference is test_a_prefix_is_seen_by_every_window")
    fresh = AdapterSet(encoder.hidden_size, len(encoder.layers), METHODS[method], HEAD, inner_sizes=inner)
    adapter_set = randomise(fresh).eval()
    changed = hooked_model(model, adapter_set)
    expected = [stock_states(changed, rows.take([row]))[0] for row in range(len(rows))]
    assert difference(expected, our_states(encoder, rows, adapter_set.adapter)) <= TOLERANCE
    assert difference(expected, stock_states(model, rows)) > 0.02


def test_a_prefix_is_seen_by_every_window() -> None:
    """In ModernBERT keys and values in front are those of a place that all tokens see, near or far, and not turned."""
    model = tiny_model("modernbert")
    encoder = encoder_of(model)
    fresh = AdapterSet(encoder.hidden_size, len(encoder.layers), PrefixConfig(length=3, layers=(1,)), HEAD)
    adapter_set = randomise(fresh).eval()
    own = adapter_set.adapter.keys_and_values(1)
    assert own is not None
    rows = random_rows((30,))
    # Queries of zero give all that they see the same weight: P in front, and 9 places of a window inside the row.
    with torch.no_grad():
        encoder.layers[1].qkv.weight[:32] = 0
        batch = Batch.pack(rows)
        entering = encoder.below(1, batch)
        layer = encoder.layers[1]
        values = layer.qkv(layer.attention_norm(entering))[:, 64:]
        seen: list[torch.Tensor] = []
        layer.attention_dense.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        layer(entering, 1, batch, adapter_set.adapter)
    expected = (own[1].sum(0) + values[10 - 4 : 10 + 5].sum(0)) / (3 + 9)
    assert difference([expected], [seen[0][10]]) <= TOLERANCE


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("method", METHODS)
def test_first_tokens_alone_are_those_of_all_states(tiny_backbone: Backbone, method: str, pooling: str) -> None:
    """A head that looks at first tokens gets what it would get of the whole last layer."""
    head = HeadConfig(label_names=("no", "yes"), pooling=pooling)
    adapter_set = randomise(tiny_backbone.new_adapter_set(METHODS[method], head)).eval()
    batch = Batch.pack(random_rows(words=100))
    whole = tiny_backbone.encoder.pool(tiny_backbone(batch, adapter_set.adapter), batch, pooling)
    expected = list(adapter_set.head(whole))
    assert difference(expected, list(logits_of(tiny_backbone.encoder, adapter_set, batch))) <= TOLERANCE


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith(("prefix", "fusion"))])
def test_fresh_set_is_exactly_the_backbone(tiny_backbone: Backbone, method: str) -> None:
    """A set that has not been trained changes no bit of the states; a prefix and members are there from the start."""
    fresh = tiny_backbone.new_adapter_set(METHODS[method], HEAD)
    batch = Batch.pack(random_rows(words=100))
    assert torch.equal(tiny_backbone(batch), tiny_backbone(batch, fresh.adapter))


H, INNER, L = 384, 1536, 6


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LoraConfig(), L * 2 * 8 * (H + H)),
        (LoraConfig(rank=4, targets=TARGETS), L * 4 * (4 * 2 * H + 2 * (H + INNER))),
        (LoraConfig(rank=4, ranks={"2_query": 1}, layers=(2,)), 2 * H * (1 + 4)),
        (LoraConfig(bias="lora_only"), L * 2 * (8 * 2 * H + H)),
        (LoraConfig(bias="all", layers=(0,)), 2 * 8 * 2 * H + 5 * H + INNER + 2 * H),
        (Ia3Config(), L * (H + H + INNER)),
        (BitFitConfig(), L * (5 * H + INNER + 2 * H)),
        (PrefixConfig(length=30), L * 2 * 30 * H),
        (fusion_of(AdapterConfig(), AdapterConfig(reduction_factor=8)), L * (3 * H * H + H)),
        (fusion_of(*[AdapterConfig(placement="houlsby", layers=(0, 2))] * 3), 2 * 2 * (3 * H * H + H)),
    ],
)
def test_method_has_the_published_number_of_parameters(config: MethodConfig, expected: int) -> None:
    """r (in + out) for each product, one scale or bias for each element, 2 P H a layer, 3 H H + H a fused seam."""
    with torch.device("meta"):
        adapter_set = AdapterSet(H, L, config, HEAD, inner_sizes=(INNER, INNER))
    assert expected == sum(parameter.numel() for parameter in adapter_set.adapter.parameters())
    assert expected + 2 * H + 2 == adapter_set.trainable_count == adapter_set.stored_count


@pytest.mark.parametrize("method", METHODS)
def test_only_the_set_gets_gradients_and_all_of_it_does(tiny_backbone: Backbone, method: str) -> None:
    """Every tensor of a method trains, and nothing of the backbone."""
    adapter_set = randomise(tiny_backbone.new_adapter_set(METHODS[method], HEAD))
    logits_of(tiny_backbone.encoder, adapter_set, Batch.pack(random_rows(words=100))).square().sum().backward()
    for name, parameter in adapter_set.named_parameters():
        # A bias of the keys moves all scores of a query alike, which a softmax does not see.
        bias_of_keys = name.endswith("_key") and "biases" in name
        assert parameter.grad is not None, name
        assert bias_of_keys or float(parameter.grad.abs().max()) > 0, name
    assert not any(parameter.grad is not None for parameter in tiny_backbone.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: LoraConfig(rank=0), "rank: expected an integer >= 1, found 0"),
        (lambda: LoraConfig(targets=()), r"targets: expected some of query, .*, each once, found \(\)"),
        (lambda: LoraConfig(targets=("query", "query")), "targets: expected some of query"),
        (lambda: LoraConfig(ranks={"query": 4}), "ranks: expected a layer and one of the targets, such as 3_query"),
        (lambda: LoraConfig(alphas={"3_key": 4.0}), "alphas: expected a layer and one of the targets, such as 3_query"),
        (
            lambda: Ia3Config(inputs=("key",)),
            "inputs: expected some of the targets attention_dense, ffn_in and ffn_out",
        ),
        (lambda: PrefixConfig(length=0), "length: expected 1 to 4,096"),
        (lambda: AdapterSet(32, 2, BitFitConfig(), HEAD), "targets: expected none in the feed-forward part"),
        (lambda: AdapterSet(32, 2, LoraConfig(layers=(2,)), HEAD), r"layers: expected indices below 2, found \(2,\)"),
    ],
)
def test_shapes_that_cannot_be_are_refused(config: object, message: str) -> None:
    """Ranks, targets, lengths and layers that a method or a backbone does not have are told by name."""
    with pytest.raises(ConfigError, match=message):
        config()  # type: ignore[operator]


def test_what_does_not_fit_the_backbone_is_refused(tiny_backbone: Backbone) -> None:
    """A rank above a product's width, a prefix that leaves no positions, a layer that is not there."""
    for config, message in (
        (LoraConfig(rank=33), "rank: expected at most the width of a product, 32, found 33"),
        (PrefixConfig(length=50), "length: expected at most 34 beside rows of 32 tokens, found 50"),
        (Ia3Config(layers=(0, 2)), r"layers: expected indices from 0 to 1, found \(0, 2\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_adapter(config, tiny_backbone, 32)
