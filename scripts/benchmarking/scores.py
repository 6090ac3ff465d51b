"""What each training contender learns: equal rows, epochs and seed, each with a learning rate suited to it.

A finished score is written at once, under a key of everything that decides it, and is not computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
from ours import ADAPTER, DTYPES, HEAD, Backbones, training_config
from peer_client import PeerWorker
from rounds import ContenderError, now

from registry.bench.records import write_file
from registry.model.backbone import Backbone
from registry.model.inference import LabelledRows, predict_probabilities
from registry.provenance import code_version
from registry.tasks.loading import load_task
from registry.tasks.metrics import score
from registry.tasks.rows import Rows
from registry.tasks.spec import find_task
from registry.tasks.task_data import TaskData
from registry.training.loop import train

METRICS = ("accuracy", "f1_binary")
# Rows to train on and to score (None: all), and epochs by task.
SIZES: dict[str, tuple[dict[str, int | None], int | None, dict[str, int]]] = {
    "quick": ({"mrpc": 320, "sst2": 320}, 160, {"mrpc": 1, "sst2": 1}),
    "full": ({"mrpc": None, "sst2": 2_000}, None, {"mrpc": 2, "sst2": 2}),
}
PEERS = {"mrpc": ("adapters", "peft", "full", "notebook"), "sst2": ("adapters", "peft", "full")}
SEED = 0


@dataclass(frozen=True)
class Course:
    """The rows and epochs that every contender of a task gets."""

    task: str
    epochs: int
    data: TaskData
    train: LabelledRows
    reported: LabelledRows

    def key(self, contender: str, versions: str) -> str:
        """Return what a score is remembered by."""
        rows = f"{len(self.train)} rows x {self.epochs}, scored on {len(self.reported)}"
        return f"{self.task}/{contender}/{rows}/seed {SEED}/{self.data.fingerprint()[:12]}/{versions}"


def score_all(form: str, source: str, backbones: Backbones, worker: PeerWorker, out: Path) -> list[dict[str, Any]]:
    """Return the score of every contender of every task, the peers' where there are any."""
    path = out / "benchmark-scores.json"
    known: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    found = []
    for task in PEERS:
        course = read_course(task, form, source, backbones["float32"])
        goes: dict[str, Callable[[], dict[str, Any]]] = {
            f"ours-{dtype}": partial(score_ours, course, backbones[dtype]) for dtype in DTYPES
        }
        if worker.python is not None:
            goes |= {name: partial(score_peer, course, name, worker) for name in PEERS[task]}
        for contender, go in goes.items():
            key = course.key(contender, recipe_digest(contender))
            if key not in known:
                outcome = attempt(go)
                if "failed" not in outcome:
                    known[key] = outcome
                    write_file(path, (json.dumps(known, indent=2) + "\n").encode())
            else:
                outcome = known[key]
            found.append({"task": task, "contender": contender, "rows": len(course.train), "epochs": course.epochs,
                          "scored_rows": len(course.reported), "seed": SEED, **outcome})  # fmt: skip
            print(f"score {task:<6} {contender:<16} " + str(outcome.get("failed") or outcome["scores"]), flush=True)
    return found


def attempt(go: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what ``go`` returns, or why it could not."""
    try:
        return go()
    except ContenderError as err:
        return {"failed": str(err)}
    except Exception as err:
        return {"failed": f"failed: {err!r}"}


def recipe_digest(contender: str) -> str:
    """Return what tells two recipes of one contender apart: our choices, or the worker and its versions."""
    if contender.startswith("ours"):
        return hashlib.sha256(repr((ADAPTER, HEAD, training_config())).encode()).hexdigest()[:12]
    here = Path(__file__).parent
    files = (here / "peer_worker.py").read_bytes() + (here.parent / "peers.txt").read_bytes()
    return hashlib.sha256(files).hexdigest()[:12]


def read_course(task: str, form: str, source: str, backbone: Backbone) -> Course:
    """Return a task's rows, tokenised."""
    rows, scored, epochs = SIZES[form]
    data = load_task(find_task(task), source, limit=rows[task], limit_reported=scored)

    def tokens(split: Rows) -> LabelledRows:
        return LabelledRows(backbone.tokenize(split.texts, split.pairs), split.labels)

    return Course(task, epochs[task], data, tokens(data.train), tokens(data.reported))


def score_ours(course: Course, backbone: Backbone) -> dict[str, Any]:
    """Train one set through the package's own door and score it."""
    config = training_config(course.epochs, SEED)
    adapter_set = backbone.new_adapter_set(ADAPTER, HEAD, seed=SEED)
    started = now(backbone.device)
    train(backbone.encoder, adapter_set, course.train, config)
    seconds = now(backbone.device) - started
    probabilities = predict_probabilities(backbone.encoder, adapter_set, course.reported.tokens)
    scores = score("classification", course.reported.labels, probabilities, METRICS)
    return {"scores": scores, "seconds": seconds, "learning_rate": config.learning_rate, "code": code_version()}


def score_peer(course: Course, name: str, worker: PeerWorker) -> dict[str, Any]:
    """Let the worker train a peer and score its predictions by the same code as ours."""
    path = worker.folder / "course.json"
    path.write_text(json.dumps({"train": plain(course.train), "reported": plain(course.reported)}))
    request = {"contender": name, "rows": str(path), "epochs": course.epochs}
    answer = worker.ask({"score": request})
    chosen = numpy.eye(2)[answer.pop("predictions")]
    scores = score("classification", course.reported.labels, chosen, METRICS)
    return {"scores": scores, **answer, "versions": worker.versions}


def plain(rows: LabelledRows) -> dict[str, list[Any]]:
    """Return token rows as the worker reads them."""
    return {
        "input_ids": [list(ids) for ids in rows.tokens.input_ids],
        "type_ids": [list(kinds) for kinds in rows.tokens.type_ids],
        "labels": list(rows.labels),
    }
