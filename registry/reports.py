"""Run records to files: tables for programs and for people, and the picture.

``write_report`` decides which files there are; their numbers come from frames.py and their wording from documents.py
and remarks.py.
Equal records give equal bytes: nothing of the moment or the machine that writes a report is in it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from registry.documents import (
    display_table,
    display_totals,
    plus_minus,
    readable_seconds,
    sentences,
    share,
    to_html,
    to_latex,
    to_markdown,
)
from registry.frames import long_table, missing_baselines, runs_table, summary_table, task_names, total_table
from registry.plots import score_against_parameters
from registry.records import replace_file
from registry.remarks import missing_and_failed, notes, notice
from registry.schema import RunRecord
from registry.validation import choose

__all__ = [
    "FORMATS",
    "long_table",
    "missing_baselines",
    "render_terminal",
    "runs_table",
    "summary_table",
    "total_table",
    "write_report",
]

FORMATS = ("csv", "json", "markdown", "latex", "html")

_PICTURE = "score_vs_parameters.png"
_TERMINAL_METRICS = 4
_CAPTION_WIDTH = 80  # a narrower table would break the notice in its caption


def write_report(out: Path, records: Sequence[RunRecord], formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write the report's files into ``out`` and return their paths; the picture is always among them.

    Raises:
        ConfigError: an unknown format.
        RunError: there are no records, they do not belong in one table, or ``out`` cannot be written.
    """
    wanted = [choose(name, FORMATS, "report format") for name in formats]
    summary, totals = summary_table(records), total_table(records)
    warning, remarks, lead = notice(records), notes(records), sentences(summary)
    shown = {"Scores": display_table(summary), "All tasks together": display_totals(totals, len(task_names(records)))}
    picture = Path(out) / _PICTURE
    score_against_parameters(records, picture)
    files: dict[str, str] = {}
    if "csv" in wanted:
        files |= {"table.csv": _to_csv(summary), "runs.csv": _to_csv(runs_table(records))}
    if "json" in wanted:
        tables = {"table": _plain(summary), "totals": _plain(totals)}
        files["table.json"] = _to_json({"notice": warning, "notes": remarks, "summary": lead, **tables})
    if "markdown" in wanted:
        files["report.md"] = to_markdown(warning, lead, shown, _PICTURE, remarks)
    if "latex" in wanted:
        files["table.tex"] = to_latex(warning, shown["Scores"], remarks)
    if "html" in wanted:
        encoded = base64.b64encode(picture.read_bytes()).decode("ascii")
        files["report.html"] = to_html(warning, lead, shown, encoded, remarks)
    for name, text in files.items():
        replace_file(Path(out) / name, text.encode())
    return [*(Path(out) / name for name in files), picture]


def render_terminal(records: Sequence[RunRecord]) -> Table:
    """Return the short form for a terminal of 100 columns: trainable share, main metrics and training time.

    Raises:
        RunError: there are no records, or they do not belong in one table.
    """
    summary = summary_table(records)
    metrics = list(dict.fromkeys(["accuracy", *summary["main_metric"]]))[:_TERMINAL_METRICS]
    caption = "\n".join(line for line in (notice(records), *missing_and_failed(records)) if line)
    table = Table(caption=Text(caption) if caption else None, caption_justify="left", min_width=_CAPTION_WIDTH)
    table.add_column("task", overflow="fold")
    table.add_column("method", overflow="fold")
    for name in ("trainable", *metrics, "training"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in summary.to_dict("records"):
        if previous not in (None, row["task"]):
            table.add_section()
        scores = [_score(row, metric) for metric in metrics]
        cells = [row["task"] if row["task"] != previous else "", row["method"], share(row["percent"]), *scores]
        table.add_row(*(Text(cell) for cell in [*cells, readable_seconds(row["train_seconds"])]))
        previous = row["task"]
    return table


def _score(row: dict[Any, Any], metric: str) -> str:
    nan = float("nan")
    return plus_minus(row.get(f"{metric}_mean", nan), row.get(f"{metric}_std", nan))


def _to_csv(frame: pd.DataFrame) -> str:
    return str(frame.map(_safe_cell).to_csv(index=False, lineterminator="\n"))


def _safe_cell(value: Any) -> Any:
    """Return text that a spreadsheet takes as text, never as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _plain(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _to_json(plain: dict[str, Any]) -> str:
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
