"""LoRA beside the peers' LoRA and ONNX Runtime, several methods in one batch, ModernBERT packed and padded.

Rates and ratios as in main.py, of one run: every contender takes its turn in every round. ModernBERT is a random
encoder of the real one's widths and fewer layers, so its figures are of speed alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from main import MIXED_ROWS, MIXED_SETS, job_of, mixed_batches, read_rows
from ours import (
    ADAPTER,
    BATCH,
    BATCH_TOKENS,
    DTYPES,
    HEAD,
    ask_bare,
    ask_mixed,
    contenders,
    fill_pool,
    load_backbones,
    training_config,
)
from peer_client import PeerWorker
from rounds import Contender, ContenderError, Results, measure, timed
from scores import Course, plain
from transformers import AutoConfig, AutoModel, PreTrainedModel

from registry.bench.records import write_file
from registry.config import LoraConfig
from registry.model.backbone import Backbone
from registry.model.batching import Batch, TokenRows, sorted_batches
from registry.model.encoder import NO_ADAPTERS, Encoder
from registry.model.inference import LabelledRows, predict_probabilities
from registry.model.pretrained import Weights
from registry.provenance import code_version, command_line, hardware, library_versions
from registry.serving.pool import AdapterPool
from registry.tasks.loading import load_task
from registry.tasks.rows import Rows
from registry.tasks.spec import find_task
from registry.training.loop import train

LORA = LoraConfig(rank=8, alpha=16.0, targets=("query", "value"))
SIZES = {"mrpc": 96, "sst2": 192}
MANY = 64
MODERN_LAYERS, MODERN_ROWS = 6, 24
SCORED_TRAIN = 2_000


def main() -> None:
    """Measure every group and write both reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="hub", help="hub, sample or a folder of parquet files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="float32 where bfloat16 has no instructions")
    parser.add_argument("--out", type=Path, default=Path("reports"))
    parser.set_defaults(device="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    backbones = {name: each for name, each in load_backbones(options.device).items() if name in options.dtypes}
    rows = {task: read_rows(task, options.data, limit, backbones["float32"]) for task, limit in SIZES.items()}
    python = Path(".venv-peers/bin/python") if Path(".venv-peers/.installed").is_file() else None
    with tempfile.TemporaryDirectory() as name:
        worker = PeerWorker(python, job_of(rows, 0, options), Path(name))
        results = Results(
            [
                each
                for group, made in groups(backbones, rows, worker).items()
                for each in measure(group, made(), options.rounds)
            ]
        )
        scores = score_answers(backbones, options.data, worker)
        versions = worker.versions
        worker.close()
    write(results, scores, versions, options.out)


def groups(
    backbones: Mapping[str, Backbone], rows: Mapping[str, LabelledRows], worker: PeerWorker
) -> dict[str, Callable[[], list[Contender]]]:
    """Return what makes the contenders of each group, when its turn comes."""
    batches, owners = mixed_batches(len(rows["sst2"]))
    many = [[place % MANY for place in range(first, first + len(own))] for first, own in enumerate(owners)]

    def peer(group: str, label: str, count: int, key: str = "peft") -> Contender:
        return Contender(key, label, count, lambda: worker.seconds(f"{group}/{key}"))

    def mixed() -> list[Contender]:
        tokens, count = rows["sst2"].tokens, sum(map(len, batches))
        pools = {name: fill_pool(each, MANY, LORA) for name, each in backbones.items()}
        both = {name: _two_methods(each) for name, each in backbones.items()}

        def ask(pool: Mapping[str, AdapterPool[int]], chosen: Sequence[Sequence[int]]) -> Callable[..., Any]:
            return lambda name, backbone: lambda: ask_mixed(backbone, pool[name], tokens, batches, chosen)

        alone = [[0] * len(own) for own in owners]
        return [
            *contenders(backbones, lambda name, each: lambda: ask_bare(each, tokens, batches), "bare", "bare", count),
            *contenders(backbones, ask(pools, alone), "one", "one LoRA set, the same batches", count),
            *contenders(backbones, ask(pools, owners), "mixed", f"{MIXED_SETS} LoRA sets in a batch", count),
            *contenders(backbones, ask(pools, many), "many", f"rows of {MANY} LoRA sets", count),
            *contenders(
                backbones, ask(both, owners), "both", f"{MIXED_SETS} sets, LoRA and bottlenecks in turn", count
            ),
            peer("mixed-sst2", f"peft: adapter_names of {MIXED_SETS} LoRA", count),
            peer("mixed-sst2", f"adapters: BatchSplit of {MIXED_SETS} LoRA", count, "adapters_lora"),
        ]

    found: dict[str, Callable[[], list[Contender]]] = {}
    for task, own in rows.items():
        found[f"train-{task}"] = lambda own=own, task=task: [
            *contenders(backbones, lambda name, each: _training(each, own), "ours", "ours: one LoRA set", len(own)),
            peer(f"train-{task}", "peft: LoRA, padded", len(own)),
            peer(f"train-{task}", "adapters: LoRA, padded", len(own), "adapters_lora"),
        ]
        found[f"infer-{task}"] = lambda own=own, task=task: [
            *contenders(
                backbones, lambda name, each: _answering(each, own.tokens), "ours", "ours: one LoRA set", len(own)
            ),
            peer(f"infer-{task}", "peft: LoRA, padded", len(own)),
            peer(f"infer-{task}", "adapters: LoRA, padded", len(own), "adapters_lora"),
            peer(f"infer-{task}", "ONNX Runtime: merged, float32, sorted, padded", len(own), "onnx"),
            peer(f"infer-{task}", "ONNX Runtime: merged, int8, sorted, padded", len(own), "onnx_int8"),
        ]
    return {**found, "mixed-sst2": mixed, "modernbert": modern_contenders}


def score_answers(backbones: Mapping[str, Backbone], source: str, worker: PeerWorker) -> list[dict[str, Any]]:
    """Return what a trained LoRA scores on SST-2 in each form: ours by dtype, peft's, and that in ONNX Runtime."""
    data = load_task(find_task("sst2"), source, limit=SCORED_TRAIN)
    course = Course("sst2", 2, data, *(_tokens(backbones["float32"], rows) for rows in (data.train, data.reported)))
    adapter_set = backbones["float32"].new_adapter_set(LORA, HEAD)
    train(backbones["float32"].encoder, adapter_set, course.train, training_config(course.epochs))
    found = []
    for name, backbone in backbones.items():
        shares = predict_probabilities(backbone.encoder, adapter_set.eval(), course.reported.tokens)
        found.append(_scored(f"ours, {name}", course, shares.argmax(axis=1)))
    path = worker.folder / "course.json"
    path.write_text(json.dumps({"train": plain(course.train), "reported": plain(course.reported)}))
    asked = {"contender": "peft", "rows": str(path), "epochs": course.epochs, "onnx": True}
    try:
        answer = worker.ask({"score": asked})
    except ContenderError as err:
        return [*found, {"form": "peft, ONNX Runtime", "failed": str(err)}]
    titles = {
        "predictions": "peft, float32",
        "onnx": "the same, ONNX Runtime float32",
        "onnx_int8": "ONNX Runtime int8",
    }
    return [*found, *(_scored(title, course, answer[key]) for key, title in titles.items())]


def _tokens(backbone: Backbone, rows: Rows) -> LabelledRows:
    return LabelledRows(backbone.tokenize(rows.texts, rows.pairs), rows.labels)


def _scored(form: str, course: Course, chosen: Sequence[int]) -> dict[str, Any]:
    right = [int(found == label) for found, label in zip(chosen, course.reported.labels, strict=True)]
    return {"form": form, "accuracy": sum(right) / len(right), "rows": len(right), "trained_on": len(course.train)}


def _two_methods(backbone: Backbone) -> AdapterPool[int]:
    """Return a pool of sets that are LoRA and bottlenecks in turn."""
    pools = [fill_pool(backbone, MIXED_SETS, each) for each in (LORA, ADAPTER)]
    pool = AdapterPool(lambda key: _resident(pools[key % 2], key))
    for key in range(MIXED_SETS):
        with pool.hold([key]):
            pass
    return pool


def _resident(pool: AdapterPool[int], key: int) -> Any:
    with pool.hold([key]) as (found,):
        return found


def _training(backbone: Backbone, rows: LabelledRows) -> Callable[[], object]:
    adapter_set = backbone.new_adapter_set(LORA, HEAD)
    return lambda: train(backbone.encoder, adapter_set.train(), rows, training_config())


def _answering(backbone: Backbone, rows: TokenRows) -> Callable[[], object]:
    batches = sorted_batches([len(ids) for ids in rows.input_ids], BATCH_TOKENS, BATCH)
    pool = fill_pool(backbone, 1, LORA)
    with pool.hold([0]) as (one,):
        return lambda: ask_mixed(backbone, pool, rows, batches, [[0] * len(each) for each in batches]) or one


def modern_contenders() -> list[Contender]:
    """Return a random ModernBERT over rows of mixed length: ours packed, and transformers' own padded."""
    config = AutoConfig.for_model("modernbert", num_hidden_layers=MODERN_LAYERS)
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    encoder = Encoder(Weights(model.state_dict(), "random"), config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(16, 512, (MODERN_ROWS,), generator=generator).tolist()
    rows = TokenRows(
        [torch.randint(5, 50_000, (n,), generator=generator).tolist() for n in lengths], [[0] * n for n in lengths]
    )
    batches = sorted_batches(lengths, BATCH_TOKENS, BATCH)
    plain = [list(range(first, min(first + BATCH, MODERN_ROWS))) for first in range(0, MODERN_ROWS, BATCH)]

    @torch.inference_mode()
    def packed() -> None:
        for indices in batches:
            encoder.pooled(Batch.pack(rows.take(indices)), NO_ADAPTERS, ("mean",))

    device = torch.device("cpu")
    return [
        Contender("ours", "ours: packed", MODERN_ROWS, timed(packed, device)),
        Contender("padded", "transformers: padded", MODERN_ROWS, timed(lambda: _padded(model, rows, plain), device)),
        Contender(
            "sorted",
            "transformers: sorted by length, padded",
            MODERN_ROWS,
            timed(lambda: _padded(model, rows, batches), device),
        ),
    ]


@torch.inference_mode()
def _padded(model: PreTrainedModel, rows: TokenRows, batches: Sequence[Sequence[int]]) -> None:
    for indices in batches:
        width = max(len(rows.input_ids[row]) for row in indices)
        ids = [[*rows.input_ids[row], *[0] * (width - len(rows.input_ids[row]))] for row in indices]
        mask = [[int(place < len(rows.input_ids[row])) for place in range(width)] for row in indices]
        model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))


