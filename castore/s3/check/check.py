"""Checking a store on S3: every pack's footer, every manifest, and what writers and collectors
announce. Nothing is taken from this machine's cache.

Packs are listed before names, so that a name may lead to a pack that was not there yet: such a pack
is looked at by itself, and so is one that is gone, before it is called missing. It counts as
missing only if its name still is the same by then.

What nobody needs is no fault of the store: it is counted. But a damaged pack that a later put could
come to rely on is, even if nobody needs it now.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from castore.check.config import config_fault
from castore.check.findings import Findings
from castore.check.objects import Faulty, inline_fault, manifest_faults
from castore.check.packs import PackReading
from castore.errors import FormatError, UnsupportedFormat
from castore.format.pack import StoreConfig
from castore.format.s3 import (
    ManifestHead,
    decode_hints,
    decode_listing,
    decode_manifest_head,
    decode_pin,
    session_of,
)
from castore.format.segment import decode_segment
from castore.model import Progress, Stages
from castore.s3.check.packs import AHEAD, PackScan, PacksRead
from castore.s3.client.bucket import Bucket, KeyAbsent, Listed, Reply
from castore.s3.condemned import ListGone, list_without_state, read_condemned
from castore.s3.damaged import damaged_packs
from castore.s3.keys import (
    CONFIG_KEY,
    GC,
    HINTS,
    LISTINGS,
    NAMES,
    PINS,
    is_collectors,
    is_hints,
    listing_count,
    name_key,
    name_of,
    session_of_pin,
)
from castore.s3.manifests import Overwritten, read_head, read_part
from castore.s3.parts import Parts
from castore.stream.reports import CheckReport
from castore.system.workers import Workers, usable_cores

PIN_S_MAX = 7 * 86_400  # then a collector ignores it
FIRST_BYTES = 256 << 10
SPAN_BYTES_MAX = 8 << 20


def check(parts: Parts, *, fraction: float, progress: Progress | None) -> CheckReport:
    with open_check(parts) as scan:
        return scan.run(fraction=fraction, progress=progress)


@contextlib.contextmanager
def open_check(parts: Parts, before: PacksRead | None = None) -> Iterator[S3Check]:
    """With threads of its own, which decode."""
    workers = Workers(usable_cores())
    try:
        yield S3Check(parts.bucket, parts.config, parts.requests, workers, before)
    finally:
        workers.close()


class S3Check:
    """One check of a store; after one `before` of all its data, of what changed since."""

    def __init__(
        self,
        bucket: Bucket,
        config: StoreConfig,
        requests: Workers,
        workers: Workers,
        before: PacksRead | None = None,
    ) -> None:
        self.config = config
        self.packs: PackScan = PackScan(bucket, config, requests, workers, before)
        self.used: set[bytes] = set()  # packs that names lead to
        self.bad_pins: list[tuple[str, float]] = []  # key, and when it was written
        self._bucket = bucket
        self._requests = requests
        self._odd_keys: list[str] = []
        self._findings = Findings(self.packs.readings)
        self._report = CheckReport()

    def run(self, *, fraction: float, progress: Progress | None) -> CheckReport:
        self._check_config()
        stages = Stages(progress)
        self.packs.read(fraction, stages)
        stages.begin_stage("names", 0)
        self._check_names(stages)
        protected = self._check_pins()
        condemned = self._check_gc()
        self._check_hints()
        self._check_listings()
        stages.end()
        self._check_packs(protected, condemned)
        self._check_keys()
        report = self._report
        report.problems = list(self._findings.problems())
        report.packs = len(self.readings)
        report.frames = sum(len(reading.frames) for reading in self.readings.values())
        report.packs_read = self.packs.all_read if fraction == 1 else None
        report.read_frames, report.read_bytes = self.packs.read_frames, self.packs.read_bytes
        return report

    @property
    def readings(self) -> dict[bytes, PackReading]:
        """What the packs hold."""
        return self.packs.readings

    # ------------------------------------------------------------ packs

    def _check_packs(self, protected: set[bytes], condemned: set[bytes]) -> None:
        marked = damaged_packs(self._bucket)
        for pack_id, reading in self.readings.items():
            used = pack_id in self.used
            if not used and session_of(pack_id) not in protected and pack_id not in protected:
                self._report.count_garbage("packs", reading.size)
            if used or (reading.damaged and pack_id not in marked and pack_id not in condemned):
                self._findings.add_pack(reading, "corrupt" if used else "warning")

    # ------------------------------------------------------------ names

    def _check_names(self, stages: Stages) -> None:
        for found in self._requests.map_ahead(
            self._name_faults, self._listed_names(stages), ahead=AHEAD
        ):
            if found is None:
                continue
            name, faults, packs = found
            self._report.names += 1
            self.used |= packs
            for faulty in faults:
                self._findings.add_object(name, faulty)

    def _listed_names(self, stages: Stages) -> Iterator[bytes]:
        for entry in self._bucket.list(NAMES):
            name = name_of(entry)
            if name is None:
                self._odd_keys.append(entry.key)
            else:
                stages.relative_update(entry.size)
                yield name

    def _name_faults(self, name: bytes) -> tuple[str, list[Faulty], set[bytes]] | None:
        """What is wrong with what the name maps to; None if it went meanwhile."""
        while True:
            packs: set[bytes] = set()
            try:
                reply = self._bucket.get(name_key(name), byte_range=(0, FIRST_BYTES))
                faults = list(self._faults_of(name, reply, packs))
                # Whatever is wrong counts only if the name still maps to it.
                if not faults or self._bucket.head(name_key(name)).etag == reply.etag:
                    return name.decode(), faults, packs
            except KeyAbsent:
                return None
            except Overwritten:
                continue

    def _faults_of(self, name: bytes, first: Reply, packs: set[bytes]) -> Iterator[Faulty]:
        try:
            raw = read_head(self._bucket, name, first)
            head = decode_manifest_head(raw)
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
                self.packs.add_later(pack_id)
            end = head.segments[-1].offset + head.segments[-1].length
            if end > first.size:
                yield Faulty(f"it is cut short at {first.size} of {end} bytes")
                return
            segments = self._segments(name, first.etag, raw, head)
            try:
                yield from manifest_faults(head.record, segments, self.readings, self.config.seed)
            except FormatError as error:
                yield Faulty(str(error))

    def _segments(self, name: bytes, etag: str, raw: bytes, head: ManifestHead) -> Iterator[bytes]:
        """As stored, one after the other: a manifest may be larger than memory."""
        told = set(head.packs)
        held, begin = raw, 0
        for place in head.segments:
            end = place.offset + place.length
            if end > begin + len(held):
                held = read_part(
                    self._bucket, name, etag, place.offset, max(end, place.offset + SPAN_BYTES_MAX)
                )
                begin = place.offset
            part = held[place.offset - begin : end - begin]
            if not told.issuperset(decode_segment(part).packs):
                raise FormatError("a segment leads to a pack that the head does not tell of")
            yield part

    # ------------------------------------------------------------ what else is there

    def _check_config(self) -> None:
        try:
            raw = self._bucket.get(CONFIG_KEY).body
        except KeyAbsent:
            self._findings.add("config", "missing", "castore.json is gone: a repair makes it again")
            return
        fault = config_fault(raw, self.config)
        if fault:
            self._findings.add("config", "corrupt", f"castore.json {fault}")

    def _check_pins(self) -> set[bytes]:
        """The sessions that have pins, and the packs that these tell of."""
        protected: set[bytes] = set()
        now = time.time() + self._bucket.clock_skew()
        for entry, raw in self._objects(PINS):
            session = session_of_pin(entry.key)
            if session is None:
                self._odd_keys.append(entry.key)
                continue
            if now - entry.modified > PIN_S_MAX:
                self._report.count_garbage("pins", entry.size)
            try:
                store_id, owner, packs = decode_pin(raw)
                if store_id != self.config.store_id:
                    raise FormatError("it belongs to another store")
                if owner != session:
                    raise FormatError("it is another session's")
                protected |= {session, *packs}
            except (FormatError, UnsupportedFormat) as error:
                self._findings.add("pin", "corrupt", f"{entry.key}: {error}")
                self.bad_pins.append((entry.key, entry.modified))
        return protected

    def _check_gc(self) -> set[bytes]:
        """gc/state, and the list that it refers to: what is on it."""
        try:
            orphan = list_without_state(self._bucket)
            if orphan is not None:
                what = f"gc/state is gone, while {orphan} is there: a repair makes it again"
                self._findings.add("gc state", "missing", what)
            return set(read_condemned(self._bucket, self.config.store_id))
        except ListGone as error:
            self._findings.add("gc state", "missing", str(error))
        except (FormatError, UnsupportedFormat) as error:
            self._findings.add("gc state", "corrupt", f"gc/state: {error}")
        return set()

    def _check_hints(self) -> None:
        for entry, raw in self._objects(HINTS):
            if not is_hints(entry.key):
                self._odd_keys.append(entry.key)
                continue
            try:
                store_id, _ = decode_hints(raw)
                if store_id != self.config.store_id:
                    raise FormatError("they belong to another store")
            except (FormatError, UnsupportedFormat) as error:
                # Only ever hints: chunks that they do not tell of are stored again.
                self._findings.add("hints", "warning", f"{entry.key}: {error}")

    def _check_listings(self) -> None:
        for entry, raw in self._objects(LISTINGS):
            if listing_count(entry.key) is None:
                self._odd_keys.append(entry.key)
                continue
            try:
                store_id, _ = decode_listing(raw)
                if store_id != self.config.store_id:
                    raise FormatError("it belongs to another store")
            except (FormatError, UnsupportedFormat) as error:
                # What is not told of is asked for.
                self._findings.add("listing", "warning", f"{entry.key}: {error}")

    def _check_keys(self) -> None:
        odd = [entry.key for entry in self._bucket.list(GC) if not is_collectors(entry.key)]
        for key in [*self.packs.odd_keys, *self._odd_keys, *odd]:
            what = f"{key!r} is no key that castore gives: it is left alone; remove it yourself"
            self._findings.add("key", "warning", what)

    def _objects(self, prefix: str) -> Iterator[tuple[Listed, bytes]]:
        def fetch(entry: Listed) -> tuple[Listed, bytes] | None:
            try:
                return entry, self._bucket.get(entry.key).body
            except KeyAbsent:
                return None

        for found in self._requests.map_ahead(fetch, self._bucket.list(prefix), ahead=AHEAD):
            if found is not None:
                yield found
