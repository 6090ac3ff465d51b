"""A comparison as a terminal of 100 columns shows it, and as plain data for programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from registry.bench.pairing import LeftOut
from registry.reports.frames import SAMPLE_NOTICE, points_of
from registry.reports.numbers import p_value
from registry.stats.comparison import SHARES, UNDECIDED, Compared, ComparedMetric, Comparison
from registry.stats.intervals import Interval
from registry.stats.predictions import CellPredictions, ChangedRow, list_changed_rows
from registry.tasks.spec import LOWER_IS_BETTER, OF_ONE_CLASS
from registry.validation import printable

_NUMBER = len("[0.000, 0.000]")
_SAID = {"better": "is better than", "worse": "is worse than"}


def sentence(compared: Compared, first: str, second: str) -> str:
    """Return in one sentence what may be said of the two."""
    if compared.identical:
        return f"{first} and {second} gave the same answers to every row, to the bit"
    comparison = compared.main.comparison
    points = " points" if points_of(compared.main_metric) > 1 else ""
    told = f"{compared.main_metric} {points_text(comparison, f'{points} ')}, p {p_value(comparison.adjusted_p)}"
    if compared.verdict != UNDECIDED:
        return f"{first} {_SAID[compared.verdict]} {second}: {told}"
    return f"{first} and {second} are {UNDECIDED}: {told}{_power(compared)}"


def points_text(comparison: Comparison, between: str = " ") -> str:
    """Return a difference in points and its interval, "+0.5 [-1.2, +2.2]"; of an error in its own unit."""
    found = comparison.difference
    mean, low, high = (_signed(end, comparison.metric) for end in (found.mean, found.low, found.high))
    return f"{mean}{between}[{low}, {high}]"


def _signed(value: float, metric: str) -> str:
    """Return a difference with its sign; what rounds to nothing is not below nothing."""
    if points_of(metric) == 1:
        return f"{value:+.3g}" if value else "0"
    return f"{round(100 * value, 1) + 0.0:+.1f}"


def _power(compared: Compared) -> str:
    """Return what so many rows could have shown, the other half of "not distinguishable"."""
    if not compared.changed:
        return "; every row has the same answer"
    if not compared.pairs:
        return ""
    if math.isnan(compared.detectable):
        return f"; so few of the {compared.rows:,} rows tell them apart that probably no difference would show"
    least = f"{100 * compared.detectable:.1f} points on"
    return f"; two trainings on {compared.rows:,} rows would probably show a difference in right rows from {least}"


@dataclass(frozen=True, eq=False)
class Contrast:
    """A comparison and what its two sides are called.

    Attributes:
        task, split: of the rows.
        method: that both folders ran; None for sets, and for two methods of one folder.
        names: of the two sides.
        label_names: empty where nobody knows them.
        sample: whether the rows are the bundled sample's.
        answers: of both.
        compared: what they amount to.
        texts: one or two for each row, by its place among the answers; None where they are not to be shown.
    """

    task: str
    split: str
    method: str | None
    names: tuple[str, str]
    label_names: tuple[str, ...]
    sample: bool
    answers: tuple[CellPredictions, CellPredictions]
    compared: Compared
    texts: Sequence[tuple[str, ...]] | None

    @property
    def place(self) -> str:
        """Task, and the method where it is one."""
        return self.task if self.method is None else f"{self.task} {self.method}"


def as_plain(contrast: Contrast, most: int) -> dict[str, Any]:
    """Return the comparison as JSON can hold it, with at most ``most`` of its changed rows."""
    compared = contrast.compared
    changed = list_changed_rows(*contrast.answers, most)
    return {
        "first": contrast.names[0],
        "second": contrast.names[1],
        "task": contrast.task,
        "method": contrast.method,
        "split": contrast.split,
        "sample": contrast.sample,
        "rows": compared.rows,
        "seeds": [list(one.seeds) for one in contrast.answers],
        "main_metric": compared.main_metric,
        "verdict": compared.verdict,
        "sentence": sentence(compared, *contrast.names),
        "identical": compared.identical,
        "changed": compared.changed,
        "largest_change": compared.largest_change,
        "detectable": None if math.isnan(compared.detectable) else compared.detectable,
        "metrics": {name: _plain_metric(metric) for name, metric in compared.metrics.items()},
        "pairs": [asdict(pair) for pair in compared.pairs],
        "changed_rows": [_plain_row(contrast, row) for row in changed],
    }


def print_contrasts(console: Console, contrasts: Sequence[Contrast], left_out: Sequence[LeftOut], most: int) -> None:
    """Show one comparison in full, or several in one table, then the rows that changed most."""
    if len(contrasts) == 1:
        _print_whole(console, contrasts[0])
    else:
        _print_overview(console, contrasts)
    for each in left_out:
        _say(console, f"not compared: {each.task} {each.method}: {each.reason}")
    for remark in _remarks(contrasts):
        _say(console, remark)
    _print_rows(console, contrasts, most)


def _plain_metric(metric: ComparedMetric) -> dict[str, Any]:
    comparison = metric.comparison
    scores = {side: _plain_interval(getattr(metric, side)) for side in ("first", "second")}
    difference = {**_plain_interval(comparison.difference), "p": comparison.difference.p}
    return {**scores, "difference": {**difference, "adjusted_p": comparison.adjusted_p}}


def _plain_interval(found: msgspec.Struct) -> dict[str, float]:
    return {name: getattr(found, name) for name in ("mean", "low", "high")}


def _plain_row(contrast: Contrast, row: ChangedRow) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "row": row.row,
        "label": _named(contrast, row.label),
        "answers": [_named(contrast, answer) for answer in row.answers],
        "right": row.right,
        "probabilities_of_label": row.truth,
        "change": row.change,
    }
    return plain if contrast.texts is None else {**plain, "texts": list(contrast.texts[row.place])}


def _named(contrast: Contrast, label: int | float | tuple[int, ...]) -> Any:
    """Return the label's name, the names of several, or the number where there is none."""
    names = contrast.label_names
    if isinstance(label, tuple):
        return [names[place] if names else place for place, there in enumerate(label) if there]
    return names[label] if names and isinstance(label, int) else label


