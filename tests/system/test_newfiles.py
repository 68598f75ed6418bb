"""Small files, many in one call: by the extension and by Python, with the same results."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from castore.system import outfolder
from castore.system.outfolder import NewFile, write_new

NAMES = [f"{i}.txt" for i in range(5)]


@pytest.fixture(params=["extension", "Python"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[int]:
    if request.param == "Python":
        monkeypatch.setattr(outfolder, "_native", None)
    elif outfolder._native is None:
        pytest.skip("the C extension isn't built")
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("time_ns", [0, 1_700_000_000_123_456_789, -1, -1_500_000_001])
def test_files_have_their_bytes_modes_and_times(folder: int, tmp_path: Path, time_ns: int) -> None:
    files = [
        NewFile("empty", b"", 0o600, time_ns),
        NewFile("é", memoryview(b"x" * 100_000)[1:], 0o444, time_ns),
        NewFile("setuid", b"x", 0o6755, None),
    ]
    assert write_new(folder, files) == [True] * 3
    assert sorted(os.listdir(tmp_path)) == ["empty", "setuid", "é"]
    for leaf, raw, mode, mtime_ns in files:
        status = (tmp_path / leaf).stat()
        assert (tmp_path / leaf).read_bytes() == raw
        assert stat.S_IMODE(status.st_mode) == mode & 0o777
        if mtime_ns is not None:
            assert status.st_mtime_ns == mtime_ns


def test_what_is_there_stays(folder: int, tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).write_bytes(b"mine")
    (tmp_path / NAMES[1]).symlink_to(tmp_path / "elsewhere")
    (tmp_path / NAMES[2]).mkdir()
    os.mkfifo(tmp_path / NAMES[3])
    done = write_new(folder, [NewFile(name, b"new", 0o644, 0) for name in NAMES])
    assert done == [False] * 4 + [True]
    assert sorted(os.listdir(tmp_path)) == NAMES  # no draft, and nothing where the link leads
    assert (tmp_path / NAMES[0]).read_bytes() == b"mine"
    assert (tmp_path / NAMES[1]).is_symlink()
    assert (tmp_path / NAMES[4]).read_bytes() == b"new"


def test_of_what_cannot_be_written_nothing_is_left(folder: int, tmp_path: Path) -> None:
    files = [NewFile("x" * 300, b"", 0o644, None), NewFile("fine", b"1", 0o644, None)]
    assert write_new(folder, files) == [False, True]
    assert os.listdir(tmp_path) == ["fine"]


def test_a_folder_that_is_gone(folder: int, tmp_path: Path) -> None:
    tmp_path.rmdir()
    assert write_new(folder, [NewFile("a", b"1", 0o644, None)]) == [False]


def test_none(folder: int) -> None:
    assert write_new(folder, []) == []
