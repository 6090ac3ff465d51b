"""Damaged files of every kind: nothing that was changed on the disk is ever loaded in silence.

Knows the files of a store as bytes and the doors through which people read them, nothing of what is in them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from registry.adapters.adapter_set import AdapterSet
from registry.errors import BackboneMismatchError, RegistryError
from registry.schema import BackboneInfo
from registry.store.archive import export_version, pack, unpack
from registry.store.errors import ArchiveError, IntegrityError, ManifestError
from registry.store.listing import list_sets
from registry.store.manifest import TENSOR_FILES
from registry.store.store import Store
from registry.store.tensors import import_set, load_set, save_set
from tests.faults.verdict import Verdict
from tests.support.stored_sets import ADAPTER, HEAD, INFO, new_manifest

OTHER = msgspec.structs.replace(INFO, source="other", fingerprint="c" * 64)
REFUSALS = (ManifestError, IntegrityError, ArchiveError, BackboneMismatchError)
SHOWN = 20  # broken cases told in full; all are counted

Mutation = Callable[[random.Random, bytes], bytes]
Door = Callable[[], object]


@dataclass(frozen=True)
class Target:
    """One file that is damaged again and again.

    Attributes:
        kind: for the figures.
        path: where it lies.
        doors: all the ways to read it; each has to refuse.
        glances: ways to read this file alone; they cannot know of a sound file that belongs elsewhere.
        others: whole files that may be put in its place, by what they are.
        older: an older form of the very same content, which is no damage.
    """

    kind: str
    path: Path
    doors: Mapping[str, Door]
    others: Mapping[str, bytes]
    glances: Mapping[str, Door] = field(default_factory=dict)
    older: bytes = b""


def blame(verdict: Verdict, line: str) -> None:
    """Count a broken case, and tell the first ones."""
    verdict.count("bad")
    if len(verdict.bad) < SHOWN:
        verdict.bad.append(line)


def try_damage(folder: Path, *, cases: int, seed: int = 0) -> Verdict:
    """Damage every kind of file in every way, ``cases`` times in all, and read it through every door."""
    verdict = Verdict("a damaged file is refused with an error that names it")
    rng = random.Random(seed)
    targets = _make_targets(folder)
    whole = [target.path.read_bytes() for target in targets]
    slowest = 0.0
    while verdict.tried < cases:
        place = verdict.tried % len(targets)
        target, before = targets[place], whole[place]
        how, data = _damage(rng, target, before)
        if data in (before, target.older):
            continue
        _put(target.path, data)
        start = time.perf_counter()
        # A file of another place may be sound in itself, so any file of its folder may be the one that is told.
        told = target.path.parent if how in target.others else target.path
        doors = target.doors if how in target.others else {**target.doors, **target.glances}
        for title, door in doors.items():
            fault = _find_fault(door, str(told))
            if fault is not None:
                blame(verdict, f"{target.kind}, {how}, case {verdict.tried} of seed {seed}, {title}: {fault}")
        slowest = max(slowest, time.perf_counter() - start)
        verdict.tried += 1
        verdict.count(target.kind)
        verdict.count("another file" if how in target.others else how)
        _put(target.path, before)
    verdict.details["slowest_seconds"] = round(slowest, 4)
    _check_whole(verdict, targets)
    return verdict


def _put(path: Path, data: bytes) -> None:
    path.unlink()  # a file that is cut to nothing and written again is flushed to the disk by some systems
    path.write_bytes(data)


def _find_fault(door: Door, told: str) -> str | None:
    try:
        door()
    except REFUSALS as err:
        return None if told in str(err) else f"expected an error that names {told}, found {err}"
    except RegistryError as err:
        return f"expected an error about damage, found {type(err).__name__}: {err}"
    except Exception as err:
        return f"expected an error of ours, found {type(err).__name__}: {err}"
    return "expected an error, found that it was loaded"


def _check_whole(verdict: Verdict, targets: list[Target]) -> None:
    """Make sure that what was refused was refused for its damage: put right again, everything is read."""
    for target in targets:
        for title, door in {**target.doors, **target.glances}.items():
            try:
                door()
            except RegistryError as err:
                blame(verdict, f"{target.kind}, put right, {title}: expected that it is read, found {err}")


def _make_targets(folder: Path) -> list[Target]:
    """Make two stores with sets and archives, and return the files of the first that are to be damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    own, foreign = _make_store(folder / "store", INFO, 0), _make_store(folder / "foreign", OTHER, 10)
    archives = {}
    for label, store, reference in (
        ("own 1", own, "mrpc:1"), ("own 2", own, "mrpc:2"), ("own 3", own, "imdb:1"), ("foreign", foreign, "mrpc:1")
    ):  # fmt: skip
        path = export_version(store, reference, folder / f"{label.replace(' ', '-')}.adapter")
        archives[label] = path.read_bytes()
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for store in (own, foreign)
        for path in sorted(store.root.rglob("*"))
        if path.is_file()
    }
    version = own.folder("mrpc", 2)
    stored: dict[str, Door] = {
        "load": lambda: load_set(own, "mrpc", 2, INFO),
        "verify": lambda: own.verify_bytes("mrpc", 2),
        "export": lambda: export_version(own, "mrpc:2", folder / "never.adapter", overwrite=True),
    }
    listed: dict[str, Door] = {"list": lambda: _list(own)}
    targets = [
        Target(file, version / file, stored, _without(files, version / file, folder), glances)
        for file, glances in (("manifest.json", listed), *((file, {}) for file in TENSOR_FILES))
    ]
    archive = folder / "own-1.adapter"
    targets.append(
        Target("archive", archive, {"import": lambda: import_set(own, archive)}, files | _mixed_archives(archives))
    )
    store_file, alias = own.root / "store.json", own.root / "mrpc" / "aliases" / "best"
    opened: dict[str, Door] = {"open": lambda: Store.create(own.root, INFO)}
    targets.append(Target("store.json", store_file, opened, _without(files | archives, store_file, folder)))
    asked: dict[str, Door] = {"resolve": lambda: own.resolve("mrpc@best"), "aliases": lambda: own.aliases("mrpc")}
    asked.update(listed)
    targets.append(Target("alias", alias, asked, _without(files | archives, alias, folder), older=b"1\n"))
    return targets


