"""The command that trains adapter sets and saves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
import msgspec

from registry.cli.data import DATA_OPTIONS, choose_tasks, load_tasks
from registry.cli.options import (
    EVALUATION_STEPS,
    SET_OPTIONS,
    TRACKING_OPTIONS,
    TRAINING_OPTIONS,
    Settings,
    adapter_choices,
    backbone_option,
    chosen_recipe,
    gpu_share_option,
    head_choices,
    is_given,
    json_option,
    note,
    on_option,
    training_choices,
    with_options,
)
from registry.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    NonFiniteLossError,
    TrainingError,
    TrainingInterrupted,
)
from registry.schema import Reference
from registry.training.recipes import Recipe, read_recipe
from registry.validation import check_name, choose, require

if TYPE_CHECKING:
    from registry.model.backbone import Backbone
    from registry.store.registry import Registry
    from registry.store.store import Store
    from registry.tasks.task_data import TaskData
    from registry.training.checkpoint import Checkpoint
    from registry.training.fit import FitJob, Fitted
    from registry.training.origin import Repetition
    from registry.training.plan import Plan
    from registry.training.trackers import TrackedRun, Tracking

CHECKPOINTS = ".checkpoints"
BESIDE_FROM = {
    *("repeated", "backbone", "data", "name", "resume", "restart"),
    *("keep_diverged", "track", "track_to", "as_json", "metrics", "on", "gpu_share"),
}


@click.command()
@click.argument("tasks", nargs=-1, metavar="TASK...")
@with_options(TRAINING_OPTIONS)
@with_options(SET_OPTIONS)
@with_options(DATA_OPTIONS)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides initial weights, row order, dropout.")
@click.option("--name", help="Name to save under; the task's name by default.")
@backbone_option
@click.option("--together", is_flag=True, help="Train all TASKs in one pass of the backbone; each learns as if alone.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of an interrupted training.")
@click.option("--restart", is_flag=True, help="Start anew, and lose the checkpoint of an interrupted training.")
@click.option("--keep-diverged", is_flag=True, help="Save a set whose loss rose instead of falling.")
@click.option(
    "--early-stopping",
    type=click.IntRange(min=1),
    metavar="N",
    help="Hold out part of the training rows and stop after N evaluations without a better score on them.",
)
@click.option("--start-from", metavar="REF", help="Go on from the adapter of a stored set, with a head of its own.")
@click.option("--from", "repeated", metavar="REF", help="Repeat the training of a stored set, as its next version.")
@with_options(TRACKING_OPTIONS)
@on_option
@gpu_share_option
@json_option
@click.pass_obj
def train(settings: Settings, /, tasks: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Train one adapter set per TASK, score it, and save it in the store.

    \b
    adapter-registry train sst2 --data sample
    adapter-registry train imdb --recipe roberta-patch --epochs 1
    adapter-registry train mrpc sst2 imdb --together
    adapter-registry train mails --method fusion --members mrpc,sst2@best
    adapter-registry train --data mails.csv --text-col body --label-col folder
    adapter-registry train --from mrpc:3
    """
    from registry.training.trackers import Tracking

    if options["name"] is not None:
        check_name(options["name"])
    tracking = Tracking(options["track"], options["track_to"], note)
    if options["repeated"] is not None:
        _repeat(settings, tasks, options, as_json, tracking)
    else:
        _train_tasks(settings, tasks, options, as_json, tracking)


def _train_tasks(
    settings: Settings, tasks: tuple[str, ...], options: dict[str, Any], as_json: bool, tracking: Tracking
) -> None:
    specs = choose_tasks(tasks, options)
    if options["name"] is not None and len(specs) > 1:
        raise ConfigError("--name", "one task", f"{len(specs)} tasks")
    if options["together"] and len({spec.name for spec in specs}) < len(specs):
        raise ConfigError("tasks", "each once with --together", " ".join(tasks))
    choices = {"method": options["method"], **adapter_choices(options)}
    recipe = read_recipe(chosen_recipe(options)).with_choices(choices, head_choices(options))
    from registry.store.registry import Registry

    loaded = load_tasks(settings, specs, options)
    backbone = settings.load_store_backbone(options["backbone"], recipe.backbone)
    store = settings.open_store() if settings.has_store() else None
    plans = [_make_plan(data, backbone, recipe, options, store) for data in loaded]
    registry = Registry.create(settings.store, backbone)  # only now: a wrong choice leaves no store behind
    if options["start_from"] is not None:
        from registry.training.train_set import load_start

        given = [name for name, value in choices.items() if value is not None]
        require(not given, "--start-from", "no other choices of an adapter beside it", ", ".join(given))
        options = {**options, "start": load_start(registry, options["start_from"])}
        adapter = options["start"].adapter_set.adapter_config
        plans = [msgspec.structs.replace(plan, adapter=adapter) for plan in plans]
    planned = list(zip(loaded, plans, strict=True))
    passes = [planned] if options["together"] else [[one] for one in planned]
    with tracking:
        if options["on"] is not None:
            _train_on_ray(settings, registry, passes, options, as_json, tracking)
        else:
            for sharing in passes:
                _train_pass(settings, registry, sharing, options, as_json, tracking)


