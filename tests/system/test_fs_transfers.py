"""Many files put and got by `castore.fs`: small ones go many at a time, and nobody sees it but by
the clock."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec")

from fsspec.callbacks import Callback  # noqa: E402

from castore.errors import NameExists, NotAStore, SourceChanged  # noqa: E402
from castore.fs import CastoreFileSystem  # noqa: E402
from castore.testing.contents import noise  # noqa: E402


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[CastoreFileSystem]:
    fs = CastoreFileSystem(tmp_path / "store", skip_instance_cache=True)
    yield fs
    if (tmp_path / "store").exists():
        fs.store.close()


class Calls(list[str]):
    """Of a method that goes on as it did."""

    def of(self, monkeypatch: pytest.MonkeyPatch, verb: str) -> Calls:
        method = getattr(CastoreFileSystem, verb)

        def called(fs: Any, source: str, target: str, *args: Any, **options: Any) -> Any:
            self.append(source)
            return method(fs, source, target, *args, **options)

        monkeypatch.setattr(CastoreFileSystem, verb, called)
        return self


class Told(Callback):  # type: ignore[misc]  # fsspec is untyped
    """Whatever it and those that branched from it were told."""

    def __init__(self) -> None:
        super().__init__()
        self.children: dict[str, Callback] = {}

    def branched(self, path_1: str, path_2: str, **kwargs: Any) -> Callback:
        child = self.children[path_1] = Callback()
        return child


def make_tree(root: Path) -> dict[str, bytes]:
    """Small files in three folders, a large one, an empty one and one behind a link."""
    contents = {f"{at % 3}/{at:03}": noise(50 * at, at) for at in range(300)}
    contents |= {
        "large": noise(300_000),
        "2/large": noise(200_000, 2),
        "0/linked": contents["1/001"],
    }
    for name, data in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o640)
    (root / "0/linked").unlink()
    (root / "0/linked").symlink_to("../1/001")
    return contents


def read_tree(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_a_folder_goes_in_and_out(
    fs: CastoreFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = make_tree(tmp_path / "in")
    one_by_one = Calls().of(monkeypatch, "put_file")
    told = Told()
    fs.put(f"{tmp_path}/in", "x", recursive=True, callback=told)
    assert {name: fs.cat_file(f"x/{name}") for name in contents} == contents
    assert {fs.info(f"x/{name}")["mode"] & 0o777 for name in contents} == {0o640}
    assert all(os.path.isdir(path) for path in one_by_one)
    assert (told.size, told.value) == (len(told.children), len(told.children))
    sizes = {path: child.value for path, child in told.children.items() if os.path.isfile(path)}
    assert sizes == {f"{tmp_path}/in/{name}": len(data) for name, data in contents.items()}

    one_by_one = Calls().of(monkeypatch, "get_file")
    told = Told()
    fs.get("x", f"{tmp_path}/out", recursive=True, callback=told)
    assert read_tree(tmp_path / "out") == contents
    assert {*one_by_one} == {"x/large", "x/2/large"}
    assert (told.size, told.value) == (len(contents), len(contents))
    assert {name: child.value for name, child in told.children.items()} == {
        f"x/{name}": len(data) for name, data in contents.items()
    }
    modes = {stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) for name in contents}
    assert modes == {0o640}
    assert not list(tmp_path.rglob(".castore-*"))


def test_files_that_are_there_are_replaced(
    fs: CastoreFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_themselves = Calls().of(monkeypatch, "get_file")
    names = [f"{at:02}" for at in range(40)]
    fs.pipe({name: noise(1000 + at, at) for at, name in enumerate(names)})
    out = tmp_path / "out"
    out.mkdir()
    for name in names[10:20]:
        (out / name).write_bytes(b"old")
    (out / "25").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"old")
    fs.get(names, [f"{out}/{name}" for name in names])
    fs.pipe({name: b"new " + name.encode() for name in names})
    expected = {name: noise(1000 + at, at) for at, name in enumerate(names)}
    assert read_tree(out) == expected
    assert (tmp_path / "elsewhere").read_bytes() == expected["25"]
    fs.get(names, [f"{out}/{name}" for name in names])
    assert read_tree(out) == {name: b"new " + name.encode() for name in names}
    assert (out / "25").is_symlink()
    assert by_themselves == ["25", "25"]


def test_what_is_no_file_is_not_replaced(
    fs: CastoreFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_themselves = Calls().of(monkeypatch, "get_file")
    fs.pipe({name: name.encode() for name in "abc"})
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "b").symlink_to("none")
    with pytest.raises(IsADirectoryError):
        fs.get(list("cba"), [f"{out}/{name}" for name in "cba"])
    assert read_tree(out) == {"b": b"b", "c": b"c", "none": b"b"}
    assert (out / "b").is_symlink()
    assert sorted(by_themselves) == ["a", "b"]


def test_one_object_goes_to_several_files(fs: CastoreFileSystem, tmp_path: Path) -> None:
    fs.pipe({"a": b"new", "b": b"other"})
    out = tmp_path / "out"
    out.mkdir()
    (out / "2").write_bytes(b"old")
    fs.get(["a", "a", "b", "a"], [f"{out}/{to}" for to in "1234"])
    assert read_tree(out) == {"1": b"new", "2": b"new", "3": b"other", "4": b"new"}


def test_what_is_not_there_is_told(fs: CastoreFileSystem, tmp_path: Path) -> None:
    names = [f"{at:02}" for at in range(40)]
    fs.pipe(dict.fromkeys(names, b"x"))
    (tmp_path / "out").mkdir()
    with pytest.raises(FileNotFoundError, match="'none'"):
        fs.get([*names, "none"], [f"{tmp_path}/out/{name}" for name in [*names, "none"]])
    assert {*read_tree(tmp_path / "out")} <= {*names}
    with pytest.raises(FileExistsError):
        fs.get(names, [f"{tmp_path}/out/00/{name}" for name in names])
    with pytest.raises(NotAStore, match="open store"):
        fs.get(names, [f"{tmp_path}/store/{name}" for name in names])


@pytest.mark.parametrize("small", [True, False])
def test_an_object_is_no_file_in_the_folder_that_has_its_name(
    fs: CastoreFileSystem, tmp_path: Path, small: bool
) -> None:
    """Whichever thread comes first: that file may be another object's."""
    size = 9 if small else 70_000
    made = {name: noise(size, at) for at, name in enumerate(["t/d", "t/d/d", "t/d/e/f", "t/g"])}
    fs.pipe(made)
    for at in range(8):
        out = tmp_path / str(at)
        with pytest.raises(IsADirectoryError, match=f"{out}/d'"):
            fs.get("t", str(out), recursive=True)
        got = {f"t/{name}": raw for name, raw in read_tree(out).items()}
        assert got.items() <= made.items()
        assert "t/d" not in got
        names = ["t/d/e/f", "t/d"]
        with pytest.raises(IsADirectoryError, match=f"{out}/new/t/d'"):
            fs.get(names, [f"{out}/new/{name}" for name in names])


