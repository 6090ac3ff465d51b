"""Answers for texts: one adapter set, or rows of different sets in one pass, in the caller's order.

A predictor keeps the sets it has used in memory beside the one backbone. It has no current adapter: what answers
is part of every question, so threads cannot disturb each other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from registry.adapters import AdapterSet
from registry.backbone import Backbone
from registry.batching import Batch, TokenRows, sorted_batches
from registry.errors import RequestError
from registry.evaluation import EVALUATION_ROWS, EVALUATION_TOKENS, probabilities_of
from registry.mixing import MixedAdapters
from registry.registry import Registry
from registry.schema import HeadConfig, Manifest


@dataclass(frozen=True)
class Request:
    """One row to answer: a reference to a stored set, a text, and the second text of a pair task."""

    reference: str
    text: str
    pair: str | None = None


@dataclass(frozen=True)
class Prediction:
    """The answer to one row.

    Attributes:
        reference: the set that answered, with its version.
        label: the most probable class; for multi-label the classes above one half; for regression the value.
        probabilities: by label name; for regression the value under its name.
        truncated: whether the row was cut to the set's longest length.
    """

    reference: str
    label: str | tuple[str, ...] | float
    probabilities: dict[str, float]
    truncated: bool = False


@dataclass(frozen=True, eq=False)
class _Resident:
    """A stored set in memory; ``stamp`` tells it from another that took its version's place."""

    reference: str
    stamp: tuple[int, int]
    manifest: Manifest
    adapter_set: AdapterSet


class Predictor:
    """Answers from the sets of one registry on its backbone.

    Args:
        backbone: the encoder that all sets share.
        registry: where sets come from; a bare name or an alias is looked up at every call.
    """

    def __init__(self, backbone: Backbone, registry: Registry) -> None:
        self.backbone = backbone
        self.registry = registry
        self._resident: dict[tuple[str, int], _Resident] = {}
        self._loading = threading.Lock()

    def __call__(self, reference: str, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Prediction]:
        """Return the answers of one set, one per text.

        Raises:
            RequestError: no text, a pair for a single-sentence set or the reverse, or lists of unequal length.
            AdapterNotFoundError, IntegrityError, BackboneMismatchError: see ``Registry.load``.
        """
        if pairs is not None and len(pairs) != len(texts):
            raise RequestError(f"answer with '{reference}'", f"{len(texts)} second texts", str(len(pairs)))
        seconds: Sequence[str | None] = pairs if pairs is not None else [None] * len(texts)
        return self.mixed([(reference, text, pair) for text, pair in zip(texts, seconds, strict=True)])

    def mixed(self, requests: Sequence[Request | tuple[str, str] | tuple[str, str, str | None]]) -> list[Prediction]:
        """Return the answers to rows of any sets in any order, in that order.

        Args:
            requests: requests, or tuples of their fields.

        Raises:
            RequestError: a row that its set cannot answer.
            AdapterNotFoundError, IntegrityError, BackboneMismatchError: see ``Registry.load``.
        """
        rows = [each if isinstance(each, Request) else Request(*each) for each in requests]
        found = {reference: self._load(reference) for reference in dict.fromkeys(row.reference for row in rows)}
        sets = list(dict.fromkeys(found.values()))
        place = {resident: index for index, resident in enumerate(sets)}
        owners = [place[found[row.reference]] for row in rows]
        tokens, truncated = self._tokenize(rows, [sets[owner] for owner in owners])
        answers: list[Prediction | None] = [None] * len(rows)
        lengths = [len(ids) for ids in tokens.input_ids]
        for indices in sorted_batches(lengths, EVALUATION_TOKENS[self.backbone.device.type], EVALUATION_ROWS):
            batch_owners = [owners[i] for i in indices]
            for index, owner, numbers in zip(
                indices, batch_owners, self._answer(tokens.take(indices), batch_owners, sets), strict=True
            ):
                answers[index] = _interpret(sets[owner], numbers, truncated[index])
        return [answer for answer in answers if answer is not None]

    @torch.inference_mode()
    def _answer(self, tokens: TokenRows, owners: Sequence[int], sets: Sequence[_Resident]) -> list[list[float]]:
        """Return the probabilities of each row, in the order of ``tokens``, from one pass of the backbone."""
        batch = Batch.pack(tokens, owners, self.backbone.device)
        adapters = MixedAdapters([resident.adapter_set for resident in sets], batch.segments)
        hidden = self.backbone(batch, adapters)  # (N, H)
        pooled: dict[str, Tensor] = {}
        packed: list[list[float]] = []
        for segment in batch.segments:
            adapter_set = sets[segment.adapter_index].adapter_set
            head = adapter_set.head_config
            if head.pooling not in pooled:
                pooled[head.pooling] = self.backbone.encoder.pool(hidden, batch, head.pooling)  # (B, H)
            logits = adapter_set.head(pooled[head.pooling][segment.rows])  # (rows, C)
            packed += probabilities_of(head.problem_type, logits).float().cpu().tolist()
        answers: list[list[float]] = [[] for _ in packed]
        for position, index in enumerate(batch.order.tolist()):
            answers[index] = packed[position]
        return answers

    def _tokenize(self, rows: Sequence[Request], owners: Sequence[_Resident]) -> tuple[TokenRows, list[bool]]:
        """Return the token rows of all requests and whether each was cut, tokenizing sets of one kind together."""
        groups: dict[tuple[int, bool], list[int]] = {}
        for index, (row, owner) in enumerate(zip(rows, owners, strict=True)):
            _check_request(row, owner)
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

    def _load(self, reference: str) -> _Resident:
        name, version = self.registry.catalog.resolve(reference)
        stamp = _stamp(self.registry.catalog.folder(name, version))
        with self._loading:
            resident = self._resident.get((name, version))
            if resident is None or resident.stamp != stamp:
                exact = f"{name}:{version}"
                manifest, adapter_set = self.registry.manifest(exact), self.registry.load(exact)
                resident = _Resident(exact, stamp, manifest, adapter_set.requires_grad_(False))
                self._resident[name, version] = resident
            return resident


def _stamp(folder: Path) -> tuple[int, int]:
    """Return what changes when a name is removed and saved again, as its versions then count from 1 anew."""
    try:
        status = os.stat(folder)
    except FileNotFoundError:  # removed just now; loading it says so
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def _check_request(row: Request, owner: _Resident) -> None:
    attempted = f"answer with '{owner.reference}'"
    for text in (row.text, row.pair):
        if text is not None and not text.strip():
            raise RequestError(attempted, "a text", "an empty one")
        if text is not None and not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise RequestError(attempted, "a text", "half a character (a lone surrogate)")
    if owner.manifest.pair is True and row.pair is None:
        raise RequestError(attempted, "two texts, as its task is on pairs", "one")
    if owner.manifest.pair is False and row.pair is not None:
        raise RequestError(attempted, "one text, as its task is on single texts", "two")


def _interpret(owner: _Resident, numbers: Sequence[float], truncated: bool) -> Prediction:
    head: HeadConfig = owner.adapter_set.head_config
    probabilities = dict(zip(head.label_names, numbers, strict=True))
    label: str | tuple[str, ...] | float
    if head.problem_type == "regression":
        label = numbers[0]
    elif head.problem_type == "multi_label":
        label = tuple(name for name, share in probabilities.items() if share >= 0.5)
    else:
        label = max(probabilities, key=lambda name: probabilities[name])
    return Prediction(owner.reference, label, probabilities, truncated)
