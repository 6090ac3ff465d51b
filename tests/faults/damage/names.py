"""Hostile names through every door: each is refused, or stays inside the store.

What a legal name is, is said here a second time and in other words, so that a hole in the package's own rule shows.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import string
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from registry.errors import RegistryError
from tests.faults.damage.damage import blame
from tests.faults.damage.doors import Door, World, make_doors
from tests.faults.verdict import Verdict

PATIENCE = 10.0  # seconds after which a door hangs
HANGS = 3  # doors that hang before the experiment gives up
State = dict[str, tuple[int, int, int]]
LETTERS = frozenset(string.ascii_lowercase + string.digits)
DEVICES = ("con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)))


# fmt: off
def _names() -> Iterator[str]:
    yield from ("", ".", "..", "...", "....", "~", "~root", "-", "--", "-a", "--yes", "-rf", "_a", ".a", "a.", "a-",
                "a_")
    for climb in ("../{}", "..\\{}", "../../{}", "./{}", "{}/..", "{}/../..", "{}/../../outside", "{}/.", "{}/",
                  "{}\\", "/dev/null/{}", "//dev/null/{}", "\\{}", "\\\\{}", "{}//x", "..{}", "{}..", "a..{}",
                  "../outside/{}",
                  "..\\outside\\{}", "../store/{}", "../../../../../../../../{}", "....//{}", "..;/{}", ".../{}",
                  "{}/versions/000001", "{}/versions", "{}/aliases/best", "x/../{}", "{}\\..\\..\\x"):
        yield climb.format("mrpc")
    yield from ("/dev/null/passwd", "/dev/null/../null/x", "/proc/0/root", "C:", "c:x", "C:\\x", "c:/x", "C:\\..\\x",
                "\\\\host\\share", "//dev/null/share", "\\\\?\\C:\\x", "\\\\.\\nul", "\\\\.\\PhysicalDrive0", "d:mrpc",
                "file:///dev/null/x", "http://x/y", "hf://owner/repo@sha", "s3://bucket/mrpc", "mrpc::$data",
                "mrpc:$i30:$index_allocation", "mrpc:stream")
    for device in DEVICES:
        yield from (device, f"{device}.txt", f"{device}.a.b", device.upper(), f"{device}:", f"{device} .x")
    yield from ("com\N{SUPERSCRIPT ONE}", "lpt\N{SUPERSCRIPT TWO}", "conin$", "conout$", "clock$", "$mft", "con/x",
                "x/nul")
    yield from ("tmp", "store.json", "tmp/x", "tmp.", "TMP", "Tmp", "store.json/..", "Store.json", "STORE.JSON",
                "store.json.", "store.json ", ".checkpoints", ".gitkeep", ".git", ".ssh", "versions/x", "aliases/../x")
    for coded in ("%2e%2e", "%2e%2e%2f{}", "%2e%2e/{}", "..%2f{}", "..%5c{}", "%252e%252e%252f{}", "..%c0%af{}",
                  "{}%00", "%00{}", "..%u2215{}", "&#46;&#46;/{}", "\\x2e\\x2e/{}", "=..=2f{}", "{}#x", "{}?x",
                  "{};x", "$HOME", "${{HOME}}", "$(id)", "`id`", "{}|id", "{}&id", "{}>x", "*", "?", "[a-z]",
                  "{{a,b}}", "!x", "{}'", '{}"', "<b>", "{}*", "%s", "%n", "{{0}}", "{}=1", "{},x", "{}~x", "{}^x"):
        yield coded.format("mrpc")
    for control in ("\0", "\n", "\r", "\r\n", "\t", "\v", "\f", "\b", "\x1b[2J", "\x7f", "\x85", "\x1c", " ", "\xa0"):
        yield from (f"mrpc{control}", f"{control}mrpc", f"mr{control}pc")
    for mark in ("\u200b", "\u200d", "\u200e", "\u202e", "\u2066", "\ufeff", "\u2028", "\u2029", "\u3000", "\u00ad",
                 "\u0301", "\ufe0f", "\U000e0061", "\U0001f600", "\ud800", "\udc80", "\udfff", "\uffff", "\u115f"):
        yield from (f"mrpc{mark}", f"{mark}mrpc", mark)
    yield from ("\uff0e\uff0e", "\uff0e\uff0e\uff0fmrpc", "\u2025/mrpc", "\u2024\u2024/mrpc", "..\u2215mrpc",
                "..\u2044mrpc", "..\uff3cmrpc", "mrpc\uff1a1", "mrpc\uff201", "mrp\u0441", "\u043crpc", "\uff4drpc",
                "m\u0280pc", "mrp\u217d", "\u00e9", "e\u0301", "\ufb01le", "\u017fst2", "ss\u0073\u0323t2",
                "\u212aelvin", "\u0131mdb", "\u0130mdb", "stra\u00dfe", "\u1e9e", "\u0661", "mrpc\u0661", "\u2488",
                "\u00b9", "\u4e2d")
    yield from ("MRPC", "Mrpc", "mrpC", "mRPC", "SST2", "Imdb", "A", "a" * 65, "a" * 255, "a" * 256, "a" * 5000,
                "a/" * 2000 + "a", "../" * 1000 + "dev/null/x", "\u00e9" * 64, "a." * 33, "." * 64, "-" * 64,
                "a" * 64 + "\n",
                "a@b", "mrpc@best@best", "@", "@best", "mrpc@", "mrpc@../best", "mrpc@/x", "mrpc:", "mrpc:0",
                "mrpc:-1", "mrpc:1:1", "mrpc:1.0", "mrpc:1e3", "mrpc:0x1", "mrpc: 1", "mrpc:1 ", "mrpc:+1",
                "mrpc:\u0661", "mrpc:1_0", "mrpc:\uff11",
                "mrpc:1\u0660", "mrpc:\u00b2", "mrpc:\u096a", "best:\u0661", "mrpc:1000000",
                "mrpc:" + "9" * 5000, "mrpc:1/..", "mrpc:1@best",
                "mrpc:../x", "mrpc@tmp", "mrpc@con")


HOSTILE = tuple(dict.fromkeys(_names()))
PIECES = (*"./\\:@~-_ %$*?\0\n\t\"'<>|;", "..", "../", "..\\", "mrpc", "best", "tmp", "store.json", "con", "nul", "a",
          "A", "1", "000001", "versions", "outside", "%2e", "%2f", "\u202e", "\uff0e", "\u2044", "\ud800", "\udc80",
          "\u017f", "\u212a", "\u0661", "\U0001f600", "C:", "//")
# fmt: on


def try_names(folder: Path, *, cases: int, seed: int = 0) -> Verdict:
    """Try listed and random hostile names through every door, ``cases`` times in all."""
    verdict = Verdict("a hostile name is refused at every door, or stays inside the store")
    world = World(folder)
    doors = make_doors(world)
    listed = [name for name in (*HOSTILE, *world.own_names()) if is_harmless(world, name)]
    hangs = 0
    with _at_home(world.home):
        before = list_tree(world.top)
        for door, name in itertools.islice(_pairs(world, doors, listed, random.Random(seed)), cases):
            text = door.form.replace("{}", name)
            verdict.tried += 1
            verdict.count(door.title)
            found = _knock(door, text)
            after = list_tree(world.top)
            fault = _find_fault(world, door, text, found) or _find_change(world, found, before, after)
            hangs += isinstance(found, TimeoutError)
            if fault:
                blame(verdict, f"{door.title} with {ascii(text)[:120]}, case {verdict.tried} of seed {seed}: {fault}")
            if before != after:
                world.reset()
                before = list_tree(world.top)
            if hangs == HANGS:
                break
    verdict.details.update(doors=len(doors), listed_names=len(listed))
    return verdict


def _pairs(
    world: World, doors: Sequence[Door], listed: Sequence[str], rng: random.Random
) -> Iterator[tuple[Door, str]]:
    """Yield doors and names without end; each listed name meets each door once in as many turns as there are doors."""
    for turn in itertools.count():
        made = (random_name(rng) for _ in range(len(listed) // 2))
        names = (*listed, *(name for name in made if is_harmless(world, name)))
        for index, name in enumerate(names):
            yield doors[(index + turn) % len(doors)], name


def is_legal(name: str) -> bool:
    """Return whether the name rule of DESIGN.md allows ``name``."""
    if not 1 <= len(name) <= 64 or not set(name) <= LETTERS | set("._-"):
        return False
    ends = name[0] in LETTERS and name[-1] in LETTERS
    return ends and ".." not in name and name not in ("tmp", "store.json") and name.split(".")[0] not in DEVICES


def is_legal_reference(text: str) -> bool:
    """Return whether ``text`` is a legal name with at most one of a version and an alias."""
    for mark, legal_end in (("@", is_legal), (":", _is_version)):
        if mark in text:
            name, end = text.split(mark, 1)
            return is_legal(name) and legal_end(end)
    return is_legal(text)


def _is_version(text: str) -> bool:
    return 1 <= len(text) <= 6 and set(text) <= set(string.digits) and set(text) != {"0"}


def is_harmless(world: World, name: str) -> bool:
    """Return whether even a store that lets every name in could do no harm with this one.

    The experiment is also run on stores that were broken on purpose, so no name may lead to a place that is not ours.
    """
    for start in (world.root, world.root / "mrpc" / "aliases", world.out / "runs" / "mrpc", world.home):
        target = os.path.normpath(os.path.join(start, name))
        nowhere = re.match(r"//?(dev/null|proc/0)/", target)  # where nobody can make anything
        if not nowhere and not Path(target).is_relative_to(world.folder):
            return False
    return True


def random_name(rng: random.Random) -> str:
    """Return a text that somebody who looks for a way out might try."""
    kind = rng.randrange(4)
    if kind == 0:
        return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6)))
    if kind == 1:
        text = rng.choice(("mrpc", "best", "a-b.c_d", "000001", "con", "tmp", "outside"))
        for _ in range(rng.randint(1, 2)):
            place = rng.randint(0, len(text))
            text = text[:place] + rng.choice(PIECES) + text[place:]
        return text
    if kind == 2:
        most = rng.choice((0x80, 0x800, 0x10000, sys.maxunicode + 1))
        return "".join(chr(rng.randrange(most)) for _ in range(rng.randint(1, 8)))
    return rng.randbytes(rng.randint(1, 12)).decode("utf-8", "surrogateescape")


def list_tree(folder: Path) -> State:
    """Return every entry below ``folder`` as its kind and, for what is no folder, its size and time of change."""
    found: State = {}
    left = [str(folder)]
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                inside = entry.is_dir(follow_symlinks=False)
                found[entry.path] = (status.st_mode, 0, 0) if inside else status_of(status)
                if inside:
                    left.append(entry.path)
    return found


def status_of(status: os.stat_result) -> tuple[int, int, int]:
    """Return what differs after a file was written or replaced."""
    return status.st_mode, status.st_size, status.st_mtime_ns


def _knock(door: Door, text: str) -> object:
    """Return what a door gave for a text, or the error that came out of it; one that never answers is an error too."""
    try:
        with _time_limit():
            return door.call(text)
    except Exception as err:
        return err


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raise TimeoutError in what takes too long, where the system has an alarm for it."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"no answer in {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _find_fault(world: World, door: Door, text: str, found: object) -> str | None:
    legal = is_legal_reference(text) if door.reference else is_legal(text)
    if isinstance(found, RegistryError):
        refused = legal or found.exit_code in door.codes
        return None if refused else f"expected an exit code of {door.codes}, found {found.exit_code}: {found}"[:300]
    if isinstance(found, Exception):
        return f"expected an error of ours, found {type(found).__name__}: {found}"[:300]
    if found is False:
        return None
    if isinstance(found, str):
        return None if is_legal(found) else f"expected a legal name, found {found!r}"
    if not legal:
        return f"expected that it is refused, found {found!r}"[:300]
    inside = (world.root, world.out, world.archive.parent)
    if isinstance(found, Path) and not any(Path(os.path.realpath(found)).is_relative_to(each) for each in inside):
        return f"expected a path in the store, found {found}"
    return None


def _find_change(world: World, found: object, before: State, after: State) -> str | None:
    """Return what was changed outside the store, or anywhere by a name that was refused."""
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    refused = found is False or isinstance(found, Exception)
    inside = tuple(map(str, (world.root, world.out, world.archive.parent)))
    outside = [path for path in changed if refused or not path.startswith(inside)]
    return f"expected nothing changed, found {outside[:3]}" if outside else None


@contextmanager
def _at_home(folder: Path) -> Iterator[None]:
    """Have a folder of our own as the current one, where a name taken for a relative path would show."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
