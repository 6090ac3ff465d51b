"""Our rates beside those of AdapterHub's adapters and Hugging Face's peft, measured in turns on this machine.

The peers run in a process of their own virtual environment; both sides get the same token rows, one thread, and count
their own CPU time (wall time on a GPU). Only ratios within one run mean anything on a shared machine.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from gpu import measure_gpu
from ours import (
    AFTER_LAYER,
    RESIDENT_SETS,
    fill_pool,
    inference_contenders,
    load_backbones,
    mixed_contenders,
    resident_pool,
    switching_contenders,
    training_contenders,
    zipf_owners,
)
from peer_client import PeerWorker
from profiling import Profile, profile_contender
from report import Measured, table, write
from rounds import Contender, Result, Results, measure
from scores import plain, score_all

from registry.model.backbone import Backbone
from registry.model.inference import LabelledRows
from registry.model.pretrained import locate
from registry.serving.pool import AdapterPool
from registry.tasks.loading import load_task
from registry.tasks.spec import find_task

MIXED_ROWS, MIXED_SETS = 32, 16
PEER_SWITCHES = 20
SLOW_ROUNDS = 3  # with the one that warms up, for what is slow and behind no narrow target
OWN_ROUNDS = 3  # rounds of ours for each of the peers where a few percent of our own bare model count
# Rows of each task, rows of the notebook's recipe, rounds beside the one that warms up.
SIZES = {"quick": ({"mrpc": 64, "sst2": 96}, 8, 3), "full": ({"mrpc": 160, "sst2": 192}, 8, 5)}

PEER_LABELS = {
    "adapters": "adapters: seq_bn, reduction factor 16, padded",
    "adapters_sorted": "adapters: the same, rows sorted by length",
    "adapters_bare": "adapters: bare model, same batches",
    "peft": "peft: LoRA rank 8, padded",
    "peft_bare": "peft: bare model, same batches",
    "full": "transformers: full fine-tuning, padded",
    "bare": "transformers: bare model, padded",
    "notebook": "the lab notebook's recipe, padded to 512, batch 8",
}


def main() -> None:
    """Measure, print as it goes, and write the report."""
    options = read_options()
    torch.set_num_threads(1)
    sizes, notebook_rows, rounds = SIZES["quick" if options.quick else "full"]
    backbones = load_backbones(options.device)
    if options.scores_only:
        score_only(options, backbones)
        return
    pool, memory = resident_pool(backbones["float32"])
    rows = {task: read_rows(task, options.data, limit, backbones["float32"]) for task, limit in sizes.items()}
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(
            backbones, rows, pool, PeerWorker(options.peers, job_of(rows, notebook_rows, options), Path(name))
        )
        results = bench.measure_all(rounds)
        form = options.scores or ("quick" if options.quick else "full")
        bench.worker.forget()
        scores = score_all(form, options.data, backbones, bench.worker, options.out) if form != "none" else []
        gpu = measure_gpu(Path(name), rounds) if torch.cuda.is_available() else {}
        measured = Measured(results, memory, scores, gpu, bench.worker.versions, options.data, options.device)
        measured.profiles = bench.profile_missed(measured)
        bench.worker.close()
    write(measured, options.out)


def read_options() -> argparse.Namespace:
    """Return the command line's choices."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, and quick scores")
    parser.add_argument("--data", default="hub", help="hub, sample or a folder of parquet files")
    parser.add_argument("--scores", choices=("quick", "full", "none"), help="how long contenders train to be scored")
    parser.add_argument(
        "--scores-only", action="store_true", help="train and score, and leave the rates to a later run"
    )
    parser.add_argument(
        "--device", default="cpu", help="for the rows beside the peers; GPU rows use CUDA if it is there"
    )
    parser.add_argument("--peers", type=Path, help="Python of the peers' virtual environment, .venv-peers by default")
    parser.add_argument("--out", type=Path, default=Path("reports"))
    options = parser.parse_args()
    made = Path(".venv-peers/.installed").is_file()
    options.peers = options.peers or (Path(".venv-peers/bin/python") if made else None)
    if options.peers is None:
        print("no .venv-peers here: the peers' rows are not measured", flush=True)
    return options


def score_only(options: argparse.Namespace, backbones: dict[str, Backbone]) -> None:
    """Train and score every contender that has no score yet; a later run takes the scores from OUT."""
    job = {"checkpoint": str(locate("embedded")), "device": options.device, "seed": 0, "rows": {}}
    with tempfile.TemporaryDirectory() as name:
        worker = PeerWorker(options.peers, job, Path(name))
        score_all(
            options.scores or ("quick" if options.quick else "full"), options.data, backbones, worker, options.out
        )
        worker.close()


def read_rows(task: str, source: str, limit: int, backbone: Backbone) -> LabelledRows:
    """Return training rows of a task, tokenised once for everybody."""
    rows = load_task(find_task(task), source, limit=limit).train
    return LabelledRows(backbone.tokenize(rows.texts, rows.pairs), rows.labels)


