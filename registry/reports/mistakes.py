"""What was answered wrong, and how surely: confusions, the rows themselves, whether probabilities can be believed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from registry.bench.records import RunRecord
from registry.bench.results import methods_of
from registry.errors import DataError
from registry.reports.content import ReportContent, TaskRows
from registry.reports.svg import Scale, drawing, element, label, line, path, short
from registry.stats.calibration import Reliability, reliability_of
from registry.stats.predictions import CellPredictions
from registry.tasks.loading import load_again
from registry.tasks.metrics import predicted_labels
from registry.tasks.spec import TaskSpec, find_task, replace_split
from registry.tasks.task_data import TaskData

MOST_ROWS = 2000  # of one task; the page stays a size that mail and repositories take

RowTexts = Mapping[int, tuple[str, ...]]

_SEVERAL_LABELS = (
    "A row of this task has several labels and is wrong where any of them is: its number is the least probability "
    "that was given to the truth about one label."
)
_MATRIX_LABELS = 10  # more labels than that become a list of the most frequent confusions
_MOST_CONFUSIONS = 30
_TINTS = 5
_MAJORITY = "majority"
_NO_LABEL = "none"
_SIZE, _LEFT, _TOP = 170.0, 30.0, 22.0  # of a reliability figure, in pixels
_LARGEST = 9.0  # radius of a mark that holds all answers


@dataclass(frozen=True, eq=False)
class WrongRows:
    """The rows of one task that some seed of some method got wrong, most confident mistake first.

    Attributes:
        columns: what page.js reads: label names, methods and their seeds; of each row its number ``n``, the index of
            its true label ``t``, its texts ``x`` if there are any; and row by row, for each method, the probability
            of the true label in thousandths ``p`` and how many seeds were wrong ``w``.
        total: how many rows there are; at most ``MOST_ROWS`` are in the columns.
        how: what a reader must know of these numbers in particular; or empty.
    """

    columns: dict[str, Any]
    total: int
    how: str


def count_confusions(answers: CellPredictions) -> NDArray[np.int64]:
    """Return (C, C) how often each true label, by row, got each answer, by column, over all seeds."""
    classes = answers.probabilities.shape[2]
    counts = np.zeros((classes, classes), dtype=np.int64)
    for probabilities in answers.probabilities:
        np.add.at(counts, (answers.labels, predicted_labels(answers.problem_type, probabilities)), 1)
    return counts


def confusion_matrix(method: str, counts: NDArray[np.int64], names: Sequence[str], seeds: int) -> dict[str, Any]:
    """Return the matrix of one method as the page shows it: counts, shares of each line, tints."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    tints = np.minimum((shares * _TINTS).astype(int), _TINTS - 1)
    lines = []
    for true, name in enumerate(names):
        kinds = ["right" if answered == true else "wrong" for answered in range(len(names))]
        cells = [
            {"count": f"{count:,}", "share": f"{part:.0%}", "tint": f"{kind}-{tint}"}
            for count, part, kind, tint in zip(counts[true], shares[true], kinds, tints[true], strict=True)
        ]
        lines.append((name, cells))
    right = counts.trace() / max(counts.sum(), 1)
    return {"method": method, "lines": lines, "right": f"{right:.1%} right, {seeds} seed{'' if seeds == 1 else 's'}"}


def confusions_of(names: Sequence[str], methods: Mapping[str, CellPredictions]) -> dict[str, Any]:
    """Return a matrix for each method, and of many labels instead the most frequent confusions as rows of words."""
    counts = {method: count_confusions(one) for method, one in methods.items()}
    if len(names) > _MATRIX_LABELS:
        times = [
            (-int(table[true, answered]), method, names[true], names[answered])
            for method, table in counts.items()
            for true, answered in np.argwhere(table)
            if true != answered
        ]
        return {"matrices": [], "frequent": [(*words, -count) for count, *words in sorted(times)[:_MOST_CONFUSIONS]]}
    narrow = len(names) == 2 and max(map(len, names)) <= 9
    form = "free" if len(names) > 3 else "narrow" if narrow else "wide"  # columns, or as wide as they are
    matrices = [confusion_matrix(method, counts[method], names, len(one.seeds)) for method, one in methods.items()]
    return {"matrices": matrices, "form": form, "frequent": []}


