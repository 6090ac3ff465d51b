"""Learning curves: few points, means of equally many steps, and nothing lost of a run that stops early."""

from __future__ import annotations

import statistics

import pytest

from registry.bench.curves import MOST_POINTS, CurveRecorder, HeldOutScores, LearningCurve
from registry.errors import ConfigError


def curve_of(losses: list[float], planned: int) -> LearningCurve | None:
    recorder = CurveRecorder()
    for loss in losses:
        recorder.add(planned, loss, {})
    return recorder.curve()


@pytest.mark.parametrize("steps", [1, 7, 99, 100, 101, 690, 4_321])
def test_points_are_few_and_cover_every_step(steps: int) -> None:
    """At most a hundred points, equally many steps each but for the last, whose weighted mean is that of all steps."""
    losses = [1 / (1 + step) for step in range(steps)]
    curve = curve_of(losses, steps)
    assert curve is not None
    assert steps == curve.steps[-1]
    assert MOST_POINTS >= len(curve.steps) == len(curve.losses)
    sizes = [last - first for first, last in zip((0, *curve.steps), curve.steps, strict=False)]
    assert len(set(sizes[:-1])) <= 1
    assert 0 < sizes[-1] <= sizes[0]
    mean = sum(size * loss for size, loss in zip(sizes, curve.losses, strict=True)) / steps
    assert statistics.fmean(losses) == pytest.approx(mean, rel=1e-5)


def test_short_runs_keep_every_step() -> None:
    """A run of few steps has a point for each."""
    assert LearningCurve(steps=(1, 2, 3), losses=(0.5, 0.25, 0.123457)) == curve_of([0.5, 0.25, 0.1234567], 3)


def test_run_that_stops_early_has_the_steps_it_took() -> None:
    """The spacing is that of the planned steps, so seeds that stop at different steps have the same points."""
    curve = curve_of([1.0] * 250, 1_000)
    assert curve is not None
    assert [10, 20, 30] == list(curve.steps[:3])
    assert (250, 25) == (curve.steps[-1], len(curve.steps))


def test_no_step_is_no_curve() -> None:
    """A run that trains nothing, or diverges at once, has none."""
    assert CurveRecorder().curve() is None


def test_held_out_scores_keep_their_steps() -> None:
    """Evaluations stand at the steps after which they were made."""
    recorder = CurveRecorder()
    for step in range(1, 7):
        recorder.add(6, 1.0, {"accuracy": step / 8} if step % 3 == 0 else {})
    curve = recorder.curve()
    assert curve is not None
    assert (
        HeldOutScores(step=3, scores={"accuracy": 0.375}),
        HeldOutScores(step=6, scores={"accuracy": 0.75}),
    ) == curve.held_out


def test_points_without_losses_are_refused() -> None:
    """A curve read from a file has a loss for every step."""
    with pytest.raises(ConfigError, match="losses: expected 2 numbers, found 1"):
        LearningCurve(steps=(1, 2), losses=(0.5,))
