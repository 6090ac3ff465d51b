"""Kill, damage and misplace the saved adapters of ``peft``, ``adapters`` or our own store, and count what is noticed.

Runs by itself in the peers' own environment, or in ours for ``--peer ours``; offline, on tiny random backbones that
are the same for all. Every load happens in a forked child. It is refused if it raises, warned if a Python warning, a
log record from WARNING up or a printed line comes that an undamaged load does not bring, else silent. A load whose
tensors and configuration equal the original's is "no change".

    .venv-peers/bin/python scripts/torturing/peers.py --peer peft --out peft.json --points all
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import random
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from kills import answer_of_child, calls_of, is_killed_at
from libraries import BACKBONES, PEERS, Peer, make_checkpoints
from transformers.utils import logging as transformers_logging


@dataclass
class Loaded:
    """What a load came to; ``answers`` is "fails" where only the first use of what was loaded raised."""

    outcome: str
    told: list[str] = field(default_factory=list)
    content: str = ""
    answers: str = ""

    def against(self, original: Loaded) -> str:
        """Return the class of a load of something damaged."""
        if self.outcome != "silent":
            return self.outcome
        if self.content == original.content:
            return "no change"
        if self.answers == "fails":
            return "silent, fails at first use"
        return "silent, same answers" if self.answers == original.answers else "silent, other answers"


class Bench:
    """Everything that is tried on one peer, in ``root``, with its old and its new adapter saved there once."""

    def __init__(self, peer: Peer, root: Path, seed: int) -> None:
        self.peer, self.root, self.seed = peer, root, seed
        self.ids = torch.randint(5, 150, (8, 16), generator=torch.Generator().manual_seed(0))
        self.usual: list[str] = []  # what even an undamaged load says
        self.original = {}
        for which in ("old", "new"):
            self.peer.save(which, root / which)
            first = self.load(root / which)
            if first.outcome not in ("silent", "warned") or first.answers == "fails":
                raise RuntimeError(f"cannot load the undamaged adapter: {first}")
            self.usual += first.told
            self.original[which] = first
        self.files = [path.relative_to(root / "old") for path in sorted((root / "old").rglob("*")) if path.is_file()]
        self.files = [path for path in self.files if path.name != "README.md"]  # peft's model card; no load reads it

    def load(self, folder: Path, backbone: str = "right") -> Loaded:
        """Load in a child of its own and return what it came to."""
        answer = answer_of_child(lambda: json.dumps(asdict(self._load_here(folder, backbone))))
        return Loaded(**json.loads(answer)) if answer else Loaded("crashed", ["the process died"])

    def _load_here(self, folder: Path, backbone: str) -> Loaded:
        records: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
        loggers = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
        for logger in (logging.root, *(each for each in loggers if not each.propagate)):
            logger.addHandler(handler)
        with warnings.catch_warnings(record=True) as warned, redirect_stdout(io.StringIO()) as printed:
            warnings.simplefilter("always")
            try:
                loaded = self.peer.load(folder, backbone)
            except BaseException as err:  # a Rust panic is no Exception
                return Loaded("refused", [self._shown(f"{type(err).__name__}: {err}")])
        told = [*(str(each.message) for each in warned), *records, printed.getvalue()]
        told = sorted({self._shown(text) for text in told if text} - set(self.usual))
        tensors, configuration = self.peer.content(loaded)
        digest = hashlib.sha256(json.dumps(configuration, sort_keys=True, default=_plain).encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        try:
            with torch.no_grad():
                logits = self.peer.logits(loaded, self.ids).numpy().tobytes()
            answers = hashlib.sha256(logits).hexdigest()
        except Exception:
            answers = "fails"
        return Loaded("warned" if told else "silent", told, digest.hexdigest(), answers)

    def _shown(self, text: str) -> str:
        return text.replace(str(self.root), "...")[:200]

    def fresh(self, which: str = "old") -> Path:
        """Return a new copy of the saved adapter, always at the same path."""
        folder = self.root / "tried"
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(self.root / which, folder))

    def kills(self, points: str) -> dict[str, Any]:
        """Kill a save over an existing adapter before each of its calls, and load what is left."""
        folder = self.fresh()
        calls = calls_of(lambda: self.peer.save("new", folder), folder)
        counts = {kind: Counter[str]() for kind in ("changing calls", "all calls")[: 1 + (points == "all")]}
        cases = []
        for call in calls if points == "all" else [call for call in calls if call.changes]:
            folder = self.fresh()
            is_killed = is_killed_at(lambda folder=folder: self.peer.save("new", folder), call)
            outcome, loaded = self._after_kill(folder)
            state = {str(path): self._state(folder, path) for path in self.files}
            for kind in counts if call.changes else ("all calls",):
                counts[kind].update(points=1, killed=is_killed, **{outcome: 1})
            answers = [which for which, first in self.original.items() if first.answers == loaded.answers]
            case = {"call": call.name, "place": call.place, "killed": is_killed, "outcome": outcome, "files": state}
            cases.append({**case, "told": loaded.told[:1], "answers_as": answers})
        return {"flushes_of_one_save": sum(call.flushes for call in calls), **counts, "cases": cases}

    def _after_kill(self, folder: Path) -> tuple[str, Loaded]:
        loaded = self.load(folder)
        for which, first in self.original.items():
            if loaded.content == first.content:
                return which, loaded
        return f"torn, {loaded.outcome}", loaded

    def _state(self, folder: Path, path: Path) -> str:
        old, new = (self.root / which / path for which in ("old", "new"))
        if not (folder / path).is_file():
            return "missing"
        data, before, after = (file.read_bytes() for file in (folder / path, old, new))
        if data in (before, after):
            return "old" if data == before else "new"
        return "cut" if after.startswith(data) else "other"

    def damage(self, number: int, hurt: Callable[[bytes, random.Random], bytes]) -> dict[str, Any]:
        """Hurt the files in turn, ``number`` times in all, each time from an undamaged copy."""
        chance = random.Random(self.seed)
        counts = {str(path): Counter[str]() for path in self.files}
        examples: dict[str, str] = {}
        for turn in range(number):
            path = self.files[turn % len(self.files)]
            folder = self.fresh()
            (folder / path).write_bytes(hurt((folder / path).read_bytes(), chance))
            loaded = self.load(folder)
            outcome = loaded.against(self.original["old"])
            counts[str(path)][outcome] += 1
            examples.setdefault(f"{path}: {outcome}", (loaded.told or [""])[0])
        return {"tried": number, "total": sum(counts.values(), Counter()), "files": counts, "examples": examples}

    def swaps(self) -> dict[str, Any]:
        """Swap any two files, and put in each file, of another adapter of the same shapes."""
        cases = {}
        for one, other in combinations(self.files, 2):
            folder = self.fresh()
            contents = (folder / one).read_bytes(), (folder / other).read_bytes()
            (folder / one).write_bytes(contents[1])
            (folder / other).write_bytes(contents[0])
            cases[f"{one.name} and {other.name} swapped"] = self.load(folder).against(self.original["old"])
        for path in self.files:
            folder = self.fresh()
            if (folder / path).read_bytes() == (self.root / "new" / path).read_bytes():
                continue  # our store.json, which tells of the backbone only
            shutil.copyfile(self.root / "new" / path, folder / path)
            cases[f"{path.name} of another adapter"] = self.load(folder).against(self.original["old"])
        return {"total": Counter(cases.values()), "cases": cases}

    def misplacements(self) -> dict[str, Any]:
        """Load the undamaged adapter on every wrong backbone."""
        found = {kind: self.load(self.fresh(), kind) for kind in BACKBONES if kind != "right"}
        return {
            kind: {"outcome": loaded.outcome, "works": loaded.answers not in ("", "fails"), "told": loaded.told[:1]}
            for kind, loaded in found.items()
        }


def _plain(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)


def flip(data: bytes, chance: random.Random) -> bytes:
    """Return ``data`` with one bit the other way."""
    place = chance.randrange(8 * len(data))
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    """Return the beginning of ``data``, at least one byte short."""
    return data[: chance.randrange(len(data))]


def main() -> None:
    """Try everything on one peer and write what came out as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--points", choices=("changing", "all"), default="changing", help="where a save is killed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out = options.out.resolve()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)  # a forked child must not wait for threads that stayed behind
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        root = Path(name).resolve()
        os.chdir(root)  # all write the checkpoint's path into their files, so it must be the same in every run
        peer = PEERS[options.peer](make_checkpoints(Path("checkpoints")))
        bench = Bench(peer, root, options.seed)
        found = {
            "peer": options.peer,
            "versions": {package: metadata.version(package) for package in peer.packages},
            "seed": options.seed,
            "files": {str(path): (root / "old" / path).stat().st_size for path in bench.files},
            "said_by_undamaged_loads": bench.usual,
            "kills": bench.kills(options.points) if shutil.which("strace") else "not measured: no strace",
            "flips": bench.damage(options.flips, flip),
            "cuts": bench.damage(options.cuts, cut),
            "swaps": bench.swaps(),
            "wrong_backbones": bench.misplacements(),
        }
    found["seconds"] = round(time.monotonic() - started)
    out.write_text(json.dumps(found, indent=2) + "\n")
    if isinstance(found["kills"], dict):
        del found["kills"]["cases"]
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
