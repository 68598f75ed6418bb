"""Extents to bytes: what is in memory, or map, decode, check (`decoding`).

Every chunk that is decoded is checked against its length and its id.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from castore.errors import FormatError, PackMissing, StoreIOError
from castore.format.config import StoreConfig
from castore.format.frame import FRAME_HEADER_BYTES
from castore.format.index import Record
from castore.model import Extent, Progress, StoredChunk
from castore.stream.backend import NOTHING_HELD, Held, Packs
from castore.stream.codec import decode_frame, decode_inline
from castore.stream.decoding import Bytes, DecodedChunks, Decoder
from castore.stream.etags import is_etag_of
from castore.stream.segments import Manifest
from castore.system.fileio import Writable, write_all, write_stream
from castore.system.translated import Translated
from castore.system.workers import Future, Workers

PARALLEL_BYTES = 4 << 20  # below this, handing over to threads costs more than it saves
WRITE_BYTES = 512 << 10  # written at once: what is in the processor's cache
BASES_BYTES = 4 << 20  # of what deltas of a whole object were decoded with last

T = TypeVar("T")


class Pinned(NamedTuple):
    """One version of an object, kept: its segments are read and its packs are held, so that it is
    read to its end whatever is overwritten or collected meanwhile."""

    record: Record
    manifest: Manifest
    held: Held


class ChunkReader:
    """Of one version of an object: its chunks, and all of it."""

    def __init__(
        self, packs: Packs, workers: Workers, config: StoreConfig, *, cache_bytes: int
    ) -> None:
        self._packs = packs
        self.workers = workers
        self._config = config
        self._seed = config.seed
        self._decoded = DecodedChunks(cache_bytes)

    @property
    def task_bytes(self) -> int:
        """How much of an object one thread fetches and decodes at a time."""
        return self._packs.task_bytes

    def inline(self, record: Record) -> bytes:
        raw = decode_inline(record.codec, record.inline, record.size)
        if not is_etag_of(raw, record.etag, self._config):
            raise FormatError("an inline object's bytes do not match its etag")
        return raw

    # ------------------------------------------------------------ chunks

    def _chunk(self, extent: Extent) -> Bytes:
        """One chunk, through the cache: of most that are asked for alone, nothing else is needed
        than its frame."""
        begin, end, chunk_id, location = extent
        [raw] = self._decoded.get([(chunk_id, end - begin)])
        if raw is not None:
            return raw
        if not location.bases:
            try:
                [frame] = self._packs.frames([location], NOTHING_HELD)
                decoded = decode_frame(frame, chunk_id, end - begin, self._seed)
            except FormatError:
                pass  # it is looked at once more, below
            else:
                self._decoded.put(chunk_id, decoded)
                return decoded
        [decoded] = self.chunks([extent], NOTHING_HELD)
        return decoded

    def _many_chunks(self, extents: list[Extent]) -> list[Bytes]:
        total = sum(extent.end - extent.begin for extent in extents)
        if total < PARALLEL_BYTES or self.workers.threads == 1:
            return self.chunks(extents, NOTHING_HELD)
        futures = [
            self.workers.submit(self.chunks, task, NOTHING_HELD)
            for task in _tasks(extents, self._packs.task_bytes)
        ]
        chunks: list[Bytes] = []
        for future in futures:
            future.run()  # unless a thread does: this may be one of them, and all may wait here
            chunks += future.result()
        return chunks

    def _decoded_ahead(
        self, extents: Iterable[Extent]
    ) -> Iterator[tuple[list[Extent], list[Bytes]]]:
        """Some of the extents at a time with their chunks, which are begun before they are asked
        for."""
        tasks = _tasks(extents, self._packs.task_bytes)
        running: deque[tuple[list[Extent], Future[list[Bytes]]]] = deque()
        try:
            while True:
                for task in islice(tasks, 2 * self.workers.threads + 1 - len(running)):
                    running.append((task, self.workers.submit(self.chunks, task, NOTHING_HELD)))
                if not running:
                    return
                task, future = running.popleft()
                future.run()  # unless a thread does: this may be one of them
                yield task, future.result()
        finally:
            for _, future in running:
                future.cancel()

    def chunks(self, extents: Sequence[Extent], held: Held) -> list[Bytes]:
        """Their bytes, through the cache of decoded ones."""
        wanted = [(chunk_id, end - begin) for begin, end, chunk_id, _ in extents]
        found: list[Bytes | None] = [*self._decoded.get(wanted)]
        if None in found:
            missing = [i for i, raw in enumerate(found) if raw is None]
            decoder = self._decoder([extents[i] for i in missing], held, self._decoded)
            for i, raw in zip(missing, decoder.all(), strict=True):
                found[i] = raw
                self._decoded.put(extents[i].chunk_id, raw)
        return found  # type: ignore[return-value]

    def _decoder(self, extents: Sequence[Extent], held: Held, kept: DecodedChunks) -> Decoder:
        chunks = [extent.stored for extent in extents]
        return Decoder(self._packs, self._seed, chunks, held, kept)

    def base(self, chunk: StoredChunk) -> Bytes | None:
        """A chunk for a delta to be made of, if it is here, intact, and no delta itself."""
        [found] = self._decoded.get([chunk[:2]])
        if found is not None:
            return found
        try:
            frame = self._packs.at_hand(chunk.location)
            if frame is None:
                return None
            raw = decode_frame(frame, chunk.chunk_id, chunk.raw_bytes, self._seed)
        except (FormatError, PackMissing):
            return None
        self._decoded.put(chunk.chunk_id, raw)
        return raw

    def chunk(self, pinned: Pinned, extent: Extent) -> bytes:
        """One chunk of the object, to be stored once more: no view of what may be cut short before
        it is copied."""
        [raw] = self.chunks([extent], pinned.held)
        own = bytes(raw)
        check_still_there([raw])
        return own

    def copy_raw(
        self, extents: Sequence[Extent], held: Held, at: int, target: memoryview
    ) -> tuple[int, Bytes | None]:
        """Fill `target` from the offset `at` with chunks that are stored raw, each copied right
        after it was checked, while it is in the processor's cache; up to the first that is stored
        otherwise, or can't be read. How many bytes, and the chunk that they end in."""
        begin, end = at, at + len(target)
        views: list[memoryview] = []  # one of each mapping
        raw: Bytes | None = None
        try:
            frames = self._packs.frames([extent.location for extent in extents], held)
        except (FormatError, PackMissing):
            return 0, None
        for (chunk_begin, chunk_end, chunk_id, _), frame in zip(extents, frames, strict=True):
            raw_bytes = chunk_end - chunk_begin
            if len(frame) != FRAME_HEADER_BYTES + raw_bytes:
                break
            try:
                raw = decode_frame(frame, chunk_id, raw_bytes, self._seed)
            except FormatError:
                break
            if not isinstance(raw, memoryview):  # it decoded to as many bytes as it takes
                break
            if not views or raw.obj is not views[-1].obj:
                views.append(raw)
            if chunk_begin == at and chunk_end <= end:
                target[at - begin : chunk_end - begin] = raw
                at = chunk_end
            else:
                upto = min(chunk_end, end)
                target[at - begin : upto - begin] = raw[at - chunk_begin : upto - chunk_begin]
                at = upto
        check_still_there(views)
        return at - begin, raw

    # ------------------------------------------------------------ whole objects

    def copy_to_file(self, pinned: Pinned, fd: int, progress: Progress | None) -> None:
        """Write the object's bytes at their offsets, from several threads in any order."""
        if pinned.record.is_inline:
            write_all(fd, [self.inline(pinned.record)], 0)
            _advance(progress, pinned.record.size)
            return
        os.truncate(fd, pinned.record.size)
        target = _Descriptor(fd)
        kept = DecodedChunks(BASES_BYTES)

        def write(task: list[Extent]) -> int:
            at = task[0].begin
            for parts in self._decoder(task, pinned.held, kept).parts(WRITE_BYTES):
                with _gone_pages_named:
                    at = write_all(target.fd, parts, at)
                check_still_there(parts)
            self._let_go(task, pinned)
            return task[-1].end - task[0].begin

        for done in self._in_flight(write, pinned):
            _advance(progress, done)
        target.close()  # of no use to any task now; what it raises is not to be lost

    def copy_to_stream(self, pinned: Pinned, file: Writable, progress: Progress | None) -> None:
        """Write the object's bytes in order, decoded ahead by several threads."""
        if pinned.record.is_inline:
            write_stream(file, self.inline(pinned.record))
            _advance(progress, pinned.record.size)
            return

        kept = DecodedChunks(BASES_BYTES)

        def decode(task: list[Extent]) -> tuple[list[Extent], list[Bytes]]:
            return task, self._decoder(task, pinned.held, kept).all()

        for task, parts in self._in_flight(decode, pinned):
            for part in parts:
                with _gone_pages_named:
                    write_stream(file, part)
                check_still_there([part])
                _advance(progress, len(part))
            self._let_go(task, pinned)

    def read_to_end(self, pinned: Pinned, offset: int) -> bytes:
        """All bytes from `offset` on."""
        if pinned.record.is_inline:
            return self.inline(pinned.record)[offset:]
        if offset >= pinned.record.size:
            return b""

        kept = DecodedChunks(BASES_BYTES)

        def decode(task: list[Extent]) -> list[Bytes]:
            return self._decoder(task, pinned.held, kept).all()

        parts = [part for task in self._in_flight(decode, pinned, offset) for part in task]
        first = next(pinned.manifest.at_or_after(offset)).covering(offset, offset + 1)[0]
        parts[0] = parts[0][offset - first.begin :]
        raw = b"".join(parts)
        check_still_there(parts)
        return raw

    def _let_go(self, task: Sequence[Extent], pinned: Pinned) -> None:
        places = [extent.location for extent in task]
        bases = [base.location for place in places for base in place.bases]
        self._packs.let_go(places + bases, pinned.held)

    def _in_flight(
        self, work: Callable[[list[Extent]], T], pinned: Pinned, offset: int = 0
    ) -> Iterator[T]:
        """Run `work` on the object's extents from `offset` on, a few tasks ahead; results in
        order."""
        extents = (
            extent
            for segment in pinned.manifest.at_or_after(offset)
            for extent in segment.covering(offset, segment.end)
        )
        tasks = _tasks(extents, self._packs.task_bytes)
        if pinned.record.size - offset <= self._packs.task_bytes:
            return map(work, tasks)  # one, which another thread would do no sooner
        return self.workers.map_ahead(work, tasks)


