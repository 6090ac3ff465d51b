"""What the report's page says, as plain frozen records: numbers and sentences, no layout.

Whoever computes the content fills these; page.py and charts.py draw them. Nothing here knows of run records or html.
"""

from __future__ import annotations

import math
from typing import Literal

from registry.reports.mistakes import TaskConfusions, TaskErrors
from registry.stats.comparison import UNDECIDED, Verdict
from registry.validation import Record, require

MethodGroup = Literal["baseline", "adapter", "full"]


class Column(Record, frozen=True, kw_only=True):
    """One column of a table: its key, what its head says, its side, and whether a reader may sort by it."""

    key: str
    title: str
    side: Literal["left", "right"] = "right"
    sortable: bool = True


class Cell(Record, frozen=True, kw_only=True):
    """What a cell shows, and the value it sorts by; None sorts last, either way round.

    Attributes:
        detail: what stands small below the text, an interval say.
        tone: how it is set: ``strong`` for the number that counts, a verdict in its colour.
    """

    text: str
    value: float | str | None = None
    detail: str = ""
    tone: Literal["", "strong", "soft", "better", "worse"] = ""


class RowGroup(Record, frozen=True, kw_only=True):
    """Rows that belong together, and stay together when sorted; ``name`` is their heading, or empty for none."""

    name: str = ""
    rows: tuple[tuple[Cell, ...], ...]


class PageTable(Record, frozen=True, kw_only=True):
    """A table; the first column names its rows."""

    columns: tuple[Column, ...]
    groups: tuple[RowGroup, ...]

    def __post_init__(self) -> None:
        require(bool(self.columns), "columns", "at least one column", self.columns)
        for row in (row for group in self.groups for row in group.rows):
            require(len(row) == len(self.columns), "rows", f"{len(self.columns)} cells each", len(row))


class ScatterPoint(Record, frozen=True, kw_only=True):
    """A method's mean score with its interval, if there is one, and the parameters it trains."""

    method: str
    parameters: int
    mean: float
    low: float | None = None
    high: float | None = None
    group: MethodGroup = "adapter"

    def __post_init__(self) -> None:
        _require_finite(self.method, self.mean, self.low, self.high)


class Scatter(Record, frozen=True, kw_only=True):
    """Score against trainable parameters on one task."""

    task: str
    metric: str
    points: tuple[ScatterPoint, ...]


class SizePoint(Record, frozen=True, kw_only=True):
    """A mean score, with its interval if there is one, at one size of what was swept."""

    size: int
    mean: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        require(self.size > 0, "size", "a number above 0, as the axis is logarithmic", self.size)
        _require_finite(str(self.size), self.mean, self.low, self.high)


class SizeLine(Record, frozen=True, kw_only=True):
    """One method at several sizes, rising."""

    method: str
    points: tuple[SizePoint, ...]
    group: MethodGroup = "adapter"


class SizeCurve(Record, frozen=True, kw_only=True):
    """Score against something that was swept, on one task.

    Attributes:
        axis: what it is: a bottleneck's size, or training rows.
        reference: mean of the method that all are compared with; None where there is none.
    """

    task: str
    metric: str
    axis: str
    lines: tuple[SizeLine, ...]
    reference: float | None = None
    reference_name: str = ""


class ForestRow(Record, frozen=True, kw_only=True):
    """A method's difference to the reference in points (hundredths), its interval, Holm-adjusted p and verdict.

    Attributes:
        seed_tests: p-values of the runs with equal seeds, one against one, as (seed, p).
    """

    method: str
    difference: float
    low: float
    high: float
    p: float | None = None
    verdict: Verdict = UNDECIDED
    group: MethodGroup = "adapter"
    seed_tests: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        _require_finite(self.method, self.difference, self.low, self.high)


class Forest(Record, frozen=True, kw_only=True):
    """Differences of all methods to one reference on one task.

    Attributes:
        detectable: the smallest difference, in points of ``metric``, that this many rows can show; None where not
            computed.
        power: a sentence about that, or about another metric's.
    """

    task: str
    metric: str
    reference: str
    rows: tuple[ForestRow, ...]
    detectable: float | None = None
    power: str = ""


class SeedCurve(Record, frozen=True, kw_only=True):
    """The losses of one run at its steps, and the scores on held-out rows where there were any.

    Attributes:
        failed: whether the run diverged, so that it counts in no mean.
    """

    seed: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    score_steps: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    failed: bool = False

    def __post_init__(self) -> None:
        require(len(self.steps) == len(self.losses), "losses", f"{len(self.steps)} numbers", len(self.losses))
        require(len(self.score_steps) == len(self.scores), "scores", f"{len(self.score_steps)} numbers", self.scores)


class MethodCurves(Record, frozen=True, kw_only=True):
    """The curves of one method, one for each seed."""

    method: str
    seeds: tuple[SeedCurve, ...]


class TaskCurves(Record, frozen=True, kw_only=True):
    """The curves of all methods on one task; ``metric`` names the held-out scores."""

    task: str
    metric: str = ""
    methods: tuple[MethodCurves, ...]


class PageContent(Record, frozen=True, kw_only=True):
    """Everything one page says.

    Attributes:
        notice: what must be read first, such as that the data is the sample's; or empty.
        summary: sentences that stand above all tables.
        reading: how the numbers of ``table`` are to be read.
        caveats: runs and means that are missing in it.
        bottlenecks, amounts: scores against the size of bottlenecks, and against the number of training rows.
        commands: exact command lines that made the records.
        provenance: names and values: versions, machine, fingerprints.
    """

    title: str
    notice: str = ""
    summary: tuple[str, ...] = ()
    table: PageTable
    reading: str = ""
    caveats: tuple[str, ...] = ()
    totals: PageTable | None = None
    scatters: tuple[Scatter, ...] = ()
    bottlenecks: tuple[SizeCurve, ...] = ()
    amounts: tuple[SizeCurve, ...] = ()
    forests: tuple[Forest, ...] = ()
    curves: tuple[TaskCurves, ...] = ()
    confusions: tuple[TaskConfusions, ...] = ()
    errors: tuple[TaskErrors, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def holds_texts(self) -> bool:
        """Whether any text of the data is in it."""
        return any(row.texts for task in self.errors for row in task.rows)


def _require_finite(method: str, *numbers: float | None) -> None:
    found = [number for number in numbers if number is not None]
    require(all(map(math.isfinite, found)), method, "finite numbers", found)
