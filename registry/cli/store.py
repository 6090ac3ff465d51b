"""Commands on what is stored: init, show, verify, alias, remove, export, import, merge, gc.

Only init, verify, import and merge need torch.

The ``list`` command: one line for each name in a store, whether there are three of them or ten thousand.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from registry.cli.options import Settings, backbone_option, is_given, json_option, note, print_json, printable
from registry.config import FusionConfig
from registry.errors import ConfigError, RegistryError
from registry.schema import Reference
from registry.store.errors import IntegrityError, StoreError
from registry.store.listing import ListedSet, Summary, list_sets
from registry.validation import from_plain, require

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


@click.command()
@click.option("--backbone", default="embedded", show_default=True, help="embedded, a Hub id or a folder.")
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.option("--shipped", is_flag=True, help="Put the trained sets into it that come with the package.")
@click.pass_obj
def init(settings: Settings, backbone: str, revision: str | None, shipped: bool) -> None:
    """Make a store for one backbone."""
    if shipped:
        from registry.store.shipped import copy_shipped

        for name in ("backbone", "revision"):
            require(not is_given(name), f"--{name}", "none beside --shipped, whose sets have theirs", backbone)
        click.echo(f"store {settings.store} has {', '.join(map(str, copy_shipped(settings.store)))}")
        return
    from registry.store.registry import Registry

    registry = Registry.create(settings.store, settings.load_backbone(backbone, revision))
    click.echo(f"store {settings.store} is ready for '{registry.store.info.backbone.source}'")


@click.command()
@click.argument("reference")
@json_option
@click.pass_obj
def show(settings: Settings, reference: str, as_json: bool) -> None:
    """Show all that is known of one stored set (mrpc, mrpc:3 or mrpc@best)."""
    store = settings.open_store()
    name, version = store.resolve(reference)
    manifest = store.manifest(name, version)
    content = {"version": version, **msgspec.to_builtins(manifest)}
    if as_json:
        print_json(content)
        return
    if isinstance(manifest.adapter, FusionConfig):
        told = [f"{member.reference} {member.digest}" for member in manifest.adapter.members]
        content["adapter"]["members"] = ", ".join(told)
    for key, value in content.items():
        if isinstance(value, dict):
            click.echo(f"{key}")
            for inner, found in value.items():
                click.echo(f"  {printable(inner):<20} {printable(found)}")
        else:
            click.echo(f"{key:<22} {printable(value)}")


@click.command()
@click.argument("references", nargs=-1)
@backbone_option
@json_option
@click.pass_obj
def verify(settings: Settings, references: tuple[str, ...], backbone: str | None, as_json: bool) -> None:
    """Re-hash, load and check what is stored: all of it, or the sets named."""
    registry = settings.open_registry(backbone)
    problems = registry.verify(references or None)
    checked = len(references) or len(registry)
    if as_json:
        print_json([{"reference": each.reference, "error": str(each.error)} for each in problems])
    for problem in problems:
        note(f"{problem.reference}: {problem.error}")
    if problems:
        raise _worst([problem.error for problem in problems], settings)
    if not as_json:
        click.echo(f"{checked} of {checked} names are whole and fit the backbone")


@click.command()
@click.argument("name")
@click.argument("alias_name", metavar="ALIAS")
@click.argument("version", type=int)
@click.pass_obj
def alias(settings: Settings, name: str, alias_name: str, version: int) -> None:
    """Point NAME@ALIAS at a version."""
    settings.open_store().set_alias(name, alias_name, version)
    click.echo(f"{name}@{alias_name} -> {name}:{version}")


@click.command()
@click.argument("reference")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(settings: Settings, reference: str, yes: bool) -> None:
    """Remove a version (mrpc:3), an alias (mrpc@best) or all of a name (mrpc)."""
    store = settings.open_store()
    parsed = Reference.parse(reference)
    if parsed.alias is None:  # an alias can be removed even if it cannot be read
        store.resolve(parsed)
    whole = parsed.alias is None and parsed.version is None
    what = f"all {len(store.versions(parsed.name))} versions of '{parsed.name}'" if whole else reference
    if not yes:
        click.confirm(f"remove {what} from {settings.store}?", abort=True, err=True)
    store.remove(reference)
    click.echo(f"removed {what}")


@click.command("export")
@click.argument("reference")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace a file that is there already.")
@click.pass_obj
def export_command(settings: Settings, reference: str, file: Path, force: bool) -> None:
    """Write a stored set into one FILE, for another store of the same backbone."""
    from registry.store.archive import export_version

    store = settings.open_store()
    name, version = store.resolve(reference)
    path = export_version(store, f"{name}:{version}", file, overwrite=force)
    click.echo(f"{name}:{version} -> {path} ({path.stat().st_size:,} bytes)")
    adapter = store.manifest(name, version).adapter
    if isinstance(adapter, FusionConfig):
        members = ", ".join(member.reference for member in adapter.members)
        note(f"a store takes it in once it has its members under their names: export {members} too")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Store it under this name instead of its own.")
@click.pass_obj
def import_command(settings: Settings, file: Path, name: str | None) -> None:
    """Check an exported FILE and store it as the next version of its name; save_pretrained's folders are taken too."""
    from registry.store.tensors import import_set

    reference = import_set(settings.open_store(), file, name)
    click.echo(f"{file} -> {reference}")


@click.command()
@click.argument("references", nargs=-1, required=True, metavar="REF REF...")
@click.option("--name", required=True, help="Of the merged set.")
@click.option("--weight", "weights", help="One for each set, with commas: .7,.3; all alike by default.")
@click.option("--how", default="average", show_default=True, help="average, sum (task arithmetic), ties or dare.")
@click.option("--density", type=float, default=0.5, show_default=True, help="Share that ties and dare keep.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides what dare drops.")
@backbone_option
@click.pass_obj
def merge(settings: Settings, /, references: tuple[str, ...], name: str, backbone: str | None, **options: Any) -> None:
    """Make one set of several of one configuration and labels; 'predict a+b' averages what sets of any kind answer.

    \b
    adapter-registry merge mails:1 mails:2 --name mails-mean
    adapter-registry merge a@best b:2 --weight .7,.3 --how ties --name both
    """
    from registry.config import Merging

    merging = from_plain(Merging, {each: options[each] for each in ("how", "density", "seed")})
    weights = None if options["weights"] is None else _numbers(options["weights"])
    registry = settings.open_registry(backbone)
    reference = registry.merge(name, references, weights, merging)
    lost = registry.manifest(reference).merging_loss
    told = "" if lost is None else f"; its rank cannot hold {lost:.1%} of their changes"
    click.echo(f"{' + '.join(references)} -> {reference}{told}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as err:
        raise ConfigError("--weight", "numbers with commas, such as .7,.3", text) from err


@click.command()
@click.option("--older-than", default=3600.0, show_default=True, help="Seconds without a change that make it garbage.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.pass_obj
def gc(settings: Settings, older_than: float, dry_run: bool) -> None:
    """Remove what killed writers left in the store's tmp folder; nothing visible is touched."""
    found = settings.open_store().collect_garbage(older_than=older_than, dry_run=dry_run)
    for entry in found:
        note(f"tmp/{entry}")
    click.echo(f"{'would remove' if dry_run else 'removed'} {len(found)} leftovers of dead writers")


def _worst(errors: list[RegistryError], settings: Settings) -> RegistryError:
    found = "; ".join(sorted({type(error).__name__ for error in errors}))
    if len(errors) == 1:
        return errors[0]
    return IntegrityError(settings.store, "check", "no problem", f"{len(errors)} problems ({found})")