TARGETS = (
    ("Train one LoRA set, MRPC, best dtype, vs peft", "train-mrpc", "ours", "peft", 3.0),
    ("Train one LoRA set, SST-2, best dtype, vs peft", "train-sst2", "ours", "peft", 4.0),
    ("Train one LoRA set, MRPC, best dtype, vs adapters' LoRA", "train-mrpc", "ours", "adapters_lora", None),
    ("Train one LoRA set, SST-2, best dtype, vs adapters' LoRA", "train-sst2", "ours", "adapters_lora", None),
    ("Answers of one LoRA set, MRPC, best dtype, vs peft", "infer-mrpc", "ours", "peft", 2.5),
    ("Answers of one LoRA set, MRPC, best dtype, vs adapters' LoRA", "infer-mrpc", "ours", "adapters_lora", None),
    ("Answers of one LoRA set, MRPC, best dtype, vs ONNX Runtime, float32", "infer-mrpc", "ours", "onnx", None),
    ("Answers of one LoRA set, MRPC, best dtype, vs ONNX Runtime, int8", "infer-mrpc", "ours", "onnx_int8", None),
    ("Answers of one LoRA set, SST-2, best dtype, vs ONNX Runtime, float32", "infer-sst2", "ours", "onnx", None),
    ("Answers of one LoRA set, SST-2, best dtype, vs ONNX Runtime, int8", "infer-sst2", "ours", "onnx_int8", None),
    (
        f"{MIXED_ROWS} rows over {MIXED_SETS} LoRA sets, best dtype, vs peft adapter_names",
        "mixed-sst2",
        "mixed",
        "peft",
        4.0,
    ),
    ("The same, vs adapters' BatchSplit of LoRA", "mixed-sst2", "mixed", "adapters_lora", None),
    ("The same, vs our own one-set rate", "mixed-sst2", "mixed", "one", 0.9),
    (f"Rows of {MANY} LoRA sets, vs our own one-set rate", "mixed-sst2", "many", "one", None),
    (f"{MIXED_SETS} sets, LoRA and bottlenecks in turn, vs our own one-set rate", "mixed-sst2", "both", "one", None),
    ("ModernBERT widths, rows of mixed length, vs transformers padded", "modernbert", "ours", "padded", 1.5),
    ("The same, vs transformers sorted and padded", "modernbert", "ours", "sorted", None),
)


