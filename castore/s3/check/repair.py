"""Repairing a store on S3, while it may be in use.

A damaged pack is copied below `quarantine/`, and what names need of it is stored anew in other
packs; the pack itself is left for the collector, which alone may tell when nobody relies on it any
more. It is marked as damaged first (`castore.s3.damaged`), so that no put relies on it from now on.
A name is written over, or away, only if it still has the ETag that was looked at.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property

from castore.check.bitflip import corrected
from castore.check.objects import Faulty, inline_fault, manifest_faults
from castore.check.plan import refuse_most_missing
from castore.check.salvage import PREFIX, note, salvage
from castore.errors import CommitUnknown, ConfigLost, FormatError, NameNotFound, UnsupportedFormat
from castore.format.index import INLINE_BYTES_LIMIT
from castore.format.pack import PackEntry
from castore.format.s3 import NONCE_BYTES, encode_manifest
from castore.format.s3_batches import decode_tombstone, digest_of, is_tombstone
from castore.format.s3_told import decode_hints, decode_listing
from castore.format.segment import decode_segment
from castore.model import Extent, Location, Progress, Stages, StoredChunk
from castore.s3.cache.store import StoreCache
from castore.s3.catalog import S3Catalog
from castore.s3.check.check import S3Check, open_check
from castore.s3.check.mended import mended
from castore.s3.check.repair_batches import BatchRepair
from castore.s3.check.repair_condemned import CondemnedRepair
from castore.s3.client.bucket import Bucket, KeyAbsent, OutcomeUnknown, PreconditionFailed
from castore.s3.client.probe import probe
from castore.s3.client.put_once import put_over
from castore.s3.creation import read_config, repair_config
from castore.s3.damaged import mark_damaged, marks_of_packs, unmark
from castore.s3.etags import batched_etag, is_batched, real
from castore.s3.gc.mark import PIN_S
from castore.s3.hints import listed_hints, rewrite_hints
from castore.s3.keys import name_key, pack_key
from castore.s3.listings import listed_listings
from castore.s3.manifests import Overwritten, decode_own_head
from castore.s3.namespace import Namespace
from castore.s3.parts import Parts
from castore.s3.quarantine import keep_copy
from castore.s3.samples import damaged_samples
from castore.s3.session import S3Session
from castore.s3.versions import Version
from castore.stream.codec import chunk_id_of
from castore.stream.operations import Delete
from castore.stream.reports import CheckReport, Problem
from castore.stream.session import WriteSession
from castore.stream.writer import ObjectWriter

RAW_BYTES_MAX = 64 << 10  # of a manifest whose every bit is tried


def repair(
    parts: Parts,
    session: Callable[[], WriteSession],
    found: CheckReport | None,
    *,
    packs_are_lost: bool,
    progress: Progress | None,
) -> CheckReport:
    """It checks for itself, whatever was `found`, but reads only packs that changed since; and so
    does the check at the end, whose report this is."""
    stages = Stages(progress)
    bucket, config = parts.bucket, parts.config
    config_repaired = repair_config(bucket)
    if read_config(bucket) != config:
        url = bucket.settings.url
        raise ConfigLost(f"{url} was opened with another's castore.json: open it anew")
    names = Namespace(bucket, config, StoreCache(None, frames_bytes_max=0))
    marked = marks_of_packs(bucket)
    known = (found.packs_read if found is not None else None) or {}
    # Somebody may have found damaged since what was read as whole then.
    known = {pack_id: read for pack_id, read in known.items() if pack_id not in marked}
    with contextlib.closing(names), open_check(parts, stages, known) as check:
        report = check.run(fraction=1)
        if not packs_are_lost:
            refuse_most_missing(report, bucket.settings.url)
        repairing = S3Repair(bucket, names, parts.catalog, check, session)
        repairing.mark_packs(report, marked)
        repairing.repair_batches()
        repairing.repair_manifests(report)
        # Before anything is put: who can't read what is condemned relies on nothing.
        announced = CondemnedRepair(parts)
        if any(problem.kind == "gc state" for problem in report.problems):
            repairing.done += announced.run()
        if not announced.left:
            repairing.run(report)
    with open_check(parts, stages, report.packs_read) as check:
        report = check.run(fraction=1)
    report.repaired = [*([config_repaired] if config_repaired else ()), *repairing.done]
    report.problems += [*repairing.lost, *announced.left]
    return report


class S3Repair:
    """What can be done about what a check of all data found: `mark_packs`, `repair_batches`, then
    `repair_manifests`, then `run`, which needs the packs that others stored. `done` says what they
    did, `lost` which objects are below quarantine/ now."""

    def __init__(
        self,
        bucket: Bucket,
        names: Namespace,
        catalog: S3Catalog,
        check: S3Check,
        session: Callable[[], WriteSession],
    ) -> None:
        """`names` know nothing from a cache."""
        self.done: list[str] = []
        self.lost: list[Problem] = []
        self._bucket = bucket
        self._names = names
        self._catalog = catalog
        self._check = check
        self._session = session
        self._config = check.config
        self._elsewhere: dict[bytes, list[Location]] = {}
        self._plain: dict[bytes, StoredChunk] = {}  # in frames that are no deltas, by id
        # Whose manifests can be read in part: their segments, and where all of it is kept.
        self._partly: list[tuple[Version, list[tuple[int, bytes]], str]] = []
        self._bad = {i: reading for i, reading in check.readings.items() if reading.damaged}

    @cached_property
    def conditional(self) -> bool:
        """Whether the server honours If-Match."""
        return probe(self._bucket).if_match_put

    def mark_packs(self, report: CheckReport, before: Mapping[bytes, Collection[str]]) -> None:
        """What is put from now on, on whatever machine, relies on none of those that are damaged or
        missing, and on those again that turned out to be whole, if they were marked `before` they
        were read (the keys of those marks), and not since."""
        unfit = {bytes.fromhex(pack_id) for pack_id in report.missing_packs} | self._bad.keys()
        whole = self._check.readings.keys() - unfit
        mark_damaged(self._bucket, unfit)
        unmark(self._bucket, whole | unfit, before)
        if unfit:
            listed = listed_hints(self._bucket)
            rewrite_hints(self._bucket, self._config.store_id, listed, unfit.__contains__)

    def run(self, report: CheckReport) -> None:
        for pack_id in self._bad.keys() & self._check.used:
            with contextlib.suppress(KeyAbsent):  # a collector took it meanwhile
                self._keep_copy(pack_key(pack_id))
        wanted = {bytes.fromhex(p.chunk) for p in report.problems if p.chunk}
        self._put_together_partly(wanted)
        for version in self._catalog.versions(b""):
            wanted.update(self._missing_chunks(version))
        self._find_elsewhere(wanted)
        damaged = {name.encode() for name in report.damaged_names}
        for version in self._catalog.versions(b""):
            # One that is inline and can be read is whole, or `repair_manifests` had dealt with it.
            if version.head.record.is_inline:
                continue
            if version.name in damaged or self._bad.keys() & set(version.head.packs):
                self._store_anew(version)
        self._tidy()

    # ------------------------------------------------------------ manifests that do not decode

    def repair_batches(self) -> None:
        """First: with them no name could be looked for."""
        batches = BatchRepair(self._bucket, self._names)
        batches.run()
        self.done += batches.done
        self.lost += batches.lost

    def repair_manifests(self, report: CheckReport) -> None:
        """Those that do not decode: with them no collector would say what is garbage."""
        for problem in report.problems:
            if problem.kind == "manifest":
                for name in problem.names:
                    with contextlib.suppress(KeyAbsent):  # deleted meanwhile
                        self._repair_manifest(name.encode())

    def _repair_manifest(self, name: bytes) -> None:
        try:
            reply = self._bucket.get(name_key(name))
        except KeyAbsent:
            self._repair_batched(name)
            return
        deleted = self._config.batches and is_tombstone(reply.size)
        decode = decode_tombstone if deleted else self._decode
        try:
            decode(reply.body)
            return
        except (FormatError, UnsupportedFormat) as error:
            fault = error
        right = left = None
        if len(reply.body) <= RAW_BYTES_MAX:
            right = corrected(reply.body, decode)
        if right is None and not deleted:
            left = mended(reply.body, self._config.store_id)
            with contextlib.suppress(FormatError, UnsupportedFormat):
                if left is not None:
                    self._decode(left.raw)
                    right = left.raw
        self._catalog.forget(name)
        if right is not None:
            if self._write_over(name, reply.etag, right):
                self.done.append(f"the manifest of {name.decode()!r} had one bit flipped")
        elif deleted:
            if self._names.delete(name, reply.etag):
                self.done.append(f"{name.decode()!r} is deleted: what says so was damaged")
        elif left is not None:
            copy = self._keep(name_key(name), reply.body)
            self._partly.append((Version(name, reply.etag, left.head), left.segments, copy))
        elif not isinstance(fault, UnsupportedFormat):  # which a later castore can read
            self._give_up(name, reply.etag, self._keep_copy(name_key(name)), str(fault))

    def _repair_batched(self, name: bytes) -> None:
        """A manifest in a batch, which its digest tells."""
        etag = self._names.etag_of(name)
        if etag is None or not is_batched(etag):
            return
        reply = self._names.first(name, INLINE_BYTES_LIMIT + RAW_BYTES_MAX)
        assert reply is not None  # no condition was set
        if batched_etag(digest_of(reply.body)) == etag:
            return
        right = None

        def is_right(raw: bytes) -> None:
            if batched_etag(digest_of(raw)) != etag:
                raise FormatError("another's digest")

        if len(reply.body) <= RAW_BYTES_MAX:
            right = corrected(reply.body, is_right)
        self._catalog.forget(name)
        if right is not None:
            head = decode_own_head(right, self._config.store_id)

            def body(nonce: bytes, number: int | None) -> bytes:
                return encode_manifest(self._config, nonce, head.record, [], [], number)

            with contextlib.suppress(PreconditionFailed):  # put meanwhile
                self._names.put(name, body, if_match=etag)
                self.done.append(f"the manifest of {name.decode()!r} had one bit flipped")
            return
        self._give_up(name, etag, self._keep(name_key(name), reply.body), "its manifest is damaged")

    def _give_up(self, name: bytes, etag: str, copy: str, why: str) -> None:
        """The version that has this ETag, whose manifest is beyond repair, and kept as `copy`."""
        # Another name for each version: what is told of one lost before stays.
        told = chunk_id_of(b"\0".join((name, etag.encode())), 0).hex()
        facts: dict[str, object] = {"name": name.decode(), "manifest": copy, "why": why}
        note(self._session(), PREFIX + told.encode() + b".json", facts)
        if self._names.delete(name, etag):
            self._lose(name, f"has no readable manifest: it is now {copy}")

    def _decode(self, raw: bytes) -> None:
        """Raises FormatError unless all of the manifest is as it was written."""
        head = decode_own_head(raw, self._config.store_id)
        if head.record.is_inline:
            fault = inline_fault(head.record, self._config)
            if fault:
                raise FormatError(fault)
        for place in head.segments:
            decode_segment(raw[place.offset : place.offset + place.length])

    # ------------------------------------------------------------ objects

    def _find_elsewhere(self, wanted: set[bytes]) -> None:
        """Where there are intact frames of these chunks, which are lost where names look for
        them."""
        found = [(at, entry) for at, entry in self._intact() if entry.chunk_id in wanted]
        wanted = wanted.union(base for _, entry in found for base in entry.bases)
        for at, entry in self._intact():
            if entry.chunk_id in wanted and not entry.bases:
                chunk = StoredChunk(entry.chunk_id, entry.raw_bytes, at)
                self._plain.setdefault(entry.chunk_id, chunk)
        for at, entry in found:
            if self._plain.keys() >= {*entry.bases}:
                bases = tuple(self._plain[base] for base in entry.bases)
                self._elsewhere.setdefault(entry.chunk_id, []).append(at._replace(bases=bases))

    def _intact(self) -> Iterator[tuple[Location, PackEntry]]:
        """All frames that are."""
        for pack_id, reading in self._check.readings.items():
            for entry in reading.frames:
                if entry.offset not in reading.bad:
                    yield Location(pack_id, entry.offset, entry.stored_bytes), entry

    def _missing_chunks(self, version: Version) -> Iterator[bytes]:
        if set(version.head.packs) <= self._check.readings.keys():
            return
        with contextlib.suppress(Overwritten, FormatError):
            for raw in self._catalog.raw_segments(version):
                yield from self._missing_in(raw)

    def _missing_in(self, segment: bytes) -> Iterator[bytes]:
        for chunk in decode_segment(segment).frames():
            if chunk.location.pack_id not in self._check.readings:
                yield chunk.chunk_id

    def _put_together_partly(self, wanted: set[bytes]) -> None:
        """The objects whose manifests can be read in part; `wanted` are chunks that are lost where
        names look for them. First of all objects: none can be listed while one does not decode."""
        if not self._partly:
            return
        wanted = set(wanted)
        for _, segments, _ in self._partly:
            for _, raw in segments:
                with contextlib.suppress(FormatError):
                    wanted.update(self._missing_in(raw))
        self._find_elsewhere(wanted)
        for version, segments, copy in self._partly:
            self._put_together(version, segments, f"its manifest is damaged, and kept as {copy}")

    def _store_anew(self, version: Version) -> None:
        """The object from its intact frames, in packs that are not damaged; below quarantine/ if
        they do not make all of it."""
        for pack_id in set(version.head.packs) - self._check.readings.keys():
            self._check.scan.add(pack_id)  # it may have been put since
        try:
            segments = self._segments(version)
        except Overwritten:
            return
        faults = self._faults(version, segments)
        if not faults and self._bad.keys().isdisjoint(version.head.packs):
            return
        self._put_together(version, segments, "; ".join(fault.what for fault in faults[:10]))

    def _put_together(self, version: Version, segments: list[tuple[int, bytes]], why: str) -> None:
        """See `_store_anew`. Some of the `segments`, given with their ends, may not decode."""
        name, record = version.name, version.head.record
        session = self._session()
        self._store_bases(session, segments)
        target, whole = salvage(session, name, record, segments, self._find, why)
        self._catalog.forget(name)
        if not whole:
            if self._names.delete(name, version.etag):
                self._lose(name, f"can't be read in full: it is now {target.decode()}")
            return
        saved = self._catalog.current(target)
        body = encode_manifest(
            self._config,
            secrets.token_bytes(NONCE_BYTES),
            saved.head.record._replace(mtime_ns=record.mtime_ns),
            saved.head.packs,
            self._segments(saved),
            version.head.number,
        )
        if self._write_over(name, version.etag, body):
            self.done.append(f"{name.decode()} is stored anew from its intact chunks")
        with contextlib.suppress(NameNotFound):
            session = self._session()
            try:
                session.commit([Delete(target)])
            finally:
                session.close()

    def _store_bases(self, session: WriteSession, segments: list[tuple[int, bytes]]) -> None:
        """What its deltas decode with, in packs that are not damaged: these are led there then, and
        need not be stored whole."""
        assert isinstance(session, S3Session)
        unfit: dict[StoredChunk, None] = {}
        for _, raw in segments:
            with contextlib.suppress(FormatError):
                for extent in decode_segment(raw):
                    unfit.update(dict.fromkeys(filter(self._is_unfit, extent.location.bases)))
        writer, end = ObjectWriter(session), 0  # of no name
        try:
            for base in unfit:
                begin, end = end, end + base.raw_bytes
                extent = Extent(begin, end, base.chunk_id, base.location)
                chunk = self._find(extent)
                if chunk is not None:
                    writer.adopt([extent], {extent: chunk}.__getitem__)
            writer.finish(0)
            session.finish()
        except BaseException:
            session.close()
            raise

    def _is_unfit(self, base: StoredChunk) -> bool:
        return base.location.pack_id in self._bad or (
            base.location.pack_id not in self._check.readings
        )

    def _segments(self, version: Version) -> list[tuple[int, bytes]]:
        """(end, as stored) of each. Raises Overwritten."""
        raws = self._catalog.raw_segments(version)
        return [(place.end, raw) for place, raw in zip(version.head.segments, raws, strict=True)]

    def _faults(self, version: Version, segments: list[tuple[int, bytes]]) -> list[Faulty]:
        raws = [raw for _, raw in segments]
        seed = self._config.seed
        return list(manifest_faults(version.head.record, raws, self._check.readings, seed))

    def _find(self, extent: Extent) -> bytes | memoryview | None:
        at = extent.location
        other_bases = tuple(self._plain.get(base.chunk_id, base) for base in at.bases)
        others = self._elsewhere.get(extent.chunk_id, ())
        places = dict.fromkeys((at, at._replace(bases=other_bases), *others))
        return self._check.scan.chunk(extent.chunk_id, extent.end - extent.begin, places)

    # ------------------------------------------------------------ parts of these

    def _write_over(self, name: bytes, etag: str, body: bytes) -> bool:
        """False if the name is not any more what was looked at."""
        try:
            return put_over(
                self._bucket, name_key(name), body, real(etag), conditional=self.conditional
            )
        except OutcomeUnknown as error:
            raise CommitUnknown(
                f"whether {name.decode()!r} was written anew is not known: repeat the repair"
            ) from error

    def _lose(self, name: bytes, what: str) -> None:
        self.done.append(f"{name.decode()} {what}")
        self.lost.append(Problem("object", "missing", self.done[-1], (name.decode(),)))

    def _keep_copy(self, key: str) -> str:
        """A copy below quarantine/; where. Raises KeyAbsent."""
        return self._keep(key, self._bucket.get(key).body)

    def _keep(self, key: str, raw: bytes) -> str:
        target = keep_copy(self._bucket, key, raw)
        self.done.append(f"{key} is copied to {target}")
        return target

    def _tidy(self) -> None:
        """Hints, samples and listings that do not decode, or are another store's, only cost time,
        and expired pins that do not decode protect nothing: they go. A younger pin's session may
        live: it stays."""
        now = time.time() + self._bucket.clock_skew()
        void = [key for key, modified in self._check.bad_pins if now - modified > PIN_S]
        told: dict[str, Callable[[bytes], tuple[bytes, object]]] = {}
        told |= dict.fromkeys(listed_hints(self._bucket), decode_hints)
        told |= dict.fromkeys(listed_listings(self._bucket), decode_listing)
        for key, decode in told.items():
            try:
                if decode(self._bucket.get(key).body)[0] != self._config.store_id:
                    void.append(key)
            except FormatError:
                void.append(key)
            except (KeyAbsent, UnsupportedFormat):  # gone; or a later castore's
                continue
        void += [
            key
            for key, error in damaged_samples(self._bucket, self._config.store_id)
            if not isinstance(error, UnsupportedFormat)
        ]
        for key in void:
            with contextlib.suppress(KeyAbsent):
                self._keep_copy(key)
                self._bucket.delete_many([key])
