"""Checking a store on S3: every pack's footer, every manifest, and what writers and collectors
announce. Nothing is taken from this machine's cache.

Packs are listed before names, so that a name may lead to a pack that was not there yet: such a pack
is looked at by itself, and so is one that is gone, before it is called missing. It counts as
missing only if its name still is the same by then."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from castore.check.config import config_fault
from castore.check.data import check_data
from castore.check.findings import Findings
from castore.check.objects import Faulty, inline_fault, manifest_faults
from castore.check.packs import PackReading, Read, read_pack
from castore.check.report import CheckReport, Problem, Severity
from castore.errors import FormatError, UnsupportedFormat
from castore.format import StoreConfig
from castore.format_index import decode_segment
from castore.format_s3 import (
    MANIFEST_HEADER_BYTES,
    ManifestHead,
    decode_hints,
    decode_manifest_head,
    decode_pin,
    manifest_head_bytes,
    name_key,
    pack_key,
    session_of,
)
from castore.model import Location, Progress
from castore.s3.bucket import Bucket, KeyAbsent, Listed
from castore.s3.condemned import ListGone, read_condemned
from castore.workers import Workers

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")

CONFIG_KEY = "castore.json"
PIN_SECONDS_MAX = 7 * 86_400  # then a collector ignores it
FIRST_BYTES = 256 << 10
SPAN_BYTES_MAX = 8 << 20
AHEAD = 32  # packs or names that are read at once
_PACK_KEY = re.compile(r"packs/([0-9a-f]{32})-([0-9a-f]{16})")
_PIN_KEY = re.compile(r"pins/([0-9a-f]{16})/[0-9]+")


class RemoteCheck:
    """One look at a store. `readings` is what its packs hold."""

    def __init__(
        self, bucket: Bucket, config: StoreConfig, requests: Workers, workers: Workers
    ) -> None:
        self.config = config
        self.readings: dict[bytes, PackReading] = {}
        self.used: set[bytes] = set()  # packs that names lead to
        self.bad_pins: list[tuple[str, float]] = []  # key, and when it was written
        self._bucket = bucket
        self._requests = requests
        self._workers = workers
        self._findings = Findings()
        self._report = CheckReport()

    def run(self, *, fraction: float, progress: Progress | None) -> CheckReport:
        self._check_config()
        self.read_packs(fraction, progress)
        self._check_names()
        protected = self._check_pins()
        self._check_gc()
        self._check_hints()
        self._check_packs(protected)
        report = self._report
        report.problems = list(self._findings.problems())
        report.packs = len(self.readings)
        report.frames = sum(len(reading.frames) for reading in self.readings.values())
        return report

    # ------------------------------------------------------------ packs

    def _listed_packs(self) -> list[tuple[bytes, int]]:
        found = []
        for entry in self._bucket.list("packs/"):
            match = _PACK_KEY.fullmatch(entry.key)
            pack_id = bytes.fromhex(match[1]) if match else b""
            if match is None or session_of(pack_id).hex() != match[2]:
                self._add("pack", "warning", f"{entry.key!r} is no key that castore gives a pack")
            else:
                found.append((pack_id, entry.size))
        return found

    def read_packs(self, fraction: float = 0, progress: Progress | None = None) -> None:
        """What all packs hold; this fraction of it is decoded."""
        listed = self._listed_packs()
        if progress is not None:
            progress.set_size(int(fraction * sum(size for _, size in listed)))

        def done(frames: int, size: int) -> None:
            self._report.read_frames += frames
            self._report.read_bytes += size
            if progress is not None:
                progress.relative_update(size)

        def opened() -> Iterator[tuple[PackReading, Read]]:
            for reading in self._ahead(self._read_pack, listed):
                if reading is not None:
                    self.readings[reading.pack_id] = reading
                    yield reading, self.reader(reading.pack_id)

        check_data(opened(), self._workers, self.config.seed, fraction=fraction, done=done)

    def _read_pack(self, listed: tuple[bytes, int]) -> PackReading | None:
        pack_id, size = listed
        try:
            return read_pack(
                self.reader(pack_id),
                size,
                store_id=self.config.store_id,
                pack_id=pack_id,
                seed=self.config.seed,
                headers=False,  # they are read with the data: each by itself would be a request
            )
        except KeyAbsent:
            return None

    def reader(self, pack_id: bytes) -> Read:
        def read(begin: int, end: int) -> bytes:
            return self._bucket.get(pack_key(pack_id), byte_range=(begin, end)).body

        return lambda begin, end: read(begin, end) if begin < end else b""

    def _check_packs(self, protected: set[bytes]) -> None:
        unused = unused_bytes = 0
        for pack_id, reading in self.readings.items():
            used = pack_id in self.used
            # What no name needs costs no data; the next gc takes it.
            severity: Severity = "corrupt" if used else "warning"
            if not used and session_of(pack_id) not in protected:
                unused, unused_bytes = unused + 1, unused_bytes + reading.size
            if reading.unsealed:
                reading.faults.append("it has no footer, and is put with one")
            for fault in reading.faults:
                what = f"pack {pack_id.hex()}: {fault}"
                self._add("pack", severity, what, pack=pack_id.hex())
            for offset, fault in reading.bad.items():
                entry = reading.frames.at(offset)
                chunk_id = b"" if entry is None else entry.chunk_id
                self._findings.bad_frame(Location(pack_id, offset, 0), chunk_id, fault, severity)
        if unused:
            what = f"{unused} packs of {unused_bytes} bytes serve no name: the next gc takes them"
            self._add("orphan", "warning", what)

    # ------------------------------------------------------------ names

    def _check_names(self) -> None:
        names = (
            (entry.key.removeprefix("names/").encode(), entry.etag)
            for entry in self._bucket.list("names/")
        )
        for found in self._ahead(self._name_faults, names):
            if found is None:
                continue
            name, faults, packs = found
            self._report.names += 1
            self.used |= packs
            for faulty in faults:
                self._note(faulty, name)

    def _name_faults(
        self, listed: tuple[bytes, str]
    ) -> tuple[str, list[Faulty], set[bytes]] | None:
        """What is wrong with what the name maps to; None if it went meanwhile."""
        name, etag = listed
        shown = name.decode()
        while True:
            packs: set[bytes] = set()
            try:
                reply = self._bucket.get(name_key(name), byte_range=(0, FIRST_BYTES))
                etag = reply.etag
                faults = list(self._faults_of(name, etag, reply.body, reply.size, packs))
                # Whatever is wrong counts only if the name still maps to it.
                if not faults or self._bucket.head(name_key(name)).etag == etag:
                    return shown, faults, packs
            except KeyAbsent:
                return None
            except _Overwritten:
                continue

    def _faults_of(
        self, name: bytes, etag: str, raw: bytes, size: int, packs: set[bytes]
    ) -> Iterator[Faulty]:
        try:
            head = self._head(name, etag, raw, size)
        except (FormatError, UnsupportedFormat) as error:
            yield Faulty(str(error))
            return
        packs.update(head.packs)
        if head.store_id != self.config.store_id:
            yield Faulty("it belongs to another store")
        elif head.record.is_inline:
            fault = inline_fault(head.record, self.config.seed)
            if fault:
                yield Faulty(fault)
        else:
            for pack_id in packs - self.readings.keys():
                self._look_again(pack_id)
            end = head.segments[-1].offset + head.segments[-1].length
            if end > size:
                yield Faulty(f"it is cut short at {size} of {end} bytes")
                return
            segments = self._segments(name, etag, raw, head)
            try:
                yield from manifest_faults(head.record, segments, self.readings, self.config.seed)
            except FormatError as error:
                yield Faulty(str(error))

    def _head(self, name: bytes, etag: str, raw: bytes, size: int) -> ManifestHead:
        head_bytes = manifest_head_bytes(raw[:MANIFEST_HEADER_BYTES])
        if head_bytes > size:
            raise FormatError(f"its head takes {head_bytes} of its {size} bytes")
        if head_bytes > len(raw):
            raw += self._part(name, etag, len(raw), head_bytes)
        return decode_manifest_head(raw)

    def _segments(self, name: bytes, etag: str, raw: bytes, head: ManifestHead) -> Iterator[bytes]:
        """As stored, one after the other: a manifest may be larger than memory."""
        told = set(head.packs)
        held, begin = raw, 0
        for place in head.segments:
            end = place.offset + place.length
            if end > begin + len(held):
                held = self._part(name, etag, place.offset, max(end, place.offset + SPAN_BYTES_MAX))
                begin = place.offset
            part = held[place.offset - begin : end - begin]
            if not told.issuperset(decode_segment(part).packs):
                raise FormatError("a segment leads to a pack that the head does not tell of")
            yield part

    def _part(self, name: bytes, etag: str, begin: int, end: int) -> bytes:
        reply = self._bucket.get(name_key(name), byte_range=(begin, end))
        if reply.etag != etag:
            raise _Overwritten
        return reply.body

    def _look_again(self, pack_id: bytes) -> None:
        """A pack that was not there when they were listed, or that went since."""
        try:
            size = self._bucket.head(pack_key(pack_id)).size
        except KeyAbsent:
            return
        reading = self._read_pack((pack_id, size))
        if reading is not None:
            self.readings[pack_id] = reading

    def _note(self, faulty: Faulty, name: str) -> None:
        extent = faulty.extent
        if extent is None:
            self._add("manifest", "corrupt", f"the manifest of {name!r}: {faulty.what}", name)
        elif extent.location.pack_id not in self.readings:
            self._findings.missing_pack(extent.location.pack_id, name)
        else:
            severity: Severity = "missing" if faulty.missing else "corrupt"
            self._findings.bad_frame(extent.location, extent.chunk_id, faulty.what, severity, name)

    # ------------------------------------------------------------ what else is there

    def _check_config(self) -> None:
        fault = config_fault(self._bucket.get(CONFIG_KEY).body, self.config)
        if fault:
            self._add("config", "corrupt", f"castore.json {fault}")

    def _check_pins(self) -> set[bytes]:
        """The sessions that have pins."""
        sessions, old = set(), 0
        now = time.time() + self._bucket.clock_skew()
        for entry, raw in self._objects("pins/"):
            match = _PIN_KEY.fullmatch(entry.key)
            try:
                store_id, session, _ = decode_pin(raw)
                if store_id != self.config.store_id:
                    raise FormatError("it belongs to another store")
                if match is None or session.hex() != match[1]:
                    raise FormatError("it is another session's")
                sessions.add(session)
            except (FormatError, UnsupportedFormat) as error:
                self._add("pin", "corrupt", f"{entry.key}: {error}")
                self.bad_pins.append((entry.key, entry.modified))
            old += now - entry.modified > PIN_SECONDS_MAX
        if old:
            self._add("orphan", "warning", f"{old} pins have expired: the next gc takes them")
        return sessions

    def _check_gc(self) -> None:
        """gc/state, and the list that it refers to."""
        try:
            read_condemned(self._bucket, self.config.store_id)
        except ListGone as error:
            self._add("gc state", "missing", str(error))
        except (FormatError, UnsupportedFormat) as error:
            self._add("gc state", "corrupt", f"gc/state: {error}")

    def _check_hints(self) -> None:
        for entry, raw in self._objects("index/"):
            try:
                store_id, _ = decode_hints(raw)
                if store_id != self.config.store_id:
                    raise FormatError("they belong to another store")
            except (FormatError, UnsupportedFormat) as error:
                # Only ever hints: chunks that they do not tell of are stored again.
                self._add("hints", "warning", f"{entry.key}: {error}")

    def _objects(self, prefix: str) -> Iterator[tuple[Listed, bytes]]:
        def fetch(entry: Listed) -> tuple[Listed, bytes] | None:
            try:
                return entry, self._bucket.get(entry.key).body
            except KeyAbsent:
                return None

        for found in self._ahead(fetch, self._bucket.list(prefix)):
            if found is not None:
                yield found

    def _ahead(self, read: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`read` of each, some at once; in order."""
        reading: deque[Future[R]] = deque()
        try:
            for item in items:
                reading.append(self._requests.submit(read, item))
                if len(reading) > AHEAD:
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()
        finally:
            for future in reading:
                future.cancel()

    def _add(
        self, kind: str, severity: Severity, what: str, name: str = "", *, pack: str = ""
    ) -> None:
        names = (name,) if name else ()
        self._findings.add(Problem(kind, severity, what, names, pack=pack))


class _Overwritten(Exception):
    """The name's object changed between two requests for parts of it."""
