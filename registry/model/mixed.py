"""Several adapter sets in one batch: every row goes through its own set, and comes back in the caller's order.

A mixed batch equals the single-task answers. Sets of one kind at a seam are computed together; the cost follows the
distinct sets in the batch, and nothing here depends on how many exist beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from registry.adapters.bottleneck import join, join_alone
from registry.adapters.interface import JoiningAdapter, Kind, Place, Seam
from registry.model.batching import Batch
from registry.model.grouped import Grouping, Indices, bottlenecks_of, group_sets


class MixedAdapters:
    """Several sets in one batch: each row joins through its own set.

    Args:
        sets: what the batch's owners count in.
        batch: whose rows they are for.
        row_states: how many states each row has, where it is not one for each token.
    """

    def __init__(self, sets: Sequence[JoiningAdapter], batch: Batch, row_states: Sequence[int] | None = None) -> None:
        self._sets, self._batch = sets, batch
        owner_of_state = numpy.repeat(batch.owners, batch.row_tokens if row_states is None else row_states)
        self._states = {owner: numpy.flatnonzero(owner_of_state == owner) for owner in dict.fromkeys(batch.owners)}
        self._divided: dict[tuple[Kind, ...], tuple[list[_Part], Tensor | None]] = {}

    def on_rows(self) -> MixedAdapters:
        """Return the same for (B, H) states, one of each row."""
        return MixedAdapters(self._sets, self._batch, [1] * len(self._batch.owners))

    def join(self, layer: int, place: Place, sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the (N, H) states after one add-and-norm step, kind by kind."""
        seams = {owner: self._sets[owner].seam(layer, place) for owner in self._states}
        kinds = tuple(seam.kind for seam in seams.values())
        if kinds not in self._divided:
            self._divided[kinds] = self._divide(kinds)
        parts, back = self._divided[kinds]
        joined = [part.join(seams, sub, residual, norm) for part in parts]
        return joined[0] if back is None else torch.cat(joined).index_select(0, back)

    def _divide(self, kinds: Sequence[Kind]) -> tuple[list[_Part], Tensor | None]:
        """Return the parts of the batch, one for each kind, and where each state is in their concatenation."""
        members: dict[Kind, dict[int, Indices]] = {}
        for (owner, states), kind in zip(self._states.items(), kinds, strict=True):
            members.setdefault(kind, {})[owner] = states
        device = self._batch.input_ids.device
        if len(members) == 1:
            return [_Part(kinds[0], self._states, None, device)], None
        taken = [numpy.sort(numpy.concatenate(list(states.values()))) for states in members.values()]
        parts = [_Part(kind, states, own, device) for (kind, states), own in zip(members.items(), taken, strict=True)]
        return parts, torch.from_numpy(numpy.argsort(numpy.concatenate(taken))).to(device)


class _Part:
    """The sets of one kind at a seam, and where their states are.

    Args:
        kind: what they do.
        states: the places of each set's states in the batch.
        taken: the places of all of them, rising; None where that is the whole batch.
        device: where the batch is.
    """

    def __init__(self, kind: Kind, states: Mapping[int, Indices], taken: Indices | None, device: torch.device) -> None:
        self._kind, self._device = kind, device
        self._owners = tuple(states)
        self._taken = None if taken is None else torch.from_numpy(taken).to(device)
        self._places = [own if taken is None else numpy.searchsorted(taken, own) for own in states.values()]
        self._plan: Grouping | None = None
        self._set_of_state: Tensor | None = None  # (n,) wanted by own norms alone
        if kind.has_norm:
            sets = numpy.repeat(numpy.arange(len(self._places)), [len(places) for places in self._places])
            order = numpy.argsort(numpy.concatenate(self._places))
            self._set_of_state = torch.from_numpy(sets[order]).to(device)

    def join(self, seams: Mapping[int, Seam], sub: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the (n, H) states of this part after one add-and-norm step."""
        own = [seams[owner] for owner in self._owners]
        if self._taken is not None:
            sub, residual = sub.index_select(0, self._taken), residual.index_select(0, self._taken)
        if len(own) == 1:
            return join_alone(own[0], sub, residual, norm)
        normalise = partial(self._norm_each, seams=own, eps=norm.eps) if self._kind.has_norm else norm
        return join(self._kind, sub, residual, normalise, partial(self._squeeze_each, seams=own))

    def _squeeze_each(self, hidden: Tensor, seams: Sequence[Seam]) -> Tensor:
        """Return what each state's own bottleneck adds to it."""
        if self._plan is None:
            self._plan = group_sets(self._places, self._device, bottlenecks_of(seams)[0])
        return self._plan.squeeze(hidden, seams)

    def _norm_each(self, hidden: Tensor, seams: Sequence[Seam], eps: float) -> Tensor:
        """Return the states normalised in float32, each with the weights of its own set."""
        own_norms = [seam.norm for seam in seams if seam.norm is not None]
        weight, bias = (torch.stack(tensors)[self._set_of_state] for tensors in zip(*own_norms, strict=True))  # (n, H)
        normed = F.layer_norm(hidden.float(), hidden.shape[-1:], eps=eps)
        return (normed * weight + bias).to(hidden.dtype)
