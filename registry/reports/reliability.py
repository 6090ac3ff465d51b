"""Whether probabilities mean what they say: for each method a small figure of the share that is right over them."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from registry.reports.content import ReportContent, TaskRows
from registry.reports.svg import Scale, drawing, element, label, line, path, short
from registry.stats.calibration import Reliability, reliability_of

_SIZE, _LEFT, _TOP = 170.0, 30.0, 22.0
_LARGEST = 9.0  # radius of a mark that holds all answers


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
