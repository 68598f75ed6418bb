"""A pack that is being written, by appending; and what one put has in it.

Packs are never truncated, since a mapped reader would fault, and never fsynced again after an fsync
of theirs failed, since the kernel may have dropped the pages that it could not write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Sequence

from castore.errors import PackPoisoned, StoreFull
from castore.format.pack import PackEntry, encode_footer, encode_pack_header
from castore.model import Location
from castore.stream.codec import Frame
from castore.stream.operations import now_ns
from castore.system.fileio import is_interrupt, typed_errors, write_all
from castore.system.lockfile import LockFile
from castore.system.locks import Lock
from castore.system.mapping import Mapping, start_writeback

WRITEBACK_BYTES = 8 << 20


class Pack:
    """A pack that this process is writing. Its methods are called under LocalPacks' lock, but for
    `sync`, which many puts may wait for at once."""

    def __init__(self, path: str, file: LockFile, store_id: bytes, pack_id: bytes) -> None:
        self.pack_id = pack_id
        self.path = path
        self.created_ns = now_ns()
        self.size = 0
        self.durable_bytes = 0
        self.sealed = False
        self.named = False  # a commit that may have landed refers to it
        # Of puts that have frames in it and have not committed. One that was interrupted before it
        # could let go is none.
        self.users: weakref.WeakSet[Placement] = weakref.WeakSet()
        self._file = file
        self._entries: list[PackEntry] = []
        self._poison: Exception | None = None
        self._written_back = 0
        self._sync_lock = Lock()
        self._append_bytes([encode_pack_header(store_id, pack_id)])

    @property
    def usable(self) -> bool:
        return not self.sealed and self._poison is None

    def append(self, frames: Sequence[Frame]) -> list[Location]:
        locations, offset = [], self.size
        for frame in frames:
            locations.append(Location(self.pack_id, offset, frame.stored_bytes))
            offset += frame.stored_bytes
        self._append_bytes([part for frame in frames for part in (frame.head, frame.payload)])
        self._entries += [
            PackEntry(frame.chunk_id, at.offset, at.stored_bytes, frame.raw_bytes, frame.bases)
            for frame, at in zip(frames, locations, strict=True)
        ]
        if self.size - self._written_back >= WRITEBACK_BYTES:
            # The disk starts now on what the fsync would otherwise begin with.
            start_writeback(self._file.fileno(), self._written_back, self.size - self._written_back)
            self._written_back = self.size
        return locations

    def sync(self, upto: int) -> None:
        """Make the first `upto` bytes durable. A failure poisons the pack for good."""
        with self._sync_lock:
            if self.durable_bytes >= upto:
                return
            self.raise_if_poisoned()
            size = self.size
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self._poison = error  # first: the next instruction may be interrupted, too
                if is_interrupt(error):
                    self._poison = None  # not a word of the disk's; it is asked again
                    raise
                self.raise_if_poisoned()
            self.durable_bytes = size

    def exists(self) -> bool:
        """False if the file was removed under us, or let go of. Raises StoreIOError."""
        with typed_errors(self.path):
            return not self._file.closed and os.fstat(self._file.fileno()).st_nlink > 0

    def map_again(self) -> Mapping:
        """A mapping of a pack whose file was removed under us, and which takes no more frames."""
        if self._poison is None:
            self._poison = FileNotFoundError(errno.ENOENT, "was removed", self.path)
        return Mapping(self._file.fileno(), self.size)

    def seal(self) -> None:
        """Write the footer. It is an aid to recovery, which scans a pack without one, so it is
        not synced, and a failure to write it loses nothing."""
        if not self.usable:
            return
        self.sealed = True
        try:
            self._append_bytes([encode_footer(self._entries, self.size)])
        except OSError as error:
            self._poison = error
        self._entries = []

    def close(self) -> None:
        """Give up the lock, and the file too if nothing can refer to it: it has no users."""
        if not self.named:
            with contextlib.suppress(FileNotFoundError):  # the store was removed under us
                os.unlink(self.path)
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptor only: what a forked child may do."""
        self._file.close()

    def raise_if_poisoned(self) -> None:
        if self._poison is None:
            return
        if getattr(self._poison, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"no space left for pack {self.path}: nothing was published; free some and repeat"
            ) from self._poison
        raise PackPoisoned(
            f"pack {self.path} can't be written ({self._poison}): nothing was published; check "
            "the disk and repeat"
        ) from self._poison

    def _append_bytes(self, parts: Sequence[bytes]) -> None:
        self.raise_if_poisoned()
        try:
            self.size = write_all(self._file.fileno(), parts, self.size)
        except OSError as error:
            # The tail is torn and can't be truncated away: this pack is finished.
            self._poison = error
            if is_interrupt(error):
                self._poison = None  # what was written of it is written over
                raise
            self.raise_if_poisoned()


class Placement:
    """The packs one put has frames in, and up to where: what has to be durable before it commits,
    and what it holds until then."""

    def __init__(self) -> None:
        self.upto: dict[Pack, int] = {}

    def sync(self) -> None:
        for pack, upto in self.upto.items():
            pack.sync(upto)
