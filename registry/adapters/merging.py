"""Several sets of one configuration made into one: weighted sums of what their methods change.

What a method changes is a vector that is zero where it changes nothing: the weights of bottlenecks, biases and
prefixes, (IA)3's scales less one, and of LoRA the products ``scale * B A``, which are brought back to their rank.
Heads are averaged, whatever is done with the rest.

Sources: Ilharco et al. 2023 (task arithmetic), Yadav et al. 2023 (TIES), Yu et al. 2024 (DARE).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.config import AdapterConfig, FusionConfig, HeadConfig, Ia3Config, LoraConfig
from registry.errors import ConfigError
from registry.schema import Merging
from registry.validation import Record, require


def merge_sets(sets: Sequence[AdapterSet], weights: Sequence[float], merging: Merging) -> tuple[AdapterSet, float]:
    """Return the merged set, and the share of LoRA's changes that its rank cannot hold: 0 for other methods.

    Args:
        sets: at least two, of equal configurations but for what calibration found; of one backbone.
        weights: one for each set.
        merging: how their changes are put together.

    Raises:
        ConfigError: fewer sets or weights, sets of other configurations, fused sets, or own layer norms, which
            only ``average`` can merge.
    """
    require(len(sets) >= 2, "sets to merge", "at least two", len(sets))
    require(len(weights) == len(sets), "weights", f"{len(sets)}, one for each set", len(weights))
    require(sum(weights) > 0, "weights", "numbers with a sum above 0", list(weights))
    first = sets[0]
    for other in sets[1:]:
        for kind, one, another in (
            ("adapter", first.adapter_config, other.adapter_config),
            ("head", _plain(first.head_config), _plain(other.head_config)),
        ):
            if one != another:
                raise ConfigError(f"sets to merge: their {kind}", *_differences(one, another))
    config = first.adapter_config
    whole = not isinstance(config, FusionConfig)
    require(whole, "sets to merge", "sets that answer without others ('predict a+b' joins any)", "fusion")
    norms = isinstance(config, AdapterConfig) and config.layer_norms
    require(merging.how == "average" or not norms, "how", "average, as these sets have layer norms", merging.how)
    merged = AdapterSet(
        first.hidden_size, first.layers, config, _plain(first.head_config), inner_sizes=first.inner_sizes
    )
    generator = torch.Generator().manual_seed(merging.seed)
    states = [{name: tensor.detach().cpu() for name, tensor in one.state_dict().items()} for one in sets]
    found: dict[str, Tensor] = {}
    lost = 0.0
    for name in states[0]:
        own = torch.stack([state[name] for state in states])
        if name.startswith("head."):
            found[name] = _combine(own, weights, Merging(how="average"), generator)
        elif isinstance(config, LoraConfig) and name.endswith(".lora_a"):
            pair = name.removesuffix("lora_a") + "lora_b"
            change = torch.stack([state[pair] @ state[name] for state in states])  # (K, out, in)
            found[pair], found[name], missing = _to_rank(_combine(change, weights, merging, generator), own.shape[1])
            lost = max(lost, missing)
        elif isinstance(config, Ia3Config):
            found[name] = 1 + _combine(own - 1, weights, merging, generator)
        elif not name.endswith(".lora_b"):
            found[name] = _combine(own, weights, merging, generator)
    merged.load_state_dict(found)
    return merged.eval(), lost


def _differences(one: Record | None, another: Record | None) -> tuple[str, str]:
    """Return what was expected of the second of two configurations, and found: the method, or fields that differ."""
    if one is None or another is None or type(one) is not type(another):
        names = [getattr(each, "name", "no adapter") for each in (one, another)]
        return f"one method, {names[0]}", names[1]
    fields = [name for name in one.__struct_fields__ if getattr(one, name) != getattr(another, name)]
    told = [", ".join(f"{name} {getattr(each, name)}" for name in fields) for each in (one, another)]
    return told[0], told[1]


def _plain(head: HeadConfig) -> HeadConfig:
    """Return the head without what calibration found, which is true of the one set alone."""
    return msgspec.structs.replace(head, temperature=1.0, thresholds=())


def _combine(vectors: Tensor, weights: Sequence[float], merging: Merging, generator: torch.Generator) -> Tensor:
    """Return what (K, ...) vectors make together."""
    shares = torch.tensor(weights, dtype=torch.float64).view(-1, *[1] * (vectors.ndim - 1))
    own = vectors.double()
    if merging.how == "dare":
        kept = torch.rand(own.shape, generator=generator, dtype=torch.float64) < merging.density
        own = own * kept / merging.density
    if merging.how == "average":
        shares = shares / shares.sum()
    if merging.how != "ties":
        return (own * shares).sum(dim=0).float()
    flat = own.abs().flatten(1)
    count = max(1, round(merging.density * flat.shape[1]))
    least = flat.topk(count, dim=1).values[:, -1].view(-1, *[1] * (own.ndim - 1))
    own = own * (own.abs() >= least)
    agrees = (own * shares).sum(dim=0).sign() == own.sign()
    counted = (shares * (agrees & (own != 0))).sum(dim=0)
    return ((own * shares * agrees).sum(dim=0) / counted.clamp(min=1e-12)).float()


def _to_rank(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return B (out, r) and A (r, in) whose product is nearest to ``change``, and the share of it that is lost."""
    left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    roots = values[:rank].sqrt()
    whole = float(values.norm())
    lost = float(values[rank:].norm()) / whole if whole > 0 else 0.0
    b, a = left[:, :rank] * roots, roots[:, None] * right[:rank]
    spare = rank - len(roots)
    if spare > 0:
        b, a = torch.nn.functional.pad(b, (0, spare)), torch.nn.functional.pad(a, (0, 0, 0, spare))
    return b.float().contiguous(), a.float().contiguous(), lost
