"""Batches of names, as those read them who look for a name. A batch never changes, so what comes
before its manifests is remembered.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple, TypeAlias

from castore.errors import FormatError, StoreIOError
from castore.format.s3_batches import (
    BatchedName,
    BatchIndex,
    Root,
    RootEntry,
    decode_batch_head,
    digest_of,
)
from castore.s3.batch_root import REPAIR, BatchRoot
from castore.s3.cache.store import StoreCache
from castore.s3.client.bucket import Bucket, KeyAbsent
from castore.s3.keys import batch_key
from castore.s3.told import undamaged
from castore.system.workers import Future

ROWS_MAX = 1 << 19  # of indexes in memory: some 200 bytes each
SPAN_BYTES = 1 << 20  # fetched at once of a batch that is read from its beginning
SPANS_MAX = 8  # the last ones


class Found(NamedTuple):
    """What the root says of a name, and its number: a batch's entry and row, unless it was
    dropped, or the row says that it is deleted."""

    number: int
    entry: RootEntry | None = None
    row: BatchedName | None = None
    dropped: bool = False

    @property
    def there(self) -> BatchedName | None:
        return None if self.dropped or self.row is None or self.row.deleted else self.row


_Row: TypeAlias = tuple[bytes, int, Found]  # name, its number below 0, and what it is


class Batches(BatchRoot):
    """Of one store, and the root that tells of them. Thread-safe."""

    def __init__(self, bucket: Bucket, store_id: bytes, cache: StoreCache) -> None:
        super().__init__(bucket, store_id, cache)
        self._indexes: dict[bytes, BatchIndex] = {}
        self._spans: dict[tuple[bytes, int], Future[bytes]] = {}  # of batches
        self._pid = os.getpid()
        self._ends: dict[bytes, int] = {}  # of what was read last of each

    # ------------------------------------------------------------ names

    def find(self, root: Root, name: bytes) -> Found | None:
        """What counts of batches and drops for the name, if anything. Raises BatchGone."""
        dropped = root.dropped(name)
        best = None if dropped < 0 else Found(dropped)
        for found in self.live(root, name):
            if best is None or found.number > best.number:
                best = found
        return best

    def live(self, root: Root, name: bytes) -> Iterator[Found]:
        """All that batches say of the name which are not retired. Raises BatchGone."""
        return self._rows_of(name, (e for e in root.having(name) if not e.retired))

    def retired_number(self, root: Root, name: bytes) -> int:
        """The highest of what a batch says of the name that is retired; -1 if none does. Raises
        BatchGone."""
        rows = self._rows_of(name, (e for e in root.having(name) if e.retired))
        return max((found.number for found in rows), default=-1)

    def covers(self, root: Root, name: bytes) -> bool:
        """Whether a batch has the name, whatever counts. Raises BatchGone."""
        return next(self._rows_of(name, root.having(name)), None) is not None

    def all_below(
        self, root: Root, prefix: bytes, start_after: bytes, *, lazily: bool
    ) -> Iterator[Found]:
        """What counts of batches and drops for each name that begins with the prefix and sorts
        behind `start_after`, in order, of those that some batch has. `lazily`: what a batch has is
        read where its first name may be next, and not kept behind its last. Else all is read before
        the first name, for who goes by one root for so long that batches of it may be collected
        meanwhile. Raises BatchGone."""

        def rows(entry: RootEntry) -> Iterator[_Row]:
            for row in self.index(entry).below(prefix, start_after):
                number = row.number or entry.number
                yield row.name, -number, Found(number, entry, row)

        merged = _merged(
            (entry.first if lazily else b"", rows(entry))
            for entry in root.having_below(prefix)
            if not entry.retired and entry.last > start_after
        )
        for name, same in groupby(merged, key=lambda each: each[0]):
            found = next(same)[2]
            yield found if found.number > root.dropped(name) else found._replace(dropped=True)

    def _rows_of(self, name: bytes, entries: Iterable[RootEntry]) -> Iterator[Found]:
        for entry in entries:
            if (row := self.index(entry).find(name)) is not None:
                yield Found(row.number or entry.number, entry, row)

    def known(self, name: bytes) -> bool:
        """Whether it was in a batch when the root was read last, as far as memory tells."""
        seen = self.seen
        for entry in () if seen is None else seen.root.having(name):
            index = self._indexes.get(entry.batch_id)
            if index is None or index.find(name) is not None:
                return True
        return False

    # ------------------------------------------------------------ batches

    def index(self, entry: RootEntry) -> BatchIndex:
        """Raises BatchGone, FormatError."""
        index = self._indexes.get(entry.batch_id)
        if index is None:
            key = batch_key(entry.batch_id)
            blob = self._cache.blob(key)
            if blob is not None:
                try:
                    index = self._read_index(blob[1])
                except FormatError:
                    blob = None
            if index is None:

                def read() -> tuple[BatchIndex, bytes]:
                    raw = self._bucket.get(key, byte_range=(0, entry.index_bytes)).body
                    return self._read_index(raw), raw

                try:
                    index, raw = undamaged(read)
                except KeyAbsent:
                    raise BatchGone(entry.batch_id) from None
                self._cache.keep_blob(key, "", raw)
            self._keep_index(entry.batch_id, index)
        return index

    def _read_index(self, raw: bytes) -> BatchIndex:
        head = decode_batch_head(raw)
        if head.store_id != self._store_id:
            raise FormatError("a batch belongs to another store")
        return head.names

    def _keep_index(self, batch_id: bytes, index: BatchIndex) -> None:
        with self._lock:
            kept = sum(len(each.rows) for each in self._indexes.values())
            while self._indexes and kept + len(index.rows) > ROWS_MAX:
                kept -= len(self._indexes.pop(next(iter(self._indexes))).rows)
            self._indexes[batch_id] = index

    def put(self, batch_id: bytes, raw: bytes, index_bytes: int) -> None:
        """Write a batch, whose id is new."""
        self._bucket.put(batch_key(batch_id), raw, idempotent=True)
        head = raw[:index_bytes]
        self._keep_index(batch_id, self._read_index(head))
        self._cache.keep_blob(batch_key(batch_id), "", head)

    def read(self, found: Found, begin: int, end: int) -> bytes:
        """Bytes `[begin, end)` of its manifest, as many as there are. Where a batch is read from
        one to the next, much of it is fetched at a time, and once. Raises BatchGone."""
        _, entry, row, _ = found
        assert entry is not None
        assert row is not None
        at, until = row.offset + begin, min(row.offset + end, row.end)
        last = self._ends.get(entry.batch_id)
        self._ends[entry.batch_id] = until
        try:
            if last is not None and abs(at - last) <= SPAN_BYTES:  # from several threads: about
                manifest = self._in_spans(entry, row)
                # Or it was damaged on its way, and whoever asks again would find that in memory.
                if digest_of(manifest) == row.digest:
                    return manifest[begin : until - row.offset]
            return self._bucket.get(batch_key(entry.batch_id), byte_range=(at, until)).body
        except KeyAbsent:
            raise BatchGone(entry.batch_id) from None

    def manifest(self, found: Found) -> bytes:
        """All of it, as it was put. Raises BatchGone; FormatError where it is damaged."""
        row = found.row
        assert row is not None

        def read() -> bytes:
            manifest = self.read(found, 0, row.length)
            if digest_of(manifest) != row.digest:
                raise FormatError("it is not what was put into its batch")
            return manifest

        return undamaged(read)

    def _in_spans(self, entry: RootEntry, row: BatchedName) -> bytes:
        first = row.offset // SPAN_BYTES
        spans = [self._span(entry, n) for n in range(first, -(-row.end // SPAN_BYTES))]
        begin = row.offset - first * SPAN_BYTES
        return b"".join([span.result() for span in spans])[begin : begin + row.length]

    def _span(self, entry: RootEntry, number: int) -> Future[bytes]:
        """The n-th of the batch, from memory or on its way."""
        if self._pid != os.getpid():  # what is on its way comes to the parent
            self._spans, self._pid = {}, os.getpid()
        key = entry.batch_id, number
        span = self._spans.get(key)
        if span is None or (span.done() and span.exception() is not None):
            begin, end = number * SPAN_BYTES, min((number + 1) * SPAN_BYTES, entry.size)
            at = batch_key(entry.batch_id)
            span = self._readers.submit(lambda: self._bucket.get(at, byte_range=(begin, end)).body)
        with self._lock:
            self._spans.pop(key, None)
            while len(self._spans) >= SPANS_MAX:
                del self._spans[next(iter(self._spans))]
            self._spans[key] = span
        return span


class BatchGone(StoreIOError):
    """A batch that the root told of is not there: it was collected since, or is lost."""

    def __init__(self, batch_id: bytes) -> None:
        super().__init__(f"{batch_key(batch_id)} is gone, which batches/root tells of: {REPAIR}")
        self.batch_id = batch_id


def _merged(sources: Iterable[tuple[bytes, Iterator[_Row]]]) -> Iterator[_Row]:
    """All rows in order. Each source comes with a name that none of its rows sorts before, and is
    not asked until that is reached."""
    # What was not asked yet has no row, and comes before all rows of that name.
    heap: list[tuple[bytes, bool, int, int, _Row | None, Iterator[_Row]]]
    heap = [(name, False, 0, i, None, rows) for i, (name, rows) in enumerate(sources)]
    heapq.heapify(heap)
    while heap:
        _, _, _, i, row, rows = heap[0]
        if row is not None:
            yield row
        row = next(rows, None)
        if row is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (row[0], True, row[1], i, row, rows))
