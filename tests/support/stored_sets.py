"""What the store tests put into stores, and a way to rewrite a manifest as somebody who knows the format would."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from registry.config import AdapterConfig, HeadConfig
from registry.schema import BackboneInfo, Manifest
from registry.store.manifest import ADAPTER_FILE, HEAD_FILE
from registry.store.store import Store

ROOT = Path(__file__).parents[2]
INFO = BackboneInfo(
    source="tiny",
    family="bert",
    hidden_size=32,
    layers=2,
    parameters=1000,
    fingerprint="a" * 64,
    tokenizer_digest="b" * 64,
)
ADAPTER = AdapterConfig(reduction_factor=4, init="normal")
HEAD = HeadConfig(label_names=("no", "yes"))
CONTENTS = {ADAPTER_FILE: b"bytes of an adapter", HEAD_FILE: b"bytes of a head"}


def new_manifest(name: str = "mrpc", **changes: Any) -> Manifest:
    """Return a manifest as a caller hands it in: without files and digest."""
    fields = {"adapter": ADAPTER, "head": HEAD, "parameters": 34, "backbone": INFO}
    return Manifest(name=name, created="2025-01-01T00:00:00+00:00", **{**fields, **changes})


def commit(store: Store, name: str = "mrpc", times: int = 1) -> int:
    """Commit some bytes as the next versions of ``name`` and return the last number."""
    return [store.commit(new_manifest(name), CONTENTS) for _ in range(times)][-1]


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below ``folder`` and its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def reseal(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit a manifest and give it a digest that is right again."""
    plain = json.loads(path.read_bytes())
    edit(plain)
    write_sealed(path, json.dumps(plain))


def write_sealed(path: Path, text: str) -> None:
    """Write ``text`` as a manifest after putting in the digest that it must have."""
    digest = json.loads(text).get("digest", "")
    blank = text.replace(digest, "0" * 64) if digest else text
    path.write_text(blank.replace("0" * 64, hashlib.sha256(blank.encode()).hexdigest()))


def relist(manifest: Path, file: str, data: bytes) -> None:
    """Write ``data`` over a file of a version and make the manifest say so."""
    (manifest.parent / file).write_bytes(data)

    def edit(plain: dict[str, Any]) -> None:
        entry = next(entry for entry in plain["files"] if entry["path"] == file)
        entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    reseal(manifest, edit)


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, at the root of the repository."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
