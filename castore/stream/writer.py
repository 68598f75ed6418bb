"""A stream in, extents out: cut, hash, look up, encode, append.

The invariant: *a pack is durable before anything names it; a crash before the commit leaks space,
never data.* What is written here becomes visible by WriteSession.commit, and by nothing else.

A path is read through mapped windows, which costs a quarter of reading it into a buffer; a small
file is read, which costs less than to map it. A file can change under the mapping: a chunk that
turns out to be new is copied and hashed again, and the copy is what is stored; a file that is cut
short raises SourceChanged.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from castore.errors import SourceChanged
from castore.format.index import Record
from castore.model import Extent, Location, Progress
from castore.stream.bases import Cut, FindAlignment, StreamBases
from castore.stream.drafts import DraftBuilder, inline_record
from castore.stream.operations import Draft
from castore.stream.session import Encoded, NewFrame, WriteSession
from castore.stream.small import SMALL_BYTES_MAX, bytes_of
from castore.system.fileio import of_file
from castore.system.mapping import Mapping
from castore.system.workers import Future
from castore.wording import counted

if TYPE_CHECKING:
    from typing_extensions import Buffer

WINDOW_BYTES = 64 << 20  # of a mapped file
PAGE_MASK = ~0xFFFF  # windows begin at multiples of 64 KiB, the largest page size in use
CUT_BYTES = 1 << 20  # cut, then hashed while still in cache
BATCH_BYTES = 4 << 20  # looked up at once
TASK_BYTES = 1 << 20  # encoded at once by one thread
BATCHES_MAX = 4  # being encoded at a time: what bounds memory


class _Batch:
    """Consecutive chunks: where each ends in the object, its id, and where it is if it is known."""

    __slots__ = ("chunks", "encoding", "new")

    def __init__(self) -> None:
        self.chunks: list[tuple[int, bytes, Location | None]] = []
        self.encoding: list[Future[list[Encoded]]] = []
        self.new: set[bytes] = set()

    @property
    def encoded(self) -> bool:
        return all(future.done() for future in self.encoding)


class ObjectWriter:
    """Takes one object's bytes, in order, by `write` and `write_file`, then `finish`."""

    def __init__(
        self,
        session: WriteSession,
        progress: Progress | None = None,
        align: FindAlignment | None = None,
    ) -> None:
        """`align` is asked, once it is needed, for the older object that new chunks may be deltas
        of."""
        self.size = 0  # of what was taken out of the buffer
        self.inline_bytes_max = session.inline_limit
        self._session = session
        self._progress = progress
        self._bases = StreamBases(session, align)
        self._draft = DraftBuilder(session)
        self._buffer = bytearray()
        self._batches: deque[_Batch] = deque()
        self._encoding: set[bytes] = set()  # chunks on their way to a pack

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take any C-contiguous buffer; it may be changed once this returns."""
        view = bytes_of(data)
        enough = BATCH_BYTES + self._session.chunker.lookahead
        while view:
            if not self._buffer and len(view) >= enough:
                used = self._consume(view, final=False)
                view = view[used:]
            taken = min(len(view), enough - len(self._buffer))
            self._buffer += view[:taken]
            view = view[taken:]
            if len(self._buffer) >= enough:
                self._consume_buffer(final=False)

    def adopt(self, extents: Sequence[Extent], read: Callable[[Extent], Buffer]) -> None:
        """Take chunks that an object has already, in order and before any bytes, as they are.

        `read` is asked for the bytes of those that can't be relied on any more: they are stored
        anew.
        """
        assert not self._buffer
        chunk_ids = [extent.chunk_id for extent in extents]
        if self._session.lookahead_bytes:
            self._session.prefetch(chunk_ids)
        known = self._session.look_up(chunk_ids)
        batch = _Batch()
        for extent in extents:
            location = known.get(extent.chunk_id)
            if location is not None:
                batch.chunks.append((extent.end, extent.chunk_id, location))
                self._advance(extent.end - extent.begin)
                continue
            self._batches.append(batch)
            batch = _Batch()
            with memoryview(read(extent)) as view:
                self._take(view, [(0, len(view), extent.chunk_id)])
        self._batches.append(batch)
        while self._batches and (len(self._batches) > BATCHES_MAX or self._batches[0].encoded):
            self._retire(self._batches.popleft())

    def write_file(self, fd: int, size: int, path: str) -> None:
        """Take the first `size` bytes of a regular file, open at `fd`, through mapped windows, or
        read at once if it is small.

        Raises SourceChanged if it turns out to be shorter; OSError, with the path, if it can't be
        read.
        """
        if size <= SMALL_BYTES_MAX:
            self._read_file(fd, 0, size, path)
            return
        if size >= BATCH_BYTES and self._session.lookahead_bytes:
            self._session.expect_many()
        at = 0
        while at < size:
            floor = at & PAGE_MASK
            length = min(WINDOW_BYTES, size - floor)
            try:
                window = Mapping(fd, length, offset=floor)
            except ValueError as error:
                raise _cut_short(path, size) from error
            except OSError:  # of a file system that maps nothing, as of /sys, or of FUSE
                self._read_file(fd, at, size, path)
                return
            with memoryview(window) as whole, whole[at - floor :] as view:
                at += self._consume(view, final=floor + length == size)
            # The last page of a shorter file reads as zeros behind its end, without a fault.
            if os.fstat(fd).st_size < size:
                raise _cut_short(path, size)
            if window.damaged:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    def _read_file(self, fd: int, at: int, size: int, path: str) -> None:
        while at < size:
            try:
                block = os.pread(fd, min(CUT_BYTES, size - at), at)
            except OSError as error:
                raise of_file(error, path) from error
            if not block:
                raise _cut_short(path, size)
            self.write(block)
            at += len(block)

    def finish(self, mode: int) -> tuple[Record, Draft | None]:
        """The object's record, and its draft unless it is inline. Nothing is visible yet."""
        size = self.size + len(self._buffer)
        if size <= self.inline_bytes_max and not self._draft.chunks and not self._batches:
            raw = bytes(self._buffer)
            self._advance(len(raw))
            return inline_record(self._session, raw, mode), None
        self._consume_buffer(final=True)
        while self._batches:
            self._retire(self._batches.popleft())
        return self._draft.finish(size, mode), self._draft.draft

    def abandon(self) -> None:
        """The object is not to be: forget what was taken."""
        self._batches.clear()
        self._buffer = bytearray()  # a traceback may hold a view of the old one
        self._session.drop(self._draft.draft)

    # ------------------------------------------------------------ bytes to batches of chunks

    def _consume_buffer(self, *, final: bool) -> None:
        with memoryview(self._buffer) as view:
            used = self._consume(view, final=final)
        # Not shortened in place: the traceback of a request that was tried again may keep frames
        # that hold slices of it.
        self._buffer = self._buffer[used:]

    def _consume(self, view: memoryview, *, final: bool) -> int:
        """Take the chunks whose cuts are decided; the bytes that they add up to."""
        chunker, identify = self._session.chunker, self._session.chunk_id
        ahead = self._session.lookahead_bytes
        take, at_once = (self._take_ahead, ahead) if ahead else (self._take, BATCH_BYTES)
        begin = first = 0
        cut: list[Cut] = []
        while cuts := chunker.cuts(view, begin, final, until=begin + CUT_BYTES):
            for end in cuts:
                raw = view[begin:end]
                cut.append((begin, end, identify(raw)))
                begin = end
            if begin - first >= at_once:
                take(view, cut)
                cut, first = [], begin
        if cut:
            take(view, cut)
        return begin

    def _take_ahead(self, view: memoryview, cut: list[Cut]) -> None:
        """Take what is more than a batch, once the session was told of all of it."""
        # With what lies behind, so that relying on it takes no round trips of its own.
        end = self.size + cut[-1][1] - cut[0][0] + self._session.lookahead_bytes
        older = self._bases.expected(self.size, end)
        self._session.prefetch([chunk_id for _, _, chunk_id in cut], older)
        batch: list[Cut] = []
        for each in cut:
            batch.append(each)
            if each[1] - batch[0][0] >= BATCH_BYTES:
                self._take(view, batch)
                batch = []
        if batch:
            self._take(view, batch)

    def _take(self, view: memoryview, cut: list[Cut]) -> None:
        """Look a batch of chunks up and send the new ones to be encoded."""
        known = self._session.look_up([chunk_id for _, _, chunk_id in cut])
        batch = _Batch()
        base = self.size
        task: list[NewFrame] = []
        task_bytes = 0
        new = self._new_frames(view, cut, known)
        for _, end, chunk_id in cut:
            frame, location = new.get(chunk_id), known.get(chunk_id)
            if frame is not None:
                chunk_id = frame.chunk_id
                if chunk_id not in self._encoding:
                    self._encoding.add(chunk_id)
                    batch.new.add(chunk_id)
                    task.append(frame)
                    task_bytes += len(frame.raw)
                    if task_bytes >= TASK_BYTES:
                        batch.encoding.append(self._session.encode(task))
                        task, task_bytes = [], 0
            batch.chunks.append((base + end - cut[0][0], chunk_id, location))
        if task:
            batch.encoding.append(self._session.encode(task))
        self._advance(cut[-1][1] - cut[0][0])
        self._batches.append(batch)
        while self._batches and (len(self._batches) > BATCHES_MAX or self._batches[0].encoded):
            self._retire(self._batches.popleft())

    def _new_frames(
        self, view: memoryview, cut: list[Cut], known: dict[bytes, Location]
    ) -> dict[bytes, NewFrame]:
        """The chunks of a batch that are to be encoded, by the ids that they were cut with, and
        what each may be a delta of. They are copies: what was cut may be of a file that is being
        written to."""
        frames: dict[bytes, NewFrame] = {}
        for begin, end, chunk_id in cut:
            if chunk_id not in known and chunk_id not in self._encoding and chunk_id not in frames:
                frames[chunk_id] = self._session.new_frame(bytes(view[begin:end]))
        self._bases.find(cut, self.size - cut[0][0], frames)
        return frames

    def _advance(self, taken: int) -> None:
        self.size += taken
        if self._progress is not None:
            self._progress.relative_update(taken)

    # ------------------------------------------------------------ batches to extents

    def _retire(self, batch: _Batch) -> None:
        """The batch's frames go to a pack, then its chunks become extents."""
        self._session.check_process()
        for future in batch.encoding:
            self._bases.place(future.result())
        self._encoding -= batch.new
        for end, chunk_id, location in batch.chunks:
            self._draft.append(end, chunk_id, location or self._session.location(chunk_id))


def read_blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The blocks of a binary file object, to its end."""
    while True:
        block = read(CUT_BYTES)
        if isinstance(block, str):
            raise TypeError("the file must be opened in binary mode")
        if block is None:
            raise BlockingIOError("the file is in non-blocking mode and has nothing to read yet")
        if not block:
            return
        yield block


def _cut_short(path: str, size: int) -> SourceChanged:
    its_size = counted(size, "byte")
    return SourceChanged(
        f"{path} was cut short of its {its_size} while it was read: nothing was published"
    )
