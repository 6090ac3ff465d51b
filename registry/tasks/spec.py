"""What a task is: its columns, splits, label names and metrics, and where its rows come from.

A task is data, so an own task is a TOML file or one labelled file. Nothing here reads rows or computes scores, and
importing it is quick: the command line lists task names without pandas, scikit-learn or torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from registry.config import ProblemType
from registry.errors import ConfigError, DataError, UnknownTaskError, closest, shorten
from registry.schema import Reading
from registry.tasks.files import stem_of
from registry.validation import Record, check_name, choose, from_plain, require

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The first few of each are what an own task is scored by; the others are there for the asking.
METRICS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "classification": (
            *("accuracy", "f1_binary", "f1_weighted", "f1_macro", "matthews"),
            *("precision", "recall", "precision_macro", "recall_macro"),
            *("balanced_accuracy", "cohen_kappa", "roc_auc", "average_precision", "brier_score"),
        ),
        "multi_label": (
            *("f1_micro", "f1_macro", "exact_match"),
            *("precision_micro", "recall_micro", "precision_macro", "recall_macro", "roc_auc", "average_precision"),
            "brier_score",
        ),
        "regression": ("pearson", "spearman", "mse"),
    }
)
TRAIN_NAMES = ("train", "training")
REPORTED_NAMES = ("validation", "valid", "val", "dev", "development", "test")
LOWER_IS_BETTER = ("mse", "brier_score")
OF_ONE_CLASS = ("f1_binary", "precision", "recall")  # of the class of two that is named last


def is_own_metric(name: str) -> bool:
    """Return whether a metric is one of the user's own: ``module:function``."""
    module, colon, function = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *function.split(".")))


def _check_label_names(names: tuple[str, ...] | None, problem_type: ProblemType) -> None:
    if names is None:
        return
    counts = {"classification": len(names) >= 2, "multi_label": len(names) >= 1, "regression": len(names) == 1}
    expected = {"classification": "at least two names", "multi_label": "at least one name", "regression": "one name"}
    require(counts[problem_type], "label_names", expected[problem_type], names)
    require(all(names) and len(set(names)) == len(names), "label_names", "distinct names, none empty", names)


class HubSource(Record, frozen=True, kw_only=True):
    """A data set on the Hub.

    Attributes:
        path: its id, ``nyu-mll/glue`` say.
        config: which of its configurations, None where it has one.
        revision: branch, tag or commit; None is the newest.
    """

    path: str
    config: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return self.path if self.config is None else f"{self.path} {self.config}"


