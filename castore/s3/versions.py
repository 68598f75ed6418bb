"""Versions of what names map to, as they were seen last, in memory or in this machine's cache, or
read anew; and their segments, which are read when they are needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from castore.errors import FormatError, NameNotFound
from castore.format.s3 import ManifestHead, Place, decode_manifest_head, manifest_head_bytes
from castore.format.segment import Segment, decode_segment
from castore.s3.cache.store import StoreCache
from castore.s3.client.bucket import Bucket, KeyAbsent
from castore.s3.etags import is_batched
from castore.s3.listings import Listings
from castore.s3.manifests import decode_own_head, read_manifest, read_part
from castore.stream.coalesce import coalesce
from castore.system.forks import ForkLock, Rank
from castore.system.workers import Workers

if TYPE_CHECKING:
    from castore.s3.namespace.writing import Namespace

# Of a manifest, in the first request: all of it for objects up to 500 MB. A cold read of 100 bytes
# at 20 ms and 100 MB/s, of 1 GiB: 107 to 113 ms and 3 requests with 16 to 128 KiB, 94 ms and 2
# requests with this; of 128 MiB: 91 ms with 16 KiB, 53 to 57 ms with 64 KiB and more.
FIRST_BYTES = 256 << 10
# By a list, which needs no inline object's bytes: a thousand of 100 KB would be 100 MB.
LISTED_BYTES = 16 << 10
GAP_BYTES = 256 << 10
SPAN_BYTES_MAX = 8 << 20
VERSIONS_MAX = 256
SEGMENTS_MAX = 64  # kept decoded, per version; and read at once of a whole manifest


class Version:
    """One version of what a name maps to, and what is decoded of its segments."""

    def __init__(self, name: bytes, etag: str, head: ManifestHead) -> None:
        self.name = name
        self.etag = etag
        self.head = head
        self.ends = [place.end for place in head.segments]
        self.segments: dict[int, Segment] = {}


class Versions:
    """Of one store. Thread-safe."""

    def __init__(
        self,
        bucket: Bucket,
        names: Namespace,
        store_id: bytes,
        cache: StoreCache,
        requests: Workers,
    ) -> None:
        self._names = names
        self._store_id = store_id
        self._cache = cache
        self._requests = requests
        self.listings = Listings(bucket, store_id, requests)
        self._versions: dict[bytes, Version] = {}
        self._lock = ForkLock(Rank.LEAF)

    def current(self, name: bytes) -> Version:
        """The version that the name has now. Raises NameNotFound."""
        known = self._known(name)
        if known is None:
            return self._fetch_known_to_exist(name)
        return self._fetch(name, known.etag) or known

    def at(self, name: bytes, etag: str) -> Version:
        """The version that was just seen to have this ETag, or a newer one. Raises NameNotFound."""
        known = self._known(name)
        if known is not None and known.etag == etag:
            return known
        reply = self._names.batched(name, etag, FIRST_BYTES)
        if reply is not None:
            with contextlib.suppress(FormatError):  # or it was damaged on its way: ask again
                return self._keep(name, reply.etag, reply.body)
        return self.current(name)

    def remember(self, name: bytes, etag: str, raw: bytes) -> None:
        """A manifest that we wrote ourselves."""
        version = self._keep(name, etag, raw)
        self.listings.tell(name, etag, version.head.record)

    def remember_batched(self, manifests: Mapping[bytes, tuple[str, bytes]]) -> None:
        """Manifests that we wrote into batches, with their ETags: no listing has to tell of
        them."""
        for name, (etag, raw) in manifests.items():
            self._keep(name, etag, raw)

    def raw_segments(self, version: Version) -> Iterator[bytes]:
        """All segments of a version, as stored, a few MiB at a time. Raises Overwritten if it is
        gone before they are read."""
        places = version.head.segments
        for i in range(0, len(places), SEGMENTS_MAX):
            for _, raw in self._read(version, places[i : i + SEGMENTS_MAX]):
                yield raw

    def forget(self, *names: bytes) -> None:
        with self._lock:
            for name in names:
                self._versions.pop(name, None)
        self._cache.forget_manifests(names)

    def forget_all(self) -> None:
        """What is in memory; the cache is another's to clear."""
        with self._lock:
            self._versions.clear()

    # ------------------------------------------------------------ below

    def _segments(self, version: Version, places: Sequence[Place]) -> dict[int, Segment]:
        """These segments by their ends, from memory, the cache, or in as few requests as it
        takes."""
        kept = version.segments  # other threads may empty it, so what is found there is held on to
        found = {place.end: kept.get(place.end) for place in places}
        missing = [place for place in dict.fromkeys(places) if found[place.end] is None]
        segments = {end: segment for end, segment in found.items() if segment is not None}
        for segment, _ in self._read(version, missing):
            segments[segment.end] = segment
        if len(kept) + len(missing) > SEGMENTS_MAX:
            kept.clear()
        kept.update(islice(((place.end, segments[place.end]) for place in missing), SEGMENTS_MAX))
        return segments

    def _read(self, version: Version, places: Sequence[Place]) -> list[tuple[Segment, bytes]]:
        """The segments, decoded and as stored. What the cache has of them, and is damaged, counts
        as missing."""
        found: dict[int, tuple[Segment, bytes]] = {}
        for place in places:
            raw = self._cache.segment(version.name, version.etag, place.end)
            if raw is not None:
                with contextlib.suppress(FormatError):
                    found[place.end] = _decoded(place, raw), raw
        missing = [place for place in places if place.end not in found]
        if missing:
            for place, raw in zip(missing, self._fetch_segments(version, missing), strict=True):
                try:
                    segment = _decoded(place, raw)
                except FormatError:  # or it was damaged on its way: look once more
                    [raw] = self._fetch_segments(version, [place])
                    segment = _decoded(place, raw)
                found[place.end] = segment, raw
            self._cache.put_manifest(
                version.name,
                version.etag,
                b"",
                [(place.end, found[place.end][1]) for place in missing],
            )
        return [found[place.end] for place in places]

    def _fetch_segments(self, version: Version, places: Sequence[Place]) -> list[bytes]:
        ranges = [(place.offset, place.offset + place.length) for place in places]
        spans = coalesce(ranges, gap_bytes=GAP_BYTES, span_bytes_max=SPAN_BYTES_MAX)
        futures = [
            self._requests.submit(
                read_part, self._names, version.name, version.etag, span.begin, span.end
            )
            for span in spans
        ]
        raws = [b""] * len(places)
        for span, future in zip(spans, futures, strict=True):
            future.run()  # unless a thread does: this may be one of them, and all may wait here
            body = future.result()
            for part in span.parts:
                begin, end = ranges[part]
                raws[part] = body[begin - span.begin : end - span.begin]
        return raws

    def _known(self, name: bytes, *, whole: bool = True) -> Version | None:
        """The version that was seen last; if `whole`, none without an inline object's bytes."""
        version = self._versions.get(name)
        if version is None:
            cached = self._cache.manifest_head(name)
            if cached is not None:
                try:
                    version = Version(name, cached[0], decode_manifest_head(cached[1]))
                except FormatError:
                    return None
                self._store(version)
        return version if version is None or not whole or version.head.is_whole else None

    def _store(self, version: Version) -> None:
        with self._lock:
            self._versions.pop(version.name, None)
            while len(self._versions) >= VERSIONS_MAX:
                del self._versions[next(iter(self._versions))]
            self._versions[version.name] = version

    def _fetch_known_to_exist(self, name: bytes) -> Version:
        version = self._fetch(name, None)
        assert version is not None  # no condition was set
        return version

    def _version(self, name: bytes, etag: str) -> Version | None:
        """What the name maps to, if anything, without asking if the version with this ETag is
        known."""
        try:
            return self.at(name, etag)
        except NameNotFound:
            return None

    def _facts(self, name: bytes, etag: str) -> Version | None:
        """The same for who needs no inline object's bytes."""
        known = self._known(name, whole=False)
        if known is not None and known.etag == etag:
            return known
        try:
            if is_batched(etag):  # of which many are read together
                return self.at(name, etag)
            return self._fetch(name, None, whole=False)
        except NameNotFound:
            return None

    def _fetch(self, name: bytes, etag: str | None, *, whole: bool = True) -> Version | None:
        """The name's version unless it is the one with this ETag; if not `whole`, maybe without an
        inline object's bytes. Raises NameNotFound."""
        keep = partial(self._keep, name)
        first_bytes = FIRST_BYTES if whole else min(LISTED_BYTES, FIRST_BYTES)
        try:
            return read_manifest(self._names, name, first_bytes, keep, unless=etag, whole=whole)
        except KeyAbsent:
            self.forget(name)
            raise NameNotFound(name.decode()) from None

    def _keep(self, name: bytes, etag: str, raw: bytes) -> Version:
        """`raw` are the manifest's first bytes, with at least its head."""
        version = Version(name, etag, decode_own_head(raw, self._store_id))
        head = raw[: manifest_head_bytes(raw, whole=version.head.is_whole)]
        here = [
            (place, raw[place.offset : place.offset + place.length])
            for place in version.head.segments
            if place.offset + place.length <= len(raw)
        ]
        decoded = {place.end: _decoded(place, segment) for place, segment in here}
        version.segments.update(islice(decoded.items(), SEGMENTS_MAX))
        self._cache.put_manifest(name, etag, head, [(place.end, raw) for place, raw in here])
        self._store(version)
        return version


def _decoded(place: Place, raw: bytes) -> Segment:
    segment = decode_segment(raw)
    if segment.end != place.end:
        raise FormatError("a manifest's segment is not the one that its directory says")
    return segment
