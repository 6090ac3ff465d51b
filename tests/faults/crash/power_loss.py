"""The power goes after any step of what a store does, and what the disk then holds is opened and judged.

Stories (stories.py) are told to a real store on a noted disk (disk.py); after_loss.py says what may be left of it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from registry.store.store import Store
from tests.faults.crash.after_loss import after_power_loss
from tests.faults.crash.disk import Tree, scratch, without_flushes, write_tree
from tests.faults.crash.stories import NAMES, STORIES, tell_anything
from tests.faults.crash.story import Expected, Story
from tests.faults.verdict import Verdict
from tests.faults.visible import STORE, Facts, contents, difference, look
from tests.support.stored_sets import INFO, new_manifest

PROMISE = "after a power loss what was acknowledged is there, and nothing that is there is torn"
LINES = 20  # of a verdict that are kept; all are counted
LINES_OF_A_STORY = 3


def try_power_loss(folder: Path, *, states: int, seed: int = 0) -> Verdict:
    """Judge ``states`` disks, each as a power loss somewhere in a story may leave it."""
    verdict = Verdict(PROMISE)
    verdict.count("bad", 0)
    width = max(4, min(20, states // 1000))  # states of one step
    with scratch(folder) as place:
        for number in count():
            dice = random.Random(f"{seed}/{number}")
            title, tell = STORIES[number] if number < len(STORIES) else (f"random story {seed}/{number}", tell_anything)
            story = Story(place / "told", dice)
            lines = _told(story, tell)
            for where, problems in _judged(story, place / "disk", width, dice):
                lines += [f"{where}: {problem}" for problem in problems]
                verdict.tried += 1
                if verdict.tried == states:
                    break
            _note(verdict, story, [f"{title}, {line}" for line in lines])
            if verdict.tried == states:
                break
            shutil.rmtree(place / "told")
    return verdict


def _told(story: Story, tell: Callable[[Story], None]) -> list[str]:
    """Let a story happen and return what was wrong with it while the power was still on."""
    with story.disk.installed():
        try:
            tell(story)
        except Exception as err:  # a store that does not get through its story is broken
            return [f"while the power was on: {type(err).__name__}: {err}", *story.problems()]
    return [f"while the power was on: {problem}" for problem in story.problems()]


def _note(verdict: Verdict, story: Story, lines: list[str]) -> None:
    verdict.bad += lines[: min(LINES_OF_A_STORY, LINES - len(verdict.bad))]
    verdict.count("bad", len(lines))
    verdict.count("stories")
    verdict.count("steps", len(story.disk.steps))
    for done in story.done:
        verdict.count(f"operations {done.outcome}")


def _judged(story: Story, folder: Path, width: int, dice: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Yield what is wrong with each distinct disk that a loss after each step may leave."""
    steps, seen = story.disk.steps, set()
    for length in range(story.settled, len(steps) + 1):
        expected = story.expected_after(length)
        for tree in after_power_loss(steps[:length], story.settled, width, dice):
            key = (expected, frozenset(tree.items()))
            if key in seen:
                continue
            seen.add(key)
            try:
                yield story.place(length), judge(folder, tree, expected)
            finally:
                shutil.rmtree(folder)


def judge(folder: Path, tree: Tree, expected: Expected) -> list[str]:
    """Write a disk to ``folder``, open what is on it and go on working with it; return all that is wrong."""
    write_tree(folder, tree)
    with without_flushes():
        try:
            found = look(folder)
            if found not in expected.allowed:
                return [min((difference(facts, found) for facts in expected.allowed), key=len)]
            return _go_on(folder, found, dict(expected.given))
        except Exception as err:  # whatever it is, no reader and no writer may meet it here
            return [f"{type(err).__name__}: {err}".replace(str(folder), "")]


def _go_on(folder: Path, found: Facts, given: dict[str, int]) -> list[str]:
    """Save, set an alias and collect garbage, as the next user would."""
    store, serial = Store.create(folder / STORE, INFO), 7
    name = NAMES[len(found) % 2]
    number = store.commit(new_manifest(name, parameters=serial), contents(serial))
    if number <= given.get(name, 0):
        return [f"{name}:{number} was given again; {name}:{given[name]} was acknowledged"]
    store.set_alias(name, "next", number)
    store.collect_garbage(older_than=0.0)
    left = sorted(path.name for path in (store.root / "tmp").iterdir())
    if left:
        return [f"gc left {left}"]
    expected = found | {("store",), ("version", name, number, serial), ("alias", name, "next", number)}
    after = look(folder)
    return [] if after == expected else [f"going on: {difference(expected, after)}"]
