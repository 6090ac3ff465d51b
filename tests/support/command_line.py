"""The command line as the tests call it, and data so small that a training takes a fraction of a second."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from registry.cli.main import main

PROGRAM = Path(sys.executable).parent / "adapter-registry"
QUICK = ("--epochs", "1", "--max-length", "32", "--batch-size", "8")
FILLERS = ("the film was", "a dull city", "one two red blue", "he left she went", "sun rain road is small")


class Outcome(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one line on stderr that tells what went wrong."""
        told = [line for line in self.err.splitlines() if line.startswith("adapter-registry: ")]
        assert len(told) == 1, self.err
        assert "Traceback" not in self.err
        return told[0]

    @property
    def rows(self) -> list[Any]:
        """The JSON lines on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


def call(*arguments: object, stdin: bytes = b"") -> Outcome:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
    finally:
        sys.stdin = before
    return Outcome(int(stopped.value.code or 0), out.getvalue(), err.getvalue())


def succeed(*arguments: object, stdin: bytes = b"") -> Outcome:
    """Run a command in this process that has to end well."""
    outcome = call(*arguments, stdin=stdin)
    assert outcome.code == 0, outcome.err
    return outcome


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start the installed program in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    command = [str(PROGRAM), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, text=True, env=environment, **{**pipes, **options})


def json_lines(rows: Iterable[object]) -> str:
    """Return the rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def single_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Return rows of one text each, in which one word decides the label."""
    words = ("bad", "good")
    return [
        {"sentence": f"{FILLERS[n % 5]} {words[n % 2]} no {n}", "label": n % 2, "idx": n}
        for n in range(start, start + count)
    ]


def pair_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Return rows of two texts each, which are equal or not."""
    return [
        {"sentence1": f"{FILLERS[n % 5]} {n}", "sentence2": f"{FILLERS[(n + 1 - n % 2) % 5]} {n}", "label": n % 2}
        for n in range(start, start + count)
    ]


def write_data_folder(folder: Path, count: int = 24) -> Path:
    """Write the three built-in tasks in little, laid out as real data is, and return the folder."""
    for place, split, rows in (
        ("glue/sst2", "train", single_rows(count)),
        ("glue/sst2", "validation", single_rows(12, 100)),
        ("glue/mrpc", "train", pair_rows(count)),
        ("glue/mrpc", "validation", pair_rows(12, 100)),
        ("imdb", "train", [{"text": row["sentence"], "label": row["label"]} for row in single_rows(count)]),
        ("imdb", "test", [{"text": row["sentence"], "label": row["label"]} for row in single_rows(12, 100)]),
    ):
        path = folder / place / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json_lines(rows))
    return folder


def write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Write rows as a csv file and return its path."""
    listed = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(listed[0]))
        writer.writeheader()
        writer.writerows(listed)
    return path


def own_rows(count: int = 30) -> list[dict[str, str]]:
    """Return rows of a task of one's own: texts, second texts and three labels that are words."""
    moods = ("dull", "good", "great")
    return [
        {"body": f"{FILLERS[n % 5]} {moods[n % 3]} {n}", "reply": f"yes {FILLERS[n % 4]}", "mood": moods[n % 3]}
        for n in range(count)
    ]


def set_digest(store: Path, name: str, version: int = 1) -> str:
    """Return the SHA-256 of the bottlenecks' file as the manifest tells it."""
    manifest = json.loads((store / name / "versions" / f"{version:06d}" / "manifest.json").read_text())
    return {entry["path"]: entry["sha256"] for entry in manifest["files"]}["adapter.safetensors"]


def visible(store: Path) -> list[str]:
    """Return every file of a store that a reader could see, and whatever lies in its staging folder."""
    return sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())
