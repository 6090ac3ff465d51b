"""Rates on the device, each beside its own baseline, the two taking turns: the benchmark's GPU rows and what peers do.

bert-base's shape with random weights in bfloat16. Wall seconds after a synchronize; a ratio is the median of rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gpu
import ours
import peers
import torch
from gpu import random_checkpoint, random_rows, seconds_of
from profiling import forward_flops

from registry.config import LoraConfig
from registry.model.backbone import Backbone
from registry.model.batching import Batch, TokenRows, sorted_batches
from registry.model.inference import EVALUATION_ROWS, EVALUATION_TOKENS, LabelledRows, mixed_logits
from registry.serving.graphs import GraphedAnswers
from registry.serving.pool import ResidentSet
from registry.training.loop import train

SHORT_ROW = 16
LORA = LoraConfig(rank=8, alpha=16.0)
Note = Callable[[str, Any], None]


def measure(folder: Path, device: str, quick: bool, note: Note) -> dict[str, Any]:
    """Return all rows by name; ``note`` is told each as soon as it is known."""
    checkpoint, backbone = new_backbone(folder, device, quick)
    rounds = 1 if quick else 5
    found = gpu.measure_gpu(folder, rounds, device)
    works = {
        "graphs": lambda: graphed_shares(backbone, rounds, found["matmul_rate"]),
        "zipf": lambda: zipf_share(backbone, 8 if quick else ours.RESIDENT_SETS, rounds),
        "latency": lambda: latency(backbone, checkpoint, 3 if quick else 200),
        "peers": lambda: beside_peers(backbone, checkpoint, rounds, 32 if quick else 512),
    }
    return measured(works, lambda figures: note("speed", figures), found)


def new_backbone(folder: Path, device: str, quick: bool) -> tuple[Path, Backbone]:
    """Return bert-base's shape with random weights in bfloat16, and its folder; a trial has sizes that mean nothing."""
    if quick:
        gpu.ROWS, gpu.LENGTH, gpu.MIXED_SETS, gpu.JOINT_SETS, gpu.SQUARE = 8, 16, 4, 2, 256
    sizes = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
    checkpoint = random_checkpoint(folder, **(sizes if quick else {}))
    return checkpoint, Backbone.load(str(checkpoint), device=device, dtype="bfloat16")


def measured(
    works: Mapping[str, Callable[[], dict[str, Any]]],
    note: Callable[[dict[str, Any]], None],
    found: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the figures of all works, after those that are there; one that fails is told and left.

    Args:
        works: by name.
        note: told all figures so far, as soon as there are more.
        found: figures that are there.
    """
    found = {} if found is None else found
    for name, work in works.items():
        note(found)
        try:
            figures = work()
        except Exception as err:
            figures = {f"{name}_failed": f"{type(err).__name__}: {err}"[:500]}
        found.update(figures)
        told = (
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()
        )
        print("  ".join(told), flush=True)
    note(found)
    return found


def graphed_shares(backbone: Backbone, rounds: int, rate: float, batches: int = 8) -> dict[str, Any]:
    """Return what answers through graphs, batch after batch, make of the card's rate: the bare model's and a set's."""
    rows = random_rows(backbone, gpu.ROWS, gpu.LENGTH)
    graphed = GraphedAnswers(backbone.encoder)
    made = [backbone.new_adapter_set(adapter, ours.HEAD) for adapter in (None, ours.ADAPTER, ours.AFTER_LAYER)]
    sets = [ours.resident_set(backbone, one) for one in made]

    def ask(one: ResidentSet) -> None:
        for _ in range(batches):
            if graphed.logits(one, rows) is None:
                raise RuntimeError("no graph was captured")

    turns = list(zip(*(seconds_of(lambda one=one: ask(one), backbone.device, rounds) for one in sets), strict=True))
    bare = statistics.median(turn[0] for turn in turns) / batches
    flops = forward_flops(backbone, [gpu.LENGTH] * gpu.ROWS, with_adapter=False)
    return {
        "graphed_forward_share": flops / bare / rate,
        "graphed_forward_rows_per_second": gpu.ROWS / bare,
        "graphed_pfeiffer_share_of_bare": statistics.median(turn[0] / turn[1] for turn in turns),
        "graphed_after_layer_share_of_bare": statistics.median(turn[0] / turn[2] for turn in turns),
    }


def zipf_share(backbone: Backbone, resident: int, rounds: int) -> dict[str, Any]:
    """Return what comes of a batch over a pool of many resident sets, asked for by Zipf's law."""
    pool = ours.fill_pool(backbone, resident)
    owners = ours.zipf_owners([range(gpu.ROWS)], resident)
    batches = [list(range(gpu.ROWS))]
    share = share_of_bare(backbone, rounds, lambda rows: ours.ask_mixed(backbone, pool, rows, batches, owners))
    return {"zipf_share_of_bare": share, "resident_sets": resident, "sets_in_the_batch": len(set(owners[0])),
            "resident_bytes": pool.bytes}  # fmt: skip


def share_of_bare(backbone: Backbone, rounds: int, ask: Callable[[TokenRows], object]) -> float:
    """Return the rate at which a batch of 16k tokens is asked, as a share of the bare backbone's."""
    rows = random_rows(backbone, gpu.ROWS, gpu.LENGTH)
    turns = zip(
        seconds_of(lambda: ours.ask_bare(backbone, rows, [list(range(len(rows)))]), backbone.device, rounds),
        seconds_of(lambda: ask(rows), backbone.device, rounds),
        strict=True,
    )
    return statistics.median(bare / several for bare, several in turns)


def latency(backbone: Backbone, checkpoint: Path, repeats: int) -> dict[str, Any]:
    """Return the median milliseconds of one short row's answer, in turns: without graphs, with, and a stock model's."""
    one = ours.resident_set(backbone, backbone.new_adapter_set(ours.ADAPTER, ours.HEAD))
    row = random_rows(backbone, 1, SHORT_ROW)
    graphed = GraphedAnswers(backbone.encoder)
    stock = peers.stock_latency(checkpoint, row, str(backbone.device))

    @torch.inference_mode()
    def without() -> list[float]:
        batch = Batch.pack(row, device=backbone.device)
        ((_, logits),) = mixed_logits(backbone.encoder, [one], batch).values()
        return logits.tolist()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def with_graph() -> list[float]:
        logits = graphed.logits(one, row)
        if logits is None:
            raise RuntimeError("no graph was captured")
        return logits.tolist()  # type: ignore[no-any-return]

    works = {"without_graph": without, "with_graph": with_graph, "stock": stock}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 5):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if turn >= 5:
                seconds[name].append(time.perf_counter() - began)
    medians = {f"{name}_ms": 1e3 * statistics.median(each) for name, each in seconds.items()}
    return {**medians, "graph_speedup": medians["without_graph_ms"] / medians["with_graph_ms"]}


