"""Several sets made into one: the sums that are meant, the rank that is kept, and what does not go together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.merging import merge_sets
from registry.config import AdapterConfig, HeadConfig, Ia3Config, LoraConfig, MethodConfig
from registry.errors import ConfigError
from registry.model.backbone import Backbone
from registry.schema import Merging, SetInfo
from registry.store.registry import Registry
from tests.support.command_line import QUICK, call, own_rows, succeed, write_csv
from tests.support.stock_models import difference
from tests.support.toy_task import METHODS, randomise

HEAD = HeadConfig(label_names=("no", "yes"))
ONE = {
    "bottleneck": AdapterConfig(placement="houlsby", reduction_factor=4),
    **{name: config for name, config in METHODS.items() if config.name != "fusion"},
}


def sets_of(config: MethodConfig | None, count: int = 2, head: HeadConfig = HEAD) -> list[AdapterSet]:
    """Return random sets of one configuration."""
    fresh = [AdapterSet(32, 2, config, head, inner_sizes=(64, 64)) for _ in range(count)]
    return [randomise(one, seed).eval() for seed, one in enumerate(fresh)]


def changes(one: AdapterSet) -> dict[str, torch.Tensor]:
    """Return what a set changes: its tensors, LoRA's as B A, and (IA)3's less one."""
    state = one.adapter.state_dict()
    found = {name: tensor - 1 if "scales" in name else tensor for name, tensor in state.items() if ".lora_" not in name}
    for name in [name for name in state if name.endswith("lora_a")]:
        found[name] = state[name.replace("lora_a", "lora_b")] @ state[name]
    return found


@pytest.mark.parametrize("method", ONE)
def test_a_set_merged_with_itself_stays(method: str) -> None:
    """Whatever the weights, the mean of a set and itself changes what it changed, within its rank and without loss."""
    (one,) = sets_of(ONE[method], 1)
    merged, lost = merge_sets([one, one], [0.7, 2.0], Merging())
    assert lost == pytest.approx(0, abs=1e-5)
    for name, tensor in changes(one).items():
        assert difference([tensor], [changes(merged)[name]]) <= 1e-5, name
    assert difference(list(one.head.state_dict().values()), list(merged.head.state_dict().values())) <= 1e-6


@pytest.mark.parametrize("how", ["average", "sum"])
def test_sums_are_weighted(how: str) -> None:
    """Bottlenecks and scales are the weighted mean or sum of what they change; heads are always averaged."""
    for config in (ONE["bottleneck"], Ia3Config()):
        one, two = sets_of(config)
        merged, _ = merge_sets([one, two], [3.0, 1.0], Merging(how=how))
        whole = 4.0 if how == "average" else 1.0
        for name, tensor in changes(merged).items():
            assert difference([(3 * changes(one)[name] + changes(two)[name]) / whole], [tensor]) <= 1e-5
        weight = [each.head.out.weight for each in (one, two)]
        assert difference([(3 * weight[0] + weight[1]) / 4], [merged.head.out.weight]) <= 1e-6


def test_lora_keeps_its_rank_and_tells_what_is_lost() -> None:
    """The nearest change of rank r stands in the place of the sum, and its distance is the loss."""
    one, two = sets_of(LoraConfig(rank=2))
    merged, lost = merge_sets([one, two], [1.0, 1.0], Merging())
    worst = 0.0
    for name, tensor in changes(merged).items():
        exact = (changes(one)[name] + changes(two)[name]) / 2
        assert torch.linalg.matrix_rank(tensor, rtol=1e-4) == 2
        values = torch.linalg.svdvals(exact)
        assert float((exact - tensor).norm()) == pytest.approx(float(values[2:].norm()), rel=1e-4)
        worst = max(worst, float(values[2:].norm() / values.norm()))
    assert lost == pytest.approx(worst, rel=1e-4)


def test_ties_and_dare_keep_a_share() -> None:
    """TIES keeps large elements whose signs agree and takes their mean; DARE drops at random and makes up for it."""
    one, two = sets_of(AdapterConfig(reduction_factor=1))
    name = "bottlenecks.0_ffn.down.weight"
    a, b = (each.adapter.state_dict()[name] for each in (one, two))
    merged, _ = merge_sets([one, two], [1.0, 1.0], Merging(how="ties", density=0.5))
    found = merged.adapter.state_dict()[name]
    keep = [each * (each.abs() >= each.abs().flatten().topk(each.numel() // 2).values[-1]) for each in (a, b)]
    sign = (keep[0] + keep[1]).sign()
    agreeing = [each * (each.sign() == sign) for each in keep]
    count = sum((each != 0).float() for each in agreeing).clamp(min=1)
    assert difference([(agreeing[0] + agreeing[1]) / count], [found]) <= 1e-6
    dropped, _ = merge_sets([one, one], [0.5, 0.5], Merging(how="dare", density=0.5, seed=1))
    ratios = dropped.adapter.state_dict()[name] / a
    assert sorted({round(float(ratio), 3) for ratio in ratios.flatten()}) == [0.0, 1.0, 2.0]
    again, _ = merge_sets([one, one], [0.5, 0.5], Merging(how="dare", density=0.5, seed=1))
    assert torch.equal(again.adapter.state_dict()[name], dropped.adapter.state_dict()[name])


@pytest.mark.parametrize(
    ("sets", "weights", "how", "message"),
    [
        (sets_of(None, 1), [1.0], "average", "sets to merge: expected at least two, found 1"),
        (sets_of(None), [1.0], "average", "weights: expected 2, one for each set, found 1"),
        (sets_of(None), [1.0, -1.0], "sum", "weights: expected numbers with a sum above 0"),
        (
            [*sets_of(LoraConfig(rank=2), 1), *sets_of(LoraConfig(rank=4), 1)],
            [1.0, 1.0],
            "average",
            "sets to merge: their adapter: expected rank 2, found .rank 4",
        ),
        (
            [*sets_of(None, 1), *sets_of(None, 1, HeadConfig(label_names=("no", "maybe")))],
            [1.0, 1.0],
            "average",
            "sets to merge: their head: expected label_names",
        ),
        (
            sets_of(AdapterConfig(reduction_factor=4, layer_norms=True)),
            [1.0, 1.0],
            "ties",
            "how: expected average, as these sets have layer norms",
        ),
        (
            sets_of(METHODS["fusion"]),
            [1.0, 1.0],
            "average",
            r"sets to merge: expected sets that answer without others .*, found 'fusion'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    sets: list[AdapterSet], weights: list[float], how: str, message: str
) -> None:
    """Other configurations or labels, too few sets or weights, norms of one's own and fused sets, by name."""
    with pytest.raises(ConfigError, match=message):
        merge_sets(sets, weights, Merging(how=how))


