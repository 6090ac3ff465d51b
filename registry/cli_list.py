"""The ``list`` command: one line for each name in a store, whether there are three of them or ten thousand."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from registry.cli_settings import Settings, json_option, note, print_json, printable
from registry.listing import ListedSet, Summary, list_sets
from registry.store_errors import IntegrityError, StoreError

_TITLES = ("name", "newest", "aliases", "placement", "labels", "parameters", "bytes", "score", "data")
_NUMBERS = ("newest", "parameters", "bytes")


@click.command("list")
@json_option
@click.pass_obj
def list_command(settings: Settings, as_json: bool) -> None:
    """List the adapter sets in the store; a damaged one is told of and does not hide the others."""
    view = settings.open_catalog()
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
