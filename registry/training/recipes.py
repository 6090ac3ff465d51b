"""A recipe names every choice of a training: adapter, head and optimisation, by task and by method.

Recipes are TOML files; those in ``recipes/`` ship with the package. Command-line options override a recipe, a recipe's
``[method.*]`` tables override its ``[task.*]`` tables, and those override ``[training]``; the most special are
``[method.*.task.*]``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import msgspec

from registry.config import (
    BASELINES,
    METHODS,
    PLACEMENTS,
    Activation,
    AdapterConfig,
    BitFitConfig,
    HeadConfig,
    HeadForm,
    Ia3Config,
    Initialisation,
    LearnedScale,
    LoraConfig,
    MethodConfig,
    Placement,
    Pooling,
    PrefixConfig,
    ProblemType,
    SubLayer,
    TrainingConfig,
)
from registry.errors import ConfigError, UnknownRecipeError, closest
from registry.store.members import choose_members
from registry.validation import Record, choose, from_plain, require

if TYPE_CHECKING:
    from registry.model.backbone import Backbone
    from registry.store.reader import StoreReader

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = Path(__file__).with_name("recipes")
DEFAULT = "default"


class AdapterChoices(Record, frozen=True, kw_only=True, tag_field="method", tag="bottleneck"):
    """The bottlenecks of a recipe: as ``AdapterConfig``, but their size may be given as M itself."""

    placement: Placement = "after_layer"
    reduction_factor: int | None = None
    bottleneck_size: int | None = None
    activation: Activation = "gelu"
    init: Initialisation = "zero"
    dropout: float = 0.0
    layer_norms: bool = False
    layers: tuple[int, ...] | None = None
    places: tuple[SubLayer, ...] | None = None
    widths: dict[str, int] = {}
    scale: float = 1.0
    learned_scale: LearnedScale = "none"

    def __post_init__(self) -> None:
        given = (self.reduction_factor is None) + (self.bottleneck_size is None)
        require(given == 1, "adapter", "one of reduction_factor and bottleneck_size", f"{2 - given} of them")

    @property
    def name(self) -> str:
        """What tables and methods call it."""
        return self.placement

    def for_hidden_size(self, hidden_size: int) -> AdapterConfig:
        """Return the configuration for a backbone of hidden size H.

        Raises:
            ConfigError: M does not divide H.
        """
        factor = self.reduction_factor
        if factor is None:
            size = self.bottleneck_size or 0
            fits = size >= 1 and hidden_size % size == 0
            require(fits, "bottleneck_size", f"a divisor of the hidden size {hidden_size}", size)
            factor = hidden_size // size
        fits = factor >= 1 and hidden_size % factor == 0
        require(fits, "reduction_factor", f"a divisor of the hidden size {hidden_size}", factor)
        fields = msgspec.structs.asdict(self)
        del fields["bottleneck_size"]
        return AdapterConfig(**{**fields, "reduction_factor": factor})


class FusionChoices(Record, frozen=True, kw_only=True, tag_field="method", tag="fusion"):
    """The fused set of a recipe: as ``FusionConfig``, but its members are references, looked up in a store."""

    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What tables and methods call it."""
        return "fusion"


MethodChoices: TypeAlias = AdapterChoices | LoraConfig | Ia3Config | BitFitConfig | PrefixConfig | FusionChoices
_CHOICES: Mapping[str, type[Record]] = MappingProxyType(
    {str(kind.__struct_config__.tag): kind for kind in get_args(MethodChoices)}
)


class HeadChoices(Record, frozen=True, kw_only=True):
    """The head of a recipe: all of ``HeadConfig`` that does not depend on the task."""

    form: HeadForm = "linear"
    bias: bool = True
    pooling: Pooling = "mean"
    dropout: float = 0.0
    trained: bool = True

    def for_task(
        self, label_names: tuple[str, ...], problem_type: ProblemType, targets: Sequence[float] = ()
    ) -> HeadConfig:
        """Return the head for a task's labels, or for the numbers of its training rows."""
        fields = {**msgspec.structs.asdict(self), "label_names": label_names, "problem_type": problem_type}
        if targets:
            import numpy  # not at once: the command line reads recipes for its help

            values = numpy.asarray(targets, dtype=numpy.float64)
            mean, deviation = float(values.mean()), float(values.std())
            require(math.isfinite(mean + deviation), "labels", "numbers below 1e150", max(targets, key=abs))
            fields.update(target_mean=mean, target_deviation=deviation or 1.0)
        return from_plain(HeadConfig, fields)