def _make_store(root: Path, info: BackboneInfo, seed: int) -> Store:
    store = Store.create(root, info)
    for number, name in enumerate(("mrpc", "mrpc", "imdb")):
        adapter_set = AdapterSet(info.hidden_size, info.layers, ADAPTER, HEAD, seed=seed + number)
        save_set(store, adapter_set, new_manifest(name, parameters=adapter_set.stored_count, backbone=info))
    store.set_alias("mrpc", "best", 1)
    store.set_alias("mrpc", "live", 2)
    store.set_alias("imdb", "best", 1)
    return store


def _list(store: Store) -> None:
    for listed in list_sets(store):
        if listed.error is not None:
            raise listed.error


def _without(files: Mapping[str, bytes], path: Path, folder: Path) -> dict[str, bytes]:
    return {label: data for label, data in files.items() if label != str(path.relative_to(folder))}


def _mixed_archives(archives: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return well-formed archives that no store of ours has written: members swapped within and between archives."""
    members = {label: unpack(Path(label), data) for label, data in archives.items()}
    mixed = {"foreign archive": archives["foreign"]}
    for label, own in members.items():
        adapter, head = TENSOR_FILES
        mixed[f"head and adapter of {label}"] = pack({**own, adapter: own[head], head: own[adapter]})
        for other, theirs in members.items():
            for member in own:
                if own[member] != theirs[member]:
                    mixed[f"{member} of {other} in {label}"] = pack({**own, member: theirs[member]})
    return mixed


def _damage(rng: random.Random, target: Target, data: bytes) -> tuple[str, bytes]:
    if rng.random() < 0.1:
        label = rng.choice(list(target.others))
        return label, target.others[label]
    mutation = rng.choice(MUTATIONS)
    return mutation.__name__.strip("_").replace("_", " "), mutation(rng, data)


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    """Return where a part of ``data`` begins and ends: often a few bytes, sometimes many."""
    begin = rng.randrange(len(data))
    most = rng.choice((1, 4, 16, 64, 512, len(data)))
    return begin, min(len(data), begin + rng.randint(1, most))


def _bit_flip(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _noise(rng: random.Random, data: bytes) -> bytes:
    begin, end = _span(rng, data)
    return data[:begin] + rng.randbytes(end - begin) + data[end:]


def _scattered_noise(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(2, 32)):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(changed)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _cut_at_the_front(rng: random.Random, data: bytes) -> bytes:
    return data[rng.randint(1, len(data)) :]


def _extension(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((b"\n", b" ", b"\0", b"\0" * 512, data, rng.randbytes(rng.randint(1, 64))))


def _extension_at_the_front(rng: random.Random, data: bytes) -> bytes:
    return rng.choice((b"\n", b" ", b"\0", b"\xef\xbb\xbf", rng.randbytes(rng.randint(1, 64)))) + data


def _zeroed_block(rng: random.Random, data: bytes) -> bytes:
    begin, end = _span(rng, data)
    return data[:begin] + bytes(end - begin) + data[end:]


def _doubled_block(rng: random.Random, data: bytes) -> bytes:
    begin, end = _span(rng, data)
    return data[:end] + data[begin:]


def _lost_block(rng: random.Random, data: bytes) -> bytes:
    begin, end = _span(rng, data)
    return data[:begin] + data[end:]


def _moved_block(rng: random.Random, data: bytes) -> bytes:
    begin, end = _span(rng, data)
    rest = data[:begin] + data[end:]
    place = rng.randint(0, len(rest))
    return rest[:place] + data[begin:end] + rest[place:]


def _empty(rng: random.Random, data: bytes) -> bytes:
    return b""


MUTATIONS: tuple[Mutation, ...] = (
    _bit_flip, _bit_flip, _noise, _scattered_noise, _cut, _cut_at_the_front, _extension, _extension_at_the_front,
    _zeroed_block, _doubled_block, _lost_block, _moved_block, _empty,
)  # fmt: skip
