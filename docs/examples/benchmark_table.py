"""A benchmark table from three methods: python docs/examples/benchmark_table.py FOLDER

Two seeds of three methods on the bundled sample, so its scores are no evidence; the table says so. On one core it takes
about half a minute and needs no network. With `--data hub` in place of the sample the same command gives real ones.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("adapter-registry")
METHODS = ("majority", "head_only", "pfeiffer")


def main(folder: Path) -> None:
    """Run the cells that are not there yet, check every number, and print the table."""
    grid = [f"--method={method}" for method in METHODS]
    options = "--data sample --backbone embedded --seeds 0-1 --epochs 2 --max-length 32"
    subprocess.run(
        [PROGRAM, "--offline", "bench", "sst2", *grid, *options.split(), "--out", folder],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    subprocess.run([PROGRAM, "report", folder, "--check"], check=True)
    print((folder / "report.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("benchmark-table"))
