"""What a machine remembers of a store on S3: manifests by ETag, where chunks are, frames.

All of it can be deleted at any moment, and nothing is lost: every answer is checked against the
store or against its own checksum, and any trouble with the files drops them and starts over. Where
no cache can be kept at all, every answer is that nothing is known.

The index is not synced on every change, and a crash of the machine may damage it, so that even to
look into it would kill the process. So each process that uses it says so durably before, in a file
of `users/`, which it removes when it has closed it: a file that is left from an earlier boot means
that there was a crash, and that the index is not to be opened again.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import xxhash

from castore.errors import CastoreError, ReadOnlyStore, StoreFull, StoreIOError, StoreLocked
from castore.format.index import ChunkRow, decode_chunk_row, encode_chunk_row
from castore.format.pack import PackEntry
from castore.model import Location
from castore.s3.cache.folder import FolderNotOurs, make_own_folder, warn_uncached
from castore.s3.cache.frames import FrameCache
from castore.stream.known import located
from castore.system.clock import boot_clock
from castore.system.fileio import make_durable_folder, sync_folder
from castore.system.forks import ForkLock, Rank
from castore.system.lmdb_env import CACHE_TABLES, Index, Txn, open_index
from castore.system.lmdb_errors import LmdbError
from castore.system.lmdb_snapshot import Snapshot, Table

ROWS_MAX = 16_384  # of chunks, per transaction: each may dirty a page of its own
_SEGMENT_KEY = struct.Struct(">QQ")
_LOOKED = b"outdated looked for"
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

T = TypeVar("T")


class StoreCache:
    """The cache of one store, shared by all processes of the user, in the folder `path` (see
    `cache_folder`; None: there is none)."""

    def __init__(self, path: str | None, *, frames_bytes_max: int | None) -> None:
        self.path = path or ""
        self._lock = ForkLock(Rank.PACKS)
        self._index: Index | None = None
        self._pid = os.getpid()
        self._user = ""
        self.was_there = False  # with an index, when it was opened
        if path is not None:
            self._open()
        # Frames without an index could not be found again.
        kept = 0 if self._index is None else frames_bytes_max
        self.frames = FrameCache(self.path, self, kept)

    # ------------------------------------------------------------ manifests

    def manifest_head(self, name: bytes) -> tuple[str, bytes] | None:
        """(ETag, head as stored) of the version of the name that was seen last."""
        return self.read(lambda index, txn: _version(name, txn.get(name, db=index.names)), None)

    def name_before(self, name: bytes) -> bytes | None:
        """The last name that sorts before this one, of those whose versions are remembered."""
        return self.read(lambda index, txn: txn.key_before(name, db=index.names), None)

    def name_behind(self, name: bytes) -> bytes | None:
        """The first that sorts behind it."""
        return self.read(lambda index, txn: txn.key_behind(name, db=index.names), None)

    def names_behind(self, name: bytes, count: int) -> list[bytes]:
        """The first so many that sort behind it, of those whose versions are remembered."""

        def read(index: Index, txn: Snapshot) -> list[bytes]:
            with txn.cursor(db=index.names) as cursor:
                if not cursor.set_range(name + b"\0"):
                    return []
                return [bytes(key) for key in islice(cursor.iternext(values=False), count)]

        nothing: list[bytes] = []
        return self.read(read, nothing)

    def put_manifest(
        self, name: bytes, etag: str, head: bytes, segments: Iterable[tuple[int, bytes]]
    ) -> None:
        """Remember a version, in place of the one before, and some of its segments; with an empty
        head, only those, if it is the version that is known."""

        def write(index: Index, txn: Txn) -> None:
            before = _version(name, txn.get(name, db=index.names))
            if head:
                if before is not None and before[0] != etag:
                    _forget_segments(txn, index.segments, name, before[0])
                txn.put(name, checked(name, _encode_version(etag, head)), db=index.names)
            elif before is None or before[0] != etag:
                return
            for end, raw in segments:
                key = _segment_key(name, etag, end)
                txn.put(key, checked(key, raw), db=index.segments)

        self.write(write)

    def forget_manifests(self, names: Collection[bytes]) -> None:
        def write(index: Index, txn: Txn) -> None:
            for name in names:
                before = _version(name, txn.get(name, db=index.names))
                if before is not None:
                    _forget_segments(txn, index.segments, name, before[0])
                txn.delete(name, db=index.names)

        if names:
            self.write(write)

    def segment(self, name: bytes, etag: str, end: int) -> bytes | None:
        key = _segment_key(name, etag, end)
        row: bytes | None = self.read(lambda index, txn: txn.get(key, db=index.segments), None)
        return None if row is None else unchecked(key, row)

    # ------------------------------------------------------------ batches of names

    def blob(self, key: str) -> tuple[str, bytes] | None:
        """(ETag, bytes) of what was seen last at a key of the store."""
        row = _blob_key(key)
        return self.read(lambda index, txn: _version(row, txn.get(row, db=index.meta)), None)

    def keep_blob(self, key: str, etag: str, raw: bytes) -> None:
        row = _blob_key(key)

        def write(index: Index, txn: Txn) -> None:
            txn.put(row, checked(row, _encode_version(etag, raw)), db=index.meta)

        self.write(write)

    def forget_blobs(self, keys: Iterable[str]) -> None:
        rows = [_blob_key(key) for key in keys]

        def write(index: Index, txn: Txn) -> None:
            for row in rows:
                txn.delete(row, db=index.meta)

        if rows:
            self.write(write)

    # ------------------------------------------------------------ chunks

    def known(self, chunk_ids: Sequence[bytes]) -> dict[bytes, Location]:
        def read(index: Index, txn: Snapshot) -> dict[bytes, Location]:
            with txn.cursor(db=index.chunks) as cursor:

                def rows(chunk_ids: Iterable[bytes]) -> dict[bytes, ChunkRow]:
                    found = [
                        (bytes(i), bytes(row)) for i, row in cursor.getmulti(sorted(chunk_ids))
                    ]
                    return {
                        chunk_id: decode_chunk_row(raw)
                        for chunk_id, row in found
                        if (raw := unchecked(chunk_id, row)) is not None
                    }

                return located(rows({*chunk_ids}), rows)

        return self.read(read, {})

    def add_chunks(self, packs: Iterable[tuple[bytes, Sequence[PackEntry]]]) -> None:
        """Remember where chunks are. A delta's frame replaces no other one, which deltas may have
        as their base."""
        rows: list[tuple[bytes, ChunkRow]] = []

        def write(index: Index, txn: Txn) -> None:
            for chunk_id, row in rows:
                before = txn.get(chunk_id, db=index.chunks) if row.bases else None
                if before is None or _is_of_delta(chunk_id, bytes(before)):
                    raw = checked(chunk_id, encode_chunk_row(row))
                    txn.put(chunk_id, raw, db=index.chunks)

        for pack_id, entries in packs:
            for entry in entries:
                place = Location(pack_id, entry.offset, entry.stored_bytes)
                rows.append((entry.chunk_id, ChunkRow(entry.raw_bytes, place, entry.bases)))
            if len(rows) >= ROWS_MAX:
                self.write(write)
                rows.clear()
        self.write(write)

    def drop_chunks(self, chunk_ids: Iterable[bytes]) -> None:
        """They are not where we thought: their packs are gone, or about to go."""

        def write(index: Index, txn: Txn) -> None:
            for chunk_id in chunk_ids:
                txn.delete(chunk_id, db=index.chunks)

        self.write(write)

    def known_packs(self) -> set[bytes]:
        """Those that a chunk is remembered to be in."""
        packs = {pack_id for page in self._chunk_packs() for _, pack_id in page}
        return {pack_id for pack_id in packs if pack_id is not None}

    def drop_packs(self, gone: Collection[bytes]) -> None:
        """No chunk is in these any more."""
        for page in self._chunk_packs() if gone else ():
            if doomed := [chunk_id for chunk_id, pack_id in page if pack_id in gone]:
                self.drop_chunks(doomed)

    def _chunk_packs(self) -> Iterator[list[tuple[bytes, bytes | None]]]:
        """The chunks that are remembered, each with its pack, None of a damaged row. In several
        transactions, as others wait for each."""
        after = b""

        def read(index: Index, txn: Snapshot) -> list[tuple[bytes, bytes | None]]:
            with txn.cursor(db=index.chunks) as cursor:
                if not cursor.set_range(after + b"\0"):
                    return []
                rows = islice(cursor, ROWS_MAX)
                return [(bytes(key), _pack_of(bytes(key), bytes(row))) for key, row in rows]

        nothing: list[tuple[bytes, bytes | None]] = []
        while page := self.read(read, nothing):
            after = page[-1][0]
            yield page

    def hints_seen(self) -> set[str]:
        """The keys of the objects of hints whose chunks are remembered."""

        def read(index: Index, txn: Snapshot) -> set[str]:
            return {key[5:].decode() for key, _ in rows_at(txn, index.meta, b"hint ")}

        return self.read(read, set())

    def note_hints(self, seen: Iterable[str], gone: Iterable[str] = ()) -> None:
        def write(index: Index, txn: Txn) -> None:
            for key in seen:
                txn.put(b"hint " + key.encode(), b"", db=index.meta)
            for key in gone:
                txn.delete(b"hint " + key.encode(), db=index.meta)

        self.write(write)

    # ------------------------------------------------------------ how much that is

    def remembered_bytes(self) -> int:
        """Of manifests and of where chunks are: what grows with what others store."""

        def read(index: Index, txn: Snapshot) -> int:
            return sum(
                stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
                for stat in map(txn.stat, (index.names, index.segments, index.chunks))
            )

        return self.read(read, 0)

    def looked_at_bytes(self) -> int:
        """How many these were when it was looked last what of them is outdated; 0 if never."""
        raw = self.read(lambda index, txn: txn.get(_LOOKED, db=index.meta), None)
        return 0 if raw is None else int.from_bytes(raw, "little")

    def note_looked(self, size: int) -> None:
        def write(index: Index, txn: Txn) -> None:
            txn.put(_LOOKED, size.to_bytes(8, "little"), db=index.meta)

        self.write(write)

    # ------------------------------------------------------------ the files

    def read(self, use: Callable[[Index, Snapshot], T], otherwise: T) -> T:
        """What `use` reads of the index; `otherwise` where there is none, or it fails."""

        def read(index: Index) -> T:
            with index.gate, index.snapshot() as txn:
                return use(index, txn)

        return self.access(read, otherwise)

    def write(self, use: Callable[[Index, Txn], None]) -> None:
        """Have `use` change the index, in one transaction; where that fails, nothing is."""

        def write(index: Index) -> None:
            with index.write_gate, index.errors, index.begin() as txn:
                use(index, txn)

        self.access(write, None)

    def access(self, use: Callable[[Index], T], otherwise: T) -> T:
        """What `use` returns; a cache that fails is one that knows nothing."""
        index = self._index
        if index is None:
            return otherwise
        try:
            if self._pid != os.getpid():
                self._enter()
            return use(index)
        except (CastoreError, LmdbError, OSError, UnicodeDecodeError, struct.error) as error:
            if not _is_passing(error):
                self._start_over(index)
            return otherwise

    def clear(self) -> None:
        """Know nothing, and start over."""
        index = self._index
        if index is not None:
            self._start_over(index)

    def close(self) -> None:
        """Later questions are answered with nothing."""
        self.frames.close()  # writes what is left to write
        with self._lock:
            index, self._index = self._index, None
        if index is None:
            return
        with contextlib.suppress(CastoreError, LmdbError, OSError):
            index.flush()
            if self._pid == os.getpid():
                os.unlink(self._user)
        index.close()

    def _open(self) -> None:
        for _ in range(2):
            try:
                if self._enter():
                    path = os.path.join(self.path, "index")
                    self.was_there = os.path.exists(path)
                    self._index = open_index(path, CACHE_TABLES, sync=False)
                    return
            except FolderNotOurs as error:
                warn_uncached(str(error))
                return
            except (CastoreError, LmdbError, OSError) as error:
                if _is_passing(error):
                    return
            self._put_away()

    def _enter(self) -> bool:
        """Say that this process uses the index; False if it may have been damaged by a crash of the
        machine."""
        self._pid = os.getpid()
        boot = boot_id()
        make_own_folder(self.path)
        users = os.path.join(self.path, "users")
        make_durable_folder(users)
        others = os.listdir(users)
        if any(not other.startswith(f"{boot}.") for other in others):
            return False
        self._user = os.path.join(users, f"{boot}.{secrets.token_hex(8)}")
        os.close(os.open(self._user, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        if not others:
            sync_folder(users)
        return True

    def _start_over(self, failed: Index) -> None:
        with self._lock:
            if self._index is not failed:
                return  # another thread did, or it was closed
            self._index = None
            with contextlib.suppress(CastoreError, LmdbError, OSError):
                failed.close()
            self._put_away()
            self._open()

    def _put_away(self) -> None:
        """Rename the folder away, which is safe while others use it, and remove it, and what is
        left of those before."""
        with contextlib.suppress(OSError):
            os.rename(self.path, f"{self.path}.{secrets.token_hex(6)}")
        for doomed in glob.glob(glob.escape(self.path) + ".*"):
            shutil.rmtree(doomed, ignore_errors=True)


def _is_passing(error: Exception) -> bool:
    """Whether another cache would fare no better."""
    if isinstance(error, StoreIOError):
        return error.errno in _PASSING
    return isinstance(
        error, (FolderNotOurs, ReadOnlyStore, StoreFull, StoreLocked)
    ) or not isinstance(error, (CastoreError, LmdbError, UnicodeDecodeError, struct.error))


# A row is checked together with its key: what a damaged index has at a key may be another's.


def checked(key: bytes, raw: bytes) -> bytes:
    return _row_checksum(key, raw) + raw


def unchecked(key: bytes, row: bytes) -> bytes | None:
    raw = row[8:]
    return raw if row[:8] == _row_checksum(key, raw) else None


def _pack_of(chunk_id: bytes, row: bytes) -> bytes | None:
    """That a chunk's row leads to; None of a damaged one."""
    raw = unchecked(chunk_id, row)
    return None if raw is None else decode_chunk_row(raw).location.pack_id


