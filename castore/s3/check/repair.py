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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from castore.check.objects import Faulty, manifest_faults
from castore.check.plan import refuse_later, refuse_most_missing
from castore.check.salvage import salvage
from castore.errors import (
    CommitUnknown,
    ConfigLost,
    FormatError,
    NameNotFound,
    UnsupportedFormat,
)
from castore.format.pack import PackEntry
from castore.format.s3 import NONCE_BYTES, encode_manifest
from castore.format.s3_told import decode_hints, decode_listing
from castore.format.segment import decode_segment
from castore.model import Extent, Location, Progress, Stages, StoredChunk
from castore.s3.cache.store import StoreCache
from castore.s3.catalog import S3Catalog
from castore.s3.check.check import S3Check, open_check
from castore.s3.check.outcome import Outcome
from castore.s3.check.repair_batches import BatchRepair
from castore.s3.check.repair_condemned import CondemnedRepair
from castore.s3.check.repair_manifests import ManifestRepair, Partly
from castore.s3.client.bucket import Bucket, KeyAbsent, OutcomeUnknown
from castore.s3.creation import read_config, repair_config
from castore.s3.damaged import mark_damaged, marks_of_packs, unmark
from castore.s3.gc.mark import PIN_S
from castore.s3.hints import listed_hints, rewrite_hints
from castore.s3.keys import pack_key
from castore.s3.listings import listed_listings
from castore.s3.manifests import Overwritten
from castore.s3.namespace.writing import Namespace
from castore.s3.parts import Parts
from castore.s3.samples import damaged_samples
from castore.s3.session import S3Session
from castore.s3.versions import Version
from castore.stream.operations import Delete
from castore.stream.reports import CheckReport
from castore.stream.session import WriteSession
from castore.stream.writer import ObjectWriter


def repair(
    parts: Parts,
    session: Callable[[], WriteSession],
    found: CheckReport | None,
    *,
    packs_are_lost: bool,
    progress: Progress | None,
) -> CheckReport:
    """It checks for itself, whatever was `found`, but reads only packs that changed since; and so
    does the check at the end, whose report this is. Raises CommitUnknown where replies are lost."""
    try:
        return _repair(parts, session, found, packs_are_lost, progress)
    except OutcomeUnknown as error:
        raise CommitUnknown(
            f"whether {error.key!r} was changed is not known ({error.__cause__}): repeat the repair"
        ) from error


def _repair(
    parts: Parts,
    session: Callable[[], WriteSession],
    found: CheckReport | None,
    packs_are_lost: bool,
    progress: Progress | None,
) -> CheckReport:
    stages = Stages(progress)
    bucket, config = parts.bucket, parts.config
    config_repaired = repair_config(bucket)
    if read_config(bucket) != config:
        url = bucket.settings.url
        raise ConfigLost(f"{url} was opened with another's castore.json: open it anew")
    outcome = Outcome(bucket)
    names = Namespace(bucket, config, StoreCache(None, frames_bytes_max=0))
    marked = marks_of_packs(bucket)
    known = (found.packs_read if found is not None else None) or {}
    # Somebody may have found damaged since what was read as whole then.
    known = {pack_id: read for pack_id, read in known.items() if pack_id not in marked}
    with contextlib.closing(names), open_check(parts, stages, known) as check:
        report = check.run(fraction=1)
        refuse_later(report, bucket.settings.url)
        if not packs_are_lost:
            refuse_most_missing(report, bucket.settings.url)
        repairing = S3Repair(bucket, names, parts.catalog, check, session, outcome)
        repairing.mark_packs(report, marked)
        batches = BatchRepair(bucket, names)
        batches.run()  # first: with them no name could be looked for
        outcome.done += batches.done
        outcome.lost += batches.lost
        manifests = ManifestRepair(bucket, names, parts.catalog, config, session, outcome)
        manifests.run(report)
        # Before anything is put: who can't read what is condemned relies on nothing.
        announced = CondemnedRepair(parts)
        if any(problem.kind == "gc state" for problem in report.problems):
            outcome.done += announced.run()
        if not announced.left:
            repairing.run(report, manifests.partly)
    with open_check(parts, stages, report.packs_read) as check:
        report = check.run(fraction=1)
    report.repaired = [*([config_repaired] if config_repaired else ()), *outcome.done]
    report.problems += [*outcome.lost, *announced.left]
    return report


class S3Repair:
    """What can be done about packs, and objects that lack some of theirs: `mark_packs`, and when
    batches and manifests are repaired, `run`, which needs the packs that others stored. What comes
    of it is added to `outcome`."""

    def __init__(
        self,
        bucket: Bucket,
        names: Namespace,
        catalog: S3Catalog,
        check: S3Check,
        session: Callable[[], WriteSession],
        outcome: Outcome,
    ) -> None:
        """`names` know nothing from a cache; `check` has read all data."""
        self._bucket = bucket
        self._names = names
        self._catalog = catalog
        self._check = check
        self._session = session
        self._outcome = outcome
        self._config = check.config
        self._elsewhere: dict[bytes, list[Location]] = {}
        self._plain: dict[bytes, StoredChunk] = {}  # in frames that are no deltas, by id
        self._bad = {i: reading for i, reading in check.readings.items() if reading.damaged}

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

    def run(self, report: CheckReport, partly: Sequence[Partly]) -> None:
        """`partly` are objects whose manifests can be read in part."""
        for pack_id in self._bad.keys() & self._check.used:
            with contextlib.suppress(KeyAbsent):  # a collector took it meanwhile
                self._outcome.keep_copy(pack_key(pack_id))
        wanted = {bytes.fromhex(p.chunk) for p in report.problems if p.chunk}
        self._put_together_partly(partly, wanted)
        for version in self._catalog.versions(b""):
            wanted.update(self._missing_chunks(version))
        self._find_elsewhere(wanted)
        damaged = {name.encode() for name in report.damaged_names}
        for version in self._catalog.versions(b""):
            # One that is inline and can be read is whole, or ManifestRepair had dealt with it.
            if version.head.record.is_inline:
                continue
            if version.name in damaged or self._bad.keys() & set(version.head.packs):
                self._store_anew(version)
        self._tidy()

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

    def _put_together_partly(self, partly: Sequence[Partly], wanted: set[bytes]) -> None:
        """`wanted` are chunks that are lost where names look for them. First of all objects: none
        can be listed while one does not decode."""
        if not partly:
            return
        wanted = set(wanted)
        for _, segments, _ in partly:
            for _, raw in segments:
                with contextlib.suppress(FormatError):
                    wanted.update(self._missing_in(raw))
        self._find_elsewhere(wanted)
        for version, segments, copy in partly:
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
                self._outcome.lose(name, f"can't be read in full: it is now {target.decode()}")
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
        if self._outcome.write_over(name, version.etag, body):
            self._outcome.done.append(f"{name.decode()} is stored anew from its intact chunks")
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
                self._outcome.keep_copy(key)
                self._bucket.delete_many([key])
