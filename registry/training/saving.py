"""A fitted set into a registry, with what is known of its data and training."""

from __future__ import annotations

import torch

from registry.errors import RunError
from registry.model.backbone import Backbone
from registry.provenance import code_version, hardware
from registry.schema import DataInfo, Origin, Reference, SetInfo
from registry.store.registry import Registry
from registry.tasks.loading import TaskData
from registry.training.fit import Fitted
from registry.training.recipes import Plan


def origin_of(data: TaskData, backbone: Backbone, together: int) -> Origin:
    """Return what a manifest has to hold so that its training can be repeated.

    Args:
        data: the task with its rows.
        backbone: of the training.
        together: how many sets were trained in the same pass.
    """
    spec, threads = data.spec, torch.get_num_threads()
    return Origin(
        text_columns=spec.text_columns,
        label_column=spec.label_column,
        train_split=spec.train_split,
        hub=spec.hub.path if spec.hub else None,
        hub_config=spec.hub.config if spec.hub else None,
        hub_revision=spec.hub.revision if spec.hub else None,
        folder=spec.folder,
        file=spec.file,
        held_out=spec.held_out,
        together=together,
        device=str(backbone.device),
        threads=threads,
        processor=hardware(threads, None).processor,
        code=code_version(),
    )


def data_info(data: TaskData, fitted: Fitted | None = None) -> DataInfo:
    """Return which rows a run saw, and how many of them were cut."""
    return DataInfo(
        source=data.source,
        sample=data.sample,
        train_rows=len(data.train),
        reported_rows=len(data.reported),
        train_available=data.train_available,
        reported_available=data.reported_available,
        truncated_train=fitted.truncated_train if fitted else 0,
        truncated_reported=fitted.truncated_reported if fitted else 0,
        overlap_train=len(data.overlap.train),
        overlap_reported=len(data.overlap.reported),
        fingerprint=data.fingerprint(),
    )


def save_fitted(registry: Registry, name: str, plan: Plan, data: TaskData, fitted: Fitted) -> Reference:
    """Store a fitted set with everything about where it comes from, and return the reference to it.

    Raises:
        RunError: the method leaves no set to store.
        StoreWriteError: nothing was changed.
    """
    if fitted.adapter_set is None or not fitted.storable or plan.training is None:
        raise RunError(registry.store.root, "a method that trains a set", plan.method, "train a placement instead")
    info = SetInfo(
        task=data.spec.name,
        pair=data.spec.pair,
        max_length=plan.training.max_length,
        main_metric=data.spec.main_metric,
        scores=fitted.scores,
        recipe=plan.recipe,
        training=plan.training,
        data=data_info(data, fitted),
        split=data.spec.reported_split,
        origin=origin_of(data, registry.backbone, fitted.together),
    )
    return registry.save(name, fitted.adapter_set, info)
