"""Thin products of several adapter sets over one tensor of states: which states go together, in which product.

Bottlenecks and low-rank changes are two of them, one after the other.

The states of a set are gathered from wherever its rows lie in the batch. A CPU does two products for each set, which
reads every weight once; a GPU, where a product costs its launch, does all sets of similar size in one, or all sets at
all where it has the kernel. What goes where is planned once for each batch, and all plans give the same answers.

Source of the idea: the segmented products of Punica and S-LoRA, here for rows that do not change in a forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from registry.adapters.formulas import ACTIVATIONS, apply_squeeze, of_states
from registry.adapters.interface import BottleneckWeights, Squeeze

Indices: TypeAlias = NDArray[numpy.int64]

MOST_PADDING = 400  # states of a tier that are there only to make it rectangular
GROUPED_WIDTH = 16  # elements; grouped products want rows that are multiples of 16 bytes


class Grouping(Protocol):
    """How two thin products of each of several sets are computed over (N, in) states."""

    def squeeze(self, hidden: Tensor, squeezes: Sequence[Squeeze]) -> Tensor:
        """Return what each state's own set adds to it, (N, out) in the dtype of ``hidden``."""
        ...


@dataclass(frozen=True)
class _Tier:
    """Sets of similar size: ``sets`` are their places in the plan, ``counts`` how many states each has, falling."""

    sets: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def longest(self) -> int:
        """Return the states of the largest set, to which the others are padded."""
        return self.counts[0]


class SetBySet:
    """Two products for each set: on a CPU the least work, in every dtype, and in training.

    Args:
        states: for each set the places of its states; together all of them.
        device: where the states are.
    """

    def __init__(self, states: Sequence[Indices], device: torch.device) -> None:
        order = numpy.concatenate(states)
        self._counts = [len(own) for own in states]
        self._gather = torch.from_numpy(order).to(device)  # (N,) the states in the order of their sets
        self._scatter = torch.from_numpy(numpy.argsort(order)).to(device)  # (N,) the place of each state in it

    def squeeze(self, hidden: Tensor, squeezes: Sequence[Squeeze]) -> Tensor:
        """Return what each state's own set adds to it, (N, out) in the dtype of ``hidden``."""
        weights, activation = [one.weights for one in squeezes], ACTIVATIONS[squeezes[0].activation]
        runs = torch.split(hidden.index_select(0, self._gather).to(weights[0].down.dtype), self._counts)
        runs = tuple(_dropped(run, one, before=True) for run, one in zip(runs, squeezes, strict=True))
        inner = [F.linear(run, one.down, one.down_bias) for run, one in zip(runs, weights, strict=True)]
        if len({one.down_bias.shape for one in weights}) == 1:
            # All at once: on so few elements an activation costs more to call than to compute.
            active = torch.split(activation(torch.cat(inner)), self._counts)
        else:
            active = tuple(activation(each) for each in inner)
        dropped = [_dropped(each, one, before=False) for each, one in zip(active, squeezes, strict=True)]
        added = torch.cat([F.linear(each, one.up, one.up_bias) for each, one in zip(dropped, weights, strict=True)])
        return added.index_select(0, self._scatter).to(hidden.dtype)


class Tiers:
    """A batched product for each tier of sets of similar size; on a GPU, in every dtype, and in training.

    Args:
        states: for each set the places of its states; together all of them.
        device: where the states are.
    """

    def __init__(self, states: Sequence[Indices], device: torch.device) -> None:
        self._tiers = _tiers([len(own) for own in states])
        gather: list[Indices] = []
        scatter = numpy.empty(sum(len(own) for own in states), dtype=numpy.int64)
        place = 0
        for tier in self._tiers:
            for index in tier.sets:
                own = states[index]
                scatter[own] = numpy.arange(place, place + len(own))
                # A set is padded with its own first state, so that no number of another set can reach it.
                gather += [own, numpy.full(tier.longest - len(own), own[0])]
                place += tier.longest
        self._gather = torch.from_numpy(numpy.concatenate(gather)).to(device)  # (P,) the state at each padded place
        self._scatter = torch.from_numpy(scatter).to(device)  # (N,) the padded place of each state

    def squeeze(self, hidden: Tensor, squeezes: Sequence[Squeeze]) -> Tensor:
        """Return what each state's own set adds to it, (N, out) in the dtype of ``hidden``."""
        padded = hidden.index_select(0, self._gather)  # (P, H)
        parts = torch.split(padded, [len(tier.sets) * tier.longest for tier in self._tiers])
        added = [_squeeze_tier(part, tier, squeezes) for part, tier in zip(parts, self._tiers, strict=True)]
        return (added[0] if len(added) == 1 else torch.cat(added)).index_select(0, self._scatter)


