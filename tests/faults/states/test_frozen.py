"""One backbone that is trained on, switched, loaded for and failed on: nothing of it changes."""

from __future__ import annotations

from pathlib import Path

from tests.faults.crowd.threads import try_threads
from tests.faults.states.frozen import try_frozen


def test_backbone_never_changes(tmp_path: Path) -> None:
    """After any sequence of steps the backbone's bytes and the first answers are what they were, bit for bit."""
    verdict = try_frozen(tmp_path, runs=20, steps=30, seed=0)
    assert [] == verdict.bad
    assert verdict.tried >= 20 * 30
    assert {"trained", "switched", "mixed", "failed loads", "training that diverges"} <= verdict.details.keys()


def test_threads_get_whole_answers(tmp_path: Path) -> None:
    """Eight threads that ask while versions are added and aliases moved get answers of one version each."""
    verdict = try_threads(tmp_path, threads=8, requests=125, seed=0)
    assert [] == verdict.bad
    assert verdict.tried >= 1000
    assert int(verdict.details["versions that answered"]) > 10
    assert float(verdict.details["smallest difference of two versions"]) > 1e-3
