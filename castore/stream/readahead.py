"""An open object read at a position, and ahead of it.

A read is one plan: its whole span is fetched and decoded together, on several threads where it is
large. While reads follow each other, what comes next is begun before it is asked for, in a window
that doubles whenever half of it is used up: no more is read in vain than was asked for, or a fourth
of a task: on S3 what comes within a round trip. At its bound it is filled up task by task, so that
the link is never idle. A read elsewhere ends the window; one within it goes on with it. Raw frames
in files that are mapped are not read ahead: to check them takes no longer than to hand them over to
a thread. Each is checked and copied to the caller at once, while it is in the processor's cache.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from castore.errors import CastoreError, ChunkCorrupt, FormatError, PackMissing, StoreClosed
from castore.model import Extent
from castore.stream.chunkreader import PARALLEL_BYTES, ChunkReader, Pinned, check_still_there
from castore.stream.decoding import Bytes
from castore.system.mapping import Mapping
from castore.system.workers import Future


class _Task(NamedTuple):
    """Consecutive chunks that are fetched and decoded together."""

    extents: Sequence[Extent]
    decoded: Future[list[Bytes]]


class _Window:
    """What is decoded, or being decoded, of an object: `ready`, then `tasks`, up to `end`."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.ready: deque[tuple[Extent, Bytes]] = deque()
        self.tasks: deque[_Task] = deque()
        self.end = 0
        self.read_to = -1  # where the next read begins if it is sequential
        self.planned_to = 0  # where the last one goes on to, in as many steps as the caller takes
        self.ahead_bytes = 0
        self.is_mapped = False  # what was decoded last

    def holds(self, offset: int) -> bool:
        return self.begin <= offset < self.end

    @property
    def begin(self) -> int:
        if self.ready:
            return self.ready[0][0].begin
        return self.tasks[0].extents[0].begin if self.tasks else self.end

    def skip_to(self, offset: int) -> None:
        while self.ready and self.ready[0][0].end <= offset:
            self.ready.popleft()
        while not self.ready and self.tasks and self.tasks[0].extents[-1].end <= offset:
            self.tasks.popleft().decoded.cancel()

    def drop(self) -> None:
        while self.tasks:
            self.tasks.pop().decoded.cancel()
        self.ready.clear()
        self.end = self.ahead_bytes = 0


