"""Commands that run methods on tasks: bench, and the demo that shows all of it on the sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from registry.bench.suite import Suite, read_suite
from registry.bench.sweep import SWEEPABLE, Variant, make_variants, parse_seeds, parse_sweeps
from registry.cli.compare import FOLDER, OUT, write_tables
from registry.cli.data import DATA_OPTIONS, choose_tasks, load_tasks
from registry.cli.options import (
    TRACKING_OPTIONS,
    TRAINING_OPTIONS,
    Settings,
    backbone_option,
    gpu_share_option,
    note,
    on_option,
    training_choices,
    with_options,
)
from registry.config import PLACEMENTS
from registry.errors import ConfigError
from registry.tasks.spec import TaskSpec
from registry.training.recipes import Recipe, method_names, read_recipe
from registry.validation import choose, require

if TYPE_CHECKING:
    from registry.bench.records import RunRecord
    from registry.bench.runner import CellJob
    from registry.model.backbone import Backbone
    from registry.store.registry import Registry
    from registry.tasks.task_data import TaskData
    from registry.training.trackers import TrackedRun, Tracking

Chosen = tuple[Suite, list[TaskSpec]]
METHODS = ("majority", "head_only", *PLACEMENTS, "full_fine_tuning")
MOST_TOGETHER = 8  # sets in one pass; the memory of a step grows with them


def _take_suite(ctx: click.Context, parameter: click.Parameter, name: str | None) -> Chosen | None:
    """Return a suite and its tasks, whose other choices become the defaults of the command's options."""
    if name is None:
        return None
    suite, specs = read_suite(name)
    ctx.default_map = {**(ctx.default_map or {}), **suite.defaults()}
    return suite, specs


@click.command()
@click.argument("tasks", nargs=-1, metavar="[TASK]...")
@click.option(
    "--suite",
    callback=_take_suite,
    is_eager=True,
    help="Tasks, methods, seeds and limits from this TOML file, or glue; options win over it.",
)
@click.option("--task", "more_tasks", multiple=True, help="A task; may be given more than once.")
@click.option("--method", "methods", multiple=True, help=f"{', '.join(METHODS)} (all these by default) or a recipe.")
@click.option("--seeds", default="0", show_default=True, help="Seeds with commas, or a range such as 0-4.")
@backbone_option
@click.option("--out", type=FOLDER, default=OUT, show_default=True, help="Folder of records and report.")
@click.option(
    "--together",
    is_flag=True,
    help=f"Train a task's sets in one pass of the backbone, {MOST_TOGETHER} at most at a time; each learns as alone.",
)
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="FIELD=VALUE,VALUE",
    help="Run every method with each VALUE instead of its own, and with all combinations of several sweeps. "
    f"FIELD is one of {', '.join(SWEEPABLE)}; train_rows draws so many training rows, for all methods the same.",
)
@click.option("--keep", help="Save this method's sets in the store, from the first seed, under the tasks' names.")
@with_options(TRAINING_OPTIONS)
@with_options(DATA_OPTIONS)
@with_options(TRACKING_OPTIONS)
@on_option
@gpu_share_option
@click.pass_obj
def bench(
    settings: Settings,
    /,
    tasks: tuple[str, ...],
    more_tasks: tuple[str, ...],
    suite: Chosen | None,
    methods: tuple[str, ...],
    seeds: str,
    sweeps: tuple[str, ...],
    **options: Any,
) -> None:
    """Run tasks x methods x seeds and write the report; a finished cell is never run twice.

    \b
    adapter-registry bench mrpc sst2 --data sample --seeds 0-2
    adapter-registry bench --task mrpc --method after_layer --seeds 0
    adapter-registry bench mrpc --method houlsby --sweep learning_rate=5e-4,1e-3 --together
    adapter-registry bench mrpc --method pfeiffer --method full_fine_tuning --sweep train_rows=100,300,1000
    adapter-registry bench --suite paper.toml
    OMP_NUM_THREADS=1 adapter-registry bench mrpc sst2 --seeds 0-4 --on ray
    """
    chosen = list(dict.fromkeys(choose(method, method_names(), "method") for method in methods or METHODS))
    variants = make_variants(chosen, _free_sweeps(sweeps, options))
    seed_list = parse_seeds(seeds)
    names = (*tasks, *more_tasks)
    beside = (*names, *map(str, options["task_files"]))
    require(suite is None or not beside, "tasks", "none beside --suite, which has its own", " ".join(beside))
    specs = choose_tasks(names, options) if suite is None else suite[1]
    recipe = read_recipe(options["recipe"])
    keep = _find_kept(options["keep"], variants)
    from registry.store.registry import Registry
    from registry.training.trackers import Tracking

    tracking = Tracking(options["track"], options["track_to"], note)
    loaded = load_tasks(settings, specs, options)
    if keep is not None:
        backbone = settings.load_store_backbone(options["backbone"], "embedded")
    else:
        backbone = settings.load_backbone(_source(settings, options["backbone"]))
    grids = [_make_jobs(backbone, data, variants, seed_list, recipe, options) for data in loaded]
    _check_code(options["out"], grids)
    # Only now: a wrong choice runs nothing and leaves no store behind.
    registry = Registry.create(settings.store, backbone) if keep is not None else None
    with tracking:
        if options["on"] is not None:
            _run_on_ray(settings, backbone, grids, options, registry, tracking)
        else:
            for jobs in grids:
                _run_task(backbone, jobs, options, registry, tracking)
    write_tables(options["out"])
    if suite is not None:
        from registry.bench.submission import finish_suite

        for path in finish_suite(options["out"], *suite, registry, options["data"], offline=settings.offline):
            note(f"wrote {path}")


