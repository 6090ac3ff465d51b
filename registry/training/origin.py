"""What is known of a trained set: its rows, its training, and what it ran on; and its training again from that.

Equal rows, settings, seed, libraries, code and processor give equal bits; what may differ is compared and told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from registry.config import TrainingConfig
from registry.errors import ConfigError, DataError
from registry.model.backbone import Backbone
from registry.provenance import code_version, hardware
from registry.schema import DataInfo, Manifest, Origin, Reading, Reference, SetInfo
from registry.tasks.loading import load_again
from registry.tasks.spec import BUILT_IN, HubSource, TaskSpec
from registry.tasks.task_data import TaskData
from registry.training.plan import Plan

_CIRCUMSTANCES = {"code": "code", "device": "device", "threads": "number of threads", "processor": "processor"}
# What a task and the origin of a set trained on it say alike; the Hub's data set, files and reading are spelled apart.
_ALIKE = ("text_columns", "label_column", "label_columns", "train_split", "split_column", "held_out", "held_out_by")


def origin_of(data: TaskData, backbone: Backbone, together: int) -> Origin:
    """Return what a manifest has to hold so that its training can be repeated.

    Args:
        data: the task with its rows.
        backbone: of the training.
        together: how many sets were trained in the same pass.
    """
    spec, threads = data.spec, torch.get_num_threads()
    return Origin(
        **{name: getattr(spec, name) for name in _ALIKE},
        hub=spec.hub.path if spec.hub else None,
        hub_config=spec.hub.config if spec.hub else None,
        hub_revision=spec.hub.revision if spec.hub else None,
        folder=spec.folder,
        file=_absolute(spec.file),
        reported_file=_absolute(spec.reported_file),
        reading=spec.reading,
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


@dataclass(frozen=True)
class Repetition:
    """A stored set's training, ready to be done again.

    Attributes:
        reference: the stored version.
        manifest: of it.
        spec: the task.
        plan: every choice.
        data: what the manifest says of the rows.
        dtype: of the backbone.
    """

    reference: Reference
    manifest: Manifest
    spec: TaskSpec
    plan: Plan
    data: DataInfo
    dtype: str

    def load_rows(self, source: str | None = None, *, offline: bool = False) -> TaskData:
        """Return the rows that the set was trained and scored on.

        Args:
            source: where they are now, as ``--data`` takes it; where they were when None.
            offline: never ask the network.

        Raises:
            DataError: they cannot be read, or are not those rows.
            DataUnavailableError: the Hub cannot be reached and nothing is cached.
        """
        info, spec = self.data, self.spec
        if source is not None and spec.file is not None:
            spec = msgspec.structs.replace(spec, file=source)
        elif source is not None and spec.folder is not None and Path(spec.folder).is_absolute():
            spec = msgspec.structs.replace(spec, folder=str(Path(source).absolute()))
        data = load_again(spec, info, source, offline=offline)
        if data.fingerprint() != info.fingerprint:
            expected = f"those of {self.reference}, {_digits(info.fingerprint)} ({_counts(info)})"
            found = f"{_digits(data.fingerprint())} ({len(data.train):,} to train on, {len(data.reported):,} to score)"
            hint = "the data has changed, or --data names another copy"
            raise DataError(data.source, "rows", expected, found, hint)
        return data


def read_repetition(reference: Reference, manifest: Manifest) -> Repetition:
    """Return the training that a manifest tells of.

    Raises:
        ConfigError: it does not tell enough: the set was made by hand, or by an older version from data of its own.
    """
    task, split, data, training, dtype = (
        manifest.task, manifest.split, manifest.data, manifest.training, manifest.dtype,
    )  # fmt: skip
    if task is None or split is None or data is None or training is None or dtype is None:
        facts = {"task": task, "split": split, "data": data, "training": training, "dtype": dtype}
        missing = ", ".join(name for name, fact in facts.items() if fact is None)
        raise ConfigError(f"--from {reference}", "a set that train or bench saved", f"one without {missing}")
    if manifest.started_from is not None:
        expected = "a set with a start of its own, which a seed gives again"
        raise ConfigError(f"--from {reference}", expected, f"one that went on from {manifest.started_from}")
    plan = Plan(
        method=manifest.adapter.name if manifest.adapter is not None else "head_only",
        recipe=manifest.recipe or "",
        adapter=manifest.adapter,
        head=msgspec.structs.replace(manifest.head, temperature=1.0, thresholds=()),  # they are found anew
        training=training,
    )
    spec = task_of(str(reference), manifest)
    return Repetition(reference, manifest, spec, plan, data, dtype)


def task_of(reference: str, manifest: Manifest) -> TaskSpec:
    """Return the task as it was: from the manifest, or a built-in one of manifests that do not hold it.

    Raises:
        ConfigError: the manifest does not say where the rows stand.
    """
    origin, head = manifest.origin, manifest.head
    task, split = manifest.task or "", manifest.split or ""
    main = (manifest.main_metric,) if manifest.main_metric is not None else ()
    metrics = (*main, *(metric for metric in manifest.scores if metric not in main))
    if origin is None:
        if task not in BUILT_IN:
            expected = f"a built-in task ({', '.join(BUILT_IN)}), as this manifest does not say where the rows stand"
            raise ConfigError(f"--from {reference}", expected, task)
        built_in = BUILT_IN[task]
        return msgspec.structs.replace(built_in, label_names=head.label_names, metrics=metrics, reported_split=split)
    hub = HubSource(path=origin.hub, config=origin.hub_config, revision=origin.hub_revision) if origin.hub else None
    return TaskSpec(
        name=task,
        **{name: getattr(origin, name) for name in _ALIKE},
        positive_label=manifest.positive_label,
        label_names=head.label_names,
        problem_type=head.problem_type,
        problem_type_given=True,
        metrics=metrics,
        reported_split=split,
        hub=hub,
        folder=origin.folder,
        file=origin.file,
        reported_file=origin.reported_file,
        reading=origin.reading or Reading(),
    )


def has_same_weights(first: Manifest, second: Manifest) -> bool:
    """Return whether two stored versions hold the same tensors, to the bit."""
    return [entry.sha256 for entry in first.files] == [entry.sha256 for entry in second.files]


def find_differences(before: Manifest, now: Manifest) -> list[str]:
    """Return what may be why the weights differ: libraries, precision, machine, code, and the company in training."""
    return list(_differences(before, now))


def _differences(before: Manifest, now: Manifest) -> Iterator[str]:
    for library in sorted(before.library_versions.keys() | now.library_versions.keys()):
        versions = before.library_versions.get(library, "missing"), now.library_versions.get(library, "missing")
        if versions[0] != versions[1]:
            yield f"{library} was {versions[0]}, is {versions[1]}"
    if before.dtype != now.dtype:
        yield f"dtype was {before.dtype}, is {now.dtype}"
    if before.origin is None or now.origin is None:
        yield "its machine, code and number of threads were not recorded then"
        return
    for field, name in _CIRCUMSTANCES.items():
        values = getattr(before.origin, field), getattr(now.origin, field)
        if values[0] != values[1]:
            yield f"{name} was {values[0]}, is {values[1]}"
    if before.origin.together > 1:
        yield f"it was trained in one pass with {before.origin.together - 1} more, which rounds differently"


def _counts(info: DataInfo) -> str:
    return f"{info.train_rows:,} to train on, {info.reported_rows:,} to score"


def _digits(fingerprint: str) -> str:
    return f"fingerprint {fingerprint[:12]}"
