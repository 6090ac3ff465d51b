"""How fast a server answers, beside the predictor offline and the servers of others. See ``scripts/serve-load``."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from layers import measure_layers
from load import Outcome, keep_in_flight, keep_rate, peer_bodies, row_bodies
from report import LABELS, render
from scene import draw_rows, make_store, name_of, read_texts

from registry.model.backbone import Backbone
from registry.provenance import code_version, hardware
from registry.serving.predictor import Predictor
from registry.store.registry import Registry

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = ROOT / ".serving-peers"
OURS = "ours"
LITSERVE = {"litserve_32": ("32", "0.0005"), "litserve_64": ("64", "0.005")}  # rows and seconds of a batch


@dataclass(frozen=True)
class Length:
    """How long a run is: seconds of a measurement, rounds, and the seconds of an overload."""

    seconds: float
    rounds: int
    overload: float


DTYPES = ("float32", "bfloat16")
PARTS = ("sizes", "float32", "bfloat16", "pool", "peers", "overload", "layers")
QUICK, LONG = Length(2.0, 1, 5.0), Length(20.0, 5, 60.0)


@dataclass(frozen=True)
class Process:
    """A server at work."""

    key: str
    port: int
    process: subprocess.Popen[bytes]

    def memory(self) -> int:
        """Return the bytes that it and its children have in memory."""
        parent = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in (parent, *parent.children(recursive=True)))

    def cpu(self) -> float:
        """Return the seconds of processor that it and its children have had."""
        parent = psutil.Process(self.process.pid)
        times = [each.cpu_times() for each in (parent, *parent.children(recursive=True))]
        return sum(each.user + each.system for each in times)

    def metric(self, name: str) -> float:
        """Return the sum of one of our metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"adapter_registry_{name}"))


@contextmanager
def server(key: str, store: Path, dtype: str, *arguments: str, before: str = "") -> Iterator[Process]:
    """Start a contender, wait until it answers, and end it and its children; ours does ``before`` first."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tell = f"{before}from registry.cli.main import main; main()"
    command = [sys.executable, str(HERE / "contenders.py"), key, str(store), str(port), dtype]
    if key in LITSERVE:
        command = [sys.executable, str(HERE / "litserve_server.py"), str(store), str(port), dtype, *LITSERVE[key]]
    if key == OURS:
        command = [sys.executable, "-c", tell, "--store", str(store), "--dtype", dtype, "serve", "--port", str(port)]
        command += ["--no-log", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE), str(PEERS)])}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        found = Process(key, port, process)
        try:
            asyncio.run(_first_answer(found, log))
            yield found
        finally:
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(process.pid).children(recursive=True)
                process.terminate()
                _, alive = psutil.wait_procs(family, timeout=10)
                for each in alive:
                    each.kill()
            process.kill()
            process.wait()


async def _first_answer(process: Process, log: Any) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until and process.process.poll() is None:
        outcome = await ask(process, itertools.repeat((name_of(0), "good")), 1, 0.3)
        if outcome.waits:
            return
        await asyncio.sleep(0.3)
    log.seek(0)
    raise SystemExit(f"{process.key} does not answer: {log.read().decode(errors='replace')[-2000:]}")


async def ask(
    process: Process, rows: Iterator[tuple[str, str]], in_flight: int, seconds: float, each: int = 1
) -> Outcome:
    """Keep requests in flight at a contender, and note what it spent on them."""
    ours, before = process.key == OURS, process.cpu()
    body = row_bodies(rows, each) if ours else peer_bodies(rows)
    path = "/v1/predict" if ours else "/predict"
    outcome = await keep_in_flight(process.port, path, body, in_flight, seconds, each)
    outcome.cpu = process.cpu() - before
    return outcome


def offline(predictor: Predictor, rows: Iterator[tuple[str, str]], seconds: float) -> dict[str, float]:
    """Return the rows a second that the predictor answers when it is asked 64 at a time, without a server."""
    answered, started, before = 0, time.perf_counter(), time.process_time()
    while (took := time.perf_counter() - started) < seconds:
        answered += len(predictor.mixed(list(itertools.islice(rows, 64))))
    spent = time.process_time() - before
    return {"rows_per_second": answered / took, "cpu_ms_per_row": 1e3 * spent / answered}


def bare_forward(predictor: Predictor, rows: Iterator[tuple[str, str]], seconds: float) -> float:
    """Return the median milliseconds of a forward of one row that is tokenized already."""
    times: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        name, text = next(rows)
        tokens = predictor.backbone.tokenize([text])
        with predictor.pool.hold([predictor.registry.identify(name)]) as sets:
            before = time.perf_counter()
            list(predictor.batch_numbers(tokens, [0], sets, lambda head, logits: logits.softmax(-1)))
            times.append(1e3 * (time.perf_counter() - before))
    return statistics.median(times)


def measure_shares(registry: Registry, texts: list[str], sets: int, length: Length, arguments: list[str]) -> Any:
    """Measure ours at several requests in flight beside the predictor offline, in turn, round after round."""
    predictor = Predictor(registry.backbone, registry, capacity=pool_bytes(arguments))
    rows, found = draw_rows(texts, sets, 0), []
    dtype = str(registry.backbone.dtype).removeprefix("torch.")
    with server(OURS, Path(registry.store.root), dtype, *arguments) as ours:
        asyncio.run(ask(ours, rows, 32, length.seconds))
        offline(predictor, rows, length.seconds)
        for _ in range(length.rounds):
            told: dict[str, Any] = {"offline": offline(predictor, rows, length.seconds)}
            told["forward_ms"] = bare_forward(predictor, rows, min(length.seconds, 5.0))
            for in_flight in (1, 8, 32, 128):
                told[str(in_flight)] = asyncio.run(ask(ours, rows, in_flight, length.seconds)).to_json()
            told["8 rows x 4"] = asyncio.run(ask(ours, rows, 4, length.seconds, 8)).to_json()
            told["offline_after"] = offline(predictor, rows, length.seconds)
            found.append(told)
    return found


def measure_inside(registry: Registry, dtype: str, texts: list[str], sets: int, length: Length) -> Any:
    """Measure what the server's share is made of, in one precision."""
    backbone = registry.backbone if dtype == "float32" else Backbone.load("embedded", device="cpu", dtype=dtype)
    store = Path(registry.store.root)
    predictor = Predictor(backbone, Registry(store, backbone))
    serve = partial(server, OURS, store, dtype)
    rows = draw_rows(texts, sets, 3)
    return measure_layers(predictor, rows, length.seconds, length.rounds, lambda before: serve(before=before), ask)


