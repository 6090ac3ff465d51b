"""The command serve: what it refuses before it serves, and that nothing else needs what it needs."""

from __future__ import annotations

import hashlib
import shlex
import socket
import subprocess
from pathlib import Path

import httpx2
import pytest

from registry.model.backbone import Backbone
from tests.support.command_line import call
from tests.support.served_sets import save_kinds
from tests.support.server import HERE, Program
from tests.support.stored_sets import run_python

WITHOUT = """
import sys  # huggingface_hub brings httpx2 along, so it can only be called missing
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"fastapi", "fastapi_offline", "starlette", "uvicorn", "prometheus_client"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in (
    "fastapi", "fastapi_offline", "uvicorn", "prometheus_client", "httpx2") else found(name, package)
"""


@pytest.fixture
def store(tmp_path: Path, tiny_backbone: Backbone) -> Path:
    """A store with a set of every kind."""
    return Path(save_kinds(tmp_path / "store", tiny_backbone).store.root)


def test_without_the_extra_one_line_says_what_to_install(store: Path) -> None:
    """``serve`` names the missing packages and the extra; a client does too."""
    done = run_python(f"{WITHOUT}\nfrom registry.cli.main import main\nmain(['--store', {str(store)!r}, 'serve'])")
    assert (2, 1) == (done.returncode, len(done.stderr.splitlines())), done.stderr
    needed = "fastapi, fastapi_offline, uvicorn, prometheus_client"
    assert f"expected {needed} to be installed, found 'no fastapi" in done.stderr
    assert "pip install 'adapter-registry[serve]'" in done.stderr
    done = run_python(f"{WITHOUT}\nimport registry\nregistry.Client('http://127.0.0.1:1')")
    assert "pip install 'adapter-registry[serve]'" in done.stderr.splitlines()[-1]


def test_other_commands_load_none_of_it(store: Path) -> None:
    """A prediction on the command line imports no web framework, though it is installed."""
    code = (
        "import sys; from registry.cli.main import main\n"
        f"try: main(['--store', {str(store)!r}, '--offline', 'predict', 'task0', 'good'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'fastapi', 'starlette', 'uvicorn', 'prometheus_client'} & set(sys.modules)))"
    )
    done = run_python(code)
    assert "[]" == done.stdout.splitlines()[-1], done.stderr


def test_what_is_amiss_is_told_before_anything_is_loaded(store: Path, tmp_path: Path) -> None:
    """No store, no key in the file of keys, and an address that is taken each end in one line."""
    outcome = call("--store", tmp_path / "none", "serve")
    assert (3, "expected a folder with store.json" in outcome.message) == (outcome.code, True)
    (tmp_path / "keys").write_text("secret\n")
    outcome = call("--store", store, "serve", "--api-keys", tmp_path / "keys")
    assert (2, True) == (outcome.code, "expected the SHA-256 of a key, in hex" in outcome.message)
    assert "secret" not in outcome.err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = call("--store", store, "serve", "--port", taken.getsockname()[1])
    assert (2, True) == (outcome.code, "expected a free address of this machine" in outcome.message)


@pytest.mark.slow
def test_the_three_questions_of_the_readme_are_answered() -> None:
    """What README and scripts/serve-demo ask with curl is the same, and the shipped sets answer it."""
    readme, script = ((HERE / name).read_text(encoding="utf-8") for name in ("README.md", "scripts/serve-demo"))
    lines = [shlex.split(line) for line in readme.splitlines() if line.startswith("curl ")]
    assert 3 == len(lines)
    with Program(HERE / "adapters_store", "--no-log") as program:
        answers = []
        for _, _, address, _, body in lines:
            path = address.removeprefix("127.0.0.1:8000")
            assert f"ask {path} '{body}'" in script
            answer = httpx2.post(f"{program.url}{path}", content=body, timeout=60)
            assert 200 == answer.status_code, answer.text
            answers.append(answer.json())
    ours, foreign, tensors = answers
    assert ["positive", "equivalent"] == [answer["label"] for answer in ours["answers"]]
    assert "pos" == foreign[0][0]["label"]
    assert ("2", ["negative"]) == (tensors["model_version"], tensors["outputs"][0]["data"])


def test_a_key_is_hashed_as_the_documentation_says() -> None:
    """``printf %s KEY | sha256sum`` gives what a file of keys holds."""
    done = subprocess.run("printf %s key | sha256sum", shell=True, capture_output=True, text=True, check=True)
    assert hashlib.sha256(b"key").hexdigest() == done.stdout.split()[0]
