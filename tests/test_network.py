"""Finding out whether the Hub can be asked, against servers of our own that misbehave."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

from registry.network import HubError, HubUnavailableError, ask, find_obstacle, hub_errors
from tests.support.hub import refusal


def model_info() -> object:
    """Ask whatever endpoint the constants name for a repository."""
    return HfApi(endpoint=constants.ENDPOINT).model_info("adapter-registry-tests/none", timeout=5)


def test_hub_that_never_answers_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and says nothing is given up when time is up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        obstacle = find_obstacle(model_info, seconds=0.3)
        assert f"{constants.ENDPOINT} does not answer" == obstacle
        assert time.monotonic() - start < 3
        time.sleep(0.3)


def test_hub_that_refuses_the_connection_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port is told as such, not raised."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port} does not answer" == find_obstacle(model_info)


@pytest.mark.parametrize(
    ("code", "exit_code", "found"),
    [
        (401, 1, "expected a valid token of the Hub, found one that it refuses; log in"),
        (403, 1, "expected a token that may write there, found one that may not"),
        (409, 1, "expected a name that is free, found a repository that is there already"),
        (418, 1, "found status 418"),
        (429, 6, "found status 429"),
        (503, 6, "found status 503"),
    ],
)
def test_codes_of_the_hub_are_told(code: int, exit_code: int, found: str) -> None:
    """Each in one line, with the exit code of what it means: a refusal, or a Hub that cannot be asked now."""

    def question() -> None:
        raise refusal(HfHubHTTPError, code)

    with pytest.raises(HubError, match=found) as caught, hub_errors("push to", "me/mood"):
        question()
    assert (exit_code, 1) == (caught.value.exit_code, len(str(caught.value).splitlines()))
    assert (exit_code == 6) == isinstance(caught.value, HubUnavailableError)
    if exit_code == 6:
        assert "refuses" in ask(question)[0]
    else:
        with pytest.raises(HfHubHTTPError):
            ask(question)


def test_a_gated_repository_is_told() -> None:
    """It is there, but not for everybody."""
    with (
        pytest.raises(HubError, match="found a gated repository; ask for access on its page"),
        hub_errors("pull", "a/b"),
    ):
        raise refusal(GatedRepoError, 403)


def test_an_answer_is_given_back() -> None:
    """Whatever the question returned, and no obstacle."""
    assert ("", 7) == ask(lambda: 7)
