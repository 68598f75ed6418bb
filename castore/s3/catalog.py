"""The catalog of a store on S3: names in the bucket are the truth, what was read of them is cached.

A name that was read before costs one round trip: the conditional GET that says whether it still is
what we know, and at the same time, on the strength of what we know, the ranges. No answer is older
than the moment the read began.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from castore.errors import FormatError, NameNotFound
from castore.format.index import Record
from castore.format.s3 import ManifestHead, Place, decode_manifest_head, manifest_head_bytes
from castore.format.segment import Segment, decode_segment
from castore.model import Extent, ObjectInfo, can_begin_a_name, clamp_range
from castore.s3.cache.store import StoreCache
from castore.s3.client.bucket import Bucket, KeyAbsent, Listed
from castore.s3.keys import NAMES, name_of
from castore.s3.listings import Listings
from castore.s3.manifests import Overwritten, decode_own_head, read_manifest, read_part
from castore.s3.older import find_older
from castore.stream.backend import Cover, Entry, Older
from castore.stream.coalesce import coalesce
from castore.stream.segments import Manifest
from castore.system.forks import ForkLock, Rank
from castore.system.workers import Future, Workers

if TYPE_CHECKING:
    from castore.s3.batches import SeenRoot
    from castore.s3.namespace import Namespace

# Of a manifest, in the first request: all of it for objects up to 500 MB. A cold read of 100 bytes
# at 20 ms and 100 MB/s, of 1 GiB: 107 to 113 ms and 3 requests with 16 to 128 KiB, 94 ms and 2
# requests with this; of 128 MiB: 91 ms with 16 KiB, 53 to 57 ms with 64 KiB and more.
FIRST_BYTES = 256 << 10
# By a list, which needs no inline object's bytes: a thousand of 100 KB would be 100 MB.
LISTED_BYTES = 16 << 10
GAP_BYTES = 256 << 10
SPAN_BYTES_MAX = 8 << 20
PAGE_NAMES = 1000
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


class S3Catalog:
    """The names of a store, and their manifests: from memory, this machine's cache, or S3.

    A read asks S3 whether the name still maps to what is known, so it is never stale. Thread-safe.
    """

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

    # ------------------------------------------------------------ reading

    def record(self, name: bytes) -> Record | None:
        try:
            return self.current(name).head.record
        except NameNotFound:
            return None

    def records(self, names: Collection[bytes]) -> dict[bytes, Record]:
        """A list tells which of many are there, and only what it shows to be unknown is asked
        for."""
        there = self._names.etags(names, self._requests)
        reading = [self._requests.submit(self._facts, *each) for each in there.items()]
        found = {}
        for future in reading:
            with contextlib.suppress(FormatError):
                version = future.result()
                if version is not None:
                    found[version.name] = version.head.record
        return found

    def at_hand(self, listed: ObjectInfo) -> Record | None:
        """One that is in a batch, which is read with many others."""
        reply = self._names.listed_in_batch(listed, FIRST_BYTES)
        if reply is not None:
            with contextlib.suppress(FormatError):  # it is damaged, or was on its way: ask for it
                head = decode_own_head(reply.body, self._store_id)
                if head.is_whole:
                    return head.record
        return None

    def cover(self, name: bytes, byte_ranges: Sequence[Sequence[int] | None]) -> Cover:
        for byte_range in byte_ranges:
            clamp_range(byte_range, 0)  # a range that can't be says so before anything is asked
        known = self._known(name)
        if known is None:
            return self._cover(self._fetch_known_to_exist(name), byte_ranges)
        return self._cover(known, byte_ranges, self._requests.submit(self._fetch, name, known.etag))

    def older(self, name: bytes, like: bytes | None) -> Older | None:
        with self._lock:
            in_memory = list(self._versions)
        return find_older(self._cache, in_memory, self._known, name, like)

    def manifest(self, name: bytes, etag: bytes | None = None) -> tuple[Record, Manifest]:
        known = None if etag is None else self._known(name)
        is_wanted = known is not None and known.head.record.etag == etag
        version = known if known is not None and is_wanted else self.current(name)
        while True:
            try:
                record = version.head.record
                raw_segments = self.raw_segments(version)
                return record, Manifest(raw_segments, 0 if record.is_inline else record.size)
            except Overwritten:
                version = self.current(name)

    def forget(self, *names: bytes) -> None:
        with self._lock:
            for name in names:
                self._versions.pop(name, None)
        self._cache.forget_manifests(names)

    def forget_all(self) -> None:
        """What is in memory; the cache is another's to clear."""
        with self._lock:
            self._versions.clear()

    def pages(self, prefix: bytes) -> Iterator[list[tuple[bytes, Record]]]:
        for listed in self.listed(prefix):
            yield [(name, record) for name, _, record in self._records(listed)]

    def facts(self) -> Iterator[list[tuple[bytes, str, Record]]]:
        """(name, ETag, record) of all names, in order, a page at a time."""
        for listed in self.listed(b""):
            yield list(self._records(listed))

    def names(self, prefix: bytes) -> Iterator[list[bytes]]:
        for listed in self.listed(prefix):
            yield [name for name, _ in listed]

    def level(self, prefix: bytes, *, with_records: bool) -> Iterator[list[Entry]]:
        """A LIST of one folder: what is in the folders below it is not looked at."""
        if not can_begin_a_name(prefix):
            return
        for page in self._names.level(prefix):
            files = {
                name: entry.etag
                for entry in page
                if isinstance(entry, Listed) and (name := name_of(entry)) is not None
            }
            folders = [
                Entry(_folder(each), is_folder=True) for each in page if isinstance(each, str)
            ]
            if with_records:
                found = [Entry(name, record) for name, _, record in self._records(files.items())]
            else:
                found = [Entry(name) for name in files]
            yield sorted(found + folders, key=lambda entry: entry.name)

    def kind(self, name: bytes) -> tuple[bool, bool]:
        """One LIST, unless a thousand names begin with this one and go on with what sorts before
        '/'."""
        folder, is_name = name + b"/", False
        for page in self.level(name, with_records=False):
            for entry in page:
                is_name = is_name or entry.name == name
                if entry.name >= folder:
                    return is_name, entry.name == folder
        return is_name, False

    def listed(
        self, prefix: bytes, *, by: SeenRoot | None = None
    ) -> Iterator[list[tuple[bytes, str]]]:
        """(name, ETag) of what begins with `prefix`, a page at a time; of what is in batches `by`
        what this root says, or what the root says now."""
        if not can_begin_a_name(prefix):
            return
        entries = (
            (name, entry.etag)
            for entry in self._names.listed(prefix, by=by)
            if (name := name_of(entry)) is not None
        )
        while page := list(islice(entries, PAGE_NAMES)):
            yield page

    def versions_of(self, listed: Sequence[tuple[bytes, str]]) -> list[Version]:
        """What the names map to that were just seen with these ETags, or by now; those that are
        gone are left out."""
        reading = [self._requests.submit(self._version, name, etag) for name, etag in listed]
        return [version for future in reading if (version := future.result()) is not None]

    def versions(self, prefix: bytes) -> Iterator[Version]:
        """What the names that begin with `prefix` map to, in order."""
        for versions in self._version_pages(prefix):
            yield from versions

    # ------------------------------------------------------------ for writers

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

    # ------------------------------------------------------------ below

    def _version_pages(self, prefix: bytes) -> Iterator[list[Version]]:
        """A listing tells each ETag: only those that it shows to be unknown are asked for."""
        for listed in self.listed(prefix):
            yield self.versions_of(listed)

    def _records(self, listed: Iterable[tuple[bytes, str]]) -> Iterator[tuple[bytes, str, Record]]:
        """(name, ETag, record) of what a LIST showed, from what is known or told of it; the rest is
        asked for. A name that went meanwhile is left out; the ETag is that of the record."""
        found: dict[bytes, tuple[str, Record]] = {}
        unknown: list[tuple[bytes, str]] = []
        for name, etag in listed:
            known = self._known(name, whole=False)
            if known is not None and known.etag == etag:
                found[name] = etag, known.head.record
            else:
                unknown.append((name, etag))
        if unknown:
            etags = dict(unknown)
            told = self._names.told(unknown)
            told |= self.listings.records([each for each in unknown if each[0] not in told])
            found |= {name: (etags[name], record) for name, record in told.items()}
            reading = [
                self._requests.submit(self._facts, name, etag)
                for name, etag in unknown
                if name not in told
            ]
            for future in reading:
                version = future.result()
                if version is not None:
                    found[version.name] = version.etag, version.head.record
        return ((name, *found[name]) for name, _ in listed if name in found)

    def _cover(
        self,
        version: Version,
        byte_ranges: Sequence[Sequence[int] | None],
        confirmation: Future[Version | None] | None = None,
    ) -> Cover:
        """Of this version, unless it is found out to be overwritten on the way."""
        try:
            parts = self._parts(version, byte_ranges)
        except Overwritten:
            fresh = None if confirmation is None else confirmation.result()
            return self._cover(fresh or self._fetch_known_to_exist(version.name), byte_ranges)

        def newer() -> Cover | None:
            fresh = None if confirmation is None else confirmation.result()
            return None if fresh is None else self._cover(fresh, byte_ranges)

        return Cover(version.head.record, parts, newer)

    def _parts(
        self, version: Version, byte_ranges: Sequence[Sequence[int] | None]
    ) -> list[tuple[int, int, list[Extent]]]:
        size = version.head.record.size
        bounds = [clamp_range(byte_range, size) for byte_range in byte_ranges]
        places = [_between(version, begin, end) for begin, end in bounds]
        segments = self._segments(version, [place for within in places for place in within])
        return [
            (begin, end, [e for place in within for e in segments[place.end].covering(begin, end)])
            for (begin, end), within in zip(bounds, places, strict=True)
        ]

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


def _folder(key: str) -> bytes:
    return key.removeprefix(NAMES).encode()


def _between(version: Version, begin: int, end: int) -> list[Place]:
    """The segments that hold bytes of `[begin, end)`."""
    if begin >= end:
        return []
    first = bisect_right(version.ends, begin)
    last = bisect_right(version.ends, end - 1)
    return version.head.segments[first : last + 1]
