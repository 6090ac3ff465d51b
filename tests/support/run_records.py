"""Run records for tests: real ones, with scores that are exact in binary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
from rich.table import Table

from registry.bench.records import RunRecord, find_records, read_record, write_file, write_record
from registry.config import TrainingConfig
from registry.provenance import Hardware
from registry.reports.content import ReportContent, gather_evidence
from registry.reports.report import render_terminal, write_report
from registry.schema import REPORT_FORMATS, BackboneInfo, DataInfo
from registry.stats.predictions import CellKey, CellPredictions, Predictions
from registry.tasks.metrics import score
from registry.training.plan import ParameterCounts
from registry.validation import to_json

BACKBONE = 22_713_216
SCORES = {"majority": 0.5, "head_only": 0.75, "houlsby": 0.875, "pfeiffer": 0.8125, "full_fine_tuning": 0.9375}
TRAINABLE = {"majority": 0, "head_only": 770, "houlsby": 226_850, "full_fine_tuning": BACKBONE + 770}


def make_record(task: str, method: str, seed: int = 0, **changes: object) -> RunRecord:
    """Return the record of one cell; ``changes`` replace its fields."""
    score = SCORES.get(method, 0.8) + seed / 64
    trainable = TRAINABLE.get(method, 113_810)
    record = RunRecord(
        settings="0" * 64,
        task=task,
        method=method,
        seed=seed,
        recipe=method,
        split="validation",
        main_metric="f1_binary" if task == "mrpc" else "accuracy",
        scores={"accuracy": score - 0.125, "f1_binary": score, "f1_weighted": score - 0.0625},
        parameters=ParameterCounts(trainable=trainable, stored=trainable, backbone=BACKBONE, total=BACKBONE),
        stored_bytes=4 * trainable,
        train_seconds=10.0 + seed,
        rows_per_second=100.0,
        peak_memory_bytes=1000 + seed,
        data=DataInfo(
            source="hub",
            sample=False,
            train_rows=3668,
            reported_rows=408,
            train_available=3668,
            reported_available=408,
            truncated_train=12,
            fingerprint=f"{task} data",
        ),
        backbone=BackboneInfo(
            source="embedded",
            family="bert",
            hidden_size=384,
            layers=6,
            parameters=BACKBONE,
            fingerprint="b" * 64,
            tokenizer_digest="t" * 64,
        ),
        training=None if method == "majority" else TrainingConfig(seed=seed),
        device="cpu",
        dtype="float32",
        hardware=Hardware(processor="a cpu", cores=2, threads=2, memory_bytes=16 * 10**9, system="Linux"),
        library_versions={"torch": "2.13.0"},
        code="0.1.0",
        command="adapter-registry bench",
        started="2026-01-01T00:00:00Z",
    )
    return msgspec.structs.replace(record, **changes)


def fail(record: RunRecord) -> RunRecord:
    """Return the record as it would be had the run diverged."""
    return msgspec.structs.replace(record, status="failed", error="training stopped at step 3: found nan", scores={})


def from_sample(record: RunRecord) -> RunRecord:
    """Return the record as it would be of the bundled sample."""
    return msgspec.structs.replace(record, data=msgspec.structs.replace(record.data, source="sample", sample=True))


def pass_as_committed(out: Path) -> None:
    """Rewrite all records of a real benchmark as if its code had been committed, which in a working tree is rare."""
    for path in find_records(out):
        write_file(path, to_json(msgspec.structs.replace(read_record(path), code="0123456789ab")))


def make_records() -> list[RunRecord]:
    """Return two tasks, five methods, three seeds."""
    return [make_record(task, method, seed) for task in ("sst2", "mrpc") for method in SCORES for seed in (0, 1, 2)]


def answer(record: RunRecord, right: float, rows: int = 200) -> tuple[RunRecord, Predictions]:
    """Return the record with the scores of made-up answers, of which about a share of ``right`` is right, and those.

    Labels are the same for all records; answers differ by method and seed.
    """
    labels = np.arange(rows) % 3 % 2
    generator = np.random.default_rng([record.seed, *record.method.encode()])
    sure = generator.uniform(0.5, 1, rows)
    on_label = np.where(generator.random(rows) < right, sure, 1 - sure)
    probabilities = np.stack([np.where(labels == n, on_label, 1 - on_label) for n in (0, 1)], axis=1)
    predictions = Predictions(np.arange(rows), labels, probabilities.astype(np.float32))
    scores = score("classification", labels.tolist(), predictions.probabilities, ("accuracy", "f1_binary"))
    data = msgspec.structs.replace(record.data, reported_rows=rows, reported_available=rows)
    return msgspec.structs.replace(record, scores=scores, data=data), predictions


def write_answered(out: Path, task: str, rights: Mapping[str, float], seeds: int = 3, **changes: object) -> None:
    """Write records with answers to them: for each method as many seeds, each right on about that share of rows."""
    for method, right in rights.items():
        for seed in range(seeds):
            write_record(out, *answer(make_record(task, method, seed, **changes), right))


def evidence_of(
    records: Sequence[RunRecord], answers: Mapping[CellKey, CellPredictions] | None = None
) -> ReportContent:
    """Return what follows from records, by default without any predictions."""
    return gather_evidence(records, answers or {})


def summary_of(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the summary of records without predictions."""
    return evidence_of(records).summary


def totals_of(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the totals of records without predictions."""
    return evidence_of(records).totals


def report_of(out: Path, records: Sequence[RunRecord], formats: Sequence[str] = REPORT_FORMATS) -> list[Path]:
    """Write the report of records without predictions."""
    return write_report(out, evidence_of(records), formats)


def terminal_of(records: Sequence[RunRecord]) -> Table:
    """Return the terminal's table of records without predictions."""
    return render_terminal(evidence_of(records))
