"""Folders with a file for each split: which files they are, by their names, and their rows."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from registry.errors import DataError, closest, shorten
from registry.tasks.files import ENDINGS, split_ending, stem_of
from registry.tasks.spec import TaskSpec
from registry.tasks.tables import Table, read_table

TRAIN_NAMES = ("train", "training")
REPORTED_NAMES = ("validation", "valid", "val", "dev", "development", "test")
_PART = re.compile(r"-[0-9]{5}-of-([0-9]{5})$")  # as Hub clones have them


def read_split(folder: Path, split: str, spec: TaskSpec) -> Table:
    """Return the rows of one split, from one file or from the numbered parts that a Hub clone has."""
    parts = [read_table(path, spec.columns, spec.reading) for path in _split_files(folder, split)]
    if len(parts) == 1:
        return parts[0]
    columns = {name: [cell for part in parts for cell in part.column(name)] for name in spec.columns}
    return Table(f"{folder}/{split}-*", parts[0].names, columns, class_names=parts[0].class_names)


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
