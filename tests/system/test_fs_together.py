"""Verbs of `castore.fs` on many names: one commit each; and what else fsspec has for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec")

import castore  # noqa: E402
from castore.fs import CastoreFileSystem  # noqa: E402


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[CastoreFileSystem]:
    fs = CastoreFileSystem(tmp_path / "store", skip_instance_cache=True)
    fs.pipe_file("there", b"")
    yield fs
    fs.store.close()


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many operations each commit had."""
    counts: list[int] = []
    commit = castore.Transaction.commit

    def counted(self: Any) -> None:
        counts.append(len(self._operations))
        commit(self)

    monkeypatch.setattr(castore.Transaction, "commit", counted)
    return counts


def test_many_names_are_one_commit(
    fs: CastoreFileSystem, tmp_path: Path, commits: list[int]
) -> None:
    fs.pipe({f"a/{i}": b"%d" % i for i in range(5)})
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(3):
        (folder / str(i)).write_bytes(b"%d" % i)
    fs.put(str(folder), "b", recursive=True)
    fs.cp("a", "c", recursive=True)
    fs.mv("c", "d", recursive=True)
    fs.rm(["a", "d"], recursive=True)
    assert commits == [5, 3, 5, 5, 2]  # the last of two folders, whole
    assert fs.find("") == ["b/0", "b/1", "b/2", "there"]


def test_what_fails_in_between_leaves_nothing(
    fs: CastoreFileSystem, tmp_path: Path, commits: list[int]
) -> None:
    with pytest.raises(TypeError):
        fs.pipe({"a": b"1", "b": "text"})
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(FileNotFoundError):
        fs.put([str(tmp_path / "x"), str(tmp_path / "none")], ["a", "b"])
    with pytest.raises(FileNotFoundError):
        fs.copy(["there", "none"], ["a", "b"])
    with pytest.raises(FileExistsError):
        fs.pipe({"a": b"1", "there": b"2"}, mode="create")
    assert commits == []
    assert fs.find("") == ["there"]
    fs.copy(["there", "none"], ["a", "b"], on_error="ignore")
    assert fs.find("") == ["a", "there"]
    fs.pipe_file("b", b"afterwards by itself")
    assert commits == [1, 1]


def test_a_put_of_nothing_makes_no_store(tmp_path: Path) -> None:
    fs = CastoreFileSystem(tmp_path / "none", skip_instance_cache=True)
    (tmp_path / "empty").mkdir()
    fs.put(str(tmp_path / "empty"), "x", recursive=True)
    fs.pipe({})
    assert not (tmp_path / "none").exists()


def test_in_a_transaction_they_are_part_of_it(fs: CastoreFileSystem, commits: list[int]) -> None:
    with fs.transaction:
        fs.pipe({"a": b"1", "b": b"2"})
        fs.cp("a", "c")
    assert commits == [3]


def test_a_transaction_knows_what_was_put_in_it(fs: CastoreFileSystem, commits: list[int]) -> None:
    with fs.transaction:
        fs.pipe({"a": b"1", "b/c": b"2", "b/d": b"3"})
        fs.cp("a", "e")
        fs.rm("a")
    assert fs.find("") == ["b/c", "b/d", "e", "there"]
    with pytest.raises(IsADirectoryError), fs.transaction:
        fs.rm("b")
    with pytest.raises(FileNotFoundError, match="none"), fs.transaction:
        fs.rm(["there", "none"])
    assert fs.find("") == ["b/c", "b/d", "e", "there"]


def test_a_transaction_moves_and_removes_what_was_put_in_it(
    fs: CastoreFileSystem, commits: list[int]
) -> None:
    fs.pipe({"d/old": b"1", "e/old": b"2", "f/gone": b"3"})
    with fs.transaction:
        fs.pipe({"a": b"4", "b": b"5", "d/x/new": b"6", "e/new": b"7", "g/h": b"8", "g/i/j": b"9"})
        fs.mv("a", "moved")
        fs.rm("b", recursive=True)
        fs.cp("d", "copied", recursive=True)
        fs.mv("d", "m", recursive=True)
        fs.rm("e", recursive=True)
        fs.rm("f", recursive=True)
        fs.cp("g", "shallow", recursive=True, maxdepth=1)
        fs.rm(["g/i", "g"], recursive=True)
        for gone in ("a", "b", "d", "e", "f", "g", "none"):
            with pytest.raises(FileNotFoundError):
                fs.rm(gone, recursive=True)
            with pytest.raises(FileNotFoundError):
                fs.mv(gone, "x", recursive=True)
        with pytest.raises(IsADirectoryError):
            fs.mv("m", "n")
    copied = {"copied/old": b"1", "copied/x/new": b"6", "shallow/h": b"8"}
    moved = {"moved": b"4", "m/old": b"1", "m/x/new": b"6"}
    assert fs.cat("", recursive=True) == {"there": b"", **copied, **moved}
    assert len(commits) == 2