def write(results: Results, scores: list[dict[str, Any]], versions: dict[str, str], out: Path) -> None:
    """Write the figures for programs and the tables for people."""
    machine = hardware(torch.get_num_threads(), None)
    lines = ["# Methods: rates beside peft's, and of several methods together", ""]
    peers = ", ".join(f"{name} {version}" for name, version in versions.items()) or "none"
    command = command_line().replace("methods.py", "scripts/benchmark --methods", 1)
    where = f"{machine.processor}, {machine.threads} thread, {code_version()}; `{command}`."
    lines += [where, f"Medians of rounds in turn; peers: {peers}.", ""]
    lines += ["| measure | ratio | target | met |", "|---|---|---|---|"]
    found = []
    for title, group, own, base, limit in TARGETS:
        ratio, dtype = best_ratio(results, group, own, base)
        met = "" if limit is None or ratio is None else "yes" if ratio >= limit else "no"
        told = "not measured" if ratio is None else f"{ratio:.2f}{f' ({dtype})' if dtype else ''}"
        lines.append(f"| {title} | {told} | {'' if limit is None else f'>= {limit:g}'} | {met} |")
        found.append({"measure": title, "ratio": ratio, "dtype": dtype, "target": limit})
    lines += ["", "| group | contender | rows/s | lowest to highest |", "|---|---|---|---|"]
    for each in results.values():
        spread = f"{each.spread[0]:,.1f} to {each.spread[1]:,.1f}" if each.spread else ""
        lines.append(
            f"| {each.group} | {each.label} | {f'{each.rate:,.1f}' if each.rate else each.failed} | {spread} |"
        )
    lines += ["", "| a LoRA of rank 8 answers SST-2's validation rows as | accuracy |", "|---|---|"]
    lines += [f"| {each['form']} | {each.get('failed') or format(each['accuracy'], '.4f')} |" for each in scores]
    lines += [
        "",
        f"Trained on {SCORED_TRAIN:,} rows for two epochs, one seed: to be compared within ours and within peft's.",
    ]
    content = {
        "code": code_version(),
        "command": command,
        "libraries": library_versions(),
        "peers": versions,
        "targets": found,
        "scores": scores,
        "results": [each.to_json() for each in results.values()],
    }
    write_file(out / "benchmark_methods.md", ("\n".join(lines) + "\n").encode())
    write_file(out / "benchmark_methods.json", (json.dumps(content, indent=1) + "\n").encode())
    print("\n".join(lines))


def best_ratio(results: Results, group: str, own: str, base: str) -> tuple[float | None, str]:
    """Return the ratio to a peer in our best dtype; to a rate of our own, the lower of those in the same dtype."""
    if (group, own) in results:
        return results.ratio(group, own, base), ""
    ratios = {}
    for dtype in ("float32", "bfloat16"):
        other = base if (group, base) in results else f"{base}-{dtype}"
        ratio = results.ratio(group, f"{own}-{dtype}", other)
        if ratio is not None:
            ratios[dtype] = ratio
    if not ratios:
        return None, ""
    choose = max if (group, base) in results else min
    dtype = choose(ratios, key=lambda name: ratios[name])
    return ratios[dtype], dtype


if __name__ == "__main__":
    main()