def _repeat(
    settings: Settings, tasks: tuple[str, ...], options: dict[str, Any], as_json: bool, tracking: Tracking
) -> None:
    """Train a stored set again as its manifest says, save it as the next version, and compare the two."""
    asked = f"--from {options['repeated']}"
    require(not tasks, asked, "no TASK beside it, as the set has one", " ".join(tasks))
    given = [name for name in options if name not in BESIDE_FROM and is_given(name)]
    options_of = {each.name: each.opts[0] for each in click.get_current_context().command.params}
    told = " ".join(options_of[name] for name in given)
    require(not given, asked, "no choice beside it, as it repeats all of them", told)
    store = settings.open_store()
    name, version = store.resolve(options["repeated"])
    manifest = store.manifest(name, version)
    for metric in options["metrics"]:  # known by now, which is all that one of one's own needs
        choose(metric, tuple(manifest.scores), f"{asked} --metric")
    from registry.training.origin import read_repetition

    repetition = read_repetition(Reference(name=name, version=version), manifest)
    fits = settings.dtype in ("auto", repetition.dtype)
    require(fits, "--dtype", f"{repetition.dtype}, in which {repetition.reference} was trained", settings.dtype)
    data = repetition.load_rows(options["data"] if is_given("data") else None, offline=settings.offline)
    registry = replace(settings, dtype=repetition.dtype).open_registry(options["backbone"])
    options = {**options, "name": options["name"] or name}
    with tracking:
        if options["on"] is not None:
            _train_on_ray(settings, registry, [[(data, repetition.plan)]], options, as_json, tracking, repetition)
        else:
            _train_pass(settings, registry, [(data, repetition.plan)], options, as_json, tracking, repetition)


def _make_plan(
    data: TaskData, backbone: Backbone, recipe: Recipe, options: dict[str, Any], store: Store | None
) -> Plan:
    from registry.training.plan import make_plan

    overrides = training_choices(options)
    if options["early_stopping"]:
        overrides.update(
            patience=options["early_stopping"],
            select_best=overrides["select_best"] or data.spec.main_metric,
            evaluate_every=overrides["evaluate_every"] or recipe.training.evaluate_every or EVALUATION_STEPS,
        )
    return make_plan("recipe", data, backbone, options["seed"], recipe, store=store, **overrides)


def _train_pass(
    settings: Settings,
    registry: Registry,
    planned: Sequence[tuple[TaskData, Plan]],
    options: dict[str, Any],
    as_json: bool,
    tracking: Tracking,
    repetition: Repetition | None = None,
) -> None:
    """Train some tasks in one pass of the backbone and save each; one that diverges is told after the others."""
    from registry.cli.progress import TrainingProgress, stop_between_steps
    from registry.training.fit import FitJob, fit_together
    from registry.training.trackers import observers, settings_of

    names = [options["name"] or data.spec.name for data, _ in planned]
    for name, (data, plan) in zip(names, planned, strict=True):
        note(f"{name}: {len(data.train):,} rows to train on, {len(data.reported):,} to score, recipe {plan.recipe}")
    checkpoints = [
        _checkpoint(settings, registry, name, data, plan, options)
        for name, (data, plan) in zip(names, planned, strict=True)
    ]
    logs = [
        tracking.run(name, settings_of(plan, data, registry.backbone))
        for name, (data, plan) in zip(names, planned, strict=True)
    ]
    with TrainingProgress(*names) as progress, stop_between_steps() as should_stop:
        observing = [observers(observe, log.observe) for observe, log in zip(progress.observers, logs, strict=True)]
        jobs = [
            FitJob(plan, data, checkpoint, observe, None, registry.load_members(plan.adapter), options.get("start"))
            for (data, plan), checkpoint, observe in zip(planned, checkpoints, observing, strict=True)
        ]
        try:
            outcomes = fit_together(jobs, registry.backbone, should_stop=should_stop)
        except TrainingInterrupted:
            if len(jobs) > 1:
                note(f"checkpoints of {', '.join(names)} are kept in {settings.folder / CHECKPOINTS}")
            raise
    _keep(registry, list(zip(names, jobs, outcomes, logs, strict=True)), options, as_json, repetition)


