"""Packs of a store on S3 of which little is alive, or that are small: their live frames are moved.

A collector that moves frames is a writer like any other: its session is pinned before it uploads,
and each manifest is put over exactly the version that was read, or not at all. The old packs are
not touched: what nothing refers to any more is garbage for the two phases that follow.

Frames are moved pack by pack, so that the new packs are full whatever the names are like, and then
names are led to them, each once for all packs that were moved: to put a manifest anew costs more
than to move megabytes.

It comes to rest: what it writes is alive to the last byte and, but for the last pack, large, and a
pack that names can't be led away from, as something of theirs is damaged or missing, is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager

from castore.errors import FormatError, PackMissing
from castore.format.segment import decode_segment
from castore.model import FrameKind, Location, Stages, StoredChunk
from castore.s3.catalog import S3Catalog
from castore.s3.gc.live import LiveFrames
from castore.s3.gc.mark import S3Marker
from castore.s3.gc.moved import MovedFrames
from castore.s3.manifests import Overwritten
from castore.s3.names import Segments
from castore.s3.session import S3Session
from castore.s3.uploads import PACK_BYTES_MAX
from castore.s3.versions import Version
from castore.stream.codec import Frame
from castore.stream.repack_choice import PackFacts
from castore.stream.reports import Damage

FRAMES_MAX = 1 << 23  # moved at a time: where each went is kept in memory, in 28 bytes
RECENT_MAX = 1 << 17  # of which one that is met again, in another pack, is not moved again
BATCH_BYTES = PACK_BYTES_MAX  # of manifests that are put at once
NAME_BYTES = 1024  # what one takes in memory besides its segments
_READ_AT_ONCE = 1024  # frames

OpenSession = Callable[[], AbstractContextManager[S3Session]]


class S3Repacker:
    """Moves live frames to other packs, and leads names there: `candidates`, then `rewrite`.

    `bytes_written` are those of the frames that were moved, `damaged` those that could not be.
    """

    def __init__(
        self, catalog: S3Catalog, marker: S3Marker, open_session: OpenSession, stages: Stages
    ) -> None:
        """`open_session` gives a session of its own, which is over at the end of the `with`."""
        self.bytes_written = 0
        self.damaged: dict[Location, Damage] = {}
        self._catalog = catalog
        self._marker = marker
        self._open_session = open_session
        self._stages = stages
        self._live = LiveFrames()
        self._bad: dict[Location, FormatError] = {}
        self._left: set[bytes] = set()  # packs that have some of these
        self._recent: dict[FrameKind, Location] = {}

    def rewrite(self, chosen: Sequence[PackFacts], live: LiveFrames) -> None:
        """Move what names need of these packs. Raises CommitUnknown, and what uploading raises:
        what was moved until then is, and nothing is lost."""
        self._live = live
        self._stages.begin_stage("repacking", sum(pack.live_bytes for pack in chosen))
        with self._open_session() as session:
            for group in _groups(chosen):
                moved = MovedFrames(group)
                for pack_id in group:
                    self._move(session, pack_id, moved)
                self._recent.clear()
                session.finish()
                self._lead(session, moved)

    def _move(self, session: S3Session, pack_id: bytes, moved: MovedFrames) -> None:
        """Of a pack that can't be emptied nothing is moved: a pack is held in memory as a whole
        first."""
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
            places = [self._place(session, frame) for frame in frames]
            moved.add(
                pack_id,
                [(at.offset, frame.kind) for at, frame in zip(live, frames, strict=True)],
                places,
            )

    def _place(self, session: S3Session, frame: Frame) -> Location:
        """Where it is from now on; one of each kind is enough."""
        place = self._recent.get(frame.kind)
        if place is None:
            place = session.move(frame)
            self.bytes_written += frame.stored_bytes
            if len(self._recent) >= RECENT_MAX:
                del self._recent[next(iter(self._recent))]
            self._recent[frame.kind] = place
        return place

    def _lead(self, session: S3Session, moved: MovedFrames) -> None:
        """Put the names that have packs of these anew, but for those that it would not free from
        them."""
        for versions in self._batches(moved.packs):
            kept = {i for version in versions for i in version.head.packs} - moved.packs
            doomed = session.unreliable(kept)
            led: list[tuple[Version, Segments]] = []
            for version in versions:
                if doomed.isdisjoint(version.head.packs):
                    segments = self._relocated(version, moved)
                    if segments is not None:
                        led.append((version, segments))
            session.put_moved(led)

    def _batches(self, moved: Set[bytes]) -> Iterator[list[Version]]:
        """The versions that have packs of these, so many that their segments fit in memory."""
        batch: list[Version] = []
        size = 0
        for page in self._marker.references():
            having = [
                (name, etag)
                for name, (etag, referred) in page.items()
                if not moved.isdisjoint(referred.packs)
            ]
            for version in self._catalog.versions_of(having):
                if moved.isdisjoint(version.head.packs):
                    continue  # it was overwritten
                batch.append(version)
                size += NAME_BYTES + sum(place.length for place in version.head.segments)
                if size >= BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
        if batch:
            yield batch

    def _relocated(self, version: Version, moved: MovedFrames) -> Segments | None:
        """None if it was overwritten, or needs a frame that was not moved: one that is damaged, or
        that came to be needed since the live ones were looked for."""
        segments = []
        try:
            for raw in self._catalog.raw_segments(version):
                segment = decode_segment(raw)
                left = [
                    chunk
                    for chunk in segment.frames()
                    if chunk.location.pack_id in moved.packs and moved.find(chunk) is None
                ]
                if left:
                    self._note(left)
                    return None
                segments.append((segment.end, segment.relocated(moved.find) or raw))
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
