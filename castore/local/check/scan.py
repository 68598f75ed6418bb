"""One look at a local store: its index in one snapshot, against its packs."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import xxhash

from castore.check.config import config_fault
from castore.check.data import check_data
from castore.check.findings import Findings
from castore.check.objects import Faulty, extent_fault, inline_fault, manifest_faults, name_fault
from castore.check.packs import PackReading, Read
from castore.errors import (
    FormatError,
    UnsupportedFormat,
)
from castore.format.index import (
    Record,
    Totals,
    decode_chunk_row,
    decode_pack_row,
    decode_record,
    segment_key,
)
from castore.format.pack import StoreConfig
from castore.format.segment import decode_segment
from castore.local.check.garbage import Garbage
from castore.local.check.pack_files import open_pack, size_of
from castore.local.check.segments import segments_of
from castore.local.folder import CONFIG
from castore.local.index_walk import rows
from castore.local.meta import CHANGE_KEY_BYTES, GC_SEQ, TOTALS, meta_faults
from castore.local.pack_files import list_packs, list_strays
from castore.model import Extent
from castore.system.isolated import Report
from castore.system.lmdb_env import Index, Snapshot
from castore.system.workers import Workers

ROW_BYTES = 64  # what a row of the index counts as, in progress
ROWS_REPORTED = 4096  # at once


@dataclass(slots=True)
class _Seen:
    """What the walk of the names found out: which manifests they have, and which packs these are
    in; the sums. `unknown` are the packs of a manifest from which nothing is read, as their headers
    are damaged, and `unread` the names that they take with them."""

    manifests: dict[int, int] = field(default_factory=dict)  # to a hash of what was checked
    faulty: dict[int, list[Faulty]] = field(default_factory=dict)
    packs: set[bytes] = field(default_factory=set)
    unknown: defaultdict[int, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    unread: defaultdict[bytes, list[str]] = field(default_factory=lambda: defaultdict(list))
    sums: Totals = field(default_factory=Totals)
    names: int = 0


class LocalCheck:
    """One look at a store. `findings` has what is wrong, `readings` what its packs hold."""

    def __init__(
        self,
        root: str,
        config: StoreConfig,
        index: Index,
        workers: Workers,
        fraction: float,
        report: Report,
    ) -> None:
        self.root = root
        self.config = config
        self.readings: dict[bytes, PackReading] = {}
        self.findings = Findings(self.readings)
        self.totals: dict[str, Any] = {}
        self.sound: set[bytes] = set()  # packs whose frames need not be decoded
        self._index = index
        self._workers = workers
        self._fraction = fraction
        self._report = report
        self._gc_seq = b""
        self._rows_seen = 0
        self._rows: dict[bytes, int] = {}  # pack id -> durable bytes
        self._garbage = Garbage(root, index)

    def run(self) -> None:
        index = self._index
        self._check_config()
        with index.gate, index.errors, index.snapshot(False) as txn:
            self._gc_seq = _meta(index, txn, GC_SEQ)
            self._check_meta(txn)
            self._read_pack_rows(txn)
            self._read_packs()
            self._begin_index(txn)
            seen = _Seen()
            self._check_names(txn, seen)
            self._check_chunk_rows(txn, seen)
            self._check_changes(txn)
            staged, keys, pending = self._garbage.find_manifests(txn, set(seen.manifests))
            if keys:
                self.findings.add("segment", "corrupt", f"{keys} keys of segments are damaged")
            if pending:
                what = f"{pending} rows of objects that were being put are damaged"
                self.findings.add("pending row", "corrupt", what)
            seen.packs |= staged
            self._check_packs(seen)
            counted = _meta(index, txn, TOTALS)
        if (counted or Totals().encode()) != seen.sums.encode():
            what = "the running totals are not what the names and chunks add up to"
            self.findings.add("totals", "corrupt", what)
        self._garbage.settle()
        self.totals |= {"names": seen.names, "packs": len(self.readings)}
        self.totals |= {"garbage": self._garbage.counts, "garbage_bytes": self._garbage.size}
        self.totals["frames"] = sum(len(reading.frames) for reading in self.readings.values())

    def undisturbed(self) -> bool:
        """Whether no collector removed or moved anything since this look began."""
        with self._index.gate, self._index.errors, self._index.snapshot(False) as txn:
            return _meta(self._index, txn, GC_SEQ) == self._gc_seq

    # ------------------------------------------------------------ config and meta

    def _check_config(self) -> None:
        path = os.path.join(self.root, CONFIG)
        with open(path, "rb") as file:
            raw = file.read()
        fault = config_fault(raw, self.config)
        if fault:
            self.findings.add("config", "corrupt", f"{path} {fault}")

    def _check_meta(self, txn: Snapshot) -> None:
        found = rows(self._index, txn, self._index.meta)
        for key, fault in meta_faults(found, self.config.store_id):
            what = f"the row {key.decode(errors='backslashreplace')!r} of the index {fault}"
            self.findings.add("meta", "corrupt", what)

    def _check_changes(self, txn: Snapshot) -> None:
        found = rows(self._index, txn, self._index.changes)
        damaged = sum(len(key) != CHANGE_KEY_BYTES for key, _ in found)
        if damaged:
            what = f"{damaged} rows of what changed during a collection are damaged"
            self.findings.add("change row", "corrupt", what)

    # ------------------------------------------------------------ packs

    def _read_pack_rows(self, txn: Snapshot) -> None:
        for pack_id, row in rows(self._index, txn, self._index.packs):
            try:
                self._rows[pack_id] = decode_pack_row(row)[1]
            except FormatError as error:
                self._rows[pack_id] = 0
                self.findings.add(
                    "pack row", "corrupt", f"the row of pack {pack_id.hex()}: {error}"
                )

    def _read_packs(self) -> None:
        paths = dict(list_packs(os.path.join(self.root, "packs")))
        sizes = [size_of(path) for pack_id, path in paths.items() if pack_id not in self.sound]
        if self._fraction > 0:
            self._report({"stage": "data", "size": int(self._fraction * sum(sizes))})
        else:
            self._report({"stage": "packs", "size": sum(sizes)})

        def opened() -> Iterator[tuple[PackReading, Read]]:
            for pack_id, path in paths.items():
                found = open_pack(path, self.config, pack_id)
                if found is not None:
                    self.readings[pack_id] = found[0]
                    if pack_id not in self.sound:
                        yield found

        read = check_data(
            opened(),
            self._workers,
            self.config.seed,
            fraction=self._fraction,
            advance=lambda size: self._report({"done": size}),
        )
        self.totals |= {"read_frames": read.frames, "read_bytes": read.bytes}

    def _check_packs(self, seen: _Seen) -> None:
        """What is wrong with the packs themselves, whether or not a name needs it."""
        for pack_id, reading in self.readings.items():
            if pack_id not in self._rows:
                if pack_id not in seen.packs:
                    self._garbage.suspect(pack_id, has_row=False)
                    continue
                what = f"pack {pack_id.hex()} has no row"
                self.findings.add("pack row", "corrupt", what, pack_id=pack_id)
            elif pack_id not in seen.packs:
                self._garbage.suspect(pack_id, has_row=True)
            self._check_pack(pack_id, reading, self._rows.get(pack_id, 0), seen.unread[pack_id])
        for pack_id in self._rows.keys() - self.readings.keys():
            self.findings.add_missing_pack(pack_id)
        for pack_id, path in list_strays(os.path.join(self.root, "packs")):
            what = f"{path} is not where, or what, readers look for"
            self.findings.add("stray", "warning", what, pack_id=pack_id)

    def _check_pack(
        self, pack_id: bytes, reading: PackReading, durable: int, unread: list[str]
    ) -> None:
        pack = pack_id.hex()
        self.findings.add_pack(reading, "corrupt", *unread, durable_bytes=durable)
        if reading.intact < durable:
            what = f"pack {pack} is cut short at {reading.size} of {durable} bytes"
            self.findings.add("pack", "missing", what, pack_id=pack_id)
        if reading.surplus:
            size = "1 byte" if reading.surplus == 1 else f"{reading.surplus} bytes"
            what = f"pack {pack} has {size} behind its footer, where castore writes nothing"
            self.findings.add("pack", "warning", what, pack_id=pack_id)

    # ------------------------------------------------------------ names

    def _begin_index(self, txn: Snapshot) -> None:
        index = self._index
        tables = (index.names, index.segments, index.chunks)
        entries = sum(int(txn.stat(table)["entries"]) for table in tables)
        self._report({"stage": "index", "size": entries * ROW_BYTES})

    def _count_row(self) -> None:
        self._rows_seen += 1
        if self._rows_seen % ROWS_REPORTED == 0:
            self._report({"done": ROWS_REPORTED * ROW_BYTES})

    def _check_names(self, txn: Snapshot, seen: _Seen) -> None:
        for key, raw in rows(self._index, txn, self._index.names):
            self._count_row()
            seen.names += 1
            name = key.decode(errors="surrogateescape")
            try:
                record = decode_record(raw)
            except (FormatError, UnsupportedFormat) as error:
                self.findings.add("record", "corrupt", f"the record of {name!r}: {error}", name)
                continue
            fault = name_fault(key)
            if fault:
                what = f"{name!r} is no name that an object can have: {fault}"
                self.findings.add("record", "corrupt", what, name)
            seen.sums.count_object(record, +1)
            if record.is_inline:
                fault = inline_fault(record, self.config.seed)
                if fault:
                    self.findings.add("record", "corrupt", f"the record of {name!r}: {fault}", name)
            else:
                for faulty in self._manifest(txn, record, seen):
                    self.findings.add_object(name, faulty)
                for pack_id in seen.unknown.get(record.manifest, ()):
                    seen.unread[pack_id].append(name)

    def _manifest(self, txn: Snapshot, record: Record, seen: _Seen) -> list[Faulty]:
        """What is wrong with the record's manifest, which it may share with other names."""
        facts = xxhash.xxh3_64_intdigest(
            b"%d %d %d %b" % (record.size, record.chunks, record.stored_bytes, record.etag)
        )
        if seen.manifests.get(record.manifest) != facts:
            segments = self._segments(txn, record.manifest, seen)
            faults = list(manifest_faults(record, segments, self.readings, self.config.seed))
            seen.manifests[record.manifest] = facts
            seen.faulty.pop(record.manifest, None)
            if faults:
                seen.faulty[record.manifest] = faults
        return seen.faulty.get(record.manifest, [])

    def _segments(self, txn: Snapshot, manifest: int, seen: _Seen) -> Iterator[bytes]:
        for key, raw in segments_of(self._index, txn, manifest):
            self._count_row()
            with contextlib.suppress(FormatError):  # that is for who decodes it to say
                segment = decode_segment(raw, verify=False)
                seen.packs.update(segment.packs)
                for pack_id in segment.packs:
                    reading = self.readings.get(pack_id)
                    if reading is not None and not reading.known:
                        seen.unknown[manifest].add(pack_id)
                if key != segment_key(manifest, segment.end):
                    what = f"a segment of manifest {manifest} has a damaged key"
                    self.findings.add("segment", "corrupt", what)
            yield raw

    # ------------------------------------------------------------ chunk rows, orphans

    def _check_chunk_rows(self, txn: Snapshot, seen: _Seen) -> None:
        outlived = 0
        for chunk_id, row in rows(self._index, txn, self._index.chunks):
            self._count_row()
            try:
                raw_bytes, location = decode_chunk_row(row)
                fault = "it has no id" if len(chunk_id) != 16 else ""
            except FormatError as error:
                self.findings.add(
                    "chunk row", "corrupt", f"the row of chunk {chunk_id.hex()}: {error}"
                )
                continue
            seen.sums.count_chunk(raw_bytes, location.stored_bytes, +1)
            found = extent_fault(Extent(0, raw_bytes, chunk_id, location), self.readings)
            if found is None and not fault:
                continue
            durable = self._rows.get(location.pack_id, 0)
            bad = self._bad_of(location.pack_id)
            if found is not None and location.offset in bad and location.offset < durable:
                continue  # the frame's own problem says it
            if found is not None and location.pack_id not in self.readings:
                if location.pack_id in self._rows:
                    self.findings.add_missing_pack(location.pack_id)
                else:  # the pack was collected: the next put of the chunk stores it anew
                    outlived += 1
                continue
            reason = fault or (found.what if found else "")
            self.findings.add(
                "chunk row",
                "missing" if self._is_cut_short(location.pack_id) else "corrupt",
                f"the row of chunk {chunk_id.hex()} leads to byte {location.offset} of pack "
                f"{location.pack_id.hex()}: {reason}",
                chunk_id=chunk_id,
            )

        self._garbage.count("chunk rows", outlived)

    def _is_cut_short(self, pack_id: bytes) -> bool:
        reading = self.readings.get(pack_id)
        return reading is not None and reading.intact < self._rows.get(pack_id, 0)

    def _bad_of(self, pack_id: bytes) -> dict[int, str]:
        reading = self.readings.get(pack_id)
        return {} if reading is None else reading.bad


def _meta(index: Index, txn: Snapshot, key: bytes) -> bytes:
    value = txn.get(key, db=index.meta)
    return b"" if value is None else bytes(value)