class TaskSpec(Record, frozen=True, kw_only=True):
    """Everything about a task but its rows.

    Attributes:
        name: follows the name rule of the store.
        text_columns: one column, or two for a task on pairs.
        label_column: class names or numbers, lists of them, or numbers to predict.
        label_columns: of a multi-label task with a column of 0 and 1 for each label, in the place of one column.
        label_names: the classes in the order of the logits; None until seen in the training rows.
        positive_label: the class of two that ``f1_binary`` is of; the rarer one, or 1, true or yes, when None.
        problem_type: one class, any number of classes, or a number per row.
        problem_type_given: whether it was said; else labels that look like another type are asked about.
        metrics: names from METRICS or of ``use_metric``, the main one first; empty is the usual ones.
        train_split: where training rows come from.
        reported_split: where scores come from, never used to choose anything.
        hub: the data set on the Hub.
        folder: holds one file per split; relative to the ``--data`` folder.
        file: one labelled file, of which ``held_out`` is reported.
        reported_file: a second one that is reported instead.
        split_column: of ``file``, tells for each row the split it belongs to; nothing is held out then.
        held_out: share of ``file``'s rows that is reported, a fraction.
        held_out_by: draw it by distinct texts, or by rows as sets of older versions did.
        reading: how files become rows.
    """

    name: str
    text_columns: tuple[str, ...]
    label_column: str = "label"
    label_columns: tuple[str, ...] = ()
    label_names: tuple[str, ...] | None = None
    positive_label: str | None = None
    problem_type: ProblemType = "classification"
    problem_type_given: bool = False
    metrics: tuple[str, ...] = ()
    train_split: str = "train"
    reported_split: str = "validation"
    hub: HubSource | None = None
    folder: str | None = None
    file: str | None = None
    reported_file: str | None = None
    split_column: str | None = None
    held_out: float = 0.2
    held_out_by: Literal["text", "row"] = "text"
    reading: Reading = Reading()

    def __post_init__(self) -> None:
        check_name(self.name, "task name")
        columns = self.text_columns
        require(len(columns) in (1, 2) and all(columns), "text_columns", "one or two column names", columns)
        used = self.columns
        require(len(set(used)) == len(used), "label_column", "a column beside text_columns, none twice", used)
        several = self.problem_type == "multi_label"
        require(several or not self.label_columns, "label_columns", "none but in a multi-label task", used)
        _check_label_names(self.label_names, self.problem_type)
        for metric in self.metrics:
            if not is_own_metric(metric):
                choose(metric, METRICS[self.problem_type], "metrics")
        require(len(set(self.metrics)) == len(self.metrics), "metrics", "distinct metrics", self.metrics)
        more = self.main_metric not in LOWER_IS_BETTER
        require(more, "metrics", "first a metric of which more is better", self.main_metric)
        differs = self.reported_split != self.train_split
        require(differs, "reported_split", f"a split other than '{self.train_split}'", self.reported_split)
        one = self.split_column is None or (self.file is not None and self.reported_file is None)
        require(one, "split_column", "none but with one file", self.split_column)
        require(0 < self.held_out < 1, "held_out", "a fraction between 0 and 1", self.held_out)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows are made of."""
        return (*self.text_columns, *(self.label_columns or (self.label_column,)))

    @property
    def pair(self) -> bool:
        """Whether a row has two texts."""
        return len(self.text_columns) == 2

    @property
    def main_metric(self) -> str:
        """The metric that stands for the task in one number."""
        return (self.metrics or METRICS[self.problem_type])[0]


BUILT_IN: Mapping[str, TaskSpec] = MappingProxyType(
    {
        "mrpc": TaskSpec(
            name="mrpc",
            text_columns=("sentence1", "sentence2"),
            label_names=("not_equivalent", "equivalent"),
            metrics=("f1_binary", "accuracy", "f1_weighted"),
            hub=HubSource(path="nyu-mll/glue", config="mrpc"),
            folder="glue/mrpc",
        ),
        "sst2": TaskSpec(
            name="sst2",
            text_columns=("sentence",),
            label_names=("negative", "positive"),
            metrics=("accuracy", "f1_binary", "f1_weighted"),
            hub=HubSource(path="nyu-mll/glue", config="sst2"),
            folder="glue/sst2",
        ),
        "imdb": TaskSpec(
            name="imdb",
            text_columns=("text",),
            label_names=("neg", "pos"),
            metrics=("accuracy", "f1_binary", "f1_weighted"),
            reported_split="test",
            hub=HubSource(path="stanfordnlp/imdb"),
            folder="imdb",
        ),
    }
)


def find_task(name: str) -> TaskSpec:
    """Return the built-in task of this name.

    Raises:
        UnknownTaskError: there is none.
    """
    if name not in BUILT_IN:
        raise UnknownTaskError(name, BUILT_IN)
    return BUILT_IN[name]


def replace_split(spec: TaskSpec, split: str) -> TaskSpec:
    """Return the task reporting on another split: MRPC, say, has a labelled test split as well.

    Raises:
        ConfigError: it is the split that is trained on, or the task's one file has no splits.
    """
    is_whole = spec.file is not None and spec.split_column is None
    require(not is_whole, "reported_split", "none, as the task is one file without splits", split)
    return msgspec.structs.replace(spec, reported_split=split)


def task_name(path: Path | str) -> str:
    """Return a file's or folder's name in the letters that names allow."""
    return re.sub(r"[^a-z0-9._-]+", "-", stem_of(Path(path)).lower()).strip("._-")


def task_from_file(
    path: Path | str,
    *,
    text_column: str,
    pair_column: str | None = None,
    label_column: str = "label",
    name: str | None = None,
    problem_type: ProblemType | None = None,
    reported_file: Path | str | None = None,
    **fields: Any,
) -> TaskSpec:
    """Return the task that one labelled file makes, or two; label names are those seen in it.

    Args:
        path: of a format that tables.py reads.
        name: the file's name in the letters that names allow when None.
        problem_type: classification when None, after a look at the labels.
        reported_file: whose rows are scored; held-out ones of the first when None.
        fields: other fields of ``TaskSpec``.

    Raises:
        ConfigError: a column twice, or a name that the store cannot have.
    """
    columns = (text_column,) if pair_column is None else (text_column, pair_column)
    return TaskSpec(
        name=task_name(path) if name is None else name,
        text_columns=columns,
        label_column=label_column,
        problem_type=problem_type or "classification",
        problem_type_given=problem_type is not None,
        reported_split="validation" if reported_file or fields.get("split_column") else "held_out",
        file=str(path),
        reported_file=None if reported_file is None else str(reported_file),
        **fields,
    )


def read_task_file(path: Path) -> TaskSpec:
    """Return the task that a TOML file spells, its keys being the fields of TaskSpec.

    The name is the file's where none is given; ``file`` and ``folder`` are relative to the TOML file.

    Raises:
        DataError: no such file, not TOML, an unknown or missing key, a value out of range.
    """
    return spec_from_plain(path, {"name": path.stem, **read_toml(path)})


def spec_from_plain(path: Path, plain: dict[str, Any]) -> TaskSpec:
    """Return the task that the keys of a TOML file, or of a table in one, spell; see ``read_task_file``."""
    plain = dict(plain)
    fields = TaskSpec.__struct_fields__
    for key in plain:
        if key not in fields:
            hint = closest(key, fields)
            raise DataError(path, "task file", f"the keys {shorten(fields, len(fields))}", f"'{key}'", hint)
    sources = [key for key in ("hub", "folder", "file") if key in plain]
    if len(sources) != 1:
        raise DataError(path, "task file", "one of the keys hub, folder and file", " and ".join(sources) or "none")
    for key in ("folder", "file", "reported_file"):
        if isinstance(plain.get(key), str):
            plain[key] = str(path.absolute().parent / plain[key])
    if "file" in plain and "reported_file" not in plain:
        plain.setdefault("reported_split", "held_out")
    plain.setdefault("problem_type_given", "problem_type" in plain)
    try:
        return from_plain(TaskSpec, plain)
    except ConfigError as err:
        raise DataError(path, err.field, err.expected, err.found) from err


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds.

    Raises:
        DataError: no such file, or no TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as err:
        raise DataError(path, "task file", "a TOML file", err.strerror or type(err).__name__) from err
    except ValueError as err:
        raise DataError(path, "task file", "TOML in UTF-8", str(err)) from err
