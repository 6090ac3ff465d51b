"""Commands that list: what is in a store, what there is to choose from, and what this machine has.

The ``list`` command gives one line for each name in a store, whether there are three of them or ten thousand.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from registry.bench.suite import read_suite, suite_names
from registry.cli.options import Settings, json_option, note, print_json
from registry.config import BASELINES, PLACEMENTS
from registry.errors import RegistryError
from registry.store.errors import IntegrityError, StoreError
from registry.store.listing import ListedSet, Summary, list_sets
from registry.tasks.spec import BUILT_IN
from registry.training.recipes import DEFAULT, read_recipe, recipe_names
from registry.validation import printable

_BASELINES = {
    "majority": "the commonest answer of the training rows; reads no text",
    "head_only": "a trained classifier on the frozen encoder",
    "full_fine_tuning": "a copy of the whole encoder trained as well",
}
_PLACEMENTS = {
    "after_layer": "a bottleneck after each layer",
    "houlsby": "a bottleneck after attention and after feed-forward (Houlsby et al. 2019)",
    "pfeiffer": "a bottleneck after feed-forward (AdapterHub seq_bn)",
    "parallel": "a bottleneck beside feed-forward (He et al. 2022, AdapterHub par_bn)",
}


_TITLES = ("name", "newest", "aliases", "placement", "labels", "parameters", "bytes", "score", "data")
_NUMBERS = ("newest", "parameters", "bytes")


@click.command("list")
@json_option
@click.pass_obj
def list_command(settings: Settings, as_json: bool) -> None:
    """List the adapter sets in the store; a damaged one is told of and does not hide the others."""
    view = settings.open_store()
    listed = list(list_sets(view))
    if as_json:
        print_json([_as_plain(each) for each in listed])
    elif listed:
        _print_table([_row(each) for each in listed])
    else:
        note(f"store {settings.store} for '{view.info.backbone.source}' is empty")
    damaged = [each.error for each in listed if each.error is not None]
    for error in damaged[:-1]:
        note(f"adapter-registry: {error}")
    if damaged:
        raise _last(damaged, settings)


def _last(errors: Sequence[StoreError], settings: Settings) -> StoreError:
    if len(errors) > 1:
        note(f"adapter-registry: {errors[-1]}")
        return IntegrityError(settings.store, "check", "no damaged set", f"{len(errors)} damaged sets")
    return errors[-1]


def _row(listed: ListedSet) -> tuple[str, ...]:
    summary = listed.summary
    aliases = ", ".join(f"{alias} -> {version}" for alias, version in listed.aliases.items()) or "-"
    if summary is None:
        newest = str(listed.versions[-1]) if listed.versions else "-"
        return (listed.name, newest, "-", "damaged", "-", "-", "-", "-", "-")
    cells = (
        listed.name,
        str(listed.versions[-1]),
        aliases,
        summary.placement,
        str(len(summary.head.label_names)),
        f"{summary.parameters:,}",
        f"{summary.bytes:,}",
        _score(summary),
        _data(summary),
    )
    return tuple(map(printable, cells))


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(_TITLES, *rows, strict=True)]
    sides = [">" if title in _NUMBERS else "<" for title in _TITLES]
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    title = form.format(*_TITLES).rstrip()
    click.echo(title if os.environ.get("NO_COLOR") else click.style(title, bold=True))
    click.echo("\n".join(form.format(*row).rstrip() for row in rows))


def _as_plain(listed: ListedSet) -> dict[str, object]:
    plain: dict[str, object] = {"name": listed.name, "versions": listed.versions, "aliases": listed.aliases}
    summary = listed.summary
    if summary is None:
        return {**plain, "error": str(listed.error)}
    return {
        **plain,
        "task": summary.task,
        "placement": summary.placement,
        "label_names": list(summary.head.label_names),
        "parameters": summary.parameters,
        "bytes": summary.bytes,
        "main_metric": summary.main_metric,
        "scores": summary.scores,
        "data": summary.data.source if summary.data else None,
        "sample": summary.data.sample if summary.data else None,
        "created": summary.created,
    }


def _score(summary: Summary) -> str:
    if summary.main_metric is None or summary.main_metric not in summary.scores:
        return "-"
    return f"{summary.main_metric} {summary.scores[summary.main_metric]:.3f} ({summary.split})"


def _data(summary: Summary) -> str:
    if summary.data is None:
        return "-"
    return "sample" if summary.data.sample else f"{summary.data.train_rows:,} rows"


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print a line for each row: its name, and what it is."""
    if as_json:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {row['description']}")


@click.command(name="tasks")
@json_option
def list_tasks(as_json: bool) -> None:
    """List the built-in tasks and the shipped suites of tasks."""
    rows = [
        {
            "name": spec.name,
            "description": f"{', '.join(spec.label_names or ())} from {' and '.join(spec.text_columns)}; "
            f"{spec.metrics[0]} on {spec.reported_split}; {spec.hub}",
        }
        for spec in BUILT_IN.values()
    ]
    suites = [{"name": f"--suite {name}", "description": read_suite(name)[0].description} for name in suite_names()]
    _print_rows(rows + suites, as_json)


