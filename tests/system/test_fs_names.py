"""castore.fs: names that look like patterns, and which store is meant."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec")

import castore  # noqa: E402
from castore.errors import InvalidName, NameNotFound  # noqa: E402
from castore.fs import CastoreFileSystem  # noqa: E402

ODD = ["data[1].csv", "wh?t.csv", "st*r.csv", "f[1]/a", "f[1]/b/c"]
LURES = ["data1.csv", "what.csv", "star.csv", "f1/a", "f1/b/c"]  # what ODD would match
EVERY = {name: name.encode() for name in [*ODD, *LURES]}


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[CastoreFileSystem]:
    fs = CastoreFileSystem(tmp_path / "store", skip_instance_cache=True)
    fs.pipe(EVERY)
    yield fs
    fs.store.gc()
    assert fs.store.check(read_data=True).clean
    with castore.open(tmp_path / "store", create=False) as again:
        assert list(again.names()) == fs.find("")
    fs.store.close()


def left(fs: CastoreFileSystem, *gone: str) -> bool:
    return fs.find("") == sorted(EVERY.keys() - set(gone), key=str.encode)


@pytest.mark.parametrize("verb", ["copy", "mv"])
@pytest.mark.parametrize(
    ("pattern", "maxdepth"), [("marked", None), ("marked", 1), ("marke*", None), ("marke*", 2)]
)
def test_what_marks_a_folder_goes_on_to_mark_one(
    fs: CastoreFileSystem, verb: str, pattern: str, maxdepth: int | None
) -> None:
    """Some programs put an empty object of the folder's name and a slash."""
    fs.store.puts("marked/", b"")
    fs.pipe_file("marked/a", b"a")
    getattr(fs, verb)(pattern, "other", recursive=True, maxdepth=maxdepth)
    assert fs.find("other") == ["other/", "other/a"]
    assert fs.isdir("other")
    assert fs.cat_file("other/a") == b"a"


def test_a_folder_that_is_only_marked_has_nothing_in_it(fs: CastoreFileSystem) -> None:
    fs.store.puts("marked/", b"")
    fs.store.puts("in/marked/", b"")
    for folder in ("marked", "in/marked"):
        assert fs.info(folder)["type"] == "directory"
        assert fs.ls(folder) == fs.ls(folder, detail=False) == []
        assert list(fs.walk(folder)) == [(folder, [], [])]
    assert [each[0] for each in fs.walk("in")] == ["in", "in/marked"]
    assert "marked" in fs.tree("")
    fs.pipe_file("marked", b"1")
    assert fs.ls("marked", detail=False) == ["marked"]


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_is_there_is_no_pattern(
    fs: CastoreFileSystem, name: str, tmp_path: Path
) -> None:
    assert fs.expand_path(name) == fs.glob(name) == [name]
    assert fs.cat(name) == name.encode()
    assert fs.cat([name, "data1.csv"]) == {name: name.encode(), "data1.csv": b"data1.csv"}
    assert fs.find(name) == [name]
    fs.get(name, str(tmp_path / "as"))
    assert (tmp_path / "as").read_bytes() == name.encode()
    fs.get(name, str(tmp_path / "into") + "/")
    assert os.listdir(tmp_path / "into") == [name.rsplit("/", 1)[-1]]
    fs.cp(name, "copied/as")
    fs.cp(name, "copied/")
    assert fs.find("copied") == sorted(["copied/as", "copied/" + name.rsplit("/", 1)[-1]])
    fs.rm("copied", recursive=True)
    fs.mv(name, "moved")
    assert left(fs, name) is False
    assert fs.cat("moved") == name.encode()
    fs.mv("moved", name)
    fs.rm(name)
    assert left(fs, name)


def test_a_folder_that_is_there_is_no_pattern(fs: CastoreFileSystem, tmp_path: Path) -> None:
    fs.get("f[1]", str(tmp_path / "out"), recursive=True)
    assert (tmp_path / "out" / "b" / "c").read_bytes() == b"f[1]/b/c"
    fs.cp("f[1]", "copied", recursive=True)
    assert fs.find("copied") == ["copied/a", "copied/b/c"]
    fs.cp("f[1]", "copied/", recursive=True)
    assert fs.find("copied/f[1]") == ["copied/f[1]/a", "copied/f[1]/b/c"]
    fs.mv("copied/f[1]", "moved", recursive=True)
    assert fs.find("moved") == ["moved/a", "moved/b/c"]
    fs.rm(["copied", "moved", "f[1]"], recursive=True)
    assert left(fs, *ODD[3:])