def label_names(records: Iterable[RunRecord], task: str, answers: CellPredictions) -> tuple[str, ...]:
    """Return the names that the task's heads have, or the numbers of the classes where no run has a head."""
    classes = answers.probabilities.shape[2]
    named = (record.head.label_names for record in records if record.task == task and record.head is not None)
    return next((names for names in named if len(names) == classes), tuple(map(str, range(classes))))


def wrong_rows(
    names: Sequence[str], methods: Mapping[str, CellPredictions], texts: RowTexts | None = None
) -> WrongRows | None:
    """Return every row that some seed of some method got wrong; None where nothing is right or wrong.

    Args:
        names: of the labels.
        methods: in the order of the page; the majority class is left out, as it reads no row.
        texts: of each row by its number, for pages that stay with their reader.
    """
    read = {method: one for method, one in methods.items() if method != _MAJORITY}
    first = next(iter(read.values()), None)
    if first is None or first.problem_type == "regression":
        return None
    several = first.problem_type == "multi_label"
    labels, label_names = _label_sets(first.labels, names) if several else (first.labels, tuple(names))
    wrong = np.stack([(~one.correct()).sum(axis=0) for one in read.values()], axis=1)  # (R, methods)
    truth = np.stack([_given_to_truth(one).mean(axis=0) for one in read.values()], axis=1)  # (R, methods)
    confidence = np.where(wrong > 0, truth, np.inf).min(axis=1)  # the least that a wrong method gave to the truth
    found = np.flatnonzero(wrong.any(axis=1))
    kept = found[np.lexsort((first.row_numbers[found], confidence[found]))][:MOST_ROWS]
    columns: dict[str, Any] = {
        "labels": label_names,
        "methods": list(read),
        "seeds": [len(one.seeds) for one in read.values()],
        "n": first.row_numbers[kept].tolist(),
        "t": labels[kept].tolist(),
        "p": np.rint(1000 * truth[kept]).astype(int).ravel().tolist(),
        "w": wrong[kept].ravel().tolist(),
    }
    if texts is not None:
        columns["x"] = [texts[number] for number in columns["n"]]
    return WrongRows(columns, len(found), _SEVERAL_LABELS if several else "")


def _given_to_truth(one: CellPredictions) -> NDArray[np.float64]:
    """Return (S, R) the probability of the true label, or the least of those of what is true of each label."""
    probabilities = one.probabilities.astype(np.float64)
    if one.problem_type == "multi_label":
        least: NDArray[np.float64] = np.where(one.labels == 1, probabilities, 1 - probabilities).min(axis=2)
        return least
    return probabilities[:, np.arange(len(one.labels)), one.labels]


