"""The README says what the program does: its code runs, its commands exist, its figures are the report's."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from registry.cli.main import cli

HERE = Path(__file__).parents[1]
README = (HERE / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Return the adapter-registry commands of all console blocks, without comments and pipes."""
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    parts = [part.strip() for line in lines for part in re.split(r"\s\|\s", line)]
    return [part for part in parts if part.startswith("adapter-registry ")]


def test_readme_has_commands() -> None:
    """There is something to check."""
    assert len(commands()) >= 8


@pytest.mark.parametrize("command", commands())
def test_commands_and_options_exist(command: str) -> None:
    """Every command in the README can be parsed as written."""
    arguments = shlex.split(command, comments=True)[1:]
    context = cli.make_context("adapter-registry", list(arguments), resilient_parsing=True)
    rest = [*context._protected_args, *context.args]
    name = rest[0]
    with context:
        assert isinstance(cli.commands[name], click.Command), name
        cli.commands[name].make_context(name, rest[1:], parent=context)


@pytest.mark.parametrize("arguments", [["--smoke"], ["data"]])
def test_every_command_of_reproduce_exists(tmp_path: Path, arguments: list[str]) -> None:
    """``scripts/reproduce`` gives commands that can be parsed, and ends with a check of what it made."""
    listing = tmp_path / "listing"
    for name, text in (("scripts/setup", ""), (".venv/bin/adapter-registry", f'echo "$@" >> {listing}\n')):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)
    script = shutil.copy(HERE / "scripts" / "reproduce", tmp_path / "scripts")
    subprocess.run([script, *arguments], check=True)
    given = listing.read_text().splitlines()
    for line in given:
        test_commands_and_options_exist(f"adapter-registry {line}")
    assert 3 <= sum(" bench " in line for line in given)
    assert any(line.startswith("report reproduced") and line.endswith(" --check") for line in given[-2:])


@pytest.mark.slow
def test_python_block_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The ten lines of Python run from the checkout and print one label and three answers."""
    monkeypatch.chdir(HERE)
    block = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    exec(compile(block, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert 4 == len(lines)
    assert "positive" == lines[0]


def test_evidence_is_the_report() -> None:
    """Every row of the evidence table stands in the committed report, figure for figure."""
    evidence = README.split("## The evidence")[1].split("\n## ")[0]
    report = re.sub(r"[ :-]+", " ", (HERE / "reports" / "report.md").read_text(encoding="utf-8"))
    rows = [line for line in evidence.splitlines() if line.startswith("|")]
    assert len(rows) >= 21
    for row in rows:
        assert re.sub(r"[ :-]+", " ", row) in report


def test_file_map_names_every_file() -> None:
    """The reading order leaves no file out and names none that is gone."""
    table = README.split("## The code, in reading order")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)\.py`", table))
    present = {path.stem for path in (HERE / "registry").glob("*.py")} - {"__init__", "version"}
    assert present == named | {name for name in present if name.startswith("cli")}
