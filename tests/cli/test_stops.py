"""Trainings that are stopped: by Ctrl-C, by kill -9, by a full disk. What is visible is whole, and runs go on."""

from __future__ import annotations

import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from registry.cli.progress import stop_between_steps
from tests.support.command_line import (
    call,
    json_lines,
    set_digest,
    single_rows,
    start,
    succeed,
    visible,
    write_csv,
    write_data_folder,
)
from tests.support.stored_sets import tree

pytestmark = pytest.mark.slow

WAIT_SECONDS = 60
LARGEST_FILE = 4096  # bytes


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv file with enough rows for a few hundred steps."""
    return write_csv(tmp_path_factory.mktemp("rows") / "rows.csv", single_rows(100))


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, rows: Path) -> str:
    """The SHA-256 of the weights of a training that nobody stopped."""
    store = tmp_path_factory.mktemp("through") / "store"
    succeed("--store", store, *training(tiny_folder, rows), "--name", "through")
    return set_digest(store, "through")


def training(tiny_folder: Path, rows: Path) -> tuple[object, ...]:
    """Return the arguments of a training of 400 steps with dropout."""
    data = ("--data", rows, "--text-col", "sentence", "--label-col", "label", "--backbone", tiny_folder)
    length = ("--epochs", "20", "--batch-size", "4", "--max-length", "32")
    return ("train", "mood", *data, *length, "--reduction-factor", "4", "--adapter-dropout", "0.1")


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until the running process has come so far."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes that are gone after the test, however it ends."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, **options: object) -> subprocess.Popen[str]:
        processes.append(start(*arguments, **options))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_training_goes_on_as_if_nothing_had_happened(
    tmp_path: Path,
    tiny_folder: Path,
    rows: Path,
    through: str,
    launch: Callable[..., subprocess.Popen[str]],
    number: signal.Signals,
) -> None:
    """No version is visible after a stop, a checkpoint is, and --resume ends with the very same weights.

    It does not go on with other choices than those of the checkpoint.
    """
    store = tmp_path / "store"
    arguments = ("--store", store, *training(tiny_folder, rows))
    checkpoint = store / ".checkpoints" / "mood.safetensors"
    process = launch(*arguments)
    wait_for(checkpoint.exists, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=WAIT_SECONDS)
    assert not out
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        told = err.splitlines()[-1]
        assert told.startswith("adapter-registry: training interrupted after step ")
        assert told.endswith(f"of 400: a checkpoint is kept in {checkpoint}; go on with --resume")
    kept = [name for name in visible(store) if not name.endswith(".tmp")]
    assert [".checkpoints/mood.safetensors", "store.json"] == kept
    other = call(*arguments, "--resume", "--seed", "1")
    assert other.code == 1
    assert "expected a checkpoint of the same task, data and settings, found other settings" in other.message
    resumed = succeed(*arguments, "--resume")
    assert resumed.out.startswith("mood:1  accuracy ")
    assert through == set_digest(store, "mood")
    assert not checkpoint.exists()


def test_a_killed_fusion_goes_on_with_the_same_members(
    tmp_path: Path, tiny_folder: Path, rows: Path, launch: Callable[..., subprocess.Popen[str]]
) -> None:
    """--resume ends with the weights of a training that nobody killed, and goes on with no other members."""
    store = tmp_path / "store"
    columns = ("--text-col", "sentence", "--label-col", "label", "--max-length", "32")
    data = ("--data", rows, *columns, "--backbone", tiny_folder)
    for seed, name in enumerate("abc"):
        shape = ("--reduction-factor", "4", "--epochs", "1", "--limit", "40", "--seed", seed)
        succeed("--store", store, "train", "mood", "--name", name, *data, *shape)
    fusion = ("--store", store, "train", "mood", *data, "--method", "fusion", "--epochs", "10", "--batch-size", "4")
    succeed(*fusion, "--members", "a,b", "--name", "through")
    process = launch(*fusion, "--members", "a,b")
    wait_for((store / ".checkpoints" / "mood.safetensors").exists, process)
    process.kill()
    process.communicate(timeout=WAIT_SECONDS)
    other = call(*fusion, "--members", "a,c", "--resume")
    assert (1, True) == (other.code, "found other settings: members a:1 (" in other.message)
    succeed(*fusion, "--members", "a,b", "--resume")
    assert set_digest(store, "through") == set_digest(store, "mood")


def test_stop_is_asked_for_once_and_forced_twice() -> None:
    """The first Ctrl-C only asks, the second one stops at once; afterwards Ctrl-C is what it was before."""
    before = signal.getsignal(signal.SIGINT)
    with stop_between_steps() as should_stop:
        assert not should_stop()
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert before == signal.getsignal(signal.SIGINT)


def test_other_threads_are_never_asked_to_stop() -> None:
    """Only the main thread can handle signals; elsewhere a training simply runs."""

    def ask() -> bool:
        with stop_between_steps() as should_stop:
            return should_stop()

    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(ask).result()


def test_killed_bench_keeps_what_was_finished(
    tmp_path: Path, tiny_folder: Path, launch: Callable[..., subprocess.Popen[str]]
) -> None:
    """After kill -9 in the second cell the first cell's record is there, and is not run again."""
    folder = write_data_folder(tmp_path / "data", count=100)
    methods = ("--method", "pfeiffer", "--method", "houlsby")
    length = ("--epochs", "8", "--batch-size", "4", "--max-length", "32")
    places = ("--data", folder, "--out", tmp_path / "out", "--backbone", tiny_folder)
    arguments = ("--store", tmp_path / "none", "bench", "sst2", *methods, *places, *length)
    first, second = (tmp_path / "out" / "runs" / "sst2" / name / "seed-0.json" for name in ("pfeiffer", "houlsby"))
    process = launch(*arguments)
    wait_for(first.exists, process)
    process.kill()
    process.communicate(timeout=WAIT_SECONDS)
    assert not second.exists()
    before = tree(first.parent)
    again = succeed(*arguments)
    assert again.err.count("(already there)") == 1
    assert before == tree(first.parent)
    assert second.exists()
    assert (tmp_path / "out" / "table.csv").exists()


