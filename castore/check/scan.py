"""What the packs of a store hold, read with no trust in them, whichever kind of store it is."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial

from castore.check.data import check_data
from castore.check.deltas import DeltaCheck
from castore.check.packs import PackReading, Read, is_whole, read_pack
from castore.check.source import PackReader, PackSource
from castore.errors import FormatError
from castore.format.config import StoreConfig
from castore.format.pack import PackEntry
from castore.model import Location, Stages
from castore.stream.codec import decode_frame
from castore.system.workers import Workers

READERS_MAX = 64  # open at a time, of packs of which single frames are read
AHEAD = 32  # packs that are asked for at once


class PackScan:
    """`readings` is what the packs hold, by id; `read_frames`, `read_bytes` how much of it was
    decoded, and compared with its ids."""

    def __init__(self, source: PackSource, config: StoreConfig) -> None:
        self.readings: dict[bytes, PackReading] = {}
        self.read_frames = 0
        self.read_bytes = 0
        self._source = source
        self._config = config
        self._readers: dict[bytes, PackReader] = {}
        self._deltas = DeltaCheck(self.readings, self._read_of, config.seed)

    def read(
        self,
        packs: Mapping[bytes, int],
        workers: Workers,
        stages: Stages,
        *,
        fraction: float,
        known: Iterable[PackReading] = (),
        sound: Collection[bytes] = (),
    ) -> None:
        """Read these packs, with their bytes, and decode this fraction of their frames. Of packs
        that are `known`, from a check of all data, nothing is read; of those that are `sound` no
        frame is decoded."""
        packs = dict(packs)
        for reading in known:
            del packs[reading.pack_id]
            self.readings[reading.pack_id] = reading
            self.read_frames += len(reading.frames)
            self.read_bytes += sum(entry.stored_bytes for entry in reading.frames)
        size = sum(size for pack_id, size in packs.items() if pack_id not in sound)
        stages.begin_stage("data" if fraction > 0 else "packs", int((fraction or 1) * size))

        def opened() -> Iterator[tuple[PackReading, Read]]:
            requests = self._source.requests
            asked = (
                map(self._open, packs)
                if requests is None
                else requests.map_ahead(self._open, packs, ahead=AHEAD)
            )
            for found in asked:
                if found is not None:
                    reading, reader = found
                    self.readings[reading.pack_id] = reading
                    if reading.pack_id not in sound:
                        yield reading, reader.read

        read = check_data(
            opened(), workers, self._config.seed, fraction=fraction, advance=stages.relative_update
        )
        self.read_frames += read.frames
        self.read_bytes += read.bytes
        self._deltas.run(read.deltas, self._source.requests or workers, stages.relative_update)
        for pack_id in self._source.gone:
            self.readings.pop(pack_id, None)

    def add(self, *pack_ids: bytes) -> None:
        """Read what these packs hold, if they are there, or read it again; no frame is decoded."""
        for pack_id in pack_ids:
            found = self._open(pack_id)
            if found is not None:
                self.readings[pack_id] = found[0]

    def frame(self, at: Location) -> bytes:
        """The bytes at a place; fewer, or none, where it is no place of a pack."""
        read = self._read_of(at.pack_id)
        return b"" if read is None else read(at.offset, at.offset + at.stored_bytes)

    def _read_of(self, pack_id: bytes) -> Read | None:
        reader = self._readers.get(pack_id) or self._source.reader(pack_id)
        if reader is None:
            return None
        if pack_id not in self._readers:
            if len(self._readers) >= READERS_MAX:
                # In one step, as no iterator of a dict is that other threads put to.
                for old in list(self._readers)[: READERS_MAX // 4]:
                    self._readers.pop(old, None)
            self._readers[pack_id] = reader
        return reader.read

    def chunk(
        self, chunk_id: bytes, raw_bytes: int, places: Iterable[Location]
    ) -> bytes | memoryview | None:
        """The chunk, from the first of the places where an intact frame of it is, whatever is known
        of that place. Each is read twice, as what is damaged may only have been so on its way."""
        for at in places:
            for _ in range(2):
                with contextlib.suppress(FormatError):
                    base = partial(self._base, at)
                    frame = self.frame(at)
                    return decode_frame(frame, chunk_id, raw_bytes, self._config.seed, base)
        return None

    def _base(self, at: Location, chunk_id: bytes, raw_bytes: int) -> bytes | memoryview:
        """Of what the frame there decodes with."""
        places = [base.location for base in at.bases if base.chunk_id == chunk_id]
        raw = self.chunk(chunk_id, raw_bytes, places)
        if raw is None:
            raise FormatError(f"chunk {chunk_id.hex()}, which it is a delta of, can't be read")
        return raw

    def delta_faults(self, pack_id: bytes, entries: Iterable[PackEntry]) -> dict[int, str]:
        """See DeltaCheck.faults."""
        return self._deltas.faults(self.readings[pack_id], entries)

    def is_whole(self, pack_id: bytes, entry: PackEntry) -> bool:
        """Whether the bytes of the frame are its chunk's; of a delta, as they were written."""
        return is_whole(partial(self._read, pack_id), entry, self._config.seed)

    def _read(self, pack_id: bytes, begin: int, end: int) -> bytes:
        return self.frame(Location(pack_id, begin, end - begin))

    def _open(self, pack_id: bytes) -> tuple[PackReading, PackReader] | None:
        """What the pack holds, and how to read it; None if it is gone. A pack that grows while it
        is read, as a living writer's does, is read again."""
        source, config = self._source, self._config
        reader = source.reader(pack_id)
        if reader is None:
            return None
        while True:
            size = reader.size
            reading = read_pack(
                reader.read,
                size,
                store_id=config.store_id,
                pack_id=pack_id,
                seed=config.seed,
                headers=not source.put_whole,  # then with the data: each by itself is a request
            )
            if not reading.damaged or reader.size == size:
                break
        if source.put_whole and reading.unsealed:
            reading.faults.append("it has no footer, and is put with one")
        return None if pack_id in source.gone else (reading, reader)
