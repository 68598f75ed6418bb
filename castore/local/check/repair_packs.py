"""The packs of a local store that is being repaired: which of their frames are intact, which packs
are to be replaced, and where the frames are that others take the place of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from castore.check.objects import chunk_fault
from castore.check.scan import PackScan
from castore.errors import FormatError
from castore.format.config import StoreConfig
from castore.format.index import ChunkRow, decode_chunk_row
from castore.format.pack import PackEntry
from castore.local.catalog import LocalCatalog
from castore.local.check.pack_files import LocalPackSource, pack_path
from castore.local.index_walk import durable_bytes, pages
from castore.local.locks import PackLocks, make_room
from castore.local.pack import Placement
from castore.local.pack_files import is_file
from castore.local.packs import LocalPacks
from castore.local.tables import Tables
from castore.model import Location, StoredChunk
from castore.stream.codec import Frame, stored_frame, summed_anew
from castore.stream.known import located
from castore.stream.reports import CheckReport
from castore.stream.session import WriteSession
from castore.system.lmdb_env import Index
from castore.wording import counted

FRAMES_MAX = 256  # copied at a time


@dataclass(frozen=True, slots=True)
class Parts:
    """Of the store that is repaired. `session` is for what is put into it."""

    root: str
    config: StoreConfig
    index: Index
    catalog: LocalCatalog
    packs: LocalPacks
    session: Callable[[], WriteSession]


class PackRepair:
    """`readings` is what the packs hold, `replaced` those whose lock is ours and whose intact
    frames get copies, `elsewhere` an intact frame of chunks that have lost, or may lose, another.
    """

    def __init__(
        self, parts: Parts, locks: PackLocks, placement: Placement, done: list[str]
    ) -> None:
        self._source = LocalPackSource(parts.root)
        self.scan = PackScan(self._source, parts.config)
        self.readings = self.scan.readings
        self.replaced: set[bytes] = set()
        self.elsewhere: dict[bytes, Location] = {}
        self._root = parts.root
        self._config = parts.config
        self._index = parts.index
        self._packs = parts.packs
        self._locks = locks
        self._placement = placement
        self._done = done
        # By the place of the frame that was copied: in a store with a collision guard two writers
        # at once may have given different chunks the same id.
        self._copies: dict[tuple[bytes, int], tuple[bytes, Location]] = {}

    # ------------------------------------------------------------ what there is

    def read(self, report: CheckReport) -> None:
        self.scan.add(*self._source.packs())
        for problem in report.problems:
            if problem.kind == "frame" and problem.offset >= 0:
                reading = self.readings.get(bytes.fromhex(problem.pack))
                if reading is not None and reading.frames.at(problem.offset) is not None:
                    reading.bad.setdefault(problem.offset, problem.what)

    def sound(self, report: CheckReport) -> set[bytes]:
        """The packs that a check of all data has found nothing wrong with."""
        faulty = {p.pack for p in report.problems if p.pack}
        return {pack_id for pack_id in self.readings if pack_id.hex() not in faulty}

    def read_new(self) -> None:
        """The copies, and what was put since: also into packs that were read already."""
        for pack_id in self._source.packs():
            known = self.readings.get(pack_id)
            if known is None or (known.unsealed and pack_id not in self.replaced):
                self._read_again(pack_id)

    def _read_again(self, pack_id: bytes) -> None:
        """What was found to be bad stays so."""
        known = self.readings.get(pack_id)
        self.scan.add(pack_id)
        if known is not None:
            self.readings[pack_id].bad.update(known.bad)

    def is_dangling(self, chunk: StoredChunk) -> bool:
        """Whether its own frame is; a delta's bases are asked for by themselves."""
        return chunk_fault(chunk.chunk_id, ChunkRow.of(chunk), self.readings) is not None

    def is_settled(self, pack_id: bytes) -> bool:
        """Whether what was read of the pack still is all there is: not of one made since."""
        return pack_id in self.readings or not is_file(pack_path(self._root, pack_id))

    def is_new(self, location: Location) -> bool:
        """Whether it is beyond what was read of a pack that grows."""
        reading = self.readings.get(location.pack_id)
        return reading is not None and reading.unsealed and location.offset >= reading.end

    def moved_to(self, chunk: StoredChunk) -> Location | None:
        """Where the chunk's frame is from now on; None if it stays, or is lost."""
        at = chunk.location
        if at.pack_id not in self.replaced and not (
            self.is_dangling(chunk) and self.is_settled(at.pack_id)
        ):
            return None
        new = self.instead_of(chunk)
        return None if new == at else new

    def instead_of(self, chunk: StoredChunk) -> Location | None:
        """A copy of the chunk's own frame, or another frame of it."""
        chunk_id, new = self._copies.get(chunk.location.place, (b"", None))
        if new is not None and chunk_id == chunk.chunk_id:
            return new._replace(bases=chunk.location.bases)
        return self.elsewhere.get(chunk.chunk_id)

    # ------------------------------------------------------------ what is done about it

    def take_locks(self, report: CheckReport) -> None:
        """Of the packs that are to be replaced: those with something wrong, in use by nobody."""
        wanted = {p.pack for p in report.problems if p.kind in ("pack", "frame") and p.pack}
        make_room(len(wanted))
        for pack_id in sorted(bytes.fromhex(pack) for pack in wanted):
            reading = self.readings.get(pack_id)
            if reading is None or not (reading.damaged or reading.unsealed):
                continue
            taken = self._locks.take(pack_id)
            if taken:
                # Its writer may have ended only now, and have added to it since it was read.
                self._read_again(pack_id)
                self.replaced.add(pack_id)
            elif taken is False:
                self._done.append(f"pack {pack_id.hex()} is left as it is: its writer is at work")

    def find_elsewhere(self, wanted: set[bytes]) -> None:
        """Intact frames of these chunks in packs that stay. Those that no commit made durable may
        be taken back by who wrote them, or not survive a power cut: they are copied."""
        rows = [row for page in pages(self._index, self._index.packs) for row in page]
        durable = {pack_id: durable_bytes(row) for pack_id, row in rows}
        for pack_id, reading in list(self.readings.items()):
            if pack_id in self.replaced:
                continue
            fleeting = []
            for entry in reading.frames:
                if (
                    entry.chunk_id not in wanted
                    or not self._is_better(entry)
                    or entry.offset in reading.bad
                    or not self.scan.is_whole(pack_id, entry)
                ):
                    continue
                if entry.offset + entry.stored_bytes <= durable.get(pack_id, 0):
                    self._note(entry, Location(pack_id, entry.offset, entry.stored_bytes))
                else:
                    fleeting.append(entry)
            self._copy_all(pack_id, fleeting)

    def copy_intact(self) -> None:
        """Every intact frame of the packs that are to be replaced, to new ones. Their chunks' rows
        lead there at once: what is put from now on relies on the copies."""
        for pack_id in sorted(self.replaced):
            # The bad ones too: what could not be read once may be read now.
            entries = list(self.readings[pack_id].frames)
            copied = self._copy_all(pack_id, entries)
            intact = f"{copied:,} of {counted(len(entries), 'frame')}"
            self._done.append(f"pack {pack_id.hex()}: copied what is intact, {intact}")

    # ------------------------------------------------------------ below

    def _copy_all(self, pack_id: bytes, entries: list[PackEntry]) -> int:
        return sum(
            self._copy(pack_id, entries[i : i + FRAMES_MAX])
            for i in range(0, len(entries), FRAMES_MAX)
        )

    def _copy(self, pack_id: bytes, entries: list[PackEntry]) -> int:
        copies = list(self._intact(pack_id, entries))
        if not copies:
            return 0
        locations = self._packs.append([frame for _, frame in copies], self._placement)
        self._placement.sync()
        for pack in self._placement.upto:
            pack.named = True
        index = self._index
        with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
            for pack, upto in self._placement.upto.items():
                tables.packs.extend(pack.pack_id, pack.created_ns, upto)
            for (offset, frame), location in zip(copies, locations, strict=True):
                row = ChunkRow(frame.raw_bytes, location, frame.bases)
                tables.chunks.move(frame.chunk_id, row, (pack_id, offset))
        for (offset, frame), location in zip(copies, locations, strict=True):
            self.readings[pack_id].bad.pop(offset, None)
            self._note(frame, location)
            self._copies[pack_id, offset] = frame.chunk_id, location
        return len(copies)

    def _is_better(self, frame: Frame | PackEntry) -> bool:
        """Than what is known of the chunk: anything than nothing, and what is no delta, and can be
        the base of others, than one that is."""
        known = self.elsewhere.get(frame.chunk_id)
        return known is None or bool(known.bases and not frame.bases)

    def _note(self, frame: Frame | PackEntry, at: Location) -> None:
        """An intact frame of a chunk; a delta only if its bases are known, too."""
        row = ChunkRow(frame.raw_bytes, at, frame.bases)
        place = located({frame.chunk_id: row}, self._rows).get(frame.chunk_id)
        if place is not None and (self._is_better(frame) or not place.bases):
            self.elsewhere[frame.chunk_id] = place

    def _rows(self, chunk_ids: Iterable[bytes]) -> dict[bytes, ChunkRow]:
        index = self._index
        with index.gate, index.snapshot() as txn:
            raws = [(i, txn.get(i, db=index.chunks)) for i in chunk_ids]
        found = {}
        for chunk_id, raw in raws:
            with contextlib.suppress(FormatError):
                if raw is not None:
                    row = decode_chunk_row(raw)
                    if chunk_fault(chunk_id, row, self.readings) is None:
                        found[chunk_id] = row
        return found

    def _intact(self, pack_id: bytes, entries: Iterable[PackEntry]) -> list[tuple[int, Frame]]:
        found = []
        bad = self.readings[pack_id].bad
        # What could not be read once may be read now. But a delta with the right checksum may make
        # another chunk, and one with a wrong checksum the right one.
        deltas = [entry for entry in entries if entry.bases and entry.offset in bad]
        faults = self.scan.delta_faults(pack_id, deltas)
        for chunk_id, offset, stored_bytes, raw_bytes, _ in entries:
            if faults.get(offset):
                continue
            raw = self.scan.frame(Location(pack_id, offset, stored_bytes))
            try:
                if offset in faults:
                    found.append((offset, summed_anew(raw)))
                    continue
                found.append((offset, stored_frame(raw, chunk_id, raw_bytes, self._config.seed)))
            except FormatError as error:
                bad.setdefault(offset, str(error))
        return found
