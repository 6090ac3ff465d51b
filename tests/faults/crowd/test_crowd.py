"""What a store promises to many processes at once: no lock is needed, nothing is lost, nobody sees half of anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="crowds are forked")

if sys.platform != "win32":
    from tests.faults.crowd.crowd import try_collectors, try_movers, try_readers, try_writers


@pytest.mark.parametrize("locks", ["working", "no-op", "failing"])
def test_concurrent_writers_lose_nothing(tmp_path: Path, locks: str) -> None:
    """Sixty-four processes that save eight times into one name get 512 versions, whatever becomes of file locks."""
    verdict = try_writers(tmp_path, locks=locks)
    assert [] == verdict.bad
    assert 512 == verdict.tried == verdict.details["versions"]
    assert 0 == verdict.details["locks taken"]


def test_moved_alias_always_resolves(tmp_path: Path) -> None:
    """While eight processes save and eight move one alias, it is at a version that is there."""
    verdict = try_movers(tmp_path)
    assert [] == verdict.bad
    assert verdict.tried >= 300


def test_readers_see_whole_versions(tmp_path: Path) -> None:
    """Versions that are read while others save, move, remove and collect are of one save each, or told to be gone."""
    verdict = try_readers(tmp_path, reads=2000)
    assert [] == verdict.bad
    assert verdict.tried >= 2000


@pytest.mark.parametrize("older_than", [0.0, None])
def test_collector_never_tears_a_version(tmp_path: Path, older_than: float | None) -> None:
    """Garbage that is collected too early costs a save as a whole; with the usual patience it costs nothing."""
    verdict = try_collectors(tmp_path, older_than=older_than)
    assert [] == verdict.bad
    assert 128 == verdict.tried
