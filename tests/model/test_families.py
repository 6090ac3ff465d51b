"""Every encoder family equals transformers' own model, on rows of different lengths in one batch."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from registry.model.backbone import Backbone
from registry.model.batching import Batch
from registry.model.encoder import NO_ADAPTERS
from registry.model.families import FAMILIES, find_unsupported
from registry.training.loop import train
from tests.support.stock_models import difference, encoder_of, our_states, random_rows, stock_output, stock_states
from tests.support.tiny_backbone import save_tiny_checkpoint, tiny_model
from tests.support.toy_task import ADAPTER, HEAD, TRAINING, same_weights, toy_rows

TOLERANCE = 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_family_equals_the_stock_model(family: str) -> None:
    """Without adapters the packed forward gives the last hidden states of the padded stock forward."""
    model = tiny_model(family)
    rows = random_rows()
    assert difference(stock_states(model, rows), our_states(encoder_of(model), rows)) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_family_loaded_from_its_folder_equals_the_stock_model(family: str, tmp_path: Path) -> None:
    """What ``Backbone.load`` reads from disk is what transformers saved, texts and pairs of texts included."""
    model = save_tiny_checkpoint(tmp_path, family)
    backbone = Backbone.load(str(tmp_path), device="cpu")
    first, second = ["good film", "the cat went", "no"], ["a dull one was not", "he left", "bad news, very bad news!"]
    for rows in (backbone.tokenize(first, max_length=64), backbone.tokenize(first, second, max_length=64)):
        assert difference(stock_states(model, rows), our_states(backbone.encoder, rows)) <= TOLERANCE
    assert (family, 32, 2) == (backbone.info.family, backbone.info.hidden_size, backbone.info.layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_counts_every_parameter_once(family: str) -> None:
    """The number of parameters is that of the stock model, its pooler included where it has one."""
    model = tiny_model(family)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert expected == encoder_of(model).parameter_count


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("electra", {"embedding_size": 32}),
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"hidden_act": "gelu_new"}),
        ("bert", {"hidden_act": "silu"}),
        ("roberta", {"pad_token_id": 0}),
        ("roberta", {"type_vocab_size": 1}),
        ("xlm-roberta", {"layer_norm_eps": 1e-3}),
        ("distilbert", {"activation": "relu"}),
        ("distilbert", {"sinusoidal_pos_embds": True}),
        ("bert", {"num_attention_heads": 1, "num_hidden_layers": 3}),
        ("albert", {"num_hidden_groups": 1, "hidden_act": "relu"}),
        (
            "modernbert",
            {"layer_types": ["full_attention"] * 2, "attention_bias": True, "mlp_bias": True, "norm_bias": True},
        ),
        ("deberta-v2", {"share_att_key": False}),
        ("deberta-v2", {"pos_att_type": ["c2p"], "norm_rel_ebd": "none"}),
        ("deberta-v2", {"pos_att_type": [], "position_buckets": -1, "max_relative_positions": 20}),
        ("deberta-v2", {"position_biased_input": True, "type_vocab_size": 2}),
    ],
)
def test_configuration_is_followed(family: str, changes: dict[str, object]) -> None:
    """Activation functions, sizes, offsets and epsilons come from the checkpoint's configuration."""
    model = tiny_model(family, **changes)
    rows = random_rows(pairs=changes.get("type_vocab_size") != 1)
    assert difference(stock_states(model, rows), our_states(encoder_of(model), rows)) <= TOLERANCE


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert"])
def test_pooler_equals_the_stock_model(family: str) -> None:
    """Where a family has a pooler, ours gives the stock model's pooler output."""
    model = tiny_model(family)
    rows = random_rows()
    encoder, batch = encoder_of(model), Batch.pack(rows)
    pooled = batch.restore(encoder.pool(encoder(batch), batch, "pooler"))
    _, expected = stock_output(model, rows)
    assert expected is not None
    assert difference([expected], [pooled.detach()]) <= TOLERANCE


@pytest.mark.parametrize(("family", "longest"), [("bert", 66), ("distilbert", 66), ("electra", 66), ("roberta", 64)])
def test_longest_row_is_what_the_positions_allow(family: str, longest: int) -> None:
    """RoBERTa's positions begin after the padding id, which leaves fewer; a row of the full length still agrees."""
    model = tiny_model(family)
    encoder = encoder_of(model)
    assert longest == encoder.max_length
    rows = random_rows((longest, 2))
    assert difference(stock_states(model, rows), our_states(encoder, rows)) <= TOLERANCE


