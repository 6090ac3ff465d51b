"""What a file system may hold when the power goes after some steps.

* The data of a file is safe from its last fsync on; else it may be there, empty, cut, half zeros, zeros or garbage.
* A change of entries (create, link, mkdir, rename, unlink, rmdir) is safe once a folder it is in was flushed; else it
  may have happened or not, whatever came before or after; a rename happens as a whole.
* Of changes of the same file or folder a later one brings the earlier ones along.

Source: Pillai et al., OSDI 2014 (ALICE); SQLite, test6.c.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from tests.faults.crash.disk import TOP, Change, Flushed, Step, Tree, Written

_FORMS = 6  # the ways in which data that was not flushed may turn up


def after_power_loss(steps: Sequence[Step], settled: int, count: int, dice: random.Random) -> Iterator[Tree]:
    """Return up to ``count`` states that a disk may be in when the power goes after ``steps``.

    Args:
        steps: what was done.
        settled: how many of the first steps are on the disk for certain, flushed or not.
        count: all states where there are no more than that, else these many, drawn after the two extremes.
        dice: where the draws come from.
    """
    open_changes = _open_changes(steps, settled)
    loose = _loose_files(steps, settled)
    choices = [(True, False)] * len(open_changes) + [range(_FORMS)] * len(loose)
    if math.prod(map(len, choices)) <= count:
        drawn: Iterator[tuple[Any, ...]] = product(*choices)
    else:
        drawn = (_draw(number, len(open_changes), len(loose), dice) for number in range(count))
    for choice in drawn:
        kept = choice[: len(open_changes)]
        dropped = {index for index, keep in zip(open_changes, kept, strict=True) if not keep}
        forms = dict(zip(loose, choice[len(open_changes) :], strict=True))
        yield _state(steps, _with_later_moves(steps, open_changes, dropped), forms, dice)


def _draw(number: int, changes: int, loose: int, dice: random.Random) -> tuple[Any, ...]:
    """Return one choice: first all lost, then all there, then one apart from the others, or a mixture."""
    if number < 2:
        return (number == 1,) * changes + tuple(dice.randrange(_FORMS) for _ in range(loose))
    share = dice.choice((0.0, 0.2, 0.5, 0.8, 1.0))
    kept = [dice.random() < share for _ in range(changes)]
    if changes and share in (0.0, 1.0):
        kept[dice.randrange(changes)] ^= True
    return (*kept, *(dice.randrange(_FORMS) for _ in range(loose)))


def _open_changes(steps: Sequence[Step], settled: int) -> list[int]:
    """Return which steps are changes of entries that the disk may still forget."""
    flushed: set[int] = set()
    safe: set[int] = set()  # nodes that a later, safe change brings along
    found = []
    for index in range(len(steps) - 1, settled - 1, -1):
        step = steps[index]
        if isinstance(step, Flushed):
            flushed.add(step.node)
        elif isinstance(step, Change):
            if step.folders & flushed or step.node in safe:
                safe.add(step.node)
            else:
                found.append(index)
    return found[::-1]


def _loose_files(steps: Sequence[Step], settled: int) -> list[int]:
    """Return the files whose last content was not flushed."""
    loose: dict[int, None] = {}
    for step in steps[settled:]:
        if isinstance(step, Written):
            loose[step.node] = None
        elif isinstance(step, Flushed):
            loose.pop(step.node, None)
    return list(loose)


def _with_later_moves(steps: Sequence[Step], open_changes: Sequence[int], dropped: set[int]) -> set[int]:
    """Return the dropped changes and those that cannot be without them."""
    lost: set[int] = set()
    result = set()
    for index in open_changes:
        node = steps[index].node
        if index in dropped or node in lost:
            lost.add(node)
            result.add(index)
    return result


def _state(steps: Sequence[Step], dropped: set[int], forms: Mapping[int, int], dice: random.Random) -> Tree:
    folders: dict[int, dict[str, int]] = {TOP: {}}
    contents: dict[int, bytes] = {}
    for index, step in enumerate(steps):
        if isinstance(step, Written):
            contents[step.node] = step.data
        elif isinstance(step, Change):
            if step.folder:
                folders.setdefault(step.node, {})
            else:
                contents.setdefault(step.node, b"")
            if index in dropped:
                continue
            if step.taken is not None and folders[step.taken[0]].get(step.taken[1]) == step.node:
                del folders[step.taken[0]][step.taken[1]]
            if step.put is not None:
                folders[step.put[0]][step.put[1]] = step.node
    for node, form in forms.items():
        contents[node] = _loose(contents[node], form, dice)
    tree: Tree = {}
    _walk(TOP, "", folders, contents, tree)
    return tree


def _loose(data: bytes, form: int, dice: random.Random) -> bytes:
    cut = dice.randrange(1, len(data)) if len(data) > 1 else 0
    return (data, b"", data[:cut], data[:cut] + bytes(len(data) - cut), bytes(len(data)), dice.randbytes(len(data)))[
        form
    ]


def _walk(
    node: int, above: str, folders: Mapping[int, Mapping[str, int]], contents: Mapping[int, bytes], tree: Tree
) -> None:
    for name, inner in folders[node].items():
        tree[above + name] = contents.get(inner)
        if inner in folders:
            _walk(inner, f"{above}{name}/", folders, contents, tree)
