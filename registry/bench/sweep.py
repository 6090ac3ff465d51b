"""Variants of a benchmark's methods: what a sweep spells, and the names of the methods that come of it.

A variant is a method with swept settings in the place of its own. Its name tells them, as in ``houlsby-lr0.001-rf16``,
so its records lie in a folder of their own beside the method's. How anything is fitted is not known here.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence

from registry.config import BASELINES, AdapterConfig, TrainingConfig
from registry.errors import ConfigError, closest
from registry.training.recipes import DEFAULT, AdapterChoices, read_recipe, recipe_names, replace_fields
from registry.validation import Record, check_name, require

Value = int | float

# Short forms for names, in the order in which a name has them.
_CODES = {
    "learning_rate": "lr",
    "reduction_factor": "rf",
    "rank": "r",
    "alpha": "al",
    "length": "pl",
    "epochs": "ep",
    "batch_size": "bs",
    "weight_decay": "wd",
    "adapter_dropout": "do",
    "train_rows": "n",
}
# As the configurations of methods name them.
_OF_ADAPTERS = {
    "reduction_factor": "reduction_factor",
    "rank": "rank",
    "alpha": "alpha",
    "length": "length",
    "adapter_dropout": "dropout",
}
_OF_DATA = "train_rows"  # a fact of the run's data, and no choice that scores are compared to make
_WHOLE = ("reduction_factor", "rank", "length", "epochs", "batch_size", _OF_DATA)
_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?"
_SWEPT = re.compile(rf"-({'|'.join(_CODES.values())})({_NUMBER})(?=-|$)")
_NAME = re.compile(rf"(.+?)((?:-(?:{'|'.join(_CODES.values())}){_NUMBER})+)")

SWEEPABLE = tuple(_CODES)
MOST_SEEDS = 1_000


class Variant(Record, frozen=True, kw_only=True):
    """A method, and the settings that a sweep puts in the place of its own.

    Attributes:
        name: what tables and records call it; the method's own name where nothing is swept.
        method: a placement, a baseline or a recipe.
        adapter: bottleneck choices under the names a recipe uses.
        training: training fields.
        train_rows: how many of the task's training rows it sees; all of them when None.
    """

    name: str
    method: str
    adapter: dict[str, Value] = {}
    training: dict[str, Value] = {}
    train_rows: int | None = None


def parse_sweeps(texts: Sequence[str]) -> dict[str, tuple[Value, ...]]:
    """Return the values of each field that ``learning_rate=5e-4,1e-3`` and others like it spell.

    Raises:
        ConfigError: not of this form, a field that cannot be swept or comes twice, a value it cannot have.
    """
    sweeps: dict[str, tuple[Value, ...]] = {}
    for text in texts:
        field, equals, listed = text.partition("=")
        require(bool(equals), "--sweep", "FIELD=VALUE,VALUE such as learning_rate=5e-4,1e-3", text)
        if field not in SWEEPABLE:
            raise ConfigError("--sweep", f"one of the fields {', '.join(SWEEPABLE)}", field, closest(field, SWEEPABLE))
        require(field not in sweeps, "--sweep", "every field once", field)
        values = tuple(_parse_value(field, part.strip()) for part in listed.split(","))
        distinct = len({_spell(value) for value in values}) == len(values)
        require(distinct, f"--sweep {field}", "values that differ in six digits", listed)
        sweeps[field] = values
    return sweeps


def make_variants(methods: Sequence[str], sweeps: Mapping[str, Sequence[Value]]) -> list[Variant]:
    """Return a variant per method and combination of swept values; the methods as they are without sweeps.

    Raises:
        ConfigError: a method that has no such setting, or a value that is out of range.
        InvalidNameError: so many settings that the name becomes too long.
    """
    fields = [field for field in SWEEPABLE if field in sweeps]  # one order, so that a name is spelled one way
    for method in methods:
        require(not fields or method != "majority", "--sweep", "methods that train (name them with --method)", method)
        for field in fields:
            fits = field not in _OF_ADAPTERS or method not in BASELINES
            require(fits, f"--sweep {field}", "methods with an adapter (name them with --method)", method)
    combinations = [
        dict(zip(fields, values, strict=True)) for values in itertools.product(*(sweeps[field] for field in fields))
    ]
    return [_make_variant(method, settings) for method in methods for settings in combinations]


def split_name(name: str) -> tuple[str, tuple[tuple[str, float], ...]]:
    """Return the method in a variant's name and the swept settings as (short form, value)."""
    found = _NAME.fullmatch(name)
    if found is None:
        return name, ()
    return found[1], tuple((code, float(value)) for code, value in _SWEPT.findall(found[2]))


def swept_settings(name: str) -> dict[str, float]:
    """Return the swept settings in a variant's name, by their own names."""
    fields = {code: field for field, code in _CODES.items()}
    return {fields[code]: value for code, value in split_name(name)[1]}


def swept_train_rows(name: str) -> int | None:
    """Return the number of training rows in a variant's name, None where it has the task's."""
    found = dict(split_name(name)[1]).get(_CODES[_OF_DATA])
    return None if found is None else int(found)


def _make_variant(method: str, settings: Mapping[str, Value]) -> Variant:
    spelled = "".join(f"-{_CODES[field]}{_spell(value)}" for field, value in settings.items())
    adapter = {_OF_ADAPTERS[field]: value for field, value in settings.items() if field in _OF_ADAPTERS}
    training = {field: value for field, value in settings.items() if field not in (*_OF_ADAPTERS, _OF_DATA)}
    rows = int(settings[_OF_DATA]) if _OF_DATA in settings else None
    if method not in BASELINES:  # a wrong value shows now, not when the rows are read
        chosen = read_recipe(method if method in recipe_names() else DEFAULT).with_choices(adapter, {}).adapter
        if isinstance(chosen, AdapterChoices):  # whose sizes are checked beside a backbone
            replace_fields(AdapterConfig(), adapter)
    replace_fields(TrainingConfig(), training)
    require(rows is None or rows >= 1, f"--sweep {_OF_DATA}", "at least 1 row", rows)
    name = check_name(f"{method}{spelled}", "method")
    return Variant(name=name, method=method, adapter=adapter, training=training, train_rows=rows)


def _parse_value(field: str, text: str) -> Value:
    kind, expected = (int, "whole numbers") if field in _WHOLE else (float, "numbers")
    try:
        value: Value = kind(text)
    except ValueError as err:
        raise ConfigError(f"--sweep {field}", f"{expected} with commas", text) from err
    require(math.isfinite(value), f"--sweep {field}", "finite numbers", text)
    return value + 0  # -0.0 is 0


def _spell(value: Value) -> str:
    """Return a number as it stands in a name: at most six digits, and no plus sign, which names do not have."""
    return str(value) if isinstance(value, int) else f"{value:g}".replace("e+", "e")


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that ``0,1,2`` or ``0-4`` spell.

    Raises:
        ConfigError: anything else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [first, last if dash else first]
        if not all(end.isascii() and end.isdigit() and len(end) <= 18 for end in ends):
            raise ConfigError("--seeds", "numbers such as 0,1,2 or 0-4", text)
        chosen = range(int(ends[0]), int(ends[1]) + 1)
        if not 1 <= len(chosen) <= MOST_SEEDS:
            raise ConfigError("--seeds", f"rising ranges of at most {MOST_SEEDS} seeds", text)
        seeds += chosen
    if len(set(seeds)) != len(seeds):
        raise ConfigError("--seeds", "distinct numbers such as 0,1,2 or 0-4", text)
    return seeds
