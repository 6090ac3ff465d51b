"""The reliability report as Markdown, from what ``scripts/torture`` wrote down as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_LOUD = ("refused", "warned", "no change", "old", "new")


def render_report(report: dict[str, Any]) -> str:
    """Return the whole report."""
    experiments = report["experiments"]
    parts = [
        "# Reliability of the store",
        "Made by `scripts/torture`; the figures are in `reliability.json`. Each experiment is a function under "
        "`tests/faults/`, which `scripts/test` runs in its quick form.",
        _machine(report),
        "## Promises",
        _table(
            ("experiment", "promise", "cases", "needed", "broken", "seconds", "commit"),
            [_row(name, entry) for name, entry in experiments.items()],
        ),
        "## What was tried",
        *(_details(name, entry) for name, entry in experiments.items() if entry.get("details")),
    ]
    broken = [f"* {name}: {line}" for name, entry in experiments.items() for line in entry.get("bad", [])]
    if broken:
        parts += ["## Broken", "\n".join(broken)]
    if report["peers"]:
        parts += ["## The same faults elsewhere", *_peers(report["peers"])]
    return "\n\n".join(parts) + "\n"


def _machine(report: dict[str, Any]) -> str:
    machine, versions = report["hardware"], report["versions"]
    return (
        f"{machine['processor']}, {machine['cores']} cores; {machine['system']}; Python {versions['python']}, "
        f"torch {versions.get('torch')}, safetensors {versions.get('safetensors')}. "
        "Seconds are of a machine on which other work ran too."
    )


def _row(name: str, entry: dict[str, Any]) -> tuple[object, ...]:
    if "error" in entry:
        return (name, f"failed: {entry['error'][:200]}", "", "", "", "", "")
    promise = entry["promise"].rstrip(".")
    form = "" if entry["form"] == "long" else " (quick form)"
    figures = [f"{entry[field]:,}" for field in ("tried", "needed", "broken")]
    return (name, promise[0].upper() + promise[1:] + form, *figures, f"{entry['seconds']:,.0f}", entry["code"][:12])


def _details(name: str, entry: dict[str, Any]) -> str:
    told = ", ".join(f"{key} {_figure(value)}" for key, value in entry["details"].items() if key != "slowest_input")
    return f"* **{name}**: {told}"


def _figure(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _peers(peers: dict[str, Any]) -> list[str]:
    known = {peer: found for peer, found in peers.items() if "error" not in found}
    versions = "; ".join(
        f"{peer}: " + ", ".join(f"{package} {version}" for package, version in found["versions"].items())
        for peer, found in known.items()
    )
    about = (
        "Equal faults, by `scripts/torturing/peers.py`, on tiny random backbones. A load is *silent* if it neither "
        "raises nor warns nor logs anything that an undamaged load does not; one whose tensors and configuration are "
        "the original's does not count as silent. `adapters` writes pickled files unless asked for safetensors. "
        f"The peers' formats know nothing of a tokenizer. Versions: {versions}."
    )
    rows = [(title, *(str(read(found)) for found in known.values())) for title, read in _MEASURES]
    failed = [f"{peer}: not measured, {found['error']}" for peer, found in peers.items() if "error" in found]
    return [about, _table(("fault", *known), rows), *failed]


def _kills(found: dict[str, Any], kind: str) -> str:
    counts = found["kills"].get(kind) if isinstance(found["kills"], dict) else None
    if counts is None:
        return "not measured"
    torn = sum(number for outcome, number in counts.items() if outcome.startswith("torn"))
    silent = counts.get("torn, silent", 0)
    return f"{torn} of {counts['points']} torn, {silent} silently"


def _silent(found: dict[str, Any]) -> str:
    silent = sum(number for outcome, number in found["total"].items() if outcome not in _LOUD)
    warned = found["total"].get("warned", 0)
    return f"{silent} of {sum(found['total'].values())} loaded silently" + (
        f", {warned} with a warning" if warned else ""
    )


def _backbones(found: dict[str, Any]) -> str:
    outcomes = [each["outcome"] for each in found["wrong_backbones"].values()]
    return f"{outcomes.count('silent')} of {len(outcomes)} silent, {outcomes.count('warned')} with a warning"


_MEASURES = (
    ("kill -9 before a changing call of a save over an older one", lambda found: _kills(found, "changing calls")),
    ("kill -9 before any call of it", lambda found: _kills(found, "all calls")),
    ("flushes (fsync) of one save", lambda found: found["kills"]["flushes_of_one_save"]),
    ("one flipped bit", lambda found: _silent(found["flips"])),
    ("a file cut short", lambda found: _silent(found["cuts"])),
    ("files swapped, or of another set", lambda found: _silent(found["swaps"])),
    ("another backbone or tokenizer", _backbones),
)


def _table(titles: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(titles)]
    lines += [["---"] * len(lines[0])]
    lines += [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
