"""Commands that read run records: compare (two stored sets, two report folders, two methods of one), and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from registry.cli.data import DATA_OPTIONS, choose_tasks, load_for_set, use_metrics
from registry.cli.options import (
    Settings,
    backbone_option,
    is_given,
    json_option,
    make_console,
    note,
    print_json,
    with_options,
)
from registry.errors import ConfigError, ReportMismatchError, RequestError
from registry.schema import REPORT_FORMATS, Reference
from registry.tasks.spec import find_task, read_task_file
from registry.validation import choose, printable

if TYPE_CHECKING:
    from registry.bench.pairing import CellPair, Pairing
    from registry.reports.contrast import Contrast
    from registry.schema import Manifest
    from registry.tasks.task_data import TaskData

OUT = Path("bench")
FOLDER = click.Path(path_type=Path, file_okay=False)
TOML = click.Path(path_type=Path, dir_okay=False)
_OF_ROWS = ("limit", "limit_reported", "reported_split")  # a report's records say this themselves
_BESIDE_FOLDERS = {"first", "second", "methods", "most", "with_text", "as_json"}


@click.command()
@click.argument("first", metavar="FIRST")
@click.argument("second", metavar="[SECOND]", required=False)
@click.option("--method", "methods", multiple=True, help="In report folders: only this; two of them in one folder.")
@click.option("--rows", "most", type=click.IntRange(min=0), default=10, show_default=True, help="Rows to list; 0 none.")
@click.option(
    "--with-text",
    is_flag=True,
    help="Show the texts of the rows listed; for folders, from where the runs had them, or --data.",
)
@with_options(DATA_OPTIONS)
@backbone_option
@json_option
@click.pass_obj
def compare(
    settings: Settings, /, first: str, second: str | None, most: int, with_text: bool, as_json: bool, **options: Any
) -> None:
    """Tell whether two stored sets or report folders differ, on which rows, by how much, and whether it is chance.

    FIRST and SECOND are references of one store, scored as evaluate does it, or folders with run records. Where each
    set was trained once, an interval holds the chance of the rows, not that of another seed.

    \b
    adapter-registry compare mrpc:1 mrpc:2
    adapter-registry compare mrpc@best mrpc --data path/to/data --rows 20 --with-text
    adapter-registry compare reports bench
    adapter-registry compare reports --method houlsby --method full_fine_tuning
    """
    named = [one for one in (first, second) if one is not None]
    folders = [_is_folder(one) for one in named]
    if len(set(folders)) > 1:
        attempted = f"compare '{first}' with '{second}'"
        kinds = " and ".join("a report folder" if folder else "a stored set" for folder in folders)
        raise RequestError(attempted, "two stored sets or two report folders", kinds)
    from registry.reports.contrast import as_plain, print_contrasts

    if folders[0]:
        _refuse_options(with_text)
        contrasts, left_out = _contrast_folders(settings, [Path(one) for one in named], options, with_text)
    else:
        contrasts, left_out = [_contrast_sets(settings, first, second, options, with_text)], ()
    if as_json:
        print_json([as_plain(one, most) for one in contrasts] + [_left_out_row(each) for each in left_out])
    else:
        print_contrasts(make_console(100), contrasts, left_out, most)


def _is_folder(argument: str) -> bool:
    """Return whether an argument means run records: it has some, or it is a path that no reference could be."""
    path = Path(argument)
    return (path / "runs").is_dir() or path.name != argument


def _refuse_options(with_text: bool) -> None:
    """Refuse options that would choose rows, where the records of a report have chosen them."""
    context = click.get_current_context()
    for name in context.params.keys() - _BESIDE_FOLDERS:
        if is_given(name) and (name in _OF_ROWS or not with_text):
            hint = "" if with_text else ", or --with-text beside it"
            expected = f"none beside report folders, whose records say which rows{'' if name in _OF_ROWS else hint}"
            raise ConfigError(f"--{name.replace('_', '-')}", expected, context.params[name])


def _contrast_sets(
    settings: Settings, first: str, second: str | None, options: dict[str, Any], with_text: bool
) -> Contrast:
    """Return how two stored sets answer the reported rows of their task."""
    if options["methods"]:
        raise ConfigError("--method", "none beside stored sets, only with report folders", options["methods"][0])
    if second is None:
        raise RequestError(f"compare '{first}'", "a second set", "none")
    names, manifests = _find_sets(settings, (first, second))
    registry = settings.open_registry(options["backbone"])
    sets = [registry.load(name) for name in names]
    data = load_for_set(settings, names[0], next((each for each in manifests if each.task), manifests[0]), options)
    from registry.reports.contrast import Contrast
    from registry.stats.comparison import compare_answers
    from registry.tasks.metrics import told_metrics
    from registry.training.evaluate import answer_task, as_answers, check_fits

    for name, manifest in zip(names, manifests, strict=True):
        check_fits(name, manifest, data)
    answered = [answer_task(registry.backbone, *one, data) for one in zip(names, manifests, sets, strict=True)]
    seeds = [manifest.training.seed if manifest.training else 0 for manifest in manifests]
    ours, theirs = (as_answers(data, one, seed) for one, seed in zip(answered, seeds, strict=True))
    return Contrast(
        task=data.spec.name,
        split=data.spec.reported_split,
        method=None,
        names=names,
        label_names=data.spec.label_names or (),
        sample=data.sample,
        answers=(ours, theirs),
        compared=compare_answers(ours, theirs, told_metrics(data.spec.metrics, data.spec.problem_type)),
        texts=_texts(data) if with_text else None,
    )


def _find_sets(settings: Settings, references: tuple[str, str]) -> tuple[tuple[str, str], list[Manifest]]:
    """Return the exact names of two sets that answer the same question, and their manifests."""
    parsed = [Reference.parse(reference) for reference in references]
    store = settings.open_store()
    places = [store.resolve(reference) for reference in parsed]
    names, manifests = [f"{name}:{version}" for name, version in places], [store.manifest(*each) for each in places]
    attempted = f"compare '{names[0]}' with '{names[1]}'"
    first, second = (manifest.head for manifest in manifests)
    if first.problem_type != second.problem_type:
        raise RequestError(attempted, first.problem_type, f"{second.problem_type}; choose two sets of one task")
    if sorted(first.label_names) != sorted(second.label_names):
        expected, found = (", ".join(head.label_names) for head in (first, second))
        raise RequestError(attempted, f"labels {expected}", f"{found}; choose two sets of one task")
    return (names[0], names[1]), manifests


def _contrast_folders(
    settings: Settings, folders: list[Path], options: dict[str, Any], with_text: bool
) -> tuple[list[Contrast], Sequence[Any]]:
    """Return how the cells of two folders, or two methods of one, differ; and the cells that cannot be compared."""
    from registry.reports.contrast import Contrast
    from registry.stats.comparison import adjust_together, compare_answers

    pairing, names = _pair(folders, options["methods"])
    if not pairing.pairs:
        reason = f"; {pairing.left_out[0].task}: {pairing.left_out[0].reason}" if pairing.left_out else ""
        raise RequestError(f"compare {names[0]} with {names[1]}", "a task and method in both", f"none{reason}")
    compared = adjust_together({pair.key: compare_answers(*pair.answers, pair.metrics) for pair in pairing.pairs})
    first = {pair.task: pair for pair in reversed(pairing.pairs)} if with_text else {}  # all have the same rows
    data = {task: _load_rows(settings, pair, options) for task, pair in first.items()}
    contrasts = [
        Contrast(
            task=pair.task,
            split=pair.records[0].split,
            method=pair.methods[0] if len(folders) == 2 else None,
            names=names,
            label_names=pair.label_names,
            sample=pair.sample,
            answers=pair.answers,
            compared=compared[pair.key],
            texts=_texts(data[pair.task]) if with_text else None,
        )
        for pair in pairing.pairs
    ]
    return contrasts, pairing.left_out


def _pair(folders: list[Path], methods: Sequence[str]) -> tuple[Pairing, tuple[str, str]]:
    """Return the cells to compare and what the two sides are called."""
    from registry.bench.pairing import pair_folders, pair_methods

    if len(folders) == 2:
        return pair_folders(folders[0], folders[1], methods), (str(folders[0]), str(folders[1]))
    if len(methods) != 2:
        found = f"--method {len(methods)} times" if methods else "neither"
        raise RequestError(f"compare '{folders[0]}'", "a second report folder, or two --method", found)
    return pair_methods(folders[0], methods[0], methods[1]), (methods[0], methods[1])


def _load_rows(settings: Settings, pair: CellPair, options: dict[str, Any]) -> TaskData:
    """Return the very rows that a cell of a report is about, whose texts no report holds."""
    from registry.reports.mistakes import load_rows

    own = options["task_files"] or options["text_col"]
    specs = {spec.name: spec for spec in choose_tasks([], options)} if own else {}
    spec = next(iter(specs.values())) if len(specs) == 1 else specs.get(pair.task) or find_task(pair.task)
    data = options["data"] if is_given("data") else None
    return load_rows(pair.records[0], spec, pair.answers[0], data, offline=settings.offline)


def _texts(data: TaskData) -> list[tuple[str, ...]]:
    rows = data.reported
    return [(text,) for text in rows.texts] if rows.pairs is None else list(zip(rows.texts, rows.pairs, strict=True))


def _left_out_row(each: Any) -> dict[str, str]:
    return {"task": each.task, "method": each.method, "left_out": each.reason}


@click.command()
@click.argument("folder", type=FOLDER, default=OUT)
@click.option(
    "--format", "formats", multiple=True, help=f"One of {', '.join(REPORT_FORMATS)}.  [default: all but parquet]"
)
@click.option(
    "--metric",
    multiple=True,
    callback=use_metrics,
    expose_value=False,
    help="Run the code of this metric of the records, module:function.",
)
@click.option("--check", is_flag=True, help="Write nothing: compute every number again and tell what differs.")
@click.option("--with-text", is_flag=True, help="Put the rows' texts into a page of its own, to stay on your machine.")
@click.option("--data", help="Where the texts are: hub, sample or a folder; where the records say by default.")
@click.option(
    "--task-file",
    "task_files",
    type=TOML,
    multiple=True,
    help="A task of your own, of which texts are wanted, as TOML.",
)
@json_option
@click.pass_obj
def report(settings: Settings, /, folder: Path, formats: tuple[str, ...], check: bool, **options: Any) -> None:
    """Make the tables again from the run records in FOLDER, or check those that are there.

    \b
    adapter-registry report bench
    adapter-registry report bench --format html --with-text --data sample
    adapter-registry report bench --check
    """
    as_json, with_text = options["as_json"], options["with_text"]
    for name in ("data", "task_files"):
        if options[name] and not with_text:
            raise ConfigError(
                f"--{name.replace('_', '-').removesuffix('s')}",
                "--with-text beside it, as tables need no texts",
                "none",
            )
    for name in formats:
        choose(name, REPORT_FORMATS, "report format")
    if with_text and (check or as_json or (formats and "html" not in formats)):
        raise ConfigError("--with-text", "html among the formats, and neither --check nor --json", "another output")
    if check:
        if formats:
            raise ConfigError("--check", "no --format beside it, as it checks all files there are", formats[0])
        _check(folder, as_json)
        return
    import pandas

    from registry.reports.content import read_evidence

    if as_json:
        rows = read_evidence(folder).summary.to_dict("records")
        print_json([{key: value for key, value in row.items() if not pandas.isna(value)} for row in rows])
    else:
        wanted = _TextsWanted(options["data"], settings.offline, options["task_files"]) if with_text else None
        write_tables(folder, formats, wanted)


@dataclass(frozen=True)
class _TextsWanted:
    """Where the texts of a page are."""

    data: str | None
    offline: bool
    task_files: tuple[Path, ...]


def _check(folder: Path, as_json: bool) -> None:
    """Tell every difference in one line, or that there is none."""
    from dataclasses import asdict

    from registry.reports.check import check_report

    checked = check_report(folder)
    if as_json:
        print_json([asdict(difference) for difference in checked.differences])
    elif checked.differences:
        click.echo("\n".join(printable(difference) for difference in checked.differences))
    else:
        click.echo(f"{checked.records} records and {len(checked.files)} report files follow from the predictions")
    if checked.differences:
        raise ReportMismatchError(
            folder,
            "what follows from the predictions",
            f"{len(checked.differences)} differences",
            "where only tables differ, 'adapter-registry report' writes them anew; a wrong record has to be run again",
        )


def write_tables(folder: Path, formats: tuple[str, ...] = (), wanted: _TextsWanted | None = None) -> None:
    """Write the report of a folder of run records, and show its table."""
    from registry.reports.content import read_evidence
    from registry.reports.mistakes import read_texts
    from registry.reports.report import render_terminal, write_report

    evidence = read_evidence(folder)
    texts = None
    if wanted is not None:
        specs = [read_task_file(path) for path in wanted.task_files]
        texts = read_texts(evidence, wanted.data, offline=wanted.offline, specs=specs)
    paths = write_report(folder, evidence, formats, texts)
    make_console(100).print(render_terminal(evidence))
    note("wrote " + ", ".join(str(path) for path in paths))
