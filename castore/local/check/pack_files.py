"""The pack files of a local store: which there are, what is in them, whose they are."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from castore.check.packs import file_reader
from castore.local import pack_files as files
from castore.system.workers import Workers


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


class LocalPackSource:
    """The packs of the store in the folder `root`, as a check reads them."""

    put_whole = False
    requests: Workers | None = None
    gone = ()  # what is open can be read to its end

    def __init__(self, root: str) -> None:
        self.root = root

    def packs(self) -> dict[bytes, int]:
        listed = files.list_packs(os.path.join(self.root, "packs"))
        return {pack_id: size_of(path) for pack_id, path in listed}

    def reader(self, pack_id: bytes) -> PackFile | None:
        try:
            return PackFile(pack_path(self.root, pack_id))
        except FileNotFoundError:
            return None


class PackFile:
    """A pack's file, open for as long as somebody may read it."""

    def __init__(self, path: str) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):  # a folder, say, in its place
            raise FileNotFoundError(errno.ENOENT, "there is no pack file", path)
        self._read = file_reader(self.fd)

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self, begin: int, end: int) -> bytes:
        return self._read(begin, end)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
