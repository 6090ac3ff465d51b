"""Commands between a store and the Hub, or another store: push, pull, sync."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from registry.cli.options import Settings, backbone_option, json_option, print_json, with_options
from registry.cli.store import IMPORT_OPTIONS, import_from_hub, note_members
from registry.errors import ConfigError
from registry.schema import EXPORT_FORMATS, ExportFormat


class Place(click.ParamType):  # type: ignore[type-arg]
    """A folder of a store, as a path, or an address on object storage, as it was written."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Return which of the two a text is."""
        if isinstance(value, str) and "://" in value:
            return value
        folder: Path = click.Path(path_type=Path, file_okay=False).convert(value, param, ctx)
        return folder


@click.command()
@click.argument("reference")
@click.argument("repository", metavar="hub:ORG/NAME")
@click.option("--license", help="The Hub's short name of one, such as apache-2.0; asked for in a terminal.")
@click.option("--private", is_flag=True, help="Only its owners see the repository.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(EXPORT_FORMATS),
    default="archive",
    show_default=True,
    help="archive is for other stores of the same backbone; the others are what those libraries read.",
)
@click.option(
    "--force", is_flag=True, help="Add a commit to a repository, or replace a dry run, that is there already."
)
@click.option(
    "--dry-run",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the files into this folder, and ask the network nothing.",
)
@backbone_option
@click.pass_obj
def push(
    settings: Settings, /, reference: str, repository: str, license: str | None, kind: ExportFormat, **options: Any
) -> None:
    """Put a stored set and its model card into a repository of the Hub, in one commit.

    The card is made of what the store knows: backbone, data, scores with their intervals, parameters, recipe. Only
    safetensors, JSON and the card are sent. The token is that of 'hf auth login', or HF_TOKEN.

    \b
    adapter-registry push mrpc@best hub:me/mrpc --license apache-2.0
    adapter-registry push mrpc hub:me/mrpc --license mit --format transformers --dry-run folder
    """
    from registry.interop.hub import check_writable

    backbone, chosen = options.pop("backbone"), license or _ask_license()
    store = settings.open_store()
    name, version = store.resolve(reference)
    if not options["dry_run"]:
        check_writable(repository, offline=settings.offline)  # before seconds go into imports and a backbone
    from registry.interop.card import push_set

    source = store if kind == "archive" else settings.open_registry(backbone)
    exact = f"{name}:{version}"
    place = push_set(source, exact, repository, license=chosen, format=kind, offline=settings.offline, **options)
    told = "; nothing was sent" if options["dry_run"] else ""
    click.echo(f"{exact} -> {place} ({kind}){told}")
    note_members(store.manifest(name, version))


def _ask_license() -> str:
    """Return the license that is typed in.

    Raises:
        ConfigError: there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise ConfigError("--license", "the Hub's short name of one, such as apache-2.0, mit or cc-by-4.0", None)
    return str(click.prompt("license, such as apache-2.0, mit or cc-by-4.0", err=True))


@click.command()
@click.argument("repository", metavar="hub:ORG/NAME[@REVISION]")
@with_options(IMPORT_OPTIONS)
@click.pass_obj
def pull(settings: Settings, /, repository: str, **options: Any) -> None:
    """Store the set in a repository of the Hub as the next version of its name; 'import hub:ORG/NAME' does the same.

    Nothing but safetensors and JSON is read, within the store's limits. What was pulled before is taken from the cache
    where the Hub cannot be reached.

    \b
    adapter-registry pull hub:me/mrpc
    adapter-registry pull hub:me/mrpc@v1 --name films
    """
    import_from_hub(settings, repository, **options)


@click.command()
@click.argument("source", metavar="SRC", type=Place())
@click.argument("target", metavar="DST", type=Place())
@click.option("--dry-run", is_flag=True, help="Only say what would be copied.")
@json_option
@click.pass_obj
def sync(settings: Settings, source: Path | str, target: Path | str, dry_run: bool, as_json: bool) -> None:
    """Copy the sets and aliases that store DST lacks from store SRC, under the same versions, verified at both ends.

    Folders and addresses alike; DST is made if need be. Nothing of it is changed or removed, and a sync that was cut
    off goes on where it was.

    \b
    adapter-registry sync adapters_store s3://bucket/sets
    adapter-registry sync s3://bucket/sets copy --dry-run
    """
    from registry.remote.syncing import sync_stores
    from registry.store.errors import NotAStoreError
    from registry.store.store import create_store, open_store

    own = open_store(source, settings.cache)
    try:
        other = open_store(target, settings.cache)
    except NotAStoreError:
        if dry_run:
            raise
        other = create_store(target, own.info.backbone, settings.cache)
    found = sync_stores(own, other, dry_run=dry_run)
    if as_json:
        print_json({"versions": found.versions, "copied": found.copied, "aliases": found.aliases, "bytes": found.bytes})
        return
    done = "would be copied" if dry_run else "copied"
    click.echo(
        f"{source} -> {target}: {len(found.copied):,} of {found.versions:,} versions {done} ({found.bytes:,} bytes), "
        f"{len(found.aliases):,} aliases set"
    )
