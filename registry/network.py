"""Whether the Hub can be asked at all, found out within a few seconds.

The Hub's libraries wait and retry for half a minute when there is no network; whoever wants something from it asks
here first, and reads the cache alone where there is an obstacle.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import cast

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

ANSWER_SECONDS = 5.0

# The HTTP library's own base error: httpx or httpx2, by the version of huggingface_hub, and not an OSError.
HttpError: type[Exception] = cast(type[Exception], HfHubHTTPError.__mro__[1])


def is_offline() -> bool:
    """Return whether the environment says never to ask the network (``HF_HUB_OFFLINE``)."""
    asked = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return asked or bool(constants.HF_HUB_OFFLINE)


def find_obstacle(question: Callable[[], object], seconds: float = ANSWER_SECONDS) -> str:
    """Return why the Hub cannot be asked, or an empty string if it answers ``question`` within ``seconds``.

    The question is asked in a thread that is left behind when time is up: a name look-up, or a connection tried on
    address after address, takes as long as it likes whatever timeout is given.

    Args:
        question: any small request; that the Hub knows no such repository is an answer too.
        seconds: to wait at most.
    """
    answer: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=lambda: answer.put(_ask(question)), daemon=True).start()
    try:
        return answer.get(timeout=seconds)
    except queue.Empty:
        return f"{constants.ENDPOINT} does not answer"


def _ask(question: Callable[[], object]) -> str:
    try:
        question()
    except RepositoryNotFoundError:
        return ""  # an answer all the same, and a copy may be cached
    except HfHubHTTPError as err:
        return f"{constants.ENDPOINT} refuses ({' '.join(str(err).split())[:80]})"
    except (HttpError, OSError, ValueError):
        return f"{constants.ENDPOINT} does not answer"
    return ""