class ReadAhead:
    """One version of an object, read from any offset. For one thread at a time: others that read
    meanwhile do so with no window. `ahead_bytes_max`: the most that is decoded before it is asked
    for (0: nothing is)."""

    def __init__(self, reader: ChunkReader, pinned: Pinned, *, ahead_bytes_max: int) -> None:
        self._reader = reader
        self._pinned = pinned
        self._ahead_bytes_max = ahead_bytes_max
        self._task_bytes = reader.task_bytes
        self._ahead_bytes_min = min(self._task_bytes // 4, ahead_bytes_max)
        self._step_bytes = max(1, min(self._task_bytes, ahead_bytes_max // 4))
        # Of a large read, so much is under way at once.
        self._flight_bytes = self._task_bytes * max(4, reader.workers.threads)
        self._is_held = isinstance(next(iter(pinned.held.values()), None), Mapping)
        self._window: _Window | None = None
        self._closed = False

    def read_into(self, offset: int, target: memoryview, until: int) -> int:
        """Fill `target` from `offset`; the bytes read, fewer only at the object's end, or before
        a chunk that can't be read. The caller will go on up to `until`: it is one plan up to there.

        Raises ChunkCorrupt, PackMissing, and what a store that can't be reached raises, when the
        bytes at `offset` can't be read."""
        record = self._pinned.record
        end = min(offset + len(target), record.size)
        if offset >= end:
            return 0
        if record.is_inline:
            target[: end - offset] = self._reader.inline(record)[offset:end]
            return end - offset
        window, self._window = self._window, None
        if window is None or window.pid != os.getpid():  # the threads at it are the parent's
            window = _Window()
        try:
            read = self._read(window, offset, target[: end - offset], max(end, until))
        except BaseException:
            window.drop()
            raise
        window.read_to = offset + read
        self._window = window
        if self._closed:
            self.close()
        return read

    def read_to_end(self, offset: int) -> bytes:
        """All bytes from `offset` on."""
        window, self._window = self._window, None
        if window is not None:
            window.drop()
        return self._reader.read_to_end(self._pinned, offset)

    def close(self) -> None:
        """What has not begun of the window never will."""
        self._closed = True
        window, self._window = self._window, None
        if window is not None and window.pid == os.getpid():
            window.drop()

    # ------------------------------------------------------------ one read

    def _read(self, window: _Window, offset: int, target: memoryview, until: int) -> int:
        until = min(until, self._pinned.record.size)
        is_sequential = offset == window.read_to
        follows = is_sequential and offset >= window.planned_to  # and is not the same read's rest
        window.planned_to = until
        if not window.holds(offset) and not (is_sequential and offset == window.end):
            window.drop()
            window.end = offset
        window.skip_to(offset)
        if not self._is_direct(window):
            self._want(window, offset, until)
        if follows:
            self._look_ahead(window, offset, until)
        at, end = offset, offset + len(target)
        ready = window.ready
        copied: list[Bytes] = []
        while at < end:
            if not ready and self._is_direct(window):
                at = self._copy_mapped(window, at, target[at - offset :])
                continue
            if not ready:
                self._want(window, at, until)
                try:
                    self._take(window)
                except CastoreError:
                    if at == offset:
                        raise
                    window.drop()
                    break  # what is good is not held back; the next call raises
            (begin, chunk_end, _, _), raw = ready[0]
            upto = min(chunk_end, end)
            if upto > at:  # else it is of a task that a seek went into
                target[at - offset : upto - offset] = memoryview(raw)[at - begin : upto - begin]
                copied.append(raw)
                at = upto
            if chunk_end <= at:
                ready.popleft()
        check_still_there(copied)
        if at < end:
            return at - offset
        if follows:  # one so large that it was not all under way above
            self._look_ahead(window, offset, until)
        _let_go_of_reply(window)
        return at - offset

    def _is_direct(self, window: _Window) -> bool:
        """Whether what comes next, once `ready` is used up, can be copied without a task. Of packs
        that are not held some frames may be mapped, and others not here."""
        return window.is_mapped and self._is_held and not window.tasks

    def _copy_mapped(self, window: _Window, at: int, target: memoryview) -> int:
        """Fill `target` from the offset `at` with raw frames of mapped files; how far that went: up
        to where there are others, or they can't be read so."""
        end = at + len(target)
        extents = self._pinned.manifest.covering(at, end)
        copied, last = self._reader.copy_raw(extents, self._pinned.held, at, target)
        at += copied
        window.end = at
        if at < end:
            window.is_mapped = False
        elif last is not None and extents[-1].end > end:
            window.ready.append((extents[-1], last))
            window.end = extents[-1].end
        return at

    def _want(self, window: _Window, at: int, until: int) -> None:
        """Have what is asked for under way: all, or as much of it as may be at once."""
        if window.end < until and window.end - at <= self._flight_bytes // 2:
            self._plan(window, min(until, at + self._flight_bytes), wanted=True)

    def _look_ahead(self, window: _Window, offset: int, until: int) -> None:
        so_far = max(window.ahead_bytes, until - offset)
        enough = so_far - min(so_far // 2, self._step_bytes)
        if window.is_mapped or window.end < until or window.end - until > enough:
            return
        window.ahead_bytes = min(max(2 * so_far, self._ahead_bytes_min), self._ahead_bytes_max)
        end = min(until + window.ahead_bytes, self._pinned.record.size)
        if window.end < end:
            self._plan(window, end, wanted=False)

    def _plan(self, window: _Window, end: int, *, wanted: bool) -> None:
        """Tasks of about the same size, from where the window ends."""
        extents = self._pinned.manifest.covering(window.end, end)
        size = extents[-1].end - extents[0].begin
        count = max(1, round(size / (self._task_bytes if wanted else self._step_bytes)))
        # What the caller waits for, and is done as fast by itself, is.
        alone = wanted and (
            count == 1 or size < PARALLEL_BYTES or self._reader.workers.threads == 1
        )
        for task in [extents] if alone else _parts(extents, -(-size // count)):
            window.tasks.append(self._task(task, alone=alone))
            window.end = task[-1].end

    def _task(self, extents: Sequence[Extent], *, alone: bool) -> _Task:
        decode = partial(self._reader.chunks, extents, self._pinned.held)
        if not alone:
            try:
                return _Task(extents, self._reader.workers.submit(decode))
            except StoreClosed:  # an object that is open can still be read
                pass
        return _Task(extents, Future(decode))

    def _take(self, window: _Window) -> None:
        """Wait for the next chunks. Where those of a task can't all be read, one by one."""
        task = window.tasks.popleft()
        if not task.decoded.done():
            task.decoded.run()  # unless a thread does
        try:
            decoded = task.decoded.result()
        except (ChunkCorrupt, FormatError, PackMissing):
            if len(task.extents) == 1:
                raise
            singly = [self._task([extent], alone=True) for extent in task.extents]
            window.tasks.extendleft(reversed(singly))
            self._take(window)
            return
        window.is_mapped = all(map(_is_mapped, decoded))
        window.ready.extend(zip(task.extents, decoded, strict=True))


def _parts(extents: Sequence[Extent], part_bytes: int) -> list[Sequence[Extent]]:
    parts = []
    first = 0
    for i, extent in enumerate(extents):
        if extent.end - extents[first].begin >= part_bytes or i == len(extents) - 1:
            parts.append(extents[first : i + 1])
            first = i + 1
    return parts


def _is_mapped(raw: Bytes) -> bool:
    return isinstance(raw, memoryview) and isinstance(raw.obj, Mapping)


def _let_go_of_reply(window: _Window) -> None:
    """The chunk that a read ended in may be a view of a whole reply of megabytes."""
    if len(window.ready) == 1 and not window.tasks:
        extent, raw = window.ready[0]
        if isinstance(raw, memoryview) and not _is_mapped(raw):
            window.ready[0] = extent, bytes(raw)
