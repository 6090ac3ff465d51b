"""Ray found or not: one line that says what to do."""

from __future__ import annotations

import socket
import sys

import pytest

from registry.cluster.connection import ClusterError, connect
from tests.support.command_line import call

COMMANDS = (("bench", "mrpc"), ("train", "mrpc"), ("serve",))
ADDRESSES = ("ray:", "ray://host", "ray://host:port", "spark")


@pytest.mark.parametrize("on", ADDRESSES)
def test_an_address_that_is_none_is_told(on: str) -> None:
    """Whatever is neither ray nor ray://HOST:PORT is refused before anything is loaded."""
    outcome = call("bench", "mrpc", "--on", on)
    assert 2 == outcome.code
    assert outcome.message.startswith("adapter-registry: cannot use --on: expected ray, or ray://HOST:PORT, found")


def test_an_address_where_nobody_listens_is_told() -> None:
    """Where nobody listens, the address and the way to start a Ray there are told, soon and in one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ClusterError, match=f"listens on ray://127.0.0.1:{port}, found .*; 'ray start --head'"):
        connect(f"ray://127.0.0.1:{port}").__enter__()


@pytest.mark.parametrize("command", COMMANDS)
def test_without_ray_the_line_that_installs_it_is_told(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that takes --on tells how the extra is installed where it is not."""
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = call(*command, "--on", "ray")
    assert 2 == outcome.code
    assert outcome.message.endswith("expected ray to be installed, found 'no ray'; pip install 'adapter-registry[ray]'")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_share_of_a_gpu_without_a_cluster_is_refused(command: tuple[str, ...]) -> None:
    """An option that would do nothing is no silent one."""
    outcome = call(*command, "--gpu-share", "0.5")
    assert (2, True) == (outcome.code, "cannot use --gpu-share: expected --on beside it" in outcome.message)
