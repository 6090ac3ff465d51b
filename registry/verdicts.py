"""What may be said of a difference: better, worse, or that the two cannot be told apart. Nothing is computed here."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["better", "worse", "not distinguishable"]

ALPHA = 0.05
UNDECIDED: Verdict = "not distinguishable"


def verdict_of(goodness: float, holds_zero: bool, p: float) -> Verdict:
    """Return what a difference amounts to; interval and test must agree before one of two is called better.

    Args:
        goodness: the difference, above zero where the first of the two is better.
        holds_zero: whether its interval holds zero.
        p: its p-value, adjusted where there are several comparisons.
    """
    if holds_zero or p >= ALPHA:
        return UNDECIDED
    return "better" if goodness > 0 else "worse"
