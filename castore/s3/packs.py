"""Packs as S3 objects: PUT whole, read by ranged GETs, frames kept in the disk cache.

Gaps between the frames that a read needs are fetched with them up to GAP_BYTES. Measured at 20 ms
and 100 MB/s on the last of six releases of botocore, whose frames are scattered over the packs of
all (`get` of all of it; `gets` of 4 MiB; medians of two rounds on two busy cores):

    gap, KiB      0     64    128    256    512   1024
    get, s     1.14   0.71   0.51   0.54   0.52   0.57
    fetched   14.2   16.6   19.0   23.0   30.8   35.6   MB
    requests    226    133    107     85     64     58
    gets, ms     58     45     45     45     48     47

From 128 KiB on, more bytes buy no time. Spans of 2 to 16 MiB take the same time within the noise
(`gets` of 16 MiB 209 to 220 ms, `get` of 128 MiB 1.6 to 1.8 s; with 1 MiB 311 ms and 1.96 s): 8 MiB
takes few requests, and bounds what a reply takes in memory.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from functools import partial

from castore.errors import FormatError, PackMissing, StoreClosed
from castore.model import Location
from castore.s3.cache.frames import FrameCache
from castore.s3.client.bucket import Bucket, KeyAbsent
from castore.s3.keys import pack_key
from castore.stream.backend import NOTHING_HELD, Held
from castore.stream.coalesce import Span, coalesce
from castore.system.forks import ForkLock, Rank
from castore.system.workers import Future, Workers

GAP_BYTES = 128 << 10
SPAN_BYTES_MAX = 8 << 20


class S3Packs:
    """Frames of a store's packs: from the disk cache, or by ranged GETs. Thread-safe."""

    task_bytes = 8 << 20

    def __init__(self, bucket: Bucket, cache: FrameCache, requests: Workers) -> None:
        self._bucket = bucket
        self._cache = cache
        self._requests = requests
        # One request at a time for a span, however many threads want it.
        self._flying: dict[tuple[bytes, int, int], Future[bytes]] = {}
        self._pid = os.getpid()
        self._lock = ForkLock(Rank.PACKS)

    def frames(self, places: Sequence[Location], held: Held) -> Sequence[bytes | memoryview]:
        return self.frames_across(places, GAP_BYTES)

    def frames_across(
        self, places: Sequence[Location], gap_bytes: int
    ) -> Sequence[bytes | memoryview]:
        """As `frames`; what lies between two is fetched with them if it is no more than that."""
        found: list[bytes | memoryview | None] = [*self._cache.get(places)]
        missing: dict[bytes, list[int]] = {}
        for i, frame in enumerate(found):
            if frame is None:
                missing.setdefault(places[i].pack_id, []).append(i)
        fetched: list[tuple[Location, bytes | memoryview]] = []
        for pack_id, wanted, span, future in self._start(places, missing, gap_bytes):
            body = memoryview(future.result())
            for part in span.parts:
                location = places[wanted[part]]
                begin = location.offset - span.begin
                frame = body[begin : begin + location.stored_bytes]
                if len(frame) != location.stored_bytes:
                    raise FormatError(f"pack {pack_id.hex()} ends within a frame")
                found[wanted[part]] = frame
                fetched.append((location, frame))
        self._cache.put(fetched)
        return found  # type: ignore[return-value]

    def at_hand(self, place: Location) -> bytes | memoryview | None:
        return self._cache.get([place])[0]

    def hold(self, pack_ids: Collection[bytes]) -> Held:
        """Nothing to do: the collector's grace keeps packs that are in use; past it, a read says
        PackMissing."""
        return NOTHING_HELD

    def let_go(self, places: Sequence[Location], held: Held) -> None:
        """Nothing is mapped that adds up."""

    def forget(self, *locations: Location) -> None:
        self._cache.drop(*locations)

    def _start(
        self, places: Sequence[Location], missing: dict[bytes, list[int]], gap_bytes: int
    ) -> list[tuple[bytes, list[int], Span, Future[bytes]]]:
        started = []
        for pack_id, wanted in missing.items():
            ranges = []
            for i in wanted:
                offset = places[i].offset
                ranges.append((offset, offset + places[i].stored_bytes))
            for span in coalesce(ranges, gap_bytes=gap_bytes, span_bytes_max=SPAN_BYTES_MAX):
                started.append((pack_id, wanted, span, self._fly(pack_id, span.begin, span.end)))
        return started

    def _fly(self, pack_id: bytes, begin: int, end: int) -> Future[bytes]:
        key = (pack_id, begin, end)
        with self._lock:
            if self._pid != os.getpid():  # the threads that would answer are the parent's
                self._flying, self._pid = {}, os.getpid()
            future = self._flying.get(key)
            # One that is done may not have been taken out yet, and what it fetched may be why the
            # span is fetched again.
            if future is not None and not future.done():
                return future
            try:
                future = self._requests.submit(self._fetch, pack_id, begin, end)
            except StoreClosed:  # an object that is open can still be read
                return self._fetched(pack_id, begin, end)
            flying = self._flying
            flying[key] = future

        def landed(done: Future[bytes]) -> None:
            if flying.get(key) is done:
                del flying[key]

        future.add_done_callback(landed)
        return future

    def _fetched(self, pack_id: bytes, begin: int, end: int) -> Future[bytes]:
        future = Future(partial(self._fetch, pack_id, begin, end))
        future.run()
        return future

    def _fetch(self, pack_id: bytes, begin: int, end: int) -> bytes:
        try:
            return self._bucket.get(pack_key(pack_id), byte_range=(begin, end)).body
        except KeyAbsent:
            raise PackMissing(pack_id) from None


def absent_packs(bucket: Bucket, requests: Workers, pack_ids: Iterable[bytes]) -> set[bytes]:
    """Those that are not there; each is asked for by itself, many at once."""

    def is_absent(pack_id: bytes) -> bool:
        try:
            bucket.head(pack_key(pack_id))
        except KeyAbsent:
            return True
        return False

    asked = [(pack_id, requests.submit(is_absent, pack_id)) for pack_id in pack_ids]
    return {pack_id for pack_id, absent in asked if absent.result()}
