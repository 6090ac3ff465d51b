"""The demo's folder: made anew when a demo made it, left alone otherwise. ``scripts/demo`` runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.cli.options import Settings
from registry.cli.progress import MARK, METHODS, QUESTIONS, run_demo
from registry.errors import ConfigError
from registry.tasks.spec import BUILT_IN
from registry.training.recipes import method_names
from tests.support.command_line import call
from tests.support.stored_sets import tree


def test_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """A folder with files that no demo made is refused before anything is done in it."""
    (tmp_path / "thesis.txt").write_text("years of work")
    before = tree(tmp_path)
    settings = Settings(store=tmp_path / "unused", device="cpu", dtype="float32", offline=True)
    with pytest.raises(ConfigError, match="--folder: expected a new folder, or one made by an earlier demo"):
        run_demo(settings, tmp_path)
    assert before == tree(tmp_path)


def test_refusal_on_the_command_line(tmp_path: Path) -> None:
    """The command says the same in one line."""
    (tmp_path / "thesis.txt").write_text("years of work")
    outcome = call("demo", "--folder", tmp_path)
    assert (2, True) == (outcome.code, "cannot use --folder" in outcome.message)


def test_folder_of_an_earlier_demo_is_made_anew(tmp_path: Path) -> None:
    """What an earlier demo left is removed; a device that is not there shows that nothing else was needed first."""
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / MARK).touch()
    (folder / "old.txt").write_text("old")
    outcome = call("--device", "no-such-device", "demo", "--folder", folder)
    assert (1, True) == (outcome.code, "cannot use device 'no-such-device'" in outcome.message)
    assert [MARK] == [path.name for path in folder.iterdir()]


def test_demo_shows_every_task_and_real_methods() -> None:
    """The questions are of all built-in tasks, pairs where the task is on pairs."""
    assert set(BUILT_IN) == {question[0] for question in QUESTIONS}
    assert all(BUILT_IN[name].pair == (len(texts) == 2) for name, *texts in QUESTIONS)
    assert set(METHODS) <= set(method_names())
