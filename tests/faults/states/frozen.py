"""A state machine over one frozen backbone: whatever is trained, switched, loaded or fails, it stays as it was.

After each step the backbone's fingerprint is taken anew from the bytes of its live parameters, and its answers without
adapters and with the set that was there first are compared bit for bit with those of the beginning.
"""

from __future__ import annotations

import copy
import hashlib
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.config import AdapterConfig, HeadConfig, TrainingConfig
from registry.errors import BackboneMismatchError, NonFiniteLossError, RegistryError, TrainingInterrupted
from registry.model.backbone import Backbone
from registry.model.batching import Batch
from registry.model.inference import LabelledRows, logits_of, mixed_logits, predict_probabilities
from registry.schema import SetInfo
from registry.serving.predictor import Predictor
from registry.store.errors import ArchiveError, IntegrityError, ManifestError
from registry.store.manifest import ADAPTER_FILE, HEAD_FILE
from registry.store.reader import MANIFEST_FILE
from registry.store.registry import Registry
from registry.store.tensors import load_set
from registry.training.loop import train, train_together
from registry.training.state import StepReport, TrainingJob
from tests.faults.states.stateful import agree, damage_file, refused, run_machine, scratch
from tests.faults.verdict import Verdict
from tests.support.stored_sets import reseal
from tests.support.tiny_backbone import save_tiny_checkpoint
from tests.support.toy_task import same_weights, stop_at, toy_rows

PLACEMENTS = (
    AdapterConfig(placement="after_layer", reduction_factor=8),
    AdapterConfig(placement="houlsby", reduction_factor=4, layer_norms=True, dropout=0.1),
    AdapterConfig(placement="pfeiffer", reduction_factor=8, layers=(1,)),
    AdapterConfig(placement="parallel", reduction_factor=4, scale=2.0),
)
HEADS = (
    HeadConfig(label_names=("bad", "good"), dropout=0.1),
    HeadConfig(label_names=("bad", "good"), form="dense_tanh", pooling="cls"),
)
TRAINING = TrainingConfig(epochs=1, batch_size=4, learning_rate=5e-3, max_length=16)
TEXTS = ("the cat was good", "a dull film", "he left. she went", "sun rain city road is small and bad")
NAMES = ("imdb", "mrpc")

picks = st.integers(0, 40)


class InjectedError(Exception):
    """Something that goes wrong in the middle of a forward or of a training."""


@dataclass
class Beginning:
    """What a backbone was and answered before anything was done with it."""

    backbone: Backbone
    other: Backbone  # of the same shapes, with other weights
    rows: LabelledRows
    batch: Batch
    fingerprint: str
    states: Tensor  # (N, H) without adapters
    sets: list[AdapterSet]
    logits: list[Tensor]  # (B, C) of each set, in packed order

    @classmethod
    def of(cls, folder: Path) -> Beginning:
        """Make a tiny backbone, and train a set of each placement on it."""
        for seed in range(2):
            save_tiny_checkpoint(folder / f"tiny-{seed}", seed=seed)
        backbone, other = (Backbone.load(str(folder / f"tiny-{seed}"), device="cpu") for seed in range(2))
        rows = toy_rows(backbone, 8)
        batch = Batch.pack(backbone.tokenize(TEXTS, max_length=16))
        fingerprint, states = live_fingerprint(backbone), plain_states(backbone, batch)
        sets = [backbone.new_adapter_set(PLACEMENTS[i], HEADS[i % 2], seed=i) for i in range(len(PLACEMENTS))]
        for adapter_set in sets:
            train(backbone.encoder, adapter_set, rows, TRAINING)
        logits = [answers(backbone, adapter_set, batch) for adapter_set in sets]
        return cls(backbone, other, rows, batch, fingerprint, states, sets, logits)


