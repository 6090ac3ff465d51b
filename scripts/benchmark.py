"""Rates of this package beside the stock padded transformers model, measured interleaved in one process.

Every contender does the same rows in turn, round after round; a figure is the median over rounds of rows per second
of CPU time (wall time on a GPU), and only ratios within one run mean anything on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModel

from registry.backbone import Backbone
from registry.batching import Batch, shuffled_batches
from registry.data import load_task
from registry.evaluation import LabelledRows, logits_of
from registry.mixing import MixedAdapters
from registry.provenance import code_version, command_line, hardware, library_versions
from registry.recipes import read_recipe
from registry.records import replace_file
from registry.schema import TrainingConfig
from registry.sources import locate
from registry.tasks import find_task
from registry.training import TrainingRun

BATCH = 16
MIXED_ROWS, MIXED_SETS = 32, 16

Contender = tuple[str, int, Callable[[], None]]


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    parser.add_argument("--data", default="sample", help="hub, sample or a folder of parquet files")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("reports"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, rounds = (64, 3) if options.quick else (128, 9)
    precisions = {name: Backbone.load("embedded", device=options.device, dtype=name) for name in DTYPES}
    device = precisions["float32"].device
    results = []
    for task in ("mrpc", "sst2"):
        data = load_task(find_task(task), options.data, limit=rows)
        stock = stock_model(device)
        contenders = training_contenders(precisions, stock, data) + inference_contenders(precisions, stock, data)
        results += measure(task, contenders, rounds, device)
    results += measure("switch", switching_contenders(precisions["float32"]), rounds, device)
    write(results, options.out, device, options.data)


DTYPES = ("float32", "bfloat16")


def stock_model(device: torch.device) -> torch.nn.Module:
    """Return transformers' own encoder, as anyone would use it: padded batches, SDPA."""
    return AutoModel.from_pretrained(locate("embedded"), local_files_only=True).to(device)


def training_contenders(precisions: dict[str, Backbone], stock: torch.nn.Module, data) -> list[Contender]:
    """Return one epoch of training: the stock model fine-tuned whole, and one adapter set in each precision."""
    recipe = read_recipe("default").with_choices({"placement": "after_layer", "reduction_factor": 16}, {})
    head = recipe.head.for_task(data.spec.label_names, data.spec.problem_type)
    count = len(data.train)

    def fine_tune() -> None:
        model = stock.train()
        classifier = torch.nn.Linear(model.config.hidden_size, 2).to(model.device)
        optimizer = torch.optim.AdamW([*model.parameters(), *classifier.parameters()], lr=1e-5, fused=True)
        for indices in shuffled_batches([1] * count, BATCH, 0, 0):
            inputs = pad(precisions["float32"], data, indices).to(model.device)
            labels = torch.tensor([data.train.labels[i] for i in indices], device=model.device)
            logits = classifier(model(**inputs).last_hidden_state[:, 0])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()

    contenders: list[Contender] = [("train: stock full fine-tuning, padded, float32", count, fine_tune)]
    for name, backbone in precisions.items():
        tokens = LabelledRows(backbone.tokenize(data.train.texts, data.train.pairs), data.train.labels)
        adapter_set = backbone.new_adapter_set(recipe.adapter.for_hidden_size(backbone.info.hidden_size), head)

        def train_set(backbone=backbone, tokens=tokens, adapter_set=adapter_set) -> None:
            run = TrainingRun(backbone.encoder, adapter_set.train(), tokens, TrainingConfig(), None, None)
            for indices in shuffled_batches(run.lengths, BATCH, 0, 0):
                run.take_step(indices, 1e-5)

        contenders.append((f"train: one adapter set, {name}", count, train_set))
    return contenders


