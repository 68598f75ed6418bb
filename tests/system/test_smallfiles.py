"""Small files, many in one call: by the extension and by Python, with the same results."""

from __future__ import annotations

import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import castore
from castore.errors import SourceChanged
from castore.stream import fileputs, sourcefile
from castore.stream.sourcefile import opened, read_at_once, read_together
from castore.system import outfolder
from castore.system.outfolder import NewFile, write_small

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
    assert write_small(folder, files) == [True] * 3
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
    done = write_small(folder, [NewFile(name, b"new", 0o644, 0) for name in NAMES])
    assert done == [False] * 4 + [True]
    assert sorted(os.listdir(tmp_path)) == NAMES  # no draft, and nothing where the link leads
    assert (tmp_path / NAMES[0]).read_bytes() == b"mine"
    assert (tmp_path / NAMES[1]).is_symlink()
    assert (tmp_path / NAMES[4]).read_bytes() == b"new"


def test_what_is_there_is_replaced_where_that_is_wanted(folder: int, tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).write_bytes(b"older")
    (tmp_path / "target").write_bytes(b"of the link")
    (tmp_path / NAMES[1]).symlink_to("target")
    (tmp_path / NAMES[2] / "inside").mkdir(parents=True)
    (tmp_path / NAMES[3]).mkdir()
    files = [NewFile(name, b"new", 0o640, 0) for name in NAMES]
    assert write_small(folder, files, replace=True) == [True, True, False, False, True]
    assert sorted(os.listdir(tmp_path)) == sorted([*NAMES, "target"])
    for name in (NAMES[0], NAMES[1], NAMES[4]):
        path = tmp_path / name
        assert (path.read_bytes(), path.is_symlink()) == (b"new", False)
        assert (path.stat().st_mtime_ns, stat.S_IMODE(path.stat().st_mode)) == (0, 0o640)
    assert (tmp_path / "target").read_bytes() == b"of the link"
    assert os.listdir(tmp_path / NAMES[2]) == ["inside"]


def test_of_what_cannot_be_written_nothing_is_left(folder: int, tmp_path: Path) -> None:
    files = [NewFile("x" * 300, b"", 0o644, None), NewFile("fine", b"1", 0o644, None)]
    assert write_small(folder, files) == [False, True]
    assert os.listdir(tmp_path) == ["fine"]


def test_a_folder_that_is_gone(folder: int, tmp_path: Path) -> None:
    tmp_path.rmdir()
    assert write_small(folder, [NewFile("a", b"1", 0o644, None)]) == [False]


def test_none(folder: int) -> None:
    assert write_small(folder, []) == []


# ---------------------------------------------------------------- reading

BYTES_MAX = 1000


def test_small_files_are_read_whole(tmp_path: Path) -> None:
    if sourcefile._native is None:
        pytest.skip("the C extension isn't built")
    odd = os.fsdecode(b"\xff") if sys.platform == "linux" else "odd"
    made = {"empty": b"", "é": b"1" * 999, odd: b"2" * BYTES_MAX}
    for name, raw in made.items():
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "é").chmod(0o640)
    time.sleep(0.05)
    read = read_together([str(tmp_path / name) for name in made], BYTES_MAX)
    for (name, raw), found in zip(made.items(), read, strict=True):
        assert found is not None
        assert found[0] == raw
        status = (tmp_path / name).stat()
        for fact in found[1]._fields:
            assert getattr(found[1], fact) == getattr(status, fact)
        assert sourcefile.fingerprint(found[1]) == sourcefile.fingerprint(status) != 0


def test_what_one_reading_does_not_tell_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").write_bytes(bytes(BYTES_MAX + 1))
    (tmp_path / "secret").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
    time.sleep(0.05)
    young = tmp_path / "young"
    young.write_bytes(b"1")
    monkeypatch.setattr(time, "time_ns", lambda: young.stat().st_ctime_ns + 1)
    # That of the system says that it is empty, and is not.
    paths = [*map(str, sorted(tmp_path.iterdir())), str(tmp_path / "none"), "/proc/self/status"]
    paths.remove(str(tmp_path / "secret"))
    assert read_together(paths, BYTES_MAX) == [None] * len(paths)


def test_files_of_a_year_that_no_number_of_ns_can_be(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1")
    os.utime(path, ns=(10**20, 10**20))  # each file system has its own last year
    time.sleep(0.05)
    [read] = read_together([str(path)], BYTES_MAX)
    fits = path.stat().st_mtime_ns < 1 << 63
    assert (read is not None) == (fits and sourcefile._native is not None)


@pytest.mark.parametrize("change", ["none", "grown", "cut", "overwritten", "young", "proc"])
def test_what_one_reading_does_not_tell_is_not_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    if change == "proc":
        path = Path("/proc/self/status")  # it says that it is empty, and is not
        if not path.exists():
            pytest.skip("has no /proc")
    elif change == "young":
        monkeypatch.setattr(time, "time_ns", lambda: path.stat().st_ctime_ns + 1)
    else:
        time.sleep(0.05)
    with opened(str(path), regular=True) as source:
        if change == "grown":
            path.write_bytes(b"before, and more")
        elif change == "cut":
            os.truncate(path, 3)
        elif change == "overwritten":
            path.write_bytes(b"behind")
        assert read_at_once(source) == (b"before" if change == "none" else None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(source.fd)


def test_a_link_that_leads_to_a_pipe_by_now_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    asked: list[str] = []
    for path in ("link", "pipe"):
        with (
            pytest.raises(SourceChanged, match="is no regular file"),
            opened(str(tmp_path / path), regular=True, may_follow=asked.append),
        ):
            pass
    assert asked == [str(tmp_path / "link")]


def test_only_what_is_new_or_changed_is_read_and_together(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sourcefile._native is None:
        pytest.skip("the C extension isn't built")
    together: list[str] = []
    alone: list[str] = []

    def read(paths: list[str], bytes_max: int) -> object:
        together.extend(paths)
        return read_together(paths, bytes_max)

    def opened(path: str, **options: object) -> object:
        alone.append(path)
        return sourcefile.opened(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fileputs, "read_together", read)
    monkeypatch.setattr(fileputs, "opened", opened)
    made = {str(tmp_path / "in" / f"{i}"): b"%d" % i * 3000 for i in range(5)}
    (tmp_path / "in").mkdir()
    for path, raw in made.items():
        Path(path).write_bytes(raw)
    time.sleep(0.05)
    assert store.import_folder(tmp_path / "in").files == 5
    assert (sorted(together), alone) == (sorted(made), [])
    for path, raw in made.items():
        assert store.gets(os.path.basename(path)) == raw
    together.clear()
    assert store.import_folder(tmp_path / "in").same_files == 5
    assert (together, alone) == ([], [])
    changed = str(tmp_path / "in" / "3")
    Path(changed).write_bytes(b"3" * 2999)
    time.sleep(0.05)
    assert store.import_folder(tmp_path / "in").same_files == 4
    assert (together, alone) == ([changed], [])
    assert store.gets("3") == b"3" * 2999
    together.clear()
    assert store.import_folder(tmp_path / "in", checksum=True).same_files == 5
    assert (sorted(together), alone) == (sorted(made), [])
