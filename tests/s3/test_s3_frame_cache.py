"""Frames that a machine keeps on disk."""

from __future__ import annotations

import linecache
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import oracle
import pytest
from caches import STORE, noise, settle

from castore.model import Location
from castore.s3.cache import frames
from castore.s3.cache.folder import cache_folder
from castore.s3.cache.frames import FrameCache
from castore.s3.cache.store import StoreCache

pytestmark = pytest.mark.usefixtures("cache_dir")


def places(count: int, size: int = 1000, pack: int = 0) -> list[tuple[Location, bytes]]:
    return [
        (Location(bytes([pack]) * 16, i * size, size), noise(size, pack * 1000 + i))
        for i in range(count)
    ]


def test_frames_are_bounded(here: StoreCache, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = 100_000
    kept = FrameCache(here.path, here, bound)
    folder = Path(here.path) / "frames"
    for pack in range(40):
        new = places(10, pack=pack)
        kept.put(new)
        settle(kept)
        assert kept.get([location for location, _ in new]) == [frame for _, frame in new]
        assert sum(path.stat().st_size for path in folder.iterdir()) <= bound
    # The oldest went, no more than have to, and their rows with them.
    assert sum(path.stat().st_size for path in folder.iterdir()) >= bound // 2
    assert kept.get([location for location, _ in places(10, pack=0)]) == [None] * 10
    newest = [location for location, _ in places(10, pack=38)]
    assert None not in kept.get(newest)
    rows = here.access(lambda index: _count(index), 0)
    assert rows <= bound // 1000
    kept.close()


@pytest.mark.parametrize("how", ["no length", "another length", "past all files"])
def test_a_row_that_is_none_is_passed_over(how: str, here: StoreCache) -> None:
    """What a damaged index has."""
    kept = FrameCache(here.path, here, 1 << 20)
    new = places(3)
    kept.put(new)
    settle(kept)
    index = here._index
    assert index is not None
    key = frames._KEY.pack(*new[1][0].place)
    with index.write_gate, index.errors, index.begin() as txn:
        row = bytes(txn.get(key, db=index.frames))
        damaged = bytearray(row)
        damaged[23] |= 0x80
        rows = {"no length": b"", "another length": row + row[:4], "past all files": bytes(damaged)}
        txn.put(key, rows[how], db=index.frames)
    found = kept.get([location for location, _ in new])
    assert found[1] is None
    assert found[0] in (new[0][1], None)
    kept.put(new)
    settle(kept)
    assert kept.get([location for location, _ in new]) == [frame for _, frame in new]
    kept.close()


def _count(index: object) -> int:
    with (
        index.gate,
        index.snapshot() as txn,
        txn.cursor(db=index.frames) as cursor,
    ):  # type: ignore[attr-defined]
        return sum(1 for _ in cursor)


def test_frames_of_many_short_processes_share_files(here: StoreCache) -> None:
    for pack in range(20):
        kept = FrameCache(here.path, here, 1 << 20)
        kept.put(places(2, pack=pack))
        kept.close()
    assert len(list((Path(here.path) / "frames").iterdir())) == 1
    kept = FrameCache(here.path, here, 1 << 20)
    other = FrameCache(here.path, here, 1 << 20)
    kept.put(places(2, pack=50))
    settle(kept)
    other.put(places(2, pack=51))  # while it is in use: a file of its own
    settle(other)
    for pack in (0, 7, 19, 50, 51):
        asked = places(2, pack=pack)
        assert kept.get([location for location, _ in asked]) == [frame for _, frame in asked]
    assert len(list((Path(here.path) / "frames").iterdir())) == 2
    kept.close()
    other.close()


def test_no_frames_are_kept_where_none_are_wanted(here: StoreCache) -> None:
    none = FrameCache(here.path, here, 0)
    none.put(places(3))
    assert none.get([location for location, _ in places(3)]) == [None] * 3
    none.drop(places(1)[0][0])
    assert not (Path(here.path) / "frames").exists()
    none.close()


def test_a_full_disk_keeps_no_frames(here: StoreCache, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = FrameCache(here.path, here, 1 << 20)
    kept.put(places(3))
    settle(kept)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frames, "write_all", full)
    kept.put(places(3, pack=1))
    settle(kept)
    assert kept.get([location for location, _ in places(3, pack=1)]) == [None] * 3
    monkeypatch.undo()
    kept.put(places(3, pack=2))
    settle(kept)
    for pack in (0, 2):
        assert None not in kept.get([location for location, _ in places(3, pack=pack)])
    kept.close()


@pytest.mark.parametrize(
    ("stride", "torn"),
    [(9, False), (9, True)] + [pytest.param(1, t, marks=pytest.mark.long) for t in (False, True)],
)
def test_killed_at_steps_of_keeping_and_evicting(
    stride: int, torn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found is right, and the bound holds again with the next that is kept."""
    bound, packs = 1600, 24  # two puts fill a file, of which there are seven

    def keep(one: StoreCache, numbers: range) -> None:
        for pack in numbers:
            one.frames.put(places(3, 30, pack))
            settle(one.frames)

    def until_killed(steps: oracle.Steps) -> None:
        steps.install()
        one = StoreCache(cache_folder(STORE, "a place"), frames_bytes_max=bound)
        keep(one, range(packs))
        one.close()

    def check(one: StoreCache, numbers: range) -> None:
        for pack in numbers:
            kept = places(3, 30, pack)
            found = one.frames.get([location for location, _ in kept])
            assert all(a in (None, b) for a, (_, b) in zip(found, kept, strict=True)), pack

    def afterwards() -> None:
        one = StoreCache(cache_folder(STORE, "a place"), frames_bytes_max=bound)
        check(one, range(packs))
        keep(one, range(packs, packs + 6))
        check(one, range(packs + 6))
        newest = places(3, 30, packs + 5)
        assert one.frames.get([at for at, _ in newest]) == [frame for _, frame in newest]
        folder = Path(one.path) / "frames"
        assert sum(path.stat().st_size for path in folder.iterdir()) <= bound
        one.close()

    for at in range(1, 500, stride):
        monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / str(at)))
        steps = oracle.Steps(at, torn=torn)
        said, status = oracle.in_child(lambda _, s=steps: until_killed(s))  # type: ignore[misc]
        assert status in (0, -signal.SIGKILL), (at, said.decode())
        said, after = oracle.in_child(lambda _: afterwards())
        assert after == 0, (at, said.decode())
        if status == 0:
            break
    assert 40 < at < 499


@pytest.mark.parametrize("written", [False, True])
def test_a_forked_child_appends_to_a_file_of_its_own(written: bool, here: StoreCache) -> None:
    kept = FrameCache(here.path, here, 1 << 20)
    kept.put(places(2))
    if written:
        settle(kept)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            kept.put(places(2, pack=1))
            settle(kept)
            status = 0 if None not in kept.get([at for at, _ in places(2, pack=1)]) else 1
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    kept.put(places(2, pack=2))
    settle(kept)
    assert len(list((Path(here.path) / "frames").iterdir())) == 2
    for pack in range(3):
        asked = places(2, pack=pack)
        assert kept.get([location for location, _ in asked]) == [frame for _, frame in asked]
    kept.close()


class SlowDisk:
    """Writes when it is let go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.goes_on = threading.Event()
        self.is_asked = threading.Event()
        self._write = frames.write_all
        monkeypatch.setattr(frames, "write_all", self.write_all)

    def write_all(self, fd: int, parts: list[bytes | memoryview], offset: int) -> int:
        self.is_asked.set()
        assert self.goes_on.wait(10)
        return self._write(fd, parts, offset)


def test_reads_do_not_wait_for_the_disk(here: StoreCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is queued is found; what the queue has no room for is not kept; closing writes all."""
    disk = SlowDisk(monkeypatch)
    monkeypatch.setattr(frames, "QUEUE_BYTES_MAX", 3000)
    kept = FrameCache(here.path, here, 1 << 20)
    reply = noise(2000)
    in_reply = [(Location(bytes(16), i, 10), memoryview(reply)[i : i + 10]) for i in (0, 1990)]
    kept.put(in_reply)  # it keeps all of the reply in memory
    kept.put(places(2, pack=1))
    kept.put(places(1, pack=2))
    for pack, found in ((1, False), (2, True)):
        for location, frame in places(1, pack=pack):
            assert kept.get([location]) == [frame if found else None]
    assert kept.get([location for location, _ in in_reply]) == [frame for _, frame in in_reply]
    disk.goes_on.set()
    kept.close()
    again = FrameCache(here.path, here, 1 << 20)
    assert again.get([places(1, pack=2)[0][0]]) == [places(1, pack=2)[0][1]]
    assert again.get([location for location, _ in in_reply]) == [frame for _, frame in in_reply]
    again.close()


def test_a_frame_dropped_before_it_is_written_stays_dropped(
    here: StoreCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    kept = FrameCache(here.path, here, 1 << 20)
    [(place, good)] = places(1)
    kept.put([(place, b"?" * 1000)])
    kept.drop(place)
    assert kept.get([place]) == [None]
    disk.goes_on.set()
    settle(kept)
    assert kept.get([place]) == [None]
    kept.put([(place, good)])
    settle(kept)
    assert kept.get([place]) == [good]
    kept.close()


def test_a_frame_dropped_while_it_is_written_stays_dropped(
    here: StoreCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    kept = FrameCache(here.path, here, 1 << 20)
    [(place, _)] = places(1)
    kept.put([(place, b"?" * 1000)])
    assert disk.is_asked.wait(10)
    kept.drop(place)
    assert kept.get([place]) == [None]
    disk.goes_on.set()
    settle(kept)
    assert kept.get([place]) == [None]
    kept.close()


def test_a_frame_that_was_dropped_is_dropped_for_others(here: StoreCache) -> None:
    kept = FrameCache(here.path, here, 1 << 20)
    kept.put(places(2))
    settle(kept)
    [(place, _), (other, good)] = places(2)
    kept.drop(place)
    again = FrameCache(here.path, here, 1 << 20)
    assert again.get([place, other]) == [None, good]
    kept.close()
    again.close()


def test_files_that_others_change(here: StoreCache) -> None:
    """One that they removed is not appended to, of one that they cut short there is what is whole,
    and what is no file of frames is in nobody's way."""
    kept = FrameCache(here.path, here, 1 << 20)
    folder = Path(here.path) / "frames"
    for pack in range(2):
        kept.put(places(2, pack=pack))
        settle(kept)
        asked = places(2, pack=pack)
        assert kept.get([location for location, _ in asked]) == [frame for _, frame in asked]
        [file] = folder.iterdir()
        if pack == 0:
            file.unlink()
    os.truncate(file, 1500)
    (first, whole), (second, _) = places(2, pack=1)
    assert kept.get([first, second]) == [whole, None]
    (folder / "notes.txt").write_bytes(b"not ours")
    file.unlink()
    kept.put(places(2, pack=2))
    settle(kept)
    assert None not in kept.get([location for location, _ in places(2, pack=2)])
    kept.close()


def test_no_descriptor_is_left_open(here: StoreCache) -> None:
    """Neither of a file that was read, nor of one that is full, nor of one that is another's."""
    bound = 100_000
    other = FrameCache(here.path, here, bound)
    other.put(places(2, pack=50))
    settle(other)
    kept = FrameCache(here.path, here, bound)
    kept.put(places(2))
    settle(kept)
    before = len(os.listdir("/dev/fd"))
    for pack in range(1, 6):
        kept.put(places(10, pack=pack))
        settle(kept)
        assert None not in kept.get([location for location, _ in places(10, pack=pack)])
    assert len(os.listdir("/dev/fd")) == before
    kept.close()
    other.close()


def test_an_interrupt_leaves_nothing_queued(here: StoreCache) -> None:
    """Wherever it comes: what is queued and never written would take room in memory for good."""
    kept = FrameCache(here.path, here, 1 << 20)

    def interrupt_at(line: int) -> bool:
        """Whether the put was interrupted, before this one of the lines that it runs."""
        left = line

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            if frame.f_code is not FrameCache.put.__code__:
                return None
            # A tracer may raise between a block and its `__exit__`, where no signal handler can.
            source = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            left -= event == "line" and not source.lstrip().startswith("with ")
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            kept.put(places(2, pack=line))
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    lines = 0
    while interrupt_at(lines):
        settle(kept)
        lines += 1
    assert lines > 8
    settle(kept)
    assert None not in kept.get([location for location, _ in places(2, pack=lines)])
    kept.close()


def test_a_child_does_not_wait_for_what_its_parent_writes(
    here: StoreCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue is the parent's; the child has room for its own."""
    monkeypatch.setattr(frames, "QUEUE_BYTES_MAX", 2000)
    kept = FrameCache(here.path, here, 1 << 20)
    held = threading.Event()
    kept._writer.submit(held.wait, 10)
    kept.put(places(2))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            kept.put(places(2, pack=1))
            settle(kept)
            status = 0 if kept.get([at for at, _ in places(1, pack=1)]) != [None] else 1
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    held.set()
    settle(kept)
    for pack in range(2):
        asked = places(2, pack=pack)
        assert kept.get([location for location, _ in asked]) == [frame for _, frame in asked]
    kept.close()
