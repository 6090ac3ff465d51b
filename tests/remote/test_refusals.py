"""A cloud that says no: what is told names the variables of that cloud, and no word of its answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from registry.store.errors import StoreAccessError
from registry.store.store import open_store
from tests.support.object_server import endpoint_settings

WORDS = b"<Error><Message>the key s3cr3t is unknown</Message></Error>"


class Refusing(BaseHTTPRequestHandler):
    """Answers every request with 403."""

    def do_GET(self) -> None:
        """Refuse."""
        self.send_response(403)
        self.send_header("Content-Length", str(len(WORDS)))
        self.end_headers()
        self.wfile.write(WORDS)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Each cloud's endpoint is a server of this machine that refuses."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    account = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    (tmp_path / "account.json").write_text(json.dumps(account))
    for name, value in {
        **endpoint_settings(server.server_port),
        "AZURE_STORAGE_ENDPOINT": f"{url}/account",
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_STORAGE_ACCOUNT_KEY": "czNjcjN0",
        "GOOGLE_SERVICE_ACCOUNT": str(tmp_path / "account.json"),
    }.items():
        monkeypatch.setenv(name, value)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("scheme", "variable"),
    [("s3", "AWS_ACCESS_KEY_ID"), ("gs", "GOOGLE_APPLICATION_CREDENTIALS"), ("az", "AZURE_STORAGE_ACCOUNT_NAME")],
)
def test_a_refusal_names_what_its_own_cloud_reads(refusing: None, scheme: str, variable: str) -> None:
    """Whoever may not read a store learns where its cloud looks for credentials."""
    with pytest.raises(StoreAccessError, match=rf"expected credentials that may do this \({variable}") as caught:
        open_store(f"{scheme}://bucket/sets")
    assert "found status 403" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
