"""What a leaderboard wants: answers to rows whose labels it keeps, in its own files, and one average over its tasks.

Source: Wang et al. 2019, "GLUE", section 3, and the form of its server's files.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy

from registry.bench.records import RunRecord, read_records, write_file
from registry.bench.results import averaged_runs
from registry.bench.suite import AverageGroup, SubmissionFile, Suite
from registry.model.inference import predict_probabilities
from registry.store.manifest import require_head
from registry.store.registry import Registry
from registry.tasks.loading import load_texts
from registry.tasks.metrics import predicted_labels
from registry.tasks.rows import Rows
from registry.tasks.spec import TaskSpec


def write_submission(folder: Path, registry: Registry, reference: str, wanted: SubmissionFile, rows: Rows) -> Path:
    """Write a stored set's answers to rows, ``index`` and ``prediction`` of each, and return the file.

    Args:
        folder: made where it is not there.
        registry: of the set.
        reference: of the set.
        wanted: the form.
        rows: all of the split, in its order; their labels are not looked at.

    Raises:
        AdapterNotFoundError, IntegrityError: see ``Registry.load``.
        RunError: the folder cannot be written.
    """
    manifest, one = registry.manifest(reference), registry.load(reference)
    require_head(str(reference), manifest)
    tokens = registry.backbone.tokenize(rows.texts, rows.pairs, manifest.max_length)
    found = predicted_labels(manifest.head.problem_type, predict_probabilities(registry.backbone.encoder, one, tokens))
    if manifest.head.problem_type == "regression":
        answers = [f"{value:.3f}" for value in numpy.clip(found, wanted.least, wanted.most)]
    else:
        answers = [manifest.head.label_names[place] if wanted.names else str(place) for place in found.tolist()]
    lines = ["index\tprediction", *(f"{index}\t{answer}" for index, answer in enumerate(answers))]
    path = folder / wanted.file
    write_file(path, ("\n".join(lines) + "\n").encode())
    return path


def average_rows(records: Sequence[RunRecord], groups: Sequence[AverageGroup]) -> list[dict[str, str | float | None]]:
    """Return for each method what it scores on each group of tasks, and the mean over the groups.

    A task counts by the mean of the group's metrics, each a mean over seeds, and a group by that of its tasks. Where
    one has no mean, there is no average either.
    """
    cells: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        cells.setdefault((record.method, record.task), []).append(record)

    def score_of(method: str, task: str, metrics: Sequence[str]) -> float | None:
        runs = averaged_runs(cells.get((method, task), []))
        names = metrics or ([runs[0].main_metric] if runs else [])
        if not runs or not all(name in run.scores for run in runs for name in names):
            return None
        return statistics.fmean(statistics.fmean(run.scores[name] for run in runs) for name in names)

    rows: list[dict[str, str | float | None]] = []
    for method in dict.fromkeys(method for method, _ in cells):
        row: dict[str, str | float | None] = {"method": method}
        means: list[float | None] = []
        for group in groups:
            scores = [score_of(method, task, group.metrics) for task in group.tasks]
            known = [score for score in scores if score is not None]
            means.append(statistics.fmean(known) if len(known) == len(scores) else None)
            row["+".join(group.tasks)] = means[-1]
        whole = [mean for mean in means if mean is not None]
        rows.append({**row, "average": statistics.fmean(whole) if len(whole) == len(groups) else None})
    return rows


def write_averages(path: Path, rows: Sequence[Mapping[str, str | float | None]]) -> None:
    """Write the averages as csv; what has none is empty.

    Raises:
        RunError: the folder cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: round(each, 6) if isinstance(each, float) else each for name, each in row.items()})
    write_file(path, text.getvalue().encode())


def finish_suite(
    out: Path,
    suite: Suite,
    specs: Sequence[TaskSpec],
    registry: Registry | None,
    data: str,
    *,
    offline: bool = False,
) -> list[Path]:
    """Write the average over a suite's tasks, and the files of its leaderboard, and return what was written.

    Args:
        out: the folder of the report.
        suite: says which are wanted.
        specs: its tasks.
        registry: of the sets that were kept under the tasks' names; None where none were.
        data: where the rows to be answered are, as ``load_task`` takes it.
        offline: never ask the network.

    Raises:
        DataError, DataUnavailableError: a split that cannot be read.
        RunError: the folder cannot be written.
    """
    written = []
    if suite.average:
        written.append(out / "average.csv")
        write_averages(written[-1], average_rows(read_records(out), suite.average))
    by_name = {spec.name: spec for spec in specs}
    for task, wanted in suite.submission.items() if registry is not None else ():
        if registry is not None and task in registry:
            rows = load_texts(by_name[task], wanted.split, data, offline=offline)
            written.append(write_submission(out / "submission", registry, task, wanted, rows))
    return written
