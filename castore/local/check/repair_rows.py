"""The rows of a local store's index that are damaged, or lead to no frame: put right where it is
known what is right, else dropped, if others can do without them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial

from castore.check.bitflip import corrected
from castore.check.objects import chunk_fault
from castore.errors import FormatError, UnsupportedFormat, fault_of
from castore.format.index import (
    ChunkRow,
    Totals,
    decode_chunk_row,
    decode_pack_row,
    decode_record,
    manifest_of,
    segment_key,
    segment_place,
)
from castore.format.journal import Unclaimed
from castore.format.segment import OWNER_MASK, decode_segment
from castore.local.check.pack_files import pack_path
from castore.local.check.repair_packs import PackRepair, Parts
from castore.local.check.segments import decodes, is_pending, named_manifests, segments_of
from castore.local.index_walk import pages
from castore.local.journal.log import PLACE, UNCLAIMED
from castore.local.meta import (
    CHANGE_KEY_BYTES,
    GC_SEQ,
    STORE_ID,
    TOTALS,
    is_damaged_id,
    meta_faults,
    next_number,
)
from castore.local.tables import PackRows, SegmentRows, Tables
from castore.stream.reports import CheckReport
from castore.system.lmdb_env import Txn
from castore.system.lmdb_snapshot import Table
from castore.wording import counted

ROWS_MAX = 4096  # of chunks, changed in one transaction


class RowRepair:
    def __init__(self, parts: Parts, packs: PackRepair, done: list[str]) -> None:
        self._root = parts.root
        self._store_id = parts.config.store_id
        self._index = parts.index
        self._packs = packs
        self._done = done

    # ------------------------------------------------------------ single bits

    def mend_bits(self, report: CheckReport) -> None:
        """Put right the records and segments that have one bit flipped."""
        names = [
            p.names[0] for p in report.problems if p.kind in ("record", "manifest") and p.names
        ]
        for name in dict.fromkeys(names):
            key = name.encode(errors="surrogateescape")
            self._mend(self._index.names, key, decode_record, f"the record of {name!r}")
            for segment in self._damaged_segments(key):
                decode = partial(decode_segment, manifest=manifest_of(segment))
                self._mend(self._index.segments, segment, decode, f"a segment of {name!r}")

    def mend_keys(self) -> None:
        """A segment says where it ends, and whose it is: one with another key is put where it
        belongs, unless there is one. One whose key says nothing, and that is no object's, goes."""
        index = self._index
        owners = self._named_by_owner()
        for page in pages(index, index.segments):
            wrong = {}
            for key, raw in page:
                right = _right_key(key, raw, owners)
                if right != key:
                    wrong[key] = right
            if not wrong:
                continue
            with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
                for key, right in wrong.items():
                    self._move_segment(tables.segments, key, right)

    def _move_segment(self, segments: SegmentRows, key: bytes, right: bytes | None) -> None:
        raw = segments.get(key)
        if raw is None:
            return
        there = None if right is None else segments.get(right)
        if right is not None and (there is None or not decodes(there, manifest_of(right))):
            segments.put(right, raw)
            self._done.append("a segment had a damaged key: it is put right")
        elif right is None or there == raw or len(key) != len(right):
            self._done.append("a segment of no object had a damaged key: it is dropped")
        else:
            return
        segments.delete(key)

    def _named_by_owner(self) -> dict[int, int]:
        """The manifests that names have, by what their segments say of them."""
        index = self._index
        with index.gate, index.snapshot() as txn:
            return {manifest & OWNER_MASK: manifest for manifest in named_manifests(index, txn)}

    def _damaged_segments(self, name: bytes) -> list[bytes]:
        index = self._index
        with index.gate, index.snapshot() as txn:
            raw = txn.get(name, db=index.names)
            if raw is None:
                return []
            try:
                record = decode_record(raw)
            except (FormatError, UnsupportedFormat):
                return []
            return [
                key
                for key, value in segments_of(index, txn, record.manifest)
                if not decodes(value, record.manifest)
            ]

    def _mend(self, table: Table, key: bytes, decode: Callable[[bytes], object], what: str) -> None:
        with self._index.gate, self._index.snapshot() as txn:
            raw = txn.get(key, db=table)
        if raw is None or not fault_of(decode, raw):
            return
        right = corrected(raw, decode)
        if right is None:
            return
        with self._index.write_gate, self._index.errors, self._index.begin() as txn:
            if txn.get(key, db=table) != raw:
                return
            txn.put(key, right, db=table)
        self._done.append(f"{what} had one bit flipped: it is put right")

    # ------------------------------------------------------------ meta

    def mend_meta(self) -> None:
        """While no collector runs: a repair has its lock."""
        index = self._index
        with index.write_gate, index.errors, index.begin() as txn:
            rows = [(bytes(key), bytes(value)) for key, value in txn.cursor(db=index.meta)]
            for key, fault in meta_faults(rows, self._store_id):
                if key == STORE_ID:
                    found = txn.get(STORE_ID, db=index.meta)
                    if found is None or not is_damaged_id(found, self._store_id):
                        continue
                    txn.put(STORE_ID, self._store_id, db=index.meta)
                elif key == GC_SEQ:
                    next_number(index, txn, GC_SEQ)
                elif key == TOTALS:
                    Tables(index, txn).put_totals(Totals())  # they are counted at the end
                elif key == UNCLAIMED:  # whatever it was, a collection asks first
                    txn.put(key, Unclaimed(0, 0).encode(), db=index.meta)
                elif key == PLACE:
                    continue  # `mend_journal` asks the journal
                else:
                    txn.delete(key, db=index.meta)
                shown = key.decode(errors="backslashreplace")
                self._done.append(f"the row {shown!r} of the index {fault}: it is put right")

    def mend_pending(self) -> None:
        """Rows that no writer has put, or not so: what they were of is garbage, or its writer is
        told to repeat the put. Nobody reads the change table while no collector runs."""
        index = self._index
        with index.write_gate, index.errors, index.begin() as txn:
            pending = [(bytes(key), bytes(owner)) for key, owner in txn.cursor(db=index.pending)]
            wrong = [key for key, owner in pending if not is_pending(key, owner)]
            for key in wrong:
                txn.delete(key, db=index.pending)
            if wrong:
                self._done.append(
                    f"{counted(len(wrong), 'damaged row')} of unfinished puts dropped"
                )
            if any(len(bytes(key)) != CHANGE_KEY_BYTES for key, _ in txn.cursor(db=index.changes)):
                Tables(index, txn).end_marking()
                self._done.append("what a collection that was cut off left behind is dropped")

    # ------------------------------------------------------------ chunks

    def mend_chunks(self) -> None:
        """So that what is put from now on, by a repair too, does not rely on what is lost."""
        index, gone = self._index, self._packs.replaced
        for page in pages(index, index.chunks):
            wrong = [key for key, row in page if not self._is_right(key, row, gone)]
            if not wrong:
                continue
            with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
                self._mend_chunks(tables, wrong, gone)

    def mend_all_chunks(self, tables: Tables, gone: Collection[bytes]) -> None:
        """In the transaction after which the packs that are `gone` are."""
        wrong = [
            bytes(key)
            for key, row in tables.txn.cursor(db=self._index.chunks)
            if not self._is_right(bytes(key), bytes(row), gone)
        ]
        self._mend_chunks(tables, wrong, gone)

    def _mend_chunks(self, tables: Tables, keys: Iterable[bytes], gone: Collection[bytes]) -> None:
        index, txn, led, dropped = self._index, tables.txn, 0, 0
        for key in keys:
            row = txn.get(key, db=index.chunks)
            if row is None or self._is_right(key, bytes(row), gone):
                continue
            new = self._frame_of(key, gone)
            if new is None:
                tables.chunks.delete(key)
                dropped += 1
            else:
                tables.chunks.put(key, new)
                led += 1
        if led or dropped:
            next_number(index, txn, GC_SEQ)
            self._done.append(
                f"{counted(led, 'row')} of chunks led to other copies, {dropped:,} that led "
                "nowhere dropped"
            )

    def _frame_of(self, chunk_id: bytes, gone: Collection[bytes]) -> ChunkRow | None:
        """An intact frame of the chunk that is known."""
        at = self._packs.elsewhere.get(chunk_id)
        if at is None or at.pack_id in gone or at.pack_id not in self._packs.readings:
            return None
        entry = self._packs.readings[at.pack_id].frame_at(at.offset)
        return None if entry is None else ChunkRow(entry.raw_bytes, at, entry.bases)

    def _is_right(self, key: bytes, row: bytes, gone: Collection[bytes]) -> bool:
        try:
            known = decode_chunk_row(row)
        except FormatError:
            return False
        location = known.location
        if location.pack_id in gone:
            return False
        return (
            chunk_fault(key, known, self._packs.readings) is None
            or not self._packs.is_settled(location.pack_id)
            or self._packs.is_new(location)
        )

    # ------------------------------------------------------------ packs

    def mend_packs(self, tables: Tables, gone: Collection[bytes]) -> None:
        index, txn, readings = self._index, tables.txn, self._packs.readings
        rows = {bytes(key): bytes(row) for key, row in txn.cursor(db=index.packs)}
        used = set(self._packs_in_use(txn))
        for pack_id in gone:
            tables.packs.delete(pack_id)
        for pack_id, row in rows.items():
            if pack_id not in readings and self._packs.is_settled(pack_id):
                tables.packs.delete(pack_id)
                self._done.append(f"pack {pack_id.hex()} is gone, and so is its row")
            elif pack_id not in gone and not self._pack_row_is_right(pack_id, row):
                self._put_pack_row(tables.packs, pack_id)
        for pack_id in used - rows.keys() - set(gone):
            if pack_id in readings:
                self._put_pack_row(tables.packs, pack_id)

    def _pack_row_is_right(self, pack_id: bytes, row: bytes) -> bool:
        """Of one whose pack has been made since, that it decodes."""
        try:
            end = decode_pack_row(row)[1]
        except FormatError:
            return False
        reading = self._packs.readings.get(pack_id)
        return reading is None or reading.unsealed or end <= reading.intact

    def _packs_in_use(self, txn: Txn) -> Iterator[bytes]:
        """By rows of chunks, and by segments: of a chunk that was stored twice at once, the row
        leads to one frame only."""
        for _, row in txn.cursor(db=self._index.chunks):
            with contextlib.suppress(FormatError):
                yield bytes(decode_chunk_row(bytes(row)).location.pack_id)
        for _, raw in txn.cursor(db=self._index.segments):
            with contextlib.suppress(FormatError):
                yield from decode_segment(bytes(raw), verify=False).packs

    def _put_pack_row(self, packs: PackRows, pack_id: bytes) -> None:
        created_ns = os.stat(pack_path(self._root, pack_id)).st_mtime_ns
        packs.put(pack_id, created_ns, self._packs.readings[pack_id].end)
        self._done.append(f"the row of pack {pack_id.hex()} is written anew")

    # ------------------------------------------------------------ sums

    def count(self, tables: Tables) -> None:
        index, txn, totals = self._index, tables.txn, Totals()
        for _, raw in txn.cursor(db=index.names):
            with contextlib.suppress(FormatError, UnsupportedFormat):
                totals.count_object(decode_record(bytes(raw)), +1)
        for _, row in txn.cursor(db=index.chunks):
            with contextlib.suppress(FormatError):
                totals.count_chunk(decode_chunk_row(bytes(row)), +1)
        if txn.get(TOTALS, db=index.meta) not in (None, totals.encode()):
            self._done.append("the totals are counted anew")
        tables.put_totals(totals)


def _right_key(key: bytes, raw: bytes, owners: dict[int, int]) -> bytes | None:
    """The key that the segment should have, as far as it tells; None if no object can have it."""
    manifest = None
    with contextlib.suppress(FormatError):
        manifest = segment_place(key)[0]
    try:
        segment = decode_segment(raw)
    except FormatError:
        return key if manifest is not None else None
    manifest = owners.get(segment.owner, manifest)
    return None if manifest is None else segment_key(manifest, segment.end)
