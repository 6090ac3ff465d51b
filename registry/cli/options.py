"""The options that commands share: the settings in front of a command, a task's rows, a training's choices."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from registry.errors import BackboneMismatchError, ConfigError
from registry.schema import PLACEMENTS, Activation, Pooling
from registry.tasks.spec import TaskSpec, find_task, read_task_file, replace_split, task_from_file
from registry.training.trackers import TRACKERS
from registry.validation import choose

if TYPE_CHECKING:
    from rich.console import Console

    from registry.model.backbone import Backbone
    from registry.store.registry import Registry
    from registry.store.store import Store
    from registry.tasks.loading import TaskData


@dataclass(frozen=True)
class Settings:
    """The options in front of the command."""

    store: Path
    device: str
    dtype: str
    offline: bool

    def open_store(self) -> Store:
        """Return the store as names and manifests, without torch."""
        from registry.store.store import Store

        return Store.open(self.store)

    def has_store(self) -> bool:
        """Return whether there is a store already."""
        return (self.store / "store.json").exists()

    def load_backbone(self, source: str, revision: str | None = None) -> Backbone:
        """Return the frozen encoder, telling on stderr what is loaded."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from registry.model.backbone import Backbone

        backbone = Backbone.load(source, device=self.device, dtype=self.dtype, revision=revision, offline=self.offline)
        info = backbone.info
        precision = str(backbone.dtype).removeprefix("torch.")
        note(
            f"backbone {source}: {info.family}, {info.layers} layers, H {info.hidden_size}, "
            f"{info.parameters:,} parameters, {precision} on {backbone.device}"
        )
        return backbone

    def open_registry(self) -> Registry:
        """Return the registry of the store, with the backbone it belongs to."""
        from registry.store.registry import Registry

        info = self.open_store().info.backbone
        return Registry(self.store, self.load_backbone(info.source, info.revision))

    def load_store_backbone(self, backbone: str | None, fallback: str) -> Backbone:
        """Return the backbone of the store, or ``backbone`` (else ``fallback``) where a store is still to be made.

        Raises:
            BackboneMismatchError: the store is there and belongs to another backbone than the one named.
        """
        if not self.has_store():
            return self.load_backbone(backbone or fallback)
        info = self.open_store().info.backbone
        if backbone is not None and backbone != info.source:
            hint = f"it belongs to '{info.source}'; leave --backbone out, or name another --store"
            raise BackboneMismatchError(f"store {self.store}", "backbone", info.source, backbone, hint)
        return self.load_backbone(info.source, info.revision)

    def load_tasks(self, specs: Sequence[TaskSpec], options: dict[str, Any]) -> list[TaskData]:
        """Return the tasks' rows as the data options of a command choose them.

        Raises:
            DataError: rows that cannot be used.
            DataUnavailableError: the Hub cannot be reached and nothing is cached.
        """
        from registry.tasks.loading import load_task

        limits = {name: options[name] for name in ("limit", "limit_reported")}
        return [load_task(spec, options["data"], offline=self.offline, **limits) for spec in specs]


def note(text: str) -> None:
    """Tell something that is no data on stderr, line by line."""
    click.echo("\n".join(map(printable, text.split("\n"))), err=True)


def printable(value: object) -> str:
    """Return the text of a value that came from a file, without codes that a terminal would obey."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(value))


def print_json(content: Any) -> None:
    """Print data for programs on stdout, one line per record when it is a list."""
    for record in content if isinstance(content, list) else [content]:
        click.echo(json.dumps(record, ensure_ascii=False))


def make_console(width: int) -> Console:
    """Return a console on stdout of at least ``width`` columns; NO_COLOR takes bold letters away too."""
    from rich.console import Console

    console = Console(color_system=None if os.environ.get("NO_COLOR") else "auto")
    console.width = max(console.width, width)
    return console


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of text.")


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
