"""castore.fs: fsspec's own conformance suites, and what is castore's about it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

fsspec = pytest.importorskip("fsspec")

from fsspec.callbacks import Callback  # noqa: E402
from fsspec.tests.abstract import (  # noqa: E402
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

from castore.errors import NameNotFound, ReadOnlyStore, StoreNotFound  # noqa: E402
from castore.fs import CastoreFileSystem  # noqa: E402


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[CastoreFileSystem]:
    fs = CastoreFileSystem(store=tmp_path / "store", skip_instance_cache=True)
    yield fs
    if fs.exists(""):
        fs.store.close()


class CastoreFixtures(AbstractFixtures):
    @pytest.fixture
    def fs(self, tmp_path):
        fs = CastoreFileSystem(store=tmp_path / "store", skip_instance_cache=True)
        fs.pipe_file("somewhere/else", b"so that the store is there")
        yield fs
        fs.store.close()

    @pytest.fixture
    def fs_path(self, fs):
        return "base"

    @pytest.fixture
    def fs_join(self):
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def supports_empty_directories(self):
        return False


class TestCopy(AbstractCopyTests, CastoreFixtures):
    pass


class TestGet(AbstractGetTests, CastoreFixtures):
    test_get_glob_edge_cases = None  # the same globs as TestCopy's


class TestPut(AbstractPutTests, CastoreFixtures):
    test_put_glob_edge_cases = None  # the globs of put are of local files: no code of ours


class TestOpen(AbstractOpenTests, CastoreFixtures):
    pass


class TestPipe(AbstractPipeTests, CastoreFixtures):
    pass


def fill(fs):
    for name in ("a", "a.txt", "a/b", "a/c/d", "a/c/e", "z"):
        fs.pipe_file(name, name.encode())


def test_a_read_makes_no_store_and_a_write_does(fs, tmp_path):
    assert not fs.exists("x")
    with pytest.raises(StoreNotFound):
        fs.cat_file("x")
    assert not (tmp_path / "store").exists()
    fs.pipe_file("x", b"1")
    assert fs.cat_file("x") == b"1"


def test_ls_implies_folders_by_slashes(fs):
    fill(fs)
    assert fs.ls("", detail=False) == ["a", "a", "a.txt", "z"]
    assert [(each["name"], each["type"]) for each in fs.ls("")] == [
        ("a", "directory"),
        ("a", "file"),
        ("a.txt", "file"),
        ("z", "file"),
    ]
    assert fs.ls("/a/", detail=False) == ["a/b", "a/c"]
    assert fs.ls("a/b", detail=False) == ["a/b"]
    with pytest.raises(FileNotFoundError):
        fs.ls("nowhere")


def test_info_of_a_file_a_folder_and_nothing(fs):
    fill(fs)
    info = fs.info("castore://a/b")
    assert (info["name"], info["size"], info["type"]) == ("a/b", 3, "file")
    assert fs.info("a/c") == {"name": "a/c", "size": 0, "type": "directory"}
    assert fs.info("")["type"] == "directory"
    assert fs.isdir("a/c")
    assert fs.isfile("a/c/d")
    assert fs.exists("a/c")
    assert not fs.exists("../x")
    with pytest.raises(NameNotFound):
        fs.info("nowhere")


def test_find_glob_walk_and_du(fs):
    fill(fs)
    assert fs.find("a") == ["a/b", "a/c/d", "a/c/e"]
    assert fs.find("a", maxdepth=1) == ["a/b"]
    assert fs.find("a", maxdepth=1, withdirs=True) == ["a", "a/b", "a/c"]
    assert fs.find("z") == ["z"]
    assert fs.find("nowhere") == []
    assert fs.find("a", detail=True)["a/c/d"]["size"] == 5
    assert fs.glob("a/c/*") == ["a/c/d", "a/c/e"]
    assert fs.glob("**/d") == ["a/c/d"]
    assert [sorted(files) for _, _, files in fs.walk("a")] == [["b"], ["d", "e"]]
    assert fs.du("a/c") == 10


@pytest.mark.parametrize("topdown", [True, False])
@pytest.mark.parametrize("maxdepth", [None, 1, 2])
@pytest.mark.parametrize("path", ["", "a", "a/c", "z", "both", "marked", "nowhere"])
def test_a_walk_shows_the_same_as_one_with_details(fs, path, maxdepth, topdown):
    fill(fs)
    fs.pipe({"both": b"1", "both/x": b"2", "marked/y": b"3", "a/c/f/g": b"4"})
    fs.store.puts("marked/", b"")
    kwargs = {"maxdepth": maxdepth, "topdown": topdown}
    shown = [(at, [*dirs], [*files]) for at, dirs, files in fs.walk(path, **kwargs, detail=True)]
    assert list(fs.walk(path, **kwargs)) == shown
    assert bool(shown) == (path != "nowhere")


@pytest.mark.parametrize("pattern", ["*", "**", "a/**", "a/*/", "*/*", "**/[de]", "mark*/*", "n*"])
def test_a_glob_shows_the_same_as_one_with_details(fs, pattern):
    fill(fs)
    fs.pipe({"both": b"1", "both/x": b"2", "marked/y": b"3", "a/c/f/g": b"4"})
    fs.store.puts("marked/", b"")
    shown = fs.glob(pattern, detail=True)
    assert fs.glob(pattern) == list(shown)
    assert {info["size"] for info in shown.values() if info["type"] == "file"} <= {*range(9)}
    assert bool(shown) == (pattern != "n*")
    found = fs.find("", kinds_only=True, detail=True, withdirs=True)
    assert {name: info["type"] for name, info in found.items()} == {
        name: info["type"] for name, info in fs.find("", detail=True, withdirs=True).items()
    }


def test_a_walk_goes_where_the_caller_says(fs):
    """Folders that are left out, that are put meanwhile, and that are gone when it comes there."""
    fill(fs)
    fs.pipe({"a/gone/x": b"1", "a/out/y": b"2"})
    walked = []
    for at, dirs, files in fs.walk("a"):
        walked.append((at, files))
        if at == "a":
            assert dirs == ["c", "gone", "out"]
            dirs.remove("out")
            fs.rm("a/gone", recursive=True)
            fs.pipe_file("a/c/new/z", b"3")
    assert walked == [("a", ["b"]), ("a/c", ["d", "e"]), ("a/c/new", ["z"])]
    with pytest.raises(FileNotFoundError):
        list(fs.walk("nowhere", on_error="raise"))
    errors = []
    assert list(fs.walk("nowhere", on_error=errors.append)) == []
    assert [type(error) for error in errors] == [NameNotFound]


def test_what_is_asked_for_as_it_can_not_be(fs, tmp_path):
    fs.pipe_file("a/b", b"x")
    for use in (fs.find, fs.expand_path):
        with pytest.raises(ValueError, match="maxdepth must be at least 1"):
            use("a", maxdepth=0)
    (tmp_path / "file").write_bytes(b"1")
    path = str(tmp_path / "file")
    for move in (
        lambda: fs.cp(["a/b", "a/b"], ["c"]),
        lambda: fs.mv(["a/b"], ["c", "d"]),
        lambda: fs.put([path, path], ["c"]),
        lambda: fs.get(["a/b", "a/b"], [str(tmp_path / "got")]),
    ):
        with pytest.raises(ValueError, match="paths can't go to"):
            move()
    assert fs.find("") == ["a/b"]
    assert not (tmp_path / "got").exists()
    with pytest.raises(TypeError, match="paths is a list of paths"):
        fs.cat_ranges("a/b", [0], [1])
    with pytest.raises(TypeError, match="a store's path is a str, not bytes"):
        CastoreFileSystem(os.fsencode(tmp_path))
    with fs.open("a/b") as file:
        with pytest.raises(ValueError, match="close a file with close"):
            file.closed = True
        assert file.read() == b"x"
        file.closed = False  # as it is
    with fs.transaction as transaction:
        fs.pipe_file("a/c", b"y")
    with pytest.raises(ValueError, match="the transaction has ended"):
        transaction.changes(create=True)
    transaction.complete(commit=False)  # it is
    assert fs.find("") == ["a/b", "a/c"]
    with fs.transaction:
        """Nothing is changed."""
    assert fs.find("") == ["a/b", "a/c"]


def test_cat_file_takes_python_slices(fs):
    data = bytes(range(200))
    fs.pipe_file("x", data)
    for start in (None, 0, 5, 200, 300, -1, -5, -300):
        for end in (None, 0, 3, 7, 200, 300, -1, -5, -300):
            assert fs.cat_file("x", start, end) == data[start:end], (start, end)


def test_cat_ranges_keeps_the_order_and_returns_errors(fs):
    fs.pipe_file("x", b"0123456789")
    fs.pipe_file("y", b"abcdef")
    got = fs.cat_ranges(["x", "y", "x", "none"], [0, -2, 8, 0], [2, None, 99, 1], max_gap=64)
    assert got[:3] == [b"01", b"ef", b"89"]
    assert isinstance(got[3], NameNotFound)
    assert fs.cat_ranges(["x", "y"], 1, 3) == [b"12", b"bc"]
    with pytest.raises(NameNotFound):
        fs.cat_ranges(["none"], [0], [1], on_error="raise")
    with pytest.raises(ValueError):
        fs.cat_ranges(["x"], [0, 1], [1])
    assert fs.cat_ranges(["x", "y"], [0, -2], [2, None], on_error="raise") == [b"01", b"ef"]
    [got, none] = fs.cat_ranges(["y", "none"], [-1, -1], None)
    assert got == b"f"
    assert isinstance(none, NameNotFound)


def test_cat_of_several(fs):
    data = {"t/x": b"0123456789", "t/y/z": b"abcdef"}
    fs.pipe(data)
    for start, end in [(None, None), (1, None), (None, 3), (-2, None), (1, -1)]:
        asked = {"start": start, "end": end}
        parts = {name: value[start:end] for name, value in data.items()}
        assert fs.cat(list(data), **asked) == parts
        assert fs.cat("t", recursive=True, **asked) == parts
    with pytest.raises(NameNotFound):
        fs.cat("t")
    with pytest.raises(NameNotFound):
        fs.cat(["t/x", "none"])
    assert fs.cat(["t/x", "none"], on_error="omit") == {"t/x": b"0123456789"}
    found = fs.cat(["t/x", "none"], on_error="return")
    assert isinstance(found.pop("none"), NameNotFound)
    assert found == {"t/x": b"0123456789"}


def test_open_reads_and_writes_text_and_bytes(fs):
    with fs.open("t", "w", encoding="utf-8") as text:
        text.write("één\ntwee\n")
    with fs.open("t", "r", encoding="utf-8") as text:
        assert text.readlines() == ["één\n", "twee\n"]
    with fs.open("t", "rb") as file:
        assert file.size == 11
        file.seek(-5, os.SEEK_END)
        assert file.read() == b"twee\n"
    assert fs.read_block("t", 2, 4, delimiter=b"\n") == b"twee\n"
    assert fs.head("t", 2) == "é".encode()
    assert fs.tail("t", 2) == b"e\n"
    with pytest.raises(NotImplementedError):
        fs.open("t", "r+b")
    with pytest.raises(FileNotFoundError):
        fs.open("none", "rb")


def test_a_write_that_raises_publishes_nothing(fs):
    def write_half():
        with fs.open("x", "wb") as file:
            file.write(b"half")
            raise RuntimeError

    fs.pipe_file("y", b"")
    with pytest.raises(RuntimeError):
        write_half()
    assert not fs.exists("x")


def test_transaction_publishes_at_its_end_or_not_at_all(fs):
    with fs.transaction:
        fs.pipe_file("a", b"1")
        with fs.open("b", "wb") as file:
            file.write(b"2")
        assert not fs.exists("a")
        assert not fs.exists("b")
    assert fs.cat(["a", "b"]) == {"a": b"1", "b": b"2"}

    def fail():
        with fs.transaction:
            fs.pipe_file("c", b"3")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not fs.exists("c")


def test_put_and_get_file_report_to_the_callback(fs, tmp_path):
    data = os.urandom(300_000)
    (tmp_path / "in").write_bytes(data)
    sent, received = Callback(), Callback()
    fs.put_file(str(tmp_path / "in"), "x", callback=sent)
    fs.get_file("x", str(tmp_path / "new" / "out"), callback=received)
    assert (tmp_path / "new" / "out").read_bytes() == data
    assert (sent.size, sent.value) == (300_000, 300_000)
    assert (received.size, received.value) == (300_000, 300_000)
    with pytest.raises(FileExistsError):
        fs.put_file(str(tmp_path / "in"), "x", mode="create")
    with open(tmp_path / "stream", "wb") as stream:
        fs.get_file("x", stream)
    assert (tmp_path / "stream").read_bytes() == data


def test_mv_renames_files_and_folders(fs):
    fill(fs)
    fs.mv("z", "y")
    fs.mv("y", "a/")
    assert fs.cat_file("a/y") == b"z"
    with pytest.raises(IsADirectoryError):
        fs.mv("a/c", "q")
    fs.mv("a/c", "q", recursive=True)
    assert fs.find("q") == ["q/d", "q/e"]
    assert not fs.exists("a/c")
    with pytest.raises(FileNotFoundError):
        fs.mv("none", "n", recursive=True)


def test_rm_is_bounded_by_slashes_and_needs_recursive_for_folders(fs):
    fill(fs)
    fs.pipe_file("a/c2", b"")
    with pytest.raises(IsADirectoryError):
        fs.rm("a/c")
    fs.rm("a/c", recursive=True)
    assert fs.find("a") == ["a/b", "a/c2"]
    with pytest.raises(FileNotFoundError):
        fs.rm("none")
    with pytest.raises(FileNotFoundError):
        fs.rm(["z", "none"])
    assert fs.exists("z")
    fs.rm_file("z")
    assert not fs.exists("z")


def test_ukey_follows_the_content(fs):
    fs.pipe_file("x", b"1" * 9000)
    fs.pipe_file("y", b"1" * 9000)
    fs.pipe_file("z", b"2" * 9000)
    assert fs.ukey("x") == fs.ukey("y") != fs.ukey("z")
    assert fs.checksum("x") == fs.checksum("y")
    assert abs(fs.modified("x").timestamp() - fs.info("x")["mtime"]) < 1e-3


def test_urls_and_pickles(tmp_path, monkeypatch):
    store = tmp_path / "store"
    fsspec.register_implementation("castore", CastoreFileSystem, clobber=True)
    with fsspec.open("castore://deep/x", "wb", store=str(store)) as file:
        file.write(b"1")
    with fsspec.open(f"castore://deep/x::file://{store}", "rb") as file:
        assert file.read() == b"1"
    with pytest.raises(ValueError, match="CASTORE_STORE"):
        fsspec.open("castore://deep/x", "rb")
    monkeypatch.setenv("CASTORE_STORE", str(store))
    assert fsspec.filesystem("castore").cat("deep/x") == b"1"
    fs = fsspec.filesystem("castore", store=str(store))
    assert pickle.loads(pickle.dumps(fs)).cat("deep/x") == b"1"
    with pytest.raises(ValueError, match="memory"):
        fsspec.open("castore://deep/x::memory://store", "rb")


def test_a_read_only_file_system_refuses_writes(fs, tmp_path):
    fs.pipe_file("x", b"1")
    reader = CastoreFileSystem(store=tmp_path / "store", read_only=True, skip_instance_cache=True)
    assert reader.cat_file("x") == b"1"
    with pytest.raises(ReadOnlyStore):
        reader.pipe_file("y", b"")


def test_the_entry_point_names_this_class():
    from importlib.metadata import entry_points

    named = [each.value for each in entry_points(group="fsspec.specs") if each.name == "castore"]
    if not named:
        pytest.skip("castore is not installed here")
    assert named == ["castore.fs:CastoreFileSystem"]
