"""Measure contenders in turn, round after round, and compare them round by round.

It knows nothing of models: a contender is a name, a number of rows, and a function that says how many seconds its
rows took. On a shared machine only neighbours in time can be compared, so a ratio is the median of the rounds' own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


class ContenderError(Exception):
    """A contender that could not do its rows, in words for the table; the others go on."""


@dataclass(frozen=True)
class Contender:
    """Something that does the same rows as its neighbours.

    Attributes:
        key: short name, unique in its group.
        label: for the table.
        count: rows (or switches) of one go.
        go: does them and returns the seconds.
        most_rounds: fewer rounds than the others, for what takes minutes.
    """

    key: str
    label: str
    count: int
    go: Callable[[], float]
    most_rounds: int = 1_000


@dataclass
class Result:
    """The rates of one contender.

    Attributes:
        group: which rows it did.
        key: of the contender.
        label: of the contender.
        rates: rows per second of each round, the first one left out; None where it sat out.
        failed: why there are no rates; empty where there are.
    """

    group: str
    key: str
    label: str
    rates: list[float | None] = field(default_factory=list)
    failed: str = ""

    @property
    def known(self) -> list[float]:
        """Return the rates of the rounds that it took part in."""
        return [rate for rate in self.rates if rate is not None]

    @property
    def rate(self) -> float | None:
        """Return the median rate."""
        return statistics.median(self.known) if self.known else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """Return the lowest and the highest rate."""
        return (min(self.known), max(self.known)) if self.known else None

    def to_json(self) -> dict[str, Any]:
        """Return all of it for a file."""
        return {**asdict(self), "rate": self.rate}


class Results(Mapping[tuple[str, str], Result]):
    """What was measured, by group and contender."""

    def __init__(self, results: Sequence[Result] = ()) -> None:
        self._results = {(each.group, each.key): each for each in results}

    def __getitem__(self, key: tuple[str, str]) -> Result:
        return self._results[key]

    def __iter__(self) -> Any:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def ratio(self, group: str, key: str, base: str) -> float | None:
        """Return how many times the rate of ``base`` the rate of ``key`` is: the median of the rounds' own ratios."""
        if (group, key) not in self or (group, base) not in self:
            return None
        pairs = zip(self[group, key].rates, self[group, base].rates, strict=False)
        ratios = [own / other for own, other in pairs if own is not None and other is not None]
        return statistics.median(ratios) if ratios else None


def measure(group: str, contenders: Sequence[Contender], rounds: int) -> list[Result]:
    """Let all contenders take turns and return their rates; the first round warms up and is dropped.

    Every second round goes the other way round, so that nobody profits from a place in the order.
    """
    results = {each.key: Result(group, each.key, each.label) for each in contenders}
    for turn in range(rounds + 1):
        for contender in contenders if turn % 2 == 0 else contenders[::-1]:
            result = results[contender.key]
            if result.failed:
                continue
            rate = None
            if turn < contender.most_rounds:
                try:
                    rate = contender.count / contender.go()
                except Exception as err:
                    result.failed = str(err) if isinstance(err, ContenderError) else f"failed: {err!r}"
                    result.rates = []
                    continue
            if turn > 0:
                result.rates.append(rate)
    for result in results.values():
        figure = f"{result.rate:>12,.1f} per second" if result.rate is not None else result.failed
        print(f"{group:<12} {result.label:<56} {figure}", flush=True)
    return list(results.values())


def timed(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Return a function that does ``work`` and says how long it took."""

    def go() -> float:
        started = now(device)
        work()
        return now(device) - started

    return go


def now(device: torch.device) -> float:
    """Return seconds of this process's CPU time, or of wall time once a GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()
