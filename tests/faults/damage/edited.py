"""Versions that somebody who knows the format has edited, loaded one after the other; nothing but torch is needed.

A part of what ``mismatches.py`` tries through every door, small enough to be run against every defect.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from registry.adapters.adapter_set import AdapterSet
from registry.errors import RegistryError
from registry.store.store import Store
from registry.store.tensors import load_set, save_set
from tests.faults.damage.edits import TENSORS
from tests.faults.verdict import Verdict
from tests.support.stored_sets import ADAPTER, HEAD, INFO, new_manifest


def try_edits(folder: Path) -> Verdict:
    """Load a set after each edit of its tensors, with digests made right: each is refused by its name."""
    verdict = Verdict("an edited version is refused, and the error names what is wrong")
    store = Store.create(folder / "store", INFO)
    adapter_set = AdapterSet(INFO.hidden_size, INFO.layers, ADAPTER, HEAD)
    save_set(store, adapter_set, new_manifest(parameters=adapter_set.stored_count))
    load_set(store, "mrpc", 1, INFO)
    for title, told, change in TENSORS:
        copy = Path(shutil.copytree(store.root, folder / "copy"))
        change(copy)
        verdict.tried += 1
        try:
            load_set(Store.open(copy), "mrpc", 1, INFO)
            verdict.bad.append(f"{title}: expected an error, found that it was loaded")
        except RegistryError as err:
            if not all(part in str(err) for part in told):
                verdict.bad.append(f"{title}: expected an error that names {', '.join(told)}, found {err}")
        except Exception as err:
            verdict.bad.append(f"{title}: expected an error of ours, found {type(err).__name__}: {err}")
        shutil.rmtree(copy)
    return verdict
