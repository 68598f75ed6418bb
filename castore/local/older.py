"""What an object to be put may resemble: found by its name, and read as far as it is asked for."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator

from castore.errors import FormatError
from castore.format.index import Record, decode_record, manifest_of, segment_key
from castore.format.segment import Segment, decode_segment
from castore.model import Extent
from castore.system.lmdb_env import Index, Snapshot

FOLDERS_MAX = 8  # of a name, that are looked for beside it
SEGMENTS_MAX = 16  # kept decoded: the 1,024 extents of each are 64 MiB of the object


def find_older(index: Index, name: bytes, like: bytes | None) -> OlderObject | None:
    """Of these, the first that is an object with chunks: `like`; what the name maps to; for a name
    such as `v2/a/b`, what `v1/a/b` maps to, where `v1` is the folder before `v2`; the neighbour in
    its folder, in the order of names, whose name agrees with it the longest."""
    with index.gate, index.snapshot() as txn:
        for candidate in _candidates(index, txn, name, like):
            raw = txn.get(candidate, db=index.names)
            if raw is None:
                continue
            with contextlib.suppress(FormatError):  # a damaged record
                record = decode_record(raw)
                if not record.is_inline:
                    return OlderObject(index, record)
    return None


def _candidates(index: Index, txn: Snapshot, name: bytes, like: bytes | None) -> Iterator[bytes]:
    if like is not None:
        yield like
    yield name
    folders = name.split(b"/")
    for depth in range(len(folders) - 2, max(-1, len(folders) - 2 - FOLDERS_MAX), -1):
        above = b"".join(folder + b"/" for folder in folders[:depth])
        before = _before(index, txn, above + folders[depth])
        if before is not None and before.startswith(above):
            sibling = before[len(above) :].split(b"/")[0]
            yield b"/".join([*folders[:depth], sibling, *folders[depth + 1 :]])
    yield from _neighbours(index, txn, name)


def _neighbours(index: Index, txn: Snapshot, name: bytes) -> list[bytes]:
    """In its folder, and called alike at all; the one that agrees longest first."""
    least = name.rfind(b"/") + 2
    found = [near for near in (_before(index, txn, name), _behind(index, txn, name)) if near]
    alike = [near for near in found if _agreement(near, name) >= least]
    return sorted(alike, key=lambda near: _agreement(near, name), reverse=True)


def _agreement(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _before(index: Index, txn: Snapshot, key: bytes) -> bytes | None:
    """The last name that sorts before the key."""
    with txn.cursor(db=index.names) as cursor:
        found = cursor.prev() if cursor.set_range(key) else cursor.last()
        return bytes(cursor.key()) if found else None


def _behind(index: Index, txn: Snapshot, name: bytes) -> bytes | None:
    """The first name that sorts after it."""
    with txn.cursor(db=index.names) as cursor:
        return bytes(cursor.key()) if cursor.set_range(name + b"\0") else None


class OlderObject:
    """See `castore.stream.backend.Older`. Its segments are read when they are needed, each in a
    transaction of its own: a collector may take them meanwhile."""

    def __init__(self, index: Index, record: Record) -> None:
        self.size = record.size
        self._index = index
        self._manifest = record.manifest
        self._kept: dict[int, Segment] = {}  # by where they begin

    def at_or_after(self, offset: int) -> Iterator[Segment]:
        while offset < self.size:
            segment = self._segment(offset)
            if segment is None:
                return
            yield segment
            offset = segment.end

    def covering(self, begin: int, end: int) -> list[Extent]:
        extents: list[Extent] = []
        for segment in self.at_or_after(begin):
            extents += segment.covering(begin, end)
            if segment.end >= end:
                break
        return extents

    def _segment(self, offset: int) -> Segment | None:
        begins = sorted(self._kept)
        i = bisect_right(begins, offset) - 1
        if i >= 0 and offset < self._kept[begins[i]].end:
            return self._kept[begins[i]]
        index = self._index
        with index.gate, index.snapshot() as txn, txn.cursor(db=index.segments) as cursor:
            if not cursor.set_range(segment_key(self._manifest, offset + 1)):
                return None
            key, raw = bytes(cursor.key()), bytes(cursor.value())
        try:
            if manifest_of(key) != self._manifest:
                return None
            segment = decode_segment(raw, manifest=self._manifest)
        except FormatError:
            return None
        if not segment.begin <= offset < segment.end:
            return None
        while len(self._kept) >= SEGMENTS_MAX:
            del self._kept[next(iter(self._kept))]
        self._kept[segment.begin] = segment
        return segment
