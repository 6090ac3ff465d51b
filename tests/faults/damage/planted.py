"""Links and special files planted in a store: refused or passed over, never followed, never waited for."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from registry.adapters.adapter_set import AdapterSet
from registry.errors import RegistryError
from registry.store.archive import export_version
from registry.store.audit import find_strangers
from registry.store.listing import ListedSet, list_sets
from registry.store.store import Store
from registry.store.tensors import import_set, load_set, save_set
from tests.faults.damage.damage import blame
from tests.faults.verdict import Verdict
from tests.support.stored_sets import ADAPTER, HEAD, INFO, new_manifest, tree

PATIENCE = 20.0  # seconds after which something hangs
HUGE = 2**40  # bytes of a file with nothing in it
VERSION = "mrpc/versions/000001"
FOLDERS = ("mrpc", "mrpc/versions", VERSION, "mrpc/aliases", "tmp")
FILES = tuple(f"{VERSION}/{file}" for file in ("manifest.json", "adapter.safetensors", "head.safetensors"))
PLACES = (*FOLDERS, *FILES, "mrpc/aliases/best", "store.json")


class Use(NamedTuple):
    """Something people do with a store.

    Attributes:
        title: what it is.
        call: does it; None is the answer that there is nothing.
        needs: the places without which it has no answer.
        reads: whether it leaves the store as it was.
    """

    title: str
    call: Callable[[], object]
    needs: tuple[str, ...]
    reads: bool = True


class World:
    """A store with ``mrpc:1``, aliased ``best``, and a folder beside it that nothing may reach."""

    def __init__(self, folder: Path) -> None:
        self.root, self.outside, self.pristine = folder / "store", folder / "outside", folder / "pristine"
        self.store = Store.create(self.root, INFO)
        self.adapter_set = AdapterSet(INFO.hidden_size, INFO.layers, ADAPTER, HEAD)
        self.save()
        self.store.set_alias("mrpc", "best", 1)
        self.archive = export_version(self.store, "mrpc:1", folder / "mrpc.adapter")
        (self.root / "tmp").mkdir(exist_ok=True)
        shutil.copytree(self.root, self.pristine)

    def save(self) -> None:
        """Save the set once more."""
        save_set(self.store, self.adapter_set, new_manifest(parameters=self.adapter_set.stored_count))

    def reset(self) -> None:
        """Put the store and what is outside it back."""
        for folder in (self.root, self.outside):
            if folder.is_dir():
                shutil.rmtree(folder)
        shutil.copytree(self.pristine, self.root)

    def around(self) -> dict[str, bytes]:
        """Return what is outside the store."""
        return tree(self.outside) if self.outside.is_dir() else {}

    def uses(self) -> list[Use]:
        """Return everything that can be done with the store."""
        way, store, target = ("mrpc", "mrpc/versions", VERSION), self.store, self.archive.with_name("again.adapter")
        alias = ("mrpc", "mrpc/aliases", "mrpc/aliases/best")
        return [
            Use("open", lambda: Store.open(self.root), ("store.json",)),
            Use("create", lambda: Store.create(self.root, INFO), ("store.json",)),
            Use("names", lambda: bool(store.names()) or None, ("mrpc", "mrpc/versions")),
            Use("versions", lambda: store.versions("mrpc"), ("mrpc", "mrpc/versions")),
            Use("list", lambda: self._list() or None, (*way, FILES[0])),
            Use("list aliases", lambda: [each.aliases for each in self._list() if each.aliases] or None, alias),
            Use("manifest", lambda: store.manifest("mrpc", 1), (*way, FILES[0])),
            Use("load", lambda: load_set(store, "mrpc", 1, INFO), (*way, *FILES)),
            Use("verify", lambda: store.verify_bytes("mrpc", 1), (*way, *FILES)),
            Use("export", lambda: export_version(store, "mrpc:1", target, overwrite=True), (*way, *FILES)),
            Use("resolve", lambda: store.resolve("mrpc@best"), ("mrpc", "mrpc/versions", *alias)),
            Use("aliases", lambda: store.aliases("mrpc").get("best"), ("mrpc", "mrpc/versions", *alias)),
            Use("garbage", lambda: store.collect_garbage(older_than=0), (), False),
            Use(
                "set another alias",
                lambda: store.set_alias("mrpc", "live", 1),
                (*way[:2], "mrpc/aliases", "tmp"),
                False,
            ),
            Use("set the alias", lambda: store.set_alias("mrpc", "best", 1), (*way[:2], "mrpc/aliases", "tmp"), False),
            Use("save", self.save, (*way[:2], "tmp"), False),
            Use("import", lambda: import_set(store, self.archive), (*way[:2], "tmp"), False),
            Use("remove the alias", lambda: store.remove("mrpc@best"), ("mrpc", "mrpc/aliases"), False),
            Use("remove the version", lambda: store.remove("mrpc:1"), (*way, "tmp"), False),
            Use("remove the name", lambda: store.remove("mrpc"), ("mrpc", "mrpc/versions", "tmp"), False),
        ]

    def _list(self) -> list[ListedSet]:
        found = list(list_sets(self.store))
        for listed in found:
            if listed.error is not None:
                raise listed.error
        return found


def try_planted(folder: Path) -> Verdict:
    """Plant links, pipes, folders and endless files at every place of a store, and do everything with it."""
    verdict = Verdict("links and special files in a store are refused or passed over, never followed or waited for")
    memory = Path("/dev/shm")  # the store is made anew a thousand times, and every save waits for a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else folder) as scratch:
        _try_all(verdict, World(Path(scratch)))
    return verdict


def _try_all(verdict: Verdict, world: World) -> None:
    for title, plant in PLANTS:
        for place in PLACES:
            world.reset()
            if not plant(world.root / place, world.outside):
                continue
            if title not in UNTOLD and place not in (where for where, _ in find_strangers(world.store)):
                blame(verdict, f"{title} at {place}: expected that verify tells of it, found nothing")
            for use in world.uses():
                _judge(verdict, world, f"{use.title} with {title} at {place}", use, place)
                if not use.reads:
                    world.reset()
                    plant(world.root / place, world.outside)
    world.reset()
    _try_archives(verdict, world)


def _judge(verdict: Verdict, world: World, told: str, use: Use, place: str) -> None:
    before = world.around()
    found = _call(use.call)
    verdict.tried += 1
    verdict.count(use.title)
    if before != world.around():
        blame(verdict, f"{told}: expected nothing changed outside, found {sorted(world.around())}")
    if isinstance(found, Exception) and not isinstance(found, RegistryError):
        blame(verdict, f"{told}: expected an error of ours, found {type(found).__name__}: {found}")
    if not isinstance(found, Exception) and place in use.needs and found is not None:
        blame(verdict, f"{told}: expected that it is not followed, found {found!r}"[:300])


def _call(call: Callable[[], object]) -> object:
    """Return what a call gave or raised; one that does not come back is a TimeoutError."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as err:
            found.append(err)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return found[0] if found else TimeoutError(f"no answer in {PATIENCE} seconds")


