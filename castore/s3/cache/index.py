"""The index of a cache of a store on S3: rows in LMDB, which can be deleted at any moment.

Any trouble with the files drops them and starts over. Where no cache can be kept at all, every
answer is that nothing is known.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, TypeAlias, TypeVar

import xxhash

from castore.errors import CastoreError, ReadOnlyStore, StoreFull, StoreIOError, StoreLocked
from castore.s3.cache.folder import FolderNotOurs, make_own_folder, warn_uncached
from castore.system.clock import boot_clock
from castore.system.fileio import make_durable_folder, sync_folder
from castore.system.forks import ForkLock, Rank
from castore.system.lmdb_env import CACHE_TABLES, Index, Txn, open_index
from castore.system.lmdb_errors import LmdbError
from castore.system.lmdb_snapshot import Snapshot, Table

_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

T = TypeVar("T")
TableName: TypeAlias = Literal["names", "segments", "chunks", "frames", "references", "meta"]


class CacheIndex:
    """That of one cache, shared by all processes of the user, in the folder `path` (see
    `cache_folder`; None: there is none)."""

    def __init__(self, path: str | None) -> None:
        self.path = path or ""
        self._lock = ForkLock(Rank.PACKS)
        self._index: Index | None = None
        self._pid = os.getpid()
        self._user = ""
        self.was_there = False  # when it was opened
        if path is not None:
            self._open()

    def row(self, table: TableName, key: bytes) -> bytes | None:
        found: bytes | None = self.read(
            lambda index, txn: txn.get(key, db=getattr(index, table)), None
        )
        return found

    def change(
        self, table: TableName, rows: Mapping[bytes, bytes], *, gone: Iterable[bytes] = ()
    ) -> None:
        """Put the rows, and delete those with the keys `gone`, in one transaction."""

        def write(index: Index, txn: Txn) -> None:
            db = getattr(index, table)
            for key, row in rows.items():
                txn.put(key, row, db=db)
            for key in gone:
                txn.delete(key, db=db)

        self.write(write)

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


def boot_id() -> str:
    """What tells this boot of the machine from others."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        # Elsewhere the time of the last boot, to the minute, tells boots apart well enough.
        return str(int((time.time() - boot_clock()) // 60))


# A row is checked together with its key: what a damaged index has at a key may be another's.


def checked(key: bytes, raw: bytes) -> bytes:
    return _row_checksum(key, raw) + raw


def unchecked(key: bytes, row: bytes) -> bytes | None:
    raw = row[8:]
    return raw if row[:8] == _row_checksum(key, raw) else None


def _row_checksum(key: bytes, raw: bytes) -> bytes:
    return xxhash.xxh3_64_digest(raw, seed=xxhash.xxh3_64_intdigest(key))


def rows_at(txn: Snapshot | Txn, table: Table, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The rows whose keys begin with `prefix`."""
    with txn.cursor(db=table) as cursor:
        if cursor.set_range(prefix):
            for key, row in cursor:
                if not bytes(key).startswith(prefix):
                    return
                yield bytes(key), bytes(row)
