"""Taking what is not marked: segments, rows of chunks, packs.

Each transaction catches up before it takes anything, and is bounded in what it dirties. A commit
that fails ends the collection: what its transaction took rows of is not removed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice

from castore.format.index import ChunkRow, decode_chunk_row, decode_pack_row, segment_key
from castore.format.segment import decode_segment
from castore.local.gc.mark import Marker
from castore.local.gc.parts import Parts
from castore.local.gc.seal import seal_packs
from castore.local.index_walk import pages
from castore.local.locks import PackLocks
from castore.local.tables import Tables
from castore.model import StoredChunk

ROW_BYTES = 64  # about, as progress goes
ROWS_PER_READ = 8192
ROWS_MAX = 16_384  # per transaction: each may dirty a page of its own
SEGMENTS_MAX = 1024  # per transaction
PACKS_MAX = 64  # per transaction: each takes a descriptor


class Sweeper:
    """With `dry_run` it counts only."""

    def __init__(self, parts: Parts, marker: Marker) -> None:
        self._index = parts.index
        self._packs = parts.packs
        self._seed = parts.seed
        self._report = parts.report
        self._dry_run = parts.report.dry_run
        self._advance = parts.stages.relative_update
        self._marker = marker
        self._marks = marker.marks

    # ------------------------------------------------------------ segments

    def sweep_manifests(self) -> None:
        """Remove the segments of manifests that were dead when they were marked, and still are."""
        if self._dry_run:
            dead = [each for each in self._marker.dead if not self._marker.is_alive(each)]
            self._report.manifests_removed = len(dead)
            return
        index, at = self._index, 0
        while at < len(self._marker.dead):
            with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
                self._marker.make_decisive(txn)
                at = self._remove_manifests(tables, self._marker.dead, at)

    def _remove_manifests(self, tables: Tables, manifests: array[int], at: int) -> int:
        """Those from `at` on, as many as go into a transaction; where to go on."""
        room = SEGMENTS_MAX
        for i in range(at, len(manifests)):
            if self._marker.is_alive(manifests[i]):
                continue
            room -= tables.segments.delete_first(manifests[i], room)
            if not room:
                return i
            tables.pending.delete(segment_key(manifests[i], 0))
            self._report.manifests_removed += 1
        return len(manifests)

    # ------------------------------------------------------------ rows of chunks

    def sweep_chunks(self) -> None:
        """Remove the rows that lead to no live frame, and give one to each chunk that is alive and
        has none, so that it is known when it comes again."""
        after, dead = b"", list[bytes]()
        while True:
            after, rows = self._read_rows(after, dead)
            self._advance(rows * ROW_BYTES)
            if len(dead) >= ROWS_MAX or not after:
                for i in range(0, len(dead), ROWS_MAX):
                    self._remove_rows(dead[i : i + ROWS_MAX])
                dead.clear()
            if not after:
                break
        unseen = self._marks.unseen()
        if unseen:
            self._restore_rows(unseen)

    def _read_rows(self, after: bytes, dead: list[bytes]) -> tuple[bytes, int]:
        """Look at the rows that follow; the key of the last of them, or b"" at the end, and how
        many there were."""
        index, see, live, count = self._index, self._marks.see, 0, 0
        key = b""
        with index.gate, index.snapshot() as txn, txn.cursor(db=index.chunks) as cursor:
            if cursor.set_range(after + b"\0") if after else cursor.first():
                for key, row in islice(cursor, ROWS_PER_READ):
                    count += 1
                    known = decode_chunk_row(row)
                    if see(known.location, len(known.bases)):
                        live += 1
                    else:
                        dead.append(key)
        self._report.chunks += live
        return (key if count == ROWS_PER_READ else b""), count

    def _remove_rows(self, chunk_ids: list[bytes]) -> None:
        if self._dry_run:
            self._report.chunks_removed += len(chunk_ids)
            return
        if not chunk_ids:
            return
        index, removed = self._index, 0
        with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
            self._marker.make_decisive(txn)
            for chunk_id in chunk_ids:
                known = tables.chunks.known(chunk_id)
                if known is not None and not self._marks.is_live(known.location):
                    tables.chunks.delete(chunk_id)
                    removed += 1
        self._report.chunks_removed += removed

    def _restore_rows(self, unseen: dict[bytes, set[int]]) -> None:
        found: dict[bytes, StoredChunk] = {}
        for batch in self._marker.live_segments():
            for _, raw in batch:
                segment = decode_segment(raw)
                if unseen.keys().isdisjoint(segment.packs):
                    continue
                for chunk in segment.frames():
                    location = chunk.location
                    offsets = unseen.get(location.pack_id)
                    if offsets and location.offset in offsets:
                        offsets.discard(location.offset)
                        self._marks.count(location, len(location.bases))
                        if not location.bases or chunk.chunk_id not in found:
                            found[chunk.chunk_id] = chunk
            if len(found) >= ROWS_MAX:
                self._put_rows(found)
                found.clear()
        self._put_rows(found)

    def _put_rows(self, found: dict[bytes, StoredChunk]) -> None:
        if self._dry_run or not found:
            return
        index, restored = self._index, 0
        with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
            for chunk in found.values():
                if chunk.location.pack_id in tables.packs:
                    restored += tables.chunks.add(chunk.chunk_id, ChunkRow.of(chunk))
        self._report.chunks += restored

    # ------------------------------------------------------------ packs

    def sweep_packs(self) -> dict[bytes, tuple[int, int]]:
        """Remove the packs with nothing alive in them, files without rows too; the others, with
        their bytes and when they were made (ns since the epoch)."""
        made = {pack_id: created_ns for pack_id, created_ns, _ in self._pack_rows()}
        files = dict(self._packs.list())
        live = self._marks.packs
        self._report.missing = tuple(sorted(pack_id.hex() for pack_id in live - files.keys()))
        dead = sorted((made.keys() | files.keys()) - live)
        self.remove_packs(dead, files)
        return {
            pack_id: (size, made[pack_id])
            for pack_id, size in files.items()
            if pack_id in live and pack_id in made
        }

    def seal_packs(self, but: Collection[bytes]) -> None:
        """End the packs whose writers did not. A dry run counts those that would be left: not the
        dead, and `but` these, which would be rewritten."""
        rows = self._pack_rows()
        if self._dry_run:
            rows = [row for row in rows if row[0] in self._marks.packs and row[0] not in but]
        ends = [(pack_id, end) for pack_id, _, end in rows]
        self._report.packs_sealed = seal_packs(
            self._packs, ends, seed=self._seed, dry_run=self._dry_run
        )

    def _pack_rows(self) -> list[tuple[bytes, int, int]]:
        """(pack id, creation time in ns since the epoch, durable bytes) of each."""
        rows = (row for page in pages(self._index, self._index.packs) for row in page)
        return [(pack_id, *decode_pack_row(row)) for pack_id, row in rows]

    def remove_packs(
        self,
        pack_ids: Sequence[bytes],
        files: dict[bytes, int],
        referred: Callable[[bytes], bool] | None = None,
    ) -> set[bytes]:
        """Remove those that nothing is `referred` to in, and whose lock can be had."""
        if self._dry_run:
            return self._count_packs(pack_ids, files)
        removed: set[bytes] = set()
        for i in range(0, len(pack_ids), PACKS_MAX):
            removed |= self._remove_some(pack_ids[i : i + PACKS_MAX], referred or self._marks.has)
        return removed

    def _remove_some(
        self, pack_ids: Iterable[bytes], referred: Callable[[bytes], bool]
    ) -> set[bytes]:
        index, report = self._index, self._report
        removed: set[bytes] = set()
        orphans = 0
        with PackLocks(self._packs) as locks:
            with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
                self._marker.make_decisive(txn)
                for pack_id in pack_ids:
                    if referred(pack_id):
                        continue
                    if locks.take(pack_id) is False:
                        report.packs_busy += 1
                        continue
                    orphans += not tables.packs.delete(pack_id)
                    removed.add(pack_id)
            # Committed: nothing in the index leads there any more.
            report.bytes_freed += locks.remove()
        report.packs_removed += len(removed)
        report.orphans_removed += orphans
        return removed

    def _count_packs(self, pack_ids: Iterable[bytes], files: dict[bytes, int]) -> set[bytes]:
        counted = set()
        with PackLocks(self._packs) as locks:
            for pack_id in pack_ids:
                if locks.is_held(pack_id):
                    self._report.packs_busy += 1
                    continue
                counted.add(pack_id)
                self._report.bytes_freed += files.get(pack_id, 0)
        self._report.packs_removed += len(counted)
        return counted
