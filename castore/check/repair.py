"""Mending a local store, while it may be in use.

What the repair of damage must never do is add to it. So: nothing is written over or removed but
rows of the index, each in a write transaction that looks again at what it changes; a pack that is
damaged is left as it is, its intact frames are copied to a new one, and once nothing leads to it
any more it is moved below `quarantine/`, by linking it there before the transaction and unlinking
it after. Whoever dies in the middle leaves a store that the next repair goes on with.

It keeps to what a collector keeps to: it touches a pack only with its lock held, inside a write
transaction that raises `gc_seq`, so that a writer who has looked up a frame of it finds out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import xxhash

from castore.catalog.local import LocalCatalog
from castore.catalog.operations import Copy, Delete, Operation, Publish
from castore.check.mending import mended
from castore.check.objects import extent_fault, inline_fault, manifest_faults
from castore.check.pack_files import PackFile, is_locked, list_packs, open_pack, pack_path
from castore.check.packs import PackReading, is_whole
from castore.check.report import CheckReport
from castore.check.salvage import PREFIX, note, salvage
from castore.codec import Frame, decode_frame
from castore.errors import FormatError, UnsupportedFormat
from castore.fileio import make_durable_folder, sync_folder
from castore.format import (
    PackEntry,
    Record,
    Segment,
    SegmentBuilder,
    StoreConfig,
    Totals,
    decode_chunk_row,
    decode_frame_header,
    decode_pack_row,
    decode_record,
    decode_segment,
    encode_chunk_row,
    encode_pack_row,
    manifest_of,
    segment_key,
)
from castore.index import Index, Snapshot, Table, Txn
from castore.index_walk import pages
from castore.model import Extent, Location
from castore.packs.local import LocalPacks, Placement
from castore.session import WriteSession

SEGMENTS_MAX = 256  # rewritten in one transaction
FRAMES_MAX = 256  # copied at a time
FILES_MAX = 64  # open at a time


class LocalRepair:
    """`run` does what can be done about what a check of all data found, and says what it did."""

    def __init__(
        self,
        root: str,
        config: StoreConfig,
        index: Index,
        catalog: LocalCatalog,
        packs: LocalPacks,
        session: Callable[[], WriteSession],
    ) -> None:
        self._root = root
        self._config = config
        self._index = index
        self._catalog = catalog
        self._packs = packs
        self._session = session
        self._done: list[str] = []
        self._readings: dict[bytes, PackReading] = {}
        self._files: dict[bytes, PackFile] = {}
        self._elsewhere: dict[bytes, Location] = {}  # chunks whose frames are not where they were
        self._bad: dict[bytes, int] = {}  # packs to be replaced -> the descriptor with their lock
        self._emptied: set[int] = set()  # manifests whose names were moved away

    def run(self, report: CheckReport) -> list[str]:
        self._mend_rows(report)
        self._read_packs(report)
        placement = Placement({})
        try:
            self._take_locks(report)
            self._find_elsewhere(report)
            self._copy_intact(placement)
            self._read_new_packs()
            self._move_extents()
            lost = self._salvage(report)
            self._name_orphans(lost)
            self._read_new_packs()
            self._finish()
        finally:
            self._catalog.forget_all()
            self._packs.release(placement)
            for fd in self._bad.values():
                os.close(fd)
            self._files.clear()
        return self._done

    # ------------------------------------------------------------ single bits

    def _mend_rows(self, report: CheckReport) -> None:
        """Put right the records and segments that have one bit flipped."""
        names = [
            p.names[0] for p in report.problems if p.kind in ("record", "manifest") and p.names
        ]
        for name in dict.fromkeys(names):
            key = name.encode(errors="surrogateescape")
            index = self._index
            with index.read() as txn:
                raw = txn.get(key, db=index.names)
            if raw is None:
                continue
            self._mend(index.names, key, raw, decode_record, f"the record of {name!r}")
            with index.read() as txn:
                raw = txn.get(key, db=index.names)
                try:
                    record = decode_record(raw)
                except (FormatError, UnsupportedFormat):
                    continue
                damaged = [
                    (segment, value)
                    for segment, value in self._segments_of(txn, record.manifest)
                    if not _decodes(value)
                ]
            for segment, value in damaged:
                self._mend(index.segments, segment, value, decode_segment, f"a segment of {name!r}")

    def _mend(
        self, table: Table, key: bytes, raw: bytes, decode: Callable[[bytes], object], what: str
    ) -> None:
        with contextlib.suppress(FormatError, UnsupportedFormat):
            decode(raw)
            return
        right = mended(raw, decode)
        if right is None:
            return
        with self._index.write() as txn:
            if txn.get(key, db=table) != raw:
                return
            txn.put(key, right, db=table)
        self._done.append(f"{what} had one bit flipped: it is put right")

    # ------------------------------------------------------------ packs

    def _read_packs(self, report: CheckReport) -> None:
        for pack_id, path in list_packs(os.path.join(self._root, "packs")):
            found = open_pack(path, self._config, pack_id)
            if found is not None:
                self._readings[pack_id] = found[0]
        for problem in report.problems:
            if problem.kind == "frame" and problem.offset >= 0:
                reading = self._readings.get(bytes.fromhex(problem.pack))
                if reading is not None and reading.frames.at(problem.offset) is not None:
                    reading.bad.setdefault(problem.offset, problem.what)

    def _read_new_packs(self) -> None:
        """The copies, and what was put since: also into packs that were read already."""
        for pack_id, path in list_packs(os.path.join(self._root, "packs")):
            known = self._readings.get(pack_id)
            if known is None or (known.unsealed and pack_id not in self._bad):
                found = open_pack(path, self._config, pack_id)
                if found is not None:
                    found[0].bad.update(known.bad if known else {})
                    self._readings[pack_id] = found[0]

    def _take_locks(self, report: CheckReport) -> None:
        """Of the packs that are to be replaced: those with something wrong, in use by nobody."""
        wanted = {p.pack for p in report.problems if p.kind in ("pack", "frame") and p.pack}
        for pack_id in sorted(bytes.fromhex(pack) for pack in wanted):
            reading = self._readings.get(pack_id)
            if reading is None or not (reading.damaged or reading.unsealed):
                continue
            try:
                fd = os.open(pack_path(self._root, pack_id), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                self._done.append(f"pack {pack_id.hex()} is left as it is: its writer is at work")
                continue
            self._bad[pack_id] = fd

    def _find_elsewhere(self, report: CheckReport) -> None:
        """Intact frames, in other packs, of chunks that some frame is no good for any more."""
        wanted = {bytes.fromhex(p.chunk) for p in report.problems if p.chunk}
        wanted |= set(self._chunks_astray())
        for pack_id, reading in self._readings.items():
            for entry in reading.frames:
                if (
                    entry.chunk_id in wanted
                    and entry.chunk_id not in self._elsewhere
                    and entry.offset not in reading.bad
                    and pack_id not in self._bad
                    and is_whole(self._file(pack_id).read, entry, self._config.seed)
                ):
                    at = Location(pack_id, entry.offset, entry.stored_bytes)
                    self._elsewhere[entry.chunk_id] = at

    def _chunks_astray(self) -> Iterator[bytes]:
        for _, segment in self._all_segments():
            for extent in segment:
                if extent_fault(extent, self._readings) is not None:
                    yield extent.chunk_id

    def _copy_intact(self, placement: Placement) -> None:
        """Every intact frame of the packs that are to be replaced, to new ones. Their chunks' rows
        lead there at once: what is put from now on relies on the copies."""
        for pack_id in self._bad:
            reading = self._readings[pack_id]
            entries = [e for e in reading.frames if e.offset not in reading.bad]
            copied = 0
            for i in range(0, len(entries), FRAMES_MAX):
                copied += self._copy(pack_id, entries[i : i + FRAMES_MAX], placement)
            self._done.append(
                f"pack {pack_id.hex()}: {copied} intact frames of {len(reading.frames)} are copied"
            )

    def _copy(self, pack_id: bytes, entries: list[PackEntry], placement: Placement) -> int:
        read, seed = self._file(pack_id).read, self._config.seed
        frames, offsets = [], []
        for entry in entries:
            raw = read(entry.offset, entry.offset + entry.stored_bytes)
            try:
                decode_frame(raw, entry.chunk_id, entry.raw_bytes, seed)
            except FormatError as error:
                self._readings[pack_id].bad[entry.offset] = str(error)
                continue
            header = decode_frame_header(raw)
            cut = header.header_bytes
            frames.append(
                Frame(entry.chunk_id, entry.raw_bytes, raw[:cut], raw[cut:], header.sha256)
            )
            offsets.append(entry.offset)
        if not frames:
            return 0
        locations = self._packs.append(frames, placement)
        placement.sync()
        for pack in placement.upto:
            pack.named = True
        index = self._index
        with index.write() as txn:
            for pack, upto in placement.upto.items():
                txn.put(pack.pack_id, encode_pack_row(pack.created_ns, upto), db=index.packs)
            for frame, offset, location in zip(frames, offsets, locations, strict=True):
                self._elsewhere[frame.chunk_id] = location
                row = txn.get(frame.chunk_id, db=index.chunks)
                if row is None or _location_of(row)[:2] == (pack_id, offset):
                    new = encode_chunk_row(frame.raw_bytes, location)
                    txn.put(frame.chunk_id, new, db=index.chunks)
        return len(frames)

    # ------------------------------------------------------------ extents

    def _move_extents(self) -> None:
        """Lead extents in packs that are to be replaced, or astray, to the copies."""
        batch: list[bytes] = []
        moved = 0
        for key, segment in self._all_segments():
            if self._moved(segment) is not None:
                batch.append(key)
            if len(batch) >= SEGMENTS_MAX:
                moved += self._rewrite(batch)
                batch = []
        moved += self._rewrite(batch)
        if moved:
            self._done.append(f"{moved} segments lead to other copies of their chunks")

    def _rewrite(self, keys: list[bytes]) -> int:
        index, count = self._index, 0
        with index.write() as txn:
            for key in keys:
                raw = txn.get(key, db=index.segments)
                new = None if raw is None or not _decodes(raw) else self._moved(decode_segment(raw))
                if new is not None:
                    txn.put(key, new, db=index.segments)
                    count += 1
        return count

    def _moved(self, segment: Segment) -> bytes | None:
        """The segment with what can be led elsewhere led there; None if there is nothing."""
        extents = list(segment)
        moving = [self._needs_moving(extent) for extent in extents]
        if not any(moving):
            return None
        builder = SegmentBuilder(segment.begin)
        for extent, move in zip(extents, moving, strict=True):
            location = self._elsewhere[extent.chunk_id] if move else extent.location
            builder.append(extent.end, extent.chunk_id, *location)
        return builder.encode()

    def _needs_moving(self, extent: Extent) -> bool:
        at = extent.location
        if extent.chunk_id not in self._elsewhere or self._elsewhere[extent.chunk_id] == at:
            return False
        return at.pack_id in self._bad or (self._is_astray(extent) and self._is_settled(at.pack_id))

    def _is_astray(self, extent: Extent) -> bool:
        return extent_fault(extent, self._readings) is not None

    def _is_settled(self, pack_id: bytes) -> bool:
        """Whether what was read of the pack still is all there is: not of one made since."""
        return pack_id in self._readings or not os.path.exists(pack_path(self._root, pack_id))

    # ------------------------------------------------------------ objects

    def _salvage(self, report: CheckReport) -> bool:
        """Move what still can't be read in full below quarantine/; whether a record is lost, with
        which nobody knows which manifest was its."""
        lost = False
        why = {name: p.what for p in report.problems for name in p.names}
        for name in report.damaged_names:
            key = name.encode(errors="surrogateescape")
            with self._index.read() as txn:
                raw = txn.get(key, db=self._index.names)
            if raw is None:
                continue
            try:
                record = decode_record(raw)
            except (FormatError, UnsupportedFormat):
                record = None
            if record is None or record.is_inline:
                lost = lost or record is None
                if record is None or self._inline_is_bad(record):
                    self._keep_raw(key, raw, why[name])
            elif not self._is_readable(record):
                self._keep_rest(key, raw, record, why[name])
        return lost

    def _keep_rest(self, key: bytes, raw: bytes, record: Record, why: str) -> None:
        with self._index.read() as txn:
            segments = [
                (int.from_bytes(segment[8:], "big"), value)
                for segment, value in self._segments_of(txn, record.manifest)
            ]
        target, whole = salvage(self._session(), key, record, segments, self._find, why)
        copied: list[Operation] = [Copy(target, key, record.mtime_ns), Delete(target)]
        if self._change_name(key, raw, copied if whole else [Delete(key)]):
            self._emptied.add(record.manifest)
            self._done.append(
                f"{_shown(key)} is put together again from its chunks"
                if whole
                else f"{_shown(key)} can't be read in full: it is now {_shown(target)}"
            )

    def _keep_raw(self, key: bytes, raw: bytes, why: str) -> None:
        """A name of whose object there is nothing but a record that does not decode."""
        target = PREFIX + xxhash.xxh3_64_hexdigest(raw).encode() + b".json"
        facts: dict[str, object] = {"name": _shown(key), "record": raw.hex(), "why": why}
        note(self._session(), target, facts)
        if self._change_name(key, raw, [Delete(key)]):
            self._done.append(
                f"{_shown(key)} has no readable record: {_shown(target)} has its bytes"
            )

    def _change_name(self, key: bytes, raw: bytes, changes: Sequence[Operation]) -> bool:
        """Unless it was put anew meanwhile."""
        with self._index.write() as txn:
            if txn.get(key, db=self._index.names) != raw:
                return False
            self._catalog.change_names(txn, changes, {})
        return True

    def _name_orphans(self, lost: bool) -> None:
        """Manifests without a name, one of which the lost record was of: kept below quarantine/,
        where the next gc does not take them."""
        if not lost:
            return
        index = self._index
        with index.read() as txn:
            taken = self._named_in(txn) | self._pending_manifests(txn) | self._emptied
        manifests = {manifest_of(key) for key, _ in self._all_segments()}
        for manifest in sorted(manifests - taken):
            with index.read() as txn:
                segments = [value for _, value in self._segments_of(txn, manifest)]
            record = self._record_of(manifest, segments)
            if record is None:
                continue
            target = PREFIX + record.etag[:4].hex().encode() + b"/manifest-%d" % manifest
            with index.write() as txn:
                if [value for _, value in self._segments_of(txn, manifest)] != segments:
                    continue  # a collector was faster
                self._catalog.change_names(txn, [Publish(target, record, None)], {})
            self._done.append(f"{_shown(target)} is an object whose name is not known any more")

    def _record_of(self, manifest: int, segments: list[bytes]) -> Record | None:
        """A record for a manifest that is whole."""
        if not segments:
            return None
        etag = xxhash.xxh3_128(seed=self._config.seed)
        end = stored_bytes = chunks = 0
        for raw in segments:
            if not _decodes(raw) or (segment := decode_segment(raw)).begin != end:
                return None
            for extent in segment:
                if self._is_astray(extent):
                    return None
                etag.update(extent.chunk_id)
                stored_bytes += extent.location.stored_bytes
                chunks += 1
            end = segment.end
        return Record(end, time.time_ns(), 0o600, etag.digest(), stored_bytes, chunks, manifest)

    def _inline_is_bad(self, record: Record) -> bool:
        return inline_fault(record, self._config.seed) != ""

    def _is_readable(self, record: Record) -> bool:
        with self._index.read() as txn:
            raws = [raw for _, raw in self._segments_of(txn, record.manifest)]
        return not any(manifest_faults(record, raws, self._readings, self._config.seed))

    def _find(self, extent: Extent) -> bytes | memoryview | None:
        """The chunk's bytes from where the extent says, or from a copy."""
        for location in (extent.location, self._elsewhere.get(extent.chunk_id)):
            if location is None or location.pack_id not in self._readings:
                continue
            begin, end = location.offset, location.offset + location.stored_bytes
            frame = self._file(location.pack_id).read(begin, end)
            with contextlib.suppress(FormatError):
                size = extent.end - extent.begin
                return decode_frame(frame, extent.chunk_id, size, self._config.seed)
        return None

    # ------------------------------------------------------------ the end

    def _finish(self) -> None:
        """One transaction after which nothing leads to the packs that were replaced, and all rows
        are right; then these packs are below quarantine/ alone."""
        links = {pack_id: self._link(pack_id) for pack_id in self._bad}
        with self._index.write() as txn:
            named = self._named_in(txn)
            self._drop_segments(txn, named)
            blocked = self._move_stragglers(txn, named | self._pending_manifests(txn))
            gone = self._bad.keys() - blocked
            self._mend_chunk_rows(txn, gone)
            self._mend_pack_rows(txn, gone)
            self._count(txn)
            gc_seq = int.from_bytes(txn.get(b"gc_seq", b"", db=self._index.meta), "little") + 1
            txn.put(b"gc_seq", gc_seq.to_bytes(8, "little"), db=self._index.meta)
        for pack_id, link in links.items():
            if pack_id in blocked:
                os.unlink(link)
                self._done.append(
                    f"pack {pack_id.hex()} is in use by what was put just now: repeat"
                )
                continue
            os.unlink(pack_path(self._root, pack_id))
            sync_folder(os.path.dirname(pack_path(self._root, pack_id)))
            self._done.append(f"pack {pack_id.hex()} is now {link}")

    def _link(self, pack_id: bytes) -> str:
        folder = os.path.join(self._root, "quarantine")
        make_durable_folder(folder)
        path = os.path.join(folder, f"{pack_id.hex()}.pack")
        with contextlib.suppress(FileExistsError):  # of a repair that was killed
            os.link(pack_path(self._root, pack_id), path)
        sync_folder(folder)
        return path

    def _drop_segments(self, txn: Txn, named: set[int]) -> None:
        """Of the manifests whose names were moved away: what they lead to is lost, or copied."""
        for manifest in self._emptied - named:
            for key, _ in list(self._segments_of(txn, manifest)):
                txn.delete(key, db=self._index.segments)

    def _move_stragglers(self, txn: Txn, alive: set[int]) -> set[bytes]:
        """Lead what was committed meanwhile to the copies; the packs that some object still needs,
        though no copy of what it needs is known."""
        index, blocked = self._index, set()
        moved = {}
        for key, raw in txn.cursor(db=index.segments):
            raw = bytes(raw)
            try:
                segment = decode_segment(raw)
            except FormatError:
                continue
            if not self._bad.keys() & set(segment.packs):
                continue
            new = self._moved(segment)
            if new is not None:
                moved[bytes(key)] = new
            if manifest_of(bytes(key)) in alive:
                blocked |= self._bad.keys() & set(decode_segment(new or raw).packs)
        for key, raw in moved.items():
            txn.put(key, raw, db=index.segments)
        return blocked

    def _mend_chunk_rows(self, txn: Txn, gone: Iterable[bytes]) -> None:
        index = self._index
        wrong: dict[bytes, bytes] = {}
        gone = set(gone)
        for key, row in txn.cursor(db=index.chunks):
            key, row = bytes(key), bytes(row)
            if not self._row_is_right(key, row, gone):
                wrong[key] = row
        dropped = 0
        for key in wrong:
            at = self._elsewhere.get(key)
            entry = None if at is None else self._readings[at.pack_id].frame_at(at.offset)
            if at is None or entry is None or at.pack_id in gone:
                txn.delete(key, db=index.chunks)
                dropped += 1
            else:
                txn.put(key, encode_chunk_row(entry.raw_bytes, at), db=index.chunks)
        if wrong:
            self._done.append(
                f"{len(wrong) - dropped} rows of chunks lead to other copies, {dropped} that led "
                "nowhere are dropped"
            )

    def _row_is_right(self, key: bytes, row: bytes, gone: set[bytes]) -> bool:
        try:
            raw_bytes, location = decode_chunk_row(row)
        except FormatError:
            return False
        if location.pack_id in gone:
            return False
        fault = extent_fault(Extent(0, raw_bytes, key, location), self._readings)
        return fault is None or not self._is_settled(location.pack_id) or self._is_new(location)

    def _is_new(self, location: Location) -> bool:
        """Whether it is beyond what was read of a pack that grows."""
        reading = self._readings.get(location.pack_id)
        return reading is not None and reading.unsealed and location.offset >= reading.end

    def _mend_pack_rows(self, txn: Txn, gone: Iterable[bytes]) -> None:
        index = self._index
        rows = {bytes(key): bytes(row) for key, row in txn.cursor(db=index.packs)}
        used = {bytes(_location_of(row)[0]) for _, row in txn.cursor(db=index.chunks)}
        for pack_id in gone:
            txn.delete(pack_id, db=index.packs)
        for pack_id, row in rows.items():
            if pack_id not in self._readings and self._is_settled(pack_id):
                txn.delete(pack_id, db=index.packs)
                self._done.append(f"pack {pack_id.hex()} is gone, and so is its row")
            elif not _pack_row_decodes(row) and pack_id not in gone:
                self._put_pack_row(txn, pack_id)
        for pack_id in used - rows.keys() - set(gone):
            if pack_id in self._readings:
                self._put_pack_row(txn, pack_id)

    def _put_pack_row(self, txn: Txn, pack_id: bytes) -> None:
        created_ns = os.stat(pack_path(self._root, pack_id)).st_mtime_ns
        row = encode_pack_row(created_ns, self._readings[pack_id].end)
        txn.put(pack_id, row, db=self._index.packs)
        self._done.append(f"the row of pack {pack_id.hex()} is written anew")

    def _count(self, txn: Txn) -> None:
        index, totals = self._index, Totals()
        for _, raw in txn.cursor(db=index.names):
            with contextlib.suppress(FormatError, UnsupportedFormat):
                record = decode_record(bytes(raw))
                totals.logical_bytes += record.size
                if record.is_inline:
                    totals.inline_raw_bytes += record.size
                    totals.inline_stored_bytes += record.stored_bytes
        for _, row in txn.cursor(db=index.chunks):
            raw_bytes, location = decode_chunk_row(bytes(row))
            totals.chunk_raw_bytes += raw_bytes
            totals.chunk_stored_bytes += location.stored_bytes
        if txn.get(b"totals", db=index.meta) not in (None, totals.encode()):
            self._done.append("the totals are counted anew")
        txn.put(b"totals", totals.encode(), db=index.meta)

    # ------------------------------------------------------------ below

    def _file(self, pack_id: bytes) -> PackFile:
        file = self._files.get(pack_id)
        if file is None:
            while len(self._files) >= FILES_MAX:
                del self._files[next(iter(self._files))]
            file = self._files[pack_id] = PackFile(pack_path(self._root, pack_id))
        return file

    def _all_segments(self) -> Iterator[tuple[bytes, Segment]]:
        """Those that decode."""
        for page in pages(self._index, self._index.segments):
            for key, raw in page:
                with contextlib.suppress(FormatError):
                    yield key, decode_segment(raw)

    def _segments_of(self, txn: Snapshot | Txn, manifest: int) -> Iterator[tuple[bytes, bytes]]:
        with txn.cursor(db=self._index.segments) as cursor:
            if cursor.set_range(segment_key(manifest, 0)):
                for key, raw in cursor:
                    if manifest_of(bytes(key)) != manifest:
                        return
                    yield bytes(key), bytes(raw)

    def _named_in(self, txn: Snapshot | Txn) -> set[int]:
        named = set()
        for _, raw in txn.cursor(db=self._index.names):
            with contextlib.suppress(FormatError, UnsupportedFormat):
                named.add(decode_record(bytes(raw)).manifest)
        return named

    def _pending_manifests(self, txn: Snapshot | Txn) -> set[int]:
        """Of writers that live."""
        return {
            manifest_of(bytes(key))
            for key, owner in txn.cursor(db=self._index.pending)
            if is_locked(pack_path(self._root, bytes(owner)))
        }


def _decodes(raw: bytes) -> bool:
    try:
        decode_segment(raw)
    except FormatError:
        return False
    return True


def _pack_row_decodes(row: bytes) -> bool:
    try:
        decode_pack_row(row)
    except FormatError:
        return False
    return True


def _location_of(row: bytes) -> Location:
    try:
        return decode_chunk_row(row)[1]
    except FormatError:
        return Location(b"", 0, 0)


def _shown(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
