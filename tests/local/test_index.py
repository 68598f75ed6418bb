"""The LMDB environment: one per path and process, typed errors, nothing left open."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import oracle
import pytest

import castore
from castore.errors import (
    CastoreError,
    CommitUnknown,
    IndexCorrupt,
    NotAStore,
    PermissionDenied,
    ReadOnlyStore,
    StoreClosed,
    StoreFull,
    StoreIOError,
    StoreLocked,
)
from castore.system import lmdb_env as index_module
from castore.system.lmdb_env import Index, open_index
from castore.system.lmdb_errors import READERS_MAX, typed


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = open_index(str(tmp_path / "index"))
    yield index
    index.close()


def put(index: Index, key: bytes, value: bytes) -> None:
    with index.write_gate, index.errors, index.begin() as txn:
        txn.put(key, value, db=index.meta)


def get(index: Index, key: bytes) -> bytes | None:
    with index.gate, index.snapshot() as txn:
        raw = txn.get(key, db=index.meta)
    return None if raw is None else bytes(raw)


# ---- one environment per path -------------------------------------------------------------------


def test_one_environment_whatever_the_path_is_called(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    first = open_index(str(tmp_path / "real"))
    again = [
        open_index(str(tmp_path / path))
        for path in ("real", "link", "real/", "link/../real", "./real/.")
    ]
    assert all(other is first for other in again)
    for other in again:
        other.close()
    put(first, b"a", b"1")
    assert get(first, b"a") == b"1"
    first.close()
    with pytest.raises(StoreClosed):
        get(first, b"a")
    reopened = open_index(str(tmp_path / "link"))
    assert reopened is not first
    assert get(reopened, b"a") == b"1"
    reopened.close()


def test_two_stores_on_one_path_share_everything(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("store")
    with (
        castore.open(tmp_path / "store") as first,
        castore.open(tmp_path / "link") as second,
        castore.open(f"file://{tmp_path}/store") as third,
    ):
        assert first._catalog is second._catalog is third._catalog
        first.puts("a", b"1")
        assert second.gets("a") == b"1"
        first.close()
        assert third.gets("a") == b"1"
        third.puts("b", b"2")
        second.close()
        assert list(third.names()) == ["a", "b"]
    with castore.open(tmp_path / "store") as again:
        assert list(again.names()) == ["a", "b"]


def test_a_path_that_is_another_folder_by_now(tmp_path: Path) -> None:
    """The new one is not taken for the old one, which says what is wrong."""
    old = castore.open(tmp_path / "store")
    old.puts("old", b"old" * 5000)
    (tmp_path / "store").rename(tmp_path / "moved")
    with castore.open(tmp_path / "store") as new:
        assert list(new.names()) == []
        new.puts("new", b"new" * 5000)
        assert list(old.names()) == ["old"]
        with pytest.raises(CastoreError):
            old.puts("lost", b"lost" * 5000)
        assert list(new.names()) == ["new"]
    old.close()
    with castore.open(tmp_path / "moved") as moved:
        assert moved.gets("old") == b"old" * 5000


def test_a_store_removed_and_made_again_while_it_is_open(tmp_path: Path) -> None:
    for turn in range(4):
        old = castore.open(tmp_path / "store")
        old.puts(f"old/{turn}", b"o" * 9000)
        shutil.rmtree(tmp_path / "store")
        new = castore.open(tmp_path / "store")
        new.puts(f"new/{turn}", b"n" * 9000)
        assert list(new.names()) == [f"new/{turn}"]
        new.close()
        old.close()
        program = "import sys, castore; print(*castore.open(sys.argv[1], create=False).names())"
        assert oracle.run_program(program, tmp_path / "store").split() == [f"new/{turn}"]
        shutil.rmtree(tmp_path / "store")


def test_references_are_counted(index: Index) -> None:
    others = [open_index(index.path) for _ in range(5)]
    threads = [threading.Thread(target=other.close) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    put(index, b"a", b"1")
    assert get(index, b"a") == b"1"


def test_opening_and_closing_in_threads(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            for i in range(40):
                index = open_index(str(tmp_path / "index"))
                if i % 5 == 0:
                    put(index, b"a", b"1")
                get(index, b"a")
                index.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []
    assert [path for path in open_files() if path.startswith(str(tmp_path))] == []


def open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


# ---- how it is opened ---------------------------------------------------------------------------


def test_commits_are_synced_and_files_private(index: Index) -> None:
    assert index._env is not None
    flags = index._env.flags()
    assert flags["sync"]
    assert flags["metasync"]
    assert not flags["writemap"]
    assert not flags["map_async"]
    assert flags["lock"]
    assert index._env.info()["map_size"] == index_module.MAP_BYTES >= 1 << 40
    assert index._env.info()["max_readers"] == READERS_MAX == 1024
    assert os.stat(index.path).st_mode & 0o777 == 0o700
    for name in ("data.mdb", "lock.mdb"):
        assert os.stat(os.path.join(index.path, name)).st_mode & 0o777 == 0o600


def test_many_may_be_open_at_once(tmp_path: Path) -> None:
    """More than fit into a process's addresses with the map of one."""
    with contextlib.ExitStack() as closing:
        opened = [open_index(str(tmp_path / str(n))) for n in range(160)]
        for index in opened:
            closing.callback(index.close)
        sizes = [index._env.info()["map_size"] for index in opened]  # type: ignore[union-attr]
        assert min(sizes) >= 1 << 36
        assert sum(sizes) < 1 << 46  # others need some, too


