"""Answers for texts: one adapter set, or rows of different sets in one pass, in the caller's order.

A predictor keeps the sets it has used in a pool beside the one backbone. It has no current adapter: what answers
is part of every question, so threads cannot disturb each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import msgspec
import numpy
import torch
from torch import Tensor

from registry.adapters.head import label_order, mean_thresholds, probabilities_of
from registry.config import HeadConfig
from registry.errors import RegistryError, RequestError
from registry.model.backbone import Backbone
from registry.model.batching import Batch, TokenRows, sorted_batches
from registry.model.inference import EVALUATION_ROWS, EVALUATION_TOKENS, mixed_logits
from registry.schema import Manifest, join_members, members_of
from registry.serving.mixed_graphs import GraphedBatches
from registry.serving.pool import GIBIBYTE, AdapterPool, ResidentSet
from registry.store.reader import StoredVersion
from registry.store.registry import Registry
from registry.tasks.labels import BadCellError
from registry.tasks.rows import check_text
from registry.validation import require

SETS_AT_ONCE = 256  # sets of one call that are held together; only so many may exceed the pool's capacity

Read: TypeAlias = Callable[[HeadConfig, Tensor], Tensor]  # what is made of logits


@dataclass(frozen=True)
class Request:
    """One row to answer: a reference to a stored set (or several, ``a+b``), a text, and that of a pair task."""

    reference: str
    text: str
    pair: str | None = None


@dataclass(frozen=True)
class Prediction:
    """The answer to one row.

    Attributes:
        reference: the set that answered, with its version, or the sets.
        label: the most probable class; for multi-label those from their thresholds on; for regression the value.
        probabilities: by label name; for regression the value under its name.
        truncated: whether the row was cut to the set's longest length.
    """

    reference: str
    label: str | tuple[str, ...] | float
    probabilities: dict[str, float]
    truncated: bool = False


class Predictor:
    """Answers from the sets of one registry on its backbone.

    Args:
        backbone: the encoder that all sets share.
        registry: where sets come from; a bare name or an alias is looked up at every call.
        capacity: bytes of adapter sets kept in memory; beyond it the least recently used leave.
        threshold: probability from which on multi-label sets say a label, in the place of their own.
        graph_mixed: whether CUDA graphs take mixed batches too, and not only those of one set; not yet run on a GPU.

    Raises:
        ConfigError: a threshold that is no share, or a capacity below zero.
    """

    def __init__(
        self,
        backbone: Backbone,
        registry: Registry,
        *,
        capacity: int = 2 * GIBIBYTE,
        threshold: float | None = None,
        graph_mixed: bool = False,
    ) -> None:
        require(threshold is None or 0 < threshold < 1, "threshold", "a share between 0 and 1", threshold)
        self.backbone = backbone
        self.registry = registry
        self.threshold = threshold
        self.pool: AdapterPool[StoredVersion] = AdapterPool(self._load, capacity)
        self._graphs = GraphedBatches(backbone.encoder, mixed=graph_mixed)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open store and backbone again in another process, or for a copy."""
        capacity, threshold, mixed = self.pool.capacity, self.threshold, self._graphs.mixed
        again = partial(Predictor, capacity=capacity, threshold=threshold, graph_mixed=mixed)
        return again, (self.backbone, self.registry)

    def __repr__(self) -> str:
        return f"Predictor({self.registry!r})"

    async def answer(
        self, reference: str, texts: Iterable[str], pairs: Iterable[str] | None = None
    ) -> list[Prediction]:
        """Return what a call returns, from a thread, so that an event loop goes on meanwhile."""
        return await asyncio.to_thread(self, reference, texts, pairs)

    def predict_frame(self, reference: str, frame: Any, *, text: str, pair: str | None = None, prefix: str = "") -> Any:
        """Return a copy of a pandas frame with ``label`` and ``probability.NAME`` for each label, in its rows' order.

        Args:
            reference: of the set.
            frame: a ``DataFrame``.
            text, pair: its columns.
            prefix: in front of the names of added columns.

        Raises:
            RequestError: no such column, a column that is there already, or a row that cannot be answered.
        """
        for column in (text, *(() if pair is None else (pair,))):
            if column not in frame.columns:
                found = ", ".join(map(str, frame.columns))
                raise RequestError(f"answer a frame with '{reference}'", f"a column '{column}'", found)
        answers = self(reference, frame[text].tolist(), None if pair is None else frame[pair].tolist())
        added = {f"{prefix}label": [answer.label for answer in answers]}
        if answers and not isinstance(answers[0].label, float):
            for name in answers[0].probabilities:
                added[f"{prefix}probability.{name}"] = [answer.probabilities[name] for answer in answers]
        taken = [name for name in added if name in frame.columns]
        if taken:
            raise RequestError(f"answer a frame with '{reference}'", "no column called like an added one", taken[0])
        return frame.assign(**added)

    def logits(self, reference: str, texts: Iterable[str], pairs: Iterable[str] | None = None) -> numpy.ndarray:
        """Return the (R, C) float32 logits of one set, in the order of the texts and of its label names.

        Raises:
            RequestError: whatever a call raises.
        """
        rows = requests_of_texts(reference, texts, pairs)
        with self.pool.hold([self.registry.identify(reference)]) as sets:
            numbers, _ = self._numbers(rows, [0] * len(rows), sets, lambda head, logits: logits)
            labels = len(sets[0].manifest.head.label_names)
        return numpy.asarray(numbers, dtype=numpy.float32).reshape(len(rows), labels)

    def __call__(self, reference: str, texts: Iterable[str], pairs: Iterable[str] | None = None) -> list[Prediction]:
        """Return the answers of one set, one per text.

        Raises:
            RequestError: one text where several are meant, lists of unequal length, and whatever ``mixed`` raises.
        """
        return self.mixed(requests_of_texts(reference, texts, pairs))

    def mixed(self, requests: Iterable[Request | tuple[str, str] | tuple[str, str, str | None]]) -> list[Prediction]:
        """Return the answers to rows of any sets in any order, in that order.

        Args:
            requests: requests, or tuples of their fields.

        Raises:
            RequestError: a row that its set cannot answer.
            AdapterNotFoundError, IntegrityError, BackboneMismatchError: see ``Registry.load``.
        """
        rows = [each if isinstance(each, Request) else Request(*each) for each in requests]
        if any(len(members_of(row.reference)) > 1 for row in rows):
            return self._ensembled(rows)
        references = dict.fromkeys(row.reference for row in rows)
        found = {each: self.registry.identify(each) for each in references}
        answers: list[Prediction | None] = [None] * len(rows)
        keys = iter(dict.fromkeys(found.values()))
        while held := list(islice(keys, SETS_AT_ONCE)):
            place = {key: index for index, key in enumerate(held)}
            own = [index for index, row in enumerate(rows) if found[row.reference] in place]
            owners = [place[found[rows[index].reference]] for index in own]
            with self.pool.hold(held) as sets:
                for index, answer in zip(own, self._answer([rows[i] for i in own], owners, sets), strict=True):
                    answers[index] = answer
        return [answer for answer in answers if answer is not None]

    def _ensembled(self, rows: Sequence[Request]) -> list[Prediction]:
        """Return the answers to rows of which some are asked of several sets together, all of them in mixed batches."""
        members = [members_of(row.reference) for row in rows]
        manifests = {one: self.registry.manifest(one) for one in {each for own in members for each in own}}
        heads = {one: manifest.head for one, manifest in manifests.items()}
        for index, (row, own) in enumerate(zip(rows, members, strict=True)):
            label_order(row.reference, [heads[one] for one in own])
            for one in own:
                check_request(index, row, one, manifests[one])
        asked = [Request(one, row.text, row.pair) for row, own in zip(rows, members, strict=True) for one in own]
        answers = iter(self.mixed(asked))
        found = []
        for own in members:
            given = [next(answers) for _ in own]
            found.append(given[0] if len(own) == 1 else self.mean_of(own, given, [heads[one] for one in own]))
        return found

    def mean_of(self, members: Sequence[str], given: Sequence[Prediction], heads: Sequence[HeadConfig]) -> Prediction:
        """Return the one answer of several sets to a row."""
        order = label_order(join_members(members), heads)
        shares = [list(one.probabilities.values()) for one in given]
        each = [[own[place] for place in places] for own, places in zip(shares, order, strict=True)]
        reference = join_members([one.reference for one in given])
        truncated, thresholds = any(one.truncated for one in given), mean_thresholds(heads, order)
        head = msgspec.structs.replace(heads[0], thresholds=thresholds)
        return interpret(reference, head, numpy.mean(each, axis=0).tolist(), truncated, self.threshold)

    def answer_each(self, requests: Sequence[Request]) -> list[Prediction | RegistryError]:
        """Return the answers to rows of any sets, in order; a row that cannot be answered has its error instead."""
        answers: dict[int, Prediction | RegistryError] = {}
        manifests: dict[str, Manifest | RegistryError] = {}
        for index, row in enumerate(requests):
            try:
                manifest = manifests.get(row.reference) or self._find_manifest(row.reference)
                manifests[row.reference] = manifest
                if isinstance(manifest, RegistryError):
                    raise manifest
                check_request(index, row, row.reference, manifest)
            except RegistryError as err:
                answers[index] = err
        good = [index for index in range(len(requests)) if index not in answers]
        try:
            answers.update(zip(good, self.mixed([requests[index] for index in good]), strict=True))
        except RegistryError:  # a set whose files are damaged answers none of its rows, and the others answer theirs
            for reference in dict.fromkeys(requests[index].reference for index in good):
                own = [index for index in good if requests[index].reference == reference]
                answers.update(zip(own, self._answers_or_error([requests[index] for index in own]), strict=True))
        return [answers[index] for index in range(len(requests))]

    def _find_manifest(self, reference: str) -> Manifest | RegistryError:
        try:
            manifests = [self.registry.manifest(one) for one in members_of(reference)]
            label_order(reference, [manifest.head for manifest in manifests])
            return manifests[0]
        except RegistryError as err:
            return err

    def _answers_or_error(self, requests: Sequence[Request]) -> Sequence[Prediction | RegistryError]:
        try:
            return self.mixed(requests)
        except RegistryError as err:
            return [err] * len(requests)

    def _answer(self, rows: Sequence[Request], owners: Sequence[int], sets: Sequence[ResidentSet]) -> list[Prediction]:
        """Return the answers of ``sets`` to rows of which the i-th belongs to ``sets[owners[i]]``."""
        numbers, truncated = self._numbers(rows, owners, sets, probabilities_of)
        each = zip(owners, numbers, truncated, strict=True)
        return [
            interpret(sets[owner].reference, sets[owner].manifest.head, probabilities, cut, self.threshold)
            for owner, probabilities, cut in each
        ]

    def _numbers(
        self, rows: Sequence[Request], owners: Sequence[int], sets: Sequence[ResidentSet], read: Read
    ) -> tuple[list[list[float]], list[bool]]:
        """Return what ``read`` makes of the logits of each row, and whether the row was cut."""
        tokens, truncated = self._tokenize(rows, [sets[owner] for owner in owners])
        numbers: list[list[float]] = [[]] * len(rows)
        for indices in sorted_batches(tokens.lengths, EVALUATION_TOKENS[self.backbone.device.type], EVALUATION_ROWS):
            for place, answer in self.batch_numbers(tokens.take(indices), [owners[i] for i in indices], sets, read):
                numbers[indices[place]] = answer
        return numbers, truncated

    @torch.inference_mode()
    def batch_numbers(
        self, rows: TokenRows, owners: Sequence[int], sets: Sequence[ResidentSet], read: Read
    ) -> Iterable[tuple[int, list[float]]]:
        """Return what ``read`` makes of the logits of each row of one batch, and its place among the rows."""
        answered = self._graphs.logits(sets, owners, rows)
        if answered is None:
            batch = Batch.pack(rows, owners, self.backbone.device)
            order = batch.order.tolist()
            packed = mixed_logits(self.backbone.encoder, sets, batch)
            answered = {owner: ([order[row] for row in own], logits) for owner, (own, logits) in packed.items()}
        answers: list[tuple[int, list[float]]] = []
        for owner, (own, logits) in answered.items():
            answers += zip(own, read(sets[owner].manifest.head, logits).tolist(), strict=True)
        return answers

    def _tokenize(self, rows: Sequence[Request], owners: Sequence[ResidentSet]) -> tuple[TokenRows, list[bool]]:
        """Return the token rows of all requests and whether each was cut, tokenizing sets of one kind together."""
        groups: dict[tuple[int, bool], list[int]] = {}
        for index, (row, owner) in enumerate(zip(rows, owners, strict=True)):
            check_request(index, row, owner.reference, owner.manifest)
            groups.setdefault((owner.manifest.max_length, row.pair is not None), []).append(index)
        input_ids: list[Sequence[int]] = [()] * len(rows)
        type_ids: list[Sequence[int]] = [()] * len(rows)
        truncated = [False] * len(rows)
        for (max_length, paired), indices in groups.items():
            texts = [rows[i].text for i in indices]
            pairs = [rows[i].pair or "" for i in indices] if paired else None
            tokens = self.backbone.tokenize(texts, pairs, max_length)
            for place, index in enumerate(indices):
                input_ids[index], type_ids[index] = tokens.input_ids[place], tokens.type_ids[place]
                truncated[index] = place in tokens.truncated_rows
        return TokenRows(input_ids, type_ids), truncated

    def _load(self, key: StoredVersion) -> ResidentSet:
        exact = f"{key.name}:{key.version}"
        return ResidentSet(exact, self.registry.manifest(exact), self.registry.load(exact), self.backbone.dtype)