def _is_of_delta(chunk_id: bytes, row: bytes) -> bool:
    """Whether it is a chunk's row that leads to a delta; or it is damaged."""
    raw = unchecked(chunk_id, row)
    return raw is None or bool(decode_chunk_row(raw).bases)


def _row_checksum(key: bytes, raw: bytes) -> bytes:
    return xxhash.xxh3_64_digest(raw, seed=xxhash.xxh3_64_intdigest(key))


def _encode_version(etag: str, head: bytes) -> bytes:
    return struct.pack("<H", len(etag.encode())) + etag.encode() + head


def _version(name: bytes, row: bytes | None) -> tuple[str, bytes] | None:
    raw = None if row is None else unchecked(name, bytes(row))
    if raw is None:
        return None
    (etag_bytes,) = struct.unpack_from("<H", raw)
    return raw[2 : 2 + etag_bytes].decode(), raw[2 + etag_bytes :]


def _blob_key(key: str) -> bytes:
    return b"blob " + key.encode()


def _segment_key(name: bytes, etag: str, end: int) -> bytes:
    return _SEGMENT_KEY.pack(xxhash.xxh3_64_intdigest(name + b"\0" + etag.encode()), end)


def _forget_segments(txn: Txn, segments: Table, name: bytes, etag: str) -> None:
    for key, _ in list(rows_at(txn, segments, _segment_key(name, etag, 0)[:8])):
        txn.delete(key, db=segments)


def rows_at(txn: Snapshot | Txn, table: Table, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The rows whose keys begin with `prefix`."""
    with txn.cursor(db=table) as cursor:
        if cursor.set_range(prefix):
            for key, row in cursor:
                if not bytes(key).startswith(prefix):
                    return
                yield bytes(key), bytes(row)


def boot_id() -> str:
    """What tells this boot of the machine from others."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        # Elsewhere the time of the last boot, to the minute, tells boots apart well enough.
        return str(int((time.time() - boot_clock()) // 60))
