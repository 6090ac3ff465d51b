"""Commands on what is stored: init, list, show, verify, alias, remove. Only init and verify need torch."""

from __future__ import annotations

import click
import msgspec

from registry.cli_settings import Settings, json_option, make_console, note, print_json
from registry.errors import RegistryError
from registry.schema import Manifest
from registry.store_errors import IntegrityError


@click.command()
@click.option("--backbone", default="embedded", show_default=True, help="embedded, a Hub id or a folder.")
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.pass_obj
def init(settings: Settings, backbone: str, revision: str | None) -> None:
    """Make a store for one backbone."""
    from registry.registry import Registry

    registry = Registry.create(settings.store, settings.load_backbone(backbone, revision))
    click.echo(f"store {settings.store} is ready for '{registry.catalog.info.backbone.source}'")


@click.command("list")
@json_option
@click.pass_obj
def list_sets(settings: Settings, as_json: bool) -> None:
    """List the adapter sets in the store."""
    catalog = settings.open_catalog()
    rows = []
    for name in catalog.names():
        versions = catalog.versions(name)
        manifest = catalog.manifest(name, versions[-1])
        rows.append((manifest, versions, catalog.aliases(name)))
    if as_json:
        print_json([_summary(manifest, versions, aliases) for manifest, versions, aliases in rows])
        return
    if not rows:
        note(f"store {settings.store} for '{catalog.info.backbone.source}' is empty")
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "newest", "aliases", "placement", "labels", "parameters", "bytes", "score", "data"):
        table.add_column(title, justify="right" if title in ("newest", "parameters", "bytes") else "left")
    for manifest, versions, aliases in rows:
        table.add_row(
            manifest.name,
            str(versions[-1]),
            ", ".join(f"{alias} -> {version}" for alias, version in aliases.items()) or "-",
            _placement(manifest),
            str(len(manifest.head.label_names)),
            f"{manifest.parameters:,}",
            f"{sum(entry.bytes for entry in manifest.files):,}",
            _score(manifest),
            _data(manifest),
        )
    make_console(120).print(table)


@click.command()
@click.argument("reference")
@json_option
@click.pass_obj
def show(settings: Settings, reference: str, as_json: bool) -> None:
    """Show all that is known of one stored set (mrpc, mrpc:3 or mrpc@best)."""
    catalog = settings.open_catalog()
    name, version = catalog.resolve(reference)
    content = {"version": version, **msgspec.to_builtins(catalog.manifest(name, version))}
    if as_json:
        print_json(content)
        return
    for key, value in content.items():
        if isinstance(value, dict):
            click.echo(f"{key}")
            for inner, found in value.items():
                click.echo(f"  {inner:<20} {found}")
        else:
            click.echo(f"{key:<22} {value}")


@click.command()
@click.argument("references", nargs=-1)
@json_option
@click.pass_obj
def verify(settings: Settings, references: tuple[str, ...], as_json: bool) -> None:
    """Re-hash, load and check what is stored: all of it, or the sets named."""
    registry = settings.open_registry()
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
    settings.open_catalog().set_alias(name, alias_name, version)
    click.echo(f"{name}@{alias_name} -> {name}:{version}")


@click.command()
@click.argument("reference")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(settings: Settings, reference: str, yes: bool) -> None:
    """Remove a version (mrpc:3), an alias (mrpc@best) or all of a name (mrpc)."""
    catalog = settings.open_catalog()
    name, _ = catalog.resolve(reference)
    what = reference if reference != name else f"all {len(catalog.versions(name))} versions of '{name}'"
    if not yes:
        click.confirm(f"remove {what} from {settings.store}?", abort=True, err=True)
    catalog.remove(reference)
    click.echo(f"removed {what}")


def _worst(errors: list[RegistryError], settings: Settings) -> RegistryError:
    found = "; ".join(sorted({type(error).__name__ for error in errors}))
    if len(errors) == 1:
        return errors[0]
    return IntegrityError(settings.store, "check", "no problem", f"{len(errors)} problems ({found})")


def _summary(manifest: Manifest, versions: list[int], aliases: dict[str, int]) -> dict[str, object]:
    return {
        "name": manifest.name,
        "versions": versions,
        "aliases": aliases,
        "task": manifest.task,
        "placement": _placement(manifest),
        "label_names": list(manifest.head.label_names),
        "parameters": manifest.parameters,
        "bytes": sum(entry.bytes for entry in manifest.files),
        "main_metric": manifest.main_metric,
        "scores": manifest.scores,
        "data": manifest.data.source if manifest.data else None,
        "sample": manifest.data.sample if manifest.data else None,
        "created": manifest.created,
    }


def _placement(manifest: Manifest) -> str:
    return manifest.adapter.placement if manifest.adapter else "head only"


def _score(manifest: Manifest) -> str:
    if manifest.main_metric is None or manifest.main_metric not in manifest.scores:
        return "-"
    return f"{manifest.main_metric} {manifest.scores[manifest.main_metric]:.3f} ({manifest.split})"


def _data(manifest: Manifest) -> str:
    if manifest.data is None:
        return "-"
    return "sample" if manifest.data.sample else f"{manifest.data.train_rows:,} rows"
