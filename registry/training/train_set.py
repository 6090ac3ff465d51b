"""A set trained, scored and stored in one call: what ``Registry.train`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from registry.errors import ConfigError, DivergedError
from registry.schema import Reference
from registry.training.fit import Fitted, Start, fit
from registry.training.plan import make_plan
from registry.training.recipes import DEFAULT, Recipe, read_recipe
from registry.training.state import Loss, StepReport
from registry.validation import require

if TYPE_CHECKING:
    from registry.store.registry import Registry
    from registry.tasks.task_data import TaskData


@dataclass(frozen=True, repr=False)
class StoredTraining:
    """What came of ``Registry.train``.

    Attributes:
        reference: of the stored set, with its version.
        scores: on the reported rows, by metric.
        positive_label: the class that ``f1_binary`` is of, where there are two.
        history: (step, held-out scores) of each evaluation in training; empty without ``evaluate_every``.
        remarks: what a reader should know of the rows.
        fitted: everything else.
    """

    reference: Reference
    scores: dict[str, float]
    positive_label: str | None
    history: tuple[tuple[int, dict[str, float]], ...]
    remarks: tuple[str, ...]
    fitted: Fitted

    def __repr__(self) -> str:
        told = ", ".join(f"{metric} {value:.3f}" for metric, value in self.scores.items())
        return f"StoredTraining({str(self.reference)!r}: {told})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{metric}</td><td>{value:.3f}</td></tr>" for metric, value in self.scores.items())
        return f"<table><caption>{self.reference}</caption>{rows}</table>"


def train_set(
    registry: Registry,
    name: str,
    data: TaskData,
    recipe: str | Recipe = DEFAULT,
    *,
    seed: int = 0,
    adapter: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] | None = None,
    keep_diverged: bool = False,
    observe: Callable[[StepReport], None] | None = None,
    loss: Loss | None = None,
    start_from: str | None = None,
    **training: Any,
) -> StoredTraining:
    """Train a set on a task's rows, score it, and store it as the next version of ``name``; see ``Registry.train``."""
    if not hasattr(data, "train_available"):
        expected = "TaskData, as TaskData.from_pandas, from_dataset, from_lists and load_task give it"
        raise ConfigError("data", expected, type(data).__name__)
    chosen = read_recipe(recipe) if isinstance(recipe, str) else recipe
    chosen = chosen.with_choices(adapter or {}, head or {})
    plan = make_plan("recipe", data, registry.backbone, seed, chosen, store=registry.store, **training)
    start = None
    if start_from is not None:
        require(not adapter, "start_from", "no other choices of an adapter beside it", adapter)
        start = load_start(registry, start_from)
        plan = msgspec.structs.replace(plan, adapter=start.adapter_set.adapter_config)
    members = registry.load_members(plan.adapter)
    fitted = fit(plan, data, registry.backbone, observe=observe, loss=loss, members=members, start=start)
    result = fitted.result
    if result is not None and result.diverged and not keep_diverged:
        raise DivergedError(name, result.first_loss, result.final_loss)
    reference = registry.save(name, fitted)
    history = result.history if result is not None else ()
    return StoredTraining(reference, fitted.scores, data.spec.positive_label, history, data.remarks, fitted)


def load_start(registry: Registry, reference: str) -> Start:
    """Return the stored set whose adapter a training is to go on from.

    Raises:
        AdapterNotFoundError, IntegrityError: see ``Registry.load``.
    """
    exact = "{}:{}".format(*registry.store.resolve(reference))
    return Start(exact, registry.load(exact))
