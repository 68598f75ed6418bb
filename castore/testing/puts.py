"""What a put takes, and what it makes of it."""

from __future__ import annotations

import array
import ctypes
import errno
import io
import mmap
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import castore
from castore.stream import small, writer
from castore.testing.contents import CHUNK_MAX, CHUNK_MIN, TAIL, Blocks, mixed, noise
from castore.testing.kind import Kind


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


def put_among_many(
    store: castore.Store, name: str, data: bytes, folder: Path
) -> castore.ObjectInfo:
    [_, info, _] = store.puts_many({"another": noise(5000, 99), name: data, "last": b""})
    return info


WAYS = [
    put_path,
    put_pipe,
    put_fifo,
    put_stream,
    put_bytes,
    put_file_object,
    put_in_transaction,
    put_among_many,
]


SIZES = [0, 1, 255, 256, 703, 704, 4095, 4096, 4097, 11264, 11265, 100_000]


class Puts(Kind):
    @pytest.mark.parametrize("put", WAYS)
    @pytest.mark.parametrize("size", SIZES)
    def test_put_and_gets(
        self,
        store: castore.Store,
        tmp_path: Path,
        put: Callable[..., castore.ObjectInfo],
        size: int,
    ) -> None:
        data = mixed(size, size)
        before = time.time()
        info = put(store, "folder/name", data, tmp_path)
        assert store.gets("folder/name") == data
        assert info == store.info("folder/name")
        assert (info.name, info.size) == ("folder/name", size)
        assert before - 0.01 <= info.mtime <= time.time() + 0.01
        assert info.mode == 0o644
        assert (info.chunks == 0) == (size <= self.inline_bytes_max)
        if info.chunks:
            assert size / (CHUNK_MAX + TAIL) <= info.chunks <= size / CHUNK_MIN + 1
            plan = store.explain_range("folder/name")
            assert (plan.chunks, plan.raw_bytes) == (info.chunks, size)
            assert plan.frame_bytes == info.stored_bytes
        else:
            assert info.stored_bytes <= size

    def test_the_way_in_does_not_matter(self, store: castore.Store, tmp_path: Path) -> None:
        """The same bytes are the same chunks, stored once."""
        data = mixed(300_000)
        infos = {put(store, put.__name__, data, tmp_path) for put in WAYS}
        assert len({(info.etag, info.chunks, info.stored_bytes) for info in infos}) == 1
        stats = store.stats()
        assert stats.logical_bytes == len(WAYS) * len(data) + 5000
        assert stats.unique_bytes <= len(data) + 5000

    def test_etags_tell_contents_apart(self, store: castore.Store) -> None:
        contents = [
            b"",
            b"a",
            b"b",
            noise(5000),
            noise(5000)[:-1] + b"x",
            noise(50_000),
            bytes(50_000),
        ]
        etags = {store.puts(f"{i}", data).etag for i, data in enumerate(contents)}
        assert len(etags) == len(contents)
        assert store.puts("again", contents[5]).etag in etags

    @pytest.mark.parametrize("mode", [0o600, 0o755, 0o444, 0o4755, 0o1777, 0o000])
    def test_mode_bits_are_kept(self, store: castore.Store, tmp_path: Path, mode: int) -> None:
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

    def test_puts_takes_a_mode_and_refuses_nonsense(
        self, store: castore.Store, tmp_path: Path
    ) -> None:
        assert store.puts("name", b"x", mode=0o700).mode == 0o700
        for mode in (-1, 1 << 33):
            with pytest.raises(ValueError, match="mode"):
                store.puts("bad", b"x", mode=mode)
        (tmp_path / "source").write_bytes(b"x")
        puts: list[Callable[[castore.Transaction, Any], object]] = [
            lambda t, mode: t.puts("bad", b"x", mode=mode),
            lambda t, mode: t.puts_many({"bad": b"x"}, mode=mode),
            lambda t, mode: t.put("bad", io.BytesIO(b"x"), mode=mode),
            lambda t, mode: t.put("bad", tmp_path / "source", mode=mode),
        ]
        for wrong, error in ((-1, ValueError), (0o10000, ValueError), ("644", TypeError)):
            with store.transaction() as transaction:
                for put in puts:
                    with pytest.raises(error):
                        put(transaction, wrong)
        assert not store.exists("bad")

    def test_puts_takes_any_buffer(self, store: castore.Store) -> None:
        data = mixed(40_000)
        with mmap.mmap(-1, len(data)) as mapped:
            mapped[:] = data
            buffers: list[Any] = [
                bytearray(data),
                memoryview(data),
                memoryview(data).cast("H"),
                mapped,
            ]
            buffers.append(memoryview(data).cast("B", (200, 200)))
            buffers.append(array.array("I", data))
            for buffer in buffers:
                assert store.puts("name", buffer).size == len(data)
                assert store.gets("name") == data
                store.delete("name")
        for wrong in (5, None, [1, 2], "text"):
            with pytest.raises((TypeError, BufferError)):
                store.puts("name", wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="not C-contiguous"):  # as an array in Fortran order
            store.puts("name", memoryview(data)[::2])
        assert not store.exists("name")

    def test_a_buffer_of_rows_may_have_none(self, store: castore.Store) -> None:
        empty: Any = (ctypes.c_double * 3 * 0)()  # as an array of numpy's of shape (0, 3)
        assert store.puts("name", empty).size == 0
        assert [info.size for info in store.puts_many({"a": empty, "b": b"1"})] == [0, 1]
        with store.open("file", "wb") as file:
            assert [file.write(each) for each in (b"head", empty, b"tail")] == [4, 0, 4]
        assert store.gets("file") == b"headtail"

    def test_puts_many(self, store: castore.Store) -> None:
        """Small ones and large ones in their order, more than are stored at once; one buffer for
        all, which is another's before the next is asked for; and of a name the last."""
        sizes = [0, 1, 5000, 70_000, *range(300, 2000), 3_000_000, 65_536, 65_537, 4096]
        buffer = bytearray(max(sizes))

        def objects() -> Iterator[tuple[str, memoryview]]:
            for at, size in enumerate(sizes):
                buffer[:size] = mixed(size, at)
                yield f"many/{at}", memoryview(buffer)[:size]
                buffer[:] = bytes(len(buffer))
            yield "many/0", memoryview(b"the last")

        store.puts("many/1", b"old")
        infos = store.puts_many(objects(), mode=0o640)
        expected = [mixed(size, at) for at, size in enumerate(sizes)]
        expected[0] = b"the last"
        names = [f"many/{at}" for at in range(len(sizes))]
        assert [info.name for info in infos] == [*names, "many/0"]
        assert infos[1:] == [store.info(info.name) for info in infos[1:]]
        assert store.gets_ranges([(name, None) for name in names]) == expected
        assert {info.mode for info in infos} == {0o640}
        assert store.puts_many({}) == store.puts_many(iter(())) == []

    def test_what_many_have_is_stored_once(self, store: castore.Store) -> None:
        """Also where it comes again while it is still being compressed."""
        data = noise(60_000)
        store.puts_many((f"{at}", data) for at in range(300))
        stats = store.stats()
        assert (stats.objects, stats.unique_bytes) == (300, len(data))
        assert stats.pack_bytes <= 1.1 * len(data)

    @pytest.mark.parametrize(
        ("last", "error"),
        [
            (("text", "text"), TypeError),
            (("../out", b""), ValueError),
            (("taken", b""), castore.errors.NameExists),
            (None, ZeroDivisionError),
        ],
    )
    def test_puts_many_are_put_all_or_none(
        self,
        store: castore.Store,
        last: Any,
        error: type[Exception],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(small, "GROUP_OBJECTS_MAX", 3)  # of seven between two large ones

        def objects() -> Iterator[tuple[str, bytes]]:
            for at in range(30):
                yield f"{at}", noise(300_000 if at % 8 == 7 else 20_000, at)
            yield last or (f"{1 // 0}", b"")

        store.puts("taken", b"old")
        with store.transaction() as transaction:
            transaction.puts("before", noise(20_000, 100))
            with pytest.raises(error):
                transaction.puts_many(objects(), if_absent=True)
            transaction.puts_many({"after": noise(20_000, 101)}, if_absent=True)
        with pytest.raises(error):
            store.puts_many(objects(), if_absent=True)
        assert list(store.names()) == ["after", "before", "taken"]
        assert store.gets("before") + store.gets("after") == noise(20_000, 100) + noise(20_000, 101)
        for mode in (-1, 1 << 33):
            with pytest.raises(ValueError, match="mode"):
                store.puts_many({"bad": b"x"}, mode=mode)

    def test_a_buffer_may_change_once_write_returned(self, store: castore.Store) -> None:
        data, block = noise(200_000), bytearray(10_000)
        with store.open("name", "wb") as file:
            for at in range(0, len(data), len(block)):
                block[:] = data[at : at + len(block)]
                file.write(block)
                block[:] = bytes(len(block))
        assert store.gets("name") == data

    def test_put_reads_on_from_where_the_file_is(
        self, store: castore.Store, tmp_path: Path
    ) -> None:
        (tmp_path / "source").write_bytes(b"skipped|kept")
        with open(tmp_path / "source", "rb") as file:
            file.seek(8)
            store.put("name", file)
            assert file.read() == b""
        assert store.gets("name") == b"kept"

    def test_put_takes_blocks_of_any_size(self, store: castore.Store) -> None:
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
    def test_a_source_that_fails_publishes_nothing(
        self, store: castore.Store, block: Any, error: type[BaseException]
    ) -> None:
        store.puts("name", b"old")
        for before in ([], [noise(100)], [noise(5_000_000)]):
            with pytest.raises(error):
                store.put("name", Blocks(*before, block))
            assert store.gets("name") == b"old"
            assert list(store.names()) == ["name"]
        store.puts("name", noise(10_000))
        assert store.gets("name") == noise(10_000)

    @pytest.mark.parametrize("wrong", [b"the bytes themselves", 5, None, object()])
    def test_put_says_what_it_takes(self, store: castore.Store, wrong: Any) -> None:
        with pytest.raises(TypeError, match="path"):
            store.put("name", wrong)
        assert not store.exists("name")

    @pytest.mark.parametrize("extra", [-1, 0, 1, 255, 256, 257, 703, 704, 705])
    @pytest.mark.parametrize("times", [1, 2])
    def test_chunks_at_their_largest(self, store: castore.Store, extra: int, times: int) -> None:
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
        self, store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

    @pytest.mark.parametrize(
        "path", ["/proc/self/mountinfo", "/proc/cpuinfo", "/proc/self/environ"]
    )
    def test_files_of_proc(self, store: castore.Store, path: str) -> None:
        """They claim to be empty."""
        if not os.path.exists(path):
            pytest.skip("no /proc here")
        assert os.stat(path).st_size == 0
        info = store.put("name", path)
        assert info.size == len(store.gets("name")) > 0

    def test_files_of_sys(self, store: castore.Store) -> None:
        """They claim a page, whatever they hold."""
        path = "/sys/kernel/mm/transparent_hugepage/enabled"
        if not os.path.exists(path):
            pytest.skip("no such file here")
        store.put("name", path)
        assert store.gets("name") == Path(path).read_bytes()
