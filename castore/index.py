"""The LMDB environment of a store: the only file that knows lmdb.

The rules that bite, each kept here:

- One environment per path per process, shared through a registry keyed by device and inode.
- A forked child closes the environment that it inherited and opens its own. Closing ends any
  transaction that was open at the fork, and that frees the *parent's* reader slot: so a fork waits
  for the transactions of all threads, each of which is short, and none is kept in reserve
  (`max_spare_txns=0`). The pid is checked on every transaction, for forks that ran no hooks.
- `lib_version=0` pins the file format to LMDB 0.9's; the map is huge and sparse from the start.
- A commit that fails has an unknown outcome: the environment is reopened and the transaction ids
  compared, so that the error can say whether it may have landed. It is never acknowledged.
"""

from __future__ import annotations

import errno
import os
import threading
from types import TracebackType
from typing import Any, Literal, TypeAlias

import lmdb

from castore import forks
from castore.errors import (
    CastoreError,
    CommitUnknown,
    IndexCorrupt,
    ReadOnlyStore,
    StoreClosed,
    StoreFull,
    StoreIOError,
    StoreLocked,
)
from castore.fileio import make_durable_folder, sync_folder
from castore.forks import ForkLock, Rank

MAP_BYTES = 1 << 40
MAP_BYTES_LEAST = 1 << 28
READERS_MAX = 1024
TABLES = (b"names", b"segments", b"chunks", b"packs", b"pending", b"changes", b"meta")

Txn: TypeAlias = "lmdb.Transaction[bytes]"
Table: TypeAlias = Any  # lmdb's own class of it is private


