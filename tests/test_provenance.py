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
    copy_package(tmp_path)
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "theirs")
    assert f"release {registry.__version__}" == version_in(tmp_path)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_code_changes_only_with_the_package(tmp_path: Path) -> None:
    """Commits of other files leave the version as it is; changes of the package mark it until they are committed."""
    copy_package(tmp_path)
    git(tmp_path, "add", "registry")
    git(tmp_path, "commit", "--quiet", "--message", "package")
    first = version_in(tmp_path)
    assert git(tmp_path, "rev-parse", "HEAD")[:12] == first
    (tmp_path / "results.csv").write_text("0.9")
    git(tmp_path, "add", "results.csv")
    git(tmp_path, "commit", "--quiet", "--message", "results")
    assert first == version_in(tmp_path)
    (tmp_path / "registry" / "new.py").write_text("")
    assert f"{first}-dirty" == version_in(tmp_path)
    git(tmp_path, "add", "registry")
    git(tmp_path, "commit", "--quiet", "--message", "change")
    assert git(tmp_path, "rev-parse", "HEAD")[:12] == version_in(tmp_path) != first


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_package_that_was_never_committed_is_a_release(tmp_path: Path) -> None:
    """Files that are only about to be committed have no commit to be told by."""
    copy_package(tmp_path)
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "empty")
    git(tmp_path, "add", "registry")
    assert f"release {registry.__version__}" == version_in(tmp_path)


def copy_package(folder: Path) -> None:
    """Put the package's sources into a new repository."""
    shutil.copytree(PACKAGE, folder / "registry", ignore=shutil.ignore_patterns("__pycache__", "sample"))
    git(folder, "init", "--quiet")
    (folder / ".gitignore").write_text("__pycache__\n")


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def version_in(folder: Path) -> str:
    """Return what a process that imports the package from ``folder`` says."""
    script = "import registry.provenance as found; print(found.__file__); print(found.code_version())"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    where, version = done.stdout.splitlines()
    assert folder / "registry" / "provenance.py" == Path(where)
    return version