def _free_sweeps(texts: tuple[str, ...], options: dict[str, Any]) -> dict[str, tuple[int | float, ...]]:
    """Return the swept values, where no field has an option of its own as well."""
    sweeps = parse_sweeps(texts)
    given = training_choices(options)
    for field in sweeps:
        if given.get(field) is not None:
            raise ConfigError(f"--sweep {field}", f"no --{field.replace('_', '-')} beside it", given[field])
    return sweeps


def _find_kept(name: str | None, variants: list[Variant]) -> Variant | None:
    """Return the variant whose sets are kept."""
    if name is None:
        return None
    by_name = {variant.name: variant for variant in variants}
    found = by_name[choose(name, tuple(by_name), "--keep")]
    if found.method in ("majority", "full_fine_tuning"):
        raise ConfigError("--keep", "a method that leaves an adapter set", name)
    return found


def _make_jobs(
    backbone: Backbone,
    data: TaskData,
    variants: list[Variant],
    seeds: list[int],
    recipe: Recipe,
    options: dict[str, Any],
) -> list[CellJob]:
    from registry.bench.runner import cells_of, make_job

    by_name = {variant.name: variant for variant in variants}
    return [
        make_job(
            cell,
            data,
            backbone,
            recipe=recipe,
            overrides=training_choices(options),
            variant=by_name[cell.method],
            keeps=cell.method == options["keep"] and cell.seed == seeds[0],
        )
        for cell in cells_of([data.spec.name], list(by_name), seeds)
    ]


def _check_code(out: Path, grids: list[list[CellJob]]) -> None:
    """Refuse to mix versions of the code, and tell beforehand what will not be averaged."""
    from registry.bench.runner import check_code
    from registry.provenance import DIRTY, code_version

    for jobs in grids:
        check_code(out, jobs)
    if code_version().endswith(DIRTY) and len({job.cell.seed for jobs in grids for job in jobs}) > 1:
        note(f"the code has uncommitted changes ({code_version()}): seeds will be listed and not averaged")