def mixed_batches(count: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return batches of 32 rows, and for each row its one of 16 sets, two rows a set in shuffled order."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(count, generator=generator).tolist()
    batches = [order[first : first + MIXED_ROWS] for first in range(0, count - MIXED_ROWS + 1, MIXED_ROWS)]
    owners = [torch.randperm(MIXED_ROWS, generator=generator).remainder(MIXED_SETS).tolist() for _ in batches]
    return batches, owners


def job_of(rows: dict[str, LabelledRows], notebook_rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what the peers' worker needs to know."""
    batches, owners = mixed_batches(len(rows["sst2"]))
    return {
        "checkpoint": str(locate("embedded")),
        "device": options.device,
        "seed": 0,
        "rows": {task: plain(labelled) for task, labelled in rows.items()},
        "notebook_rows": notebook_rows,
        "switches": PEER_SWITCHES,
        "mixed": {"batches": batches, "sets": owners},
    }


class Bench:
    """All groups of contenders over one choice of rows.

    Args:
        backbones: ours, by dtype.
        rows: by task, as the worker has them too.
        pool: of the resident sets, for float32.
        worker: the peers.
    """

    def __init__(
        self, backbones: dict[str, Backbone], rows: dict[str, LabelledRows], pool: AdapterPool[int], worker: PeerWorker
    ):
        self.backbones, self.rows, self.worker = backbones, rows, worker
        self.pools = {"float32": pool, "bfloat16": fill_pool(backbones["bfloat16"], RESIDENT_SETS)}
        self.batches, self.owners = mixed_batches(len(rows["sst2"]))

    def measure_all(self, rounds: int) -> Results:
        """Return the rates of every contender of every group."""
        found: list[Result] = []
        for group in ("train-mrpc", "train-sst2", "infer-mrpc", "infer-sst2", "mixed-sst2", "resident", "switch"):
            times = OWN_ROUNDS if group in ("mixed-sst2", "resident") else 1
            found += measure(group, [*self.ours(group), *self.peers(group, rounds)], rounds * times)
            self.worker.forget()
        return Results(found)

    def ours(self, group: str) -> list[Contender]:
        """Return our contenders of a group."""
        kind, _, task = group.partition("-")
        if kind == "train":
            return training_contenders(self.backbones, self.rows[task])
        if kind == "infer":
            return inference_contenders(self.backbones, self.rows[task].tokens)
        if kind == "switch":
            return switching_contenders(self.backbones["float32"])
        tokens = self.rows["sst2"].tokens
        if kind == "mixed":
            label = f"ours: {MIXED_SETS} sets in a batch of {MIXED_ROWS}"
            after_layer = {name: fill_pool(each, MIXED_SETS, AFTER_LAYER) for name, each in self.backbones.items()}
            pools = {"ours": self.pools, "ours_after_layer": after_layer}
            return mixed_contenders(self.backbones, pools, tokens, self.batches, self.owners, label)
        owners = zipf_owners(self.batches, RESIDENT_SETS)
        label = f"ours: {RESIDENT_SETS:,} resident sets, Zipf(1.0)"
        return mixed_contenders(self.backbones, {"ours": self.pools}, tokens, self.batches, owners, label)

    def peers(self, group: str, rounds: int) -> list[Contender]:
        """Return the peers' contenders of a group."""
        kind, _, task = group.partition("-")
        if kind == "switch":
            loaded = [(library, count) for library in ("adapters", "peft") for count in (2, 64)]
            return [
                self.peer(group, f"{name}-{count}", f"{name}: {count} loaded", PEER_SWITCHES) for name, count in loaded
            ]
        if kind == "mixed":
            count = sum(len(batch) for batch in self.batches)
            names = {"adapters": f"adapters: BatchSplit of {MIXED_SETS} seq_bn, padded",
                     "peft": f"peft: adapter_names of {MIXED_SETS} LoRA rank 8, padded"}  # fmt: skip
            labels = {
                key: names.get(key, PEER_LABELS[key]) for key in ("adapters_bare", "adapters", "peft_bare", "peft")
            }
            return [self.peer(group, key, label, count, rounds + 1) for key, label in labels.items()]
        if kind == "resident":
            return []
        keys = ("adapters", "peft", "full") if kind == "train" else ("bare", "adapters", "adapters_sorted", "peft")
        most = {"full": SLOW_ROUNDS}
        found = [self.peer(group, key, PEER_LABELS[key], len(self.rows[task]), most.get(key, 1_000)) for key in keys]
        if group == "train-mrpc":
            count = self.worker.job["notebook_rows"]
            found.append(self.peer(group, "notebook", PEER_LABELS["notebook"], count, SLOW_ROUNDS))
        return found

    def peer(self, group: str, key: str, label: str, count: int, most_rounds: int = 1_000) -> Contender:
        """Return one contender of the peers."""
        return Contender(key, label, count, lambda: self.worker.seconds(f"{group}/{key}"), most_rounds)

    def profile_missed(self, measured: Measured) -> list[Profile]:
        """Return where the time of our contenders behind each missed target goes."""
        missed = {(row.group, key) for row in table(measured) if row.met is False for key in row.ours}
        found = []
        for group, key in sorted(missed):
            task = "mrpc" if group.endswith("mrpc") else "sst2"
            lengths = [len(ids) for ids in self.rows[task].tokens.input_ids]
            for contender in self.ours(group):
                if contender.key != key or group == "switch":
                    continue
                backbone = self.backbones[key.rpartition("-")[2]]
                batch_rows = MIXED_ROWS if group in ("mixed-sst2", "resident") else 16
                trains = group.startswith("train")
                seconds = contender.count / (measured.results[group, key].rate or contender.count)
                found.append(profile_contender(group, contender, backbone, seconds, lengths, batch_rows, trains))
        return found


if __name__ == "__main__":
    main()
