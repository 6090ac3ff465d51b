"""Several adapter sets in one batch: every row goes through its own set, and comes back in the caller's order.

A mixed batch equals the single-task answers. Sets of one kind at a seam are computed together, as are the changes of a
product; the cost follows the distinct sets in the batch, and nothing here depends on how many exist beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from registry.adapters.formulas import join, join_alone
from registry.adapters.interface import Change, Kind, Map, Parts, Place, Prefix, Seam, SetAdapter, Squeeze
from registry.model.batching import Batch
from registry.model.grouped import Grouping, Indices, group_sets


class MixedAdapters:
    """Several sets in one batch: each row goes through its own set.

    Args:
        sets: what the batch's owners count in.
        batch: whose rows they are for.
        row_states: how many states each row has, where it is not one for each token.
    """

    def __init__(self, sets: Sequence[SetAdapter], batch: Batch, row_states: Sequence[int] | None = None) -> None:
        self._sets, self._batch = sets, batch
        self._device = batch.input_ids.device
        owner_of_state = numpy.repeat(batch.owners, batch.row_tokens if row_states is None else row_states)
        self._states = {owner: numpy.flatnonzero(owner_of_state == owner) for owner in dict.fromkeys(batch.owners)}
        self._divided: dict[tuple[Kind, ...], tuple[list[_Part], Tensor | None]] = {}
        self._members: dict[tuple[int, ...], _Members] = {}

    def on_rows(self) -> MixedAdapters:
        """Return the same for (B, H) states, one of each row."""
        return MixedAdapters(self._sets, self._batch, [1] * len(self._batch.owners))

    def product(self, layer: int, parts: Parts, x: Tensor, frozen: Map) -> Tensor:
        """Return the (N, out) results of frozen products, each state's with its own set's change."""
        found = {owner: self._sets[owner].change(layer, parts) for owner in self._states}
        changes = {owner: change for owner, change in found.items() if change is not None}
        if not changes:
            return frozen(x)
        entering = self._scaled(x, {owner: one.scale_in for owner, one in changes.items()})
        y = self._scaled(frozen(entering), {owner: one.scale_out for owner, one in changes.items()})
        biases = {owner: one.bias for owner, one in changes.items() if one.bias is not None}
        if biases:
            members = self._of(tuple(biases))
            y = y.index_add(0, members.places, members.of_states(list(biases.values())).to(y.dtype))
        return self._squeezed(changes, x, y)

    def prefix(self, layer: int, rows: int) -> Prefix | None:
        """Return each row's own set's keys and values."""
        own = {owner: self._sets[owner].keys_and_values(layer) for owner in self._states}
        found = [own[owner] for owner in self._batch.owners]
        there = [each for each in found if each is not None]
        if not there:
            return None
        counts = tuple(0 if each is None else len(each[0]) for each in found)
        return Prefix(torch.cat([keys for keys, _ in there]), torch.cat([values for _, values in there]), counts)

    def join(self, layer: int, place: Place, sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the (N, H) states after one add-and-norm step, kind by kind."""
        seams = {owner: self._sets[owner].seam(layer, place) for owner in self._states}
        kinds = tuple(seam.kind for seam in seams.values())
        if kinds not in self._divided:
            self._divided[kinds] = self._divide(kinds)
        parts, back = self._divided[kinds]
        joined = [part.join(seams, sub, residual, norm) for part in parts]
        return joined[0] if back is None else torch.cat(joined).index_select(0, back)

    def _scaled(self, x: Tensor, scales: Mapping[int, Tensor | None]) -> Tensor:
        """Return the states, those of sets with a scale multiplied by it."""
        own = {owner: scale for owner, scale in scales.items() if scale is not None}
        if not own:
            return x
        members = self._of(tuple(own))
        scaled = x.index_select(0, members.places) * members.of_states(list(own.values()))
        return x.index_copy(0, members.places, scaled.to(x.dtype))

    def _squeezed(self, changes: Mapping[int, Change], x: Tensor, y: Tensor) -> Tensor:
        """Return the results of a product with the sets' low-rank changes, sets of one activation together."""
        kinds: dict[str, dict[int, Squeeze]] = {}
        for owner, change in changes.items():
            if change.squeeze is not None:
                kinds.setdefault(change.squeeze.activation, {})[owner] = change.squeeze
        for squeezes in kinds.values():
            members, own = self._of(tuple(squeezes)), list(squeezes.values())
            if len(squeezes) == len(self._states):
                y = y + members.squeeze(x, own)
            else:
                y = y.index_add(0, members.places, members.squeeze(x.index_select(0, members.places), own))
        return y

    def _of(self, owners: tuple[int, ...]) -> _Members:
        """Return where the states of some sets are."""
        if owners not in self._members:
            states = {owner: self._states[owner] for owner in owners}
            self._members[owners] = _Members(states, len(owners) == len(self._states), self._device)
        return self._members[owners]

    def _divide(self, kinds: Sequence[Kind]) -> tuple[list[_Part], Tensor | None]:
        """Return the parts of the batch, one for each kind, and where each state is in their concatenation."""
        owners: dict[tuple[Kind, int | None], list[int]] = {}
        for owner, kind in zip(self._states, kinds, strict=True):
            owners.setdefault((kind, owner if kind.is_fused else None), []).append(owner)
        parts = [_Part(kind, tuple(own), self._of(tuple(own))) for (kind, _), own in owners.items()]
        if len(parts) == 1:
            return parts, None
        places = torch.cat([part.members.places for part in parts])
        return parts, torch.argsort(places)


