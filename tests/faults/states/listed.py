"""A store with thousands of names: what a list tells of it, and how long it takes."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import msgspec

from registry.config import TrainingConfig
from registry.store.listing import list_sets
from registry.store.manifest import format_alias, seal
from registry.store.reader import MANIFEST_FILE
from registry.store.store import Store
from tests.faults.verdict import Verdict
from tests.support.run_records import make_record
from tests.support.stored_sets import CONTENTS, INFO, new_manifest

_LIKE_TRAINED = {  # a manifest as long as that of a trained set
    "task": "mrpc",
    "pair": True,
    "recipe": "default",
    "split": "validation",
    "main_metric": "accuracy",
    "scores": {"accuracy": 0.8125, "f1_binary": 0.8651, "f1_weighted": 0.8102},
    "training": TrainingConfig(),
    "data": make_record("mrpc", "houlsby").data,
    "library_versions": dict.fromkeys(("python", "torch", "transformers", "tokenizers", "numpy"), "1.2.3"),
}


def try_list(folder: Path, *, sets: int, repeats: int = 20, limit: float | None = None) -> Verdict:
    """List ``sets`` names, every tenth with an alias; slower than ``limit`` seconds in the median is bad as well."""
    verdict = Verdict(f"a list of {sets} names tells all of them" + (f" in {limit} s" if limit else ""))
    store = Store.create(folder / "store", INFO)
    expected = {f"set-{number:05d}": {"best": 1} if number % 10 == 0 else {} for number in range(sets)}
    for name, aliases in expected.items():
        _put(store, name, aliases)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = list(list_sets(store))
        seconds.append(time.perf_counter() - start)
    for listed in found:
        verdict.tried += 1
        told = (listed.versions, listed.aliases, listed.error)
        if told != ([1], expected.pop(listed.name, None), None) or listed.summary is None:
            verdict.bad.append(f"{listed.name}: expected version 1, found {told}")
    verdict.bad += [f"{name} is not in the list" for name in expected]
    median = statistics.median(seconds)
    if limit is not None and median > limit:
        verdict.bad.append(f"expected a median of at most {limit} s, found {median:.3f} s")
    verdict.details["median milliseconds"] = round(1000 * median)
    verdict.details["slowest milliseconds"] = round(1000 * max(seconds))
    return verdict


def _put(store: Store, name: str, aliases: dict[str, int]) -> None:
    """Write a version as ``commit`` would, without waiting for the disk."""
    version = store.root / name / "versions" / "000001"
    version.mkdir(parents=True)
    manifest = msgspec.structs.replace(new_manifest(**_LIKE_TRAINED), name=name)
    (version / MANIFEST_FILE).write_bytes(seal(manifest, CONTENTS))
    for file, data in CONTENTS.items():
        (version / file).write_bytes(data)
    for alias, number in aliases.items():
        (store.root / name / "aliases").mkdir()
        (store.root / name / "aliases" / alias).write_bytes(format_alias(name, alias, number))
