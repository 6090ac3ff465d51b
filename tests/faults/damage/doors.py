"""Every door through which a name of an adapter set, an alias or a task comes in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from registry.adapters.adapter_set import AdapterSet
from registry.bench.records import read_predictions, record_path, write_record
from registry.errors import RegistryError
from registry.model.backbone import Backbone
from registry.schema import FileEntry, Manifest, Reference, SetInfo
from registry.serving.predictor import Predictor, Request
from registry.store.archive import MEMBERS, export_version, pack, unpack
from registry.store.files import sha256
from registry.store.registry import Registry
from registry.store.tensors import import_set, load_set
from registry.tasks.spec import TaskSpec, read_task_file, task_from_file
from registry.validation import check_name
from tests.support.command_line import call
from tests.support.run_records import make_record
from tests.support.stored_sets import ADAPTER, CONTENTS, HEAD, new_manifest
from tests.support.tiny_backbone import save_tiny_checkpoint

REFUSED = (2,)  # the exit code of a name that breaks the rule
DEPTH = 20
DAMAGED = (4,)  # a file with such a name in it


class CommandRefusedError(RegistryError):
    """A command that ended with an exit code and a line of explanation."""

    def __init__(self, code: int, told: str) -> None:
        self.exit_code = code
        super().__init__(told)


class Door(NamedTuple):
    """A way in for a name.

    Attributes:
        title: what is called.
        call: takes the text; False means that it was refused, a text that this name was made of it.
        form: how the name is put into the text.
        reference: whether the text is a reference (``mrpc:1``, ``mrpc@best``) or a bare name.
        codes: exit codes that a refusal of the name may have.
    """

    title: str
    call: Callable[[str], object]
    form: str = "{}"
    reference: bool = False
    codes: tuple[int, ...] = REFUSED


class World:
    """A store with the set ``mrpc:1``, and around it what an escape would read or change."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._pristine, self.scratch = folder.resolve(), folder / "pristine", folder / "scratch"
        self.top = self.folder / "deep"
        self.base = self.top.joinpath(*["deep"] * DEPTH)  # so deep that steps upwards end in our own folder
        self.home, self.root, self.out = self.base / "home", self.base / "store", self.base / "out"
        self.archive = self.base / "exports" / "mrpc.adapter"
        for each in (self.home, self.archive.parent, self.out, self.base / "outside", self.scratch):
            each.mkdir(parents=True)
        save_tiny_checkpoint(folder / "backbone")
        backbone = Backbone.load(str(folder / "backbone"), device="cpu")
        self.registry = Registry.create(self.root, backbone)
        self.store = self.registry.store
        self.predictor = Predictor(backbone, self.registry)
        self.adapter_set: AdapterSet = backbone.new_adapter_set(ADAPTER, HEAD)
        self.registry.save("mrpc", self.adapter_set, SetInfo(max_length=16))
        self.registry.alias("mrpc", "best", 1)
        self.registry.export_set("mrpc", self.archive)
        self.members = unpack(self.archive, self.archive.read_bytes())
        for entry in ("mrpc", "store.json"):  # what a name that climbs out would find
            copy = shutil.copytree if (self.root / entry).is_dir() else shutil.copy
            copy(self.root / entry, self.base / "outside" / entry)
        (self.base / "outside" / "best").write_text("1\n")
        shutil.copytree(self.base, self._pristine)

    def own_names(self) -> list[str]:
        """Return hostile names that only this place has: where its own files are."""
        outside = str(self.base / "outside")
        steps = "../" * len(self.root.parts)
        return [outside, f"{outside}/mrpc", f"{steps}{outside.lstrip('/')}/mrpc", f"..{outside}/mrpc", str(self.root)]

    def reset(self) -> None:
        """Put everything back as it was; the folder ``home`` stays, as it is the current one."""
        way = [folder for folder in (self.base, *self.base.parents) if folder.is_relative_to(self.top)]
        for entry in (entry for folder in (*way, self.home) for entry in folder.iterdir()):
            if entry in (*way, self.home):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        shutil.copytree(self._pristine, self.base, dirs_exist_ok=True)


def make_doors(world: World) -> list[Door]:
    """Return all doors of the store, the registry, tasks, run records and the command line."""
    return [*_store_doors(world), *_registry_doors(world), *_file_doors(world), *_command_doors(world)]


