"""The options that commands share: the settings in front of a command, and a training's choices."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from registry.config import METHODS, PLACEMENTS, TARGETS, Activation, HeadForm, Pooling
from registry.errors import BackboneMismatchError, BackboneNotFoundError, ConfigError
from registry.store.errors import NotAStoreError
from registry.tasks.spec import OF_ONE_CLASS
from registry.training.trackers import TRACKERS
from registry.validation import choose, printable, require

if TYPE_CHECKING:
    from rich.console import Console

    from registry.model.backbone import Backbone
    from registry.store.registry import Registry
    from registry.store.store import Store


@dataclass(frozen=True)
class Settings:
    """The options in front of the command."""

    store: Path | str
    device: str
    dtype: str
    offline: bool
    cache: str | None = None

    def open_store(self) -> Store:
        """Return the store as names and manifests, without torch."""
        from registry.store.store import open_store

        return open_store(self.store, self.cache)

    def has_store(self) -> bool:
        """Return whether there is a store already."""
        try:
            self.open_store()
        except NotAStoreError:
            return False
        return True

    @property
    def folder(self) -> Path:
        """Where files beside the store are kept on this machine, such as checkpoints."""
        return self.store if isinstance(self.store, Path) else Path()

    def load_backbone(self, source: str, revision: str | None = None) -> Backbone:
        """Return the frozen encoder, telling on stderr what is loaded."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from registry.model.backbone import Backbone
        from registry.model.machine import is_slow

        source = _whole_path(source)
        backbone = Backbone.load(source, device=self.device, dtype=self.dtype, revision=revision, offline=self.offline)
        info = backbone.info
        precision = str(backbone.dtype).removeprefix("torch.")
        note(
            f"backbone {source}: {info.family}, {info.layers} layers, H {info.hidden_size}, "
            f"{info.parameters:,} parameters, {precision} on {backbone.device}"
        )
        if is_slow(backbone.dtype, backbone.device):
            note(f"this processor has no instructions for {precision} products; --dtype float32 is many times as fast")
        return backbone

    def open_registry(self, backbone: str | None = None) -> Registry:
        """Return the registry of the store, with the backbone it belongs to.

        Args:
            backbone: where that is now; where it was when the store was made when None.

        Raises:
            BackboneNotFoundError: it is not there.
            BackboneMismatchError: another backbone is there.
        """
        from registry.store.registry import Registry

        source = self.open_store().info.backbone.source
        return Registry(self.store, self.load_store_backbone(backbone, source))

    def load_store_backbone(self, backbone: str | None, fallback: str) -> Backbone:
        """Return the backbone of the store, or ``backbone`` (else ``fallback``) where a store is still to be made.

        Raises:
            BackboneNotFoundError: it is not where it was when the store was made.
            BackboneMismatchError: the one named is not the one of the store.
        """
        if not self.has_store():
            return self.load_backbone(backbone or fallback)
        info = self.open_store().info.backbone
        if backbone is not None:
            found = self.load_backbone(backbone)
            if found.info.fingerprint != info.fingerprint:
                hint = f"it belongs to '{info.source}'; leave --backbone out, or name another --store"
                both = ((info.source, info), (backbone, found.info))
                expected, told = (f"{source} ({one.fingerprint[:12]})" for source, one in both)
                raise BackboneMismatchError(f"store {self.store}", "backbone", expected, told, hint)
            return found
        beside = self.folder.absolute().parent / info.source
        source = str(beside) if not Path(info.source).exists() and beside.is_dir() else info.source
        try:
            return self.load_backbone(source, info.revision)
        except BackboneNotFoundError as err:
            if Path(source).exists():
                raise
            hint = "--backbone or ADAPTER_REGISTRY_BACKBONE names the place where it is now"
            expected = f"the backbone that store {self.store} was made with"
            raise BackboneNotFoundError(info.source, expected, "no such folder", hint) from err


