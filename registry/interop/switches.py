"""What a configuration of another library may say, and how its values are read.

The tables are data, in switches.json: a table a kind of file or method, an entry a key. Whatever is not in a table is
refused by its name, and so is a value that no set here has exactly. docs/interop.md is made of the same tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from registry.config import Activation
from registry.errors import ConfigError, shorten
from registry.store.errors import ForeignSwitchError

INDEX_LIMIT = 10_000  # numbers in a list of layers, and the highest of them
PATTERN_LIMIT = 256  # patterns of one configuration, and characters of a half of one
CHOICE_LIMIT = 5  # repetitions and alternatives of one pattern: with more of them a match may take for ever


class Switch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key of another library's configuration.

    Attributes:
        default: what its absence means there.
        meaning: what becomes of it here, for the reader of docs/interop.md.
        only: the values that a set here has exactly, None where all are read or change no answer.
        exported: whether an exported configuration has it.
    """

    meaning: str
    default: Any = None
    only: tuple[Any, ...] | None = None
    exported: bool = True


class _Tables(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    adapterhub: dict[str, dict[str, Switch]]
    peft: dict[str, dict[str, Switch]]
    presets: dict[str, dict[str, Any]]


_TABLES = msgspec.json.decode(Path(__file__).with_name("switches.json").read_bytes(), type=_Tables)
ADAPTERHUB: Mapping[str, Mapping[str, Switch]] = MappingProxyType(_TABLES.adapterhub)
PEFT: Mapping[str, Mapping[str, Switch]] = MappingProxyType(_TABLES.peft)
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(_TABLES.presets)  # configurations that a file may name

# Theirs to ours; several of theirs are one function. The first of ours is what is written.
ACTIVATION_NAMES: Mapping[str, Activation] = MappingProxyType(
    {
        "relu": "relu", "gelu": "gelu", "gelu_python": "gelu", "swish": "silu", "silu": "silu", "tanh": "tanh",
        "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "gelu_accurate": "gelu_new",
        "quick_gelu": "quick_gelu", "leakyrelu": "leaky_relu", "leaky_relu": "leaky_relu", "relu6": "relu6",
        "relu2": "relu2", "mish": "mish", "linear": "identity",
    }
)  # fmt: skip


def settle(path: Path, found: Mapping[str, Any], switches: Mapping[str, Switch]) -> dict[str, Any]:
    """Return every switch of a configuration with its value.

    Raises:
        ForeignSwitchError: a key that is in no table, or a value that no set here has.
    """
    unknown = sorted(ascii(key)[1:-1][:60] for key in found.keys() - switches.keys())
    if unknown:
        raise ForeignSwitchError(path, shorten(unknown), "only keys whose meaning is known", "unknown ones")
    settled = {key: found.get(key, switch.default) for key, switch in switches.items()}
    for key, switch in switches.items():
        allowed = switch.only
        if allowed is not None and not any(_same(settled[key], each) for each in allowed):
            raise ForeignSwitchError(path, key, " or ".join(map(shown, allowed)), shown(settled[key]))
    return settled


def _same(found: object, value: object) -> bool:
    return found == value and isinstance(found, bool) == isinstance(value, bool)


def shown(value: object) -> str:
    """Return a value of a file, as its JSON has it, as a short part of a sentence."""
    return json.dumps(value, default=str)[:80]


def number_within(path: Path, key: str, value: object, low: float, high: float) -> float:
    """Return a number of a configuration within its bounds.

    Raises:
        ForeignSwitchError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ForeignSwitchError(path, key, f"a number from {low:g} to {high:g}", shown(value))
    return value


def whole_within(path: Path, key: str, value: object, low: int, high: int) -> int:
    """Return a whole number of a configuration within its bounds.

    Raises:
        ForeignSwitchError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ForeignSwitchError(path, key, f"a whole number from {low} to {high}", shown(value))
    return value


def text(path: Path, key: str, value: object) -> str:
    """Return a text of a configuration, an empty one for null.

    Raises:
        ForeignSwitchError: it is none.
    """
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > 4096:
        raise ForeignSwitchError(path, key, "a text", shown(value))
    return value


def whole_numbers(path: Path, key: str, value: object) -> tuple[int, ...]:
    """Return a list of layer indices.

    Raises:
        ForeignSwitchError: it is none.
    """
    listed = [] if value is None else value
    if not isinstance(listed, list) or len(listed) > INDEX_LIMIT:
        raise ForeignSwitchError(path, key, "a list of layer indices", shown(value))
    return tuple(sorted({whole_within(path, key, each, 0, INDEX_LIMIT) for each in listed}))


@contextmanager
def switch_errors(path: Path) -> Iterator[None]:
    """Turn what a configuration of ours refuses into what is told of a folder."""
    try:
        yield
    except ConfigError as err:
        raise ForeignSwitchError(path, err.field, err.expected, shown(err.found)) from err


def is_peft_target(path: Path, config: Mapping[str, Any], module: str) -> bool:
    """Return whether PEFT changes a module, by the rules of its ``check_target_module_exists``."""
    excluded, targets = config["exclude_modules"], config["target_modules"]
    if excluded and names_module(path, "exclude_modules", excluded, module):
        return False
    heads = ["classifier", "score"] if config["task_type"] == "SEQ_CLS" else []  # which its class always adds
    for saved in [*texts(path, "modules_to_save", config["modules_to_save"]), *heads]:
        if checked_pattern(path, "modules_to_save", rf"(^|.*\.){saved}($|\..*)", saved).match(module):
            return False
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return True
    if not names_module(path, "target_modules", targets, module):
        return False
    wanted = config.get("layers_to_transform")
    if isinstance(targets, str) or module in targets or wanted is None or wanted == []:
        return True
    if config["layers_pattern"]:
        raise ForeignSwitchError(path, "layers_pattern", "none", shown(config["layers_pattern"]))
    match = re.match(r".*?\.[^.]*\.(\d+)\.", module)
    layers = whole_numbers(path, "layers_to_transform", [wanted] if isinstance(wanted, int) else wanted)
    return match is not None and int(match[1]) in layers


def names_module(path: Path, switch: str, targets: object, module: str) -> bool:
    """Return whether a pattern or a list of ends names a module."""
    if isinstance(targets, str):
        return checked_pattern(path, switch, targets, targets).fullmatch(module) is not None
    listed = texts(path, switch, targets)
    return module in listed or any(module.endswith(f".{each}") for each in listed)


def texts(path: Path, switch: str, found: object) -> list[str]:
    """Return a list of texts of a configuration, an empty one for null.

    Raises:
        ForeignSwitchError: it is none.
    """
    listed = [] if found is None else found
    if not isinstance(listed, list) or len(listed) > 4096 or not all(isinstance(each, str) for each in listed):
        raise ForeignSwitchError(path, switch, "a list of modules", shown(found))
    return listed


def checked_pattern(path: Path, switch: str, pattern: str, own: str) -> re.Pattern[str]:
    """Return a pattern of a file, if matching it takes a moment whatever it is matched with.

    Args:
        path: the folder.
        switch: where the pattern stands.
        pattern: what is matched.
        own: the part of it that the file has.
    """
    plain = re.sub(r"\\.|\[[^]]*\]|\(\?[:=!]|\(\?P<\w+>", "", own)
    choices = len(re.findall(r"[*+?{]", plain)) + len(re.findall(r"\([^()]*\||\|[^()]*\)", plain))
    good = len(own) <= 2 * PATTERN_LIMIT and choices <= CHOICE_LIMIT and not re.search(r"\)[*+{]", plain)
    try:
        if good:
            return re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        pass
    raise ForeignSwitchError(path, switch, "modules, or a pattern with few repetitions and alternatives", shown(own))


def pattern_value(path: Path, switch: str, patterns: object, module: str, default: object) -> object:
    """Return what the first pattern that names a module gives it, as ``get_pattern_key`` finds it."""
    table = {} if patterns is None else patterns
    if not isinstance(table, dict) or len(table) > PATTERN_LIMIT:
        raise ForeignSwitchError(path, switch, f"at most {PATTERN_LIMIT} patterns", shown(patterns))
    for pattern, value in table.items():
        if checked_pattern(path, switch, rf"(.*\.)?({pattern})$", pattern).match(module):
            return value
    return table.get(module, default)
