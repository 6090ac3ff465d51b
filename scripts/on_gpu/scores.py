"""MRPC, SST-2 and IMDB at full size on the embedded encoder: every method, five seeds trained in one pass.

Settings are the recipes', which were chosen on held-out rows for batches of 16. SST-2 and IMDB have larger batches,
which keep a GPU busy, at a rate that grew by the root of that, and at most two epochs: none of this was tuned. Scores
are of MRPC's test, SST-2's validation and IMDB's test rows. Cells that the minutes do not hold are left out and named.
With graphs the seeds are trained one after another through them, where the method allows it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from carry import LENGTHS, SPLITS, unpacked, unpacked_encoder

from registry.config import TrainingConfig
from registry.graphs.capture import Capture, CudaCapture, can_capture
from registry.model.backbone import Backbone
from registry.model.inference import LabelledRows, predict_probabilities
from registry.tasks.metrics import score
from registry.training.loop import train_together
from registry.training.recipes import for_backbone, read_recipe, replace_fields
from registry.training.state import TrainingJob

METHODS = {"houlsby": "default", "lora": "lora", "bitfit": "bitfit", "ia3": "ia3", "prefix": "prefix"}
LABELS = {"mrpc": ("not_equivalent", "equivalent"), "sst2": ("negative", "positive"), "imdb": ("neg", "pos")}
METRICS = {"mrpc": ("accuracy", "f1_binary"), "sst2": ("accuracy",), "imdb": ("accuracy",)}
SEEDS = range(5)
BATCH, MOST_EPOCHS = {"mrpc": 16, "sst2": 64, "imdb": 32}, {"mrpc": 99, "sst2": 2, "imdb": 2}


def measure(
    folder: Path, carried: Path, device: str, until: float, quick: bool, graphs: bool, note: Any
) -> dict[str, Any]:
    """Return by task and method the scores of each seed, the seconds, and what was left out."""
    if not (carried / "embedded").is_dir():
        return {"left_out": [f"all: no folder {carried.name}/embedded; make it with scripts/on_gpu/carry.py"]}
    encoder = unpacked_encoder(carried / "embedded", folder / "embedded")
    backbone = Backbone.load(str(encoder), device=device, dtype="float32" if quick else "bfloat16")
    capture = CudaCapture(backbone.device) if graphs and not quick else None
    found: dict[str, Any] = {"left_out": [], "tasks": {}, "rows": {}, "graphs": graphs}
    spent = 0.0
    for task, (first, second) in SPLITS.items():
        if not (carried / f"{task}-{second}.npz").exists():
            found["left_out"].append(f"{task}: its rows were not carried")
            continue
        tokens, labels = unpacked(carried / f"{task}-{first}.npz")
        tested, expected = unpacked(carried / f"{task}-{second}.npz")
        if quick:
            tokens, tested = tokens.take(range(64)), tested.take(range(64))
            labels, expected = labels[:64], expected[:64]
        learned = LabelledRows(tokens, labels)
        found["rows"][task] = [len(tokens), len(tested)]
        for method, name in METHODS.items():
            if time.monotonic() + spent > until:
                found["left_out"].append(f"{task} {method}")
                continue
            began = time.monotonic()
            found["tasks"].setdefault(task, {})[method] = cell(
                backbone, task, name, learned, tested, expected, quick, capture
            )
            spent = time.monotonic() - began
            note("scores", found)
            print(task, method, found["tasks"][task][method], flush=True)
    return found


def cell(
    backbone: Backbone,
    task: str,
    name: str,
    learned: LabelledRows,
    tested: Any,
    expected: Any,
    quick: bool,
    capture: Capture | None,
) -> dict[str, Any]:
    """Return what five seeds of one method score, trained in one pass, or one after another through graphs."""
    recipe = read_recipe(name)
    base = recipe.training_for(task, recipe.adapter.name)
    head = recipe.head.for_task(LABELS[task], "classification", ())
    adapter = for_backbone(recipe.adapter, backbone)
    began = time.monotonic()
    jobs = []
    for seed in SEEDS:
        config: TrainingConfig = training_of(base, task, seed, quick)
        jobs.append(TrainingJob(backbone.new_adapter_set(adapter, head, seed=seed), learned, config))
    if capture is not None and can_capture(backbone.encoder, jobs[0].adapter_set.adapter):
        results = [train_together(backbone.encoder, [job], capture=capture)[0] for job in jobs]
    else:
        results = train_together(backbone.encoder, jobs)
    trained = time.monotonic() - began
    scores = [
        score(
            "classification", expected, predict_probabilities(backbone.encoder, job.adapter_set, tested), METRICS[task]
        )
        for job in jobs
    ]
    return {
        "scores": {metric: [round(100 * each[metric], 2) for each in scores] for metric in METRICS[task]},
        "epochs": jobs[0].config.epochs,
        "batch": jobs[0].config.batch_size,
        "learning_rate": jobs[0].config.learning_rate,
        "trained": jobs[0].adapter_set.trainable_count,
        "training_seconds": round(trained, 2),
        "diverged": sum(bool(getattr(result, "diverged", True)) for result in results),
    }


def training_of(base: TrainingConfig, task: str, seed: int, quick: bool) -> TrainingConfig:
    """Return the recipe's training with this script's batch, its rate grown by the root of the batch's growth."""
    grown = BATCH[task] / base.batch_size
    changes = {
        "seed": seed,
        "batch_size": BATCH[task],
        "learning_rate": base.learning_rate * grown**0.5,
        "max_length": LENGTHS[task],
        "epochs": 1 if quick else min(base.epochs, MOST_EPOCHS[task]),
    }
    config: TrainingConfig = replace_fields(base, changes)
    return config