def _whole_path(source: str) -> str:
    """Return the absolute path of a local folder, so that a store finds it from wherever the next command is given."""
    return str(Path(source).absolute()) if source != "embedded" and Path(source).is_dir() else source


def note(text: str) -> None:
    """Tell something that is no data on stderr, line by line."""
    click.echo("\n".join(map(printable, text.split("\n"))), err=True)


def print_json(content: Any) -> None:
    """Print data for programs on stdout, one line per record when it is a list."""
    for record in content if isinstance(content, list) else [content]:
        click.echo(json.dumps(record, ensure_ascii=False, default=str))


def scores_text(scores: Mapping[str, float], positive_label: str | None, digits: int) -> str:
    """Return scores for a reader, with the class that F1 is of."""
    one = (*OF_ONE_CLASS, "average_precision")
    of = {} if positive_label is None else dict.fromkeys(one, f" (of '{positive_label}')")
    return "  ".join(f"{metric} {value:.{digits}f}{of.get(metric, '')}" for metric, value in scores.items())


def make_console(width: int) -> Console:
    """Return a console on stdout of at least ``width`` columns; NO_COLOR takes bold letters away too."""
    from rich.console import Console

    console = Console(color_system=None if os.environ.get("NO_COLOR") else "auto")
    console.width = max(console.width, width)
    return console


backbone_option = click.option(
    "--backbone",
    envvar="ADAPTER_REGISTRY_BACKBONE",
    show_envvar=True,
    help="Where the store's backbone is now, if not where it was; for a store still to be made, which one.",
)


def _check_on(ctx: click.Context, parameter: click.Parameter, on: str | None) -> str | None:
    """Refuse an address that is none, or a share of a GPU without one, and tell how Ray is installed, at once."""
    if on is None:
        require(ctx.params.get("gpu_share", 1) == 1, "--gpu-share", "--on beside it", "none")
    else:
        from registry.cluster.connection import check_address

        check_address(on)
    return on


on_option = click.option(
    "--on",
    metavar="ray[://HOST:PORT]",
    callback=_check_on,
    help="Work on Ray: on this machine or the cluster of RAY_ADDRESS, or on the one of an address.  [extra: ray]",
)
gpu_share_option = click.option(
    "--gpu-share",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="With --on, the share of a GPU that a pass has; 0.25 lets four share one.",
)
EVALUATION_STEPS = 50
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of text.")
F = TypeVar("F", bound=Callable[..., Any])

TRAINING_OPTIONS = (
    click.option("--recipe", default="default", show_default=True, help="A shipped recipe or the path of a TOML file."),
    click.option("--epochs", type=int, help="Passes over the training rows."),
    click.option("--learning-rate", type=float, help="Highest learning rate."),
    click.option("--batch-size", type=int, help="Rows of one pass of the backbone."),
    click.option(
        "--gradient-accumulation-steps",
        type=int,
        metavar="N",
        help="Passes whose gradients make one step; 1 as a rule.",
    ),
    click.option("--max-length", type=int, help="Tokens a row is cut to."),
    click.option("--weight-decay", type=float, help="AdamW's weight decay."),
    click.option("--class-weights", help="Weights of the labels in the loss: balanced, or in their order 1,3.5."),
    click.option("--label-smoothing", type=float, help="Share of a row's target that goes to all labels alike."),
    click.option("--evaluate-every", type=int, metavar="N", help="Score on held-out training rows every N steps."),
    click.option("--select-best", metavar="METRIC", help="Keep the weights with the best score there, not the last."),
    click.option("--calibrate", is_flag=True, default=None, help="Fit the probabilities to held-out training rows."),
    click.option(
        "--tune-thresholds",
        is_flag=True,
        default=None,
        help="Choose there from which probability on each label of several is said.",
    ),
)

