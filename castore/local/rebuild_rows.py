"""The rows of a local store's index, made anew from what its packs hold.

They come from the packs' footers (or their frames, where a pack has no footer). A row that was
there and leads to its frame is kept; one is added only for a frame that was read and found whole,
as a pack whose writer died may hold frames that never reached the disk.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from castore.check.objects import chunk_fault, extent_fault
from castore.check.scan import PackScan
from castore.errors import FormatError, IndexCorrupt
from castore.format.config import StoreConfig, encode_config
from castore.format.index import (
    ChunkRow,
    Record,
    Totals,
    decode_chunk_row,
    decode_record,
    manifest_of,
)
from castore.format.journal import Unclaimed
from castore.format.pack import PackEntry
from castore.format.segment import decode_segment
from castore.local.check.pack_files import LocalPackSource, pack_path
from castore.local.index_walk import durable_bytes, pages
from castore.local.journal.log import UNCLAIMED
from castore.local.meta import CONFIG, STORE_ID
from castore.local.tables import Tables
from castore.model import Location, Progress, StoredChunk
from castore.stream.known import located
from castore.stream.reports import RebuildReport
from castore.system.lmdb_env import Index
from castore.system.lmdb_snapshot import Snapshot, Table

ROWS_MAX = 4096  # written in one transaction


class RowRebuild:
    """Of an index that nobody else uses: `make_rows`, then the names, then `finish`."""

    def __init__(
        self, index: Index, root: str, config: StoreConfig, progress: Progress | None
    ) -> None:
        self._index = index
        self._root = root
        self._config = config
        self._progress = progress
        self._source = LocalPackSource(root)
        self._scan = PackScan(self._source, config)
        self._readings = self._scan.readings
        self._report = RebuildReport()
        self._named: set[int] = set()
        self._durable: dict[bytes, int] = {}

    def make_rows(self) -> None:
        """Rows for all packs and all whole frames, and none that lead elsewhere."""
        self._mend_meta()
        for page in pages(self._index, self._index.packs):
            self._durable |= {pack_id: durable_bytes(row) for pack_id, row in page}
        self._read_packs()
        self._drop_stale(self._index.packs, self._pack_is_there)
        self._report.chunk_rows_dropped = self._drop_stale(self._index.chunks, self._row_is_right)
        for pack_id, reading in self._readings.items():
            self._add_rows(pack_id, [entry for entry in reading.frames if not entry.bases])
            # Without a row it is an orphan. Nothing can be read of it: its writer died before it
            # was durable, or what names need of it is lost, which they say themselves.
            if reading.known or len(reading.frames):
                self._add_pack_row(pack_id)
            if self._progress is not None:
                self._progress.relative_update(reading.end)
        # Of what decodes with what: bases that nothing needed any more may be gone, and of some
        # chunks there is another delta, whose bases are here.
        dropped = self._drop_stale(self._index.chunks, self._has_bases)
        self._report.chunk_rows_dropped += dropped
        for pack_id, reading in self._readings.items():
            self._add_rows(pack_id, [entry for entry in reading.frames if entry.bases])

    def finish(self, unclaimed: str = "") -> RebuildReport:
        """Lead the segments to where their frames are, and sum up. `unclaimed` says which chunks
        that no name leads to are to be kept: those "since" the pack rows that were taken over,
        "all", or none."""
        self._move_extents()
        self._count()
        self._mark_unclaimed(unclaimed)
        return self._report

    def _mend_meta(self) -> None:
        """The rows that say whose index this is: they may be lost."""
        index, config = self._index, self._config
        with index.write_gate, index.errors, index.begin() as txn:
            txn.put(STORE_ID, config.store_id, db=index.meta, overwrite=False)
            if txn.get(STORE_ID, db=index.meta) != config.store_id:
                raise IndexCorrupt(f"the names are not those of the store {self._root}")
            txn.put(CONFIG, encode_config(config), db=index.meta)
            tables = Tables(index, txn)
            tables.put_totals(Totals())  # they are counted at the end
            tables.end_marking()

    # ------------------------------------------------------------ packs and chunks

    def _read_packs(self) -> None:
        self._scan.add(*self._source.packs())
        if self._progress is not None:
            self._progress.set_size(sum(reading.end for reading in self._readings.values()))

    def _add_rows(self, pack_id: bytes, frames: Iterable[PackEntry]) -> None:
        """A row for each chunk of these frames of the pack that has none."""
        index, bad = self._index, self._readings[pack_id].bad
        entries = [entry for entry in frames if entry.offset not in bad]
        for i in range(0, len(entries), ROWS_MAX):
            added = self._without_row(entries[i : i + ROWS_MAX])
            whole = [e for e in added if self._scan.is_whole(pack_id, e)]
            with (
                index.write_gate,
                index.errors,
                index.begin() as txn,
                Tables(index, txn) as tables,
                tables.chunks.gathered(),
            ):
                for entry in whole:
                    at = Location(pack_id, entry.offset, entry.stored_bytes)
                    row = ChunkRow(entry.raw_bytes, at, entry.bases)
                    self._report.chunk_rows_added += tables.chunks.add(entry.chunk_id, row)

    def _add_pack_row(self, pack_id: bytes) -> None:
        index = self._index
        with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
            if not durable_bytes(txn.get(pack_id, db=index.packs)):
                created_ns = os.stat(pack_path(self._root, pack_id)).st_mtime_ns
                tables.packs.put(pack_id, created_ns, self._readings[pack_id].end)

    def _without_row(self, entries: list[PackEntry]) -> list[PackEntry]:
        """Those whose chunks have none, or only that of a delta, and the frame is none. Of deltas,
        those whose bases have rows."""
        with self._index.gate, self._index.snapshot() as txn:
            rows = [txn.get(entry.chunk_id, db=self._index.chunks) for entry in entries]
            return [
                entry
                for entry, row in zip(entries, rows, strict=True)
                if (row is None and self._have_rows(txn, entry.bases))
                or (row is not None and not entry.bases and decode_chunk_row(row).bases)
            ]

    def _have_rows(self, txn: Snapshot, bases: Iterable[bytes]) -> bool:
        """Whether these chunks have rows of frames that are no deltas."""
        rows = [txn.get(base, db=self._index.chunks) for base in bases]
        return all(row is not None and not decode_chunk_row(row).bases for row in rows)

    def _has_bases(self, _: bytes, row: bytes) -> bool:
        bases = decode_chunk_row(row).bases
        if not bases:
            return True
        with self._index.gate, self._index.snapshot() as txn:
            return self._have_rows(txn, bases)

    def _row_is_right(self, chunk_id: bytes, row: bytes) -> bool:
        try:
            return chunk_fault(chunk_id, decode_chunk_row(row), self._readings) is None
        except FormatError:
            return False

    def _pack_is_there(self, pack_id: bytes, row: bytes) -> bool:
        return pack_id in self._readings

    def _drop_stale(self, table: Table, is_right: Callable[[bytes, bytes], bool]) -> int:
        """Delete the rows that are not right; how many."""
        index, dropped = self._index, 0
        for batch in pages(index, table):
            stale = [key for key, row in batch if not is_right(key, row)]
            with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
                rows = tables.chunks if table is index.chunks else tables.packs
                for key in stale:
                    rows.delete(key)
            dropped += len(stale)
        return dropped

    # ------------------------------------------------------------ segments

    def _move_extents(self) -> None:
        """What segments say is in packs that are gone may be in others by now."""
        index = self._index
        for batch in pages(index, index.segments):
            moved = {}
            for key, raw in batch:
                try:
                    replaced = decode_segment(raw).relocated(self._moved)
                except FormatError:
                    continue
                if replaced is not None:
                    moved[key] = replaced
            if moved:
                with index.write_gate, index.errors, index.begin() as txn:
                    segments = Tables(index, txn).segments
                    for key, raw in moved.items():
                        segments.put(key, raw)

    def _moved(self, chunk: StoredChunk) -> Location | None:
        if chunk_fault(chunk.chunk_id, ChunkRow.of(chunk), self._readings) is None:
            return None
        with self._index.gate, self._index.snapshot() as txn:

            def rows(chunk_ids: Iterable[bytes]) -> dict[bytes, ChunkRow]:
                found = ((i, txn.get(i, db=self._index.chunks)) for i in chunk_ids)
                return {i: decode_chunk_row(row) for i, row in found if row is not None}

            row = rows([chunk.chunk_id])
            location = located(row, rows).get(chunk.chunk_id)
        if location is None or row[chunk.chunk_id].raw_bytes != chunk.raw_bytes:
            return None
        self._report.extents_moved += 1
        return location

    # ------------------------------------------------------------ sums

    def _count(self) -> None:
        """The totals, and the names that are lost. Raises UnsupportedFormat: what a record of a
        later castore leads to is not known, and would be taken for garbage."""
        index, report = self._index, self._report
        unreadable = set(self._unreadable_manifests())
        ends = self._ends
        moved: dict[bytes, Record] = {}  # of names whose frames are others now, of another size
        totals = Totals()
        for batch in pages(index, index.names):
            for name, raw in batch:
                report.names += 1
                try:
                    record = decode_record(raw)
                except FormatError:
                    report.lost.append(name.decode(errors="backslashreplace"))
                    continue
                totals.count_object(record, +1)
                self._named.add(record.manifest)
                if record.is_inline:
                    continue
                if record.manifest in unreadable or ends.get(record.manifest) != record.size:
                    report.lost.append(name.decode(errors="backslashreplace"))
                elif self._stored[record.manifest] != record.stored_bytes:
                    stored_bytes = self._stored[record.manifest]
                    moved[name] = record._replace(stored_bytes=stored_bytes)
            with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
                for name, record in moved.items():
                    tables.names.put(name, record)
                moved.clear()
        for batch in pages(index, index.chunks):
            for _, row in batch:
                report.chunks += 1
                totals.count_chunk(decode_chunk_row(row), +1)
        report.packs = len(self._readings)
        with index.write_gate, index.errors, index.begin() as txn:
            Tables(index, txn).put_totals(totals)

    def _mark_unclaimed(self, which: str) -> None:
        index, report = self._index, self._report
        if which:
            claimed = self._claimed()
            since = self._durable if which == "since" else {}
            for batch in pages(index, index.chunks):
                for chunk_id, row in batch:
                    at = decode_chunk_row(row).location
                    if chunk_id not in claimed and at.offset >= since.get(at.pack_id, 0):
                        report.unclaimed_chunks += 1
                        report.unclaimed_bytes += at.stored_bytes
        mark = Unclaimed(report.unclaimed_chunks, report.unclaimed_bytes)
        with index.write_gate, index.errors, index.begin() as txn:
            if mark.chunks:
                txn.put(UNCLAIMED, mark.encode(), db=index.meta)
            else:
                txn.delete(UNCLAIMED, db=index.meta)

    def _claimed(self) -> set[bytes]:
        """The chunks that names lead to."""
        claimed: set[bytes] = set()
        for batch in pages(self._index, self._index.segments):
            for key, raw in batch:
                if manifest_of(key) not in self._named:
                    continue
                with contextlib.suppress(FormatError):
                    claimed.update(chunk.chunk_id for chunk in decode_segment(raw).frames())
        return claimed

    def _unreadable_manifests(self) -> Iterator[int]:
        """Whose segments do not follow each other, or lead to what is in no pack."""
        self._ends: dict[int, int] = {}
        self._stored: defaultdict[int, int] = defaultdict(int)
        for batch in pages(self._index, self._index.segments):
            for key, raw in batch:
                manifest = manifest_of(key)
                try:
                    segment = decode_segment(raw)
                    whole = segment.begin == self._ends.get(manifest, 0) and not any(
                        extent_fault(extent, self._readings) for extent in segment
                    )
                    self._ends[manifest] = segment.end
                    self._stored[manifest] += sum(e.location.stored_bytes for e in segment)
                except FormatError:
                    whole = False
                if not whole:
                    yield manifest
