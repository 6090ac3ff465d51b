"""A long csv answered whole, twice killed on the way, and trained on, and a folder of parquet beside the predictor.

How fast, and in how much memory.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from registry.bulk.answer_file import FileQuestion, Journal
from registry.bulk.data_set import DataSetRun, answer_data_set
from registry.bulk.folders import Folder
from registry.config import AdapterConfig, HeadConfig
from registry.model.backbone import Backbone
from registry.provenance import code_version, hardware
from registry.schema import Reading, SetInfo
from registry.serving.predictor import Predictor
from registry.store.registry import Registry
from registry.tasks.loading import load_task
from registry.tasks.spec import find_task
from registry.validation import from_json
from tests.support.tiny_backbone import WORDS, save_tiny_checkpoint

SHARD_ROWS = 100_000  # of a file of the folder
MANY = (500_000, 1_000_000)  # rows of the folders whose answering shows how memory grows
TURNS = 1  # of the predictor and of the folder
LIMIT = 1 << 30  # bytes of one process
TELL = "from registry.cli.main import main; main()"


def make_rows(path: Path, rows: int) -> None:
    """Write a csv of invented rows: a number, a text with commas and quotation marks here and there, a note."""
    chance = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        file.write("id,text,note\n")
        for number in range(rows):
            text = " ".join(chance.choices(WORDS, k=chance.randint(3, 20)))
            if number % 7 == 0:
                text = f'"{text}, said ""no"""'
            file.write(f"{number},{text},n{number % 5}\n")


def make_store(folder: Path) -> None:
    """Make a store with one set on a tiny random backbone."""
    save_tiny_checkpoint(folder / "tiny")
    backbone = Backbone.load(str(folder / "tiny"))
    fresh = backbone.new_adapter_set(
        AdapterConfig(reduction_factor=4, init="normal"), HeadConfig(label_names=("no", "yes"))
    )
    with torch.no_grad():
        fresh.head.out.weight.mul_(50)
    Registry.create(folder / "store", backbone).save("set", fresh, SetInfo(pair=False, max_length=64))