def _label_sets(labels: NDArray[np.int64], names: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return for each row the index of its set of labels, and how each set is called."""
    sets, index = np.unique(labels, axis=0, return_inverse=True)
    called = [", ".join(name for name, there in zip(names, one, strict=True) if there) or _NO_LABEL for one in sets]
    return index.reshape(-1).astype(np.int64), tuple(called)


def read_texts(
    evidence: ReportContent, data: str | None = None, *, offline: bool = False, specs: Iterable[TaskSpec] = ()
) -> dict[str, RowTexts]:
    """Return for each task the text, or pair of texts, of every reported row by its number.

    Args:
        evidence: of the report.
        data: where the rows are; where the records say when None.
        offline: never ask the network.
        specs: of the user's own tasks; the built-in ones are known.

    Raises:
        UnknownTaskError: a task that is neither built in nor among ``specs``.
        DataError: the rows cannot be read, or are not those of the records.
        DataUnavailableError: the Hub cannot be reached and the data set is not cached.
    """
    own = {spec.name: spec for spec in specs}
    found: dict[str, RowTexts] = {}
    for task in sorted({record.task for record in evidence.records}):
        # All runs of a task have the same reported rows; the one with most training rows has those of the others too.
        of_task = [record for record in evidence.records if record.task == task]
        record = max(of_task, key=lambda one: (one.data.train_rows, one.method))
        spec = own[task] if task in own else find_task(task)
        answers = next(iter(methods_of(evidence.answers, task).values()), None)
        rows = load_rows(record, spec, answers, data, offline=offline).reported
        columns = [rows.texts] if rows.pairs is None else [rows.texts, rows.pairs]
        found[task] = dict(zip(rows.row_numbers, zip(*columns, strict=True), strict=True))
    return found


def load_rows(
    record: RunRecord,
    spec: TaskSpec,
    answers: CellPredictions | None,
    data: str | None = None,
    *,
    offline: bool = False,
) -> TaskData:
    """Return the very rows that a run was trained and scored on.

    Args:
        record: of the run.
        spec: of its task.
        answers: of the run, whose row numbers and labels are checked too.
        data: where the rows are; where the record says when None.
        offline: never ask the network.

    Raises:
        DataError: the rows cannot be read, or are not those of the record.
        DataUnavailableError: the Hub cannot be reached and the data set is not cached.
    """
    spec = spec if spec.reported_split == record.split else replace_split(spec, record.split)
    loaded = load_again(spec, record.data, data, offline=offline)
    where, hint = (loaded.source, f"task '{record.task}'"), "give --data the source that the runs were made from"
    expected, found = record.data.fingerprint, loaded.fingerprint()
    if found != expected:
        raise DataError(*where, f"rows with fingerprint {expected[:12]}, as the runs had", found[:12], hint)
    rows = loaded.reported
    if answers is not None and not (
        np.array_equal(answers.row_numbers, rows.row_numbers) and np.array_equal(answers.labels, rows.labels)
    ):
        raise DataError(*where, "the rows and labels that the runs answered", "others", hint)
    return loaded


def reliabilities(task: TaskRows, evidence: ReportContent) -> dict[str, Reliability]:
    """Return of each method of a task how far its probabilities can be believed, all counted seeds together.

    Numbers have none, and tuned thresholds move what is said away from the probabilities, so both are left out.
    """
    moved = {
        (record.task, record.method)
        for record in evidence.records
        if record.head is not None and record.head.thresholds
    }
    cells = {row["method"]: evidence.answers.get((task.task, row["method"])) for row in task.rows}
    return {
        method: reliability_of(one.probabilities, one.labels)
        for method, one in cells.items()
        if one is not None and one.problem_type != "regression" and (task.task, method) not in moved
    }


def reliability_panels(task: TaskRows, found: Mapping[str, Reliability], name: str) -> list[Markup]:
    """Return a panel for each method: right answers over stated probability, the diagonal where both are equal.

    Args:
        task: for its title.
        found: by method.
        name: of the drawings, for their ids.
    """
    bottom, right = _SIZE - 22, _SIZE - 6
    across, up = Scale(0, 1, _LEFT, right), Scale(0, 1, bottom, _TOP)
    panels = []
    for index, (method, one) in enumerate(found.items()):
        parts = [line(across(0), up(0), across(1), up(1), "reference")]
        for share in (0, 0.5, 1):
            parts.append(line(_LEFT, up(share), right, up(share), "grid"))
            parts.append(label(_LEFT - 5, up(share) + 4, f"{share:g}", "end", "soft"))
            parts.append(label(across(share), _SIZE - 6, f"{share:g}", "middle", "soft"))
        points = [(across(stated), up(share)) for stated, share in zip(one.confidence, one.right, strict=True)]
        parts.append(element("path", d=path(points), class_="mean"))
        total = one.counts.sum()
        for (x, y), count, stated, share in zip(points, one.counts, one.confidence, one.right, strict=True):
            said = element("title", f"{share:.3f} right of {int(count):,} answers said with {stated:.3f}")
            radius = 1.5 + (_LARGEST - 1.5) * float(count / total) ** 0.5
            parts.append(element("g", said, element("circle", cx=x, cy=y, r=radius), class_="point adapter"))
        parts.append(label(0, 12, short(method, 25), class_="strong"))
        bins = zip(one.confidence, one.right, strict=True)
        told = f"calibration error {one.error:.3f}; " + ", ".join(f"{a:.2f}: {b:.2f}" for a, b in bins)
        title = f"{task.title}, {method}: share right over stated probability"
        panels.append(drawing(f"{name}-{index}", _SIZE, _SIZE, title, told, *parts))
    return panels
