"""A call of the system may fail: the old state is there, or the error says that the new one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.crash.inject import (
    ERRORS,
    try_failing_calls,
    try_full_disk,
    try_size_limits,
    why_no_disk,
    why_no_tracing,
)


@pytest.mark.slow
def test_error_of_any_call_is_told_truly(tmp_path: Path) -> None:
    """Each system call of a change may fail with each error, once or for good, and what is told is what is there."""
    if reason := why_no_tracing():
        pytest.skip(reason)
    verdict = try_failing_calls(tmp_path, every=80)
    assert [] == verdict.bad
    assert verdict.tried >= 140
    for error in ERRORS:
        assert int(verdict.details[error]) >= 10
    assert int(verdict.details["told: unchanged"]) >= 50
    assert int(verdict.details["told: uncertain"]) >= 2


@pytest.mark.slow
def test_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    """On a disk with too few free pages or inodes nothing changes, nothing is left, and the next save works."""
    if reason := why_no_disk():
        pytest.skip(reason)
    verdict = try_full_disk(tmp_path, size=8_000)
    assert [] == verdict.bad
    assert verdict.tried >= 120
    assert int(verdict.details["told: unchanged"]) >= 15


def test_limit_on_file_sizes_leaves_the_old_state(tmp_path: Path) -> None:
    """Where a file may not grow to its size, so that a write is cut short, nothing changes and nothing is left."""
    verdict = try_size_limits(tmp_path, step=500)
    assert [] == verdict.bad
    assert verdict.tried >= 100
    assert int(verdict.details["told: unchanged"]) >= 50
