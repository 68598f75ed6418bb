"""What a machine remembers of a store on S3: manifests by ETag, where chunks are, frames.

All of it can be deleted at any moment, and nothing is lost: every answer is checked against the
store or against its own checksum, and any trouble with the files drops them and starts over. The
index is not synced on every change; a crash of the machine could leave it damaged, so it is used
again only if it was closed cleanly or the machine has not restarted since.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import xxhash

from castore.errors import CastoreError
from castore.fileio import write_all
from castore.forks import ForkLock, Rank
from castore.format import PackEntry, decode_chunk_row, encode_chunk_row
from castore.index import CACHE_TABLES, LmdbError, open_index
from castore.mapping import Mapping
from castore.model import Location

FRAMES_FILE_BYTES_MAX = 64 << 20
FRAMES_BYTES_DEFAULT = 10 << 30
_FRAME_ROW = struct.Struct("<16sQI")
_FRAME_KEY = struct.Struct(">16sI")
_SEGMENT_KEY = struct.Struct(">QQ")

T = TypeVar("T")


def cache_root() -> str:
    """CASTORE_CACHE_DIR, or `castore` in the platform's folder for caches."""
    given = os.environ.get("CASTORE_CACHE_DIR")
    if given:
        return given
    if sys.platform == "darwin":
        return os.path.expanduser("~/Library/Caches/castore")
    return os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "castore"
    )


class StoreCache:
    """The cache of one store, shared by all processes of the user."""

    def __init__(self, store_id: bytes, *, frames_bytes_max: int | None) -> None:
        self.path = os.path.join(cache_root(), store_id.hex())
        self._lock = ForkLock(Rank.STORES)
        self._open()
        self.frames = FrameCache(self, frames_bytes_max)

    # ------------------------------------------------------------ manifests

    def manifest_head(self, name: bytes) -> tuple[str, bytes] | None:
        """(ETag, head as stored) of the version of the name that was seen last."""

        def read() -> tuple[str, bytes] | None:
            with self.index.read() as txn:
                raw = txn.get(name, db=self.index.names)
            if raw is None or len(raw) < 10:
                return None
            checksum, etag_bytes = struct.unpack_from("<QH", raw)
            if xxhash.xxh3_64_intdigest(raw[8:]) != checksum:
                return None
            return raw[10 : 10 + etag_bytes].decode(), raw[10 + etag_bytes :]

        return self._try(read, None)

    def put_manifest(
        self, name: bytes, etag: str, head: bytes, segments: Iterable[tuple[int, bytes]]
    ) -> None:
        """Remember a version, and some of its segments; with an empty head, only those."""

        def write() -> None:
            tail = struct.pack("<H", len(etag)) + etag.encode() + head
            row = struct.pack("<Q", xxhash.xxh3_64_intdigest(tail)) + tail
            with self.index.write() as txn:
                if head:
                    txn.put(name, row, db=self.index.names)
                for end, raw in segments:
                    txn.put(_segment_key(name, etag, end), raw, db=self.index.segments)

        self._try(write, None)

    def forget_manifest(self, name: bytes) -> None:
        def write() -> None:
            with self.index.write() as txn:
                txn.delete(name, db=self.index.names)

        self._try(write, None)

    def segment(self, name: bytes, etag: str, end: int) -> bytes | None:
        def read() -> bytes | None:
            with self.index.read() as txn:
                return txn.get(_segment_key(name, etag, end), db=self.index.segments)

        return self._try(read, None)

    # ------------------------------------------------------------ chunks

    def known(self, chunk_ids: Sequence[bytes]) -> dict[bytes, Location]:
        def read() -> dict[bytes, Location]:
            with self.index.read() as txn, txn.cursor(db=self.index.chunks) as cursor:
                rows = cursor.getmulti(sorted(set(chunk_ids)))
            return {bytes(chunk_id): decode_chunk_row(bytes(row))[1] for chunk_id, row in rows}

        return self._try(read, {})

    def add_chunks(
        self, packs: Sequence[tuple[bytes, Sequence[PackEntry]]], *, hint: str | None = None
    ) -> None:
        """Remember where chunks are; `hint` is the key of the object that told."""

        def write() -> None:
            with self.index.write() as txn:
                for pack_id, entries in packs:
                    for entry in entries:
                        place = Location(pack_id, entry.offset, entry.stored_bytes)
                        txn.put(
                            entry.chunk_id,
                            encode_chunk_row(entry.raw_bytes, place),
                            db=self.index.chunks,
                        )
                if hint is not None:
                    txn.put(b"hint " + hint.encode(), b"", db=self.index.meta)

        self._try(write, None)

    def drop_chunks(self, chunk_ids: Iterable[bytes]) -> None:
        """They are not where we thought: their packs are gone, or about to go."""

        def write() -> None:
            with self.index.write() as txn:
                for chunk_id in chunk_ids:
                    txn.delete(chunk_id, db=self.index.chunks)

        self._try(write, None)

    def hints_seen(self) -> set[str]:
        def read() -> set[str]:
            found = set()
            with self.index.read() as txn, txn.cursor(db=self.index.meta) as cursor:
                if cursor.set_range(b"hint "):
                    for key in cursor.iternext(values=False):
                        if not bytes(key).startswith(b"hint "):
                            break
                        found.add(bytes(key)[5:].decode())
            return found

        return self._try(read, set())

    # ------------------------------------------------------------ the files

    def close(self) -> None:
        self.frames.close()
        with contextlib.suppress(CastoreError, LmdbError, OSError):
            self.index.flush()
            with self.index.write() as txn:
                txn.put(b"clean", b"", db=self.index.meta)
            self.index.flush()
        self.index.close()

    def start_over(self) -> None:
        """Rename the folder away, which is safe while others use it, and begin a new one."""
        with self._lock:
            with contextlib.suppress(CastoreError, LmdbError, OSError):
                self.index.close()
            doomed = f"{self.path}.{secrets.token_hex(6)}"
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            self._open_index()

    def _open(self) -> None:
        try:
            self._open_index()
            if self._after_a_crash():
                self.start_over()
        except (CastoreError, LmdbError):
            doomed = f"{self.path}.{secrets.token_hex(6)}"
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            self._open_index()

    def _open_index(self) -> None:
        self.index = open_index(os.path.join(self.path, "index"), CACHE_TABLES, sync=False)

    def _after_a_crash(self) -> bool:
        boot = _boot_id()
        with self.index.read() as txn:
            last, clean = (txn.get(key, db=self.index.meta) for key in (b"boot", b"clean"))
        if last not in (None, boot) and clean is None:
            return True
        with self.index.write() as txn:
            txn.put(b"boot", boot, db=self.index.meta)
            txn.delete(b"clean", db=self.index.meta)
        return False

    def _try(self, access: Callable[[], T], otherwise: T) -> T:
        """A cache that fails is one that knows nothing."""
        try:
            return access()
        except (CastoreError, LmdbError, UnicodeDecodeError, struct.error):
            with contextlib.suppress(CastoreError, LmdbError, OSError):
                self.start_over()
            return otherwise