def test_what_is_removed_once_is_removed(fs: CastoreFileSystem) -> None:
    """Paths that overlap; an object whose name is a folder's, too."""
    fs.pipe({"a": b"", "a/b": b"", "a/c/d": b"", "a-b": b"", "a2/b": b""})
    fs.rm(["a/b", "a", "a/c", "a"], recursive=True)
    assert fs.find("") == ["a-b", "a2/b", "there"]
    fs.pipe({"x1": b"", "x1/y": b"", "x2/z": b""})
    fs.rm("x*", recursive=True)
    fs.rm(["a2"], recursive=True, maxdepth=1)
    assert fs.find("") == ["a-b", "there"]
    fs.pipe({"p": b"", "p/q": b""})
    fs.rm("p")
    assert fs.find("p") == ["p/q"]
    fs.rm("/", recursive=True)
    assert fs.find("") == []


def test_of_two_that_go_to_one_file_the_last_stays(fs: CastoreFileSystem, tmp_path: Path) -> None:
    fs.pipe({f"{i}/x": b"%d" % i for i in range(9)})
    for _ in range(5):
        fs.get([f"{i}/x" for i in range(9)], str(tmp_path / "out"))
        assert (tmp_path / "out" / "x").read_bytes() == b"8"


def test_a_callback_is_told_of_each_file(fs: CastoreFileSystem, tmp_path: Path) -> None:
    fs.pipe({f"f/{i}": bytes(i) for i in range(20)})
    callback = fsspec.Callback()
    fs.get("f", str(tmp_path / "out"), recursive=True, callback=callback)
    assert (callback.size, callback.value) == (20, 20)


def test_du(fs: CastoreFileSystem) -> None:
    fs.pipe({"d/a": bytes(5), "d/e/b": bytes(7)})
    assert (fs.du("d"), fs.du("d", maxdepth=1), fs.du("d/a")) == (12, 5, 5)
    assert fs.du("d", total=False) == {"d/a": 5, "d/e/b": 7}
    every = {"d": 0, "d/a": 5, "d/e": 0, "d/e/b": 7}
    assert fs.du("d", total=False, withdirs=True) == every
    assert fs.du("d/e/b", total=False) == {"d/e/b": 7}


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda fs: fs.cp(["new", "a[1]"], "to/"), ["new/a", "new/b/c", "to/a[1]"]),
        (
            lambda fs: fs.cp(["new", "a[1]"], "to/", recursive=True),
            ["new/a", "new/b/c", "to/a", "to/a[1]", "to/c"],
        ),
        (
            lambda fs: fs.cp(["new"], "to/", recursive=True, maxdepth=1),
            ["new/a", "new/b/c", "to/a"],
        ),
        (lambda fs: fs.cp(["new", "there"], ["x", "y"]), ["new/a", "new/b/c", "y"]),
        (lambda fs: fs.mv(["new"], "to/", recursive=True), ["to/a", "to/c"]),
        (lambda fs: fs.rm(["new", "there"], recursive=True, maxdepth=1), ["new/b/c"]),
    ],
)
def test_a_list_of_what_only_the_transaction_has_put(
    fs: CastoreFileSystem, change: Any, left: list[str]
) -> None:
    with fs.transaction:
        fs.pipe({"new/a": b"1", "new/b/c": b"2", "a[1]": b"3"})
        change(fs)
    assert [name for name in fs.find("") if name not in ("a[1]", "there")] == left
    assert fs.store.check(read_data=True).exit_code == 0


