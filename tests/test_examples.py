"""The worked examples of docs/examples run as they stand, and print what they promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """From a frame to a stored set, to a frame with answers, and through scikit-learn."""
    notebook = json.loads((EXAMPLES / "frames.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"frames.ipynb, cell {number}", "exec"), names)
    assert ["complaint", "question"] == names["answered"]["label"].tolist()
    assert [7, 8] == names["answered"].index.tolist()
    assert names["accuracy"].mean() > 0.8
    assert "mails:1" in capsys.readouterr().out
