"""Whole benchmarks for tests: real run records with the predictions that their scores are of, no training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry.bench.curves import HeldOutScores, LearningCurve
from registry.bench.records import RunRecord, write_record
from registry.bench.sweep import split_name
from registry.config import AdapterConfig, HeadConfig, ProblemType, TrainingConfig
from registry.stats.predictions import Predictions
from registry.tasks.metrics import score
from registry.tasks.spec import METRICS
from tests.support.run_records import fail, make_record

SKILLS = {"majority": 0.0, "head_only": 0.9, "after_layer": 1.7, "pfeiffer": 1.8, "full_fine_tuning": 2.0}
SWEEPS = (
    *(f"{method}-rf{factor}" for method in ("after_layer", "pfeiffer") for factor in (2, 8, 48, 192)),
    *(f"{method}-n{rows}" for method in ("pfeiffer", "full_fine_tuning") for rows in (100, 300, 1000)),
)
LABELS = {"mrpc": ("not_equivalent", "equivalent"), "sst2": ("negative", "positive"), "imdb": ("neg", "pos")}


def write_run(out: Path, task: str, method: str, seed: int, *, rows: int = 120, **changes: Any) -> RunRecord:
    """Write one run with its answers and return its record; ``changes`` replace its fields."""
    names = LABELS.get(task, ("no", "yes"))
    base, swept = split_name(method)
    settings = dict(swept)
    labels = np.random.default_rng(len(task)).integers(0, len(names), rows)
    skill = SKILLS[base] - 0.3 * (settings.get("rf", 16) > 16) - 60 / settings.get("n", math.inf)
    probabilities = class_probabilities(labels, len(names), skill, seed, base)
    record = make_record(task, method, seed)
    main, others = record.main_metric, ("accuracy", "f1_binary", "f1_weighted")
    metrics = (main, *(name for name in others if name != main))
    bottlenecks = base not in ("majority", "head_only", "full_fine_tuning")
    factor = int(settings.get("rf", 16))
    fields: dict[str, Any] = {
        "scores": score("classification", labels.tolist(), probabilities, metrics),
        "head": None if base == "majority" else HeadConfig(label_names=names),
        "adapter": AdapterConfig(reduction_factor=factor) if bottlenecks else None,
        "training": None if base == "majority" else TrainingConfig(seed=seed),
        "curve": None if base == "majority" else learning_curve(skill, seed, main),
        "data": _data(record, rows, int(settings.get("n", 3668))),
        "started": f"2026-01-0{1 + seed}T00:00:00Z",
        "command": f"adapter-registry bench {task} --seeds {seed}",
    }
    written = msgspec.structs.replace(record, **{**fields, **changes})
    done = written.status == "finished"
    write_record(out, written, Predictions(np.arange(rows) * 2, labels, probabilities) if done else None)
    return written


def write_own_run(out: Path, problem_type: ProblemType, method: str, seed: int, *, rows: int = 90) -> RunRecord:
    """Write one run on an own task of several labels or of numbers, called after that."""
    generator = np.random.default_rng(3)
    names = ("value",) if problem_type == "regression" else ("news", "sport", "law")
    task = problem_type.replace("_", "-")
    noise = np.random.default_rng(seed + 7).normal(scale=1 / (0.5 + SKILLS[method]), size=(rows, len(names)))
    if problem_type == "regression":
        labels = generator.normal(size=rows)
        probabilities = (labels[:, None] + noise).astype(np.float32)
    else:
        labels = (generator.random((rows, len(names))) < 0.4).astype(np.int64)
        probabilities = (1 / (1 + np.exp(-(2 * labels - 1 + noise)))).astype(np.float32)
    metrics = METRICS[problem_type]
    record = make_record(
        task,
        method,
        seed,
        main_metric=metrics[0],
        scores=score(problem_type, labels.tolist(), probabilities, metrics),
        head=HeadConfig(label_names=names, problem_type=problem_type) if method != "majority" else None,
    )
    record = msgspec.structs.replace(record, data=_data(record, rows, 3668))
    write_record(out, record, Predictions(np.arange(rows), labels, probabilities))
    return record


def write_benchmark(
    out: Path, tasks: tuple[str, ...] = ("mrpc", "sst2"), *, sweeps: bool = True, rows: int = 120
) -> None:
    """Write three seeds of five methods and of the sweeps on each task; one run of a placement has diverged."""
    for task in tasks:
        for method in (*SKILLS, *(SWEEPS if sweeps else ())):
            for seed in (0, 1, 2):
                write_run(out, task, method, seed, rows=rows)
    stopped = fail(make_record(tasks[0], "after_layer", 3))
    curve = LearningCurve(steps=(5, 10, 15), losses=(0.7, 1.4, 2.9))
    write_run(out, tasks[0], "after_layer", 3, status="failed", error=stopped.error, scores={}, curve=curve, rows=rows)


def class_probabilities(
    labels: NDArray[np.int64], classes: int, skill: float, seed: int, method: str
) -> NDArray[np.float32]:
    """Return answers that are right the more often the greater the skill; with none, all are the last class."""
    if not skill:
        shares = np.full(classes, 0.3 / (classes - 1))
        shares[-1] = 0.7
        return np.tile(shares, (len(labels), 1)).astype(np.float32)
    hard = np.random.default_rng(5).normal(scale=1.2, size=(len(labels), classes))
    own = np.random.default_rng([seed, len(method)]).normal(scale=0.6, size=(len(labels), classes))
    logits = hard + own
    logits[np.arange(len(labels)), labels] += skill
    powers = np.exp(1.5 * logits)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def learning_curve(skill: float, seed: int, metric: str) -> LearningCurve:
    """Return a hundred losses that fall the faster the greater the skill, and three scores on held-out rows."""
    steps = np.arange(1, 101) * 4
    noise = np.random.default_rng(seed).normal(scale=0.02, size=100)
    losses = 0.25 + 0.45 * np.exp(-steps * skill / 150) + noise
    held_out = tuple(
        HeldOutScores(step=step, scores={metric: round(0.6 + 0.1 * skill * step / 400, 4)}) for step in (100, 250, 400)
    )
    return LearningCurve(steps=tuple(steps.tolist()), losses=tuple(losses.round(5).tolist()), held_out=held_out)


def _data(record: RunRecord, rows: int, train_rows: int) -> Any:
    fingerprint = f"{record.task} {rows} {train_rows}"
    return msgspec.structs.replace(
        record.data, reported_rows=rows, reported_available=rows, train_rows=train_rows, fingerprint=fingerprint
    )
