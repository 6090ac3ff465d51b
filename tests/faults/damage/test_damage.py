"""Damaged files of every kind are refused, and the error names the file."""

from __future__ import annotations

from pathlib import Path

from tests.faults.damage.damage import try_damage


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Flipped, cut, lengthened, swapped, zeroed and doubled files of every kind are all refused by name."""
    verdict = try_damage(tmp_path, cases=2400)
    assert [] == verdict.bad
    assert verdict.tried >= 2000
    kinds = ("manifest.json", "adapter.safetensors", "head.safetensors", "archive", "store.json", "alias")
    assert all(int(verdict.details[kind]) >= 300 for kind in kinds)
