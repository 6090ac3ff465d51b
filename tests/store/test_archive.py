"""One set as one file: what goes out comes in elsewhere, and nothing else comes in."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from registry.adapters.adapter_set import AdapterSet
from registry.config import AdapterConfig
from registry.errors import BackboneMismatchError, ConfigError, InvalidNameError
from registry.store.archive import MEMBERS, export_version, pack, read_archive, unpack
from registry.store.errors import (
    AdapterNotFoundError,
    ArchiveError,
    ArchiveNotFoundError,
    IntegrityError,
    StoreWriteError,
)
from registry.store.manifest import ADAPTER_FILE, HEAD_FILE
from registry.store.store import Store
from registry.store.tensors import import_set, load_set, save_set
from tests.support.stored_sets import HEAD, INFO, commit, new_manifest, tree

MANY = {"manifest.json": b"{}", ADAPTER_FILE: b"adapter", HEAD_FILE: b"head"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with a real set, saved twice, the first of them aliased."""
    store = Store.create(tmp_path / "store", INFO)
    for score in (0.5, 0.75):
        adapter_set = AdapterSet(32, 2, AdapterConfig(reduction_factor=4, init="normal"), HEAD)
        described = {"adapter": adapter_set.adapter_config, "parameters": adapter_set.stored_count}
        save_set(store, adapter_set, new_manifest(scores={"accuracy": score}, **described))
    store.set_alias("mrpc", "best", 1)
    return store


@pytest.fixture
def exported(store: Store, tmp_path: Path) -> Path:
    """The file of that set."""
    return export_version(store, "mrpc@best", tmp_path / "mrpc.adapter")


def test_exported_set_comes_back_bit_equal(store: Store, exported: Path, tmp_path: Path) -> None:
    """A set that is exported and imported elsewhere has equal tensors and an equal manifest."""
    other = Store.create(tmp_path / "other", INFO)
    assert "mrpc:1" == str(import_set(other, exported))
    manifest, adapter_set = load_set(store, "mrpc", 1, INFO)
    found_manifest, found = load_set(other, "mrpc", 1, INFO)
    assert manifest == found_manifest
    for key, tensor in adapter_set.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[key]), key
    again = export_version(other, "mrpc", tmp_path / "again.adapter")
    assert exported.read_bytes() == again.read_bytes()


def test_import_takes_the_next_number_or_another_name(store: Store, exported: Path) -> None:
    """An imported set is a new version of its own name, or the first of the name it is given."""
    assert "mrpc:3" == str(import_set(store, exported))
    assert "paraphrases:1" == str(import_set(store, exported, "paraphrases"))
    assert "paraphrases" == store.manifest("paraphrases", 1).name
    assert store.manifest("mrpc", 1).files == store.manifest("paraphrases", 1).files
    assert {"best": 1} == store.aliases("mrpc")


def test_any_zip_program_can_look_into_it(exported: Path) -> None:
    """The file is an ordinary uncompressed zip of the three files of a version."""
    with zipfile.ZipFile(exported) as archive:
        assert list(MEMBERS) == archive.namelist()
        assert {zipfile.ZIP_STORED} == {info.compress_type for info in archive.infolist()}
        assert archive.testzip() is None


def test_archive_is_pinned() -> None:
    """Every Python writes the same bytes for the same three files, so every Python can read them."""
    assert "eecba01e50702a38cb5ee654854c87c4f7bf44e3ec9e927241eca4bcd02e39c9" == hashlib.sha256(pack(MANY)).hexdigest()
    assert MANY == unpack(Path("x"), pack(MANY))


def test_file_that_is_there_is_not_replaced(store: Store, exported: Path) -> None:
    """Exporting over a file needs to be asked for, and leaves nothing half-written beside it."""
    before = exported.read_bytes()
    with pytest.raises(
        StoreWriteError, match=r"cannot export 'mrpc:2' \([\d,]+ bytes\) in .*: a file is there already"
    ):
        export_version(store, "mrpc", exported)
    assert before == exported.read_bytes()
    export_version(store, "mrpc", exported, overwrite=True)
    assert before != exported.read_bytes()
    assert [exported] == sorted(exported.parent.glob("*.adapter*")) == sorted(exported.parent.glob("*.adapter"))
    assert [] == [path for path in exported.parent.iterdir() if path.name.startswith(".")]


def test_export_into_a_missing_folder_says_so(store: Store, tmp_path: Path) -> None:
    """A file that cannot be written is told of with its path."""
    with pytest.raises(
        StoreWriteError, match=r"cannot export 'mrpc:2' .*no-folder/x.adapter: no such file or directory"
    ):
        export_version(store, "mrpc", tmp_path / "no-folder" / "x.adapter")


