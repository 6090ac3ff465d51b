"""A set that goes to the Hub and comes back: the same to the bit, nothing else sent, nothing else read."""

from __future__ import annotations

import inspect
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForSequenceClassification

from registry import Backbone, Registry, pull_set, push_set
from registry.cli.main import cli
from registry.config import AdapterConfig, HeadConfig
from registry.errors import BackboneMismatchError, ConfigError, RegistryError
from registry.interop.hub import DOWNLOADED, UPLOADED, HubClient, HubReference
from registry.network import HubError, HubNotFoundError, HubUnavailableError
from registry.schema import ExportFormat, SetInfo
from registry.store.errors import ArchiveError, StoreWriteError, UnheldError
from registry.store.store import Store
from tests.interop.test_checkpoint import head_for, stored
from tests.support.command_line import call, succeed
from tests.support.hub import FolderHub
from tests.support.tiny_backbone import save_tiny_checkpoint
from tests.support.toy_task import METHODS, randomise, same_weights

HEAD = HeadConfig(label_names=("bad", "good"))
WHERE = "hub:me/mood"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is allowed here, as all that is asked is a folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def registry(tmp_path: Path, tiny_backbone: Backbone) -> Registry:
    """A registry with one set, 'mood'."""
    made = Registry.create(tmp_path / "store", tiny_backbone)
    fresh = tiny_backbone.new_adapter_set(AdapterConfig(reduction_factor=4), HEAD)
    made.save("mood", randomise(fresh, seed=3), SetInfo(pair=False, max_length=16))
    return made


@pytest.fixture
def other(tmp_path: Path, tiny_backbone: Backbone) -> Store:
    """The empty store of somebody else."""
    return Registry.create(tmp_path / "other", tiny_backbone).store


@pytest.fixture
def hub(tmp_path: Path) -> FolderHub:
    """A Hub to which 'me' may write."""
    return FolderHub(tmp_path / "hub")


def test_what_was_pushed_is_pulled_to_the_bit(registry: Registry, other: Store, hub: FolderHub) -> None:
    """One commit up, one version down, with the digests of manifest and tensors; from the cache as well."""
    address = push_set(registry, "mood", WHERE, license="mit", client=hub)
    assert address.endswith("/me/mood")
    assert [("me/mood", "mood:1 as archive, by adapter-registry 0.1.0")] == hub.commits
    sent = registry.manifest("mood")
    assert "mood:1" == str(pull_set(other, WHERE, client=hub))
    assert sent == other.manifest("mood", 1)
    hub.online = False
    assert "films:1" == str(pull_set(other, WHERE, "films", client=hub))
    assert sent.files == other.manifest("films", 1).files


@pytest.mark.parametrize(("format", "method"), [("adapterhub", "bottleneck"), ("adapterhub", "lora"), ("peft", "lora")])
def test_formats_of_others_come_back(tmp_path: Path, hub: FolderHub, format: ExportFormat, method: str) -> None:
    """What another library reads in a repository is pulled with the same tensors, under the repository's name."""
    adapter = AdapterConfig(placement="pfeiffer", reduction_factor=4) if method == "bottleneck" else METHODS["lora"]
    head = head_for("bert") if format == "adapterhub" else head_for("bert", pooling="pooler", form="linear")
    registry = stored(tmp_path / "own", "bert", adapter, head)
    push_set(registry, "mood", "hub:me/Mood-2", license="mit", format=format, client=hub)
    reference = pull_set(registry, "hub:me/Mood-2", "back", client=hub, backbone_unproven=True)
    assert "back:1" == str(reference)
    assert same_weights(registry.load("mood"), registry.load("back"))
    with pytest.raises(ArchiveError, match="manifest.json"):
        pull_set(registry.store, "hub:me/Mood-2", client=hub)