class FrameCache:
    """Frames as they were fetched, in files of 64 MiB, the oldest of which goes when they take more
    than their share. What is read from it is checked as what is fetched is."""

    def __init__(self, cache: StoreCache, bytes_max: int | None) -> None:
        self._cache = cache
        self._folder = os.path.join(cache.path, "frames")
        if bytes_max is None:
            free = shutil.disk_usage(cache.path).free
            bytes_max = min(FRAMES_BYTES_DEFAULT, free // 10)
        self.bytes_max = bytes_max
        self._lock = ForkLock(Rank.STORES)
        self._pid = os.getpid()
        self._fd = -1
        self._file = b""
        self._size = 0
        self._mapped: dict[bytes, Mapping] = {}

    def get(self, places: Sequence[tuple[bytes, int]]) -> list[memoryview | None]:
        """The frames at (pack id, offset), where they are here."""
        if not self.bytes_max:
            return [None] * len(places)

        def read() -> list[bytes | None]:
            index = self._cache.index
            with index.read() as txn:
                return [txn.get(_FRAME_KEY.pack(*place), db=index.frames) for place in places]

        nothing: list[bytes | None] = [None] * len(places)
        rows = self._cache._try(read, nothing)
        return [None if row is None else self._frame(row) for row in rows]

    def put(self, frames: Sequence[tuple[bytes, int, bytes | memoryview]]) -> None:
        """Keep (pack id, offset, frame)s. A full disk only means that they are not kept."""
        if not self.bytes_max or not frames:
            return
        try:
            with self._lock:
                rows = self._append(frames)
        except OSError:
            return

        def write() -> None:
            index = self._cache.index
            with index.write() as txn:
                for key, row in rows:
                    txn.put(key, row, db=index.frames)

        self._cache._try(write, None)

    def drop(self, pack_id: bytes, offset: int) -> None:
        """The frame was not what it should be."""

        def write() -> None:
            index = self._cache.index
            with index.write() as txn:
                txn.delete(_FRAME_KEY.pack(pack_id, offset), db=index.frames)

        if self.bytes_max:
            self._cache._try(write, None)

    def close(self) -> None:
        with self._lock:
            self._mapped.clear()
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def _frame(self, row: bytes) -> memoryview | None:
        file, offset, length = _FRAME_ROW.unpack(row)
        mapping = self._mapped.get(file)
        try:
            if mapping is None or len(mapping) < offset + length:
                mapping = self._mapped[file] = Mapping(self._path(file))
        except (OSError, ValueError):
            self._mapped.pop(file, None)
            return None  # evicted
        if len(mapping) < offset + length:
            return None
        return memoryview(mapping)[offset : offset + length]

    def _append(
        self, frames: Sequence[tuple[bytes, int, bytes | memoryview]]
    ) -> list[tuple[bytes, bytes]]:
        if self._pid != os.getpid():
            # The file is the parent's to append to.
            self._fd, self._pid = -1, os.getpid()
        if self._fd < 0 or self._size >= FRAMES_FILE_BYTES_MAX:
            self._next_file()
        rows, offset = [], self._size
        for pack_id, at, frame in frames:
            rows.append(
                (_FRAME_KEY.pack(pack_id, at), _FRAME_ROW.pack(self._file, offset, len(frame)))
            )
            offset += len(frame)
        self._size = write_all(self._fd, [frame for _, _, frame in frames], self._size)
        return rows

    def _next_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._evict()
        self._file = secrets.token_bytes(16)
        self._fd = os.open(
            self._path(self._file), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        self._size = 0

    def _evict(self) -> None:
        files = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                files.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in files) + FRAMES_FILE_BYTES_MAX
        for _, size, path in sorted(files):
            if total <= self.bytes_max:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size

    def _path(self, file: bytes) -> str:
        return os.path.join(self._folder, file.hex())


def _segment_key(name: bytes, etag: str, end: int) -> bytes:
    return _SEGMENT_KEY.pack(xxhash.xxh3_64_intdigest(name + b"\0" + etag.encode()), end)


def _boot_id() -> bytes:
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read().strip()
    except OSError:
        # Elsewhere the time of the last boot, to the minute, tells boots apart well enough.
        return str(int((time.time() - time.monotonic()) // 60)).encode()
