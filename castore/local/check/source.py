"""A local store as a check looks at it: its packs, and the names of one snapshot of its index."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator

import xxhash

from castore.check.objects import Faulty, inline_fault, manifest_faults, name_fault
from castore.check.packs import PackReading
from castore.check.scan import PackScan
from castore.check.source import Named
from castore.errors import FormatError, UnsupportedFormat
from castore.format.config import StoreConfig
from castore.format.index import Record, Totals, decode_record, segment_key
from castore.format.segment import decode_segment
from castore.local.check.pack_files import LocalPackSource
from castore.local.check.segments import segments_of
from castore.local.index_walk import rows
from castore.system.lmdb_env import Index
from castore.system.lmdb_snapshot import Snapshot


class LocalSource(LocalPackSource):
    """`names` is asked within `snapshot`. It finds out which `manifests` there are, sums up the
    objects in `sums`, and counts the segments whose keys are damaged by manifest."""

    snapshot: Snapshot

    def __init__(
        self, root: str, config: StoreConfig, index: Index, count_row: Callable[[], None]
    ) -> None:
        super().__init__(root)
        self.manifests: dict[int, int] = {}  # to a hash of what was checked
        self.sums = Totals()
        self.damaged_keys: list[int] = []  # manifests
        self._config = config
        self._index = index
        self._count_row = count_row
        self._faulty: dict[int, list[Faulty]] = {}
        # By manifest, packs whose headers are damaged: a local store reads nothing from them.
        self._unknown: defaultdict[int, set[bytes]] = defaultdict(set)

    def names(self, scan: PackScan) -> Iterator[Named]:
        """The packs come with the first name that has them."""
        for key, raw in rows(self._index, self.snapshot, self._index.names):
            self._count_row()
            name, faults, packs = key.decode(errors="surrogateescape"), [], set[bytes]()
            try:
                record = decode_record(raw)
            except (FormatError, UnsupportedFormat) as error:
                yield Named(name, [Faulty(str(error), part="record")], packs)
                continue
            fault = name_fault(key)
            if fault:
                what = f"it is no name that an object can have: {fault}"
                faults.append(Faulty(what, part="record"))
            self.sums.count_object(record, +1)
            if record.is_inline:
                fault = inline_fault(record, self._config)
                if fault:
                    faults.append(Faulty(fault, part="record"))
            else:
                faults += self._manifest_faults(record, scan.readings, packs)
            yield Named(name, faults, packs, self._unknown.get(record.manifest, ()))

    def _manifest_faults(
        self, record: Record, readings: dict[bytes, PackReading], packs: set[bytes]
    ) -> list[Faulty]:
        """What is wrong with the record's manifest, which it may share with other names."""
        facts = xxhash.xxh3_64_intdigest(
            b"%d %d %d %b" % (record.size, record.chunks, record.stored_bytes, record.etag)
        )
        manifest = record.manifest
        if self.manifests.get(manifest) != facts:
            segments = self._segments(manifest, packs)
            faults = list(manifest_faults(record, segments, readings, self._config.seed))
            self.manifests[manifest] = facts
            self._faulty.pop(manifest, None)
            if faults:
                self._faulty[manifest] = faults
            unknown = {i for i in packs & readings.keys() if not readings[i].known}
            if unknown:
                self._unknown[manifest] |= unknown
        return self._faulty.get(manifest, [])

    def _segments(self, manifest: int, packs: set[bytes]) -> Iterator[bytes]:
        for key, raw in segments_of(self._index, self.snapshot, manifest):
            self._count_row()
            with contextlib.suppress(FormatError):  # that is for who decodes it to say
                segment = decode_segment(raw, verify=False)
                packs.update(segment.packs)
                if key != segment_key(manifest, segment.end):
                    self.damaged_keys.append(manifest)
            yield raw
