"""What the packs of a store on S3 hold, read with no trust in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from castore.check.data import check_data
from castore.check.packs import PackReading, Read, read_pack
from castore.format.pack import StoreConfig
from castore.model import Stages
from castore.s3.client.bucket import Bucket, KeyAbsent
from castore.s3.keys import PACKS, pack_key, pack_of
from castore.system.workers import Workers

T = TypeVar("T")
R = TypeVar("R")

# What a check of all data read, by pack: how it was listed, and what it holds.
PacksRead = dict[bytes, tuple[tuple[int, str], PackReading]]

AHEAD = 32  # packs or names that are read at once


class PackScan:
    """Packs are listed once, before the names that lead to them; one that a name leads to and that
    was not there yet is looked at by itself."""

    def __init__(
        self,
        bucket: Bucket,
        config: StoreConfig,
        requests: Workers,
        workers: Workers,
        before: PacksRead | None = None,
    ) -> None:
        """Of packs that are as they were in a check of all data `before`, nothing is read."""
        self.readings: dict[bytes, PackReading] = {}
        self.odd_keys: list[str] = []
        self.read_frames = 0
        self.read_bytes = 0
        self._bucket = bucket
        self._config = config
        self._requests = requests
        self._workers = workers
        self._before = before or {}
        self._listed: dict[bytes, tuple[int, str]] = {}  # (bytes, ETag)
        self._gone: set[bytes] = set()
        self._later: set[bytes] = set()

    def read(self, fraction: float, stages: Stages) -> None:
        """What all packs hold; this fraction of it is decoded."""
        for entry in self._bucket.list(PACKS):
            pack_id = pack_of(entry.key)
            if pack_id is None:
                self.odd_keys.append(entry.key)
            else:
                self._listed[pack_id] = entry.size, entry.etag
        listed = dict(self._listed)
        for pack_id, (as_listed, reading) in self._before.items():
            if listed.get(pack_id) == as_listed:
                self._carry_over(reading)
                del listed[pack_id]
        total = sum(size for size, _ in listed.values())
        stages.begin_stage("data" if fraction > 0 else "packs", int((fraction or 1) * total))

        def opened() -> Iterator[tuple[PackReading, Read]]:
            for reading in self._requests.map_ahead(self._read_pack, list(listed), ahead=AHEAD):
                if reading is not None:
                    self.readings[reading.pack_id] = reading
                    yield reading, self.reader(reading.pack_id)

        read = check_data(
            opened(),
            self._workers,
            self._config.seed,
            fraction=fraction,
            advance=stages.relative_update,
        )
        self.read_frames += read.frames
        self.read_bytes += read.bytes
        for pack_id in self._gone:
            self.readings.pop(pack_id, None)

    @property
    def all_read(self) -> PacksRead:
        """If all data was to be: without the packs that were looked at later."""
        return {i: (self._listed[i], r) for i, r in self.readings.items() if i not in self._later}

    def add_later(self, pack_id: bytes) -> None:
        """Read a pack that was not there when they were listed. One that a name leads to was there
        before: what is gone once stays so."""
        if pack_id in self._gone:
            return
        try:
            there = self._bucket.head(pack_key(pack_id))
        except KeyAbsent:
            self._gone.add(pack_id)
            return
        self._listed[pack_id] = there.size, there.etag
        self._later.add(pack_id)
        reading = self._read_pack(pack_id)
        if reading is not None:
            self.readings[pack_id] = reading

    def reader(self, pack_id: bytes) -> Read:
        """Of one that is gone there is nothing to read: a collector took it."""

        def read(begin: int, end: int) -> bytes:
            if begin >= end:
                return b""
            try:
                return self._bucket.get(pack_key(pack_id), byte_range=(begin, end)).body
            except KeyAbsent:
                self._gone.add(pack_id)
                return b""

        return read

    def _carry_over(self, reading: PackReading) -> None:
        self.readings[reading.pack_id] = reading
        self.read_frames += len(reading.frames)
        self.read_bytes += sum(entry.stored_bytes for entry in reading.frames)

    def _read_pack(self, pack_id: bytes) -> PackReading | None:
        reading = read_pack(
            self.reader(pack_id),
            self._listed[pack_id][0],
            store_id=self._config.store_id,
            pack_id=pack_id,
            seed=self._config.seed,
            headers=False,  # they are read with the data: each by itself would be a request
        )
        if reading.unsealed:
            reading.faults.append("it has no footer, and is put with one")
        return None if pack_id in self._gone else reading
