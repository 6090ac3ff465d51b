"""The report's page from run records: everything it says, put together from tables, figures, rows and remarks.

Equal records and answers give equal bytes: nothing of the moment or of the machine that writes the page is in it.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from registry.bench.records import RunRecord
from registry.bench.sweep import swept_train_rows
from registry.reports.content import ReportContent
from registry.reports.frames import source_name
from registry.reports.mistakes import TaskConfusions, TaskErrors, Texts, confusions_of, errors_of
from registry.reports.numbers import TITLE, readable_bytes
from registry.reports.page import render_page
from registry.reports.page_content import PageContent
from registry.reports.page_figures import (
    amount_curves,
    bottleneck_curves,
    forests,
    learning_curves,
    scatters,
    task_rows,
    task_title,
)
from registry.reports.page_tables import READING, scores_table, totals_table
from registry.reports.sentences import missing_and_failed, notes, notice, sentences
from registry.stats.predictions import CellPredictions


def render_report_page(evidence: ReportContent, texts: Mapping[str, Texts] | None = None) -> str:
    """Return the html page of a report; see ``page_content``."""
    return render_page(page_content(evidence, texts))


def page_content(evidence: ReportContent, texts: Mapping[str, Texts] | None = None) -> PageContent:
    """Return everything that the page of a report says.

    Args:
        evidence: what the report is made of.
        texts: for each task the texts of its reported rows, by ``read_texts``, for a page that stays with its reader.
    """
    records = sorted(evidence.records, key=lambda record: (record.task, record.method, record.seed))
    summary, measured = evidence.summary, evidence.measured
    caveats = missing_and_failed(records)
    confusions, errors = _row_sections(evidence, texts or {})
    return PageContent(
        title=TITLE,
        notice=notice(records),
        summary=tuple(_unbroken(sentence) for sentence in sentences(summary, evidence.totals)),
        table=scores_table(summary),
        reading=READING if measured.intervals else "",
        caveats=tuple(caveats),
        totals=totals_table(evidence.totals, summary["task"].nunique()),
        scatters=scatters(summary),
        bottlenecks=bottleneck_curves(records, measured),
        amounts=amount_curves(records, measured),
        forests=forests(summary, measured),
        curves=learning_curves(records, summary),
        confusions=confusions,
        errors=errors,
        provenance=tuple(_provenance(records)),
        commands=tuple(_commands(records)),
        notes=tuple(note for note in notes(records, measured) if note not in caveats),
    )


def _unbroken(sentence: str) -> str:
    """Return a sentence whose scores stay on one line with their intervals, and whose minus signs are such."""
    sentence = re.sub(r"(?<=\d) (?=± \d)|(?<=±) (?=\d)|(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", sentence)
    return re.sub(r"(?<= )-(?=\d)", "\N{MINUS SIGN}", sentence)


def _row_sections(
    evidence: ReportContent, texts: Mapping[str, Texts]
) -> tuple[tuple[TaskConfusions, ...], tuple[TaskErrors, ...]]:
    """Return confusions and wrong rows of each task, of methods without swept settings where there are others."""
    answers = evidence.answers
    confusions, errors = [], []
    for task, title, _, rows in task_rows(evidence.summary):
        methods = {row["method"]: answers[task, row["method"]] for row in rows if (task, row["method"]) in answers}
        if methods:
            names = _label_names(evidence.records, task, next(iter(methods.values())))
            confusions.append(confusions_of(title, names, methods))
            errors.append(errors_of(title, names, methods, texts.get(task)))
    return tuple(filter(None, confusions)), tuple(filter(None, errors))


def _label_names(records: Iterable[RunRecord], task: str, answers: CellPredictions) -> tuple[str, ...]:
    """Return the names that the task's heads have, or the numbers of the classes where no run has a head."""
    classes = answers.probabilities.shape[2]
    named = (record.head.label_names for record in records if record.task == task and record.head is not None)
    return next((names for names in named if len(names) == classes), tuple(map(str, range(classes))))


def _provenance(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Return what made the records, each thing once: where several values are listed, the runs differ in it."""
    libraries = sorted({name for record in records for name in record.library_versions})
    machines = [record.hardware for record in records]
    started = sorted(record.started for record in records)
    rows = [
        ("runs", f"{len(records)}, started {started[0]} to {started[-1]}"),
        ("seeds", _listed(record.seed for record in records)),
        ("code", _listed(record.code for record in records)),
        *(
            (name, _listed(record.library_versions.get(name, "not installed") for record in records))
            for name in libraries
        ),
        ("processor", _listed(machine.processor for machine in machines)),
        ("accelerator", _listed(machine.accelerator or "none" for machine in machines)),
        ("cores, threads of a run", _listed(f"{machine.cores}, {machine.threads}" for machine in machines)),
        ("memory", _listed(readable_bytes(machine.memory_bytes) for machine in machines)),
        ("system", _listed(machine.system for machine in machines)),
        ("device, dtype", _listed(f"{record.device}, {record.dtype}" for record in records)),
        ("backbone", _listed(_backbone(record) for record in records)),
        ("backbone fingerprint", _listed(record.backbone.fingerprint for record in records)),
        ("tokenizer digest", _listed(record.backbone.tokenizer_digest for record in records)),
        ("recipes", _listed(record.recipe for record in records)),
    ]
    for task, split in sorted({(record.task, record.split) for record in records}):
        of_task = [record for record in records if record.task == task]
        sources = dict.fromkeys(_data(each) for each in sorted(of_task, key=lambda each: -each.data.train_rows))
        rows.append((f"{task_title(task, split)} data", "; ".join(sources)))
    digests = sorted(record.predictions.sha256 for record in records if record.predictions is not None)
    together = hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()
    return [*rows, ("predictions", f"{len(digests)} files; SHA-256 over their sorted digests {together}")]


def _backbone(record: RunRecord) -> str:
    info = record.backbone
    revision = f" at {info.revision}" if info.revision else ""
    return f"{source_name(info.source)}{revision} ({info.family}, {info.layers} layers, {info.parameters:,} parameters)"


def _data(record: RunRecord) -> str:
    data = record.data
    own = "" if swept_train_rows(record.method) is None else f", {data.train_rows:,} training rows"
    source = "the bundled sample" if data.sample else source_name(data.source)
    return f"{source}{own}: fingerprint {data.fingerprint}"


def _commands(records: Sequence[RunRecord]) -> list[str]:
    """Return every distinct command, in the order in which they were first given."""
    first: dict[str, str] = {}
    for record in records:
        command = _without_folders(record.command)
        first[command] = min(record.started, first.get(command, record.started))
    return sorted(first, key=lambda command: (first[command], command))


def _without_folders(command: str) -> str:
    """Return a command with whole paths named by their last part, as the page is read on other machines."""
    try:
        parts = shlex.split(command)
    except ValueError:  # not of a shell's making
        return command
    return shlex.join("=".join(map(source_name, part.split("=", 1))) for part in parts)


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(set(values))))