def _store_doors(world: World) -> list[Door]:
    store = world.store
    entry = FileEntry(path="head.safetensors", bytes=1, sha256="")
    return [
        Door("check_name", check_name),
        Door("check_name of an alias", lambda text: check_name(text, "alias")),
        Door("Manifest", new_manifest),
        Door("commit", lambda text: store.commit(_forged(world, text), CONTENTS)),
        Door("versions", store.versions),
        Door("aliases", store.aliases),
        Door("alias_names", store.alias_names),
        Door("folder", lambda text: store.folder(text, 1)),
        Door("manifest", lambda text: store.manifest(text, 1)),
        Door("read_file", lambda text: store.read_file(text, 1, entry)),
        Door("read_version", lambda text: store.read_version(text, 1)),
        Door("verify_bytes", lambda text: store.verify_bytes(text, 1)),
        Door("load_set", lambda text: load_set(store, text, 1, world.registry.backbone.info)),
        Door("set_alias of a name", lambda text: store.set_alias(text, "best", 1)),
        Door("set_alias to an alias", lambda text: store.set_alias("mrpc", text, 1)),
        Door("import_set", lambda text: import_set(store, world.archive, text)),
        *_reference_doors("parse", Reference.parse),
        *_reference_doors("resolve", store.resolve),
        *_reference_doors("remove", store.remove),
        Door("remove of a record", lambda text: store.remove(Reference(name=text, version=1)), "{}:1", True),
        Door("resolve of a record", lambda text: store.resolve(Reference(name="mrpc", alias=text))),
        Door("export_version", lambda text: export_version(store, text, world.archive.with_name("x")), "{}", True),
    ]


def _reference_doors(title: str, take: Callable[[str], object]) -> list[Door]:
    forms = ("{}", "{}:1", "{}@best", "mrpc@{}", "mrpc:{}")
    return [Door(f"{title} {form}", take, form, True) for form in forms]


def _registry_doors(world: World) -> list[Door]:
    registry, predictor = world.registry, world.predictor

    def verify(text: str) -> object:
        for problem in registry.verify([text]):
            raise problem.error
        return None

    return [
        Door("Registry.save", lambda text: registry.save(text, world.adapter_set, SetInfo(max_length=16))),
        Door("Registry.alias of a name", lambda text: registry.alias(text, "best", 1)),
        Door("Registry.alias to an alias", lambda text: registry.alias("mrpc", text, 1)),
        Door("Registry.versions", registry.versions),
        Door("Registry.aliases", registry.aliases),
        Door("Registry.import_set", lambda text: registry.import_set(world.archive, text)),
        *_reference_doors("Registry.load", registry.load),
        *_reference_doors("Registry.manifest", registry.manifest),
        *_reference_doors("Registry.remove", registry.remove),
        *_reference_doors("Registry in", lambda text: text in registry),
        *_reference_doors("Registry.verify", verify),
        Door("Registry.export_set", lambda text: registry.export_set(text, world.archive.with_name("x")), "{}", True),
        *_reference_doors("Predictor", lambda text: predictor(text, ["good film"])),
        *_reference_doors("Predictor.mixed", lambda text: predictor.mixed([Request(text, "good film")])),
    ]


