"""Names to bytes: one version of an object, found again where it moved meanwhile.

What is read of that version, `chunkreader` knows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from castore.errors import ChunkCorrupt, ObjectChanged, PackMissing
from castore.format.config import StoreConfig
from castore.format.index import Record
from castore.model import Extent, ObjectInfo, RangePlan
from castore.stream.backend import Catalog, Cover, Packs
from castore.stream.chunkreader import PARALLEL_BYTES, ChunkReader, Pinned, check_still_there
from castore.stream.decoding import Bytes
from castore.stream.smallreads import SmallRead, read_small
from castore.system.workers import Workers

SMALL_TOGETHER = 128  # small objects read at once


class Reader(ChunkReader):
    def __init__(
        self,
        catalog: Catalog,
        packs: Packs,
        workers: Workers,
        config: StoreConfig,
        *,
        cache_bytes: int,
    ) -> None:
        super().__init__(packs, workers, config, cache_bytes=cache_bytes)
        self._catalog = catalog

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

    def _read(self, cover: Cover) -> list[bytes]:
        if cover.record.is_inline:
            raw = self.inline(cover.record)
            return [raw[begin:end] for begin, end, _ in cover.parts]
        if len(cover.parts) == 1 and len(cover.parts[0][2]) == 1:
            begin, end, [extent] = cover.parts[0]
            chunks = [self._chunk(extent)]
            read = [bytes(chunks[0][begin - extent.begin : end - extent.begin])]
            check_still_there(chunks)
            return read
        asked = sum(end - begin for begin, end, _ in cover.parts)
        touched = sum(x.end - x.begin for *_, extents in cover.parts for x in extents)
        if len(cover.parts) > 1 and touched > 2 * asked + PARALLEL_BYTES:
            return self._read_each_once(cover)
        chunks = self._many_chunks([extent for *_, extents in cover.parts for extent in extents])
        following = iter(chunks)
        read = [
            b"".join([_within(next(following), extent, begin, end) for extent in extents])
            for begin, end, extents in cover.parts
        ]
        check_still_there(chunks)
        return read

    def _read_each_once(self, cover: Cover) -> list[bytes]:
        """Ranges that are small beside their chunks, or share them: in the order of these, of which
        few are in memory at a time, and each is decoded once."""
        wanted: dict[int, tuple[Extent, list[int]]] = {}  # by their places in the object
        for i, (*_, extents) in enumerate(cover.parts):
            for extent in extents:
                wanted.setdefault(extent.begin, (extent, []))[1].append(i)
        pieces: list[list[bytes]] = [[] for _ in cover.parts]
        for task, chunks in self._decoded_ahead(wanted[at][0] for at in sorted(wanted)):
            for extent, chunk in zip(task, chunks, strict=True):
                for i in wanted[extent.begin][1]:
                    begin, end, _ = cover.parts[i]
                    pieces[i].append(bytes(_within(chunk, extent, begin, end)))
            check_still_there(chunks)
        return [each[0] if len(each) == 1 else b"".join(each) for each in pieces]

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


def _within(chunk: Bytes, extent: Extent, begin: int, end: int) -> memoryview:
    """The chunk's part of a range: a view, as it is copied when the parts are joined."""
    return memoryview(chunk)[max(begin - extent.begin, 0) : end - extent.begin]
