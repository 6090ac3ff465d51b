"""Setting up survives being started twice at once, and being killed halfway."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
# Stands in for Python: it answers the version question and locks as the real one does, and notes what it is to make.
PYTHON = """#!/bin/bash
real={real} log={log}
case "$*" in
"- "*) exec "$real" "$@" ;;
"-c "*) exit 0 ;;
*"-m pip --version"*) test -f "$(dirname "$0")/pip" ;;
*"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo venv >> "$log"; sleep 0.3; touch .venv/bin/pip ;;
*"-m pip install"*)
    echo install >> "$log"; sleep ${{SLOW:-0.5}}; cp "$0" .venv/bin/adapter-registry; echo installed >> "$log" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the real scripts and a stand-in for Python, which writes what it did into ``log``."""
    (tmp_path / "scripts").mkdir()
    for name in ("setup", "lock", "constraints.txt"):
        shutil.copy(HERE / "scripts" / name, tmp_path / "scripts")
    shutil.copy(HERE / "pyproject.toml", tmp_path)
    stand_in = tmp_path / "python"
    stand_in.write_text(PYTHON.format(real=shutil.which("python3"), log=tmp_path / "log"))
    stand_in.chmod(0o755)
    return tmp_path


def start(checkout: Path, **environment: str) -> subprocess.Popen[str]:
    """Start scripts/setup in a process group of its own."""
    return subprocess.Popen(
        [checkout / "scripts" / "setup"],
        env={**os.environ, "PYTHON": str(checkout / "python"), **environment},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process and return its exit status and what it told on stderr."""
    told = process.communicate(timeout=60)[1]
    return process.returncode, told


def log_of(checkout: Path) -> list[str]:
    """Return what the stand-in did so far."""
    path = checkout / "log"
    return path.read_text().split() if path.exists() else []


def wait_for(checkout: Path, entry: str) -> None:
    """Wait until the stand-in has noted ``entry``."""
    for _ in range(600):
        if entry in log_of(checkout):
            return
        time.sleep(0.05)
    raise AssertionError(f"expected '{entry}', found {log_of(checkout)}")


def test_two_setups_at_once_install_once(checkout: Path) -> None:
    """The second waits, says so, and finds everything made; a third has nothing to do."""
    first = start(checkout, SLOW="3")
    wait_for(checkout, "venv")
    second = start(checkout)
    status, told = finish(second)
    assert (0, True) == (status, "waiting for another one" in told)
    assert 0 == finish(first)[0]
    assert (0, "") == finish(start(checkout))
    assert ["venv", "install", "installed"] == log_of(checkout)


def test_an_install_that_outlives_its_setup_is_waited_for(checkout: Path) -> None:
    """After kill -9 of the script alone its pip goes on, and the next setup does not install beside it."""
    killed = start(checkout, SLOW="3")
    wait_for(checkout, "install")
    os.kill(killed.pid, signal.SIGKILL)
    assert 0 == finish(start(checkout))[0]
    finish(killed)
    assert ["venv", "install", "installed", "install", "installed"] == log_of(checkout)


def test_an_upgrade_that_was_killed_is_not_taken_for_done(checkout: Path) -> None:
    """The pins of an environment that was being changed are not trusted, though they are the wanted ones again."""
    assert 0 == finish(start(checkout))[0]
    pins = checkout / "scripts" / "constraints.txt"
    before = pins.read_text()
    pins.write_text(before + "# another\n")
    killed = start(checkout, SLOW="30")
    for _ in range(600):
        if log_of(checkout).count("install") == 2:
            break
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    finish(killed)
    pins.write_text(before)
    assert 0 == finish(start(checkout))[0]
    assert 3 == log_of(checkout).count("install")


@pytest.mark.parametrize("moment", ["venv", "install"])
def test_a_killed_setup_leaves_nothing_that_the_next_cannot_mend(checkout: Path, moment: str) -> None:
    """After kill -9, while the environment has no pip yet or half its packages, the next run makes it whole."""
    killed = start(checkout, SLOW="30")
    wait_for(checkout, moment)
    os.killpg(killed.pid, signal.SIGKILL)
    finish(killed)
    assert 0 == finish(start(checkout))[0]
    assert "installed" == log_of(checkout)[-1]
    assert (2 if moment == "venv" else 1) == log_of(checkout).count("venv")
