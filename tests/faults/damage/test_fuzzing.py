"""Hostile bytes for the parsers of the store, made by hypothesis; the long form is ``fuzzing.py`` itself."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.store.archive import MEMBERS
from tests.faults.damage.fuzzing import TARGETS, make_seeds

SETTINGS = settings(
    derandomize=True, database=None, deadline=None, max_examples=250, suppress_health_check=list(HealthCheck)
)
TOKENS = st.sampled_from(
    [
        *map(bytes, zip(b'-[{}",:\x00\xff\n 0')),
        b'"\\ud800"',
        b"\\ud800",
        b"1e999",
        b"NaN",
        b"null",
        b"true",
        b"9" * 30,
        b"9" * 5000,
        b"[" * 2000,
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\xff" * 8,
    ]
)
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["\ud800", "\0", "\x1b[2J", "../x", "mrpc", "F32", "BF16", "out.bias", "x" * 300]
)
NUMBERS = st.sampled_from([0, -1, 1, 2, 4, 8, 32, 128, 2**31, 2**63, 2**64, 10**400, 1.5, -0.0, 1e308])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Return a real file with a few parts replaced, removed, repeated or put in."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.integers(0, 9)))
        data = (
            data[:begin]
            + draw(st.just(b"") | st.binary(max_size=9) | TOKENS | st.just(data[begin : end + 20]))
            + data[end:]
        )
    return data


@st.composite
def edited(draw: st.DrawFn, seed: bytes) -> bytes:
    """Return the JSON of ``seed`` with a few values replaced, keys added or taken away, wherever they are."""
    plain = json.loads(seed)
    for _ in range(draw(st.integers(1, 3))):
        place = plain
        while isinstance(place, dict) and place:
            key = draw(st.sampled_from(sorted(place)))
            if not isinstance(place[key], dict) or draw(st.booleans()):
                how = draw(st.integers(0, 3))
                if how == 0:
                    del place[key]
                elif how == 1:
                    place[draw(TEXTS)] = draw(VALUES)
                else:
                    place[key] = draw(VALUES)
                break
            place = place[key]
    return json.dumps(plain).encode()


@st.composite
def tensor_headers(draw: st.DrawFn) -> bytes:
    """Return the header of a tensor file for tensors of any name, shape, dtype and place."""
    header: dict[str, Any] = {}
    begin = 0
    for name in draw(st.lists(st.sampled_from(["out.weight", "out.bias", "__metadata__"]) | TEXTS, max_size=4)):
        shape = draw(st.sampled_from([[2, 32], [2], [], [0], [66]]) | st.lists(NUMBERS, max_size=5))
        end = begin + draw(st.sampled_from([256, 8, 0, 4, 128]))
        offsets = draw(st.just([begin, end]) | st.lists(NUMBERS, max_size=3))
        dtype = draw(st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "F8_E4M3", "C64"]) | VALUES)
        header[name] = draw(st.just({"dtype": dtype, "shape": shape, "data_offsets": offsets}) | VALUES)
        begin = end
    return json.dumps(header).encode() + b" " * draw(st.integers(0, 8))


@st.composite
def zips(draw: st.DrawFn) -> bytes:
    """Return a zip with members of any name, packed or not, with links, comments and extra fields."""
    buffer = io.BytesIO()
    names = st.sampled_from([*MEMBERS, *MEMBERS, "../x", "/x", "a\\b", "manifest.JSON", "x/", "manifest.json/"])
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # of a name that comes twice
        for name in draw(st.lists(names, max_size=5) | st.just(list(MEMBERS))):
            info = zipfile.ZipInfo(name, draw(st.sampled_from([(1980, 1, 1, 0, 0, 0), (2025, 1, 1, 1, 1, 1)])))
            info.compress_type = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
            info.external_attr = draw(st.sampled_from([0o644, 0o120777, 0])) << 16
            info.extra = draw(st.sampled_from([b"", b"\x99\x99\x00\x00"]))
            archive.writestr(info, draw(st.binary(max_size=40) | st.sampled_from([b"{}", bytes(5000)])))
        archive.comment = draw(st.binary(max_size=10))
    return draw(st.binary(max_size=5)) + buffer.getvalue()


def inputs(target: str) -> st.SearchStrategy[bytes]:
    """Return what a target is given: any bytes, changed real files, and files of the right form and wrong content."""
    seeds = make_seeds(target)
    more = {
        "manifest": edited(seeds[0]) | edited(seeds[1]),
        "header": tensor_headers(),
        "archive": zips(),
        "alias": st.from_regex(rb"[0-9]{1,8}( [0-9a-f]{16})?\n?", fullmatch=True),
        "store_file": edited(seeds[0]),
    }
    return st.one_of(mutated(seeds), more[target], more[target], st.binary(max_size=200))


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_bytes_raise_only_our_errors(target: str) -> None:
    """Whatever the bytes, a parser gives one of our errors, or something that can be written and read again."""
    one = TARGETS[target]
    for seed in make_seeds(target):
        one(seed)

    @SETTINGS
    @given(inputs(target))
    def check(data: bytes) -> None:
        one(data)

    check()
