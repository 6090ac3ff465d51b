"""The version of this package, told without importing anything heavy."""

from __future__ import annotations

from importlib import metadata

try:
    __version__ = metadata.version("adapter-registry")
except metadata.PackageNotFoundError:  # a folder of sources that was never installed
    __version__ = "0+unknown"
