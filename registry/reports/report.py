"""Run records to files: tables for programs and for people, the page, and the picture.

``write_report`` decides which files there are; their numbers come from frames.py, their wording from numbers.py,
sentences.py, the page from page.py.
Equal records give equal bytes: nothing of the moment or the machine that writes a report is in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from registry.bench.records import write_file
from registry.reports.content import ReportContent, beside_methods, task_rows
from registry.reports.figures import score_picture
from registry.reports.frames import NOT_RUN, comparison_table, runs_table, score_in, swept, task_names, unswept
from registry.reports.mistakes import RowTexts
from registry.reports.numbers import (
    DASH,
    TITLE,
    difference_text,
    number,
    one_line,
    p_value,
    plus_minus,
    readable_bytes,
    readable_seconds,
    share,
    starred_points,
    worse_on,
)
from registry.reports.page import render_report_page
from registry.reports.sentences import missing_and_failed, notes, notice, sentences
from registry.schema import REPORT_FORMATS
from registry.tasks.spec import LOWER_IS_BETTER
from registry.validation import choose

DEFAULT_FORMATS = tuple(name for name in REPORT_FORMATS if name != "parquet")  # its tables are small; csv has them too

_LEFT = ("task", "method")


def display_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the summary as text cells: "0.864 ± 0.006", "113,810 (0.50 %)", "455 kB", dashes where nothing was run."""
    metrics = [str(name).removesuffix("_mean") for name in summary if str(name).endswith("_mean")]
    shown = [metric for metric in metrics if summary[f"{metric}_mean"].notna().any()]
    rows = []
    for row in summary.to_dict("records"):
        rows.append(
            {
                "task": f"{row['task']} ({row['split']})",
                "method": row["method"],
                "seeds": _seeds(row),
                "trainable": DASH if pd.isna(row["trainable"]) else f"{row['trainable']:,} ({share(row['percent'])})",
                "stored": readable_bytes(row["stored_bytes"]),
                **{metric: plus_minus(*score_in(row, metric)) for metric in shown},
                "vs full (points)": difference_text(row),
                "training": readable_seconds(row["train_seconds"]),
                "rows/s": number(row["rows_per_second"], ",.0f"),
                "peak memory": readable_bytes(row["peak_memory_bytes"]),
            }
        )
    return pd.DataFrame(rows)