class _Members:
    """Where the states of some of a batch's sets are.

    Args:
        states: the places of each set's states in the batch.
        is_all: whether these are all of the batch.
        device: where the batch is.
    """

    def __init__(self, states: Mapping[int, Indices], is_all: bool, device: torch.device) -> None:
        taken = numpy.sort(numpy.concatenate(list(states.values())))
        self.is_all, self._device = is_all, device
        self.places = torch.from_numpy(taken).to(device)  # (n,) rising
        self._own = list(states.values()) if is_all else [numpy.searchsorted(taken, own) for own in states.values()]
        self._plan: Grouping | None = None
        self._set_of_state: Tensor | None = None

    def squeeze(self, states: Tensor, squeezes: Sequence[Squeeze]) -> Tensor:
        """Return what each of the (n, in) states' own set adds to it."""
        if self._plan is None:
            self._plan = group_sets(self._own, self._device, squeezes[0].weights)
        return self._plan.squeeze(states, squeezes)

    def of_states(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return (n, wide) of each state the vector of its own set."""
        if self._set_of_state is None:
            sets = numpy.repeat(numpy.arange(len(self._own)), [len(own) for own in self._own])
            order = numpy.argsort(numpy.concatenate(self._own))
            self._set_of_state = torch.from_numpy(sets[order]).to(self._device)
        return torch.stack(list(vectors)).index_select(0, self._set_of_state)


class _Part:
    """The sets of one kind at a seam, and where their states are."""

    def __init__(self, kind: Kind, owners: tuple[int, ...], members: _Members) -> None:
        self.kind, self.owners, self.members = kind, owners, members

    def join(self, seams: Mapping[int, Seam], sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the (n, H) states of this part after one add-and-norm step."""
        own = [seams[owner] for owner in self.owners]
        if not self.members.is_all:
            sub, residual = (states.index_select(0, self.members.places) for states in (sub, residual))
        if len(own) == 1:
            return join_alone(own[0], sub, residual, norm)
        normalise = partial(self._norm_each, seams=own, eps=norm.eps) if self.kind.has_norm else norm
        squeezes = [seam.squeeze for seam in own if seam.squeeze is not None]
        joined = join(self.kind, sub, residual, normalise, lambda states: self.members.squeeze(states, squeezes))
        shifts = [seam.shift for seam in own if seam.shift is not None]
        return joined if not shifts else (joined + self.members.of_states(shifts)).to(joined.dtype)

    def _norm_each(self, hidden: Tensor, seams: Sequence[Seam], eps: float) -> Tensor:
        """Return the states normalised in float32, each with the weights of its own set."""
        own_norms = [seam.norm for seam in seams if seam.norm is not None]
        weight, bias = (self.members.of_states(tensors) for tensors in zip(*own_norms, strict=True))  # (n, H)
        normed = F.layer_norm(hidden.float(), hidden.shape[-1:], eps=eps)
        return (normed * weight + bias).to(hidden.dtype)
