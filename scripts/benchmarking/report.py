"""The benchmark's report: targets, every contender, where missed time goes; as Markdown, JSON and a picture.

It holds the targets and the words; it measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from picture import draw
from profiling import Profile
from rounds import Result, Results

from registry.bench.records import write_file
from registry.provenance import code_version, command_line, hardware, library_versions

BOTH, FLOAT32 = ("ours-float32", "ours-bfloat16"), ("ours-float32",)
NOT_MEASURED = "not measured"
FEW_ROWS = 2_000
GROUP_TITLES = {
    "train-mrpc": "Training, MRPC", "train-sst2": "Training, SST-2", "infer-mrpc": "Answering, MRPC",
    "infer-sst2": "Answering, SST-2", "mixed-sst2": "Mixed batches, SST-2", "resident": "1,000 resident sets, SST-2",
    "switch": "Switching",
}  # fmt: skip


@dataclass
class Measured:
    """Everything that one run of the benchmark found out."""

    results: Results
    memory: float
    scores: list[dict[str, Any]]
    gpu: dict[str, Any]
    peer_versions: dict[str, str]
    data: str
    device: str
    profiles: list[Profile] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One line of the table of targets.

    Attributes:
        measure: what is compared.
        base: the figure that counts as 1.0.
        figure: ours.
        ratio: ours to the base, or what the target is about; None where it was not measured.
        target: in words.
        limit: the same as a number.
        least: whether ``limit`` is a lower limit.
        group: which rows; empty for what has no contenders.
        ours: contenders of ours behind it.
    """

    measure: str
    base: str
    figure: str
    ratio: float | None
    target: str
    limit: float
    least: bool = True
    group: str = ""
    ours: tuple[str, ...] = ()

    @property
    def met(self) -> bool | None:
        """Return whether the target is met, None where it was not measured."""
        if self.ratio is None:
            return None
        return self.ratio >= self.limit if self.least else self.ratio <= self.limit


def table(measured: Measured) -> list[Row]:
    """Return the rows of the table of targets."""
    results = measured.results
    return [
        *(against(results, *spec) for spec in (
            ("Training one set, MRPC, best dtype, vs adapters", "train-mrpc", "adapters", BOTH, 3.0),
            ("Training one set, MRPC, float32, vs adapters", "train-mrpc", "adapters", FLOAT32, 1.6),
            ("Training one set, SST-2, best dtype, vs adapters", "train-sst2", "adapters", BOTH, 4.0),
            ("Training one set, MRPC, best dtype, vs the notebook's recipe", "train-mrpc", "notebook", BOTH, 50.0),
            ("Inference one set, MRPC batch 16, best dtype, vs adapters", "infer-mrpc", "adapters", BOTH, 2.5),
            ("Inference one set, MRPC batch 16, float32, vs adapters", "infer-mrpc", "adapters", FLOAT32, 1.4),
            ("Inference one set, MRPC batch 16, best dtype, vs peft", "infer-mrpc", "peft", BOTH, 2.5),
            ("Inference one set, MRPC batch 16, float32, vs peft", "infer-mrpc", "peft", FLOAT32, 1.4),
        )),
        of_bare(results, "Mixed batch, 32 SST-2 rows over 16 sets, share of own bare model", "mixed-sst2", 0.95),
        of_bare(results, "The same with after_layer sets", "mixed-sst2", 0.95, "ours_after_layer"),
        of_bare(results, "1,000 resident sets, Zipf traffic, share of own bare model", "resident", 0.93),
        against(results, "Mixed batch, rows/s, best dtype, vs peft adapter_names", "mixed-sst2", "peft", BOTH, 3.0),
        against(results, "Mixed batch, rows/s, best dtype, vs BatchSplit", "mixed-sst2", "adapters", BOTH, 3.0),
        switching(results, 64),
        switching(results, 1_000),
        Row("Memory of 1,000 resident sets, to the bytes of their weights", "1.0", f"{measured.memory:.3f}",
            measured.memory, "<= 1.15", 1.15, least=False),
        *gpu_rows(measured.gpu),
    ]  # fmt: skip


def against(results: Results, title: str, group: str, base: str, ours: tuple[str, ...], limit: float) -> Row:
    """Return a row of rates; the best of ``ours`` counts."""
    ratios = {key: results.ratio(group, key, base) for key in ours}
    known = {key: ratio for key, ratio in ratios.items() if ratio is not None}
    best = max(known, key=lambda key: known[key], default=ours[0])
    base_figure = figure_of(results.get((group, base)))
    own = figure_of(results.get((group, best)))
    named = f"{own} ({best.removeprefix('ours-')})" if len(ours) > 1 and known else own
    return Row(title, base_figure, named, known.get(best), f">= {limit:g}", limit, group=group, ours=(best,))


