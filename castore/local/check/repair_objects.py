"""The objects of a local store that is being repaired: led to intact frames where there are any,
and kept below `quarantine/` where there are not."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence

import xxhash

from castore.check.objects import inline_fault, manifest_faults, name_fault
from castore.check.salvage import PREFIX, hashed_name, note, salvage
from castore.errors import FormatError, UnsupportedFormat
from castore.format.index import Record, decode_record, manifest_of, segment_place
from castore.format.segment import decode_segment
from castore.local.check.repair_packs import PackRepair, Parts
from castore.local.check.segments import (
    all_segments,
    decodes,
    named_manifests,
    pending_manifests,
    segments_of,
)
from castore.local.index_walk import pages
from castore.local.tables import Tables
from castore.model import Extent
from castore.stream.codec import ChunksEtag
from castore.stream.operations import Copy, Delete, Operation, Publish, now_ns
from castore.stream.reports import CheckReport, Problem
from castore.wording import counted

SEGMENTS_MAX = 256  # rewritten in one transaction


class ObjectRepair:
    """`emptied` are the manifests whose names were moved away; `lost` tells of those that are not
    whole any more."""

    def __init__(
        self, parts: Parts, packs: PackRepair, done: list[str], lost: list[Problem]
    ) -> None:
        self.lost = lost
        self.emptied: set[int] = set()
        self._root = parts.root
        self._config = parts.config
        self._index = parts.index
        self._catalog = parts.catalog
        self._session = parts.session
        self._packs = packs
        self._done = done

    # ------------------------------------------------------------ extents

    def dangling_chunks(self) -> set[bytes]:
        """Those whose frames are, and those that are deltas of them: there may be frames of these
        that are none."""
        dangling: set[bytes] = set()
        for _, segment in all_segments(self._index):
            for extent in segment:
                chunks = extent.stored, *extent.location.bases
                found = {c.chunk_id for c in chunks if self._packs.is_dangling(c)}
                if found:
                    dangling |= {extent.chunk_id, *found}
        return dangling

    def move_extents(self) -> None:
        """Lead extents in packs that are to be replaced, or dangling, to the copies.

        Also those of manifests that no name leads to, since the lost record of a name may have.
        But nobody is told of these: the next collection takes them.
        """
        batch: list[bytes] = []
        moved: Counter[int] = Counter()
        for key, segment in all_segments(self._index):
            if any(map(self._packs.moved_to, segment.frames())):
                batch.append(key)
            if len(batch) >= SEGMENTS_MAX:
                moved.update(self._rewrite(batch))
                batch = []
        moved.update(self._rewrite(batch))
        # All names are looked at for this: once, and not where others wait for it.
        told = sum(moved.pop(manifest, 0) for manifest in self._named()) if moved else 0
        if told:
            self._done.append(f"{counted(told, 'segment')} led to other copies of chunks")

    def _rewrite(self, keys: list[bytes]) -> list[int]:
        """The manifests of the segments that are led elsewhere, one for each."""
        if not keys:
            return []
        index, moved = self._index, []
        with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
            for key in keys:
                raw = tables.segments.get(key)
                if raw is None or not decodes(raw, manifest_of(key)):
                    continue
                new = decode_segment(raw).relocated(self._packs.moved_to)
                if new is not None:
                    tables.segments.put(key, new)
                    moved.append(manifest_of(key))
        return moved

    def _named(self) -> Iterator[int]:
        """The manifests that names lead to, now or a moment ago."""
        for page in pages(self._index, self._index.names):
            for _, raw in page:
                with contextlib.suppress(FormatError, UnsupportedFormat):
                    yield decode_record(raw).manifest

    # ------------------------------------------------------------ what can't be read in full

    def salvage(self, report: CheckReport) -> None:
        """Move what still can't be read in full below quarantine/."""
        why = {name: p.what for p in report.problems for name in p.names}
        unreadable = []
        for name in report.damaged_names:
            key = name.encode(errors="surrogateescape")
            with self._index.gate, self._index.snapshot() as txn:
                raw = txn.get(key, db=self._index.names)
            if raw is None:
                continue
            try:
                record = decode_record(raw)
            except (FormatError, UnsupportedFormat):
                unreadable.append((key, raw, why[name]))
                continue
            if name_fault(key):
                key = self._give_name(key, raw, record, why[name])
            if not record.is_inline:
                if not self._is_readable(record):
                    self._keep_rest(key, raw, record, why[name])
            elif inline_fault(record, self._config):
                self._keep_raw(key, raw, why[name])
        if unreadable:
            # While their names are there, a repair that is repeated knows that something is lost.
            self._name_orphans()
        for key, raw, reason in unreadable:
            self._keep_raw(key, raw, reason)

    def _is_readable(self, record: Record) -> bool:
        with self._index.gate, self._index.snapshot() as txn:
            raws = [raw for _, raw in segments_of(self._index, txn, record.manifest)]
        packs = {
            pack_id
            for raw in raws
            if decodes(raw, record.manifest)
            for pack_id in decode_segment(raw).packs
        }
        if not packs <= self._packs.readings.keys():
            self._packs.read_new()  # of an object that was put since
        return not any(manifest_faults(record, raws, self._packs.readings, self._config.seed))

    def _keep_rest(self, key: bytes, raw: bytes, record: Record, why: str) -> None:
        with self._index.gate, self._index.snapshot() as txn:
            segments = [
                (segment_place(segment)[1], value)
                for segment, value in segments_of(self._index, txn, record.manifest)
            ]
        target, whole = salvage(self._session(), key, record, segments, self._find, why)
        copied: list[Operation] = [Copy(target, key, record.mtime_ns), Delete(target)]
        if self._change_name(key, raw, copied if whole else [Delete(key)]):
            self.emptied.add(record.manifest)
            if whole:
                self._done.append(f"{_shown(key)} is put together again from its chunks")
            else:
                self._lose(key, f"{_shown(key)} can't be read in full: it is now {_shown(target)}")

    def _give_name(self, key: bytes, raw: bytes, record: Record, why: str) -> bytes:
        """A name that can be asked for, to an object that has none."""
        target = hashed_name(key, record)
        note(self._session(), target + b".json", {"name": _shown(key), "why": why})
        if self._change_name(key, raw, [Copy(key, target, record.mtime_ns, rename=True)]):
            self._done.append(
                f"{_shown(key)} is no name that can be read: it is now {_shown(target)}"
            )
        return target

    def _keep_raw(self, key: bytes, raw: bytes, why: str) -> None:
        """A name of whose object there is nothing but a record that does not decode."""
        target = PREFIX + xxhash.xxh3_64_hexdigest(raw).encode() + b".json"
        facts: dict[str, object] = {"name": _shown(key), "record": raw.hex(), "why": why}
        note(self._session(), target, facts)
        if self._change_name(key, raw, [Delete(key)]):
            self._lose(key, f"{_shown(key)} has no readable record: {_shown(target)} has its bytes")

    def _lose(self, key: bytes, what: str) -> None:
        self._done.append(what)
        name = key.decode(errors="surrogateescape")
        self.lost.append(Problem("object", "missing", what, (name,)))

    def _change_name(self, key: bytes, raw: bytes, changes: Sequence[Operation]) -> bool:
        """Unless it was put anew meanwhile."""
        index = self._index
        with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
            if tables.names.get(key) != raw:
                return False
            self._catalog.change_names(tables, changes)
        return True

    def _find(self, extent: Extent) -> bytes | memoryview | None:
        """The chunk's bytes from where the extent says, or from another frame."""
        other = self._packs.instead_of(extent.stored)
        places = [extent.location, *([other] if other else ())]
        if extent.location.bases:
            # Of a segment that is damaged itself, these have not been led elsewhere.
            bases = [
                base._replace(location=self._packs.instead_of(base) or base.location)
                for base in extent.location.bases
            ]
            places.append(extent.location._replace(bases=tuple(bases)))
        return self._packs.scan.chunk(extent.chunk_id, extent.end - extent.begin, places)

    # ------------------------------------------------------------ manifests without a name

    def _name_orphans(self) -> None:
        """Manifests without a name, one of which a lost record was of: kept below quarantine/,
        where the next gc does not take them."""
        index = self._index
        # Before those with a name: what is staged in between is not taken for one without.
        manifests = {manifest_of(key) for key, _ in all_segments(index)}
        with index.gate, index.snapshot() as txn:
            taken = pending_manifests(index, txn, self._root, self._packs.replaced)
        # After their writers' locks: who has let go of one by then has its name in this snapshot.
        with index.gate, index.snapshot() as txn:
            taken |= named_manifests(index, txn) | self.emptied
        for manifest in sorted(manifests - taken):
            self._name_orphan(manifest)

    def _name_orphan(self, manifest: int) -> None:
        index = self._index
        with index.gate, index.snapshot() as txn:
            rows = list(segments_of(index, txn, manifest))
        segments = [value for _, value in rows]
        record = self._record_of(manifest, segments)
        if record is not None:
            target = PREFIX + record.etag[:4].hex().encode() + b"/manifest-%d" % manifest
            if not self._publish(target, record, segments):
                return  # a put that failed has taken it back
        elif rows:
            ends = [segment_place(key)[1] for key, _ in rows]
            etag = xxhash.xxh3_128_digest(b"".join(segments))
            record = Record(ends[-1], now_ns(), 0o600, etag, 0, 0, manifest)
            found = list(zip(ends, segments, strict=True))
            name, why = b"manifest-%d" % manifest, "the record of its name is lost"
            target, _ = salvage(self._session(), name, record, found, self._find, why)
            self.emptied.add(manifest)
        else:
            return
        self._done.append(f"{_shown(target)} is an object whose name is not known any more")

    def _publish(self, target: bytes, record: Record, segments: list[bytes]) -> bool:
        """Unless these are not its segments any more."""
        index = self._index
        with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
            there = [value for _, value in segments_of(index, txn, record.manifest)]
            if there == segments:
                self._catalog.change_names(tables, [Publish(target, record, None)])
        return there == segments

    def _record_of(self, manifest: int, segments: list[bytes]) -> Record | None:
        """A record for a manifest that is whole."""
        if not segments:
            return None
        etag = ChunksEtag(self._config.seed)
        end = stored_bytes = chunks = deltas = 0
        for raw in segments:
            if not decodes(raw, manifest) or (segment := decode_segment(raw)).begin != end:
                return None
            if any(map(self._packs.is_dangling, segment.frames())):
                return None
            for extent in segment:
                etag.update(extent.chunk_id)
                stored_bytes += extent.location.stored_bytes
                chunks += 1
            end, deltas = segment.end, deltas + segment.deltas
        return Record(
            end,
            now_ns(),
            0o600,
            etag.digest(),
            stored_bytes,
            chunks,
            manifest,
            deltas=deltas,
        )


def _shown(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
