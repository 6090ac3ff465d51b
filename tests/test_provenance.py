"""Where a result comes from: versions, machine, code and command, without importing what they are about."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest

import registry
from registry.provenance import code_version, command_line, hardware, library_versions

PACKAGE = Path(registry.__file__).parent


def test_versions_are_those_installed() -> None:
    """Every library that decides numbers is listed with the version that is installed."""
    versions = library_versions()
    assert {"python", "torch", "transformers", "tokenizers", "safetensors", "scikit-learn"} <= set(versions)
    assert ".".join(map(str, sys.version_info[:3])) == versions.pop("python")
    assert {name: metadata.version(name) for name in versions} == versions


def test_hardware_is_this_machine() -> None:
    """Cores, memory and system are the machine's; threads and accelerator are as told."""
    found = hardware(3, "a GPU")
    assert (3, "a GPU") == (found.threads, found.accelerator)
    assert psutil.virtual_memory().total == found.memory_bytes
    assert found.cores >= 1
    assert found.processor


def test_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is the program's name without its folder, and arguments quoted for a shell."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/adapter-registry", "predict", "sst2", "a film"])
    assert "adapter-registry predict sst2 'a film'" == command_line()


def test_code_is_a_commit_or_a_release() -> None:
    """A checkout tells its commit and whether the package was changed since; an installation its release."""
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?|release \S+", code_version())


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_of_somebody_else_is_not_ours(tmp_path: Path) -> None:
    """Installed inside another project's repository, the package does not pass that project's commit off as its own."""
    shutil.copytree(PACKAGE, tmp_path / "registry", ignore=shutil.ignore_patterns("__pycache__", "sample"))
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "--quiet"], [*who, "commit", "--quiet", "--allow-empty", "--message", "theirs"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    script = "import registry.provenance as found; print(found.__file__); print(found.code_version())"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    where, version = done.stdout.splitlines()
    assert tmp_path / "registry" / "provenance.py" == Path(where)
    assert f"release {registry.__version__}" == version
