"""What there is to choose from, what this machine has, and what a shell completes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from registry.config import BASELINES, PLACEMENTS
from registry.training.recipes import method_names, recipe_names
from tests.support.command_line import PROGRAM, QUICK, succeed, write_data_folder


def test_everything_to_choose_is_listed() -> None:
    """Tasks, recipes and methods have a line each, with what they are."""
    tasks = [row["name"] for row in succeed("tasks", "--json").rows]
    assert ["mrpc", "sst2", "imdb", "--suite glue"] == tasks
    assert list(recipe_names()) == [row["name"] for row in succeed("recipes", "--json").rows]
    methods = succeed("methods", "--json").rows
    assert list(method_names()) == [row["name"] for row in methods]
    assert {*BASELINES, *PLACEMENTS} < {row["name"] for row in methods}
    assert all(row["description"] for row in methods)


def test_the_doctor_tells_what_is_amiss(tmp_path: Path) -> None:
    """A line for each thing that matters; a store that is not there is a finding and no failure."""
    told = succeed("--offline", "--store", tmp_path / "none", "doctor", "--json").rows
    found = {row["name"]: row["description"] for row in told}
    assert ["program", "libraries", "device", "threads", "processor", "store", "Hub"] == list(found)
    assert "make one with 'adapter-registry init" in found["store"]
    assert "torch" in found["libraries"]
    assert found["Hub"] == "not asked: offline was asked for"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("predict s", "sst2"),
        ("predict sst2:", "sst2:1"),
        ("predict sst2@", "sst2@best"),
        ("train m", "mrpc"),
        ("train sst2 --recipe lab", "lab-notebook"),
        ("eval", "evaluate"),
    ],
)
def test_the_shell_completes(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, words: str, found: str
) -> None:
    """Names, versions, aliases, tasks and recipes, as click's own scripts for bash, zsh and fish ask for them."""
    folder = tmp_path_factory.getbasetemp() / "completed"
    if not folder.exists():
        data = write_data_folder(folder / "data")
        succeed("--store", folder / "store", "train", "sst2", "--data", data, "--backbone", tiny_folder, *QUICK)
        succeed("--store", folder / "store", "alias", "sst2", "best", "1")
    line = f"adapter-registry --store {folder / 'store'} {words}"
    asked = {"_ADAPTER_REGISTRY_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run([PROGRAM], env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert f"plain,{found}" in done.stdout.splitlines(), done.stderr
