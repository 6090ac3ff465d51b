"""Sets where they do not belong: wrong backbones, tokenizers, shapes, labels, formats; all refused, none silently.

Everybody here knows the format: files are edited and their digests made right again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from registry.adapters.adapter_set import AdapterSet
from registry.errors import RegistryError
from registry.model.backbone import Backbone
from registry.schema import SetInfo
from registry.store.archive import MEMBERS, export_version, pack
from registry.store.registry import Registry
from registry.store.store import Store
from registry.store.tensors import import_set, load_set, save_set
from tests.faults.damage.backbones import BACKBONES, Maker
from tests.faults.damage.damage import blame
from tests.faults.damage.doors import CommandRefusedError
from tests.faults.damage.edits import MANIFESTS, STORES, TENSORS
from tests.faults.verdict import Verdict
from tests.support.command_line import call
from tests.support.stored_sets import ADAPTER, HEAD, new_manifest
from tests.support.tiny_backbone import save_tiny_checkpoint

TASK = '{kind}text_columns = ["text"]\nlabel_column = "{column}"\nfile = "rows.csv"\nheld_out = 0.5\n'
LABELS = 'label_names = ["no", "yes"]\n'


class World:
    """A store with the set ``mrpc:1`` for a tiny backbone, an archive of the set, and copies to break."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "backbone"
        save_tiny_checkpoint(self.checkpoint)
        self.backbone = Backbone.load(str(self.checkpoint), device="cpu")
        self.info = self.backbone.info
        self.registry = Registry.create(folder / "store", self.backbone)
        self.store = self.registry.store
        self.adapter_set = self.backbone.new_adapter_set(ADAPTER, HEAD)
        self.registry.save("mrpc", self.adapter_set, SetInfo(pair=False, max_length=16))
        self.archive = export_version(self.store, "mrpc", folder / "mrpc.adapter")

    @contextmanager
    def copied_store(self) -> Iterator[Path]:
        """Lend a copy of the store."""
        copy = Path(shutil.copytree(self.store.root, self.folder / "copy"))
        yield copy
        shutil.rmtree(copy)


class Trial(NamedTuple):
    """Something that must be refused, and what the error must name."""

    title: str
    attempt: Callable[[], object]
    told: tuple[str, ...]


def try_mismatches(folder: Path) -> Verdict:
    """Try every wrong backbone and every edited file through every door that it could come in."""
    verdict = Verdict("a set is refused wherever it does not belong, and the error names what differs")
    world = World(folder)
    titles = set()
    for title, part, make in BACKBONES:
        titles.add(title)
        for trial in _wrong_backbone(world, title, part, make):
            _judge(verdict, trial)
    for title, told, change in (*MANIFESTS, *TENSORS, *STORES):
        titles.add(title)
        with world.copied_store() as copy:
            change(copy)
            for trial in _edited(world, title, copy, told):
                _judge(verdict, trial)
    for trial in (*_wrong_sets(world), *_wrong_labels(world)):
        titles.add(trial.title)
        _judge(verdict, trial)
    verdict.details["named cases"] = len(titles)
    _check_right(verdict, world)
    return verdict


def _judge(verdict: Verdict, trial: Trial) -> None:
    verdict.tried += 1
    try:
        trial.attempt()
    except RegistryError as err:
        missing = [each for each in trial.told if each not in str(err)]
        if missing:
            blame(verdict, f"{trial.title}: expected an error that names {missing}, found {err}")
    except Exception as err:
        blame(verdict, f"{trial.title}: expected an error of ours, found {type(err).__name__}: {err}")
    else:
        blame(verdict, f"{trial.title}: expected an error, found that it was accepted")


def _check_right(verdict: Verdict, world: World) -> None:
    """Make sure that the right set, edited in no way, is taken at the same doors: else refusing would mean nothing."""
    attempts: list[Callable[[], object]] = [lambda: _evaluate(world, LABELS)]
    with world.copied_store() as copy:
        attempts += [trial.attempt for trial in _edited(world, "nothing wrong", copy, ())]
        for attempt in attempts:
            try:
                attempt()
            except RegistryError as err:
                blame(verdict, f"nothing wrong: expected that it is accepted, found {err}")