def test_a_folder_that_is_there_is_no_file(fs: CastoreFileSystem, tmp_path: Path) -> None:
    fs.pipe({"t/d": b"an object", "t/e": b"other", "u/d/x": b"in it"})
    (tmp_path / "out/d").mkdir(parents=True)
    for refused in (
        lambda: fs.get("t/", f"{tmp_path}/out", recursive=True),
        lambda: fs.get(["t/d", "t/e"], [f"{tmp_path}/out/d", f"{tmp_path}/out/e"]),
        lambda: fs.get_file("t/d", f"{tmp_path}/out/d"),
    ):
        with pytest.raises(IsADirectoryError, match=f"{tmp_path}/out/d'"):
            refused()
        assert not [*(tmp_path / "out/d").iterdir()]
    fs.get_file("u/d", f"{tmp_path}/out/d")  # a folder, too
    fs.get("u/", f"{tmp_path}/out", recursive=True)
    assert read_tree(tmp_path / "out/d") == {"x": b"in it"}
    fs.get("t/d", f"{tmp_path}/out/d")  # into it, as fsspec has it
    assert (tmp_path / "out/d/d").read_bytes() == b"an object"


def test_the_last_of_those_that_go_to_one_place_stays(
    fs: CastoreFileSystem, tmp_path: Path
) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    sources = [f"{tmp_path}/{name}" for name in "abc"]
    fs.put(sources, ["1", "2", "1"])
    assert fs.cat(["1", "2"]) == {"1": b"c", "2": b"b"}
    fs.get(["1", "2", "2", "1"], [f"{tmp_path}/{to}" for to in ("x", "y", "x", "y")])
    assert (tmp_path / "x").read_bytes() + (tmp_path / "y").read_bytes() == b"bc"