def test_damaged_version_is_not_exported(store: Store, tmp_path: Path) -> None:
    """What cannot be loaded is not passed on either."""
    path = store.folder("mrpc", 2) / HEAD_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(IntegrityError, match=r"head.safetensors: SHA-256"):
        export_version(store, "mrpc", tmp_path / "x.adapter")
    with pytest.raises(AdapterNotFoundError, match="cannot find adapter set 'mrpc:7'"):
        export_version(store, "mrpc:7", tmp_path / "x.adapter")
    assert not (tmp_path / "x.adapter").exists()


def rezipped(data: bytes, change: Callable[[zipfile.ZipFile], None] = lambda archive: None, kind: int = 0) -> bytes:
    """Return the archive as another zip program might write it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive, zipfile.ZipFile(io.BytesIO(data)) as old:
        for name in old.namelist():
            archive.writestr(name, old.read(name))
        change(archive)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: b"PK\x05\x06" + bytes(18),
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"#!/bin/sh\n" + data,
        lambda data: data.replace(b"manifest.json", b"../../../evil"),
        lambda data: data.replace(b"head.safetensors", b"HEAD.safetensors"),
        lambda data: rezipped(data),
        lambda data: rezipped(data, kind=zipfile.ZIP_DEFLATED),
        lambda data: rezipped(data, lambda archive: archive.writestr("../escaped", "x")),
        lambda data: rezipped(data, lambda archive: archive.writestr("/etc/escaped", "x")),
        lambda data: data[:18] + b"\xff\xff\xff\xff" + data[22:],
    ],
)
def test_other_bytes_are_refused(
    store: Store, exported: Path, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    """Whatever is not exactly what export writes is refused by name, and nothing is written anywhere."""
    exported.write_bytes(change(exported.read_bytes()))
    before = tree(tmp_path)
    with pytest.raises(ArchiveError, match=r"cannot import .*mrpc.adapter.*nothing was changed") as caught:
        import_set(store, exported)
    assert 4 == caught.value.exit_code
    assert before == tree(tmp_path)


def test_archive_with_other_tensors_is_refused(store: Store, tmp_path: Path) -> None:
    """Right digests do not help an archive whose content is not what its configuration says."""
    commit(store, "made-up")
    with pytest.raises(ArchiveError, match=r"cannot import .*x.adapter: parameters: expected 1170, found 34"):
        import_set(store, export_version(store, "made-up", tmp_path / "x.adapter"))


def test_missing_archive_and_links(store: Store, exported: Path, tmp_path: Path) -> None:
    """A file that is not there is told of; the user's own path may be a link."""
    with pytest.raises(
        ArchiveNotFoundError, match=r"cannot import .*none.adapter: expected an exported file or folder, found nothing"
    ):
        read_archive(tmp_path / "none.adapter")
    with pytest.raises(ArchiveError, match=r"content: expected manifest.json, .*, found no manifest.json"):
        read_archive(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ArchiveError, match="kind of file: expected a regular file, found a symbolic link"):
        read_archive(tmp_path / "loop")
    (tmp_path / "link").symlink_to(exported)
    assert "mrpc" == read_archive(tmp_path / "link")[0].name


def test_archive_for_another_store_is_refused(exported: Path, tmp_path: Path) -> None:
    """A set of another backbone does not get into a store."""
    other = Store.create(tmp_path / "other", INFO.__class__(**{**as_dict(), "fingerprint": "c" * 64}))
    with pytest.raises(BackboneMismatchError, match="mrpc.adapter: it was made for backbone aaaaaaaaaaaa"):
        import_set(other, exported)
    assert [] == other.names()


def test_hostile_name_is_refused_before_anything_is_read(store: Store, tmp_path: Path) -> None:
    """A name that no set may have is refused at this door as at every other."""
    with pytest.raises(InvalidNameError, match="cannot use name '../up'"):
        import_set(store, tmp_path / "none", "../up")


def as_dict() -> dict[str, object]:
    return {field: getattr(INFO, field) for field in INFO.__struct_fields__}


def test_import_without_room_changes_nothing(store: Store, exported: Path) -> None:
    """An import that cannot be written leaves the store as it was."""
    (store.root / "tmp").rmdir()
    (store.root / "tmp").write_text("in the way")
    before = tree(store.root)
    with pytest.raises(StoreWriteError, match="cannot save 'mrpc'"):
        import_set(store, exported)
    assert before == tree(store.root)


@pytest.mark.parametrize("path", ["/", ".", "a\0b"])
def test_path_that_can_be_no_file(store: Store, path: str) -> None:
    """A path that no file can have is a setting that cannot be used, at both doors."""
    with pytest.raises(ConfigError, match="cannot use file: expected the path of a file"):
        export_version(store, "mrpc", Path(path))
    with pytest.raises(ConfigError, match="cannot use file: expected the path of a file"):
        import_set(store, Path(path))
