"""Files that are open through a mount: what reads a published object, and what uses a draft."""

from __future__ import annotations

import errno
import time

import castore
from castore.mount.callers import Caller
from castore.mount.draft import Attributes, Draft
from castore.mount.errnos import fail
from castore.mount.pages import Opened
from castore.system.locks import Lock


class Handle:
    """An open file. `past_pages`: it is read and written past the kernel's pages; `keeps_pages`:
    the pages that the kernel has are of what it reads."""

    past_pages = True
    keeps_pages = False

    @property
    def attributes(self) -> Attributes:
        raise NotImplementedError

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill `target` from `offset`; the bytes read, fewer only at the end of the file."""
        raise NotImplementedError

    def write(self, offset: int, data: memoryview | bytes) -> int:
        fail(errno.EBADF)

    def truncate(self, size: int) -> None:
        fail(errno.EBADF)

    def flush(self, caller: Caller) -> None:
        """One of the descriptors was closed: by the program, or by its end."""

    def fsync(self) -> None:
        """What was written is durable, and published, when it returns."""


class Reading(Handle):
    """One version of an object, to its end."""

    def __init__(self, reader: castore.ObjectReader, opened: Opened) -> None:
        self.opened = opened
        self.past_pages = opened.held is None
        self.keeps_pages = opened.keeps_pages
        self._reader = reader
        self._lock = Lock()

    @property
    def attributes(self) -> Attributes:
        info = self._reader.info
        return Attributes(False, info.mode, info.size, info.mtime_ns)

    def read_into(self, offset: int, target: memoryview) -> int:
        done = 0
        if self.opened.held is not None:
            self.opened.held.is_used = True
        with self._lock:
            self._reader.seek(offset)
            while done < len(target):
                read = self._reader.readinto(target[done:])
                if not read:
                    break
                done += read
        return done

    def close(self) -> None:
        with self._lock:
            self._reader.close()


class Drafting(Handle):
    """A file that is being written, open to write it or to see it.

    `flush` publishes for the process that opened it, so that its `close` fails if that does. When
    another one closes it, as a shell's children do with the output that they were given, it is
    still open. Nothing is published for a process that was killed.
    """

    def __init__(self, draft: Draft, *, writes: bool, appends: bool = False) -> None:
        """`appends`: whatever is written through this one is written at the end."""
        self.draft = draft
        self.writes = writes
        self.appends = appends
        draft.handles += 1

    @property
    def attributes(self) -> Attributes:
        return self.draft.attributes

    def read_into(self, offset: int, target: memoryview) -> int:
        return self.draft.read_into(offset, target)

    def write(self, offset: int, data: memoryview | bytes) -> int:
        if not self.writes:
            return super().write(offset, data)
        return self.draft.write(None if self.appends else offset, data)

    def truncate(self, size: int) -> None:
        if self.writes:
            self.draft.truncate(size)
        else:
            super().truncate(size)

    def flush(self, caller: Caller) -> None:
        draft = self.draft
        if not self.writes:
            return
        if caller.is_killed:
            draft.lost = True
            return
        draft.lost = False
        if caller.process == draft.process:
            if draft.changed:
                draft.publish()
            draft.closed, draft.closed_at = True, time.monotonic()

    def fsync(self) -> None:
        if self.writes and not self.draft.is_settled:
            self.draft.publish()