def test_what_is_not_there_is_a_pattern(fs: CastoreFileSystem) -> None:
    assert fs.expand_path("data?.csv") == fs.glob("data?.csv") == ["data1.csv"]
    fs.rm("data?.csv")
    assert left(fs, "data1.csv")
    with pytest.raises(FileNotFoundError):
        fs.rm("no[thing]")


def test_local_files_and_urls_that_look_like_patterns(
    fs: CastoreFileSystem, tmp_path: Path
) -> None:
    (tmp_path / "l[1]").write_bytes(b"literal")
    (tmp_path / "l1").write_bytes(b"lure")
    fs.put(str(tmp_path / "l[1]"), "put")
    assert fs.cat("put") == b"literal"
    fs.rm("put")
    fsspec.register_implementation("castore", CastoreFileSystem, clobber=True)
    store = {"store": fs.store_path}
    with fsspec.open("castore://wh?t.csv", **store) as file:
        assert file.read() == b"wh?t.csv"
    [file] = fsspec.open_files("castore://wh?t.csv", **store)
    assert file.path == "wh?t.csv"


def test_a_name_in_no_folder_goes_into_one(fs: CastoreFileSystem, tmp_path: Path) -> None:
    fs.cp("data1.csv", "new/")
    fs.get("data1.csv", str(tmp_path / "new") + "/")
    assert fs.find("new") == ["new/data1.csv"]
    assert os.listdir(tmp_path / "new") == ["data1.csv"]


def test_names_that_can_not_be(fs: CastoreFileSystem) -> None:
    for name in ("x" * 481, "../x", "a\0b", "a/./b"):
        assert not fs.isdir(name)
        assert not fs.isfile(name)
        assert not fs.exists(name)
        with pytest.raises(InvalidName):
            fs.pipe_file(name, b"")
    for prefix in ("a\0b", "\ud800"):
        with pytest.raises(ValueError, match="prefix"):
            fs.store.names(prefix)
        with pytest.raises(ValueError, match="prefix"):
            fs.store.delete_prefix(prefix, unbounded=True)
    assert list(fs.store.names("x" * 481)) == list(fs.store.list("x" * 481)) == []


def test_an_empty_path_is_not_all_of_the_store(fs: CastoreFileSystem) -> None:
    for path in ("", "castore://", ["f1", ""]):
        with pytest.raises(ValueError, match="'/' is all of the store"):
            fs.rm(path, recursive=True)
    for all_of_it in ("/", ["/"], ["f1/a", "/"]):
        with pytest.raises(IsADirectoryError, match="/ is a folder"):
            fs.rm(all_of_it)
    assert left(fs)
    fs.rm("/", recursive=True)
    assert fs.find("") == []


def test_rmdir_says_why_it_can_not(fs: CastoreFileSystem) -> None:
    with pytest.raises(NameNotFound):
        fs.rmdir("nowhere")
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir("f1")
    with pytest.raises(NotADirectoryError):
        fs.rmdir("f1/a")
    assert left(fs)


# ---------------------------------------------------------------- which store


@pytest.fixture
def two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    for name in "AB":
        (tmp_path / name).mkdir()
    monkeypatch.delenv("CASTORE_STORE", raising=False)
    monkeypatch.chdir(tmp_path / "A")
    yield lambda name: monkeypatch.chdir(tmp_path / name)
    CastoreFileSystem.clear_instance_cache()


def test_a_relative_store_is_where_it_was_named(
    two_folders: Callable[[str], None], tmp_path: Path
) -> None:
    here = CastoreFileSystem("s")
    pickled = pickle.dumps(here)
    two_folders("B")
    here.pipe_file("x", b"A")
    there = CastoreFileSystem("s")
    there.pipe_file("y", b"B")
    assert there is not here
    assert here.find("") == ["x"]
    assert there.find("") == ["y"]
    assert pickle.loads(pickled) is here
    assert CastoreFileSystem.from_json(here.to_json()) is here
    assert CastoreFileSystem(store=str(tmp_path / "A" / "s")) is here
    assert here.fsid == f"castore_{tmp_path / 'A' / 's'}" != there.fsid
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).find(''))"
    done = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True)
    assert done.stdout == b"['x']\n", done.stderr


