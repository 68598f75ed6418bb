"""Packs of a store on S3 of which little is alive, or that are small: their live frames are moved.

A collector that moves frames is a writer like any other: its session is pinned before it uploads,
and each manifest is put over exactly the version that was read, or not at all. The old packs are
not touched: what nothing refers to any more is garbage for the two phases that follow.

Frames are moved pack by pack, so that the new packs are full whatever the names are like, and then
names are led to them. This alone needs to know which chunks are alive, and reads manifests whole,
each version once on this machine: segments stay in the cache.

It comes to rest: what it writes is alive to the last byte and, but for the last pack, large, and a
pack that names can't be led away from, as something of theirs is damaged or missing, is left alone.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from castore.errors import FormatError, PackMissing
from castore.format.segment import decode_segment
from castore.model import FrameKind, Location, Stages, StoredChunk
from castore.s3.catalog import S3Catalog, Version
from castore.s3.copies import relocated
from castore.s3.gc.mark import Pins
from castore.s3.manifests import Overwritten
from castore.s3.names import Segments
from castore.s3.session import S3Session
from castore.s3.uploads import PACK_BYTES_MAX
from castore.stream.codec import Frame
from castore.stream.repack_choice import PackFacts, choose
from castore.stream.reports import Damage

SMALL_PACK_BYTES = 1 << 20
SMALL_PACKS_MAX = 31  # as many are left alone: each put of a little makes one
FRAMES_MAX = 1 << 17  # moved at a time: where each went is kept in memory
BATCH_BYTES = PACK_BYTES_MAX  # of manifests that are put at once
NAME_BYTES = 1024  # what one takes in memory besides its segments
_SETTLED_MIN = 1024  # entries of a pack before they are looked through for repeated ones
_READ_AT_ONCE = 128  # frames

OpenSession = Callable[[], AbstractContextManager[S3Session]]


class LiveFrames:
    """The frames that names need, by pack: 8 bytes for each, and at most twice that."""

    def __init__(self) -> None:
        self._frames: dict[bytes, array[int]] = {}  # offset, stored bytes, bases: 32, 29, 3 bits
        self._settled: dict[bytes, int] = {}

    def add(self, at: Location) -> None:
        pack_id, offset, stored_bytes, bases = at
        frames = self._frames.setdefault(pack_id, array("Q"))
        frames.append(offset << 32 | stored_bytes << 3 | len(bases))
        if len(frames) >= self._settled.get(pack_id, _SETTLED_MIN):
            self._settle(pack_id)

    def of(self, pack_id: bytes) -> list[Location]:
        """Each once, in order, without its bases."""
        self._settle(pack_id)
        frames = self._frames.get(pack_id, ())
        return [Location(pack_id, frame >> 32, _stored_bytes(frame)) for frame in frames]

    def __contains__(self, at: Location) -> bool:
        """Of a pack that was looked at."""
        frames, frame = self._frames.get(at.pack_id, ()), at.offset << 32 | at.stored_bytes << 3
        i = bisect_left(frames, frame)
        return i < len(frames) and frames[i] >> 3 == frame >> 3

    def facts(self, pack_id: bytes, size: int) -> PackFacts:
        """Of a pack of this size."""
        self._settle(pack_id)
        frames = self._frames.get(pack_id, ())
        live_bytes = sum(map(_stored_bytes, frames))
        live_bases = sum(frame & 7 for frame in frames)
        return PackFacts(pack_id, 0, size, live_bytes, len(frames), live_bases)

    def _settle(self, pack_id: bytes) -> None:
        if pack_id in self._frames:
            frames = self._frames[pack_id] = array("Q", sorted({*self._frames[pack_id]}))
            self._settled[pack_id] = max(2 * len(frames), _SETTLED_MIN)


def _stored_bytes(frame: int) -> int:
    return frame >> 3 & 0x1FFFFFFF


class S3Repacker:
    """Moves live frames to other packs, and leads names there: `candidates`, then `rewrite`.

    `bytes_written` are those of the frames that were moved, `damaged` those that could not be.
    """

    def __init__(self, catalog: S3Catalog, open_session: OpenSession, stages: Stages) -> None:
        """`open_session` gives a session of its own, which is over at the end of the `with`."""
        self.bytes_written = 0
        self.damaged: dict[Location, Damage] = {}
        self._catalog = catalog
        self._open_session = open_session
        self._stages = stages
        self._live = LiveFrames()
        self._bad: dict[Location, FormatError] = {}
        self._left: set[bytes] = set()  # packs that have some of these

    def candidates(
        self,
        packs: Mapping[bytes, int],
        pins: Pins,
        unfit: Collection[bytes],
        *,
        repack_below: float,
        bytes_max: int | None,
    ) -> list[PackFacts]:
        """Which of all `packs`, with their bytes, to rewrite. Those of writers at work are left
        alone, and so is whatever a name has that also needs one that is `unfit`, or that is not
        there: it could not be put anew."""
        self._live = LiveFrames()
        stuck = set(unfit)
        for version in self._catalog.versions(b""):
            if any(i in unfit or i not in packs for i in version.head.packs):
                stuck.update(version.head.packs)
            try:
                for raw in self._catalog.raw_segments(version):
                    for chunk in decode_segment(raw).frames():
                        self._live.add(chunk.location)
            except Overwritten:
                # What it refers to now may be anywhere: the packs are looked at the next time.
                stuck.update(version.head.packs)
        free = (i for i in packs if i not in stuck and not pins.protect(i))
        facts = [self._live.facts(pack_id, packs[pack_id]) for pack_id in free]
        return choose(
            [pack for pack in facts if pack.live_frames],  # the others are garbage
            repack_below=repack_below,
            bytes_max=bytes_max,
            small_bytes=SMALL_PACK_BYTES,
            small_packs_max=SMALL_PACKS_MAX,
            frames_max=FRAMES_MAX,
        )

    def rewrite(self, chosen: Sequence[PackFacts]) -> None:
        """Move what names need of these packs. Raises CommitUnknown, and what uploading raises:
        what was moved until then is, and nothing is lost."""
        self._stages.begin_stage("repacking", sum(pack.live_bytes for pack in chosen))
        with self._open_session() as session:
            for group in _groups(chosen):
                places: dict[FrameKind, Location] = {}
                for pack_id in group:
                    self._move(session, pack_id, places)
                session.finish()
                self._lead(session, set(group), places)

    def _move(self, session: S3Session, pack_id: bytes, places: dict[FrameKind, Location]) -> None:
        """Where each chunk is now goes to `places`. Of a pack that can't be emptied nothing is
        moved: a pack is held in memory as a whole first."""
        frames: list[Frame] = []
        live = self._live.of(pack_id)
        for i in range(0, len(live), _READ_AT_ONCE):
            locations = live[i : i + _READ_AT_ONCE]
            try:
                found = session.frames_at(locations)
            except PackMissing:
                return  # another collector was faster: its names have other packs by now
            for at, frame in zip(locations, found, strict=True):
                if isinstance(frame, FormatError):
                    self._bad[at] = frame
                else:
                    frames.append(frame)
            self._stages.relative_update(sum(at.stored_bytes for at in locations))
        if len(frames) < len(live):
            self._left.add(pack_id)
        else:
            for frame in frames:
                if frame.kind not in places:
                    places[frame.kind] = session.move(frame)
                    self.bytes_written += frame.stored_bytes

    def _lead(
        self, session: S3Session, moved: set[bytes], places: Mapping[FrameKind, Location]
    ) -> None:
        """Put the names that have packs of these anew, but for those that it would not free from
        them."""
        for versions in self._batches(moved):
            kept = {i for version in versions for i in version.head.packs} - moved
            doomed = session.unreliable(kept)
            led: list[tuple[Version, Segments]] = []
            for version in versions:
                if doomed.isdisjoint(version.head.packs):
                    segments = self._relocated(version, moved, places)
                    if segments is not None:
                        led.append((version, segments))
            session.put_moved(led)

    def _batches(self, moved: set[bytes]) -> Iterator[list[Version]]:
        """The versions that have packs of these, so many that their segments fit in memory."""
        batch: list[Version] = []
        size = 0
        for version in self._catalog.versions(b""):
            if moved.isdisjoint(version.head.packs):
                continue
            batch.append(version)
            size += NAME_BYTES + sum(place.length for place in version.head.segments)
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _relocated(
        self, version: Version, moved: set[bytes], places: Mapping[FrameKind, Location]
    ) -> Segments | None:
        """None if it was overwritten, or needs a frame that was not moved: one that is damaged, or
        that came to be needed since the live ones were looked for."""
        segments = []
        try:
            for raw in self._catalog.raw_segments(version):
                segment = decode_segment(raw)
                left = [
                    chunk
                    for chunk in segment.frames()
                    if chunk.location.pack_id in moved and chunk.kind not in places
                ]
                if left:
                    self._note(left)
                    return None
                segments.append((segment.end, relocated(segment, moved, places) or raw))
        except Overwritten:
            return None
        return segments

    def _note(self, left: Sequence[StoredChunk]) -> None:
        for chunk_id, _, located in left:
            at = located._replace(bases=())
            if at in self._bad or (at in self._live and at.pack_id not in self._left):
                reason = str(self._bad.get(at, "there is another chunk's frame"))
                damage = Damage(at.pack_id.hex(), at.offset, chunk_id.hex(), reason)
                self.damaged[at] = damage


def _groups(chosen: Sequence[PackFacts]) -> Iterator[Sequence[bytes]]:
    """Of no more than FRAMES_MAX frames each, unless one pack alone has more."""
    group: list[bytes] = []
    frames = 0
    for pack in chosen:
        if group and frames + pack.live_frames > FRAMES_MAX:
            yield group
            group, frames = [], 0
        group.append(pack.pack_id)
        frames += pack.live_frames
    if group:
        yield group
