"""A million rows while an alias moves every 100 ms: no answer differs from what the version that it names gives alone.

A tiny random encoder, as what matters is which set answers, and that it does so right; the numbers are no speed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from registry.errors import RemoteError
from registry.model.backbone import Backbone
from registry.provenance import code_version
from registry.serving.predictor import Predictor
from registry.store.registry import Registry
from registry.web.client import Client
from tests.support.served_sets import TEXTS, save_kind
from tests.support.server import Program
from tests.support.tiny_backbone import save_tiny_checkpoint

VERSIONS = 4
NAMES = ("first", "second", "third")
SECONDS = 0.1  # between two moves
TOLERANCE = 1e-5


class Watcher:
    """Compares answers with what each version gives alone.

    Attributes:
        rows, moves: answered, and made, so far.
        worst: the largest difference of a probability.
        strange: answers that are errors, or of a version that there is not.
        versions: how many rows each has answered.
    """

    def __init__(self, registry: Registry) -> None:
        predictor = Predictor(registry.backbone, registry)
        self.alone = {
            (f"{name}:{version}", text): predictor(f"{name}:{version}", [text])[0]
            for name, version, text in itertools.product(NAMES, range(1, VERSIONS + 1), TEXTS)
        }
        self.rows = self.moves = self.strange = 0
        self.worst = 0.0
        self.versions: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def saw_all(self) -> bool:
        """Return whether every version of every name has answered."""
        return len(self.versions) == len(NAMES) * VERSIONS

    def ask(self, client: Client, each: int) -> None:
        """Ask rows of all names by their alias, and compare the answers."""
        places = itertools.islice(itertools.cycle(itertools.product(NAMES, TEXTS)), self.rows % 7, self.rows % 7 + each)
        asked = [(f"{name}@best", text) for name, text in places]
        answers = client.answer_each(asked)
        with self._lock:
            for (_, text), answer in zip(asked, answers, strict=True):
                self.rows += 1
                alone = None if isinstance(answer, RemoteError) else self.alone.get((answer.reference, text))
                if alone is None or isinstance(answer, RemoteError) or alone.label != answer.label:
                    self.strange += 1
                    continue
                self.versions[answer.reference] += 1
                pairs = zip(alone.probabilities.values(), answer.probabilities.values(), strict=True)
                self.worst = max(self.worst, *(abs(one - other) for one, other in pairs))

    def move(self, registry: Registry, over: threading.Event) -> None:
        """Move the aliases until it is over."""
        while not over.wait(SECONDS):
            self.moves += 1
            for name in NAMES:
                registry.alias(name, "best", 1 + self.moves % VERSIONS)


def main() -> None:
    """Ask, compare, and write what was found; ends with 1 where an answer was another, or a version never answered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="at least, and until every version has answered")
    parser.add_argument("--each", type=int, default=64, help="rows of one request")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("reports"))
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_checkpoint(Path(folder) / "tiny")
        backbone = Backbone.load(str(Path(folder) / "tiny"), device="cpu")
        registry = Registry.create(Path(folder) / "store", backbone)
        for place, name in enumerate(NAMES):
            for version in range(1, VERSIONS + 1):
                save_kind(registry, name, 0, 10 * place + version)
            registry.alias(name, "best", 1)
        watcher, over, started = Watcher(registry), threading.Event(), time.monotonic()
        with Program(Path(folder) / "store", "--no-log") as program:
            moving = threading.Thread(target=watcher.move, args=(registry, over))
            moving.start()

            def ask(place: int) -> None:
                with Client(program.url, timeout=120) as client:
                    while watcher.rows < wanted.rows or not (watcher.saw_all or watcher.rows > 50 * wanted.rows):
                        watcher.ask(client, wanted.each)

            try:
                with ThreadPoolExecutor(wanted.clients) as pool:
                    list(pool.map(ask, range(wanted.clients)))
            finally:
                over.set()
                moving.join()
    found = {
        "rows": watcher.rows,
        "moves": watcher.moves,
        "seconds": round(time.monotonic() - started, 1),
        "answers_of_each_version": dict(sorted(watcher.versions.items())),
        "strange_answers": watcher.strange,
        "largest_difference": watcher.worst,
        "tolerance": TOLERANCE,
        "cores": os.cpu_count(),
        "code": code_version(),
    }
    wanted.out.mkdir(parents=True, exist_ok=True)
    (wanted.out / "serving-moving.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    sys.exit(0 if watcher.saw_all and watcher.strange == 0 and watcher.worst <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
