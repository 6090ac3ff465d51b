"""The pool of resident sets: within its bytes, whoever asks, and whatever leaves comes back."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.adapters.adapter_set import AdapterSet
from registry.config import AdapterConfig, HeadConfig
from registry.errors import ConfigError
from registry.serving.pool import AdapterPool, PoolHolds, ResidentSet
from registry.store.errors import AdapterNotFoundError
from tests.support.stored_sets import new_manifest

HEAD = HeadConfig(label_names=("no", "yes"))
MANIFEST = new_manifest()
SMALL, LARGE = 4 * (8 * 2 + 2), 4 * (8 * 5 + 5)  # bytes of a head over H 8 with two labels, and with five


class Shelf:
    """Where the pool of these tests loads from: sets by key, ``L...`` large ones; it remembers what it gave."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.missing: set[str] = set()
        self._small = AdapterSet(8, 1, None, HEAD)
        self._large = AdapterSet(8, 1, None, HeadConfig(label_names=tuple("abcde")))

    def __call__(self, key: str) -> ResidentSet:
        """Return a new set, unless it is missing."""
        if key in self.missing:
            raise AdapterNotFoundError(key, (), None)
        self.loaded.append(key)
        return ResidentSet(key, MANIFEST, self._large if key.startswith("L") else self._small, torch.float32)


def use(pool: AdapterPool[str], *keys: str) -> list[str]:
    """Hold the keys for a moment and return who came."""
    with pool.hold(keys) as sets:
        return [one.reference for one in sets]


def here(pool: AdapterPool[str], keys: str = "abcdefgh") -> str:
    """Return which of the keys are resident."""
    return "".join(key for key in keys if key in pool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_all_tensors(dtype: torch.dtype) -> None:
    """On a CPU a resident set counts every number that is stored as float32, whatever the backbone is in."""
    config = AdapterConfig(placement="houlsby", reduction_factor=2, layer_norms=True)
    one = AdapterSet(8, 2, config, HeadConfig(label_names=("no", "yes"), form="dense_tanh"))
    assert 4 * one.trainable_count == ResidentSet("one:1", MANIFEST, one, dtype).bytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_bytes_on_cuda_are_those_of_the_backbones_dtype() -> None:
    """On a GPU bottlenecks take the backbone's dtype; norms and head stay float32."""
    config = AdapterConfig(placement="houlsby", reduction_factor=2, layer_norms=True)
    one = AdapterSet(8, 2, config, HEAD).cuda()
    bottlenecks = sum(tensor.numel() for tensor in one.adapter.bottlenecks.parameters())
    expected = 2 * bottlenecks + 4 * (one.trainable_count - bottlenecks)
    assert expected == ResidentSet("one:1", MANIFEST, one, torch.bfloat16).bytes


def test_frozen_head_counts_as_well() -> None:
    """A head that was never trained takes memory like any other."""
    one = AdapterSet(8, 1, None, HeadConfig(label_names=("no", "yes"), trained=False))
    assert SMALL == ResidentSet("one:1", MANIFEST, one, torch.float32).bytes


def test_resident_set_is_a_copy() -> None:
    """Training that goes on with a set does not reach the resident one."""
    one = AdapterSet(8, 1, AdapterConfig(reduction_factor=2, layer_norms=True, init="normal"), HEAD)
    resident = ResidentSet("one:1", MANIFEST, one, torch.float32)
    seam, head = resident.adapter.seam(0, "ffn"), resident.head.out.weight
    assert seam.squeeze is not None
    assert seam.norm is not None
    before = [tensor.clone() for tensor in (*seam.squeeze.weights, *seam.norm, head)]
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(1.0)
    after = (*seam.squeeze.weights, *seam.norm, head)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert not any(tensor.requires_grad for tensor in after)


def test_least_recently_used_leaves_first_and_comes_back() -> None:
    """Beyond the capacity the set that was not asked for the longest leaves, and is loaded anew when it is."""
    shelf = Shelf()
    pool = AdapterPool(shelf, 3 * SMALL)
    for key in "abc":
        assert [key] == use(pool, key)
    use(pool, "a")
    use(pool, "d")
    assert ("acd", 3, 3 * SMALL) == (here(pool), len(pool), pool.bytes)
    use(pool, "c", "a", "d")
    use(pool, "b")
    assert "abd" == here(pool)
    assert list("abcdb") == shelf.loaded


def test_one_large_set_takes_the_place_of_several() -> None:
    """Capacity is bytes, not sets, and what fits exactly stays."""
    shelf = Shelf()
    pool = AdapterPool(shelf, 2 * SMALL + LARGE)
    use(pool, "a", "b", "c", "d")
    assert "abcd" == here(pool)
    use(pool, "L")
    assert ("cdL", 2 * SMALL + LARGE) == (here(pool, "abcdL"), pool.bytes)


def test_held_set_never_leaves() -> None:
    """A set in use stays while other threads push everything else out, and may leave afterwards."""
    shelf = Shelf()
    pool = AdapterPool(shelf, SMALL)
    with pool.hold(["a"]) as (first,):
        with ThreadPoolExecutor(4) as threads:
            for key in threads.map(lambda number: use(pool, "bcdefgh"[number % 7])[0], range(200)):
                assert "a" in pool, key
        with pool.hold(["a"]) as (again,):
            assert first is again
        assert ("a", SMALL) == (here(pool), pool.bytes)
    assert 1 == shelf.loaded.count("a")
    use(pool, "b")
    assert "b" == here(pool)


def test_capacity_of_nothing_still_answers() -> None:
    """With no bytes to keep, sets are there while they are held and no longer."""
    shelf = Shelf()
    pool = AdapterPool(shelf, 0)
    with pool.hold(["a", "b"]):
        assert ("ab", 2 * SMALL) == (here(pool), pool.bytes)
    assert ("", 0, 0) == (here(pool), pool.bytes, len(pool))
    assert ["a"] == use(pool, "a")
    assert list("aba") == shelf.loaded


def test_capacity_below_nothing_is_refused() -> None:
    """A negative number of bytes is a mistake."""
    with pytest.raises(ConfigError, match="cannot use capacity: expected at least 0 bytes, found -1"):
        AdapterPool(Shelf(), -1)


def test_two_holds_of_one_set_nest() -> None:
    """A set held twice, by two batches or twice in one, leaves only after the last of them."""
    pool = AdapterPool(Shelf(), 0)
    with pool.hold(["a", "b", "a"]) as sets:
        assert ["a", "b", "a"] == [one.reference for one in sets]
        assert sets[0] is sets[2]
        assert 2 * SMALL == pool.bytes
        with pool.hold(["a"]):
            pass
        assert "ab" == here(pool)
    assert ("", 0) == (here(pool), pool.bytes)


def test_threads_that_ask_at_once_load_once() -> None:
    """Eight threads that want the same set get one object, loaded by one of them, while others load others."""
    shelf, together, seen = Shelf(), threading.Barrier(8), []

    def slowly(key: str) -> ResidentSet:
        time.sleep(0.02)
        return shelf(key)

    pool = AdapterPool(slowly, 10 * SMALL)

    def ask(_: int) -> None:
        together.wait(timeout=30)
        with pool.hold(["a"]) as (one,):
            seen.append(one)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(8)))
    assert (["a"], 1, 8) == (shelf.loaded, len({id(one) for one in seen}), len(seen))


