"""The rows of a task, from the Hub, the bundled sample, a folder of one file per split, or files of one's own.

Everything that reads rows goes through ``load_task`` and ``load_to_score``; whatever the source, the rows are checked
by the same code. Tokens, batches and models are not known here.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import pyarrow as pa

from registry.errors import ConfigError, DataError, closest, shorten
from registry.schema import DataInfo
from registry.tasks.cells import Table, join_tables
from registry.tasks.files import ENDINGS, split_ending, stem_of
from registry.tasks.hub import fetch_from_hub
from registry.tasks.rows import Rows, unlabelled_rows
from registry.tasks.spec import BUILT_IN, REPORTED_NAMES, TRAIN_NAMES, HubSource, TaskSpec, task_name
from registry.tasks.tables import is_large, read_chunks, read_table, table_from_arrow
from registry.tasks.task_data import TaskData, make_scored_data, make_task_data
from registry.validation import require

HUB = "hub"
SAMPLE = "sample"
SAMPLE_FOLDER = Path(__file__).parent / "sample"
_PART = re.compile(r"-[0-9]{5}-of-([0-9]{5})$")  # as Hub clones have them

Fetch = Callable[[HubSource, Sequence[str], bool], Mapping[str, pa.Table]]


def load_task(
    spec: TaskSpec,
    data: str = HUB,
    *,
    offline: bool = False,
    limit: int | None = None,
    limit_reported: int | None = None,
    seed: int = 0,
    fetch: Fetch = fetch_from_hub,
) -> TaskData:
    """Return the task's rows, every one checked.

    A task with a file or folder of its own is read from there whatever ``data`` is.

    Args:
        spec: the task.
        data: ``hub``, ``sample``, or a folder with one file per split (``glue/mrpc/train.parquet``, say).
        offline: never ask the network.
        limit: at most this many training rows.
        limit_reported: at most this many rows to score on.
        seed: draws the limited and the held-out rows; leave it alone, so that all runs see the same rows.
        fetch: asks the Hub for splits.

    Raises:
        ConfigError: a limit below 1, a metric that does not fit, or a source that the task does not have.
        DataError: a file, column or row that cannot be used.
        DataUnavailableError: the Hub cannot be reached and the data set is not cached.
    """
    for field, value in (("limit", limit), ("limit_reported", limit_reported)):
        require(value is None or value >= 1, field, "at least 1 row", value)
    source = _choose_source(spec, data)
    others = 0
    if spec.split_column is not None:
        spec, tables, others = _read_marked(spec)
    else:
        tables = _read_file(spec) if spec.file is not None else _read_splits(spec, source, offline, fetch)
    made = make_task_data(spec, tables, source, source == SAMPLE, limit, limit_reported, seed)
    told = f"{others:,} rows of other splits than {spec.train_split} and {spec.reported_split} are left out"
    return replace(made, remarks=(*made.remarks, told)) if others else made


def load_to_score(spec: TaskSpec, path: Path | str, *, limit_reported: int | None = None, seed: int = 0) -> TaskData:
    """Return every labelled row of a file to be scored, and none to train on.

    Args:
        spec: with the label names of the set that is to answer; a file may lack some of them.
        path: the file.
        limit_reported: at most this many rows.
        seed: draws them.

    Raises:
        DataError: a file, column or row that cannot be used, or a label that is none of the set's.
    """
    require(limit_reported is None or limit_reported >= 1, "limit_reported", "at least 1 row", limit_reported)
    path = Path(path).expanduser()
    table = read_table(path, spec.columns, spec.reading)
    named = msgspec.structs.replace(spec, name=task_name(path) or spec.name, file=str(path), reported_split="all")
    return make_scored_data(named, table, str(path), limit_reported, seed)


def _read_file(spec: TaskSpec) -> list[Table]:
    """Return the rows of a task's one file or two."""
    paths = [spec.file, *([spec.reported_file] if spec.reported_file is not None else [])]
    return [read_table(Path(path or "").expanduser(), spec.columns, spec.reading) for path in paths]


