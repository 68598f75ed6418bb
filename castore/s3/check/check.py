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
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from castore.check.check import StoreCheck
from castore.check.scan import AHEAD
from castore.errors import FormatError, UnsupportedFormat
from castore.format.config import encode_config
from castore.format.s3 import session_of
from castore.format.s3_gc import decode_pin
from castore.format.s3_told import decode_hints, decode_listing
from castore.model import Stages
from castore.s3.cache.store import StoreCache
from castore.s3.check.batches import batches_of_nobody, faults_of_batches
from castore.s3.check.source import PacksRead, S3Source
from castore.s3.client.bucket import KeyAbsent, Listed
from castore.s3.condemned import ListGone, list_without_state, read_condemned
from castore.s3.damaged import damaged_packs
from castore.s3.gc.mark import PIN_S
from castore.s3.keys import (
    CONFIG_KEY,
    GC,
    HINTS,
    LISTINGS,
    PINS,
    SAMPLES,
    is_collectors,
    is_hints,
    is_listing,
    is_samples_head,
    samples_of_shard,
    session_of_pin,
)
from castore.s3.namespace.writing import Namespace
from castore.s3.parts import Parts
from castore.s3.samples import damaged_samples
from castore.s3.told import decoded
from castore.stream.reports import CheckReport
from castore.system.workers import Workers, usable_cores


@contextlib.contextmanager
def open_check(parts: Parts, stages: Stages, before: PacksRead | None = None) -> Iterator[S3Check]:
    """With threads of its own, which decode."""
    workers = Workers(usable_cores())
    names = Namespace(parts.bucket, parts.config, StoreCache(None, frames_bytes_max=0))
    try:
        yield S3Check(parts, names, workers, stages, before or {})
    finally:
        workers.close()
        names.close()


