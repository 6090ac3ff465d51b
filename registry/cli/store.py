"""Commands on what is stored: init, show, verify, alias, remove, export, import, merge, gc.

Only init, verify, import, merge and the export of other libraries' formats need torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from registry.cli.data import HUB
from registry.cli.options import (
    Settings,
    backbone_option,
    is_given,
    json_option,
    note,
    print_json,
    with_options,
)
from registry.config import FusionConfig
from registry.errors import ConfigError, RegistryError
from registry.schema import (
    EXPORT_FORMATS,
    IMPORT_FORMATS,
    ExportFormat,
    Imported,
    ImportFormat,
    Manifest,
    Reference,
)
from registry.store.errors import IntegrityError, UnimportedError
from registry.validation import from_plain, printable, require


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
    imported = manifest.imported
    if imported is not None:
        click.echo(f"{'fit':<22} {printable(fit_text(imported))}")
    for key, value in content.items():
        if isinstance(value, dict):
            click.echo(f"{key}")
            for inner, found in value.items():
                click.echo(f"  {printable(inner):<20} {printable(found)}")
        else:
            click.echo(f"{key:<22} {printable(value)}")


def fit_text(imported: Imported) -> str:
    """Return on whose word an imported set fits the backbone, which its files cannot prove."""
    named = f"its files name the backbone {imported.backbone!r}" if imported.backbone else "its files name no backbone"
    if imported.fit == "named":
        return f"{named}, as this one is called; claimed, not proved"
    return f"{named}; that it is this one was claimed by whoever imported it, not proved"


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
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(EXPORT_FORMATS),
    default="archive",
    show_default=True,
    help="archive is one file for another store of the same backbone; the others are folders of those libraries.",
)
@click.option("--force", is_flag=True, help="Replace what was exported there before.")
@backbone_option
@click.pass_obj
def export_command(
    settings: Settings, reference: str, path: Path, kind: ExportFormat, force: bool, backbone: str | None
) -> None:
    """Write a stored set to PATH, as one file of our own or as a folder that another library reads.

    \b
    adapter-registry export mrpc@best mrpc.adapter
    adapter-registry export mrpc@best mrpc-folder --format adapterhub
    """
    store = settings.open_store()
    name, version = store.resolve(reference)
    if kind == "archive":
        from registry.store.archive import export_version

        export_version(store, f"{name}:{version}", path, overwrite=force)
        told = f"{path.stat().st_size:,} bytes"
    else:
        settings.open_registry(backbone).export_to(f"{name}:{version}", path, kind, overwrite=force)
        told = f"{kind}, {sum(each.stat().st_size for each in path.iterdir()):,} bytes"
    click.echo(f"{name}:{version} -> {path} ({told})")
    note_members(store.manifest(name, version))


def note_members(manifest: Manifest) -> None:
    """Tell which sets have to go along with a fused one."""
    if isinstance(manifest.adapter, FusionConfig):
        members = ", ".join(member.reference for member in manifest.adapter.members)
        note(f"a store takes it in once it has its members under their names: send {members} too")


IMPORT_OPTIONS = (
    click.option(
        "--format",
        "kind",
        type=click.Choice(IMPORT_FORMATS),
        default="auto",
        show_default=True,
        help="Whose file or folder it is; auto finds it by looking.",
    ),
    click.option("--name", help="Store it under this name instead of its own."),
    click.option("--labels", help="Names of the classes, with commas, where the files have none."),
    click.option(
        "--backbone-unproven", is_flag=True, help="Take it though its files do not name the store's backbone."
    ),
    backbone_option,
    json_option,
)


@click.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@with_options(IMPORT_OPTIONS)
@click.option("--allow-pickle", is_flag=True, help="Read weights from a pickle too, in a process of its own.")
@click.pass_obj
def import_command(settings: Settings, /, path: Path, **options: Any) -> None:
    """Check and store a set: an exported file, a folder of save_pretrained, AdapterHub or PEFT, or hub:ORG/NAME.

    A folder of such folders is imported folder by folder; the command fails if one of them was refused.

    \b
    adapter-registry import mrpc.adapter --name paraphrases
    adapter-registry import imdb-pfeiffer --labels neg,pos
    adapter-registry import all-adapters --backbone-unproven --json
    adapter-registry import hub:me/mrpc
    """
    if str(path).startswith(HUB):
        import_from_hub(settings, str(path), **options)
        return
    from registry.interop.hub import opened

    with opened(path) as place:
        _import(settings, place, str(path), **options)


def import_from_hub(settings: Settings, repository: str, /, **options: Any) -> None:
    """Store the set in a repository of the Hub, which is asked before seconds go into imports and a backbone."""
    from registry.interop.hub import pulled

    settings.open_store()
    with pulled(repository, offline=settings.offline) as folder:
        _import(settings, folder, repository, **options)


def _import(
    settings: Settings,
    path: Path,
    told: str,
    /,
    kind: ImportFormat,
    name: str | None,
    as_json: bool,
    allow_pickle: bool = False,
    **options: Any,
) -> None:
    from registry.interop.folders import find_format

    found = find_format(path)
    if found == "archive" and kind in ("auto", "archive"):
        from registry.store.tensors import import_set

        _tell_imported(told, import_set(settings.open_store(), path, name), None, as_json)
        return
    from registry.interop.formats import ImportOutcome, import_each

    registry = settings.open_registry(options["backbone"])
    choices = {
        "labels": tuple(each.strip() for each in (options["labels"] or "").split(",") if each.strip()),
        "allow_pickle": allow_pickle,
        "backbone_unproven": options["backbone_unproven"],
    }
    if found == "folders":
        require(name is None, "--name", "none for a folder of several sets", name)
        outcomes = import_each(registry, path, kind, **choices)
    else:
        outcomes = iter([ImportOutcome(Path(told), registry.import_from(path, kind, name, **choices), None)])
    total = refused = 0
    for outcome in outcomes:
        total, refused = total + 1, refused + (outcome.error is not None)
        manifest = None if outcome.reference is None else registry.manifest(outcome.reference)
        _tell_imported(str(outcome.path), outcome.reference or outcome.error, manifest, as_json)
    if refused:
        raise UnimportedError(path, refused, total)


def _tell_imported(
    path: str, found: Reference | RegistryError | None, manifest: Manifest | None, as_json: bool
) -> None:
    imported = None if manifest is None else manifest.imported
    if as_json:
        key = "reference" if isinstance(found, Reference) else "error"
        print_json({"path": path, key: str(found), "imported": msgspec.to_builtins(imported)})
        return
    click.echo(f"{printable(path)} -> {found if isinstance(found, Reference) else f'refused: {printable(found)}'}")
    if imported is not None:
        note(f"{found}: {fit_text(imported)}")
        for each in imported.not_kept:
            note(f"{found}: not kept, as it is of training alone: {each}")
        if not imported.head:
            note(f"{found}: no head came along; 'adapter-registry train TASK --start-from {found}' trains one")


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
    from registry.schema import Merging

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
    """Remove what killed writers left in the store; nothing visible is touched."""
    found = settings.open_store().collect_garbage(older_than=older_than, dry_run=dry_run)
    for entry in found:
        note(entry if "/" in entry else f"tmp/{entry}")
    click.echo(f"{'would remove' if dry_run else 'removed'} {len(found)} leftovers of dead writers")


def _worst(errors: list[RegistryError], settings: Settings) -> RegistryError:
    found = "; ".join(sorted({type(error).__name__ for error in errors}))
    if len(errors) == 1:
        return errors[0]
    return IntegrityError(settings.store, "check", "no problem", f"{len(errors)} problems ({found})")
