"""Defects put into a copy of the package, each of which an experiment must catch: so the experiments are proven too.

A defect replaces one exact piece of text, which must occur once, so a defect that the code has outgrown is an error and
not a success. The same experiments must pass on an undamaged copy, or being caught would mean nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.states.stateful import scratch
from tests.faults.verdict import Verdict
from tests.support.stored_sets import ROOT

SCRIPT = """
import importlib, json, sys
from pathlib import Path
import registry
module, function, folder, sizes = sys.argv[1:]
if Path(registry.__file__).parents[1] != Path.cwd():
    sys.exit(f"this is not the copy: {registry.__file__}")
verdict = getattr(importlib.import_module(module), function)(Path(folder), **json.loads(sizes))
print(json.dumps([verdict.tried, verdict.bad]))
"""
SECONDS = 300  # for one experiment, which takes a few
# What an experiment may find is broken promises; these mean that the defect is no Python.
NO_PYTHON = re.compile(r"\b(SyntaxError|IndentationError|NameError|ImportError|UnboundLocalError)\b")


@dataclass(frozen=True)
class Experiment:
    """A ``try_*`` function in a small size; ``tried`` is the least number of cases that it must judge."""

    module: str
    function: str
    sizes: dict[str, Any]
    tried: int


@dataclass(frozen=True)
class Defect:
    """One text of the package that is replaced, and the experiment that must notice."""

    title: str
    file: str
    old: str
    new: str
    caught_by: str


EXPERIMENTS = {
    "machine": Experiment("states.machine", "try_machine", {"runs": 15, "steps": 30, "most_bad": 1}, 450),
    "power loss": Experiment("crash.power_loss", "try_power_loss", {"states": 300}, 300),
    "foreign": Experiment("damage.foreign", "try_foreign", {"cases": 120}, 120),
    "remote": Experiment("network.remote", "try_remote", {"writers": 2, "saves": 2, "faults": 12, "kills": 3}, 15),
    "edits": Experiment("damage.edited", "try_edits", {}, 12),
}

IN_PLACE = """\
        with files.writing(self.root, attempted), self._staged(sealed, contents) as stage:
            return self._publish(stage, manifest.name)
"""
IN_PLACE_INSTEAD = """\
        with files.writing(self.root, attempted):
            versions = self._inside(manifest.name, "versions")
            files.make_folder(versions.parent)
            files.make_folder(versions)
            number = _highest(versions) + 1
            stage = versions / f"{number:06d}"
            files.make_folder(stage)
            for file in TENSOR_FILES:
                files.write_new(stage / file, contents[file])
            files.write_new(stage / MANIFEST_FILE, sealed)
            files.fsync_folder(stage)
            files.confirm(versions, f"{manifest.name}:{number}")
            return number
"""
ALIAS_IN_PLACE = """\
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(descriptor, data)
        os.fsync(descriptor)
        os.close(descriptor)
"""
NAME_RULE = """\
    if not _NAME.fullmatch(name) or ".." in name or name in _RESERVED or name.split(".")[0] in _WINDOWS_DEVICES:
"""
RETRY = """\
    for number in range(_highest(versions) + 1, _LAST_VERSION + 1):
        with suppress(FileExistsError):
            files.rename_folder(stage, versions / f"{number:06d}")
            return number
"""
NO_RETRY = """\
    for number in range(_highest(versions) + 1, _LAST_VERSION + 1):
        files.rename_folder(stage, versions / f"{number:06d}")
        return number
"""

MANIFEST_LAST = """\
        return self._put_own(f"{folder}/{ADAPTER_FILE}", contents[ADAPTER_FILE]) and self._put_own(
            f"{folder}/{MANIFEST_FILE}", sealed
        )
"""
MANIFEST_FIRST = """\
        return self._put_own(f"{folder}/{MANIFEST_FILE}", sealed) and self._put_own(
            f"{folder}/{ADAPTER_FILE}", contents[ADAPTER_FILE]
        )