GROWS = """
import sys
from castore.system.lmdb_env import open_index
index = open_index(sys.argv[1])
with index.write_gate, index.errors, index.begin() as txn:
    txn.put(b"large", bytes(4 << 20), db=index.meta)
index.close()
"""


@pytest.fixture
def outgrown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index that another process made larger than it is mapped here, as where addresses were few
    when it was opened."""
    path = str(tmp_path / "index")
    with monkeypatch.context() as few:
        few.setattr(index_module, "MAP_BYTES", 1 << 20)
        index = open_index(path)
    put(index, b"small", b"1")
    subprocess.run([sys.executable, "-c", GROWS, path], check=True, timeout=60)
    yield index
    index.close()


def test_what_outgrew_its_map_is_read(outgrown: Index) -> None:
    assert get(outgrown, b"large") == bytes(4 << 20)
    put(outgrown, b"more", bytes(4 << 20))
    assert get(outgrown, b"more") == bytes(4 << 20)


def test_what_outgrew_its_map_is_written(outgrown: Index) -> None:
    put(outgrown, b"more", bytes(4 << 20))
    assert get(outgrown, b"large") == get(outgrown, b"more") == bytes(4 << 20)


def test_who_maps_an_index_anew_waits_for_no_lock_behind_its_own(
    outgrown: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that is about to write may read first."""
    locked, adopting, adopt = threading.Event(), threading.Event(), outgrown._adopt_map
    got: list[bytes | None] = []

    def told() -> None:
        adopting.set()
        adopt()

    def writes() -> None:
        with outgrown.write_gate:
            locked.set()
            adopting.wait(10)
            got.append(get(outgrown, b"small"))

    monkeypatch.setattr(outgrown, "_adopt_map", told)
    writer = threading.Thread(target=writes, daemon=True)
    reader = threading.Thread(target=lambda: got.append(get(outgrown, b"small")), daemon=True)
    writer.start()
    assert locked.wait(10)
    reader.start()
    for thread in (reader, writer):
        thread.join(20)
    assert got == [b"1", b"1"]


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with castore.open(tmp_path / "a/store") as store:
            store.puts("a", b"a" * 9000)
    finally:
        os.umask(before)
    for path in [tmp_path / "a/store", *(tmp_path / "a/store").rglob("*")]:
        assert path.stat().st_mode & 0o7777 == (0o700 if path.is_dir() else 0o600), path


def test_the_file_is_small_and_its_map_is_not(index: Index) -> None:
    path = Path(index.path) / "data.mdb"
    assert path.stat().st_blocks * 512 < 1 << 20
    assert index.stat_bytes() < 1 << 20


