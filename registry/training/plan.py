"""A plan: every choice behind one cell of a table, made of a method's name, a recipe and what is chosen beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec

from registry.config import (
    BASELINES,
    PLACEMENTS,
    FusionConfig,
    HeadConfig,
    LoraConfig,
    MethodConfig,
    Placement,
    PrefixConfig,
    TrainingConfig,
)
from registry.errors import ConfigError, closest
from registry.training.recipes import DEFAULT, Recipe, for_backbone, method_names, read_recipe, recipe_names
from registry.validation import Record, require, to_json

if TYPE_CHECKING:
    from registry.model.backbone import Backbone
    from registry.store.reader import StoreReader
    from registry.tasks.task_data import TaskData


class Plan(Record, frozen=True, kw_only=True):
    """Every choice behind one cell of a table; equal plans on equal rows give equal scores.

    Attributes:
        method: a placement, a baseline or the name of a recipe.
        recipe: where the choices come from.
        adapter: None where a head alone trains, or nothing.
        head: None for ``majority``, which has no model.
        training: None for ``majority``.
        unfreezes: whether a copy of the encoder trains as well (``full_fine_tuning``).
    """

    method: str
    recipe: str
    adapter: MethodConfig | None = None
    head: HeadConfig | None = None
    training: TrainingConfig | None = None
    unfreezes: bool = False

    def tell(self, backbone: Backbone, data: TaskData) -> dict[str, str]:
        """Return by name all that decides the scores; see ``digest``."""
        told = {
            "rows": data.fingerprint()[:12],
            "backbone": backbone.info.fingerprint[:12],
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "reported split": data.spec.reported_split,
        }
        for part in ("adapter", "head", "training"):
            told.update({name: str(value) for name, value in (msgspec.to_builtins(getattr(self, part)) or {}).items()})
        if isinstance(self.adapter, FusionConfig):
            told["members"] = ", ".join(f"{each.reference} ({each.digest[:12]})" for each in self.adapter.members)
        return told

    def digest(self, backbone: Backbone, data: TaskData) -> str:
        """Return the SHA-256 of all that decides the scores: choices, rows, backbone, precision, metrics."""
        parts = (
            to_json(self),
            data.fingerprint().encode(),
            backbone.info.fingerprint.encode(),
            backbone.info.tokenizer_digest.encode(),
            str(backbone.dtype).encode(),
            f"{data.spec.reported_split} {data.spec.metrics}".encode(),
        )
        return hashlib.sha256(b"\n".join(parts)).hexdigest()


class ParameterCounts(Record, frozen=True, kw_only=True):
    """Elements: what trains, what is stored per task, the backbone, and backbone + stored."""

    trainable: int
    stored: int
    backbone: int
    total: int

    @property
    def percent(self) -> float:
        """Return trainable elements per hundred elements of the backbone (the trainable share)."""
        return 100.0 * self.trainable / self.backbone


def make_plan(
    method: str,
    data: TaskData,
    backbone: Backbone,
    seed: int,
    recipe: Recipe | None = None,
    *,
    choices: Mapping[str, Any] | None = None,
    store: StoreReader | None = None,
    **overrides: Any,
) -> Plan:
    """Return what a method means for a task on a backbone.

    Args:
        method: one of ``method_names()``, or ``recipe`` for the given recipe as it is.
        data: for label names and problem type.
        backbone: for the hidden size.
        seed: of the run.
        recipe: where placements and baselines take their choices from; the default recipe when None.
        choices: of the method's configuration, that win over the recipe's; baselines have none.
        store: where the members of a fused set are.
        overrides: training fields that win over the recipe's, None meaning not given.

    Raises:
        ConfigError: an unknown method, choices that do not fit the backbone, or sets that cannot be fused.
        AdapterNotFoundError: no such set to be fused.
    """
    names = method_names()
    if method not in (*names, "recipe"):
        raise ConfigError("method", f"one of {', '.join(names)}", method, closest(method, names))
    base = recipe or read_recipe(DEFAULT)
    if method == "majority":
        return Plan(method=method, recipe=base.name)
    if method in recipe_names():
        base = read_recipe(method)
    elif method in PLACEMENTS:
        base = base.with_choices({"method": "bottleneck", "placement": cast(Placement, method)}, {})
    if choices:
        require(method not in BASELINES, "choices", "a method with an adapter", method)
        base = base.with_choices(choices, {})
    kind = method if method in BASELINES else base.adapter.name
    adapter = None if method in BASELINES else for_backbone(base.adapter, backbone, store)
    targets = data.train.labels if data.spec.problem_type == "regression" else ()
    head = base.head.for_task(data.spec.label_names or (), data.spec.problem_type, targets)
    if method in BASELINES:
        head = msgspec.structs.replace(head, trained=True)
    training = base.training_for(data.spec.name, kind, **{**overrides, "seed": seed})
    backbone.check_pooling(head)
    backbone.check_max_length(training.max_length)
    if adapter is not None:
        check_adapter(adapter, backbone, training.max_length)
    return Plan(
        method=method if method != "recipe" else base.adapter.name,
        recipe=base.name,
        adapter=adapter,
        head=head,
        training=training,
        unfreezes=method == "full_fine_tuning",
    )


def check_adapter(adapter: MethodConfig, backbone: Backbone, max_length: int) -> None:
    """Refuse an adapter that this backbone cannot have.

    Raises:
        ConfigError: a layer that is not there, a rank above a product's width, or a longer prefix than rows may be.
    """
    info = backbone.info
    if adapter.layers is not None:
        last = info.layers - 1
        require(adapter.layers[-1] <= last, "layers", f"indices from 0 to {last}", adapter.layers)
    if isinstance(adapter, LoraConfig):
        widest, rank = info.hidden_size, max(adapter.rank, *adapter.ranks.values(), 0)
        require(rank <= widest, "rank", f"at most the width of a product, {widest}", rank)
    if isinstance(adapter, PrefixConfig):
        longest = backbone.encoder.max_length
        fits = adapter.length + max_length <= longest
        require(fits, "length", f"at most {longest - max_length} beside rows of {max_length} tokens", adapter.length)
