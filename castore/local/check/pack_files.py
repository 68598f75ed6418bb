"""The pack files of a local store: which there are, what is in them, whose they are."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from castore.check.packs import PackReading, Read, file_reader, read_pack
from castore.format.pack import StoreConfig
from castore.local import pack_files as files


def pack_path(root: str, pack_id: bytes) -> str:
    """Of a pack of the store in the folder `root`."""
    return files.pack_path(os.path.join(root, "packs"), pack_id)


def is_locked(path: str) -> bool:
    """Whether the writer of the pack lives."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


class PackFile:
    """A pack's file, open for as long as somebody may read it."""

    def __init__(self, path: str) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):  # a folder, say, in its place
            raise FileNotFoundError(errno.ENOENT, "there is no pack file", path)
        self._read = file_reader(self.fd)

    def read(self, begin: int, end: int) -> bytes:
        return self._read(begin, end)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def open_pack(path: str, config: StoreConfig, pack_id: bytes) -> tuple[PackReading, Read] | None:
    """What the pack holds, and how to read it; None if it is gone. A pack that grows while it is
    read, as a living writer's does, is read again."""
    try:
        file = PackFile(path)
        while True:
            size = os.fstat(file.fd).st_size
            reading = read_pack(
                file.read, size, store_id=config.store_id, pack_id=pack_id, seed=config.seed
            )
            if not reading.damaged or os.fstat(file.fd).st_size == size:
                return reading, file.read
    except FileNotFoundError:
        return None