def of_bare(results: Results, title: str, group: str, limit: float, kind: str = "ours") -> Row:
    """Return a row of shares of the bare backbone: the lower dtype's counts, the peers' own shares stand beside."""
    dtypes = [key.removeprefix("ours-") for key in BOTH]
    shares = {f"{kind}-{dtype}": results.ratio(group, f"{kind}-{dtype}", f"ours_bare-{dtype}") for dtype in dtypes}
    known = {key: share for key, share in shares.items() if share is not None}
    figure = ", ".join(f"{share:.3f} {key.rpartition('-')[2]}" for key, share in known.items())
    peers = {key: results.ratio(group, key, f"{key}_bare") for key in ("adapters", "peft")}
    base = ", ".join(f"{key} {share:.3f}" for key, share in peers.items() if share is not None)
    base = base or ("own bare 1.0" if group == "resident" else NOT_MEASURED)
    worst = min(known.values(), default=None)
    return Row(title, base, figure or NOT_MEASURED, worst, f">= {limit:g}", limit, group=group, ours=tuple(shares))


def switching(results: Results, count: int) -> Row:
    """Return the row of microseconds per switch among ``count`` resident sets."""
    own = results.get(("switch", f"ours-{count}"))
    peers = [(key, results.get(("switch", f"{key}-{count}"))) for key in ("adapters", "peft")]
    base = ", ".join(f"{key} {1e6 / each.rate:,.0f} us" for key, each in peers if each is not None and each.rate)
    micros = 1e6 / own.rate if own is not None and own.rate else None
    figure = f"{micros:.2f} us" if micros is not None else NOT_MEASURED
    title = f"Switching to another of {count:,} resident sets, microseconds"
    return Row(title, base or NOT_MEASURED, figure, micros, "<= 20 us", 20.0, least=False, group="switch",
               ours=(f"ours-{count}",))  # fmt: skip


def gpu_rows(gpu: dict[str, Any]) -> list[Row]:
    """Return the rows that need a CUDA device."""
    rate = f"{gpu['matmul_rate'] / 1e12:,.0f} TFLOP/s, {gpu['device']}" if gpu else NOT_MEASURED
    specs = (
        ("GPU: bert-base forward, 16k tokens, share of the bf16 matmul rate", rate, "forward_share", 0.55),
        ("GPU: bert-base training, 16k tokens, share of the bf16 matmul rate", rate, "training_share", 0.45),
        ("GPU: mixed batch over 64 sets, share of own bare model", "1.0", "mixed_share_of_bare", 0.95),
        ("GPU: 8 sets trained together, vs one after another", "1.0", "joint_training", 3.0),
    )
    return [
        Row(title, base if key in gpu else NOT_MEASURED, f"{gpu[key]:.3f}" if key in gpu else NOT_MEASURED,
            gpu.get(key), f">= {limit:g}", limit)
        for title, base, key, limit in specs
    ]  # fmt: skip


def figure_of(result: Result | None) -> str:
    """Return a rate for the table, or why there is none."""
    if result is None:
        return NOT_MEASURED
    return f"{result.rate:,.1f}/s" if result.rate is not None else result.failed or NOT_MEASURED


def write(measured: Measured, out: Path) -> None:
    """Write the figures for programs, the tables for people, and the picture."""
    rows = table(measured)
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine = hardware(torch.get_num_threads(), accelerator)
    content = {
        "command": command_line().replace("benchmark.py", "scripts/benchmark", 1),
        "code": code_version(),
        "hardware": {name: getattr(machine, name) for name in machine.__struct_fields__},
        "device": measured.device,
        "versions": library_versions(),
        "peer_versions": measured.peer_versions,
        "data": measured.data,
        "targets": [{**asdict(row), "met": row.met} for row in rows],
        "results": [each.to_json() for each in measured.results.values()],
        "memory": measured.memory,
        "scores": measured.scores,
        "gpu": measured.gpu,
        "profiles": [each.to_json() for each in measured.profiles],
    }
    lines = [*header(content), *target_lines(rows), *contender_lines(measured), *profile_lines(measured.profiles)]
    write_file(out / "benchmark.json", (json.dumps(content, indent=2) + "\n").encode())
    write_file(out / "benchmark.md", ("\n".join(lines) + "\n").encode())
    write_file(out / "benchmark.png", draw([row for row in rows if row.ratio is not None and row.least]))


