"""The files of an LMDB environment, as castore looks at them without LMDB."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys

from castore.errors import StoreIOError
from castore.system.fileio import descriptor
from castore.system.lmdb_errors import free_bytes, full
from castore.system.lmdb_pages import check_length

NEW_INDEX_BYTES = 512 << 10
LOCK_FILE_BYTES = 65_664  # what LMDB takes for READERS_MAX readers
_FLOCK = "hhqqi"  # Linux's struct flock


def data_path(path: str) -> str:
    return os.path.join(path, "data.mdb")


def _lock_path(path: str) -> str:
    return os.path.join(path, "lock.mdb")


def can_lock(path: str) -> bool:
    """Whether LMDB's readers can be counted in the index `path`: its lock file can be written."""
    lock = _lock_path(path)
    return os.access(lock if os.path.exists(lock) else path, os.R_OK | os.W_OK)


def is_in_use(path: str) -> bool:
    """Whether any process has the index `path` open, readers without a lock apart. Not to be asked
    where this one does: to close the lock file would drop LMDB's lock."""
    if sys.platform != "linux":
        return True
    try:
        with descriptor(_lock_path(path)) as fd:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
            found = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    except FileNotFoundError:
        return False
    return bool(found[0] != fcntl.F_UNLCK)


def make_fit(path: str, *, writable: bool) -> bool:
    """See to it that LMDB can open the index `path`; whether it is a new one. Raises StoreFull
    where there is no room for that; StoreIOError, IndexCorrupt, OSError."""
    is_new = not os.path.exists(data_path(path))
    if is_new and free_bytes(path) < NEW_INDEX_BYTES:
        raise full(path)
    for file in (data_path(path), _lock_path(path)):
        if os.path.islink(file):
            raise StoreIOError(f"{file} is a symbolic link: it may lead anywhere")
    if writable:
        _allocate_lock_file(path)
    if not is_new:
        check_length(path)
    return is_new


def _allocate_lock_file(path: str) -> None:
    """Have lock.mdb in full on the disk before LMDB maps it: what it writes through the map to a
    hole of the file, on a disk that is full, ends the process (SIGBUS). Before this process has the
    environment open, as to close the file would drop LMDB's lock."""
    fd = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_blocks * 512 < LOCK_FILE_BYTES and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, LOCK_FILE_BYTES)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full(path) from error
        # A file system that can't: it is made as it ever was.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV):
            raise StoreIOError(f"{path}: {error.strerror}", error.errno or errno.EIO) from error
    finally:
        os.close(fd)