def display_comparisons(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return the comparisons with full fine-tuning as text cells."""
    rows = [
        {
            "task": row["task"],
            "method": row["method"],
            "reference": row["reference"],
            "difference": format(row["difference"], _form(row)),
            "95 % interval": f"{row['low']:{_form(row)}} to {row['high']:{_form(row)}}",
            "p (Holm)": p_value(row["adjusted_p"]),
            "McNemar p by seed": row["seed_tests"] or DASH,
            "verdict": row["verdict"],
        }
        for row in comparisons.to_dict("records")
    ]
    return pd.DataFrame(rows)


def display_totals(totals: pd.DataFrame, tasks: int) -> pd.DataFrame:
    """Return the totals as text cells; ``tasks`` is how many there are."""
    rows = [
        {
            "method": row["method"],
            "tasks": f"{row['tasks']} of {tasks}",
            "mean of main metrics": number(row["main_metrics_mean"], ".3f"),
            "vs full (points)": number(row["difference_points"], "+.1f"),
            "worse than full on": worse_on(row),
            "on disk": readable_bytes(row["bytes"]),
            "as full models": readable_bytes(row["full_models_bytes"]),
            "training": readable_seconds(row["train_seconds"]),
        }
        for row in totals.to_dict("records")
    ]
    return pd.DataFrame(rows)


def to_markdown(
    warning: str, lead: Sequence[str], tables: Mapping[str, pd.DataFrame], picture: str, remarks: Sequence[str]
) -> str:
    """Return the whole report as GitHub Markdown, with ``picture`` the file name of the plot."""
    parts = [f"**{warning}**"] if warning else []
    parts += [f"# {TITLE}", *(_escape_markdown(sentence) for sentence in lead)]
    for heading, frame in tables.items():
        sides = ["left" if name in _LEFT else "right" for name in frame.columns]
        escaped = frame.map(_escape_markdown).rename(columns=_escape_markdown)
        table = escaped.to_markdown(index=False, disable_numparse=True, colalign=sides)
        parts += [f"## {heading}", table]
    parts += ["## Score against trainable parameters", f"![Score against trainable parameters, per task]({picture})"]
    parts += ["## Notes", "\n".join(f"- {_escape_markdown(note)}" for note in remarks)]
    return "\n\n".join(parts) + "\n"


def to_latex(warning: str, frame: pd.DataFrame, remarks: Sequence[str]) -> str:
    """Return the table for a paper, ruled by booktabs; ``warning`` stands above it, the remarks are comments."""
    frame = frame.drop(columns=["training", "rows/s", "peak memory"])
    sides = "".join("l" if name in _LEFT else "r" for name in frame.columns)
    style = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    table = style.to_latex(hrules=True, column_format=sides).replace("±", r"$\pm$").replace(DASH, "--")
    head = rf"\noindent\textbf{{{warning}}}\par" + "\n" if warning else ""
    comments = "".join(f"% {one_line(line)}\n" for line in (r"needs \usepackage{booktabs}", *remarks))
    return f"{head}{comments}{table}"


def _form(comparison: Mapping[Any, Any]) -> str:
    """Return how a difference is written: points with one place, errors with three digits."""
    return "+.3g" if comparison["metric"] in LOWER_IS_BETTER else "+.1f"


def _seeds(row: Mapping[Any, Any]) -> str:
    left_out = [f"{row[name]} {name.replace('_', ' ')}" for name in ("failed", "not_averaged") if row[name]]
    if left_out:
        return f"{row['seeds']} ({', '.join(left_out)})"
    return str(row["seeds"]) if row["seeds"] else NOT_RUN


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|*`\[\]])", r"\\\1", one_line(text)).replace("<", "&lt;")


_PICTURE = "score_vs_parameters.svg"
_TERMINAL_METRICS = 4
_READING = "± is half a 95 % interval; vs full in points, * where it can be told from none."
_CAPTION_WIDTH = 80  # a narrower table would break the notice in its caption


def write_report(
    out: Path,
    evidence: ReportContent,
    formats: Sequence[str] = (),
    texts: Mapping[str, RowTexts] | None = None,
) -> list[Path]:
    """Write the report's files into ``out`` and return their paths; the picture is always among them.

    Args:
        out: the folder.
        evidence: what to report.
        formats: from REPORT_FORMATS; all but parquet by default.
        texts: of the reported rows, for a second page that stays on the user's machine.

    Raises:
        ConfigError: an unknown format.
        RunError: ``out`` cannot be written.
    """
    wanted = [choose(name, REPORT_FORMATS, "report format") for name in formats or DEFAULT_FORMATS]
    files = {name: text.encode() for name, text in _texts(evidence, wanted).items()}
    if "parquet" in wanted:
        files |= {f"{name}.parquet": _to_parquet(frame) for name, frame in _tables(evidence).items()}
    if "html" in wanted:
        files["report.html"] = render_report_page(evidence).encode()
        if texts:  # in a file of its own, so that the page that is checked and passed on never has any
            files["report-with-text.html"] = render_report_page(evidence, texts).encode()
    files[_PICTURE] = score_picture(
        [task for task in task_rows(evidence.summary, beside=True) if task.scored], notice(evidence.records)
    ).encode()
    for name, content in files.items():
        write_file(Path(out) / name, content)
    return [Path(out) / name for name in files]


def _tables(evidence: ReportContent) -> dict[str, pd.DataFrame]:
    comparisons = comparison_table(evidence.records, evidence.measured)
    return {"table": evidence.summary, "runs": runs_table(evidence.records), "comparisons": comparisons}


def _texts(evidence: ReportContent, wanted: Sequence[str]) -> dict[str, str]:
    """Return the report's text files that are wanted, by name."""
    warning, remarks = notice(evidence.records), notes(evidence.records, evidence.measured)
    lead, tables = sentences(evidence.summary, evidence.totals), _tables(evidence)
    tasks, totals = len(task_names(evidence.records)), evidence.totals
    shown = {
        "Scores": display_table(unswept(evidence.summary)),
        "Swept settings": display_table(swept(evidence.summary)),
        "Differences to full fine-tuning": display_comparisons(tables["comparisons"]),
        "All tasks together": display_totals(beside_methods(totals, tasks, totals["tasks"]), tasks),
    }
    shown = {heading: frame for heading, frame in shown.items() if len(frame)}
    files: dict[str, str] = {}
    if "csv" in wanted:
        files |= {f"{name}.csv": _to_csv(frame) for name, frame in tables.items()}
    if "json" in wanted:
        plain = {name: _plain(frame) for name, frame in tables.items() if name != "runs"}
        told = {"notice": warning, "notes": remarks, "summary": lead}
        files["table.json"] = _to_json({**told, **plain, "totals": _plain(totals)})
    if "markdown" in wanted:
        files["report.md"] = to_markdown(warning, lead, shown, _PICTURE, remarks)
    if "latex" in wanted:
        files["table.tex"] = to_latex(warning, shown["Scores"], remarks)
    return files


def render_terminal(evidence: ReportContent) -> Table:
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
