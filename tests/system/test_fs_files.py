"""castore.fs: what is published when files are closed, dropped or committed, and what other file
systems of fsspec ask of a file."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec")

from fsspec.compression import compr  # noqa: E402

import castore  # noqa: E402
from castore.errors import (  # noqa: E402
    ChunkCorrupt,
    FileStillOpen,
    NameExists,
    ObjectChanged,
    UnpublishedResourceWarning,
)
from castore.fs import CastoreFileSystem  # noqa: E402

OLD = b"the old, whole version"
THEIR_LITTER = pytest.mark.filterwarnings(  # fsspec's caches leave files open
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[CastoreFileSystem]:
    fsspec.register_implementation("castore", CastoreFileSystem, clobber=True)
    fs = CastoreFileSystem(tmp_path / "store")
    fs.pipe_file("x", OLD)
    yield fs
    fs.store.gc()
    assert fs.store.check(read_data=True).clean
    with castore.open(tmp_path / "store", create=False) as again:
        assert list(again.names()) == fs.find("")
    fs.store.close()
    fs.clear_instance_cache()


def data(mode: str) -> Any:
    return b"data" if "b" in mode else "data"


@pytest.mark.parametrize("mode", ["wb", "w", "wt", "xb"])
def test_a_file_is_published_whole_or_not_at_all(fs: CastoreFileSystem, mode: str) -> None:
    name = "new.gz" if "x" in mode else "x"

    def fail(opened: Any) -> None:
        with opened as file:
            file.write(data(mode))
            raise KeyError

    for compression in (None, "gzip", "bz2", "xz", "zip", "infer"):
        for store in (None, fs.store_path):
            options: dict[str, Any] = {"compression": compression}
            file_of: Any = fs.open
            path = name
            if store is not None:
                file_of, path, options["store"] = fsspec.open, f"castore://{name}", store
            with pytest.raises(KeyError):
                fail(file_of(path, mode, **options))
            assert fs.find("") == ["x"], options
            assert fs.cat("x") == OLD, options
            with file_of(path, mode, **options) as file:
                file.write(data(mode))
            with fs.open(name, "rb", compression=compression) as file:
                assert file.read() == b"data", options
            fs.rm(name)
            fs.pipe_file("x", OLD)


def test_a_file_that_is_dropped_unclosed_says_so(fs: CastoreFileSystem) -> None:
    for compression in (None, "gzip", "bz2", "zip"):
        for mode in ("wb", "w"):
            file = fs.open("x", mode, compression=compression)
            file.write(data(mode))
            with pytest.warns(UnpublishedResourceWarning, match="'x' is not published"):
                del file
            assert fs.cat("x") == OLD


def test_what_is_given_up_is_over(fs: CastoreFileSystem) -> None:
    """Nothing more goes into it, and a collection waits for none of what was written."""
    with pytest.raises(ZeroDivisionError), fs.transaction:  # noqa: PT012
        file = fs.open("given up", "wb")
        file.write(os.urandom(3_000_000))
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="closed"):
        file.write(b"more")
    assert fs.store.gc().packs_busy == 0
    assert fs.find("") == ["x"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of GzipFile's end
def test_a_compressor_that_can_not_end_publishes_nothing(
    fs: CastoreFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: gzip.GzipFile) -> None:
        raise MemoryError

    file = fs.open("x", "wb", compression="gzip")
    file.write(os.urandom(3_000_000))
    monkeypatch.setattr(gzip.GzipFile, "close", fails)
    with pytest.raises(MemoryError):
        file.close()
    monkeypatch.undo()
    assert file.closed
    file.close()
    assert fs.cat("x") == OLD
    assert fs.store.gc().packs_busy == 0  # it is over, and not only out of reach


def test_a_compressor_that_can_not_begin_publishes_nothing(
    fs: CastoreFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def fails(file: Any, **_: object) -> None:
        opened.append(file)
        raise MemoryError

    monkeypatch.setitem(compr, "gzip", fails)
    with pytest.raises(MemoryError):
        fs.open("x", "wb", compression="gzip")
    assert opened[0].closed
    assert fs.cat("x") == OLD


def test_a_compressed_file_has_what_a_file_has(fs: CastoreFileSystem) -> None:
    file = fs.open("x", "wb", compression="gzip")
    assert file.writable()
    assert file.mode == "wb"
    file.write(b"data")
    assert file.tell() == 4
    file.flush()
    file.abort()
    assert file.closed
    file.close()
    assert fs.cat("x") == OLD
    with pytest.raises(ValueError, match="nonesuch"):
        fs.open("x", "wb", compression="nonesuch")


# ---------------------------------------------------------------- transactions


def test_a_transaction_is_one_commit(fs: CastoreFileSystem, tmp_path: Path) -> None:
    fs.pipe({"from": b"1", "gone": b"2", "folder/a": b"3"})
    (tmp_path / "file").write_bytes(b"4")
    before = fs.find("")
    other = castore.open(fs.store_path, create=False)
    with fs.transaction:
        fs.pipe({"p": b"p", "q": b"q"})
        fs.put(str(tmp_path / "file"), "put")
        with fs.open("text", "w", compression="gzip") as file:
            file.write("text")
        fs.cp("folder", "copied", recursive=True)
        fs.mv("from", "to")
        fs.rm("gone")
        assert list(other.names()) == before
    assert fs.find("") == ["copied/a", "folder/a", "p", "put", "q", "text", "to", "x"]
    assert fs.cat("put") == b"4"
    assert fs.open("text", "r", compression="gzip").read() == "text"
    other.close()


@pytest.mark.parametrize("how", ["raises", "conflict", "late conflict", "open", "dropped", "gone"])
def test_a_transaction_that_fails_leaves_nothing(fs: CastoreFileSystem, how: str) -> None:
    expected = {
        "raises": KeyError,
        "conflict": NameExists,
        "late conflict": NameExists,
        "open": FileStillOpen,
        "dropped": FileStillOpen,
        "gone": FileNotFoundError,
    }
    fs.pipe_file("gone", b"1")

    def fail() -> None:
        with fs.transaction:
            fs.pipe_file("first", b"1" * 100_000)
            fs.rm("x")
            if how == "raises":
                raise KeyError
            if how == "conflict":
                fs.pipe_file("gone", b"", mode="create")
            if how == "late conflict":
                fs.pipe_file("late", b"", mode="create")
                fs.store.puts("late", b"another's")
            if how == "open":
                fs.open("never closed", "wb").write(b"half")
            if how == "dropped":
                with pytest.warns(UnpublishedResourceWarning):
                    fs.open("never closed", "w").write("half")
            if how == "gone":
                fs.rm("gone")
                fs.store.delete("gone")

    with pytest.raises(expected[how]):
        fail()
    there = {"late conflict": ["gone", "late", "x"], "gone": ["x"]}.get(how, ["gone", "x"])
    assert fs.find("") == there
    assert fs.cat("x") == OLD
    fs.pipe_file("after", b"1")  # the transaction has ended
    assert fs.exists("after")


def test_a_file_that_is_given_up_in_a_transaction_is_left_out(fs: CastoreFileSystem) -> None:
    with fs.transaction:
        fs.open("never", "wb").discard()
        with pytest.raises(KeyError), fs.open("nor this", "wb"):
            raise KeyError
        fs.pipe_file("kept", b"1")
    assert fs.find("") == ["kept", "x"]


def test_files_of_a_transaction_end_with_it(fs: CastoreFileSystem) -> None:
    fs.start_transaction()
    file = fs.open("late", "wb")
    with pytest.raises(FileStillOpen):
        fs.end_transaction()
    with pytest.raises(ValueError):
        file.write(b"1")
    assert not fs.exists("late")
    with pytest.raises(ValueError, match="autocommit"):
        fs.open("late", "wb", autocommit=False)


def test_a_transaction_loses_nothing_to_another_that_would_begin(fs: CastoreFileSystem) -> None:
    def begin_another() -> None:
        with fs.transaction:
            fs.pipe_file("another", b"")

    with fs.transaction, ThreadPoolExecutor(1) as pool:
        fs.pipe_file("first", b"1")
        with pytest.raises(ValueError, match="has begun"):
            begin_another()
        with pytest.raises(ValueError, match="has begun"):
            pool.submit(begin_another).result()
        with pytest.raises(ValueError, match="has begun"):
            fs.start_transaction()
        fs.pipe_file("second", b"2")
        assert not fs.exists("second")
    assert fs.find("") == ["first", "second", "x"]

    given_up = fs.start_transaction()
    fs.pipe_file("third", b"3")
    given_up.complete(commit=False)
    with pytest.raises(ValueError, match="ended"), given_up:
        pass
    begin_another()
    assert fs.find("") == ["another", "first", "second", "x"]


def test_threads_share_a_transaction(fs: CastoreFileSystem) -> None:
    def put(at: int) -> None:
        with fs.open(f"t/{at}", "wb") as file:
            for block in range(20):
                file.write(bytes([at, block]) * 40_000)

    with fs.transaction, ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(12)))
    for at in range(12):
        assert fs.cat(f"t/{at}") == b"".join(bytes([at, i]) * 40_000 for i in range(20))


# ---------------------------------------------------------------- what others ask of a file


@THEIR_LITTER
def test_other_file_systems_read_through_this_one(fs: CastoreFileSystem, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("m")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    fs.pipe_file("a.tar.gz", packed.getvalue())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("m", b"abc")
    fs.pipe_file("a.zip", packed.getvalue())
    fs.pipe_file("plain", b"abc")
    for url in (
        "tar://m::castore://a.tar.gz",
        "zip://m::castore://a.zip",
        "blockcache::castore://plain",
        "filecache::castore://plain",
        "simplecache::castore://plain",
        "tar://m::blockcache::castore://a.tar.gz",
    ):
        cache = {"cache_storage": str(tmp_path / "cache")}
        given = {name: cache for name in ("blockcache", "filecache", "simplecache") if name in url}
        given |= {"castore": {"store": fs.store_path}}
        with fsspec.open(url, "rb", **given) as file:
            assert file.read() == b"abc", url


@THEIR_LITTER
def test_blockcache_reads_through_its_cache(fs: CastoreFileSystem, tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    fs.pipe_file("big", content)
    options = {"target_options": {"store": fs.store_path}, "cache_storage": str(tmp_path / "c")}
    cached = fsspec.filesystem("blockcache", target_protocol="castore", **options)
    with cached.open("big", block_size=10_000) as file:
        file.seek(100_000)
        assert file.read(10) == content[100_000:100_010]
        assert 10 in file.cache.blocks
        assert file.read() == content[100_010:]
    assert file.closed


def test_a_file_has_what_fsspec_s_files_have(fs: CastoreFileSystem) -> None:
    with fs.open("x", block_size=1234) as file:
        assert file.info() == fs.info("x")
        assert (file.path, file.name, file.mode, file.fs) == ("x", "x", "rb", fs)
        assert (file.size, file.blocksize, file.closed) == (len(OLD), 1234, False)
    assert file.closed
    with fs.open("y", "wb") as file:
        assert (file.path, file.name, file.mode, file.fs) == ("y", "y", "wb", fs)
        assert file.blocksize == fs.blocksize


def test_files_are_appended_to(fs: CastoreFileSystem) -> None:
    for _ in range(2):
        with fs.open("x.txt", "a", newline="") as file:
            file.write("line\n")
        with fs.open("x.gz", "ab", compression="gzip") as file:
            file.write(b"line")
    assert fs.cat_file("x.txt") == b"line\n" * 2
    assert fs.open("x.gz", compression="gzip").read() == b"lineline"
    with fs.transaction:
        with fs.open("x.txt", "ab") as file:
            assert file.tell() == 10
            file.write(b"last\n")
        fs.pipe_file("y", b"")
        assert fs.cat_file("x.txt") == b"line\n" * 2
    assert fs.cat_file("x.txt") == b"line\n" * 2 + b"last\n"


@pytest.mark.parametrize("mode", ["a", "ab"])
def test_a_zip_is_not_appended_to(fs: CastoreFileSystem, mode: str) -> None:
    with fs.open("x.zip", "wb", compression="zip") as file:
        file.write(b"old")
    with pytest.raises(NotImplementedError, match="zip"):
        fs.open("x.zip", mode, compression="infer")
    assert fs.open("x.zip", compression="zip").read() == b"old"


def test_an_open_reader_pickles(fs: CastoreFileSystem) -> None:
    with fs.open("x") as file:
        file.read(4)
        pickled = pickle.dumps(file)
        with pickle.loads(pickled) as again:
            assert again.tell() == 4
            assert again.read() == OLD[4:]
    fs.pipe_file("x", OLD)
    pickle.loads(pickled).close()
    fs.pipe_file("x", b"another")
    with pytest.raises(ObjectChanged, match="'x' was put anew"):
        pickle.loads(pickled)
    pickled = pickle.dumps(file)  # which is closed
    with pytest.raises(ObjectChanged, match="'x' was put anew"):
        pickle.loads(pickled)
    fs.pipe_file("x", OLD)
    with pickle.loads(pickled) as again:
        assert again.read() == OLD
    with pytest.raises(TypeError):
        pickle.dumps(fs.store.open("x"))


def test_readuntil_finds_what_lies_across_blocks(tmp_path: Path) -> None:
    fs = CastoreFileSystem(store=str(tmp_path / "until"), skip_instance_cache=True)
    fs.pipe_file("a", b"one--two-three----four")
    for blocks in (1, 2, 3, 5, None):
        with fs.open("a") as file:
            parts = [file.readuntil(b"--", blocks) for _ in range(5)]
            assert parts == [b"one--", b"two-three--", b"--", b"four", b""]
            file.discard()
    fs.store.close()


def test_a_range_for_a_cache_is_never_short_of_what_cannot_be_read(tmp_path: Path) -> None:
    fs = CastoreFileSystem(tmp_path / "damaged")
    data = os.urandom(1 << 20)
    fs.pipe_file("large", data)
    fs.store.close()
    [pack] = [path for path in (tmp_path / "damaged" / "packs").rglob("*") if path.is_file()]
    raw = bytearray(pack.read_bytes())
    raw[len(raw) * 7 // 10] ^= 1
    pack.write_bytes(raw)
    with fs.open("large", "rb") as file:
        assert file._fetch_range(0, 1000) == data[:1000]
        file.seek(7)
        assert file._fetch_range(1000, 2000) == data[1000:2000]
        assert file._fetch_range(2000, 1000) == b""
        assert file.tell() == 7
        file.seek(0)
        with pytest.raises(ChunkCorrupt):
            file._fetch_range(0, len(data))
        assert file.tell() == 0
    with pytest.raises(ValueError, match="closed"):
        file._fetch_range(0, 1000)
    fs.store.close()