class Index:
    """One environment and its tables. `close` it as often as it was opened."""

    names: Table
    segments: Table
    chunks: Table
    packs: Table
    pending: Table
    changes: Table
    meta: Table

    def __init__(self, path: str) -> None:
        self.path = path
        self._references = 1
        self._env: lmdb.Environment | None = None
        self._pid = 0
        # Held around every transaction of this process, so that a fork finds none open.
        self._read_gate = ForkLock(Rank.READ_GATE)
        self._write_gate = ForkLock(Rank.WRITE_GATE)
        self._reopening = threading.Lock()
        self.writable = True
        self._open()
        forks.register(self, Rank.LEAF)

    # ------------------------------------------------------------ transactions

    def read(self) -> _Read:
        """`with index.read() as txn`: a snapshot. Keep it short, and leave with copies."""
        return _Read(self)

    def write(self) -> _Write:
        """`with index.write() as txn`: committed with a sync at the end, aborted on any error."""
        return _Write(self)

    def begin(self, *, write: bool) -> Txn:
        if self._pid != os.getpid():
            self._reopen_in_child()
        env = self._env
        if env is None:
            raise StoreClosed("the store is closed")
        try:
            return env.begin(write=write)
        except lmdb.MapResizedError:
            # Another process opened it with a larger map; adopting its size needs a quiet
            # environment, and the gate that the caller holds makes it quiet.
            env.set_mapsize(0)
            return env.begin(write=write)
        except lmdb.ReadonlyError as error:
            raise ReadOnlyStore(f"the index {self.path} can't be written here") from error
        except lmdb.Error as error:
            raise typed(error, self.path) from error

    def stat_bytes(self) -> int:
        """Bytes of the index in use (not its sparse map)."""
        env = self._env
        if env is None:
            raise StoreClosed("the store is closed")
        return int(env.info()["last_pgno"] + 1) * int(env.stat()["psize"])

    # ------------------------------------------------------------ opening

    def _open(self) -> None:
        map_bytes = MAP_BYTES
        self.writable = os.access(self.path, os.W_OK)
        is_new = not os.path.exists(os.path.join(self.path, "data.mdb"))
        while True:
            try:
                env = lmdb.open(
                    self.path,
                    map_size=map_bytes,
                    max_dbs=len(TABLES),
                    max_readers=READERS_MAX,
                    max_spare_txns=0,
                    mode=0o600,
                    readonly=not self.writable,
                    lib_version=0,
                )
                break
            except (lmdb.MemoryError, MemoryError):
                # An address-space limit (ulimit -v): a smaller map still serves most stores.
                if map_bytes <= MAP_BYTES_LEAST:
                    raise StoreIOError(
                        f"no address space for a map of {map_bytes >> 20} MiB: raise ulimit -v",
                        errno.ENOMEM,
                    ) from None
                map_bytes >>= 1
            except lmdb.Error as error:
                if _code(error) == errno.ENOMEM and map_bytes > MAP_BYTES_LEAST:
                    map_bytes >>= 1
                    continue
                raise typed(error, self.path) from error
        try:
            if self.writable:
                env.reader_check()
            for table in TABLES:
                setattr(self, table.decode(), env.open_db(table, create=self.writable))
        except lmdb.Error as error:
            env.close()
            raise typed(error, self.path) from error
        if is_new:
            sync_folder(self.path)  # LMDB syncs its files, not that they are there
        self._env = env
        self._pid = os.getpid()

    def _reopen(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            env.close()
        self._open()

    def _reopen_in_child(self) -> None:
        # Also after a fork from C, which ran no hooks: then the inherited environment is still
        # there to be closed.
        with self._reopening:
            if self._references <= 0:
                raise StoreClosed("the store is closed")
            if self._pid != os.getpid():
                self._reopen()

    def commit_failed(self, txn_id: int, error: Exception) -> CastoreError:
        """What to raise for a commit that raised `error`, after reopening the environment."""
        try:
            self._reopen()
            assert self._env is not None
            landed = self._env.info()["last_txnid"] >= txn_id
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
            with self._write_gate, self._read_gate:
                env, self._env = self._env, None
                if env is not None and self._pid == os.getpid():
                    env.close()

    def before_fork(self) -> None:
        """Its gates, which are held by now, are what there is to wait for."""

    def after_fork_in_parent(self) -> None:
        """Nothing was stopped but by the gates."""

    def after_fork_in_child(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            env.close()  # frees no slot of the parent: it has no transaction open
        self._pid = 0  # opened again on the next use
        self._reopening = threading.Lock()


class _Read:
    __slots__ = ("_gate", "_index", "_txn")

    def __init__(self, index: Index) -> None:
        self._index = index

    def __enter__(self) -> Txn:
        gate = self._gate = self._index._read_gate
        gate.acquire()
        try:
            self._txn = txn = self._index.begin(write=False)
        except BaseException:
            gate.release()
            raise
        return txn

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        try:
            self._txn.abort()
        finally:
            self._gate.release()
        if isinstance(error, lmdb.Error):
            raise typed(error, self._index.path) from error
        return False


class _Write:
    __slots__ = ("_gate", "_index", "_txn")

    def __init__(self, index: Index) -> None:
        self._index = index

    def __enter__(self) -> Txn:
        gate = self._gate = self._index._write_gate
        gate.acquire()
        try:
            self._txn = self._index.begin(write=True)
        except BaseException:
            gate.release()
            raise
        return self._txn

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        try:
            if error is not None:
                self._txn.abort()
                if isinstance(error, lmdb.Error):
                    raise typed(error, self._index.path) from error
                return False
            txn_id = self._txn.id()
            try:
                self._txn.commit()
            except lmdb.Error as failure:
                # Readers of this process go on with the reopened environment.
                with self._index._read_gate:
                    raised = self._index.commit_failed(txn_id, failure)
                raise raised from failure
        finally:
            self._gate.release()
        return False


# ---------------------------------------------------------------- the registry

_registry: dict[tuple[int, int], Index] = {}
_registry_lock = ForkLock(Rank.INDEXES)


def open_index(path: str) -> Index:
    """The process's one Index on the directory `path`, which is made if it is not there."""
    make_durable_folder(path)
    status = os.stat(path)
    key = (status.st_dev, status.st_ino)
    with _registry_lock:
        index = _registry.get(key)
        if index is not None:
            index._references += 1
            return index
        index = _registry[key] = Index(path)
        return index


def _code(error: Exception) -> int:
    code = getattr(error, "code", 0)
    return code if isinstance(code, int) else 0


def typed(error: Exception, path: str) -> CastoreError:
    """The castore error that says what an lmdb error means for the user."""
    code = _code(error)
    if code == errno.ENOSPC or "No space left" in str(error):
        return StoreFull(f"no space left for the index {path}: free some and repeat")
    if isinstance(error, lmdb.MapFullError):
        return StoreFull(f"the index {path} has outgrown its map: raise ulimit -v and reopen")
    if isinstance(
        error,
        (
            lmdb.CorruptedError,
            lmdb.PageNotFoundError,
            lmdb.InvalidError,
            lmdb.VersionMismatchError,
            lmdb.PanicError,
        ),
    ):
        return IndexCorrupt(f"the index {path} is damaged ({error}): restore it from a backup")
    if isinstance(error, lmdb.ReadersFullError):
        return StoreLocked(
            errno.EAGAIN, f"more than {READERS_MAX} readers of {path} at once: close some"
        )
    if isinstance(error, lmdb.ReadonlyError) or code in (errno.EACCES, errno.EROFS, errno.EPERM):
        return ReadOnlyStore(errno.EACCES, f"no permission for the index {path}")
    return StoreIOError(f"the index {path} failed: {error}", code or errno.EIO)
