"""Which runs of two report folders, or which two methods of one folder, can be compared: cell by cell.

A cell that cannot be compared is left out with its reason, and the others go on. What the comparison amounts to is
comparison.py's to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from registry.bench.records import RunRecord, read_records
from registry.bench.results import averaged_runs, check_comparable, read_answers, why_not_averaged
from registry.errors import RequestError, closest
from registry.stats.predictions import CellKey, CellPredictions, why_not_same_rows
from registry.tasks.metrics import told_metrics


@dataclass(frozen=True, eq=False)
class CellPair:
    """Two cells that answered the same rows.

    Attributes:
        task: of both.
        methods: of the first and of the second.
        records: the first run of each that counts.
        answers: of all their runs that count.
    """

    task: str
    methods: tuple[str, str]
    records: tuple[RunRecord, RunRecord]
    answers: tuple[CellPredictions, CellPredictions]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that both were scored by, the main one first, and Matthews' correlation for classes."""
        main, both = self.records[0].main_metric, set(self.records[0].scores) & set(self.records[1].scores)
        names = (main, *(name for name in self.records[0].scores if name in both and name != main))
        return told_metrics(names, self.answers[0].problem_type)

    @property
    def sample(self) -> bool:
        """Whether the rows are the bundled sample's."""
        return self.records[0].data.sample

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, where a run had a head that knows them."""
        return next((record.head.label_names for record in self.records if record.head is not None), ())

    @property
    def key(self) -> CellKey:
        """The task, and the method or both."""
        return self.task, _name(self.methods)


@dataclass(frozen=True)
class LeftOut:
    """A cell that is not compared, and why."""

    task: str
    method: str
    reason: str


@dataclass(frozen=True)
class Pairing:
    """What can be compared and what cannot, each sorted by task and method."""

    pairs: tuple[CellPair, ...]
    left_out: tuple[LeftOut, ...]


class _Folder:
    """A report folder's records, cell by cell."""

    def __init__(self, path: Path) -> None:
        self.path, records = path, read_records(path)
        check_comparable(records)
        self.cells: dict[CellKey, list[RunRecord]] = {}
        for record in records:
            self.cells.setdefault((record.task, record.method), []).append(record)

    def check_methods(self, methods: Sequence[str]) -> None:
        """Refuse the first of ``methods`` that this folder has no run of."""
        there = sorted({method for _, method in self.cells})
        for method in methods:
            if method not in there:
                found = "; ".join(filter(None, (f"'{method}'", closest(method, there))))
                raise RequestError(f"compare runs in {self.path}", f"one of the methods {', '.join(there)}", found)

    def why_not(self, cell: CellKey) -> str:
        """Return why a cell has no answers to compare, or an empty string."""
        records = self.cells.get(cell, [])
        if not records:
            return f"{self.path} has no run of {cell[1]}"
        if why := why_not_averaged(records):
            return f"{self.path} has {why} of {cell[1]}"
        return "" if averaged_runs(records) else f"{self.path} has no finished run of {cell[1]}"

    def first(self, cell: CellKey) -> RunRecord:
        """Return the first run of a cell that counts."""
        return averaged_runs(self.cells[cell])[0]

    def answers(self, cells: Iterable[CellKey]) -> dict[CellKey, CellPredictions]:
        """Return the answers of some cells."""
        return read_answers(self.path, [record for cell in dict.fromkeys(cells) for record in self.cells[cell]])


def pair_folders(first: Path, second: Path, methods: Sequence[str] = ()) -> Pairing:
    """Return the cells that stand in both folders, each with all its seeds that count.

    Args:
        first: a report folder.
        second: another, or the same.
        methods: only these; all when empty.

    Raises:
        RunError: a folder without records, or with records that are damaged or that one table must not mix.
        RequestError: a method that neither folder has.
    """
    ours, theirs = _Folder(first), _Folder(second)
    cells = sorted({*ours.cells, *theirs.cells})
    both = {method for _, method in cells}
    ours.check_methods([method for method in methods if method not in both])
    return _pair(ours, theirs, [(cell, cell) for cell in cells if not methods or cell[1] in methods])


def pair_methods(folder: Path, first: str, second: str) -> Pairing:
    """Return two methods of one folder, task by task.

    Raises:
        RunError: as in ``pair_folders``.
        RequestError: a method that the folder does not have.
    """
    one = _Folder(folder)
    one.check_methods((first, second))
    tasks = sorted({task for task, method in one.cells if method in (first, second)})
    return _pair(one, one, [((task, first), (task, second)) for task in tasks])


def _pair(ours: _Folder, theirs: _Folder, places: Sequence[tuple[CellKey, CellKey]]) -> Pairing:
    reasons = {place: _why_not(ours, theirs, *place) for place in places}
    wanted = [place for place in places if not reasons[place]]
    first, second = ours.answers(one for one, _ in wanted), theirs.answers(other for _, other in wanted)
    pairs = []
    for one, other in wanted:
        records, answers = (ours.first(one), theirs.first(other)), (first[one], second[other])
        if differ := why_not_same_rows(*answers):
            reasons[one, other] = _other("rows", *differ)
        else:
            pairs.append(CellPair(one[0], (one[1], other[1]), records, answers))
    left_out = [LeftOut(one[0], _name((one[1], other[1])), why) for (one, other), why in reasons.items() if why]
    return Pairing(tuple(pairs), tuple(left_out))


def _why_not(ours: _Folder, theirs: _Folder, one: CellKey, other: CellKey) -> str:
    """Return why two cells are not compared, as far as their records tell."""
    if why := ours.why_not(one) or theirs.why_not(other):
        return why
    conditions = _conditions(ours.first(one), theirs.first(other))
    return next((_other(*condition) for condition in conditions if condition[1] != condition[2]), "")


def _conditions(first: RunRecord, second: RunRecord) -> list[tuple[str, str, str]]:
    """Return what has to be equal where both were asked the same, by name."""
    found = [
        ("split", first.split, second.split),
        ("main metric", first.main_metric, second.main_metric),
        ("source", _source(first), _source(second)),
        ("number of reported rows", f"{first.data.reported_rows:,}", f"{second.data.reported_rows:,}"),
    ]
    if first.data.train_rows == second.data.train_rows:  # else the digest over all rows differs anyway
        found.append(("digest of the rows", first.data.fingerprint[:12], second.data.fingerprint[:12]))
    if first.head is not None and second.head is not None:
        found.append(("labels", ", ".join(first.head.label_names), ", ".join(second.head.label_names)))
    return found


def _source(record: RunRecord) -> str:
    return "the bundled sample" if record.data.sample else "other data than the bundled sample"


def _other(what: str, expected: str, found: str) -> str:
    return f"other {what}: {expected} in the first, {found} in the second"


def _name(methods: tuple[str, str]) -> str:
    return " against ".join(dict.fromkeys(methods))
