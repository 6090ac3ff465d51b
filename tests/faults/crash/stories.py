"""What happens to a store: every kind of change, with and without faults in the middle, and anything at random."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.faults.crash.story import Story

NAMES = ("mrpc", "sst2", "imdb")

_ALIASES = ("best", "live")


def _tell_beginning(story: Story) -> None:
    """Three versions and an alias that no power loss can touch."""
    story.create()
    for name in ("mrpc", "mrpc", "sst2"):
        story.save(name)
    story.alias("mrpc", "best", 1)
    story.settle()


def tell_creation(story: Story) -> None:
    """From nothing to a store with two names, an alias and an export."""
    story.create()
    story.save("mrpc")
    story.save("mrpc")
    story.alias("mrpc", "best", 1)
    story.save("sst2")
    story.export("mrpc", 2, "one.adapter")


def tell_killed_creation(story: Story) -> None:
    """A store in the making is left by killed processes, and taken up again."""
    for number in range(2, 8):  # each takes up what the one before left
        story.create(kill_at=number)
    story.create()
    story.save("mrpc")


def tell_saves(story: Story) -> None:
    """Saves into old names and a new one."""
    _tell_beginning(story)
    for name in ("mrpc", "imdb", "mrpc", "sst2"):
        story.save(name)


def tell_aliases(story: Story) -> None:
    """Aliases set, moved and removed."""
    _tell_beginning(story)
    for alias, number in (("live", 2), ("best", 2), ("live", 1)):
        story.alias("mrpc", alias, number)
    story.remove("mrpc@live")
    story.alias("sst2", "best", 1)


def tell_removals(story: Story) -> None:
    """Versions, the newest among them, aliases and names removed, and saved into again."""
    _tell_beginning(story)
    story.remove("mrpc:2")
    story.save("mrpc")
    story.remove("mrpc@best")
    story.remove("mrpc:1")
    story.remove("sst2:1")
    story.save("sst2")
    story.remove("mrpc")
    story.save("mrpc")


def tell_exchange(story: Story) -> None:
    """Exports to a new file and over an old one, and imports."""
    _tell_beginning(story)
    story.export("mrpc", 1, "one.adapter")
    story.export("mrpc", 2, "one.adapter")
    story.take_in("one.adapter", "imdb")
    story.take_in("one.adapter", "mrpc")


def tell_garbage(story: Story) -> None:
    """Writers killed at some calls, and their leavings collected."""
    _tell_beginning(story)
    for number in sorted(story.dice.sample(range(1, 20), 5)):
        story.save("mrpc", kill_at=number)
    for number in sorted(story.dice.sample(range(1, 8), 3)):
        story.alias("mrpc", "live", 2, kill_at=number)
    story.collect()
    story.save("mrpc")


def tell_unconfirmed_save(story: Story) -> None:
    """A version that the disk did not confirm gets an alias."""
    _tell_beginning(story)
    story.save("mrpc", fail_confirm=True)
    story.alias("mrpc", "live", 3)
    story.save("mrpc")


def tell_unconfirmed_alias(story: Story) -> None:
    """A version loses its alias without a confirmation, and is removed."""
    _tell_beginning(story)
    story.alias("mrpc", "best", 2, fail_confirm=True)
    story.remove("mrpc:1")


def tell_unconfirmed_removals(story: Story) -> None:
    """An alias, a version and a name removed without a confirmation; what is left of the version is collected."""
    _tell_beginning(story)
    story.remove("mrpc@best", fail_confirm=True)
    story.remove("mrpc:1")
    story.remove("mrpc:2", fail_confirm=True)
    story.collect()
    story.save("mrpc")
    story.remove("sst2", fail_confirm=True)
    story.save("sst2")


def tell_unconfirmed_export(story: Story) -> None:
    """A store and an export that the disk did not confirm."""
    story.create(fail_confirm=True)
    story.save("mrpc")
    story.export("mrpc", 1, "one.adapter", fail_confirm=True)
    story.take_in("one.adapter", "mrpc")


def tell_anything(story: Story) -> None:
    """Operations drawn at random, up to three of them killed or with a failing flush."""
    dice, faults = story.dice, 0
    story.create()
    for _ in range(dice.randrange(4, 10)):
        fault: dict[str, int] = {}
        if faults < 3 and dice.random() < 0.4:
            faults += 1
            kind, highest = dice.choice((("kill_at", 15), ("fail_flush_at", 8), ("fail_confirm", 1)))
            fault = {kind: dice.randint(1, highest)}
        dice.choice(_choices(story))(**fault)


def _choices(story: Story) -> list[Callable[..., str]]:
    """Return all that can be done next, saves more often than others."""
    facts, dice = sorted(story.facts, key=str), story.dice
    pointed = {(fact[1], fact[3]) for fact in facts if fact[0] == "alias"}
    found: list[Callable[..., str]] = [partial(story.save, name) for name in NAMES] + [story.collect]
    for kind, *rest in facts:
        if kind == "version":
            name, number = rest[0], rest[1]
            found.append(partial(story.alias, name, dice.choice(_ALIASES), number))
            found.append(partial(story.export, name, number, dice.choice(("one.adapter", "two.adapter"))))
            found += [partial(story.remove, f"{name}:{number}")] if (name, number) not in pointed else []
        elif kind == "alias":
            found.append(partial(story.remove, f"{rest[0]}@{rest[1]}"))
        elif kind == "export":
            found.append(partial(story.take_in, rest[0], dice.choice(NAMES)))
    names = sorted({str(fact[1]) for fact in facts if fact[0] == "version"})
    return found + [partial(story.remove, name) for name in names[:1]]


STORIES: tuple[tuple[str, Callable[[Story], None]], ...] = tuple(
    (tell.__name__.removeprefix("tell_").replace("_", " "), tell)
    for tell in (
        tell_creation,
        tell_killed_creation,
        tell_saves,
        tell_aliases,
        tell_removals,
        tell_exchange,
        tell_garbage,
        tell_unconfirmed_save,
        tell_unconfirmed_alias,
        tell_unconfirmed_removals,
        tell_unconfirmed_export,
    )
)
