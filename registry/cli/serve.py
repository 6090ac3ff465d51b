"""The command that serves a store: sockets, processes and signals around the web application."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from registry.cli.options import Settings, backbone_option, gpu_share_option, note, on_option
from registry.errors import ConfigError, RegistryError
from registry.validation import printable, require

if TYPE_CHECKING:
    from registry.serving.answering import Answering

_NEEDED = ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client")
_LOCAL = ("127.0.0.1", "::1", "localhost")
_KEEP_ALIVE = 75  # seconds that a connection may be idle: longer than proxies keep theirs
_RESTART_SECONDS = 1.0  # between two starts of a worker that has ended
_COLLECTED_OBJECTS = 20_000  # new ones that may stand before garbage is collected
_METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(frozen=True)
class Serving:
    """What a process that serves is told."""

    settings: Settings
    backbone: str | None
    workers: int
    max_rows: int | None
    max_tokens: int | None
    max_queue_rows: int
    pool_bytes: int
    threshold: float | None
    drain: float
    api_keys: Path | None
    cors: tuple[str, ...]
    logs: bool
    log_texts: bool
    on: str | None
    replicas: str
    gpu_share: float


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes, on CPUs alone.")
@click.option("--max-rows", type=click.IntRange(min=1), help="Rows of a batch; 64 on a CPU, 256 on a GPU by default.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of a batch; 4,096 and 16,384 by default.")
@click.option("--max-queue-rows", type=click.IntRange(min=1), default=2_048, show_default=True, help="Rows that wait.")
@click.option("--pool", "pool_mib", type=click.IntRange(min=0), default=2_048, show_default=True, help="MiB of sets.")
@click.option("--threshold", type=float, metavar="P", help="Say labels of multi-label sets from this probability on.")
@click.option("--drain", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Seconds after SIGTERM.")
@click.option(
    "--api-keys", type=click.Path(path_type=Path, dir_okay=False), help="Keys, by SHA-256; see docs/serving.md."
)
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Let pages of this origin ask; may be repeated.")
@click.option("--log/--no-log", "logs", default=True, show_default=True, help="A line of JSON on stderr a request.")
@click.option("--log-texts", is_flag=True, help="Write the texts of requests into the log as well.")
@on_option
@click.option(
    "--replicas", default="1:1", show_default=True, metavar="MIN:MAX", help="With --on, engines at least and at most."
)
@gpu_share_option
@backbone_option
@click.pass_obj
def serve(settings: Settings, /, host: str, port: int, pool_mib: int, **options: Any) -> None:
    """Answer over HTTP with every set of the store: one process, requests of different tasks in one pass.

    \b
    adapter-registry serve
    curl -s 127.0.0.1:8000/v1/predict -d '{"rows": [{"adapter": "sst2", "text": "dull"}]}'
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        hint = "pip install 'adapter-registry[serve]'"
        raise ConfigError("serve", f"{', '.join(_NEEDED)} to be installed", f"no {', '.join(missing)}", hint)
    serving = Serving(settings=settings, pool_bytes=pool_mib * 2**20, **options)
    settings.open_store()
    require(_replicas(serving.replicas) == (1, 1) or serving.on is not None, "--replicas", "--on beside it", "none")
    require(serving.on is None or serving.workers == 1, "--workers", "1 beside --on; see --replicas", serving.workers)
    if serving.api_keys is not None:
        from registry.web.gate import ApiKeys

        ApiKeys.read(serving.api_keys)
    listening = _listen(host, port)
    if host not in _LOCAL and serving.api_keys is None:
        note(f"everybody who reaches {host} may ask, as there are no --api-keys; TLS is a proxy's to add")
    note(f"serving {settings.store} on http://{_told(listening)}; Ctrl-C or SIGTERM ends it")
    if serving.on is not None:
        _work_on_ray(serving, serving.on, listening)
    elif serving.workers > 1:
        _supervise(serving, listening)
    else:
        _work(serving, listening)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ConfigError: the address is taken, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2_048)
    except OSError as err:
        hint = "--port 0 takes a free one"
        raise ConfigError("--host and --port", "a free address of this machine", f"{host}:{port}", hint) from err


def _told(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _work(serving: Serving, listening: socket.socket) -> None:
    """Serve in this process until a signal ends it, and all that waits is answered."""
    from registry.serving.engine import Engine, Limits
    from registry.serving.predictor import Predictor

    registry = serving.settings.open_registry(serving.backbone)
    backbone, several = registry.backbone, serving.workers > 1
    device = backbone.device.type
    require(device == "cpu" or not several, "--workers", f"1, as there is one {device} device", serving.workers)
    predictor = Predictor(backbone, registry, capacity=serving.pool_bytes, threshold=serving.threshold)
    backbone.embed(["what the first request would wait for is done"])
    engine = Engine(predictor, Limits(serving.max_rows, serving.max_tokens, serving.max_queue_rows)).start()
    _run(engine, listening, serving)


def _replicas(text: str) -> tuple[int, int]:
    """Return how many replicas there are at least and at most.

    Raises:
        ConfigError: no such two numbers.
    """
    least, _, most = text.partition(":")
    if not (least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most)):
        raise ConfigError("--replicas", "MIN:MAX, two numbers from 1 on such as 1:4", text)
    return int(least), int(most)


