"""Random sequences of everything that can be done to a store, crashes and failures included."""

from __future__ import annotations

from pathlib import Path

from tests.faults.states.machine import try_machine


def test_store_holds_what_dictionaries_say(tmp_path: Path) -> None:
    """After any sequence of steps exactly the expected names, versions, aliases and bytes are visible."""
    verdict = try_machine(tmp_path, runs=25, steps=30, seed=0)
    assert [] == verdict.bad
    assert verdict.tried >= 25 * 30
    assert {"crashes", "failed calls", "links", "damage", "import", "gc", "remove name"} <= verdict.details.keys()
