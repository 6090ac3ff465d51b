"""One frozen BERT in memory, many small adapter sets beside it.

The door to the package: names are imported from their modules when they are first used, so that asking for the
version or a command's help does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from registry.version import __version__

if TYPE_CHECKING:
    from registry.adapters import AdapterSet
    from registry.backbone import Backbone
    from registry.batching import Batch
    from registry.data import load_task
    from registry.errors import RegistryError
    from registry.fitting import FitJob, fit, fit_together, make_plan
    from registry.huggingface import TrainerModel
    from registry.mixing import MixedAdapters
    from registry.predictor import Prediction, Predictor, Request
    from registry.recipes import Recipe, read_recipe
    from registry.references import Reference
    from registry.registry import Registry
    from registry.runs import TrainingJob
    from registry.schema import (
        AdapterConfig,
        HeadConfig,
        Manifest,
        RunRecord,
        TrainingConfig,
    )
    from registry.tasks import TaskSpec, find_task
    from registry.training import train, train_together

_HOMES = {
    "AdapterConfig": "schema",
    "AdapterSet": "adapters",
    "Backbone": "backbone",
    "Batch": "batching",
    "FitJob": "fitting",
    "HeadConfig": "schema",
    "Manifest": "schema",
    "MixedAdapters": "mixing",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "Recipe": "recipes",
    "Reference": "references",
    "Registry": "registry",
    "RegistryError": "errors",
    "Request": "predictor",
    "RunRecord": "schema",
    "TaskSpec": "tasks",
    "TrainerModel": "huggingface",
    "TrainingConfig": "schema",
    "TrainingJob": "runs",
    "find_task": "tasks",
    "fit": "fitting",
    "fit_together": "fitting",
    "load_task": "data",
    "make_plan": "fitting",
    "read_recipe": "recipes",
    "train": "training",
    "train_together": "training",
}

__all__ = [
    "AdapterConfig",
    "AdapterSet",
    "Backbone",
    "Batch",
    "FitJob",
    "HeadConfig",
    "Manifest",
    "MixedAdapters",
    "Prediction",
    "Predictor",
    "Recipe",
    "Reference",
    "Registry",
    "RegistryError",
    "Request",
    "RunRecord",
    "TaskSpec",
    "TrainerModel",
    "TrainingConfig",
    "TrainingJob",
    "__version__",
    "find_task",
    "fit",
    "fit_together",
    "load_task",
    "make_plan",
    "read_recipe",
    "train",
    "train_together",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'registry' has no attribute '{name}'")
    return getattr(import_module(f"registry.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
