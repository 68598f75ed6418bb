"""Decoding deltas with their bases: the chunks that they are deltas of.

By its checksum a delta is as it was written, and that is all that a look at the frame alone can
tell. That it makes its chunk of its bases is found out when all packs were looked at, since it
names them by their ids, and any frame will do that decodes to one of these. Deltas that are near
each other mostly have the same bases, or neighbours: what is read for some is kept for the next, up
to a number of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from castore.check.packs import PackReading, Read, frames_of
from castore.errors import FormatError, fault_of
from castore.format.pack import PackEntry
from castore.stream.codec import decode_frame
from castore.stream.decoding import DecodedChunks
from castore.system.workers import Workers

CACHE_BYTES = 64 << 20  # of bases
TASK_BYTES = 8 << 20  # of bases, for deltas that are decoded together
GROUP_BASES_MAX = 1 << 18  # whose places are known at a time

# Of some packs, how to read them; None for one that is gone.
OpenPack: TypeAlias = Callable[[bytes], "Read | None"]
Verdict: TypeAlias = tuple[
    PackReading, int, str
]  # what is wrong with the frame at an offset, or ""


class _Task(NamedTuple):
    """Deltas of a pack, and the frames of their bases by the packs that these are in."""

    pack: PackReading
    read: Read
    deltas: list[PackEntry]
    bases: list[tuple[PackReading, Read, list[PackEntry]]]


class DeltaCheck:
    def __init__(
        self, readings: Mapping[bytes, PackReading], open_pack: OpenPack, seed: int
    ) -> None:
        """`readings` are what all packs hold."""
        self._readings = readings
        self._open = open_pack
        self._seed = seed
        self._decoded = DecodedChunks(CACHE_BYTES)

    def run(
        self,
        deltas: Mapping[bytes, Sequence[int]],
        workers: Workers,
        advance: Callable[[int], None],
    ) -> None:
        """Decode the deltas at these offsets of packs, and note those that are not their chunks' as
        bad; those that are, and were bad, as odd. `advance` is told their bytes as stored."""

        def check(task: _Task) -> tuple[_Task, list[Verdict]]:
            return task, list(self._verdicts(task))

        for group in self._groups(deltas):
            for task, verdicts in workers.map_ahead(check, self._tasks(group)):
                for pack, offset, fault in verdicts:
                    if fault:
                        pack.bad.setdefault(offset, fault)
                    elif offset in pack.bad:
                        pack.odd[offset] = pack.bad.pop(offset)
                advance(sum(entry.stored_bytes for entry in task.deltas))

    def faults(self, pack: PackReading, deltas: Iterable[PackEntry]) -> dict[int, str]:
        """What is wrong with some deltas of a pack, by their offsets, empty for those that make
        their chunks; those whose bases can't be read are left out."""
        wanted = list(deltas)
        tasks = self._tasks({pack.pack_id: wanted} if wanted else {})
        found = [verdict for task in tasks for verdict in self._verdicts(task)]
        return {offset: fault for of, offset, fault in found if of is pack}

    # ------------------------------------------------------------ planning

    def _groups(
        self, deltas: Mapping[bytes, Sequence[int]]
    ) -> Iterator[dict[bytes, list[PackEntry]]]:
        """By pack, as many as the places of their bases can be known of."""
        group: dict[bytes, list[PackEntry]] = {}
        bases = 0
        for pack_id, offsets in deltas.items():
            reading = self._readings.get(pack_id)
            for offset in offsets if reading is not None else ():
                assert reading is not None
                entry = reading.frames.at(offset)
                if entry is None:
                    continue
                if bases >= GROUP_BASES_MAX:
                    yield group
                    group, bases = {}, 0
                group.setdefault(pack_id, []).append(entry)
                bases += len(entry.bases)
        if group:
            yield group

    def _tasks(self, group: Mapping[bytes, list[PackEntry]]) -> Iterator[_Task]:
        places = self._places({b for deltas in group.values() for d in deltas for b in d.bases})
        for pack_id, deltas in group.items():
            read = self._open(pack_id)
            if read is None:
                continue
            task: list[PackEntry] = []
            bases: dict[bytes, tuple[PackReading, PackEntry]] = {}
            size = 0
            for delta in deltas:
                if size >= TASK_BYTES:
                    yield self._task(self._readings[pack_id], read, task, bases)
                    task, bases, size = [], {}, 0
                task.append(delta)
                for base in delta.bases:
                    if base in places and base not in bases:
                        bases[base] = places[base]
                        size += places[base][1].raw_bytes
            yield self._task(self._readings[pack_id], read, task, bases)

    def _places(self, chunk_ids: set[bytes]) -> dict[bytes, tuple[PackReading, PackEntry]]:
        """A frame of each chunk that is no delta, as far as it is not known to be bad."""
        found: dict[bytes, tuple[PackReading, PackEntry]] = {}
        for reading in self._readings.values():
            for entry in reading.frames.of(chunk_ids):
                if not entry.bases and entry.offset not in reading.bad:
                    found.setdefault(entry.chunk_id, (reading, entry))
        return found

    def _task(
        self,
        pack: PackReading,
        read: Read,
        deltas: list[PackEntry],
        bases: Mapping[bytes, tuple[PackReading, PackEntry]],
    ) -> _Task:
        by_pack: dict[bytes, tuple[PackReading, Read, list[PackEntry]]] = {}
        for reading, entry in bases.values():
            if reading.pack_id not in by_pack:
                read_base = self._open(reading.pack_id)
                if read_base is None:
                    continue
                by_pack[reading.pack_id] = reading, read_base, []
            by_pack[reading.pack_id][2].append(entry)
        return _Task(pack, read, deltas, list(by_pack.values()))

    # ------------------------------------------------------------ decoding

    def _verdicts(self, task: _Task) -> Iterator[Verdict]:
        """On deltas, but not on what lacks a base: that is what is wrong then. And on bases that
        are bad."""
        bases: dict[bytes, bytes | memoryview] = {}
        for each in task.bases:
            yield from self._read_bases(*each, bases)

        def base(chunk_id: bytes, raw_bytes: int) -> bytes | memoryview:
            raw = bases.get(chunk_id)
            if raw is None or len(raw) != raw_bytes:
                raise FormatError(f"the frame is a delta of another chunk {chunk_id.hex()}")
            return raw

        left = [delta for delta in task.deltas if all(b in bases for b in delta.bases)]
        for is_last in (False, True):  # what is wrong may have been damaged on its way
            bad = []
            for delta, frame in zip(left, frames_of(task.read, left), strict=True):
                wanted = delta.chunk_id, delta.raw_bytes, self._seed, base
                fault = fault_of(decode_frame, frame, *wanted)
                if fault and not is_last:
                    bad.append(delta)
                else:
                    yield task.pack, delta.offset, fault
            left = bad

    def _read_bases(
        self,
        pack: PackReading,
        read: Read,
        entries: list[PackEntry],
        bases: dict[bytes, bytes | memoryview],
    ) -> Iterator[Verdict]:
        known = self._decoded.get([(entry.chunk_id, entry.raw_bytes) for entry in entries])
        missing = []
        for entry, raw in zip(entries, known, strict=True):
            if raw is None:
                missing.append(entry)
            else:
                bases[entry.chunk_id] = raw
        for is_last in (False, True):
            bad = []
            for entry, frame in zip(missing, frames_of(read, missing), strict=True):
                try:
                    found = decode_frame(frame, entry.chunk_id, entry.raw_bytes, self._seed)
                except FormatError as error:
                    if is_last:
                        yield pack, entry.offset, str(error)
                    bad.append(entry)
                    continue
                bases[entry.chunk_id] = found
                self._decoded.put(entry.chunk_id, bytes(found))
            missing = bad
