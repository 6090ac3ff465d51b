"""How a state machine is run and judged: steps drawn by Hypothesis, a broken promise noted, the other runs go on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from registry.errors import RegistryError
from tests.faults.verdict import Verdict

BAD_LIMIT = 20
RAM = Path("/dev/shm")

Kind = type[RegistryError] | tuple[type[RegistryError], ...]


class BrokenPromiseError(Exception):
    """Something else was found than what the model says."""


def run_machine(
    machine: Callable[[], RuleBasedStateMachine],
    verdict: Verdict,
    *,
    runs: int,
    steps: int,
    seed: int,
    most_bad: int = BAD_LIMIT,
) -> None:
    """Let Hypothesis run a machine so often; after a run that breaks a promise the rest go on, up to ``most_bad``."""
    started = 0

    def make() -> RuleBasedStateMachine:
        nonlocal started
        started += 1
        return machine()

    while started < runs and len(verdict.bad) < most_bad:
        chosen = settings(
            max_examples=runs - started,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seeded(seed + started)(make)
        try:
            run_state_machine_as_test(make, settings=chosen, _min_steps=steps)
        except Exception as err:  # whatever it is, no step may raise it
            verdict.count("bad")
            first = getattr(err, "exceptions", (err,))[0]  # Hypothesis groups what came out differently when repeated
            told = " ".join("; ".join(getattr(err, "__notes__", [])).split())
            verdict.bad.append(f"{type(first).__name__}: {first}; after {told[-1500:]}")
        else:
            break


def agree(expected: object, found: object, what: str) -> None:
    """Raise BrokenPromiseError unless both are equal."""
    if expected != found:
        raise BrokenPromiseError(f"{what}: expected {expected!r}"[:700] + f", found {found!r}"[:700])


def refused(kind: Kind, act: Callable[[], object], naming: Path | None = None) -> None:
    """Raise BrokenPromiseError unless ``act`` raises an error of that kind which names the path."""
    try:
        found = act()
    except kind as err:
        agree(True, naming is None or str(naming) in str(err), f"'{err}' names {naming}")
    else:
        raise BrokenPromiseError(f"expected {kind}, found {found!r}")


def says(err: RegistryError, *parts: object) -> bool:
    """Return whether an error's sentence has all of the parts."""
    return all(str(part) in str(err) for part in parts)


def damage_file(path: Path, how: int, place: int) -> None:
    """Flip a bit, cut, lengthen by a mebibyte, empty or remove a file."""
    held = bytearray(path.read_bytes())
    if how == 0:
        held[place % len(held)] ^= 1 << place % 8
    elif how == 1:
        del held[place % len(held) :]
    elif how == 2:
        held += b"\n" * 2**20
    elif how == 3:
        held.clear()
    path.write_bytes(held)
    if how == 4:
        path.unlink()


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Give a folder that is removed afterwards, in memory where that is possible: here nothing is about real disks."""
    in_memory = RAM.is_dir() and os.access(RAM, os.W_OK)
    with tempfile.TemporaryDirectory(dir=RAM if in_memory else folder) as name:
        yield Path(name)
