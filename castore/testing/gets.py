"""What a get gives: whole objects and ranges, to files and streams, with progress."""

from __future__ import annotations

import io
import os
import random
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import castore
from castore.errors import InvalidRange, NameNotFound
from castore.testing.contents import CHUNK_MAX, TAIL, Told, mixed, noise
from castore.testing.kind import Kind


class Index:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


class Gets(Kind):
    @pytest.mark.parametrize("size", [0, 100, 4097, 9_000_000])
    def test_progress(self, store: castore.Store, tmp_path: Path, size: int) -> None:
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
        self, store: castore.Store, tmp_path: Path
    ) -> None:
        class Stop(Told):
            def relative_update(self, inc: int = 1) -> None:
                raise InterruptedError("enough")

        with pytest.raises(InterruptedError):
            store.put("name", io.BytesIO(noise(100_000)), progress=Stop())
        assert not store.exists("name")
        store.puts("name", noise(9_000_000))
        folder = tmp_path / "targets"
        folder.mkdir()
        for target in (folder / "target", io.BytesIO()):
            with pytest.raises(InterruptedError):
                store.get("name", target, progress=Stop())
        assert os.listdir(folder) == [], "no half a file is left"

    @pytest.mark.parametrize("size", [0, 5, 4096, 4097, 9_000_000])
    def test_get(self, store: castore.Store, tmp_path: Path, size: int) -> None:
        data = mixed(size, size)
        info = store.puts("folder/name", data, mode=0o640)
        folder = tmp_path / "targets"
        folder.mkdir()
        target = folder / "target"
        for _ in range(2):
            assert store.get("folder/name", target) == info
            assert target.read_bytes() == data
            assert stat.S_IMODE(target.stat().st_mode) == 0o640
        assert store.get("folder/name", str(folder)) == info
        assert (folder / "name").read_bytes() == data
        stream = io.BytesIO()
        assert store.get("folder/name", stream) == info
        assert stream.getvalue() == data
        assert set(os.listdir(folder)) == {"name", "target"}

    def test_get_of_a_name_without_a_last_part_into_a_folder(
        self, store: castore.Store, tmp_path: Path
    ) -> None:
        store.puts("name/", b"data")
        folder = tmp_path / "targets"
        folder.mkdir()
        with pytest.raises(IsADirectoryError, match="'name/' ends with '/', and names no file"):
            store.get("name/", folder)
        assert os.listdir(folder) == []
        with pytest.raises(FileNotFoundError, match="there is no such folder"):
            store.get("name/", f"{tmp_path}/none/")
        store.get("name/", folder / "file")
        assert (folder / "file").read_bytes() == b"data"

    def test_get_to_a_pipe(self, store: castore.Store) -> None:
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

    def test_get_to_a_stream_that_takes_little_at_a_time(self, store: castore.Store) -> None:
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

    def test_get_to_where_nothing_can_be(self, store: castore.Store, tmp_path: Path) -> None:
        store.puts("name", b"x")
        missing = f"{tmp_path.resolve()}/no"  # is told, and not the file that would be in it
        for path, told in ((f"{missing}/such", missing), (f"{missing}/", f"{missing}/"), ("", "")):
            with pytest.raises(FileNotFoundError) as caught:
                store.get("name", path)
            assert caught.value.filename == told

    def test_get_to_a_long_name(self, store: castore.Store, tmp_path: Path) -> None:
        """255 bytes are what file systems allow; the draft beside it must not need more."""
        store.puts("name", b"x")
        for name in ("n" * 255, "я" * 127, "漢" * 85):
            store.get("name", tmp_path / name)
            assert (tmp_path / name).read_bytes() == b"x"

    def test_get_to_what_is_not_a_file(self, store: castore.Store, tmp_path: Path) -> None:
        """A device or a pipe is written to, not replaced (think of /dev/stdout); so is what a
        symlink leads to."""
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

    @pytest.mark.parametrize("size", [0, 100, 60_000])
    def test_whether_a_file_has_the_content_of_an_object(
        self, store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        monkeypatch.setattr("castore.stream.sourcefile.HASH_BYTES", 10_000)  # read at once
        data = mixed(size, 13)
        info = store.puts("name", data)
        others = [data + b"x", data + data + b"x", data[:-1] + b"?" + data[-1:]]
        others += [data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b""] if data else []
        for other in (data, *others):
            (tmp_path / "file").write_bytes(other)
            with open(tmp_path / "file", "rb") as file:
                assert store.has_content(info, file.fileno()) == (other == data)
            assert store.has_content(info, other) == (other == data)

    @pytest.mark.parametrize("size", [0, 100, 4097, 60_000])
    def test_ranges_are_slices(self, store: castore.Store, size: int) -> None:
        data = mixed(size, 11)
        store.puts("name", data)
        rng = random.Random(2)
        places = [0, 1, size // 2, size - 1, size, size + 1, 2 * size, 1 << 70]
        places = sorted({place for place in places if place >= 0})
        ranges = [(begin, end) for begin in places for end in places if begin <= end]
        ranges += [
            (min(a, b), max(a, b))
            for a, b in (rng.choices(range(size + 1), k=2) for _ in range(300))
        ]
        for begin, end in ranges:
            assert store.gets("name", (begin, end)) == data[begin:end]
            assert store.gets("name", [begin, end]) == data[begin:end]
        assert store.gets_many("name", ranges) == [data[begin:end] for begin, end in ranges]
        assert store.gets("name", None) == store.gets("name", []) == store.gets("name", ()) == data
        assert store.gets_many("name", [None, [], (0, 1)]) == [data, data, data[:1]]
        assert store.gets_many("name", []) == []
        assert all(type(part) is bytes for part in store.gets_many("name", ranges))

    def test_ranges_take_anything_that_is_an_integer(self, store: castore.Store) -> None:
        store.puts("name", b"0123456789")
        assert store.gets("name", (Index(2), Index(4))) == b"23"  # type: ignore[arg-type]
        numpy = pytest.importorskip("numpy")
        assert store.gets("name", (numpy.int64(2), numpy.uint8(4))) == b"23"
        assert store.gets("name", numpy.array([1, 3])) == b"12"

    def test_explain_range(self, store: castore.Store) -> None:
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

    def test_all_ranges_are_of_one_version(self, store: castore.Store) -> None:
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
