"""Asking the Hub, without one: what is said when it is away, and that saying it is quick."""

from __future__ import annotations

import time

import pytest
from huggingface_hub import constants

from registry.errors import DataUnavailableError
from registry.tasks.hub import fetch_from_hub
from registry.tasks.spec import HubSource

UNKNOWN = HubSource(path="adapter-registry-tests/no-such-data-set", config="none")


def test_offline_and_not_cached_is_told_at_once() -> None:
    """With ``offline`` nothing is asked, and the message says how to go on."""
    with pytest.raises(DataUnavailableError, match="set 'adapter-registry-tests/no-such-data-set none': offline was"):
        fetch_from_hub(UNKNOWN, ("train",), True, obstacle=lambda source: pytest.fail("the Hub was asked"))


def test_offline_by_environment_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE means the same as ``offline``."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataUnavailableError, match="offline was asked for, and it is not cached; use --data sample"):
        fetch_from_hub(UNKNOWN, ("train",), obstacle=lambda source: pytest.fail("the Hub was asked"))


def test_hub_that_is_away_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer only the cache is read, so the library's own half minute of retries never starts."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    start = time.monotonic()
    with pytest.raises(DataUnavailableError, match="the line is dead, and it is not cached") as caught:
        fetch_from_hub(UNKNOWN, ("train",), obstacle=lambda source: "the line is dead")
    assert time.monotonic() - start < 10
    assert 6 == caught.value.exit_code
