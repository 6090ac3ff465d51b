"""The report of a server's load: tables beside the targets, from what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

LABELS = {
    "ours": "ours",
    "one_forward": "ours, one request one forward",
    "litserve_32": "LitServe with our predictor, 32 rows, 0.5 ms",
    "litserve_64": "LitServe with our predictor, 64 rows, 5 ms",
    "peft": "`peft` with adapter_names behind FastAPI",
}
Rounds = Sequence[Mapping[str, Any]]


def share(rounds: Rounds, key: str) -> float:
    """Return what part of the offline rate was reached: the median of the rounds' own, offline before and after."""
    return statistics.median(each[key]["rows_per_second"] / _offline(each, "rows_per_second") for each in rounds)


def _offline(each: Mapping[str, Any], what: str) -> float:
    return statistics.mean((each["offline"][what], each["offline_after"][what]))


def median(rounds: Rounds, *path: str) -> float:
    """Return the median over rounds of a figure at a path."""
    values = []
    for each in rounds:
        value: Any = each
        for step in path:
            value = value[step]
        values.append(math.nan if value is None else float(value))
    return statistics.median(values)


def ratio(rounds: Rounds, in_flight: str, other: str, what: str = "rows_per_second") -> float:
    """Return the median over rounds of ours over another's figure."""
    pairs = [(each["ours"][in_flight][what], each[other][in_flight][what]) for each in rounds]
    return statistics.median(own / there if there else math.inf for own, there in pairs)


def targets(found: Mapping[str, Any]) -> list[tuple[str, str, float | None]]:
    """Return each target in words, what it asks, and what was found, None where it was not measured."""
    told: list[tuple[str, str, float | None]] = []
    rounds = {
        part: found[part]["found"] if part in found else None for part in ("float32", "bfloat16", "pool", "peers")
    }
    for part, least in (("float32", ("0.93", "0.96")), ("bfloat16", ("0.90", "0.92"))):
        for in_flight, want in zip(("32", "128"), least, strict=True):
            own = rounds[part]
            told.append((f"{part}: share of offline, {in_flight} in flight", want, own and share(own, in_flight)))
    own = rounds["float32"]
    slower = own and statistics.median(each["1"]["p50_ms"] / each["forward_ms"] for each in own)
    told.append(("one in flight: p50 over the bare forward, at most", "1.3", slower))
    many = rounds["pool"]
    told.append(("1,000 sets, pool for 200: share of offline, 128 in flight", "0.85", many and share(many, "128")))
    peers = rounds["peers"]
    for other, want in (("litserve_32", "1"), ("litserve_64", "1"), ("peft", "4.5")):
        there = peers if peers and other in peers[0] else None
        told.append((f"rows/s at 128 over {other}", want, there and ratio(there, "128", other)))
    if "overload" in found:
        load = found["overload"]["found"]
        kept = load["rows_per_second"] / load["usual_rows_per_second"]
        told.append(("overload: answers in time, share of the rate", "0.9", kept))
    return told


def render(found: Mapping[str, Any]) -> str:
    """Return the page."""
    lines = ["# How fast a server answers", ""]
    about = next(iter(found.values()))
    codes = ", ".join(dict.fromkeys(part["code"] for part in found.values()))
    lengths = ", ".join(f"{part} {one['seconds']:g} s" for part, one in found.items() if "seconds" in one)
    lines += [
        f"`scripts/serve-load`, {about['processor']}, {about['threads']} thread(s) of torch in each process, the load "
        f"generator on the same machine, code {codes}. Rows of SST-2, one a request, sets drawn as Zipf's law "
        "has it; medians over rounds, ratios within a round." + (f" Each measurement: {lengths}." if lengths else ""),
        "",
    ]
    if any(part["quick"] for part in found.values()):
        lines += ["**A quick run: seconds long, it shows that all of it works, and its figures are no evidence.**", ""]
    lines += ["| target | at least | found |", "|---|---:|---:|"]
    lines += [
        f"| {what} | {want} | {'not measured' if value is None else f'{value:.2f}'} |"
        for what, want, value in targets(found)
    ]
    if "sizes" in found:
        lines += ["", *sizes(found["sizes"]["found"])]
    for part in ("float32", "bfloat16", "pool"):
        if part in found:
            lines += ["", *_shares(part, found[part])]
    if "layers" in found:
        for dtype, rounds in found["layers"]["found"].items():
            lines += ["", *_layers(dtype, rounds)]
    if "peers" in found:
        lines += ["", *_peers(found["peers"]["found"])]
    if "overload" in found:
        lines += ["", *_overload(found["overload"]["found"])]
    return "\n".join(lines) + "\n"