def test_full_disk(tmp_path: Path, tiny_folder: Path, launch: Callable[..., subprocess.Popen[str]]) -> None:
    """A write that does not fit ends in one line, and no part of a version is visible."""
    folder = write_data_folder(tmp_path / "data")
    store = tmp_path / "store"
    succeed("--store", store, "init", "--backbone", tiny_folder)
    process = launch(
        "--store", store, "train", "sst2", "--data", folder, "--epochs", "1", "--max-length", "32",
        "--reduction-factor", "1",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE)),
    )  # fmt: skip
    out, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 1
    assert not out
    assert "Traceback" not in err
    told = err.splitlines()[-1]
    assert told.startswith("adapter-registry: cannot save 'sst2' (")
    assert told.endswith(f"bytes) in {store}: file too large; nothing was changed")
    assert ["store.json"] == visible(store)


def test_reader_that_goes_away(tmp_path: Path, tiny_folder: Path, launch: Callable[..., subprocess.Popen[str]]) -> None:
    """A reader such as ``head`` that has read enough ends the program without a word."""
    folder = write_data_folder(tmp_path / "data")
    store = tmp_path / "store"
    usual = ("--epochs", "1", "--max-length", "32")
    succeed("--store", store, "train", "sst2", "--data", folder, "--backbone", tiny_folder, *usual)
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json_lines([{"text": "a good film"}] * 5_000))
    with lines.open() as stdin:
        process = launch("--store", store, "predict", "sst2", "-", stdin=stdin)
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith('{"adapter": "sst2:1"')
        process.stdout.close()
        assert 1 == len(process.stderr.read().splitlines())
        assert process.wait(timeout=WAIT_SECONDS) == 0