def _work_on_ray(serving: Serving, on: str, listening: socket.socket) -> None:
    """Serve from this process by engines on Ray, until a signal ends it, and all that waits is answered."""
    import torch

    from registry.cluster.connection import connect
    from registry.cluster.serve import ReplicaTerms, deployed
    from registry.serving.engine import Limits

    settings = serving.settings
    store = settings.open_store()
    info = store.info.backbone
    terms = ReplicaTerms(
        store=store.address,
        source=serving.backbone or info.source,
        revision=None if serving.backbone else info.revision,
        device=settings.device,
        dtype=settings.dtype,
        offline=settings.offline,
        threads=torch.get_num_threads(),
        gpus=serving.gpu_share if settings.device.startswith("cuda") else 0.0,
        limits=Limits(serving.max_rows, serving.max_tokens, serving.max_queue_rows),
        capacity=serving.pool_bytes,
        threshold=serving.threshold,
    )
    with connect(on), deployed(terms, _replicas(serving.replicas), serving.max_queue_rows) as front:
        _run(front, listening, serving)


def _run(engine: Answering, listening: socket.socket, serving: Serving) -> None:
    """Run the web application; the first signal lets it answer what waits, the second ends it at once."""
    import uvicorn

    from registry.web.app import AppSettings, create_app
    from registry.web.gate import ApiKeys
    from registry.web.telemetry import JsonLines

    keys = None if serving.api_keys is None else ApiKeys.read(serving.api_keys)
    several = serving.workers > 1
    app = create_app(engine, AppSettings(keys, serving.cors, serving.logs, serving.log_texts, several))

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("adapter_registry.server", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name.startswith("adapter") else logging.WARNING)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=1,
        lifespan="on",
    )
    server, told = uvicorn.Server(config), threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and serving.workers > 1:
            return  # a terminal tells all processes, and the first one tells the others
        server.force_exit = server.should_exit = told.is_set()
        told.set()

    def drain() -> None:
        parent = multiprocessing.parent_process()
        while not told.wait(1.0) and (parent is None or parent.is_alive()):
            pass
        engine.drain()
        until = time.monotonic() + serving.drain
        while app.state.telemetry.inside and time.monotonic() < until:
            time.sleep(0.02)
        server.should_exit = True

    _collect_seldom()
    server.handle_exit = end  # type: ignore[method-assign, assignment]
    threading.Thread(target=drain, name="drain", daemon=True).start()
    server.run(sockets=[listening])


def _collect_seldom() -> None:
    """Let garbage collection pass over what stands before the first request, and come for what is new more seldom.

    It holds the interpreter, so that the engine waits as well; requests leave hardly anything that it must find.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_OBJECTS)


def _work_beside(serving: Serving, listening: socket.socket, place: int) -> None:
    """Serve as one of several processes, on cores of its own."""
    import torch

    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        own = cores[place :: serving.workers] or [cores[place % len(cores)]]
        os.sched_setaffinity(0, own)
        torch.set_num_threads(len(own))
    try:
        _work(serving, listening)
    except RegistryError as err:
        click.echo(f"adapter-registry: {printable(err)}", err=True)
        sys.exit(err.exit_code)


def _supervise(serving: Serving, listening: socket.socket) -> None:
    """Start the processes, start those again that were killed, and end them all when a signal comes."""
    from prometheus_client.multiprocess import mark_process_dead

    context, ended = multiprocessing.get_context("spawn"), threading.Event()

    def start(place: int) -> Any:
        process = context.Process(target=_work_beside, args=(serving, listening, place), name=f"worker {place}")
        process.start()
        return process

    with tempfile.TemporaryDirectory(prefix="adapter-registry-metrics-") as folder:
        os.environ[_METRICS_FOLDER] = folder
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        workers = [start(place) for place in range(serving.workers)]
        code = 0
        while not code and not ended.wait(_RESTART_SECONDS):
            for place, worker in enumerate(workers):
                if worker.exitcode is None:
                    continue
                code = max(code, worker.exitcode)  # one that was killed has a number below zero
                mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
                if worker.exitcode < 0:
                    note(f"{worker.name} was ended by signal {-worker.exitcode}; another takes its place")
                    workers[place] = start(place)
        for worker in workers:
            worker.terminate()
        until = time.monotonic() + serving.drain + 5
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()))
            worker.kill()
            worker.join()
    sys.exit(code)
