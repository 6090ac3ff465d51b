"""Lists of many names."""

from __future__ import annotations

from pathlib import Path

from tests.faults.states.listed import try_list


def test_every_name_of_a_large_store_is_listed(tmp_path: Path) -> None:
    """Each of ten thousand names is listed once, with its version, its alias and its manifest."""
    verdict = try_list(tmp_path, sets=10_000, repeats=1)
    assert [] == verdict.bad
    assert 10_000 == verdict.tried
