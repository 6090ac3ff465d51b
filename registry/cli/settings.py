"""What every command is told, and how commands get a backbone and a registry from it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from registry.errors import BackboneMismatchError

if TYPE_CHECKING:
    from rich.console import Console

    from registry.model.backbone import Backbone
    from registry.store.registry import Registry
    from registry.store.store import Store
    from registry.tasks.loading import TaskData
    from registry.tasks.spec import TaskSpec


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
