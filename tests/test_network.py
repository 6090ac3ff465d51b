"""Finding out whether the Hub can be asked, against servers of our own that misbehave."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import HfApi, constants

from registry.network import find_obstacle


def ask() -> object:
    """Ask whatever endpoint the constants name for a repository."""
    return HfApi(endpoint=constants.ENDPOINT).model_info("adapter-registry-tests/none", timeout=5)


def test_hub_that_never_answers_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and says nothing is given up when time is up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        obstacle = find_obstacle(ask, seconds=0.3)
        assert f"{constants.ENDPOINT} does not answer" == obstacle
        assert time.monotonic() - start < 3
        time.sleep(0.3)


def test_hub_that_refuses_the_connection_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port is told as such, not raised."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port} does not answer" == find_obstacle(ask)
