"""The operations on a store that faults are injected into, and the judgement of what each fault left.

A state is all that can be told of a store and of the folder beside it, as one flat dictionary: ``mrpc:3`` and the
digest of its files, ``mrpc@best`` and its version, ``outside/x`` and its digest. ``#mrpc`` is the highest number that
was ever given under a name: nobody sees it, but the next save has to go on from there.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from registry.store import files
from registry.store.archive import export_version, pack
from registry.store.errors import CommitUncertainError, StoreReadError, StoreWriteError
from registry.store.manifest import ADAPTER_FILE, HEAD_FILE, StoreInfo, seal, seal_store_info
from registry.store.reader import MANIFEST_FILE, STAGING, STORE_FILE, StoreReader
from registry.store.store import Store
from tests.support.stored_sets import ADAPTER, HEAD, INFO, new_manifest, tree

State = dict[str, str]

SIZE = 6_000  # bytes of a stored adapter: more than a page

_BESIDE_EXPORT = re.compile(r"\.exported\.adapter\.[0-9a-f]{32}\.tmp")
_KNOWN_FILE = re.compile(
    r"store\.json|tmp/.+|[a-z0-9]+/(aliases/[a-z0-9]+|versions/[0-9]{6}(\.removed|/(manifest\.json|\w+\.safetensors)))"
)


class Place:
    """A store, and a folder beside it that only an export may write into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store, self.outside = folder / "store", folder / "outside"
        self.exported = self.outside / "exported.adapter"
        self.given = self.outside / "given.adapter"  # what is imported


@dataclass(frozen=True)
class Operation:
    """One change of a store.

    Attributes:
        what: its words; the first one says of which kind it is.
        name: whose next save is tried afterwards.
        run: does it.
        change: tells the state after it from the state before.
        needed: bytes that an error has to name, where the operation writes a set.
    """

    what: str
    name: str
    run: Callable[[Place], object]
    change: Callable[[State], State]
    needed: int | None = None

    @property
    def kind(self) -> str:
        """The first word: save, alias, remove, ..."""
        return self.what.split()[0]


class Outcome(NamedTuple):
    """How an operation ended, for whoever called it.

    Attributes:
        told: ``done``; ``unchanged``, ``unread`` or ``uncertain``, by one of our errors; ``killed``; else ``wrong``.
        text: the error's sentence, or what was removed.
    """

    told: str
    text: str = ""


def attempt(operation: Operation, place: Place) -> Outcome:
    """Run an operation and sort what comes of it; a sentence that is no sentence is ``wrong``."""
    try:
        result = operation.run(place)
    except CommitUncertainError as err:
        outcome = Outcome("uncertain", str(err))
    except StoreWriteError as err:
        outcome = Outcome("unchanged", str(err))
    except StoreReadError as err:
        outcome = Outcome("unread", str(err))
    except BaseException as err:  # a raw OSError is what the experiments are looking for
        return Outcome("wrong", f"{type(err).__name__}: {err}"[:300])
    else:
        return Outcome("done", " ".join(result) if isinstance(result, list) else "")
    return outcome if "\n" not in outcome.text else Outcome("wrong", outcome.text[:300])


def visible(state: State) -> State:
    """Return the part of a state that can be seen."""
    return {key: found for key, found in state.items() if not key.startswith("#")}


def look(place: Place) -> State:
    """Return what can be seen at a place, each version verified to its last byte by a store that is opened anew."""
    beside = tree(place.outside).items()
    state = {f"outside/{path}": files.sha256(data) for path, data in beside if not _BESIDE_EXPORT.fullmatch(path)}
    if not (place.store / STORE_FILE).exists():
        return state
    view = StoreReader.open(place.store)
    state[STORE_FILE] = files.sha256((place.store / STORE_FILE).read_bytes())
    for name in view.names():
        for version in view.versions(name):
            view.verify_bytes(name, version)
            state[f"{name}:{version}"] = _digest(tree(view.folder(name, version)))
        state |= {f"{name}@{alias}": str(version) for alias, version in view.aliases(name).items()}
    return state


def remains(place: Place) -> set[str]:
    """Return what lies in ``tmp/``, and what an export left beside its file: nobody misses or minds it."""
    beside = {path for path in tree(place.outside) if _BESIDE_EXPORT.fullmatch(path)}
    return {*files.entries(place.store / STAGING), *beside}


