"""The rows of a task, from the Hub, the bundled sample, a folder of one file per split, or one own file.

Everything that reads rows goes through ``load_task``; whatever the source, the rows are checked by the same code.
Tokens, batches and models are not known here.

Data sets of the Hub as Arrow tables, through the datasets library and its cache.

The library waits and retries for half a minute when there is no network, so the Hub is asked first whether it
answers; if not, only the cache is read. What a task does with the tables is not known here.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from huggingface_hub import HfApi

from registry.errors import ConfigError, DataError, DataUnavailableError, closest, shorten
from registry.network import ANSWER_SECONDS, HttpError, find_obstacle, is_offline
from registry.schema import DataInfo
from registry.tasks.metrics import check_metrics, default_metrics
from registry.tasks.rows import (
    Overlap,
    Rows,
    find_label_names,
    find_overlap,
    hold_out,
    limit_further,
    limit_rows,
    rows_from_table,
)
from registry.tasks.spec import BUILT_IN, HubSource, TaskSpec
from registry.tasks.tables import EXTENSIONS, Table, read_table, table_from_arrow
from registry.validation import require


def fetch_from_hub(
    source: HubSource,
    splits: Sequence[str],
    offline: bool = False,
    *,
    obstacle: Callable[[HubSource], str] | None = None,
) -> dict[str, pa.Table]:
    """Return the splits of a Hub data set, from the cache where the Hub cannot be asked.

    Args:
        source: what to fetch.
        splits: their names.
        offline: never ask the network; ``HF_HUB_OFFLINE`` means the same.
        obstacle: why the Hub cannot be asked, empty if it can; the real question when None.

    Raises:
        DataUnavailableError: not cached and the Hub cannot be asked.
        DataError: the Hub has no such data set, configuration or split.
    """
    if offline or is_offline():
        reason = "offline was asked for"
    else:
        reason = (obstacle or _find_obstacle)(source)
    found = _load(source, reason)
    for split in splits:
        if split not in found:
            hint = closest(split, found)
            raise DataError(f"Hub data set '{source}'", "splits", f"a split '{split}'", shorten(found), hint)
    return {split: found[split].with_format("arrow")[:] for split in splits}


def _find_obstacle(source: HubSource) -> str:
    return find_obstacle(lambda: HfApi().dataset_info(source.path, timeout=ANSWER_SECONDS))


def _load(source: HubSource, reason: str) -> Any:
    """Return the splits by name as the datasets library has them; a ``reason`` not to ask leaves the cache only."""
    import datasets  # takes seconds to import, and few commands get here

    failures = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, HttpError)
    with _quietly(datasets, offline=bool(reason)):
        try:
            return datasets.load_dataset(source.path, source.config, revision=source.revision)
        except failures as err:
            if reason or isinstance(err, ConnectionError):
                raise DataUnavailableError(str(source), reason or "the Hub stopped answering") from err
            found = " ".join(str(err).split()) or type(err).__name__
            raise DataError(f"Hub data set '{source}'", "data set", "one that can be loaded", found) from err


@contextmanager
def _quietly(datasets: Any, offline: bool) -> Iterator[None]:
    """Leave the library's switches as they were found: it has no argument for these two."""
    shown, online = datasets.is_progress_bar_enabled(), datasets.config.HF_HUB_OFFLINE
    datasets.disable_progress_bars()
    datasets.config.HF_HUB_OFFLINE = offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = online
        if shown:
            datasets.enable_progress_bars()


HUB = "hub"
SAMPLE = "sample"
SAMPLE_FOLDER = Path(__file__).parent / "sample"

Fetch = Callable[[HubSource, Sequence[str], bool], Mapping[str, pa.Table]]