DIES_READING = """
import os, sys, castore
store = castore.open(sys.argv[1])
index = store._catalog._index
with index.gate, index.snapshot() as txn:
    print(os.getpid(), flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("next_one", ["opening", "commit"])
def test_slots_of_dead_readers_are_freed_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, next_one: str
) -> None:
    """Their snapshots would make the file grow for ever, also where nobody opens the store anew."""
    with castore.open(tmp_path / "store") as store:  # keeps LMDB from starting its table anew
        store.puts("a", b"1")
        run = subprocess.run(
            oracle.python(DIES_READING, tmp_path / "store"),
            env=oracle.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        environment = store._catalog._index._env  # type: ignore[union-attr]
        assert run.stdout.strip() in environment.readers()
        if next_one == "opening":
            oracle.run_program("import sys, castore; castore.open(sys.argv[1])", tmp_path / "store")
        else:
            monkeypatch.setattr(index_module, "READER_CHECK_S", 0)
            store.puts("a", b"2")
        assert run.stdout.strip() not in environment.readers()


def test_read_transactions_take_no_slot_when_they_are_over(index: Index) -> None:
    """One that stayed would make the file grow, and a fork unsafe."""
    for _ in range(5):
        get(index, b"a")
    assert index._env is not None
    assert str(os.getpid()) not in index._env.readers()
    with index.gate, index.snapshot():
        assert str(os.getpid()) in index._env.readers()


def test_a_transaction_that_fails_leaves_nothing(index: Index) -> None:
    put(index, b"a", b"1")
    with pytest.raises(ZeroDivisionError), index.write_gate, index.errors, index.begin() as txn:  # noqa: PT012
        txn.put(b"a", b"2", db=index.meta)
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), index.gate, index.snapshot():
        raise ZeroDivisionError
    assert get(index, b"a") == b"1"
    put(index, b"a", b"3")
    assert get(index, b"a") == b"3"


def test_writers_of_one_process_wait_for_each_other(index: Index) -> None:
    inside = threading.Semaphore(0)
    order: list[str] = []

    def first() -> None:
        with index.write_gate, index.errors, index.begin() as txn:
            inside.release()
            threading.Event().wait(0.2)
            txn.put(b"a", b"1", db=index.meta)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.acquire()
    assert get(index, b"a") is None  # a reader does not wait
    with index.write_gate, index.errors, index.begin() as txn:
        order.append("second")
        assert txn.get(b"a", db=index.meta) == b"1"
    thread.join()
    assert order == ["first", "second"]


# ---- what can't be opened -----------------------------------------------------------------------


def test_a_damaged_index(tmp_path: Path) -> None:
    with castore.open(tmp_path / "store") as store:
        store.puts("a", b"a" * 9000)
    data = tmp_path / "store/index/data.mdb"
    whole = data.read_bytes()
    for damaged in (b"\xff" * len(whole), whole[:100], b"not LMDB at all" * 1000):
        data.write_bytes(damaged)
        with pytest.raises(CastoreError) as caught:
            castore.open(tmp_path / "store")
        assert str(tmp_path) in str(caught.value)
    data.write_bytes(whole)
    with castore.open(tmp_path / "store") as store:
        assert store.gets("a") == b"a" * 9000


@pytest.mark.parametrize("what", ["the folder", "the file", "the file's bytes"])
def test_an_index_that_is_gone_is_not_made_anew(tmp_path: Path, what: str) -> None:
    """The names were in it: an empty store in its place would look like a loss of them all."""
    with castore.open(tmp_path / "store") as store:
        store.puts("a", b"a" * 9000)
        store.puts("inline", b"1")
    index = tmp_path / "store/index"
    if what == "the folder":
        index.rename(tmp_path / "backup")
    elif what == "the file":
        (index / "data.mdb").rename(tmp_path / "backup")
    else:
        whole = (index / "data.mdb").read_bytes()
        (index / "data.mdb").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(IndexCorrupt, match="backup"):
            castore.open(tmp_path / "store")
    if what == "the folder":
        shutil.rmtree(index, ignore_errors=True)
        (tmp_path / "backup").rename(index)
    elif what == "the file":
        (tmp_path / "backup").rename(index / "data.mdb")
    else:
        (index / "data.mdb").write_bytes(whole)
    with castore.open(tmp_path / "store") as store:
        assert store.gets("a") == b"a" * 9000


@pytest.mark.damages_store("the index is another store's")
def test_the_index_of_another_store(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with castore.open(tmp_path / name) as store:
            store.puts("a", name.encode())
    shutil.copy(tmp_path / "one/index/data.mdb", tmp_path / "two/index/data.mdb")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(IndexCorrupt, match="another store"):
            castore.open(tmp_path / "two")
    assert len(os.listdir("/proc/self/fd")) == before


def test_another_programs_environment(tmp_path: Path) -> None:
    """It is left as it was."""
    folder = tmp_path / "theirs"
    with (
        lmdb.open(str(folder), map_size=1 << 20) as environment,
        environment.begin(write=True) as txn,
    ):
        txn.put(b"theirs", b"1")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(NotAStore, match="LMDB"):
        castore.open(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    nested = tmp_path / "application"
    (nested / "index").mkdir(parents=True)
    shutil.copy(folder / "data.mdb", nested / "index/data.mdb")
    with pytest.raises(NotAStore):
        castore.open(nested)
    assert sorted(path.name for path in nested.rglob("*")) == ["data.mdb", "index"]


def test_a_read_only_store_reads_and_does_not_write(tmp_path: Path) -> None:
    with castore.open(tmp_path / "store") as store:
        store.puts("a", b"a" * 9000)
    with castore.open(tmp_path / "store", read_only=True) as store:
        assert store.gets("a") == b"a" * 9000
        for change in (
            lambda: store.puts("b", b"b"),
            lambda: store.delete("a"),
            lambda: store.copy("a", "b"),
            lambda: store.open("b", "wb"),
            lambda: store.transaction(),
        ):
            with pytest.raises(ReadOnlyStore):
                change()


def test_a_store_without_permission(tmp_path: Path) -> None:
    """LMDB's readers write to its lock file: who may not, is told so."""
    with castore.open(tmp_path / "store") as store:
        store.puts("a", b"a" * 9000)
    program = """
import os, sys
import castore, castore.store
castore.open(sys.argv[1], create=False).close()  # Python itself may be out of reach then
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for options in ({}, {'read_only': True}):
    try:
        castore.open(sys.argv[1], create=False, **options)
    except PermissionError as error:
        assert sys.argv[1] in str(error), error
    else:
        raise AssertionError('opened')
"""
    inside = sorted((tmp_path / "store").rglob("*"), reverse=True)
    for path in [*inside, tmp_path / "store"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        oracle.run_program(program, tmp_path / "store")
        (tmp_path / "store").chmod(0)
        oracle.run_program(program.replace("castore.open(sys.argv[1], create=False).close()", ""),
                           tmp_path / "store")  # fmt: skip
    finally:
        (tmp_path / "store").chmod(0o700)
        for path in reversed(inside):
            path.chmod(0o700 if path.is_dir() else 0o600)


def test_a_store_on_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "none", tmp_path / "disk"]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("file systems can't be mounted here")
    try:
        with castore.open(tmp_path / "disk/store") as store:
            store.puts("a", b"a" * 9000)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        for options in ({}, {"read_only": True}):
            with castore.open(tmp_path / "disk/store", **options) as store:  # type: ignore[arg-type]
                assert store.gets("a") == b"a" * 9000
                assert list(store.names()) == ["a"]
                with pytest.raises(ReadOnlyStore):
                    store.puts("b", b"b")
    finally:
        subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


