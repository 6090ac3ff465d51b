"""What a store promises when things go wrong: killed writers, failing disks, many writers at once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from registry.store.errors import AdapterNotFoundError, CommitUncertainError, StoreReadError, StoreWriteError
from registry.store.store import Store
from tests.support.stored_sets import INFO, ROOT, commit, new_manifest, run_python, tree


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.create(tmp_path / "store", INFO)


def test_failed_flush_is_told_truly(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails at any flush leaves no new version, or says that the version is there but not confirmed."""
    commit(store)
    real, calls = os.fsync, [0]

    def fail_at(chosen: int) -> None:
        def fsync(descriptor: int) -> None:
            calls[0] += 1
            if calls[0] == chosen:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(descriptor)

        calls[0] = 0
        monkeypatch.setattr(os, "fsync", fsync)

    for chosen in range(1, 7):  # three files, their folder, the two folders above a version
        fail_at(chosen)
        with pytest.raises(StoreWriteError, match=r"cannot save 'mrpc' .*: input/output error; nothing was changed"):
            commit(store)
        assert [1] == store.versions("mrpc")
    fail_at(7)
    with pytest.raises(CommitUncertainError, match=r"the change of 'mrpc:2' .* is done, but it may not outlive"):
        commit(store)
    assert [1, 2] == store.versions("mrpc")
    assert store.verify_bytes("mrpc", 2) == store.manifest("mrpc", 2)
    assert [] == list((store.root / "tmp").iterdir())


def test_full_disk_leaves_the_old_state(store: Store) -> None:
    """A write that the system cuts short changes nothing, cleans up and says why."""
    commit(store)
    before = tree(store.root)
    done = run_python(
        "import resource, sys; from pathlib import Path; from registry.store.store import Store\n"
        "from registry.store.errors import StoreWriteError; from tests.support.stored_sets import new_manifest\n"
        "store = Store.open(Path(sys.argv[1])); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: store.commit(new_manifest(), {'adapter.safetensors': b'', 'head.safetensors': bytes(5000)})\n"
        "except StoreWriteError as err: print(err)",
        store.root,
    )
    assert "cannot save 'mrpc' (" in done.stdout, done.stderr
    assert "file too large; nothing was changed" in done.stdout
    assert before == tree(store.root)
    assert [] == list((store.root / "tmp").iterdir())
    assert 2 == commit(store)


@pytest.mark.parametrize("call", ["rename", "replace"])
def test_killed_writer_leaves_nothing_visible(store: Store, call: str) -> None:
    """A process that is killed just before the step that makes a change visible has changed nothing."""
    commit(store)
    store.set_alias("mrpc", "best", 1)
    before = {name: data for name, data in tree(store.root).items() if not name.startswith("tmp")}
    done = run_python(
        "import os, signal, sys; from pathlib import Path; from registry.store.store import Store\n"
        "from tests.support.stored_sets import commit; store = Store.open(Path(sys.argv[1]))\n"
        "setattr(os, sys.argv[2], lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
        "commit(store) if sys.argv[2] == 'rename' else store.set_alias('mrpc', 'live', 1)",
        store.root,
        call,
    )
    assert -9 == done.returncode, done.stderr
    assert before == {name: data for name, data in tree(store.root).items() if not name.startswith("tmp")}
    assert ([1], {"best": 1}) == (store.versions("mrpc"), store.aliases("mrpc"))
    assert 2 == commit(store)


def test_concurrent_savers_lose_nothing(store: Store) -> None:
    """Eight processes that save into one name at once get 32 versions, each of them whole."""
    script = (
        "import sys; from pathlib import Path; from registry.store.store import Store\n"
        "from tests.support.stored_sets import commit\n"
        "store = Store.open(Path(sys.argv[1])); print(*(commit(store) for _ in range(4)))"
    )
    command = [sys.executable, "-c", script, str(store.root)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    numbers = [int(number) for process in running for number in process.communicate(timeout=60)[0].split()]
    assert list(range(1, 33)) == sorted(numbers) == store.versions("mrpc")
    for version in numbers:
        store.verify_bytes("mrpc", version)


def test_saving_goes_on_while_names_are_removed(store: Store) -> None:
    """A saver whose name is removed under its hands starts the name again instead of failing."""

    def save() -> None:
        for _ in range(15):
            with suppress(CommitUncertainError):  # removed between the commit and its confirmation
                commit(store)

    with ThreadPoolExecutor(2) as pool:
        savers = [pool.submit(save) for _ in range(2)]
        while not all(saver.done() for saver in savers):
            with suppress(AdapterNotFoundError):
                store.remove("mrpc")
    assert [None, None] == [saver.result() for saver in savers]


def test_write_into_a_broken_store_says_why(store: Store) -> None:
    """Where nothing can be written, reading works and a save tells what is in the way."""
    commit(store)
    (store.root / "tmp").rmdir()
    (store.root / "tmp").write_text("a file")
    with pytest.raises(StoreWriteError, match=r"cannot save 'mrpc' \([\d,]+ bytes\) in .*: file exists"):
        commit(store)
    assert [1] == store.versions("mrpc")


NOBODY = 65534


@pytest.fixture
def plain_user() -> Iterator[Path]:
    """A folder owned by whoever the test runs as; root runs it as nobody, since root may do anything anywhere."""
    with tempfile.TemporaryDirectory() as name:
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(name, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            if is_root:
                os.seteuid(0)


def test_read_only_store_is_readable(plain_user: Path) -> None:
    """A store without write permission can be read, and a save into it says that it may not."""
    store = Store.create(plain_user / "store", INFO)
    commit(store)
    folders = [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert new_manifest().name == Store.open(store.root).verify_bytes("mrpc", 1).name
        with pytest.raises(StoreWriteError, match="permission denied; nothing was changed"):
            commit(store)
        store.root.chmod(0)
        with pytest.raises(StoreReadError, match="permission denied; check its permissions"):
            store.names()
    finally:
        for folder in folders:
            folder.chmod(0o755)