def requests_of_texts(reference: str, texts: Iterable[str], pairs: Iterable[str] | None) -> list[Request]:
    """Return a request for each text.

    Raises:
        RequestError: one text where several are meant, or lists of unequal length.
    """
    if isinstance(texts, str) or isinstance(pairs, str):
        raise RequestError(f"answer with '{reference}'", "a list of texts, [text] for one", "a text")
    texts, pairs = list(texts), None if pairs is None else list(pairs)
    if pairs is not None and len(pairs) != len(texts):
        raise RequestError(f"answer with '{reference}'", f"{len(texts)} second texts", str(len(pairs)))
    seconds: Sequence[str | None] = pairs if pairs is not None else [None] * len(texts)
    return [Request(reference, text, pair) for text, pair in zip(texts, seconds, strict=True)]


def check_request(index: int, row: Request, reference: str, manifest: Manifest) -> None:
    """Raise RequestError where a set of this manifest cannot answer the ``index``-th row of a question."""
    attempted = f"answer row {index} with '{reference}'"
    for text in (row.text, *(() if row.pair is None else (row.pair,))):
        try:
            check_text(text)
        except BadCellError as err:
            raise RequestError(attempted, err.expected, err.found) from err
    if manifest.pair is True and row.pair is None:
        raise RequestError(attempted, "two texts, as its task is on pairs", "one")
    if manifest.pair is False and row.pair is not None:
        raise RequestError(attempted, "one text, as its task is on single texts", "two")


def interpret(
    reference: str, head: HeadConfig, numbers: Sequence[float], truncated: bool, threshold: float | None
) -> Prediction:
    """Return the answer that a head's probabilities, or values, are."""
    probabilities = dict(zip(head.label_names, numbers, strict=True))
    label: str | tuple[str, ...] | float
    if head.problem_type == "regression":
        label = numbers[0]
    elif head.problem_type == "multi_label":
        own = head.thresholds or (0.5,) * len(numbers)
        least = own if threshold is None else (threshold,) * len(numbers)
        each = zip(head.label_names, numbers, least, strict=True)
        label = tuple(name for name, share, enough in each if share >= numpy.float32(enough))
    else:
        label = max(probabilities, key=lambda name: probabilities[name])
    return Prediction(reference, label, probabilities, truncated)
