"""What one commit publishes on S3: the session of a store in a bucket, for packs that are objects.

Packs are uploaded while the stream is read; names are put when all packs are there. Each name is
published by itself: a transaction's last put comes after its others, so that a marker such as
`_SUCCESS` is never there before what it marks.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence, Set

from castore.errors import ChunkCorrupt, FormatError, PackMissing, StoreIOError
from castore.format.segment import Segment, SegmentBuilder, decode_segment
from castore.model import Extent, FrameKind, Location, StoredChunk
from castore.s3.catalog import Version
from castore.s3.commit import check, groups, names_of, names_to_look_up
from castore.s3.damaged import to_avoid
from castore.s3.lease import WriterLease
from castore.s3.manifests import Overwritten
from castore.s3.names import NameWriter, Segments
from castore.s3.parts import Parts
from castore.s3.stored import StoredFrames
from castore.s3.uploads import PACK_BYTES_MAX, Uploads
from castore.stream.chunker import Chunker
from castore.stream.codec import Frame
from castore.stream.operations import (
    Copy,
    Delete,
    DeletePrefix,
    Draft,
    Operation,
    Publish,
    SetAttributes,
)
from castore.stream.session import Encoded, WriteSession
from castore.system.workers import Future, InFlight, Workers, results_of

INLINE_BYTES_MAX = 64 << 10
MOVED_AT_ONCE = 64  # extents
SEGMENT_BYTES_MAX = 64 << 20  # of what is copied at once, in memory
LOOKAHEAD_BYTES = 64 << 20


class S3Session(WriteSession):
    """One commit: a put, or a transaction. See WriteSession."""

    def __init__(
        self,
        parts: Parts,
        lease: WriterLease,
        budget: InFlight,
        workers: Workers,
        chunker: Chunker,
        *,
        compression_level: int,
        deltas: bool = False,
    ) -> None:
        """`budget` is for the uploads of all sessions; `workers` encode."""
        super().__init__(
            workers, parts.config, chunker, compression_level=compression_level, deltas=deltas
        )
        self.inline_bytes_max = INLINE_BYTES_MAX
        self.lookahead_bytes = LOOKAHEAD_BYTES
        self._bucket = parts.bucket
        self._catalog = parts.catalog
        self._stored = StoredFrames(parts.packs, parts.config.seed)
        self._cache = parts.cache
        self._hints = parts.hints
        self._lease = lease
        self._requests = parts.requests
        self._names = NameWriter(parts, lease)
        self._uploads = Uploads(parts, lease, budget, keeps_bases=deltas)
        self._open = True
        self._published = False
        self._damaged: Future[set[bytes]] | None = None
        self._unfit: set[bytes] = set()  # packs that turned out not to be relied on
        self._ahead: set[bytes] = set()  # packs that will be relied on, if any bases are
        lease.join()

    # ------------------------------------------------------------ for the drafts

    def prefetch(self, chunk_ids: Sequence[bytes], older: Sequence[Extent] = ()) -> None:
        """To rely on packs takes three round trips: for many of them at once, if possible. Those
        that have the bases are among them once anything shows that the stream is like the older
        object: a chunk that both have, or else the first base that is found."""
        self._hints.read()
        known = self._cache.known(chunk_ids)
        packs = {pack_id for at in known.values() for pack_id in at.packs}
        self._ahead = self._packs_at_hand(older) if len(known) < len(chunk_ids) else set()
        if any(extent.chunk_id in known for extent in older):
            packs |= self._ahead
        self._unfit |= self._lease.rely_on(packs - self._unfit)

    def look_up(self, chunk_ids: Sequence[bytes]) -> dict[bytes, Location]:
        """Packs of others are pinned, and looked for, before this returns: the caller lets go of
        the bytes of what is known."""
        self.check_process()
        self._hints.read()
        known = self._cache.known(chunk_ids)
        unreliable = self.unreliable(
            {pack_id for location in known.values() for pack_id in location.packs}
        )
        if unreliable:
            lost = {i for i, at in known.items() if not at.packs.isdisjoint(unreliable)}
            bases = {base for at in known.values() for base in at.bases}
            gone = {base.chunk_id for base in bases if base.location.pack_id in unreliable}
            self._cache.drop_chunks(lost | gone)
            for chunk_id in lost:
                del known[chunk_id]
        for chunk_id in chunk_ids:
            placed = self._uploads.placed.get(chunk_id)
            if placed is not None:
                known[chunk_id] = placed
        return known

    def reliable(self, bases: Collection[StoredChunk]) -> dict[StoredChunk, StoredChunk]:
        """To use a base is to rely on its pack. Those that are likely to follow are asked for with
        it, in the same round trips."""
        if not bases:
            return {}
        ahead, self._ahead = self._ahead, set()
        unreliable = self.unreliable({base.location.pack_id for base in bases} | ahead)
        lost = [base for base in bases if base.location.pack_id in unreliable]
        return {base: base for base in {*bases}.difference(lost)} | self._moved(lost)

    def place(self, encoded: Sequence[Encoded]) -> None:
        self._uploads.place(encoded)

    def location(self, chunk_id: bytes) -> Location:
        return self._uploads.placed[chunk_id]

    def add_segment(self, draft: Draft, segment: SegmentBuilder) -> None:
        draft.segments.append((segment.end, segment.encode()))

    def drop(self, draft: Draft) -> None:
        """Nothing of it was kept but its frames."""

    def unreliable(self, pack_ids: Collection[bytes]) -> set[bytes]:
        """Those of the packs that nothing that is put may rely on. What is marked as damaged is
        asked once by each commit: of our own packs, and of those that the session relied on before,
        nothing else would tell."""
        if not pack_ids:
            return set()
        if self._damaged is None:
            self._damaged = self._requests.submit(to_avoid, self._bucket)
        # Each is found out once: bases in one that is gone would ask for it again and again.
        self._unfit |= self._lease.rely_on({*pack_ids} - self._unfit)
        self._unfit |= self._damaged.result().intersection(pack_ids)
        return self._unfit.intersection(pack_ids)

    def _moved(self, lost: Sequence[StoredChunk]) -> dict[StoredChunk, StoredChunk]:
        """Those of the bases that a collector has moved, as hints tell. Their frames are kept under
        where they are now, for the put after this one."""
        known = self._cache.known([base.chunk_id for base in lost])
        places = {
            base: at
            for base in lost
            if (at := known.get(base.chunk_id)) is not None and not at.bases
        }
        unreliable = self.unreliable({at.pack_id for at in places.values()})
        moved = {
            base: base._replace(location=at)
            for base, at in places.items()
            if at.pack_id not in unreliable
        }
        frames = self._cache.frames.get([base.location for base in moved])
        self._cache.frames.put(
            [
                (chunk.location, bytes(frame))
                for chunk, frame in zip(moved.values(), frames, strict=True)
                if frame is not None and len(frame) == chunk.location.stored_bytes
            ]
        )
        return moved

    def _packs_at_hand(self, older: Sequence[Extent]) -> set[bytes]:
        """Of the frames that chunks there may be deltas of, the packs of those that are here."""
        found = {base.location for e in older for base in e.location.bases or (e.stored,)}
        places = list(found)
        frames = self._cache.frames.get(places)
        return {at.pack_id for at, frame in zip(places, frames, strict=True) if frame is not None}

    # ------------------------------------------------------------ the end

    def commit(self, operations: Sequence[Operation]) -> int:
        """Publish the operations in their order, consecutive ones of a kind at once, but the last
        name that is given last: see `groups`. Not atomic across names: when it raises, those before
        may be there."""
        self.check_process()
        self._uploads.finish()
        present, absent = names_to_look_up(operations)
        seen = self._names.etags(present, absent)
        check(operations, present | absent, seen.keys())
        self._names.compare(operations)
        deleted = 0
        for group in groups(operations):
            deleted += self._apply(group, seen)
            for operation in group:
                for name in names_of(operation)[0]:
                    seen.pop(name, None)
        self._published = True
        self.close()
        return deleted

    def close(self) -> None:
        if self._open and self._pid == os.getpid():
            self._open = False
            # What was uploaded for nothing is garbage at once, and not when the Store is closed:
            # the next put begins another session.
            if self._uploads.any_begun and not self._published:
                self._lease.close()
            self._uploads.drop()
            self._lease.leave()

    # ------------------------------------------------------------ for collectors

    def frames_at(self, locations: Sequence[Location]) -> list[Frame | FormatError]:
        """The frames as they are, checked against the ids in their heads; or why one is none. What
        does not match is fetched once more. Raises PackMissing."""
        self.check_process()
        return self._stored.at(locations)

    def move(self, frame: Frame) -> Location:
        """Store a frame as it is, in packs as large as they come; where."""
        [place] = self._uploads.place([Encoded(frame)], pack_bytes=PACK_BYTES_MAX)
        return place

    def finish(self) -> None:
        """Have all that was placed uploaded."""
        self._uploads.finish()

    def put_moved(self, moved: Sequence[tuple[Version, Segments]]) -> int:
        """Put what was moved, and is uploaded, each over the version that it is of and over nothing
        else; how many were. Raises CommitUnknown, once all others were put."""
        putting = [
            self._requests.submit(self._names.put_over, version, version.head.record, segments)
            for version, segments in moved
        ]
        results = [future.exception() or future.result() for future in putting]
        failures = [error for error in results if isinstance(error, BaseException)]
        if failures:
            raise failures[0]
        return sum(result is True for result in results)

    # ------------------------------------------------------------ parts of these

    def _apply(self, group: Sequence[Operation], seen: Mapping[bytes, str]) -> int:
        """Apply operations that may be at once; how many names were deleted. `seen` are the ETags
        of names that are as they were when the commit began."""
        match group[0]:
            case Publish():
                publishes = [it for it in group if isinstance(it, Publish)]
                # None of them is to land when the caller has been told that one failed.
                results_of([self._requests.submit(self._names.publish, it) for it in publishes])
            case Copy():
                self._copy([it for it in group if isinstance(it, Copy)], seen)
            case SetAttributes():
                changes = [it for it in group if isinstance(it, SetAttributes)]
                self._set_attributes(changes, seen)
            case Delete():
                return self._names.delete_all(
                    [it.name for it in group if isinstance(it, Delete)], seen
                )
            case DeletePrefix(prefix):
                return self._names.delete_below(prefix)
        return 0

    def _copy(self, copies: Sequence[Copy], seen: Mapping[bytes, str]) -> None:
        moved = [copy for copy in copies if copy.source != copy.target]
        for copy in copies:
            if copy.source == copy.target:
                self._version(copy.source, seen.get(copy.source))  # it is there, and stays
        for ready in self._read_again([(copy.source, seen.get(copy.source)) for copy in moved]):
            putting = [
                self._requests.submit(self._names.copy, moved[i], version, segments)
                for i, version, segments in ready
            ]
            results_of(putting)

    def _set_attributes(self, changes: Sequence[SetAttributes], seen: Mapping[bytes, str]) -> None:
        """Put the versions that are there again, each over itself and over no newer one."""
        left = [(change, seen.get(change.name)) for change in changes]
        while left:
            changed: list[tuple[SetAttributes, str | None]] = []  # since: to be looked at again
            for ready in self._read_again([(change.name, etag) for change, etag in left]):
                putting = [
                    self._requests.submit(
                        self._names.put_over, version, left[i][0].of(version.head.record), segments
                    )
                    for i, version, segments in ready
                ]
                done = results_of(putting)
                changed += [
                    (left[i][0], None)
                    for (i, _, _), put in zip(ready, done, strict=True)
                    if not put
                ]
            left = changed

    def _read_again(
        self, asked: Sequence[tuple[bytes, str | None]]
    ) -> Iterator[list[tuple[int, Version, Segments]]]:
        """What names map to, to be put once more: (which of those asked, version, segments), as
        many at a time as may be in memory. With its ETag, where a name was just seen. What is in
        packs that can't be relied on is stored anew. Raises NameNotFound."""
        versions = results_of([self._requests.submit(self._version, *each) for each in asked])
        # For all of them, in as few round trips as it takes.
        self.unreliable({pack_id for version in versions for pack_id in version.head.packs})
        begin = 0
        while begin < len(versions):
            end = begin + _few_enough(versions[begin:])
            names = [name for name, _ in asked[begin:end]]
            whole = results_of(
                [
                    self._requests.submit(self._whole, *each)
                    for each in zip(names, versions[begin:end], strict=True)
                ]
            )
            ready = [
                (i, *self._reliable(name, *each))
                for i, (name, each) in enumerate(zip(names, whole, strict=True), begin)
            ]
            self._uploads.finish()
            yield ready
            begin = end

    def _version(self, name: bytes, etag: str | None) -> Version:
        """What the name maps to; with its ETag, where that was just seen. Raises NameNotFound."""
        return self._catalog.current(name) if etag is None else self._catalog.at(name, etag)

    def _whole(self, name: bytes, version: Version) -> tuple[Version, list[bytes]]:
        """The version, or a newer one, and its segments as stored. Raises NameNotFound."""
        while True:
            try:
                return version, list(self._catalog.raw_segments(version))
            except Overwritten as error:
                newer = self._catalog.current(name)
                if newer.etag == version.etag:
                    raise StoreIOError(
                        f"the manifest of {name.decode()!r} can't be read"
                    ) from error
                version = newer

    def _reliable(
        self, name: bytes, version: Version, raw_segments: Sequence[bytes]
    ) -> tuple[Version, Segments]:
        """The version, or a newer one, with what is in packs that can't be relied on stored
        anew."""
        while True:
            doomed = self.unreliable(version.head.packs)
            segments = []
            try:
                for raw in raw_segments:
                    segment = decode_segment(raw)
                    if not doomed.isdisjoint(segment.packs):
                        lost = [c for c in segment.frames() if c.location.pack_id in doomed]
                        raw = relocated(segment, doomed, self._store_anew(lost)) or raw
                    segments.append((segment.end, raw))
                return version, segments
            except PackMissing:
                newer, raw_segments = self._whole(name, self._catalog.current(name))
                if newer.etag == version.etag:
                    raise
                version = newer

    def _store_anew(self, chunks: Sequence[StoredChunk]) -> dict[FrameKind, Location]:
        """Where their frames are now. Raises PackMissing, ChunkCorrupt."""
        placed = self._uploads.placed
        here = [c._replace(location=placed[c.chunk_id]) for c in chunks if c.chunk_id in placed]
        places = {chunk.kind: chunk.location for chunk in here}
        new = {c.kind: c for c in chunks if c.kind not in places}
        wanted = sorted(new.values(), key=lambda c: bool(c.location.bases))  # bases first
        for i in range(0, len(wanted), MOVED_AT_ONCE):
            part = wanted[i : i + MOVED_AT_ONCE]
            frames = self.frames_at([chunk.location for chunk in part])
            for chunk, frame in zip(part, frames, strict=True):
                chunk_id, raw_bytes, at = chunk
                if isinstance(frame, FormatError):
                    raise ChunkCorrupt(chunk_id, at.pack_id, at.offset, str(frame)) from frame
                if (frame.kind, frame.raw_bytes) != (chunk.kind, raw_bytes):
                    reason = f"the frame is of chunk {frame.chunk_id.hex()}"
                    raise ChunkCorrupt(chunk_id, at.pack_id, at.offset, reason)
                bases = [
                    base._replace(location=places.get(base.kind, base.location))
                    for base in at.bases
                ]
                [places[chunk.kind]] = self._uploads.place([Encoded(frame, tuple(bases))])
        return places


def _few_enough(versions: Sequence[Version]) -> int:
    """How many of them, one at least, have segments that may be in memory at once."""
    total = 0
    for count, version in enumerate(versions):
        total += sum(place.length for place in version.head.segments)
        if count and total > SEGMENT_BYTES_MAX:
            return count
    return len(versions)


def relocated(
    segment: Segment, moved: Set[bytes], places: Mapping[FrameKind, Location]
) -> bytes | None:
    """The segment with what it has in the packs `moved` in other `places`; what it decodes with
    stays where it is, unless that is moved, too. None if it has nothing there. Raises KeyError."""

    def find(chunk: StoredChunk) -> Location | None:
        at = chunk.location
        return places[chunk.kind]._replace(bases=at.bases) if at.pack_id in moved else None

    return segment.relocated(find)
