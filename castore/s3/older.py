"""What an object to be put may resemble, on S3: see `castore.stream.older`. Only what this machine
knows, in memory or in its cache: nothing is asked for. It may be out of date; what relies on it
makes sure of the packs, as of all that others stored."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from castore.errors import FormatError
from castore.format.segment import Segment, decode_segment
from castore.s3.cache.store import StoreCache
from castore.stream.older import OlderSegments, candidates, folders_before

if TYPE_CHECKING:
    from castore.s3.versions import Version


def find_older(
    cache: StoreCache,
    in_memory: Collection[bytes],
    known: Callable[[bytes], Version | None],
    name: bytes,
    like: bytes | None,
    *,
    beside: bool,
) -> OlderVersion | None:
    """The first of the candidates that is an object with chunks, whose first segment is here.
    `known` gives the version of a name that is known last, in memory or in the cache."""

    def before(name: bytes) -> bytes | None:
        names = (*(each for each in in_memory if each < name), cache.name_before(name))
        return max((each for each in names if each is not None), default=None)

    def behind(name: bytes) -> bytes | None:
        names = (*(each for each in in_memory if each > name), cache.name_behind(name))
        return min((each for each in names if each is not None), default=None)

    folders = partial(folders_before, before=before)
    for candidate in candidates(name, like, folders, before, behind, beside=beside):
        version = known(candidate)
        if version is not None and not version.head.record.is_inline:
            older = OlderVersion(cache, version)
            if next(older.at_or_after(0), None) is not None:
                return older
    return None


class OlderVersion(OlderSegments):
    """It ends before the first segment that is not here."""

    def __init__(self, cache: StoreCache, version: Version) -> None:
        super().__init__(version.head.record.size)
        self._cache = cache
        self._version = version

    def _read(self, offset: int) -> Segment | None:
        version = self._version
        i = bisect_right(version.ends, offset)
        if i == len(version.ends):
            return None
        end = version.ends[i]
        segment = version.segments.get(end)
        if segment is None:
            raw = self._cache.segment(version.name, version.etag, end)
            try:
                segment = None if raw is None else decode_segment(raw)
            except FormatError:
                return None
        return segment
