"""The catalog of a store on S3: names in the bucket are the truth, what was read of them is cached.

A name that was read before costs one round trip: the conditional GET that says whether it still is
what we know, and at the same time, on the strength of what we know, the ranges. No answer is older
than the moment the read began.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from castore.errors import FormatError, NameNotFound
from castore.format.index import Record
from castore.format.s3 import Place
from castore.model import Extent, ObjectInfo, can_begin_a_name, clamp_range
from castore.s3.client.bucket import Listed
from castore.s3.keys import NAMES, name_of
from castore.s3.manifests import Overwritten, decode_own_head
from castore.s3.older import find_older
from castore.s3.versions import FIRST_BYTES, Version, Versions
from castore.stream.backend import Cover, Entry, Older
from castore.stream.segments import Manifest
from castore.system.workers import Future

if TYPE_CHECKING:
    from castore.s3.batch_root import SeenRoot

PAGE_NAMES = 1000


class S3Catalog(Versions):
    """The names of a store, and their manifests: from memory, this machine's cache, or S3.

    A read asks S3 whether the name still maps to what is known, so it is never stale. Thread-safe.
    """

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

    covers = None  # each asks the server

    def cover(self, name: bytes, byte_ranges: Sequence[Sequence[int] | None]) -> Cover:
        for byte_range in byte_ranges:
            clamp_range(byte_range, 0)  # a range that can't be says so before anything is asked
        known = self._known(name)
        if known is None:
            return self._cover(self._fetch_known_to_exist(name), byte_ranges)
        return self._cover(known, byte_ranges, self._requests.submit(self._fetch, name, known.etag))

    def older(self, name: bytes, like: bytes | None, *, beside: bool = True) -> Older | None:
        with self._lock:
            in_memory = list(self._versions)
        return find_older(self._cache, in_memory, self._known, name, like, beside=beside)

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


def _folder(key: str) -> bytes:
    return key.removeprefix(NAMES).encode()


def _between(version: Version, begin: int, end: int) -> list[Place]:
    """The segments that hold bytes of `[begin, end)`."""
    if begin >= end:
        return []
    first = bisect_right(version.ends, begin)
    last = bisect_right(version.ends, end - 1)
    return version.head.segments[first : last + 1]
