"""A file that is being written: what it begins as, and what was written over it."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from typing import NamedTuple

import castore
from castore.errors import NameExists, NameNotFound, ObjectChanged
from castore.system.locks import Lock

BLOCK_BYTES = 1 << 20
ENDS_S = 0.5  # by when most that are closed have ended


class Attributes(NamedTuple):
    """What `stat` tells of a file or a folder. `size` is in bytes, `mode` permission bits."""

    is_folder: bool
    mode: int
    size: int
    mtime_ns: int


class Draft:
    """One file being written, by whoever has it open; published under `name`, and as a whole.

    It begins as the object there is (`base`), whose bytes are read where they are until something
    is written over them: only then are they copied to the spool, an unnamed file of this machine.
    What is only appended to needs no copy, and its publication moves no data but what is new.

    - `process` opened it.
    - `changed`: something was written since it was published last.
    - `is_new`: it was made, or emptied, by its opening, and never published. If nothing is written
      either, it gives way to what others publish meanwhile.
    - `closed`: whoever opened it has closed it, and nothing was written since; `closed_at`, by the
      monotonic clock. `ended`: so has everybody else, and it is published if it is to be.
    - `lost`: who closed it last was killed: what it wrote is not whole.
    - `removed`: its name was deleted, or replaced: it is read and written, and goes with its end.
    - `lock` is held for as long as something is read, written or published.
    """

    def __init__(
        self,
        store: castore.Store,
        name: str,
        *,
        base: castore.ObjectReader | None,
        mode: int,
        process: int,
        appends: bool,
        emptied: bool,
        found: str | None = None,
    ) -> None:
        """Of a file that is new, or `emptied`, `base` is None. `appends`: what is written goes
        behind what there is by then. `found`: the etag of the object that there was, if any."""
        self.name = name
        self.mode = mode
        self.process = process
        self.changed = False
        self.is_new = base is None
        self.lost = self.removed = self.failed = self.closed = False
        self.closed_at = 0.0
        self.ended = threading.Event()
        self.handles = 0
        self._store = store
        self._found = found
        self._adds = appends and not emptied  # to whatever there is when it is published
        self._base = base
        self._kept = 0 if base is None else base.info.size  # bytes of the base that still hold
        self._size = self._kept
        self._fd = -1
        self._written_ns = time.time_ns() if base is None else base.info.mtime_ns
        self._set_ns: int | None = None
        self._set_mode: int | None = None
        self.lock = Lock()

    @property
    def attributes(self) -> Attributes:
        with self.lock:
            mtime_ns = self._written_ns if self._set_ns is None else self._set_ns
            return Attributes(False, self.mode, self._size, mtime_ns)

    @property
    def is_settled(self) -> bool:
        """Whether the name maps to what was written: there is nothing that only this has."""
        return self.removed or not (self.changed or self.is_new)

    @property
    def is_over(self) -> bool:
        """Whether it is settled, and nothing more will be written."""
        return self.is_settled and (self.closed or self.removed)

    def wait_for_end(self) -> None:
        """If it is closed, and would replace the object that there is by an empty one: the kernel
        tells of the end only after the close has returned. Where a child of the process has it open
        still, that end is not waited for longer than it takes most."""
        if self.closed and self._found is not None and not self.is_settled:
            self.ended.wait(max(0.0, self.closed_at + ENDS_S - time.monotonic()))

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill `target` from `offset`; the bytes read, fewer only at the end."""
        with self.lock:
            end = min(self._size, offset + len(target))
            done = 0
            while offset + done < end:
                begin = offset + done
                if self._base is not None and begin < self._kept:
                    part = target[done : done + min(end, self._kept) - begin]
                    self._base.seek(begin)
                    read = self._base.readinto(part)
                else:
                    read = os.preadv(self._fd, [target[done : end - offset]], begin)
                if not read:
                    break
                done += read
            return done

    def write(self, offset: int | None, data: memoryview | bytes) -> int:
        """Write at `offset`, or at the end if that is None; how many bytes."""
        with self.lock, memoryview(data) as view:
            if offset is None:
                offset = self._size
            if offset < self._kept:
                self._copy_base()
            fd, done = self._spool(), 0
            while done < len(view):
                done += os.pwrite(fd, view[done:], offset + done)
            self._size = max(self._size, offset + done)
            self._touch()
            return done

    def truncate(self, size: int) -> None:
        """Cut it at `size` bytes, or fill it up to there with zeros."""
        with self.lock:
            if size == self._size:
                return
            self._kept = min(self._kept, size)
            if self._fd >= 0 or size > self._kept:
                os.ftruncate(self._spool(), size)
            self._size = size
            self._touch()

    def set_mode(self, mode: int) -> None:
        """The permission bits that it will have, whatever it was opened with."""
        with self.lock:
            self.mode = self._set_mode = mode

    def set_time(self, mtime_ns: int) -> None:
        """The time that it will have, if nothing is written any more. Nanoseconds."""
        with self.lock:
            self._set_ns = mtime_ns

    def give_way(self) -> None:
        """Others published the file: if all that this one did is to open it, that came before."""
        with self.lock:
            if not self.changed:
                self.is_new = False

    def settle(self) -> None:
        """Publish it, if it is to be, and is not yet. Raises as `publish` does."""
        with self.lock:
            if not (self.is_settled or self.lost or self.failed):
                self.publish()

    def publish(self) -> None:
        """Let the name map to what was written; durable when it returns. Raises what a put does:
        the name maps to what it did then, and the draft is as it was."""
        with self.lock:
            if self.removed:
                return
            if self._is_replaced():
                self.give_way()
                return
            self.failed = True
            name = self.name
            appended = self._append(name)
            if appended is None:
                with self._store.transaction() as transaction:
                    attributes = self.attributes
                    transaction.put(
                        name,
                        _Whole(self),
                        mode=attributes.mode,
                        mtime_ns=attributes.mtime_ns,
                    )
            self.changed = self.is_new = self.failed = False
            self._set_mode = None
            if appended is not None or self._adds:
                self._rebase(name, None if self._adds else appended)

    def close(self) -> None:
        """Let go of what it has: what was not published never will be."""
        with self.lock:
            base, self._base = self._base, None
            fd, self._fd = self._fd, -1
            if base is not None:
                base.close()
            if fd >= 0:
                os.close(fd)

    # ------------------------------------------------------------ parts of these

    def _is_replaced(self) -> bool:
        """Whether others put the file since this one opened it, which has written nothing."""
        if self.changed:
            return False
        try:
            return self._store.info(self.name).etag != self._found
        except NameNotFound:
            return False

    def _append(self, name: str) -> str | None:
        """Publish what is new behind the object that is there, and return the etag of that; None
        where that is not all that has changed, or that object is not what this began as."""
        base = self._base
        if base is None and not self._adds:
            return None
        if base is not None and self._kept < base.info.size:
            return None
        while True:
            try:
                return self._append_once(name, base)
            except (ObjectChanged, NameExists):
                if not self._adds:
                    return None  # else others were faster, and it goes behind theirs

    def _append_once(self, name: str, base: castore.ObjectReader | None) -> str | None:
        """As `_append`. Raises ObjectChanged, NameExists where the name changes meanwhile."""
        with self._store.transaction() as transaction:
            file = transaction.open(name, "ab")
            try:
                try:
                    now = self._store.info(name)
                except NameNotFound:
                    if base is not None:
                        return None
                    now = None
                # What others appended stays, if all that this one did is to append, too.
                if not self._adds and (now is None or base is None or now.etag != base.info.etag):
                    return None
                at = self._kept
                while at < self._size:
                    block = os.pread(self._fd, min(BLOCK_BYTES, self._size - at), at)
                    file.write(block)
                    at += len(block)
                file.close()
            finally:
                file.abort()
            mode = self.mode if now is None else self._set_mode
            if mode is not None or self._set_ns is not None:
                transaction.set_attributes(name, mode=mode, mtime_ns=self._set_ns)
        assert file.info is not None
        return file.info.etag

    def _rebase(self, name: str, etag: str | None) -> None:
        """What was published is what the next append begins as: it is not published again. Without
        an `etag`, that is what others have appended to it by now."""
        try:
            newer = self._store.open(name, etag=etag)
        except (NameNotFound, ObjectChanged):  # deleted since, or replaced: it goes on as it is
            return
        self.close()
        self._base = newer
        self._kept = self._size = newer.info.size

    def _copy_base(self) -> None:
        base, kept = self._base, self._kept
        assert base is not None
        fd = self._spool()
        base.seek(0)
        at = 0
        while at < kept:
            block = base.read(min(BLOCK_BYTES, kept - at))
            at += os.pwrite(fd, block, at)
        self._kept = 0

    def _spool(self) -> int:
        """The spool, as large as the draft."""
        if self._fd < 0:
            with tempfile.TemporaryFile(prefix="castore-mount-") as file:
                self._fd = os.dup(file.fileno())
            os.ftruncate(self._fd, self._size)
        return self._fd

    def _touch(self) -> None:
        self.changed = True
        self.lost = self.closed = False
        self._written_ns, self._set_ns = time.time_ns(), None


class _Whole:
    """A draft as what a store reads a new object from."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._at = 0

    def read(self, size: int, /) -> bytes:
        with memoryview(bytearray(min(size, BLOCK_BYTES))) as view:
            read = self._draft.read_into(self._at, view)
            self._at += read
            return bytes(view[:read])
