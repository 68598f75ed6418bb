"""One look at a local store: its index in one snapshot, against its packs."""

from __future__ import annotations

import os
from collections.abc import Collection

from castore.check.check import StoreCheck
from castore.check.objects import chunk_fault
from castore.check.packs import PackReading
from castore.errors import FormatError
from castore.format.config import StoreConfig
from castore.format.index import Totals, decode_chunk_row, decode_pack_row
from castore.local.check.garbage import Garbage
from castore.local.check.source import LocalSource
from castore.local.folder import CONFIG
from castore.local.index_walk import rows
from castore.local.meta import CHANGE_KEY_BYTES, GC_SEQ, TOTALS, meta_faults
from castore.local.pack_files import list_strays
from castore.model import Location, Stages
from castore.stream.reports import Severity
from castore.system.lmdb_env import Index
from castore.system.lmdb_snapshot import Snapshot
from castore.system.workers import Workers
from castore.wording import counted

ROW_BYTES = 64  # what a row of the index counts as, in progress
ROWS_REPORTED = 4096  # at once


class LocalCheck(StoreCheck):
    """One look at a store, of which `fraction` of the frames is decoded, but for those of packs
    that are `sound`."""

    def __init__(
        self,
        root: str,
        config: StoreConfig,
        index: Index,
        *,
        fraction: float,
        sound: Collection[bytes],
        stages: Stages,
    ) -> None:
        self._source = LocalSource(root, config, index, self._count_row)
        super().__init__(self._source, config)
        self._root = root
        self._index = index
        self._fraction = fraction
        self._sound = sound
        self._stages = stages
        self._gc_seq = b""
        self._rows_seen = 0
        self._rows: dict[bytes, int] = {}  # pack id -> durable bytes
        self._garbage = Garbage(root, index, self._report)

    def run(self, workers: Workers) -> None:
        index, source = self._index, self._source
        path = os.path.join(self._root, CONFIG)
        with open(path, "rb") as file:
            self.check_config(file.read(), path)
        with index.gate, index.snapshot() as source.snapshot:
            txn = source.snapshot
            self._gc_seq = _meta(index, txn, GC_SEQ)
            self._check_meta(txn)
            self._read_pack_rows(txn)
            self.scan.read(
                source.packs(), workers, self._stages, fraction=self._fraction, sound=self._sound
            )
            self._begin_index(txn)
            self.check_names()
            for manifest in source.damaged_keys:
                what = f"a segment of manifest {manifest} has a damaged key"
                self.findings.add("segment", "corrupt", what)
            self._check_chunk_rows(txn)
            self._check_changes(txn)
            staged, keys, pending = self._garbage.find_manifests(txn, source.manifests.keys())
            if keys:
                self.findings.add(
                    "segment", "corrupt", f"{counted(keys, 'damaged key')} of segments"
                )
            if pending:
                what = f"{counted(pending, 'damaged row')} of objects that were being put"
                self.findings.add("pending row", "corrupt", what)
            self.used |= staged
            self._check_packs()
            totals = _meta(index, txn, TOTALS)
        self._stages.end()
        if (totals or Totals().encode()) != source.sums.encode():
            what = "the running totals are not what the names and chunks add up to"
            self.findings.add("totals", "corrupt", what)
        self._garbage.settle()

    def undisturbed(self) -> bool:
        """Whether no collector removed or moved anything since this look began."""
        with self._index.gate, self._index.snapshot() as txn:
            return _meta(self._index, txn, GC_SEQ) == self._gc_seq

    # ------------------------------------------------------------ progress

    def _begin_index(self, txn: Snapshot) -> None:
        index = self._index
        tables = (index.names, index.segments, index.chunks)
        entries = sum(int(txn.stat(table)["entries"]) for table in tables)
        self._stages.begin_stage("index", entries * ROW_BYTES)

    def _count_row(self) -> None:
        self._rows_seen += 1
        if self._rows_seen % ROWS_REPORTED == 0:
            self._stages.relative_update(ROWS_REPORTED * ROW_BYTES)

    # ------------------------------------------------------------ small tables

    def _check_meta(self, txn: Snapshot) -> None:
        found = rows(self._index, txn, self._index.meta)
        for key, fault in meta_faults(found, self.config.store_id):
            what = f"the row {key.decode(errors='backslashreplace')!r} of the index {fault}"
            self.findings.add("meta", "corrupt", what)

    def _check_changes(self, txn: Snapshot) -> None:
        found = rows(self._index, txn, self._index.changes)
        damaged = sum(len(key) != CHANGE_KEY_BYTES for key, _ in found)
        if damaged:
            what = f"{counted(damaged, 'damaged row')} of what changed during a collection"
            self.findings.add("change row", "corrupt", what)

    # ------------------------------------------------------------ packs

    def _read_pack_rows(self, txn: Snapshot) -> None:
        for pack_id, row in rows(self._index, txn, self._index.packs):
            try:
                self._rows[pack_id] = decode_pack_row(row)[1]
            except FormatError as error:
                self._rows[pack_id] = 0
                what = f"the row of pack {pack_id.hex()}: {error}"
                self.findings.add("pack row", "corrupt", what)

    def _check_packs(self) -> None:
        """What is wrong with the packs themselves, whether or not a name needs it."""
        for pack_id, reading in self.readings.items():
            has_row = pack_id in self._rows
            if pack_id not in self.used:
                self._garbage.suspect(pack_id, has_row=has_row)
                if not has_row:
                    continue
            elif not has_row:
                what = f"pack {pack_id.hex()} has no row"
                self.findings.add("pack row", "corrupt", what, pack_id=pack_id)
            self._check_pack(reading, self._rows.get(pack_id, 0))
        for pack_id in self._rows.keys() - self.readings.keys():
            self.findings.add_missing_pack(pack_id)
        for pack_id, path in list_strays(os.path.join(self._root, "packs")):
            what = f"{path} is not where, or what, readers look for"
            self.findings.add("stray", "warning", what, pack_id=pack_id)

    def _check_pack(self, reading: PackReading, durable: int) -> None:
        pack_id, pack = reading.pack_id, reading.pack_id.hex()
        self.findings.add_pack(
            reading, "corrupt", *self._unread.get(pack_id, ()), durable_bytes=durable
        )
        if reading.intact < durable:
            what = f"pack {pack} is cut short at {reading.size} of {durable} bytes"
            self.findings.add("pack", "missing", what, pack_id=pack_id)
        if reading.surplus:
            size = counted(reading.surplus, "byte")
            what = f"pack {pack} has {size} behind its footer, where castore writes nothing"
            self.findings.add("pack", "warning", what, pack_id=pack_id)

    # ------------------------------------------------------------ rows of chunks

    def _check_chunk_rows(self, txn: Snapshot) -> None:
        outlived = 0
        for chunk_id, row in rows(self._index, txn, self._index.chunks):
            self._count_row()
            try:
                known = decode_chunk_row(row)
            except FormatError as error:
                what = f"the row of chunk {chunk_id.hex()}: {error}"
                self.findings.add("chunk row", "corrupt", what)
                continue
            location = known.location
            self._source.sums.count_chunk(known, +1)
            found = chunk_fault(chunk_id, known, self.readings)
            if len(chunk_id) != 16:
                self._add_chunk_row(chunk_id, location, "it has no id")
            elif found is None or self._is_told(location):
                continue
            elif location.pack_id not in self.readings:
                if location.pack_id in self._rows:
                    self.findings.add_missing_pack(location.pack_id)
                else:  # the pack was collected: the next put of the chunk stores it anew
                    outlived += 1
            elif location.offset in self.readings[location.pack_id].bad:
                # Where no commit made it durable: a row made anew leads there.
                self.findings.add_frame(location, chunk_id, found[0])
            else:
                self._add_chunk_row(chunk_id, location, found[0])
        self._report.count_garbage("chunk rows", number=outlived)

    def _is_told(self, at: Location) -> bool:
        """Whether the frame has a problem of its own, which says it."""
        reading = self.readings.get(at.pack_id)
        durable = self._rows.get(at.pack_id, 0)
        return reading is not None and at.offset in reading.bad and at.offset < durable

    def _add_chunk_row(self, chunk_id: bytes, at: Location, reason: str) -> None:
        reading = self.readings.get(at.pack_id)
        cut_short = reading is not None and reading.intact < self._rows.get(at.pack_id, 0)
        severity: Severity = "missing" if cut_short else "corrupt"
        what = (
            f"the row of chunk {chunk_id.hex()} leads to byte {at.offset} of pack "
            f"{at.pack_id.hex()}: {reason}"
        )
        self.findings.add("chunk row", severity, what, chunk_id=chunk_id)


def _meta(index: Index, txn: Snapshot, key: bytes) -> bytes:
    value = txn.get(key, db=index.meta)
    return b"" if value is None else bytes(value)
