"""What verbs do to the files of a local store, and to others."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from between import change_after_each_read
from stores import packs_of

import castore
from castore import errors
from castore.errors import (
    ClockOutOfRange,
    NameNotFound,
    NotAStore,
)
from castore.stream import chunkreader, sourcefile
from castore.testing.contents import (
    mixed,
    noise,
)


def test_what_is_moved_into_a_folder_of_its_name_and_back_is_there_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One question is one read transaction: the move may come after any."""
    with castore.open(tmp_path / "store") as store:
        store.puts("x", b"1")
        moves = [partial(store.rename, "x", "x/y"), partial(store.rename, "x/y", "x")] * 2
        change_after_each_read(monkeypatch, moves)
        for _ in moves:
            assert any(store.kind("x"))


def test_large_chunks(tmp_path: Path) -> None:
    """An average of megabytes: chunks larger than the usual batches and blocks."""
    data = noise(12 << 20) + bytes(70 << 20)
    (tmp_path / "source").write_bytes(data)
    with castore.open(tmp_path / "store", chunk_bytes_avg=4 << 20) as store:
        etag = store.put("path", tmp_path / "source").etag
        assert store.put("stream", io.BytesIO(data)).etag == etag
        assert store.gets("path") == data
        assert store.gets("path", (5 << 20, (5 << 20) + 10)) == data[5 << 20 : (5 << 20) + 10]


@pytest.mark.timeout(60)
def test_chunk_sizes_that_make_no_sense_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    for average in (0, -65536, 100, 2560, 65537, 65536.0, "64k", 1 << 30, 32 << 20, None):
        path = tmp_path / "store"
        with pytest.raises((ValueError, TypeError)):
            castore.open(path, chunk_bytes_avg=average)  # type: ignore[arg-type]
        assert not path.exists()
    castore.open(tmp_path / "store", chunk_bytes_avg=2816).close()
    with castore.open(tmp_path / "store", chunk_bytes_avg=65536) as store:
        assert store.puts("name", noise(50_000)).chunks > 4, "the store's own sizes count"


def test_a_sparse_file(tmp_path: Path) -> None:
    size, edits = 200 << 20, {0: b"start", 70 << 20: noise(9999), (200 << 20) - 3: b"end"}
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(size)
        for at, part in edits.items():
            file.seek(at)
            file.write(part)
    with castore.open(tmp_path / "store") as store:
        info = store.put("sparse", tmp_path / "sparse")
        assert info.size == size
        assert store.stats().unique_bytes < 2 << 20
        assert store.stats().stored_bytes < 200_000
        for at, part in edits.items():
            assert store.gets("sparse", (at, at + len(part))) == part
        assert store.gets("sparse", (100 << 20, 101 << 20)) == bytes(1 << 20)
        store.get("sparse", tmp_path / "copy")
    with open(tmp_path / "sparse", "rb") as one, open(tmp_path / "copy", "rb") as other:
        while block := one.read(8 << 20):
            assert other.read(8 << 20) == block
        assert not other.read(1)


def test_the_state_of_a_file_that_was_just_changed_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.stat(tmp_path)
    for age_ns, known in ((0, False), (19_000_000, False), (21_000_000, True), (-(10**9), False)):
        monkeypatch.setattr(time, "time_ns", lambda age_ns=age_ns: status.st_ctime_ns + age_ns)
        assert bool(sourcefile.fingerprint(status)) is known


def test_the_state_of_a_file_tells_it_from_another_and_from_what_it_was() -> None:
    status = sourcefile.FileStatus(0o100644, 3, 1, 7, 10**18 + 1, 10**18 + 1)
    others = [status, status._replace(st_ino=8), status._replace(st_ctime_ns=10**18 + 2)]
    others.append(status._replace(st_ctime_ns=-(10**18) - 1))  # before 1970
    assert len({sourcefile.fingerprint(each) for each in others} - {0}) == len(others)
    renamed_or_touched = status._replace(st_mtime_ns=5)
    assert sourcefile.fingerprint(renamed_or_touched) == sourcefile.fingerprint(status)


