"""Files that are open to be locked (`flock`).

A signal handler that raises (Ctrl-C, a soft time limit) does so between any two instructions, also
between `os.open` and whoever keeps the number, and as the first of an `__exit__`: the lock would be
held until the process ends. A file object of C's is opened and closed in one step each, by its
`with` and when nobody refers to it any more.
"""

from __future__ import annotations

import fcntl
import io
import os
from contextlib import suppress

from castore.system.fileio import status_of, take_standard_descriptors


class LockFile(io.FileIO):
    """The file at `path`, opened with `flags` (O_CLOEXEC is added), for the owner alone if that
    makes it. Who forks closes it in the child: the lock is the parent's. Raises OSError."""

    def __init__(self, path: str, flags: int) -> None:
        def opener(path: str, _: int) -> int:
            return os.open(path, flags | os.O_CLOEXEC, 0o600)

        take_standard_descriptors()
        super().__init__(path, "r+", opener=opener)
        try:
            self._is = _file_at(self.fileno())
        except BaseException:  # its traceback keeps the file
            self.close()
            raise

    def take(self) -> bool:
        """Lock it for us alone; False if somebody has it locked. Raises OSError."""
        try:
            fcntl.flock(self, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self) -> None:
        """Before it is closed, where a child that was forked just now may not have let go of its
        copy yet."""
        fcntl.flock(self, fcntl.LOCK_UN)

    def keep_to_the_end(self) -> None:
        """Close it, and let nobody have the lock before the process has ended."""
        with suppress(OSError):
            os.dup(self.fileno())  # of the same open file, and nobody closes it
        self.close_unless_replaced()

    def close_unless_replaced(self) -> None:
        """Close it, unless its number is another file's by now: a process that becomes a daemon
        closes all descriptors that there are. Idempotent."""
        if self.closed or self._may_be_ours():
            self.close()
            return
        import ctypes

        # As its end would close that number: it has none.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))

    def _may_be_ours(self) -> bool:
        """Also where the system does not tell: else the lock would be held until the process ends,
        and a number that is another file's by now is rarer."""
        try:
            return _file_at(self.fileno()) == self._is
        except OSError:
            return True


def _file_at(fd: int) -> tuple[int, int] | None:
    """Which file it is; None if it is not open. Raises OSError."""
    status = status_of(fd)
    return None if status is None else (status.st_dev, status.st_ino)