def test_the_environment_is_asked_when_a_file_system_is_made(
    two_folders: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASTORE_STORE", "one")
    one = fsspec.filesystem("castore")
    monkeypatch.setenv("CASTORE_STORE", "two")
    two = fsspec.filesystem("castore")
    one.pipe_file("x", b"1")
    two.pipe_file("x", b"2")
    assert pickle.loads(pickle.dumps(one)).cat("x") == b"1"
    assert os.listdir() == ["one", "two"] or sorted(os.listdir()) == ["one", "two"]


def test_home_and_file_urls(
    two_folders: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CastoreFileSystem("~/s").store_path == str(tmp_path / "s")
    assert CastoreFileSystem("file:///tmp/s").store_path == "/tmp/s"
    assert CastoreFileSystem("s3://bucket/s").store_path == "s3://bucket/s"
    with pytest.raises(ValueError, match="gs://"):
        CastoreFileSystem("gs://bucket/s")


def test_options_are_those_of_open_and_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    guarded = CastoreFileSystem(tmp_path / "s", collision_guard="sha256", threads=1)
    guarded.pipe_file("x", b"1")
    assert "sha256" in (tmp_path / "s" / "castore.json").read_text()
    with pytest.raises(TypeError, match="no storage option bogus of castore"):
        CastoreFileSystem(tmp_path / "s", bogus=1)
    with pytest.raises(TypeError, match="endpoint"):
        CastoreFileSystem("s3://bucket/s", endpoint="http://localhost:1")
    remote = CastoreFileSystem(
        "s3://bucket/s", endpoint_url="http://localhost:1", region="us-east-1"
    )
    with pytest.raises(castore.errors.CastoreError, match="localhost:1"):
        remote.ls("")
    with pytest.raises(FileNotFoundError):
        CastoreFileSystem(tmp_path / "none", create=False).pipe_file("x", b"1")


def test_first_use_by_threads_makes_one_store(tmp_path: Path) -> None:
    shared = CastoreFileSystem(tmp_path / "s")
    stores: list[Any] = []
    start = threading.Barrier(8)

    def use(at: int) -> None:
        start.wait()
        own = CastoreFileSystem(tmp_path / "s")  # fsspec makes one a thread
        for fs in (shared, own):
            fs.pipe_file(f"{at}", b"1")
            stores.append(fs.store)

    threads = [threading.Thread(target=use, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 16
    assert len({id(store) for store in stores}) == 1


def test_an_instance_works_again_after_its_store_was_closed(tmp_path: Path) -> None:
    fs = CastoreFileSystem(tmp_path / "s")
    fs.pipe_file("x", b"1")
    fs.store.close()
    assert fs.store.closed is False
    assert fs.cat("x") == b"1"
    assert CastoreFileSystem(tmp_path / "s") is fs


def test_an_empty_list_is_what_it_is_to_fsspec(fs: CastoreFileSystem, tmp_path: Path) -> None:
    local, memory = fsspec.filesystem("file"), fsspec.filesystem("memory")
    for each in (fs, local):
        each.rm([])
    for verb in ("copy", "get", "cat", "put", "expand_path"):
        targets = [] if verb in ("cat", "expand_path") else [str(tmp_path / "target")]
        for each in (fs, local, memory):
            with pytest.raises(FileNotFoundError) as caught:
                getattr(each, verb)([], *targets)
            assert "''" not in str(caught.value)
        if targets:
            getattr(fs, verb)([], [])
    fs.rm((), recursive=True)
    fs.pipe({})
    with pytest.raises(FileNotFoundError, match="the list is empty"):
        fs.mv([], "target")
    assert left(fs)


def test_a_store_that_is_yet_to_be_made_has_nothing_in_it(tmp_path: Path) -> None:
    fs = CastoreFileSystem(tmp_path / "new", skip_instance_cache=True)
    assert (fs.find(""), fs.find("a", detail=True), fs.glob("a/*")) == ([], {}, [])
    assert not (tmp_path / "new").exists()
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(FileNotFoundError, match="no store"):
            CastoreFileSystem(tmp_path / "new", **options).find("")
    with pytest.raises(FileNotFoundError, match="no store"):
        fs.ls("")
