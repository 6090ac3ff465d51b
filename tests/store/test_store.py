"""Names, versions, aliases and commits, without any tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import BackboneMismatchError, ConfigError, InvalidNameError
from registry.schema import Manifest, Reference
from registry.store.errors import AdapterNotFoundError, ManifestError, NotAStoreError, VersionInUseError
from registry.store.store import Store
from registry.validation import from_json, to_json
from tests.support.stored_sets import CONTENTS, INFO, commit, new_manifest, run_python, tree


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.create(tmp_path / "store", INFO)


def test_store_needs_no_heavy_import() -> None:
    """Listing a store never waits for torch, numpy, pandas, transformers or safetensors."""
    heavy = "{'torch', 'numpy', 'pandas', 'transformers', 'safetensors'}"
    done = run_python(f"import sys, registry.store.store, registry.provenance; print({heavy} & set(sys.modules))")
    assert "set()\n" == done.stdout, done.stderr


def test_many_threads_may_read_the_first_manifest_at_once() -> None:
    """Threads that all read the first manifest of a process read it: msgspec crashes where two find its fields."""
    lines = (
        "import sys, threading",
        "sys.setswitchinterval(1e-6)",
        "from registry.schema import Manifest",
        "from registry.validation import from_json",
        f"read = lambda: (together.wait(), from_json(Manifest, {to_json(new_manifest())!r}))",
        "together = threading.Barrier(8)",
        "threads = [threading.Thread(target=read) for _ in range(8)]",
        "[thread.start() for thread in threads]",
        "[thread.join() for thread in threads]",
    )
    done = run_python("\n".join(lines))
    assert (0, "") == (done.returncode, done.stderr)


def test_store_file_is_pinned(store: Store) -> None:
    """A new store is one readable store.json, byte for byte."""
    expected = {
        "store.json": b"""{
  "backbone": {
    "family": "bert",
    "fingerprint": "%s",
    "hidden_size": 32,
    "inner_sizes": null,
    "layers": 2,
    "parameters": 1000,
    "revision": null,
    "source": "tiny",
    "tokenizer_digest": "%s"
  },
  "digest": "%s",
  "format": 1
}
"""
        % (b"a" * 64, b"b" * 64, b"ceec769968ad387e0ce9dcbfb2c81557f897e83b6b6499219c27df4149141682")
    }
    assert expected == tree(store.root)


def test_create_again_opens(store: Store) -> None:
    """Making a store where one is for the same backbone opens it and keeps what is there."""
    commit(store)
    assert ["mrpc"] == Store.create(store.root, INFO).names()


@pytest.mark.parametrize(("field", "part"), [("fingerprint", "backbone"), ("tokenizer_digest", "tokenizer")])
def test_create_for_other_backbone_is_refused(store: Store, field: str, part: str) -> None:
    """A store never changes hands: another backbone or tokenizer is told which one it belongs to."""
    other = msgspec.structs.replace(INFO, source="other", **{field: "c" * 64})
    told = f"made for {part} .{{12}}, this one is c{{12}}; it belongs to 'tiny', and 'other' needs a store of its own"
    with pytest.raises(BackboneMismatchError, match=told) as caught:
        Store.create(store.root, other)
    assert part == caught.value.part
    assert INFO == Store.open(store.root).info.backbone


def test_create_leaves_other_folders_alone(tmp_path: Path) -> None:
    """A folder with other files in it does not become a store."""
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(NotAStoreError, match="found a folder with other files in it"):
        Store.create(tmp_path, INFO)
    assert {"thesis.txt": b"mine"} == tree(tmp_path)


def test_create_passes_over_hidden_files(tmp_path: Path) -> None:
    """An empty folder that is kept by git, or where a store is just being made, may become a store."""
    (tmp_path / ".gitkeep").touch()
    (tmp_path / "tmp").mkdir()
    assert [] == Store.create(tmp_path, INFO).names()


def test_create_makes_folders_above(tmp_path: Path) -> None:
    """The folders above a new store are made as well."""
    assert INFO == Store.create(tmp_path / "a" / "b", INFO).info.backbone


@pytest.mark.parametrize("create", [False, True])
def test_file_is_no_store(tmp_path: Path, create: bool) -> None:
    """A file in the place of a store is named as what it is."""
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(NotAStoreError, match="found a file"):
        Store.create(path, INFO) if create else Store.open(path)


def test_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    """Opening what is no store tells the command that makes one."""
    with pytest.raises(NotAStoreError, match="found nothing; make one with 'adapter-registry init"):
        Store.open(tmp_path / "none")
    with pytest.raises(NotAStoreError, match=r"expected a folder with store\.json, found a folder without it"):
        Store.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "valid JSON"),
        (b"{}", "missing required field `backbone`"),
        (b'{"format": 2}', "missing required field|format 1"),
        (b"\xff", "UTF-8"),
        (b'{"format": ' + b"1" * 5000 + b"}", "valid JSON"),
        (b"[" * 100_000, "shallow nesting"),
    ],
)
def test_damaged_store_file_is_refused(store: Store, content: bytes, told: str) -> None:
    """A store.json that is not exactly one is refused with its path."""
    (store.root / "store.json").write_bytes(content)
    with pytest.raises(ManifestError, match=rf"store\.json.*({told})") as caught:
        Store.open(store.root)
    assert 4 == caught.value.exit_code


def test_version_files_are_pinned(store: Store) -> None:
    """A version is three files, and its manifest has these keys and no others."""
    commit(store)
    files = tree(store.root / "mrpc")
    assert ["adapter.safetensors", "head.safetensors", "manifest.json"] == [Path(name).name for name in files]
    assert {"versions/000001"} == {str(Path(name).parent) for name in files}
    plain = json.loads(files["versions/000001/manifest.json"])
    assert (
        "adapter backbone created data digest dtype files format head imported library_versions main_metric "
        "max_length merged_from merging merging_loss name origin pair parameters positive_label recipe scores "
        "split started_from task training"
    ) == " ".join(plain)
    assert [
        {"bytes": 19, "path": "adapter.safetensors", "sha256": plain["files"][0]["sha256"]},
        {"bytes": 15, "path": "head.safetensors", "sha256": plain["files"][1]["sha256"]},
    ] == plain["files"]


def test_equal_commits_have_equal_bytes(store: Store) -> None:
    """The same manifest and contents give the same files, digest and all."""
    commit(store, times=2)
    versions = store.root / "mrpc" / "versions"
    assert tree(versions / "000001") == tree(versions / "000002")


def test_versions_rise(store: Store) -> None:
    """Every commit is the next version, and the older ones stay as they were."""
    commit(store)
    before = tree(store.root / "mrpc")
    commit(store, times=10)
    assert list(range(1, 12)) == store.versions("mrpc")
    assert before.items() <= tree(store.root / "mrpc").items()
    assert [] == list((store.root / "tmp").iterdir())


def test_taken_number_gives_the_next(store: Store) -> None:
    """Whatever sits on the next number, even a plain file, is kept and the number after it is used."""
    commit(store)
    (store.root / "mrpc" / "versions" / "000002").write_text("in the way")
    assert 3 == commit(store)
    assert [1, 3] == store.versions("mrpc")


def test_manifest_comes_back(store: Store) -> None:
    """What was committed is what is read, with files and digest filled in."""
    commit(store)
    manifest = store.manifest("mrpc", 1)
    assert new_manifest() == msgspec.structs.replace(manifest, files=(), digest="")
    assert [CONTENTS[entry.path] for entry in manifest.files] == [
        store.read_file("mrpc", 1, entry) for entry in manifest.files
    ]
    assert manifest == store.verify_bytes("mrpc", 1)


def test_aliases_move(store: Store) -> None:
    """An alias is a small text file that is replaced as a whole."""
    commit(store, times=2)
    store.set_alias("mrpc", "best", 1)
    store.set_alias("mrpc", "best", 2)
    store.set_alias("mrpc", "a.first", 1)
    assert {"a.first": 1, "best": 2} == store.aliases("mrpc")
    assert b"2 b0f5dd5d8bcbc2bc\n" == (store.root / "mrpc" / "aliases" / "best").read_bytes()
    assert [] == list((store.root / "tmp").iterdir())


def test_alias_needs_its_version(store: Store) -> None:
    """An alias cannot be set to a version that is not there."""
    commit(store)
    with pytest.raises(AdapterNotFoundError, match=r"cannot find adapter set 'mrpc:2' in .*: it has mrpc:1"):
        store.set_alias("mrpc", "best", 2)
    assert {} == store.aliases("mrpc")


@pytest.mark.parametrize("content", [b"", b"1", b"0\n", b"01\n", b" 1\n", b"1\n\n", b"-1\n", b"\xd9\xa1\n", b"1" * 99])
def test_damaged_alias_is_refused(store: Store, content: bytes) -> None:
    """An alias file is a plain number and a line end, nothing else."""
    commit(store)
    store.set_alias("mrpc", "best", 1)
    (store.root / "mrpc" / "aliases" / "best").write_bytes(content)
    with pytest.raises(ManifestError, match=r"cannot read .*best: "):
        store.resolve("mrpc@best")


def test_references_resolve(store: Store) -> None:
    """A name is its newest version; a number and an alias are what they say, as text or as record."""
    commit(store, times=3)
    store.set_alias("mrpc", "best", 2)
    assert ("mrpc", 3) == store.resolve("mrpc")
    assert ("mrpc", 1) == store.resolve("mrpc:1")
    assert ("mrpc", 2) == store.resolve("mrpc@best")
    assert ("mrpc", 2) == store.resolve(Reference(name="mrpc", alias="best"))


def test_unknown_references_name_the_nearest(store: Store) -> None:
    """A reference that is not there is answered with what is, and with the nearest of it."""
    commit(store)
    commit(store, "imdb")
    store.set_alias("mrpc", "best", 1)
    for reference in ("mrcp", "mrcp:1", "mrcp@best"):
        with pytest.raises(AdapterNotFoundError, match=r"'mrcp' in .*: it has imdb, mrpc; did you mean 'mrpc'"):
            store.resolve(reference)
    with pytest.raises(AdapterNotFoundError, match=r"'mrpc@bset' in .*: it has mrpc@best; did you mean 'mrpc@best'"):
        store.resolve("mrpc@bset")
    with pytest.raises(AdapterNotFoundError, match=r"'mrpc:9' in .*: it has mrpc:1"):
        store.manifest("mrpc", 9)


def test_only_committed_names_are_listed(store: Store) -> None:
    """A name exists when it has a version; the leftovers of a dead writer and strange folders are passed over."""
    commit(store)
    strange = ("tmp/0", ".checkpoints/mrpc/versions/000001", "UPPER/versions/000001", "odd/versions/1", "flat")
    for folder in ("left/versions", "zero/versions/000000", *strange):
        (store.root / folder).mkdir(parents=True)
    (store.root / "flat" / "versions").write_text("a file")
    assert ["mrpc"] == store.names()
    assert 1 == commit(store, "left")


def test_remove_version(store: Store) -> None:
    """Removing one version leaves the others, and nothing of it behind."""
    commit(store, times=3)
    store.remove("mrpc:2")
    assert [1, 3] == store.versions("mrpc")
    assert [] == list((store.root / "tmp").iterdir())


def test_remove_refuses_aliased_version(store: Store) -> None:
    """A version that aliases point to stays until they are moved or removed."""
    commit(store, times=2)
    store.set_alias("mrpc", "best", 1)
    store.set_alias("mrpc", "live", 1)
    with pytest.raises(VersionInUseError, match="found best, live; move or remove the alias first"):
        store.remove("mrpc:1")
    store.set_alias("mrpc", "live", 2)
    store.remove("mrpc@best")
    store.remove("mrpc:1")
    assert ([2], {"live": 2}) == (store.versions("mrpc"), store.aliases("mrpc"))


def test_remove_last_version_removes_name(store: Store) -> None:
    """With its last version a name is gone, and can be used again, with a number that it never had."""
    commit(store)
    store.set_alias("mrpc", "best", 1)
    store.remove("mrpc@best")
    store.remove("mrpc:1")
    assert [] == store.names()
    with pytest.raises(AdapterNotFoundError, match="cannot find adapter set 'mrpc'"):
        store.versions("mrpc")
    assert 2 == commit(store)


def test_number_of_a_removed_version_is_not_given_again(store: Store) -> None:
    """A reference to a version that was removed never comes to mean another set; a whole name starts anew."""
    commit(store, times=3)
    store.remove("mrpc:3")
    store.remove("mrpc:1")
    assert ([2], 4) == (store.versions("mrpc"), commit(store))
    store.remove("mrpc")
    assert 1 == commit(store)


def test_remove_name_removes_all(store: Store) -> None:
    """A bare name is removed with all its versions and aliases, other names are not."""
    commit(store, times=2)
    commit(store, "imdb")
    store.set_alias("mrpc", "best", 2)
    store.remove("mrpc")
    assert ["imdb"] == store.names()


@pytest.mark.parametrize("reference", ["none", "mrpc:2", "mrpc@none"])
def test_remove_unknown_is_told(store: Store, reference: str) -> None:
    """What is not there cannot be removed, and nothing else is."""
    commit(store)
    with pytest.raises(AdapterNotFoundError, match=f"cannot find adapter set '{reference}'"):
        store.remove(reference)
    assert [1] == store.versions("mrpc")


@pytest.mark.parametrize(
    ("changes", "contents", "told"),
    [
        ({"scores": {"f1": float("nan")}}, CONTENTS, "Expected `float`, got `null`"),
        ({"task": "\ud800"}, CONTENTS, "UTF-8"),
        ({"task": "x" * 2**20}, CONTENTS, "at most 1048576 bytes"),
        ({}, {"adapter.safetensors": b""}, "adapter.safetensors and head.safetensors"),
    ],
)
def test_commit_refuses_the_unreadable(
    store: Store, changes: dict[str, Any], contents: dict[str, bytes], told: str
) -> None:
    """What could not be read back is refused before anything is written."""
    before = tree(store.root)
    with pytest.raises(ConfigError, match=told):
        store.commit(new_manifest(**changes), contents)
    assert before == tree(store.root)


@settings(max_examples=20, deadline=None)
@given(name=st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?", fullmatch=True))
def test_any_valid_name_round_trips(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every name that the rule lets in can be stored, listed, aliased and removed."""
    try:
        manifest = new_manifest(name)
    except InvalidNameError:
        return  # two dots in a row, or a reserved word
    store = Store.create(tmp_path_factory.mktemp("names"), INFO)
    assert 1 == store.commit(manifest, CONTENTS)
    store.set_alias(name, name, 1)
    assert ([name], (name, 1)) == (store.names(), store.resolve(f"{name}@{name}"))
    store.remove(name)
    assert [] == store.names()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None)
@given(task=TEXT, scores=st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False), max_size=4))
def test_any_manifest_round_trips(task: str, scores: dict[str, float]) -> None:
    """A manifest is the same record after JSON, and the same bytes after that."""
    manifest = new_manifest(task=task, scores=scores)
    data = to_json(manifest)
    assert manifest == from_json(Manifest, data)
    assert data == to_json(from_json(Manifest, data))