def test_loading_one_set_does_not_stop_another() -> None:
    """While a set is being loaded, resident ones are answered from and others are loaded."""
    begun, go_on, shelf = threading.Event(), threading.Event(), Shelf()

    def load(key: str) -> ResidentSet:
        if key == "a":
            begun.set()
            assert go_on.wait(timeout=30)
        return shelf(key)

    pool = AdapterPool(load, 10 * SMALL)
    use(pool, "b")
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(use, pool, "a")
        assert begun.wait(timeout=30)
        assert ["b", "c"] == use(pool, "b", "c")
        go_on.set()
        assert ["a"] == slow.result(timeout=30)


def test_failing_load_leaves_the_pool_as_it_was() -> None:
    """A set that cannot be loaded is told, nothing stays held, and the next try may succeed."""
    shelf = Shelf()
    pool = AdapterPool(shelf, 2 * SMALL)
    use(pool, "a", "b")
    shelf.missing.add("x")
    for _ in range(2):
        with pytest.raises(AdapterNotFoundError, match="cannot find adapter set 'x'"):
            use(pool, "b", "x", "a")
        assert ("ab", 2, 2 * SMALL) == (here(pool, "abx"), len(pool), pool.bytes)
    shelf.missing.clear()
    assert ["x"] == use(pool, "x")
    assert ("bx", 2 * SMALL) == (here(pool, "abx"), pool.bytes)  # b was asked for last, and nobody holds a
    assert list("abx") == shelf.loaded


def test_error_inside_a_hold_gives_everything_back() -> None:
    """A batch that fails does not keep its sets for ever."""
    pool = AdapterPool(Shelf(), 0)
    with pytest.raises(ZeroDivisionError), pool.hold(["a", "b"]):
        _ = 1 // 0
    assert ("", 0) == (here(pool), pool.bytes)


def test_waiting_threads_try_after_a_failed_load() -> None:
    """Who waited for a load that failed tries it too, so that one bad moment is not everybody's."""
    shelf, tries, waiting = Shelf(), [], threading.Barrier(2)

    def load(key: str) -> ResidentSet:
        tries.append(key)
        if len(tries) == 1:
            waiting.wait(timeout=30)
            time.sleep(0.02)  # the other thread is now waiting for this load
            raise AdapterNotFoundError(key, (), None)
        return shelf(key)

    pool = AdapterPool(load, SMALL)
    with ThreadPoolExecutor(2) as threads:
        failing = threads.submit(use, pool, "a")
        waiting.wait(timeout=30)
        assert ["a"] == use(pool, "a")
        with pytest.raises(AdapterNotFoundError, match="'a'"):
            failing.result(timeout=30)
    assert ("a", SMALL, ["a", "a"]) == (here(pool), pool.bytes, tries)