SET_OPTIONS = (
    click.option("--method", help=f"{', '.join(METHODS)}: by the recipe of that name, where no other is given."),
    click.option("--placement", help=f"Where bottlenecks join a layer: {', '.join(PLACEMENTS)}."),
    click.option("--reduction-factor", type=int, help="H / M; must divide H."),
    click.option("--activation", help=f"{', '.join(get_args(Activation))}."),
    click.option("--rank", type=int, help="Of LoRA's changes."),
    click.option("--alpha", type=float, help="LoRA's scale times the rank."),
    click.option("--targets", help=f"Products that LoRA or (IA)3 changes, with commas: {', '.join(TARGETS)}."),
    click.option("--prefix-length", type=int, help="Keys and values in front of every row, a layer."),
    click.option("--members", help="Stored sets that fusion joins, with commas: a,b:2,c@best."),
    click.option("--layers", help="Layers that get an adapter, counted from 0: 3,4,5."),
    click.option("--adapter-dropout", type=float, help="Share of bottleneck activations dropped in training."),
    click.option("--layer-norms/--no-layer-norms", default=None, help="Train the task's own layer norms too."),
    click.option("--pooling", help="cls, mean or pooler."),
    click.option(
        "--head-form", help=f"The last layer alone or a dense one before it: {', '.join(get_args(HeadForm))}."
    ),
    click.option("--head-dropout", type=float, help="Share of what enters the head's layers dropped in training."),
    click.option("--head-bias/--no-head-bias", default=None, help="Give the head's last layer a bias."),
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


def is_given(name: str) -> bool:
    """Return whether an option of the running command was written out."""
    return click.get_current_context().get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def adapter_choices(options: dict[str, Any]) -> dict[str, Any]:
    """Return the choices of a method's configuration that were given, under the names a recipe uses."""
    return {
        "placement": _one_of(PLACEMENTS, options, "placement"),
        "reduction_factor": options["reduction_factor"],
        "activation": _one_of(get_args(Activation), options, "activation"),
        "rank": options["rank"],
        "alpha": options["alpha"],
        "targets": _targets(options["targets"]),
        "length": options["prefix_length"],
        "members": _members(options["members"]),
        "layers": _layers(options["layers"]),
        "dropout": options["adapter_dropout"],
        "layer_norms": options["layer_norms"],
    }


def chosen_recipe(options: dict[str, Any]) -> str:
    """Return the recipe that was given, else that of the method.

    Raises:
        ConfigError: an unknown method.
    """
    method = _one_of(METHODS, options, "method")
    recipe: str = options["recipe"]
    return recipe if method in (None, METHODS[0]) or is_given("recipe") else str(method)


def head_choices(options: dict[str, Any]) -> dict[str, Any]:
    """Return the head choices that were given, under the names a recipe uses."""
    return {
        "pooling": _one_of(get_args(Pooling), options, "pooling"),
        "form": _one_of(get_args(HeadForm), options, "head_form"),
        "dropout": options["head_dropout"],
        "bias": options["head_bias"],
        "trained": options["train_head"],
    }


def training_choices(options: dict[str, Any]) -> dict[str, Any]:
    """Return the training choices that were given, under the names a recipe uses."""
    names = (
        *("epochs", "learning_rate", "batch_size", "gradient_accumulation_steps", "max_length", "weight_decay"),
        *("label_smoothing", "evaluate_every", "select_best", "calibrate", "tune_thresholds"),
    )
    given = {name: options[name] for name in names}
    if options["select_best"] and not options["evaluate_every"]:
        given["evaluate_every"] = EVALUATION_STEPS
    return {**given, "class_weights": _class_weights(options["class_weights"])}


def _class_weights(text: str | None) -> tuple[float, ...] | str | None:
    if text is None or text == "balanced":
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as err:
        raise ConfigError("--class-weights", "balanced, or numbers with commas, such as 1,3.5", text) from err


def _one_of(names: tuple[str, ...], options: dict[str, Any], field: str) -> str | None:
    return None if (value := options[field]) is None else choose(value, names, field)


def _targets(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(choose(each.strip(), TARGETS, "targets") for each in text.split(","))


def _members(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(each.strip() for each in text.split(","))


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as err:
        raise ConfigError("layers", "whole numbers with commas, such as 3,4,5", text) from err