def answer(folder: Path, out: Path, kills: list[int]) -> dict[str, Any]:
    """Answer all rows, killing the process when so many rows are confirmed; return what it took."""
    started, peaks = time.perf_counter(), []
    command = [sys.executable, "-c", TELL, "--store", str(folder / "store"), "predict", "set"]
    command += ["--data", str(folder / "rows.csv"), "--text-col", "text", "--out", str(out)]
    journal = out.with_name(f"{out.name}.journal")
    for kill_at in [*kills, None]:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while kill_at is not None and rows_done(journal) < kill_at:
            time.sleep(0.05)
        if kill_at is not None:
            process.send_signal(signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        peaks.append(usage.ru_maxrss * 1024)
        ended = os.waitstatus_to_exitcode(status)
        if ended != (0 if kill_at is None else -signal.SIGKILL):
            raise SystemExit(f"a run ended with {ended}")
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    return {"seconds": round(time.perf_counter() - started, 1), "peak_bytes": max(peaks), "sha256": digest}


def learn(folder: Path, rows: int) -> dict[str, Any]:
    """Train a set on the first ``rows`` rows, one epoch in large batches; return what it took."""
    path = folder / f"rows-{rows}.csv"
    with (folder / "rows.csv").open(encoding="utf-8") as whole, path.open("w", encoding="utf-8") as part:
        part.writelines(itertools.islice(whole, rows + 1))
    command = [sys.executable, "-c", TELL, "--store", str(folder / "store"), "train", "--data", str(path)]
    command += ["--text-col", "text", "--label-col", "note", "--name", f"learned-{rows}", "--reduction-factor", "4"]
    command += ["--epochs", "1", "--batch-size", "256", "--max-length", "64", "--keep-diverged"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if ended := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"a training ended with {ended}")
    seconds, size = round(time.perf_counter() - started, 1), path.stat().st_size
    return {"rows": rows, "bytes": size, "seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024}


def try_parts(folder: Path, rows: int) -> dict[str, Any]:
    """Return the rate of a folder of parquet beside the predictor's, and the memory that each of MANY rows takes.

    For the rate both answer the sample's SST-2 texts, numbered to be distinct, with the shipped set on the embedded
    backbone, in turns of one process, in CPU time: the machine may have other work. For the memory the tiny backbone
    answers the same texts, so many that a part held whole, or all parts, would show.
    """
    registry = Registry("adapters_store", Backbone.load("embedded"))
    predictor = Predictor(registry.backbone, registry)
    sample = load_task(find_task("sst2"), "sample").train.texts
    texts = [f"{sample[n % len(sample)]} {n}" for n in range(rows)]
    question = FileQuestion(Path("."), ("sst2",), ("sentence",), Reading())
    for name, count in (("warm", 64), ("asked", rows), *((str(count), count) for count in MANY)):
        (folder / name).mkdir()
        for place, first in enumerate(range(0, count, SHARD_ROWS)):
            own = [f"{sample[n % len(sample)]} {n}" for n in range(first, min(first + SHARD_ROWS, count))]
            pq.write_table(pa.table({"sentence": own}), folder / name / f"{place:05d}.parquet")
    seconds: dict[str, list[float]] = {"predictor": [], "folder": []}
    for turn in range(-1, TURNS):
        own_folder, asked = ("warm", texts[:64]) if turn < 0 else ("asked", texts)
        started = time.process_time()
        predictor("sst2", asked)
        between = time.process_time()
        run = DataSetRun.begin(question, Folder(str(folder / own_folder)), Folder(str(folder / f"out{turn}")))
        answer_data_set(predictor, run)
        if turn >= 0:
            seconds["predictor"].append(between - started)
            seconds["folder"].append(time.process_time() - between)
    found = {name: [round(rows / each, 1) for each in taken] for name, taken in seconds.items()}
    peaks = {}
    for count in MANY:
        command = [sys.executable, "-c", TELL, "--store", str(folder / "store"), "predict", "set", "--data"]
        command += [str(folder / str(count)), "--text-col", "sentence", "--out", str(folder / f"answers-{count}")]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if ended := os.waitstatus_to_exitcode(status):
            raise SystemExit(f"a run ended with {ended}")
        peaks[str(count)] = usage.ru_maxrss * 1024
    ratio = sum(seconds["predictor"]) / sum(seconds["folder"])
    return {
        "rows": rows,
        "rows_per_cpu_second": found,
        "ratio": round(ratio, 3),
        "peaks": peaks,
    }


def told_of_parts(found: dict[str, Any]) -> list[str]:
    """Return the part on folders."""
    rates = {name: statistics.median(each) for name, each in found["rows_per_cpu_second"].items()}
    peaks = ", ".join(f"{size / 2**20:,.0f} MiB at {int(rows):,} rows" for rows, size in found["peaks"].items())
    return [
        "## A folder of parquet",
        "",
        f"`predict sst2 --data FOLDER --out FOLDER`, {found['rows']:,} rows, embedded backbone:",
        f"{rates['folder']:,.0f} rows a CPU second, the predictor on the same rows at once {rates['predictor']:,.0f}: "
        f"{found['ratio']:.3f} (0.95 wanted).",
        f"Most memory of the command, tiny backbone, files of {SHARD_ROWS:,} rows: {peaks} (2,048 MiB allowed).",
        "",
        *told_where(found),
    ]


def rows_done(journal: Path) -> int:
    """Return how many rows a run has confirmed."""
    try:
        return from_json(Journal, journal.read_bytes()).rows
    except OSError:
        return 0


def count_rows(out: Path) -> int:
    """Return the rows of the answers, of which each must have its own number in order."""
    with out.open(encoding="utf-8") as file:
        next(file)
        count = 0
        for count, line in enumerate(file, start=1):
            if int(line.partition(",")[0]) != count - 1:
                raise SystemExit(f"row {count} of the answers is out of order")
    return count


def main() -> None:
    """Make rows and store, do the parts that are wanted, and write the report; a part left out keeps its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--only", choices=("predict", "train", "parts"), help="one of the parts")
    parser.add_argument("--out", type=Path, default=Path("reports"))
    wanted = parser.parse_args()
    report = wanted.out / "streaming.json"
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_rows(folder / "rows.csv", wanted.rows)
        make_store(folder)
        for part, work in (("predict", try_answering), ("train", try_training), ("parts", try_parts)):
            if wanted.only in (None, part):
                found[part] = {**work(folder, wanted.rows), **where()}
    wanted.out.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (wanted.out / "streaming.md").write_text(render(found), encoding="utf-8")
    print(render(found))
    sys.exit(0 if "predict" not in found or found["predict"]["good"] else 1)


def where() -> dict[str, Any]:
    """Return what did a part."""
    machine = hardware(torch.get_num_threads(), None)
    return {"processor": machine.processor, "threads": machine.threads, "code": code_version()}


def try_answering(folder: Path, rows: int) -> dict[str, Any]:
    """Return what answering all rows took, undisturbed and killed twice, and whether both gave the same."""
    undisturbed = answer(folder, folder / "undisturbed.csv", [])
    killed = answer(folder, folder / "killed.csv", [rows // 5, rows // 2])
    answered, equal = count_rows(folder / "killed.csv"), undisturbed["sha256"] == killed["sha256"]
    small = max(undisturbed["peak_bytes"], killed["peak_bytes"]) < LIMIT
    return {
        "rows": rows,
        "bytes": (folder / "rows.csv").stat().st_size,
        "answered": answered,
        "equal": equal,
        "limit_bytes": LIMIT,
        "undisturbed": undisturbed,
        "killed_twice": killed,
        "good": equal and small and answered == rows,
    }


def try_training(folder: Path, rows: int) -> dict[str, Any]:
    """Return what training on three quarters of the rows and on all of them took."""
    return {"runs": [learn(folder, some) for some in (rows * 3 // 4, rows)]}


def render(found: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = ["# Large files", "", "Invented rows and a tiny random backbone: what matters is memory and order.", ""]
    for part, form in (("predict", told_of_answers), ("train", told_of_training), ("parts", told_of_parts)):
        lines += form(found[part]) if part in found else []
    return "\n".join(lines)


def told_of_answers(found: dict[str, Any]) -> list[str]:
    """Return the part on answers."""
    lines = [
        "## Answered whole",
        "",
        f"`predict --data` on a csv of {found['rows']:,} rows ({found['bytes'] / 1e6:,.0f} MB).",
        "",
        "| run | rows | rows/s | most memory of a process | answers |",
        "|---|---:|---:|---:|---|",
    ]
    for title, run in (("undisturbed", found["undisturbed"]), ("kill -9 twice on the way", found["killed_twice"])):
        rate, peak = found["rows"] / run["seconds"], run["peak_bytes"] / 2**20
        lines.append(f"| {title} | {found['answered']:,} | {rate:,.0f} | {peak:,.0f} MiB | {run['sha256'][:12]} |")
    equal = "equal to the byte" if found["equal"] else "NOT EQUAL"
    return [*lines, "", f"The two files are {equal}; every row is there once, in order.", "", *told_where(found)]


def told_of_training(found: dict[str, Any]) -> list[str]:
    """Return the part on training."""
    less, more = found["runs"]
    grown = (more["peak_bytes"] - less["peak_bytes"]) / (more["rows"] - less["rows"])
    rows = [
        f"| {run['rows']:,} | {run['bytes'] / 1e6:,.0f} MB | {run['rows'] / run['seconds']:,.0f} "
        f"| {run['peak_bytes'] / 2**20:,.0f} MiB |"
        for run in found["runs"]
    ]
    return [
        "## Trained on",
        "",
        "`train --data` on three quarters of the file and on all of it, one epoch, rows held out and scored: texts",
        "lie on disk and are tokenised as they are asked for.",
        "",
        "| rows | file | rows/s, reading and scoring included | most memory |",
        "|---:|---:|---:|---:|",
        *rows,
        "",
        f"Between the two it grew by {grown:,.0f} bytes a row.",
        "",
        *told_where(found),
    ]


def told_where(found: dict[str, Any]) -> list[str]:
    """Return what did a part, in words."""
    return [f"{found['processor']}, {found['threads']} thread, code {found['code']}; by `scripts/stream`.", ""]


if __name__ == "__main__":
    main()