def header(content: dict[str, Any]) -> list[str]:
    """Return the lines that say how the figures came about."""
    machine = content["hardware"]
    accelerator = machine["accelerator"] or "none"
    ours = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    peers = ", ".join(f"{name} {version}" for name, version in content["peer_versions"].items()) or NOT_MEASURED
    return [
        "# Rates beside the peers",
        "",
        f"`{content['command']}`, code {content['code']}; rows of {content['data']}.",
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} thread(s) at work, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}, accelerator: {accelerator}.",
        f"Ours: {ours}. Peers, in an environment of their own: {peers}.",
        "",
        f"Backbone all-MiniLM-L6-v2 (H 384, 6 layers), on {content['device']}. Contenders of a group do the same token "
        "rows in turn, round after round, each in CPU",
        "time of the process at work (wall time on a GPU). A rate is the median over rounds; a ratio is the median of "
        "the rounds' own ratios, and is what to look at.",
        "",
    ]


def target_lines(rows: Sequence[Row]) -> list[str]:
    """Return the table of targets."""
    words = {True: "yes", False: "**no**", None: NOT_MEASURED}
    lines = ["| measure | base (peers = 1.0) | ours | ratio | target | met |", "|---|---|---|---:|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}" if row.limit < 10 else f"{row.ratio:.2f}"
        lines.append(f"| {row.measure} | {row.base} | {row.figure} | {ratio} | {row.target} | {words[row.met]} |")
    return lines


def contender_lines(measured: Measured) -> list[str]:
    """Return the table of every contender: its rate, how it varied, and what it learns."""
    lines = ["", "## Every contender", "", "| rows | contender | per second | lowest to highest | of own bare | "
             "accuracy | F1 |", "|---|---|---:|---|---:|---:|---:|"]  # fmt: skip
    scores = {(f"train-{each['task']}", each["contender"]): each for each in measured.scores}
    for (group, key), result in measured.results.items():
        spread = f"{result.spread[0]:,.1f} to {result.spread[1]:,.1f}" if result.spread else ""
        bare = f"ours_bare-{key.rpartition('-')[2]}" if key.startswith("ours") else f"{key}_bare"
        share = measured.results.ratio(group, key, bare)
        score = score_cells(scores.get((group, key)))
        lines.append(f"| {GROUP_TITLES[group]} | {result.label} | {figure_of(result).removesuffix('/s')} | {spread} | "
                     f"{'' if share is None else f'{share:.3f}'} | {score} |")  # fmt: skip
    return [*lines, *score_notes(measured.scores)]


def score_cells(score: dict[str, Any] | None) -> str:
    """Return the two cells of a training contender's scores."""
    if score is None:
        return " | "
    if "failed" in score:
        return f"{score['failed']} | "
    return f"{score['scores']['accuracy']:.3f} | {score['scores']['f1_binary']:.3f}"


def score_notes(scores: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the scores are scores of."""
    if not scores:
        return ["", "Scores: not measured."]
    courses = {each["task"]: f"{each['task']} {each['rows']:,} rows x {each['epochs']} epochs, "
               f"{each['scored_rows']:,} validation rows" for each in scores}  # fmt: skip
    few = min(each["rows"] for each in scores) < FEW_ROWS
    return [
        "",
        *(["**Quick scores: so few rows do not tell who learns more; `--scores full` does.**"] if few else []),
        f"Scores, at equal rows, epochs and seed {scores[0]['seed']}: {'; '.join(courses.values())}.",
        "Learning rate 1e-3, full fine-tuning 1e-4; AdamW, 6 % warm-up, linear decay. The notebook's recipe is scored "
        "with padding to the longest row of a batch of 16: padding is masked, so the function is the same.",
    ]


def profile_lines(profiles: Sequence[Profile]) -> list[str]:
    """Return where the time behind the missed targets goes, and the floor."""
    if not profiles:
        return []
    names = list(profiles[0].shares)
    lines = ["", "## Where the time of missed targets goes", "",
             f"| contender | ms | {' | '.join(names)} | floor, ms | matmul, GFLOP/s |",
             f"|---|---:|{'---:|' * len(names)}---:|---:|"]  # fmt: skip
    for each in profiles:
        shares = " | ".join(f"{each.shares[name]:.0%}" for name in names)
        lines.append(f"| {each.subject} | {1000 * each.seconds:,.1f} | {shares} | {1000 * each.floor:,.1f} | "
                     f"{each.matmul_rate / 1e9:,.0f} |")  # fmt: skip
    return [*lines, "", "Floor: the rows' floating-point operations at the machine's own rate of matrix products in "
            "that dtype and shape."]  # fmt: skip