@pytest.mark.slow
def test_bert_base_shape_equals_the_stock_model() -> None:
    """Twelve layers of H 768 add up no larger error than two of H 32."""
    config = AutoConfig.for_model("bert", vocab_size=160)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(config).eval()
    assert (12, 768, 12) == (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
    rows = random_rows((5, 31, 14))
    assert difference(stock_states(model, rows), our_states(encoder_of(model), rows)) <= TOLERANCE


@pytest.mark.parametrize("length", [5, 9, 17, 33, 40, 64])
def test_windows_in_blocks_are_windows_of_the_stock_model(length: int) -> None:
    """Rows shorter and longer than a window, a block, and several of them equal the stock model, first tokens too."""
    model = tiny_model("modernbert", layer_types=["sliding_attention"] * 2)
    rows, encoder = random_rows((length, 3, length)), encoder_of(model)
    expected = stock_states(model, rows)
    assert difference(expected, our_states(encoder, rows)) <= TOLERANCE
    batch = Batch.pack(rows)
    first = batch.restore(encoder.pooled(batch, NO_ADAPTERS, ("cls",))["cls"])
    assert difference([states[0] for states in expected], list(first)) <= TOLERANCE


def test_layers_of_a_group_are_one(tmp_path: Path) -> None:
    """ALBERT's layers share their weights, in a copy that trains too, and are counted once."""
    model = save_tiny_checkpoint(tmp_path, "albert", num_hidden_groups=1, num_hidden_layers=3)
    backbone = Backbone.load(str(tmp_path), device="cpu")
    assert backbone.encoder.layers[0] is backbone.encoder.layers[2]
    copied = backbone.unfrozen_copy()
    assert copied.layers[0] is copied.layers[2]
    assert backbone.info.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (3, 3) == (backbone.info.layers, len(copied.layers))


@pytest.mark.parametrize(
    ("family", "changes", "feature"),
    [
        ("deberta-v2", {"conv_kernel_size": 3}, "a convolution"),
        ("deberta-v2", {"relative_attention": False}, "no relative attention"),
        ("deberta-v2", {"embedding_size": 16}, "a projection of its embeddings"),
        ("mpnet", {"relative_attention_num_buckets": 64}, "a table of other than 32 distances"),
        ("albert", {"inner_group_num": 2}, "several layers in a group"),
        ("bert", {"hidden_act": "mish"}, "an unknown activation"),
        ("modernbert", {}, ""),
    ],
)
def test_what_no_forward_here_knows_is_named(family: str, changes: dict[str, object], feature: str) -> None:
    """A configuration of a known family that would be computed wrong is refused by the name of what is unusual."""
    config = tiny_model(family).config
    for name, value in changes.items():
        setattr(config, name, value)
    assert feature == find_unsupported(config)


def test_scaled_rotary_positions_are_refused() -> None:
    """Positions stretched beyond what was trained would be turned by other angles."""
    config = tiny_model("modernbert").config
    config.rope_parameters["full_attention"]["rope_type"] = "linear"
    assert find_unsupported(config) == "scaled rotary positions"


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
def test_relative_positions_kept_for_answers_serve_training_too(family: str, tmp_path: Path) -> None:
    """A set trains on a backbone that has answered before, and learns what it learns on a fresh one."""
    save_tiny_checkpoint(tmp_path, family)
    learned = []
    for answers_first in (True, False):
        backbone = Backbone.load(str(tmp_path), device="cpu")
        rows = toy_rows(backbone)
        if answers_first:
            with torch.inference_mode():
                backbone.encoder(Batch.pack(rows.tokens))
        fresh = backbone.new_adapter_set(ADAPTER, HEAD)
        train(backbone.encoder, fresh, rows, TRAINING)
        learned.append(fresh)
    assert same_weights(*learned)


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
def test_a_copy_that_trains_moves_its_relative_positions(family: str, tmp_path: Path) -> None:
    """In full fine-tuning the table of relative positions gets a gradient, whatever the frozen encoder has kept."""
    save_tiny_checkpoint(tmp_path, family)
    backbone = Backbone.load(str(tmp_path), device="cpu")
    batch = Batch.pack(random_rows())
    backbone.encoder(batch)
    trained = copy.deepcopy(backbone.encoder).requires_grad_(True)
    for _ in range(2):  # nothing of the first pass is kept for the second
        trained(batch).square().sum().backward()
    tables = [parameter for name, parameter in trained.named_parameters() if "relative" in name or "positions" in name]
    assert tables
    assert all(parameter.grad is not None for parameter in tables)


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
def test_relative_positions_frozen_after_training_are_the_trained_ones(family: str) -> None:
    """An encoder that answers, trains and answers again does so with the tables that it has then."""
    encoder, rows = encoder_of(tiny_model(family)), random_rows()
    for _ in range(2):
        encoder.requires_grad_(False)
        assert 0 == difference(our_states(copy.deepcopy(encoder).float(), rows), our_states(encoder, rows))
        encoder.requires_grad_(True)
        encoder(Batch.pack(rows)).square().sum().backward()
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                if "relative" in name or "positions" in name:
                    parameter.mul_(4)


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
def test_relative_positions_kept_under_autocast_are_those_without(family: str) -> None:
    """An encoder that has answered under autocast before gives, without, what a fresh one gives."""
    encoder, rows = encoder_of(tiny_model(family)).requires_grad_(False), random_rows()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        our_states(encoder, rows)
    assert 0 == difference(our_states(encoder_of(tiny_model(family)), rows), our_states(encoder, rows))
