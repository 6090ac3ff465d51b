"""Data sets of the Hub as Arrow tables, through the datasets library and its cache.

The library waits and retries for half a minute when there is no network, so the Hub is asked first whether it
answers; if not, only the cache is read. What a task does with the tables is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from huggingface_hub import HfApi

from registry.errors import DataError, DataUnavailableError, closest, shorten
from registry.network import ANSWER_SECONDS, HttpError, find_obstacle, is_offline
from registry.tasks.spec import HubSource


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
