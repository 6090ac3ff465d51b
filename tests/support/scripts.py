"""Files of ``scripts/`` as modules: they belong to no package, and are proved like the rest."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).parents[2] / "scripts"


@cache
def load_script(name: str) -> ModuleType:
    """Return a file such as ``on_gpu/report.py``, run once as a module."""
    path = SCRIPTS / name
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for the module that it is of
    spec.loader.exec_module(module)
    return module
