"""The worked examples of docs/examples run as they stand, and print what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from registry.reports.frames import SAMPLE_NOTICE

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def run(name: str, folder: Path) -> str:
    """Run an example in a process of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, folder],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_task_of_ones_own_gets_its_answers(tmp_path: Path) -> None:
    """From a csv to a trained set that tells a complaint from a question it has not seen."""
    lines = run("own_task.py", tmp_path / "own").splitlines()
    assert ["the radio arrived broken: complaint", "how much is the radio: question"] == lines[-2:]


@pytest.mark.slow
def test_a_table_of_three_methods_is_checked_and_told_to_be_the_samples(tmp_path: Path) -> None:
    """Three methods stand in a table that follows from its predictions and says what its rows are."""
    told = run("benchmark_table.py", tmp_path / "bench")
    rows = [line for line in told.splitlines() if line.startswith("| sst2")]
    assert ["majority", "head_only", "pfeiffer"] == [line.split("|")[2].strip() for line in rows[:3]]
    assert "follow from the predictions" in told
    assert SAMPLE_NOTICE in told
