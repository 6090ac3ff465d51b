"""The options that say where rows are and how they are read, and the tasks and rows that these mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from registry.cli.options import Settings, is_given, note
from registry.errors import ConfigError, DataError, UnknownTaskError, shorten
from registry.schema import Reading
from registry.tasks.files import split_ending
from registry.tasks.spec import (
    BUILT_IN,
    HubSource,
    TaskSpec,
    find_task,
    is_own_metric,
    read_task_file,
    replace_split,
    task_from_file,
    task_name,
)
from registry.validation import from_plain

if TYPE_CHECKING:
    from registry.schema import Manifest
    from registry.tasks.task_data import TaskData

HUB = "hub:"  # in front of a data set's name
_SEPARATORS = {"tab": "\t", "\\t": "\t", "space": " "}
_COLUMNS = ("text_col", "pair_col", "label_col", "label_cols")

READING_OPTIONS = (
    click.option("--sep", help="What stands between the cells of a csv, tsv or txt file; found by looking."),
    click.option(
        "--quoting",
        type=click.Choice(["minimal", "none"]),
        help="Take quotation marks around a cell as no part of it, or as letters; found by looking.",
    ),
    click.option("--encoding", help="Of a text file; UTF-8, or what its byte order mark says."),
    click.option("--no-header", is_flag=True, help="The first line is a row; columns are called 0, 1, 2 and so on."),
)


def use_metrics(ctx: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    """Make own metrics among those named known; only their names on the command line run their code."""
    for name in filter(is_own_metric, names):
        from registry.tasks.metrics import use_metric

        use_metric(name)
    return names


DATA_OPTIONS = (
    click.option("--data", default="hub", show_default=True, help="hub, sample, hub:NAME, a folder or a file."),
    click.option("--validation", type=click.Path(path_type=Path), help="A second file: score it, hold nothing out."),
    click.option("--split-col", help="Column of --data that says of each row: train, validation, dev or test."),
    click.option(
        "--task-file",
        "task_files",
        multiple=True,
        type=click.Path(path_type=Path, dir_okay=False),
        help="A task of your own, as TOML; may be repeated.",
    ),
    click.option("--text-col", help="Column of the text in --data; a.b reaches into objects."),
    click.option("--pair-col", help="Column of the second text."),
    click.option("--label-col", help="Column of the label."),
    click.option("--label-cols", help="Columns of 0 and 1, one for each label of a multi-label task: toxic,severe."),
    click.option("--labels", help="Names of the labels in the order of the logits: no,yes."),
    click.option("--positive-label", help="The label of two that f1_binary is of; the rarer one, or 1, true or yes."),
    click.option("--label-sep", help="What stands between several labels in a cell; found by looking."),
    click.option("--ignore-label", multiple=True, help="Leave out and count rows with this label; may be repeated."),
    click.option("--skip-bad-rows", is_flag=True, help="Leave out and count rows without a text or label."),
    *READING_OPTIONS,
    click.option(
        "--problem-type",
        type=click.Choice(["classification", "multi_label", "regression"]),
        help="What the labels are; classification unless they look like something else.",
    ),
    click.option(
        "--metric",
        "metrics",
        multiple=True,
        callback=use_metrics,
        help="Score this, the first one above all: f1_macro, or own code as module:function; may be repeated.",
    ),
    click.option("--reported-split", help="Score another split than the task's own."),
    click.option("--limit", type=click.IntRange(min=1), help="Train on this many rows, the same for every seed."),
    click.option("--limit-reported", type=click.IntRange(min=1), help="Score this many rows of the reported split."),
)


def read_reading(options: dict[str, Any], base: Reading | None = None) -> Reading:
    """Return how files are to be read: as the options say, else as ``base`` does."""
    given: dict[str, Any] = {name: options[name] for name in ("quoting", "encoding") if options[name] is not None}
    if options["sep"] is not None:
        given["sep"] = _SEPARATORS.get(options["sep"], options["sep"])
    if options["no_header"]:
        given["header"] = False
    if options.get("label_sep") is not None:
        given["label_sep"] = _SEPARATORS.get(options["label_sep"], options["label_sep"])
    if options.get("ignore_label"):
        given["ignore_labels"] = tuple(options["ignore_label"])
    if options.get("skip_bad_rows"):
        given["skip_bad_rows"] = True
    return Reading(**{**msgspec.structs.asdict(base or Reading()), **given})


def is_data_file(data: str) -> bool:
    """Return whether ``--data`` names a file: it is there, or it has the ending of one."""
    path = Path(data).expanduser()
    if path.is_dir():
        return False
    try:
        return bool(split_ending(path))
    except DataError:
        return path.is_file()


def choose_tasks(names: Sequence[str], options: dict[str, Any]) -> list[TaskSpec]:
    """Return the tasks that a command is about: built-in ones by name, or one of the user's own.

    Raises:
        UnknownTaskError: no such built-in task.
        ConfigError: options that do not go together.
        DataError: a task file that cannot be read.
    """
    task_files, data = options["task_files"], options["data"]
    given = [option for option in _COLUMNS if options[option]]
    own = bool(given) or is_data_file(data) or data.startswith(HUB)
    if own and (len(names) > 1 or task_files):
        found = " ".join((*names, *map(str, task_files)))
        raise ConfigError("tasks", "one at most beside --data FILE and columns", found)
    tasks = [_own_task(names[0] if names else None, options)] if own else [find_task(name) for name in names]
    for spec in map(read_task_file, task_files):
        tasks.append(msgspec.structs.replace(spec, reading=read_reading(options, spec.reading)))
    if len({task.name for task in tasks}) < len(tasks) and task_files:
        raise ConfigError("tasks", "each of another name", " ".join(task.name for task in tasks))
    if not tasks:
        raise ConfigError("tasks", "at least one task, --task-file, or --data FILE with --text-col", "none")
    split = options["reported_split"]
    tasks = [replace_split(task, split) if split and task.reported_split != split else task for task in tasks]
    return [_with_metrics(task, options) for task in tasks]


def _with_metrics(spec: TaskSpec, options: dict[str, Any]) -> TaskSpec:
    """Return the task with the metrics asked for, in the place of its own."""
    if not options["metrics"]:
        return spec
    return from_plain(TaskSpec, {**msgspec.to_builtins(spec), "metrics": options["metrics"]})


def _own_task(name: str | None, options: dict[str, Any]) -> TaskSpec:
    """Return the task that a file, two files, a folder or a data set of the Hub make with the column options."""
    data, labelled = options["data"], bool(options["label_col"] or options["label_cols"])
    if not options["text_col"] or not labelled:
        missing = [] if options["text_col"] else ["--text-col"]
        missing += [] if labelled else ["--label-col"]
        hint = told_columns(options)
        raise ConfigError(f"--data {data}", f"{' and '.join(missing)} beside it", "none", hint)
    chosen = name or task_name(data.removeprefix(HUB).replace(":", "-"))
    fields = {"name": chosen, **_fields(options), "reading": read_reading(options)}
    columns = {key: options[option] for key, option in (("text_column", "text_col"), ("pair_column", "pair_col"))}
    if options["label_col"]:
        columns["label_column"] = options["label_col"]
    path = Path(data).expanduser()
    if options["split_col"] and not is_data_file(data):
        raise ConfigError("--split-col", "one --data FILE beside it", data)
    file_task = task_from_file(data, **columns, **fields, reported_file=options["validation"])
    if is_data_file(data):
        return file_task
    if options["validation"] is not None:
        raise ConfigError("--validation", "a file beside --data FILE", data)
    if data.startswith(HUB):
        hub, _, config = data.removeprefix(HUB).partition(":")
        source = HubSource(path=hub, config=config or None)
        split = options["reported_split"] or "validation"
        return msgspec.structs.replace(file_task, hub=source, file=None, reported_split=split)
    if data in ("hub", "sample"):
        raise ConfigError("data", "a file, a folder or hub:NAME beside --text-col", data)
    from registry.tasks.loading import choose_splits

    train, reported = choose_splits(path, options["reported_split"])
    folder = str(path.absolute())
    return msgspec.structs.replace(file_task, folder=folder, file=None, train_split=train, reported_split=reported)


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a task that were given, but for columns and reading."""
    fields: dict[str, Any] = {"problem_type": options["problem_type"], "positive_label": options["positive_label"]}
    if options["split_col"]:
        fields["split_column"] = options["split_col"]
    for field, option in (("label_columns", "label_cols"), ("label_names", "labels")):
        if options[option]:
            fields[field] = tuple(each.strip() for each in options[option].split(","))
    if options["label_cols"]:
        if options["label_col"]:
            raise ConfigError("--label-cols", "no --label-col beside it", options["label_col"])
        if options["problem_type"] not in (None, "multi_label"):
            raise ConfigError("--label-cols", "--problem-type multi_label beside it", options["problem_type"])
        fields["problem_type"] = "multi_label"
    return fields


