"""Tasks so easy and small that a whole training takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec
import torch
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.config import (
    TARGETS,
    AdapterConfig,
    BitFitConfig,
    FusedMember,
    FusionConfig,
    HeadConfig,
    Ia3Config,
    LoraConfig,
    MethodConfig,
    PrefixConfig,
    TrainingConfig,
)
from registry.model.backbone import Backbone
from registry.model.inference import LabelledRows
from registry.schema import BackboneInfo
from registry.store.store import Store
from registry.store.tensors import save_set
from registry.training.loop import train
from registry.training.state import TrainingResult
from tests.support import stock_models, stored_sets

ADAPTER = AdapterConfig(placement="houlsby", reduction_factor=4, dropout=0.1)
HEAD = HeadConfig(label_names=("bad", "good"), dropout=0.1)


def fusion_of(*shapes: AdapterConfig) -> FusionConfig:
    """Return the fusion of sets of these shapes, called a, b and so on."""
    names = "abcdefgh"[: len(shapes)]
    members = [
        FusedMember(reference=f"{name}:1", digest="0" * 64, adapter=shape)
        for name, shape in zip(names, shapes, strict=True)
    ]
    return FusionConfig(members=tuple(members))


MEMBER = AdapterConfig(placement="houlsby", reduction_factor=4, init="xavier", dropout=0.5)
# Every method that is no bottleneck, with its switches: what is proved for one is proved for each of these.
METHODS: Mapping[str, MethodConfig] = MappingProxyType(
    {
        "lora": LoraConfig(rank=4, dropout=0.1),
        "lora-all": LoraConfig(rank=2, alpha=3.0, ranks={"1_query": 3}, rslora=True, targets=TARGETS, bias="all"),
        "lora-some": LoraConfig(rank=2, targets=("key", "ffn_out"), bias="lora_only", layers=(1,)),
        "ia3": Ia3Config(),
        "ia3-all": Ia3Config(targets=TARGETS, inputs=("attention_dense", "ffn_in"), layers=(0,)),
        "bitfit": BitFitConfig(),
        "prefix": PrefixConfig(length=5),
        "prefix-some": PrefixConfig(length=2, layers=(1,)),
        "fusion": fusion_of(MEMBER, AdapterConfig(placement="houlsby", reduction_factor=8, init="xavier")),
        "fusion-some": fusion_of(
            *(
                AdapterConfig(
                    placement="parallel", reduction_factor=4, activation=name, init="xavier", layers=(1,), scale=scale
                )
                for name, scale in (("relu", 1.0), ("tanh", 4.0), ("silu", 0.5))
            )
        ),
    }
)
TRAINING = TrainingConfig(epochs=3, batch_size=8, learning_rate=5e-3, max_length=16)
FILLERS = ("the cat was", "a dull film", "one two red blue", "he left she went", "sun rain city road is small")


def toy_rows(
    backbone: Backbone, count: int = 40, seed: int = 0, words: tuple[str, ...] = ("bad", "good")
) -> LabelledRows:
    """Return rows of different lengths in which one word alone decides the label."""
    generator = torch.Generator().manual_seed(seed)
    labels = tuple(row % len(words) for row in range(count))
    picks = torch.randint(len(FILLERS), (count, 2), generator=generator).tolist()
    texts = [f"{FILLERS[a]} {words[label]} {FILLERS[b]}" for (a, b), label in zip(picks, labels, strict=True)]
    return LabelledRows(backbone.tokenize(texts, max_length=16), labels)


def labelled(backbone: Backbone, head: HeadConfig, seed: int) -> LabelledRows:
    """Return 40 rows with labels of the head's problem type."""
    rows, labels = toy_rows(backbone, seed=seed), len(head.label_names)
    if head.problem_type == "multi_label":
        both = tuple(tuple(int(row % (label + 2) == 0) for label in range(labels)) for row in range(40))
        return LabelledRows(rows.tokens, both)
    if head.problem_type == "regression":
        return LabelledRows(rows.tokens, tuple(row % 5 * 0.5 for row in range(40)))
    return LabelledRows(rows.tokens, tuple(row % labels for row in range(40)))


def train_fresh(
    backbone: Backbone, config: TrainingConfig = TRAINING, adapter: MethodConfig | None = ADAPTER, **options: object
) -> tuple[AdapterSet, TrainingResult]:
    """Return a new set trained on the toy rows, and what came of it."""
    fresh = backbone.new_adapter_set(adapter, HEAD, seed=config.seed)
    return fresh, train(backbone.encoder, fresh, toy_rows(backbone), config, **options)  # type: ignore[arg-type]


def same_weights(one: AdapterSet, other: AdapterSet) -> bool:
    """Return whether two sets have the same tensors, bit for bit."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def moved(one: AdapterSet, other: AdapterSet) -> float:
    """Return the largest difference of two sets' weights, biases of keys left out.

    Such a bias moves all scores of a query alike, which a softmax does not see: its gradient is rounding alone.
    """
    seen = [name for name in one.state_dict() if not (name.startswith("adapter.biases") and name.endswith("_key"))]
    return stock_models.difference(*([each.state_dict()[name] for name in seen] for each in (one, other)))


def randomise(adapter_set: AdapterSet, seed: int = 0, std: float = 0.2) -> AdapterSet:
    """Return the set after its adapter and head became random and its layer norms and scales moved."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor.device) * std

    with torch.no_grad():
        for name, tensor in adapter_set.state_dict().items():
            is_scale = "layer_norms" in name or "scale" in name
            tensor.copy_(tensor + noise(tensor) if is_scale else noise(tensor))
    return adapter_set


def stop_at(step: int, seen: list[int]) -> Callable[[], bool]:
    """Return a ``should_stop`` that says so from the ``step``-th question on."""

    def should_stop() -> bool:
        seen.append(len(seen) + 1)
        return len(seen) >= step

    return should_stop


def store_members(store: Store, fused: AdapterSet, backbone: BackboneInfo = stored_sets.INFO) -> None:
    """Save the sets that a fused one needs and put their digests into it; others need none."""
    config = fused.adapter_config
    if not isinstance(config, FusionConfig):
        return
    members = []
    for member, own in zip(config.members, fused.adapter.members, strict=True):
        one = AdapterSet(fused.hidden_size, fused.layers, member.adapter, stored_sets.HEAD)
        one.adapter.load_state_dict(dict(own.named_buffers()))
        name = member.reference.partition(":")[0]
        described = {"adapter": member.adapter, "parameters": one.stored_count, "backbone": backbone}
        version = save_set(store, one, stored_sets.new_manifest(name, **described))
        digest = store.manifest(name, version).files[0].sha256
        members.append(msgspec.structs.replace(member, reference=f"{name}:{version}", digest=digest))
    fused.adapter.config = FusionConfig(members=tuple(members))
