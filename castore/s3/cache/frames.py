"""Frames as they were fetched, kept on disk: the oldest file of them goes when they take more than
their share. What is read from here is checked as what is fetched is.

A read does not wait for the disk: a thread writes what reads have fetched, and until it has, they
find it in the queue. A disk that falls behind by QUEUE_BYTES_MAX misses frames.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import struct
from collections.abc import Iterator, Sequence, Sized
from typing import TYPE_CHECKING, TypeAlias, cast

from castore.errors import StoreClosed
from castore.model import Location
from castore.system import forks
from castore.system.fileio import write_all
from castore.system.forks import ForkLock, Rank
from castore.system.workers import Workers

if TYPE_CHECKING:  # it is handed in
    from castore.s3.cache.index import CacheIndex
    from castore.system.lmdb_env import Index, Txn
    from castore.system.lmdb_snapshot import Snapshot

FILE_BYTES_MAX = 64 << 20
BYTES_DEFAULT = 10 << 30
QUEUE_BYTES_MAX = 32 << 20  # of replies that frames to be written are in
_ROW = struct.Struct("<16sQI")
_KEY = struct.Struct(">16sI")

FrameBytes: TypeAlias = bytes | memoryview


class FrameCache:
    """Files in `path/frames`, each appended to by one process, which holds its lock. Thread-safe.

    `bytes_max` (0: keep nothing; None: a tenth of the free disk, 10 GiB at most) bounds them
    together, and is exceeded only by what other processes append meanwhile.
    """

    def __init__(self, path: str, index: CacheIndex, bytes_max: int | None) -> None:
        self._index = index
        self._folder = os.path.join(path, "frames")
        if bytes_max is None:
            try:
                bytes_max = min(BYTES_DEFAULT, shutil.disk_usage(path).free // 10)
            except OSError:
                bytes_max = 0
        self.bytes_max = bytes_max
        self._file_bytes_max = min(FILE_BYTES_MAX, bytes_max // 8)
        self._lock = ForkLock(Rank.LEAF)  # of what is in memory; held for moments
        self._closed = False
        self._queued: dict[tuple[bytes, int], FrameBytes] = {}
        self._batches: dict[object, int] = {}  # bytes of those that are queued
        self._queue_pid = os.getpid()
        self._bad: set[tuple[bytes, int]] = set()
        self._writer = Workers(1)
        self._appending = ForkLock(Rank.LEAF)  # of the file; never taken together with the other
        self._file_pid = os.getpid()
        self._fd = -1
        self._file = b""
        self._size = 0
        forks.register(self)

    def get(self, locations: Sequence[Location]) -> list[FrameBytes | None]:
        """The frames, where they are here."""
        found: list[FrameBytes | None] = [None] * len(locations)
        if not self.bytes_max:
            return found
        # First, as what leaves the queue has its row by then.
        if self._queued:
            with self._lock:
                found = [self._queued.get(at.place) for at in locations]
        missing = [i for i, frame in enumerate(found) if frame is None]

        def read(index: Index, txn: Snapshot) -> list[bytes | None]:
            keys = [_KEY.pack(locations[i][0], locations[i][1]) for i in missing]
            return [txn.get(key, db=index.frames) for key in keys]

        nothing: list[bytes | None] = [None] * len(missing)
        rows = self._index.read(read, nothing) if missing else nothing
        wanted: dict[bytes, list[tuple[int, int]]] = {}
        for i, row in zip(missing, rows, strict=True):
            if row is None or len(row) != _ROW.size:  # of a damaged index
                continue
            if locations[i].place not in self._bad:
                file, offset, length = _ROW.unpack(row)
                if length == locations[i].stored_bytes:
                    wanted.setdefault(file, []).append((i, offset))
        for file, ats in wanted.items():
            # Evicted, or the disk fails; or an index is damaged, and has an offset past all files.
            with contextlib.suppress(OSError, OverflowError):
                for i, frame in self._read(file, ats, locations):
                    found[i] = frame
        return found

    def put(self, frames: Sequence[tuple[Location, FrameBytes]]) -> None:
        """Keep frames, if the disk keeps up; one that is full only means that they are not."""
        buffers = {id(_buffer(frame)): len(_buffer(frame)) for _, frame in frames}
        size = sum(buffers.values())  # what the queue keeps in memory, gaps between frames included
        if not frames or size > min(self.bytes_max // 2, QUEUE_BYTES_MAX):
            return
        batch = object()
        try:
            with self._lock:
                if self._queue_pid != os.getpid():  # what was queued is the parent's to write
                    self._queued, self._batches, self._queue_pid = {}, {}, os.getpid()
                if self._closed or sum(self._batches.values()) + size > QUEUE_BYTES_MAX:
                    return
                self._batches[batch] = size
                self._queued.update((location.place, frame) for location, frame in frames)
            self._writer.submit(self._write, batch, frames)
        except BaseException as error:  # an interrupt, wherever it comes, leaves nothing queued
            self._leave_queue(batch, frames)
            if not isinstance(error, StoreClosed):
                raise

    def drop(self, *locations: Location) -> None:
        """The frames were not what they should be."""
        with self._lock:
            for location in locations:
                self._bad.add(location.place)
                self._queued.pop(location.place, None)

        self._index.change("frames", {}, gone=[_KEY.pack(*at.place) for at in locations])

    def close(self) -> None:
        """Write what is queued, and keep no more. Before the cache's index is closed."""
        with self._lock:
            self._closed = True
        self._writer.close()
        with self._appending:
            self._let_go()

    # ------------------------------------------------------------ on the thread that writes

    def _write(self, batch: object, frames: Sequence[tuple[Location, FrameBytes]]) -> None:
        try:
            wanted = [each for each in frames if self._queued.get(each[0].place) is each[1]]
            with contextlib.suppress(OSError):
                self._write_through(wanted)
        finally:
            self._leave_queue(batch, frames)

    def _write_through(self, frames: Sequence[tuple[Location, FrameBytes]]) -> None:
        with self._appending:
            evicted = self._make_room(sum(len(frame) for _, frame in frames))
            rows = self._append(frames)

        def write(index: Index, txn: Txn) -> None:
            if evicted:
                with txn.cursor(db=index.frames) as cursor:
                    old = [bytes(key) for key, row in cursor if bytes(row[:16]) in evicted]
                for key in old:
                    txn.delete(key, db=index.frames)
            for key, row in rows:
                txn.put(key, row, db=index.frames)

        self._index.write(write)
        with self._lock:
            # One that was dropped meanwhile stays bad.
            written = [at.place for at, frame in frames if self._queued.get(at.place) is frame]
            self._bad.difference_update(written)

    def _leave_queue(self, batch: object, frames: Sequence[tuple[Location, FrameBytes]]) -> None:
        with self._lock:
            self._batches.pop(batch, None)
            for location, frame in frames:
                if self._queued.get(location.place) is frame:
                    del self._queued[location.place]

    def _read(
        self, file: bytes, ats: Sequence[tuple[int, int]], locations: Sequence[Location]
    ) -> Iterator[tuple[int, bytes]]:
        """Those of the frames at (index, offset) that are whole in the file. Not mapped: what is
        cut short while it is used is to be noticed here, and fetched."""
        fd = os.open(self._path(file), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for i, offset in ats:
                frame = os.pread(fd, locations[i].stored_bytes, offset)
                if len(frame) == locations[i].stored_bytes:
                    yield i, frame
        finally:
            os.close(fd)

    # ------------------------------------------------------------ while it appends

    def _append(self, frames: Sequence[tuple[Location, FrameBytes]]) -> list[tuple[bytes, bytes]]:
        rows, offset = [], self._size
        for location, frame in frames:
            row = _ROW.pack(self._file, offset, len(frame))
            rows.append((_KEY.pack(location.pack_id, location.offset), row))
            offset += len(frame)
        self._size = write_all(self._fd, [frame for _, frame in frames], self._size)
        return rows

    def _make_room(self, size: int) -> set[bytes]:
        """Have a file to append so many bytes to; the files that had to go for it."""
        if self._file_pid != os.getpid():  # of a fork that ran no hooks
            self.after_fork_in_child()
        limit = self._file_bytes_max - size
        if self._fd >= 0 and self._size <= limit and os.fstat(self._fd).st_nlink:
            return set()
        self._let_go()
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        files = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(OSError, ValueError):
                status = entry.stat()
                file = bytes.fromhex(entry.name)
                files.append((status.st_mtime_ns, status.st_size, file))
        files.sort()
        evicted = self._evict(files, max(size, self._file_bytes_max))
        for _, file_bytes, file in reversed(files[len(evicted) :]):
            if file_bytes <= limit and self._adopt(file):
                return evicted
        self._adopt(secrets.token_bytes(16))
        return evicted

    def _evict(self, files: Sequence[tuple[int, int, bytes]], room: int) -> set[bytes]:
        """Remove the oldest files, until there is `room` and an eighth of all is free: finding the
        frames that were in them takes a look at every row."""
        total = sum(size for _, size, _ in files) + room
        if total <= self.bytes_max:
            return set()
        evicted = set()
        for _, size, file in files:
            if total <= self.bytes_max - self.bytes_max // 8:
                break
            with contextlib.suppress(OSError):
                os.unlink(self._path(file))
            evicted.add(file)
            total -= size
        return evicted

    def _adopt(self, file: bytes) -> bool:
        """Append to this file from now on, which may be one that another process left; False if
        it is in use."""
        fd = os.open(self._path(file), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = os.fstat(fd).st_size
        except BaseException as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._fd, self._file, self._size = fd, file, size
        return True

    def _let_go(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def after_fork_in_child(self) -> None:
        # The file is the parent's to append to. At once: later the number may be another file's.
        self._file_pid = os.getpid()
        self._let_go()

    def _path(self, file: bytes) -> str:
        return os.path.join(self._folder, file.hex())


def _buffer(frame: FrameBytes) -> Sized:
    """What a frame keeps in memory: often a whole reply."""
    return cast(Sized, frame.obj) if isinstance(frame, memoryview) else frame