# ---- errors -------------------------------------------------------------------------------------


def lmdb_error(kind: type[Exception], code: int = 0) -> Exception:
    error = kind("injected")
    if code:
        error.code = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (lmdb_error(lmdb.MapFullError), StoreFull),
        (lmdb_error(lmdb.Error, errno.ENOSPC), StoreFull),
        (lmdb_error(lmdb.Error, errno.EDQUOT), StoreFull),
        (lmdb_error(lmdb.CorruptedError), IndexCorrupt),
        (lmdb_error(lmdb.PageNotFoundError), IndexCorrupt),
        (lmdb_error(lmdb.InvalidError), IndexCorrupt),
        (lmdb_error(lmdb.VersionMismatchError), IndexCorrupt),
        (lmdb_error(lmdb.PanicError), IndexCorrupt),
        (lmdb_error(lmdb.ReadersFullError), StoreLocked),
        (lmdb_error(lmdb.ReadonlyError), ReadOnlyStore),
        (lmdb_error(lmdb.Error, errno.EACCES), PermissionDenied),
        (lmdb_error(lmdb.Error, errno.EIO), StoreIOError),
        (lmdb_error(lmdb.Error, errno.EMFILE), StoreIOError),
        (lmdb_error(lmdb.Error), StoreIOError),
    ],
)
def test_errors_are_typed(error: Exception, expected: type[CastoreError], tmp_path: Path) -> None:
    found = typed(error, str(tmp_path))
    assert type(found) is expected
    assert str(tmp_path) in str(found)
    assert isinstance(found, OSError)


