"""`conducto://`: castore's file system by the names of `conducto.data`; and its file objects."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

fsspec = pytest.importorskip("fsspec")

import conducto as co  # noqa: E402
from castore import errors  # noqa: E402
from conducto import context  # noqa: E402
from conducto.fs import ConductoFileSystem  # noqa: E402

pytest_plugins = ["modes"]


@pytest.fixture
def fs(mode: str) -> Iterator[ConductoFileSystem]:
    fsspec.register_implementation("conducto", ConductoFileSystem, clobber=True)
    fs = fsspec.filesystem("conducto", skip_instance_cache=True)
    yield fs
    if fs._store is not None:  # not where the test was skipped
        fs._store.close()


def test_both_scopes_by_their_names(fs: ConductoFileSystem, tmp_path: Path) -> None:
    fs.pipe({"pipeline/a/x": b"12345", "pipeline/b": b"", "user/a/y": b"6"})
    assert co.data.pipeline.gets("a/x") == b"12345"
    assert co.data.user.list() == ["a/y"]
    co.data.user.puts("z", b"z")
    assert fs.cat_file("user/z") == b"z"
    assert fs.ls("", detail=False) == ["pipeline", "user"]
    assert fs.ls("pipeline", detail=False) == ["pipeline/a", "pipeline/b"]
    assert [each["size"] for each in fs.ls("user/a")] == [1]
    assert fs.find("") == ["pipeline/a/x", "pipeline/b", "user/a/y", "user/z"]
    assert fs.glob("*/a/*") == ["pipeline/a/x", "user/a/y"]
    assert fs.info("pipeline/a/x")["name"] == "pipeline/a/x"
    assert fs.isdir("pipeline")
    assert fs.isdir("user/a")
    assert not fs.exists("user/b")
    assert not fs.exists("others/b")
    fs.mv("pipeline/a", "user/moved", recursive=True)
    fs.cp_file("user/moved/x", "pipeline/c")
    assert fs.cat_ranges(["user/moved/x", "pipeline/c"], [0, -1], [1, None]) == [b"1", b"5"]
    fs.rm("user/a", recursive=True)
    assert fs.find("") == ["pipeline/b", "pipeline/c", "user/moved/x", "user/z"]
    fs.pipe({"pipeline/d/x": b""})
    fs.rm(["pipeline/d", "pipeline/b"], recursive=True)
    fs.get(["pipeline/c", "user/z"], str(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("[cz]")) == ["c", "z"]
    with fs.open("pipeline/c") as file:
        assert (file.info()["name"], file.read(2)) == ("pipeline/c", b"12")
    fs.rm("user", recursive=True)
    assert fs.find("") == ["pipeline/c"]
    fs.rm("/", recursive=True)
    assert fs.find("") == []


def test_many_small_files(fs: ConductoFileSystem, tmp_path: Path) -> None:
    for at in range(30):
        path = tmp_path / f"in/{at % 2}/{at}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % at * 1000)
    fs.put(f"{tmp_path}/in/", "pipeline/x/", recursive=True)
    assert co.data.pipeline.gets("x/1/3") == b"3" * 1000
    assert len(co.data.pipeline.list("x")) == 30
    with pytest.raises(errors.NameExists, match="'pipeline/x/"):
        fs.put(f"{tmp_path}/in/", "pipeline/x/", recursive=True, mode="create")
    fs.get("pipeline", f"{tmp_path}/out", recursive=True)
    for at in range(30):
        assert (tmp_path / f"out/x/{at % 2}/{at}").read_bytes() == b"%d" % at * 1000


@pytest.mark.parametrize("mode", ["local"], indirect=True)
class TestLocal:
    def test_what_fails_goes_by_the_caller_s_name(self, fs: ConductoFileSystem) -> None:
        with pytest.raises(FileNotFoundError):
            fs.cat_file("user/x")
        fs.pipe_file("user/a", b"")
        with pytest.raises(errors.NameExists, match="'user/a'"):
            fs.pipe({"pipeline/new": b"", "user/a": b"", "user//a": b""}, mode="create")
        assert fs.find("") == ["user/a"]
        for call in (fs.cat_file, fs.info, fs.open):
            with pytest.raises(errors.NameNotFound, match="named 'user/x'"):
                call("user/x")
        for name in ("x", "data/x", "pipeline", "user/../x"):
            with pytest.raises(errors.InvalidName):
                fs.pipe_file(name, b"")
        with pytest.warns(errors.UnpublishedResourceWarning, match="'user/b' is not published"):
            fs.open("user/b", "wb")

    def test_a_transaction_moves_what_was_put_in_it(self, fs: ConductoFileSystem) -> None:
        with fs.transaction:
            fs.pipe({"pipeline/a": b"1", "user/d/x": b"2", "user/e/y": b"3"})
            fs.mv("pipeline/a", "user/a")
            fs.mv("user/d", "pipeline/d", recursive=True)
            fs.rm("user/e", recursive=True)
        assert fs.find("") == ["pipeline/d/x", "user/a"]

    def test_a_transaction_spans_the_scopes(self, fs: ConductoFileSystem) -> None:
        with fs.transaction:
            fs.pipe_file("pipeline/a", b"1")
            with fs.open("user/b", "wb") as file:
                file.write(b"2")
            assert fs.find("user") == fs.find("pipeline") == []
        assert fs.find("") == ["pipeline/a", "user/b"]

        def fail() -> None:
            with fs.transaction:
                fs.rm("user/b")
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert fs.exists("user/b")

        def append() -> None:
            with fs.transaction:
                fs.open("user/b", "ab").close()
                co.data.user.puts("b", b"other")

        with pytest.raises(errors.ObjectChanged, match="'user/b' was put anew"):
            append()

    def test_urls_pickles_and_pipelines(
        self, fs: ConductoFileSystem, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with fsspec.open("conducto://pipeline/x", "wb") as file:
            file.write(b"p1")
        with fsspec.open("conducto://pipeline/x", "wb", pipeline_id="7") as file:
            file.write(b"7")
        assert co.data.pipeline.bound(pipeline_id="7").gets("x") == b"7"
        assert fs.unstrip_protocol("pipeline/x") == "conducto://pipeline/x"
        monkeypatch.setenv("CONDUCTO_AUTO_URL", "https://app")
        assert fs.url("conducto://pipeline/a b") == "https://app/gw/manager/data/p1/pipeline/a%20b"
        assert fs.url("user/u") == co.data.user.url("u", path_only=False)
        with pytest.raises(errors.InvalidName):
            fs.url("nowhere/x")
        without = fsspec.filesystem("conducto", pipeline_id=False)
        with pytest.raises(co.errors.ContextError, match="give pipeline_id"):
            without.url("user/u")  # not of the environment's pipeline
        assert fs.cat_file("conducto://pipeline/x") == b"p1"
        frozen = pickle.dumps(fs)
        monkeypatch.setenv("CONDUCTO_PIPELINE_ID", "other")
        assert pickle.loads(frozen).cat_file("pipeline/x") == b"p1"
        assert fsspec.filesystem("conducto").find("") == []
        monkeypatch.delenv("CONDUCTO_PIPELINE_ID")
        nobody = fsspec.filesystem("conducto")
        frozen, as_json = pickle.dumps(nobody), nobody.to_json()
        with monkeypatch.context() as patched:
            patched.setenv("CONDUCTO_PIPELINE_ID", "other")
            patched.setenv("CONDUCTO_BASE_DIR", "/nowhere")
            ConductoFileSystem.clear_instance_cache()
            for again in (pickle.loads(frozen), ConductoFileSystem.from_json(as_json)):
                assert (again.pipeline_id, again.store_path) == (None, nobody.store_path)
        assert nobody.ls("") == []
        nobody.pipe_file("user/u", b"u")
        assert nobody.ls("", detail=False) == ["user"]
        with pytest.raises(co.ContextError, match="CONDUCTO_PIPELINE_ID"):
            nobody.cat_file("pipeline/x")
        with pytest.raises(TypeError, match="no storage option bogus"):
            fsspec.filesystem("conducto", bogus=1)

    def test_upath(self, fs: ConductoFileSystem) -> None:
        upath = pytest.importorskip("upath")
        registry = pytest.importorskip("upath.registry")
        from conducto.upath import ConductoPath

        registry.register_implementation("conducto", ConductoPath, clobber=True)
        path = upath.UPath("conducto://pipeline/a/b")
        path.write_bytes(b"1")
        assert type(path) is ConductoPath
        assert co.data.pipeline.gets("a/b") == b"1"
        assert [each.path for each in upath.UPath("conducto://").rglob("*")] == [
            "pipeline",
            "pipeline/a",
            "pipeline/a/b",
        ]
        assert path.as_uri() == "conducto://pipeline/a/b"

    def test_pandas(self, fs: ConductoFileSystem) -> None:
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"a": [1, 2]})
        frame.to_csv("conducto://pipeline/t.csv", index=False)
        assert pandas.read_csv("conducto://pipeline/t.csv").equals(frame)
        assert co.data.pipeline.gets("t.csv") == b"a\n1\n2\n"


def test_objects_as_files(mode: str) -> None:
    for scope in (co.data.pipeline, co.data.user):
        with scope.open("/a/b", "wb") as writer:
            writer.write(b"content")
            assert not scope.exists("a/b")
        with scope.open("/a/b") as reader:
            assert reader.info.name == "/a/b"
            assert reader.seek(-3, 2) == 4
            assert reader.read() == b"ent"
        info = scope.info("/a/b")
        assert (info.name, info.size) == ("/a/b", 7)
        for call in (scope.open, scope.info):
            with pytest.raises(FileNotFoundError, match="named 'none'"):
                call("none")
            with pytest.raises(IsADirectoryError, match="named 'a'"):
                call("a")
        with pytest.raises(IsADirectoryError):
            scope.open("a", "wb")
        with pytest.raises(FileExistsError, match="named 'a/b'"):
            scope.open("a/b", "xb")
        with pytest.raises(ValueError, match="mode"):
            scope.open("a/b", "r+b")  # type: ignore[call-overload]
        with pytest.warns(errors.UnpublishedResourceWarning, match="'c' is not published"):
            scope.open("c", "wb")
        assert scope.list() == ["a/b"]
        with scope.open("a/b", "ab") as writer:
            writer.write(b" and more")
        assert scope.gets("a/b") == b"content and more"
        with (
            pytest.raises(errors.ObjectChanged, match="'a/b' was put anew"),
            scope.open("a/b", "ab"),
        ):
            scope.puts("a/b", b"")
        with pytest.raises(FileExistsError, match="named 'd'"), scope.open("d", "xb"):
            scope.puts("d", b"")
    context.close_stores()


def test_ranges_of_several_objects(fs: ConductoFileSystem) -> None:
    fs.pipe_file("user/a", b"0123456789")
    fs.pipe_file("user/b", b"abc")
    paths = ["user/a", "user/nothing", "user/b", "nowhere", "user/a"]
    first, absent, second, nowhere, last = fs.cat_ranges(paths, [0, 0, 1, 0, 8], [2, 1, 3, 1, 10])
    assert (first, second, last) == (b"01", b"bc", b"89")
    assert isinstance(absent, FileNotFoundError)
    assert "user/nothing" in str(absent)
    assert absent.__traceback__ is absent.__context__ is None  # kilobytes, of each of many
    assert isinstance(nowhere, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(paths, 0, 1, on_error="raise")


def test_a_touch_keeps_what_is_there(fs: ConductoFileSystem) -> None:
    fs.pipe_file("user/a", b"1")
    before = fs.modified("user/a")
    fs.touch("user/a", truncate=False)
    assert (fs.cat_file("user/a"), fs.modified("user/a") > before) == (b"1", True)
    with fs.transaction:
        fs.pipe_file("pipeline/b", b"2")
        fs.touch("pipeline/b", truncate=False)
    assert fs.cat_file("pipeline/b") == b"2"


def test_a_name_that_is_taken_is_told_as_it_was_given(
    fs: ConductoFileSystem, tmp_path: Path
) -> None:
    fs.pipe({"user/a": b"1", "pipeline/a": b"2"})
    (tmp_path / "file").write_bytes(b"3")
    for name in ("user/a", "pipeline/a"):
        for put in (
            lambda name: fs.pipe_file(name, b"3", mode="create"),
            lambda name: fs.put_file(str(tmp_path / "file"), name, mode="create"),
            lambda name: fs.open(name, "xb"),
        ):
            for together in (nullcontext(), fs.transaction):
                with pytest.raises(errors.NameExists) as caught, together:
                    put(name)
                assert caught.value.name == name