def pool_bytes(arguments: list[str]) -> int:
    """Return the bytes of the pool that the arguments of ``serve`` ask for."""
    mib = int(arguments[arguments.index("--pool") + 1]) if "--pool" in arguments else 2_048
    return mib * 2**20


def measure_peers(registry: Registry, texts: list[str], sets: int, length: Length) -> Any:
    """Measure ours beside the servers of others at 32 and 128 in flight, in turn, round after round."""
    rows, rounds = draw_rows(texts, sets, 1), []
    with ExitStack() as stack:
        store = Path(registry.store.root)
        keys = [key for key in LABELS if key == OURS or key == "one_forward" or PEERS.is_dir()]
        contenders = [stack.enter_context(server(key, store, "float32")) for key in keys]
        for turn in range(length.rounds + 1):
            told: dict[str, Any] = {}
            for contender in contenders if turn % 2 else contenders[::-1]:
                each = {str(n): asyncio.run(ask(contender, rows, n, length.seconds)).to_json() for n in (32, 128)}
                told[contender.key] = each
            rounds += [told] if turn else []  # the first warms up
    return rounds


def measure_overload(registry: Registry, texts: list[str], sets: int, length: Length) -> Any:
    """Measure ours under three times the rows that it can answer, in requests of four rows."""
    rows, deadline = draw_rows(texts, sets, 2), 5.0
    with server(OURS, Path(registry.store.root), "float32") as ours:
        usual = asyncio.run(ask(ours, rows, 32, max(5.0, length.overload / 3), 4))
        before, memory = usual.rate, ours.memory()
        most = 0.0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, await asyncio.to_thread(ours.metric, "queue_rows"))
                await asyncio.sleep(0.25)

        async def overload() -> Outcome:
            watching = asyncio.ensure_future(watch())
            counted = await asyncio.to_thread(ours.metric, 'requests_total{route="/v1/predict",status="200"}')
            outcome = await keep_rate(
                ours.port, "/v1/predict", row_bodies(rows, 4), 3 * before / 4, length.overload, deadline, 4
            )
            watching.cancel()
            now = await asyncio.to_thread(ours.metric, 'requests_total{route="/v1/predict",status="200"}')
            outcome.statuses[-1] = int(now - counted)
            return outcome

        outcome = asyncio.run(overload())
        answered = outcome.statuses.pop(-1)
        return {
            "usual_rows_per_second": before,
            "deadline_seconds": deadline,
            **outcome.to_json(),
            "answered_by_the_server": answered,
            "most_rows_waiting": most,
            "memory_before": memory,
            "memory_after": ours.memory(),
        }


