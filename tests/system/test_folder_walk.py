"""What is below a folder, by the extension and by Python."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from castore.system import statuses
from castore.system import walk as module
from castore.system.walk import FoundFile, Skipped, walk


@pytest.fixture(params=["extension", "Python"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Python":
        monkeypatch.setattr(statuses, "_native", None)
    elif statuses._native is None:
        pytest.skip("the C extension isn't built")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "b/deep/er").mkdir(parents=True)
    (tree / "b/deep/er/file").write_bytes(b"12345")
    (tree / "b.txt").write_bytes(b"123")
    (tree / "a").write_bytes(b"")
    (tree / ".hidden").write_bytes(b"1")
    (tree / os.fsdecode(b"n\xff")).write_bytes(b"12")
    return tree


def found(tree: Path, leave_out: Path | None = None) -> list[tuple[str, int]]:
    walked = walk(str(tree), leave_out=None if leave_out is None else str(leave_out))
    files = [each for each in walked if isinstance(each, FoundFile)]
    assert all(each.path == f"{tree}/{each.inner}" for each in files)
    return [(each.inner, each.size) for each in files]


def skipped(tree: Path, leave_out: Path | None = None) -> dict[str, str]:
    walked = walk(str(tree), leave_out=None if leave_out is None else str(leave_out))
    return {each.path: each.reason for each in walked if isinstance(each, Skipped)}


ALL = [(".hidden", 1), ("a", 0), ("b/deep/er/file", 5), ("b.txt", 3), (os.fsdecode(b"n\xff"), 2)]


def test_files_come_in_the_order_of_their_bytes_within_each_folder(tree: Path) -> None:
    assert found(tree) == ALL
    assert skipped(tree) == {}


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_folder_has_more_than_is_looked_at_together(
    tree: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOKED_AT_ONCE", at_once)
    assert found(tree) == ALL


def test_large_sizes_are_told(tree: Path) -> None:
    with open(tree / "large", "wb") as file:
        file.truncate((5 << 30) + 1)
    assert ("large", (5 << 30) + 1) in found(tree)


def test_symlinks_to_files_count_and_others_are_told(tree: Path) -> None:
    (tree / "to file").symlink_to("b.txt")
    (tree / "to folder").symlink_to("b")
    (tree / "to nothing").symlink_to("none")
    (tree / "to itself").symlink_to("to itself")
    assert sorted(found(tree)) == sorted([*ALL, ("to file", 3)])
    assert set(skipped(tree)) == {f"{tree}/to {what}" for what in ("folder", "nothing", "itself")}
    assert "folder" in skipped(tree)[f"{tree}/to folder"]


def test_what_is_no_file_is_told(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    assert found(tree) == ALL
    assert skipped(tree) == {f"{tree}/pipe": "it is a named pipe"}


def test_a_folder_is_left_out_by_what_it_is(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "other way").symlink_to(tree / "b/deep")
    assert found(tree, tmp_path / "other way") == [each for each in ALL if "deep" not in each[0]]
    assert skipped(tree, tmp_path / "other way") == {f"{tree}/b/deep": "it is the store itself"}


def test_what_vanishes_once_it_was_listed_is_told(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.listdir

    def and_then_gone(folder: str) -> list[str]:
        names = listed(folder)
        if folder == str(tree):
            (tree / "a").unlink()
            shutil.rmtree(tree / "b")
        return names

    monkeypatch.setattr(os, "listdir", and_then_gone)
    walked = list(walk(str(tree)))
    gone = {each.path: each.reason for each in walked if isinstance(each, Skipped)}
    assert gone == dict.fromkeys([f"{tree}/a", f"{tree}/b"], "it vanished meanwhile")


def test_a_folder_that_vanishes_once_it_was_looked_at_is_told(tree: Path) -> None:
    walked = walk(str(tree))
    assert [next(walked).path, next(walked).path] == [f"{tree}/.hidden", f"{tree}/a"]
    shutil.rmtree(tree / "b")
    gone = [each for each in walked if isinstance(each, Skipped)]
    assert [(each.path, each.reason) for each in gone] == [(f"{tree}/b", "it vanished meanwhile")]


def test_what_takes_a_folder_s_place_once_it_was_looked_at_is_told(
    tree: Path, tmp_path: Path
) -> None:
    """It was looked at together with what comes before it, which may have taken hours."""
    (tree / "c").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_bytes(b"outside")
    walked = walk(str(tree))
    assert [next(walked).path, next(walked).path] == [f"{tree}/.hidden", f"{tree}/a"]
    shutil.rmtree(tree / "b")
    (tree / "b").symlink_to(tmp_path / "elsewhere")
    (tree / "c").rmdir()
    (tree / "c").write_bytes(b"a file")
    assert [*walked] == [
        Skipped(f"{tree}/b", "it is a symlink to a folder"),
        FoundFile(f"{tree}/b.txt", "b.txt", 3),
        FoundFile(f"{tree}/c", "c", 6),
        FoundFile(os.path.join(tree, os.fsdecode(b"n\xff")), os.fsdecode(b"n\xff"), 2),
    ]


def test_the_folder_itself_has_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        list(walk(str(tmp_path / "none")))
    with pytest.raises(NotADirectoryError):
        list(walk(str(tmp_path / "file")))
