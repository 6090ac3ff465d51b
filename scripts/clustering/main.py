"""Twelve cells on local Ray nodes of one core each, beside the grid without Ray: speed, a killed node, overhead."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import ray
from ray.cluster_utils import Cluster

from registry.bench.records import read_records
from registry.provenance import code_version, hardware

TELL = "from registry.cli.main import main; main()"
METHODS, SEEDS = ("lora", "houlsby"), 6
CELLS = len(METHODS) * SEEDS
# What may differ between two runs of the same cell: when it was, how it was asked for, how long it took.
OF_ITS_TIME = (
    *("train_seconds", "evaluate_seconds", "rows_per_second", "evaluate_rows_per_second"),
    *("peak_memory_bytes", "command", "started"),
)
TARGETS = {"two_nodes": 1.8, "overhead_of_30_s": 0.03}
PARTS = ("scaling", "killed", "overhead")


@contextmanager
def nodes(count: int) -> Iterator[Cluster]:
    """Give a cluster of so many nodes of one CPU, beside a head that computes nothing."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def run_grid(
    options: argparse.Namespace, out: Path, cluster: Cluster | None, on_cell: Callable[[int], None] = lambda done: None
) -> float:
    """Run the grid as a user would, and return the seconds from the loaded backbone to the last cell.

    Args:
        options: of the script.
        out: folder of records and report.
        cluster: where; None is without Ray.
        on_cell: called after each finished cell with how many there are.
    """
    command = [sys.executable, "-c", TELL, "--device", "cpu", "--dtype", "float32", "bench", options.task]
    command += [part for method in METHODS for part in ("--method", method)]
    command += ["--seeds", f"0-{SEEDS - 1}", "--data", options.data, "--out", str(out)]
    for name in ("limit", "epochs", "max_length"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    environment = dict(os.environ)
    if cluster is not None:
        command += ["--on", "ray"]
        environment["RAY_ADDRESS"] = cluster.address
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    assert process.stderr is not None
    began = ended = 0.0
    done, lines = 0, []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("backbone "):
            began = time.perf_counter()
        if re.match(r"\S+ \S+ seed \d+: (?!step)", line):
            ended, done = time.perf_counter(), done + 1
            on_cell(done)
    if process.wait() or done != CELLS:
        raise SystemExit(f"the grid ended with code {process.returncode} after {done} cells:\n{''.join(lines[-20:])}")
    return ended - began


def contents(out: Path) -> list[dict[str, Any]]:
    """Return what the records of a run say but of their time: settings, scores, curves, the answers' digests."""
    plain = [msgspec.to_builtins(record) for record in read_records(out)]
    return [{name: value for name, value in each.items() if name not in OF_ITS_TIME} for each in plain]


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return the seconds of every run, and whether its report is that of the run without Ray."""
    found: dict[str, Any] = {"cells": CELLS, "load_before": psutil.getloadavg()[0]}

    def run(title: str, cluster: Cluster | None, on_cell: Callable[[int], None] = lambda done: None) -> None:
        print(f"{title} …", file=sys.stderr, flush=True)
        seconds = run_grid(options, work / title, cluster, on_cell)
        here, there = contents(work / title), contents(work / "without_ray")
        equal = here == there
        for one, other in zip(here, there, strict=True):
            for name in [name for name in one if one[name] != other[name]]:
                print(f"{title}: {name}: {one[name]}, without Ray {other[name]}", file=sys.stderr, flush=True)
        found[title] = {"seconds": round(seconds, 2), "equal": equal}
        print(f"{title}: {seconds:.1f} s, report {'equal' if equal else 'NOT EQUAL'}", file=sys.stderr, flush=True)

    run("without_ray", None)
    records = read_records(work / "without_ray")
    found["cell_seconds"] = round(sum(each.train_seconds + each.evaluate_seconds for each in records) / CELLS, 2)
    if {"scaling", "overhead"} & set(options.parts):
        with nodes(1) as cluster:
            run("one_node", cluster)
        lost = (found["one_node"]["seconds"] - found["without_ray"]["seconds"]) / CELLS
        found["overhead_seconds_of_a_cell"] = round(lost, 3)
        found["overhead_of_30_s"] = round(lost / 30, 4)
    if "scaling" in options.parts:
        with nodes(2) as cluster:
            run("two_nodes", cluster)
        found["speedup"] = round(found["one_node"]["seconds"] / found["two_nodes"]["seconds"], 3)
    if "killed" in options.parts:
        with nodes(2) as cluster:
            victim = sorted(cluster.worker_nodes, key=lambda node: node.node_id)[0]

            def kill(done: int) -> None:
                if done == CELLS // 2:
                    cluster.remove_node(victim, allow_graceful=False)

            run("one_of_two_killed", cluster, kill)
    return found


def told(found: dict[str, Any]) -> str:
    """Return the page of what was found."""
    titles = {
        "without_ray": "without Ray",
        "one_node": "one node of one core",
        "two_nodes": "two nodes of one core each",
        "one_of_two_killed": f"two nodes, one killed without grace after {CELLS // 2} cells",
    }
    rows = [
        f"| {title} | {found[key]['seconds']:,.1f} | {'equal' if found[key]['equal'] else 'NOT EQUAL'} |"
        for key, title in titles.items()
        if key in found
    ]
    lines = [
        "# Grids on Ray",
        "",
        f"`bench {found['task']} --on ray`: {CELLS} cells ({', '.join(METHODS)}; {SEEDS} seeds) of about "
        f"{found['cell_seconds']:.0f} s each, rows of {found['data']}.",
        "Seconds run from the loaded backbone of the driver to the last record: connecting, workers that start and",
        "load the backbone are in them. Reports are equal where settings, scores, curves and answers' digests are.",
        "",
        "| | seconds | report |",
        "|---|---:|---|",
        *rows,
        "",
    ]
    if "speedup" in found:
        lines += [f"Two nodes are {found['speedup']:.2f} times as fast as one (target {TARGETS['two_nodes']}).", ""]
    if "overhead_of_30_s" in found:
        share, most = found["overhead_of_30_s"], TARGETS["overhead_of_30_s"]
        seconds = found["overhead_seconds_of_a_cell"]
        lines += [
            f"Ray costs {seconds:.2f} s a cell, starting included: {share:.1%} of a cell of 30 s (target {most:.0%}).",
            "",
        ]
    busy = found["load_before"] > 0.5
    lines += [
        f"{found['processor']}, {found['cores']} cores, 1 thread a worker, code {found['code']}; "
        + ("the machine was BUSY with other work, so the seconds are no evidence. " if busy else "")
        + "By `scripts/cluster`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure what is asked for and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows, short ones, one epoch")
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--data", default="sample", help="as of bench")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=Path("reports"))
    options = parser.parse_args()
    if options.quick:
        options.limit, options.epochs, options.max_length = options.limit or 100, 1, 32
    machine = hardware(1, None)
    with tempfile.TemporaryDirectory(prefix="adapter-registry-cluster-") as folder:
        found = measure(options, Path(folder))
    found |= {name: getattr(options, name) for name in ("task", "data", "limit", "epochs", "max_length", "quick")}
    found |= {"processor": machine.processor, "cores": machine.cores, "code": code_version()}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "cluster.json").write_text(json.dumps(found, indent=2) + "\n")
    (options.out / "cluster.md").write_text(told(found))
    print(told(found))
    if not all(each["equal"] for each in found.values() if isinstance(each, dict)):
        raise SystemExit("a report differs from the one made without Ray")


if __name__ == "__main__":
    main()