@click.command(name="recipes")
@json_option
def list_recipes(as_json: bool) -> None:
    """List the shipped recipes."""
    _print_rows([{"name": name, "description": read_recipe(name).description} for name in recipe_names()], as_json)


@click.command(name="methods")
@json_option
def list_methods(as_json: bool) -> None:
    """List what bench compares: baselines, placements and recipes."""
    known = {**_BASELINES, **_PLACEMENTS}
    rows = [{"name": name, "description": known[name]} for name in (*BASELINES, *PLACEMENTS)]
    recipes = [name for name in recipe_names() if name != DEFAULT]
    _print_rows(rows + [{"name": name, "description": read_recipe(name).description} for name in recipes], as_json)


@click.command()
@json_option
@click.pass_obj
def doctor(settings: Settings, as_json: bool) -> None:
    """Tell versions, device, threads, precision, store and Hub, a line each, and what to do where one is amiss."""
    rows = [{"name": name, "description": told} for name, told in _findings(settings)]
    _print_rows(rows, as_json)


def _findings(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield what was looked at and what was found."""
    import torch

    from registry.model import machine
    from registry.network import find_obstacle, is_offline
    from registry.provenance import code_version, library_versions

    yield "program", f"{code_version()}, Python {platform.python_version()} on {platform.platform()}"
    yield "libraries", ", ".join(f"{name} {version}" for name, version in library_versions().items())
    try:
        device = machine.choose_device(settings.device)
        dtype = str(machine.choose_dtype(settings.dtype, device)).removeprefix("torch.")
        yield "device", f"{_device_name(device)}, {dtype} by default"
    except RegistryError as err:
        yield "device", str(err)
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    told = "" if threads <= cores else "; more threads than cores are slower: set OMP_NUM_THREADS"
    yield "threads", f"{threads} of {cores} cores{told}"
    fast = torch.backends.cpu.get_cpu_capability()
    slow = "" if "512" in fast else "; --dtype bfloat16 is no gain without AVX-512"
    layout = "yes" if machine.has_frozen_layout() else "no, so frozen products are torch's own"
    yield "processor", f"{fast}, oneDNN layouts: {layout}{slow}"
    yield "store", _about_store(settings)
    if settings.offline or is_offline():
        yield "Hub", "not asked: offline was asked for"
    else:
        from huggingface_hub import HfApi

        obstacle = find_obstacle(lambda: HfApi().model_info("google-bert/bert-base-uncased", timeout=5))
        way_on = "; use --backbone embedded or a folder, --data sample or a folder"
        yield "Hub", f"{obstacle}{way_on}" if obstacle else "answers"


def _device_name(device: Any) -> str:
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _about_store(settings: Settings) -> str:
    """Return how many names a store has and which backbone, or why it cannot be opened."""
    try:
        store = settings.open_store()
        info = store.info.backbone
    except RegistryError as err:
        return str(err)
    place = "" if info.source == "embedded" or Path(info.source).exists() else ", which is no folder here"
    return f"{settings.store}: {len(store.names())} names for backbone '{info.source}'{place}"


def complete_reference(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the references of the store that begin so, for the shell."""
    try:
        store = Settings(ctx.find_root().params["store"], "auto", "auto", True).open_store()
        name, mark = next(((incomplete.split(each)[0], each) for each in ":@" if each in incomplete), (incomplete, ""))
        if not mark:
            return [each for each in store.names() if each.startswith(incomplete)]
        ends = store.versions(name) if mark == ":" else store.alias_names(name)
        return [full for end in ends if (full := f"{name}{mark}{end}").startswith(incomplete)]
    except (RegistryError, OSError, KeyError):
        return []


def complete_task(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the built-in tasks that begin so, for the shell."""
    return [name for name in BUILT_IN if name.startswith(incomplete)]


def add_completion(command: click.Command) -> None:
    """Let the shell complete a command's references, tasks and recipes."""
    chosen = {
        **dict.fromkeys(("reference", "references", "first", "second", "name", "repeated", "more"), complete_reference),
        **dict.fromkeys(("tasks", "more_tasks"), complete_task),
        "recipe": lambda ctx, parameter, text: [name for name in recipe_names() if name.startswith(text)],
    }
    for parameter in command.params:
        is_new_name = parameter.name == "name" and isinstance(parameter, click.Option)
        if parameter.name in chosen and not is_new_name:
            complete = chosen[parameter.name]
            parameter.shell_complete = _completing(complete)  # type: ignore[method-assign]


def _completing(complete: Any) -> Any:
    def items(ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(each) for each in complete(ctx, None, incomplete)]

    return items
