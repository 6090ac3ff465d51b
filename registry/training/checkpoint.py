"""Training state on disk, so that a run goes on after Ctrl-C or kill -9 as if nothing had happened.

One safetensors file, replaced whole: tensors by name, and everything else as JSON in its metadata.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from registry.errors import CheckpointError, ConfigError
from registry.store import files
from registry.validation import Record, from_json, to_json


@dataclass(frozen=True)
class Snapshot:
    """Everything the next training step depends on; see ``TrainingState.snapshot``."""

    tensors: dict[str, Tensor]
    step: int
    losses: list[float]
    first_loss: float
    best_step: int
    best_score: float
    since_best: int
    history: list[tuple[int, dict[str, float]]]


class _Meta(Record, frozen=True, kw_only=True):
    settings: str
    step: int
    losses: tuple[float, ...]
    first_loss: float | None = None
    told: dict[str, str] = {}
    best_step: int
    best_score: float | None
    since_best: int
    history: tuple[tuple[int, dict[str, float]], ...]


@dataclass(frozen=True)
class Checkpoint:
    """The place of one run's state.

    Attributes:
        path: the file; it appears whole or not at all.
        settings: SHA-256 of everything that decides the run; a state of other settings is refused.
        resume: whether a state that is there is continued; otherwise it is overwritten at the first write.
        every: steps between two writes.
        told: the settings by name, to say which of them differ.
    """

    path: Path
    settings: str
    resume: bool = False
    every: int = 50
    told: dict[str, str] = field(default_factory=dict)

    def is_due(self, step: int) -> bool:
        """Return whether a state is written after this step."""
        return step % self.every == 0

    def write(self, snapshot: Snapshot) -> None:
        """Replace the state on disk; after a failure the old one is still there.

        Raises:
            CheckpointError: the folder cannot be written, or the disk is full.
        """
        meta = _Meta(
            settings=self.settings,
            step=snapshot.step,
            losses=tuple(snapshot.losses),
            first_loss=None if math.isnan(snapshot.first_loss) else snapshot.first_loss,
            told=self.told,
            best_step=snapshot.best_step,
            best_score=snapshot.best_score if snapshot.best_step else None,
            since_best=snapshot.since_best,
            history=tuple(snapshot.history),
        )
        tensors = {name: tensor.contiguous().cpu() for name, tensor in snapshot.tensors.items()}
        content = save(tensors, metadata={"state": to_json(meta).decode()})
        try:
            files.replace_file(self.path, content)
        except OSError as err:
            raise CheckpointError(self.path, "a folder that can be written", files.reason(err), "write") from err

    def read(self) -> Snapshot | None:
        """Return the state to continue from, None where there is none or it is not wanted.

        Raises:
            CheckpointError: the state is damaged or belongs to other settings.
        """
        if not self.resume or not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as stored:
                meta = from_json(_Meta, (stored.metadata() or {}).get("state", "").encode())
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, it is no mapping
        except (SafetensorError, OSError, ConfigError) as err:
            raise CheckpointError(self.path, "a whole checkpoint", str(err)) from err
        if meta.settings != self.settings:
            differ = [
                name for name in sorted(meta.told.keys() | self.told) if meta.told.get(name) != self.told.get(name)
            ]
            told = [f"{name} {meta.told.get(name, 'none')} instead of {self.told.get(name, 'none')}" for name in differ]
            found = f"other settings: {', '.join(told)}" if told else "other settings"
            raise CheckpointError(self.path, "a checkpoint of the same task, data and settings", found)
        return Snapshot(
            tensors=tensors,
            step=meta.step,
            losses=list(meta.losses),
            first_loss=math.nan if meta.first_loss is None else meta.first_loss,
            best_step=meta.best_step,
            best_score=meta.best_score if meta.best_score is not None else float("-inf"),
            since_best=meta.since_best,
            history=list(meta.history),
        )

    def discard(self) -> None:
        """Remove the state of a run that has finished, and what killed writers of it left behind."""
        for path in (self.path, *self.path.parent.glob(f"{self.path.name}.*.tmp")):
            path.unlink(missing_ok=True)
