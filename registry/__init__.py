"""One frozen BERT in memory, many small adapter sets beside it.

The door to the package: names are imported from their modules when they are first used, so that asking for the
version or a command's help does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from registry.version import __version__

if TYPE_CHECKING:
    from registry.adapters.adapter_set import AdapterSet
    from registry.bench.records import RunRecord
    from registry.config import AdapterConfig, HeadConfig, TrainingConfig
    from registry.errors import RegistryError
    from registry.interop.card import push_set
    from registry.interop.checkpoint import load_into
    from registry.interop.estimators import AdapterClassifier, TrainerModel
    from registry.interop.formats import pull_set
    from registry.model.backbone import Backbone
    from registry.model.batching import Batch
    from registry.model.mixed import MixedAdapters
    from registry.schema import Manifest, Reading, Reference, SetInfo
    from registry.serving.pipeline import TextClassification
    from registry.serving.predictor import Prediction, Predictor, Request
    from registry.store.registry import Registry
    from registry.tasks.loading import load_task
    from registry.tasks.metrics import use_metric
    from registry.tasks.spec import TaskSpec, find_task
    from registry.tasks.task_data import TaskData
    from registry.training.fit import FitJob, fit, fit_together
    from registry.training.loop import train, train_together
    from registry.training.plan import make_plan
    from registry.training.recipes import Recipe, read_recipe
    from registry.training.state import TrainingJob
    from registry.web.client import AsyncClient, Client

_HOMES = {
    "AdapterClassifier": "interop.estimators",
    "AdapterConfig": "config",
    "AdapterSet": "adapters.adapter_set",
    "AsyncClient": "web.client",
    "Backbone": "model.backbone",
    "Batch": "model.batching",
    "Client": "web.client",
    "FitJob": "training.fit",
    "HeadConfig": "config",
    "Manifest": "schema",
    "MixedAdapters": "model.mixed",
    "Prediction": "serving.predictor",
    "Predictor": "serving.predictor",
    "Reading": "schema",
    "Recipe": "training.recipes",
    "Reference": "schema",
    "Registry": "store.registry",
    "RegistryError": "errors",
    "Request": "serving.predictor",
    "RunRecord": "bench.records",
    "SetInfo": "schema",
    "TaskData": "tasks.task_data",
    "TaskSpec": "tasks.spec",
    "TextClassification": "serving.pipeline",
    "TrainerModel": "interop.estimators",
    "TrainingConfig": "config",
    "TrainingJob": "training.state",
    "find_task": "tasks.spec",
    "fit": "training.fit",
    "fit_together": "training.fit",
    "load_into": "interop.checkpoint",
    "load_task": "tasks.loading",
    "make_plan": "training.plan",
    "pull_set": "interop.formats",
    "push_set": "interop.card",
    "read_recipe": "training.recipes",
    "train": "training.loop",
    "train_together": "training.loop",
    "use_metric": "tasks.metrics",
}

__all__ = [
    "AdapterClassifier",
    "AdapterConfig",
    "AdapterSet",
    "AsyncClient",
    "Backbone",
    "Batch",
    "Client",
    "FitJob",
    "HeadConfig",
    "Manifest",
    "MixedAdapters",
    "Prediction",
    "Predictor",
    "Reading",
    "Recipe",
    "Reference",
    "Registry",
    "RegistryError",
    "Request",
    "RunRecord",
    "SetInfo",
    "TaskData",
    "TaskSpec",
    "TextClassification",
    "TrainerModel",
    "TrainingConfig",
    "TrainingJob",
    "__version__",
    "find_task",
    "fit",
    "fit_together",
    "load_into",
    "load_task",
    "make_plan",
    "pull_set",
    "push_set",
    "read_recipe",
    "train",
    "train_together",
    "use_metric",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'registry' has no attribute '{name}'")
    return getattr(import_module(f"registry.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