def _of_one_class(contrasts: Sequence[Contrast]) -> list[str]:
    """Return what tells which class a metric of one class is of, where all contrasts have the same."""
    shown = {name for contrast in contrasts for name in contrast.compared.metrics if name in OF_ONE_CLASS}
    classes = {contrast.label_names[-1:] for contrast in contrasts if len(contrast.label_names) == 2}
    if not shown or len(classes) != 1:
        return []
    return [f"{', '.join(sorted(shown))} {'are' if len(shown) > 1 else 'is'} of the label '{classes.pop()[0]}'."]


def _print_whole(console: Console, contrast: Contrast) -> None:
    compared, (first, second) = contrast.compared, contrast.names
    method = f", {contrast.method}" if contrast.method else ""
    _say(console, f"{contrast.task} ({contrast.split}){method}, {compared.rows:,} rows", bold=True)
    _say(console, f"{sentence(compared, first, second)}.")
    table = _table(["metric"], [first, second, "difference (points)", "p"])
    for name, metric in compared.metrics.items():
        scores = [_score(one, " ") for one in (metric.first, metric.second)]
        _add(table, name, *scores, points_text(metric.comparison), p_value(metric.comparison.adjusted_p))
    console.print(table)
    if compared.pairs:
        _print_counts(console, contrast)
    if not compared.identical:
        share = 100 * compared.changed / compared.rows
        what = "value" if contrast.answers[0].problem_type == "regression" else "probability"
        told = f"{compared.changed:,} of {compared.rows:,} rows are answered differently ({share:.1f} %)"
        _say(console, f"{told}; the largest change of a {what} is {compared.largest_change:.3g}.")


def _print_counts(console: Console, contrast: Contrast) -> None:
    """Show how many rows which of the two has right, a line for each pair of trainings."""
    first, second = contrast.names
    seeds = any(len(one.seeds) > 1 for one in contrast.answers)
    titles = ["both right", f"only {first}", f"only {second}", "both wrong", "McNemar p"]
    table = _table(["seeds"] if seeds else [], titles)
    for pair in contrast.compared.pairs:
        one, other = pair.seeds
        counts = [f"{count:,}" for count in (pair.both, pair.only_first, pair.only_second, pair.neither)]
        named = [str(one) if one == other else f"{one}, {other}"] if seeds else []
        _add(table, *named, *counts, p_value(pair.p))
    console.print(table)


def _print_overview(console: Console, contrasts: Sequence[Contrast]) -> None:
    first, second = contrasts[0].names
    table = _table(["task"], [first, second, "points", "p", "changed"], verdict=True)
    for contrast in contrasts:
        compared, main = contrast.compared, contrast.compared.main
        _add(
            table,
            f"{printable(contrast.place)}\n{compared.main_metric}, {_seeds(contrast)}",
            _score(main.first, "\n"),
            _score(main.second, "\n"),
            points_text(main.comparison, "\n"),
            p_value(main.comparison.adjusted_p),
            f"{compared.changed:,}\nof {compared.rows:,}",
            "same answers" if compared.identical else compared.verdict.replace("not ", "not\n"),
        )
    console.print(table)
    better = sum(contrast.compared.verdict == "better" for contrast in contrasts)
    worse = sum(contrast.compared.verdict == "worse" for contrast in contrasts)
    same = sum(contrast.compared.identical for contrast in contrasts)
    rest = len(contrasts) - better - worse - same
    counts = {"better": better, "worse": worse, "not distinguishable": rest, "with the same answers": same}
    told = ", ".join(f"{name} in {count}" for name, count in counts.items() if count)
    _say(console, f"Of {len(contrasts)} comparisons of {first} with {second}: {told}.")