def _try_archives(verdict: Verdict, world: World) -> None:
    """Import what is no file of a sensible size; a user's own link to an archive is fine."""
    path = world.archive.with_name("strange.adapter")
    for title, plant in PLANTS:
        path.write_bytes(world.archive.read_bytes())
        if title in ("a link", "a link inside") or not plant(path, world.outside):
            continue
        found = _call(lambda: import_set(world.store, path))
        verdict.tried += 1
        if not isinstance(found, RegistryError) or str(path) not in str(found):
            blame(verdict, f"import of {title}: expected an error that names {path}, found {found!r}"[:300])
        _clear(path)


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()


def _link(path: Path, outside: Path) -> bool:
    """Move what is there out of the store, and leave a link to it: the very same content."""
    outside.mkdir(exist_ok=True)
    moved = outside / path.name
    path.rename(moved)
    path.symlink_to(moved, target_is_directory=moved.is_dir())
    return True


def _inner_link(path: Path, outside: Path) -> bool:
    """Leave a link to what was there under another name of the same folder."""
    moved = path.with_name(".moved")
    path.rename(moved)
    path.symlink_to(moved.name, target_is_directory=moved.is_dir())
    return True


def _dangling_link(path: Path, outside: Path) -> bool:
    """Leave a link to a file that is not there: a careless write would make it."""
    outside.mkdir(exist_ok=True)
    _clear(path)
    path.symlink_to(outside / "new")
    return True


def _loop(path: Path, outside: Path) -> bool:
    _clear(path)
    path.symlink_to(path.name)
    return True


def _pipe(path: Path, outside: Path) -> bool:
    if not hasattr(os, "mkfifo"):
        return False
    _clear(path)
    os.mkfifo(path)
    return True


def _other_kind(path: Path, outside: Path) -> bool:
    """Leave a file where a folder was, and a folder where a file was."""
    was_file = path.is_file()
    _clear(path)
    path.mkdir() if was_file else path.write_bytes(b"1\n")
    return True


def _huge(path: Path, outside: Path) -> bool:
    """Leave a file so long that reading it would take all memory."""
    if not path.is_file():
        return False
    with path.open("wb") as file:
        file.truncate(HUGE)
    return True


PLANTS: tuple[tuple[str, Callable[[Path, Path], bool]], ...] = (
    ("a link", _link),
    ("a link inside", _inner_link),
    ("a dangling link", _dangling_link),
    ("a link to itself", _loop),
    ("a pipe", _pipe),
    ("another kind", _other_kind),
    ("an endless file", _huge),
)
UNTOLD = ("another kind", "an endless file")  # told of where they are read
