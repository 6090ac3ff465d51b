"""What is known of a trained set: its rows, its training, and what it ran on."""

from __future__ import annotations

from pathlib import Path

import torch

from registry.config import TrainingConfig
from registry.model.backbone import Backbone
from registry.provenance import code_version, hardware
from registry.schema import DataInfo, Origin, SetInfo
from registry.tasks.task_data import TaskData
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
        file=_absolute(spec.file),
        reported_file=_absolute(spec.reported_file),
        split_column=spec.split_column,
        label_columns=spec.label_columns,
        reading=spec.reading,
        held_out=spec.held_out,
        held_out_by=spec.held_out_by,
        together=together,
        device=str(backbone.device),
        threads=threads,
        processor=hardware(threads, None).processor,
        code=code_version(),
    )


def _absolute(path: str | None) -> str | None:
    """Return a file's place wherever the next command is given."""
    return None if path is None else str(Path(path).expanduser().absolute())


def data_info(data: TaskData, truncated_train: int = 0, truncated_reported: int = 0) -> DataInfo:
    """Return which rows a run saw, and how many of them were cut."""
    return DataInfo(
        source=data.source,
        sample=data.sample,
        train_rows=len(data.train),
        reported_rows=len(data.reported),
        train_available=data.train_available,
        reported_available=data.reported_available,
        truncated_train=truncated_train,
        truncated_reported=truncated_reported,
        overlap_train=len(data.overlap.train),
        overlap_reported=len(data.overlap.reported),
        left_out=data.left_out,
        repeated=data.repeated,
        fingerprint=data.fingerprint(),
    )


def set_info(
    plan: Plan, data: TaskData, backbone: Backbone, scores: dict[str, float], rows: DataInfo, together: int
) -> SetInfo:
    """Return all that a manifest is to know of a set that a plan has trained.

    Args:
        plan: that was carried out.
        data: the task with its rows.
        backbone: of the training.
        scores: on the reported rows.
        rows: see ``data_info``.
        together: how many sets were trained in the same pass.
    """
    training = plan.training or TrainingConfig()
    return SetInfo(
        task=data.spec.name,
        pair=data.spec.pair,
        max_length=training.max_length,
        main_metric=data.spec.main_metric,
        positive_label=data.spec.positive_label,
        scores=scores,
        recipe=plan.recipe,
        training=training,
        data=rows,
        split=data.spec.reported_split,
        origin=origin_of(data, backbone, together),
    )
