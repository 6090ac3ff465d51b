"""A suite: the tasks, methods, seeds and limits of one table as a TOML file, so that a paper's table is one command.

Options of the command override what a suite says. Those in ``suites/`` ship with the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from registry.errors import ConfigError, DataError, closest, shorten
from registry.tasks.spec import TaskSpec, find_task, read_task_file, read_toml, spec_from_plain
from registry.validation import Record, from_plain, require

SUITES = Path(__file__).with_name("suites")


class SubmissionFile(Record, frozen=True, kw_only=True):
    """One file of a leaderboard.

    Attributes:
        file: its name, ``CoLA.tsv`` say.
        split: whose rows are to be answered.
        names: whether labels are written by name and not by number.
        least, most: between which numbers to predict are written; None leaves them as they are.
    """

    file: str
    split: str
    names: bool = False
    least: float | None = None
    most: float | None = None

    def __post_init__(self) -> None:
        good = Path(self.file).name == self.file and self.file.endswith(".tsv")
        require(good, "submission file", "a name ending in .tsv", self.file)


class AverageGroup(Record, frozen=True, kw_only=True):
    """Tasks that count as one in an average, by the mean of these metrics, or by the main one where none are named."""

    tasks: tuple[str, ...]
    metrics: tuple[str, ...] = ()


class Suite(Record, frozen=True, kw_only=True):
    """What a table is of; what is None or empty is the command's own default.

    Attributes:
        name, description: for people.
        tasks: names of built-in tasks, and paths of task files, relative to the suite's file.
        task: further tasks, each with the keys of a task file.
        average: what is averaged, each group counting once.
        submission: by task, the file that a leaderboard wants of the sets that are kept.
        methods, sweeps, seeds, data, recipe, limit, limit_reported: as the options of ``bench``.
    """

    name: str
    description: str = ""
    tasks: tuple[str, ...] = ()
    task: tuple[dict[str, Any], ...] = ()
    average: tuple[AverageGroup, ...] = ()
    submission: dict[str, SubmissionFile] = {}
    methods: tuple[str, ...] = ()
    sweeps: tuple[str, ...] = ()
    seeds: str | None = None
    data: str | None = None
    recipe: str | None = None
    limit: int | None = None
    limit_reported: int | None = None

    def defaults(self) -> dict[str, Any]:
        """Return the options that the suite sets, by their names."""
        names = ("methods", "sweeps", "seeds", "data", "recipe", "limit", "limit_reported")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


def suite_names() -> tuple[str, ...]:
    """Return the names of the shipped suites."""
    return tuple(sorted(path.stem for path in SUITES.glob("*.toml")))


def read_suite(name: str) -> tuple[Suite, list[TaskSpec]]:
    """Return a shipped suite by name, or one from a TOML file by path, and its tasks.

    Raises:
        ConfigError: neither a shipped name nor a file.
        DataError: not TOML, an unknown or missing key, a task that cannot be used, or none.
        UnknownTaskError: a name of no built-in task.
    """
    path = SUITES / f"{name}.toml" if name in suite_names() else Path(name)
    if path.suffix != ".toml" or not path.is_file():
        hint = closest(name, suite_names()) or "or the path of a .toml file"
        raise ConfigError("--suite", f"one of {shorten(suite_names())}", name, hint)
    try:
        suite: Suite = from_plain(Suite, {"name": path.stem, **read_toml(path)})
    except ConfigError as err:
        raise DataError(path, err.field, err.expected, err.found) from err
    folder = path.absolute().parent
    specs = [read_task_file(folder / each) if each.endswith(".toml") else find_task(each) for each in suite.tasks]
    specs += [spec_from_plain(path, plain) for plain in suite.task]
    names = [spec.name for spec in specs]
    if not names or len(set(names)) != len(names):
        raise DataError(path, "tasks", "at least one, each of another name", shorten(names, 20))
    for each in (*(task for group in suite.average for task in group.tasks), *suite.submission):
        if each not in names:
            raise DataError(path, "average and submission", f"tasks of the suite, {shorten(names, 20)}", each)
    return suite, specs