def _file_doors(world: World) -> list[Door]:
    """Return the doors through files: tasks, run records, archives, and what lies in the store itself."""
    record = make_record("mrpc", "houlsby")

    def task_file(text: str) -> object:
        path = world.scratch / "task.toml"
        told = f'name = {json.dumps(text)}\ntext_columns = ["a"]\nfile = "a.csv"\n'
        path.write_bytes(told.encode("utf-8", "surrogatepass"))
        return read_task_file(path).name

    def replaced(**changes: str) -> object:
        return write_record(world.out, msgspec.structs.replace(record, **changes), None)

    def archived(text: str) -> object:
        path = world.scratch / "hostile.adapter"
        path.write_bytes(pack({**world.members, MEMBERS[0]: _renamed(world, text)}))
        return import_set(world.store, path)

    columns = {"text_column": "a", "label_column": "b"}
    return [
        Door("TaskSpec", lambda text: TaskSpec(name=text, text_columns=("a",)).name),
        Door("a task file", task_file, codes=(1,)),
        Door("a task's name", lambda text: task_from_file("a.csv", name=text, **columns).name),
        Door("a task's data file", lambda text: task_from_file(f"{text}.csv", **columns).name),
        Door("a record's task", lambda text: record_path(world.out, text, "houlsby", 0)),
        Door("a record's method", lambda text: record_path(world.out, "mrpc", text, 0)),
        Door("write a record of a task", lambda text: replaced(task=text)),
        Door("write a record of a method", lambda text: replaced(method=text)),
        Door("read predictions", lambda text: read_predictions(world.out, msgspec.structs.replace(record, task=text))),
        Door("an archive's manifest", archived, codes=DAMAGED),
        Door("a folder in the store", lambda text: _plant(world.root, text, world.store.names)),
        Door("an alias in the store", lambda text: _plant(world.root / "mrpc" / "aliases", text, _aliases(world))),
    ]


def _command_doors(world: World) -> list[Door]:
    def command(*arguments: object) -> object:
        outcome = call("--store", world.root, *arguments)
        told = (outcome.err.strip() or "nothing").splitlines()
        if "Traceback" in outcome.err:
            raise AssertionError(told[-1])
        if outcome.code:
            raise CommandRefusedError(outcome.code, told[-1])
        return not outcome.out.startswith("Usage: ")  # a name such as --help

    missing, exported = world.scratch / "none", world.archive.with_name("command")
    return [
        Door("show", lambda text: command("show", text), "{}", True),
        Door("show --", lambda text: command("show", "--", text), "{}:1", True),
        Door("alias of a name", lambda text: command("alias", "--", text, "best", 1)),
        Door("alias to an alias", lambda text: command("alias", "mrpc", text, 1)),
        Door("alias to an alias --", lambda text: command("alias", "--", "mrpc", text, 1)),
        Door("remove command", lambda text: command("remove", "--yes", "--", text), "{}", True),
        Door("remove command of an alias", lambda text: command("remove", "--yes", "--", text), "mrpc@{}", True),
        Door("export", lambda text: command("export", "--force", "--", text, exported), "{}", True),
        Door("import --name", lambda text: command("import", world.archive, "--name", text)),
        Door("import --name=", lambda text: command("import", world.archive, f"--name={text}")),
        Door("train --name", lambda text: command("train", "sst2", "--data", missing, "--name", text)),
        Door("train --name=", lambda text: command("train", "sst2", "--data", missing, f"--name={text}")),
        Door("predict", lambda text: command("predict", "--", text, "good film"), "{}", True),
        Door("predict of an alias", lambda text: command("predict", "--", text, "good film"), "mrpc@{}", True),
        Door("evaluate", lambda text: command("evaluate", "--data", missing, "--", text), "{}", True),
    ]


def _forged(world: World, name: str) -> Manifest:
    """Return a manifest whose name was not looked at when it was made."""
    manifest = new_manifest(backbone=world.registry.backbone.info)
    msgspec.structs.force_setattr(manifest, "name", name)
    return manifest


def _renamed(world: World, name: str) -> bytes:
    """Return the archive's manifest under another name, its digest made right again."""
    plain = json.loads(world.members[MEMBERS[0]])
    blank = json.dumps({**plain, "name": name, "digest": "0" * 64}).encode()
    return blank.replace(b"0" * 64, sha256(blank).encode())


def _aliases(world: World) -> Callable[[], list[str]]:
    return lambda: list(world.store.aliases("mrpc"))


def _plant(folder: Path, name: str, listed: Callable[[], list[str]]) -> object:
    """Put an entry of this name there, if the system can, and return whether the store takes it for one of its own."""
    if "/" in name or name in ("", ".", ".."):
        return False
    path = folder / name
    aliased = folder.name == "aliases"
    try:
        if aliased:
            with path.open("x") as file:
                file.write("1\n")
        else:
            path.mkdir()
            (path / "versions" / "000001").mkdir(parents=True)
    except (OSError, ValueError):  # there already, or a name that this system does not have
        return False
    try:
        return name in listed()
    finally:
        path.unlink() if aliased else shutil.rmtree(path)