class AllAtOnce:
    """Two grouped products for all sets, for answers in bfloat16 on a Hopper GPU or newer, where a kernel does them.

    Args:
        states: for each set the places of its states; together all of them.
        device: where the states are.
    """

    def __init__(self, states: Sequence[Indices], device: torch.device) -> None:
        counts = torch.tensor([len(own) for own in states])
        self._ends = counts.cumsum(0).to(device, torch.int32)  # (K,) where the states of each set end
        self._sets = torch.repeat_interleave(counts).to(device)  # (N,) the set of each state
        self._gather, self._scatter = sorting_of(states, device)  # a batch on CUDA is sorted by set

    def squeeze(self, hidden: Tensor, squeezes: Sequence[Squeeze]) -> Tensor:
        """Return what each state's own set adds to it, (N, out) in the dtype of ``hidden``."""
        down, down_bias, up, up_bias = _stack([one.weights for one in squeezes])
        size = down.shape[1]
        # The grouped product knows no bias: a column of ones in the inner states multiplies it, and pads the width.
        spare = GROUPED_WIDTH - size % GROUPED_WIDTH
        down, down_bias = F.pad(down, (0, 0, 0, spare)), F.pad(down_bias, (0, spare))
        up = torch.cat([up, up_bias.unsqueeze(2), up.new_zeros(*up.shape[:2], spare - 1)], dim=2)  # (K, H, M + spare)
        ordered = hidden if self._gather is None else hidden.index_select(0, self._gather)
        inner = F.grouped_mm(ordered, down.transpose(1, 2), offs=self._ends)  # (N, M + spare)
        inner = ACTIVATIONS[squeezes[0].activation](inner + down_bias.index_select(0, self._sets))
        inner[:, size] = 1
        added = F.grouped_mm(inner, up.transpose(1, 2), offs=self._ends)  # (N, H)
        return added if self._scatter is None else added.index_select(0, self._scatter)


def sorting_of(states: Sequence[Indices], device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Return the order in which states are sorted by set, and its inverse; neither where they are sorted already."""
    order = numpy.concatenate(states)
    if not bool((order != numpy.arange(len(order))).any()):
        return None, None
    return torch.from_numpy(order).to(device), torch.from_numpy(numpy.argsort(order)).to(device)


def group_sets(states: Sequence[Indices], device: torch.device, weights: BottleneckWeights) -> Grouping:
    """Return the plan that is fastest where the states are.

    Args:
        states: for each set the places of its states; together all of them.
        device: where the states are.
        weights: of one of the sets, which says dtype and whether they train.
    """
    if device.type != "cuda":
        return SetBySet(states, device)
    on_hopper = torch.cuda.get_device_capability(device) >= (9, 0)
    if on_hopper and weights.down.dtype == torch.bfloat16 and not weights.down.requires_grad:
        return AllAtOnce(states, device)
    return Tiers(states, device)


def _tiers(counts: Sequence[int]) -> list[_Tier]:
    """Return tiers of falling size, a new one wherever the padding of the last becomes too much."""
    tiers: list[list[int]] = []
    padding = 0
    for index in sorted(range(len(counts)), key=lambda i: -counts[i]):
        if tiers:
            padding += counts[tiers[-1][0]] - counts[index]
        if not tiers or padding > MOST_PADDING:
            tiers.append([])
            padding = 0
        tiers[-1].append(index)
    return [_Tier(tuple(tier), tuple(counts[index] for index in tier)) for tier in tiers]


def _squeeze_tier(padded: Tensor, tier: _Tier, squeezes: Sequence[Squeeze]) -> Tensor:
    """Return what the sets of one tier add to its (sets * longest, in) padded states."""
    own = [squeezes[index] for index in tier.sets]
    activation = own[0].activation
    if len(own) == 1:
        return apply_squeeze(padded, own[0])
    down, down_bias, up, up_bias = of_states(_stack([one.weights for one in own]), padded)
    states = padded.view(len(own), tier.longest, -1).to(down.dtype)  # (K, T, in)
    states = _drop(states, tier.counts, own, before=True)
    inner = ACTIVATIONS[activation](torch.baddbmm(down_bias.unsqueeze(1), states, down.transpose(1, 2)))  # (K, T, M)
    inner = _drop(inner, tier.counts, own, before=False)
    added = torch.baddbmm(up_bias.unsqueeze(1), inner, up.transpose(1, 2))  # (K, T, out)
    return added.view(len(padded), -1).to(padded.dtype)


def _dropped(states: Tensor, squeeze: Squeeze, *, before: bool) -> Tensor:
    """Return the states of one set after its dropout, where that has its place ``before`` the first product or not."""
    return states if squeeze.dropout is None or squeeze.drops_input != before else squeeze.dropout(states)


def _drop(states: Tensor, counts: Sequence[int], squeezes: Sequence[Squeeze], *, before: bool) -> Tensor:
    """Return the (K, T, wide) states after each set's own dropout, drawn as the set alone would draw it."""
    dropping = [
        one.dropout if one.dropout is not None and one.dropout.is_active and one.drops_input == before else None
        for one in squeezes
    ]
    if not any(dropping):
        return states
    masks = torch.ones_like(states)
    for mask, count, dropout, one in zip(masks, counts, dropping, squeezes, strict=True):
        if dropout is not None:
            own = mask[:count] if before else mask[:count, : len(one.weights.down_bias)]
            own.copy_(dropout.draw(own))
    return states * masks


def _stack(weights: Sequence[BottleneckWeights]) -> BottleneckWeights:
    """Return the tensors of all sets stacked, (K, ...); smaller bottlenecks get zeros, which changes nothing."""
    widest = max(len(one.down_bias) for one in weights)
    same = [_widen(one, widest - len(one.down_bias)) for one in weights]
    return BottleneckWeights(*(torch.stack(tensors) for tensors in zip(*same, strict=True)))


def _widen(weights: BottleneckWeights, by: int) -> BottleneckWeights:
    if by == 0:
        return weights
    down, down_bias, up, up_bias = weights
    return BottleneckWeights(F.pad(down, (0, 0, 0, by)), F.pad(down_bias, (0, by)), F.pad(up, (0, by)), up_bias)
