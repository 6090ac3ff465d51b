"""gpu.md from gpu.json: the rows that were asked for, each with its figure or the reason why there is none."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

ROWS = (  # what, the part that measures it, its key there, at least
    ("bert-base forward, 16k tokens a batch: share of the bfloat16 product rate", "speed", "forward_share", 0.55),
    ("the same through CUDA graphs, batch after batch", "speed", "graphed_forward_share", 0.55),
    ("bert-base adapter training, 16k tokens a batch: the same", "speed", "training_share", 0.45),
    (
        "one set, training: times a stock model with the same bottleneck by hooks",
        "speed",
        "bottleneck_training_times_the_peer",
        3,
    ),
    (
        "one set, answers: times a stock model with the same bottleneck by hooks",
        "speed",
        "bottleneck_answers_times_the_peer",
        3,
    ),
    ("one set, training: times peft's LoRA of the same rank", "speed", "lora_training_times_the_peer", 3),
    ("one set, answers: times peft's LoRA of the same rank", "speed", "lora_answers_times_the_peer", 3),
    ("one set through graphs: share of the own bare model (pfeiffer)", "speed", "graphed_pfeiffer_share_of_bare", 0.95),
    ("the same (after_layer)", "speed", "graphed_after_layer_share_of_bare", 0.95),
    ("mixed batch over 64 sets: share of the own bare model", "speed", "mixed_share_of_bare", 0.95),
    ("mixed batch, 1,000 resident sets, Zipf: share of the own bare model", "speed", "zipf_share_of_bare", 0.93),
    ("8 sets trained together: times one after another, 16 rows of 128 tokens each", "speed", "joint_training", 3),
    ("one short row: latency without graphs over with graphs", "speed", "graph_speedup", 3),
    ("bert-base adapter training, 16k tokens a batch, through graphs", "graphs", "large_graphed_training_share", 0.45),
    ("the same with the layers' kernels made by torch.compile", "graphs", "compiled_training_share", 0.45),
    (
        "forward through a graph, with the layers' kernels made by torch.compile",
        "graphs",
        "compiled_forward_share",
        0.55,
    ),
    (
        "one set, training through graphs: times the stock model with hooks",
        "graphs",
        "bottleneck_graphed_training_times_the_peer",
        3,
    ),
    ("one set, training through graphs: times peft's LoRA", "graphs", "lora_graphed_training_times_the_peer", 3),
    (
        "mixed batch over 64 sets through a graph: share of the own bare model",
        "graphs",
        "graphed_mixed_share_of_bare",
        0.95,
    ),
    ("mixed batch, 1,000 resident sets, Zipf, through a graph: the same", "graphs", "graphed_zipf_share_of_bare", 0.93),
    ("8 sets trained together: times one after another through graphs", "graphs", "joint_training_over_graphed", 3),
)
MISSING = {"speed": "not measured", "graphs": "not measured: written since this run"}  # where a part has not run


def page(found: Mapping[str, Any]) -> str:
    """Return the whole page."""
    machine = found.get("machine", {})
    lines = [
        "# On a GPU",
        "",
        "Made by `scripts/gpu`; all figures stand in `gpu.json`. Measured on "
        + ", ".join(f"{name} {value}" for name, value in machine.items())
        + ".",
        "",
        "bert-base's shape with random weights in bfloat16; wall time; medians of rounds in which the two sides of a "
        "ratio take turns.",
        "",
        *_speed(found.get("speed", {}), found.get("graphs", {})),
        *_tests(found.get("tests", {})),
        *_parity(found.get("parity", {})),
        *_profile(found.get("profile", {})),
        *_scores(found.get("scores", {})),
    ]
    if found.get("remarks"):
        lines += ["## Remarks on this run", "", *(f"* {remark}" for remark in found["remarks"]), ""]
    failed = found.get("failed", {})
    if failed:
        lines += ["## What failed", "", *(f"* {part}: {reason}" for part, reason in failed.items()), ""]
    return "\n".join(lines)


def _speed(speed: Mapping[str, Any], graphs: Mapping[str, Any]) -> list[str]:
    if not speed and not graphs:
        return ["Speed: not measured.", ""]
    lines = ["| what | at least | measured | |", "|---|---|---|---|"]
    parts = {"speed": speed, "graphs": graphs}
    for title, part, key, least in ROWS:
        value = parts[part].get(key)
        told = f"{value:.3g}" if value is not None else "not measured" if parts[part] else MISSING[part]
        verdict = "" if value is None else "reached" if value >= least else "**below**"
        lines.append(f"| {title} | {least:g} | {told} | {verdict} |")
    if "matmul_rate" in speed:
        lines += [
            "",
            f"The card's own product rate is {speed['matmul_rate'] / 1e12:,.0f} TFLOP/s (squares of 8,192), in the "
            f"shapes of bert-base's layers {speed['layer_matmul_rate'] / 1e12:,.0f}. bert-base answers "
            f"{speed['forward_rows_per_second']:,.0f} rows of 128 tokens a second and trains on "
            f"{speed['training_rows_per_second']:,.0f}.",
        ]
    if "with_graph_ms" in speed:
        lines += [
            "",
            f"One row of 16 tokens takes {speed['without_graph_ms']:.2f} ms without a graph, "
            f"{speed['with_graph_ms']:.2f} ms with one; in transformers, without an adapter, {speed['stock_ms']:.2f}.",
        ]
    if "small_graph_speedup" in graphs:
        lines += [
            "",
            f"A training step of 16k tokens takes {graphs['large_step_ms']:.2f} ms, through a graph "
            f"{graphs['large_graphed_step_ms']:.2f}; of 2k tokens {graphs['small_step_ms']:.2f} and "
            f"{graphs['small_graphed_step_ms']:.2f}; the step that captures takes {graphs['small_capture_ms']:.0f} ms.",
        ]
    failed = {**speed, **graphs}
    lines += [f"* {key}: {value}" for key, value in failed.items() if key.endswith("_failed")]
    return [*lines, ""]


def _tests(tests: Mapping[str, Any]) -> list[str]:
    if not tests:
        return []
    counts = ", ".join(f"{count} {word}" for word, count in tests["counts"].items())
    return ["## Tests marked gpu", "", f"{counts}.", "", *(f"* `{line}`" for line in tests["told"]), ""]


def _parity(parity: Mapping[str, Any]) -> list[str]:
    if not parity:
        return []
    lines = [
        "## Parity",
        "",
        "Largest difference of any logit to the CPU's float32, relative to the largest logit or 1, over every method "
        "and placement, one set alone and five in a mixed batch.",
        "",
        "| family | cells | float32 | bfloat16 |",
        "|---|---|---|---|",
    ]
    exact, half = parity["differences"]["float32"], parity["differences"]["bfloat16"]
    for family, methods in exact.items():
        in_half = max(half.get(family, {}).values(), default=float("nan"))
        lines.append(f"| {family} | {len(methods)} | {max(methods.values()):.1e} | {in_half:.1e} |")
    allowed = ", ".join(f"{value:g} in {name}" for name, value in parity["tolerances"].items())
    beyond = parity["beyond"]
    lines += [
        "",
        f"Allowed: {allowed}. Beyond that: {'nothing' if not beyond else ''}".rstrip() + ("." if not beyond else ""),
    ]
    return [*lines, *(f"* {each}" for each in beyond), ""]


def _profile(profiles: Mapping[str, Any]) -> list[str]:
    if not profiles:
        return []
    lines = [
        "## Where the time goes",
        "",
        "| work | wall ms | kernels ms | launches | idle share |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {each['wall_ms']:.2f} | {each['kernel_ms']:.2f} | {each['launches']} "
            f"| {each['idle_share']:.2f} |"
            for name, each in profiles.items()
        ),
        "",
    ]
    for name, each in profiles.items():
        lines += [f"Longest kernels of: {name}", "", "| kernel | ms | launches |", "|---|---|---|"]
        lines += [
            f"| `{one['name'].replace('|', '/')[:90]}` | {one['ms']:.3f} | {one['launches']} |"
            for one in each["kernels"][:8]
        ]
        lines.append("")
    return lines


def _scores(scores: Mapping[str, Any]) -> list[str]:
    if not scores:
        return []
    lines = ["## Scores at full size", ""]
    for task, methods in scores.get("tasks", {}).items():
        trained, tested = scores["rows"][task]
        way = ", trained through CUDA graphs" if scores.get("graphs") else ""
        lines += [
            f"{task}: {trained:,} rows trained on, {tested:,} scored; mean over 5 seeds{way}, and their range.",
            "",
        ]
        names = list(next(iter(methods.values()))["scores"])
        lines += [
            f"| method | {' | '.join(names)} | epochs | batch | trained elements | seconds for all seeds |",
            "|" + "---|" * (len(names) + 5),
        ]
        for method, cell in methods.items():
            told = [f"{statistics.mean(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in cell["scores"].values()]
            lines.append(
                f"| {method} | {' | '.join(told)} | {cell['epochs']} | {cell['batch']} | {cell['trained']:,} | "
                f"{cell['training_seconds']:.0f} |"
            )
        lines.append("")
    left = scores.get("left_out", [])
    return [
        *lines,
        *(
            [f"Left out, as the minutes did not hold them or they were not carried: {', '.join(left)}.", ""]
            if left
            else []
        ),
    ]