def test_sets_of_two_methods_are_refused() -> None:
    """The methods are named, also where one set is a head alone."""
    for config, name in ((Ia3Config(), "ia3"), (None, "no adapter")):
        both = [*sets_of(LoraConfig(), 1), *sets_of(config, 1)]
        with pytest.raises(ConfigError, match=f"expected one method, lora, found '?{name}"):
            merge_sets(both, [1.0, 1.0], Merging())


def test_a_merged_set_names_its_members(tmp_path: Path, tiny_backbone: Backbone, tiny_folder: Path) -> None:
    """It is stored like any other, with the versions, digests and weights that it was made of."""
    path = write_csv(tmp_path / "rows.csv", own_rows())
    store = ("--store", tmp_path / "store")
    usual = ("train", "--data", path, "--text-col", "body", "--label-col", "mood", "--backbone", tiny_folder, *QUICK)
    for seed in ("0", "1"):
        succeed(*store, *usual, "--name", "mails", "--method", "lora", "--rank", "2", "--seed", seed)
    told = succeed(*store, "merge", "mails:1", "mails:2", "--weight", ".7,.3", "--name", "both")
    assert "mails:1 + mails:2 -> both:1; its rank cannot hold" in told.out
    (shown,) = succeed(*store, "show", "both", "--json").rows
    assert [("mails:1", 0.7), ("mails:2", 0.3)] == [
        (each["reference"], each["weight"]) for each in shown["merged_from"]
    ]
    registry = Registry(tmp_path / "store", tiny_backbone)
    assert registry.manifest("mails:1").digest == shown["merged_from"][0]["digest"]
    assert succeed(*store, "evaluate", "both", "--json").rows[0]["rows"] > 0
    for arguments, code, message in (
        (("mails:1", "--name", "c"), 2, "expected at least two"),
        (("mails:1", "mails:9", "--name", "c"), 3, "mails:9"),
        (("mails:1", "mails:2", "--name", "c", "--weight", "a,b"), 2, "--weight: expected numbers with commas"),
        (("mails:1", "mails:2", "--name", "c", "--how", "mean"), 2, "how"),
    ):
        refused = call(*store, "merge", *arguments)
        assert (code, True) == (refused.code, message in refused.message), refused.message
    fresh = tiny_backbone.new_adapter_set(None, HEAD)
    registry.save("one", fresh, SetInfo(pair=True, max_length=32))
    registry.save("two", fresh, SetInfo(pair=False, max_length=32))
    with pytest.raises(ConfigError, match="sets to merge: expected all on single texts, or all on pairs"):
        registry.merge("c", ["one", "two"])
