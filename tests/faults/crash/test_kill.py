"""A process may be killed at any moment: what it was doing is done, or was never begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.crash.inject import try_kills, why_no_tracing

OPERATIONS = ("create", "save", "alias", "remove", "gc", "export", "import")


@pytest.mark.slow
def test_kill_at_any_call_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    """kill -9 at a system call of any change of a store never leaves half of it, and the next change works."""
    if reason := why_no_tracing():
        pytest.skip(reason)
    verdict = try_kills(tmp_path, points=170)
    assert [] == verdict.bad
    assert verdict.tried >= 140
    for operation in OPERATIONS:
        assert int(verdict.details[f"kills of {operation}"]) >= 2
    assert int(verdict.details["kills after which the change was there"]) >= 15
    assert int(verdict.details["kills after which it was not"]) >= 15
