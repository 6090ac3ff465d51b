"""What each method answered to each row, for the page: confusion counts, and the rows that were answered wrong.

The majority class has confusions but no rows: it reads none, so its mistakes tell nothing of any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from registry.answers import Answers
from registry.metrics import answers as answer_rows
from registry.page_content import ErrorRow, MethodConfusion, TaskConfusions, TaskErrors
from registry.variants import split_name

Texts = Mapping[int, tuple[str, ...]]

_SEVERAL_LABELS = (
    "A row of this task has several labels and is wrong where any of them is: its number is the least probability "
    "that was given to the truth about one label."
)
_MAJORITY = "majority"
_NO_LABEL = "none"


def confusions_of(title: str, names: Sequence[str], methods: Mapping[str, Answers]) -> TaskConfusions | None:
    """Return the confusion counts of each method, summed over its seeds; None where rows have no single class.

    Args:
        title: what the page calls the task.
        names: of the labels.
        methods: in the order of the page.
    """
    kinds = {one.problem_type for one in methods.values()}
    if kinds != {"classification"}:
        return None
    counted = tuple(
        MethodConfusion(method=method, seeds=len(one.seeds), counts=_count(one, len(names)))
        for method, one in methods.items()
    )
    return TaskConfusions(task=title, label_names=tuple(names), methods=counted)


def errors_of(
    title: str, names: Sequence[str], methods: Mapping[str, Answers], texts: Texts | None = None
) -> TaskErrors | None:
    """Return every row that some seed of some method got wrong; None where nothing is right or wrong.

    Args:
        title: what the page calls the task.
        names: of the labels.
        methods: in the order of the page; the majority class is left out.
        texts: of each row by its number, for pages that stay with their reader.
    """
    read = {method: one for method, one in methods.items() if split_name(method)[0] != _MAJORITY}
    first = next(iter(read.values()), None)
    if first is None or first.problem_type == "regression":
        return None
    several = first.problem_type == "multi_label"
    labels, label_names = _label_sets(first.labels, names) if several else (first.labels.tolist(), tuple(names))
    wrong = np.stack([(~one.correct()).sum(axis=0) for one in read.values()], axis=1)  # (R, methods)
    truth = np.stack([_given_to_truth(one).mean(axis=0) for one in read.values()], axis=1)  # (R, methods)
    rows = tuple(
        ErrorRow(
            row=number,
            label=labels[index],
            probabilities=tuple(truth[index].tolist()),
            wrong=tuple(wrong[index].tolist()),
            texts=texts[number] if texts is not None else (),
        )
        for index, number in enumerate(first.row_numbers.tolist())
        if wrong[index].any()
    )
    seeds = tuple(len(one.seeds) for one in read.values())
    how = f"{title}: {_SEVERAL_LABELS}" if several else ""
    return TaskErrors(task=title, label_names=label_names, methods=tuple(read), seeds=seeds, rows=rows, how=how)


def _count(one: Answers, classes: int) -> tuple[tuple[int, ...], ...]:
    counts = np.zeros((classes, classes), dtype=np.int64)
    for probabilities in one.probabilities:
        np.add.at(counts, (one.labels, answer_rows(one.problem_type, probabilities)), 1)
    return tuple(tuple(line) for line in counts.tolist())


def _given_to_truth(one: Answers) -> NDArray[np.float64]:
    """Return (S, R) the probability of the true label, or the least of those of what is true of each label."""
    probabilities = one.probabilities.astype(np.float64)
    if one.problem_type == "multi_label":
        least: NDArray[np.float64] = np.where(one.labels == 1, probabilities, 1 - probabilities).min(axis=2)
        return least
    return probabilities[:, np.arange(len(one.labels)), one.labels]


def _label_sets(labels: NDArray[np.int64], names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return for each row the index of its set of labels, and how each set is called."""
    sets, index = np.unique(labels, axis=0, return_inverse=True)
    called = [", ".join(name for name, there in zip(names, one, strict=True) if there) or _NO_LABEL for one in sets]
    return [int(place) for place in index.reshape(-1)], tuple(called)
