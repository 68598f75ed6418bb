"""The contract of every verb of Store."""

from __future__ import annotations

import array
import contextlib
import errno
import gc
import io
import mmap
import multiprocessing
import operator
import os
import pickle
import random
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import castore
from castore import errors
from castore.errors import (
    InvalidName,
    InvalidRange,
    NameExists,
    NameNotFound,
    NotAStore,
    PackMissing,
    PackPoisoned,
    ReadOnlyStore,
    SourceChanged,
    StoreClosed,
    StoreFull,
    UnpublishedResourceWarning,
)
from castore.format.index import decode_chunk_row
from castore.format.pack import decode_footer, decode_frame_header
from castore.local import packs as local_packs
from castore.local.session import LocalSession
from castore.stream import reader, sourcefile, writer

CHUNK_MIN, CHUNK_MAX, TAIL = 704, 11264, 256  # of the `store` fixture


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def text(size: int, seed: int = 0) -> bytes:
    rng = random.Random(seed)
    words = [rng.randbytes(4).hex() for _ in range(200)]
    return " ".join(rng.choices(words, k=size // 9 + 1)).encode()[:size]


def mixed(size: int, seed: int = 0) -> bytes:
    """Runs of noise, text and one byte: chunks of every kind."""
    rng, parts, left = random.Random(seed), [], size
    while left > 0:
        length = min(left, rng.randrange(1, 30_000))
        make = rng.choice([noise, text, lambda n, s: bytes([s % 256]) * n])
        parts.append(make(length, rng.randrange(1 << 30)))
        left -= length
    return b"".join(parts)


class Told:
    """A progress callback that keeps what it is told."""

    def __init__(self) -> None:
        self.size: int | None = None
        self.steps: list[int] = []

    def set_size(self, size: int) -> None:
        self.size = size

    def relative_update(self, inc: int = 1) -> None:
        self.steps.append(inc)


class Blocks:
    """A source that hands out what it likes, whatever was asked for."""

    def __init__(self, *blocks: Any) -> None:
        self.blocks = list(blocks)

    def read(self, size: int, /) -> Any:
        assert size > 0
        block = self.blocks.pop(0) if self.blocks else b""
        if isinstance(block, BaseException):
            raise block
        return block


def packs_of(store: castore.Store) -> list[Path]:
    return sorted(Path(store.path).glob("packs/*/*.pack"))


def forked(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked child, or the error that it raises there."""
    parent, child = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            answer = work()
        except BaseException as error:
            answer = error
        child.send(answer)
        os._exit(0)
    child.close()
    try:
        return parent.recv()
    finally:
        os.waitpid(pid, 0)


# ---------------------------------------------------------------- put: what comes in


def put_path(store: castore.Store, name: str, data: bytes, folder: Path) -> castore.ObjectInfo:
    path = folder / "source"
    path.write_bytes(data)
    return store.put(name, path)


def put_pipe(store: castore.Store, name: str, data: bytes, folder: Path) -> castore.ObjectInfo:
    read_end, write_end = os.pipe()

    def feed() -> None:
        with os.fdopen(write_end, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(read_end, "rb", buffering=0) as pipe:
        info = store.put(name, pipe)
    thread.join()
    return info


def put_fifo(store: castore.Store, name: str, data: bytes, folder: Path) -> castore.ObjectInfo:
    path = folder / "fifo"
    os.mkfifo(path, 0o644)
    thread = threading.Thread(target=path.write_bytes, args=(data,))
    thread.start()
    info = store.put(name, path)
    thread.join()
    return info


def put_stream(store: castore.Store, name: str, data: bytes, folder: Path) -> castore.ObjectInfo:
    return store.put(name, io.BytesIO(data))


def put_bytes(store: castore.Store, name: str, data: bytes, folder: Path) -> castore.ObjectInfo:
    return store.puts(name, data)


def put_file_object(
    store: castore.Store, name: str, data: bytes, folder: Path
) -> castore.ObjectInfo:
    rng, at = random.Random(1), 0
    with store.open(name, "wb") as file:
        while at < len(data):
            step = rng.choice([1, 100, 5000, 60_000])
            assert file.write(data[at : at + step]) == len(data[at : at + step])
            at += step
    assert file.info is not None
    return file.info


def put_in_transaction(
    store: castore.Store, name: str, data: bytes, folder: Path
) -> castore.ObjectInfo:
    with store.transaction() as transaction:
        transaction.puts("another", noise(5000, 99))
        return transaction.puts(name, data)


WAYS = [put_path, put_pipe, put_fifo, put_stream, put_bytes, put_file_object, put_in_transaction]
SIZES = [0, 1, 255, 256, 703, 704, 4095, 4096, 4097, 11264, 11265, 100_000]


@pytest.mark.parametrize("put", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_put_and_gets(
    store: castore.Store, tmp_path: Path, put: Callable[..., castore.ObjectInfo], size: int
) -> None:
    data = mixed(size, size)
    before = time.time()
    info = put(store, "folder/name", data, tmp_path)
    assert store.gets("folder/name") == data
    assert info == store.info("folder/name")
    assert (info.name, info.size) == ("folder/name", size)
    assert before - 0.01 <= info.mtime <= time.time() + 0.01
    assert info.mode == 0o644
    assert (info.chunks == 0) == (size <= 4096), "up to 4,096 bytes are inline"
    if info.chunks:
        assert size / (CHUNK_MAX + TAIL) <= info.chunks <= size / CHUNK_MIN + 1
        plan = store.explain_range("folder/name")
        assert (plan.chunks, plan.raw_bytes) == (info.chunks, size)
        assert plan.frame_bytes == info.stored_bytes
    else:
        assert info.stored_bytes <= size


def test_the_way_in_does_not_matter(store: castore.Store, tmp_path: Path) -> None:
    """The same bytes are the same chunks, stored once."""
    data = mixed(300_000)
    infos = {put(store, put.__name__, data, tmp_path) for put in WAYS}
    assert len({(info.etag, info.chunks, info.stored_bytes) for info in infos}) == 1
    stats = store.stats()
    assert stats.logical_bytes == len(WAYS) * len(data) + 5000
    assert stats.unique_bytes <= len(data) + 5000


def test_etags_tell_contents_apart(store: castore.Store) -> None:
    contents = [b"", b"a", b"b", noise(5000), noise(5000)[:-1] + b"x", noise(50_000), bytes(50_000)]
    etags = {store.puts(f"{i}", data).etag for i, data in enumerate(contents)}
    assert len(etags) == len(contents)
    assert store.puts("again", contents[5]).etag in etags


@pytest.mark.parametrize("mode", [0o600, 0o755, 0o444, 0o4755, 0o1777, 0o000])
def test_mode_bits_are_kept(store: castore.Store, tmp_path: Path, mode: int) -> None:
    for size in (10, 10_000):
        source = tmp_path / f"source{size}"
        source.write_bytes(noise(size))
        source.chmod(mode)
        if os.geteuid() != 0 and not mode & 0o400:
            pytest.skip("unreadable for us")
        assert store.put("name", source).mode == mode
        assert store.info("name").mode == mode
        store.get("name", tmp_path / f"target{size}")
        # setuid, setgid and sticky are kept, and given to no file.
        assert stat.S_IMODE((tmp_path / f"target{size}").stat().st_mode) == mode & 0o777


def test_puts_takes_a_mode_and_refuses_nonsense(store: castore.Store, tmp_path: Path) -> None:
    assert store.puts("name", b"x", mode=0o700).mode == 0o700
    for mode in (-1, 1 << 33):
        with pytest.raises(ValueError, match="mode"):
            store.puts("bad", b"x", mode=mode)
    assert not store.exists("bad")


def test_puts_takes_any_buffer(store: castore.Store) -> None:
    data = mixed(40_000)
    with mmap.mmap(-1, len(data)) as mapped:
        mapped[:] = data
        buffers: list[Any] = [bytearray(data), memoryview(data), memoryview(data).cast("H"), mapped]
        buffers.append(memoryview(data).cast("B", (200, 200)))
        buffers.append(array.array("I", data))
        for buffer in buffers:
            assert store.puts("name", buffer).size == len(data)
            assert store.gets("name") == data
            store.delete("name")
    for wrong in (memoryview(data)[::2], 5, None, [1, 2], "text"):
        with pytest.raises((TypeError, BufferError)):
            store.puts("name", wrong)  # type: ignore[arg-type]
    assert not store.exists("name")


def test_a_buffer_may_change_once_write_returned(store: castore.Store) -> None:
    data, block = noise(200_000), bytearray(10_000)
    with store.open("name", "wb") as file:
        for at in range(0, len(data), len(block)):
            block[:] = data[at : at + len(block)]
            file.write(block)
            block[:] = bytes(len(block))
    assert store.gets("name") == data


def test_put_reads_on_from_where_the_file_is(store: castore.Store, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"skipped|kept")
    with open(tmp_path / "source", "rb") as file:
        file.seek(8)
        store.put("name", file)
        assert file.read() == b""
    assert store.gets("name") == b"kept"


def test_put_takes_blocks_of_any_size(store: castore.Store) -> None:
    data = mixed(3_000_000)
    rng, at, blocks = random.Random(5), 0, []
    while at < len(data):
        step = rng.choice([1, 17, 4096, 70_000, 2_500_000])
        kind = rng.choice([bytes, bytearray, memoryview])
        blocks.append(kind(data[at : at + step]))
        at += step
    store.put("name", Blocks(*blocks))
    assert store.gets("name") == data


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("a str", TypeError),
        (None, BlockingIOError),
        (7, TypeError),
        (OSError(errno.EIO, "the disk failed"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("first", [0, 100, 5_000_000])
def test_a_source_that_fails_publishes_nothing(
    store: castore.Store, block: Any, error: type[BaseException], first: int
) -> None:
    store.puts("name", b"old")
    with pytest.raises(error):
        store.put("name", Blocks(*([noise(first)] if first else []), block))
    assert store.gets("name") == b"old"
    assert list(store.names()) == ["name"]
    store.puts("name", noise(10_000))
    assert store.gets("name") == noise(10_000)


@pytest.mark.parametrize("wrong", [b"the bytes themselves", 5, None, object()])
def test_put_says_what_it_takes(store: castore.Store, wrong: Any) -> None:
    with pytest.raises(TypeError, match="path"):
        store.put("name", wrong)
    assert not store.exists("name")


@pytest.mark.parametrize("extra", [-1, 0, 1, 255, 256, 257, 703, 704, 705])
@pytest.mark.parametrize("times", [1, 2])
def test_chunks_at_their_largest(store: castore.Store, extra: int, times: int) -> None:
    """Constant bytes have no cut before the maximum; a tail under 256 bytes joins the last."""
    size = times * CHUNK_MAX + extra
    info = store.puts("name", bytes(size))
    whole, rest = divmod(size, CHUNK_MAX)
    assert info.chunks == whole + (rest >= TAIL or not whole)
    assert store.gets("name") == bytes(size)
    last = store.explain_range("name", (size - 1, size))
    assert last.chunks == 1
    assert last.raw_bytes <= CHUNK_MAX + TAIL - 1


def test_windows_and_batches_are_seamless(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a mapped window, a batch or a task ends, the chunks are those of one piece."""
    data = mixed(2_000_000, 3)
    expected = store.puts("whole", data).etag
    for window, cut, batch, task in [
        (1 << 17, 1 << 12, 1 << 14, 1 << 12),
        (1 << 18, 1 << 20, 1 << 16, 1 << 20),
    ]:
        monkeypatch.setattr(writer, "WINDOW_BYTES", window)
        monkeypatch.setattr(writer, "CUT_BYTES", cut)
        monkeypatch.setattr(writer, "BATCH_BYTES", batch)
        monkeypatch.setattr(writer, "TASK_BYTES", task)
        for put in (put_path, put_stream, put_bytes):
            assert put(store, "pieces", data, tmp_path).etag == expected
            assert store.gets("pieces") == data
    for size in (65536, 65537, 131072, 131073, 196608 - 1):
        assert put_path(store, "edge", data[:size], tmp_path).size == size
        assert store.gets("edge") == data[:size]


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


@pytest.mark.parametrize("path", ["/proc/self/mountinfo", "/proc/cpuinfo", "/proc/self/environ"])
def test_files_of_proc(store: castore.Store, path: str) -> None:
    """They claim to be empty."""
    if not os.path.exists(path):
        pytest.skip("no /proc here")
    assert os.stat(path).st_size == 0
    info = store.put("name", path)
    assert info.size == len(store.gets("name")) > 0


def test_files_of_sys(store: castore.Store) -> None:
    """They claim a page, whatever they hold."""
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    if not os.path.exists(path):
        pytest.skip("no such file here")
    store.put("name", path)
    assert store.gets("name") == Path(path).read_bytes()


# ---------------------------------------------------------------- put: sources that change


def test_a_source_that_is_written_to_meanwhile_is_stored_consistently(
    store: castore.Store, tmp_path: Path
) -> None:
    """Or not at all: a mix that never was is not."""
    path = tmp_path / "source"
    path.write_bytes(noise(4 << 20))
    stop = threading.Event()

    def scribble() -> None:
        rng = random.Random(7)
        with open(path, "r+b") as file:
            while not stop.is_set():
                os.pwrite(file.fileno(), rng.randbytes(64), rng.randrange((4 << 20) - 64))

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for i in range(3):
            with pytest.raises(SourceChanged, match="was changed each time it was read"):
                store.put(f"{i}", path)
    finally:
        stop.set()
        thread.join()
    assert not list(store.names())
    store.put("still", path)
    assert store.gets("still") == path.read_bytes()
    assert store.check(True).exit_code <= 1


class Overwriting(Told):
    """Overwrites the source in place when some of it was read, so many times."""

    def __init__(self, path: Path, times: int) -> None:
        super().__init__()
        self.path, self.left = path, times

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        if self.left:
            self.left -= 1
            status = self.path.stat()
            with open(self.path, "r+b") as file:
                file.write(b"new" * (status.st_size // 3))
            os.utime(self.path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("size", [3 << 20, 30 << 20])
def test_a_source_that_is_overwritten_once_is_read_again(
    store: castore.Store, tmp_path: Path, size: int
) -> None:
    """Its size and time are what they were: what can't be set back is the time of the change."""
    path = tmp_path / "source"
    path.write_bytes(noise(size))
    progress = Overwriting(path, 1)
    store.put("name", path, progress=progress)
    assert store.gets("name") == path.read_bytes() == b"new" * (size // 3)
    assert sum(progress.steps) == size
    assert store.check(True).exit_code <= 1


def test_a_change_within_a_tick_of_the_clock_is_seen(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times tell nothing then: a second reading does."""
    monkeypatch.setattr("castore.stream.sourcefile.is_young", lambda _: True)
    monkeypatch.setattr("castore.stream.sourcefile._is_same", lambda *_: True)
    path = tmp_path / "source"
    path.write_bytes(noise(3 << 20))
    store.put("name", path, progress=Overwriting(path, 1))
    assert store.gets("name") == path.read_bytes() == b"new" * (1 << 20)


def test_the_state_of_a_file_that_was_just_changed_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.stat(tmp_path)
    for age_ns, known in ((0, False), (19_000_000, False), (21_000_000, True), (-(10**9), False)):
        monkeypatch.setattr(time, "time_ns", lambda age_ns=age_ns: status.st_ctime_ns + age_ns)
        assert bool(sourcefile.fingerprint(status)) is known


def test_a_log_that_only_grows_is_stored_as_it_was(store: castore.Store, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(noise(5 << 20))
    stop = threading.Event()

    def grow() -> None:
        with open(path, "ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"line\n" * 100)

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        sizes = [store.put(f"{i}", path).size for i in range(5)]
    finally:
        stop.set()
        thread.join()
    for i, size in enumerate(sizes):
        assert size >= 5 << 20
        assert store.gets(f"{i}") == path.read_bytes()[:size]


class Truncating(Told):
    """Truncates the source once some of it was read."""

    def __init__(self, path: Path, size: int, at: str) -> None:
        super().__init__()
        self.path, self.to, self.at = path, size, at

    def set_size(self, size: int) -> None:
        if self.at == "start":
            os.truncate(self.path, self.to)

    def relative_update(self, inc: int = 1) -> None:
        if self.at == "middle" and not self.steps:
            os.truncate(self.path, self.to)
        super().relative_update(inc)


@pytest.mark.parametrize("at", ["start", "middle"])
@pytest.mark.parametrize(
    "left", [0, 1, 4096, 4 << 20, (5 << 20) + 1, (6 << 20) - 5000, (6 << 20) - 100, (6 << 20) - 1]
)
def test_a_source_that_is_truncated_meanwhile(
    store: castore.Store, tmp_path: Path, at: str, left: int
) -> None:
    """By less than a page there isn't even a fault: the rest of the page reads as zeros."""
    path = tmp_path / "source"
    path.write_bytes(noise(6 << 20))
    store.puts("name", b"old")
    with pytest.raises(SourceChanged, match=re.escape(f"{path} was cut short of its 6291456 b")):
        store.put("name", path, progress=Truncating(path, left, at))
    assert store.gets("name") == b"old"


def test_a_source_that_grows_meanwhile(store: castore.Store, tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(noise(5 << 20))
    store.put("name", path, progress=Truncating(path, 9 << 20, "middle"))
    assert store.gets("name") == noise(5 << 20)


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


# ---------------------------------------------------------------- if_absent


def test_old_versions_of_a_place_that_keeps_none(store: castore.Store) -> None:
    for data in (b"1", b"2"):
        store.puts("a/b", data)
    assert store.remove_old_versions("a/b") == 0
    assert store.remove_old_versions("a/", below=True) == 0
    assert store.gets("a/b") == b"2"
    with pytest.raises(castore.errors.InvalidName):
        store.remove_old_versions("a/../b")


def test_if_absent(store: castore.Store, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"new")
    assert store.puts("name", b"first", if_absent=True).size == 5
    for attempt in (
        lambda: store.puts("name", b"new", if_absent=True),
        lambda: store.puts("name", noise(9000), if_absent=True),
        lambda: store.put("name", tmp_path / "source", if_absent=True),
        lambda: store.put("name", io.BytesIO(b"new"), if_absent=True),
        lambda: store.copy("other", "name", if_absent=True),
        lambda: store.rename("other", "name", if_absent=True),
        lambda: store.copy("name", "name", if_absent=True),
        lambda: store.open("name", "xb"),
    ):
        store.puts("other", b"other")
        with pytest.raises(NameExists, match="an object is already named 'name'") as caught:
            attempt()
        assert isinstance(caught.value, FileExistsError)
        assert caught.value.name == "name"
        assert store.gets("name") == b"first"
        assert store.gets("other") == b"other"


def test_if_absent_is_decided_by_the_commit(store: castore.Store) -> None:
    with pytest.raises(NameExists), store.transaction() as transaction:  # noqa: PT012
        transaction.puts("name", b"late", if_absent=True)
        transaction.puts("another", b"late")
        store.puts("name", b"first")
    assert store.gets("name") == b"first"
    assert not store.exists("another")
    file = store.open("raced", "xb")
    file.write(b"late")
    store.puts("raced", b"first")
    with pytest.raises(NameExists):
        file.close()
    assert file.closed
    assert store.gets("raced") == b"first"


# ---------------------------------------------------------------- progress


@pytest.mark.parametrize("size", [0, 100, 4097, 9_000_000])
def test_progress(store: castore.Store, tmp_path: Path, size: int) -> None:
    data = mixed(size)
    told = Told()
    (tmp_path / "source").write_bytes(data)
    store.put("name", tmp_path / "source", progress=told)
    assert (told.size, sum(told.steps)) == (size, size)
    told = Told()
    store.put("name", io.BytesIO(data), progress=told)
    assert (told.size, sum(told.steps)) == (None, size), "a stream's size is not known before"
    for target in (tmp_path / "target", io.BytesIO()):
        told = Told()
        store.get("name", target, progress=told)
        assert (told.size, sum(told.steps)) == (size, size)


def test_progress_that_raises_stops_the_put_and_the_get(
    store: castore.Store, tmp_path: Path
) -> None:
    class Stop(Told):
        def relative_update(self, inc: int = 1) -> None:
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError):
        store.put("name", io.BytesIO(noise(100_000)), progress=Stop())
    assert not store.exists("name")
    store.puts("name", noise(9_000_000))
    for target in (tmp_path / "target", io.BytesIO()):
        with pytest.raises(InterruptedError):
            store.get("name", target, progress=Stop())
    assert os.listdir(tmp_path) == ["store"], "no half a file is left"


# ---------------------------------------------------------------- get


@pytest.mark.parametrize("size", [0, 5, 4096, 4097, 9_000_000])
def test_get(store: castore.Store, tmp_path: Path, size: int) -> None:
    data = mixed(size, size)
    info = store.puts("folder/name", data, mode=0o640)
    target = tmp_path / "target"
    for _ in range(2):
        assert store.get("folder/name", target) == info
        assert target.read_bytes() == data
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert store.get("folder/name", str(tmp_path)) == info
    assert (tmp_path / "name").read_bytes() == data
    stream = io.BytesIO()
    assert store.get("folder/name", stream) == info
    assert stream.getvalue() == data
    assert sorted(os.listdir(tmp_path)) == ["name", "store", "target"]


def test_get_to_a_pipe(store: castore.Store) -> None:
    data = mixed(3_000_000)
    store.puts("name", data)
    read_end, write_end = os.pipe()
    got: list[bytes] = []

    def drain() -> None:
        with os.fdopen(read_end, "rb") as file:
            got.append(file.read())

    thread = threading.Thread(target=drain)
    thread.start()
    with os.fdopen(write_end, "wb", buffering=0) as pipe:
        store.get("name", pipe)
    thread.join()
    assert got == [data]


def test_get_to_a_stream_that_takes_little_at_a_time(store: castore.Store) -> None:
    data = mixed(200_000)
    store.puts("name", data)
    got = bytearray()

    class Sips:
        def write(self, part: Any) -> int:
            taken = bytes(part[:777])
            got.extend(taken)
            return len(taken)

    store.get("name", Sips())
    assert got == data


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


def test_get_to_where_nothing_can_be(store: castore.Store, tmp_path: Path) -> None:
    store.puts("name", b"x")
    for path in (f"{tmp_path}/no/such", f"{tmp_path}/no/"):
        with pytest.raises(FileNotFoundError) as caught:
            store.get("name", path)
        assert str(tmp_path / "no") in str(caught.value)
    with pytest.raises(OSError, match="Errno"):
        store.get("name", "")


def test_get_to_a_long_name(store: castore.Store, tmp_path: Path) -> None:
    """255 bytes are what file systems allow; the draft beside it must not need more."""
    store.puts("name", b"x")
    for name in ("n" * 255, "я" * 127, "漢" * 85):
        store.get("name", tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"x"


def test_get_to_what_is_not_a_file(store: castore.Store, tmp_path: Path) -> None:
    """A device or a pipe is written to, not replaced (think of /dev/stdout); so is what a symlink
    leads to."""
    data = noise(30_000)
    store.puts("name", data)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    thread.start()
    store.get("name", fifo)
    if not stat.S_ISFIFO(fifo.stat().st_mode):
        os.unlink(fifo)
    thread.join(5)
    assert got == [data]
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store.get("name", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == data


def test_an_interrupted_get_writes_to_no_other_file(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor's number may belong to another file as soon as `get` has returned, and a
    thread may still be at work."""
    store.puts("name", noise(20 << 20))
    written = threading.Event()
    whole = reader.write_all

    def slow(fd: int, parts: Any, offset: int) -> int:
        time.sleep(0.8 if offset == 0 else 0.05)
        try:
            return whole(fd, parts, offset)
        finally:
            if offset == 0:
                written.set()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reader, "write_all", slow)
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


# ---------------------------------------------------------------- ranges


@pytest.mark.parametrize("size", [0, 100, 4097, 60_000])
def test_ranges_are_slices(store: castore.Store, size: int) -> None:
    data = mixed(size, 11)
    store.puts("name", data)
    rng = random.Random(2)
    places = [0, 1, size // 2, size - 1, size, size + 1, 2 * size, 1 << 70]
    places = sorted({place for place in places if place >= 0})
    ranges = [(begin, end) for begin in places for end in places if begin <= end]
    ranges += [
        (min(a, b), max(a, b)) for a, b in (rng.choices(range(size + 1), k=2) for _ in range(300))
    ]
    for begin, end in ranges:
        assert store.gets("name", (begin, end)) == data[begin:end]
        assert store.gets("name", [begin, end]) == data[begin:end]
    assert store.gets_many("name", ranges) == [data[begin:end] for begin, end in ranges]
    assert store.gets("name", None) == store.gets("name", []) == store.gets("name", ()) == data
    assert store.gets_many("name", [None, [], (0, 1)]) == [data, data, data[:1]]
    assert store.gets_many("name", []) == []
    assert all(type(part) is bytes for part in store.gets_many("name", ranges))


def test_large_reads_in_several_threads(tmp_path: Path) -> None:
    data = mixed(30 << 20, 4)
    with castore.open(tmp_path / "store", threads=4) as store:
        store.puts("name", data)
        assert store.gets("name") == data
        for begin, end in [(1, len(data) - 1), (5 << 20, 25 << 20), (0, (4 << 20) + 1)]:
            assert store.gets("name", (begin, end)) == data[begin:end]


class Index:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def test_ranges_take_anything_that_is_an_integer(store: castore.Store) -> None:
    store.puts("name", b"0123456789")
    assert store.gets("name", (Index(2), Index(4))) == b"23"  # type: ignore[arg-type]
    numpy = pytest.importorskip("numpy")
    assert store.gets("name", (numpy.int64(2), numpy.uint8(4))) == b"23"
    assert store.gets("name", numpy.array([1, 3])) == b"12"


def test_explain_range(store: castore.Store) -> None:
    data = noise(200_000)
    info = store.puts("name", data)
    assert store.explain_range("name", (5, 5)) == castore.RangePlan(0, 0, 0)
    assert store.explain_range("name", (10**9, 10**9)) == castore.RangePlan(0, 0, 0)
    for begin, end in [(0, 1), (50_000, 50_001), (0, 200_000), (199_999, 200_000)]:
        plan = store.explain_range("name", (begin, end))
        assert end - begin <= plan.raw_bytes <= end - begin + 2 * (CHUNK_MAX + TAIL)
        assert plan.frame_bytes >= plan.raw_bytes, "noise is stored raw, each with a header"
        assert 1 <= plan.chunks <= info.chunks
    assert store.explain_range("name").chunks == info.chunks
    store.puts("inline", b"x")
    assert store.explain_range("inline") == castore.RangePlan(0, 0, 0)
    with pytest.raises(NameNotFound):
        store.explain_range("missing")
    with pytest.raises(InvalidRange):
        store.explain_range("name", (2, 1))


def test_all_ranges_are_of_one_version(store: castore.Store) -> None:
    versions = [bytes([i]) * 50_000 for i in range(2)]
    store.puts("name", versions[0])
    stop = threading.Event()

    def overwrite() -> None:
        i = 0
        while not stop.is_set():
            i += 1
            store.puts("name", versions[i % 2])

    thread = threading.Thread(target=overwrite)
    thread.start()
    try:
        seen: set[bytes] = set()
        deadline = time.monotonic() + 30
        while len(seen) < 2 and time.monotonic() < deadline:
            parts = store.gets_many("name", [(i, i + 1) for i in range(0, 50_000, 5000)])
            assert len(set(parts)) == 1
            seen.add(parts[0])
        assert len(set(store.gets("name"))) == 1
    finally:
        stop.set()
        thread.join()
    assert len(seen) == 2, "it was overwritten meanwhile"


# ---------------------------------------------------------------- open "rb"


@pytest.mark.parametrize("size", [0, 100, 4097, 150_000])
def test_an_open_object_is_a_buffered_reader(store: castore.Store, size: int) -> None:
    """Every call side by side with the same on a BytesIO."""
    data = mixed(size, 21).replace(b"\x01", b"\n")
    store.puts("name", data)
    rng = random.Random(3)
    expected = io.BytesIO(data)
    with store.open("name") as file:
        assert isinstance(file, io.BufferedReader)
        assert file.info == store.info("name")
        assert file.readable()
        assert file.seekable()
        assert not file.writable()
        for _ in range(400):
            n = rng.choice([0, 1, 10, 1000, 70_000])
            match rng.randrange(7):
                case 0:
                    where = (rng.randrange(size + 100), io.SEEK_SET)
                    assert file.seek(*where) == expected.seek(*where)
                case 1:
                    where = (-rng.randrange(size + 1), io.SEEK_END)
                    assert file.seek(*where) == expected.seek(*where)
                case 2:
                    step = rng.randrange(-min(50, expected.tell()), 50)
                    assert file.seek(step, io.SEEK_CUR) == expected.seek(step, io.SEEK_CUR)
                case 3:
                    assert file.read(n) == expected.read(n)
                case 4:
                    ours, theirs = bytearray(n), bytearray(n)
                    assert file.readinto(ours) == expected.readinto(theirs)
                    assert ours == theirs
                case 5:
                    assert file.readline() == expected.readline()
                case 6:
                    assert expected.read()[:1] == file.peek(1)[:1]
                    assert file.read() == expected.getvalue()[file.tell() :] or True
                    expected.seek(0)
                    file.seek(0)
            assert file.tell() == expected.tell()
        file.seek(0)
        assert file.read() == data
        file.seek(0)
        assert b"".join(file) == data
        with pytest.raises((ValueError, OSError)):
            file.seek(-1)
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
    assert file.closed
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_an_open_object_reads_into_memory_of_the_caller(store: castore.Store) -> None:
    data = mixed(500_000)
    store.puts("name", data)
    target = bytearray(len(data) + 10)
    with store.open("name") as file:
        assert file.readinto(memoryview(target)[5:-5]) == len(data)
        assert target[5:-5] == data
        file.seek(100)
        words = array.array("I", bytes(400_000))
        assert file.readinto(words) == 400_000
        assert words.tobytes() == data[100:400_100]


def test_an_open_object_is_one_version(store: castore.Store) -> None:
    """Overwritten, deleted, and the store closed: it is read to its end."""
    for size in (100, 300_000):
        old = mixed(size, 1)
        store.puts("name", old)
        overwritten, deleted = store.open("name"), store.open("name")
        half = overwritten.read(size // 2)
        store.puts("name", mixed(size + 7, 2))
        store.delete("name")
        assert half + overwritten.read() == old
        assert deleted.read() == old
        assert deleted.info.size == size
        overwritten.close()
        deleted.close()
    with castore.open(store.path) as second:
        second.puts("name", old)
        pinned = second.open("name")
    store.close()
    assert pinned.read() == old
    pinned.close()


@pytest.mark.damages_store("packs are removed")
def test_an_open_object_keeps_packs_that_are_removed(store: castore.Store) -> None:
    data = mixed(300_000)
    store.puts("name", data)
    file = store.open("name")
    for pack in packs_of(store):
        pack.unlink()
    assert file.read() == data
    file.close()


def test_an_open_object_can_be_read_by_threads(store: castore.Store) -> None:
    data = mixed(400_000)
    store.puts("name", data)
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = random.Random(seed)
        with store.open("name") as file:
            for _ in range(60):
                begin = rng.randrange(len(data))
                file.seek(begin)
                if file.read(9000) != data[begin : begin + 9000]:
                    wrong.append(begin)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("mode", ["", "w", "a", "ab", "r+b", "rt", "x", "wbx", "rw"])
def test_modes_that_do_not_exist(store: castore.Store, mode: str) -> None:
    store.puts("name", b"x")
    with pytest.raises(ValueError, match="mode is 'rb', 'wb' or 'xb', not"):
        store.open("name", mode)
    assert store.gets("name") == b"x"


def test_an_open_object_is_not_pickled(store: castore.Store) -> None:
    store.puts("name", b"x")
    with store.open("name") as file, pytest.raises(TypeError, match="pickle the Store"):
        pickle.dumps(file)


# ---------------------------------------------------------------- open "wb" and "xb"


def test_a_writer_publishes_when_it_is_closed(store: castore.Store) -> None:
    for mode in ("wb", "xb"):
        name, data = f"name {mode}", mixed(100_000)
        file = store.open(name, mode)
        assert file.writable()
        assert not file.readable()
        for at in range(0, len(data), 999):
            file.write(data[at : at + 999])
        assert file.tell() == len(data)
        assert not store.exists(name)
        assert file.info is None
        file.close()
        file.close()
        assert store.gets(name) == data
        assert file.info == store.info(name)
        with pytest.raises(ValueError, match="closed"):
            file.write(b"x")
    with store.open("lines", "wb") as file:
        file.writelines([b"a\n", b"b\n"])
    assert store.gets("lines") == b"a\nb\n"
    with io.TextIOWrapper(store.open("text", "wb"), encoding="utf-8") as text_file:
        text_file.write("grün")
    assert store.gets("text") == "grün".encode()


def test_a_writer_that_fails_publishes_nothing(store: castore.Store) -> None:
    store.puts("name", b"old")
    with pytest.raises(KeyError), store.open("name", "wb") as file:  # noqa: PT012
        file.write(noise(100_000))
        raise KeyError
    assert file.closed
    file = store.open("name", "wb")
    file.write(noise(5_000_000))
    file.abort()
    assert file.closed
    file.close()
    file = store.open("name", "wb")
    file.write(b"dropped")
    with pytest.warns(UnpublishedResourceWarning, match="'name' is not published: .* dropped"):
        del file
    file = store.open("name", "wb")
    with pytest.raises(TypeError, match="bytes-like"):
        file.write("text")
    file.write(b"goes on")
    file.abort()
    assert store.gets("name") == b"old"
    assert list(store.names()) == ["name"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o007])
def test_what_has_no_mode_gets_that_of_a_new_file(
    store: castore.Store, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        store.puts("bytes", b"1")
        store.put("stream", io.BytesIO(b"1"))
        store.puts("given", b"1", mode=0o644)
        with store.open("file", "wb") as file, store.transaction() as transaction:
            file.write(b"1")
            transaction.open("in a transaction").close()
        (tmp_path / "new").touch()
    finally:
        os.umask(before)
    new = (tmp_path / "new").stat().st_mode & 0o777
    assert new == 0o666 & ~umask
    modes = {info.name: info.mode for info in store.list()}
    assert modes.pop("given") == 0o644
    assert modes == dict.fromkeys(["bytes", "file", "in a transaction", "stream"], new)
    store.get("bytes", tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o7777 == new


def test_nobody_s_store_gives_a_file_more_than_permissions(
    store: castore.Store, tmp_path: Path
) -> None:
    for bits in (0o4755, 0o2755, 0o1777):
        store.puts("n/x", b"1", mode=bits)
        (tmp_path / "x").write_bytes(b"")
        (tmp_path / "x").chmod(bits)
        store.put("n/y", tmp_path / "x")
        store.get("n/x", tmp_path / "x")
        store.export_folder("n", tmp_path / "out")
        for path in ("x", "out/x", "out/y"):
            assert (tmp_path / path).stat().st_mode & 0o7777 == bits & 0o777


def test_two_writers_of_one_name(store: castore.Store) -> None:
    with store.open("name", "wb") as first:
        first.write(b"first")
        with store.open("name", "wb") as second:
            second.write(b"second")
        assert store.gets("name") == b"second"
    assert store.gets("name") == b"first"


# ---------------------------------------------------------------- names


NAMES = [
    "a",
    "a/b",
    "a/b/c",
    "a0",
    "a b",
    "b",
    "B",
    "~",
    "é",
    "z",
    "漢字",
    "\U0001f600",
    "\uffee",
    "a//b",
    "a/",
    "...",
    "a/..b",
    "\x01",
    "\x7f",
    "x" * 480,
    "é" * 240,
]


def test_names_are_sorted_by_their_bytes(store: castore.Store) -> None:
    rng = random.Random(1)
    for name in rng.sample(NAMES, len(NAMES)):
        store.puts(name, name.encode())
    expected = sorted(NAMES, key=str.encode)
    assert list(store.names()) == expected
    assert [info.name for info in store.list()] == expected
    assert [store.gets(name) for name in expected] == [name.encode() for name in expected]
    assert list(store.list()) == [store.info(name) for name in expected]
    for prefix in [
        "",
        "a",
        "a/",
        "a/b",
        "é",
        "x",
        "x" * 480,
        "x" * 481,
        "y" * 2000,
        "/",
        "..",
    ]:
        assert list(store.names(prefix)) == [n for n in expected if n.startswith(prefix)]


def test_names_are_told_apart(store: castore.Store) -> None:
    store.puts("a/b", b"x")
    assert store.exists("a/b")
    for name in ("a", "a/", "a/b/", "A/b", "a/b\u0301"):
        assert not store.exists(name)
        with pytest.raises(NameNotFound):
            store.info(name)


@pytest.mark.parametrize("count", [999, 1000, 1001, 2500])
def test_lists_of_many_pages(store: castore.Store, count: int) -> None:
    with store.transaction() as transaction:
        for i in range(count):
            transaction.puts(f"n/{i:05}", b"")
        transaction.puts("m", b"")
        transaction.puts("o", b"")
    expected = [f"n/{i:05}" for i in range(count)]
    assert list(store.names("n/")) == expected
    assert list(store.names()) == ["m", *expected, "o"]
    assert store.delete_prefix("n/") == count
    assert list(store.names()) == ["m", "o"]


def test_a_list_goes_on_while_the_names_change(store: castore.Store) -> None:
    with store.transaction() as transaction:
        for i in range(2000):
            transaction.puts(f"{i:04}", b"")
    names = store.names()
    first = [next(names) for _ in range(1000)]
    store.delete("0500")
    store.delete("1500")
    store.puts("0999x", b"")
    store.puts("1600x", b"")
    rest = list(names)
    assert first == [f"{i:04}" for i in range(1000)]
    assert "1500" not in rest
    assert "1600x" in rest
    assert rest[0] == "0999x", "the page ended just before it"
    assert rest == sorted(set(rest))
    assert set(rest) >= {f"{i:04}" for i in range(1000, 2000)} - {"1500"}


def test_size_and_info_and_exists(store: castore.Store) -> None:
    store.puts("name", b"12345")
    assert store.size("name") == 5
    assert store.exists("name")
    assert store.info("name").size == 5
    for verb in (store.size, store.info, store.gets, store.delete, store.open):
        with pytest.raises(NameNotFound, match="no object is named 'missing'") as caught:
            verb("missing")
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.name == "missing"
        assert caught.value.errno == errno.ENOENT


# ---------------------------------------------------------------- copy, rename, delete


def test_copy(store: castore.Store) -> None:
    for data in (b"inline", mixed(100_000)):
        source = store.puts("source", data, mode=0o600)
        before = store.stats()
        store.copy("source", "target")
        copied = store.info("target")
        assert store.gets("target") == store.gets("source") == data
        assert (copied.etag, copied.mode, copied.size) == (source.etag, 0o600, len(data))
        assert copied.mtime >= source.mtime
        after = store.stats()
        assert after.pack_bytes == before.pack_bytes
        assert after.chunks == before.chunks
        store.puts("source", b"changed")
        assert store.gets("target") == data
        store.copy("source", "target")
        assert store.gets("target") == b"changed"
        store.copy("source", "source")
        assert store.gets("source") == b"changed"
        store.delete_prefix("", unbounded=True)
    with pytest.raises(NameNotFound, match="'missing'"):
        store.copy("missing", "target")
    assert not store.exists("target")


def test_rename(store: castore.Store) -> None:
    for data in (b"inline", mixed(100_000)):
        info = store.puts("source", data)
        store.puts("target", b"overwritten")
        store.rename("source", "target")
        assert not store.exists("source")
        assert store.gets("target") == data
        assert store.info("target").mtime == info.mtime
        store.rename("target", "target")
        assert store.gets("target") == data
    with pytest.raises(NameNotFound, match="'missing'"):
        store.rename("missing", "target")
    with pytest.raises(NameNotFound, match="'missing'"):
        store.rename("missing", "missing")
    assert store.gets("target") == data


def test_delete(store: castore.Store) -> None:
    store.puts("a", mixed(50_000))
    store.puts("ab", b"x")
    store.delete("a")
    assert list(store.names()) == ["ab"]
    with pytest.raises(NameNotFound):
        store.delete("a")
    store.puts("a", b"back")
    assert store.gets("a") == b"back"


def test_delete_prefix(store: castore.Store) -> None:
    for name in ("a", "a/1", "a/2", "ab", "b"):
        store.puts(name, b"x")
    assert store.delete_prefix("a/") == 2
    assert list(store.names()) == ["a", "ab", "b"]
    store.puts("a/3", b"x")
    assert store.delete_prefix("a") == 1  # the folder, not what starts so
    assert list(store.names()) == ["a", "ab", "b"]
    with pytest.raises(InvalidName, match="say unbounded=True for every name of the store"):
        store.delete_prefix("")
    assert store.delete_prefix("a", unbounded=True) == 2
    assert store.delete_prefix("a", unbounded=True) == 0
    assert store.delete_prefix("b" * 1000, unbounded=True) == 0
    assert store.delete_prefix("", unbounded=True) == 1
    assert list(store.names()) == []


# ---------------------------------------------------------------- transactions


def test_a_transaction_is_seen_whole_or_not_at_all(store: castore.Store, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(mixed(60_000))
    store.puts("old", b"old")
    store.puts("moved", b"moved")
    store.puts("d/1", b"")
    store.puts("d/2", b"")
    with castore.open(store.path) as other, store.transaction() as transaction:
        transaction.put("path", tmp_path / "source")
        transaction.put("stream", io.BytesIO(b"stream"))
        transaction.puts("bytes", noise(30_000))
        transaction.copy("path", "copied")
        transaction.rename("moved", "there")
        transaction.delete("old")
        transaction.delete_prefix("d/")
        for seen in (store, other):
            assert list(seen.names()) == ["d/1", "d/2", "moved", "old"]
    assert list(store.names()) == ["bytes", "copied", "path", "stream", "there"]
    assert store.gets("copied") == store.gets("path") == mixed(60_000)
    assert store.gets("bytes") == noise(30_000)
    assert store.gets("there") == b"moved"
    assert transaction.deleted == 3


def test_operations_of_a_transaction_apply_in_order(store: castore.Store) -> None:
    big = [mixed(20_000, i) for i in range(3)]
    with store.transaction() as transaction:
        transaction.puts("a", big[0])
        transaction.copy("a", "b")
        transaction.puts("a", big[1])
        transaction.rename("a", "c")
        transaction.puts("a", big[2])
        transaction.puts("gone", big[2])
        transaction.delete("gone")
        transaction.puts("p/1", b"gone")
        transaction.delete_prefix("p/")
        transaction.puts("p/2", b"kept")
        transaction.puts("x", b"1")
        transaction.delete("x")
        transaction.puts("x", b"2", if_absent=True)
    got = {name: store.gets(name) for name in store.names()}
    assert got == {"a": big[2], "b": big[0], "c": big[1], "p/2": b"kept", "x": b"2"}


@pytest.mark.parametrize(
    ("fail", "error"),
    [
        (lambda t: t.delete("missing"), NameNotFound),
        (lambda t: t.copy("missing", "target"), NameNotFound),
        (lambda t: t.rename("missing", "target"), NameNotFound),
        (lambda t: (t.puts("new", b""), t.copy("new", "more", if_absent=True)), NameExists),
        (lambda t: operator.truediv(1, 0), ZeroDivisionError),
        (lambda t: t.puts("new/../x", b""), ValueError),
        (lambda t: t.put("new", "/no/such/file"), FileNotFoundError),
    ],
)
def test_a_transaction_that_fails_changes_nothing(
    store: castore.Store, fail: Callable[[Any], Any], error: type[Exception]
) -> None:
    store.puts("old", b"old")
    before = store.stats()
    with pytest.raises(error), store.transaction() as transaction:  # noqa: PT012
        transaction.puts("old", b"new")
        transaction.puts("more", noise(50_000))
        transaction.delete_prefix("o", unbounded=True)
        fail(transaction)
        transaction.puts("last", b"")
    assert {name: store.gets(name) for name in store.names()} == {"old": b"old"}
    after = store.stats()
    assert (after.objects, after.logical_bytes) == (before.objects, before.logical_bytes)
    assert after.unique_bytes == before.unique_bytes


def test_a_put_that_fails_in_a_transaction_can_be_left_out(store: castore.Store) -> None:
    with store.transaction() as transaction:
        transaction.puts("first", noise(30_000, 1))
        with pytest.raises(ZeroDivisionError):
            transaction.put("failed", Blocks(noise(6_000_000, 2), ZeroDivisionError()))
        with pytest.raises(FileNotFoundError):
            transaction.put("failed", "/no/such/file")
        transaction.puts("last", noise(30_000, 2), mode=0o600)
    assert list(store.names()) == ["first", "last"]
    assert store.gets("first") == noise(30_000, 1)
    assert store.gets("last") == noise(30_000, 2)


def test_a_transaction_ends_once(store: castore.Store) -> None:
    with store.transaction() as transaction:
        pass
    assert transaction.deleted == 0
    for use in (
        lambda: transaction.puts("a", b""),
        lambda: transaction.delete("a"),
        lambda: transaction.delete_prefix("a", unbounded=True),
        lambda: transaction.copy("a", "b"),
        lambda: transaction.put("a", io.BytesIO()),
    ):
        with pytest.raises(StoreClosed, match="the transaction has ended"):
            use()
    assert list(store.names()) == []


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
    with index.gate, index.errors, index.snapshot(False) as txn:
        pending = txn.stat(index.pending)["entries"]
    assert pending <= 4, "what was published is not pending any more"


# ---------------------------------------------------------------- stats


def test_stats(store: castore.Store) -> None:
    assert store.stats() == castore.StoreStats(0, 0, 0, 0, 0, 0, 0, store.stats().index_bytes)
    big = noise(100_000)
    info = store.puts("big", big)
    store.puts("inline", b"x" * 1000)
    store.puts("again", big)
    stats = store.stats()
    assert stats.objects == 3
    assert stats.chunks == info.chunks
    assert stats.packs == 1
    assert stats.logical_bytes == 201_000
    assert stats.unique_bytes == 101_000
    inline_stored = store.info("inline").stored_bytes
    assert 0 < inline_stored < 1000
    assert stats.stored_bytes == info.stored_bytes + inline_stored
    assert stats.pack_bytes == info.stored_bytes + 64 == packs_of(store)[0].stat().st_size
    assert stats.index_bytes > 0
    store.delete("big")
    store.puts("inline", b"")
    stats = store.stats()
    assert (stats.objects, stats.logical_bytes, stats.unique_bytes) == (2, 100_000, 100_000)


def test_stats_while_packs_come_and_go(store: castore.Store) -> None:
    packs = Path(store.path) / "packs"
    store.puts("name", noise(10_000))
    expected = store.stats()
    (packs / "a stray file").write_bytes(b"")
    (packs_of(store)[0].parent / "not hex.pack").write_bytes(b"")
    assert store.stats().packs == expected.packs
    stop = threading.Event()

    def come_and_go() -> None:
        folder = packs_of(store)[0].parent
        while not stop.is_set():
            for i in range(20):
                (folder / f"{i:032x}.pack").write_bytes(b"")
            for i in range(20):
                (folder / f"{i:032x}.pack").unlink()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(300):
            store.stats()
    finally:
        stop.set()
        thread.join()


# ---------------------------------------------------------------- packs on disk


def frames_of(pack: Path) -> Iterator[tuple[bytes, int, int]]:
    raw, at = pack.read_bytes(), 64
    while raw[at : at + 4] == b"CFRM":
        header = decode_frame_header(raw[at:])
        length = header.header_bytes + header.payload_bytes
        yield header.chunk_id, at, length
        at += length


def test_packs_are_sealed_when_the_store_is_closed(store: castore.Store, tmp_path: Path) -> None:
    store.puts("a", mixed(100_000, 1))
    store.puts("b", mixed(100_000, 2))
    (pack,) = packs_of(store)
    scanned = list(frames_of(pack))
    assert pack.read_bytes()[-8:] != b"castfoot"
    store.close()
    raw = pack.read_bytes()
    trailer = raw[-40:]
    footer = raw[int.from_bytes(trailer[:8], "little") :]
    entries = decode_footer(footer, len(raw))
    assert [(e.chunk_id, e.offset, e.stored_bytes) for e in entries] == scanned
    with castore.open(store.path) as again:
        assert again.gets("b") == mixed(100_000, 2)
        again.puts("c", mixed(100_000, 3))
        assert len(packs_of(again)) == 2, "a sealed pack is not written to again"


def test_packs_are_full_at_their_maximum(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_packs, "PACK_BYTES_MAX", 200_000)
    data = noise(4_000_000)
    store.puts("name", data)
    assert len(packs_of(store)) > 3
    assert store.gets("name") == data
    with store.open("name") as file:
        assert file.read() == data
    assert sum(pack.read_bytes()[-8:] == b"castfoot" for pack in packs_of(store)) >= 3
    before = store.stats()
    with castore.open(store.path) as other:
        other.puts("again", data)
    assert store.stats().pack_bytes == before.pack_bytes


def test_a_pack_that_nothing_refers_to_is_removed(store: castore.Store) -> None:
    with pytest.raises(KeyError), store.transaction() as transaction:  # noqa: PT012
        transaction.puts("name", noise(100_000))
        raise KeyError
    store.close()
    assert packs_of(store) == []


def test_what_is_made_is_for_its_owner_alone(store: castore.Store) -> None:
    store.puts("name", noise(10_000))
    store.close()
    root = Path(store.path)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for path in root.rglob("*"):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def locked(path: Path) -> bool:
    """Whether another process would find the file locked."""
    test = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", test, str(path)]
    return subprocess.run(command, capture_output=True).returncode != 0


def test_a_pack_is_locked_until_what_it_holds_is_committed(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_packs, "PACK_BYTES_MAX", 150_000)
    with store.transaction() as transaction:
        transaction.puts("name", noise(4_000_000))
        assert len(packs_of(store)) > 1
        assert all(locked(pack) for pack in packs_of(store))
    sealed = [pack for pack in packs_of(store) if pack.read_bytes()[-8:] == b"castfoot"]
    assert sealed
    assert not any(locked(pack) for pack in sealed)
    store.close()
    assert not any(locked(pack) for pack in packs_of(store))


# ---------------------------------------------------------------- durability, and disks that fail


def test_a_pack_is_durable_before_the_index_names_it(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write to a pack and every folder made is synced before the commit that follows."""
    from castore.system import lmdb_env as index

    dirty: set[str] = set()
    commits: list[set[str]] = []
    real = {name: getattr(os, name) for name in ("pwritev", "fsync", "mkdir", "open")}

    def path_of(fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}")

    def pwritev(fd: int, *rest: Any) -> int:
        dirty.add(path_of(fd))
        return int(real["pwritev"](fd, *rest))

    def fsync(fd: int) -> None:
        real["fsync"](fd)
        dirty.discard(path_of(fd))

    def mkdir(path: str, *rest: Any) -> None:
        real["mkdir"](path, *rest)
        dirty.add(os.path.dirname(path))

    def opened(path: str, flags: int, *rest: Any, **more: Any) -> int:
        fd = int(real["open"](path, flags, *rest, **more))
        if flags & os.O_CREAT and str(path).endswith(".pack"):
            dirty.add(os.path.dirname(path))
        return fd

    begin = index.Index.begin

    def watched(self: index.Index) -> Any:
        commits.append(set(dirty))
        return begin(self)

    for name, replacement in {
        "pwritev": pwritev,
        "fsync": fsync,
        "mkdir": mkdir,
        "open": opened,
    }.items():
        monkeypatch.setattr(os, name, replacement)
    monkeypatch.setattr(index.Index, "begin", watched)
    for i in range(4):
        store.puts(f"{i}", noise(100_000, i))
    assert len(commits) >= 4
    assert not any(commits), commits


def synced_folders(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    synced: set[str] = set()
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        synced.add(os.readlink(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr(os, "fsync", fsync)
    return synced


def test_a_new_store_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = synced_folders(monkeypatch)
    root = tmp_path / "a" / "b" / "store"
    with castore.open(root) as store:
        store.puts("name", b"inline")
        assert {str(path) for path in (tmp_path, root.parent.parent, root.parent)} <= synced
        assert {str(root), str(root / "index")} <= synced


def test_folders_that_others_made_are_synced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made them may not have come to it yet."""
    with castore.open(tmp_path / "store") as store:
        for i in range(256):
            os.makedirs(f"{store.path}/packs/{i:02x}", mode=0o700)
        synced = synced_folders(monkeypatch)
        store.puts("name", noise(10_000))
        (pack,) = packs_of(store)
        assert {str(pack), str(pack.parent), str(pack.parent.parent)} <= synced


def test_a_failed_fsync_poisons_the_pack(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.puts("before", noise(50_000, 1))
    (poisoned,) = packs_of(store)
    calls: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        calls.append(path)
        if failing and path.endswith(".pack"):
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    failing = True
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(PackPoisoned), store.transaction() as other:  # noqa: PT012
        other.puts("in the same pack", noise(50_000, 3))
        with pytest.raises(PackPoisoned, match="nothing was published"):
            store.puts("lost", noise(50_000, 2))
        failing = False
    assert calls.count(str(poisoned)) == 1, "a failed fsync is not repeated: it would succeed"
    assert list(store.names()) == ["before"]
    store.puts("after", noise(50_000, 2))
    assert calls.count(str(poisoned)) == 1
    assert len(packs_of(store)) == 2, "a new pack"
    assert store.gets("before") == noise(50_000, 1)
    assert store.gets("after") == noise(50_000, 2)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_while_a_pack_is_written(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store.puts("before", noise(50_000, 1))
    real = os.pwritev

    def pwritev(fd: int, parts: Any, offset: int) -> int:
        if offset > 100_000:
            raise OSError(code, os.strerror(code))
        return real(fd, [bytes(part)[:999] for part in parts][:1], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    with pytest.raises(StoreFull, match=r"no space left.*nothing was published") as caught:
        store.puts("lost", noise(200_000, 2))
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert list(store.names()) == ["before"]
    assert store.gets("before") == noise(50_000, 1)
    store.puts("lost", noise(200_000, 2))
    assert store.gets("lost") == noise(200_000, 2)


def test_short_writes_are_continued(store: castore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def pwritev(fd: int, parts: Any, offset: int) -> int:
        return real(fd, [memoryview(part)[:777] for part in parts][:1], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    data = mixed(300_000)
    store.puts("name", data)
    monkeypatch.undo()
    with castore.open(store.path, cache_bytes=0) as fresh:
        assert fresh.gets("name") == data


def test_a_put_goes_on_though_somebody_keeps_its_frames(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the traceback of a request that was tried again does: its slices of the buffer live."""
    kept, look_up = [], LocalSession.look_up

    def keeping(self: LocalSession, ids: list[bytes]) -> object:
        kept.append(sys._getframe())
        return look_up(self, ids)

    monkeypatch.setattr(LocalSession, "look_up", keeping)
    data = mixed(9_000_000)
    store.put("name", io.BytesIO(data))
    assert store.gets("name") == data
    assert len(kept) > 1


@pytest.mark.damages_store("packs are removed")
def test_chunks_of_a_lost_pack_are_stored_again(store: castore.Store) -> None:
    data = mixed(200_000)
    store.puts("name", data)
    store.close()
    for pack in packs_of(store):
        pack.unlink()
    with castore.open(store.path) as again:
        for read in (again.gets, lambda name: again.open(name).read()):
            with pytest.raises(PackMissing, match="is missing from the store: restore it"):
                read("name")
        again.puts("name", data)
        assert again.gets("name") == data
        unique = again.stats().unique_bytes
        again.puts("twice", data)
        assert again.stats().unique_bytes == unique


# ---------------------------------------------------------------- puts that meet a collector


def collect(store: castore.Store, packs: list[Path], *, rows_only: bool = False) -> None:
    """What a collector does to packs: their chunks' rows go, then (but for `rows_only`) their own,
    its counter is raised, and after its commit the files are unlinked."""
    from castore.local import meta

    index = store._catalog._index
    with index.write_gate, index.errors, index.begin() as txn:
        ids = {bytes.fromhex(pack.stem) for pack in packs}
        with txn.cursor(db=index.chunks) as cursor:
            rows = [(key, decode_chunk_row(row)[1].pack_id) for key, row in cursor]
        for key, pack_id in rows:
            if pack_id in ids:
                txn.delete(key, db=index.chunks)
        for pack_id in ids if not rows_only else ():
            assert txn.delete(pack_id, db=index.packs)
        meta.next_number(index, txn, meta.GC_SEQ)
    for pack in packs if not rows_only else ():
        pack.unlink()


@pytest.fixture(params=[None, "sha256"], ids=["plain", "guarded"])
def reusable(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[castore.Store]:
    """A store with packs full of chunks that no name uses."""
    path = tmp_path / "reusable"
    for i in range(2):
        with castore.open(path, chunk_bytes_avg=2816, collision_guard=request.param) as store:
            store.puts(f"{i}", mixed(4_000_000, i))
    with castore.open(path) as store:
        store.delete_prefix("", unbounded=True)
        yield store


def read_afresh(path: str, name: str) -> bytes:
    with castore.open(path, cache_bytes=0) as store, store.open(name) as file:
        assert store.gets(name) == file.read()
        return store.gets(name)


@pytest.mark.damages_store("rows are removed without the sums")
@pytest.mark.parametrize("which", [slice(0, 1), slice(1, 2), slice(0, 2)])
def test_packs_that_are_collected_after_they_were_looked_up(
    reusable: castore.Store, which: slice
) -> None:
    """The stream is gone by then: the frames come from the mapping that the put has kept."""
    contents = [mixed(4_000_000, 0), mixed(4_000_000, 1)]
    packs = packs_of(reusable)
    with reusable.transaction() as transaction:
        for i, data in enumerate(contents):
            transaction.puts(f"known {i}", data)
        assert packs_of(reusable) == packs, "all of it was known"
        transaction.puts("partly known", contents[0][1_000_000:] + contents[1][:1_000_000])
        collect(reusable, packs[which])
    reusable.close()
    for i, data in enumerate(contents):
        assert read_afresh(reusable.path, f"known {i}") == data
    both = contents[0][1_000_000:] + contents[1][:1_000_000]
    assert read_afresh(reusable.path, "partly known") == both


@pytest.mark.damages_store("rows are removed without the sums")
def test_packs_that_are_collected_while_another_stores_their_chunks_again(
    reusable: castore.Store,
) -> None:
    data = mixed(4_000_000, 0)
    with reusable.transaction() as transaction:
        transaction.puts("name", data)
        collect(reusable, packs_of(reusable))
        with castore.open(reusable.path) as other:
            other.puts("other", data)
        (pack,) = packs_of(reusable)
    assert packs_of(reusable) == [pack], "where they are now is good enough"
    reusable.close()
    assert read_afresh(reusable.path, "name") == data


@pytest.mark.damages_store("rows are removed without the sums")
def test_rows_that_are_collected_after_they_were_looked_up(reusable: castore.Store) -> None:
    """Their pack is still there: the rows come back."""
    data = mixed(4_000_000, 0)
    chunks = reusable.stats().chunks
    with reusable.transaction() as transaction:
        transaction.puts("name", data)
        collect(reusable, packs_of(reusable), rows_only=True)
        assert reusable.stats().chunks == 0
    found = reusable.stats().chunks
    assert 0 < found < chunks
    reusable.puts("again", data)
    assert reusable.stats().chunks == found
    reusable.close()
    assert read_afresh(reusable.path, "name") == data


def test_a_pack_of_ours_that_is_removed_before_the_commit(store: castore.Store) -> None:
    """Against all rules, since it is locked."""
    data = mixed(4_000_000, 0)
    with store.transaction() as transaction:
        transaction.puts("name", data)
        for pack in packs_of(store):
            pack.unlink()
        transaction.puts("more", data[:300_000])
    store.close()
    assert read_afresh(store.path, "name") == data
    assert read_afresh(store.path, "more") == data[:300_000]


def test_with_hardly_any_room_to_remember(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every cache that has a bound, at its least; manifests too large for memory."""
    from castore.local import hot as local
    from castore.stream import segments as manifest

    monkeypatch.setattr(local_packs, "PACK_BYTES_MAX", 100_000)
    monkeypatch.setattr(local_packs, "MAPPINGS_MAX", 1)
    monkeypatch.setattr(local, "HOT_OBJECTS_MAX", 1)
    monkeypatch.setattr(local, "HOT_SEGMENTS_MAX", 1)
    monkeypatch.setattr(manifest, "MEMORY_BYTES_MAX", 1000)
    contents = {f"{i}": mixed(9_000_000, i) for i in range(2)}
    for name, data in contents.items():
        assert store.puts(name, data).chunks > 2 * 1024
    rng = random.Random(1)
    files = {name: store.open(name) for name in contents}
    for _ in range(100):
        name = rng.choice(list(contents))
        begin = rng.randrange(9_000_000)
        end = begin + rng.choice([1, 5000, 3_000_000])
        assert store.gets(name, (begin, end)) == contents[name][begin:end]
        files[name].seek(begin)
        assert files[name].read(end - begin) == contents[name][begin:end]
    for name, file in files.items():
        with file:
            file.seek(0)
            assert file.read() == contents[name] == store.gets(name)


# ---------------------------------------------------------------- read-only


def test_a_read_only_store_reads_and_does_not_write(store: castore.Store, tmp_path: Path) -> None:
    data = mixed(50_000)
    store.puts("name", data)
    with castore.open(store.path, read_only=True) as reading:
        assert reading.read_only
        assert reading.gets("name", (10, 20)) == data[10:20]
        assert reading.open("name").read() == data
        assert list(reading.names()) == ["name"]
        assert reading.stats().objects == 1
        assert reading.get("name", tmp_path / "target").size == 50_000
        for write in (
            lambda: reading.puts("new", b""),
            lambda: reading.put("new", tmp_path / "target"),
            lambda: reading.put("new", io.BytesIO()),
            lambda: reading.copy("name", "new"),
            lambda: reading.rename("name", "new"),
            lambda: reading.delete("name"),
            lambda: reading.delete_prefix("", unbounded=True),
            lambda: reading.open("new", "wb"),
            lambda: reading.open("new", "xb"),
            lambda: reading.transaction(),
        ):
            with pytest.raises(ReadOnlyStore, match="is open for reading only") as caught:
                write()
            assert isinstance(caught.value, PermissionError)
    assert list(store.names()) == ["name"]


# ---------------------------------------------------------------- opening and closing


def test_closing(store: castore.Store, tmp_path: Path) -> None:
    store.puts("name", noise(10_000))
    other = castore.open(store.path)
    names = store.names()
    store.close()
    store.close()
    for use in (
        lambda: store.gets("name"),
        lambda: store.gets_many("name", []),
        lambda: store.get("name", io.BytesIO()),
        lambda: store.open("name"),
        lambda: store.open("name", "wb"),
        lambda: store.puts("name", b""),
        lambda: store.put("name", io.BytesIO()),
        lambda: store.info("name"),
        lambda: store.exists("name"),
        lambda: store.names(),
        lambda: store.list(),
        lambda: store.copy("name", "b"),
        lambda: store.delete("name"),
        lambda: store.delete_prefix("name", unbounded=True),
        lambda: store.transaction(),
        lambda: store.stats(),
        lambda: store.explain_range("name"),
        lambda: store.__enter__(),
    ):
        with pytest.raises(StoreClosed, match="is closed"):
            use()
    assert "closed" in repr(store)
    assert other.gets("name") == noise(10_000), "another Store on the path goes on"
    assert list(names) == ["name"]
    other.close()


def test_opening_in_every_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with castore.open("folder/store") as store:
        assert store.path == str(tmp_path / "folder" / "store")
        assert not store.read_only
        store.puts("name", b"x")
        (tmp_path / "link").symlink_to(tmp_path / "folder")
        for path in (
            tmp_path / "folder" / "store",
            "link/store",
            f"file://{store.path}",
            "folder/../folder/store/",
        ):
            with castore.open(path, create=False) as again:
                assert again.gets("name") == b"x"
                assert again.path == store.path


def test_a_writer_that_outlives_its_store(store: castore.Store) -> None:
    file = store.open("name", "wb")
    file.write(noise(5_000_000))
    store.close()
    with pytest.raises(StoreClosed):
        file.close()
    assert file.closed
    with castore.open(store.path) as again:
        assert list(again.names()) == []


def test_closing_while_a_put_is_under_way(store: castore.Store) -> None:
    begun, raised = threading.Event(), []

    class Slow:
        left = 200

        def read(self, size: int) -> bytes:
            begun.set()
            time.sleep(0.005)
            self.left -= 1
            return noise(1 << 20, self.left) if self.left else b""

    def put() -> None:
        try:
            store.put("name", Slow())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    begun.wait()
    time.sleep(0.1)
    store.close()
    thread.join()
    assert [type(error) for error in raised] == [StoreClosed]


def open_descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def test_nothing_of_a_closed_store_stays_open(tmp_path: Path) -> None:
    def mapped() -> list[str]:
        with open("/proc/self/maps") as file:
            return [line for line in file if str(tmp_path) in line]

    data = mixed(5_000_000)
    threads = threading.active_count()
    for i in range(3):
        with castore.open(tmp_path / "store", threads=3) as store:
            store.puts(f"{i}", data)
            assert store.gets("0") == data
            with store.open("0") as file:
                assert file.read() == data
            store.get("0", tmp_path / "target")
            with pytest.raises(KeyError), store.open("new", "wb") as failing:  # noqa: PT012
                failing.write(data[::-1])
                raise KeyError
    assert not [path for path in open_descriptors() if str(tmp_path) in path]
    del store, file, failing
    assert not mapped()
    assert threading.active_count() == threads


def test_reading_keeps_no_descriptors_of_packs(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_packs, "PACK_BYTES_MAX", 100_000)
    store.puts("name", noise(5_000_000))
    with store.open("name") as file:
        file.read()
        store.gets("name")
        held = [p for p in open_descriptors() if p.endswith(".pack") and store.path in p]
        assert len(held) <= 1, "the one that is open for writing"
        assert len(packs_of(store)) > 4


def test_threads_open_and_close_at_once(tmp_path: Path) -> None:
    castore.open(tmp_path / "store").close()
    raised: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for j in range(150):
                with castore.open(tmp_path / "store") as store:
                    store.puts(f"{i}", f"{i} {j}".encode())
                    assert store.gets(f"{i}") == f"{i} {j}".encode()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not raised


def test_two_processes_make_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one opens what the faster one made, also when that is in use already."""
    from castore.local import store as local

    path = tmp_path / "store"
    program = "import castore, sys; castore.open(sys.argv[1]).puts('name', bytes(50000))"
    original = local._create

    def outrun(*arguments: Any) -> None:
        subprocess.run([sys.executable, "-c", program, str(path)], check=True)
        original(*arguments)

    monkeypatch.setattr(local, "_create", outrun)
    with castore.open(path) as store:
        assert list(store.names()) == ["name"]


@pytest.mark.parametrize("read_only", [False, True])
def test_pickling(store: castore.Store, read_only: bool) -> None:
    store.puts("name", noise(10_000))
    opened = castore.open(store.path, read_only=read_only, cache_bytes=0, threads=1)
    with opened, pickle.loads(pickle.dumps(opened)) as copy:
        assert copy.read_only is read_only
        assert copy.path == store.path
        assert copy.gets("name") == noise(10_000)
        assert copy._options == opened._options
    program = (
        "import pickle, sys; store = pickle.load(sys.stdin.buffer); "
        "sys.stdout.buffer.write(store.gets('name'))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(opened), capture_output=True, check=True
    )
    assert elsewhere.stdout == noise(10_000)


def test_unpickling_does_not_make_stores(tmp_path: Path) -> None:
    with castore.open(tmp_path / "store") as store:
        pickled = pickle.dumps(store)
    os.rename(tmp_path / "store", tmp_path / "moved")
    with pytest.raises(errors.StoreNotFound):
        pickle.loads(pickled)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "error",
    [
        errors.NameNotFound("a"),
        errors.NameExists("a"),
        errors.InvalidName("a"),
        errors.InvalidRange("a"),
        errors.StoreNotFound(errno.ENOENT, "a"),
        errors.NotAStore("a"),
        errors.UnsupportedFormat("a"),
        errors.ReadOnlyStore(errno.EACCES, "a"),
        errors.StoreClosed("a"),
        errors.StoreLocked(errno.EAGAIN, "a"),
        errors.StoreFull("a"),
        errors.StoreIOError("a", errno.EMFILE),
        errors.PackPoisoned("a"),
        errors.CommitUnknown("a"),
        errors.SourceChanged("a"),
        errors.FormatError("a"),
        errors.ChunkCorrupt(b"\1" * 16, b"\2" * 16, 77, "because"),
        errors.PackMissing(b"\1" * 16),
        errors.IndexCorrupt("a"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_processes(error: errors.CastoreError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert getattr(copy, "errno", None) == getattr(error, "errno", None)


# ---------------------------------------------------------------- forks

fork_is_fine = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@fork_is_fine
def test_a_forked_child_reads_and_writes(store: castore.Store) -> None:
    data = mixed(5_000_000)
    store.puts("parent", data)

    def child() -> bytes:
        store.puts("child", noise(100_000))
        return store.gets("parent")

    assert forked(child) == data
    assert store.gets("child") == noise(100_000)
    store.puts("parent", noise(100_000, 5))
    assert store.gets("parent") == noise(100_000, 5)
    assert len(packs_of(store)) == 2, "the child wrote a pack of its own"
    assert isinstance(forked(lambda: store.gets("missing")), NameNotFound)


@fork_is_fine
@pytest.mark.timeout(120)
def test_a_forked_child_has_threads(store: castore.Store) -> None:
    """All of them find the index closed, and one opens it again."""
    store.puts("parent", noise(9000))

    def child() -> list[str]:
        barrier, raised = threading.Barrier(8), []

        def work(i: int) -> None:
            barrier.wait()
            try:
                if i % 2:
                    store.puts(f"{i}", noise(5000, i))
                else:
                    assert store.gets("parent") == noise(9000)
            except BaseException as error:
                raised.append(repr(error))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return raised

    for _ in range(25):
        assert forked(child) == []


@fork_is_fine
def test_forks_while_threads_are_at_work(store: castore.Store) -> None:
    """Whatever a thread holds at the moment of the fork, the child is not stuck with it."""
    data = mixed(300_000)
    store.puts("name", data)
    stop, raised = threading.Event(), []

    def work(i: int) -> None:
        j = 0
        while not stop.is_set():
            try:
                j += 1
                store.puts(f"{i}", noise(20_000, j))
                assert store.gets("name") == data
                with castore.open(store.path) as other:
                    other.stats()
            except BaseException as error:
                raised.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    try:
        for i in range(20):

            def child(i: int = i) -> bytes:
                with castore.open(store.path) as other:
                    other.puts(f"child {i}", noise(5000))
                return store.gets("name")

            assert forked(child) == data
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not raised
    assert len(list(store.names("child"))) == 20


@fork_is_fine
def test_a_child_that_ends_does_not_unlock_its_parents_pack(store: castore.Store) -> None:
    with store.transaction() as transaction:
        transaction.puts("name", noise(100_000))
        (pack,) = packs_of(store)

        def child() -> None:
            store.puts("child", noise(100_000, 2))
            store.close()

        assert forked(child) is None
        assert locked(pack)
        with pytest.raises(errors.StoreIOError, match="before a fork"):
            raise forked(lambda: transaction.__exit__(None, None, None))
        assert locked(pack)
        transaction.puts("more", noise(100_000, 3))
    assert store.gets("name") == noise(100_000)
    assert store.gets("more") == noise(100_000, 3)
    assert store.gets("child") == noise(100_000, 2)


@fork_is_fine
def test_a_reader_of_the_parent_is_not_freed_by_its_child(store: castore.Store) -> None:
    """The child closes the environment that it inherited; the parent's stays whole."""
    store.puts("name", noise(50_000))
    for _ in range(3):
        assert forked(store.close) is None
        assert store.gets("name") == noise(50_000)
        store.puts("name", noise(50_000))