def told_columns(options: dict[str, Any]) -> str:
    """Return which columns the file of ``--data`` has, where it can be read."""
    from registry.tasks.tables import column_names

    data = options["data"]
    if not is_data_file(data):
        return ""
    try:
        return f"its columns are {shorten(column_names(Path(data).expanduser(), read_reading(options)), 9)}"
    except DataError:
        return ""


def load_tasks(settings: Settings, specs: Sequence[TaskSpec], options: dict[str, Any]) -> list[TaskData]:
    """Return the tasks' rows as the data options of a command choose them, and tell what is remarkable.

    Raises:
        DataError: rows that cannot be used.
        DataUnavailableError: the Hub cannot be reached and nothing is cached.
    """
    from registry.tasks.loading import load_task

    limits = {name: options[name] for name in ("limit", "limit_reported")}
    source = "hub" if options["data"].startswith(HUB) else options["data"]
    return [_told(load_task(spec, source, offline=settings.offline, **limits)) for spec in specs]


def _told(data: TaskData) -> TaskData:
    for remark in data.remarks:
        note(f"{data.spec.name}: {remark}")
    return data


def load_for_set(settings: Settings, reference: str, manifest: Manifest, options: dict[str, Any]) -> TaskData:
    """Return the rows that a stored set is scored on: all of a file, else the reported ones of its own task.

    Columns and labels are the set's own where the options do not say others. Of the very file that a set was trained
    on, the rows held out in training are scored.

    Raises:
        ConfigError, DataError, UnknownTaskError: no rows are named, or they cannot be used.
    """
    from registry.tasks.loading import load_task, load_to_score
    from registry.training.origin import task_of

    limits = {name: options[name] for name in ("limit", "limit_reported")}
    data, given = options["data"], is_given("data")
    if options["task_files"] or data.startswith(HUB):
        specs = choose_tasks([], options)
        if len(specs) > 1:
            raise ConfigError("--task-file", "one, as one task is scored", len(specs))
        return load_tasks(settings, [_labelled_as(manifest, specs[0])], options)[0]
    spec = _with_metrics(task_of(reference, manifest), options) if manifest.origin is not None else None
    if given and is_data_file(data):
        if spec is not None and _is_trained_on(spec, data) and not any(options[column] for column in _COLUMNS):
            rows = "were held out in training" if spec.split_column is None else f"are of {spec.reported_split}"
            note(f"{reference}: scored on the rows of {data} that {rows}")
            return _told(load_task(spec, data, **limits))
        own = _labelled_as(manifest, _file_spec(spec, options))
        return _told(load_to_score(own, data, limit_reported=options["limit_reported"]))
    if spec is None or manifest.task in BUILT_IN:
        if manifest.task is None or (manifest.task not in BUILT_IN and spec is None):
            raise UnknownTaskError(manifest.task or "", BUILT_IN)
        return load_tasks(settings, choose_tasks([manifest.task], options), options)[0]
    if given and not Path(data).is_dir():
        raise ConfigError("data", f"a file or a folder, as '{reference}' is of a task of its own", data)
    if given:
        from registry.tasks.loading import choose_splits

        folder = Path(data).absolute()
        train, reported = choose_splits(folder, options["reported_split"])
        places = {"file": None, "reported_file": None, "split_column": None, "hub": None, "folder": str(folder)}
        spec = msgspec.structs.replace(spec, **places, train_split=train, reported_split=reported)
    elif options["reported_split"]:
        spec = replace_split(spec, options["reported_split"])
    if spec.file is not None and spec.reported_file is None and spec.split_column is None:
        note(f"{reference}: scored on the rows of {spec.file} that were held out in training")
    return _told(load_task(spec, offline=settings.offline, **limits))


