"""Extents to bytes: map, decode, check (`decoding`), trim.

Every chunk that is decoded is checked against its length and its id.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from castore.errors import ChunkCorrupt, FormatError, ObjectChanged, PackMissing, StoreIOError
from castore.format.config import StoreConfig
from castore.format.frame import FRAME_HEADER_BYTES
from castore.format.index import Record
from castore.model import Extent, ObjectInfo, Progress, RangePlan, StoredChunk
from castore.stream.backend import NOTHING_HELD, Catalog, Cover, Held, Packs
from castore.stream.codec import decode_frame, decode_inline
from castore.stream.decoding import Bytes, DecodedChunks, Decoder
from castore.stream.etags import is_etag_of
from castore.stream.segments import Manifest
from castore.stream.smallreads import SmallRead, read_small
from castore.system.fileio import Writable, write_all, write_stream
from castore.system.workers import Workers

SMALL_TOGETHER = 128  # small objects read at once
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


class Reader:
    def __init__(
        self,
        catalog: Catalog,
        packs: Packs,
        workers: Workers,
        config: StoreConfig,
        *,
        cache_bytes: int,
    ) -> None:
        self._catalog = catalog
        self._packs = packs
        self.workers = workers
        self._config = config
        self._seed = config.seed
        self._decoded = DecodedChunks(cache_bytes)

    @property
    def task_bytes(self) -> int:
        """How much of an object one thread fetches and decodes at a time."""
        return self._packs.task_bytes

    # ------------------------------------------------------------ ranges

    def ranges(self, name: bytes, byte_ranges: Sequence[Sequence[int] | None]) -> list[bytes]:
        """The bytes of each half-open range, all of one version of the object.

        Raises NameNotFound, InvalidRange, ChunkCorrupt, PackMissing.
        """
        return self._current(name, byte_ranges)[1]

    def small(self, name: bytes, bytes_max: int, listed: ObjectInfo) -> tuple[Record, bytes] | None:
        """What the name maps to, or was just `listed` to, and all bytes of that; None where it has
        more than `bytes_max`. Raises as `ranges`."""
        at_hand = self.at_hand(listed)
        if at_hand is not None:
            return at_hand
        record, parts = self._current(name, [None], bytes_max)
        return (record, parts[0]) if parts else None

    def at_hand(self, listed: ObjectInfo) -> tuple[Record, bytes] | None:
        """The same of what was just listed, if it is in a batch, which is read with many others.
        Raises FormatError."""
        record = self._catalog.at_hand(listed)
        return None if record is None else (record, bytes(self.inline(record)))

    @property
    def small_together(self) -> int:
        """How many small objects are best read at once: 1 where each waits for a server."""
        return 1 if self._catalog.covers is None else SMALL_TOGETHER

    def small_many(self, names: Sequence[bytes], bytes_max: int) -> list[SmallRead]:
        """What each name maps to, and all bytes of that. None for what has more than `bytes_max`,
        is not there, or can't be read together with the others: who reads it by itself is told
        why."""
        look_up = self._catalog.covers
        if look_up is None:
            return [None] * len(names)
        return read_small(look_up(names, bytes_max), self._packs, self._seed, self.inline)

    def _current(
        self,
        name: bytes,
        byte_ranges: Sequence[Sequence[int] | None],
        bytes_max: int = sys.maxsize,
    ) -> tuple[Record, list[bytes]]:
        """The ranges of one version; none of an object that has more than `bytes_max`."""
        lost: bytes | None = None
        cover = self._catalog.cover(name, byte_ranges)
        while True:
            try:
                parts = self._read(cover) if cover.record.size <= bytes_max else []
            except (PackMissing, ChunkCorrupt) as error:
                newer = cover.newer()
                if newer is None:
                    # A collector or a repair moved the chunks since the look-up, or they are lost:
                    # look again.
                    if error.pack_id == lost:
                        raise
                    lost = error.pack_id
                    self._catalog.forget(name)
                    newer = self._catalog.cover(name, byte_ranges)
            else:
                newer = cover.newer()
                if newer is None:
                    return cover.record, parts
            cover = newer

    def explain(self, name: bytes, byte_range: Sequence[int] | None) -> RangePlan:
        _, [(_, _, extents)], _ = self._catalog.cover(name, [byte_range])
        places = [extent.location for extent in extents]
        bases = {base.location for place in places for base in place.bases}.difference(places)
        return RangePlan(
            len(extents),
            sum(place.stored_bytes for place in [*places, *bases]),
            sum(extent.end - extent.begin for extent in extents),
            len(bases),
        )

    def inline(self, record: Record) -> bytes:
        raw = decode_inline(record.codec, record.inline, record.size)
        if not is_etag_of(raw, record.etag, self._config):
            raise FormatError("an inline object's bytes do not match its etag")
        return raw

    def _read(self, cover: Cover) -> list[bytes]:
        if cover.record.is_inline:
            raw = self.inline(cover.record)
            return [raw[begin:end] for begin, end, _ in cover.parts]
        if len(cover.parts) == 1 and len(cover.parts[0][2]) == 1:
            begin, end, [extent] = cover.parts[0]
            chunks = [self._chunk(extent)]
            read = [bytes(chunks[0][begin - extent.begin : end - extent.begin])]
        else:
            chunks = self._many_chunks(
                [extent for *_, extents in cover.parts for extent in extents]
            )
            following = iter(chunks)
            read = [
                b"".join([_within(next(following), extent, begin, end) for extent in extents])
                for begin, end, extents in cover.parts
            ]
        check_still_there(chunks)
        return read

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

    # ------------------------------------------------------------ whole objects

    def pin(self, name: bytes, etag: bytes | None = None) -> Pinned:
        """What the name maps to or, with `etag`, that content of its. Raises NameNotFound,
        PackMissing, ObjectChanged."""
        lost: bytes | None = None
        while True:
            record, manifest = self._catalog.manifest(name, etag)
            if etag is not None and record.etag != etag:
                raise ObjectChanged(name.decode())
            try:
                held = self._packs.hold(manifest.packs)
            except PackMissing as error:
                if error.pack_id == lost:
                    raise
                lost = error.pack_id
                continue
            return Pinned(record, manifest, held)

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
                with _gone_pages_named():
                    at = write_all(target.fd, parts, at)
                check_still_there(parts)
            self._let_go(task, pinned)
            return task[-1].end - task[0].begin

        for done in self._in_flight(write, pinned):
            _advance(progress, done)

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
                with _gone_pages_named():
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

    def _let_go(self, task: Sequence[Extent], pinned: Pinned) -> None:
        places = [extent.location for extent in task]
        bases = [base.location for place in places for base in place.bases]
        self._packs.let_go(places + bases, pinned.held)

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

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


_CUT_SHORT = "a pack was cut short while it was read: restore it from a backup"


@contextlib.contextmanager
def _gone_pages_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFAULT:  # the kernel's word for a page that is gone
            raise StoreIOError(_CUT_SHORT) from error
        raise


def _within(chunk: Bytes, extent: Extent, begin: int, end: int) -> memoryview:
    """The chunk's part of a range: a view, as it is copied when the parts are joined."""
    return memoryview(chunk)[max(begin - extent.begin, 0) : end - extent.begin]


def check_still_there(parts: Iterable[Bytes]) -> None:
    """Raw frames are views of mapped packs: the bytes that were checked are those that were handed
    out only if the pack was not cut short in between."""
    for part in parts:
        if isinstance(part, memoryview) and getattr(part.obj, "damaged", False):
            raise StoreIOError(_CUT_SHORT)


def _advance(progress: Progress | None, done: int) -> None:
    if progress is not None:
        progress.relative_update(done)
