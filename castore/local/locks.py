"""The locks of packs, as a collector takes them.

A writer holds the lock of every pack that it made until what is in it is committed, so that who
gets one knows that nobody writes there. The collector takes them within its write transaction and
removes the files after it, still holding them.
"""

from __future__ import annotations

import fcntl
import os
import stat

from castore.errors import StoreBusy
from castore.local.packs import LocalPacks
from castore.system import forks
from castore.system.fileio import adopt, storage_error


class PackLocks:
    """Packs that are locked by us. Use it as a context: at the end all are let go."""

    def __init__(self, packs: LocalPacks) -> None:
        self._packs = packs
        self._fds: dict[bytes, int] = {}
        forks.register(self)

    def is_held(self, pack_id: bytes) -> bool:
        """Whether a live writer has the pack; False if there is no file of it."""
        taken = self.take(pack_id)
        self._let_go(pack_id)
        return taken is False

    def take(self, pack_id: bytes) -> bool | None:
        """True when its lock is ours, False when it is a live writer's, None if there is no file
        of it. Raises StoreIOError, PermissionError."""
        path = self._packs.path(pack_id)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, path) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError as error:
            os.close(fd)
            raise storage_error(error, path) from error
        self._fds[pack_id] = fd
        return True

    def remove(self) -> int:
        """Remove the files that are locked; how many bytes they had. Only after the transaction
        that took their rows is committed."""
        freed = 0
        for pack_id, fd in list(self._fds.items()):
            size = os.fstat(fd).st_size
            path = self._packs.path(pack_id)
            try:
                os.unlink(path)
                freed += size
            except FileNotFoundError:
                pass  # somebody else removes our files: gone is gone
            except OSError as error:
                raise storage_error(error, path) from error
            self._packs.unmap(pack_id)
            self._let_go(pack_id)
        return freed

    def __enter__(self) -> PackLocks:
        return self

    def __exit__(self, *_: object) -> None:
        for pack_id in list(self._fds):
            self._let_go(pack_id)

    def _let_go(self, pack_id: bytes) -> None:
        fd = self._fds.pop(pack_id, None)
        if fd is not None:
            _unlock(fd)

    def after_fork_in_child(self) -> None:
        # Else our locks would last as long as the child does. To unlock would unlock the parent's.
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


class CollectorLock:
    """One collector at a time: the file is locked while the `with` block runs. Raises StoreBusy."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        forks.register(self)

    def __enter__(self) -> CollectorLock:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            adopt(self._fd, os.path.dirname(self._path), as_lock=True)
        except BaseException as error:  # an interrupt, too: nobody else could let it go
            self.__exit__()
            if isinstance(error, BlockingIOError):
                raise StoreBusy(
                    f"{self._path} is locked: another collection is running; wait for it"
                ) from None
            if isinstance(error, OSError):
                raise storage_error(error, self._path) from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _unlock(fd)

    __del__ = __exit__

    def after_fork_in_child(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _unlock(fd: int) -> None:
    """Also for a child that was forked just now and has not let go of its copy yet."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