"""

# fmt: off
DEFECTS = (
    Defect("no fsync of a file", "store/files.py",
           "rest = rest[os.write(descriptor, rest) :]\n        os.fsync(descriptor)\n",
           "rest = rest[os.write(descriptor, rest) :]\n", "power loss"),
    Defect("no fsync of the stage", "store/store.py", "            files.fsync_folder(stage)\n", "", "power loss"),
    Defect("no fsync after the rename", "store/store.py",
           '            files.confirm(versions, f"{name}:{number}")\n', "", "power loss"),
    Defect("a commit that is not confirmed is denied", "store/store.py",
           '            files.confirm(versions, f"{name}:{number}")\n', "            files.fsync_folder(versions)\n",
           "machine"),
    Defect("a version is written where it is visible", "store/store.py", IN_PLACE, IN_PLACE_INSTEAD, "machine"),
    Defect("a file is replaced in place", "store/files.py",
           "        write_new(by, data)\n        os.replace(by, target)\n    finally", ALIAS_IN_PLACE + "    finally",
           "machine"),
    Defect("digests of tensor files are not compared", "store/manifest.py",
           "    if found != entry.sha256:\n", "    if False:\n", "machine"),
    Defect("the digest of a manifest is not compared", "store/manifest.py",
           "    check_digest(path, data, manifest.digest)\n", "", "machine"),
    Defect("the digest of store.json is not compared", "store/manifest.py",
           "    if info.digest:\n", "    if False:\n", "machine"),
    Defect("the check of an alias is not compared", "store/manifest.py",
           "    if match[2] is not None and match[2] not in format_alias(name, alias, version):\n", "    if False:\n",
           "machine"),
    Defect("archives may hold other bytes", "store/archive.py", "    if pack(contents) != data:\n", "    if False:\n",
           "machine"),
    Defect("sizes are not limited", "store/files.py", "    if len(data) > limit:\n", "    if False:\n", "machine"),
    Defect("copies of a foreign prefix are not compared", "interop/adapterhub.py",
           "        if not same:\n", "        if False:\n", "foreign"),
    Defect("a foreign scale is passed over", "interop/methods.py",
           "            scale=1.0 if learned != \"none\" else scaling,\n", "            scale=1.0,\n", "foreign"),
    Defect("a taken number is not tried again", "store/store.py", RETRY, NO_RETRY, "machine"),
    Defect("one staging name for all", "store/store.py", "return staging / uuid.uuid4().hex",
           'return staging / "stage"', "machine"),
    Defect("names are not checked", "validation.py", NAME_RULE, "    if False:\n", "machine"),
    Defect("links are followed", "store/reader.py",
           '                if files.kind(path) == "symbolic link":\n', "                if False:\n", "machine"),
    Defect("backbones are not compared", "store/manifest.py",
           "        if expected != found:\n", "        if False:\n", "machine"),
    Defect("garbage of any age is collected", "store/store.py",
           " if now - _last_change(staging / entry) >= older_than]", "]", "machine"),
    Defect("garbage is taken apart where it is", "store/store.py",
           "            files.rename(leftover, trash)\n", "            trash = leftover\n", "machine"),
    Defect("what is removed is taken apart where it is", "store/store.py",
           "                files.rename_folder(folder, trash)\n", "                files.discard(folder)\n",
           "machine"),
    Defect("a number is given again", "store/store.py",
           "        if int(folder.name) == _highest(folder.parent):\n", "        if False:\n", "machine"),
    Defect("values may be infinite", "store/tensors.py",
           "        if not bool(torch.isfinite(tensor).all()):\n", "        if False:\n", "edits"),
    Defect("names of tensors are not compared", "store/tensors.py",
           "    if expected.keys() != found.keys():\n", "    if False:\n", "edits"),
    Defect("a lost answer is taken for a no", "remote/object_store.py",
           "                return self._read_back(key) == data  # an", "                return False  # an", "remote"),
    Defect("the manifest is put before the adapter", "remote/object_store.py", MANIFEST_LAST, MANIFEST_FIRST, "remote"),
    Defect("shapes of tensors are not compared", "store/tensors.py",
           "        if tuple(tensor.shape) != shape:\n", "        if False:\n", "edits"),
)
# fmt: on


def try_defects(folder: Path, *, chosen: Iterable[str] | None = None) -> Verdict:
    """Put each defect, or those of the ``chosen`` titles, into a copy of its own; bad are those not noticed."""
    verdict = Verdict("every seeded defect of the store is caught")
    wanted = None if chosen is None else set(chosen)
    defects = [defect for defect in DEFECTS if wanted is None or defect.title in wanted]
    for name in sorted({defect.caught_by for defect in defects}):
        found = complaint(folder, name)
        if found is not None:
            verdict.bad.append(f"{name}: expected that the undamaged copy passes, found {found}")
    for defect in defects:
        verdict.tried += 1
        found = complaint(folder, defect.caught_by, defect)
        if found is None:
            verdict.bad.append(f"{defect.title}: expected that {defect.caught_by} catches it, found no complaint")
        else:
            verdict.details[defect.title] = f"{defect.caught_by}: {found}"[:300]
    return verdict


def complaint(folder: Path, experiment: str, defect: Defect | None = None) -> str | None:
    """Return the first broken promise that an experiment finds in a copy, with a defect or without; None for none.

    Raises:
        ValueError: the defect's text is not there exactly once, or the copy does not run.
    """
    chosen = EXPERIMENTS[experiment]
    with scratch(folder) as place:
        copy, playground = place / "copy", place / "playground"
        playground.mkdir()
        for part in ("registry", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        if defect is not None:
            target = copy / "registry" / defect.file
            target.write_text(put_in(target.read_text(encoding="utf-8"), defect), encoding="utf-8")
        module = f"tests.faults.{chosen.module}"
        command = [sys.executable, "-c", SCRIPT, module, chosen.function, str(playground), json.dumps(chosen.sizes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
        )
    return _first_complaint(chosen, done)


def put_in(code: str, defect: Defect) -> str:
    """Return the code of the defect's file with the defect in it.

    Raises:
        ValueError: its text is not there exactly once.
    """
    if code.count(defect.old) != 1:
        where = f"once in {defect.file}, found it {code.count(defect.old)} times"
        raise ValueError(f"'{defect.title}': expected its text {where}")
    return code.replace(defect.old, defect.new)


def _first_complaint(experiment: Experiment, done: subprocess.CompletedProcess[str]) -> str | None:
    if done.returncode:
        raise ValueError(f"{experiment.function} broke off: {done.stderr[-2000:]}")
    tried, bad = json.loads(done.stdout.splitlines()[-1])
    no_python = [line for line in bad if NO_PYTHON.search(line)]
    if no_python:
        raise ValueError(f"the copy does not run: {no_python[0]}")
    if not bad and tried < experiment.tried:
        raise ValueError(f"{experiment.function} judged {tried} cases, which is less than {experiment.tried}")
    return str(bad[0]) if bad else None
