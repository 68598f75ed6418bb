"""One look at a local store: its index in one snapshot, against its packs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import xxhash

from castore.catalog.meta import GC_SEQ, TOTALS, meta_faults
from castore.check.config import config_fault
from castore.check.data import check_data
from castore.check.findings import Findings
from castore.check.objects import Faulty, extent_fault, inline_fault, manifest_faults
from castore.check.pack_files import is_locked, list_packs, open_pack, pack_path, size_of
from castore.check.packs import PackReading, Read
from castore.check.report import Problem, Severity
from castore.errors import (
    FormatError,
    UnsupportedFormat,
)
from castore.folder import CONFIG
from castore.format import StoreConfig
from castore.format_index import (
    Record,
    Totals,
    decode_chunk_row,
    decode_pack_row,
    decode_record,
    decode_segment,
    manifest_of,
    segment_key,
)
from castore.index import Index, Snapshot
from castore.index_walk import rows
from castore.isolated import Report
from castore.model import Extent, Location
from castore.workers import Workers


@dataclass(slots=True)
class _Seen:
    """What the walk of the names found out: which manifests they have, and which packs these are
    in; the sums."""

    manifests: dict[int, int] = field(default_factory=dict)  # to a hash of what was checked
    faulty: dict[int, list[Faulty]] = field(default_factory=dict)
    packs: set[bytes] = field(default_factory=set)
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
        self.findings = Findings()
        self.readings: dict[bytes, PackReading] = {}
        self.totals: dict[str, int] = {}
        self._index = index
        self._workers = workers
        self._fraction = fraction
        self._report = report
        self._gc_seq = b""
        self._rows: dict[bytes, int] = {}  # pack id -> durable bytes

    def run(self) -> None:
        index = self._index
        self._check_config()
        with index.read() as txn:
            self._gc_seq = _meta(index, txn, GC_SEQ)
            self._check_meta(txn)
            self._read_pack_rows(txn)
            self._read_packs()
            seen = _Seen()
            self._check_names(txn, seen)
            self._check_chunk_rows(txn, seen)
            self._check_packs(seen)
            self._look_for_orphans(txn, seen)
            counted = _meta(index, txn, TOTALS)
        if (counted or Totals().encode()) != seen.sums.encode():
            what = "the running totals are not what the names and chunks add up to"
            self._add("totals", "corrupt", what)
        self.totals |= {"names": seen.names, "packs": len(self.readings)}
        self.totals["frames"] = sum(len(reading.frames) for reading in self.readings.values())

    def undisturbed(self) -> bool:
        """Whether no collector removed or moved anything since this look began."""
        with self._index.read() as txn:
            return _meta(self._index, txn, GC_SEQ) == self._gc_seq

    # ------------------------------------------------------------ config and meta

    def _check_config(self) -> None:
        path = os.path.join(self.root, CONFIG)
        with open(path, "rb") as file:
            raw = file.read()
        fault = config_fault(raw, self.config)
        if fault:
            self._add("config", "corrupt", f"{path} {fault}")

    def _check_meta(self, txn: Snapshot) -> None:
        found = rows(self._index, txn, self._index.meta)
        for key, fault in meta_faults(found, self.config.store_id):
            what = f"the row {key.decode(errors='backslashreplace')!r} of the index {fault}"
            self._add("meta", "corrupt", what)

    # ------------------------------------------------------------ packs

    def _read_pack_rows(self, txn: Snapshot) -> None:
        for pack_id, row in rows(self._index, txn, self._index.packs):
            try:
                self._rows[pack_id] = decode_pack_row(row)[1]
            except FormatError as error:
                self._rows[pack_id] = 0
                self._add("pack row", "corrupt", f"the row of pack {pack_id.hex()}: {error}")

    def _read_packs(self) -> None:
        paths = dict(list_packs(os.path.join(self.root, "packs")))
        if self._fraction > 0:
            sizes = [size_of(path) for path in paths.values()]
            self._report({"size": int(self._fraction * sum(sizes))})
        read_frames = read_bytes = 0

        def done(frames: int, size: int) -> None:
            nonlocal read_frames, read_bytes
            read_frames, read_bytes = read_frames + frames, read_bytes + size
            self._report({"done": size})

        def opened() -> Iterator[tuple[PackReading, Read]]:
            for pack_id, path in paths.items():
                found = open_pack(path, self.config, pack_id)
                if found is not None:
                    self.readings[pack_id] = found[0]
                    yield found

        check_data(opened(), self._workers, self.config.seed, fraction=self._fraction, done=done)
        self.totals = {"read_frames": read_frames, "read_bytes": read_bytes}

    def _check_packs(self, seen: _Seen) -> None:
        """What is wrong with the packs themselves, whether or not a name needs it."""
        for pack_id, reading in self.readings.items():
            durable = self._rows.get(pack_id, 0)
            if pack_id not in self._rows:
                self._check_pack_without_row(pack_id, reading, seen)
                if pack_id not in seen.packs:
                    continue
            for fault in reading.faults:
                what = f"pack {pack_id.hex()}: {fault}"
                self._add("pack", "corrupt", what, pack=pack_id.hex())
            for offset, fault in reading.bad.items():
                entry = reading.frames.at(offset)
                chunk_id = b"" if entry is None else entry.chunk_id
                # What its writer never made durable, no name needs, and a crash may leave torn.
                torn = reading.unsealed and offset >= durable
                self.findings.bad_frame(
                    Location(pack_id, offset, 0), chunk_id, fault, "warning" if torn else "corrupt"
                )
            if reading.intact < durable:
                what = f"pack {pack_id.hex()} is cut short at {reading.size} of {durable} bytes"
                self._add("pack", "missing", what, pack=pack_id.hex())
            if reading.unsealed and not is_locked(pack_path(self.root, pack_id)):
                what = f"pack {pack_id.hex()} has no footer: its writer died, or it was cut off"
                self._add("pack", "warning", what, pack=pack_id.hex())
        for pack_id in self._rows.keys() - self.readings.keys():
            self.findings.missing_pack(pack_id, None)

    def _check_pack_without_row(self, pack_id: bytes, reading: PackReading, seen: _Seen) -> None:
        if pack_id in seen.packs:
            self._add("pack row", "corrupt", f"pack {pack_id.hex()} has no row", pack=pack_id.hex())
        elif not is_locked(pack_path(self.root, pack_id)):
            what = f"pack {pack_id.hex()}, {reading.size} bytes, is of a writer that died"
            self._add("orphan", "warning", what + ": the next gc takes it", pack=pack_id.hex())

    # ------------------------------------------------------------ names

    def _check_names(self, txn: Snapshot, seen: _Seen) -> None:
        for key, raw in rows(self._index, txn, self._index.names):
            seen.names += 1
            name = key.decode(errors="surrogateescape")
            try:
                record = decode_record(raw)
            except (FormatError, UnsupportedFormat) as error:
                self._add("record", "corrupt", f"the record of {name!r}: {error}", name)
                continue
            seen.sums.logical_bytes += record.size
            if record.is_inline:
                seen.sums.inline_raw_bytes += record.size
                seen.sums.inline_stored_bytes += record.stored_bytes
                fault = inline_fault(record, self.config.seed)
                if fault:
                    self._add("record", "corrupt", f"the record of {name!r}: {fault}", name)
            else:
                for faulty in self._manifest(txn, record, seen):
                    self._note(faulty, name)

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
        with txn.cursor(db=self._index.segments) as cursor:
            if cursor.set_range(segment_key(manifest, 0)):
                for key, raw in cursor:
                    if manifest_of(bytes(key)) != manifest:
                        return
                    with contextlib.suppress(FormatError):  # that is for who decodes it to say
                        seen.packs.update(decode_segment(raw, verify=False).packs)
                    yield raw

    def _note(self, faulty: Faulty, name: str) -> None:
        extent = faulty.extent
        if extent is None:
            self._add("manifest", "corrupt", f"the manifest of {name!r}: {faulty.what}", name)
        elif extent.location.pack_id not in self.readings:
            self.findings.missing_pack(extent.location.pack_id, name)
        else:
            severity: Severity = "missing" if faulty.missing else "corrupt"
            self.findings.bad_frame(extent.location, extent.chunk_id, faulty.what, severity, name)

    # ------------------------------------------------------------ chunk rows, orphans

    def _check_chunk_rows(self, txn: Snapshot, seen: _Seen) -> None:
        outlived = 0
        for chunk_id, row in rows(self._index, txn, self._index.chunks):
            try:
                raw_bytes, location = decode_chunk_row(row)
                fault = "it has no id" if len(chunk_id) != 16 else ""
            except FormatError as error:
                self._add("chunk row", "corrupt", f"the row of chunk {chunk_id.hex()}: {error}")
                continue
            seen.sums.chunk_raw_bytes += raw_bytes
            seen.sums.chunk_stored_bytes += location.stored_bytes
            found = extent_fault(Extent(0, raw_bytes, chunk_id, location), self.readings)
            if found is None and not fault:
                continue
            if found is not None and location.offset in self._bad_of(location.pack_id):
                continue  # the frame's own problem says it
            if found is not None and location.pack_id not in self.readings:
                if location.pack_id in self._rows:
                    self.findings.missing_pack(location.pack_id, None)
                else:  # the pack was collected: the next put of the chunk stores it anew
                    outlived += 1
                continue
            reason = fault or (found.what if found else "")
            self._add(
                "chunk row",
                "missing" if self._is_cut_short(location.pack_id) else "corrupt",
                f"the row of chunk {chunk_id.hex()} leads to byte {location.offset} of pack "
                f"{location.pack_id.hex()}: {reason}",
                chunk=chunk_id.hex(),
            )

        if outlived:
            what = f"{outlived} rows of chunks outlive their packs: the next gc takes them"
            self._add("orphan", "warning", what)

    def _is_cut_short(self, pack_id: bytes) -> bool:
        reading = self.readings.get(pack_id)
        return reading is not None and reading.intact < self._rows.get(pack_id, 0)

    def _bad_of(self, pack_id: bytes) -> dict[int, str]:
        reading = self.readings.get(pack_id)
        return {} if reading is None else reading.bad

    def _look_for_orphans(self, txn: Snapshot, seen: _Seen) -> None:
        """Manifests that no name leads to, but those whose writers live."""
        index = self._index
        pending = {}
        for key, owner in rows(index, txn, index.pending):
            pending[manifest_of(key)] = owner
        orphans = 0
        with txn.cursor(db=index.segments) as cursor:
            keys = (bytes(key) for key in cursor.iternext(values=False))
            for manifest, _ in groupby(keys, key=_manifest_or_none):
                if manifest is None:
                    self._add("segment", "corrupt", "a segment's key is damaged")
                elif manifest not in seen.manifests and not (
                    manifest in pending and is_locked(pack_path(self.root, pending[manifest]))
                ):
                    orphans += 1
        if orphans:
            what = f"{orphans} manifests have no name: the next gc takes them"
            self._add("orphan", "warning", what)

    def _add(
        self,
        kind: str,
        severity: Severity,
        what: str,
        name: str = "",
        *,
        pack: str = "",
        chunk: str = "",
    ) -> None:
        names = (name,) if name else ()
        self.findings.add(Problem(kind, severity, what, names, pack=pack, chunk=chunk))


def _meta(index: Index, txn: Snapshot, key: bytes) -> bytes:
    value = txn.get(key, db=index.meta)
    return b"" if value is None else bytes(value)


def _manifest_or_none(key: bytes) -> int | None:
    try:
        return manifest_of(key)
    except FormatError:
        return None
