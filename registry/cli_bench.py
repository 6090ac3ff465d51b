"""Commands that compare methods: bench, report, and the demo that shows all of it on the sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from registry.cli_options import DATA_OPTIONS, TRAINING_OPTIONS, choose_tasks, training_choices, with_options
from registry.cli_settings import Settings, json_option, make_console, note, print_json
from registry.errors import ConfigError, closest
from registry.recipes import Recipe, read_recipe, recipe_names
from registry.schema import BASELINES, PLACEMENTS

if TYPE_CHECKING:
    from registry.backbone import Backbone
    from registry.data import TaskData
    from registry.registry import Registry
    from registry.schema import RunRecord

METHODS = ("majority", "head_only", *PLACEMENTS, "full_fine_tuning")
FORMATS = "csv, json, markdown, latex, html"
MOST_SEEDS = 1_000
OUT = Path("bench")
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("tasks", nargs=-1, metavar="[TASK]...")
@click.option("--task", "more_tasks", multiple=True, help="A task; may be given more than once.")
@click.option("--method", "methods", multiple=True, help=f"{', '.join(METHODS)} (all these by default) or a recipe.")
@click.option("--seeds", default="0", show_default=True, help="Seeds with commas, or a range such as 0-4.")
@click.option("--backbone", help="embedded, a Hub id or a folder; the store's by default, or embedded.")
@click.option("--out", type=FOLDER, default=OUT, show_default=True, help="Folder of records and report.")
@click.option("--keep", help="Save this method's sets in the store, from the first seed, under the tasks' names.")
@with_options(TRAINING_OPTIONS)
@with_options(DATA_OPTIONS)
@click.pass_obj
def bench(
    settings: Settings,
    /,
    tasks: tuple[str, ...],
    more_tasks: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: str,
    **options: Any,
) -> None:
    """Run tasks x methods x seeds and write the report; a finished cell is never run twice.

    \b
    adapter-registry bench mrpc sst2 --data sample --seeds 0-2
    adapter-registry bench --task mrpc --method after_layer --seeds 0
    """
    chosen = [_known_method(method) for method in methods or METHODS]
    seed_list = parse_seeds(seeds)
    specs = choose_tasks((*tasks, *more_tasks), options)
    recipe = read_recipe(options["recipe"])
    if options["keep"] is not None and options["keep"] not in chosen:
        raise ConfigError("--keep", f"one of the methods {', '.join(chosen)}", options["keep"])
    if options["keep"] in ("majority", "full_fine_tuning"):
        raise ConfigError("--keep", "a method that leaves an adapter set", options["keep"])
    from registry.data import load_task
    from registry.registry import Registry

    loaded = [
        load_task(
            spec,
            options["data"],
            offline=settings.offline,
            limit=options["limit"],
            limit_reported=options["limit_reported"],
        )
        for spec in specs
    ]
    if options["keep"] is not None:
        backbone = settings.load_store_backbone(options["backbone"], "embedded")
        registry = Registry.create(settings.store, backbone)
    else:
        backbone, registry = settings.load_backbone(_source(settings, options["backbone"])), None
    for data in loaded:
        _run_task(backbone, data, chosen, seed_list, recipe, options, registry)
    _write(options["out"], ("csv", "json", "markdown", "latex", "html"))


def _run_task(
    backbone: Backbone,
    data: TaskData,
    methods: list[str],
    seeds: list[int],
    recipe: Recipe,
    options: dict[str, Any],
    registry: Registry | None,
) -> None:
    from registry.progress import TrainingProgress
    from registry.runner import cells_of, run_cell

    for cell in cells_of([data.spec.name], methods, seeds):
        keep = registry if cell.method == options["keep"] and cell.seed == seeds[0] else None
        with TrainingProgress(str(cell)) as progress:
            record, is_new = run_cell(
                options["out"],
                cell,
                data,
                backbone,
                recipe=recipe,
                overrides=training_choices(options),
                observe=progress.observe,
                keep_in=keep,
            )
        note(f"{cell}: {_outcome(record)}" + ("" if is_new else " (already there)"))
        if keep is not None and not is_new and data.spec.name not in keep:
            note(f"{cell}: nothing to keep; its weights are gone, so delete its record to run it again")


def _outcome(record: RunRecord) -> str:
    if record.status == "failed":
        return f"failed: {record.error}"
    return f"{record.main_metric} {record.scores[record.main_metric]:.4f} in {record.train_seconds:.0f} s"


@click.command()
@click.argument("folder", type=FOLDER, default=OUT)
@click.option("--format", "formats", multiple=True, help=f"One of {FORMATS}; all by default.")
@json_option
@click.pass_obj
def report(settings: Settings, folder: Path, formats: tuple[str, ...], as_json: bool) -> None:
    """Make the tables again from the run records in FOLDER."""
    import pandas

    from registry.frames import summary_table
    from registry.records import read_records

    if as_json:
        rows = summary_table(read_records(folder)).to_dict("records")
        print_json([{key: value for key, value in row.items() if not pandas.isna(value)} for row in rows])
    else:
        _write(folder, formats or ("csv", "json", "markdown", "latex", "html"))


def _write(folder: Path, formats: tuple[str, ...]) -> None:
    from registry.records import read_records
    from registry.reports import render_terminal, write_report

    records = read_records(folder)
    paths = write_report(folder, records, formats)
    make_console(100).print(render_terminal(records))
    note("wrote " + ", ".join(str(path) for path in paths))


@click.command()
@click.option("--folder", type=FOLDER, default=Path("demo"), show_default=True, help="A folder of its own, made anew.")
@click.pass_obj
def demo(settings: Settings, folder: Path) -> None:
    """Show everything in two minutes: offline, on the embedded backbone and the bundled sample."""
    from registry.demo import run_demo

    run_demo(settings, folder)


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that ``0,1,2`` or ``0-4`` spell.

    Raises:
        ConfigError: anything else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [first, last if dash else first]
        if not all(end.isascii() and end.isdigit() and len(end) <= 18 for end in ends):
            raise ConfigError("--seeds", "numbers such as 0,1,2 or 0-4", text)
        chosen = range(int(ends[0]), int(ends[1]) + 1)
        if not 1 <= len(chosen) <= MOST_SEEDS:
            raise ConfigError("--seeds", f"rising ranges of at most {MOST_SEEDS} seeds", text)
        seeds += chosen
    if len(set(seeds)) != len(seeds):
        raise ConfigError("--seeds", "distinct numbers such as 0,1,2 or 0-4", text)
    return seeds


def _known_method(method: str) -> str:
    names = (*BASELINES, *PLACEMENTS, *(name for name in recipe_names() if name != "default"))
    if method not in names:
        raise ConfigError("method", f"one of {', '.join(names)}", method, closest(method, names))
    return method


def _source(settings: Settings, backbone: str | None) -> str:
    if backbone is not None:
        return backbone
    return settings.open_catalog().info.backbone.source if settings.has_store() else "embedded"
