"""Whether the Hub can be asked at all, found out within a few seconds, and what can go wrong with a repository of it.

    RegistryError
    └── HubError                               1  a repository that we may not write, or that is taken
        ├── HubNotFoundError     (LookupError) 3  no such repository or revision, or none with a set in it
        └── HubUnavailableError                6  the Hub cannot be reached and nothing is cached

The Hub's libraries wait and retry for half a minute when there is no network; whoever wants something from it asks
here first, and reads the cache alone where there is an obstacle.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from registry.errors import ConfigError, RegistryError

ANSWER_SECONDS = 5.0

# The HTTP library's own base error: httpx or httpx2, by the version of huggingface_hub, and not an OSError.
HttpError: type[Exception] = cast(type[Exception], HfHubHTTPError.__mro__[1])

_LOG_IN = "log in with 'hf auth login', or set HF_TOKEN"

_T = TypeVar("_T")


class HubError(RegistryError):
    """A repository of the Hub that cannot be written or read."""

    def __init__(self, attempted: str, repository: str, expected: str, found: str, hint: str) -> None:
        self.repository, self.expected, self.found = repository, expected, found
        super().__init__(f"cannot {attempted} hub:{repository}: expected {expected}, found {found}; {hint}")


class HubNotFoundError(HubError, LookupError):
    """A repository or a revision that is not there, or holds no set."""

    exit_code = 3


class HubUnavailableError(HubError):
    """The Hub can be neither reached nor is what was wanted of it cached."""

    exit_code = 6


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


def ask(question: Callable[[], _T]) -> tuple[str, _T | None]:
    """Return why the Hub cannot be asked, an empty text if it can, and its answer.

    Raises:
        LocalTokenNotFoundError, HfHubHTTPError: the Hub's answer is a refusal.
    """
    kept: list[_T | Exception] = []

    def ask_once() -> None:
        try:
            kept.append(question())
        except (LocalTokenNotFoundError, HfHubHTTPError) as err:
            if isinstance(err, HfHubHTTPError) and (err.response.status_code >= 500 or err.response.status_code == 429):
                raise
            kept.append(err)

    obstacle = find_obstacle(ask_once)
    if obstacle:
        return obstacle, None
    (answer,) = kept
    if isinstance(answer, Exception):
        raise answer
    return "", answer


@contextmanager
def hub_errors(attempted: str, repository: str, revision: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises in the block into one line of ours.

    Raises:
        HubError, HubNotFoundError, HubUnavailableError: by what went wrong.
        ConfigError: the Hub refuses what is to be written, such as a model card.
    """
    try:
        yield
    except LocalTokenNotFoundError as err:
        raise HubError(attempted, repository, "a token of the Hub", "none", _LOG_IN) from err
    except GatedRepoError as err:
        raise HubError(attempted, repository, "access", "a gated repository", "ask for access on its page") from err
    except RevisionNotFoundError as err:
        raise HubNotFoundError(attempted, repository, f"a revision '{revision}'", "none", "check its name") from err
    except RepositoryNotFoundError as err:
        hint = f"check the name; for a private one {_LOG_IN}"
        raise HubNotFoundError(attempted, repository, "a repository", "none that we may see", hint) from err
    except HfHubHTTPError as err:
        raise _refusal(attempted, repository, err) from err
    except (HttpError, OSError) as err:
        found = f"{constants.ENDPOINT} does not answer"
        raise HubUnavailableError(attempted, repository, "an answer of the Hub", found, "try again later") from err
    except ValueError as err:
        if isinstance(err, RegistryError):
            raise
        raise ConfigError(f"hub:{repository}", "what the Hub accepts", " ".join(str(err).split())[:200]) from err


def _refusal(attempted: str, repository: str, err: HfHubHTTPError) -> HubError:
    """Return what an answer with an error code of HTTP means."""
    code, told = err.response.status_code, " ".join(str(err).split())[:120]
    expected, found, hint = {
        401: ("a valid token of the Hub", "one that it refuses", _LOG_IN),
        403: ("a token that may write there", "one that may not", "use another token, or another ORG"),
        409: ("a name that is free", "a repository that is there already", "choose another, or --force adds a commit"),
    }.get(code, ("an answer of the Hub", f"status {code} ({told})", "try again later"))
    kind = HubUnavailableError if code >= 500 or code == 429 else HubError
    return kind(attempted, repository, expected, found, hint)


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