def _wrong_backbone(world: World, title: str, part: str, make: Maker) -> list[Trial]:
    """Return every way of bringing the set and a wrong backbone together."""
    place = world.folder / title.replace(" ", "-")
    make(world.checkpoint, place)
    other = Backbone.load(str(place), device="cpu")
    theirs = Registry.create(place.with_name(f"{place.name}-store"), other)
    moved = Registry.create(place.with_name(f"{place.name}-moved"), other)
    shutil.copytree(world.store.root / "mrpc", moved.store.root / "mrpc")
    digest = "fingerprint" if part == "backbone" else "tokenizer_digest"
    told = (part, getattr(world.info, digest)[:12], getattr(other.info, digest)[:12])
    foreign = new_manifest(parameters=world.adapter_set.stored_count, backbone=other.info)
    attempts: dict[str, tuple[Callable[[], object], str]] = {
        "open": (lambda: Registry(world.store.root, other), str(world.store.root)),
        "init": (lambda: Registry.create(world.store.root, other), str(world.store.root)),
        "load": (lambda: load_set(world.store, "mrpc", 1, other.info), "mrpc:1"),
        "save": (lambda: save_set(world.store, world.adapter_set, foreign), str(world.store.root)),
        "import": (lambda: theirs.import_set(world.archive), str(world.archive)),
        "a folder moved over": (lambda: moved.load("mrpc"), "mrpc:1"),
    }
    return [Trial(f"{title}, {door}", attempt, (*told, name)) for door, (attempt, name) in attempts.items()]


def _edited(world: World, title: str, copy: Path, told: tuple[str, ...]) -> list[Trial]:
    """Return every way of using a store, or an archive made of its files, after somebody edited it."""
    version = copy / "mrpc" / "versions" / "000001"
    archive = world.folder / "edited.adapter"
    trials = [Trial(f"{title}, load", lambda: Registry(copy, world.backbone).load("mrpc"), told)]
    if told[:1] == ("store",):
        return [*trials, Trial(f"{title}, init", lambda: Store.create(copy, world.info), told)]

    def verify() -> None:
        for problem in Registry(copy, world.backbone).verify():
            raise problem.error

    archive.write_bytes(pack({member: (version / member).read_bytes() for member in MEMBERS}))
    return [
        *trials,
        Trial(f"{title}, verify", verify, told),
        Trial(f"{title}, import", lambda: import_set(Store.open(copy), archive), told),
    ]


def _wrong_sets(world: World) -> list[Trial]:
    """Return sets that are no sets of this backbone or of their own manifest, on their way into the store."""

    def saving(adapter_set: AdapterSet, **changes: object) -> Callable[[], object]:
        fields = {"parameters": adapter_set.stored_count, "backbone": world.info, **changes}
        return lambda: save_set(world.store, adapter_set, new_manifest(**fields))

    wide = AdapterSet(64, 2, ADAPTER, HEAD)
    deep = AdapterSet(32, 3, ADAPTER, HEAD)
    double = AdapterSet(32, 2, ADAPTER, HEAD).double()
    endless = AdapterSet(32, 2, ADAPTER, HEAD)
    endless.head.out.bias.data[0] = float("nan")
    return [
        Trial("save a set of another hidden size", saving(wide), ("64", "32")),
        Trial("save a set of more layers", saving(deep), ("3", "2")),
        Trial("save a set of other parameters", saving(world.adapter_set, parameters=1), ("manifest",)),
        Trial("save a set as one without bottlenecks", saving(world.adapter_set, adapter=None), ("manifest",)),
        Trial("save a set of doubles", saving(double), ("float32", "float64")),
        Trial("save a set that is not finite", saving(endless), ("out.bias", "finite")),
    ]


def _wrong_labels(world: World) -> list[Trial]:
    """Return tasks that a stored set does not answer."""
    tasks = {
        "a label more": ('label_names = ["no", "yes", "maybe"]\n', ("labels no, yes", "maybe")),
        "other labels": ('label_names = ["bad", "good"]\n', ("labels no, yes", "bad, good")),
        "labels of another type": (
            'label_names = ["no", "yes"]\nproblem_type = "multi_label"\n',
            ("expected classification", "found multi_label"),
        ),
    }
    return [
        Trial(f"score on {title}", lambda kind=kind: _evaluate(world, kind), told)  # type: ignore
        for title, (kind, told) in tasks.items()
    ]


def _evaluate(world: World, kind: str) -> None:
    pairs = (f"good film {place},yes,good\nbad film {place},no,bad\n" for place in range(8))
    rows = "text,label,mood\n" + "".join(pairs)
    (world.folder / "rows.csv").write_text(rows)
    path = world.folder / "task.toml"
    path.write_text(TASK.format(kind=kind, column="mood" if "good" in kind else "label"))
    arguments = ("--store", world.store.root, "--device", "cpu", "evaluate", "mrpc", "--task-file", path)
    outcome = call(*arguments)
    if outcome.code:
        raise CommandRefusedError(outcome.code, outcome.message)
