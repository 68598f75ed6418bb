"""Mending a store on S3, while it may be in use.

A damaged pack is copied below `quarantine/`, and what names need of it is stored anew in other
packs; the pack itself is left for the collector, which alone may tell when nobody relies on it any
more. A name is written over only if it still has the ETag that was looked at.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator

from castore.catalog.operations import Delete
from castore.catalog.s3 import Overwritten, S3Catalog, Version
from castore.check.mending import mended
from castore.check.objects import inline_fault, manifest_faults
from castore.check.packs import PackReading, is_whole
from castore.check.remote import PIN_SECONDS_MAX, RemoteCheck
from castore.check.report import CheckReport
from castore.check.salvage import PREFIX, note, salvage
from castore.codec import chunk_id_of, decode_frame
from castore.errors import CommitUnknown, FormatError, NameNotFound, UnsupportedFormat
from castore.format_index import decode_segment
from castore.format_s3 import (
    MANIFEST_HEADER_BYTES,
    NONCE_BYTES,
    decode_hints,
    decode_manifest_head,
    encode_manifest,
    manifest_head_bytes,
    name_key,
    pack_key,
)
from castore.model import Extent, Location
from castore.s3.bucket import Bucket, KeyAbsent, OutcomeUnknown, PreconditionFailed
from castore.s3.cache import StoreCache
from castore.s3.hints import Hints
from castore.s3.removal import delete_version
from castore.session import WriteSession

RAW_BYTES_MAX = 64 << 10  # of a manifest whose every bit is tried


class RemoteRepair:
    """What can be done about what `look` found in all data: first `mend_manifests`, then `run`,
    which needs the packs that others stored. Both say what they did."""

    def __init__(
        self,
        bucket: Bucket,
        catalog: S3Catalog,
        cache: StoreCache,
        hints: Hints,
        look: RemoteCheck,
        session: Callable[[], WriteSession],
    ) -> None:
        self._bucket = bucket
        self._catalog = catalog
        self._cache = cache
        self._hints = hints
        self._look = look
        self._session = session
        self._config = look.config
        self._done: list[str] = []
        self._elsewhere: dict[bytes, Location] = {}

    def run(self, report: CheckReport) -> list[str]:
        bad = {i: r for i, r in self._look.readings.items() if r.damaged and i in self._look.used}
        for pack_id in bad:
            with contextlib.suppress(KeyAbsent):  # a collector took it meanwhile
                self._keep_copy(pack_key(pack_id))
        self._forget(bad)
        self._find_elsewhere(report)
        damaged = dict.fromkeys(name.encode() for name in report.damaged_names)
        for version in self._catalog.versions(b""):
            if version.name in damaged or bad.keys() & set(version.head.packs):
                self._store_anew(version, set(bad), report)
                damaged.pop(version.name, None)
        self._tidy()
        return self._taken()

    # ------------------------------------------------------------ manifests that do not decode

    def mend_manifests(self, report: CheckReport) -> list[str]:
        """Those that do not decode: with them no collector would say what is garbage."""
        for problem in report.problems:
            if problem.kind != "manifest":
                continue
            name = problem.names[0].encode()
            try:
                reply = self._bucket.get(name_key(name))
            except KeyAbsent:
                continue
            fault = self._fault(reply.body)
            if not fault:
                continue
            right = None
            if len(reply.body) <= RAW_BYTES_MAX:
                right = mended(reply.body, self._decode)
            self._catalog.forget(name)
            if right is not None:
                if self._write_over(name, reply.etag, right):
                    self._done.append(f"the manifest of {name.decode()!r} had one bit flipped")
                continue
            try:
                copy = self._keep_copy(name_key(name))
            except KeyAbsent:
                continue  # deleted meanwhile
            target = PREFIX + chunk_id_of(name, 0).hex().encode() + b".json"
            note(self._session(), target, {"name": name.decode(), "manifest": copy, "why": fault})
            delete_version(self._bucket, name_key(name), reply.etag)
            self._done.append(f"{name.decode()} has no readable manifest: it is now {copy}")
        return self._taken()

    def _taken(self) -> list[str]:
        done, self._done = self._done, []
        return done

    def _fault(self, raw: bytes) -> str:
        try:
            self._decode(raw)
        except (FormatError, UnsupportedFormat) as error:
            return str(error)
        return ""

    def _decode(self, raw: bytes) -> None:
        """Raises FormatError unless all of the manifest is as it was written."""
        head = decode_manifest_head(raw[: manifest_head_bytes(raw[:MANIFEST_HEADER_BYTES])])
        if head.store_id != self._config.store_id:
            raise FormatError("it belongs to another store")
        if head.record.is_inline:
            fault = inline_fault(head.record, self._config.seed)
            if fault:
                raise FormatError(fault)
        for place in head.segments:
            decode_segment(raw[place.offset : place.offset + place.length])

    # ------------------------------------------------------------ objects

    def _forget(self, bad: dict[bytes, PackReading]) -> None:
        """What is put from now on, here or by who learns of chunks from hints, does not rely on the
        packs that are damaged."""
        if not bad:
            return
        self._hints.read()
        self._hints.replace(
            [(i, list(r.frames)) for i, r in self._look.readings.items() if i not in bad]
        )
        for reading in bad.values():
            self._cache.drop_chunks([entry.chunk_id for entry in reading.frames])

    def _find_elsewhere(self, report: CheckReport) -> None:
        wanted = {bytes.fromhex(p.chunk) for p in report.problems if p.chunk}
        wanted |= {
            chunk_id for v in self._catalog.versions(b"") for chunk_id in self._missing_chunks(v)
        }
        for pack_id, reading in self._look.readings.items():
            with contextlib.suppress(KeyAbsent):  # a collector took it meanwhile
                self._find_in(pack_id, reading, wanted)

    def _find_in(self, pack_id: bytes, reading: PackReading, wanted: set[bytes]) -> None:
        for entry in reading.frames:
            if (
                entry.chunk_id in wanted
                and entry.chunk_id not in self._elsewhere
                and entry.offset not in reading.bad
                and is_whole(self._look.reader(pack_id), entry, self._config.seed)
            ):
                at = Location(pack_id, entry.offset, entry.stored_bytes)
                self._elsewhere[entry.chunk_id] = at

    def _missing_chunks(self, version: Version) -> Iterator[bytes]:
        if not set(version.head.packs) - self._look.readings.keys():
            return
        with contextlib.suppress(Overwritten, FormatError):
            for raw in self._catalog.raw_segments(version):
                for extent in decode_segment(raw):
                    if extent.location.pack_id not in self._look.readings:
                        yield extent.chunk_id

    def _store_anew(self, version: Version, bad: set[bytes], report: CheckReport) -> None:
        """The object from its intact frames, in packs that are not damaged; below quarantine/ if
        they do not make all of it."""
        name, record = version.name, version.head.record
        try:
            segments = [
                (place.end, raw)
                for place, raw in zip(
                    version.head.segments, self._catalog.raw_segments(version), strict=True
                )
            ]
        except Overwritten:
            return
        raws = [raw for _, raw in segments]
        faults = list(manifest_faults(record, raws, self._look.readings, self._config.seed))
        if not faults and not bad & set(version.head.packs):
            return
        why = "; ".join(fault.what for fault in faults[:10])
        target, whole = salvage(self._session(), name, record, segments, self._find, why)
        if not whole:
            self._catalog.forget(name)
            delete_version(self._bucket, name_key(name), version.etag)
            self._done.append(f"{name.decode()} can't be read in full: it is now {target.decode()}")
            return
        saved = self._catalog.current(target)
        body = encode_manifest(
            self._config.store_id,
            secrets.token_bytes(NONCE_BYTES),
            saved.head.record._replace(mtime_ns=record.mtime_ns),
            saved.head.packs,
            [
                (place.end, raw)
                for place, raw in zip(
                    saved.head.segments, self._catalog.raw_segments(saved), strict=True
                )
            ],
        )
        self._catalog.forget(name)
        if self._write_over(name, version.etag, body):
            self._done.append(f"{name.decode()} is stored anew from its intact chunks")
        with contextlib.suppress(NameNotFound):
            session = self._session()
            try:
                session.commit([Delete(target)])
            finally:
                session.close()

    def _write_over(self, name: bytes, etag: str, body: bytes) -> bool:
        """False if the name is not any more what was looked at."""
        try:
            self._bucket.put(name_key(name), body, if_match=etag)
        except (PreconditionFailed, KeyAbsent):
            return False
        except OutcomeUnknown as error:
            raise CommitUnknown(
                f"whether {name.decode()!r} was written anew is not known: repeat the repair"
            ) from error
        return True

    def _find(self, extent: Extent) -> bytes | memoryview | None:
        for location in (extent.location, self._elsewhere.get(extent.chunk_id)):
            if location is None or location.pack_id not in self._look.readings:
                continue
            begin, end = location.offset, location.offset + location.stored_bytes
            with contextlib.suppress(FormatError, KeyAbsent):
                frame = self._look.reader(location.pack_id)(begin, end)
                size = extent.end - extent.begin
                return decode_frame(frame, extent.chunk_id, size, self._config.seed)
        return None

    # ------------------------------------------------------------ the rest

    def _keep_copy(self, key: str) -> str:
        """A copy below quarantine/; where."""
        target = f"quarantine/{key}"
        self._bucket.put(target, self._bucket.get(key).body, idempotent=True)
        self._done.append(f"{key} is copied to {target}")
        return target

    def _tidy(self) -> None:
        """Hints that do not decode only cost time, and expired pins that do not decode protect
        nothing: they go. A younger pin's session may live: it stays."""
        now = time.time() + self._bucket.clock_skew()
        for entry in self._bucket.list("index/"):
            with contextlib.suppress(KeyAbsent):
                try:
                    decode_hints(self._bucket.get(entry.key).body)
                except (FormatError, UnsupportedFormat):
                    self._keep_copy(entry.key)
                    self._bucket.delete_many([entry.key])
        for key, modified in self._look.bad_pins:
            if now - modified > PIN_SECONDS_MAX:
                with contextlib.suppress(KeyAbsent):
                    self._keep_copy(key)
                    self._bucket.delete_many([key])
