"""A tree as a mount, through libfuse.

Others write to the store too, so the kernel is told to trust no size for longer than one request:
whoever opens a name, or asks for its attributes, asks us. That there is something with the name it
may believe for a second, so that it does not ask for each folder on the way to a file, again and
again; where that is wrong it is told to look again, see `View`. The pages of files it keeps, for as
long as `Pages` says that they are of the version that is opened.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from typing import Any

from castore.mount.callers import Caller, caller_of, has_open
from castore.mount.draft import Attributes
from castore.mount.errnos import errno_of, fail, is_foreseen
from castore.mount.handles import Drafting, Handle
from castore.mount.library import mfusepy
from castore.mount.mounts import device_at
from castore.mount.pages import ASIDE
from castore.mount.tree import Tree
from castore.mount.view import Entry

log = logging.getLogger("castore.mount")

NAMES_S = 1.0
BLOCK_BYTES = 128 << 10  # what programs read and write at once, if they go by it
READ_AHEAD_BYTES = 1 << 20
SECTOR_BYTES = 512
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_AUTO_INVAL_DATA = 1 << 12
_OPTIONS = {"subtype": "castore"}


def run(tree: Tree, folder: str, *, on_mounted: Callable[[], None]) -> bool:
    """Serve the tree at the folder, until it is unmounted (True), or a signal ends it (False).

    In the main thread; `on_mounted` is called once the mount is there. Raises RuntimeError where
    nothing can be mounted there, after libfuse wrote to stderr why.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)  # then libfuse handles it
    operations = _Operations(tree, folder, on_mounted)
    try:
        _Fuse(
            operations,
            folder,
            raw_fi=True,
            foreground=True,
            fsname=f"castore-{os.getpid()}",
            # By its modes. Root may do all anyway, and to ask for those of each folder on the way
            # to a file would be half of all requests.
            default_permissions=os.geteuid() != 0,
            **_OPTIONS,
        )
    except RuntimeError:
        if not operations.is_mounted:
            raise
        return False
    return True


