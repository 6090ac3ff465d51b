"""What an experiment found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Verdict:
    """How often a promise was tried, and every case in which it did not hold.

    Attributes:
        promise: what was to be kept, as a short sentence.
        tried: cases that were really judged.
        bad: one line for each broken case: what was done, what was expected, what was found.
        details: further figures for the report, such as cases per kind.
    """

    promise: str
    tried: int = 0
    bad: list[str] = field(default_factory=list)
    details: dict[str, int | float | str] = field(default_factory=dict)

    def count(self, kind: str, number: int = 1) -> None:
        """Add to the cases of a kind."""
        self.details[kind] = int(self.details.get(kind, 0)) + number