def test_a_revision_is_pulled(registry: Registry, other: Store, hub: FolderHub) -> None:
    """A second push needs --force, replaces the files, and leaves the first where its revision is named."""
    push_set(registry, "mood", WHERE, license="mit", client=hub)
    again = registry.backbone.new_adapter_set(AdapterConfig(reduction_factor=8), HEAD)
    registry.save("mood", again, SetInfo(pair=False, max_length=16))
    with pytest.raises(HubError, match="a repository that is there already; choose another, or --force adds a commit"):
        push_set(registry.store, "mood", WHERE, license="mit", client=hub)
    push_set(registry.store, "mood", WHERE, license="mit", client=hub, force=True)
    assert 2 == len(hub.commits)
    for revision, version in (("@0002", 1), ("", 2), ("@0003", 2)):
        reference = pull_set(other, WHERE + revision, client=hub)
        assert registry.store.manifest("mood", version) == other.manifest("mood", reference.version or 0)


def test_nothing_else_is_sent(tmp_path: Path, registry: Registry, hub: FolderHub) -> None:
    """Every file of a repository is safetensors, JSON, or the card, whatever the format; a dry run writes the same."""
    push_set(registry, "mood", WHERE, license="mit", client=hub)
    held = stored(tmp_path / "held", "roberta", METHODS["lora"], head_for("roberta"))
    push_set(held, "mood", "hub:me/plain", license="mit", format="transformers", private=True, client=hub)
    for name, source, kind in (("mood", registry, "archive"), ("plain", held, "transformers")):
        folder = hub.folder(f"me/{name}")
        sent = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".gitattributes"}
        assert all(Path(each).suffix in (".safetensors", ".json") or each == "README.md" for each in sent)
        dry = tmp_path / f"dry-{name}"
        before = hub.asked
        place = push_set(source, "mood", f"hub:me/{name}", license="mit", format=kind, client=hub, dry_run=dry)  # type: ignore[arg-type]
        assert (str(dry), before) == (place, hub.asked)
        assert sent == {path.name: path.read_bytes() for path in dry.iterdir()}
    assert 3 == AutoModelForSequenceClassification.from_pretrained(tmp_path / "dry-plain").num_labels
    assert ("*.safetensors", "*.json", "README.md") == UPLOADED
    assert all(name.endswith((".safetensors", ".json")) for name in DOWNLOADED)


