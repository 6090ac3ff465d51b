"""Fused sets: attention over frozen members, which join as they do alone, train no more and are not saved again."""

from __future__ import annotations

import copy

import msgspec
import pytest
import torch

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.fusion import FusionAdapter
from registry.config import PLACEMENTS, AdapterConfig, FusionConfig, HeadConfig, MethodConfig
from registry.errors import ConfigError
from registry.model.backbone import Backbone
from registry.model.batching import Batch
from registry.serving.pool import ResidentSet
from tests.support.reference_adapters import hooked_model
from tests.support.stock_models import difference, encoder_of, our_states, random_rows, stock_states
from tests.support.stored_sets import new_manifest
from tests.support.tiny_backbone import tiny_model
from tests.support.toy_task import MEMBER, METHODS, fusion_of, randomise, toy_rows, train_fresh

HEAD = HeadConfig(label_names=("no", "yes"))


def shape(**fields: object) -> AdapterConfig:
    """Return the shape of a member with random bottlenecks."""
    return AdapterConfig(**{"placement": "pfeiffer", "reduction_factor": 4, "init": "xavier", **fields})


def members_of(one: AdapterSet) -> dict[str, torch.Tensor]:
    """Return the tensors of a fused set's members."""
    assert isinstance(one.adapter, FusionAdapter)
    return dict(one.adapter.members.named_buffers())


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_fusion_equals_the_hooked_stock_model(placement: str) -> None:
    """At every placement three members of other sizes, activations and scales join by the published formula."""
    model = tiny_model("bert")
    encoder, rows = encoder_of(model), random_rows()
    config = fusion_of(
        shape(placement=placement, activation="relu"),
        shape(placement=placement, reduction_factor=2, scale=0.5),
        shape(placement=placement, reduction_factor=16, activation="tanh", scale=3.0),
    )
    one = randomise(AdapterSet(32, 2, config, HEAD)).eval()
    # In float64, as the reference alone may be off by 1.3e-5 in float32: scores of random weights are steep.
    changed = hooked_model(copy.deepcopy(model).double(), copy.deepcopy(one).double())
    expected = [stock_states(changed, rows.take([row]))[0] for row in range(len(rows))]
    assert difference(expected, our_states(encoder, rows, one.adapter)) <= 1e-5
    assert difference(expected, stock_states(model, rows)) > 0.02


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_fresh_fusion_of_untrained_members_is_the_backbone(tiny_backbone: Backbone, placement: str) -> None:
    """Members that add nothing are fused to nothing, to the bit, as the value starts at the identity."""
    untrained = shape(placement=placement, init="zero")
    fresh = tiny_backbone.new_adapter_set(fusion_of(untrained, untrained), HEAD)
    batch = Batch.pack(random_rows(words=100))
    assert torch.equal(tiny_backbone(batch), tiny_backbone(batch, fresh.adapter))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_fresh_fusion_of_equal_members_is_that_member(tiny_backbone: Backbone, placement: str) -> None:
    """However the attention falls, the shares sum to one, so that a set fused with itself answers as itself."""
    own = shape(placement=placement, scale=2.0)
    member = randomise(tiny_backbone.new_adapter_set(own, HEAD), std=0.05)
    fresh = tiny_backbone.new_adapter_set(fusion_of(own, own, own), HEAD)
    fresh.adapter.take_members([member.adapter] * 3)
    batch = Batch.pack(random_rows(words=100))
    assert difference([tiny_backbone(batch, member.adapter)], [tiny_backbone(batch, fresh.adapter)]) <= 1e-5


def test_members_neither_train_nor_are_saved(tiny_backbone: Backbone) -> None:
    """Training moves the fusion and the head alone; members keep their bits, and no file or count has them."""
    config = METHODS["fusion"]
    before = members_of(tiny_backbone.new_adapter_set(config, HEAD, seed=0))
    trained, _ = train_fresh(tiny_backbone, adapter=config)
    after = members_of(trained)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any("members" in name for name in (*trained.state_dict(), *dict(trained.named_parameters())))
    fresh = tiny_backbone.new_adapter_set(config, trained.head_config, seed=0)
    assert not any(torch.equal(one, other) for one, other in zip(trained.parameters(), fresh.parameters(), strict=True))
    assert trained.trainable_count == trained.stored_count == 4 * (3 * 32 * 32 + 32) + 2 * 32 + 2