def test_a_short_write_of_lmdb_means_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says EIO then."""
    error = lmdb_error(lmdb.Error, errno.EIO)
    assert type(typed(error, str(tmp_path))) is StoreIOError
    monkeypatch.setattr("castore.system.lmdb_errors.free_bytes", lambda path: 4096)
    assert type(typed(error, str(tmp_path))) is StoreFull


@pytest.mark.parametrize("error", [lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.Error])
def test_errors_within_a_transaction_are_typed(index: Index, error: type[Exception]) -> None:
    for gate, transaction in ((index.gate, index.snapshot), (index.write_gate, index.begin)):
        with pytest.raises(CastoreError) as caught, gate, index.errors, transaction():
            raise error("injected")
        assert isinstance(caught.value.__cause__, error)
    put(index, b"a", b"1")
    assert get(index, b"a") == b"1"


def test_no_error_of_lmdb_reaches_a_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever call of it fails, in reading and in writing."""

    class Fails:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def begin(self, *args: Any, **options: Any) -> Any:
            if failing[0]:
                raise lmdb.CorruptedError("injected")
            return self.inner.begin(*args, **options)

    failing = [False]
    real = lmdb.open
    monkeypatch.setattr(lmdb, "open", lambda *args, **options: Fails(real(*args, **options)))
    with castore.open(tmp_path / "store") as store:
        store.puts("a", b"a" * 9000)
        failing[0] = True
        for verb in (
            lambda: store.gets("a"),
            lambda: store.gets("a", (0, 1)),
            lambda: store.open("a"),
            lambda: store.info("a"),
            lambda: store.exists("a"),
            lambda: list(store.names()),
            lambda: list(store.list()),
            lambda: store.stats(),
            lambda: store.puts("b", b"1"),
            lambda: store.puts("b", b"b" * 9000),
            lambda: store.delete("a"),
            lambda: store.copy("a", "b"),
        ):
            with pytest.raises(IndexCorrupt):
                verb()
        failing[0] = False
        assert store.gets("a") == b"a" * 9000
        store.puts("b", b"b" * 9000)


def test_too_many_readers(tmp_path: Path) -> None:
    with castore.open(tmp_path / "store") as store:
        store.puts("a", b"1")
        environment = store._catalog._index._env  # type: ignore[union-attr]
        held = [environment.begin() for _ in range(READERS_MAX)]
        with pytest.raises(StoreLocked, match="readers"):
            store.gets("a")
        store.puts("b", b"inline")
        held.clear()
        assert store.gets("a") == b"1"
        assert store.gets("b") == b"inline"


def test_errors_survive_pickling() -> None:
    import pickle

    for error in (
        StoreFull("full"),
        CommitUnknown("unknown"),
        StoreIOError("io", errno.EMFILE),
        IndexCorrupt("corrupt"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.errno == error.errno  # type: ignore[attr-defined]