def test_another_kind_of_file_is_refused(registry: Registry, hub: FolderHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A format that gave something else would push nothing at all."""
    for name in ("code.py", "adapter.bin", "README.md.html", "a/b.json"):
        contents = (registry.store.resolve("mood"), registry.manifest("mood"), {name: b""})
        monkeypatch.setattr("registry.interop.card.folder_files", lambda *_, found=contents: found)
        with pytest.raises(ConfigError, match="as nothing else is uploaded"):
            push_set(registry, "mood", WHERE, license="mit", client=hub)
    assert not hub.commits


def test_files_of_another_format_go(tmp_path: Path, hub: FolderHub) -> None:
    """With --force no file of an earlier push stays that a reader could take for the set; other files do stay."""
    held = stored(tmp_path / "held", "bert", METHODS["lora"], head_for("bert"))
    push_set(held, "mood", WHERE, license="mit", client=hub)
    (hub.folder("me/mood") / "picture.png").write_bytes(b"of somebody")
    push_set(held, "mood", WHERE, license="mit", format="transformers", force=True, client=hub)
    found = {path.name for path in hub.folder("me/mood").iterdir()}
    assert not {"manifest.json", "adapter.safetensors", "head.safetensors"} & found
    assert {"config.json", "model.safetensors", "picture.png", "README.md"} <= found


@pytest.mark.parametrize(
    ("token", "reachable", "repository", "kind", "code", "found"),
    [
        (None, True, WHERE, HubError, 1, "a token of the Hub, found none; log in with 'hf auth login'"),
        ("wrong", True, WHERE, HubError, 1, "one that it refuses"),
        ("me", True, "hub:you/mood", HubError, 1, "one that may not; use another token, or another ORG"),
        ("me", False, WHERE, HubUnavailableError, 6, "does not answer; --dry-run DIR writes the files alone"),
        ("me", True, "me/mood", ConfigError, 2, "hub:ORG/NAME"),
        ("me", True, "hub:mood", ConfigError, 2, "hub:ORG/NAME"),
        ("me", True, "hub:../x/y", ConfigError, 2, "hub:ORG/NAME"),
        ("me", True, "hub:me/mood@v1", ConfigError, 2, "as a push makes the revision"),
    ],
)
def test_a_push_that_cannot_be_is_told(
    registry: Registry, hub: FolderHub, token: str, reachable: bool, repository: str, kind: Any, code: int, found: str
) -> None:
    """In one line with what to do, and with the exit code of its kind; nothing is made."""
    hub.token, hub.online = token, reachable
    with pytest.raises(kind, match=found) as caught:
        push_set(registry, "mood", repository, license="mit", client=hub)
    assert isinstance(caught.value, RegistryError)
    assert (code, 1) == (caught.value.exit_code, len(str(caught.value).splitlines()))
    assert not (hub.root / "repositories").exists()


@pytest.mark.parametrize(
    ("reference", "kind", "code", "found"),
    [
        ("hub:me/none", HubNotFoundError, 3, "expected a repository, found none that we may see; check the name"),
        ("hub:me/mood@v9", HubNotFoundError, 3, "expected a revision 'v9', found none"),
        ("hub:me/pickle", HubNotFoundError, 3, r"found pickled weights only \(pytorch_adapter.bin\)"),
        ("hub:me/whole", HubNotFoundError, 3, "a whole model is a backbone: 'init --backbone'"),
        ("hub:me/empty", HubNotFoundError, 3, "expected a set, with manifest.json or adapter_config.json, found READ"),
        ("hub:me/large", ArchiveError, 4, "manifest.json: expected at most 1,048,576 bytes, found 1,048,577"),
        ("hub:me/damaged", ArchiveError, 4, "manifest.json"),
        ("hub:me/mood@../x", ConfigError, 2, "hub:ORG/NAME or hub:ORG/NAME@REVISION"),
    ],
)
def test_a_pull_that_cannot_be_is_told(
    registry: Registry, other: Store, hub: FolderHub, reference: str, kind: Any, code: int, found: str
) -> None:
    """In one line with what to do, and with the exit code of its kind; the store stays empty."""
    push_set(registry, "mood", WHERE, license="mit", client=hub)
    mood = {path.name: path.read_bytes() for path in hub.folder("me/mood").iterdir()}
    hub.add("me/pickle", {"adapter_config.json": b"{}", "pytorch_adapter.bin": b"pickle"})
    hub.add("me/whole", {"config.json": b"{}", "model.safetensors": b"x"})
    hub.add("me/empty", {"README.md": b"hello"})
    hub.add("me/large", {**mood, "manifest.json": b" " * (2**20 + 1)})
    hub.add("me/damaged", {**mood, "manifest.json": b"{}"})
    with pytest.raises(kind, match=found) as caught:
        pull_set(other, reference, client=hub)
    assert (code, 1) == (caught.value.exit_code, len(str(caught.value).splitlines()))
    assert [] == other.names()


def test_a_snapshot_folder_is_imported(
    registry: Registry, other: Store, hub: FolderHub, tiny_backbone: Backbone
) -> None:
    """A folder laid out as the Hub's cache has it, links to blobs, gives the digest that was pushed, by both doors."""
    push_set(registry, "mood", WHERE, license="mit", client=hub)
    pull_set(other, WHERE, "cached", client=hub)
    (snapshot,) = (hub.root / "cache" / "models--me--mood" / "snapshots").iterdir()
    assert (snapshot / "manifest.json").is_symlink()
    assert "mood:1" in succeed("--store", other.root, "import", snapshot).out
    assert "mood:2" == str(Registry(other.root, tiny_backbone).import_from(snapshot))
    assert registry.manifest("mood").digest == other.manifest("mood", 1).digest == other.manifest("mood", 2).digest


def test_a_link_out_of_the_cache_is_not_followed(registry: Registry, other: Store, hub: FolderHub) -> None:
    """A snapshot's files are links into its own repository's cache; one that leads elsewhere is refused."""
    push_set(registry, "mood", WHERE, license="mit", client=hub)
    pull_set(other, WHERE, client=hub)
    (snapshot,) = (hub.root / "cache" / "models--me--mood" / "snapshots").iterdir()
    (hub.root / "secret").write_bytes((snapshot / "head.safetensors").read_bytes())
    (snapshot / "head.safetensors").unlink()
    (snapshot / "head.safetensors").symlink_to(hub.root / "secret")
    hub.online = False
    with pytest.raises(ArchiveError, match="expected one in this repository's cache, found a link elsewhere"):
        pull_set(other, WHERE, "again", client=hub)


def test_only_the_cache_is_read_offline(
    registry: Registry, other: Store, hub: FolderHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By --offline and by HF_HUB_OFFLINE alike nothing is asked, and what is not there ends with exit code 6."""
    push_set(registry, "mood", WHERE, license="mit", client=hub)
    for offline in (True, False):
        if not offline:
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        before = hub.asked
        with pytest.raises(HubUnavailableError, match="nothing there, and offline was asked for") as caught:
            pull_set(other, WHERE, offline=offline, client=hub)
        with pytest.raises(HubUnavailableError, match="offline was asked for; --dry-run DIR"):
            push_set(registry, "mood", "hub:me/more", license="mit", offline=offline, client=hub)
        assert (6, before) == (caught.value.exit_code, hub.asked)


def test_a_set_of_another_backbone_is_refused(tmp_path: Path, registry: Registry, hub: FolderHub) -> None:
    """What was pulled is checked like any exported set."""
    push_set(registry, "mood", WHERE, license="mit", client=hub)
    save_tiny_checkpoint(tmp_path / "backbone", seed=1)
    stranger = Registry.create(tmp_path / "third", Backbone.load(str(tmp_path / "backbone"), device="cpu"))
    with pytest.raises(BackboneMismatchError):
        pull_set(stranger.store, WHERE, client=hub)


def test_a_format_that_cannot_hold_the_set_pushes_nothing(registry: Registry, hub: FolderHub) -> None:
    """The formats that can are told, and no repository is made."""
    with pytest.raises(UnheldError, match="formats that can hold it: .*archive"):
        push_set(registry, "mood", WHERE, license="mit", format="transformers", client=hub)
    with pytest.raises(ConfigError, match="needs the backbone"):
        push_set(registry.store, "mood", WHERE, license="mit", format="transformers", client=hub)
    assert 0 == hub.asked


def test_a_dry_run_does_not_write_over_files(tmp_path: Path, registry: Registry) -> None:
    """It takes a new or empty folder, and with --force the one of an earlier dry run."""
    push_set(registry, "mood", WHERE, license="mit", dry_run=tmp_path / "dry")
    with pytest.raises(StoreWriteError, match="files are there already"):
        push_set(registry, "mood", WHERE, license="mit", dry_run=tmp_path / "dry")
    push_set(registry, "mood", WHERE, license="apache-2.0", dry_run=tmp_path / "dry", force=True)
    assert "apache-2.0" == ModelCard.load(tmp_path / "dry" / "README.md").data.license


def test_the_real_client_has_these_methods() -> None:
    """HfApi is a HubClient: each method takes what is asked of it by these names."""
    for name, method in vars(HubClient).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            wanted = set(inspect.signature(method).parameters)
            assert wanted <= set(inspect.signature(getattr(HfApi, name)).parameters), name


@pytest.mark.parametrize("text", ["hub:a/b", "hub:a/b@main", "hub:A-1/b_2.c@refs/pr/1", "hub:a/b@0123abc"])
def test_references_are_read_as_they_are_written(text: str) -> None:
    """A repository with or without a revision."""
    assert text == f"hub:{HubReference.parse(text)}"


def test_the_commands_push_and_pull(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """push writes a dry run that import reads; without a license or a network each ends with its code and one line."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    store = ("--store", registry.store.root)
    dry = tmp_path / "dry"
    done = succeed(*store, "push", "mood", WHERE, "--license", "mit", "--dry-run", dry)
    assert f"mood:1 -> {dry} (archive); nothing was sent" == done.out.strip()
    assert {"README.md", "manifest.json", "adapter.safetensors", "head.safetensors"} == set(os.listdir(dry))
    assert "again:1" in succeed(*store, "import", dry, "--name", "again").out
    refused = call(*store, "push", "mood", WHERE, "--dry-run", dry)
    assert (2, True) == (refused.code, "--license" in refused.message)
    for arguments in (("push", "mood", WHERE, "--license", "mit"), ("pull", WHERE)):
        outcome = call(*store, *arguments)
        assert (6, True) == (outcome.code, "offline was asked for" in outcome.message)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for arguments in (("push", "mood", WHERE, "--license", "mit"), ("pull", WHERE), ("import", WHERE)):
        outcome = call("--offline", *store, *arguments)
        assert (6, True) == (outcome.code, "offline was asked for" in outcome.message)
    assert {"push", "pull"} <= set(cli.commands)


def test_a_terminal_is_asked_for_the_license(tmp_path: Path, registry: Registry) -> None:
    """Where somebody sits at the command, the license is typed in."""
    ours, theirs = pytest.importorskip("pty").openpty()  # not on Windows
    command = ["--store", str(registry.store.root), "push", "mood", WHERE, "--dry-run", str(tmp_path / "dry")]
    script = f"from registry.cli.main import main; main({command!r})"
    os.write(ours, b"cc-by-4.0\n")
    done = subprocess.run(
        [sys.executable, "-c", script], stdin=theirs, capture_output=True, text=True, timeout=60, check=False
    )
    os.close(ours)
    os.close(theirs)
    assert (0, True) == (done.returncode, "license, such as apache-2.0" in done.stderr), done.stderr
    assert "cc-by-4.0" == ModelCard.load(tmp_path / "dry" / "README.md").data.license


def run_online(store: Path, port: int, *arguments: str) -> tuple[int, str]:
    """Run a command of the program with the real client, whose Hub is a port of this machine."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(store.parent / "home"),
    }
    script = f"from registry.cli.main import main; main({['--store', str(store), *arguments]!r})"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert 1 == len(done.stderr.splitlines()), done.stderr
    return done.returncode, done.stderr


def test_a_hub_that_never_answers_ends_in_time(registry: Registry) -> None:
    """The program gives up by itself where connections are taken and nothing is said, with exit code 6."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for arguments in (["push", "mood", WHERE, "--license", "mit"], ["pull", WHERE]):
            code, told = run_online(registry.store.root, silent.getsockname()[1], *arguments)
            assert (6, True) == (code, "does not answer" in told)


class Refusing(BaseHTTPRequestHandler):
    """A Hub that knows neither the token nor any repository."""

    def do_GET(self) -> None:
        """Answer with the Hub's own codes."""
        known = "whoami" in self.path
        self.send_response(401 if known else 404)
        if not known:
            self.send_header("X-Error-Code", "RevisionNotFound" if "v9" in self.path else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_the_real_clients_refusals_are_told(registry: Registry) -> None:
    """What the real client makes of the Hub's codes ends in one line and the code of its kind."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for arguments, expected, found in (
            (["push", "mood", WHERE, "--license", "mit"], 1, "one that it refuses; log in with"),
            (["pull", WHERE], 3, "expected a repository, found none that we may see"),
            (["pull", f"{WHERE}@v9"], 3, "expected a revision 'v9', found none"),
        ):
            code, told = run_online(registry.store.root, server.server_address[1], *arguments)
            assert (expected, True) == (code, found in told), told
        server.shutdown()


def test_manifests_are_pushed_as_they_are(registry: Registry, hub: FolderHub) -> None:
    """The manifest in the repository is the sealed one, byte for byte, with the digests of the files beside it."""
    push_set(registry, "mood", WHERE, license="mit", client=hub)
    folder = registry.store.folder("mood", 1)
    for name in ("manifest.json", "adapter.safetensors", "head.safetensors"):
        assert (folder / name).read_bytes() == (hub.folder("me/mood") / name).read_bytes()
    assert "mood" == json.loads((hub.folder("me/mood") / "manifest.json").read_text())["name"]