def test_members_go_where_the_set_goes() -> None:
    """A fused set that is moved or cast takes its members along."""
    one = AdapterSet(32, 2, METHODS["fusion"], HEAD).to(torch.float64)
    assert {torch.float64} == {tensor.dtype for tensor in members_of(one).values()}
    assert {"meta"} == {tensor.device.type for tensor in members_of(one.to("meta")).values()}


def test_members_drop_nothing(tiny_backbone: Backbone) -> None:
    """Frozen members answer in training as they do afterwards, whatever dropout they were trained with."""
    one = randomise(tiny_backbone.new_adapter_set(fusion_of(MEMBER, MEMBER), HEAD))
    rows = toy_rows(tiny_backbone, 4).tokens
    in_training = our_states(tiny_backbone.encoder, rows, one.train().adapter)
    assert 0 == difference(in_training, our_states(tiny_backbone.encoder, rows, one.eval().adapter))


def test_a_resident_fused_set_counts_its_members(tiny_backbone: Backbone) -> None:
    """A resident fused set has copies of its members' bottlenecks; its bytes are those of all it answers with."""
    one = tiny_backbone.new_adapter_set(METHODS["fusion"], HEAD)
    elements = one.stored_count + sum(tensor.numel() for tensor in members_of(one).values())
    assert 4 * elements == ResidentSet("one:1", new_manifest(), one, torch.float32).bytes


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((), "members: expected 2 to 64 stored sets, such as --members a,b:2, found ''"),
        ((shape(),), "members: expected 2 to 64 stored sets, such as --members a,b:2, found 'a:1'"),
        ((shape(), shape(placement="houlsby")), "member 'b:1': expected placement pfeiffer as 'a:1' has, found 'houl"),
        ((shape(), shape(layers=(0,))), r"member 'b:1': expected layers None as 'a:1' has, found \(0,\)"),
        ((shape(layer_norms=True), shape()), "member 'a:1': expected bottlenecks without layer norms of their own"),
    ],
)
def test_sets_that_cannot_be_fused_are_refused(members: tuple[AdapterConfig, ...], message: str) -> None:
    """Too few sets, other placements or layers, and norms of one's own, by name."""
    with pytest.raises(ConfigError, match=message):
        fusion_of(*members)


def test_a_set_is_fused_once() -> None:
    """The same version cannot be a member twice."""
    one = fusion_of(shape(), shape()).members[0]
    with pytest.raises(ConfigError, match="members: expected each set once, found 'a:1, a:1'"):
        FusionConfig(members=(one, one))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([shape()], "members: expected the 2 of the fused set, found 1"),
        ([shape(), shape(activation="relu")], r"member 'b:1': expected .*gelu.*, found .*relu"),
        ([shape(), None], "member 'b:1': expected AdapterConfig.*, found 'None'"),
    ],
)
def test_other_members_are_not_taken(given: list[MethodConfig | None], message: str) -> None:
    """A fused set takes sets of the shapes that its configuration has, and as many."""
    one = AdapterSet(32, 2, fusion_of(shape(), shape()), HEAD)
    before = members_of(one)
    with pytest.raises(ConfigError, match=message):
        one.adapter.take_members([AdapterSet(32, 2, config, HEAD).adapter for config in given])
    assert before.keys() == members_of(one).keys()


def test_pfeiffers_members_are_refused_for_modernbert() -> None:
    """What a member could not be on a family, a fused set cannot be either."""
    with pytest.raises(ConfigError, match="placement: expected after_layer, houlsby, parallel for modernbert"):
        encoder_of(tiny_model("modernbert")).check_method(fusion_of(shape(), shape()))


def test_fused_sets_of_other_members_have_other_structures(tiny_backbone: Backbone) -> None:
    """A CUDA graph is shared by fused sets of the same members alone."""

    def structure(config: MethodConfig, seed: int) -> object:
        one = tiny_backbone.new_adapter_set(config, HEAD, seed=seed)
        return ResidentSet("one:1", new_manifest(), one, torch.float32).structure

    first = fusion_of(shape(), shape())
    renamed = msgspec.structs.replace(first.members[1], digest="1" * 64)
    assert structure(first, 0) == structure(first, 1)
    assert structure(first, 0) != structure(FusionConfig(members=(first.members[0], renamed)), 0)
