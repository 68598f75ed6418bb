"""What LMDB's errors mean for a user: beside `lmdb_env` the only file that knows lmdb."""

from __future__ import annotations

import contextlib
import errno
import os

import lmdb

from castore.errors import (
    CastoreError,
    IndexCorrupt,
    PermissionDenied,
    ReadOnlyStore,
    StoreFull,
    StoreIOError,
    StoreLocked,
    index_lost,
)

LmdbError = lmdb.Error
READERS_MAX = 1024
DISK_FULL_BYTES = 4 << 20


def typed(error: Exception, path: str) -> CastoreError:
    """The castore error that says what an lmdb error means for the user."""
    code = code_of(error)
    is_full = code in (errno.ENOSPC, errno.EDQUOT)
    # LMDB says EIO where a write came out short, as the last one on a full disk does.
    if code == errno.EIO:
        with contextlib.suppress(OSError):
            is_full = free_bytes(path) < DISK_FULL_BYTES
    if is_full:
        return full(path)
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
            # What LMDB says of a page that is of another kind than its place in the tree.
            lmdb.BadTxnError,
            lmdb.BadDbiError,
            lmdb.BadValsizeError,
            lmdb.CursorFullError,
            lmdb.IncompatibleError,
            lmdb.PageFullError,
            lmdb.ProblemError,
        ),
    ):
        return damaged(path, str(error))
    if isinstance(error, lmdb.ReadersFullError):
        return StoreLocked(
            errno.EAGAIN, f"more than {READERS_MAX} readers of {path} at once: close some"
        )
    if isinstance(error, lmdb.ReadonlyError):
        return ReadOnlyStore(
            errno.EACCES, f"the index {path} can't be written here: is its disk read-only?"
        )
    if code in (errno.EACCES, errno.EROFS, errno.EPERM):
        return PermissionDenied(path)
    # LMDB's copy has a thread of its own, and EAGAIN is all it says where none can be started.
    if code in (errno.EAGAIN, errno.ENOMEM) or isinstance(error, lmdb.MemoryError):
        return StoreIOError(
            f"there is not enough memory, or are too many threads, for the index {path}: give it "
            "more (ulimit -v, ulimit -u)",
            errno.ENOMEM,
        )
    return StoreIOError(f"the index {path} failed: {error}", code or errno.EIO)


def damaged(path: str, reason: str) -> IndexCorrupt:
    """The error for an index that is not whole, with the ways out."""
    return index_lost(f"the index {path} is damaged ({reason})")


def full(path: str) -> StoreFull:
    return StoreFull(f"no space left for the index {path}: free some and repeat")


def free_bytes(path: str) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def code_of(error: Exception) -> int:
    code = error.errno if isinstance(error, OSError) else getattr(error, "code", 0)
    return code if isinstance(code, int) else 0
