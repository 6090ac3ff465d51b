"""AdapterHub's methods: what each of its switches means here, and which switches make a configuration of ours.

Its formula of a bottleneck, for a sub-layer's output s with the residual r and the layer's norm, b(·) being the
bottleneck times its scaling:
``x = original_ln_before ? norm(s + r) : s``, then ``y = b(x) + (residual_before_ln ? s : x)``, then
``original_ln_after ? norm(y + r) : y``; with ``is_parallel`` it is ``norm(s + b(r) + r)``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from registry.adapters.bottleneck import PLACES
from registry.config import (
    TARGETS,
    AdapterConfig,
    Ia3Config,
    LoraConfig,
    MethodConfig,
    Placement,
    PrefixConfig,
    SubLayer,
    Target,
)
from registry.interop.switches import (
    ACTIVATION_NAMES,
    ADAPTERHUB,
    Switch,
    number_within,
    settle,
    shown,
    switch_errors,
    text,
    whole_numbers,
    whole_within,
)
from registry.store.errors import ForeignSwitchError

_ATTENTION: tuple[Target, ...] = ("query", "key", "value")


class PlacementRule(NamedTuple):
    """The switches that make a placement: of a parallel one only ``after`` counts."""

    before: bool
    after: bool
    residual: bool
    parallel: bool


RULES: Mapping[Placement, PlacementRule] = MappingProxyType(
    {
        "after_layer": PlacementRule(before=True, after=False, residual=False, parallel=False),
        "houlsby": PlacementRule(before=False, after=True, residual=True, parallel=False),
        "pfeiffer": PlacementRule(before=True, after=True, residual=True, parallel=False),
        "parallel": PlacementRule(before=False, after=True, residual=True, parallel=True),
    }
)


def read_bottleneck(
    path: Path, found: Mapping[str, Any], hidden_size: int, layers: int
) -> tuple[AdapterConfig, tuple[str, ...]]:
    """Return the bottlenecks that a configuration means, and what of it is not kept.

    Raises:
        ForeignSwitchError: a switch that no bottleneck here has.
    """
    settled = settle(path, found, ADAPTERHUB["bottleneck"])
    for key in ("mh_adapter", "output_adapter", "reduction_factor", "non_linearity"):
        if key not in found:
            raise ForeignSwitchError(path, key, "the key, which has no default", "none")
    places: list[SubLayer] = ["attention"] if settled["mh_adapter"] else []
    places += ["ffn"] if settled["output_adapter"] else []
    left = left_layers(path, settled["leave_out"], layers)
    if not places:
        raise ForeignSwitchError(path, "mh_adapter", "one of mh_adapter and output_adapter", "neither")
    placement = _placement(path, settled)
    factors, widths = _widths(path, settled["reduction_factor"], hidden_size, left or tuple(range(layers)))
    scaling = settled["scaling"]
    learned = {"learned": "one", "channel": "channel"}.get(scaling, "none") if isinstance(scaling, str) else "none"
    if learned == "none":
        scaling = number_within(path, "scaling", scaling, -1e6, 1e6)
        scaling = float(scaling)
    activation = text(path, "non_linearity", settled["non_linearity"]).lower()
    if activation not in ACTIVATION_NAMES:
        raise ForeignSwitchError(path, "non_linearity", f"one of {', '.join(ACTIVATION_NAMES)}", shown(activation))
    with switch_errors(path):
        config = AdapterConfig(
            placement=placement,
            reduction_factor=factors,
            activation=ACTIVATION_NAMES[activation],
            dropout=float(number_within(path, "dropout", settled["dropout"] or 0.0, 0.0, 1.0)),
            layers=left,
            places=None if tuple(places) == PLACES[placement] else tuple(places),
            widths=widths,
            scale=1.0 if learned != "none" else scaling,
            learned_scale=learned,  # type: ignore[arg-type]
        )
    depth = settled["stochastic_depth"]
    return config, (f"stochastic_depth {depth}",) if depth else ()


def left_layers(path: Path, leave_out: object, layers: int) -> tuple[int, ...] | None:
    """Return the layers that are not left out, None for all.

    Raises:
        ForeignSwitchError: none is left.
    """
    out = set(whole_numbers(path, "leave_out", leave_out))
    left = tuple(layer for layer in range(layers) if layer not in out)
    if not left:
        raise ForeignSwitchError(path, "leave_out", f"fewer than all {layers} layers", shown(leave_out))
    return None if len(left) == layers else left


def _placement(path: Path, settled: Mapping[str, Any]) -> Placement:
    found = PlacementRule(
        settled["original_ln_before"],
        settled["original_ln_after"],
        settled["residual_before_ln"],
        settled["is_parallel"],
    )
    for placement, rule in RULES.items():
        same = found == rule
        if rule.parallel:
            same = found.parallel and found.after
        elif not rule.before:
            same = found._replace(residual=True) == rule  # the residual is s either way
        if same:
            return placement
    told = ", ".join(f"{key} {shown(settled[key])}" for key in _PLACING)
    raise ForeignSwitchError(path, "original_ln_before", f"with its kin one of {', '.join(RULES)}", told)


_PLACING = ("original_ln_before", "original_ln_after", "residual_before_ln", "is_parallel")


def _widths(path: Path, factor: object, hidden_size: int, layers: tuple[int, ...]) -> tuple[int, dict[str, int]]:
    """Return a reduction factor, and the widths of the layers where it is not that."""
    table = factor if isinstance(factor, dict) else {"default": factor}
    found = {}
    for layer in layers:
        own = table.get(str(layer), table.get("default"))
        width = int(hidden_size // number_within(path, "reduction_factor", own, 1e-3, 1e6))
        found[layer] = whole_within(path, "reduction_factor", max(1, width), 1, 65_536)
    first = next(iter(found.values()))
    if set(found.values()) == {first} and hidden_size % first == 0:
        return hidden_size // first, {}
    return max(1, round(hidden_size / first)), {str(layer): width for layer, width in found.items()}


def bottleneck_names(config: AdapterConfig, modules: Mapping[tuple[int, SubLayer], str]) -> dict[str, str]:
    """Return our name of each tensor of their bottlenecks.

    Args:
        config: of the set.
        modules: by layer and place, where their library keeps that bottleneck.
    """
    parts = {f"adapter_down.0.{part}": f"down.{part}" for part in ("weight", "bias")}
    parts |= {f"adapter_up.{part}": f"up.{part}" for part in ("weight", "bias")}
    parts |= {"scaling": "scale"} if config.learned_scale != "none" else {}
    return {
        f"{module}.{theirs}": f"bottlenecks.{layer}_{place}.{ours}"
        for (layer, place), module in modules.items()
        for theirs, ours in parts.items()
    }


def bottleneck_places(config: AdapterConfig, layers: int) -> list[tuple[int, SubLayer]]:
    """Return where a configuration has bottlenecks."""
    chosen = range(layers) if config.layers is None else config.layers
    return [(layer, place) for layer in chosen for place in config.places or PLACES[config.placement]]


def bottleneck_config(config: AdapterConfig, hidden_size: int, layers: int) -> dict[str, Any]:
    """Return their configuration of bottlenecks that ``bottleneck_obstacle`` has nothing against."""
    rule = RULES[config.placement]
    places = config.places or PLACES[config.placement]
    names: dict[str, str] = {}
    for theirs, ours in ACTIVATION_NAMES.items():
        names.setdefault(ours, theirs)
    chosen = range(layers) if config.layers is None else config.layers
    factor: Any = config.reduction_factor
    if config.widths:
        # H / (M + 1/2) gives M again whatever H is, where H / M may round to one less.
        own = {layer: config.widths.get(str(layer), hidden_size // config.reduction_factor) for layer in chosen}
        factor = {str(layer): hidden_size / (width + 0.5) for layer, width in own.items()}
    learned = {"none": float(config.scale), "one": "learned", "channel": "channel"}
    return {
        **_defaults(ADAPTERHUB["bottleneck"]),
        "mh_adapter": "attention" in places,
        "output_adapter": "ffn" in places,
        "reduction_factor": factor,
        "non_linearity": names[config.activation],
        "original_ln_before": rule.before,
        "original_ln_after": rule.after,
        "residual_before_ln": rule.residual,
        "is_parallel": rule.parallel,
        "scaling": learned[config.learned_scale],
        "leave_out": [layer for layer in range(layers) if layer not in chosen],
        "dropout": config.dropout,
    }


def method_config(config: MethodConfig | None, hidden_size: int, layers: int) -> dict[str, Any]:
    """Return their configuration of a method that ``adapterhub_obstacle`` has nothing against."""
    if isinstance(config, AdapterConfig):
        return bottleneck_config(config, hidden_size, layers)
    chosen = range(layers) if config is None or config.layers is None else config.layers
    left_out = {"leave_out": [layer for layer in range(layers) if layer not in chosen]}
    if isinstance(config, PrefixConfig):
        return {**_defaults(ADAPTERHUB["prefix_tuning"]), **left_out, "flat": True, "prefix_length": config.length}
    if not isinstance(config, LoraConfig | Ia3Config):
        return {}
    changed: dict[str, Any] = {
        "selfattn_lora": bool(set(_ATTENTION) & set(config.targets)),
        "attn_matrices": [target[0] for target in _ATTENTION if target in config.targets],
        "intermediate_lora": "ffn_in" in config.targets,
        "output_lora": "ffn_out" in config.targets,
    }
    if isinstance(config, Ia3Config):
        changed |= {"composition_mode": "scale", "init_weights": "ia3", "r": 1, "alpha": 1}
    else:
        rank, scale = (of(chosen[0], config.targets[0]) for of in (config.rank_at, config.scale_at))
        alpha = config.alpha if not (config.rslora or config.alphas) else scale * rank
        changed |= {"r": rank, "alpha": int(alpha) if alpha == int(alpha) else alpha, "dropout": config.dropout}
    return {**_defaults(ADAPTERHUB["lora"]), **left_out, **changed}


def _defaults(switches: Mapping[str, Switch]) -> dict[str, Any]:
    return {key: switch.default for key, switch in switches.items() if switch.exported}


def settled_lora(path: Path, found: Mapping[str, Any], version: object) -> tuple[dict[str, Any], float]:
    """Return LoRA's switches, and alpha as the version that saved the file computed with it."""
    settled = settle(path, found, ADAPTERHUB["lora"])
    match = re.fullmatch(r"adapters\.(\d+)\.(\d+)\..*", text(path, "version", version))
    is_faulty = match is not None and (int(match[1]), int(match[2])) < (1, 1)
    return settled, number_within(path, "alpha", settled["r" if is_faulty else "alpha"], -1e6, 1e6)