def _run_task(
    backbone: Backbone, jobs: list[CellJob], options: dict[str, Any], registry: Registry | None, tracking: Tracking
) -> None:
    from registry.bench.runner import plan_passes, run_pass
    from registry.cli.progress import TrainingProgress
    from registry.training.trackers import observers

    for sharing in plan_passes(options["out"], jobs, MOST_TOGETHER if options["together"] else 1):
        logs = [_log_of(job, tracking, backbone) for job in sharing]
        with TrainingProgress(*(str(job.cell) for job in sharing)) as progress:
            observe = [observers(bar, log.observe) for bar, log in zip(progress.observers, logs, strict=True)]
            outcomes = run_pass(options["out"], sharing, backbone, observers=observe, keep_in=registry)
        for job, log, (record, is_new) in zip(sharing, logs, outcomes, strict=True):
            log.finish(record.status, record.scores)
            _tell(job, record, is_new, registry)


def _run_on_ray(
    settings: Settings,
    backbone: Backbone,
    grids: list[list[CellJob]],
    options: dict[str, Any],
    registry: Registry | None,
    tracking: Tracking,
) -> None:
    """Run the cells that have no record as tasks of Ray, as many at a time as there is room for."""
    from registry.bench.runner import find_record, plan_passes
    from registry.cli.progress import TrainingProgress
    from registry.cluster.connection import connect
    from registry.cluster.grid import Terms, run_grid
    from registry.training.trackers import observers

    out, passes = options["out"], []
    for jobs in grids:
        for sharing in plan_passes(out, jobs, MOST_TOGETHER if options["together"] else 1):
            if record := find_record(out, sharing[0].cell, sharing[0].settings):
                _tell(sharing[0], record, False, registry)
            else:
                passes.append(sharing)
    if not passes:
        return
    due = [job for sharing in passes for job in sharing]
    logs = {job: _log_of(job, tracking, backbone) for job in due}
    with connect(options["on"]), TrainingProgress(*(str(job.cell) for job in due), shows_waiting=False) as progress:
        terms = Terms.like(backbone, offline=settings.offline, gpu_share=options["gpu_share"])
        if not terms.are_met:
            gpus = f" and {terms.gpus:g} of a GPU" if terms.gpus else ""
            note(f"no node of the cluster has {terms.threads} CPUs{gpus} now; OMP_NUM_THREADS=1 asks for one; waiting")
        bars = {job: observers(bar, logs[job].observe) for job, bar in zip(due, progress.observers, strict=True)}
        for job, record in run_grid(out, passes, backbone, terms, lambda job, step: bars[job](step), registry):
            logs[job].finish(record.status, record.scores)
            _tell(job, record, True, registry)


def _log_of(job: CellJob, tracking: Tracking, backbone: Backbone) -> TrackedRun:
    from registry.training.trackers import settings_of

    return tracking.run(str(job.cell).replace(" ", "-"), settings_of(job.plan, job.data, backbone))


def _tell(job: CellJob, record: RunRecord, is_new: bool, registry: Registry | None) -> None:
    note(f"{job.cell}: {_outcome(record)}" + ("" if is_new else " (already there)"))
    if job.keeps and registry is not None and not is_new and job.cell.task not in registry:
        note(f"{job.cell}: nothing to keep; its weights are gone, so delete its record to run it again")


def _outcome(record: RunRecord) -> str:
    if record.status == "failed":
        return f"failed: {record.error}"
    if record.diverged:
        return f"diverged: {record.error}"
    return f"{record.main_metric} {record.scores[record.main_metric]:.4f} in {record.train_seconds:.0f} s"


@click.command()
@click.option("--folder", type=FOLDER, default=Path("demo"), show_default=True, help="A folder of its own, made anew.")
@click.pass_obj
def demo(settings: Settings, folder: Path) -> None:
    """Show everything in two minutes: offline, on the embedded backbone and the bundled sample."""
    from registry.cli.progress import run_demo

    run_demo(settings, folder)


def _source(settings: Settings, backbone: str | None) -> str:
    if backbone is not None:
        return backbone
    return settings.open_store().info.backbone.source if settings.has_store() else "embedded"
