"""The page that reports/interop.json makes: counts, every refusal by its name, the largest difference."""

from __future__ import annotations

from collections import Counter
from typing import Any


def render_report(report: dict[str, Any]) -> str:
    """Return the Markdown page of a run."""
    peers = ", ".join(f"{name} {version}" for name, version in report["versions"]["peers"].items())
    lines = ["# Folders of other libraries", "", f"Made by `scripts/interop` at {report['code']} with {peers}.", ""]
    lines += ["## Ours in theirs", "", _heading("format", "loaded", "refused", "missing or unexpected keys"), _rule(6)]
    for kind in ("adapterhub", "peft"):
        own = [each for each in report["exports"] if each["format"] == kind]
        loaded = [each for each in own if "refused" not in each]
        keys = sum(len(each.get("missing", [])) + len(each.get("unexpected", [])) for each in loaded)
        far = max((each.get("difference", 0.0) for each in loaded), default=0.0)
        back = sum(all(each.get("back", {"": False}).values()) for each in loaded)
        lines.append(f"| {kind} | {len(loaded)} | {len(own) - len(loaded)} | {keys} | {far:.1e} | {back} |")
    lines += ["", "Refused, and why:", "", *_refusals(report["exports"])]
    lines += [
        "",
        "## Theirs in ours",
        "",
        "| format | equal logits | read without a head | refused | largest |",
        _rule(5),
    ]
    for kind in ("adapterhub", "peft"):
        own = [each for each in report["imports"] if each["format"] == kind and "unsaved" not in each]
        equal = [each for each in own if "difference" in each]
        refused = sum("refused" in each for each in own)
        far = max((each["difference"] for each in equal), default=0.0)
        lines.append(
            f"| {kind} | {len(equal)} | {sum(each.get('headless', False) for each in own)} | {refused} | {far:.1e} |"
        )
    lines += ["", "Refused, and why:", "", *_refusals(report["imports"])]
    unsaved = sum("unsaved" in each for each in report["imports"])
    lines += ["", f"{unsaved} further combinations cannot be made or loaded by their own library.", ""]
    lines += [f"Broken promises: {len(report['broken'])}.", "", *(f"* {line}" for line in report["broken"])]
    return "\n".join(lines).rstrip() + "\n"


def _heading(*titles: str) -> str:
    return f"| {' | '.join((*titles, 'largest difference of logits', 'back bit-equal'))} |"


def _rule(columns: int) -> str:
    return f"|{'---|' * columns}"


def _refusals(entries: list[dict[str, Any]]) -> list[str]:
    counted = Counter((each["format"], each["refused"]) for each in entries if "refused" in each)
    return [f"* {kind}: {why[:240]} ({count})" for (kind, why), count in sorted(counted.items())]