def _tasks(extents: Iterable[Extent], task_bytes: int) -> Iterator[list[Extent]]:
    """Consecutive extents, about `task_bytes` at a time."""
    task: list[Extent] = []
    total = 0
    for extent in extents:
        task.append(extent)
        total += extent.end - extent.begin
        if total >= task_bytes:
            yield task
            task, total = [], 0
    if task:
        yield task


class _Descriptor:
    """A duplicate that lives as long as some task refers to it: a task that outlives an interrupted
    get must not write to whatever file gets the number next."""

    fd = -1  # until there is one

    def __init__(self, fd: int) -> None:
        self.fd = os.dup(fd)

    def close(self) -> None:
        """Raises OSError: a network's file system says to who closes first, and to nobody else,
        what it could not write."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):  # another error is on its way
            self.close()


_CUT_SHORT = "a pack was cut short while it was read: restore it from a backup"


def _gone_page_named(error: BaseException) -> StoreIOError | None:
    # The kernel's word for a page that is gone.
    is_gone = isinstance(error, OSError) and error.errno == errno.EFAULT
    return StoreIOError(_CUT_SHORT) if is_gone else None


_gone_pages_named = Translated(_gone_page_named)


def check_still_there(parts: Iterable[Bytes]) -> None:
    """Raw frames are views of mapped packs: the bytes that were checked are those that were handed
    out only if the pack was not cut short in between."""
    for part in parts:
        if isinstance(part, memoryview) and getattr(part.obj, "damaged", False):
            raise StoreIOError(_CUT_SHORT)


def _advance(progress: Progress | None, done: int) -> None:
    if progress is not None:
        progress.relative_update(done)