def read_lora(path: Path, found: Mapping[str, Any], version: object, layers: int) -> LoraConfig | Ia3Config:
    """Return the changes of products that a configuration means."""
    settled, alpha = settled_lora(path, found, version)
    matrices = settled["attn_matrices"]
    letters = {target[0]: target for target in _ATTENTION}
    if not isinstance(matrices, list) or not all(isinstance(each, str) and each in letters for each in matrices):
        raise ForeignSwitchError(path, "attn_matrices", "a list of q, k, v", shown(matrices))
    chosen: set[str] = {letters[each] for each in matrices} if settled["selfattn_lora"] else set()
    chosen |= {"ffn_in"} if settled["intermediate_lora"] else set()
    chosen |= {"ffn_out"} if settled["output_lora"] else set()
    targets = tuple(target for target in TARGETS if target in chosen)
    is_scale = settled["composition_mode"] == "scale"
    rank = whole_within(path, "r", settled["r"], 1, 1 if is_scale else 65_536)
    left = left_layers(path, settled["leave_out"], layers)
    dropout = float(number_within(path, "dropout", settled["dropout"], 0.0, 0.0 if is_scale else 1.0))
    with switch_errors(path):
        if is_scale:
            return Ia3Config(targets=targets, inputs=(), layers=left)
        return LoraConfig(rank=rank, alpha=float(alpha), targets=targets, dropout=dropout, layers=left)


def read_prefix(path: Path, found: Mapping[str, Any], layers: int) -> tuple[PrefixConfig, tuple[str, ...]]:
    """Return the prefix that a configuration means, and what of it is not kept."""
    settled = settle(path, found, ADAPTERHUB["prefix_tuning"])
    length = whole_within(path, "prefix_length", settled["prefix_length"], 1, 4096)
    config = PrefixConfig(length=length, layers=left_layers(path, settled["leave_out"], layers))
    dropout = number_within(path, "dropout", settled["dropout"], 0.0, 1.0)
    made = () if settled["flat"] else ("flat false: the keys and values are kept, not what made them",)
    return config, (*made, *((f"dropout {dropout}",) if dropout else ()))
