"""Disks that are full, and commits that fail."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import oracle
import pytest
from kept import KEPT, check, some_bytes

import castore
from castore.errors import (
    CastoreError,
    CommitUnknown,
    StoreFull,
    StoreIOError,
)
from castore.local import catalog
from castore.system.lmdb_env import Index

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[castore.Store]:
    with castore.open(tmp_path / "store", chunk_bytes_avg=2816, threads=1) as store:
        store.puts("kept", KEPT)
        store.puts("inline", b"inline")
        yield store


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], Path]]:
    """Makes file systems of so many bytes, where that is allowed."""
    mounted: list[str] = []

    def make(size: int) -> Path:
        folder = tempfile.mkdtemp()
        run = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder],
            capture_output=True,
            check=False,
        )
        if run.returncode != 0:
            os.rmdir(folder)
            pytest.skip("file systems can't be mounted here")
        mounted.append(folder)
        return Path(folder)

    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("file systems can't be mounted here")
    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)
        os.rmdir(folder)


def test_a_full_disk(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(8 << 20)
    with castore.open(disk / "store") as store:
        store.puts("kept", KEPT)
        store.puts("inline", b"inline")
        (disk / "ballast").write_bytes(bytes(3 << 20))
        for turn in range(3):
            with pytest.raises(StoreFull) as caught:
                store.puts(f"too large {turn}", some_bytes(6 << 20, turn))
            assert caught.value.errno == errno.ENOSPC
            assert list(store.names()) == ["inline", "kept"]
            assert store.gets("kept") == KEPT
        with pytest.raises(StoreFull), store.open("written", "wb") as file:  # noqa: PT012
            for piece in range(12):
                file.write(some_bytes(1 << 20, piece + 10))
        with pytest.raises(StoreFull), store.transaction() as transaction:  # noqa: PT012
            transaction.puts("small", b"small")
            transaction.puts("large", some_bytes(6 << 20, 50))
        assert list(store.names()) == ["inline", "kept"]
    # What failed left no packs behind, or only packs that nothing names: space is freed.
    (disk / "ballast").unlink()
    for path in disk.glob("store/packs/*/*.pack"):
        assert path.stat().st_size < 8 << 20
    with castore.open(disk / "store", create=False) as store:
        check(store)


@pytest.mark.apart
@pytest.mark.parametrize("read_only", [False, True])
def test_a_disk_that_is_full_of_a_backup(
    tmp_path: Path, small_disk: Callable[[int], Path], read_only: bool
) -> None:
    """It is that disk of which it is told, also where the index is read without a lock."""
    with castore.open(tmp_path / "store") as store:
        store.puts_many({f"{i}": some_bytes(3000, i) for i in range(100)})
    path = small_disk(30 << 10) / "backup"
    with castore.open(tmp_path / "store", read_only=read_only) as store:
        with pytest.raises(StoreFull, match=f"no space left for {path}: free some and repeat$"):
            store.backup(path)
        assert list(path.parent.iterdir()) == []
        store.backup(tmp_path / "backup")


def test_a_disk_that_fills_up_with_small_objects(small_disk: Callable[[int], Path]) -> None:
    """Where the index itself finds no room, its commit fails and says so; deletes still work once
    there is some."""
    disk = small_disk(2 << 20)
    held = {}
    with castore.open(disk / "store") as store:
        (disk / "ballast").write_bytes(bytes(256 << 10))
        with pytest.raises(StoreFull):  # noqa: PT012
            for i in range(5000):
                value = some_bytes(3000, i)
                store.puts(f"{i:04}", value)
                held[f"{i:04}"] = value
        assert len(held) > 50
        for _ in range(3):
            with pytest.raises(StoreFull):
                store.puts("more", some_bytes(4000))
        assert {name: store.gets(name) for name in store.names()} == held
        (disk / "ballast").unlink()
        store.puts("more", b"more")
        store.delete_prefix("0", unbounded=True)
        store.puts("0", b"zero")
        assert store.gets("more") == b"more"
        oracle.check_index(store)
    with castore.open(disk / "store", create=False) as store:
        assert list(store.names()) == ["0", *[n for n in held if n[0] != "0"], "more"]


@pytest.mark.parametrize("kilobytes", [4, 20, 36, 60, 84])
def test_a_disk_too_small_for_a_store(small_disk: Callable[[int], Path], kilobytes: int) -> None:
    """Whatever it is that does not fit, it is StoreFull, in a process that lives on."""
    disk = small_disk(kilobytes << 10)
    program = """