class _Operations:
    """What libfuse asks for. What is not here it answers itself: ENOSYS, which the kernel takes for
    EOPNOTSUPP where there is an attribute, a lock or a hole to ask for."""

    use_ns = True
    flag_nopath = flag_nullpath_ok = True  # of a file that is open and has no path any more

    def __init__(self, tree: Tree, folder: str, on_mounted: Callable[[], None]) -> None:
        self._mounted_at = folder
        self.is_mounted = False
        self._is_wide = False
        self._tree = tree
        self._on_mounted = on_mounted
        self._handles: dict[int, Handle] = {}
        self._folders: dict[int, str] = {}  # the paths of those that are being read
        self._numbers = itertools.count(1)
        self._uid, self._gid = os.getuid(), os.getgid()
        tree.pages.set_aside = self._set_aside

    def init_with_config(self, conn: Any, config: Any) -> None:
        conn.want &= ~_AUTO_INVAL_DATA
        config.entry_timeout, config.attr_timeout, config.negative_timeout = NAMES_S, 0.0, 0.0
        # Else a file that is deleted or replaced while it is open is renamed first: a name would be
        # gone for a moment, and come back.
        config.hard_remove = 1
        self.is_mounted = True
        self._on_mounted()

    # ------------------------------------------------------------ what is there

    def getattr(self, path: str | None, fi: Any) -> dict[str, int]:
        handle = None if fi is None else self._handles.get(fi.fh)
        if path is None and handle is None:
            fail(errno.ENOENT)
        return self._stat(self._tree.getattr(path or "", handle, self._reader(path or "")))

    def opendir(self, path: str) -> int:
        self._tree.getattr(path, None, self._reader(path))  # it may be gone by now
        number = next(self._numbers)
        self._folders[number] = path
        return number

    def releasedir(self, path: str | None, fh: int) -> int:
        del self._folders[fh]
        return 0

    def readdir(self, path: str | None, fh: int) -> list[tuple[str, int, int]]:
        entries = [Entry(".", True), Entry("..", True), *self._tree.readdir(self._folders[fh])]
        return [
            (name, stat.S_IFDIR if is_folder else stat.S_IFREG, 0) for name, is_folder in entries
        ]

    def statfs(self, path: str) -> dict[str, int]:
        return self._tree.statfs()

    # ------------------------------------------------------------ files

    def open(self, path: str, fi: Any) -> int:
        is_read = fi.flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDONLY
        caller = self._reader(path) if is_read else self._caller()
        return self._opened(self._tree.open(path, fi.flags, caller), fi)

    def create(self, path: str, mode: int, fi: Any) -> int:
        return self._opened(self._tree.create(path, mode, fi.flags, self._caller()), fi)

    def read(self, target: memoryview, offset: int, fi: Any) -> int:
        return self._handles[fi.fh].read_into(offset, target)

    def write(self, data: memoryview, offset: int, fi: Any) -> int:
        return self._handles[fi.fh].write(offset, data)

    def truncate(self, path: str | None, size: int, fi: Any) -> int:
        handle = None if fi is None else self._handles[fi.fh]
        self._tree.truncate(path or "", size, handle, self._caller())
        return 0

    def flush(self, path: str | None, fi: Any) -> int:
        handle = self._handles[fi.fh]
        if not isinstance(handle, Drafting):
            return 0
        caller = self._caller()
        if caller.process == handle.draft.process:
            if caller.is_changing:  # it may keep a duplicate; if not, the file's release comes next
                return 0
            path = self._mounted_at + self._tree.path_of(handle.draft)
            if has_open(caller.process, path):  # only a duplicate was closed
                return 0
        self._tree.flush(handle, caller)
        return 0

    def fsync(self, path: str | None, datasync: int, fi: Any) -> int:
        self._tree.fsync(self._handles[fi.fh])
        return 0

    def release(self, path: str | None, fi: Any) -> int:
        self._tree.release(self._handles.pop(fi.fh))
        return 0

    # ------------------------------------------------------------ names

    def unlink(self, path: str) -> int:
        self._tree.unlink(path)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self._tree.mkdir(path, mode)
        return 0

    def rmdir(self, path: str) -> int:
        self._tree.rmdir(path)
        return 0

    def rename(self, old: str, new: str, flags: int) -> int:
        self._tree.rename(old, new, flags)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        self._tree.chmod(path, mode, self._caller())
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None) -> int:
        mtime_ns = UTIME_NOW if times is None else times[1]
        if mtime_ns != UTIME_OMIT:
            mtime_ns = time.time_ns() if mtime_ns == UTIME_NOW else mtime_ns
            self._tree.utimens(path, mtime_ns, self._caller())
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        """All that is here belongs to who mounted it."""
        if uid not in (-1, self._uid) or gid not in (-1, self._gid):
            fail(errno.EOPNOTSUPP)
        return 0

    def mknod(self, path: str, mode: int, device: int) -> int:
        fail(errno.EOPNOTSUPP)

    def link(self, target: str, source: str) -> int:
        fail(errno.EOPNOTSUPP)

    def symlink(self, target: str, source: str) -> int:
        fail(errno.EOPNOTSUPP)

    # ------------------------------------------------------------ parts of these

    def _opened(self, handle: Handle, fi: Any) -> int:
        if not self._is_wide:  # not before the kernel has our answer to its first request
            self._is_wide = True
            _read_ahead(self._mounted_at)
        fi.fh = next(self._numbers)
        fi.direct_io = handle.past_pages
        fi.keep_cache = handle.keeps_pages
        # Else a close waits for the lock of the file, which whoever moves it aside has.
        fi.noflush = not isinstance(handle, Drafting)
        self._handles[fi.fh] = handle
        return 0

    def _stat(self, found: Attributes) -> dict[str, int]:
        kind = stat.S_IFDIR if found.is_folder else stat.S_IFREG
        return {
            "st_mode": kind | found.mode,
            "st_nlink": 1,  # of a folder: what is in it was not counted
            "st_uid": self._uid,
            "st_gid": self._gid,
            "st_size": found.size,
            "st_blocks": -(-found.size // SECTOR_BYTES),
            "st_blksize": BLOCK_BYTES,
            "st_mtime": found.mtime_ns,
            "st_ctime": found.mtime_ns,
            "st_atime": found.mtime_ns,
        }

    def _set_aside(self, path: str, aside: str, done: Callable[[], None]) -> None:
        """Through the mount itself, so that the kernel and libfuse know. On a thread of its own:
        libfuse renames nothing while a request about it is answered."""

        def move() -> None:
            try:
                os.rename(self._mounted_at + path, self._mounted_at + aside)
            except OSError as error:  # it is deleted, or moved by somebody else, just now
                log.debug("%s stays where it is: %s", path, error)
            finally:
                done()

        threading.Thread(target=move, daemon=True).start()

    def _reader(self, path: str) -> Caller:
        """Who asks to read. Which process that is matters to little, and takes as long to find out
        as all the rest."""
        if self._tree.is_written or path.startswith(ASIDE):
            return self._caller()
        return Caller(0, False, mfusepy.fuse_get_context()[2])

    def _caller(self) -> Caller:
        return caller_of(mfusepy.fuse_get_context()[2])


class _Fuse(mfusepy.FUSE):  # type: ignore[misc]  # it has no types
    """mfusepy's, with what it leaves out (the flags of a rename) and without what it copies: data
    goes from the kernel's buffer and into it."""

    def read(self, path: bytes | None, buffer: Any, size: int, offset: int, fip: Any) -> int:
        with _view(buffer, size) as target:
            return self.operations.read(target, offset, fip.contents)  # type: ignore[no-any-return]

    def write(self, path: bytes | None, buffer: Any, size: int, offset: int, fip: Any) -> int:
        with _view(buffer, size) as data:
            return self.operations.write(data, offset, fip.contents)  # type: ignore[no-any-return]

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        self.operations.rename(self._text(old), self._text(new), flags)
        return 0

    def truncate_fuse_3(self, path: bytes | None, size: int, fip: Any) -> int:
        fi = fip.contents if fip else None
        self.operations.truncate(None if path is None else self._text(path), size, fi)
        return 0

    def _text(self, path: bytes) -> str:
        return path.decode(self.encoding, self.errors)

    def _wrapper(self, function: Callable[..., int | None], *args: Any) -> int:
        """Every answer: what is raised becomes its number."""
        try:
            return function(*args) or 0
        except BaseException as error:
            if not is_foreseen(error):
                log.error("%s failed", function.__name__, exc_info=True)
            return -errno_of(error)


def _read_ahead(folder: str) -> None:
    """Have the kernel read more at once than the 128 KiB that it does by itself: each request costs
    two switches between processes. Only root may say so."""
    device = device_at(folder)
    with contextlib.suppress(OSError), open(f"/sys/class/bdi/{device}/read_ahead_kb", "w") as file:
        file.write(str(READ_AHEAD_BYTES >> 10))


def _view(buffer: Any, size: int) -> memoryview:
    address = ctypes.cast(buffer, ctypes.c_void_p).value or 0
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")
