"""The reliability report and what docs/store.md says of it follow from the figures that were written down."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
PAGE = (HERE / "docs" / "store.md").read_text(encoding="utf-8")
PROMISES = PAGE.split("## What the store promises")[1].split("\n## ")[0]
REPORT = json.loads((HERE / "reports" / "reliability.json").read_text(encoding="utf-8"))


def test_report_is_what_its_figures_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Markdown is the one that the script makes of the JSON."""
    monkeypatch.setattr(sys, "path", [str(HERE / "scripts" / "torturing"), *sys.path])
    from report import render_report

    assert render_report(REPORT) == (HERE / "reports" / "reliability.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", REPORT["experiments"])
def test_every_promise_was_kept_in_the_long_form(name: str) -> None:
    """Each entry is of the long form, judged as many cases as were wanted, and broke nothing."""
    entry = REPORT["experiments"][name]
    assert ("long", 0, []) == (entry["form"], entry["broken"], entry["bad"])
    assert entry["tried"] >= entry["needed"]


def test_every_promise_names_a_test_that_is_there() -> None:
    """The list in docs/store.md names each test file of the experiments, and none that is not there."""
    named = set(re.findall(r"`(test_\w+\.py)`", PROMISES))
    assert {path.name for path in (HERE / "tests" / "faults").rglob("test_*.py")} <= named
    assert named <= {path.name for path in (HERE / "tests").rglob("test_*.py")}


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("kills", "kill -9"),
        ("failing calls", "failing calls"),
        ("states after a power loss", "power loss"),
        ("damaged files", "damage"),
        ("names", "hostile names"),
        ("verified reads", "readers"),
        ("saves by 64 processes", "writers"),
    ],
)
def test_figures_in_the_docs_are_the_reports(words: str, name: str) -> None:
    """The sentence on the long form has the report's own numbers."""
    text = " ".join(PROMISES.split())
    assert f"{REPORT['experiments'][name]['tried']:,} {words}" in text


def test_peers_in_the_docs_are_the_reports() -> None:
    """The table of peers has the report's own numbers."""
    peers = REPORT["peers"]
    order = ("ours", "peft", "adapters", "adapters-safetensors")
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in PROMISES.splitlines() if line.startswith("| ")]
    table = {len(row): [each for each in rows if len(each) == len(row)] for row in rows}[4][1:]
    kills, flips, swaps, backbones, flushes = table
    for column, peer in enumerate(order):
        found = peers[peer]
        counts = found["kills"]["all calls"]
        torn = sum(number for outcome, number in counts.items() if outcome.startswith("torn"))
        assert kills[column].startswith(f"{torn} of {counts['points']}")
        for cell, part in ((flips[column], "flips"), (swaps[column], "swaps")):
            total = found[part]["total"]
            silent = sum(number for outcome, number in total.items() if outcome.startswith("silent"))
            assert cell.startswith(f"{silent} of {sum(total.values())}")
        outcomes = [each["outcome"] for each in found["wrong_backbones"].values()]
        assert backbones[column].startswith(f"{outcomes.count('silent')} of {len(outcomes)}")
        assert flushes[column] == str(found["kills"]["flushes_of_one_save"])