def judge(place: Place, operation: Operation, before: State, outcome: Outcome) -> tuple[State, list[str]]:
    """Return the state that an operation left, which has to be the one it told of, and what is wrong with it."""
    after = operation.change(before)
    allowed = {"done": [after], "uncertain": [after], "unchanged": [before], "killed": [after, before]}
    # A store is opened after it was made, and what cannot be read does not say that nothing was changed.
    allowed["unread"] = [after, before] if operation.kind == "create" else [before]
    if outcome.told not in allowed:
        return before, [f"ended with {outcome.text}"]
    try:
        found = look(place)
    except Exception as err:  # whatever a reader stumbles over is the finding
        return before, [f"told {outcome}; a reader found {type(err).__name__}: {err}"]
    wrong = [f"stray file {path}" for path in tree(place.store) if not _KNOWN_FILE.fullmatch(path)]
    if operation.kind == "gc" and outcome.told == "done":
        wrong += [f"not removed: {entry}" for entry in outcome.text.split() if (place.store / STAGING / entry).exists()]
    for state in allowed[outcome.told]:
        if visible(state) == found:
            return state, wrong
    expected = visible(allowed[outcome.told][0])
    return before, [*wrong, f"told {outcome}; expected {_other(expected, found)}, found {_other(found, expected)}"]


def go_on(place: Place, name: str, state: State) -> list[str]:
    """Save, set an alias and collect garbage as if nothing had happened, and return what is wrong with that."""
    steps = [save(name, "next"), alias(name, "next", int(state.get(f"#{name}", 0)) + 1), collect()]
    for step in steps if STORE_FILE in state else [create(), *steps]:
        state, wrong = judge(place, step, state, attempt(step, place))
        if wrong:
            return [f"afterwards, {step.what}: {line}" for line in wrong]
    left = files.entries(place.store / STAGING)
    return [f"afterwards, left in tmp/: {left}"] if left else []


def create() -> Operation:
    """Make the store."""
    digest = files.sha256(seal_store_info(StoreInfo(backbone=INFO)))
    return Operation("create", "mrpc", lambda at: Store.create(at.store, INFO), lambda old: old | {STORE_FILE: digest})


def save(name: str, tag: str, size: int = SIZE) -> Operation:
    """Save a set whose bytes tell it from others."""
    contents = {ADAPTER_FILE: (f"{name} {tag} ".encode() * size)[:size], HEAD_FILE: f"head of {tag}".encode()}
    manifest = new_manifest(name)
    sealed = seal(manifest, contents)
    needed = len(sealed) + sum(map(len, contents.values()))
    digest = _digest({MANIFEST_FILE: sealed, **contents})

    def run(place: Place) -> None:
        Store.open(place.store).commit(manifest, contents)

    return Operation(f"save {name} {tag}", name, run, _adding(name, digest), needed)


def alias(name: str, word: str, version: int) -> Operation:
    """Point an alias at a version."""

    def run(place: Place) -> None:
        Store.open(place.store).set_alias(name, word, version)

    return Operation(f"alias {name}@{word} to {version}", name, run, lambda old: old | {f"{name}@{word}": str(version)})


def remove(reference: str) -> Operation:
    """Remove a version, an alias or a name; the number of a version is not given again while there is its name."""
    name = re.split("[:@]", reference)[0]
    whole = re.compile(rf"#?{name}([:@].*)?" if name == reference else re.escape(reference))

    def run(place: Place) -> None:
        Store.open(place.store).remove(reference)

    def change(old: State) -> State:
        return {key: found for key, found in old.items() if not whole.fullmatch(key)}

    return Operation(f"remove {reference}", name, run, change)


def collect() -> Operation:
    """Collect all garbage, which nobody sees."""

    def run(place: Place) -> list[str]:
        return Store.open(place.store).collect_garbage(older_than=0.0)

    return Operation("gc", "mrpc", run, dict)


def export(name: str, tag: str, size: int = SIZE, *, overwrite: bool = False) -> Operation:
    """Export the newest version of a name, which was saved under this tag, to a file beside the store."""
    contents = {ADAPTER_FILE: (f"{name} {tag} ".encode() * size)[:size], HEAD_FILE: f"head of {tag}".encode()}
    data = pack({MANIFEST_FILE: seal(new_manifest(name), contents), **contents})
    after = {"outside/exported.adapter": files.sha256(data)}

    def run(place: Place) -> None:
        export_version(Store.open(place.store), name, place.exported, overwrite=overwrite)

    what = f"export {name} over a file" if overwrite else f"export {name}"
    return Operation(what, name, run, lambda old: old | after, len(data))