def try_frozen(folder: Path, *, runs: int = 50, steps: int = 30, seed: int = 0) -> Verdict:
    """Do ``steps`` random things with each of ``runs`` stores on one backbone, and look at it after every step."""
    verdict = Verdict("training, switching and failures change neither the backbone nor what a set answers")
    with scratch(folder) as place:
        beginning = Beginning.of(place)

        def make() -> FrozenMachine:
            nonlocal beginning
            if live_fingerprint(beginning.backbone) != beginning.fingerprint:  # a run before this one broke it
                beginning = Beginning.of(place)
            return FrozenMachine(place, beginning, verdict)

        run_machine(make, verdict, runs=runs, steps=steps, seed=seed)
    return verdict


class FrozenMachine(RuleBasedStateMachine):
    """One store of sets that are trained, saved and used on one backbone.

    Args:
        folder: where the store of this run lives; it is removed afterwards.
        beginning: shared by all runs, as nothing changes it.
        verdict: gets a case for each step that was judged.
    """

    def __init__(self, folder: Path, beginning: Beginning, verdict: Verdict) -> None:
        super().__init__()
        self.verdict, self.beginning, self.backbone = verdict, beginning, beginning.backbone
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.registry = Registry.create(self.folder / "store", self.backbone)
        self.predictor = Predictor(self.backbone, self.registry, capacity=12_000)  # room for one or two sets
        self.current = list(beginning.sets)
        self.stored: dict[str, AdapterSet] = {}
        self._keep(str(self.registry.save(NAMES[0], self.current[0], SetInfo(max_length=16))), self.current[0])

    def teardown(self) -> None:
        """Remove the store."""
        shutil.rmtree(self.folder)

    @rule(pick=picks, together=st.booleans())
    def learn(self, pick: int, together: bool) -> None:
        """Train a new set, or two in one pass."""
        self.verdict.count("trained")
        fresh = [self._fresh(pick + i) for i in range(1 + together)]
        if together:
            train_together(self.backbone.encoder, [TrainingJob(one, self.beginning.rows, TRAINING) for one in fresh])
        else:
            train(self.backbone.encoder, fresh[0], self.beginning.rows, TRAINING)
        self.current = [*self.current[-3:], *fresh]

    @rule(pick=picks)
    def fine_tune_a_copy(self, pick: int) -> None:
        """Train an unfrozen copy of the encoder: the backbone itself does not learn."""
        self.verdict.count("fine-tuned a copy")
        train(self.backbone.unfrozen_copy(), self._fresh(pick), self.beginning.rows, TRAINING)

    @rule(
        pick=picks, how=st.sampled_from(["diverges", "is stopped", "raises", "is interrupted", "raises in a forward"])
    )
    def fail_to_learn(self, pick: int, how: str) -> None:
        """Start a training that ends in an error between or inside two steps."""
        self.verdict.count(f"training that {how}")
        fresh, seen = self._fresh(pick), list[int]()
        if how == "diverges":
            with torch.no_grad():
                fresh.head.out.weight.fill_(math.nan)
            self._ends_with(NonFiniteLossError, lambda: self._train(fresh))
        elif how == "is stopped":
            self._ends_with(TrainingInterrupted, lambda: self._train(fresh, should_stop=stop_at(1, seen)))
        elif how == "raises in a forward":
            fresh.adapter.join = raise_at(fresh.adapter.join, 1)  # type: ignore[method-assign]
            self._ends_with(InjectedError, lambda: self._train(fresh))
        else:
            error = InjectedError() if how == "raises" else KeyboardInterrupt()

            def observe(report: StepReport) -> None:
                raise error

            self._ends_with(type(error), lambda: self._train(fresh, observe=observe))

    @rule(layer=st.integers(0, 1))
    def fail_in_a_forward(self, layer: int) -> None:
        """Raise while a batch is between two layers."""
        self.verdict.count("forward that raises")
        adapter = copy.copy(self.beginning.sets[1].adapter)
        adapter.join = raise_at(adapter.join, layer)  # type: ignore[method-assign]
        self._ends_with(InjectedError, lambda: self.backbone(self.beginning.batch, adapter))

    @rule(a=picks, b=picks)
    def switch(self, a: int, b: int) -> None:
        """Answer with A, with B and with A again: the second answer of A is the first one, bit for bit."""
        self.verdict.count("switched")
        self.backbone.train()  # stays as it is
        first, other = self.current[a % len(self.current)], self.current[b % len(self.current)]
        before, _, after = (answers(self.backbone, each, self.beginning.batch) for each in (first, other, first))
        agree(True, torch.equal(before, after), "A's logits after B")

    @rule(owners=st.lists(st.integers(0, 3), min_size=4, max_size=4))
    def mix(self, owners: list[int]) -> None:
        """Answer one batch with rows of several sets: each row gets what its set alone answers."""
        self.verdict.count("mixed")
        batch = Batch.pack(self.backbone.tokenize(TEXTS, max_length=16), owners)
        with torch.inference_mode():
            mixed = mixed_logits(self.backbone.encoder, self.beginning.sets, batch)
        order, alone_order = batch.order.tolist(), self.beginning.batch.order.tolist()
        for owner, (packed, logits) in mixed.items():
            alone = dict(zip(alone_order, self.beginning.logits[owner], strict=True))
            for row, found in zip(packed, logits, strict=True):
                agree(True, torch.allclose(alone[order[row]], found, atol=1e-5), f"row {order[row]} of set {owner}")

    @rule(name=st.sampled_from(NAMES), pick=picks)
    def save(self, name: str, pick: int) -> None:
        """Store one of the present sets."""
        self.verdict.count("saved")
        chosen = self.current[pick % len(self.current)]
        self._keep(str(self.registry.save(name, chosen, SetInfo(max_length=16))), chosen)

    @precondition(lambda self: self.stored)
    @rule(pick=picks)
    def load(self, pick: int) -> None:
        """Load a stored set: it has the weights that were saved."""
        self.verdict.count("loaded")
        reference = self._pick(pick)
        loaded = self.registry.load(reference)
        agree(True, same_weights(self.stored[reference], loaded), f"the weights of {reference}")
        self.current = [*self.current[-3:], loaded]

    @precondition(lambda self: self.stored)
    @rule(pick=picks, file=st.sampled_from([MANIFEST_FILE, ADAPTER_FILE, HEAD_FILE]), how=st.integers(0, 4), at=picks)
    def fail_to_load(self, pick: int, file: str, how: int, at: int) -> None:
        """Try to load a set that is damaged, of other shapes, or of another backbone."""
        self.verdict.count("failed loads")
        reference = self._pick(pick)
        name, version = self.registry.store.resolve(reference)
        refused(BackboneMismatchError, lambda: load_set(self.registry.store, name, version, self.beginning.other.info))
        path = self.registry.store.folder(name, version) / file
        held = path.read_bytes()
        if file == MANIFEST_FILE and how % 2:
            reseal(path, lambda plain: plain["adapter"].update(reduction_factor=2))
        else:
            damage_file(path, how, at)
        try:
            self._refused_in_the_store(lambda: self.registry.load(reference))
            self._refused_in_the_store(lambda: Predictor(self.backbone, self.registry)(reference, TEXTS))
            agree([reference], [each.reference for each in self.registry.verify()], "what verify complains of")
        finally:
            path.write_bytes(held)
        agree([], self.registry.verify(), "what verify complains of")

    @precondition(lambda self: self.stored)
    @rule(pick=picks, to=st.sampled_from([None, *NAMES]), damaged=st.booleans())
    def carry(self, pick: int, to: str | None, damaged: bool) -> None:
        """Export a set and import it, under its own name or another; a changed file adds nothing."""
        self.verdict.count("exported and imported")
        reference = self._pick(pick)
        path = self.registry.export_set(reference, self.folder / "one.adapter", overwrite=True)
        if damaged:
            damage_file(path, 0, 997 * pick)
            refused(ArchiveError, lambda: self.registry.import_set(path, to), naming=path)
        else:
            self._keep(str(self.registry.import_set(path, to)), self.stored[reference])

    @precondition(lambda self: len(self.stored) > 1)
    @rule(pick=picks)
    def remove(self, pick: int) -> None:
        """Remove a stored set."""
        self.verdict.count("removed")
        reference = self._pick(pick)
        self.registry.remove(reference)
        del self.stored[reference]

    @precondition(lambda self: self.stored)
    @rule(chosen=st.lists(picks, min_size=1, max_size=4), wrong=st.booleans())
    def predict(self, chosen: list[int], wrong: bool) -> None:
        """Ask the predictor, whose pool is too small for all, about rows of several sets."""
        self.verdict.count("predicted")
        requests = [(self._pick(pick), TEXTS[pick % len(TEXTS)]) for pick in chosen]
        if wrong:
            self._ends_with(RegistryError, lambda: self.predictor.mixed([*requests, ("nobody", "text")]))
        for (reference, text), answer in zip(requests, self.predictor.mixed(requests), strict=True):
            rows = self.backbone.tokenize([text], max_length=16)
            expected = torch.from_numpy(predict_probabilities(self.backbone.encoder, self.stored[reference], rows))[0]
            found = torch.tensor(list(answer.probabilities.values()))
            agree(reference, answer.reference, "who answered")
            agree(True, torch.allclose(expected, found, atol=1e-5), f"the answer of {reference}")

    @invariant()
    def backbone_is_untouched(self) -> None:
        """The live parameters have the same bytes, and all answers are those of the beginning, bit for bit."""
        self.verdict.tried += 1
        beginning = self.beginning
        agree(beginning.fingerprint, live_fingerprint(self.backbone), "the fingerprint of the live parameters")
        agree(True, torch.equal(beginning.states, plain_states(self.backbone, beginning.batch)), "states as at first")
        first = answers(self.backbone, beginning.sets[1], beginning.batch)
        agree(True, torch.equal(beginning.logits[1], first), "A's logits as at first")

    def _fresh(self, pick: int) -> AdapterSet:
        return self.backbone.new_adapter_set(PLACEMENTS[pick % 4], HEADS[pick % 2], seed=pick)

    def _train(self, fresh: AdapterSet, **options: Callable[..., object]) -> None:
        train(self.backbone.encoder, fresh, self.beginning.rows, TRAINING, **options)  # type: ignore[arg-type]

    def _keep(self, reference: str, adapter_set: AdapterSet) -> None:
        agree(False, reference in self.stored, f"'{reference}' was there before")
        self.stored[reference] = copy.deepcopy(adapter_set)

    def _pick(self, pick: int) -> str:
        return sorted(self.stored)[pick % len(self.stored)]

    def _refused_in_the_store(self, act: Callable[[], object]) -> None:
        self._ends_with((ManifestError, IntegrityError), act)

    def _ends_with(
        self, kind: type[BaseException] | tuple[type[BaseException], ...], act: Callable[[], object]
    ) -> None:
        try:
            act()
        except kind:
            return
        agree(kind, "nothing", "what was raised")


