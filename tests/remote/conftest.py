"""One S3 server for all tests of the room, and a place of its own in it for each."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.object_server import BUCKET, FaultyNetwork, endpoint_settings, object_server


@pytest.fixture(scope="session")
def server_port() -> Iterator[int]:
    """The port of a real S3 server with an empty bucket."""
    with object_server() as port:
        yield port


@pytest.fixture
def address(server_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An address with nothing under it."""
    for name, value in endpoint_settings(server_port).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ADAPTER_REGISTRY_CACHE", str(tmp_path / "cache"))
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def network(server_port: int, address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyNetwork]:
    """A network without faults, as yet, between the store and its server."""
    network = FaultyNetwork(server_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{network.port}")
    yield network
    network.close()