def _is_trained_on(spec: TaskSpec, data: str) -> bool:
    path, other = Path(data).expanduser(), Path(spec.file or "")
    return spec.file is not None and other.exists() and path.exists() and path.samefile(other)


def _file_spec(spec: TaskSpec | None, options: dict[str, Any]) -> TaskSpec:
    """Return how a file is read: by the options, else by the columns that the set was trained on."""
    own = spec or TaskSpec(name="file", text_columns=(options["text_col"] or "text",))
    texts = own.text_columns
    if options["text_col"]:
        texts = (options["text_col"], *([options["pair_col"]] if options["pair_col"] else texts[1:]))
    kept = {name: getattr(own.reading, name) for name in ("label_sep", "ignore_labels", "skip_bad_rows")}
    labels = tuple(each.strip() for each in (options["label_cols"] or "").split(",")) if options["label_cols"] else None
    return msgspec.structs.replace(
        own,
        text_columns=texts,
        label_column=options["label_col"] or own.label_column,
        label_columns=() if options["label_col"] else labels or own.label_columns,
        folder=None,
        reported_file=None,
        split_column=None,
        reading=read_reading(options, Reading(**kept)),
    )


def _labelled_as(manifest: Manifest, spec: TaskSpec) -> TaskSpec:
    """Return the task with the labels of a set, which are matched by name."""
    head = manifest.head
    other_names = spec.label_names is not None and set(spec.label_names) != set(head.label_names)
    if other_names or (spec.problem_type_given and spec.problem_type != head.problem_type):
        return spec  # told when the set is asked
    return msgspec.structs.replace(
        spec,
        label_names=head.label_names,
        problem_type=head.problem_type,
        problem_type_given=True,
        positive_label=manifest.positive_label,
    )