def _read_marked(spec: TaskSpec) -> tuple[TaskSpec, list[Table], int]:
    """Return the task with the names of its two splits, the rows that name them, and how many name others.

    Raises:
        DataError: no rows to train on, or none to score on.
    """
    marks, path = spec.split_column or "", Path(spec.file or "").expanduser()
    table = read_table(path, (*spec.columns, marks), spec.reading)
    rows: dict[str, array[int]] = {}
    for row, cell in enumerate(table.column(marks)):
        rows.setdefault(str(cell).strip().lower(), array("q")).append(row)
    usual = REPORTED_NAMES if spec.reported_split == REPORTED_NAMES[0] else (spec.reported_split.lower(),)
    train = next((name for name in (spec.train_split, *TRAIN_NAMES) if name in rows), None)
    reported = next((name for name in usual if name in rows), None)
    if train is None or reported is None:
        expected = f"rows of {' or '.join(TRAIN_NAMES)}, and of {' or '.join(usual)}"
        raise DataError(path, f"column '{marks}'", expected, shorten(rows), "--reported-split names another split")
    named = msgspec.structs.replace(spec, train_split=train, reported_split=reported)
    parts = [table.take(rows[name], f"{path}, {name}") for name in (train, reported)]
    return named, parts, len(table) - sum(map(len, parts))


def load_texts(
    spec: TaskSpec, split: str, data: str = HUB, *, offline: bool = False, fetch: Fetch = fetch_from_hub
) -> Rows:
    """Return all rows of a split whose labels nobody looks at: 0 stands for each.

    Args:
        spec: the task; its rows are on the Hub or in a folder of one file per split.
        split: its name.
        data: as ``load_task`` takes it.
        offline: never ask the network.
        fetch: asks the Hub for splits.

    Raises:
        ConfigError, DataError, DataUnavailableError: see ``load_task``.
    """
    require(spec.file is None, f"split {split}", "a task with splits", f"'{spec.name}' is one file")
    source = _choose_source(spec, data)
    if source == HUB and spec.hub is not None:
        named = f"Hub data set '{spec.hub}', split {split}"
        table = table_from_arrow(named, fetch(spec.hub, (split,), offline)[split], spec.text_columns)
    else:
        root = SAMPLE_FOLDER if source == SAMPLE else Path(source).expanduser()
        table = read_split(root / (spec.folder or spec.name), split, spec)
    return unlabelled_rows(table, spec)


def load_again(spec: TaskSpec, info: DataInfo, source: str | None = None, *, offline: bool = False) -> TaskData:
    """Return the rows that an earlier run took of a task, so many as ``info`` says; see ``load_task``.

    Whether they are the same rows is told by their fingerprint.

    Args:
        spec: the task, with the split that was reported.
        info: what is known of the run's rows.
        source: where they are now; where they were when None.
        offline: never ask the network.
    """
    return load_task(
        spec,
        source or info.source,
        offline=offline,
        limit=info.train_rows if info.train_rows < info.train_available else None,
        limit_reported=info.reported_rows if info.reported_rows < info.reported_available else None,
    )


def _choose_source(spec: TaskSpec, data: str) -> str:
    """Return ``hub``, ``sample``, or the file or folder that the rows come from."""
    if spec.file is not None:
        return spec.file
    if spec.folder is not None and Path(spec.folder).is_absolute():
        return spec.folder
    if data == HUB and spec.hub is None:
        raise ConfigError("data", f"a folder, as task '{spec.name}' is not on the Hub", data)
    if data == SAMPLE and (spec.folder is None or not (SAMPLE_FOLDER / spec.folder).is_dir()):
        expected = f"hub or a folder, as the sample has only {shorten(BUILT_IN)}"
        raise ConfigError(f"data for task '{spec.name}'", expected, data)
    return data


