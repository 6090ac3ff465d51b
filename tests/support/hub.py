"""A Hub that keeps its repositories in a folder: the methods of ``HfApi`` that are asked for, with its errors."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from registry.network import HttpError

_HTTP = importlib.import_module(HttpError.__module__.split(".")[0])


def refusal(kind: type[HfHubHTTPError], code: int, url: str = "https://hub.test") -> HfHubHTTPError:
    """Return an error as huggingface_hub raises it for an answer of the Hub."""
    return kind(f"{code} of the test", response=_HTTP.Response(code, request=_HTTP.Request("GET", url)))


class FolderHub:
    """Repositories as folders of revisions; a download is laid out as the library's cache is, in links to blobs.

    Args:
        root: an empty folder.
        token: None for somebody who has not logged in.
        online: whether it can be reached.
    """

    def __init__(self, root: Path, token: str | None = "me", *, online: bool = True) -> None:
        self.root, self.token, self.online = root, token, online
        self.commits: list[tuple[str, str]] = []
        self.asked = 0

    def _answer(self) -> None:
        self.asked += 1
        if not self.online:
            raise cast(Any, HttpError)("no route to host")

    def revisions(self, repo_id: str) -> list[str]:
        """Return the revisions of a repository, the newest last."""
        return sorted(path.name for path in (self.root / "repositories" / repo_id).iterdir())

    def folder(self, repo_id: str, revision: str | None = None) -> Path:
        """Return the folder of a revision."""
        repository = self.root / "repositories" / repo_id
        if not repository.is_dir():
            raise refusal(RepositoryNotFoundError, 404)
        folder = repository / (revision if revision not in (None, "main") else self.revisions(repo_id)[-1])
        if not folder.is_dir():
            raise refusal(RevisionNotFoundError, 404)
        return folder

    def add(self, repo_id: str, contents: dict[str, bytes]) -> None:
        """Put a repository there whose files somebody else has made."""
        folder = self.root / "repositories" / repo_id / "0001"
        for name, data in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)

    def whoami(self) -> dict[str, str]:
        """Return whose token it is."""
        if self.token is None:
            raise LocalTokenNotFoundError("no token")
        self._answer()
        if self.token == "wrong":
            raise refusal(HfHubHTTPError, 401)
        return {"name": self.token}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        """Make a repository, of one's own alone."""
        self._answer()
        if not repo_id.startswith(f"{self.token}/"):
            raise refusal(HfHubHTTPError, 403)
        repository = self.root / "repositories" / repo_id
        if repository.is_dir() and not exist_ok:
            raise refusal(HfHubHTTPError, 409)
        if not repository.is_dir():
            (repository / "0001").mkdir(parents=True)
            (repository / "0001" / ".gitattributes").write_text("")
            self.root.joinpath("private" if private else "public").touch()

    def create_commit(self, repo_id: str, operations: Sequence[Any], *, commit_message: str) -> None:
        """Make the next revision, if its card can be read."""
        self._answer()
        before = self.folder(repo_id)
        contents = {path.name: path.read_bytes() for path in before.iterdir()}
        for operation in operations:
            if isinstance(operation, CommitOperationDelete):
                del contents[operation.path_in_repo]
            elif isinstance(operation, CommitOperationAdd):
                with operation.as_file() as file:
                    contents[operation.path_in_repo] = file.read()
        ModelCard(contents["README.md"].decode())  # the Hub refuses a card that it cannot read
        after = before.with_name(f"{int(before.name) + 1:04d}")
        after.mkdir()
        for name, data in contents.items():
            (after / name).write_bytes(data)
        self.commits.append((repo_id, commit_message))

    def model_info(self, repo_id: str, *, revision: str | None, timeout: float, files_metadata: bool) -> Any:
        """Return the names and sizes of a revision's files."""
        self._answer()
        folder = self.folder(repo_id, revision)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        sizes = {str(path.relative_to(folder)): path.stat().st_size if files_metadata else None for path in paths}
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()])

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool
    ) -> str:
        """Return a snapshot in the cache, downloaded before where asked for."""
        cache = self.root / "cache" / f"models--{repo_id.replace('/', '--')}"
        name = revision or "main"
        if local_files_only:
            if not (cache / "refs" / name).is_file():
                raise LocalEntryNotFoundError("not cached")
            return str(cache / "snapshots" / (cache / "refs" / name).read_text())
        self._answer()
        folder = self.folder(repo_id, revision)
        commit = hashlib.sha1(f"{repo_id}@{folder.name}".encode()).hexdigest()
        snapshot = cache / "snapshots" / commit
        for place in (snapshot, cache / "refs", cache / "blobs"):
            place.mkdir(parents=True, exist_ok=True)
        (cache / "refs" / name).write_text(commit)
        for path in folder.iterdir():
            link = snapshot / path.name
            if path.is_file() and any(fnmatchcase(path.name, each) for each in allow_patterns) and not link.exists():
                blob = cache / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
                blob.write_bytes(path.read_bytes())
                link.symlink_to(Path("../../blobs") / blob.name)
        return str(snapshot)
