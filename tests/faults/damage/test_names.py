"""Hostile names are refused at every door, and nothing outside the store is read or changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.damage.names import HOSTILE, is_legal, try_names


def test_hostile_names_do_not_escape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every listed name and many random ones are refused at every door, or stay inside the store."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    verdict = try_names(tmp_path, cases=3000)
    assert [] == verdict.bad
    assert verdict.tried >= 2000


def test_listed_names_are_hostile() -> None:
    """The list has at least 250 names, none of which the rule allows."""
    assert len(HOSTILE) >= 250
    assert [] == [name for name in HOSTILE if is_legal(name)]
