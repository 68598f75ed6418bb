"""The LMDB environment of a store: with `lmdb_errors` the only file that knows lmdb.

The rules that bite, each kept here:

- One environment per path per process, shared through a registry keyed by device and inode.
- A forked child closes the environment that it inherited and opens its own. Closing ends any
  transaction that was open at the fork, and that frees the *parent's* reader slot: so a fork waits
  for the transactions of all threads, each of which is short, and none is kept in reserve
  (`max_spare_txns=0`). The pid is checked on every transaction, for forks that ran no hooks.
- `lib_version=0` pins the file format to LMDB 0.9's; the map is huge and sparse from the start.
- Who may not write the lock file, or is not to touch anything, reads without a lock and without
  LMDB (`lmdb_unlocked`), and finds out afterwards whether that went well.
- A commit that fails has an unknown outcome: the environment is reopened and the transaction ids
  compared, so that the error can say whether it may have landed. It is never acknowledged.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TypeAlias

import lmdb

from castore.errors import (
    CastoreError,
    CommitUnknown,
    IndexCorrupt,
    ReadOnlyStore,
    StoreClosed,
    StoreIOError,
    StoreNotFound,
)
from castore.system import forks
from castore.system.fileio import (
    descriptor,
    make_durable_folder,
    sync_folder,
    take_standard_descriptors,
    typed_errors,
)
from castore.system.forks import ForkLock, Rank
from castore.system.lmdb_errors import READERS_MAX, code_of, typed
from castore.system.lmdb_files import can_lock, data_path, make_fit
from castore.system.lmdb_pages import newest_meta
from castore.system.lmdb_snapshot import Snapshot, Table, repeated
from castore.system.lmdb_unlocked import UnlockedEnvironment

MAP_BYTES = 1 << 40
# A process has 128 TiB of addresses: so many may be open with a map that no index outgrows, and a
# thousand more with one that serves tens of terabytes.
LARGE_MAPS_MAX = 32
MAP_BYTES_OF_MANY = 1 << 36
MAP_BYTES_LEAST = 1 << 28
READER_CHECK_S = 1.0
TABLES = (b"names", b"segments", b"chunks", b"packs", b"pending", b"changes", b"meta")
CACHE_TABLES = (b"names", b"segments", b"chunks", b"frames", b"references", b"meta")

Txn: TypeAlias = "lmdb.Transaction[bytes]"


class Index:
    """One environment and its tables. `close` it as often as it was opened.

    `gate` is held around every read transaction, and `write_gate` around every write, so that a
    fork, or a map that has to be opened anew, finds none open; `errors` makes LMDB's errors ours,
    of a write, and of its commit.
    Gates and write transactions are entered and left by a `with` where they are used: an interrupt
    can't come between a lock and what lets go of it (see `locks`), as it can in a context manager
    that is a generator, or has methods in Python.
    """

    names: Table
    segments: Table
    chunks: Table
    packs: Table
    pending: Table
    changes: Table
    frames: Table
    references: Table
    meta: Table

    def __init__(
        self, path: str, tables: tuple[bytes, ...], *, sync: bool, create: bool, lock_free: bool
    ) -> None:
        self.path = path
        self._create = create
        self._tables = tables
        self._sync = sync
        self._never_lock = lock_free
        self.lock_free = lock_free
        self.writable = True
        self.gate = ForkLock(Rank.READ_GATE)
        self.write_gate = ForkLock(Rank.WRITE_GATE)
        self.errors = _Errors(self)
        self._reopening = ForkLock(Rank.LEAF)
        self._before = 0  # the last transaction when the one that writes began
        self._references = 1
        self._env: lmdb.Environment | UnlockedEnvironment | None = None
        self._pid = 0
        self._readers_checked = 0.0
        self._open()
        forks.register(self)

    # ------------------------------------------------------------ transactions

    def snapshot(self, *, views: bool = False) -> Snapshot:
        """`with index.gate, index.snapshot() as txn`: a read transaction whose values are bytes, or
        `views` of the map. Keep it short, and leave with copies."""
        if self._pid != os.getpid():
            self._open_again()
        elif self._was_replaced():
            self._reopen()
        assert self._env is not None
        try:
            try:
                return self._snapshot(views)
            except lmdb.MapResizedError:
                # Its locks come before the gate, which we hold: once, as no snapshot is open.
                self.gate.release()
                try:
                    self._adopt_map()
                finally:
                    self.gate.acquire()
            return self._snapshot(views)
        except lmdb.Error as error:
            raise typed(error, self.path) from error

    def _snapshot(self, views: bool) -> Snapshot:
        env = self._env
        if isinstance(env, UnlockedEnvironment):
            return Snapshot(env.begin(buffers=views), self.path, env.last_transaction)
        assert env is not None
        return Snapshot(env.begin(buffers=views), self.path, None)  # type: ignore[call-overload]

    def begin(self) -> Txn:
        """`with index.write_gate, index.errors, index.begin() as txn`: the write transaction,
        committed with a sync at the end, aborted on any error. Raises ReadOnlyStore, LmdbError."""
        if not self.writable:
            raise ReadOnlyStore(
                errno.EACCES, f"the index {self.path} can't be written here: is its disk read-only?"
            )
        if self._pid != os.getpid():
            self._open_again()
        self._check_readers(self._lmdb())
        try:
            return self._begin()
        except lmdb.MapResizedError:
            self._adopt_map()
        return self._begin()

    def _begin(self) -> Txn:
        env = self._lmdb()
        # No variable has the transaction: of an interrupt here, the traceback would keep it open.
        try:
            return env.begin(write=True)
        finally:
            # Not before: it may have waited for the transactions of other processes.
            self._before = env.info()["last_txnid"]

    def _lmdb(self) -> lmdb.Environment:
        assert self._env is not None
        assert not isinstance(self._env, UnlockedEnvironment)
        return self._env

    def take_locks(self) -> None:
        """Count as a reader from now on, and be able to write."""
        with self.write_gate, self.gate:
            if self._never_lock:
                self._never_lock = False
                self._reopen()

    def check_in_place(self) -> None:
        """Raises StoreNotFound if the index was removed under us: what is committed to it then is
        gone as soon as it is closed; StoreIOError, PermissionDenied if that can't be told."""
        found = 0
        with typed_errors(self.path), contextlib.suppress(FileNotFoundError):
            found = self._inode_in_place()
        if found != self._inode:
            raise StoreNotFound(
                errno.ENOENT,
                f"the index {self.path} was removed while it was in use: make it anew (castore "
                "index rebuild), or restore it from a backup (castore restore)",
            )

    def _was_replaced(self) -> bool:
        """Whether there is another index in its place, as a rebuild or a restore puts it there, and
        what is open is of the past. Who made it had the store alone, but for readers without a
        lock. Where there is none, as between two renames, what is open is as good as ever."""
        if not isinstance(self._env, UnlockedEnvironment):
            return False
        try:
            return self._inode_in_place() != self._inode
        except OSError:
            return False

    def _inode_in_place(self) -> int:
        return os.stat(data_path(self.path)).st_ino

    def _adopt_map(self) -> None:
        """Open the environment again, with the larger map that another process gave it."""
        with self.write_gate, self.gate:
            self._reopen()

    def stat_bytes(self) -> int:
        """Bytes of the index in use (not its sparse map)."""
        path = data_path(self.path)
        with typed_errors(path), descriptor(path) as fd:
            meta = newest_meta(fd, self.path, os.fstat(fd).st_size)
        return (meta.last_page + 1) * meta.page_bytes

    def copy_to(self, fd: int) -> None:
        """Write a copy of the environment as of now to a descriptor: LMDB's own, which is compact,
        or, where it is read without a lock, of all pages as they are. Holds up every reader of this
        process until it is done: meant for a process of its own."""
        with self.gate:
            if self._pid != os.getpid():
                self._open_again()
            env = self._env
            if isinstance(env, UnlockedEnvironment):
                txn = env.begin()
                with typed_errors(self.path), Snapshot(txn, self.path, env.last_transaction):
                    env.copy(txn, fd)
                return
            try:
                self._lmdb().copyfd(fd, True)
            except lmdb.Error as error:
                raise typed(error, self.path) from error

    def _check_readers(self, env: lmdb.Environment) -> None:
        """Let go of the snapshots of processes that were killed: while one is kept, no page that is
        freed is used again, and the index grows with every commit."""
        now = time.monotonic()
        if now - self._readers_checked >= READER_CHECK_S:
            self._readers_checked = now
            env.reader_check()

    # ------------------------------------------------------------ opening

    def _open(self) -> None:
        take_standard_descriptors()
        self.lock_free = self._never_lock or not can_lock(self.path)
        self.writable = not self.lock_free and os.access(self.path, os.W_OK)
        try:
            is_new = make_fit(self.path, writable=self.writable)
            env = UnlockedEnvironment(self.path) if self.lock_free else self._open_lmdb()
        except CastoreError:  # it says all already
            raise
        except OSError as error:
            raise typed(error, self.path) from error
        try:
            self._find_tables(env)
            with typed_errors(self.path):
                if is_new:
                    sync_folder(self.path)  # LMDB syncs its files, not that they are there
                if isinstance(env, UnlockedEnvironment):
                    self._inode = env.inode()
                else:
                    self._inode = self._inode_in_place()
        except BaseException:
            env.close()
            raise
        self._env = env
        self._pid = os.getpid()

    def _open_lmdb(self) -> lmdb.Environment:
        map_bytes = MAP_BYTES if len(_registry) < LARGE_MAPS_MAX else MAP_BYTES_OF_MANY
        while True:
            try:
                return lmdb.open(
                    os.fsencode(self.path),
                    map_size=map_bytes,
                    max_dbs=len(self._tables),
                    max_readers=READERS_MAX,
                    max_spare_txns=0,
                    sync=self._sync,
                    mode=0o600,
                    readonly=not self.writable,
                    lib_version=0,
                )
            except (lmdb.Error, OSError, MemoryError) as error:
                # An address-space limit (ulimit -v): a smaller map still serves most stores.
                no_room = isinstance(error, (lmdb.MemoryError, MemoryError))
                if not no_room and code_of(error) != errno.ENOMEM:
                    raise typed(error, self.path) from error
                if map_bytes <= MAP_BYTES_LEAST:
                    raise StoreIOError(
                        f"no address space for the index {self.path}: raise ulimit -v", errno.ENOMEM
                    ) from error
                map_bytes >>= 1

    def _find_tables(self, env: lmdb.Environment | UnlockedEnvironment) -> None:
        if isinstance(env, UnlockedEnvironment):
            repeated(lambda: self._look_for_tables(env))
            return
        try:
            if self.writable:
                env.reader_check()
            for table in self._tables:
                setattr(self, table.decode(), env.open_db(table, create=self._create))
        except lmdb.NotFoundError as error:
            raise IndexCorrupt(
                f"the index {self.path} is another program's, or not whole: restore it from a "
                "backup (castore restore)"
            ) from error
        except lmdb.Error as error:
            raise typed(error, self.path) from error

    def _look_for_tables(self, env: UnlockedEnvironment) -> None:
        with Snapshot(env.begin(), self.path, env.last_transaction) as txn:
            for table in self._tables:
                txn.stat(table)
                setattr(self, table.decode(), table)

    def _reopen(self) -> None:
        env, self._env = self._env, None
        self._pid = 0  # until it is open: whoever comes next tries again
        if env is not None:
            env.close()
        self._open()

    def _open_again(self) -> None:
        """In a forked child, or after a reopening that failed for a passing reason."""
        with self._reopening:
            if self._references <= 0:
                raise StoreClosed(f"the store of the index {self.path} is closed: open it again")
            if self._pid != os.getpid():
                self._reopen()

    def commit_failed(self, error: Exception) -> CastoreError:
        """What to raise for a commit that raised `error`, after reopening the environment, with
        which readers of this process go on."""
        try:
            with self.gate:
                self._reopen()
                landed = self._lmdb().info()["last_txnid"] > self._before
        except (CastoreError, lmdb.Error) as reopening:
            return CommitUnknown(
                f"the commit failed ({error}), and the index does not reopen ({reopening}): "
                "whether it landed is unknown"
            )
        if landed:
            return CommitUnknown(
                f"the commit failed ({error}) and may have landed all the same: look before you "
                "repeat it"
            )
        return typed(error, self.path)

    # ------------------------------------------------------------ references and forks

    def close(self) -> None:
        # Closed before another thread can find no Index here and open the environment again.
        with _registry_lock:
            self._references -= 1
            if self._references > 0:
                return
            for key in [key for key, index in _registry.items() if index is self]:
                del _registry[key]
            with self.write_gate, self.gate:
                env, self._env = self._env, None
                if env is not None and self._pid == os.getpid():
                    env.close()
                self._pid = 0

    def flush(self) -> None:
        """Make an index without `sync` durable as it is now."""
        with self.write_gate:
            if self._env is not None and self._pid == os.getpid():
                self._lmdb().sync(True)

    def after_fork_in_child(self) -> None:
        env, self._env = self._env, None
        self._pid = 0  # opened again on the next use
        if env is not None:
            env.close()  # frees no slot of the parent: it has no transaction open


