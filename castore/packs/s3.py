"""Packs as S3 objects: PUT whole, read by ranged GETs, frames kept in the disk cache.

Gaps between the frames that a read needs are fetched with them up to GAP_BYTES: at 20 ms a round
trip and 100 MB/s a request costs as much as 2 MB, but many run at once, so only what a connection
moves in a few milliseconds is worth fetching for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future

from castore.coalesce import Span, coalesce
from castore.errors import FormatError, PackMissing
from castore.forks import ForkLock, Rank
from castore.format_s3 import pack_key
from castore.model import Extent, Location
from castore.packs import NOTHING_HELD, Held
from castore.s3.bucket import Bucket, KeyAbsent
from castore.s3.cache import FrameCache
from castore.workers import Workers

GAP_BYTES = 128 << 10
SPAN_BYTES_MAX = 8 << 20


class S3Packs:
    task_bytes = 8 << 20

    def __init__(self, bucket: Bucket, cache: FrameCache, requests: Workers) -> None:
        self._bucket = bucket
        self._cache = cache
        self._requests = requests
        # One request at a time for a span, however many threads want it.
        self._flying: dict[tuple[bytes, int, int], Future[bytes]] = {}
        self._lock = ForkLock(Rank.PACKS)

    def frames(self, extents: Sequence[Extent], held: Held) -> Sequence[bytes | memoryview]:
        places = [(extent.location.pack_id, extent.location.offset) for extent in extents]
        found: list[bytes | memoryview | None] = [
            frame if frame is None or len(frame) == extent.location.stored_bytes else None
            for frame, extent in zip(self._cache.get(places), extents, strict=True)
        ]
        missing: dict[bytes, list[int]] = {}
        for i, frame in enumerate(found):
            if frame is None:
                missing.setdefault(places[i][0], []).append(i)
        fetched: list[tuple[bytes, int, bytes | memoryview]] = []
        for pack_id, wanted, span, future in self._start(extents, missing):
            body = memoryview(future.result())
            for part in span.parts:
                location = extents[wanted[part]].location
                begin = location.offset - span.begin
                frame = body[begin : begin + location.stored_bytes]
                if len(frame) != location.stored_bytes:
                    raise FormatError(f"pack {pack_id.hex()} ends within a frame")
                found[wanted[part]] = frame
                fetched.append((pack_id, location.offset, frame))
        self._cache.put(fetched)
        return found  # type: ignore[return-value]

    def hold(self, pack_ids: Collection[bytes]) -> Held:
        """Nothing to do: the collector's grace keeps packs that are in use; past it, a read says
        PackMissing."""
        return NOTHING_HELD

    def let_go(self, extents: Sequence[Extent], held: Held) -> None:
        """Nothing is mapped that adds up."""

    def forget(self, location: Location) -> None:
        self._cache.drop(location.pack_id, location.offset)

    def _start(
        self, extents: Sequence[Extent], missing: dict[bytes, list[int]]
    ) -> list[tuple[bytes, list[int], Span, Future[bytes]]]:
        started = []
        for pack_id, wanted in missing.items():
            ranges = []
            for i in wanted:
                _, offset, stored_bytes = extents[i].location
                ranges.append((offset, offset + stored_bytes))
            for span in coalesce(ranges, gap_bytes=GAP_BYTES, span_bytes_max=SPAN_BYTES_MAX):
                started.append((pack_id, wanted, span, self._fly(pack_id, span.begin, span.end)))
        return started

    def _fly(self, pack_id: bytes, begin: int, end: int) -> Future[bytes]:
        key = (pack_id, begin, end)
        with self._lock:
            future = self._flying.get(key)
            if future is not None:
                return future
            future = self._flying[key] = self._requests.submit(self._fetch, pack_id, begin, end)
        future.add_done_callback(lambda _: self._flying.pop(key, None))
        return future

    def _fetch(self, pack_id: bytes, begin: int, end: int) -> bytes:
        try:
            reply = self._bucket.get(pack_key(pack_id), byte_range=(begin, end))
        except KeyAbsent:
            raise PackMissing(pack_id) from None
        assert reply is not None  # no condition was set
        return reply.body