def _read_splits(spec: TaskSpec, source: str, offline: bool, fetch: Fetch) -> list[Table]:
    splits = (spec.train_split, spec.reported_split)
    if source == HUB and spec.hub is not None:
        tables = fetch(spec.hub, splits, offline)
        named = {split: f"Hub data set '{spec.hub}', split {split}" for split in splits}
        found = [table_from_arrow(named[split], tables[split], spec.columns) for split in splits]
        for table, split in zip(found, splits, strict=True):
            if not tables[split].num_rows:
                raise DataError(table.source, "content", "at least one row", "none")
        return found
    root = SAMPLE_FOLDER if source == SAMPLE else Path(source).expanduser()
    if not root.is_dir():
        hint = closest(source, (HUB, SAMPLE)) or "--data takes hub, sample or a folder"
        raise DataError(root, "folder", "a folder of data", "a file" if root.exists() else "none", hint)
    folder = root / (spec.folder or spec.name)
    return [read_split(folder, split, spec) for split in splits]


def read_split(folder: Path, split: str, spec: TaskSpec) -> Table:
    """Return the rows of one split, from one file or from the numbered parts that a Hub clone has."""
    paths = _split_files(folder, split)
    if len(paths) == 1:
        return read_table(paths[0], spec.columns, spec.reading)
    parts = (chunk for path in paths for chunk in read_chunks(path, spec.columns, spec.reading))
    joined = join_tables((_with_columns(part, spec) for part in parts), on_disk=is_large(paths))
    return replace(joined, source=f"{folder}/{split}-*", lines=None)


def _with_columns(part: Table, spec: TaskSpec) -> Table:
    """Return the table if it has the columns of the task.

    Raises:
        DataError: it lacks one.
    """
    for name in spec.columns:
        part.column(name)
    return part


def splits_of(folder: Path) -> dict[str, list[Path]]:
    """Return the data files of a folder, or of its folder ``data``, by the split that their names tell."""
    found: dict[str, list[Path]] = {}
    for place in (folder, folder / "data"):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            with suppress(DataError):
                split_ending(path)
                found.setdefault(_PART.sub("", stem_of(path)), []).append(path)
        if found:
            break
    return found


def choose_splits(folder: Path, reported: str | None = None) -> tuple[str, str]:
    """Return the splits of a folder to train on and to report, by their usual names.

    Raises:
        DataError: no folder, or no such splits in it.
    """
    if not folder.is_dir():
        raise DataError(folder, "folder", "a folder of data", "a file" if folder.exists() else "none")
    there = splits_of(folder)
    chosen = []
    for names in (TRAIN_NAMES, (reported,) if reported else REPORTED_NAMES):
        name = next((each for each in names if each in there), None)
        if name is None:
            expected = f"a file called {' or '.join(str(each) for each in names)} ({', '.join(ENDINGS)})"
            hint = "--data FILE and --validation FILE name two files of any name"
            raise DataError(folder, "splits", expected, shorten(there), hint)
        chosen.append(name)
    return chosen[0], chosen[1]


def _split_files(folder: Path, split: str) -> list[Path]:
    if not folder.is_dir():
        raise DataError(folder, "folder", "a folder of data", "a file" if folder.exists() else "none")
    there = splits_of(folder)
    found = there.get(split, [])
    parts = [path for path in found if _PART.search(stem_of(path))]
    if found and len(parts) == len(found):
        count = int(_PART.findall(stem_of(found[0]))[0])
        if len(parts) != count:
            raise DataError(folder, f"split '{split}'", f"{count} parts", f"{len(parts)}")
        return parts
    if len(found) > 1:
        raise DataError(folder, f"split '{split}'", "one file", shorten(path.name for path in found))
    if not found:
        expected = f"{split}.parquet, {split}.jsonl, {split}.csv or another format"
        raise DataError(folder, f"split '{split}'", expected, f"splits {shorten(there)}", closest(split, there))
    return found
