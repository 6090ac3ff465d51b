"""One benchmark for all tests of reports: it takes seconds to compute."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.reports.content import ReportContent, read_evidence
from tests.support.benchmark_records import write_benchmark


@pytest.fixture(scope="session")
def benchmark_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, five methods and their sweeps, three seeds, one run that diverged."""
    folder = tmp_path_factory.mktemp("bench")
    write_benchmark(folder)
    return folder


@pytest.fixture(scope="session")
def evidence(benchmark_folder: Path) -> ReportContent:
    """What follows from the benchmark."""
    return read_evidence(benchmark_folder)
