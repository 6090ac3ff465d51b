"""Where a stored set or a run comes from: libraries, machine, code and command.

Reads package metadata and the operating system, and imports none of the libraries it names.
"""

from __future__ import annotations

import functools
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil

from registry.validation import Record
from registry.version import __version__


class Hardware(Record, frozen=True, kw_only=True):
    """The machine of a run; timings are compared only where it is the same."""

    processor: str
    cores: int
    threads: int
    memory_bytes: int
    accelerator: str | None = None
    system: str


DIRTY = "-dirty"  # ends the version of code with uncommitted changes

_LIBRARIES = ("adapter-registry", "torch", "transformers", "tokenizers", "safetensors", "datasets", "scikit-learn")


def library_versions() -> dict[str, str]:
    """Return the installed version of this package and of the libraries that decide its numbers."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:  # e.g. run from a folder of sources that was never installed
            continue
    return versions


def hardware(threads: int, accelerator: str | None) -> Hardware:
    """Return what this machine is.

    Args:
        threads: that torch computes with.
        accelerator: name of the GPU at work, None on the CPU.
    """
    return Hardware(
        processor=_processor(),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        threads=threads,
        memory_bytes=psutil.virtual_memory().total,
        accelerator=accelerator,
        system=f"{platform.system()} {platform.machine()}",
    )


@functools.cache
def code_version() -> str:
    """Return the last commit that changed the package, ``-dirty`` where it was changed since; else the release.

    Commits of other files, such as a benchmark's results, do not change the code. It is asked for once, early: a
    process goes on with the code it has loaded, whatever becomes of the files.
    """
    here = Path(__file__).parent
    try:
        _git(here, "ls-files", "--error-unmatch", "version.py")  # installed inside a repository of somebody else?
        commit = _git(here, "log", "-1", "--format=%H", "--", ".")
        changed = _git(here, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.SubprocessError):
        commit = ""
    if not commit:  # installed, or never committed
        return f"release {__version__}"
    return commit[:12] + (DIRTY if changed else "")


def command_line() -> str:
    """Return the command that this process was started with, as one could type it again."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
