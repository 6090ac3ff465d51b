"""The experiments of this folder catch what they are there for: each seeded defect in a copy of the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.defects import DEFECTS, EXPERIMENTS, Defect, complaint


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_undamaged_copy_passes(tmp_path: Path, experiment: str) -> None:
    """Without a defect the small experiments have nothing to complain of, so a complaint means something."""
    assert complaint(tmp_path, experiment) is None


@pytest.mark.parametrize("defect", [pytest.param(each, id=each.title.replace(" ", "-")) for each in DEFECTS])
def test_defect_is_caught(tmp_path: Path, defect: Defect) -> None:
    """Each defect, alone in a copy of the package, makes its experiment complain."""
    assert complaint(tmp_path, defect.caught_by, defect) is not None


def test_enough_defects_are_seeded() -> None:
    """There are at least twelve of them, no two alike."""
    assert len(DEFECTS) >= 12
    assert len(DEFECTS) == len({defect.title for defect in DEFECTS})
