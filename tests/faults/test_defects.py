"""The experiments of this folder catch what they are there for: seeded defects in a copy of the package.

Here one defect for each experiment; ``scripts/torture --only "seeded defects"`` tries all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.defects import DEFECTS, EXPERIMENTS, Defect, complaint, put_in
from tests.support.stored_sets import ROOT

FIRST = {defect.caught_by: defect for defect in reversed(DEFECTS)}


def test_undamaged_copy_passes(tmp_path: Path) -> None:
    """Without a defect there is nothing to complain of in a copy either, so a complaint means something."""
    assert complaint(tmp_path, "edits") is None


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_defect_is_caught(tmp_path: Path, experiment: str) -> None:
    """A defect alone in a copy of the package makes its experiment complain."""
    assert complaint(tmp_path, experiment, FIRST[experiment]) is not None


@pytest.mark.parametrize("defect", [pytest.param(each, id=each.title.replace(" ", "-")) for each in DEFECTS])
def test_defect_can_still_be_seeded(defect: Defect) -> None:
    """Each defect finds its text exactly once in today's code, and what comes of it is Python."""
    path = ROOT / "registry" / defect.file
    compile(put_in(path.read_text(encoding="utf-8"), defect), path, "exec")


def test_enough_defects_are_seeded() -> None:
    """There are at least twelve of them, no two alike."""
    assert len(DEFECTS) >= 12
    assert len(DEFECTS) == len({defect.title for defect in DEFECTS})
