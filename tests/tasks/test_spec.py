"""What a task is: built in, from a TOML file, from one labelled file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from registry.errors import ConfigError, DataError, InvalidNameError, UnknownTaskError
from registry.tasks.spec import BUILT_IN, HubSource, TaskSpec, find_task, read_task_file, replace_split, task_from_file
from registry.validation import from_json, to_json


def write(path: Path, text: str) -> Path:
    """Return ``path``, holding ``text``."""
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "hub", "columns", "split", "main_metric"),
    [
        ("mrpc", "nyu-mll/glue mrpc", ("sentence1", "sentence2"), "validation", "f1_binary"),
        ("sst2", "nyu-mll/glue sst2", ("sentence",), "validation", "accuracy"),
        ("imdb", "stanfordnlp/imdb", ("text",), "test", "accuracy"),
    ],
)
def test_built_in_task_has_the_hubs_names(
    name: str, hub: str, columns: tuple[str, ...], split: str, main_metric: str
) -> None:
    """The three built-in tasks use the Hub's ids, columns and splits."""
    spec = find_task(name)
    assert (hub, columns, split, main_metric) == (
        str(spec.hub),
        spec.text_columns,
        spec.reported_split,
        spec.main_metric,
    )
    assert (len(columns) == 2) == spec.pair


def test_built_in_tasks_cannot_be_changed() -> None:
    """Nobody can put another task under a built-in name."""
    with pytest.raises(TypeError, match="item assignment"):
        BUILT_IN["mrpc"] = find_task("sst2")  # type: ignore[index]


def test_unknown_task_names_the_nearest() -> None:
    """A typing error is answered with the task that was probably meant."""
    with pytest.raises(UnknownTaskError, match="unknown task 'mprc': expected one of imdb, mrpc, sst2; did you mean"):
        find_task("mprc")


def test_replace_split_reports_another_split() -> None:
    """MRPC can report its labelled test split."""
    assert "test" == replace_split(find_task("mrpc"), "test").reported_split


def test_training_split_is_never_reported() -> None:
    """Scores on the rows that were trained on are refused."""
    with pytest.raises(ConfigError, match="reported_split: expected a split other than 'train', found 'train'"):
        replace_split(find_task("mrpc"), "train")


def test_one_file_has_no_splits_to_report() -> None:
    """A task of one file cannot be asked for a split."""
    spec = task_from_file("a.csv", text_column="body", label_column="y")
    with pytest.raises(ConfigError, match="one file without splits"):
        replace_split(spec, "test")


@pytest.mark.parametrize("spec", [*BUILT_IN.values(), task_from_file("a.csv", text_column="t", label_column="y")])
def test_task_survives_json(spec: TaskSpec) -> None:
    """A task written as JSON is read back equal."""
    assert spec == from_json(TaskSpec, to_json(spec))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_columns": ("a", "b", "c")}, "text_columns: expected one or two column names"),
        ({"text_columns": ()}, "text_columns: expected one or two column names"),
        ({"text_columns": ("a", "a")}, "label_column: expected a column beside text_columns, none twice"),
        ({"label_column": "a"}, "label_column: expected a column beside text_columns, none twice"),
        ({"label_names": ("one",)}, "label_names: expected at least two names"),
        ({"label_names": ("one", "one")}, "label_names: expected distinct names"),
        ({"metrics": ("f1",)}, "metrics: expected one of accuracy, f1_binary"),
        ({"metrics": ("acuracy",)}, "did you mean 'accuracy'"),
        ({"metrics": ("accuracy", "accuracy")}, "metrics: expected distinct metrics"),
        ({"problem_type": "regression", "metrics": ("mse",)}, "first a metric of which more is better"),
        ({"problem_type": "regression", "metrics": ("accuracy",)}, "one of pearson, spearman, mse"),
        ({"held_out": 1.0}, "held_out: expected a fraction between 0 and 1"),
        ({"name": "No Name"}, "task name 'No Name'"),
    ],
)
def test_impossible_task_is_refused(fields: dict[str, object], message: str) -> None:
    """A task that cannot be trained is refused when it is made."""
    with pytest.raises(ConfigError, match=message):
        TaskSpec(**{"name": "own", "text_columns": ("a",), **fields})  # type: ignore[arg-type]


def test_main_metric_needs_no_list() -> None:
    """Without metrics the main one is the first of the problem type."""
    assert "pearson" == TaskSpec(name="own", text_columns=("a",), problem_type="regression").main_metric


def test_task_from_file_takes_its_name_from_the_file() -> None:
    """The file's name becomes a name that the store can have."""
    spec = task_from_file("data/My Reviews.csv", text_column="body", pair_column="reply", label_column="y")
    assert ("my-reviews", ("body", "reply"), "data/My Reviews.csv") == (spec.name, spec.text_columns, spec.file)


def test_task_from_file_without_usable_name_asks_for_one() -> None:
    """A file whose name has no allowed letter needs a name."""
    with pytest.raises(InvalidNameError, match="task name ''"):
        task_from_file("???.csv", text_column="body", label_column="y")


def test_task_file_spells_a_task(tmp_path: Path) -> None:
    """A TOML file's keys are the fields, and its paths are relative to it."""
    path = write(
        tmp_path / "tone.toml",
        'text_columns = ["body"]\nlabel_column = "tone"\nlabel_names = ["cold", "warm"]\nfile = "rows.csv"\n',
    )
    expected = TaskSpec(
        name="tone",
        text_columns=("body",),
        label_column="tone",
        label_names=("cold", "warm"),
        reported_split="held_out",
        file=str(tmp_path / "rows.csv"),
    )
    assert expected == read_task_file(path)


def test_task_file_names_a_hub_data_set(tmp_path: Path) -> None:
    """A TOML table gives the Hub's id, configuration and revision."""
    path = write(tmp_path / "rte.toml", 'text_columns = ["a", "b"]\n[hub]\npath = "nyu-mll/glue"\nconfig = "rte"\n')
    assert HubSource(path="nyu-mll/glue", config="rte") == read_task_file(path).hub


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text_columns = [", "expected TOML in UTF-8"),
        ('text_column = ["a"]', "found 'text_column'; did you mean 'text_columns'"),
        ('text_columns = ["a"]', "expected one of the keys hub, folder and file, found none"),
        ('text_columns = ["a"]\nfile = "a"\nfolder = "b"', "found folder and file"),
        ('file = "a.csv"', "missing required field `text_columns`"),
        ('text_columns = "a"\nfile = "a.csv"', "Expected `array`, got `str`"),
        ('text_columns = ["a"]\nfile = "a.csv"\nmetrics = ["f1"]', "metrics: expected one of accuracy"),
    ],
)
def test_bad_task_file_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    """Whatever is wrong with a task file, the message names the file and the key."""
    path = write(tmp_path / "own.toml", text)
    with pytest.raises(DataError, match=message) as caught:
        read_task_file(path)
    assert str(path) in str(caught.value)


def test_missing_task_file_is_told(tmp_path: Path) -> None:
    """A task file that is not there is named."""
    with pytest.raises(DataError, match=r"none\.toml: task file: expected a TOML file, found No such file"):
        read_task_file(tmp_path / "none.toml")


def test_tasks_are_known_without_heavy_imports() -> None:
    """Listing tasks imports neither pandas, scikit-learn, pyarrow nor torch."""
    heavy = ("pandas", "sklearn", "pyarrow", "torch")
    code = f"import registry.tasks.spec, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.strip()