class _Errors:
    """A context that makes LMDB's errors ours."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, lmdb.Error):
            if str(error).startswith("mdb_txn_commit"):
                raise self._index.commit_failed(error) from error
            raise typed(error, self._index.path) from error


# ---------------------------------------------------------------- the registry

_registry: dict[tuple[int, int], Index] = {}
_registry_lock = ForkLock(Rank.INDEXES)


def open_index(
    path: str,
    tables: tuple[bytes, ...] = TABLES,
    *,
    sync: bool = True,
    create: bool = True,
    lock_free: bool = False,
) -> Index:
    """The process's one Index on the directory `path`, made if it is not there and `create` is
    true. Without `sync` (for what can be lost) it may be damaged by a crash of the machine, though
    not by one of the process. With `lock_free` no byte of it is touched, as long as nobody in this
    process opens it without."""
    if create:
        make_durable_folder(path)
    status = os.stat(path)
    key = (status.st_dev, status.st_ino)
    with _registry_lock:
        index = _registry.get(key)
        if index is not None:
            if not lock_free:
                index.take_locks()
            index._references += 1
            return index
        index = _registry[key] = Index(path, tables, sync=sync, create=create, lock_free=lock_free)
        return index


def index_folders() -> list[str]:
    """The directories of the indexes that this process has open."""
    return [index.path for index in list(_registry.values())]
