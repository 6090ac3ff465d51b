"""What a store promises when the power goes, and that the simulated disk forgets what a real one may forget."""

from __future__ import annotations

import random
from pathlib import Path

from tests.faults.crash.after_loss import after_power_loss
from tests.faults.crash.disk import TOP, Change, Flushed, Step, Tree, Written
from tests.faults.crash.power_loss import try_power_loss

NEW_FILE: list[Step] = [Change(1, (TOP, "new"), None, folder=False), Written(1, b"data")]
FOLDER: list[Step] = [Change(2, (TOP, "folder"), None, folder=True), Flushed(TOP)]
MOVED = Change(1, (2, "moved"), (TOP, "new"), folder=False)


def after(*steps: Step) -> list[Tree]:
    """Return every state that a power loss after these steps may leave, each once."""
    found: list[Tree] = []
    for tree in after_power_loss(steps, settled=0, count=1000, dice=random.Random(0)):
        found += [tree] if tree not in found else []
    return found


def test_nothing_is_lost_or_torn_by_a_power_loss(tmp_path: Path) -> None:
    """Whatever a power loss leaves of any operation is the old or the new state, whole, and can be worked with."""
    verdict = try_power_loss(tmp_path, states=2000)
    assert [] == verdict.bad
    assert 2000 == verdict.tried
    assert [] == list(tmp_path.iterdir())


def test_data_is_lost_until_it_is_flushed() -> None:
    """A file that was not flushed may be missing, whole, empty or wrong; flushes of it and its folder make it safe."""
    found = [tree.get("new") for tree in after(*NEW_FILE)]
    assert {None, b"data", b"", bytes(4)} < set(found)
    assert 6 <= len(found)
    assert [{"new": b"data"}, {}] == after(*NEW_FILE, Flushed(1))
    assert [{"new": b"data"}] == after(*NEW_FILE, Flushed(1), Flushed(TOP))


def test_rename_happens_whole_or_not_at_all() -> None:
    """A moved file is in one of its two places until either folder is flushed, and never in both or none."""
    before = [*FOLDER, *NEW_FILE, Flushed(1), Flushed(TOP)]
    old, new = {"folder": None, "new": b"data"}, {"folder": None, "folder/moved": b"data"}
    assert [new, old] == after(*before, MOVED)
    assert [new] == after(*before, MOVED, Flushed(2)) == after(*before, MOVED, Flushed(TOP))
    assert [new, old, {"folder": None}] == after(*FOLDER, *NEW_FILE, Flushed(1), MOVED)


def test_no_entry_outlives_its_folder() -> None:
    """What is in a folder that was lost is lost with it, though it was flushed itself."""
    inside = [Change(3, (2, "file"), None, folder=False), Flushed(3), Flushed(2)]
    assert [{"folder": None, "folder/file": b""}, {}] == after(FOLDER[0], *inside)
