"""A set in a repository of the Hub: pushed in one commit with its model card, pulled into a store.

Only safetensors, JSON and the card go up, and of a repository only the files of a set come down, each within the
store's limits. The Hub is a ``HubClient``: ``huggingface_hub``'s own, or another that has its methods. Knows bytes,
nothing of torch, so that a Hub that does not answer is told of at once.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import LocalEntryNotFoundError

from registry.errors import shorten
from registry.network import ANSWER_SECONDS, HubNotFoundError, HubUnavailableError, ask, hub_errors, is_offline
from registry.store import files
from registry.store.archive import archive_errors
from registry.store.errors import ArchiveError
from registry.store.manifest import FILE_LIMIT, MANIFEST_LIMIT
from registry.validation import require

MARK = "hub:"
README = "README.md"
UPLOADED = ("*.safetensors", "*.json", README)  # nothing else ever leaves this machine
# The files that make a set, ours and those of AdapterHub and PEFT.
DOWNLOADED = (
    *("manifest.json", "adapter.safetensors", "head.safetensors"),
    *("adapter_config.json", "head_config.json", "model_head.safetensors", "adapter_model.safetensors"),
)

_PICKLED = ("pytorch_adapter.bin", "pytorch_model_head.bin", "adapter_model.bin")  # never downloaded
_ONCE = "pull it once where there is a network"
_SETS = ("manifest.json", "adapter_config.json")  # one of these is in every repository of a set
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_REPOSITORY = re.compile(r"\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)
_REVISION = re.compile(r"\w([\w./-]{0,200}\w)?", re.ASCII)


class HubReference(NamedTuple):
    """A repository of the Hub, and which state of it; None is the newest."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubReference:
        """Return what ``hub:ORG/NAME`` or ``hub:ORG/NAME@REVISION`` spells.

        Raises:
            ConfigError: it is neither.
        """
        repository, at, revision = text.removeprefix(MARK).partition("@")
        good = _REPOSITORY.fullmatch(repository) is not None and len(repository) <= 96 and "--" not in repository
        fits = not at or _REVISION.fullmatch(revision) is not None
        spelt = text.startswith(MARK) and good and fits and ".." not in text
        require(spelt, "repository", "hub:ORG/NAME or hub:ORG/NAME@REVISION", text[:120])
        return cls(repository, revision or None)

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


class HubClient(Protocol):
    """What of ``huggingface_hub.HfApi`` is asked for; a test passes one of its own, which keeps files in a folder."""

    def whoami(self) -> Any:
        """Return whose token is sent."""

    def model_info(self, repo_id: str, *, revision: str | None, timeout: float, files_metadata: bool) -> Any:
        """Return a repository's ``siblings``, each with ``rfilename`` and ``size``."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Make a repository."""

    def create_commit(self, repo_id: str, operations: Any, *, commit_message: str) -> Any:
        """Add and delete files in one commit."""

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool
    ) -> str:
        """Return the folder with a revision's files, from the network or the cache."""


def check_writable(repository: str, *, offline: bool = False, client: HubClient | None = None) -> HubReference:
    """Return which repository is meant, where the Hub answers and knows whose token is sent.

    Raises:
        ConfigError: it is none that can be pushed to.
        HubError: no token, or one that the Hub does not know.
        HubUnavailableError: the Hub cannot be reached.
    """
    target, api = HubReference.parse(repository), client or HfApi()
    require(target.revision is None, "repository", "hub:ORG/NAME, as a push makes the revision", repository)
    with hub_errors("push to", target.repository):
        obstacle = "offline was asked for" if offline or is_offline() else ask(api.whoami)[0]
    if obstacle:
        hint = "--dry-run DIR writes the files alone"
        raise HubUnavailableError("push to", target.repository, "an answer of the Hub", obstacle, hint)
    return target


def check_uploadable(names: Iterable[str]) -> None:
    """Raise ConfigError if a file has a name of another kind than those that are uploaded."""
    for name in names:
        allowed = any(fnmatchcase(name, pattern) for pattern in UPLOADED) and "/" not in name
        require(allowed, f"file '{name[:80]}'", f"{', '.join(UPLOADED)}, as nothing else is uploaded", name)


def upload(
    repository: str,
    contents: Mapping[str, bytes],
    message: str,
    *,
    private: bool = False,
    force: bool = False,
    offline: bool = False,
    client: HubClient | None = None,
) -> str:
    """Make a repository with these files, in one commit, and return its address.

    Args:
        repository: ``hub:ORG/NAME``.
        contents: its files by name.
        message: of the commit.
        private: whether only its owners see it.
        force: take a repository that is there already; its files of the kinds that are uploaded become these.
        offline: never ask the network; ``HF_HUB_OFFLINE`` means the same.
        client: another Hub than the real one.

    Raises:
        ConfigError: a repository that is none, or a file of a kind that is never uploaded.
        HubError: no token, no right to write there, or the name is taken.
        HubUnavailableError: the Hub cannot be reached.
    """
    check_uploadable(contents)
    api = client or HfApi()
    target = check_writable(repository, offline=offline, client=api)
    with hub_errors("push to", target.repository):
        api.create_repo(target.repository, private=private, exist_ok=force)
        operations: list[Any] = [CommitOperationAdd(name, data) for name, data in sorted(contents.items())]
        operations += [CommitOperationDelete(name) for name in _stale(api, target, contents) if force]
        api.create_commit(target.repository, operations, commit_message=message)
    return f"{constants.ENDPOINT}/{target.repository}"


