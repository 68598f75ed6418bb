"""Moving live frames out of packs that are mostly dead, or small and many.

Frames are copied as they are, each checked against its chunk's id on the way: one that is damaged
stays where it is, and its pack with it. The new pack is durable before a row or a segment refers to
it. Segments are then changed to it in bounded transactions, between which every extent leads to a
frame; a pack goes when nothing refers to it any more, and nothing came to refer to it meanwhile.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from castore.errors import FormatError, PackMissing
from castore.format.index import ChunkRow, segment_key
from castore.format.segment import decode_segment
from castore.local.gc.mark import Marker
from castore.local.gc.parts import Parts
from castore.local.gc.sweep import ROWS_MAX, Sweeper
from castore.local.locks import PackLocks
from castore.local.pack import Pack, Placement
from castore.local.packs import PACK_BYTES_MAX
from castore.local.tables import Tables
from castore.model import FrameKind, Location, StoredChunk
from castore.stream.codec import Frame, stored_frame
from castore.stream.repack_choice import PackFacts, choose
from castore.stream.reports import Damage

SMALL_PACK_BYTES = 16 << 20  # a sixteenth of a full pack
SMALL_PACKS_MAX = 8  # as many are left alone: one is made by each process that puts
FRAMES_MAX = 65_536  # moved at a time: what is known of each is kept meanwhile
SEGMENTS_PER_READ = 32
SEGMENTS_MAX = 256  # per transaction
APPEND_BYTES = 1 << 20


class Slice(NamedTuple):
    """The frames of a pack at offsets `[begin, end)`."""

    pack_id: bytes
    begin: int
    end: int


Wanted: TypeAlias = dict[bytes, dict[int, StoredChunk]]  # pack -> offset -> a live frame
Moves: TypeAlias = dict[
    bytes, dict[int, tuple[bytes, Location]]
]  # pack -> offset -> chunk, where it is now


class Repacker:
    def __init__(self, parts: Parts, marker: Marker, sweeper: Sweeper) -> None:
        self._index = parts.index
        self._packs = parts.packs
        self._seed = parts.seed
        self._report = parts.report
        self._advance = parts.stages.relative_update
        self._marker = marker
        self._sweeper = sweeper
        self._keys: dict[bytes, array[int]] = {}  # pack -> (manifest, end) of segments, flat
        self._stuck: set[bytes] = set()  # packs with frames that can't be moved

    def choose(
        self, packs: Iterable[PackFacts], *, repack_below: float, bytes_max: int | None
    ) -> list[PackFacts]:
        """The packs to rewrite, of those that no live writer has."""
        with PackLocks(self._packs) as locks:
            free = [pack for pack in packs if not locks.is_held(pack.pack_id)]
        return choose(
            free,
            repack_below=repack_below,
            bytes_max=bytes_max,
            small_bytes=SMALL_PACK_BYTES,
            small_packs_max=SMALL_PACKS_MAX,
            frames_max=FRAMES_MAX,
        )

    def rewrite(self, chosen: Sequence[PackFacts]) -> None:
        """Move what is alive in the packs to new ones, and remove them."""
        self._marker.catch_up_outside()
        self._marker.recent.clear()
        self._find_references({pack.pack_id for pack in chosen})
        sizes = {pack.pack_id: pack.size for pack in chosen}
        for group in self._groups(chosen):
            self._move(group)
            done = [piece.pack_id for piece in group if piece.end == _END]
            gone = self._sweeper.remove_packs(done, sizes, self._is_referred_to)
            self._report.packs_rewritten += len(gone)

    def _is_referred_to(self, pack_id: bytes) -> bool:
        return pack_id in self._stuck or pack_id in self._marker.recent

    # ------------------------------------------------------------ planning

    def _find_references(self, sources: set[bytes]) -> None:
        for batch in self._marker.live_segments():
            for key, raw in batch:
                for pack_id in sources.intersection(decode_segment(raw).packs):
                    keys = self._keys.setdefault(pack_id, array("Q"))
                    keys.extend((int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")))

    def _groups(self, chosen: Sequence[PackFacts]) -> Iterator[list[Slice]]:
        """What to move at a time: what fills a pack, and of which the frames fit in memory."""
        group: list[Slice] = []
        size = frames = 0
        for pack in chosen:
            offsets = self._marker.marks.offsets(pack.pack_id)
            cuts = [0, *offsets[FRAMES_MAX::FRAMES_MAX], _END]
            for number, (begin, end) in enumerate(pairwise(cuts)):
                count = min(len(offsets) - number * FRAMES_MAX, FRAMES_MAX)
                part = pack.live_bytes * count // max(len(offsets), 1)
                if group and (size + part > PACK_BYTES_MAX or frames + count > FRAMES_MAX):
                    yield group
                    group, size, frames = [], 0, 0
                group.append(Slice(pack.pack_id, begin, end))
                size, frames = size + part, frames + count
        if group:
            yield group

    # ------------------------------------------------------------ moving

    def _move(self, group: Sequence[Slice]) -> None:
        wanted = self._wanted(group)
        placement = Placement()
        try:
            moves = self._copy(wanted, placement)
            if not placement.upto:
                return  # nothing in them could be moved
            frames_end = dict(placement.upto)  # a row counts what names need: no footer
            for pack in placement.upto:
                pack.seal()
                placement.upto[pack] = pack.size
            placement.sync()
            for pack in placement.upto:
                pack.named = True  # from here on, a commit that may land refers to it
            self._publish(frames_end, moves, wanted)
            self._report.bytes_rewritten += sum(placement.upto.values())
            self._report.bytes_freed -= sum(placement.upto.values())
        finally:
            self._packs.release(placement)

    def _wanted(self, group: Sequence[Slice]) -> Wanted:
        """What the live segments say is in the slices."""
        slices = {piece.pack_id: piece for piece in group}
        wanted: Wanted = {pack_id: {} for pack_id in slices}
        for chunk in self._frames(slices):
            pack_id, offset = chunk.location.place
            piece = slices.get(pack_id)
            if piece is None or not piece.begin <= offset < piece.end:
                continue
            found = wanted[pack_id].setdefault(offset, chunk)
            if not _is_same(found, chunk):
                self._damage(pack_id, offset, chunk.chunk_id, "two segments differ about a frame")
        return wanted

    def _frames(self, packs: Iterable[bytes]) -> Iterator[StoredChunk]:
        """Those of all segments that refer to the packs, and others."""
        keys = self._segment_keys(packs)
        for i in range(0, len(keys), SEGMENTS_PER_READ):
            with self._index.gate, self._index.snapshot() as txn:
                found = [
                    txn.get(segment_key(*key), db=self._index.segments)
                    for key in keys[i : i + SEGMENTS_PER_READ]
                ]
            for raw in found:
                if raw is not None:
                    yield from decode_segment(raw).frames()

    def _segment_keys(self, packs: Iterable[bytes]) -> list[tuple[int, int]]:
        found: set[tuple[int, int]] = set()
        for pack_id in packs:
            keys = self._keys.get(pack_id, array("Q"))
            found.update(zip(keys[::2], keys[1::2], strict=True))
        return sorted(found)

    def _copy(self, wanted: Wanted, placement: Placement) -> Moves:
        """Append the frames to a new pack; those that hold what they should."""
        moves: Moves = {pack_id: {} for pack_id in wanted}
        placed: dict[tuple[FrameKind, bytes], Location] = {}  # one of each kind is enough
        for pack_id, frames in wanted.items():
            reading = self._intact_frames(pack_id, frames)
            while batch := list(_up_to(reading, APPEND_BYTES)):
                new = {_kind(frame): frame for _, frame in batch if _kind(frame) not in placed}
                if new:
                    pack = next(iter(placement.upto), None) or self._packs.create(placement)
                    located = pack.append([*new.values()])
                    placement.upto[pack] = pack.size
                    placed |= zip(new, located, strict=True)
                for offset, frame in batch:
                    moves[pack_id][offset] = frame.chunk_id, placed[_kind(frame)]
                self._advance(sum(frame.stored_bytes for _, frame in batch))
        return moves

    def _intact_frames(
        self, pack_id: bytes, frames: Mapping[int, StoredChunk]
    ) -> Iterator[tuple[int, Frame]]:
        for offset in sorted(frames):
            chunk_id, raw_bytes, at = frames[offset]
            try:
                mapping = self._packs.mapping(pack_id, offset + at.stored_bytes)
                # What is checked is what is written, whatever happens to the file.
                raw = bytes(memoryview(mapping)[offset : offset + at.stored_bytes])
                frame = stored_frame(raw, chunk_id, raw_bytes, self._seed)
            except (FormatError, PackMissing) as error:
                self._damage(pack_id, offset, chunk_id, str(error))
                continue
            mapping.advise_dontneed(offset, at.stored_bytes)
            yield offset, frame

    def _damage(self, pack_id: bytes, offset: int, chunk_id: bytes, reason: str) -> None:
        self._stuck.add(pack_id)
        self._report.damaged += (Damage(pack_id.hex(), offset, chunk_id.hex(), reason),)

    # ------------------------------------------------------------ publishing

    def _publish(self, frames_end: Mapping[Pack, int], moves: Moves, wanted: Wanted) -> None:
        index = self._index
        with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
            for pack, end in frames_end.items():
                tables.packs.put(pack.pack_id, pack.created_ns, end)
        rows = [
            (_at(wanted[pack_id][offset], place), (pack_id, offset))
            for pack_id, moved in moves.items()
            for offset, (_, place) in moved.items()
        ]
        for i in range(0, len(rows), ROWS_MAX):
            self._move_rows(rows[i : i + ROWS_MAX])
        keys = self._segment_keys(moves)
        for i in range(0, len(keys), SEGMENTS_MAX):
            with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
                for place in keys[i : i + SEGMENTS_MAX]:
                    key = segment_key(*place)
                    raw = tables.segments.get(key)
                    if raw is None:
                        continue
                    new = decode_segment(raw).relocated(lambda chunk: _moved_to(chunk, moves))
                    if new is not None:
                        tables.segments.put(key, new)

    def _move_rows(self, rows: Sequence[tuple[StoredChunk, tuple[bytes, int]]]) -> None:
        index = self._index
        with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
            for chunk, old in rows:
                tables.chunks.move(chunk.chunk_id, ChunkRow.of(chunk), old)


_END = 1 << 32  # behind every offset


def _moved_to(chunk: StoredChunk, moves: Moves) -> Location | None:
    at = chunk.location
    chunk_id, place = moves.get(at.pack_id, {}).get(at.offset, (b"", None))
    if place is None or chunk_id != chunk.chunk_id:
        return None
    return _at(chunk, place).location


def _at(chunk: StoredChunk, place: Location) -> StoredChunk:
    """The chunk with its frame at another place; what it decodes with stays where it is."""
    return chunk._replace(location=place._replace(bases=chunk.location.bases))


def _is_same(one: StoredChunk, other: StoredChunk) -> bool:
    """Whether both are the same frame, wherever its bases are."""
    return (one.kind, one.raw_bytes, one.location[:3]) == (
        other.kind,
        other.raw_bytes,
        other.location[:3],
    )


def _kind(frame: Frame) -> tuple[FrameKind, bytes]:
    """The SHA-256 tells chunks apart that a store with a collision guard took for one at the same
    time."""
    return frame.kind, frame.sha256


def _up_to(frames: Iterator[tuple[int, Frame]], size: int) -> Iterator[tuple[int, Frame]]:
    """The next of them, until they have `size` bytes."""
    for offset, frame in frames:
        yield offset, frame
        size -= frame.stored_bytes
        if size <= 0:
            return