def _train_on_ray(
    settings: Settings,
    registry: Registry,
    passes: Sequence[Sequence[tuple[TaskData, Plan]]],
    options: dict[str, Any],
    as_json: bool,
    tracking: Tracking,
    repetition: Repetition | None = None,
) -> None:
    """Train each pass as a task of Ray and save its sets here; no state is kept of one that is interrupted."""
    for name in ("resume", "restart"):
        require(not options[name], f"--{name}", "none beside --on, which keeps no checkpoint", True)
    from registry.cli.progress import TrainingProgress
    from registry.cluster.connection import ClusterError, connect
    from registry.cluster.grid import Terms, fit_jobs, run_passes
    from registry.training.fit import FitJob
    from registry.training.trackers import observers, settings_of

    backbone, logs, bars = registry.backbone, {}, {}
    start = options.get("start")
    named = [
        [FitJob(plan, data, members=registry.load_members(plan.adapter), start=start) for data, plan in sharing]
        for sharing in passes
    ]
    names = {job: options["name"] or job.data.spec.name for jobs in named for job in jobs}
    with connect(options["on"]), TrainingProgress(*names.values(), shows_waiting=False) as progress:
        for (job, name), bar in zip(names.items(), progress.observers, strict=True):
            logs[job] = tracking.run(name, settings_of(job.plan, job.data, backbone))
            bars[job] = observers(bar, logs[job].observe)
        terms = Terms.like(backbone, offline=settings.offline, gpu_share=options["gpu_share"])
        for jobs, outcomes in run_passes(named, fit_jobs, terms, lambda job, step: bars[job](step)):
            if isinstance(outcomes, str):
                raise ClusterError(f"train {names[jobs[0]]}", "a worker that ends its work", outcomes, "try again")
            ended = [(names[job], job, outcome, logs[job]) for job, outcome in zip(jobs, outcomes, strict=True)]
            _keep(registry, ended, options, as_json, repetition)


def _keep(
    registry: Registry,
    ended: Sequence[tuple[str, FitJob, Fitted | NonFiniteLossError, TrackedRun]],
    options: dict[str, Any],
    as_json: bool,
    repetition: Repetition | None,
) -> None:
    """Save the sets of a pass; one that diverged is told after the others."""
    from registry.cli.progress import save_trained

    errors: list[TrainingError] = []
    for name, job, outcome, log in ended:
        if isinstance(outcome, NonFiniteLossError):
            log.finish("failed")
            error: TrainingError = outcome
        else:
            log.finish("finished", outcome.scores)
            diverged = _error_of(name, outcome, options["keep_diverged"])
            if diverged is None:
                save_trained(registry, name, job, outcome, as_json, repetition)
                continue
            error = diverged
        errors.append(error)
        if len(ended) > 1:
            note(f"{name}: not saved: {error}")
    if errors:
        raise errors[0]


def _error_of(name: str, fitted: Fitted, keep_diverged: bool) -> DivergedError | None:
    """Return why a fitted set is not to be saved, None where it is; a diverged one that is wanted is told."""
    if fitted.result is None or not fitted.result.diverged:
        return None
    error = DivergedError(name, fitted.result.first_loss, fitted.result.final_loss)
    if not keep_diverged:
        return error
    note(f"{name}: diverged: the loss rose from {error.first:.3g} to {error.last:.3g}")
    return None


def _checkpoint(
    settings: Settings, registry: Registry, name: str, data: TaskData, plan: Plan, options: dict[str, Any]
) -> Checkpoint:
    """Return where a training keeps its state; one that would be lost there is told first.

    Raises:
        CheckpointError: a state is there, and neither --resume nor --restart was given.
    """
    from registry.training.checkpoint import Checkpoint

    path = settings.folder / CHECKPOINTS / f"{name}.safetensors"
    if path.exists() and not (options["resume"] or options["restart"]):
        raise CheckpointError(path, "no checkpoint", "one of an interrupted training", "start anew over")
    if options["resume"] and not path.exists():
        note(f"{name}: no checkpoint to resume from; the training starts at its first step")
    return Checkpoint(
        path=path,
        settings=plan.digest(registry.backbone, data),
        resume=options["resume"],
        told=plan.tell(registry.backbone, data),
    )