import sys, castore
try:
    with castore.open(sys.argv[1]) as store:
        store.puts('a', b'a' * 100)
        store.puts('b', bytes(range(256)) * 80)
    print('fits')
except castore.errors.StoreFull:
    print('full')
"""
    said = oracle.run_program(program, disk / "store").strip()
    assert said in ("full", "fits")
    if kilobytes <= 12:
        assert said == "full"
    # What it left behind does not stand in the way once there is room.
    subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
    assert oracle.run_program(program, disk / "store").strip() == "fits"


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    """Past RLIMIT_FSIZE, a write fails with EFBIG, and half of it may be written."""
    program = """
import resource, signal, sys, random
import castore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with castore.open(sys.argv[1], threads=1) as store:
    store.puts('kept', b'kept' * 5000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    for turn in range(2):
        try:
            store.puts('large', random.Random(turn).randbytes(9 << 20))
        except castore.errors.CastoreError as error:
            assert isinstance(error, OSError), error
        else:
            raise AssertionError('it fits')
    assert list(store.names()) == ['kept']
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    store.puts('large', random.Random(9).randbytes(9 << 20))
with castore.open(sys.argv[1]) as store:
    assert store.gets('large') == random.Random(9).randbytes(9 << 20)
    assert store.gets('kept') == b'kept' * 5000
"""
    oracle.run_program(program, tmp_path / "store")


class FailingCommit:
    """Commits fail while `how` says so: before they have happened, or after."""

    def __init__(self) -> None:
        self.how = ""
        self.commits = 0
        self.end = oracle.watch_commits(self.before, self.after)

    def before(self) -> None:
        self.commits += 1
        if self.how == "before":
            raise lmdb.Error("mdb_txn_commit: Input/output error (injected)")

    def after(self) -> None:
        if self.how == "after":
            raise lmdb.Error("mdb_txn_commit: Input/output error (injected)")


@pytest.fixture
def commits() -> Iterator[FailingCommit]:
    commits = FailingCommit()
    yield commits
    commits.end()


@pytest.fixture
def watched(commits: FailingCommit, tmp_path: Path) -> Iterator[castore.Store]:
    with castore.open(tmp_path / "watched", chunk_bytes_avg=2816, threads=1) as store:
        store.puts("kept", KEPT)
        store.puts("inline", b"inline")
        yield store


def test_a_commit_that_fails(watched: castore.Store, commits: FailingCommit) -> None:
    """It has not happened, and the environment was reopened to see that: a definite error."""
    environment = watched._catalog._index._env  # type: ignore[union-attr]
    for put in (
        lambda: watched.puts("small", b"small"),
        lambda: watched.puts("large", some_bytes(50_000)),
        lambda: watched.delete("kept"),
        lambda: watched.rename("kept", "moved"),
    ):
        commits.how = "before"
        with pytest.raises(StoreIOError) as caught:
            put()
        assert not isinstance(caught.value, CommitUnknown)
        commits.how = ""
        assert list(watched.names()) == ["inline", "kept"]
    assert watched._catalog._index._env is not environment  # type: ignore[union-attr]
    check(watched)


def test_a_commit_that_fails_after_it_has_happened(
    watched: castore.Store, commits: FailingCommit
) -> None:
    """Its outcome is unknown: never acknowledged, and its pack is never removed."""
    commits.how = "after"
    with pytest.raises(CommitUnknown):
        watched.puts("unknown", some_bytes(50_000, 7))
    commits.how = ""
    assert watched.gets("unknown") == some_bytes(50_000, 7)
    check(watched, unknown=some_bytes(50_000, 7))
    watched.close()
    with castore.open(watched.path, create=False) as store:
        assert store.gets("unknown") == some_bytes(50_000, 7)
        oracle.check_index(store)


def test_a_commit_that_fails_while_others_commit(
    watched: castore.Store, commits: FailingCommit
) -> None:
    """The transaction ids do not tell whose landed: unknown."""
    program = "import sys, castore\nwith castore.open(sys.argv[1]) as s: s.puts('other', b'o')"

    def before() -> None:
        if commits.how:
            commits.how = ""
            raise lmdb.Error("injected")

    real = lmdb.open

    def slow_open(*args: Any, **options: Any) -> Any:
        oracle.run_program(program, watched.path)
        lmdb.open = real
        return real(*args, **options)

    commits.how = "before"
    lmdb.open = slow_open
    try:
        with pytest.raises(CommitUnknown):
            watched.puts("small", b"small")
    finally:
        lmdb.open = real
    commits.how = ""
    check(watched, other=b"o")


def test_a_commit_that_fails_after_it_waited_for_another(
    watched: castore.Store, commits: FailingCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed before it began says nothing of it: a definite error."""
    program = "import sys, castore\nwith castore.open(sys.argv[1]) as s: s.puts('other', b'o')"
    begin, waited = oracle.WatchedEnvironment.begin, []

    def begin_behind_another(environment: Any, *args: Any, **options: Any) -> Any:
        if options.get("write") and not waited:
            waited.append(oracle.run_program(program, watched.path))
        return begin(environment, *args, **options)

    watched.puts("first", b"from here on the environment is watched")
    monkeypatch.setattr(oracle.WatchedEnvironment, "begin", begin_behind_another)
    commits.how = "before"
    with pytest.raises(StoreIOError) as caught:
        watched.puts("small", b"small")
    commits.how = ""
    assert waited
    assert not isinstance(caught.value, CommitUnknown)
    watched.delete("first")
    check(watched, other=b"o")


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_transaction_that_changes_nothing_leaves_nothing_unknown(
    watched: castore.Store, commits: FailingCommit, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The one before a commit of many rows: what becomes of it is no matter."""
    release = catalog.release_freed_pages

    def fail(index: Index) -> None:
        commits.how = how
        with monkeypatch.context() as patched:
            if how == "before":

                def refused(*args: Any, **options: Any) -> Any:
                    raise lmdb.Error("injected: Too many open files")

                patched.setattr(lmdb, "open", refused)
            try:
                release(index)
            finally:
                commits.how = ""

    monkeypatch.setattr(catalog, "release_freed_pages", fail)
    value = some_bytes(600_000, 3)
    watched.puts("many rows", value)
    monkeypatch.undo()
    assert watched.gets("many rows") == value
    watched.delete("many rows")
    check(watched)


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_commit_that_fails_and_an_index_that_does_not_reopen(
    watched: castore.Store, commits: FailingCommit, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """For a while: then it does."""

    def refused(*args: Any, **options: Any) -> Any:
        raise lmdb.Error("injected: Too many open files")

    commits.how = how
    with monkeypatch.context() as patched:
        patched.setattr(lmdb, "open", refused)
        with pytest.raises(CommitUnknown):
            watched.puts("unknown", b"unknown")
        with pytest.raises(CastoreError):
            watched.gets("kept")
    commits.how = ""
    check(watched, **({"unknown": b"unknown"} if how == "after" else {}))


def test_readers_go_on_when_a_commit_fails(watched: castore.Store, commits: FailingCommit) -> None:
    file = watched.open("kept")
    listing = watched.names()
    assert next(listing) == "inline"
    commits.how = "before"
    with pytest.raises(StoreIOError):
        watched.puts("small", b"small")
    commits.how = ""
    assert file.read() == KEPT
    assert list(listing) == ["kept"]
    file.close()


def test_a_stage_that_fails(
    watched: castore.Store, commits: FailingCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("castore.local.session.SEGMENTS_MAX", 1)
    monkeypatch.setattr("castore.local.session.ROWS_MAX", 16)
    monkeypatch.setattr(
        "castore.format.segment.SegmentBuilder.full", property(lambda s: len(s) >= 8)
    )
    for skip in range(0, 12, 3):
        left = [skip]

        def before(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise lmdb.Error("injected")

        monkeypatch.setattr(commits, "before", before)
        commits.end()
        commits.end = oracle.watch_commits(lambda: commits.before())
        watched.close()
        watched = castore.open(watched.path, create=False, threads=1)
        try:
            watched.puts("large", some_bytes(300_000, 8))
        except StoreIOError:
            assert not watched.exists("large")
        left[0] = 1 << 30
        watched.puts("large", some_bytes(300_000, 8))
        assert watched.gets("large") == some_bytes(300_000, 8)
        oracle.check_index(watched)
        watched.delete("large")
    check(watched)
    watched.close()
