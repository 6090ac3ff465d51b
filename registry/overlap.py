"""Which rows of one split also stand in another: equal texts, whatever their case, spacing and punctuation.

Rows are compared by digests of their normalised texts, so tens of thousands of long ones take seconds. Texts that say
the same in other words are not found, and labels are not looked at.
"""

from __future__ import annotations

import functools
import hashlib
import string
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from registry.rows import Rows

_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Overlap:
    """Rows whose texts stand in both splits, as row numbers of their own split."""

    train: tuple[int, ...]
    reported: tuple[int, ...]


def find_overlap(train: Rows, reported: Rows) -> Overlap:
    """Return the rows of either split whose normalised text also stands in the other.

    A pair stands in the other split if both its texts do so together, in either order.
    """
    keys = _keys(train), _keys(reported)
    common = set(keys[0]).intersection(keys[1])
    found = (
        tuple(number for number, key in zip(rows.row_numbers, own, strict=True) if key in common)
        for rows, own in zip((train, reported), keys, strict=True)
    )
    return Overlap(*found)


def normalise(text: str) -> str:
    """Return the text in NFKC and lower case, with single spaces and no punctuation; all punctuation stays as it is."""
    plain = (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()
    bare = " ".join(plain.translate(_punctuation()).split())
    return bare or " ".join(plain.split())


def _keys(rows: Rows) -> list[bytes]:
    texts = [normalise(text) for text in rows.texts]
    if rows.pairs is None:
        return [_digest(text) for text in texts]
    pairs = [normalise(text) for text in rows.pairs]
    return [b"".join(sorted(map(_digest, both))) for both in zip(texts, pairs, strict=True)]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


@functools.cache
def _punctuation() -> Mapping[int, None]:
    """Return what ``str.translate`` deletes: ASCII's 32 marks, and all that Unicode calls punctuation."""
    marks = (code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("P"))
    return dict.fromkeys([*map(ord, string.punctuation), *marks])
