"""README and docs say what the program does: their code runs, their commands exist, their figures are the report's."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from registry.cli.main import cli
from tests.support.scripts import load_script
from tests.test_architecture import STREET

HERE = Path(__file__).parents[1]
README = (HERE / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(HERE).as_posix(): path for path in (HERE / "README.md", *sorted((HERE / "docs").rglob("*.md")))
}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}


def commands(text: str) -> list[str]:
    """Return the adapter-registry commands of all console blocks of a page, without comments and pipes."""
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    parts = [part.strip() for line in lines for part in re.split(r"\s\|\s", line)]
    return [part for part in parts if part.startswith("adapter-registry ")]


def test_pages_have_commands() -> None:
    """There is something to check."""
    assert {"README.md", "docs/commands.md", "docs/evidence.md", "docs/store.md", "docs/design.md"} <= set(PAGES)
    assert len(commands(README)) >= 8
    assert len(commands(TEXTS["docs/commands.md"])) >= 8


def test_readme_is_short_and_starts_with_a_command() -> None:
    """README has at most 250 lines, and a first command before line 60."""
    lines = README.splitlines()
    assert len(lines) <= 250
    assert next(number for number, line in enumerate(lines, 1) if line.startswith("$ ")) < 60


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link of a page leads to a file of the repository."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", TEXTS[page])
    for link in links:
        assert link.startswith("https:") or (PAGES[page].parent / link).exists(), f"{page}: {link}"


def test_the_programs_help_is_written_down() -> None:
    """docs/commands.md has the help of every command as the program prints it; scripts/docs writes it anew."""
    module = load_script("documenting/commands.py")
    text = TEXTS["docs/commands.md"]
    assert all(f"## adapter-registry {name}\n" in text for name in cli.commands)
    assert module.with_help(text) == text, "run scripts/docs"


def test_the_tables_of_formats_are_written_down() -> None:
    """docs/interop.md has the tables of the code, a row for each switch; scripts/docs writes them anew."""
    module = load_script("documenting/interop.py")
    text = TEXTS["docs/interop.md"]
    known = ("reduction_factor", "attn_matrices", "rank_pattern", "label2id")
    assert all(f"| `{switch}` |" in text for switch in known)
    assert module.with_tables(text) == text, "run scripts/docs"


@pytest.mark.parametrize("command", sorted({command for text in TEXTS.values() for command in commands(text)}))
def test_commands_and_options_exist(command: str) -> None:
    """Every command in the README and the docs can be parsed as written."""
    arguments = shlex.split(command, comments=True)[1:]
    context = cli.make_context("adapter-registry", list(arguments), resilient_parsing=True)
    rest = [*context._protected_args, *context.args]
    name = rest[0]
    with context:
        assert isinstance(cli.commands[name], click.Command), name
        cli.commands[name].make_context(name, rest[1:], parent=context)


@pytest.mark.parametrize("arguments", [["--smoke"], ["data"], ["--methods", "data"]])
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
    """Every row of the evidence tables stands in a committed report, figure for figure."""
    written = (HERE / "reports" / folder / "report.md" for folder in ("", "methods"))
    report = plain("\n".join(path.read_text(encoding="utf-8") for path in written))
    rows = [line for line in TEXTS["docs/evidence.md"].splitlines() if line.startswith("|")]
    assert len(rows) >= 30
    for row in rows:
        assert plain(row) in report


def test_evidence_in_brief_is_the_evidence() -> None:
    """README's table has at most ten rows, each with figures of one and the same row of the evidence."""
    whole = [
        cells(line)
        for line in TEXTS["docs/evidence.md"].partition("## All methods at")[2].splitlines()
        if line.startswith("|")
    ]
    brief = README.split("## The evidence in brief")[1].split("\n## ")[0]
    rows = [cells(line) for line in brief.splitlines() if line.startswith("|")][2:]
    assert 3 <= len(rows) <= 10
    for task, method, main, points, trained in rows:
        metric, score = main.split(" ", 1)
        (row,) = (row for row in whole if row[:2] == [task, method])
        told = dict(zip(whole[0], row, strict=True))
        assert (score, points, trained) == (told[metric], told["vs full (points)"], told["trainable"])


def test_gpu_page_is_made_of_its_figures() -> None:
    """reports/gpu.md is what the script makes of reports/gpu.json, and what is told of an H200 stands in it."""
    module = load_script("on_gpu/report.py")
    found = json.loads((HERE / "reports" / "gpu.json").read_text(encoding="utf-8"))
    assert module.page(found) == (HERE / "reports" / "gpu.md").read_text(encoding="utf-8")
    figures = (found.get(part, {}).get(key) for _, part, key, _ in module.ROWS)
    measured = {f"{figure:.2f}" for figure in figures if figure is not None}
    in_docs = TEXTS["docs/speed.md"].split("## On a GPU")[1].split("\n## ")[0]
    in_brief = README.split("## Speed")[1].split("\n## ")[0]
    for text, rows in ((in_docs, 7), (in_brief, 7)):
        told = [cells(line)[-1] for line in text.splitlines() if line.startswith("|")][2:]
        assert rows == len(told)
        assert set(re.findall(r"\d+\.\d+", " ".join(told))) <= measured


def test_speed_in_brief_is_the_speed() -> None:
    """README's table of rates is the one of docs/speed.md."""
    brief = README.split("## Speed")[1].split("\n## ")[0]
    rows = [line for line in brief.splitlines() if line.startswith("|")]
    assert len(rows) >= 8
    first, _, _ = TEXTS["docs/speed.md"].partition("## Methods")
    assert rows == [line for line in first.splitlines() if line.startswith("|")]


def plain(text: str) -> str:
    """Return a table's text without what only aligns it."""
    return re.sub(r"[ :-]+", " ", text)


def cells(line: str) -> list[str]:
    """Return the cells of a table's line."""
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_file_map_names_every_file() -> None:
    """The reading order leaves no file out and names none that is gone."""
    table = TEXTS["docs/design.md"].split("## The code, in reading order")[1].split("\n## ")[0]
    named = set(re.findall(r"`([\w/]+\.py)`", table.split("Imports point")[0]))
    package = HERE / "registry"
    present = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert len(present) >= 70
    assert present - {"version.py"} == named


def test_the_street_is_told() -> None:
    """README and the page of the code tell the rooms in the order that the import rule has."""
    order = " · ".join(STREET)
    assert order in README
    assert order in TEXTS["docs/design.md"]
    for room in STREET:
        assert re.search(rf"^\| (`\w+`, )?`{room}`(, `\w+`)? \|", README, re.MULTILINE)