def importing(place: Place, *names: str) -> list[Operation]:
    """Write a real adapter set to the file to be imported, and return its import under each name."""
    from registry.adapters.adapter_set import AdapterSet  # torch takes its time, and only an import needs it
    from registry.store.tensors import import_set, save_set

    scratch = Store.create(place.folder / "scratch", INFO)
    adapter_set = AdapterSet(INFO.hidden_size, INFO.layers, ADAPTER, HEAD, seed=1)
    save_set(scratch, adapter_set, new_manifest(parameters=adapter_set.stored_count))
    export_version(scratch, "mrpc", place.given)
    manifest, contents = scratch.read_version("mrpc", 1)

    def one(name: str) -> Operation:
        sealed = seal(msgspec.structs.replace(manifest, name=name), contents)
        digest = _digest({MANIFEST_FILE: sealed, **contents})
        needed = len(sealed) + sum(map(len, contents.values()))

        def run(at: Place) -> None:
            import_set(Store.open(at.store), at.given, name)

        return Operation(f"import {name}", name, run, _adding(name, digest), needed)

    return [one(name) for name in names]


def _adding(name: str, digest: str) -> Callable[[State], State]:
    """Return the change that a save makes: the number after the highest one ever given."""

    def change(old: State) -> State:
        number = str(int(old.get(f"#{name}", 0)) + 1)
        return old | {f"#{name}": number, f"{name}:{number}": digest}

    return change


def _digest(contents: Mapping[str, bytes]) -> str:
    return files.sha256(repr(sorted(contents.items())).encode())


def _other(state: State, than: State) -> str:
    """Return what a state has and another one has not, in few words."""
    return str({key: found[:12] for key, found in state.items() if than.get(key) != found})


# What was done to a store, by its writers, before anything goes wrong.
PASTS: dict[str, list[Operation]] = {"nothing": [], "empty": [create()]}
PASTS["held"] = [
    create(),
    *(save("mrpc", tag) for tag in "abc"),
    *(alias("mrpc", "best", 1), alias("mrpc", "live", 3)),
    *(save("cola", "a"), save("cola", "b"), save("sst2", "a"), save("sst2", "b"), remove("sst2:2"), save("imdb", "a")),
]
PASTS["exported"] = [*PASTS["held"], export("cola", "b")]

OPERATIONS: list[tuple[str, Operation]] = [
    ("nothing", create()),
    ("empty", save("mrpc", "first")),
    ("held", save("mrpc", "more")),
    ("held", save("sst2", "after a removal")),
    ("held", alias("imdb", "first", 1)),
    ("held", alias("mrpc", "best", 2)),
    ("held", remove("mrpc:2")),
    ("held", remove("cola:2")),
    ("held", remove("imdb:1")),
    ("held", remove("mrpc@live")),
    ("held", remove("mrpc")),
    ("held", collect()),
    ("held", export("mrpc", "c")),
    ("exported", export("mrpc", "c", overwrite=True)),
]


class Bench:
    """A folder in which stores are set up over and over, each a copy of one with the same past."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "strace"  # of the last traced operation
        self._states = {past: self._live(past) for past in PASTS}
        template = Place(folder / "held")
        self.operations = [*OPERATIONS, *(("held", each) for each in importing(template, "mrpc", "qnli"))]
        given = {"outside/given.adapter": files.sha256(template.given.read_bytes())}
        self._states["held"] |= given

    def _live(self, past: str) -> State:
        place, state = Place(self.folder / past), State()
        place.outside.mkdir(parents=True)
        (place.outside / "letter.txt").write_text("of no concern to anybody")
        state["outside/letter.txt"] = files.sha256(b"of no concern to anybody")
        for operation in PASTS[past]:
            operation.run(place)
            state = operation.change(state)
        if past != "nothing":  # what writers leave that died: a stage with a file in it, an alias on its way
            stage = place.store / STAGING / ("0" * 32)
            stage.mkdir(parents=True)
            (stage / ADAPTER_FILE).write_bytes(b"half an adap")
            stage.with_name("1" * 32).write_bytes(b"1")
        if look(place) != visible(state):
            raise RuntimeError(f"the past '{past}' went wrong before any fault")
        return state

    @contextmanager
    def set_up(self, past: str, where: Path | None = None) -> Iterator[tuple[Place, State]]:
        """Yield a place of its own with this past, and its state."""
        place = Place((where or self.folder) / "case")
        shutil.copytree(self.folder / past, place.folder, ignore=shutil.ignore_patterns("scratch"))
        try:
            yield place, self._states[past]
        finally:
            shutil.rmtree(place.folder)


@contextmanager
def scratch(fallback: Path | None = None) -> Iterator[Path]:
    """Yield a folder in memory, where there is one: a kill or a failing call is the same there, and much faster."""
    memory = Path("/dev/shm")
    good = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if good else fallback) as name:
        yield Path(name)