class Recipe(Record, frozen=True, kw_only=True):
    """Every choice of a training.

    Attributes:
        name: of the file, without its ending.
        description: one sentence for ``--help`` and reports.
        backbone: what the recipe was made for; it runs on any.
        adapter, head, training: the choices.
        task: fields of ``training`` that differ by task.
        method: fields of ``training`` that differ by method of a benchmark, and its own ``task`` tables.
    """

    name: str
    description: str
    backbone: str = "embedded"
    adapter: MethodChoices
    head: HeadChoices
    training: TrainingConfig
    task: dict[str, dict[str, Any]] = {}
    method: dict[str, dict[str, Any]] = {}

    def training_for(self, task: str, method: str | None = None, **overrides: Any) -> TrainingConfig:
        """Return the training configuration for a task and a method, with ``overrides`` that are not None."""
        by_method = dict(self.method.get(method or "", {}))
        by_both = by_method.pop("task", {}).get(task, {})
        chosen = {**self.task.get(task, {}), **by_method, **by_both}
        given = {name: value for name, value in overrides.items() if value is not None}
        training: TrainingConfig = replace_fields(self.training, {**chosen, **given})
        return training

    def with_choices(self, adapter: Mapping[str, Any], head: Mapping[str, Any]) -> Recipe:
        """Return the recipe with other adapter and head choices; None leaves a choice as it is."""
        changes = {name: value for name, value in adapter.items() if value is not None}
        kind = _CHOICES[choose(str(changes.pop("method", method_of(self.adapter))), METHODS, "method")]
        fields = kind.__struct_fields__
        for name in changes:
            if name not in fields:
                expected = f"one of {', '.join(fields)} for {method_of(kind)}"
                raise ConfigError("adapter", expected, name, closest(name, fields))
        if "reduction_factor" in changes:
            changes["bottleneck_size"] = None
        own = msgspec.structs.asdict(self.adapter) if isinstance(self.adapter, kind) else {}
        if kind is AdapterChoices and not own:
            own = msgspec.structs.asdict(read_recipe(DEFAULT).adapter)
        return msgspec.structs.replace(
            self, adapter=from_plain(kind, {**own, **changes}), head=replace_fields(self.head, head)
        )


def method_of(choices: Record | type[Record]) -> str:
    """Return the name of the method that choices or a configuration are of."""
    return str(choices.__struct_config__.tag)


def replace_fields(record: Any, changes: Mapping[str, Any]) -> Any:
    """Return the record with the changes that are not None, checked as when it was read."""
    given = {name: value for name, value in changes.items() if value is not None}
    fields = type(record).__struct_fields__
    for name in given:
        if name not in fields:
            raise ConfigError(type(record).__name__, f"fields {', '.join(fields)}", name, closest(name, fields))
    return from_plain(type(record), {**msgspec.structs.asdict(record), **given})


def recipe_names() -> tuple[str, ...]:
    """Return the names of the shipped recipes, the default first."""
    names = (path.stem for path in SHIPPED.glob("*.toml"))
    return tuple(sorted(names, key=lambda name: (name != DEFAULT, name)))


def read_recipe(name: str) -> Recipe:
    """Return a shipped recipe by name, or one from a TOML file by path.

    Raises:
        UnknownRecipeError: neither a shipped name nor a file.
        ConfigError: not TOML, or a field that is unknown, missing or out of range.
    """
    shipped = recipe_names()
    path = SHIPPED / f"{name}.toml" if name in shipped else Path(name)
    if path.suffix != ".toml" or not path.is_file():
        raise UnknownRecipeError(name, shipped)
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ConfigError(f"recipe {path.name}", "TOML text in UTF-8", str(err)) from err
    adapter = plain.get("adapter")
    if isinstance(adapter, dict):  # a recipe that names no method is one of bottlenecks
        plain["adapter"] = {"method": "bottleneck", **adapter}
    recipe: Recipe = from_plain(Recipe, {"name": path.stem, **plain})
    for method in recipe.method:
        choose(method, (*BASELINES, *PLACEMENTS, *METHODS[1:]), f"recipe {path.name}, table method.{method}")
    for method in ("", *recipe.method):  # a wrong field shows now, not in the middle of a benchmark
        for task in ("", *recipe.task, *recipe.method.get(method, {}).get("task", {})):
            recipe.training_for(task, method)
    return recipe


def for_backbone(choices: MethodChoices, backbone: Backbone, store: StoreReader | None = None) -> MethodConfig:
    """Return the configuration that a recipe's choices mean on a backbone, with members from a store of its sets.

    Raises:
        ConfigError: a bottleneck's size that does not divide H, or sets that cannot be fused.
        AdapterNotFoundError: no such set to be fused.
    """
    if isinstance(choices, FusionChoices):
        if store is None:
            expected = "train or Registry.train, which look its members up in their store"
            raise ConfigError("method fusion", expected, "no store")
        return choose_members(store, choices.members)
    return choices.for_hidden_size(backbone.info.hidden_size) if isinstance(choices, AdapterChoices) else choices


def method_names() -> tuple[str, ...]:
    """Return every method a benchmark knows: baselines, placements, and shipped recipes but the default."""
    return (*BASELINES, *PLACEMENTS, *(name for name in recipe_names() if name != DEFAULT))
