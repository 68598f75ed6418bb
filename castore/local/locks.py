"""The locks of packs, as a collector takes them.

A writer holds the lock of every pack that it made until what is in it is committed, so that who
gets one knows that nobody writes there. The collector takes them within its write transaction and
removes the files after it, still holding them.
"""

from __future__ import annotations

import os
import resource
import stat
from contextlib import suppress

from castore.errors import StoreBusy
from castore.local.packs import LocalPacks
from castore.system import forks
from castore.system.fileio import adopt, storage_error, typed_errors
from castore.system.lockfile import LockFile

FILES_ELSE = 256  # that a repair has open besides


class PackLocks:
    """Packs that are locked by us. Use it as a context: at the end all are let go."""

    def __init__(self, packs: LocalPacks) -> None:
        self._packs = packs
        self._files: dict[bytes, LockFile] = {}
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
            file = LockFile(path, os.O_RDONLY | os.O_NOFOLLOW)
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            raise storage_error(error, path) from error
        try:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            if not file.take():
                return False
            self._files[pack_id] = file
            return True
        except OSError as error:
            raise storage_error(error, path) from error
        finally:
            if self._files.get(pack_id) is not file:
                file.close()

    def remove(self) -> int:
        """Remove the files that are locked; how many bytes they had. Only after the transaction
        that took their rows is committed."""
        freed = 0
        for pack_id, file in list(self._files.items()):
            path = self._packs.path(pack_id)
            with typed_errors(path):
                size = os.fstat(file.fileno()).st_size
                # Somebody else removes our files: gone is gone.
                with suppress(FileNotFoundError):
                    os.unlink(path)
                    freed += size
            self._packs.unmap(pack_id)
            self._let_go(pack_id)
        return freed

    def __enter__(self) -> PackLocks:
        return self

    def __exit__(self, *_: object) -> None:
        for pack_id in list(self._files):
            self._let_go(pack_id)

    def _let_go(self, pack_id: bytes) -> None:
        file = self._files.get(pack_id)
        if file is None:
            return
        if not file.closed:  # as where an interrupt came before the end of this
            file.unlock()
            file.close()
        self._files.pop(pack_id, None)

    def after_fork_in_child(self) -> None:
        # Else our locks would last as long as the child does. To unlock would unlock the parent's.
        for file in self._files.values():
            file.close()
        self._files.clear()


def make_room(count: int) -> None:
    """So many packs are to be locked at the same time, each of which takes a descriptor: raise what
    the system lets this process have, if need be, and it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or count + FILES_ELSE <= soft:
        return
    wanted = soft + count + FILES_ELSE
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))


class CollectorLock(LockFile):
    """One collector at a time: the file at `path` is locked while the `with` block runs. Raises
    StoreBusy."""

    def __init__(self, path: str) -> None:
        try:
            super().__init__(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
            forks.register(self)
            if not self.take():
                raise StoreBusy(f"{path} is locked: another collection is running; wait for it")
            adopt(self.fileno(), os.path.dirname(path), as_lock=True)
        except BaseException as error:  # an interrupt, too: its traceback keeps this
            self.close()
            if isinstance(error, OSError):
                raise storage_error(error, path) from error
            raise

    after_fork_in_child = LockFile.close
