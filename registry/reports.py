"""Run records to files: tables for programs and for people, the page, and the picture.

``write_report`` decides which files there are; their numbers come from frames.py, their wording from documents.py,
findings.py and remarks.py, the page from page_report.py.
Equal records give equal bytes: nothing of the moment or the machine that writes a report is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from registry.documents import (
    display_comparisons,
    display_table,
    display_totals,
    plus_minus,
    readable_seconds,
    share,
    starred_points,
    to_latex,
    to_markdown,
)
from registry.evidence import Evidence
from registry.findings import sentences
from registry.frames import comparison_table, runs_table, score_in, swept, task_names, unswept
from registry.page_report import render_report_page
from registry.page_texts import Texts
from registry.plots import score_against_parameters
from registry.records import replace_file
from registry.remarks import missing_and_failed, notes, notice
from registry.schema import REPORT_FORMATS
from registry.validation import choose

_PICTURE = "score_vs_parameters.png"
_TERMINAL_METRICS = 4
_READING = "± is half a 95 % interval; vs full in points, * where it can be told from none."
_CAPTION_WIDTH = 80  # a narrower table would break the notice in its caption


def write_report(
    out: Path, evidence: Evidence, formats: Sequence[str] = REPORT_FORMATS, texts: Mapping[str, Texts] | None = None
) -> list[Path]:
    """Write the report's files into ``out`` and return their paths; the picture is always among them.

    Args:
        out: the folder.
        evidence: what to report.
        formats: from REPORT_FORMATS.
        texts: of the reported rows, for a second page that stays on the user's machine.

    Raises:
        ConfigError: an unknown format.
        RunError: ``out`` cannot be written.
    """
    wanted = [choose(name, REPORT_FORMATS, "report format") for name in formats]
    files = {name: text.encode() for name, text in _texts(evidence, wanted).items()}
    if "parquet" in wanted:
        files |= {f"{name}.parquet": _to_parquet(frame) for name, frame in _tables(evidence).items()}
    if "html" in wanted:
        files["report.html"] = render_report_page(evidence).encode()
        if texts:  # in a file of its own, so that the page that is checked and passed on never has any
            files["report-with-text.html"] = render_report_page(evidence, texts).encode()
    for name, content in files.items():
        replace_file(Path(out) / name, content)
    picture = Path(out) / _PICTURE
    score_against_parameters(evidence.summary, notice(evidence.records), picture)
    return [*(Path(out) / name for name in files), picture]


def _tables(evidence: Evidence) -> dict[str, pd.DataFrame]:
    comparisons = comparison_table(evidence.records, evidence.measured)
    return {"table": evidence.summary, "runs": runs_table(evidence.records), "comparisons": comparisons}


def _texts(evidence: Evidence, wanted: Sequence[str]) -> dict[str, str]:
    """Return the report's text files that are wanted, by name."""
    warning, remarks = notice(evidence.records), notes(evidence.records, evidence.measured)
    lead, tables = sentences(evidence.summary, evidence.totals), _tables(evidence)
    shown = {
        "Scores": display_table(unswept(evidence.summary)),
        "Swept settings": display_table(swept(evidence.summary)),
        "Differences to full fine-tuning": display_comparisons(tables["comparisons"]),
        "All tasks together": display_totals(unswept(evidence.totals), len(task_names(evidence.records))),
    }
    shown = {heading: frame for heading, frame in shown.items() if len(frame)}
    files: dict[str, str] = {}
    if "csv" in wanted:
        files |= {f"{name}.csv": _to_csv(frame) for name, frame in tables.items()}
    if "json" in wanted:
        plain = {name: _plain(frame) for name, frame in tables.items() if name != "runs"}
        told = {"notice": warning, "notes": remarks, "summary": lead}
        files["table.json"] = _to_json({**told, **plain, "totals": _plain(evidence.totals)})
    if "markdown" in wanted:
        files["report.md"] = to_markdown(warning, lead, shown, _PICTURE, remarks)
    if "latex" in wanted:
        files["table.tex"] = to_latex(warning, shown["Scores"], remarks)
    return files


def render_terminal(evidence: Evidence) -> Table:
    """Return the short form for a terminal of 100 columns: share, main metrics, difference and training time."""
    summary = evidence.summary
    metrics = list(dict.fromkeys(["accuracy", *summary["main_metric"]]))[:_TERMINAL_METRICS]
    reading = _READING if evidence.measured.intervals else ""
    told = (notice(evidence.records), reading, *missing_and_failed(evidence.records))
    caption = "\n".join(line for line in told if line)
    table = Table(caption=Text(caption) if caption else None, caption_justify="left", min_width=_CAPTION_WIDTH)
    table.add_column("task", overflow="fold")
    table.add_column("method", overflow="fold")
    for name in ("trainable", *metrics, "vs full", "training"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in summary.to_dict("records"):
        if previous not in (None, row["task"]):
            table.add_section()
        scores = [plus_minus(*score_in(row, metric)) for metric in metrics]
        cells = [row["task"] if row["task"] != previous else "", row["method"], share(row["percent"]), *scores]
        table.add_row(*(Text(cell) for cell in [*cells, starred_points(row), readable_seconds(row["train_seconds"])]))
        previous = row["task"]
    return table


def _to_csv(frame: pd.DataFrame) -> str:
    return str(frame.map(_safe_cell).to_csv(index=False, lineterminator="\n"))


def _safe_cell(value: Any) -> Any:
    """Return text that a spreadsheet takes as text, never as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _to_parquet(frame: pd.DataFrame) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink)
    return bytes(sink.getvalue())


def _plain(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _to_json(plain: dict[str, Any]) -> str:
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