def sizes(found: Mapping[str, Any]) -> list[str]:
    """Return the table of what a server has in memory."""
    lines = ["## In memory", ""]
    lines += ["| precision | at the start | one set | all sets | a full queue of rows of 800 words more |"]
    lines += ["|---|" + "---:|" * 4]
    for dtype, told in found.items():
        start, whole, full = (told[key] / 2**20 for key in ("at_start", "all_sets", "queue_full"))
        one, count = told["resident_bytes"] / told["resident_sets"] / 2**20, told["resident_sets"]
        cells = f"{start:.0f} MiB | {one:.2f} MiB | {whole:.0f} MiB ({count:.0f} sets) | {full - whole:.0f} MiB"
        lines.append(f"| {dtype} | {cells} |")
    return lines


def _shares(part: str, own: Mapping[str, Any]) -> list[str]:
    rounds = own["found"]
    lines = [f"## {part}, {own['sets']:,} sets, {len(rounds)} round(s)", ""]
    lines += ["| in flight | rows/s | share of offline | p50 ms | p99 ms | processor ms a row |", "|---|" + "---:|" * 5]
    whats = "rows_per_second", "p50_ms", "p99_ms", "cpu_ms_per_row"
    for key in ("1", "8", "32", "128", "8 rows x 4"):
        rate, p50, p99, spent = (median(rounds, key, what) for what in whats)
        lines.append(f"| {key} | {rate:.0f} | {share(rounds, key):.2f} | {p50:.1f} | {p99:.1f} | {spent:.2f} |")
    rate, spent = (median(rounds, "offline", what) for what in ("rows_per_second", "cpu_ms_per_row"))
    forward = median(rounds, "forward_ms")
    told = f"Offline {rate:.0f} rows/s, {spent:.2f} ms of processor a row; a bare forward of one row takes"
    return [*lines, "", f"{told} {forward:.1f} ms."]


def _layers(dtype: str, rounds: Rounds) -> list[str]:
    """Return the table of what one row takes, layer after layer around the model."""
    base = next(iter(rounds[0]))
    lines = [f"## What a row takes, {dtype}, {len(rounds)} round(s)", ""]
    lines += ["| what answers | rows/s | share of the first | ms a row: model's thread | not running | other threads |"]
    lines += ["|---|" + "---:|" * 5]
    for key in rounds[0]:
        each = [median(rounds, key, what) for what in ("rows_per_second", "model_ms", "still_ms", "other_ms")]
        kept = statistics.median(one[key]["rows_per_second"] / one[base]["rows_per_second"] for one in rounds)
        lines.append(f"| {key} | {each[0]:.0f} | {kept:.2f} | {each[1]:.2f} | {each[2]:.2f} | {each[3]:.2f} |")
    return lines


def _peers(rounds: Rounds) -> list[str]:
    lines = [f"## Beside others, float32, {len(rounds)} round(s)", ""]
    lines += ["| server | rows/s at 32 | at 128 | ours over it at 128 | p99 ms at 128 |", "|---|---:|---:|---:|---:|"]
    for key in rounds[0]:
        at = [median(rounds, key, n, "rows_per_second") for n in ("32", "128")]
        late = median(rounds, key, "128", "p99_ms")
        lines.append(f"| {LABELS[key]} | {at[0]:.0f} | {at[1]:.0f} | {ratio(rounds, '128', key):.2f} | {late:.0f} |")
    return lines


def _overload(load: Mapping[str, Any]) -> list[str]:
    statuses = ", ".join(f"{status}: {count:,}" for status, count in load["statuses"].items())
    mib = [load[key] / 2**20 for key in ("memory_before", "memory_after")]
    return [
        "## Three times the rate",
        "",
        f"Usual {load['usual_rows_per_second']:.0f} rows/s; under three times that, "
        f"with {load['deadline_seconds']:g} s for each request, {load['rows_per_second']:.0f} rows/s came in time "
        f"(p99 {load['p99_ms']:.0f} ms). Statuses {statuses} (599: answered too late); "
        f"the server counts {load['answered_by_the_server']:,} answers. "
        f"At most {load['most_rows_waiting']:.0f} rows waited; memory {mib[0]:.0f} MiB before, {mib[1]:.0f} MiB after.",
    ]