def test_all_files_are_put_or_none(fs: CastoreFileSystem, tmp_path: Path) -> None:
    make_tree(tmp_path / "in")
    files = [str(path) for path in sorted((tmp_path / "in/1").iterdir())]
    names = [f"x/{at}" for at in range(len(files))]
    with pytest.raises(FileNotFoundError, match="none"):
        fs.put([*files, f"{tmp_path}/none"], [*names, "y"])
    fs.pipe_file("x/7", b"there")
    with pytest.raises(NameExists, match="x/7"):
        fs.put(files, names, mode="create")
    assert fs.find("") == ["x/7"]
    with pytest.raises(ZeroDivisionError), fs.transaction:  # noqa: PT012
        fs.put(files, names)
        1 / 0  # noqa: B018
    assert fs.find("") == ["x/7"]
    with fs.transaction:
        fs.put(files, names)
        assert fs.find("") == ["x/7"]
    assert len(fs.find("")) == len(names)


def test_a_pipe_in_a_folder_is_refused_and_not_waited_for(
    fs: CastoreFileSystem, tmp_path: Path
) -> None:
    make_tree(tmp_path / "in")
    os.mkfifo(tmp_path / "in/pipe")
    with pytest.raises(SourceChanged, match="pipe is no regular file"):
        fs.put(f"{tmp_path}/in", "out", recursive=True)
    assert fs.find("") == []
    os.unlink(tmp_path / "in/pipe")
    fs.put(f"{tmp_path}/in", "out", recursive=True)
    assert fs.find("") != []


def test_what_is_no_regular_file_is_put_as_it_was(
    fs: CastoreFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"file")
    one_by_one = Calls().of(monkeypatch, "put_file")
    fs.put(["/dev/null", f"{tmp_path}/file", tmp_path / "file"], ["null", "file", "path"])
    assert one_by_one == ["/dev/null"]
    assert fs.cat(["null", "file", "path"]) == {"null": b"", "file": b"file", "path": b"file"}


def test_a_path_may_be_an_object_as_well_as_a_string(fs: CastoreFileSystem, tmp_path: Path) -> None:
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/b").mkdir()
    for name in ("in/a/same", "in/b/same"):
        (tmp_path / name).write_bytes(name.encode())
    fs.put(tmp_path / "in", PurePosixPath("tree"), recursive=True)
    assert fs.cat("tree", recursive=True) == {
        "tree/a/same": b"in/a/same",
        "tree/b/same": b"in/b/same",
    }
    fs.put(tmp_path / "in/a/same", "one")
    fs.cp(PurePosixPath("one"), PurePosixPath("two"))
    fs.mv(PurePosixPath("two"), PurePosixPath("three"))
    fs.pipe(PurePosixPath("four"), b"4")
    assert fs.glob(PurePosixPath("*")) == ["four", "one", "three", "tree"]
    fs.get(PurePosixPath("tree"), tmp_path / "out", recursive=True)
    assert (tmp_path / "out/b/same").read_bytes() == b"in/b/same"


@pytest.mark.parametrize("several", [list, tuple, iter])
def test_several_go_each_to_its_own(
    fs: CastoreFileSystem, tmp_path: Path, several: Callable[[list[str]], Any]
) -> None:
    names, targets = ["b", "a", "c"], ["x", "z", "y"]
    files = [str(tmp_path / name) for name in names]
    for path in files:
        Path(path).write_bytes(path.encode())
    fs.put(several(files), several(names))
    assert fs.cat(names) == {name: path.encode() for name, path in zip(names, files, strict=True)}
    fs.cp(several(names), several(targets))
    assert fs.cat(targets) == {
        to: fs.cat_file(name) for to, name in zip(targets, names, strict=True)
    }
    fs.mv(several(targets), several(["1", "2", "3"]))
    assert fs.cat_file("2") == files[1].encode()
    got = [str(tmp_path / target) for target in targets]
    fs.get(several(names), several(got))
    assert [Path(path).read_bytes() for path in got] == [path.encode() for path in files]
    fs.rm(several(names))
    assert fs.find("") == ["1", "2", "3"]


@pytest.mark.parametrize("verb", ["put", "cp", "mv", "get"])
def test_of_several_none_is_left_out(fs: CastoreFileSystem, tmp_path: Path, verb: str) -> None:
    here = f"{tmp_path}/" if verb == "put" else ""
    for name in ("a", "b"):
        fs.pipe_file(name, b"")
        (tmp_path / name).write_bytes(b"")
    there = f"{tmp_path}/" if verb == "get" else ""
    with pytest.raises(ValueError, match="2 paths"):
        getattr(fs, verb)([f"{here}a", f"{here}b"], [f"{there}x"])
    assert fs.find("") == ["a", "b"]
    assert not (tmp_path / "x").exists()