WRITES: dict[str, Callable[[castore.Store, Path], object]] = {
    "small": lambda store, _: store.puts("new", b"small"),
    "large": lambda store, _: store.puts("new", os.urandom(100_000)),
    "one chunk": lambda store, _: store.puts("new", os.urandom(20_000)),
    "file": lambda store, path: store.put("new", path / "in" / "file"),
    "folder": lambda store, path: store.import_folder(path / "in", "new/"),
    "copy": lambda store, _: store.copy("old", "new"),
    "rename": lambda store, _: store.rename("old", "new"),
    "backup": lambda store, path: store.backup(path / "backup"),
}


@pytest.mark.parametrize("now_ns", [-86_400 * 10**9, 1 << 63], ids=["1969", "2262"])
@pytest.mark.parametrize("write", WRITES)
def test_a_clock_that_no_record_can_hold(
    write: str, now_ns: int, store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.puts("old", os.urandom(100_000))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(os.urandom(100_000))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: now_ns)
        with pytest.raises(ClockOutOfRange, match=r"clock is .* the years 1970 to 2261: set the"):
            WRITES[write](store, tmp_path)
    assert list(store.names()) == ["old"]
    assert not (tmp_path / "backup").exists()
    WRITES[write](store, tmp_path)
    assert store.check(read_data=True).problems == []


@pytest.mark.parametrize("time_ns", [-86_400 * 10**9, 1 << 62])
def test_a_pack_of_any_time_has_its_row_again(tmp_path: Path, time_ns: int) -> None:
    with castore.open(tmp_path / "store") as store:
        store.puts("old", value := os.urandom(100_000))
    for pack in (tmp_path / "store" / "packs").rglob("*.pack"):
        os.utime(pack, ns=(time_ns, time_ns))
    castore.rebuild_index(tmp_path / "store")
    with castore.open(tmp_path / "store") as store:
        assert store.gets("old") == value
        assert store.check(read_data=True).problems == []


def test_a_file_system_of_whole_seconds_has_longer_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As FAT, HFS+ and ext3 with small inodes: two changes within a second, or two, do not show."""
    for ctime_ns in (1_700_000_000_000_000_000, -7_000_000_000, 0):
        status = sourcefile.FileStatus(0o100644, 3, 1, 1, ctime_ns, ctime_ns)
        for age_ns, young in ((0, True), (2_019_999_999, True), (2_020_000_000, False)):
            monkeypatch.setattr(time, "time_ns", lambda now_ns=ctime_ns + age_ns: now_ns)
            assert sourcefile.is_young(status) is young
            assert (sourcefile.fingerprint(status) == 0) is young
            native = SimpleNamespace(read_files=lambda *_, status=status: [(b"abc", *status)])
            monkeypatch.setattr(sourcefile, "_native", native)
            assert sourcefile.read_together(["x"], 3) == [None if young else (b"abc", status)]


def test_nor_is_it_later_if_it_was_read_so(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, with the same bytes: another change within the same tick of the clock would not show,
    though by the time of the commit the file is old."""
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    file.write_bytes(b"0" * 200_000)
    young = iter([True, True])
    monkeypatch.setattr(sourcefile, "is_young", lambda _: next(young, False))
    store.import_folder(file.parent, "to")
    assert next(young, None) is None
    with store.transaction() as transaction:
        record = transaction._record(b"to/file")
    assert record is not None
    assert record.source == 0  # so that the next import reads it


def test_put_refuses_folders_and_the_inside_of_open_stores(
    store: castore.Store, tmp_path: Path
) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        store.put("name", tmp_path)
    assert str(tmp_path) in str(caught.value)
    with castore.open(tmp_path / "other") as other:
        inside = [
            Path(other.path) / "index" / "lock.mdb",
            Path(other.path) / "castore.json",
            Path(store.path) / "index" / "data.mdb",
        ]
        (tmp_path / "link").symlink_to(inside[0])
        for path in [*inside, tmp_path / "link"]:
            with pytest.raises(NotAStore, match="lies inside the open store"):
                store.put("name", path)
            with pytest.raises(NotAStore, match="lies inside the open store"):
                store.get("source", path) if store.puts("source", b"x") else None
    assert not store.exists("name")
    assert store.put("name", Path(other.path) / "castore.json").size > 0, "closed: a file like any"


