"""What one commit publishes, from the first look-up to the end.

A put may take hours, and what it relies on changes meanwhile. So a session keeps three things
until it ends: the locks of the packs that it wrote (nobody else may remove them), a mapping of
every pack that it reuses (so that the frames of one that is collected can be copied out of it), and
the collector's counter as it stood at the first look-up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence

from castore.errors import ChunkCorrupt, FormatError, PackMissing, StoreIOError
from castore.format.config import StoreConfig
from castore.format.segment import NewSegment, Segment, decode_segment
from castore.local.batch import Batch, NewChunk
from castore.local.catalog import LocalCatalog
from castore.local.groups import PacksVanished
from castore.local.pack import Placement
from castore.local.packs import LocalPacks
from castore.model import FrameKind, Location, StoredChunk
from castore.stream.chunker import Chunker
from castore.stream.codec import stored_frame
from castore.stream.operations import Draft, Operation
from castore.stream.session import Encoded, WriteSession
from castore.system.mapping import Mapping
from castore.system.workers import Workers

INLINE_BYTES_MAX = 4096
ROWS_MAX = 16384  # chunks per transaction: each may dirty a page of its own
SEGMENTS_MAX = 4096  # per transaction: of small objects
SEGMENT_BYTES_MAX = 9 << 20  # per transaction: 256 segments that are full
STAGED_MAX = 16_384  # chunks remembered that have rows, and perhaps no segment yet
COMMIT_ATTEMPTS = 20
ATTEMPTS_BEFORE_COPY = 2


class LocalSession(WriteSession):
    """The packs it wrote and reuses, and its unpublished rows."""

    def __init__(
        self,
        catalog: LocalCatalog,
        packs: LocalPacks,
        workers: Workers,
        config: StoreConfig,
        chunker: Chunker,
        *,
        compression_level: int,
        deltas: bool,
    ) -> None:
        super().__init__(
            workers, config, chunker, compression_level=compression_level, deltas=deltas
        )
        self.inline_bytes_max = INLINE_BYTES_MAX
        self._catalog = catalog
        self._packs = packs
        self._batch = Batch()
        self._placement = Placement()
        self._held: dict[bytes, Mapping] = {}
        self._lost: set[bytes] = set()  # chunks that the index knows in packs that are gone
        self._segments = self._segment_bytes = 0
        # Where the chunks are that were staged last: a batch of the writer's may still ask, and a
        # collector take the row of one that is in no segment yet.
        self._staged: dict[bytes, Location] = {}

    # ------------------------------------------------------------ for the drafts

    def look_up(self, chunk_ids: Sequence[bytes]) -> dict[bytes, Location]:
        self.check_process()
        gc_seq, known = self._catalog.known(chunk_ids)
        if self._batch.gc_seq is None:
            self._batch.gc_seq = gc_seq
        missing = [chunk_id for chunk_id in known if not self._hold(known[chunk_id])]
        for _ in range(COMMIT_ATTEMPTS):
            if not missing:
                break
            # A collector may have moved them since: what is missing twice in one place is lost.
            _, again = self._catalog.known(missing)
            lost = {i for i in missing if again.get(i) in (None, known[i])}
            for chunk_id in lost:
                del known[chunk_id]
            self._lost |= lost
            known |= {i: again[i] for i in missing if i not in lost}
            missing = [i for i in missing if i not in lost and not self._hold(known[i])]
        for chunk_id in missing:
            del known[chunk_id]  # forever on the move: stored again
        for chunk_id in chunk_ids:
            new = self._batch.chunks.get(chunk_id)
            if new is not None:
                known[chunk_id] = new.location
        return known

    def reliable(self, bases: Collection[StoredChunk]) -> dict[StoredChunk, StoredChunk]:
        return {base: base for base in bases if self._hold(base.location)}

    def place(self, encoded: Sequence[Encoded]) -> None:
        places = self._packs.append([frame for frame, _ in encoded], self._placement)
        for (frame, bases), place in zip(encoded, places, strict=True):
            # Two files that are written by turns may both have it. What is a delta can't be the
            # base of another, as what is none may be.
            before = self._placed(frame.chunk_id) if bases else None
            if before is not None and not before.bases:
                continue
            self._batch.chunks[frame.chunk_id] = NewChunk(
                frame.raw_bytes,
                place._replace(bases=bases) if bases else place,
                heals=frame.chunk_id in self._lost,
            )

    def location(self, chunk_id: bytes) -> Location:
        placed = self._placed(chunk_id) or self.look_up([chunk_id]).get(chunk_id)
        if placed is None:
            raise StoreIOError(f"chunk {chunk_id.hex()} was lost while it was put: repeat the put")
        return placed

    def add_segment(self, draft: Draft, segment: NewSegment) -> None:
        if not draft.segments and not draft.staged:
            self._batch.drafts.append(draft)
        raw = segment.encode()
        draft.segments.append((segment.end, raw))
        self._batch.packs |= segment.packs - {pack.pack_id for pack in self._placement.upto}
        self._segments += 1
        self._segment_bytes += len(raw)
        if (
            len(self._batch.chunks) >= ROWS_MAX
            or self._segments >= SEGMENTS_MAX
            or self._segment_bytes >= SEGMENT_BYTES_MAX
        ):
            self._stage()

    def drop(self, draft: Draft) -> None:
        if draft in self._batch.drafts:
            self._batch.drafts.remove(draft)

    # ------------------------------------------------------------ the end

    def commit(self, operations: Sequence[Operation]) -> int:
        """Publish, and let the packs go. Raises what LocalCatalog.commit does, but
        PacksVanished; nothing is published then (or, CommitUnknown, it is not known)."""
        self.check_process()
        deleted = self._attempt(lambda: self._catalog.commit(self._batch, operations))
        self._packs.release(self._placement)
        self.close()
        self._catalog.bound_journal()
        return deleted

    def close(self) -> None:
        self._batch = Batch()
        self._held.clear()
        if self._pid == os.getpid():
            self._packs.give_up(self._placement)

    def _stage(self) -> None:
        owner = self._packs.own(self._placement)
        self._attempt(lambda: self._stage_once(owner.pack_id))
        for draft in self._batch.drafts:
            draft.segments = []
            draft.staged = True
        if len(self._staged) >= STAGED_MAX:
            self._staged = {}
        self._staged |= {i: chunk.location for i, chunk in self._batch.chunks.items()}
        self._batch.chunks = {}
        self._segments = self._segment_bytes = 0
        # The packs that are full are now kept by their rows and this manifest's being pending;
        # their descriptors would add up in a put of terabytes.
        full = {pack for pack in self._placement.upto if pack.sealed and pack is not owner}
        # A collector may take them from now on, with frames that no staged segment refers to yet.
        self._held |= self._packs.hold([pack.pack_id for pack in full])
        self._packs.release(self._placement, only=full)

    def _stage_once(self, owner: bytes) -> int:
        self._catalog.stage(self._batch, owner)
        return 0

    def _attempt(self, transaction: Callable[[], int]) -> int:
        for attempt in range(COMMIT_ATTEMPTS):
            self._placement.sync()
            for pack in self._placement.upto:
                pack.named = True
            self._batch.own = dict(self._placement.upto)
            try:
                return transaction()
            except PacksVanished as vanished:
                # Where chunks were moved to is as good as a copy, unless they never rest.
                self._replace(vanished, copy=attempt >= ATTEMPTS_BEFORE_COPY)
        raise StoreIOError(
            f"collectors removed what a put relied on {COMMIT_ATTEMPTS} times in a row: repeat it"
        )

    def _placed(self, chunk_id: bytes) -> Location | None:
        new = self._batch.chunks.get(chunk_id)
        return self._staged.get(chunk_id) if new is None else new.location

    # ------------------------------------------------------------ packs that went meanwhile

    def _hold(self, location: Location) -> bool:
        """Keep the bytes of the frame, and of those that it decodes with, reachable whatever
        happens to their packs; False if one is lost."""
        return self._hold_frame(location) and all(
            self._hold_frame(base.location) for base in location.bases
        )

    def _hold_frame(self, location: Location) -> bool:
        held = self._held.get(location.pack_id)
        if held is None or len(held) < _end(location):
            try:
                # Looks for the file: a mapping that a reader kept outlives one that was removed.
                held = self._packs.hold([location.pack_id])[location.pack_id]
            except (PackMissing, FormatError):
                return False
            self._held[location.pack_id] = held
        return len(held) >= _end(location)

    def _replace(self, vanished: PacksVanished, *, copy: bool) -> None:
        """Give the extents in vanished packs new places: where a collector moved their chunks, or
        copies of the frames in our own pack."""
        own = {
            pack.pack_id: pack for pack in self._placement.upto if pack.pack_id in vanished.pack_ids
        }
        for pack in own.values():
            # Somebody removed a file whose lock we hold; its bytes are ours until it is closed.
            self._held[pack.pack_id] = pack.map_again()
        self._packs.release(self._placement, only=set(own.values()))
        self._batch.chunks = {
            chunk_id: chunk
            for chunk_id, chunk in self._batch.chunks.items()
            if chunk.location.pack_id not in own
        }
        self._batch.packs -= vanished.pack_ids
        for draft in self._batch.drafts:
            draft.segments = [
                (end, self._replaced(decode_segment(raw), vanished.pack_ids, copy=copy) or raw)
                for end, raw in draft.segments
            ]

    def _replaced(self, segment: Segment, gone: set[bytes], *, copy: bool) -> bytes | None:
        lost = [chunk.chunk_id for chunk in segment.frames() if chunk.location.pack_id in gone]
        known = {} if copy or not lost else self.look_up(lost)
        known = {i: location for i, location in known.items() if location.packs.isdisjoint(gone)}
        copied: dict[FrameKind, Location] = {}

        def find(chunk: StoredChunk) -> Location | None:
            if chunk.location.pack_id not in gone:
                return None
            place = known.get(chunk.chunk_id)
            # What is a delta can't be the base of another, as what is none may be.
            if place is not None and (chunk.location.bases or not place.bases):
                return place
            if chunk.kind not in copied:
                bases = [
                    base._replace(location=find(base) or base.location)
                    for base in chunk.location.bases
                ]
                copied[chunk.kind] = self._copied(chunk, tuple(bases))
            return copied[chunk.kind]

        raw = segment.relocated(find)
        if raw is not None:
            own = {pack.pack_id for pack in self._placement.upto}
            self._batch.packs |= set(decode_segment(raw).packs) - own
        return raw

    def _copied(self, chunk: StoredChunk, bases: tuple[StoredChunk, ...]) -> Location:
        chunk_id, raw_bytes, location = chunk
        held = self._held.get(location.pack_id)
        if held is None:
            raise PackMissing(location.pack_id)
        raw = bytes(memoryview(held)[location.offset : _end(location)])
        try:
            frame = stored_frame(raw, chunk_id, raw_bytes, self.config.seed)
        except FormatError as error:
            raise ChunkCorrupt(chunk_id, location.pack_id, location.offset, str(error)) from error
        self.place([Encoded(frame, bases)])
        return self.location(chunk_id)


def _end(location: Location) -> int:
    return location.offset + location.stored_bytes