class Model:
    """What the pool should do, written as simply as possible: a list of keys in order of use."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.users = capacity, OrderedDict[str, int]()

    @property
    def bytes(self) -> int:
        """Return the bytes of all keys."""
        return sum(LARGE if key.startswith("L") else SMALL for key in self.users)

    def enter(self, keys: list[str]) -> None:
        """Take the keys, one after the other."""
        for key in keys:
            self.users[key] = self.users.pop(key, 0) + 1

    def leave(self, keys: list[str]) -> None:
        """Give the keys back, then drop unused ones from the front while there are too many bytes."""
        for key in keys:
            self.users[key] -= 1
        for key in [key for key, users in self.users.items() if users == 0]:
            if self.bytes > self.capacity:
                del self.users[key]


@given(
    st.sampled_from([0, SMALL, 3 * SMALL, LARGE + SMALL, 100 * LARGE]),
    st.lists(st.one_of(st.lists(st.sampled_from(["a", "b", "c", "d", "L1", "L2"]), max_size=4), st.none())),
)
@settings(max_examples=60, deadline=None)
def test_any_sequence_of_holds_equals_the_model(capacity: int, actions: list[list[str] | None]) -> None:
    """Holds that overlap in any way keep, drop and load what a plain list would; None ends the oldest hold."""
    shelf, model, loads = Shelf(), Model(capacity), []
    pool, open_holds = AdapterPool(shelf, capacity), OrderedDict[int, tuple[ExitStack, list[str]]]()
    for number, keys in enumerate(actions):
        if keys is not None:
            loads += [key for key in dict.fromkeys(keys) if key not in model.users]
            stack = ExitStack()
            assert keys == [one.reference for one in stack.enter_context(pool.hold(keys))]
            open_holds[number] = stack, keys
            model.enter(keys)
        elif open_holds:
            stack, held = open_holds.popitem(last=False)[1]
            stack.close()
            model.leave(held)
        names = ["a", "b", "c", "d", "L1", "L2"]
        assert set(model.users) == {key for key in names if key in pool}
        assert (model.bytes, len(model.users), loads) == (pool.bytes, len(pool), shelf.loaded)
    for stack, held in open_holds.values():
        stack.close()
        model.leave(held)
    assert model.bytes == pool.bytes
    assert pool.bytes <= capacity


def test_many_threads_leave_the_books_right() -> None:
    """After hundreds of holds from eight threads the bytes are those of the sets that are there, within capacity."""
    shelf = Shelf()
    pool = AdapterPool(shelf, 4 * SMALL)
    keys = [*"abcdefgh", "L1", "L2"]

    def work(worker: int) -> None:
        generator = torch.Generator().manual_seed(worker)
        for _ in range(40):
            wanted = [keys[i] for i in torch.randint(len(keys), (3,), generator=generator).tolist()]
            with pool.hold(wanted) as sets:
                assert wanted == [one.reference for one in sets]
                assert all(key in pool for key in wanted)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    left = [key for key in keys if key in pool]
    assert sum(LARGE if key.startswith("L") else SMALL for key in left) == pool.bytes <= 4 * SMALL
    assert len(left) == len(pool)


def test_a_thousand_sets_are_resident_at_once() -> None:
    """A thousand sets are loaded once each, and the books hold them all."""
    shelf, keys = Shelf(), [f"k{number}" for number in range(1000)]
    pool = AdapterPool(shelf, 1000 * SMALL)
    for _ in range(2):
        assert keys == use(pool, *keys)
    assert (1000, 1000 * SMALL, keys) == (len(pool), pool.bytes, shelf.loaded)


def test_rows_hold_a_set_together() -> None:
    """A set is held once for any number of users, leaves with the last, and one that cannot be loaded is not held."""
    shelf = Shelf()
    pool = AdapterPool(shelf, capacity=0)
    holds = PoolHolds(pool)
    shelf.missing.add("b")
    holds.take("a", 2)
    holds.take("a")
    assert (["a"], "a", 1) == (shelf.loaded, holds["a"].reference, len(holds))
    with pytest.raises(AdapterNotFoundError):
        holds.take("b")
    assert "b" not in holds
    holds.give(["a", "a"])
    assert "a" in holds
    assert pool.has_resident("a")
    holds.give(["a"])
    assert (0, 0, False) == (len(holds), len(pool), pool.has_resident("a"))
    assert (1, 1) == (pool.loads, pool.evictions)


def test_threads_hold_and_let_go_of_the_same_sets() -> None:
    """Whoever comes first loads, nobody is without its set, and nothing is left when all have gone."""
    pool = AdapterPool(Shelf(), capacity=0)
    holds = PoolHolds(pool)

    def use_all(worker: int) -> None:
        for turn in range(200):
            key = "abc"[(worker + turn) % 3]
            holds.take(key, 2)
            assert key == holds[key].reference
            holds.give([key, key])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use_all, range(8)))
    assert (0, 0, 0) == (len(holds), len(pool), pool.bytes)
