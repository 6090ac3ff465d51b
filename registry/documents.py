"""What people read: numbers in human form, sentences, and tables as Markdown, LaTeX and HTML.

Everything comes from the tables of frames.py; nothing is computed anew and no file is written here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import pandas as pd

from registry.comparable import LOWER_IS_BETTER
from registry.frames import FULL, NOT_RUN, main_score
from registry.schema import BASELINES
from registry.variants import split_name

TITLE = "Benchmark report"
DASH = "\N{EN DASH}"

_LEFT = ("task", "method")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --text: #1d1f23; --page: #fdfdfc; --line: #d8d8d4; --soft: #5c6068; --warn: #a33b00; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e7e7e4; --page: #17191c; --line: #3a3d42; --soft: #a4a8b0; --warn: #ffb083; }
}
body { max-width: 76rem; margin: 2.5rem auto; padding: 0 1.25rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: 0.35rem 0.8rem; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
.left { text-align: left; }
tr.first td { border-top: 2px solid var(--line); }
img { max-width: 100%; background: #fff; border-radius: 6px; }
.notes { color: var(--soft); font-size: 0.9rem; }
.notice { color: var(--warn); font-weight: 700; }
</style>
</head>
<body>
{% if notice %}<p class="notice">{{ notice }}</p>{% endif %}
<h1>{{ title }}</h1>
{% for sentence in sentences %}<p>{{ sentence }}</p>
{% endfor %}
{% for heading, frame in tables.items() %}<h2>{{ heading }}</h2>
<div class="table"><table>
<thead><tr>
{%- for name in frame.columns %}<th{% if name in left %} class="left"{% endif %}>{{ name }}</th>{% endfor -%}
</tr></thead>
<tbody>
{% for row in frame.to_dict("records") %}<tr{% if loop.changed(row.task) %} class="first"{% endif %}>
{%- for name in frame.columns %}<td{% if name in left %} class="left"{% endif %}>{{ row[name] }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% endfor %}<h2>Score against trainable parameters</h2>
<p><img alt="Score against trainable parameters, one panel per task" src="data:image/png;base64,{{ picture }}"></p>
<h2>Notes</h2>
<ul class="notes">
{% for note in notes %}<li>{{ note }}</li>
{% endfor %}</ul>
</body>
</html>
"""


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
                **{metric: plus_minus(row[f"{metric}_mean"], row[f"{metric}_std"]) for metric in shown},
                "vs full (points)": DASH if row["method"] == FULL else number(row["difference_points"], "+.1f"),
                "training": readable_seconds(row["train_seconds"]),
                "rows/s": number(row["rows_per_second"], ",.0f"),
                "peak memory": readable_bytes(row["peak_memory_bytes"]),
            }
        )
    return pd.DataFrame(rows)


def display_totals(totals: pd.DataFrame, tasks: int) -> pd.DataFrame:
    """Return the totals as text cells; ``tasks`` is how many there are."""
    rows = [
        {
            "method": row["method"],
            "tasks": f"{row['tasks']} of {tasks}",
            "mean of main metrics": number(row["main_metrics_mean"], ".3f"),
            "on disk": readable_bytes(row["bytes"]),
            "as full models": readable_bytes(row["full_models_bytes"]),
            "training": readable_seconds(row["train_seconds"]),
        }
        for row in totals.to_dict("records")
    ]
    return pd.DataFrame(rows)


def sentences(summary: pd.DataFrame) -> list[str]:
    """Return one sentence per task: its best adapter method against full fine-tuning."""
    return [_sentence(str(task), rows.to_dict("records")) for task, rows in summary.groupby("task", sort=False)]


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


def to_html(
    warning: str, lead: Sequence[str], tables: Mapping[str, pd.DataFrame], picture: str, remarks: Sequence[str]
) -> str:
    """Return the report as one page that needs no other file, with ``picture`` the plot's PNG in base64."""
    page = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined).from_string(_PAGE)
    return page.render(
        title=TITLE, notice=warning, sentences=lead, tables=tables, picture=picture, notes=remarks, left=_LEFT
    )


def plus_minus(mean: float, deviation: float) -> str:
    """Return "0.864 ± 0.006", or the mean alone where there is one seed."""
    if math.isnan(mean):
        return DASH
    return f"{mean:.3f}" if math.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}"


def share(percent: float) -> str:
    """Return a percentage with two places, or two digits below that."""
    if math.isnan(percent):
        return DASH
    return f"{percent:.2f} %" if percent >= 0.01 or percent == 0 else f"{percent:.1g} %"


def number(value: float, form: str) -> str:
    """Return the value in ``form``, or a dash where there is none."""
    return DASH if pd.isna(value) else format(value, form)


def readable_seconds(value: float) -> str:
    """Return seconds, as minutes from 100 on and hours from 100 minutes on."""
    if pd.isna(value):
        return DASH
    if value < 100:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.1f} h"


def readable_bytes(value: Any) -> str:
    """Return a size in decimal units with three digits: "455 kB", "90.9 MB"."""
    if pd.isna(value):
        return DASH
    size, unit = float(value), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.3g} {unit}"


def one_line(text: str) -> str:
    """Return the text with every run of white space as one space."""
    return " ".join(text.split())


def _seeds(row: Mapping[Any, Any]) -> str:
    left_out = [f"{row[name]} {name.replace('_', ' ')}" for name in ("failed", "not_averaged") if row[name]]
    if left_out:
        return f"{row['seeds']} ({', '.join(left_out)})"
    return str(row["seeds"]) if row["seeds"] else NOT_RUN


def _sentence(task: str, rows: Sequence[dict[Any, Any]]) -> str:
    metric, split = rows[0]["main_metric"], rows[0]["split"]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    done = [row for row in rows if not math.isnan(main_score(row)[0])]
    adapters = [row for row in done if split_name(row["method"])[0] not in BASELINES]
    if not adapters:
        return f"{task} ({split}): no adapter method was run to its end."
    best = max(adapters, key=lambda row: sign * main_score(row)[0])
    full = next(row for row in rows if row["method"] == FULL)
    text = (
        f"{task} ({split}): of the adapter methods, {best['method']} has the best mean {metric}, "
        f"{plus_minus(*main_score(best))}, training {share(best['percent'])} of the backbone's parameters; "
    )
    if math.isnan(main_score(full)[0]):
        return f"{text}there is no finished full fine-tuning to compare with."
    gap = round(best["difference_points"], 1)
    if math.isnan(gap):
        return f"{text}full fine-tuning has {plus_minus(*main_score(full))}."
    distance = f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'}" if gap else "level with"
    return f"{text}that is {distance} full fine-tuning ({plus_minus(*main_score(full))})."


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|*`\[\]])", r"\\\1", one_line(text)).replace("<", "&lt;")