@pytest.mark.damages_store("a pack is written over")
def test_get_replaces_a_file_only_when_all_of_it_is_there(
    store: castore.Store, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    os.link(target, tmp_path / "link")
    with pytest.raises(NameNotFound):
        store.get("missing", target)
    store.puts("name", noise(5_000_000))
    pack = packs_of(store)[0]
    with open(pack, "r+b") as file:
        file.seek(pack.stat().st_size - 50)
        file.write(b"damage")
    with pytest.raises(errors.ChunkCorrupt):
        store.get("name", target)
    assert target.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["link", "store", "target"]
    store.puts("name", b"new")
    store.get("name", target)
    assert target.read_bytes() == b"new"
    assert (tmp_path / "link").read_bytes() == b"old", "replaced, not written over"


def test_get_replaces_no_file_where_the_last_of_it_can_not_be_written(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's file system says so to who closes a descriptor of the file first."""
    target = tmp_path / "target"
    target.write_bytes(b"old")
    store.puts("name", noise(5_000_000))

    def close(fd: int) -> None:
        os.close(fd)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patched:
        patched.setattr(chunkreader, "os", SimpleNamespace(**{**vars(os), "close": close}))
        with pytest.raises(OSError) as raised:
            store.get("name", target)
    assert raised.value.errno == errno.EDQUOT
    assert target.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["store", "target"]


def test_an_interrupted_get_writes_to_no_other_file(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor's number may belong to another file as soon as `get` has returned, and a
    thread may still be at work."""
    store.puts("name", noise(20 << 20))
    written = threading.Event()
    whole = chunkreader.write_all

    def slow(fd: int, parts: Any, offset: int) -> int:
        time.sleep(0.8 if offset == 0 else 0.05)
        try:
            return whole(fd, parts, offset)
        finally:
            if offset == 0:
                written.set()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chunkreader, "write_all", slow)
    previous = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # what is raised in one of its callbacks is lost
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            store.get("name", tmp_path / "target")
    finally:
        gc.enable()
        signal.signal(signal.SIGALRM, previous)
    with contextlib.ExitStack() as stack:
        others = [
            stack.enter_context(open(tmp_path / f"other{i}", "w+b", buffering=0)) for i in range(20)
        ]
        assert written.wait(10)
        time.sleep(0.05)
        assert [os.fstat(other.fileno()).st_size for other in others] == [0] * 20
    assert sorted(os.listdir(tmp_path)) == sorted(["store", *(f"other{i}" for i in range(20))])


def test_large_reads_in_several_threads(tmp_path: Path) -> None:
    data = mixed(30 << 20, 4)
    with castore.open(tmp_path / "store", threads=4) as store:
        store.puts("name", data)
        assert store.gets("name") == data
        for begin, end in [(1, len(data) - 1), (5 << 20, 25 << 20), (0, (4 << 20) + 1)]:
            assert store.gets("name", (begin, end)) == data[begin:end]


@pytest.mark.damages_store("packs are removed")
def test_an_open_object_keeps_packs_that_are_removed(store: castore.Store) -> None:
    data = mixed(300_000)
    store.puts("name", data)
    file = store.open("name")
    for pack in packs_of(store):
        pack.unlink()
    assert file.read() == data
    file.close()


def test_a_transaction_that_stages_rows_before_its_end(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large objects go into the index in batches: none shows before the commit, or after a
    failure."""
    from castore.local import session

    monkeypatch.setattr(session, "ROWS_MAX", 50)
    monkeypatch.setattr(session, "SEGMENTS_MAX", 2)
    contents = {f"{i}": mixed(4_000_000, i) for i in range(3)}
    assert store.puts("old", contents["0"]).chunks > 200
    with pytest.raises(KeyError), store.transaction() as transaction:  # noqa: PT012
        for name, data in contents.items():
            transaction.puts(name, data)
        raise KeyError
    assert list(store.names()) == ["old"]
    with store.transaction() as transaction:
        for name, data in contents.items():
            transaction.puts(name, data)
        assert list(store.names()) == ["old"]
    for name, data in contents.items():
        assert store.gets(name) == data
    index = store._catalog._index
    with index.gate, index.snapshot() as txn:
        pending = txn.stat(index.pending)["entries"]
    assert pending <= 4, "what was published is not pending any more"