def inference_contenders(precisions: dict[str, Backbone], stock: torch.nn.Module, data) -> list[Contender]:
    """Return answering all rows: the bare stock model, the bare backbone, one set, and a batch of many sets."""
    recipe = read_recipe("default").with_choices({"placement": "after_layer", "reduction_factor": 16}, {})
    head = recipe.head.for_task(data.spec.label_names, data.spec.problem_type)
    count = len(data.train)

    @torch.inference_mode()
    def ask_stock() -> None:
        model = stock.eval()
        for first in range(0, count, BATCH):
            model(**pad(precisions["float32"], data, range(first, min(first + BATCH, count))).to(model.device))

    contenders: list[Contender] = [("answer: stock bare model, padded, float32", count, ask_stock)]
    for name, backbone in precisions.items():
        tokens = backbone.tokenize(data.train.texts, data.train.pairs)
        adapter = recipe.adapter.for_hidden_size(backbone.info.hidden_size)
        sets = [backbone.new_adapter_set(adapter, head, seed=seed).eval() for seed in range(MIXED_SETS)]
        lengths = [len(ids) for ids in tokens.input_ids]
        batches = shuffled_batches(lengths, MIXED_ROWS, 0, 0)

        @torch.inference_mode()
        def ask_bare(backbone=backbone, tokens=tokens, batches=batches) -> None:
            for indices in batches:
                backbone(Batch.pack(tokens.take(indices), device=backbone.device))

        @torch.inference_mode()
        def ask_one(backbone=backbone, tokens=tokens, batches=batches, adapter_set=sets[0]) -> None:
            for indices in batches:
                logits_of(backbone.encoder, adapter_set, Batch.pack(tokens.take(indices), device=backbone.device))

        @torch.inference_mode()
        def ask_mixed(backbone=backbone, tokens=tokens, batches=batches, sets=sets) -> None:
            for indices in batches:
                owners = [place % MIXED_SETS for place in range(len(indices))]
                batch = Batch.pack(tokens.take(indices), owners, backbone.device)
                backbone(batch, MixedAdapters(sets, batch.segments))

        contenders += [
            (f"answer: our bare backbone, batch {MIXED_ROWS}, {name}", count, ask_bare),
            (f"answer: one adapter set, batch {MIXED_ROWS}, {name}", count, ask_one),
            (f"answer: {MIXED_SETS} adapter sets in a batch of {MIXED_ROWS}, {name}", count, ask_mixed),
        ]
    return contenders


def switching_contenders(backbone: Backbone) -> list[Contender]:
    """Return choosing another resident set: it is an argument, so this is the cost of naming it."""
    recipe = read_recipe("default")
    adapter = recipe.adapter.for_hidden_size(backbone.info.hidden_size)
    head = recipe.head.for_task(("no", "yes"), "classification")
    sets = {f"task-{number}": backbone.new_adapter_set(adapter, head, seed=number) for number in range(64)}
    names = list(sets) * 100

    def switch() -> None:
        chosen = None
        for name in names:
            chosen = sets[name].adapter
        del chosen

    return [("switches between 64 resident sets", len(names), switch)]


def pad(backbone: Backbone, data, indices):
    """Return the rows as one padded batch, the way the stock model wants them."""
    texts = [data.train.texts[i] for i in indices]
    pairs = [data.train.pairs[i] for i in indices] if data.train.pairs is not None else None
    return backbone.tokenizer(texts, pairs, padding=True, truncation=True, max_length=128, return_tensors="pt")


def measure(group: str, contenders: list[Contender], rounds: int, device: torch.device) -> list[dict]:
    """Run all contenders in turn, round after round, and return the median rate of each."""
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in contenders}
    for _ in range(rounds + 1):
        for name, _, work in contenders:
            started = now(device)
            work()
            seconds[name].append(now(device) - started)
    rows = []
    for name, count, _ in contenders:
        kept = seconds[name][1:]  # the first round warms up
        rate = count / statistics.median(kept)
        rows.append({"group": group, "contender": name, "rate": rate, "rounds": [count / each for each in kept]})
        print(f"{group:<7} {name:<60} {rate:>12,.1f} per second", flush=True)
    return rows


def now(device: torch.device) -> float:
    """Return seconds of this process's CPU time, or of wall time once a GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def write(results: list[dict], out: Path, device: torch.device, data: str) -> None:
    """Write the figures for programs and the table of ratios for people."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    machine = hardware(torch.get_num_threads(), accelerator)
    base = {row["group"]: row["rate"] for row in reversed(results) if "stock" in row["contender"]}
    lines = [
        "# Rates",
        "",
        f"`{command_line()}` on {accelerator or machine.processor}, one thread; code {code_version()}; "
        f"torch {library_versions()['torch']}; rows of {data}.",
        "Medians over interleaved rounds, CPU time (wall time on a GPU); the ratio is to the stock model's first row",
        "of the same kind, and is what to look at.",
        "",
        "| rows | contender | per second | ratio |",
        "|---|---|---:|---:|",
    ]
    for row in results:
        kind = row["contender"].split(":")[0]
        first = next(
            (each["rate"] for each in results if each["group"] == row["group"] and each["contender"].startswith(kind)),
            row["rate"],
        )
        ratio = f"{row['rate'] / first:.2f}" if row["group"] in base else ""
        lines.append(f"| {row['group']} | {row['contender']} | {row['rate']:,.1f} | {ratio} |")
    lines += ["", "GPU rows: " + (accelerator or "not measured (no GPU was at hand)") + "."]
    content = {"command": command_line(), "code": code_version(), "versions": library_versions(), "results": results}
    replace_file(out / "benchmark.json", (json.dumps(content, indent=2) + "\n").encode())
    replace_file(out / "benchmark.md", ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
