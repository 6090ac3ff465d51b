"""How a training went, small enough to stand in its run record: mean losses, and scores on held-out rows.

It is told of one step after the other and knows nothing of models, rows or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from registry.validation import Record, require

MOST_POINTS = 100
_DIGITS = 6


class HeldOutScores(Record, frozen=True, kw_only=True):
    """Scores on held-out training rows after ``step`` steps."""

    step: int
    scores: dict[str, float]


class LearningCurve(Record, frozen=True, kw_only=True):
    """The course of one training.

    Attributes:
        steps: the last step of each point; points are equally many steps apart, but for the last one.
        losses: the mean training loss over the steps of each point, to six digits.
        held_out: every evaluation on held-out training rows, if there were any.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    held_out: tuple[HeldOutScores, ...] = ()

    def __post_init__(self) -> None:
        require(len(self.steps) == len(self.losses), "losses", f"{len(self.steps)} numbers", len(self.losses))


class CurveRecorder:
    """Collects the losses of one training as it runs, a diverging one too."""

    def __init__(self) -> None:
        self._planned = 0
        self._losses: list[float] = []
        self._held_out: list[HeldOutScores] = []

    def add(self, steps: int, loss: float, held_out_scores: Mapping[str, float]) -> None:
        """Remember one step out of ``steps`` planned, and what was scored after it."""
        self._planned = steps
        self._losses.append(loss)
        if held_out_scores:
            self._held_out.append(HeldOutScores(step=len(self._losses), scores=dict(held_out_scores)))

    def curve(self) -> LearningCurve | None:
        """Return at most ``MOST_POINTS`` points; None where no step was taken."""
        taken = len(self._losses)
        if not taken:
            return None
        every = math.ceil(self._planned / MOST_POINTS)
        starts = range(0, taken, every)
        return LearningCurve(
            steps=tuple(min(start + every, taken) for start in starts),
            losses=tuple(float(f"{fmean(self._losses[start : start + every]):.{_DIGITS}g}") for start in starts),
            held_out=tuple(self._held_out),
        )
