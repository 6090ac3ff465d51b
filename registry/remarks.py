"""What a reader is told beside the numbers: seeds, rows, overlap, machine, versions, and which runs to be wary of.

The tables are frames.py's, their form is documents.py's; nothing is computed anew here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from registry.comparable import is_dirty, not_above_majority, why_not_averaged
from registry.documents import one_line, readable_bytes, share
from registry.frames import SAMPLE_NOTICE, missing_baselines, source_name
from registry.schema import Hardware, RunRecord
from registry.variants import split_name


def notes(records: Sequence[RunRecord]) -> list[str]:
    """Return what a reader needs to judge the numbers: seeds, rows, machine, versions, what is missing."""
    records = sorted(records, key=lambda record: (record.task, record.method, record.seed))
    found = [
        "± is the standard deviation over seeds (sample form, n - 1); a score without it comes from one seed.",
        f"Seeds: {_listed(record.seed for record in records)}; all of them count, none was chosen.",
        f"Main metric: {_listed(f'{record.task} {record.main_metric}' for record in records)}.",
        "A point is a hundredth of the main metric; differences are between means, and no significance test was made.",
        *_rows_notes(records),
        f"Backbone: {_listed(_backbone(record) for record in records)}. Trainable percentages are of its parameters.",
        f"Machine: {'; '.join(sorted({_machine(record) for record in records}))}.",
        f"Dtype: {_listed(record.dtype for record in records)}.",
        f"Libraries: {_listed(f'{n} {v}' for record in records for n, v in record.library_versions.items())}.",
        f"Code: {_listed(record.code for record in records)}.",
    ]
    if len({_machine(record) for record in records}) > 1:
        found.append("Times and memory come from different machines and do not compare.")
    together = [record.together for record in records if record.together > 1]
    if together:
        found.append(
            f"Of {len(records)} runs, {len(together)} were trained in passes of up to {max(together)} sets: their "
            "training seconds are shares of a joint pass by tokens, and their peak memory is the whole pass's."
        )
    if any(split_name(record.method)[1] for record in records):
        found.append(
            "Methods with swept settings in their names are compared on the reported split itself: the best of them is "
            "chosen there, so its score flatters it."
        )
    if dirty := [record for record in records if is_dirty(record)]:
        found.append(
            f"{len(dirty)} of {len(records)} runs were made by uncommitted code "
            f"({_listed(record.code for record in dirty)}): nobody can repeat them, and none is averaged with another."
        )
    found += [_low_note(record, records) for record in not_above_majority(records)]
    return [*found, *missing_and_failed(records)]


def missing_and_failed(records: Sequence[RunRecord]) -> list[str]:
    """Return one line for baselines that were not run, one for each failed run, and one for each mean not taken."""
    found = []
    if missing := missing_baselines(records):
        found.append(f"Baselines not run: {', '.join(missing)}.")
    failed = [record for record in records if record.status == "failed"]
    found += [f"Failed: {_cell(record)}: {one_line(record.error or 'no reason recorded')}" for record in failed]
    cells: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        cells.setdefault((record.task, record.method), []).append(record)
    for (task, method), cell in sorted(cells.items()):
        if why := why_not_averaged(cell):
            found.append(f"Not averaged: {method} on {task}: {why}; run them again with one commit.")
    return found


def notice(records: Sequence[RunRecord]) -> str:
    """Return the line that must come first where any record is from the bundled sample, or an empty string."""
    return SAMPLE_NOTICE if any(record.data.sample for record in records) else ""


def _rows_notes(records: Sequence[RunRecord]) -> list[str]:
    """Return one line for each task and what its runs saw; a run that read no texts cannot say how many were cut."""
    read = [record for record in records if record.training is not None and record.status == "finished"]
    tasks = {record.task for record in read}
    told = [*read, *(record for record in records if record.task not in tasks)]
    return sorted(set(map(_rows_note, told)))


def _rows_note(record: RunRecord) -> str:
    data = record.data
    source = "the bundled sample" if data.sample else source_name(data.source)
    overlap = (
        "whether reported rows also stand in the training rows was not checked"
        if data.overlap_reported is None
        else f"{data.overlap_reported:,} of {data.reported_rows:,} reported rows also stand in the training rows, "
        "but for case, spacing and punctuation"
    )
    return (
        f"{record.task}, from {source}: trained on {data.train_rows:,} of {data.train_available:,} rows "
        f"({_truncated(data.truncated_train, data.train_rows)}), reported on {data.reported_rows:,} of "
        f"{data.reported_available:,} rows of {record.split} "
        f"({_truncated(data.truncated_reported, data.reported_rows)}); {overlap}."
    )


def _truncated(rows: int, of: int) -> str:
    return f"{rows:,} truncated, {share(100 * rows / of)}" if rows else "none truncated"


def _low_note(record: RunRecord, records: Sequence[RunRecord]) -> str:
    metric = record.main_metric
    majority = next(
        one for one in records if (one.task, one.method, one.status) == (record.task, "majority", "finished")
    )
    return (
        f"No better than the majority class: {_cell(record)}: {metric} {record.scores[metric]:.3f}, "
        f"majority {majority.scores[metric]:.3f}."
    )


def _backbone(record: RunRecord) -> str:
    info = record.backbone
    return f"{source_name(info.source)} ({info.parameters:,} parameters, fingerprint {info.fingerprint[:12]})"


def _machine(record: RunRecord) -> str:
    machine: Hardware = record.hardware
    accelerator = f", {machine.accelerator}" if machine.accelerator else ""
    memory = readable_bytes(machine.memory_bytes)
    return (
        f"{machine.processor}, {machine.cores} cores, threads a run: {machine.threads}, {memory} memory{accelerator}, "
        f"{machine.system}, on {record.device}"
    )


def _cell(record: RunRecord) -> str:
    return f"{record.method} on {record.task}, seed {record.seed}"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in sorted(set(values)))
