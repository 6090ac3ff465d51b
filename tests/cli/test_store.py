"""The commands on a store's housekeeping: export, import, gc, and a list with damaged sets in it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from registry.store.store import Store
from tests.support.command_line import QUICK, call, succeed, write_data_folder
from tests.support.stored_sets import reseal, tree


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A store of the tiny backbone with one set; not to be changed."""
    folder = write_data_folder(tmp_path_factory.mktemp("data"))
    store = tmp_path_factory.mktemp("stores") / "store"
    succeed("--store", store, "train", "sst2", "--data", folder, "--backbone", tiny_folder, *QUICK)
    return store


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained store, to be changed at will."""
    return Path(shutil.copytree(trained, tmp_path / "store"))


def test_export_and_import(store: Path, tmp_path: Path, tiny_folder: Path) -> None:
    """A set goes out as one file and into another store, where it gives the same answers and can be verified."""
    file = tmp_path / "sst2.adapter"
    assert f"sst2:1 -> {file} (" in succeed("--store", store, "export", "sst2", file).out
    other = tmp_path / "other"
    succeed("--store", other, "init", "--backbone", tiny_folder)
    assert f"{file} -> films:1\n" == succeed("--store", other, "import", file, "--name", "films").out
    assert "1 of 1 names are whole" in succeed("--store", other, "verify").out
    first = succeed("--store", store, "predict", "sst2", "a dull city", "--json").rows[0]
    second = succeed("--store", other, "predict", "films", "a dull city", "--json").rows[0]
    assert first["probabilities"] == second["probabilities"]


def test_export_replaces_only_when_asked(store: Path, tmp_path: Path) -> None:
    """A file that is there stays, unless --force is given."""
    file = tmp_path / "sst2.adapter"
    file.write_text("precious")
    refused = call("--store", store, "export", "sst2:1", file)
    assert (1, "precious") == (refused.code, file.read_text())
    assert "a file is there already (--force replaces it); nothing was changed" in refused.message
    succeed("--store", store, "export", "sst2:1", file, "--force")
    assert b"PK" == file.read_bytes()[:2]


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (
            b"not a zip",
            4,
            "size: expected a zip with manifest.json, adapter.safetensors, head.safetensors, found 9 bytes",
        ),
        (bytes(5000), 4, "content: expected the bytes that export writes"),
    ],
)
def test_import_refuses_other_files(store: Path, tmp_path: Path, content: bytes, code: int, message: str) -> None:
    """A file that is no exported set is told of in one line, and the store stays as it was."""
    file = tmp_path / "x.adapter"
    file.write_bytes(content)
    before = tree(store)
    refused = call("--store", store, "import", file)
    assert (code, before) == (refused.code, tree(store))
    assert message in refused.message
    assert "x.adapter" in refused.message


def test_gc_says_what_it_removes(store: Path) -> None:
    """gc removes old leftovers only, and with --dry-run nothing."""
    (store / "tmp").mkdir(exist_ok=True)
    for name in ("old", "new"):
        (store / "tmp" / name).mkdir()
    assert "removed 0 leftovers" in succeed("--store", store, "gc").out
    told = succeed("--store", store, "gc", "--older-than", "0", "--dry-run")
    assert ("would remove 2 leftovers of dead writers\n", "tmp/new\ntmp/old\n") == (told.out, told.err)
    assert "removed 2 leftovers" in succeed("--store", store, "gc", "--older-than", "0").out
    assert [] == list((store / "tmp").iterdir())
    assert "older_than: expected seconds from 0" in call("--store", store, "gc", "--older-than", "-1").message


def test_list_shows_damaged_sets_and_the_others(store: Path) -> None:
    """A damaged set has its line, the others theirs; the exit code is 4 and stderr says what is wrong."""
    file = store / "sst2.adapter"
    succeed("--store", store, "export", "sst2", file)
    succeed("--store", store, "import", file, "--name", "films")
    path = Store.open(store).folder("sst2", 1) / "manifest.json"
    path.write_bytes(path.read_bytes()[:-2])
    listed = call("--store", store, "list")
    assert 4 == listed.code
    assert ["name", "films", "sst2"] == [line.split()[0] for line in listed.out.splitlines()]
    assert "damaged" in listed.out.splitlines()[2]
    assert "sst2/versions/000001/manifest.json: content" in listed.message
    rows = call("--store", store, "list", "--json").rows
    assert "error" not in rows[0]
    assert "manifest.json" in rows[1]["error"]


def test_damaged_alias_can_be_removed(store: Path) -> None:
    """An alias that cannot be read is told of by verify and can be removed."""
    succeed("--store", store, "alias", "sst2", "best", 1)
    (store / "sst2" / "aliases" / "best").write_bytes(b"1 0123456789abcdef\n")
    assert "aliases/best: check: expected that of 'sst2@best' at 1" in call("--store", store, "verify").err
    assert "removed sst2@best" in succeed("--store", store, "remove", "sst2@best", "--yes").out
    assert "1 of 1 names" in succeed("--store", store, "verify").out


def test_verify_names_strangers(store: Path) -> None:
    """What does not belong in a store is a problem that verify names, even where nothing of ours is damaged."""
    (store / "sst2" / "versions" / "000001" / "extra.bin").write_text("?")
    (store / "linked").symlink_to(store / "sst2")
    told = call("--store", store, "verify")
    assert 4 == told.code
    for part in ("linked: expected only names", "extra.bin: expected only manifest.json"):
        assert part in told.err


def test_control_codes_do_not_reach_the_terminal(store: Path) -> None:
    """A manifest of somebody else cannot write to the terminal with the text in it."""
    reseal(
        Store.open(store).folder("sst2", 1) / "manifest.json",
        lambda plain: plain.update(split="\x07", main_metric="accuracy", scores={"accuracy": 1.0}),
    )
    listed = succeed("--store", store, "list")
    shown = succeed("--store", store, "show", "sst2")
    for told in (listed.out, shown.out):
        assert "\x07" not in told
        assert "\\x07" in told


def test_stale_staging_of_a_killed_training_is_garbage(store: Path) -> None:
    """The age of a leftover is told by its files, so copying a store does not make it young for ever."""
    stage = store / "tmp" / "0123"
    stage.mkdir(parents=True)
    long_ago = time.time() - 10_000
    os.utime(stage, (long_ago, long_ago))
    assert "removed 0" in succeed("--store", store, "gc").out  # made just now, whatever its times say


def test_control_codes_in_what_verify_tells(store: Path) -> None:
    """Notes on stderr are spelled out like data on stdout."""
    (store / "sst2" / "bell\x07").write_text("")
    told = call("--store", store, "verify")
    assert 4 == told.code
    assert "\x07" not in told.err
    assert "bell\\x07" in told.err