def measure_sizes(registry: Registry, sets: int) -> Any:
    """Measure what a server has in memory: at its start, with all sets resident, and with its queue full."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        with server(OURS, Path(registry.store.root), dtype, "--max-queue-rows", "2048") as ours:
            told: dict[str, Any] = {"at_start": ours.memory()}
            every = itertools.cycle((name_of(number), "a gripping film") for number in range(sets))
            while ours.metric("resident_sets") < sets:
                asyncio.run(ask(ours, every, 1, 0.5, 64))
            told["all_sets"] = ours.memory()
            told["resident_bytes"], told["resident_sets"] = ours.metric("resident_bytes"), ours.metric("resident_sets")
            long = itertools.cycle([(name_of(0), "a gripping film " * 200)])
            asyncio.run(ask(ours, long, 8, 5.0, 256))
            told["queue_full"] = ours.memory()
            found[dtype] = told
    return found


def main() -> None:
    """Measure what is wanted, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; shows that all of it works")
    parser.add_argument("--parts", nargs="+", default=list(PARTS))
    parser.add_argument("--texts", type=Path, help="JSON lines with 'sentence'; the bundled sample by default")
    parser.add_argument("--sets", type=int, default=64)
    parser.add_argument("--many", type=int, default=1_000, help="sets of the part 'pool', which keeps a fifth of them")
    parser.add_argument("--rounds", type=int, help=f"of each part; {LONG.rounds} by default")
    parser.add_argument("--seconds", type=float, help=f"of each measurement; {LONG.seconds:g} by default")
    parser.add_argument("--out", type=Path, default=Path("reports"))
    wanted = parser.parse_args()
    length, texts = QUICK if wanted.quick else LONG, read_texts(wanted.texts)
    length = replace(length, rounds=wanted.rounds or length.rounds, seconds=wanted.seconds or length.seconds)
    path = wanted.out / "serving.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    machine = hardware(torch.get_num_threads(), None)
    about = {"processor": machine.processor, "threads": machine.threads, "code": code_version(), "quick": wanted.quick}
    about |= {"texts": len(texts), "seconds": length.seconds}
    with tempfile.TemporaryDirectory() as name:
        plain = Backbone.load("embedded", device="cpu", dtype="float32")
        registry = make_store(Path(name) / "store", plain, wanted.sets)
        for part in wanted.parts:
            print(f"{part} …", file=sys.stderr, flush=True)
            if part in ("float32", "bfloat16"):
                backbone = plain if part == "float32" else Backbone.load("embedded", device="cpu", dtype=part)
                own = Registry(Path(registry.store.root), backbone)
                told = measure_shares(own, texts, wanted.sets, length, [])
            elif part == "pool":
                many = make_store(Path(name) / "many", plain, wanted.many)
                mib = max(1, wanted.many // 5 * many_bytes(many) // 2**20)
                told = measure_shares(many, texts, wanted.many, length, ["--pool", str(mib)])
            elif part == "sizes":
                told = measure_sizes(registry, wanted.sets)
            elif part == "layers":
                told = {dtype: measure_inside(registry, dtype, texts, wanted.sets, length) for dtype in DTYPES}
            elif part == "peers":
                told = measure_peers(registry, texts, wanted.sets, length)
            else:
                told = measure_overload(registry, texts, wanted.sets, length)
            found[part] = {**about, "sets": wanted.many if part == "pool" else wanted.sets, "found": told}
            wanted.out.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = render(found)
    (wanted.out / "serving.md").write_text(page, encoding="utf-8")
    print(page)


def many_bytes(registry: Registry) -> int:
    """Return the bytes of one resident set."""
    predictor = Predictor(registry.backbone, registry)
    predictor(name_of(0), ["good"])
    return predictor.pool.bytes


if __name__ == "__main__":
    main()