def beside_peers(backbone: Backbone, checkpoint: Path, rounds: int, count: int) -> dict[str, Any]:
    """Return how many times faster one set trains and answers than peft's LoRA and a stock model with hooks."""
    learned = peer_rows(backbone, count)
    rows = learned.tokens.take(range(count))
    graphed = GraphedAnswers(backbone.encoder)
    found: dict[str, Any] = {"peer_rows": count, "peer_mean_tokens": statistics.mean(rows.lengths)}
    for name, adapter in (("bottleneck", ours.AFTER_LAYER), ("lora", LORA)):
        adapter_set = backbone.new_adapter_set(adapter, ours.HEAD)
        resident = ours.resident_set(backbone, adapter_set)
        peer = peers.Peer(checkpoint, name, str(backbone.device))
        for kind, own, other in (
            ("training", lambda: train(backbone.encoder, adapter_set, learned, ours.training_config()),  # noqa: B023
             lambda: peer.train(learned)),  # noqa: B023
            ("answers", lambda: answer(backbone, graphed, resident, rows), lambda: peer.answer(rows)),  # noqa: B023
        ):  # fmt: skip
            turns = list(zip(seconds_of(own, backbone.device, rounds), seconds_of(other, backbone.device, rounds),
                             strict=True))  # fmt: skip
            found[f"{name}_{kind}_times_the_peer"] = statistics.median(theirs / us for us, theirs in turns)
            found[f"{name}_{kind}_rows_per_second"] = count / statistics.median(us for us, _ in turns)
            found[f"{name}_{kind}_peer_rows_per_second"] = count / statistics.median(theirs for _, theirs in turns)
    return found


def peer_rows(backbone: Backbone, count: int) -> LabelledRows:
    """Return rows of random words and MRPC's lengths."""
    lengths = torch.randint(24, 84, (count,), generator=torch.Generator().manual_seed(0)).tolist()  # mean 53, as MRPC's
    ids = [random_rows(backbone, 1, length).input_ids[0] for length in lengths]
    return LabelledRows(TokenRows(ids, [[0] * length for length in lengths]), tuple(row % 2 for row in range(count)))


@torch.inference_mode()
def answer(backbone: Backbone, graphed: GraphedAnswers, one: ResidentSet, rows: TokenRows) -> list[Sequence[float]]:
    """Return the logits of all rows by one set, in the batches and the way that a predictor has."""
    lengths = [len(ids) for ids in rows.input_ids]
    batches = sorted_batches(lengths, EVALUATION_TOKENS[backbone.device.type], EVALUATION_ROWS)
    parts = []
    for batch in batches:
        logits = graphed.logits(one, rows.take(batch))
        if logits is None:
            packed = Batch.pack(rows.take(batch), device=backbone.device)
            ((_, logits),) = mixed_logits(backbone.encoder, [one], packed).values()
        parts.append(logits)
    return torch.cat(parts).tolist()  # type: ignore[no-any-return]