def _seeds(contrast: Contrast) -> str:
    counts = [len(one.seeds) for one in contrast.answers]
    if counts[0] == counts[1]:
        return f"{counts[0]} seed{'s' if counts[0] > 1 else ''}"
    return f"{counts[0]} and {counts[1]} seeds"


def _remarks(contrasts: Sequence[Contrast]) -> list[str]:
    """Return what a reader has to know of the numbers."""
    found = [SAMPLE_NOTICE] if any(contrast.sample for contrast in contrasts) else []
    if len(contrasts) > 1:
        found.append("Verdicts go by the main metric; p is adjusted by Holm's method over these comparisons.")
    elif len(contrasts[0].compared.metrics) > 1:
        exact = [name for name in SHARES if name in contrasts[0].compared.metrics and _once(contrasts[0], all)]
        told = f", and McNemar's for {exact[0]}" if exact else ""
        main = contrasts[0].compared.main_metric
        found.append(f"The verdict goes by the main metric, {main}; p is not adjusted{told}.")
    found += _of_one_class(contrasts)
    lower = [name for name in LOWER_IS_BETTER if any(name in contrast.compared.metrics for contrast in contrasts)]
    if lower:
        found.append(f"{', '.join(lower)} differs in its own unit, not in points.")
    if told := _trained_once(contrasts):
        found.append(f"{told}: intervals hold the chance of the rows, not that of another seed.")
    return found


def _trained_once(contrasts: Sequence[Contrast]) -> str:
    """Return who was trained once, so that nothing is known of the chance of its seed; empty where nobody was."""
    once = [contrast for contrast in contrasts if _once(contrast, any)]
    if not once:
        return ""
    if len(contrasts) > 1:
        return f"Trained with one seed ({', '.join(contrast.place for contrast in once)})"
    return "Each was trained once" if _once(once[0], all) else "One of the two was trained once"


def _once(contrast: Contrast, which: Callable[[Iterable[bool]], bool]) -> bool:
    """Return whether all or any of the two were trained once."""
    return which(len(one.seeds) == 1 for one in contrast.answers)


def _print_rows(console: Console, contrasts: Sequence[Contrast], most: int) -> None:
    """List the rows with the largest changes, of all comparisons together."""
    listed = [(each, row) for each in contrasts for row in list_changed_rows(*each.answers, most)]
    listed = sorted(listed, key=lambda item: -item[1].change)[:most]
    if not listed:
        return
    regression, several = all(row.truth is None for _, row in listed), len(contrasts) > 1
    table = _table([*(["task"] if several else []), "row", "label", *contrasts[0].names])
    for contrast, row in listed:
        cells = [str(row.row), _shown(_named(contrast, row.label)), *(_answer(contrast, row, side) for side in (0, 1))]
        _add(table, *([contrast.place] if several else []), *cells)
    total = sum(contrast.compared.changed for contrast in contrasts)
    told = "" if regression else ", with the label's probability"
    _say(console, f"Rows answered differently, {len(listed):,} of {total:,}, largest changes first{told}:")
    console.print(table)
    for contrast, row in listed:
        if contrast.texts is not None:
            _say(console, f"{contrast.task} row {row.row}:", bold=True)
            for text in contrast.texts[row.place]:
                console.print(Padding(Text(printable(text)), (0, 0, 0, 2)))


def _answer(contrast: Contrast, row: ChangedRow, side: int) -> str:
    """Return what one side answered to a row: of several seeds the commonest, and how many are right."""
    answer = _shown(_named(contrast, row.answers[side]))
    if row.truth is None or row.right is None:
        return answer
    seeds = len(contrast.answers[side].seeds)
    right = f", {row.right[side]} of {seeds} right" if seeds > 1 else ""
    return f"{answer} {row.truth[side]:.3f}{right}"


def _shown(label: Any) -> str:
    if isinstance(label, list):
        return printable(", ".join(map(str, label)) or "none")
    return f"{label:.3f}" if isinstance(label, float) else printable(label)


def _score(found: Interval, between: str) -> str:
    return f"{found.mean:.3f}{between}[{found.low:.3f}, {found.high:.3f}]"


def _table(left: Sequence[str], right: Sequence[str] = (), *, verdict: bool = False) -> Table:
    """Return an empty table of names, then numbers, then perhaps a verdict; long titles and names break."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0 if verdict else 1))
    for name in left:
        table.add_column(Text(printable(name)), overflow="fold")
    for name in right:
        table.add_column(Text(printable(name)), overflow="fold", justify="right", min_width=min(len(name), _NUMBER))
    if verdict:
        table.add_column("verdict", min_width=len("distinguishable"))
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))


def _say(console: Console, text: str, *, bold: bool = False) -> None:
    console.print(Text(printable(text), style="bold" if bold else ""), soft_wrap=False)
