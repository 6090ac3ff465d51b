"""How every noun is checked: the record base, the name rule and the strict JSON form.

Records are msgspec structs: unknown keys, missing keys and wrong types are refused with the path of the field. This
file knows nothing of what the nouns are.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import threading
from typing import Any, NoReturn, TypeVar

import msgspec

from registry.errors import ConfigError, InvalidNameError, closest

_T = TypeVar("_T")

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_WINDOWS_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}
_RESERVED = _WINDOWS_DEVICES | {"tmp", "store.json"}  # the two entries a store keeps beside its names

# What msgspec raises on hostile bytes; a key that is no UTF-8 is told in an error message of its own and fails there.
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_LOOKING = threading.Lock()
_KNOWN: set[Any] = set()


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen noun; subclasses only add fields and checks, and read what older programs wrote."""

    @classmethod
    def upgrade(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a record that an older program wrote as they are spelled now."""
        return plain


def require(condition: bool, field: str, expected: str, found: object) -> None:
    """Raise ConfigError unless ``condition`` holds."""
    if not condition:
        raise ConfigError(field, expected, found)


def choose(value: str, options: tuple[str, ...], field: str) -> str:
    """Return ``value`` if it is one of ``options``, else raise ConfigError with the closest one."""
    if value not in options:
        raise ConfigError(field, "one of " + ", ".join(options), value, closest(value, options))
    return value


def check_name(name: str, kind: str = "name") -> str:
    """Return ``name`` if every door of the store may let it in.

    Raises:
        InvalidNameError: it breaks the rule of DESIGN.md, on this or any other operating system.
    """
    if not _NAME.fullmatch(name) or ".." in name or name in _RESERVED or name.split(".")[0] in _WINDOWS_DEVICES:
        raise InvalidNameError(name, kind)
    return name


def printable(value: object) -> str:
    """Return the text of a value that came from a file, without codes that a terminal would obey."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(value))


def is_encoding(name: str | None) -> bool:
    """Return whether Python knows a text encoding of this name; None is UTF-8."""
    try:
        return codecs.lookup(name or "utf-8")._is_text_encoding
    except (LookupError, ValueError):
        return False


def to_json(record: Record) -> bytes:
    """Return the record as indented JSON with a final newline; equal records give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2) + b"\n"


def from_json(kind: type[_T], data: bytes) -> _T:
    """Return the record that ``data`` spells, refusing anything that is not exactly that record.

    Raises:
        ConfigError: not UTF-8, not JSON, a key twice, NaN, nested too deep, an unknown or missing key, a wrong type.
    """
    written_by_us = _decode_exact(kind, data)
    if written_by_us is not None:
        return written_by_us
    try:
        plain = json.loads(
            data.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_constant, parse_float=_finite
        )
        if b"\\u" in data:
            json.dumps(plain, ensure_ascii=False).encode()  # half a character, spelled out, has no UTF-8
    except UnicodeDecodeError as err:
        raise ConfigError("the JSON text", "UTF-8", f"byte {data[err.start]:#04x} at {err.start}") from err
    except RecursionError as err:
        raise ConfigError("the JSON text", "shallow nesting", "nesting too deep") from err
    except UnicodeEncodeError as err:
        raise ConfigError("the JSON text", "text that UTF-8 can hold", err.object[err.start]) from err
    except ConfigError:
        raise
    except ValueError as err:  # malformed, or an integer of thousands of digits
        raise ConfigError("the JSON text", "valid JSON", str(err)) from err
    if isinstance(plain, dict) and issubclass(kind, Record):
        plain = kind.upgrade(plain)
    return from_plain(kind, plain)


def from_plain(kind: type[_T], plain: Any) -> _T:
    """Return the record that dictionaries, lists and numbers spell (as read from JSON or TOML).

    Raises:
        ConfigError: an unknown or missing key, a wrong type, a value out of range.
    """
    _look_at(kind)
    try:
        return msgspec.convert(plain, kind, strict=True)
    except msgspec.ValidationError as err:
        if isinstance(err.__cause__, ConfigError):
            raise err.__cause__ from None
        raise ConfigError(kind.__name__, "the fields of its format", str(err)) from err


def _look_at(kind: Any) -> None:
    """Let msgspec find the fields of a kind once, by one thread: it crashes where another reads them half found."""
    if kind not in _KNOWN:
        with _LOOKING:
            msgspec.json.Decoder(kind)
            _KNOWN.add(kind)


def _decode_exact(kind: type[_T], data: bytes) -> _T | None:
    """Return the record if ``data`` is to the last byte what ``to_json`` writes for it, which leaves nothing to check.

    Several times faster than the checks one by one, which also tell what is wrong.
    """
    _look_at(kind)
    try:
        record = msgspec.json.decode(data, type=kind)
    except NOT_JSON:
        return None
    return record if isinstance(record, Record) and to_json(record) == data else None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError("the JSON text", "every key once", twice)
    return found


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        _no_constant(text)
    return value


def _no_constant(name: str) -> NoReturn:
    raise ConfigError("the JSON text", "finite numbers", name)