def test_a_list_with_what_the_transaction_has_removed(fs: CastoreFileSystem) -> None:
    fs.pipe({"old/x": b"1", "d/y": b"2"})
    with fs.transaction:
        fs.rm("old", recursive=True)
        fs.pipe_file("new/a", b"1")
        with pytest.raises(IsADirectoryError, match="new is a folder"):
            fs.rm(["there", "new"])
        with pytest.raises(FileNotFoundError, match="old"):
            fs.cp(["there", "old"], "none/")
        fs.cp(["old", "d"], "to/", recursive=True)
    assert fs.find("") == ["d/y", "new/a", "there", "to/y"]


def test_touch_takes_nothing_away_that_a_transaction_has_put(fs: CastoreFileSystem) -> None:
    with fs.transaction:
        fs.pipe("new", b"put before")
        fs.pipe("x", b"put over")
        fs.touch("new", truncate=False)
        fs.touch("x", truncate=False)
        fs.touch("newer", truncate=False)
    assert [fs.cat_file(name) for name in ("new", "x", "newer")] == [
        b"put before",
        b"put over",
        b"",
    ]


def test_touch(fs: CastoreFileSystem) -> None:
    fs.touch("new", truncate=False)
    assert fs.cat_file("new") == b""
    fs.pipe_file("x", bytes(200_000))
    before = fs.info("x")
    fs.touch("x", truncate=False)
    after = fs.info("x")
    assert after["mtime"] > before["mtime"]
    assert after["ETag"] == before["ETag"]
    fs.touch("x")
    assert fs.cat_file("x") == b""


def test_there_are_no_urls_for_others(fs: CastoreFileSystem) -> None:
    for call in (fs.sign, fs.url):
        with pytest.raises(NotImplementedError, match="chunks in packs"):
            call("there")


def test_find_takes_a_prefix(fs: CastoreFileSystem) -> None:
    fs.pipe(dict.fromkeys(("a/x1", "a/x2/y", "a/z", "ax"), b""))
    assert fs.find("a", prefix="x") == ["a/x1", "a/x2/y"]
    assert fs.find("a", prefix="x", withdirs=True) == ["a/x1", "a/x2", "a/x2/y"]
    assert fs.find("", prefix="a") == ["a/x1", "a/x2/y", "a/z", "ax"]
    assert list(fs.find("a", prefix="x1", detail=True)) == ["a/x1"]
    assert fs.find("a", prefix="none") == fs.find("ax", prefix="none") == []


@pytest.mark.parametrize("folder", ["", "a", "a/b", "b", "none"])
def test_one_level_is_what_all_levels_have_of_it(fs: CastoreFileSystem, folder: str) -> None:
    """It is looked at without what is in the folders in it."""
    names = ["a", "a/", "a/b", "a/b/c", "a/b/c/d", "a//x", "a-", "b/x", "b/y/z", "b/y", "c"]
    fs.pipe(dict.fromkeys(names, b"1"))
    below = f"{folder}/" if folder else ""
    every = fs.find(folder, withdirs=True, detail=True)
    level = {
        name: info
        for name, info in every.items()
        if "/" not in name[len(below) :] or name == folder
    }
    assert fs.find(folder, maxdepth=1, withdirs=True, detail=True) == level
    files = [name for name, info in level.items() if info["type"] == "file"]
    assert fs.find(folder, maxdepth=1) == files
    assert fs.find(folder, maxdepth=1, detail=True).keys() == set(files)


