"""The report's page for tests: what it is made of, and evidence that tries to break out."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import msgspec
import numpy as np

from registry.bench.records import RunRecord
from registry.config import HeadConfig
from registry.provenance import Hardware
from registry.reports.content import ReportContent, TaskRows, gather_evidence
from registry.reports.mistakes import RowTexts
from registry.stats.comparison import Comparison
from registry.stats.intervals import PairedDifference
from registry.stats.predictions import CellPredictions
from tests.support.benchmark_records import learning_curve
from tests.support.run_records import answer, make_record

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "<!-- <script>alert(2)</script>",
    "\"'`&amp;&lt;\\ {{ 7 * 7 }} {% raw %}",
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd\u2028\u2029",
    "'\"><svg onload=alert(3)>",
)


def make_task(means: dict[str, tuple[int, float]], title: str = "mrpc (validation)") -> TaskRows:
    """Return a task whose methods train so many parameters and have such a mean; intervals are two hundredths wide."""
    rows: list[dict[Any, Any]] = [
        {
            "method": method,
            "base_method": method,
            "trainable": trainable,
            "main_metric": "accuracy",
            "accuracy_mean": mean,
        }
        | {"accuracy_low": mean - 0.01, "accuracy_high": mean + 0.01}
        for method, (trainable, mean) in means.items()
    ]
    return TaskRows("mrpc", title, "accuracy", tuple(rows))


def make_comparison(mean: float, low: float, high: float, p: float) -> Comparison:
    """Return a difference to full fine-tuning, in fractions."""
    found = PairedDifference(mean=mean, low=low, high=high, p=p, seeds=(3, 3), rows=400)
    return Comparison("full_fine_tuning", "accuracy", found, p, {}, 0.1)


def make_hostile() -> tuple[ReportContent, dict[str, RowTexts]]:
    """Return evidence and texts of rows with hostile texts wherever a text can stand."""
    task, names = HOSTILE[0], HOSTILE[3:]
    records: list[RunRecord] = []
    answers = {}
    for method in (*HOSTILE, f"{HOSTILE[4]}-rf2", f"{HOSTILE[4]}-rf8", "full_fine_tuning"):
        base = make_record(
            task,
            method,
            split=HOSTILE[1],
            main_metric="accuracy",
            curve=learning_curve(1.5, 0, "accuracy"),
            head=HeadConfig(label_names=names),
            hardware=Hardware(processor=HOSTILE[2], cores=2, threads=2, memory_bytes=10**9, system=HOSTILE[3]),
            library_versions={HOSTILE[4]: HOSTILE[1]},
            command=HOSTILE[2],
            recipe=HOSTILE[3],
        )
        record, given = answer(base, 0.8, rows=40)
        records.append(msgspec.structs.replace(record, scores={"accuracy": record.scores["accuracy"]}))
        answers[task, method] = CellPredictions(
            "classification", (0,), given.row_numbers, given.labels, given.probabilities[np.newaxis]
        )
    failed = msgspec.structs.replace(records[0], seed=1, status="failed", error=HOSTILE[4], scores={})
    texts = {task: dict.fromkeys(range(40), HOSTILE)}
    return gather_evidence([*records, failed], answers), texts


class PageReader(HTMLParser):
    """What an html file is made of: its elements, and the texts between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the element with its attributes."""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of this name."""
        return [attributes for name, attributes in self.elements if name == tag]
