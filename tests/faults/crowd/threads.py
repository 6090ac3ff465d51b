"""Many threads ask one predictor while versions are added and aliases moved: each answer is that of one version."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from registry.config import AdapterConfig, HeadConfig
from registry.model.backbone import Backbone
from registry.schema import SetInfo
from registry.serving.predictor import Prediction, Predictor
from registry.store.registry import Registry
from tests.faults.states.stateful import BAD_LIMIT, scratch
from tests.faults.verdict import Verdict
from tests.support.tiny_backbone import save_tiny_checkpoint
from tests.support.toy_task import randomise

PLACEMENTS = (
    AdapterConfig(placement="after_layer", reduction_factor=8),
    AdapterConfig(placement="houlsby", reduction_factor=4, layer_norms=True),
)
HEAD = HeadConfig(label_names=tuple("abcdefgh"))
TEXTS = ("the cat was good", "a dull film", "he left. she went", "sun rain city road is small and bad")
NAMES = ("imdb", "mrpc", "sst2")
LARGEST_DIFFERENCE = 1e-5  # of a row in a mixed batch and the same row alone, in float32


@dataclass
class Asked:
    """One row, its answer, and the newest version that was there before and after the question, where asked for."""

    reference: str
    text: str
    answer: Prediction
    newest: tuple[int, int]


class Writer:
    """Somebody who saves new versions and moves the aliases to them and back.

    Attributes:
        newest: by name, of the versions whose save has returned.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.newest = dict.fromkeys(NAMES, 0)
        for name in NAMES:
            self.save(name)
            registry.alias(name, "best", 1)

    def save(self, name: str) -> None:
        """Add a version that answers like no other."""
        version = self.newest[name] + 1
        fresh = randomise(
            self.registry.backbone.new_adapter_set(PLACEMENTS[version % 2], HEAD),
            seed=version * len(NAMES) + NAMES.index(name),
        )
        saved = self.registry.save(name, fresh, SetInfo(max_length=16))
        self.newest[name] = saved.version or 0

    def go_on(self, done: Event) -> None:
        """Save and move aliases until it is ``done``."""
        for name in itertools.cycle(NAMES):
            if done.wait(0.02):
                return
            self.save(name)
            self.registry.alias(name, "best", self.newest[name] if self.newest[name] % 3 else 1)


def try_threads(folder: Path, *, threads: int = 8, requests: int = 125, seed: int = 0) -> Verdict:
    """Let threads ask for mixed sets while another saves and moves aliases; compare with one thread afterwards."""
    verdict = Verdict("each answer under threads is that of the one version it names")
    with scratch(folder) as place:
        save_tiny_checkpoint(place / "tiny")
        backbone = Backbone.load(str(place / "tiny"), device="cpu")
        registry = Registry.create(place / "store", backbone)
        writer = Writer(registry)
        predictor = Predictor(backbone, registry, capacity=60_000)  # room for about four sets
        asked: list[Asked] = []
        done = Event()
        with ThreadPoolExecutor(threads + 1) as pool:
            writing = pool.submit(writer.go_on, done)
            asking = [pool.submit(_ask, predictor, writer, requests, seed + number) for number in range(threads)]
            try:
                for each in asking:
                    asked += each.result()
            finally:
                done.set()
            writing.result()
        verdict.details["versions"] = sum(writer.newest.values())
        _judge(verdict, Predictor(backbone, registry), asked)
    return verdict


def _ask(predictor: Predictor, writer: Writer, requests: int, seed: int) -> list[Asked]:
    """Ask so many times, one row or several of different sets at once, by newest version, alias or number."""
    chance = random.Random(seed)
    asked: list[Asked] = []
    for _ in range(requests):
        rows = [(_some_reference(chance), chance.choice(TEXTS)) for _ in range(chance.choice((1, 1, 4)))]
        before = dict(writer.newest)
        answers = predictor.mixed(rows)
        for (reference, text), answer in zip(rows, answers, strict=True):
            name = _name(reference)
            asked.append(Asked(reference, text, answer, (before[name], writer.newest[name])))
    return asked


def _some_reference(chance: random.Random) -> str:
    name = chance.choice(NAMES)
    return chance.choice((name, f"{name}@best", f"{name}:1"))


def _judge(verdict: Verdict, alone: Predictor, asked: list[Asked]) -> None:
    """Compare every answer with that of the version it names, asked for by one thread."""
    named = {each.answer.reference for each in asked}
    expected = {
        (reference, text): tuple(answer.probabilities.values())
        for reference in sorted(named)
        for text, answer in zip(TEXTS, alone(reference, TEXTS), strict=True)
    }
    verdict.details["versions that answered"] = len(named)
    pairs = (itertools.combinations([expected[reference, text] for reference in named], 2) for text in TEXTS)
    nearest = min((_difference(*pair) for pair in itertools.chain(*pairs)), default=1.0)
    verdict.details["smallest difference of two versions"] = nearest  # lest one could pass for the other
    for each in asked:
        verdict.tried += 1
        difference = _difference(expected[each.answer.reference, each.text], tuple(each.answer.probabilities.values()))
        if difference > LARGEST_DIFFERENCE or not _may_answer(each):
            verdict.count("bad")
            if len(verdict.bad) < BAD_LIMIT:
                found = f"{each.answer.reference} answered, {difference:.2e} off"
                verdict.bad.append(f"'{each.text}' for {each.reference}, newest {each.newest}: {found}")


def _may_answer(asked: Asked) -> bool:
    """Return whether the version that answered is one that the reference meant at that time."""
    name, version = asked.answer.reference.split(":")
    if name != _name(asked.reference):
        return False
    if asked.reference == name:
        return asked.newest[0] <= int(version) <= asked.newest[1] + 1  # one more may be there before its save returns
    return "@" in asked.reference or asked.answer.reference == asked.reference


def _name(reference: str) -> str:
    return reference.split(":")[0].split("@")[0]


def _difference(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