def test_upath(fs: CastoreFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    upath = pytest.importorskip("upath")
    fsspec.register_implementation("castore", CastoreFileSystem, clobber=True)
    registry = pytest.importorskip("upath.registry")
    from castore.fs.upath import CastorePath

    registry.register_implementation("castore", CastorePath, clobber=True)
    for root in (
        upath.UPath("castore://", store=fs.store_path),
        upath.UPath(fs.unstrip_protocol("")),
    ):
        assert type(root) is CastorePath
        path = root / "dir" / "a.txt"
        path.write_text("hello")
        assert path.as_uri() == fs.unstrip_protocol("dir/a.txt")
        assert upath.UPath(path.as_uri()).read_text() == "hello"
        assert (path.name, path.parent.name, path.stat().st_size) == ("a.txt", "dir", 5)
        assert [each.path for each in root.rglob("*.txt")] == ["dir/a.txt"]
        assert sorted(each.path for each in root.iterdir()) == ["dir", "there"]
        assert path.relative_to(root).as_posix() == "dir/a.txt"
        path.replace(root / "dir" / "b.txt")
        (root / "dir" / "c.txt").touch()
        (root / "dir" / "c.txt").touch()
        assert [each.name for each in (root / "dir").iterdir()] == ["b.txt", "c.txt"]
        with pytest.raises(FileExistsError):
            (root / "dir" / "c.txt").touch(exist_ok=False)
        (root / "dir" / "b.txt").unlink()
        (root / "dir").rmdir(recursive=True)
        assert not path.exists()


def test_a_move_takes_away_only_what_it_has_moved(
    fs: CastoreFileSystem, commits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not what is deeper than it goes, nor what others put meanwhile."""
    fs.pipe({"d/a": b"1", "d/e/b": b"2", "x1": b"3", "x2": b"4"})
    fs.mv("d", "moved", recursive=True, maxdepth=1)
    assert fs.find("") == ["d/e/b", "moved/a", "there", "x1", "x2"]
    for recursive in (True, False):
        with pytest.raises(IsADirectoryError):
            fs.mv(["x1", "d"], ["y", "z"], recursive=recursive)
    for pattern in ("d", "?"):
        with pytest.raises(IsADirectoryError):
            fs.mv(pattern, "z", maxdepth=1)
    with pytest.raises(FileNotFoundError):
        fs.mv(["x1", "none"], ["y", "z"])
    assert fs.find("") == ["d/e/b", "moved/a", "there", "x1", "x2"]
    commit = castore.Transaction.commit

    def then_others(self: castore.Transaction) -> None:
        commit(self)
        monkeypatch.undo()
        fs.pipe({"x2": b"newer", "x3": b"new"})

    monkeypatch.setattr(castore.Transaction, "commit", then_others)
    fs.mv("x?", "moved")
    assert fs.cat("x*") == {"x2": b"newer", "x3": b"new"}
    assert fs.find("moved") == ["moved/a", "moved/x1", "moved/x2"]
    fs.mv(["x2", "x3"], ["y", "z"])
    assert fs.find("") == ["d/e/b", "moved/a", "moved/x1", "moved/x2", "there", "y", "z"]


def test_a_touch_in_a_transaction_keeps_what_was_put_in_it(fs: CastoreFileSystem) -> None:
    fs.pipe({"old": b"1", "kept": b"4"})
    before = fs.info("old")["mtime"], fs.info("kept")["mtime"]
    with fs.transaction:
        fs.pipe_file("new", b"2")
        fs.pipe_file("old", b"3")
        for name in ("new", "old", "none", "kept"):
            fs.touch(name, truncate=False)
    expected = {"new": b"2", "old": b"3", "none": b"", "kept": b"4"}
    assert fs.cat(list(expected)) == expected
    assert fs.info("old")["mtime"] > before[0]
    assert fs.info("kept")["mtime"] > before[1]


def test_a_touch_makes_anew_what_its_transaction_removed(fs: CastoreFileSystem) -> None:
    fs.pipe({"removed": b"1", "moved": b"2"})
    with fs.transaction:
        fs.rm("removed")
        fs.mv("moved", "away")
        for name in ("removed", "moved"):
            fs.touch(name, truncate=False)
    assert fs.cat(["removed", "moved", "away"]) == {"removed": b"", "moved": b"", "away": b"2"}


@pytest.mark.parametrize("on_error", [None, "ignore", "raise"])
def test_what_is_deleted_while_it_is_copied(
    fs: CastoreFileSystem, monkeypatch: pytest.MonkeyPatch, on_error: str | None
) -> None:
    fs.pipe({f"d/{i}": b"%d" % i for i in range(4)})
    commit = castore.Transaction.commit

    def deleted_then(self: castore.Transaction) -> None:
        monkeypatch.setattr(castore.Transaction, "commit", commit)
        fs.store.delete("d/1")
        fs.store.delete("d/3")
        commit(self)

    monkeypatch.setattr(castore.Transaction, "commit", deleted_then)
    if on_error == "raise":
        with pytest.raises(FileNotFoundError, match="d/1"):
            fs.cp("d", "e", recursive=True, on_error=on_error)
        assert fs.find("e") == []
    else:
        fs.cp("d", "e", recursive=True, on_error=on_error)
        assert fs.cat("e", recursive=True) == {"e/0": b"0", "e/2": b"2"}
