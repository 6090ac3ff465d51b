"""A CPU's stand-in for CUDA graphs: what a function does is recorded, and done again to the same tensors.

As on a GPU, nothing of Python runs at a replay: a length, a label or a tensor that was made from Python's numbers is
what it was when it was recorded. Reading a number is refused, as a GPU refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKS_THE_HOST = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class Recording(TorchDispatchMode):
    """The operations of one function, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self._done: list[tuple[Any, Any, Any, dict[int, Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation and remember it."""
        if func in ASKS_THE_HOST:
            raise RuntimeError(f"{func} asks the host")
        result = func(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in _tensors((args, kwargs))}
        # A view shows what is there, however often that changes.
        made = {
            place: each for place, each in enumerate(_tensors(result)) if each.untyped_storage().data_ptr() not in given
        }
        if made or func._schema.is_mutable:
            self._done.append((func, args, kwargs or {}, made))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Do all of it again, to the same tensors."""
        for func, args, kwargs, made in self._done:
            found = _tensors(func(*args, **kwargs))
            for place, old in made.items():
                old.copy_(found[place])


def _tensors(tree: Any) -> list[Tensor]:
    """Return the tensors of a tree that have a storage, which oneDNN's weights have not."""
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor) and not each.is_mkldnn]


def record(work: Callable[[], Any], generators: Sequence[torch.Generator] = ()) -> tuple[Any, Callable[[], None]]:
    """Record a function as ``CudaCapture`` does."""
    states = [each.get_state() for each in generators]
    recording = Recording()
    with recording:
        result = work()
    for each, state in zip(generators, states, strict=True):
        each.set_state(state)
    return result, recording.replay


def attend_as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attention and captures go as where the kernel for rows of any length is, whose place plain torch takes."""
    for module in ("model.attention", "graphs.capture"):
        monkeypatch.setattr(f"registry.{module}.has_varlen_kernel", lambda _: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", _attend)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, query_starts: Tensor, key_starts: Tensor, queries: int, keys: int
) -> Tensor:
    """Return the (N, heads, D) mix of each row's values; ``queries`` and ``keys`` are the most of a row."""
    of_query, of_key = (
        torch.searchsorted(starts, torch.arange(len(states), dtype=starts.dtype), right=True)
        for starts, states in ((query_starts, query), (key_starts, key))
    )
    seen = of_query[:, None] == of_key[None, :]
    by_head = (states.transpose(0, 1)[None] for states in (query, key, value))
    return F.scaled_dot_product_attention(*by_head, attn_mask=seen)[0].transpose(0, 1)