def _stale(api: HubClient, target: HubReference, contents: Mapping[str, bytes]) -> list[str]:
    """Return the files of earlier pushes that the new ones do not replace."""
    info = api.model_info(target.repository, revision=None, timeout=ANSWER_SECONDS, files_metadata=False)
    kinds = [pattern for pattern in UPLOADED if pattern != README]
    there = [each.rfilename for each in info.siblings or ()]
    return [name for name in there if name not in contents and any(fnmatchcase(name, kind) for kind in kinds)]


@contextmanager
def pulled(reference: str, *, offline: bool = False, client: HubClient | None = None) -> Iterator[Path]:
    """Give a folder with the files of a set in a repository, which is gone after the block.

    Args:
        reference: ``hub:ORG/NAME`` or ``hub:ORG/NAME@REVISION``.
        offline: only from the cache; ``HF_HUB_OFFLINE`` means the same.
        client: another Hub than the real one.

    Raises:
        HubNotFoundError: no such repository or revision, or one without a set, or whose weights are pickles alone.
        HubUnavailableError: it is not cached, and the Hub cannot be reached.
        ArchiveError: a file that is too large.
    """
    target, api = HubReference.parse(reference), client or HfApi()
    with opened(_download(target, api, offline or is_offline())) as folder:
        yield folder


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Give a path as it is, but a snapshot in the Hub's cache as a folder with the files that its links lead to.

    Raises:
        ArchiveError: a link that leads out of the repository's cache, or a file that is too large.
    """
    place = Path(os.path.realpath(path))
    if place.parent.name != "snapshots" or not place.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / place.parents[1].name.rpartition("--")[2]
        folder.mkdir()
        _copy(place, folder)
        yield folder


def _download(target: HubReference, api: HubClient, offline: bool) -> Path:
    """Return the snapshot of a repository, after a look at what is in it."""
    with hub_errors("pull", target.repository, target.revision):
        obstacle = "offline was asked for"
        if not offline:
            obstacle, info = ask(
                lambda: api.model_info(
                    target.repository, revision=target.revision, timeout=ANSWER_SECONDS, files_metadata=True
                )
            )
            if info is not None:
                _check_listing(target, {each.rfilename: each.size or 0 for each in info.siblings or ()})
        try:
            snapshot = Path(
                api.snapshot_download(
                    target.repository,
                    revision=target.revision,
                    allow_patterns=list(DOWNLOADED),
                    local_files_only=bool(obstacle),
                )
            )
        except LocalEntryNotFoundError as err:
            found = f"nothing there, and {obstacle or 'the Hub stopped answering'}"
            raise HubUnavailableError("pull", str(target), "it in the cache", found, _ONCE) from err
    _check_listing(target, dict.fromkeys(files.entries(snapshot), 0))
    return snapshot


def _check_listing(target: HubReference, sizes: Mapping[str, int]) -> None:
    """Raise an error unless files of these names and sizes are those of a set that can be read."""
    names = list(sizes)
    pickles = [name for name in names if any(fnmatchcase(name, pattern) for pattern in _PICKLES)]
    if not any(name in DOWNLOADED and name.endswith(".safetensors") for name in names) and pickles:
        hint = "ask its owners to save it with safetensors, or download it and use 'import FOLDER --allow-pickle'"
        found = f"pickled weights only ({shorten(pickles, 3)})"
        raise HubNotFoundError("pull", str(target), "weights in safetensors", found, hint)
    if not set(_SETS) & set(names):
        found = shorten(names, 4)
        hint = "a whole model is a backbone: 'init --backbone'" if "config.json" in names else "check the name"
        raise HubNotFoundError("pull", str(target), f"a set, with {' or '.join(_SETS)}", found, hint)
    for name in DOWNLOADED:
        if sizes.get(name, 0) > _limit(name):
            raise ArchiveError(f"{MARK}{target}", name, f"at most {_limit(name):,} bytes", f"{sizes[name]:,}")


def _copy(snapshot: Path, folder: Path) -> None:
    """Copy the files of a set out of a snapshot, in which each is a link into the same repository's cache."""
    for name in (*DOWNLOADED, *_PICKLED):
        place = Path(os.path.realpath(snapshot / name))
        if not place.exists():
            continue
        if not place.is_relative_to(snapshot.parents[1]):
            raise ArchiveError(snapshot / name, "kind of file", "one in this repository's cache", "a link elsewhere")
        with archive_errors(), files.reading(place):
            files.write_new(folder / name, files.read(place, _limit(name)))


def _limit(name: str) -> int:
    """Return how many bytes a file may have."""
    return MANIFEST_LIMIT if name.endswith(".json") else FILE_LIMIT
