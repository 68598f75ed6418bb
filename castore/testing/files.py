"""Objects as file objects."""

from __future__ import annotations

import array
import copy
import io
import os
import pickle
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import castore
from castore.errors import NameExists, NameNotFound, ObjectChanged, UnpublishedResourceWarning
from castore.testing.contents import mixed, noise
from castore.testing.kind import Kind


class FileObjects(Kind):
    @pytest.mark.parametrize("size", [0, 100, 4097, 150_000])
    def test_an_open_object_is_a_buffered_reader(self, store: castore.Store, size: int) -> None:
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

    def test_an_open_object_reads_into_memory_of_the_caller(self, store: castore.Store) -> None:
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

    def test_an_open_object_is_one_version(self, store: castore.Store) -> None:
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
        with self.reopen(store) as second:
            second.puts("name", old)
            pinned = second.open("name")
        store.close()
        assert pinned.read() == old
        pinned.close()

    def test_an_etag_says_which_bytes_of_a_name_are_read(self, store: castore.Store) -> None:
        for data in (b"1", noise(200_000)):
            etag = store.puts("a", data).etag
            store.set_attributes("a", mode=0o600)
            with store.open("a", etag=etag) as file:
                assert file.read() == data
            store.puts("a", b"2")
            with pytest.raises(ObjectChanged, match="'a'"):
                store.open("a", etag=etag)
        store.delete("a")
        with pytest.raises(NameNotFound, match="'a'"):
            store.open("a", etag=etag)
        for wrong in ("zz", "", "ab", etag + "\n", f"{etag[:31]} "):
            with pytest.raises(ValueError, match="an etag is 32 hex digits"):
                store.open("a", etag=wrong)
        with pytest.raises(ValueError, match="an etag is for what is read"):
            store.open("a", "wb", etag=etag)

    def test_an_open_object_can_be_read_by_threads(self, store: castore.Store) -> None:
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

    @pytest.mark.parametrize("mode", ["", "w", "a", "r+b", "rt", "x", "wbx", "rw"])
    def test_modes_that_do_not_exist(self, store: castore.Store, mode: str) -> None:
        store.puts("name", b"x")
        with pytest.raises(ValueError, match="mode is 'rb', 'wb', 'xb' or 'ab', not"):
            store.open("name", mode)
        assert store.gets("name") == b"x"

    def test_an_open_object_is_not_pickled(self, store: castore.Store) -> None:
        store.puts("name", b"x")
        with store.open("name") as file, pytest.raises(TypeError, match="pickle the Store"):
            pickle.dumps(file)

    def test_a_writer_publishes_when_it_is_closed(self, store: castore.Store) -> None:
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

    def test_a_writer_that_fails_publishes_nothing(self, store: castore.Store) -> None:
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

    def test_what_is_no_buffer_spoils_nothing(self, store: castore.Store) -> None:
        with store.open("name", "wb") as file:
            for wrong in ("text", 5, None, memoryview(b"gaps")[::2]):
                with pytest.raises(TypeError):
                    file.write(wrong)
            file.write(b"goes on")
        assert store.gets("name") == b"goes on"

    def test_a_writer_is_neither_copied_nor_read(self, store: castore.Store) -> None:
        copies: list[Callable[..., object]] = [copy.copy, copy.deepcopy, pickle.dumps]
        with store.open("name", "wb") as file:
            file.write(b"whole")
            for refused in copies:
                with pytest.raises(TypeError, match="copied or pickled"):
                    refused(file)
            reads: list[Callable[[], object]] = [file.read, file.readline, file.readall]
            for read in reads:
                with pytest.raises(io.UnsupportedOperation):
                    read()
            store.puts("other", b"")  # and what was dropped is discarded
        assert store.gets("name") == b"whole"

    def test_a_writer_can_be_written_by_threads(
        self, store: castore.Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blocks = [noise(4000, seed) for seed in range(300)]
        monkeypatch.setattr("castore.stream.writer.BATCH_BYTES", 64 << 10)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(4) as pool, store.open("name", "wb") as file:
                list(pool.map(file.write, blocks))
        finally:
            sys.setswitchinterval(interval)
        data = store.gets("name")
        assert len(data) == file.tell()
        assert sorted(data[at : at + 4000] for at in range(0, len(data), 4000)) == sorted(blocks)
        with pytest.raises(ValueError, match="closed file"):
            file.write(b"more")

    @pytest.mark.parametrize("size", [0, 100, 150_000])
    def test_an_appender_begins_as_the_object_there_is(
        self, store: castore.Store, size: int
    ) -> None:
        data, more = mixed(size, 22), mixed(50_000, 23)
        store.puts("name", data, mode=0o640)
        with store.open("name", "ab") as file, store.open("new", "ab") as new:
            assert (file.tell(), new.tell()) == (size, 0)
            file.write(more)
            new.write(more)
            assert store.gets("name") == data
        with store.transaction() as t, t.open("name", "ab") as file:
            file.write(b"in a transaction")
        whole = data + more + b"in a transaction"
        assert store.gets("name") == whole
        assert store.gets("new") == more
        assert store.info("name").mode == 0o640
        assert store.info("name").etag == store.puts("at once", whole).etag

    @pytest.mark.parametrize("change", ["put", "deleted", "made"])
    def test_an_appender_overwrites_nothing_that_came_meanwhile(
        self, store: castore.Store, change: str
    ) -> None:
        if change != "made":
            store.puts("name", mixed(50_000, 24))
        file, t = store.open("name", "ab"), store.transaction()
        t.open("name", "ab").close()
        t.puts("beside", b"")
        if change == "deleted":
            store.delete("name")
        else:
            store.puts("name", b"another")
        for publish in (file.close, t.commit):
            with pytest.raises(NameExists if change == "made" else ObjectChanged):
                publish()
        there = {} if change == "deleted" else {"name": b"another"}
        assert {name: store.gets(name) for name in store.names()} == there

    @pytest.mark.parametrize("umask", [0o022, 0o077, 0o007])
    def test_what_has_no_mode_gets_that_of_a_new_file(
        self, store: castore.Store, tmp_path: Path, umask: int
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
        self, store: castore.Store, tmp_path: Path
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

    def test_two_writers_of_one_name(self, store: castore.Store) -> None:
        with store.open("name", "wb") as first:
            first.write(b"first")
            with store.open("name", "wb") as second:
                second.write(b"second")
            assert store.gets("name") == b"second"
        assert store.gets("name") == b"first"
