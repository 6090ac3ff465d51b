"""The faults of a network do not break a store: the quick form of what ``scripts/torture --only remote`` does long."""

from __future__ import annotations

from pathlib import Path

from tests.faults.network.remote import try_remote


def test_nothing_is_lost_over_a_bad_network(tmp_path: Path) -> None:
    """Under cut connections, 5xx, slow and short bodies, repeated puts and lost answers: 0 lost, 0 torn, 0 silent."""
    verdict = try_remote(tmp_path, writers=3, saves=3, faults=12, kills=1)
    assert [] == verdict.bad
    assert verdict.tried >= 20
