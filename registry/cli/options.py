"""Options that several commands share: which task and rows, and which choices of a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from registry.errors import ConfigError
from registry.schema import PLACEMENTS, Activation, Pooling
from registry.tasks.spec import TaskSpec, find_task, read_task_file, replace_split, task_from_file
from registry.training.trackers import TRACKERS
from registry.validation import choose

F = TypeVar("F", bound=Callable[..., Any])

DATA_OPTIONS = (
    click.option("--data", default="hub", show_default=True, help="hub, sample, a folder of parquet files, or a file."),
    click.option("--task-file", type=click.Path(path_type=Path, dir_okay=False), help="A task of your own, as TOML."),
    click.option("--text-col", help="Column of the text in a --data file."),
    click.option("--pair-col", help="Column of the second text."),
    click.option("--label-col", help="Column of the label."),
    click.option(
        "--problem-type",
        type=click.Choice(["classification", "multi_label", "regression"]),
        default="classification",
        show_default=True,
        help="What the labels of a --data file are.",
    ),
    click.option("--reported-split", help="Score another split than the task's own."),
    click.option("--limit", type=click.IntRange(min=1), help="Train on this many rows, the same for every seed."),
    click.option("--limit-reported", type=click.IntRange(min=1), help="Score this many rows of the reported split."),
)

TRAINING_OPTIONS = (
    click.option("--recipe", default="default", show_default=True, help="A shipped recipe or the path of a TOML file."),
    click.option("--epochs", type=int, help="Passes over the training rows."),
    click.option("--learning-rate", type=float, help="Highest learning rate."),
    click.option("--batch-size", type=int, help="Rows of one step."),
    click.option("--max-length", type=int, help="Tokens a row is cut to."),
    click.option("--weight-decay", type=float, help="AdamW's weight decay."),
)

SET_OPTIONS = (
    click.option("--placement", help=f"Where bottlenecks join a layer: {', '.join(PLACEMENTS)}."),
    click.option("--reduction-factor", type=int, help="H / M; must divide H."),
    click.option("--activation", help="relu, gelu, silu or tanh."),
    click.option("--layers", help="Layers that get bottlenecks, counted from 0: 3,4,5."),
    click.option("--adapter-dropout", type=float, help="Share of bottleneck activations dropped in training."),
    click.option("--layer-norms/--no-layer-norms", default=None, help="Train the task's own layer norms too."),
    click.option("--pooling", help="cls, mean or pooler."),
    click.option("--train-head/--freeze-head", default=None, help="Train the classifier, or leave it at its start."),
)


TRACKING_OPTIONS = (
    click.option(
        "--track",
        multiple=True,
        type=click.Choice(list(TRACKERS)),
        help="Log the training live for this tool (an extra to install); may be given more than once.",
    ),
    click.option(
        "--track-to",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("tracking"),
        show_default=True,
        help="Folder of the logs; nothing goes over the network.",
    ),
)


def with_options(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    """Return a decorator that adds all ``options`` in their order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def choose_tasks(names: Sequence[str], options: dict[str, Any]) -> list[TaskSpec]:
    """Return the tasks that a command is about: built-in ones by name, or one of the user's own.

    Raises:
        UnknownTaskError: no such built-in task.
        ConfigError: options that do not go together.
        DataError: a task file that cannot be read.
    """
    task_file, data = options["task_file"], options["data"]
    columns = {option: options[option] for option in ("text_col", "pair_col", "label_col") if options[option]}
    own = task_file is not None or bool(columns)
    if own and len(names) > (task_file is None):
        raise ConfigError("tasks", "none beside --task-file, one at most beside --text-col", " ".join(names))
    if task_file is not None:
        tasks = [read_task_file(task_file)]
    elif columns:
        if "text_col" not in columns or "label_col" not in columns:
            raise ConfigError("data", "--text-col and --label-col with a --data file", " ".join(sorted(columns)))
        tasks = [
            task_from_file(
                data,
                text_column=columns["text_col"],
                pair_column=columns.get("pair_col"),
                label_column=columns["label_col"],
                name=names[0] if names else None,
                problem_type=options["problem_type"],
            )
        ]
    elif names:
        tasks = [find_task(name) for name in names]
    else:
        raise ConfigError("tasks", "at least one task, --task-file, or --data FILE with --text-col", "none")
    split = options["reported_split"]
    return [replace_split(task, split) for task in tasks] if split else tasks


def adapter_choices(options: dict[str, Any]) -> dict[str, Any]:
    """Return the bottleneck choices that were given, under the names a recipe uses."""
    return {
        "placement": _one_of(PLACEMENTS, options, "placement"),
        "reduction_factor": options["reduction_factor"],
        "activation": _one_of(get_args(Activation), options, "activation"),
        "layers": _layers(options["layers"]),
        "dropout": options["adapter_dropout"],
        "layer_norms": options["layer_norms"],
    }


def head_choices(options: dict[str, Any]) -> dict[str, Any]:
    """Return the head choices that were given, under the names a recipe uses."""
    return {"pooling": _one_of(get_args(Pooling), options, "pooling"), "trained": options["train_head"]}


def training_choices(options: dict[str, Any]) -> dict[str, Any]:
    """Return the training choices that were given, under the names a recipe uses."""
    names = ("epochs", "learning_rate", "batch_size", "max_length", "weight_decay")
    return {name: options[name] for name in names}


def _one_of(names: tuple[str, ...], options: dict[str, Any], field: str) -> str | None:
    value: str | None = options[field]
    return value if value is None else choose(value, names, field)


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as err:
        raise ConfigError("layers", "whole numbers with commas, such as 3,4,5", text) from err