@dataclass(frozen=True)
class TaskData:
    """A task with its rows.

    Attributes:
        spec: with its label names and metrics filled in.
        train: rows to train on.
        reported: rows to score on.
        source: ``hub``, ``sample``, or the folder or file as given.
        sample: whether it is the bundled sample, whose scores are no evidence.
        train_available: training rows before any limit.
        reported_available: rows to score on before any limit.
        seed: of the draw, which a smaller number of training rows repeats.
    """

    spec: TaskSpec
    train: Rows
    reported: Rows
    source: str
    sample: bool
    train_available: int
    reported_available: int
    seed: int = 0

    def fingerprint(self) -> str:
        """Return the SHA-256 over the training rows, then the reported rows."""
        both = self.train.fingerprint() + self.reported.fingerprint()
        return hashlib.sha256(both.encode()).hexdigest()

    @functools.cached_property
    def overlap(self) -> Overlap:
        """Return the rows whose texts stand in both splits; looked for once, since every run asks."""
        return find_overlap(self.train, self.reported)

    def with_train_rows(self, count: int) -> TaskData:
        """Return the task with so many of its training rows: those that ``load_task`` gives with that limit.

        Asked again, it returns the same object, so runs on these rows share their tokens and what is known of them.

        Raises:
            ConfigError: there are not so many.
        """
        there = len(self.train)
        if not 1 <= count <= there:
            limited = f", limited from {self.train_available:,}" if there < self.train_available else ""
            raise ConfigError("train_rows", f"1 to {there:,}, the training rows of '{self.spec.name}'{limited}", count)
        if count == there:
            return self
        if count not in self._with_fewer_rows:
            train = limit_further(self.train, count, self.seed, self.train_available)
            self._with_fewer_rows[count] = replace(self, train=train)
        return self._with_fewer_rows[count]

    @functools.cached_property
    def _with_fewer_rows(self) -> dict[int, TaskData]:
        return {}


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
    if spec.file is not None:
        table = read_table(Path(spec.file).expanduser(), _columns(spec))
        spec = _complete(spec, table)
        rows = _training_rows(table, spec)
        train, reported = hold_out(rows, spec.held_out, seed, stratify=spec.problem_type == "classification")
    else:
        train_table, reported_table = _read_splits(spec, source, offline, fetch)
        spec = _complete(spec, train_table)
        train, reported = _training_rows(train_table, spec), rows_from_table(reported_table, spec)
    return TaskData(
        spec=spec,
        train=limit_rows(train, limit, seed),
        reported=limit_rows(reported, limit_reported, seed),
        source=source,
        sample=source == SAMPLE,
        train_available=len(train),
        reported_available=len(reported),
        seed=seed,
    )


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


def _columns(spec: TaskSpec) -> tuple[str, ...]:
    return (*spec.text_columns, spec.label_column)


def _read_splits(spec: TaskSpec, source: str, offline: bool, fetch: Fetch) -> tuple[Table, Table]:
    splits = (spec.train_split, spec.reported_split)
    if source == HUB and spec.hub is not None:
        tables = fetch(spec.hub, splits, offline)
        train, reported = (
            table_from_arrow(f"Hub data set '{spec.hub}', split {split}", tables[split], _columns(spec))
            for split in splits
        )
        return train, reported
    root = SAMPLE_FOLDER if source == SAMPLE else Path(source).expanduser()
    if not root.is_dir():
        hint = closest(source, (HUB, SAMPLE)) or "--data takes hub, sample or a folder"
        raise DataError(root, "folder", "a folder of data", "a file" if root.exists() else "none", hint)
    folder = root / (spec.folder or spec.name)
    train, reported = (read_table(_split_file(folder, split), _columns(spec)) for split in splits)
    return train, reported


def _split_file(folder: Path, split: str) -> Path:
    found = [folder / (split + extension) for extension in EXTENSIONS if (folder / (split + extension)).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(folder, f"split '{split}'", "one file", shorten(path.name for path in found))
    if not folder.is_dir():
        raise DataError(folder, "folder", "a folder of data", "a file" if folder.exists() else "none")
    there = {path.stem for path in folder.iterdir() if path.suffix in EXTENSIONS}
    hint = closest(split, there)
    raise DataError(folder, f"split '{split}'", f"{split}.parquet or {split}.jsonl", f"splits {shorten(there)}", hint)


def _complete(spec: TaskSpec, train: Table) -> TaskSpec:
    """Return the spec with the label names of its training rows and the usual metrics, where it has none."""
    names = spec.label_names or find_label_names(train, spec)
    metrics = spec.metrics or default_metrics(spec.problem_type, len(names))
    check_metrics(spec.problem_type, len(names), metrics)
    return msgspec.structs.replace(spec, label_names=names, metrics=metrics)


def _training_rows(table: Table, spec: TaskSpec) -> Rows:
    rows = rows_from_table(table, spec)
    if spec.problem_type == "classification" and len(set(rows.labels)) < 2:
        only = (spec.label_names or ())[rows.labels[0]]
        expected = "at least 2 different labels to train on"
        raise DataError(table.source, f"column '{spec.label_column}'", expected, f"only '{only}'")
    return rows
