"""The door of the package: what it lists is there, documented, and nothing heavy is imported to look at it."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import registry
from registry import __all__ as names


def test_door_list_is_sorted_and_exact() -> None:
    """``__all__`` is sorted, and everything in it can be had."""
    assert sorted(names) == names
    assert set(names) - {"__version__"} == set(registry._HOMES)
    for name in names:
        assert getattr(registry, name) is not None


def test_public_names_are_documented() -> None:
    """Every public class and function says what it is."""
    for name in set(names) - {"__version__"}:
        thing = getattr(registry, name)
        assert inspect.getdoc(thing), name
        if inspect.isclass(thing):
            for method, found in vars(thing).items():
                if inspect.isfunction(found) and not method.startswith("_"):
                    assert inspect.getdoc(found), f"{name}.{method}"


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that is not there is told as Python tells it."""
    with pytest.raises(AttributeError, match="module 'registry' has no attribute 'no_such_name'"):
        registry.no_such_name  # noqa: B018


def test_help_and_list_import_nothing_heavy() -> None:
    """The command line starts without torch, transformers, pandas, datasets or scikit-learn."""
    code = (
        "import sys, registry.cli.main, registry.store.store;"
        "heavy = {'torch', 'transformers', 'pandas', 'datasets', 'sklearn', 'numpy', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.strip()