def live_fingerprint(backbone: Backbone) -> str:
    """Return a SHA-256 over every tensor of the encoder as it is in memory now, and over what could train of it."""
    digest = hashlib.sha256()
    tensors = {**dict(backbone.encoder.named_parameters()), **dict(backbone.encoder.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        told = f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad} {tensor.grad is None}"
        digest.update(told.encode() + tensor.detach().contiguous().numpy().tobytes())
    digest.update(repr([name for name, module in backbone.named_modules() if module.training]).encode())
    return digest.hexdigest()


@torch.inference_mode()
def plain_states(backbone: Backbone, batch: Batch) -> Tensor:
    """Return the (N, H) states without adapters."""
    states: Tensor = backbone(batch)
    return states


@torch.inference_mode()
def answers(backbone: Backbone, adapter_set: AdapterSet, batch: Batch) -> Tensor:
    """Return the (B, C) logits of a set in packed order."""
    return logits_of(backbone.encoder, adapter_set.eval(), batch)


def raise_at(join: Callable[..., Tensor], layer: int) -> Callable[..., Tensor]:
    """Return a ``join`` that raises InjectedError in one layer."""

    def broken(at: int, *arguments: object) -> Tensor:
        if at == layer:
            raise InjectedError
        return join(at, *arguments)

    return broken
