"""What names map to, read to be put once more: by a copy, a rename, or a change of attributes.
Segments are taken over as they are, but for what is in packs that can't be relied on: that is
stored anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set

from castore.errors import ChunkCorrupt, FormatError, PackMissing, StoreIOError
from castore.format.segment import Segment, decode_segment
from castore.model import FrameKind, Location, StoredChunk
from castore.s3.manifests import Overwritten
from castore.s3.names import Segments
from castore.s3.parts import Parts
from castore.s3.reliance import Reliance
from castore.s3.stored import StoredFrames
from castore.s3.uploads import Uploads
from castore.s3.versions import Version
from castore.stream.session import Encoded
from castore.system.workers import results_of

MOVED_AT_ONCE = 64  # extents
SEGMENT_BYTES_MAX = 64 << 20  # of what is copied at once, in memory


class Copies:
    """Of one commit. Not for several threads at once."""

    def __init__(
        self, parts: Parts, reliance: Reliance, uploads: Uploads, stored: StoredFrames
    ) -> None:
        self._catalog = parts.catalog
        self._requests = parts.requests
        self._reliance = reliance
        self._uploads = uploads
        self._stored = stored

    def read(
        self, asked: Sequence[tuple[bytes, str | None]]
    ) -> Iterator[list[tuple[int, Version, Segments]]]:
        """What names map to, to be put once more: (which of those asked, version, segments), as
        many at a time as may be in memory. With its ETag, where a name was just seen. What is in
        packs that can't be relied on is stored anew. Raises NameNotFound."""
        versions = results_of([self._requests.submit(self.version, *each) for each in asked])
        # For all of them, in as few round trips as it takes.
        self._reliance.unreliable(
            {pack_id for version in versions for pack_id in version.head.packs}
        )
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

    def version(self, name: bytes, etag: str | None) -> Version:
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
            doomed = self._reliance.unreliable(version.head.packs)
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
            frames = self._stored.at([chunk.location for chunk in part])
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