class S3Check(StoreCheck):
    """One check of a store; after one `before` of all its data, of what changed since."""

    def __init__(
        self,
        parts: Parts,
        names: Namespace,
        workers: Workers,
        stages: Stages,
        before: PacksRead,
    ) -> None:
        self.names = names
        self._source = S3Source(
            parts.bucket, names, parts.config, parts.requests, stages.relative_update
        )
        super().__init__(self._source, parts.config)
        self.bad_pins: list[tuple[str, float]] = []  # key, and when it was written
        self._bucket = parts.bucket
        self._requests = parts.requests
        self._workers = workers
        self._stages = stages
        self._before = before

    def run(self, fraction: float) -> CheckReport:
        """Of the data of packs, this fraction is decoded."""
        try:
            raw = self._bucket.get(CONFIG_KEY).body
            if raw != encode_config(self.config):  # or it was damaged on its way
                raw = self._bucket.get(CONFIG_KEY).body
            self.check_config(raw, CONFIG_KEY)
        except KeyAbsent:
            what = "castore.json is gone: a repair makes it again"
            self.findings.add("config", "missing", what)
        self.read_packs(fraction)
        self._stages.begin_stage("names", 0)
        for severity, what in faults_of_batches(self.names):
            self.findings.add("batches", severity, what)
        self.check_names()
        protected = self._check_pins()
        condemned = self._check_gc()
        self._check_told(HINTS, "hints", is_hints, decode_hints)
        self._check_told(LISTINGS, "listing", is_listing, decode_listing)
        self._check_samples()
        self._stages.end()
        self._check_packs(protected, condemned)
        sizes, odd = batches_of_nobody(self.names, self._bucket)
        for size in sizes:
            self._report.count_garbage("batches", size)
        self._source.odd_keys += odd
        self._check_keys()
        report = self.report()
        report.packs_read = self._source.all_read(self.scan) if fraction == 1 else None
        return report

    def read_packs(self, fraction: float) -> None:
        packs = self._source.packs()
        known = self._source.unchanged(self._before)
        self.scan.read(packs, self._workers, self._stages, fraction=fraction, known=known)

    def _check_packs(self, protected: set[bytes], condemned: set[bytes]) -> None:
        marked = damaged_packs(self._bucket)
        for pack_id, reading in self.readings.items():
            used = pack_id in self.used
            if not used and session_of(pack_id) not in protected and pack_id not in protected:
                self._report.count_garbage("packs", reading.size)
            if used or (reading.damaged and pack_id not in marked and pack_id not in condemned):
                self.findings.add_pack(reading, "corrupt" if used else "warning")

    # ------------------------------------------------------------ what else is there

    def _check_pins(self) -> set[bytes]:
        """The sessions that have pins, and the packs that these tell of."""
        protected: set[bytes] = set()
        now = time.time() + self._bucket.clock_skew()

        def decode(session: bytes, raw: bytes) -> Sequence[bytes]:
            store_id, owner, packs = decode_pin(raw)
            if store_id != self.config.store_id:
                raise FormatError("it belongs to another store")
            if owner != session:
                raise FormatError("it is another session's")
            return packs

        for entry, raw in self._objects(PINS):
            session = session_of_pin(entry.key)
            if session is None:
                self._source.odd_keys.append(entry.key)
                continue
            if now - entry.modified > PIN_S:
                self._report.count_garbage("pins", entry.size)
            try:
                packs = decoded(self._bucket, entry.key, raw, partial(decode, session))
                protected |= {session, *packs}
            except KeyAbsent:
                continue
            except (FormatError, UnsupportedFormat) as error:
                self.findings.add("pin", "corrupt", f"{entry.key}: {error}")
                self.bad_pins.append((entry.key, entry.modified))
        return protected

    def _check_gc(self) -> set[bytes]:
        """gc/state, and the list that it refers to: what is on it."""
        try:
            orphan = list_without_state(self._bucket)
            if orphan is not None:
                what = f"gc/state is gone, while {orphan} is there: a repair makes it again"
                self.findings.add("gc state", "missing", what)
            return read_condemned(self._bucket, self.config.store_id)
        except ListGone as error:
            self.findings.add("gc state", "missing", str(error))
        except (FormatError, UnsupportedFormat) as error:
            self.findings.add("gc state", "corrupt", f"gc/state: {error}")
        return set()

    def _check_told(
        self,
        prefix: str,
        kind: str,
        is_ours: Callable[[str], bool],
        decode: Callable[[bytes], tuple[bytes, object]],
    ) -> None:
        """What machines tell each other, to save requests: what it does not tell of is stored
        again, or asked for."""

        def check(raw: bytes) -> None:
            if decode(raw)[0] != self.config.store_id:
                raise FormatError("it belongs to another store")

        for entry, raw in self._objects(prefix):
            if not is_ours(entry.key):
                self._source.odd_keys.append(entry.key)
                continue
            try:
                decoded(self._bucket, entry.key, raw, check)
            except KeyAbsent:
                continue
            except (FormatError, UnsupportedFormat) as error:
                self.findings.add(kind, "warning", f"{entry.key}: {error}")

    def _check_samples(self) -> None:
        for key, error in damaged_samples(self._bucket, self.config.store_id):
            self.findings.add("samples", "warning", f"{key}: {error}")
        keys = (entry.key for entry in self._bucket.list(SAMPLES))
        ours = (is_samples_head, samples_of_shard)
        self._source.odd_keys += [key for key in keys if not any(is_one(key) for is_one in ours)]

    def _check_keys(self) -> None:
        odd = [entry.key for entry in self._bucket.list(GC) if not is_collectors(entry.key)]
        for key in [*self._source.odd_keys, *odd]:
            what = f"{key!r} is no key that castore gives: it is left alone; remove it yourself"
            self.findings.add("key", "warning", what)

    def _objects(self, prefix: str) -> Iterator[tuple[Listed, bytes]]:
        def fetch(entry: Listed) -> tuple[Listed, bytes] | None:
            try:
                return entry, self._bucket.get(entry.key).body
            except KeyAbsent:
                return None

        for found in self._requests.map_ahead(fetch, self._bucket.list(prefix), ahead=AHEAD):
            if found is not None:
                yield found
