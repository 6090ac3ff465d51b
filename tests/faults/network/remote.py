"""A store on object storage under crowds, a bad network and killed writers; and ten thousand sets there and back.

Writers are programs of their own, asked on the command line; what each says it saved has to be there, whole, and what
is there has to be some writer's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.remote.syncing import sync_stores
from registry.store.errors import StoreError, UnsettledError
from registry.store.listing import list_sets
from registry.store.store import Store, create_store, open_store
from tests.faults.verdict import Verdict
from tests.faults.visible import contents, serial_of
from tests.support.object_server import BUCKET, FAULTS, FaultyNetwork, endpoint_settings, object_server
from tests.support.stored_sets import INFO, ROOT, new_manifest

NAME = "mrpc"
TURNS = 20  # of a save that is refused
SECONDS = 1200
PROMISE = "a store over S3 loses, tears and hides nothing under crowds, a bad network and kills"


def try_remote(folder: Path, *, writers: int, saves: int, faults: int, kills: int, share: float = 0.2) -> Verdict:
    """Do all of it at one server.

    Args:
        folder: for caches and stores on disk.
        writers, saves: programs at once, and how often each saves into one name.
        faults: saves, alias moves and reads through a network that does harm to a ``share`` of the requests.
        kills: writers that are killed after one of their puts.
    """
    verdict = Verdict(PROMISE)
    with object_server() as port, _settings(port, folder):
        _crowd(verdict, writers, saves)
        _bad_network(verdict, port, faults, share)
        _kills(verdict, port, kills)
    return verdict


def try_sync(folder: Path, *, sets: int) -> Verdict:
    """Sync a store of so many sets to the server and back, and list it."""
    verdict = Verdict("a store that goes to S3 and back is equal, and a second sync sends no byte")
    with object_server() as port, _settings(port, folder):
        _there_and_back(verdict, folder, sets)
    return verdict


@contextmanager
def _settings(port: int, folder: Path) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(endpoint_settings(port), ADAPTER_REGISTRY_CACHE=str(folder / "cache"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _new_address() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def _start_writer(address: str, first: int, saves: int, **settings: str) -> subprocess.Popen[str]:
    script = "from tests.faults.network.remote import write; write()"
    command = [sys.executable, "-c", script, address, str(first), str(saves)]
    environment = {**os.environ, **settings, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=Path.cwd(), env=environment, stdout=subprocess.PIPE, text=True)


def write() -> None:
    """Save some serials as the command line says, and print each number that was given."""
    address, first, saves = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    store = open_store(address)
    for serial in range(first, first + saves):
        for _ in range(TURNS):
            try:
                number = store.commit(new_manifest(NAME, parameters=serial), contents(serial))
            except UnsettledError:
                print(json.dumps([serial, 0]), flush=True)
            except StoreError:
                continue
            else:
                print(json.dumps([serial, number]), flush=True)
                break


def _check(verdict: Verdict, store: Store, saved: dict[int, int], unsettled: set[int], what: str) -> None:
    """Hold what is there against what writers were told; both ways."""
    there = set(store.versions(NAME)) if NAME in store.names() else set()
    for number in sorted(there | saved.keys()):
        verdict.tried += 1
        if number not in there:
            verdict.bad.append(f"{what}: {NAME}:{number} is lost")
            continue
        try:
            manifest, parts = store.uncached().read_version(NAME, number)  # what is at the server
            serial = serial_of(manifest.parameters, parts)
        except (StoreError, ValueError) as err:
            verdict.bad.append(f"{what}: {NAME}:{number} is torn: {err}")
            continue
        if saved.get(number, serial) != serial:
            verdict.bad.append(f"{what}: {NAME}:{number} is {serial}, not {saved[number]}")
        if number not in saved and serial not in unsettled:
            verdict.bad.append(f"{what}: {NAME}:{number} was told to nobody")


def _crowd(verdict: Verdict, writers: int, saves: int) -> None:
    store = create_store(_new_address(), INFO)
    started = time.perf_counter()
    running = [_start_writer(store.address, 1 + each * saves, saves) for each in range(writers)]
    told = [json.loads(line) for each in running for line in each.communicate(timeout=SECONDS)[0].splitlines()]
    saved = {number: serial for serial, number in told if number}
    if len(saved) != writers * saves:
        verdict.bad.append(f"crowd: {len(saved)} of {writers * saves} saves have a number of their own")
    _check(verdict, store, saved, set(), "crowd")
    verdict.details["saves by a crowd"] = f"{len(saved)} of {writers * saves} by {writers} writers"
    verdict.details["seconds of the crowd"] = round(time.perf_counter() - started, 1)


def _bad_network(verdict: Verdict, port: int, number: int, share: float) -> None:
    """Save, move an alias and read through a network that does every fault; an error may be told, nothing else."""
    address = create_store(_new_address(), INFO).address
    network = FaultyNetwork(port, FAULTS, share)
    with _settings(network.port, Path(os.environ["ADAPTER_REGISTRY_CACHE"]).parent):
        saved: dict[int, int] = {}
        unsettled: set[int] = set()
        expected = {0}
        for serial in range(1, number + 1):
            try:
                store = open_store(address)
                saved[store.commit(new_manifest(NAME, parameters=serial), contents(serial))] = serial
            except UnsettledError:
                unsettled.add(serial)
                verdict.count("answers told as lost")
                continue
            except StoreError:
                verdict.count("errors told")
                continue
            try:
                version = max(saved)
                expected.add(version)
                store.set_alias(NAME, "best", version)
                expected = {version}
                verdict.tried += 1
                if store.resolve(f"{NAME}@best")[1] != version:
                    verdict.bad.append(f"network: the alias is not at {version}")
            except StoreError:
                verdict.count("errors told")
    network.close()
    store = open_store(address)
    _check(verdict, store, saved, unsettled, "network")
    if saved and store.aliases(NAME).get("best", 0) not in expected:
        verdict.bad.append(f"network: the alias is at {store.aliases(NAME)}, expected one of {sorted(expected)}")
    for fault, count in sorted(network.done.items()):
        verdict.details[f"fault: {fault}"] = count


def _kills(verdict: Verdict, port: int, number: int) -> None:
    """Kill writers after each of their puts in turn: what they told is there, what they did not is whole or nowhere."""
    store = create_store(_new_address(), INFO)
    network = FaultyNetwork(port)
    for turn in range(number):
        saved = set(store.versions(NAME)) if NAME in store.names() else set()
        network.puts_left = 3 + turn % 8  # two are the proof that the server keeps to conditions
        writer = _start_writer(store.address, 1 + turn * 10, 10, AWS_ENDPOINT_URL=f"http://127.0.0.1:{network.port}")
        network.victim = writer
        told = [json.loads(line) for line in writer.communicate(timeout=SECONDS)[0].splitlines()]
        network.victim = None
        verdict.tried += 1
        numbers = {number for _, number in told}
        if writer.returncode == 0 or not numbers | saved <= set(store.versions(NAME) if NAME in store.names() else ()):
            verdict.bad.append(f"kill {turn}: told {told}, ended with {writer.returncode}")
        verdict.count("kills")
    network.close()
    everything = set(range(1, 1 + number * 10))
    _check(verdict, store, {}, everything, "kill")
    verdict.details["numbers of killed writers collected"] = len(store.collect_garbage(older_than=0))
    _check(verdict, store, {}, everything, "kill, after gc")


def _there_and_back(verdict: Verdict, folder: Path, sets: int) -> None:
    """Sync many sets to the server and back, list them cold and from the cache, and sync again."""
    source = Store.create(folder / "source", INFO)
    for each in range(sets):
        source.commit(new_manifest(f"set-{each:05d}", parameters=each), contents(each))
    target = create_store(_new_address(), INFO)
    timed: dict[str, float] = {}

    def measure(what: str, task: object) -> object:
        started = time.perf_counter()
        result = task() if callable(task) else None
        timed[what] = round(time.perf_counter() - started, 2)
        return result

    measure("sync to S3", lambda: sync_stores(source, target))
    os.environ["ADAPTER_REGISTRY_CACHE"] = str(folder / "cold")
    measure("list, cold", lambda: len(list(list_sets(open_store(target.address)))))
    measure("list, from the cache", lambda: len(list(list_sets(open_store(target.address)))))
    back = Store.create(folder / "back", INFO)
    measure("sync back", lambda: sync_stores(open_store(target.address), back))
    again = sync_stores(source, target)
    verdict.tried += sets
    if again.bytes or again.copied:
        verdict.bad.append(f"sync: a second one sent {again.bytes} bytes")
    for name in source.names():
        if source.read_version(name, 1) != back.read_version(name, 1):
            verdict.bad.append(f"sync: {name} is not equal")
    verdict.details["sets there and back"] = sets
    verdict.details["bytes of a second sync"] = again.bytes
    for what, seconds in timed.items():
        verdict.details[f"seconds of {what}"] = seconds
