"""Several sets that answer as one: the mean of their probabilities, or of their values, under ``a+b``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from registry.config import HeadConfig
from registry.errors import RequestError


def label_order(reference: str, heads: Sequence[HeadConfig]) -> list[list[int]]:
    """Return for each member where the first member's labels stand among its own.

    Raises:
        RequestError: members of other labels or another problem type.
    """
    first, attempted = heads[0], f"answer with '{reference}'"
    for head in heads[1:]:
        if head.problem_type != first.problem_type:
            raise RequestError(attempted, f"members that are all {first.problem_type}", head.problem_type)
        names, others = (", ".join(sorted(each.label_names)) for each in (first, head))
        if names != others and first.problem_type != "regression":
            raise RequestError(attempted, f"members with the labels {names}", others)
    if first.problem_type == "regression":
        return [[0]] * len(heads)
    return [[head.label_names.index(name) for name in first.label_names] for head in heads]


def mean_thresholds(heads: Sequence[HeadConfig], order: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Return the mean of the members' thresholds, in the order of the first one's labels; empty where none has any."""
    if not any(head.thresholds for head in heads):
        return ()
    each = [
        [(head.thresholds or (0.5,) * len(places))[place] for place in places]
        for head, places in zip(heads, order, strict=True)
    ]
    return tuple(float(value) for value in numpy.mean(each, axis=0))
