"""Damaged and hostile folders of other libraries, in little; scripts/torture has ten thousand of them."""

from __future__ import annotations

from pathlib import Path

from tests.faults.damage.foreign import try_foreign


def test_a_damaged_foreign_folder_is_refused_or_read_as_it_is(tmp_path: Path) -> None:
    """Three hundred flips, cuts, swaps, hostile values, links and names: nothing else is ever taken in."""
    verdict = try_foreign(tmp_path, cases=300)
    assert [] == verdict.bad
    assert verdict.tried == 300
    assert 10 <= int(verdict.details["accepted"]) <= 150
